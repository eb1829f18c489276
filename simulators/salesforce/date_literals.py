"""Date literals such as TODAY and LAST_N_DAYS:7: each means a span of whole days, in the simulator always in UTC.

SOQL and SOSL reference: "Date Formats and Date Literals in WHERE".
"""

from __future__ import annotations

from datetime import datetime, timedelta

_DAY = timedelta(days=1)
_FIXED = frozenset(f"{when}_{span}" for when in ("LAST", "THIS", "NEXT") for span in ("WEEK", "MONTH", "YEAR")) | {
    "YESTERDAY",
    "TODAY",
    "TOMORROW",
    "LAST_90_DAYS",
    "NEXT_90_DAYS",
}
#: 99,999 days are 274 years; larger numbers could exceed the range of `datetime`.
_MOST_DIGITS = 5
_COUNTED = frozenset(("LAST_N_DAYS", "NEXT_N_DAYS", "N_DAYS_AGO"))


def is_date_literal(text: str) -> bool:
    """Return whether the simulator knows this upper-case date literal, e.g. `LAST_N_DAYS:7`."""
    name, colon, number = text.partition(":")
    return name in (_COUNTED if colon else _FIXED) and len(number) <= _MOST_DIGITS


def day_range(text: str, now: datetime) -> tuple[datetime, datetime]:
    """Return the first moment of the span, and the first moment after it."""
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    name, _, number = text.partition(":")
    if name in ("LAST_90_DAYS", "NEXT_90_DAYS"):
        name, number = f"{name[:4]}_N_DAYS", "90"
    if number:
        return _counted(name, int(number), today)
    if "_" not in name:
        first = today + _DAY * {"YESTERDAY": -1, "TODAY": 0, "TOMORROW": 1}[name]
        return first, first + _DAY
    which, span = name.split("_")
    step = {"LAST": -1, "THIS": 0, "NEXT": 1}[which]
    return _start(span, today, step), _start(span, today, step + 1)


def _counted(name: str, days: int, today: datetime) -> tuple[datetime, datetime]:
    if name == "N_DAYS_AGO":
        return today - _DAY * days, today - _DAY * (days - 1)
    if name == "LAST_N_DAYS":  # includes today
        return today - _DAY * days, today + _DAY
    return today + _DAY, today + _DAY * (days + 1)


def _start(span: str, today: datetime, step: int) -> datetime:
    """Return the start of the week (Sunday), month or year that is `step` spans after the one of today."""
    if span == "WEEK":
        return today - _DAY * (today.isoweekday() % 7) + timedelta(weeks=step)
    if span == "YEAR":
        return today.replace(year=today.year + step, month=1, day=1)
    months = today.year * 12 + today.month - 1 + step
    return today.replace(year=months // 12, month=months % 12 + 1, day=1)
