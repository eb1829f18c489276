"""Records on their way: to a system (`Item`), from it (`External`, `Page`, `Event`), and their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from models.catalogues import Record
from subscribers.errors import Retry, clean


@dataclass(frozen=True)
class External:
    """One record as an external system has it.

    `data` is nested as in the system's own JSON. `at` is when it was last changed, by the system's
    own clock (for the answer to a write of ours: the time of that write). `record_id` is our id
    where the record carries it. `merged_into`, of a deleted one, is the id of the record there that it
    lives on in.
    """

    id: str
    data: Mapping[str, Any] = field(default_factory=dict)
    at: datetime | None = None
    deleted: bool = False
    record_id: str | None = None
    request_id: str | None = None
    merged_into: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", clean(self.id))
        if self.request_id is not None:
            object.__setattr__(self, "request_id", clean(self.request_id)[:128])
        if len(self.id) > 255:
            raise Retry(f"an id of {len(self.id)} characters cannot be kept", maybe_done=True)


@dataclass(frozen=True)
class Item:
    """One record on its way to a system.

    `data` is all that the system shall hold, `changes` what differs from what it is known to hold
    (whole top-level objects, so that partial updates of nested ones are well defined); both nested.
    `key` is an idempotency key: the same for each try of the same creation.
    """

    record_id: str
    record: Record
    data: dict[str, Any]
    changes: dict[str, Any]
    external_id: str | None
    key: str

    @property
    def linked_id(self) -> str:
        """The external id, where there must be one."""
        if self.external_id is None:
            raise AssertionError(f"record {self.record_id} is not linked")
        return self.external_id


@dataclass(frozen=True)
class Page:
    """A page of a poll: records, and the position to continue from once their effects are stored.

    `current`: the records are as they are now. A list of past events is not.
    """

    records: list[External]
    position: dict[str, Any]
    current: bool = True


@dataclass(frozen=True)
class Event:
    """A webhook's content: what happened to which record of which resource (`customer`, `Account`)."""

    resource: str
    external: External


@dataclass(frozen=True)
class ExternalField:
    """A field as a system describes it, or as one of its records shows it.

    `kind` is text, number, boolean, date, datetime, list or object; empty where it cannot be told.
    `length` is in characters. `required`: a record cannot be created without it.
    """

    kind: str = ""
    length: int | None = None
    writable: bool = True
    required: bool = False


def kind_of(value: Any) -> str:
    """The kind of a JSON value, in the words of `ExternalField`; empty for none."""
    kinds = {bool: "boolean", int: "number", float: "number", str: "text", list: "list", dict: "object"}
    return kinds.get(type(value), "")


def fields_of(data: Mapping[str, Any], parent: str = "") -> dict[str, ExternalField]:
    """The fields that one record shows, by dotted path, objects and what is in them."""
    found: dict[str, ExternalField] = {}
    for name, value in data.items():
        path = f"{parent}{name}"
        found[path] = ExternalField(kind_of(value))
        if isinstance(value, Mapping):
            found |= fields_of(value, f"{path}.")
    return found
