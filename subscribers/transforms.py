"""Named transforms of single values, each with its inverse.

A closed registry: a mapping edited in the panel names one of these and can never run code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any

Value = Any


@dataclass(frozen=True)
class Transform:
    """`forward` maps the internal value to the external one, `inverse` the other way.

    Both raise ValueError, with words for a person, for a value they cannot map. None passes by.
    """

    forward: Callable[[Value], Value]
    inverse: Callable[[Value], Value]
    description: str


def _text(value: Value) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, found {type(value).__name__}")
    return value


def _to_decimal(minor: Value) -> str:
    if isinstance(minor, bool) or not isinstance(minor, int):
        raise ValueError("expected a whole number of minor units")
    return str(Decimal(minor).scaleb(-2))


def _to_minor(value: Value) -> int:
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        raise ValueError(f"not an amount of money: {value!r}") from None
    # More digits than a 64-bit column holds would be rounded in silence; infinity and NaN are no amounts either.
    if not amount.is_finite() or abs(amount) >= 10**16:
        raise ValueError(f"not an amount of money: {value!r}")
    scaled = amount.scaleb(2)
    if scaled != scaled.to_integral_value():
        raise ValueError(f"more than two decimals: {value}")
    return int(scaled)


def _to_number(minor: Value) -> float:
    return float(_to_decimal(minor))


def _to_iso(value: Value) -> str:
    if not isinstance(value, date):
        raise ValueError("expected a date")
    return value.isoformat()


def _from_iso(value: Value) -> date:
    return date.fromisoformat(_text(value)[:10])


def _yes(value: Value) -> str:
    return "yes" if value else "no"


def _is_yes(value: Value) -> bool:
    word = _text(value).strip().lower()
    if word not in ("yes", "no"):
        raise ValueError(f"expected yes or no, found {value!r}")
    return word == "yes"


def _not(value: Value) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return not value


TRANSFORMS: dict[str, Transform] = {
    "upper": Transform(lambda v: _text(v).upper(), lambda v: _text(v).lower(), "lower case here, UPPER CASE there"),
    "lower": Transform(lambda v: _text(v).lower(), lambda v: _text(v).lower(), "lower case on both sides"),
    "strip": Transform(lambda v: _text(v).strip(), lambda v: _text(v).strip(), "without blanks around it"),
    "minor_units": Transform(_to_decimal, _to_minor, "1250 cents here, 12.50 there"),
    "amount": Transform(_to_number, _to_minor, "1250 cents here, the number 12.5 there"),
    "date": Transform(_to_iso, _from_iso, "a date here, 2026-11-30 there"),
    "yes_no": Transform(_yes, _is_yes, "true/false here, yes/no there"),
    "not": Transform(_not, _not, "the opposite of true/false"),
    "text": Transform(str, _text, "anything as text"),
}
