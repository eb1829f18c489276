"""What the response to a successful write says: the record, its id, or that the write was refused after all."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote, urlsplit

import requests

#: Fields with which APIs that answer 200 to everything say that a write failed.
_SUCCESS_FIELDS = ("success", "ok")


def readable(response: requests.Response) -> Any:
    """Return the JSON of a response; None if it is empty or no JSON."""
    try:
        return response.json()
    except ValueError:
        return None


def is_refusal(body: Any) -> bool:
    """Whether a response with a status of success says that the write failed, as in `{"success": false}`."""
    return isinstance(body, dict) and any(body.get(name) is False for name in _SUCCESS_FIELDS)


def location_of(response: requests.Response) -> str | None:
    """Return the address of the record that a call created."""
    return response.headers.get("Location") or response.headers.get("Content-Location")


def id_in(address: str, template: str) -> str | None:
    """Return the id in a record's address, which ends with `template`; None if it does not."""
    pattern = re.escape(template).replace(re.escape("{id}"), "([^/?#]+)")
    found = re.search(f"{pattern}/?$", urlsplit(address).path)
    return unquote(found[1]) if found else None
