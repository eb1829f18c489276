"""HTTP statuses and network errors as the `SyncError` that says what to do next."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, ReadTimeoutError

from redaction import hide
from subscribers.errors import Gone, Outdated, Reject, ResponseTooLarge, Retry, SyncError, SystemDown
from subscribers.http.transport import TooLarge

#: HTTP status -> error (RFC 9110, 15; RFC 6585). Other statuses are `Retry` from 500 on, else `Reject`.
STATUSES: Mapping[int, type[SyncError]] = {
    401: SystemDown,
    403: SystemDown,
    404: Gone,
    408: Retry,
    410: Gone,
    412: Retry,
    423: Retry,
    425: Retry,
    429: SystemDown,
    503: SystemDown,
}

#: HTTP status -> code of the error, where the status names the cause.
CODES: Mapping[int, str] = {
    303: "duplicate",
    403: "permission_missing",
    409: "conflict",
    413: "too_long",
}


#: How systems say, with a status that may also refuse an old version, that they have such a record already.
_TAKEN = re.compile(r"duplicate|unique|exists|taken|in use", re.IGNORECASE)

#: How they say so with a status for wrong data; "already modified" would mean the version.
_DUPLICATE = re.compile(rf"already|{_TAKEN.pattern}", re.IGNORECASE)


def status_error(
    status: int,
    message: str,
    *,
    fields: Mapping[str, str] | None = None,
    after: float | None = None,
    writes: bool = True,
    request_id: str | None = None,
    table: Mapping[int, type[SyncError]] = STATUSES,
) -> SyncError:
    """Return the error for an HTTP status, by `table`."""
    text = f"{status}: {message}" if message else str(status)
    kind = table.get(status, Retry if status >= 500 else Reject)
    if (status == 412 or issubclass(kind, Outdated)) and _TAKEN.search(text):
        kind = Reject
    code = CODES.get(status)
    if issubclass(kind, SystemDown):
        text = f"the login is refused ({text})" if status in (401, 403) else text
        return kind(text, after=after, request_id=request_id)
    if issubclass(kind, Retry):
        failed = status >= 500
        return kind(
            text,
            after=after,
            maybe_done=writes and failed,
            server_failed=failed or status == 408,
            request_id=request_id,
        )
    if issubclass(kind, Reject):
        code = code or (duplicate_code(text) if status in (400, 412, 422) else None)
        return kind(text, fields=fields, request_id=request_id, code=code)
    return kind(text, request_id=request_id)


def duplicate_code(text: str) -> str | None:
    """Return the code of an error whose message says that the system has such a record already."""
    return "duplicate" if _DUPLICATE.search(text) else None


def is_cut(error: requests.RequestException) -> bool:
    """Whether the connection was established and broke before the response."""
    slow = isinstance(error, requests.Timeout) or isinstance(error.args[0] if error.args else None, ReadTimeoutError)
    if slow or isinstance(error, requests.exceptions.SSLError):
        return False
    return isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError) and not _unsent(error)


def _unsent(error: requests.RequestException) -> bool:
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    refused = isinstance(reason, NewConnectionError | ConnectTimeoutError)
    return refused or isinstance(error, requests.ConnectTimeout)


def network_error(error: requests.RequestException, *, writes: bool) -> SyncError:
    """Return the error for a call without a response, without the URL's query, which may have secrets."""
    if _unsent(error):
        return SystemDown(f"cannot connect{_where(error)}")
    if isinstance(error, requests.exceptions.SSLError):
        return SystemDown("the TLS certificate is not trusted (or the connection is not TLS)")
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.MissingSchema):
        return SystemDown("the configured URL is not a URL")
    if isinstance(error, TooLarge):
        return ResponseTooLarge(error.most, maybe_done=writes)
    if isinstance(error, requests.Timeout):
        return Retry("no response in time", maybe_done=writes, unanswered=True)
    return Retry("the connection was cut before the response", maybe_done=writes, unanswered=True)


def _where(error: requests.RequestException) -> str:
    """Return " to HOST:PORT" of the call; empty if they are unknown."""
    try:
        parts = urlsplit((error.request and error.request.url) or "")
        host = parts.hostname and (f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname)
    except ValueError:
        return ""
    unknown = ": there is no such host" if "NameResolutionError" in repr(error) else ""
    return f" to {host}{unknown}" if host else ""


def retry_after(response: requests.Response) -> float | None:
    """Return the seconds of a Retry-After header, which has seconds or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    when = http_date(value)
    return None if when is None else max(0.0, (when - datetime.now(UTC)).total_seconds())


def http_date(value: str) -> datetime | None:
    """Return an HTTP date as an aware datetime; None if it is invalid."""
    try:
        when = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)


def describe_error(
    response: requests.Response, errors_in: Callable[[Any], Any] = lambda body: body.get("errors")
) -> tuple[str, dict[str, str]]:
    """Return (message, field -> message) of an error response: JSON in one of the usual shapes, or text.

    `errors_in` returns the object of fields and their messages from the body.
    """
    try:
        body = response.json()
    except ValueError:
        return _one_line(response.text), {}
    if not isinstance(body, dict):
        return _one_line(str(body)), {}
    raw = errors_in(body)
    fields = {str(name): _words(value) for name, value in raw.items()} if isinstance(raw, dict) else {}
    message = body.get("message") or body.get("error") or body.get("detail") or ""
    if fields:
        message = "; ".join(f"{name}: {text}" for name, text in fields.items())
    return _one_line(str(message or body)), fields


def _words(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(_words, value))
    return str(value.get("message") or value) if isinstance(value, dict) else str(value)


def _one_line(text: str) -> str:
    return " ".join(hide(text).split())[:500]
