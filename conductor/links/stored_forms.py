"""Stored forms: what a system may have made of a value as it stored it."""

from __future__ import annotations

import unicodedata
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson


def may_be_form(sent: Any, stored: Any) -> bool:
    """Whether a system may have made `stored` of `sent`: by case, blanks, length, digits, precision or order."""
    if isinstance(sent, list) and isinstance(stored, list):
        return sorted(map(_json, sent)) == sorted(map(_json, stored))
    one, other = _number(sent), _number(stored)
    if one is not None and other is not None:
        return abs(one - other) < 1
    if isinstance(sent, str) and isinstance(stored, str):
        ours, theirs = _letters(sent), _letters(stored)
        return ours == theirs or bool(theirs and ours.startswith(theirs))
    return False


def _number(value: Any) -> Decimal | None:
    if isinstance(value, bool):
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKD", text).casefold()))


def _json(value: Any) -> bytes:
    return orjson.dumps(value, default=str, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
