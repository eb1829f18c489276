"""Rate limits in response headers: the remaining calls, and the time of the reset."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

#: From these values on, a reset is a time in seconds or milliseconds since 1970, not a number of seconds from now.
_EPOCH_SECONDS = 10**8
_EPOCH_MILLISECONDS = 10**11

#: A reset later than this is ignored.
_LONGEST = timedelta(days=31)


@dataclass(frozen=True)
class Rate:
    """`remaining` calls of `limit` are left until `reset`; None for unknown values."""

    remaining: int
    limit: int | None = None
    reset: datetime | None = None


def rate_of(headers: Mapping[str, str], status: int = 200, now: datetime | None = None) -> Rate | None:
    """Return the rate limit in the headers of a response, or None.

    `headers` must ignore the case of names. Supported are the IETF's draft (`RateLimit: "default";r=50;t=30`, with
    `RateLimit-Policy`), its older form (`RateLimit-Remaining`, `-Limit`, `-Reset`), and the same with an
    prefix `X-` or `X-Rate-Limit-`. A 429 means that no calls are left until its Retry-After.
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
    """Return the limit with the fewest remaining calls."""
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
    # Some systems add their windows to the limit: "100, 100;w=60".
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
