"""Compare external values, and write them as JSON."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from redaction import clean
from subscribers.errors import Reject

Flat = dict[str, Any]

#: (catalogue, id on one side) -> id on the other side.
Links = Mapping[tuple[str, str], str]

#: Types whose values are compared and written to JSON unchanged; a fast path for most values.
_SIMPLE = frozenset({str, int, float, bool, type(None)})

_WRITTEN_AS_TEXT = (
    UUID,
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equivalent: empty text and None are, and 12 and 12.0.

    The same holds within lists and objects; a missing key is an empty value.
    """
    if type(one) is type(other) and type(one) in _SIMPLE:
        return bool(one == other)
    if is_empty(one) and is_empty(other):
        return True
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return all(same(one.get(key), other.get(key)) for key in {*one, *other})
    if isinstance(one, bool) is not isinstance(other, bool):
        return False
    return bool(one == other)


def is_empty(value: Any) -> bool:
    """Return whether a value is None, an empty text or an empty list."""
    return not value and (value is None or value in ("", []))


def without_empty(values: Mapping[str, Any]) -> Flat:
    """Return the values that are not empty: that two rows both lack a value does not make them alike."""
    return {name: value for name, value in values.items() if not is_empty(value)}


def plain(value: Any) -> Any:
    """Return a value as it is written to JSON, the same each time."""
    kind = type(value)
    if kind is str:
        return value if value.isascii() and "\x00" not in value else clean(value)
    if kind in _SIMPLE:
        return value
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, timedelta):
        return duration_form(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, _WRITTEN_AS_TEXT):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def duration_form(value: timedelta) -> str:
    """Return a duration as ISO 8601 with days and shorter units: `P1DT2H3M4.5S`."""
    sign, left = ("-", -value) if value < timedelta(0) else ("", value)
    minutes, seconds = divmod(left.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{left.microseconds:06}".rstrip("0").rstrip(".")
    clock = f"{f'{hours}H' if hours else ''}{f'{minutes}M' if minutes else ''}"
    clock += f"{seconds}{fraction}S" if seconds or fraction else ""
    days = f"{left.days}D" if left.days else ""
    return f"{sign}P{days}T{clock}" if clock else f"{sign}P{days or '0D'}"


def describe_fields(messages: Mapping[str, str]) -> str:
    """Return the messages of fields as one text."""
    return "; ".join(f"{name}: {text}" for name, text in messages.items())


class InvalidValue(ValueError):
    """A value that does not fit its field. `code` names the cause, as that of a `SyncError` does."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class FieldErrors:
    """Collects the errors of a record's fields, and raises them as one `Reject` with the code of the first."""

    def __init__(self) -> None:
        self.messages: dict[str, str] = {}
        self.code: str | None = None

    def add(self, path: str, message: str, code: str) -> None:
        """Add the message of a field; only the first of each field counts."""
        self.code = self.code or code
        self.messages.setdefault(path, message)

    def add_value(self, path: str, error: ValueError) -> None:
        """Add a value that cannot be converted."""
        self.add(path, str(error), error.code if isinstance(error, InvalidValue) else "invalid_value")

    def add_nested(self, error: Reject, prefix: str = "") -> None:
        """Add the fields of child rows."""
        for name, message in error.fields.items():
            self.add(prefix + name, message, error.code)

    def raise_if_any(self) -> None:
        """Raise what was collected.

        Raises:
          Reject: at least one field has an error.
        """
        if self.messages:
            raise Reject(describe_fields(self.messages), fields=self.messages, code=self.code)
