"""Bulk API 2.0: write many records from one CSV file, and read query results as CSV.

Bulk API 2.0 guide: "Create a Job", "Upload Job Data", "Upload Complete", "Get Job Info", "Get Job Successful
Record Results", "Get Job Failed Record Results", "Create a Query Job", "Get Results for a Query Job".
"""

from __future__ import annotations

from typing import Any

from . import queries
from .errors import SalesforceError, SeveralMatch, bad_json, not_found
from .identifiers import make_id
from .jobs import DELIMITERS, LINE_ENDINGS, Job
from .org import Org
from .schema import SObject, find_object
from .store import external_id_field
from .times import to_wire
from .wire import Request, Response, csv_file, reply

LARGEST_FILE = 100 * 1024 * 1024
#: The value that means null in an uploaded file; an empty value leaves the field unchanged.
NULL = "#N/A"
_INGEST = ("insert", "update", "upsert", "delete", "hardDelete")
_QUERY = ("query", "queryAll")
_RESULTS_ON_A_PAGE = 50_000
_FINISHED = ("JobComplete", "Aborted", "Failed")


# --- any job ---


def get_job(org: Org, request: Request, kind: str, job_id: str) -> Response:
    job = _find(org, kind, job_id)
    if job.state in ("UploadComplete", "InProgress"):
        job.state = "InProgress" if job.waits else "JobComplete"
        job.waits = max(0, job.waits - 1)
    return reply(_info(job))


def list_jobs(org: Org, request: Request, kind: str) -> Response:
    jobs = [_info(job) for job in org.jobs.values() if job.kind == kind]
    return reply({"done": True, "records": jobs, "nextRecordsUrl": None})


def change_job(org: Org, request: Request, kind: str, job_id: str) -> Response:
    """Change the job's state: UploadComplete starts the work, Aborted discards it."""
    job, state = _find(org, kind, job_id), request.json_object().get("state")
    if state == "UploadComplete" and kind == "ingest" and job.state == "Open":
        _ingest(org, request, job)
    elif state == "Aborted" and job.state not in _FINISHED:
        job.state = "Aborted"
    else:
        raise SalesforceError("INVALIDJOBSTATE", f"the job is {job.state} and cannot become {state}")
    return reply(_info(job))


def delete_job(org: Org, request: Request, kind: str, job_id: str) -> Response:
    job = _find(org, kind, job_id)
    if job.state not in _FINISHED:
        raise SalesforceError("INVALIDJOBSTATE", f"a job that is {job.state} cannot be deleted")
    del org.jobs[job.id]
    return Response(204)


def _find(org: Org, kind: str, job_id: str) -> Job:
    job = org.jobs.get(job_id)
    if job is None or job.kind != kind:
        raise not_found()
    return job


def _new(org: Org, body: dict[str, Any], kind: str, allowed: tuple[str, ...]) -> Job:
    operation = body.get("operation")
    delimiter, ending = body.get("columnDelimiter", "COMMA"), body.get("lineEnding", "LF")
    if operation not in allowed or delimiter not in DELIMITERS or ending not in LINE_ENDINGS:
        raise bad_json("unknown operation, columnDelimiter or lineEnding")
    with org.store.transaction():
        job_id = make_id("750", org.store.database.next_number("750"))
    job = Job(job_id, kind, operation, "", to_wire(org.clock.now()), delimiter=delimiter, line_ending=ending)
    job.waits = org.bulk_waits
    return job


def _info(job: Job) -> dict[str, Any]:
    info: dict[str, Any] = {
        "id": job.id,
        "operation": job.operation,
        "object": job.object,
        "createdDate": job.created,
        "systemModstamp": job.created,
        "state": job.state,
        "concurrencyMode": "Parallel",
        "contentType": "CSV",
        "apiVersion": 59.0,
        "lineEnding": job.line_ending,
        "columnDelimiter": job.delimiter,
        "jobType": "V2Ingest" if job.kind == "ingest" else "V2Query",
    }
    if job.kind == "query":
        return {**info, "numberRecordsProcessed": len(job.rows), "retries": 0, "totalProcessingTime": 0}
    if job.external_id:
        info["externalIdFieldName"] = job.external_id
    if job.error:
        info["errorMessage"] = job.error
    over = job.state in _FINISHED
    processed, failed = (len(job.succeeded) + len(job.failed), len(job.failed)) if over else (0, 0)
    return {**info, "numberRecordsProcessed": processed, "numberRecordsFailed": failed, "retries": 0}


# --- writing many ---


def create_ingest(org: Org, request: Request) -> Response:
    body = request.json_object()
    job = _new(org, body, "ingest", _INGEST)
    one = find_object(str(body.get("object")))
    job.object = one.name
    if job.operation == "upsert":
        job.external_id = external_id_field(one, str(body.get("externalIdFieldName"))).name
    org.jobs[job.id] = job
    return reply({**_info(job), "contentUrl": f"{request.base.lstrip('/')}/jobs/ingest/{job.id}/batches"})


def upload(org: Org, request: Request, job_id: str) -> Response:
    job = _find(org, "ingest", job_id)
    if job.state != "Open" or job.uploaded:
        raise SalesforceError("INVALIDJOBSTATE", "a job takes one upload, while it is Open")
    if len(request.body) > LARGEST_FILE:
        raise SalesforceError("TOO_LARGE", f"a job takes at most {LARGEST_FILE} bytes", status=413)
    try:
        job.uploaded = request.body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SalesforceError("INVALIDBATCH", "the file is not UTF-8") from None
    return Response(201)


def successful_results(org: Org, request: Request, job_id: str) -> Response:
    job = _ended(org, job_id)
    rows = [[*outcome, *row.values()] for outcome, row in job.succeeded]
    return csv_file(job.csv(["sf__Id", "sf__Created", *job.columns], rows))


def failed_results(org: Org, request: Request, job_id: str) -> Response:
    job = _ended(org, job_id)
    rows = [[outcome[1], outcome[0], *row.values()] for outcome, row in job.failed]
    return csv_file(job.csv(["sf__Id", "sf__Error", *job.columns], rows))


def unprocessed_records(org: Org, request: Request, job_id: str) -> Response:
    job = _ended(org, job_id)
    if job.columns or not job.uploaded:
        return csv_file(job.csv(job.columns, job.unprocessed) if job.columns else "")
    return csv_file(job.uploaded)


def _ended(org: Org, job_id: str) -> Job:
    job = _find(org, "ingest", job_id)
    if job.state not in _FINISHED:
        raise not_found()
    return job


def _completed(org: Org, kind: str, job_id: str) -> Job:
    job = _find(org, kind, job_id)
    if job.state != "JobComplete":
        raise not_found()
    return job


#: Rows of a file that the org writes in one transaction, with its triggers.
_TRANSACTION_ROWS = 200


def _ingest(org: Org, request: Request, job: Job) -> None:
    """Write the uploaded rows. This happens immediately, but the job reports it only on a later status request."""
    one = find_object(job.object)
    try:
        job.columns, rows = job.parsed()
    except ValueError as error:
        job.state, job.error = "Failed", f"InvalidBatch : {error}"
        return
    job.state = "UploadComplete"
    if org.bulk_stops_after is not None:
        rows, job.unprocessed = rows[: org.bulk_stops_after], rows[org.bulk_stops_after :]
    with org.store.transaction():
        for number, values in enumerate(rows):
            together = min(_TRANSACTION_ROWS, len(rows) - number // _TRANSACTION_ROWS * _TRANSACTION_ROWS)
            _ingest_row(org, request, job, one, dict(zip(job.columns, values, strict=True)), together)
    if job.unprocessed:
        job.state, job.error = "Failed", "InternalServerError : the job was stopped"


def _ingest_row(org: Org, request: Request, job: Job, one: SObject, row: dict[str, str], together: int) -> None:
    record_id = row.get("Id", "")
    try:
        with org.store.transaction():
            org.faults.check_triggers(together)
            org.faults.fail_item(request)
            record_id, created = _write_row(org, job, one, row)
    except SalesforceError as error:
        fields = "".join(f"{name} " for name in error.fields or ())
        job.failed.append(((f"{error.code}:{error.message}:{fields}--", record_id), row))
    except SeveralMatch:
        message = f"DUPLICATE_EXTERNAL_ID:{job.external_id}: more than one record found:--"
        job.failed.append(((message, ""), row))
    else:
        request.touched.append(record_id)
        job.succeeded.append(((record_id, str(created).lower()), row))


def _write_row(org: Org, job: Job, one: SObject, row: dict[str, str]) -> tuple[str, bool]:
    data = _data(row)
    if job.operation == "insert":
        return org.store.create(one.name, data), True
    if job.operation == "upsert":
        key = data.pop(job.external_id, None)
        if not key:
            raise SalesforceError("MISSING_ARGUMENT", f"{job.external_id} not specified")
        return org.store.upsert(one.name, job.external_id, key, data)
    record_id = data.pop("Id", None)
    if not record_id:
        raise SalesforceError("MISSING_ARGUMENT", f"Id not specified in an {job.operation} call")
    full_id = str(org.store.get(one.name, record_id)["Id"])
    if job.operation == "update":
        org.store.update(one.name, full_id, data)
    else:
        org.store.delete(one.name, full_id)
    return full_id, False


def _data(row: dict[str, str]) -> dict[str, Any]:
    """Return a row as a record: empty values are left out, `Account__r.Syncflow_Id__c` names a parent."""
    data: dict[str, Any] = {}
    for column, value in row.items():
        if value == "":
            continue
        head, dot, rest = column.partition(".")
        content = None if value == NULL else value
        data[head] = {rest: content} if dot else content
    return data


# --- reading many ---


def create_query(org: Org, request: Request) -> Response:
    """Run the query and keep its result as a snapshot."""
    body = request.json_object()
    job = _new(org, body, "query", _QUERY)
    job.query = str(body.get("query") or "")
    asked, result, _ = queries.run(org.store, job.query, deleted_too=job.operation == "queryAll")
    if asked.count or asked.offset:
        raise SalesforceError("API_ERROR", "COUNT() and OFFSET are not supported in bulk queries")
    job.object, job.state, job.columns = result.object.name, "UploadComplete", result.fields
    job.rows = [[_csv_value(row[name]) for name in result.fields] for row in result.rows]
    org.jobs[job.id] = job
    return reply(_info(job))


def query_results(org: Org, request: Request, job_id: str) -> Response:
    """Return a page of rows; the Sforce-Locator header names the next page, or is `null` on the last one."""
    job = _completed(org, "query", job_id)
    locator = request.parameter("locator", "0")
    asked = request.parameter("maxRecords", str(_RESULTS_ON_A_PAGE))
    if not locator.isdigit() or not asked.isdigit() or int(asked) < 1:
        raise SalesforceError("INVALID_QUERY_LOCATOR", "locator or maxRecords is not valid")
    start, end = int(locator), int(locator) + int(asked)
    rows = job.rows[start:end]
    following = str(end) if end < len(job.rows) else "null"
    return csv_file(job.csv(job.columns, rows), Sforce_Locator=following, Sforce_NumberOfRecords=str(len(rows)))


def _csv_value(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
