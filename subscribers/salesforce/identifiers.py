"""Record ids: 15 characters whose case counts, and 3 more that tell their case. Only the longer form is stored.

Salesforce object reference: "ID Field Type".
"""

from __future__ import annotations

import re
import string

_SHAPE = re.compile(r"[0-9A-Za-z]{15}(?:[A-Za-z0-5]{3})?")
_SUFFIX = string.ascii_uppercase + "012345"
#: Characters whose case one character of the suffix tells.
_CHUNK = 5


def full_id(value: str) -> str:
    """Return the 18 characters of an id in any form; a value of another shape as it is."""
    if not _SHAPE.fullmatch(value):
        return value
    if len(value) == 18:
        suffix = value[15:].upper()
        value = "".join(
            one.upper() if _SUFFIX.index(suffix[place // _CHUNK]) >> place % _CHUNK & 1 else one.lower()
            for place, one in enumerate(value[:15])
        )
    chunks = (value[start : start + _CHUNK] for start in range(0, 15, _CHUNK))
    return value + "".join(
        _SUFFIX[sum(1 << place for place, one in enumerate(chunk) if one in string.ascii_uppercase)] for chunk in chunks
    )
