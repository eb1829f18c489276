"""The JSON form of every type of column: one in both directions, on both databases.

`to_json` writes a value that the database holds, and `coercion.coerce` reads the form back. The table is in
docs/howto/add-a-catalogue.md. A value without a form, such as NaN, is refused with its column.
"""

from __future__ import annotations

import base64
import enum
import math
import re
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from i18n import gettext
from models.record_ids import without_zeros
from redaction import clean, hide
from subscribers.mapping.values import InvalidValue, plain

Type = sa.types.TypeEngine[Any]

#: Characters of a value that an error quotes.
_LONGEST_QUOTE = 100

_DURATION = re.compile(
    r"(?P<sign>[+-]?)P(?:(?P<days>\d+)D)?"
    r"(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+(?:\.\d{1,6})?)S)?)?"
)


@lru_cache
def python_type(kind: Type) -> type:
    """Return the Python type of a column's values; `object` where SQLAlchemy does not know it."""
    if isinstance(kind, sa.types.TypeDecorator) and not isinstance(kind, sa.Interval):
        return python_type(kind.impl_instance)
    try:
        return kind.python_type
    except NotImplementedError:
        return object


def to_json(column: sa.Column[Any], value: Any) -> Any:
    """Return the JSON form of a value of this column.

    Raises:
      InvalidValue: the value has no form, or is none of the column's type (SQLite); it names column and value.
    """
    if value is None or (type(value) is str and type(column.type) in _PLAIN_TEXT):
        return value
    try:
        return _form(column.type, value)
    except (ValueError, TypeError, AttributeError, ArithmeticError):
        shown = hide(clean(repr(value)))[:_LONGEST_QUOTE]
        raise InvalidValue(
            gettext("{name} holds {value}, which has no form in JSON", name=column.name, value=shown), "unreadable"
        ) from None


_PLAIN_TEXT = (sa.String, sa.Text, sa.VARCHAR)


def _form(kind: Type, value: Any) -> Any:
    expected = python_type(kind)
    if isinstance(kind, sa.ARRAY):
        return [_element(kind.item_type, one) for one in value]
    if isinstance(value, enum.Enum):
        return value.name
    if expected is str and isinstance(kind, sa.String):
        return _text(kind, value)
    if expected is int:
        return _number(value) if type(value) is int else _wrong()
    if expected is float:
        return _number(float(value)) if type(value) in (int, float) else _wrong()
    if expected is Decimal:
        return _decimal(kind, value)
    if expected in _EXACT and type(value) is not expected:
        _wrong()
    if isinstance(kind, postgresql.MONEY) and isinstance(value, str):
        return _money(value)
    if isinstance(value, postgresql.Range):
        return range_form(value)
    if isinstance(value, list) and all(isinstance(one, postgresql.Range) for one in value):
        return [range_form(one) for one in value]
    return plain(value)


#: Types whose values are of exactly this class: text in a date column of SQLite is none.
_EXACT = (bool, date, datetime, time, timedelta)


def _element(kind: Type, value: Any) -> Any:
    if isinstance(value, list):
        return [_element(kind, one) for one in value]
    return None if value is None else _form(kind, value)


def _wrong() -> Any:
    raise ValueError


def _text(kind: Type, value: Any) -> str:
    text: str = value if isinstance(value, str) else _wrong()
    return clean(text.rstrip(" ") if isinstance(kind, sa.CHAR) else text)  # PostgreSQL pads CHAR(n)


def _number(value: float) -> float:
    return value if math.isfinite(value) else _wrong()


def _decimal(kind: Any, value: Any) -> str:
    if type(value) is float:  # NUMERIC that is declared with asdecimal=False
        return _number(value)  # type: ignore[return-value]
    number = value if isinstance(value, Decimal) else Decimal(value)
    if not number.is_finite():
        _wrong()
    scale = getattr(kind, "scale", None)
    # Without a scale SQLite adds zeros that were never written.
    return without_zeros(number) if scale is None else format(number, "f")


def _money(text: str) -> str:
    """Return an amount without currency and separators of thousands; the last separator is that of the cents."""
    digits = re.sub(r"[^\d.,]", "", text)
    whole, separator, cents = digits.rpartition(max(".", ",", key=digits.rfind))
    amount = re.sub("[.,]", "", whole) + (f".{cents}" if separator else cents)
    return f"-{amount}" if text.strip().startswith(("-", "(")) else amount


def range_form(value: postgresql.Range[Any]) -> dict[str, Any]:
    """Return a range as `{"lower": 1, "upper": 5, "bounds": "[)"}`, or `{"empty": true}`."""
    if value.empty:
        return {"empty": True}
    ends = {"lower": value.lower, "upper": value.upper}
    return {name: plain(end) for name, end in ends.items()} | {"bounds": value.bounds}


def read_range(value: Any, bound: Any) -> postgresql.Range[Any]:
    """Return the range that `range_form` has written."""
    if not isinstance(value, Mapping):
        raise ValueError("a range is an object with lower, upper and bounds")
    if value.get("empty"):
        return postgresql.Range(empty=True)
    ends = {name: None if value.get(name) is None else bound(value[name]) for name in ("lower", "upper")}
    return postgresql.Range(ends["lower"], ends["upper"], bounds=value.get("bounds", "[)"))


def read_duration(text: str) -> timedelta:
    """Return the duration that `duration_form` has written.

    Raises:
      ValueError: it is not a duration of days and shorter units.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None or not any(found.group(name) for name in ("days", "hours", "minutes", "seconds")):
        raise ValueError(gettext("{value!r} is not a duration such as P1DT2H", value=text))
    days, hours, minutes = (int(found.group(name) or 0) for name in ("days", "hours", "minutes"))
    seconds = Decimal(found.group("seconds") or 0)
    length = timedelta(days=days, hours=hours, minutes=minutes, microseconds=int(seconds * 1_000_000))
    return -length if found.group("sign") == "-" else length


def read_bytes(text: str) -> bytes:
    """Return the bytes that are written in base64.

    Raises:
      ValueError: it is no base64.
    """
    return base64.b64decode(text, validate=True)


def read_uuid(kind: Type, text: str) -> Any:
    """Return a UUID as the column holds it."""
    number = UUID(text)
    return number if getattr(kind, "as_uuid", True) else str(number)
