"""Redaction: hide secrets in what is stored and shown of payloads, replies and headers, and limit its length.

A value is hidden by the name of its field, or because it is a configured secret. Values are not inspected otherwise:
the history has many rows, and a delivery must not wait for them.
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

#: Characters of a reply that are stored.
LONGEST_REPLY = 2000

#: Characters of a refused webhook's body that are stored.
LONGEST_REFUSED_BODY = 500

_SECRET = re.compile(
    r"secret|token|password|passwd|passphrase|credential|private[_-]?key|(api|access|auth)[_-]?key|authorization|cookie|signature",
    re.IGNORECASE,
)

#: Headers of a webhook that are stored.
_MAX_HEADERS = 40

#: Characters of each of them.
_LONGEST_HEADER = 300
_LONGEST_HEADER_NAME = 100

#: No record that an operator reads is nested deeper, or has longer lists.
_DEEPEST = 8
_LONGEST_LIST = 50

#: Shorter secrets would match ordinary text.
_SHORTEST_SECRET = 6


@lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Return whether a field or header of this name holds a secret."""
    return _SECRET.search(name) is not None


def redact(value: Any, depth: int = 0) -> Any:
    """Return JSON-like data with the values of secret names hidden, and cut where it is too deep or too long."""
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
    """Return a text with these secrets hidden."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


def reply_text(answer: Any, secrets: Iterable[str], longest: int = LONGEST_REPLY) -> str:
    """Return a system's answer (JSON data, or the text it sent) as it may be stored."""
    if isinstance(answer, str):
        try:
            answer = json.loads(answer)
        except (ValueError, RecursionError):
            return _cut(without(clean(answer), secrets), longest)
    return _cut(without(clean(_dumps(redact(answer))), secrets), longest)


def safe_headers(headers: Mapping[str, Any], secrets: Iterable[str] = ()) -> dict[str, str]:
    """Return a request's headers as they may be stored: limited, and without credentials."""
    kept = list(headers.items())[:_MAX_HEADERS]
    return {
        clean(name)[:_LONGEST_HEADER_NAME]: MASK
        if is_secret(name)
        else _cut(without(clean(value), secrets), _LONGEST_HEADER)
        for name, value in kept
    }


def secrets_in(options: Any) -> tuple[str, ...]:
    """Return the secrets a system is configured with, the longest first."""
    found: set[str] = set()
    if not isinstance(options, BaseModel):
        return ()
    for name in type(options).model_fields:
        value = getattr(options, name)
        if isinstance(value, SecretBytes):
            found.add(value.get_secret_value().decode("utf-8", "replace"))
        elif isinstance(value, SecretStr):
            found.update(value.get_secret_value().split())  # two of them while one replaces the other
        elif isinstance(value, str) and is_secret(name):
            found.update(value.split())
    return tuple(sorted((text for text in found if len(text) >= _SHORTEST_SECRET), key=len, reverse=True))


def _dumps(value: Any) -> str:
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # systems do send half characters and integers of any length
        return json.dumps(value, default=str, ensure_ascii=False)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
