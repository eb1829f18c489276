"""What a system's answers say of its limit: how many calls are left, and until when."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

#: Beyond this a reset is no number of seconds from now but a time: seconds since 1970, or milliseconds.
_EPOCH_SECONDS, _EPOCH_MILLISECONDS = 10**8, 10**11

#: Longest time a limit is believed to last.
_LONGEST = timedelta(days=31)


@dataclass(frozen=True)
class Rate:
    """`remaining` calls of `limit` are left until `reset`; None for what the system did not say."""

    remaining: int
    limit: int | None = None
    reset: datetime | None = None


def rate_of(headers: Mapping[str, str], status: int = 200, now: datetime | None = None) -> Rate | None:
    """The limit as an answer's headers tell it; None where they do not.

    `headers` finds names in any case. Read are the IETF's draft (`RateLimit: "default";r=50;t=30`, with
    `RateLimit-Policy`), its older form (`RateLimit-Remaining`, `-Limit`, `-Reset`), and the same with an
    `X-` before or as `X-Rate-Limit-`. A 429 says that nothing is left, until its Retry-After.
    See draft-ietf-httpapi-ratelimit-headers.
    """
    now = now or datetime.now(UTC)
    found = _structured(headers, now) or _plain(headers, now)
    if status == 429:
        reset = _reset(headers.get("Retry-After"), now) or (found.reset if found else None)
        return Rate(0, found.limit if found else None, reset)
    return found


def _plain(headers: Mapping[str, str], now: datetime) -> Rate | None:
    for prefix in ("RateLimit-", "X-RateLimit-", "X-Rate-Limit-"):
        remaining = _number(headers.get(f"{prefix}Remaining"))
        if remaining is not None:
            limit = _number(headers.get(f"{prefix}Limit"))
            return Rate(remaining, limit, _reset(headers.get(f"{prefix}Reset"), now))
    return None


def _structured(headers: Mapping[str, str], now: datetime) -> Rate | None:
    """Of several limits the one that is nearest to its end."""
    quotas = {name: _number(values.get("q")) for name, values in _members(headers.get("RateLimit-Policy", ""))}
    rates = [
        Rate(remaining, quotas.get(name), _reset(values.get("t"), now))
        for name, values in _members(headers.get("RateLimit", ""))
        if (remaining := _number(values.get("r"))) is not None
    ]
    return min(rates, key=lambda rate: rate.remaining, default=None)


def _members(text: str) -> list[tuple[str, dict[str, str]]]:
    members = []
    for member in text.split(","):
        name, *parameters = (part.strip() for part in member.split(";"))
        members.append((name, dict(pair.split("=", 1) for pair in parameters if "=" in pair)))
    return members


def _number(text: str | None) -> int | None:
    # "100, 100;w=60" is how some name their windows along with the limit.
    match = re.match(r"\s*(\d{1,15})(\.\d*)?\s*([,;]|$)", text or "")
    return int(match[1]) if match else None


def _reset(text: str | None, now: datetime) -> datetime | None:
    number = _number(text)
    if number is None:
        return None
    if number >= _EPOCH_MILLISECONDS:
        number //= 1000
    begins = now.timestamp() if number < _EPOCH_SECONDS else 0.0
    if begins + number > (now + _LONGEST).timestamp():
        return None
    return datetime.fromtimestamp(begins + number, UTC)
