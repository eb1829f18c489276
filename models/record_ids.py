"""The id of a record in the ledger: one text for each key, the same in triggers, reads and look-ups.

A key has several texts: `CHAR(n)` is padded, a number may end in zeros, a date depends on the session's settings. The
database computes the id for triggers and reads with the same expression (`key_text`); `text_of` does the same for a
value in Python, and `key_value` is the reverse.

| type of the key | id |
|---|---|
| integer, text, enum | its text; `CHAR(n)` without the padding that PostgreSQL adds |
| UUID | 36 lower-case characters |
| `NUMERIC` | without an exponent and without zeros at the end: `5`, `0.25` |
| date, timestamp | ISO 8601; a timestamp with six decimals, and in UTC if it has a zone |
| bytes | hexadecimal digits |
| `inet` | without the length of the network where that is the whole address |
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

_PREPARERS = {
    "postgresql": postgresql.dialect().identifier_preparer,  # type: ignore[no-untyped-call]
    "sqlite": sqlite.dialect().identifier_preparer,
}

Type = sa.types.TypeEngine[Any]

#: SQLAlchemy stores a UUID as 32 digits in SQLite; the id of a record has the dashes.
_SQLITE_UUID = (
    "lower(printf('%s-%s-%s-%s-%s', "
    + ", ".join(f"substr({{0}}, {start}, {length})" for start, length in ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12)))
    + "))"
)
_PG_STAMP = "'YYYY-MM-DD\"T\"HH24:MI:SS.US'"

_TEXTS = {
    "postgresql": {
        "number": "trim_scale({0})::text",
        "date": "CASE WHEN isfinite({0}) THEN to_char({0}, 'YYYY-MM-DD') ELSE {0}::text END",
        "timestamp": f"CASE WHEN isfinite({{0}}) THEN to_char({{0}}, {_PG_STAMP}) ELSE {{0}}::text END",
        "instant": (
            f"CASE WHEN isfinite({{0}}) THEN to_char({{0}} AT TIME ZONE 'UTC', {_PG_STAMP}) || '+00:00' "
            "ELSE {0}::text END"
        ),
        "bytes": "encode({0}, 'hex')",
        "address": "abbrev({0})",
        "uuid": "{0}::text",
        "text": "{0}::text",
        "integer": "{0}::text",
    },
    "sqlite": {
        "number": (
            "CASE typeof({0}) WHEN 'real' THEN rtrim(rtrim(printf('%.10f', {0}), '0'), '.') ELSE CAST({0} AS TEXT) END"
        ),
        "timestamp": "replace({0}, ' ', 'T')",
        "instant": "replace({0}, ' ', 'T') || '+00:00'",
        "bytes": "lower(hex({0}))",
        "uuid": _SQLITE_UUID,
    },
}

#: What a type is as a key; the first that fits. Those without a name cannot be a key.
_KINDS: tuple[tuple[type[Any], str | None], ...] = (
    (sa.Boolean, None),
    (sa.Float, None),
    (sa.JSON, None),
    (sa.Interval, None),
    (postgresql.INTERVAL, None),
    (sa.ARRAY, None),
    (sa.Time, None),
    (sa.Uuid, "uuid"),
    (sa.Integer, "integer"),
    (sa.Numeric, "number"),
    (sa.Date, "date"),
    (sa.LargeBinary, "bytes"),
    (postgresql.BYTEA, "bytes"),
    (postgresql.INET, "address"),
)


def kind_of_key(kind: Type) -> str | None:
    """Return integer, text, uuid, number, date, timestamp, instant, bytes or address; None: no key can have it."""
    if isinstance(kind, sa.types.TypeDecorator) and not isinstance(kind, sa.Interval):
        return kind_of_key(kind.impl_instance)
    if isinstance(kind, sa.DateTime):
        return "instant" if kind.timezone else "timestamp"
    return next((name for known, name in _KINDS if isinstance(kind, known)), "text")


def key_text(dialect: str, kind: Type, expression: str) -> str:
    """Return the SQL of the id of a record whose key is this SQL expression."""
    usual = "{0}::text" if dialect == "postgresql" else "CAST({0} AS TEXT)"
    return _TEXTS[dialect].get(kind_of_key(kind) or "text", usual).format(expression)


def record_id(dialect: str, column: sa.Column[Any]) -> sa.ColumnElement[str]:
    """Return the expression of the id of a record, for a key column or a column that refers to one."""
    preparer = _PREPARERS[dialect]
    name = f"{preparer.format_table(column.table)}.{preparer.quote(column.name)}"
    return sa.literal_column(key_text(dialect, column.type, name), sa.Text)


def text_of(kind: Type, value: Any) -> str:
    """Return the id of the record whose key is this value."""
    if isinstance(value, Decimal):
        return without_zeros(value)
    if isinstance(value, datetime):
        at = value if value.tzinfo is None else value.astimezone(UTC)
        return at.isoformat(timespec="microseconds")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, enum.Enum):
        return value.name
    return str(value).rstrip(" ") if isinstance(kind, sa.CHAR) else str(value)


def without_zeros(number: Decimal) -> str:
    """Return a number without an exponent and without zeros at the end; `normalize` would round it."""
    text = format(number, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text if number else "0"


def key_value(kind: Type, text: str) -> Any:
    """Return an id as a value of the key's type.

    Raises:
      ValueError, ArithmeticError: the text cannot be converted.
    """
    read: dict[str, Callable[[str], Any]] = {
        "integer": int,
        "uuid": UUID,
        "number": Decimal,
        "date": date.fromisoformat,
        "timestamp": datetime.fromisoformat,
        "instant": datetime.fromisoformat,
        "bytes": bytes.fromhex,
    }
    name = kind_of_key(kind) or "text"
    if name == "uuid" and not getattr(kind, "as_uuid", True):
        return text.replace("-", "")  # the form that SQLite stores; PostgreSQL reads both
    return read[name](text) if name in read else text
