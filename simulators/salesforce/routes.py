"""The routing table, from addresses to functions, and the steps common to every request."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable

from . import bulk, collections, control, describe, graphs, login, sobjects, ui
from .duplicates import note_header
from .errors import SalesforceError, SeveralMatch, not_found
from .faults import failure
from .org import Org
from .wire import Request, Response, page, reply

log = logging.getLogger(__name__)

Answer = Callable[..., Response]

#: The API of a real org. `{}` is one path segment; a trailing slash is ignored.
API: tuple[tuple[str, str, Answer], ...] = (
    ("GET", "", describe.resources),
    ("GET", "limits", describe.limits),
    ("GET", "sobjects", describe.describe_global),
    ("GET", "sobjects/{}", describe.basic_information),
    ("POST", "sobjects/{}", sobjects.create),
    ("GET", "sobjects/{}/describe", describe.describe),
    ("GET", "sobjects/{}/updated", sobjects.updated),
    ("GET", "sobjects/{}/deleted", sobjects.deleted),
    ("GET", "sobjects/{}/{}", sobjects.read),
    ("PATCH", "sobjects/{}/{}", sobjects.update),
    ("DELETE", "sobjects/{}/{}", sobjects.delete),
    ("GET", "sobjects/{}/{}/{}", sobjects.read_by_external_id),
    ("PATCH", "sobjects/{}/{}/{}", sobjects.upsert),
    ("DELETE", "sobjects/{}/{}/{}", sobjects.delete_by_external_id),
    ("GET", "query", sobjects.query),
    ("GET", "queryAll", sobjects.query_all),
    ("GET", "query/{}", sobjects.query_more),
    ("GET", "queryAll/{}", sobjects.query_more),
    ("POST", "composite/sobjects", collections.create),
    ("PATCH", "composite/sobjects", collections.update),
    ("DELETE", "composite/sobjects", collections.delete),
    ("GET", "composite/sobjects/{}", collections.retrieve),
    ("POST", "composite/sobjects/{}", collections.retrieve),
    ("PATCH", "composite/sobjects/{}/{}", collections.upsert),
    ("POST", "composite/graph", graphs.run),
    ("POST", "jobs/ingest", bulk.create_ingest),
    ("PUT", "jobs/ingest/{}/batches", bulk.upload),
    ("GET", "jobs/ingest/{}/successfulResults", bulk.successful_results),
    ("GET", "jobs/ingest/{}/failedResults", bulk.failed_results),
    ("GET", "jobs/ingest/{}/unprocessedrecords", bulk.unprocessed_records),
    ("GET", "jobs/ingest/{}/unprocessedRecords", bulk.unprocessed_records),
    ("POST", "jobs/query", bulk.create_query),
    ("GET", "jobs/query/{}/results", bulk.query_results),
    ("GET", "jobs/{}", bulk.list_jobs),
    ("GET", "jobs/{}/{}", bulk.get_job),
    ("PATCH", "jobs/{}/{}", bulk.change_job),
    ("DELETE", "jobs/{}/{}", bulk.delete_job),
)
#: Addresses that need no session.
OPEN: tuple[tuple[str, str, Answer], ...] = (
    ("GET", "/services/data", describe.versions),
    ("POST", "/services/Soap/u/{}", login.soap_login),
    ("POST", "/services/oauth2/token", login.token),
    ("POST", "/services/oauth2/revoke", login.revoke),
)
#: Addresses of the web pages and for tests; the journal does not record them, and faults do not affect them.
OURS: tuple[tuple[str, str, Answer], ...] = (
    ("GET", "", ui.home),
    ("GET", "/ui/{}", ui.listing),
    ("GET", "/ui/{}/{}", ui.form),
    ("POST", "/ui/{}/{}", ui.save),
    ("POST", "/ui/{}/{}/delete", ui.delete),
    ("GET", "/_control/faults", control.faults),
    ("POST", "/_control/faults", control.faults),
    ("DELETE", "/_control/faults", control.faults),
    ("GET", "/_control/journal", control.journal),
    ("DELETE", "/_control/journal", control.journal),
    ("GET", "/_control/records/{}", control.records),
    ("POST", "/_control/expire_sessions", control.expire_sessions),
    ("POST", "/_control/clock", control.clock),
    ("POST", "/_control/settings", control.settings),
    ("POST", "/_control/edit", control.edit),
    ("POST", "/_control/delete", control.remove),
    ("POST", "/_control/restore", control.restore),
    ("POST", "/_control/merge", control.merge),
    ("POST", "/_control/reset", control.reset),
)
#: The longest address that the real servers accept, in bytes: a long `IN (...)` does not fit into a GET.
LONGEST_TARGET = 16_384


def _compile(table: tuple[tuple[str, str, Answer], ...], start: str) -> list[tuple[str, re.Pattern[str], Answer]]:
    return [
        (
            method,
            re.compile(start + re.escape(f"/{path}" if start and path else path).replace(r"\{\}", "([^/]+)")),
            it,
        )
        for method, path, it in table
    ]


_API = _compile(API, r"/services/data/v\d\d\.0")
_OPEN = _compile(OPEN, "")
_OURS = _compile(OURS, "")


def is_ours(request: Request) -> bool:
    """Return whether this is a web page or a control call rather than an API call."""
    return not request.path.startswith("/services/")


def answer_ours(org: Org, request: Request) -> Response:
    """Answer a web page or a control call."""
    if not _from_here(request):
        return reply([{"message": "only from this machine's own pages", "errorCode": "FORBIDDEN"}], 403)
    return _guarded(org, request, lambda: _route(org, request, _OURS))


def _from_here(request: Request) -> bool:
    """Return whether the request does not come from a foreign web site open in the user's browser."""
    host = request.headers.get("host", "")
    origin = request.headers.get("origin", "")
    own = origin in ("", f"http://{host}", f"https://{host}")
    return own and re.fullmatch(r"(127\.0\.0\.1|localhost)(:\d+)?", host) is not None


def answer_api(org: Org, request: Request) -> Response:
    """Answer an API call: check limits and session, and apply faults."""
    response = _guarded(org, request, lambda: _checked(org, request))
    if not request.path.startswith(("/services/Soap", "/services/oauth2")):
        response.headers.setdefault("Sforce-Limit-Info", org.limit_info)
        response.headers.setdefault("X-Request-Id", secrets.token_hex(16))
    return response


def _checked(org: Org, request: Request) -> Response:
    if not request.secure:
        raise SalesforceError("UNSUPPORTED_CLIENT", "HTTPS Required", status=403)
    fault = org.faults.take("fail", request)
    if fault is not None:
        return failure(fault)
    if len(request.target) > LONGEST_TARGET:
        return page("<h1>414 Request-URI Too Large</h1>", 414)
    if _matches(request, _OPEN):
        return _route(org, request, _OPEN)
    org.authorize(request.headers.get("authorization", ""))
    org.count_call()
    note_header(request)
    return _route(org, request, _API)


def _matches(request: Request, table: list[tuple[str, re.Pattern[str], Answer]]) -> bool:
    return any(pattern.fullmatch(request.path.rstrip("/")) for _, pattern, _ in table)


def _route(org: Org, request: Request, table: list[tuple[str, re.Pattern[str], Answer]]) -> Response:
    known = False
    for method, pattern, answer in table:
        match = pattern.fullmatch(request.path.rstrip("/"))
        if match and method == ("GET" if request.method == "HEAD" else request.method):
            return answer(org, request, *match.groups())
        known = known or match is not None
    if known:
        message = f"HTTP Method '{request.method}' not allowed"
        raise SalesforceError("METHOD_NOT_ALLOWED", message, status=405)
    raise not_found()


def _guarded(org: Org, request: Request, work: Callable[[], Response]) -> Response:
    try:
        return work()
    except SalesforceError as error:
        return reply(error.body(), error.status)
    except SeveralMatch as several:
        return reply(several.urls, 300)
    except Exception:
        # A bug in the simulator: log it, and reply as the real system does for its own bugs.
        log.exception("%s %s failed", request.method, request.target)
        message = "An unexpected error occurred: see the simulator's log"
        return reply([{"message": message, "errorCode": "UNKNOWN_EXCEPTION"}], 500)
