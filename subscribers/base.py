"""What a subscriber is: one class for one catalogue in one system.

An author writes `field_to_data` and the few methods that are particular to the system; the
conductor decides when they are called. Nothing here knows a broker or Flask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

from models.catalogues import CATALOGUES, Catalogue, Record
from subscribers.calls import one_by_one
from subscribers.errors import SyncError
from subscribers.mapping.fields import Field
from subscribers.mapping.mapper import Mapper
from subscribers.records import External, ExternalField, Item, Page, fields_of
from subscribers.rules import Rules, check
from subscribers.system import System


class Subscriber:
    """Base class. `register` it and it is in the fan-out.

    Class attributes an author sets: `system`, `catalogue`, `field_to_data`, and where wanted
    `match_on` (columns that identify a record on both sides before it is linked), `on_delete`
    (what happens there when the internal record is deleted), `on_gone` (what happens here when the
    external record is deleted), `rules` (what the system takes, see `rules`) and `poll_seconds`.
    """

    system: ClassVar[str]
    catalogue: ClassVar[str]
    system_class: ClassVar[type[System]] = System
    #: What the system calls this kind of record, as its webhooks name it.
    resource: ClassVar[str] = ""
    field_to_data: ClassVar[Mapping[str, Field | str]] = {}
    match_on: ClassVar[Sequence[str]] = ()
    on_delete: ClassVar[Literal["delete", "archive", "unlink", "ignore"]] = "delete"
    on_gone: ClassVar[Literal["delete", "archive", "unlink", "recreate"]] = "unlink"
    #: By path of what is sent: see `subscribers.rules`.
    rules: ClassVar[Rules] = {}
    #: What is sent there, by path, where `on_delete` is `archive`.
    archive_data: ClassVar[Mapping[str, Any]] = {}
    #: How many records one call of `bulk_*` takes; 1 for a system without bulk calls.
    bulk_size: ClassVar[int] = 1
    #: How often changes are polled; None for never.
    poll_seconds: ClassVar[int | None] = None

    def __init__(self, client: System) -> None:
        self.client: Any = client
        #: The mapping in force; the conductor puts a newer version here when a person saved one.
        self.mapper: Mapper = self.default_mapper

    @classmethod
    def connected(cls, client: Any) -> Subscriber | None:
        """The subscriber at work for this client; None where the system's settings leave it out."""
        return cls(client)

    @classmethod
    def name(cls) -> str:
        """`system.catalogue`: the subscriber's name and the name of its queue."""
        return f"{cls.system}.{cls.catalogue}"

    @cached_property
    def records(self) -> Catalogue:
        """The catalogue this subscriber follows."""
        return CATALOGUES[self.catalogue]

    @cached_property
    def default_mapper(self) -> Mapper:
        """The mapping as the code has it."""
        return Mapper(self.records, self.field_to_data)

    # --- decisions about a record ---------------------------------------------------------------

    def wants(self, record: Record) -> bool:
        """Whether this record belongs in the system at all."""
        return True

    def validate(self, data: Mapping[str, Any]) -> None:
        """Raise `Reject(fields={...})` where the system would refuse `data` (nested) anyway: by `rules`."""
        check(self.rules, data)

    # --- what the mapping cannot say -----------------------------------------------------------------

    def before_send(self, data: dict[str, Any], record: Record) -> dict[str, Any]:
        """The data (nested) that shall be sent of this record, made from what the mapping says.

        Called whenever our side is looked at, not only before a call, so it must come out the same for
        the same record. What it adds beside the mapped fields goes along with each call, but is not
        compared: a change of that alone is none.
        """
        return data

    def after_receive(self, external: External) -> External:
        """The record as it shall be taken, made from what the system said; `dataclasses.replace` makes one.

        Called for every record with data that comes in: webhooks, polls, fetches and answers to writes.
        """
        return external

    # --- calls ------------------------------------------------------------------------------------

    def create(self, item: Item) -> External:
        """Create the record there and return it with its id."""
        raise NotImplementedError

    def update(self, item: Item) -> External | None:
        """Bring the linked record there up to date; return what the system now holds, if it says."""
        raise NotImplementedError

    def delete(self, item: Item) -> None:
        """Delete the linked record there; one that is gone already is fine (or raise `Gone`)."""
        raise NotImplementedError

    def fetch(self, external_id: str) -> External:
        """The record as it is there now. Raises `Gone`."""
        raise NotImplementedError

    def list_all(self, position: dict[str, Any] | None) -> Iterator[Page]:
        """Pages of all records there, after a page's position; it changes nothing, here or there.

        As a poll reads from the beginning. Override where that has effects of its own.
        """
        return self.changed_since(position)

    def bulk_fetch(self, external_ids: Sequence[str]) -> list[External | SyncError]:
        """One outcome an id, in order. Override where the system shows many in one call."""
        return one_by_one(self.fetch, external_ids, self.client.pace)

    def find(self, item: Item) -> External | None:
        """Look for the record there by our id (or another sure mark) before it is created (again)."""
        return None

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
        """Pages of records changed since a position (None: from the beginning), oldest first.

        Records that changed exactly at the position are read again: ties must not be lost.
        """
        raise NotImplementedError

    # --- what `./syncflow check` asks ---------------------------------------------------------------

    def describe(self) -> Mapping[str, ExternalField] | None:
        """The fields records have there, by dotted path; None where nothing can be told.

        As one record shows them, unless the system can describe itself: then override it.
        """
        for page in self.list_all(None):
            for external in page.records:
                if not external.deleted and external.data:
                    return fields_of(external.data)
            break
        return None

    def missing_permissions(self) -> list[str]:
        """What the login lacks, one sentence each; as far as can be seen without doing it."""
        return []

    # --- bulk calls: what the conductor really calls -------------------------------------------------

    def batch_size(self, waiting: int) -> int:
        """How many of so many waiting records one call of `bulk_*` is given."""
        return self.bulk_size

    def bulk_create(self, items: Sequence[Item]) -> list[External | SyncError]:
        """One outcome an item, in order. Override where the system takes many in one call."""
        return one_by_one(self.create, items, self.client.pace)

    def bulk_update(self, items: Sequence[Item]) -> list[External | SyncError | None]:
        """One outcome an item, in order."""
        return one_by_one(self.update, items, self.client.pace)

    def bulk_delete(self, items: Sequence[Item]) -> list[SyncError | None]:
        """One outcome an item, in order."""
        return one_by_one(self.delete, items, self.client.pace)


def normalize_incoming(subscriber: Subscriber, external: External) -> External:
    """What came in, as the subscriber's `after_receive` has it; without data there is nothing to change."""
    if not external.data:
        return external
    made = subscriber.after_receive(external)
    if not isinstance(made, External):
        raise TypeError(f"after_receive of {subscriber.name()} returned a {type(made).__name__}, not an External")
    return made
