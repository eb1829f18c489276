"""The metadata that the org reports: its versions, resources, objects, fields and limits.

REST API guide: "Versions", "Resources by Version", "Describe Global", "sObject Describe", "Limits".
"""

from __future__ import annotations

from typing import Any

from .org import Org
from .schema import OBJECTS, TEXT_KINDS, Field, SObject, children_of, find_object
from .wire import Request, Response, reply

VERSIONS = range(50, 66)
_ABILITIES = ("createable", "updateable", "deletable", "queryable", "retrieveable", "replicateable")


def versions(org: Org, request: Request) -> Response:
    return reply([{"label": f"v{one}", "url": f"/services/data/v{one}.0", "version": f"{one}.0"} for one in VERSIONS])


def resources(org: Org, request: Request) -> Response:
    names = ("sobjects", "query", "queryAll", "composite", "jobs", "limits")
    return reply({name: f"{request.base}/{name}" for name in names})


def limits(org: Org, request: Request) -> Response:
    remaining = max(0, org.daily_limit - org.calls_used)
    return reply(
        {
            "DailyApiRequests": {"Max": org.daily_limit, "Remaining": remaining},
            "DailyBulkApiBatches": {"Max": 15000, "Remaining": 15000},
            "DailyBulkV2QueryJobs": {"Max": 10000, "Remaining": 10000},
            "DailyBulkV2QueryFileStorageMB": {"Max": 976562, "Remaining": 976562},
        }
    )


def describe_global(org: Org, request: Request) -> Response:
    return reply(
        {
            "encoding": "UTF-8",
            "maxBatchSize": 200,
            "sobjects": [_basics(one, request.base) for one in OBJECTS.values()],
        }
    )


def basic_information(org: Org, request: Request, name: str) -> Response:
    return reply({"objectDescribe": _basics(find_object(name), request.base), "recentItems": []})


def describe(org: Org, request: Request, name: str) -> Response:
    one = find_object(name)
    children = [
        {
            "childSObject": child.name,
            "field": field.name,
            "cascadeDelete": field.on_parent_delete == "cascade",
        }
        for child, field in children_of(one)
    ]
    fields = [_field(field) for field in one.fields.values()]
    return reply({**_basics(one, request.base), "fields": fields, "childRelationships": children})


def _basics(one: SObject, base: str) -> dict[str, Any]:
    url = f"{base}/sobjects/{one.name}"
    return {
        "name": one.name,
        "label": one.label,
        "labelPlural": one.plural,
        "keyPrefix": one.prefix,
        "custom": one.custom,
        "mergeable": one.mergeable,
        **dict.fromkeys(_ABILITIES, True),
        "urls": {"sobject": url, "describe": f"{url}/describe", "rowTemplate": f"{url}/{{ID}}"},
    }


def _field(field: Field) -> dict[str, Any]:
    # A checkbox is never null: without a value it gets its default, or false.
    nillable = not field.required and field.kind not in ("boolean", "id")
    return {
        "name": field.name,
        "label": field.name.removesuffix("__c").replace("_", " "),
        "type": field.kind,
        "length": field.length if field.kind in TEXT_KINDS or field.kind in ("id", "reference") else 0,
        "custom": field.custom,
        "nillable": nillable,
        "createable": not field.read_only,
        "updateable": not field.read_only,
        "defaultValue": field.default,
        "defaultedOnCreate": field.kind == "boolean" or field.default is not None or field.read_only,
        "externalId": field.external_id and field.custom,
        "idLookup": field.external_id or field.kind == "id",
        "unique": field.unique,
        "caseSensitive": False,
        "filterable": field.filterable,
        "sortable": field.filterable,
        "referenceTo": list(field.to),
        "relationshipName": field.relationship or None,
        "restrictedPicklist": bool(field.values),
        "picklistValues": [_picklist_value(value, field.default) for value in field.values],
    }


def _picklist_value(value: str, default: Any) -> dict[str, Any]:
    return {"value": value, "label": value, "active": True, "defaultValue": value == default}
