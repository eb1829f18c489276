"""Stripe's errors -> class of error. API reference: "Errors"; guides "Error codes", "Advanced error handling"."""

from __future__ import annotations

import re

import requests

from subscribers.errors import Gone, Reject, Retry, SyncError, SystemDown
from subscribers.http.failures import retry_after, status_error


class KeySpent(Retry):
    """Stripe accepts no new call with this Idempotency-Key: first look the object up, then use another key."""


#: `code` of an error -> its class, where the code is more specific than the status.
_BY_CODE: dict[str, type[SyncError]] = {
    "lock_timeout": Retry,  # Another call holds the lock on the object.
    "idempotency_key_in_use": Retry,  # Our own first call is still in progress.
    "rate_limit": SystemDown,
    "api_key_expired": SystemDown,
    "platform_api_key_expired": SystemDown,
    "secret_key_required": SystemDown,
    "testmode_charges_only": SystemDown,
    "tls_version_unsupported": SystemDown,
    "account_invalid": SystemDown,
}

#: `type` of an error -> its class, if neither code nor status determines it.
_BY_TYPE: dict[str, type[SyncError]] = {
    "api_error": Retry,
    "authentication_error": SystemDown,
    "card_error": Reject,
    "idempotency_error": KeySpent,
    "invalid_request_error": Reject,
    "rate_limit_error": SystemDown,
}

#: Stripe's `code` -> code of the error, which names the remedy of a dead letter.
CODES: dict[str, str] = {
    "email_invalid": "invalid_email",
    "parameter_invalid_empty": "required_field_missing",
    "parameter_missing": "required_field_missing",
    "parameter_unknown": "unknown_field",
    "resource_already_exists": "duplicate",
    "resource_missing": "reference_missing",
}


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
    found = _BY_CODE.get(code)
    if found is SystemDown:
        return SystemDown(text, after=after, request_id=request_id)
    if found is Retry:
        # A lock refused the call; with a key in use, our first call may have taken effect.
        return Retry(text, after=after, maybe_done=writes and code != "lock_timeout", request_id=request_id)
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
    found = _BY_TYPE.get(kind, Reject)
    if found is Reject:
        return Reject(text, fields=fields, request_id=request_id, code=code)
    return found(text, maybe_done=found is KeySpent, request_id=request_id)


def _missing(text: str, response: requests.Response, request_id: str | None) -> SyncError:
    if "similar object exists in" in text:
        # The object exists in the other mode: the key is wrong, and no record must be unlinked.
        return SystemDown(f"the API key is of the wrong mode ({text})", request_id=request_id)
    named = re.search(r"No such [\w ]+: '([^']+)'", text)
    if named and named[1] not in str(response.request.path_url):
        # The missing object is not the one of the call, but one it refers to.
        return Reject(text, request_id=request_id, code="reference_missing")
    return Gone(text, request_id=request_id)


def _dotted(param: str) -> str:
    """Return Stripe's name of a parameter as a path: address[city] -> address.city."""
    return param.replace("[", ".").replace("]", "")
