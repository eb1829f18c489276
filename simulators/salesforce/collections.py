"""sObject Collections: up to 200 records in one call, each with its own outcome.

REST API guide: "Create Records Using sObject Collections" and its siblings: retrieve, update, upsert, delete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import queries
from .errors import SalesforceError, SeveralMatch, bad_json, malformed_id
from .identifiers import to_18
from .org import Org
from .schema import SObject, find_object, object_of_id
from .store import external_id_field
from .wire import Request, Response, reply

MOST_RECORDS = 200
MOST_RETRIEVED = 2000

Item = dict[str, Any]


class _RolledBack(Exception):
    """Rolls back the transaction of a failed all-or-none call."""


def create(org: Org, request: Request) -> Response:
    def work(item: Item) -> Item:
        return {"id": org.store.create(_type_of(item).name, item)}

    return _write(org, request, _records(request), work)


def update(org: Org, request: Request) -> Response:
    def work(item: Item) -> Item:
        one = _type_of(item)
        record_id = item.get("id", item.get("Id"))
        if not isinstance(record_id, str):
            raise SalesforceError("MISSING_ARGUMENT", "Id not specified in an update call", fields=["Id"])
        changes = {key: it for key, it in item.items() if key not in ("id", "Id")}
        org.store.update(one.name, record_id, changes)
        return {"id": to_18(record_id)}

    return _write(org, request, _records(request), work)


def upsert(org: Org, request: Request, name: str, field: str) -> Response:
    one = find_object(name)
    key = external_id_field(one, field).name
    seen: set[str] = set()

    def work(item: Item) -> Item:
        if _type_of(item) is not one:
            raise SalesforceError("INVALID_TYPE", f"all records have to be of type {one.name}")
        value = item.get(key)
        if value in (None, ""):
            raise SalesforceError("MISSING_ARGUMENT", f"{key} not specified", fields=[key])
        if str(value).casefold() in seen:
            message = f"Duplicate external id specified: {value}"
            raise SalesforceError("DUPLICATE_VALUE", message, fields=[key])
        seen.add(str(value).casefold())
        rest = {name: it for name, it in item.items() if name != key}
        record_id, created = org.store.upsert(one.name, key, str(value), rest)
        return {"id": record_id, "created": created}

    return _write(org, request, _records(request), work)


def delete(org: Org, request: Request) -> Response:
    ids = [one for one in request.parameter("ids").split(",") if one]
    _refuse_too_many(ids, MOST_RECORDS)

    def work(item: Item) -> Item:
        one = _object_of(item["id"])
        org.store.delete(one.name, item["id"])
        return {"id": to_18(item["id"])}

    all_or_none = request.parameter("allOrNone") == "true"
    return _write(org, request, ([{"id": one} for one in ids], all_or_none), work)


def retrieve(org: Org, request: Request, name: str) -> Response:
    """Return the records in the order of the requested ids; null for a record that does not exist."""
    one = find_object(name)
    asked = _retrieve_arguments(request)
    _refuse_too_many(asked["ids"], MOST_RETRIEVED)
    fields = [one.field(field).name for field in asked["fields"]]
    return reply([_retrieved(org, request, one, record_id, fields) for record_id in asked["ids"]])


def _retrieve_arguments(request: Request) -> dict[str, list[str]]:
    if request.method == "POST":
        body = request.json_object()
        lists = {name: body.get(name) for name in ("ids", "fields")}
    else:
        lists = {name: [it for it in request.parameter(name).split(",") if it] for name in ("ids", "fields")}
    for name, values in lists.items():
        if not isinstance(values, list) or not all(isinstance(it, str) for it in values) or not values:
            raise SalesforceError("MALFORMED_QUERY", f"{name} is required")
    return lists  # type: ignore[return-value]


def _retrieved(org: Org, request: Request, one: SObject, record_id: str, fields: list[str]) -> Item | None:
    try:
        record = org.store.get(one.name, record_id)
    except SalesforceError:
        return None
    request.touched.append(record["Id"])
    return queries.record_json(one, record, request.base, fields)


def _records(request: Request) -> tuple[list[Item], bool]:
    body = request.json_object()
    records = body.get("records")
    if not isinstance(records, list) or not all(isinstance(item, dict) for item in records):
        raise bad_json("The records have to be a list of objects")
    _refuse_too_many(records, MOST_RECORDS)
    return records, body.get("allOrNone") is True


def _refuse_too_many(items: Sequence[object], most: int) -> None:
    if not items:
        raise SalesforceError("MISSING_ARGUMENT", "at least one record is required")
    if len(items) > most:
        raise SalesforceError(
            "EXCEEDED_ID_LIMIT",
            f"record limit reached. cannot submit more than {most} records into this call",
        )


def _write(org: Org, request: Request, asked: tuple[list[Item], bool], work: Callable[[Item], Item]) -> Response:
    """Process each record separately; in an all-or-none call, one failure undoes all of them."""
    items, all_or_none = asked
    results: list[Item] = []
    try:
        with org.store.transaction():
            results.extend(_one(org, request, item, work, len(items)) for item in items)
            if all_or_none and not all(result["success"] for result in results):
                raise _RolledBack
    except _RolledBack:
        results = [_undone(result) if result["success"] else result for result in results]
    request.touched.extend(result["id"] for result in results if result["success"])
    return reply(results)


def _one(org: Org, request: Request, item: Item, work: Callable[[Item], Item], together: int) -> Item:
    try:
        with org.store.transaction():
            org.faults.check_triggers(together)
            org.faults.fail_item(request)
            done = work(item)
    except SalesforceError as error:
        return {"success": False, "errors": [error.item()]}
    except SeveralMatch as several:
        message = f"more than one record found for external id field: {several.urls}"
        return {"success": False, "errors": [SalesforceError("DUPLICATE_EXTERNAL_ID", message).item()]}
    return {"id": done["id"], "success": True, "errors": [], **{k: v for k, v in done.items() if k != "id"}}


def _undone(result: Item) -> Item:
    message = "Record rolled back because not all records were valid and the request was using AllOrNone header"
    error = SalesforceError("ALL_OR_NONE_OPERATION_ROLLED_BACK", message)
    return {"success": False, "errors": [error.item()]}


def _type_of(item: Item) -> SObject:
    attributes = item.get("attributes")
    name = attributes.get("type") if isinstance(attributes, dict) else None
    if not isinstance(name, str):
        raise SalesforceError("INVALID_TYPE", "the attributes of a record have to name its type")
    try:
        return find_object(name)
    except SalesforceError:
        raise SalesforceError("INVALID_TYPE", f"sObject type '{name}' is not supported.") from None


def _object_of(record_id: str) -> SObject:
    full = to_18(record_id)
    one = object_of_id(full) if full else None
    if one is None:
        raise malformed_id("sObject", record_id)
    return one
