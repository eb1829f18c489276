"""Convert external values to the types of columns."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from i18n import gettext
from subscribers.mapping.values import InvalidValue


def as_key(column: sa.Column[Any], record_id: str | None) -> Any:
    """Return the id of a related record, a text in the ledger, as the type of the column that refers to it.

    Raises:
      ValueError: `record_id` is None: the related record is not linked.
    """
    if record_id is None:
        raise InvalidValue(gettext("refers to a record that is not linked"), "reference_missing")
    python_type = column.type.python_type
    return record_id if python_type is str else python_type(record_id)


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
    expected = column.type.python_type
    if expected is str:
        return _coerce_text(column, value)
    if expected is date and isinstance(value, str):
        return date.fromisoformat(value[:10])
    if expected is date and isinstance(value, datetime):
        return value.date()
    if expected is datetime and isinstance(value, str):
        return datetime.fromisoformat(value)
    if expected in (Decimal, float) and isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return expected(str(value))
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
