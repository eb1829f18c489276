"""Convert the values a client sends to their stored form, and reject those that the real system rejects.

The real system changes some values silently: it strips text, turns empty text into null and extends an id of
15 characters to 18. A client that compares the values it sent with those it reads must allow for this.
Salesforce object reference: "Primitive Data Types", "Field Types".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from .errors import SalesforceError, bad_json, malformed_id
from .identifiers import to_18
from .schema import Field, SObject
from .times import parse_date, parse_datetime, to_wire

_EMAIL = re.compile(r"[^@\s,;<>()\"]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")
#: Number fields hold 18 digits, 2 of them after the point.
_LARGEST_NUMBER = 10.0**16


def to_stored(owner: SObject, field: Field, value: Any) -> Any:
    """Check one value and return its stored form: str, int, float or None. Raises SalesforceError."""
    if value is None or value == "":
        return _null(field)
    return _CHECKS[field.kind](owner, field, value)


def _null(field: Field) -> Any:
    if field.kind == "boolean":
        raise bad_json(f"Cannot deserialize value of boolean from null for field {field.name}")
    return None


def to_json(field: Field, stored: Any) -> Any:
    """Return the JSON form of a stored value."""
    return bool(stored) if field.kind == "boolean" else stored


def _text(owner: SObject, field: Field, value: Any) -> str | None:
    # Text fields accept JSON numbers and booleans, but never a structure.
    if isinstance(value, dict | list):
        raise bad_json(f"Cannot deserialize value of string for field {field.name}")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if "\x00" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise bad_json(f"Illegal character in the value of field {field.name}")
    text = text.strip()
    if _length(text) > field.length:
        shown = text[:255]
        raise SalesforceError(
            "STRING_TOO_LONG",
            f"{_label(field)}: data value too large: {shown} (max length={field.length})",
            fields=[field.name],
        )
    return text or None


def _length(text: str) -> int:
    """Return the length in UTF-16 units: as in the real system, an emoji counts as two."""
    return len(text.encode("utf-16-le")) // 2


def _label(field: Field) -> str:
    return field.name.removesuffix("__c").replace("_", " ")


def _email(owner: SObject, field: Field, value: Any) -> str | None:
    text = _text(owner, field, value)
    if text is not None and not _EMAIL.fullmatch(text):
        raise SalesforceError(
            "INVALID_EMAIL_ADDRESS", f"{_label(field)}: invalid email address: {text}", fields=[field.name]
        )
    return text


def _picklist(owner: SObject, field: Field, value: Any) -> str | None:
    text = _text(owner, field, value)
    if text is not None and field.values and text not in field.values:
        raise SalesforceError(
            "INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST",
            f"{_label(field)}: bad value for restricted picklist field: {text}",
            fields=[field.name],
        )
    return text


def _boolean(owner: SObject, field: Field, value: Any) -> int:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return int(value.lower() == "true")
    raise _cannot_read("boolean", value)


def _number(owner: SObject, field: Field, value: Any) -> float:
    number = _as_float(value)
    if abs(number) >= _LARGEST_NUMBER:
        raise SalesforceError(
            "NUMBER_OUTSIDE_VALID_RANGE",
            f"{_label(field)}: value outside of valid range on numeric field: {value}",
            fields=[field.name],
        )
    return number


def _as_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _cannot_read("double", value)
    try:
        number = float(value)
    except ValueError:
        raise _cannot_read("double", value) from None
    if not math.isfinite(number):
        raise _cannot_read("double", value)
    return number


def _int(owner: SObject, field: Field, value: Any) -> int:
    number = _number(owner, field, value)
    if number != int(number):
        raise _cannot_read("int", value)
    return int(number)


def _date(owner: SObject, field: Field, value: Any) -> str:
    try:
        # A date field also accepts a time, and keeps its day.
        return parse_date(str(value)[:10] if "T" in str(value) else str(value)).isoformat()
    except ValueError:
        raise _cannot_read("date", value) from None


def _datetime(owner: SObject, field: Field, value: Any) -> str:
    try:
        text = str(value)
        return to_wire(parse_datetime(text if "T" in text else f"{text}T00:00:00Z").replace(microsecond=0))
    except ValueError:
        raise _cannot_read("datetime", value) from None


def _reference(owner: SObject, field: Field, value: Any) -> str:
    record_id = to_18(value) if isinstance(value, str) else None
    if record_id is None:
        raise SalesforceError(
            "MALFORMED_ID", f"{_label(field)}: id value of incorrect type: {value}", fields=[field.name]
        )
    return record_id


def _id(owner: SObject, field: Field, value: Any) -> str:
    record_id = to_18(value) if isinstance(value, str) else None
    if record_id is None:
        raise malformed_id(owner.name, value)
    return record_id


def _cannot_read(kind: str, value: Any) -> SalesforceError:
    return bad_json(
        f"Cannot deserialize instance of {kind} from VALUE_STRING value {value} or request may be missing a "
        "required field"
    )


_CHECKS: dict[str, Callable[[SObject, Field, Any], Any]] = {
    "id": _id,
    "string": _text,
    "textarea": _text,
    "phone": _text,
    "url": _text,
    "email": _email,
    "picklist": _picklist,
    "boolean": _boolean,
    "double": _number,
    "currency": _number,
    "int": _int,
    "date": _date,
    "datetime": _datetime,
    "reference": _reference,
}
