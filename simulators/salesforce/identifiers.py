"""Record ids: 15 case-sensitive characters, and 3 more that keep them unique when case is ignored.

Salesforce object reference: "ID Field Type".
"""

from __future__ import annotations

import re
import string

_SUFFIX_ALPHABET = string.ascii_uppercase + "012345"
_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SHAPE = re.compile(r"[0-9A-Za-z]{15}(?:[0-9A-Za-z]{3})?")
#: The instance part of the ids this org creates.
_INSTANCE = "5g"


def suffix(id15: str) -> str:
    """Return the 3 check characters: each encodes which of 5 characters of the id are capital letters."""
    chunks = (id15[start : start + 5] for start in (0, 5, 10))
    return "".join(
        _SUFFIX_ALPHABET[sum(1 << place for place, char in enumerate(chunk) if char in string.ascii_uppercase)]
        for chunk in chunks
    )


def make_id(prefix: str, number: int) -> str:
    """Return the 18-character id of record `number` of the object with this 3-character key prefix."""
    digits = ""
    while number:
        number, digit = divmod(number, 62)
        digits = _BASE62[digit] + digits
    id15 = prefix + _INSTANCE + digits.rjust(10, "0")
    return id15 + suffix(id15)


def to_18(value: str) -> str | None:
    """Return the 18-character form of an id of 15 or 18 characters; None if the value is not an id.

    A client may have changed the case of an 18-character id; the suffix restores the original case.
    """
    if not _SHAPE.fullmatch(value):
        return None
    if len(value) == 15:
        return value + suffix(value)
    restored = _restore_case(value[:15], value[15:].upper())
    return None if restored is None else restored + value[15:].upper()


def _restore_case(id15: str, check: str) -> str | None:
    restored = ""
    for index, char in enumerate(id15):
        chunk, place = divmod(index, 5)
        bits = _SUFFIX_ALPHABET.find(check[chunk])
        if bits < 0:
            return None
        restored += char.upper() if bits >> place & 1 else char.lower()
    # A check character that marks a digit as a capital letter does not belong to this id.
    return restored if suffix(restored) == check else None
