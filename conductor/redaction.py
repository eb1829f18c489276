"""What may be kept and shown of what travels: values of secret names, and known secrets, are hidden; the rest is cut.

The history's rows are many and a delivery must not wait for them, so this looks at names, not at values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import orjson
from pydantic import BaseModel, SecretBytes, SecretStr

from subscribers.errors import clean

MASK = "••••••••"

#: Characters of a reply that are kept.
LONGEST_REPLY = 2000

#: Of a webhook that is refused: how much of its body is kept, in characters.
LONGEST_STRANGER = 500

_SECRET = re.compile(
    r"secret|token|password|passwd|passphrase|credential|private[_-]?key|(api|access|auth)[_-]?key|authorization|cookie|signature",
    re.IGNORECASE,
)

#: Headers kept of a webhook: so many, each so long.
_HEADERS, _LONGEST_HEADER = 40, 300

#: Deeper, or longer, than any record's answer that a person reads.
_DEEPEST, _LONGEST_LIST = 8, 50

#: Shorter ones would be found everywhere.
_SHORTEST_SECRET = 6


@lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Whether a field or header of this name holds what nobody may read."""
    return _SECRET.search(name) is not None


def redact(value: Any, depth: int = 0) -> Any:
    """JSON-like data with the values of secret names hidden, and what lies too deep left out."""
    if type(value) in (str, int, float, bool, type(None)):
        return value
    if isinstance(value, Mapping):
        if depth == _DEEPEST:
            return "…"
        return {
            name: MASK if inner and is_secret(str(name)) else redact(inner, depth + 1) for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return "…" if depth == _DEEPEST else [redact(inner, depth + 1) for inner in value[:_LONGEST_LIST]]
    return value


def without(text: str, secrets: Iterable[str]) -> str:
    """A text without these secrets."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


def reply_text(answer: Any, secrets: Iterable[str], longest: int = LONGEST_REPLY) -> str:
    """A system's answer (JSON data, or the text it sent) as it may be kept."""
    if isinstance(answer, str):
        try:
            answer = json.loads(answer)
        except (ValueError, RecursionError):
            return _cut(without(clean(answer), secrets), longest)
    return _cut(without(clean(_dumps(redact(answer))), secrets), longest)


def safe_headers(headers: Mapping[str, Any], secrets: Iterable[str] = ()) -> dict[str, str]:
    """A request's headers as they may be kept and shown: bounded, with those hidden that prove who sent it."""
    kept = list(headers.items())[:_HEADERS]
    return {
        clean(name)[:100]: MASK if is_secret(name) else _cut(without(clean(value), secrets), _LONGEST_HEADER)
        for name, value in kept
    }


def secrets_in(options: Any) -> tuple[str, ...]:
    """The secrets a system is configured with, the longest first."""
    found: set[str] = set()
    if not isinstance(options, BaseModel):
        return ()
    for name in type(options).model_fields:
        value = getattr(options, name)
        if isinstance(value, SecretBytes):
            found.add(value.get_secret_value().decode("utf-8", "replace"))
        elif isinstance(value, SecretStr):
            found.update(value.get_secret_value().split())  # several, while one is replaced
        elif isinstance(value, str) and is_secret(name):
            found.update(value.split())
    return tuple(sorted((text for text in found if len(text) >= _SHORTEST_SECRET), key=len, reverse=True))


def _dumps(value: Any) -> str:
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # half a character, an integer of any length: systems do send them
        return json.dumps(value, default=str, ensure_ascii=False)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
