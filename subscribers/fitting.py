"""Values from elsewhere, as a column of ours takes them."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa


def as_key(column: sa.Column[Any], record_id: str | None) -> Any:
    """The ledger's text id of a related record, as the column that points to it takes it.

    Raises:
      ValueError: there is none.
    """
    if record_id is None:
        raise ValueError("points to a record that is not known here")
    python_type = column.type.python_type
    return record_id if python_type is str else python_type(record_id)


def fit(column: sa.Column[Any], value: Any) -> Any:
    """A value as this column takes it.

    Raises:
      ValueError: it does not fit; the message says why.
    """
    if value is None or value == "":
        if not column.nullable:
            raise ValueError(f"is empty, but {column.name} needs a value")
        return None
    expected = column.type.python_type
    if expected is str:
        return _fit_text(column, value)
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
        raise ValueError(f"{value} is too large for {column.name}")
    if isinstance(value, bool) is not (expected is bool) or not isinstance(value, expected):
        raise ValueError(f"{value!r} is no {expected.__name__}, as {column.name} needs")
    return value


def _fit_text(column: sa.Column[Any], value: Any) -> str:
    if isinstance(value, dict | list):
        raise ValueError(f"is a {type(value).__name__}, but {column.name} is text")
    text = str(value)
    length = getattr(column.type, "length", None)
    if length is not None and len(text) > length:
        raise ValueError(f"{len(text)} characters, but {column.name} holds {length}")
    if "\x00" in text:
        raise ValueError("holds a NUL character, which no text column takes")
    return text
