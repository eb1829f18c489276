"""What an org says of an object: its fields, and what this login may do.

REST API developer guide: "sObject Describe".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from subscribers.errors import Gone
from subscribers.records import ExternalField
from subscribers.salesforce.system import Salesforce

#: Salesforce's type -> ours, where it is not text.
_KINDS = {
    **dict.fromkeys(("int", "double", "currency", "percent", "long"), "number"),
    **{kind: kind for kind in ("boolean", "date", "datetime")},
    **dict.fromkeys(("address", "location"), "object"),
}

#: What is asked of an object -> what it is for.
_NEEDED = {
    "queryable": "read",
    "createable": "create",
    "updateable": "edit",
    "deletable": "delete",
}


def describe(client: Salesforce, sobject: str) -> dict[str, Any]:
    """Salesforce's own description of an object. Raises `Gone` where this login sees none of that name."""
    found, _ = client.call(lambda org: org.restful(f"sobjects/{sobject}/describe"))
    return dict(found or {})


def fields(described: Mapping[str, Any]) -> dict[str, ExternalField]:
    """Its fields, by name."""
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
    """What this login may not do with an object, and which of these fields it does not find, in words."""
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
