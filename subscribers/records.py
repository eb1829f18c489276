"""Records on their way: to a system (`Item`), from it (`External`, `Page`, `Event`), and their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from models.catalogues import Record
from redaction import clean, hide
from subscribers.errors import Retry

#: Characters of a version that can be stored.
LONGEST_VERSION = 255


@dataclass(frozen=True)
class External:
    """One record of an external system.

    `data` is nested as in the system's JSON. `at` is the time of the last change by the system's
    clock; in the response to a write of ours, the time of that write. `mark` is what the record holds in
    the field for `Item.mark`, if it has one. `merged_into` is the external id of the record that a deleted
    one was merged into. `is_exact` is False where `at` is only the time of the response, not of the last
    change. `version` is the system's name of this state, for a system that takes conditional writes.
    """

    id: str
    data: Mapping[str, Any] = field(default_factory=dict)
    at: datetime | None = None
    deleted: bool = False
    mark: str | None = None
    request_id: str | None = None
    merged_into: str | None = None
    is_exact: bool = True
    version: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", clean(self.id))
        if self.version is not None and len(self.version) > LONGEST_VERSION:
            object.__setattr__(self, "version", None)
        if self.request_id is not None:
            object.__setattr__(self, "request_id", hide(clean(self.request_id))[:128])
        if len(self.id) > 255:
            raise Retry(f"the external id has {len(self.id)} characters; at most 255 can be stored", maybe_done=True)


@dataclass(frozen=True)
class Item:
    """One record to deliver to a system.

    `data` holds all mapped fields. `changes` holds those that differ from the last known external
    record, as whole top-level objects, so that partial updates of nested objects are well defined.
    Both are nested. `key` is an idempotency key, the same for each attempt of the same create. `present`
    is the external record as just fetched, if the nested objects in `changes` were merged onto it. `version`
    is the last known version of the external record: a conditional write is refused if it has another one by now.
    `hub` is the id of this hub.
    """

    record_id: str
    record: Record
    data: dict[str, Any]
    changes: dict[str, Any]
    external_id: str | None
    key: str
    present: Mapping[str, Any] | None = None
    version: str | None = None
    hub: str = ""

    @property
    def mark(self) -> str:
        """What the external record holds so that it is known as ours: our record's id and the id of this hub."""
        return f"{self.record_id}@{self.hub}" if self.hub else self.record_id

    @property
    def linked_id(self) -> str:
        """The external id, for calls that need a linked record."""
        if self.external_id is None:
            raise AssertionError(f"record {self.record_id} is not linked")
        return self.external_id


@dataclass(frozen=True)
class Page:
    """A page of a poll: records, and the position to continue from after they are stored.

    `current`: the records are in their present state, not in that of past events. `gap`: what the system reports no
    more, such as deletions of a time that is too long ago, as a sentence; only a reconcile finds it.
    """

    records: list[External]
    position: dict[str, Any]
    current: bool = True
    gap: str = ""


@dataclass(frozen=True)
class Event:
    """One event of a webhook: the record, and the system's name of its kind (`customer`, `Account`)."""

    resource: str
    external: External


@dataclass(frozen=True)
class ExternalField:
    """A field of external records, as the system describes it or as found in a record.

    `kind` is text, number, boolean, date, datetime, list or object; empty if unknown. `length` is
    the maximum in characters. `required`: a record cannot be created without it.
    """

    kind: str = ""
    length: int | None = None
    writable: bool = True
    required: bool = False


def kind_of(value: Any) -> str:
    """Return the kind of a JSON value as in `ExternalField`; empty for null."""
    kinds = {bool: "boolean", int: "number", float: "number", str: "text", list: "list", dict: "object"}
    return kinds.get(type(value), "")


def fields_of(data: Mapping[str, Any], parent: str = "") -> dict[str, ExternalField]:
    """Return the fields of one record by dotted path: objects, and the fields in them."""
    found: dict[str, ExternalField] = {}
    for name, value in data.items():
        path = f"{parent}{name}"
        found[path] = ExternalField(kind_of(value))
        if isinstance(value, Mapping):
            found |= fields_of(value, f"{path}.")
    return found
