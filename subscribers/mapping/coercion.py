"""Convert external values to the types of columns."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.ranges import AbstractMultiRange, AbstractRange

from i18n import gettext
from models.record_ids import key_value
from subscribers.mapping.column_values import python_type, read_bytes, read_duration, read_range, read_uuid
from subscribers.mapping.values import InvalidValue


def as_key(column: sa.Column[Any], record_id: str | None) -> Any:
    """Return the id of a related record, a text in the ledger, as the type of the column that refers to it.

    Raises:
      ValueError: `record_id` is None: the related record is not linked.
    """
    if record_id is None:
        raise InvalidValue(gettext("refers to a record that is not linked"), "reference_missing")
    return key_value(column.type, record_id)


def coerce(column: sa.Column[Any], value: Any) -> Any:
    """Return a value as the type of this column.

    Raises:
      ValueError: it cannot be converted; the message gives the reason.
    """
    if value is None or value == "":
        if not column.nullable:
            raise InvalidValue(
                gettext("is empty, but {name} requires a value", name=column.name), "required_field_missing"
            )
        return None
    return _as_type(column, column.type, value)


def _as_type(column: sa.Column[Any], kind: sa.types.TypeEngine[Any], value: Any) -> Any:
    expected = python_type(kind)
    if isinstance(kind, sa.ARRAY):
        return _as_list(column, kind, value)
    if isinstance(kind, AbstractRange):
        return _as_range(column, kind, value)
    if isinstance(kind, sa.JSON | postgresql.HSTORE):
        return value
    if expected is str and not isinstance(kind, sa.Uuid):
        return _coerce_text(column, value)
    if isinstance(value, str) and (read := _reader(kind, expected)) is not None:
        value = read(value)
    if expected is object or isinstance(kind, _ADDRESSES):  # a type that SQLAlchemy has no Python class for
        return _coerce_text(column, value)
    if expected is date and isinstance(value, datetime):
        return value.date()
    if expected in (Decimal, float) and isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return _finite(expected, str(value))
    if expected is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if expected is int and isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(gettext("{value} is too large for {name}", value=value, name=column.name))
    if isinstance(value, bool) is not (expected is bool) or not isinstance(value, expected):
        raise ValueError(
            gettext(
                "{value!r} is not of type {kind}, which {name} requires",
                value=value,
                kind=expected.__name__,
                name=column.name,
            )
        )
    return value


def _reader(kind: sa.types.TypeEngine[Any], expected: type) -> Callable[[str], Any] | None:
    """Return what reads the JSON form of a type whose form is text; None where it is none."""
    if isinstance(kind, sa.Uuid):
        return lambda text: read_uuid(kind, text)
    if isinstance(kind, postgresql.INET):
        return lambda text: str(ipaddress.ip_interface(text)).removesuffix("/32").removesuffix("/128")
    if isinstance(kind, postgresql.CIDR):
        return lambda text: str(ipaddress.ip_network(text))
    if isinstance(kind, postgresql.BIT):
        return postgresql.BitString
    if isinstance(kind, postgresql.MONEY):
        return lambda text: format(_decimal(text), "f")
    return _READERS.get(expected)


def _as_list(column: sa.Column[Any], kind: sa.ARRAY[Any], value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(gettext("{value!r} is not a list, but {name} requires one", value=value, name=column.name))
    return [
        None
        if one is None
        else _as_list(column, kind, one)
        if isinstance(one, list)
        else _as_type(column, kind.item_type, one)
        for one in value
    ]


def _as_range(column: sa.Column[Any], kind: Any, value: Any) -> Any:
    bound = _BOUNDS[type(kind)]
    if isinstance(kind, AbstractMultiRange):
        if not isinstance(value, list):
            raise ValueError(gettext("{value!r} is not a list, but {name} requires one", value=value, name=column.name))
        return [read_range(one, lambda end: _as_type(column, bound, end)) for one in value]
    return read_range(value, lambda end: _as_type(column, bound, end))


def _finite(kind: type, text: str) -> Any:
    number = kind(text.strip())
    if not math.isfinite(number):
        raise ValueError(gettext("{value} is not a finite number", value=text))
    return number


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(_finite(Decimal, text))
    except ArithmeticError:
        raise ValueError(gettext("{value!r} is not a number", value=text)) from None


def _whole(text: str) -> Any:
    """Return the number of a text of digits; another text as it is, for the usual message."""
    return int(text) if re.fullmatch(r"[+-]?\d{1,19}", text.strip()) else text


_ADDRESSES = (postgresql.INET, postgresql.CIDR, postgresql.MACADDR, postgresql.MACADDR8)
_READERS: dict[type, Callable[[str], Any]] = {
    date: lambda text: date.fromisoformat(text[:10]),
    datetime: datetime.fromisoformat,
    time: time.fromisoformat,
    timedelta: read_duration,
    bytes: read_bytes,
    Decimal: _decimal,
    float: lambda text: _finite(float, text),
    int: _whole,
}
_BOUNDS: dict[type, sa.types.TypeEngine[Any]] = {
    postgresql.INT4RANGE: sa.BigInteger(),
    postgresql.INT8RANGE: sa.BigInteger(),
    postgresql.NUMRANGE: sa.Numeric(),
    postgresql.DATERANGE: sa.Date(),
    postgresql.TSRANGE: sa.DateTime(),
    postgresql.TSTZRANGE: sa.DateTime(timezone=True),
}
_BOUNDS |= {
    postgresql.INT4MULTIRANGE: sa.BigInteger(),
    postgresql.INT8MULTIRANGE: sa.BigInteger(),
    postgresql.NUMMULTIRANGE: sa.Numeric(),
    postgresql.DATEMULTIRANGE: sa.Date(),
    postgresql.TSMULTIRANGE: sa.DateTime(),
    postgresql.TSTZMULTIRANGE: sa.DateTime(timezone=True),
}


def _coerce_text(column: sa.Column[Any], value: Any) -> str:
    if isinstance(value, dict | list):
        raise ValueError(gettext("is of type {kind}, but {name} is text", kind=type(value).__name__, name=column.name))
    text = str(value)
    length = getattr(column.type, "length", None)
    if length is not None and len(text) > length:
        raise InvalidValue(
            gettext("has {n} characters, but {name} allows {length}", n=len(text), name=column.name, length=length),
            "too_long",
        )
    if "\x00" in text:
        raise ValueError(gettext("contains a NUL character, which text columns cannot store"))
    return text
