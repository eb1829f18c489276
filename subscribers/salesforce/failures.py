"""errorCode -> class of error. The code decides, not the status: a 403 may be a temporary limit, or a permission
that an administrator has to grant.

The table of codes is in `codes`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import requests

from subscribers.errors import BatchTooLarge, Gone, Reject, Retry, SyncError, SystemDown
from subscribers.http.failures import retry_after, status_error
from subscribers.options import search_json
from subscribers.salesforce.codes import CODES, TABLE, Unclear

if TYPE_CHECKING:
    from simple_salesforce.exceptions import SalesforceError

Errors = Sequence[Mapping[str, Any]]

#: Pauses in seconds: after the daily calls are used up, and with too many concurrent calls.
LIMIT_PAUSE_SECONDS = 900.0
BUSY_PAUSE_SECONDS = 10.0


class Expired(Exception):
    """The session is no longer valid."""


#: What Salesforce says of a limit of one transaction, which its triggers and flows reach with many records: "System.
#: LimitException: Apex CPU time limit exceeded", "Too many SOQL queries: 101", "Apex heap size too large".
_TRANSACTION_LIMIT = re.compile(
    r"LimitException|CPU time limit|Too many (SOQL|SOSL|DML|query|queueable|future|callouts)|heap size too large"
    r"|Maximum (CPU|stack|trigger) |too many rows",
    re.IGNORECASE,
)
#: Codes under which an error of a trigger or flow is reported.
_OF_AUTOMATION = frozenset({"CANNOT_INSERT_UPDATE_ACTIVATE_ENTITY", "CANNOT_EXECUTE_FLOW_TRIGGER", "APEX_ERROR"})


def by_code(
    errors: Errors,
    *,
    status: int | None = None,
    after: float | None = None,
    writes: bool = True,
    request_id: str | None = None,
) -> SyncError:
    """Return the error for one record, or for a whole call with its HTTP `status`.

    `errors` as in the API's responses: `[{"errorCode" or "statusCode", "message", "fields"}]`.
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
    if code == "TOO_MANY_APEX_REQUESTS":
        after = after or BUSY_PAUSE_SECONDS
    if code in _OF_AUTOMATION | {"UNKNOWN_EXCEPTION"} and _TRANSACTION_LIMIT.search(text):
        kind = BatchTooLarge
    if kind is Unclear:
        status = status if status is not None and status >= 429 else 500
        return status_error(status, text, after=after, writes=writes, request_id=request_id)
    if kind is SystemDown:
        return SystemDown(text, after=after, request_id=request_id)
    if kind in (Retry, BatchTooLarge):
        return kind(text, after=after, request_id=request_id)
    if kind is Gone:
        return Gone(text, request_id=request_id)
    rejected = Reject(text, fields=fields, request_id=request_id, code=CODES.get(code))
    rejected.existing_id = _existing_id(errors) if rejected.code == "duplicate" else None
    return rejected


def _existing_id(errors: Errors) -> str | None:
    """Return the id of the record that a refused one duplicates: in the message, or in the matches of its rule."""
    named = re.search(r"\bid: ([a-zA-Z0-9]{15,18})\b", " ".join(str(one.get("message")) for one in errors))
    if named:
        return named[1]
    matches = search_json("[].duplicateResult.matchResults[].matchRecords[].record.Id", [*errors]) or []
    return str(matches[0]) if len(set(matches)) == 1 else None


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
