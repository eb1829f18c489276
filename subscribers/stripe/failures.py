"""Stripe's errors -> class of error. Guide "Advanced error handling". The table of codes is in `codes`."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

import requests

from subscribers.errors import Gone, Reject, Retry, SyncError, SystemDown
from subscribers.http.failures import retry_after, status_error
from subscribers.stripe.codes import CODES, TABLE, TYPES, KeySpent


def classify(response: requests.Response, writes: bool) -> SyncError | None:
    """Return the error for an unsuccessful answer."""
    request_id = response.headers.get("request-id")
    try:
        error = response.json()["error"]
        kind, code, param = (str(error.get(name) or "") for name in ("type", "code", "param"))
        message = str(error.get("message") or code or kind)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None if response.status_code != 404 else SystemDown("404 without Stripe's JSON: is the address right?")
    status = response.status_code
    text = f"{status}: {message}"
    after = retry_after(response)
    again = response.headers.get("Stripe-Should-Retry", "").lower()
    if status == 403 and "permission" in message:
        # Only this kind of object is forbidden: the others must continue.
        return Reject(
            f"give the API key the permission it lacks ({text})", request_id=request_id, code="permission_missing"
        )
    if status in (401, 403):
        return SystemDown(f"the API key is refused ({text})", request_id=request_id)
    replayed = status >= 500 and ("Idempotent-Replayed" in response.headers or again == "false")
    if replayed and writes:
        return KeySpent(text, maybe_done=True, server_failed=True, after=after, request_id=request_id)
    found = TABLE.get(code)
    if found is SystemDown:
        return SystemDown(text, after=after, request_id=request_id)
    if found is Retry:
        # With a key in use, our first call may have taken effect.
        maybe_done = writes and code == "idempotency_key_in_use"
        return Retry(text, after=after, maybe_done=maybe_done, request_id=request_id)
    if status == 409:
        return Retry(text, after=after, maybe_done=writes, request_id=request_id)
    if status == 404:
        return _missing(text, response, request_id)
    if status == 429 or status >= 500:
        return status_error(status, text.partition(": ")[2], after=after, writes=writes, request_id=request_id)
    if again == "true":
        return Retry(text, after=after, maybe_done=writes, request_id=request_id)
    return _by_type(kind, text, {_dotted(param): message} if param else {}, request_id, CODES.get(code))


def _by_type(kind: str, text: str, fields: dict[str, str], request_id: str | None, code: str | None) -> SyncError:
    found = TYPES.get(kind, Reject)
    if found is Reject:
        return Reject(text, fields=fields, request_id=request_id, code=code)
    return found(text, maybe_done=found is KeySpent, request_id=request_id)


def _missing(text: str, response: requests.Response, request_id: str | None) -> SyncError:
    if "similar object exists in" in text:
        # The object exists in the other mode: the key is wrong, and no record must be unlinked.
        return SystemDown(f"the API key is of the wrong mode ({text})", request_id=request_id)
    named = re.search(r"No such [\w ]+: '([^']+)'", text)
    if named and named[1] not in unquote(urlsplit(response.url).path).split("/"):
        # The missing object is not the one of the call, but one it refers to.
        return Reject(text, request_id=request_id, code="reference_missing")
    return Gone(text, request_id=request_id)


def _dotted(param: str) -> str:
    """Return Stripe's name of a parameter as a path: address[city] -> address.city."""
    return param.replace("[", ".").replace("]", "")
