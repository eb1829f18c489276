"""Read an object's description from an org: its fields, and the permissions of the login.

REST API developer guide: "sObject Describe".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from subscribers.errors import Gone
from subscribers.records import ExternalField
from subscribers.salesforce.system import Salesforce

#: Salesforce's type -> ours, unless it is text.
_KINDS = {
    **dict.fromkeys(("int", "double", "currency", "percent", "long"), "number"),
    **{kind: kind for kind in ("boolean", "date", "datetime")},
    **dict.fromkeys(("address", "location"), "object"),
}

#: Flag of an object's description -> the permission it stands for.
_NEEDED = {
    "queryable": "read",
    "createable": "create",
    "updateable": "edit",
    "deletable": "delete",
}


def describe(client: Salesforce, sobject: str) -> dict[str, Any]:
    """Return Salesforce's description of an object. Raises `Gone` if this login sees no object of that name."""
    found, _ = client.call(lambda org: org.restful(f"sobjects/{sobject}/describe"))
    return dict(found or {})


def fields(described: Mapping[str, Any]) -> dict[str, ExternalField]:
    """Return the fields of a description, by name."""
    return {
        one["name"]: ExternalField(
            kind=_KINDS.get(one["type"], "text"),
            length=one.get("length") or None,
            writable=bool(one["createable"] and one["updateable"]),
            required=bool(one["createable"]) and not one["nillable"] and not one["defaultedOnCreate"],
        )
        for one in described["fields"]
    }


def missing_permissions(client: Salesforce, sobject: str, names: Iterable[str]) -> list[str]:
    """Return a sentence for each missing permission on an object, and for each of these fields that is not visible."""
    try:
        described = describe(client, sobject)
    except Gone:
        return [f"this login sees no object {sobject}: it is not there, or its permission set lacks the object"]
    missing = [verb for flag, verb in _NEEDED.items() if not described.get(flag)]
    words = [f"this login may not {verb} records of {sobject}: give it that object permission" for verb in missing]
    known = {one["name"] for one in described["fields"]}
    return words + [
        f"{sobject} has no field {name}, or this login may not see it: create it, or give the field permission"
        for name in names
        if name not in known
    ]
