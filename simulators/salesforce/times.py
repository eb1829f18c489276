"""The org's clock, and times as the API writes them: UTC, whole seconds, `2026-11-22T07:06:38.000+0000`."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta


class Clock:
    """The org's clock; a test can advance or stop it instead of waiting."""

    def __init__(self) -> None:
        self._offset = timedelta(0)
        self._frozen: datetime | None = None

    def now(self) -> datetime:
        """Return the org's time: aware, in UTC, truncated to whole seconds."""
        moment = self._frozen or datetime.now(UTC)
        return (moment + self._offset).replace(microsecond=0)

    def advance(self, seconds: float) -> None:
        self._offset += timedelta(seconds=seconds)

    def freeze(self) -> None:
        """Stop the clock: all timestamps are the same until `thaw`."""
        self._frozen = self._frozen or datetime.now(UTC)

    def thaw(self) -> None:
        self._frozen = None


def to_wire(moment: datetime) -> str:
    """Return a time as the API writes it. The text sorts by time, since it is always UTC and of one length."""
    utc = moment.astimezone(UTC)
    return f"{utc:%Y-%m-%dT%H:%M:%S}.{utc.microsecond // 1000:03d}+0000"


def parse_datetime(text: str) -> datetime:
    """Parse an ISO 8601 time with an offset (`Z`, `+00:00` or `+0000`). Raises ValueError."""
    moment = datetime.fromisoformat(text)
    if "T" not in text or moment.tzinfo is None:
        raise ValueError(f"a time with an offset is needed, not {text!r}")
    return moment.astimezone(UTC)


def parse_date(text: str) -> date:
    """Parse a date such as `2026-11-22`. Raises ValueError."""
    if len(text) != len("2026-11-22"):
        raise ValueError(f"a date is needed, not {text!r}")
    return date.fromisoformat(text)
