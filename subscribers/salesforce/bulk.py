"""Bulk API 2.0: write thousands of records as one file, each with its own outcome.

Bulk API 2.0 developer guide: "Create a Job", "Upload Job Data", "Upload Complete", "Get Job Info", "Get Job
Successful Record Results", "Get Job Failed Record Results", "Get Job Unprocessed Record Results".
"""

from __future__ import annotations

import codecs
import csv
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Literal, TypeVar

import requests

from subscribers.calls import still_working
from subscribers.errors import Gone, Reject, Retry, SyncError
from subscribers.http.transport import MAX_RESPONSE_BYTES, TimeLimit, TooLarge, time_limit
from subscribers.salesforce.failures import by_code
from subscribers.salesforce.system import Salesforce

T = TypeVar("T")
Row = Mapping[str, Any]
#: The record's id in Salesforce and the org's time, or the error.
Outcome = tuple[str, datetime] | SyncError

#: The text for null in a file; an empty value means "leave as it is".
NULL = "#N/A"
#: Maximum size of a file in bytes; the upload may grow by half in transit, and its limit is 150 MB.
MAX_FILE_BYTES = 90_000_000
#: Seconds between two status checks of a job, growing; and until it is given up.
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 10.0
JOB_TIMEOUT_SECONDS = 900.0
#: Bytes of a file of results that are read at a time.
_PART_BYTES = 64 * 1024

_ENDED = ("JobComplete", "Failed", "Aborted")


def can_carry(rows: Sequence[Row]) -> bool:
    """Return whether a file can hold these rows: no value may be the text for null."""
    return not any(value == NULL for row in rows for value in row.values())


def ingest(
    org: Salesforce, sobject: str, operation: Literal["upsert", "update"], key: str, rows: Sequence[Row]
) -> list[Outcome]:
    """Write these rows in one job; return one outcome per row, in order. Field `key` is unique in each row."""
    content = _file(rows)
    if len(content) > MAX_FILE_BYTES and len(rows) > 1:
        half = len(rows) // 2
        return [
            *ingest(org, sobject, operation, key, rows[:half]),
            *ingest(org, sobject, operation, key, rows[half:]),
        ]
    asked = {"object": sobject, "operation": operation, "contentType": "CSV", "lineEnding": "LF"}
    if operation == "upsert":
        asked["externalIdFieldName"] = key
    try:
        job, _ = _json(org, "POST", "jobs/ingest", asked)
        path = f"jobs/ingest/{job['id']}"
        _upload(org, f"{path}/batches", content)
        ended, at = _run(org, path)
        how = f"the job was {ended['state']} ({ended.get('errorMessage') or 'no reason given'})"
        by_key = _outcomes(org, path, key, at, Retry(f"{how} before it came to this record"))
    except Gone as error:  # The object or the field in the job's address is unknown; no record is missing.
        return [
            Reject(f"jobs/ingest: {error}", request_id=error.request_id, code="unknown_field").with_response(
                error.response
            )
        ] * len(rows)
    except SyncError as error:
        return [error] * len(rows)
    lost = Retry(f"{how} and says nothing of this record", maybe_done=True)
    return [by_key.get(str(row[key]), lost) for row in rows]


def _file(rows: Sequence[Row]) -> bytes:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(columns)
    writer.writerows([_cell(row[name]) if name in row else "" for name in columns] for row in rows)
    return out.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None or value == "":
        return NULL
    return str(value).lower() if isinstance(value, bool) else str(value)


def _run(org: Salesforce, path: str) -> tuple[dict[str, Any], datetime]:
    """Start a job, wait until it ends, and return it with the org's time. Even on an error it may have taken effect."""
    deadline = time.monotonic() + JOB_TIMEOUT_SECONDS
    _json(org, "PATCH", path, {"state": "UploadComplete"}, writes=True)
    pause = FIRST_PAUSE_SECONDS
    while True:
        job, at = _surely(lambda: _json(org, "GET", path), deadline)
        if job["state"] in _ENDED:
            return job, at
        if time.monotonic() > deadline:
            raise Retry(f"the job is still {job['state']} after {JOB_TIMEOUT_SECONDS:.0f} s", maybe_done=True)
        time.sleep(pause)
        still_working()
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


def _outcomes(org: Salesforce, path: str, key: str, at: datetime, unprocessed: Retry) -> dict[str, Outcome]:
    """Return the outcome of each record by its key."""
    deadline = time.monotonic() + JOB_TIMEOUT_SECONDS
    found: dict[str, Outcome] = {}

    def take(kind: str, row: Mapping[str, str]) -> None:
        if kind == "successfulResults":
            found[row[key]] = (row["sf__Id"], at)
        elif kind == "failedResults":
            found[row[key]] = by_code([_error(row["sf__Error"])]).with_response(org.quote(row))
        else:
            found[row[key]] = unprocessed

    for kind in ("successfulResults", "failedResults", "unprocessedrecords"):
        _surely(partial(_each_row, org, f"{path}/{kind}", partial(take, kind)), deadline)
    return found


def _error(text: str) -> dict[str, Any]:
    """Parse `CODE:message:Field --` into an error as in the responses to single calls."""
    code, _, rest = text.partition(":")
    message, _, fields = rest.rpartition(":")
    names = fields.replace("--", " ").replace(",", " ").split()
    return {"statusCode": code.strip(), "message": message or rest, "fields": names}


def _surely(ask: Callable[[], T], deadline: float) -> T:
    """Return the answer to a question about finished work: ask again until it succeeds, or until `deadline`."""
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return ask()
        except SyncError as error:
            if time.monotonic() + pause > deadline:
                lost = Retry(
                    f"the outcome of the job is unknown: {error}", maybe_done=True, server_failed=error.may_be_outage
                )
                raise lost.with_response(error.response) from error
        time.sleep(pause)
        still_working()
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


def _json(org: Salesforce, method: str, path: str, body: Any = None, **how: bool) -> tuple[dict[str, Any], datetime]:
    """Return the status of a job, and the org's time."""
    info, at = org.call(lambda it: it.restful(path, method=method, json=body), **how)
    if not isinstance(info, dict) or "id" not in info or "state" not in info:
        raise Retry("the response is not a job")
    return info, at


class _Upload(io.BytesIO):
    """A file to send, which extends the time limit of its call with each part."""

    def __init__(self, content: bytes, limit: TimeLimit) -> None:
        super().__init__(content)
        self._limit = limit

    def read(self, size: int | None = -1, /) -> bytes:
        self._limit.extend()
        return super().read(size)


def _upload(org: Salesforce, path: str, content: bytes) -> None:
    def call(it: Any) -> None:
        with time_limit() as limit:
            headers = {"Content-Type": "text/csv; charset=UTF-8"}
            it._call_salesforce("PUT", it.base_url + path, name=path, data=_Upload(content, limit), headers=headers)

    org.call(call)


def _each_row(org: Salesforce, path: str, take: Callable[[Mapping[str, str]], None]) -> None:
    """Pass each row of a file of results to `take`, as it is read: the file may be large."""

    def call(it: Any) -> None:
        with (
            time_limit() as limit,
            it._call_salesforce("GET", it.base_url + path, name=path, stream=True) as response,
        ):
            for row in csv.DictReader(_lines(response, limit)):
                take(row)

    org.call(call)


def _lines(response: requests.Response, limit: TimeLimit) -> Iterator[str]:
    """Yield the lines of a streamed answer with their ends.

    Raises:
      TooLarge: a line does not end.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    begun = ""
    for part in response.iter_content(_PART_BYTES):
        limit.extend()
        *whole, begun = (begun + decoder.decode(part)).split("\n")
        yield from (f"{line}\n" for line in whole)
        if len(begun) > MAX_RESPONSE_BYTES:
            raise TooLarge(MAX_RESPONSE_BYTES)
    if begun:
        yield begun
