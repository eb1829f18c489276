"""errorCode -> class of error. The code decides, not the status: a 403 may be a temporary limit, or a permission
that an administrator has to grant.

SOAP API developer guide, "StatusCode" and "ExceptionCode"; REST API guide, "Status Codes and Error Responses".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import requests

from subscribers.errors import Gone, Reject, Retry, SyncError, SystemDown
from subscribers.http.failures import retry_after, status_error

if TYPE_CHECKING:
    from simple_salesforce.exceptions import SalesforceError

Errors = Sequence[Mapping[str, Any]]

#: Pauses in seconds: after the daily calls are used up, and with too many concurrent calls.
LIMIT_PAUSE_SECONDS = 900.0
BUSY_PAUSE_SECONDS = 10.0


class Expired(Exception):
    """The session is no longer valid."""


class Unclear(Retry):
    """The call may have taken effect."""


#: The only table of codes. For any other code the status decides: see `by_code`.
TABLE: Mapping[str, type[SyncError]] = {
    # The org refuses all calls of this login for now.
    "REQUEST_LIMIT_EXCEEDED": SystemDown,
    "SERVER_UNAVAILABLE": SystemDown,
    "API_CURRENTLY_DISABLED": SystemDown,
    "API_DISABLED_FOR_ORG": SystemDown,
    "FUNCTIONALITY_NOT_ENABLED": SystemDown,
    "INSUFFICIENT_ACCESS": SystemDown,
    "INVALID_SESSION_ID": SystemDown,  # for a whole call the session is renewed first, see `refusal`
    "ORG_LOCKED": SystemDown,
    "PASSWORD_LOCKOUT": SystemDown,
    "STORAGE_LIMIT_EXCEEDED": SystemDown,
    # Only this record failed; retry it later.
    "UNABLE_TO_LOCK_ROW": Retry,
    "INVALID_QUERY_LOCATOR": Retry,
    "QUERY_TIMEOUT": Retry,
    "REQUEST_RUNNING_TOO_LONG": Retry,
    "PRECONDITION_FAILED": Retry,
    "ALL_OR_NONE_OPERATION_ROLLED_BACK": Retry,
    "PROCESSING_HALTED": Retry,
    # An internal error of the org during the call.
    "UNKNOWN_EXCEPTION": Unclear,
    "INTERNAL_ERROR": Unclear,
    "GACK": Unclear,
    # The record no longer exists.
    "ENTITY_IS_DELETED": Gone,
    "NOT_FOUND": Gone,
    # The data is invalid, or this login lacks a permission for it.
    "CANNOT_INSERT_UPDATE_ACTIVATE_ENTITY": Reject,
    "DELETE_FAILED": Reject,
    "DUPLICATES_DETECTED": Reject,
    "DUPLICATE_EXTERNAL_ID": Reject,
    "DUPLICATE_VALUE": Reject,
    "FIELD_CUSTOM_VALIDATION_EXCEPTION": Reject,
    "FIELD_FILTER_VALIDATION_EXCEPTION": Reject,
    "FIELD_INTEGRITY_EXCEPTION": Reject,
    "INSUFFICIENT_ACCESS_ON_CROSS_REFERENCE_ENTITY": Reject,
    "INSUFFICIENT_ACCESS_OR_READONLY": Reject,
    "INVALID_CROSS_REFERENCE_KEY": Reject,  # unless it is the record's own id, see `by_code`
    "INVALID_EMAIL_ADDRESS": Reject,
    "INVALID_FIELD": Reject,
    "INVALID_FIELD_FOR_INSERT_UPDATE": Reject,
    "INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST": Reject,
    "INVALID_TYPE": Reject,
    "JSON_PARSER_ERROR": Reject,
    "MALFORMED_ID": Reject,
    "NUMBER_OUTSIDE_VALID_RANGE": Reject,
    "REQUIRED_FIELD_MISSING": Reject,
    "STRING_TOO_LONG": Reject,
}

#: Salesforce's code -> code of the error, which names the remedy of a dead letter.
CODES: Mapping[str, str] = {
    "CANNOT_EXECUTE_FLOW_TRIGGER": "validation_rule",
    "CANNOT_INSERT_UPDATE_ACTIVATE_ENTITY": "permission_missing",
    "DUPLICATES_DETECTED": "duplicate",
    "DUPLICATE_EXTERNAL_ID": "duplicate",
    "DUPLICATE_VALUE": "duplicate",
    "FIELD_CUSTOM_VALIDATION_EXCEPTION": "validation_rule",
    "FIELD_FILTER_VALIDATION_EXCEPTION": "validation_rule",
    "INSUFFICIENT_ACCESS_ON_CROSS_REFERENCE_ENTITY": "permission_missing",
    "INSUFFICIENT_ACCESS_OR_READONLY": "permission_missing",
    "INVALID_CROSS_REFERENCE_KEY": "reference_missing",
    "INVALID_EMAIL_ADDRESS": "invalid_email",
    "INVALID_FIELD": "unknown_field",
    "INVALID_FIELD_FOR_INSERT_UPDATE": "permission_missing",
    "INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST": "not_in_list",
    "INVALID_TYPE": "unknown_field",
    "MALFORMED_ID": "reference_missing",
    "NUMBER_OUTSIDE_VALID_RANGE": "invalid_value",
    "REQUIRED_FIELD_MISSING": "required_field_missing",
    "STRING_TOO_LONG": "too_long",
}


def by_code(
    errors: Errors,
    *,
    status: int | None = None,
    after: float | None = None,
    writes: bool = True,
    request_id: str | None = None,
) -> SyncError:
    """Return the error for one record, or for a whole call with its HTTP `status`.

    `errors` as in the API's replies: `[{"errorCode" or "statusCode", "message", "fields"}]`.
    """
    first = errors[0] if errors else {}
    code = str(first.get("errorCode") or first.get("statusCode") or "UNKNOWN_EXCEPTION")
    text = "; ".join(f"{one.get('errorCode') or one.get('statusCode')}: {one.get('message')}" for one in errors) or code
    fields = {str(name): str(one.get("message")) for one in errors for name in one.get("fields") or ()}
    kind = TABLE.get(code) or _by_status(status)
    if code == "INVALID_CROSS_REFERENCE_KEY" and set(fields) <= {"Id", "id"}:
        kind = Gone
    if code == "REQUEST_LIMIT_EXCEEDED":
        after = after or (BUSY_PAUSE_SECONDS if "concurrent" in text.lower() else LIMIT_PAUSE_SECONDS)
    if kind is Unclear:
        return status_error(status or 500, text, after=after, writes=writes, request_id=request_id)
    if kind is SystemDown:
        return SystemDown(text, after=after, request_id=request_id)
    if kind is Retry:
        return Retry(text, after=after, request_id=request_id)
    if kind is Gone:
        return Gone(text, request_id=request_id)
    return Reject(text, fields=fields, request_id=request_id, code=CODES.get(code))


def _by_status(status: int | None) -> type[SyncError]:
    """Classify an unknown code: a missing permission, an internal error of the org, or else invalid data."""
    if status in (401, 403):
        return SystemDown
    return Unclear if status is not None and status >= 429 else Reject


def refusal(error: SalesforceError, response: requests.Response | None, writes: bool) -> Exception:
    """Return the error for a refused call; the library's own message would repeat the address and the query."""
    after = None if response is None else retry_after(response)
    errors: Any = error.content
    if isinstance(errors, list) and errors and isinstance(errors[0], dict):
        if errors[0].get("errorCode") == "INVALID_SESSION_ID":
            return Expired()
        return by_code(errors, status=error.status, after=after, writes=writes)
    if error.status == 300:
        return Reject("several records there carry this External ID", code="ambiguous_match")
    if error.status == 503 or error.status < 500:
        # A page instead of JSON comes from a proxy in front of Salesforce and is not about the record.
        return SystemDown(f"{error.status} without Salesforce's JSON", after=after)
    return Retry(f"{error.status} without Salesforce's JSON", after=after, maybe_done=writes, server_failed=True)
