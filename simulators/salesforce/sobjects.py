"""The REST addresses of single records, of queries, and of what has changed.

REST API guide: "sObject Basic Information", "sObject Rows", "sObject Rows by External ID", "sObject Get
Updated", "sObject Get Deleted", "Conditional Request Headers", "Query".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any

from . import queries
from .errors import SalesforceError, SeveralMatch, not_found
from .org import SMALLEST_PAGE, Org
from .schema import SObject, find_object
from .store import Record
from .times import parse_datetime, to_wire
from .wire import Request, Response, reply, segment

#: How far back the two replication calls reach.
UPDATED_WINDOW = timedelta(days=30)
DELETED_WINDOW = timedelta(days=15)


# --- records ---


def create(org: Org, request: Request, name: str) -> Response:
    one = find_object(name)
    data = request.json_object()
    org.faults.fail_item(request)
    record_id = org.store.create(one.name, data)
    request.touched.append(record_id)
    return reply(
        {"id": record_id, "success": True, "errors": []},
        201,
        Location=f"{request.base}/sobjects/{one.name}/{record_id}",
    )


def read(org: Org, request: Request, name: str, record_id: str) -> Response:
    return _read(request, find_object(name), org.store.get(name, segment(record_id)))


def read_by_external_id(org: Org, request: Request, name: str, field: str, value: str) -> Response:
    one = find_object(name)
    if field == "Id":
        return read(org, request, name, value)
    record = _by_external_id(org, request, one, field, segment(value))
    if record is None:
        raise not_found()
    return _read(request, one, record)


def update(org: Org, request: Request, name: str, record_id: str) -> Response:
    data = request.json_object()
    with org.store.transaction():
        record = org.store.get(name, segment(record_id))
        request.touched.append(record["Id"])
        _check_unmodified(request, record)
        org.faults.fail_item(request)
        org.store.update(name, record["Id"], data)
    return Response(204)


def upsert(org: Org, request: Request, name: str, field: str, value: str) -> Response:
    if field == "Id":
        return update(org, request, name, value)
    one = find_object(name)
    data, value = request.json_object(), segment(value)
    with org.store.transaction():
        found = _by_external_id(org, request, one, field, value)
        if found is None and request.parameter("updateOnly") == "true":
            raise not_found()
        if found is not None:
            _check_unmodified(request, found)
        org.faults.fail_item(request)
        record_id, created = org.store.upsert(name, field, value, data)
    request.touched.append(record_id)
    body = {"id": record_id, "success": True, "errors": [], "created": created}
    return reply(body, 201 if created else 200)


def delete(org: Org, request: Request, name: str, record_id: str) -> Response:
    request.touched.append(segment(record_id))
    org.faults.fail_item(request)
    org.store.delete(name, segment(record_id))
    return Response(204)


def delete_by_external_id(org: Org, request: Request, name: str, field: str, value: str) -> Response:
    one = find_object(name)
    record = _by_external_id(org, request, one, field, segment(value))
    if record is None:
        raise not_found()
    return delete(org, request, name, record["Id"])


def _by_external_id(org: Org, request: Request, one: SObject, field: str, value: str) -> Record | None:
    try:
        return org.store.by_external_id(one.name, field, value)
    except SeveralMatch as several:
        raise SeveralMatch([f"{request.base}/{url}" for url in several.urls]) from None


def _read(request: Request, one: SObject, record: Record) -> Response:
    request.touched.append(record["Id"])
    fields = [one.field(name).name for name in request.parameter("fields").split(",") if name]
    modified = parse_datetime(record["LastModifiedDate"])
    since = _http_date(request, "if-modified-since")
    if since is not None and modified <= since:
        return Response(304)
    body = queries.record_json(one, record, request.base, _with_id(fields))
    return reply(body, Last_Modified=format_datetime(modified, usegmt=True))


def _with_id(fields: list[str]) -> list[str] | None:
    if not fields:
        return None
    return fields if "Id" in fields else [*fields, "Id"]


def _check_unmodified(request: Request, record: Mapping[str, Any]) -> None:
    until = _http_date(request, "if-unmodified-since")
    if until is not None and parse_datetime(record["LastModifiedDate"]) > until:
        raise SalesforceError(
            "PRECONDITION_FAILED",
            "The record has been modified since the time in If-Unmodified-Since",
            status=412,
        )


def _http_date(request: Request, header: str) -> datetime | None:
    text = request.headers.get(header)
    if text is None:
        return None
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        raise SalesforceError("INVALID_HEADER", f"{header} is not a valid date: {text}") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


# --- what has changed ---


def updated(org: Org, request: Request, name: str) -> Response:
    """Ids created or changed from `start` to before `end`, deleted ones left out."""
    one = find_object(name)
    start, end = _span(org, request, UPDATED_WINDOW)
    covered = _covered(org, request, start, end)
    where = "IsDeleted = 0 AND SystemModstamp >= ? AND SystemModstamp < ?"
    rows = org.store.select(one, where, (to_wire(start), to_wire(covered)))
    return reply({"ids": [row["Id"] for row in rows], "latestDateCovered": to_wire(covered)})


def deleted(org: Org, request: Request, name: str) -> Response:
    """Ids deleted from `start` to before `end`, and when."""
    one = find_object(name)
    start, end = _span(org, request, DELETED_WINDOW)
    covered = _covered(org, request, start, end)
    where = "IsDeleted = 1 AND SystemModstamp >= ? AND SystemModstamp < ?"
    rows = org.store.select(one, where, (to_wire(start), to_wire(covered)))
    records = [{"id": row["Id"], "deletedDate": row["SystemModstamp"]} for row in rows]
    earliest = org.clock.now() - DELETED_WINDOW
    return reply(
        {
            "deletedRecords": records,
            "earliestDateAvailable": to_wire(earliest),
            "latestDateCovered": to_wire(covered),
        }
    )


def _span(org: Org, request: Request, window: timedelta) -> tuple[datetime, datetime]:
    start, end = (_time_parameter(request, name) for name in ("start", "end"))
    if org.minute_resolution:
        start, end = start.replace(second=0, microsecond=0), end.replace(second=0, microsecond=0)
    if start >= end:
        raise SalesforceError("INVALID_REPLICATION_DATE", "startDate must be before endDate, by a minute or more")
    if start < org.clock.now() - window:
        raise SalesforceError("INVALID_REPLICATION_DATE", f"startDate cannot be more than {window.days} days ago")
    return start, end


def _time_parameter(request: Request, name: str) -> datetime:
    # A plus sign that was not percent-encoded arrives as a blank; the real system refuses it as well.
    text = request.parameter(name)
    try:
        return parse_datetime(text)
    except ValueError:
        raise SalesforceError("INVALID_REPLICATION_DATE", f"{name} is not a valid dateTime: {text!r}") from None


def _covered(org: Org, request: Request, start: datetime, end: datetime) -> datetime:
    """The end of what the answer covers: never in the future, and behind `end` where a fault says so."""
    covered = min(end, org.clock.now())
    fault = org.faults.take("lag", request)
    if fault is not None:
        covered -= timedelta(seconds=fault.seconds)
    return max(start, covered)


# --- queries ---


def query(org: Org, request: Request) -> Response:
    return _query(org, request, deleted_too=False)


def query_all(org: Org, request: Request) -> Response:
    return _query(org, request, deleted_too=True)


def _query(org: Org, request: Request, *, deleted_too: bool) -> Response:
    if not request.parameter("q"):
        raise SalesforceError("MALFORMED_QUERY", "SOQL statements cannot be empty or null")
    asked, result, found = queries.run(org.store, request.parameter("q"), deleted_too=deleted_too)
    if asked.count:
        return reply({"totalSize": found, "done": True, "records": []})
    records = result.records(request.base)
    return reply(org.cursors.first_page(records, _page_size(org, request), request.base))


def query_more(org: Org, request: Request, locator: str) -> Response:
    return reply(org.cursors.next_page(locator, _page_size(org, request), request.base))


def _page_size(org: Org, request: Request) -> int:
    asked = re.search(r"batchSize=(\d+)", request.headers.get("sforce-query-options", ""))
    if asked is None:
        return org.page_size
    return min(max(int(asked.group(1)), SMALLEST_PAGE), org.page_size)
