"""What the response to a successful write says: the record, its id, or that the write was refused after all."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote, urlsplit

import requests

#: Fields with which APIs that answer 200 to everything say that a write failed.
_SUCCESS_FIELDS = ("success", "ok")
_ERROR_FIELDS = ("error", "errors")


def readable(response: requests.Response) -> Any:
    """Return the JSON of a response; None if it is empty or no JSON."""
    try:
        return response.json()
    except ValueError:
        return None


def is_refusal(body: Any) -> bool:
    """Whether a response with a status of success says that the write failed, as in `{"success": false}`."""
    if not isinstance(body, dict):
        return False
    return any(body.get(name) is False for name in _SUCCESS_FIELDS) or any(body.get(name) for name in _ERROR_FIELDS)


def is_page(response: requests.Response) -> bool:
    """Whether a response is a page for a browser, such as that of a proxy; some APIs send JSON as text/html."""
    beginning = response.content[:100].lstrip().lower()
    is_html = "html" in response.headers.get("Content-Type", "") and beginning.startswith(b"<")
    return is_html or beginning.startswith((b"<!doctype html", b"<html"))


def location_of(response: requests.Response) -> str | None:
    """Return the address of the record that a call created."""
    return response.headers.get("Location") or response.headers.get("Content-Location")


def id_in(address: str, template: str) -> str | None:
    """Return the id in a record's address, which ends with `template`; None if it does not."""
    pattern = re.escape(template).replace(re.escape("{id}"), "([^/?#]+)")
    found = re.search(f"{pattern}/?$", urlsplit(address).path)
    return unquote(found[1]) if found else None
