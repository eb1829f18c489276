"""The base class of subscribers: one class for one catalogue in one system.

An author writes `field_to_data` and the methods that are specific to the system. The conductor
calls them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field as AtLeast

from models.catalogues import CATALOGUES, Catalogue, Record
from redaction import hide_in_data
from subscribers.calls import one_by_one
from subscribers.errors import SyncError
from subscribers.mapping.fields import Field
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.match_forms import match_form
from subscribers.mapping.paths import MISSING, pick
from subscribers.mapping.values import Flat, is_empty
from subscribers.records import External, ExternalField, Item, Page, fields_of
from subscribers.rules import Rules, check
from subscribers.system import System


class Subscriber:
    """One catalogue in one system; `register` adds a subclass to the fan-out.

    Required class attributes are `system`, `catalogue` and `field_to_data`. Optional are `match_on`
    (columns that identify a record on both sides before it is linked), `on_delete` (what happens to
    the external record when the internal one is deleted), `on_gone` (the reverse), `rules` (what the
    system accepts) and `poll_seconds`.
    """

    system: ClassVar[str]
    catalogue: ClassVar[str]
    system_class: ClassVar[type[System]] = System
    #: The system's name for this kind of record, as in its webhooks.
    resource: ClassVar[str] = ""
    field_to_data: ClassVar[Mapping[str, Field | str]] = {}
    match_on: ClassVar[Sequence[str]] = ()
    on_delete: ClassVar[Literal["delete", "archive", "unlink", "ignore"]] = "delete"
    on_gone: ClassVar[Literal["delete", "archive", "unlink", "recreate"]] = "unlink"
    #: Path of a sent field -> its rules, see `subscribers.rules`.
    rules: ClassVar[Rules] = {}
    #: Path -> value that archives an external record, for `on_delete = "archive"`.
    archive_data: ClassVar[Mapping[str, Any]] = {}
    #: Whether the system may give the id of a deleted record to another one. A record that lives again under such an id
    #: is linked only if it has our mark or agrees in `match_on`; otherwise an operator decides.
    reuses_ids: ClassVar[bool] = False
    #: What it means if a complete record, as from `fetch` or a list, lacks a mapped field: `kept`: nothing, our value
    #: stays; `empty`: the field is empty there, as in systems that leave empty fields out.
    absent: ClassVar[Literal["kept", "empty"]] = "kept"
    #: The number of records in one call of `bulk_*`; 1 for a system without bulk calls.
    bulk_size: ClassVar[int] = 1
    #: Whether a record is read once after a write: `auto`, where the response does not show what the system made of our
    #: values; `always`; or `never`, for a system that stores values as they are sent.
    read_back: ClassVar[Literal["auto", "always", "never"]] = "auto"
    #: Whether a poll can start again from the beginning.
    starts_over: ClassVar[bool] = True
    #: Seconds between two polls for changes; None for a system that is not polled.
    poll_seconds: ClassVar[int | None] = None
    #: How edits made in the system are seen before ours overwrite them: by one `poll` for a whole batch, by a `fetch`
    #: of its records, or `never`. `auto`: not at all where writes are conditional and the version is known; by a fetch
    #: where one call reads many records, or of a single record; else by a poll. A system that was never polled is not
    #: polled for this either, because its first poll reads everything: `auto` then fetches, see `look_limit`.
    look_first: ClassVar[Literal["auto", "poll", "fetch", "never"]] = "auto"
    #: Up to how many pending records `auto` fetches one by one, where there is no other way. A larger backlog is sent
    #: without a look. 0: never.
    look_limit: ClassVar[Annotated[int, AtLeast(ge=0)]] = 100

    def __init__(self, client: System) -> None:
        self.client: Any = client
        #: The mapping in force; the conductor replaces it when an operator saves a new version.
        self.mapper: Mapper = self.default_mapper

    @classmethod
    def connected(cls, client: Any) -> Subscriber | None:
        """Return the subscriber for this client, or None if the settings of the system exclude it."""
        return cls(client)

    @classmethod
    def name(cls) -> str:
        """Return `system.catalogue`, the name of the subscriber and of its queue."""
        return f"{cls.system}.{cls.catalogue}"

    @cached_property
    def records(self) -> Catalogue:
        """The catalogue that this subscriber keeps in sync."""
        return CATALOGUES[self.catalogue]

    @cached_property
    def default_mapper(self) -> Mapper:
        """The mapping of the code, before any edit in the panel."""
        return Mapper(self.records, self.field_to_data)

    # --- decisions about a record -----------------------------------------------------------------

    def wants(self, record: Record) -> bool:
        """Whether this record belongs in the system."""
        return True

    def validate(self, data: Mapping[str, Any]) -> None:
        """Check `data` (nested) by `rules` before it is sent.

        Raises:
          Reject: the system would refuse it; `fields` has a message for each field.
        """
        check(self.rules, data)

    # --- hooks around the mapping -----------------------------------------------------------------

    def before_send(self, data: dict[str, Any], record: Record) -> dict[str, Any]:
        """Return the data (nested) to send for this record; `data` is the result of the mapping.

        The result must depend on the record alone: the conductor also calls this to compare the two
        sides. Fields added to the mapped ones are sent with every call but not compared, so that a
        change of them alone is not delivered.
        """
        return data

    def after_receive(self, external: External) -> External:
        """Return the record to apply, made from the external one with `dataclasses.replace`.

        Called for every record with data that the system sends: in webhooks, polls, fetches and the
        responses to writes.
        """
        return external

    # --- calls ------------------------------------------------------------------------------------

    def create(self, item: Item) -> External:
        """Create the external record, and return it with its id."""
        raise NotImplementedError

    def update(self, item: Item) -> External | None:
        """Update the linked external record; return it as it is now, if the system's response has it."""
        raise NotImplementedError

    def delete(self, item: Item) -> None:
        """Delete the linked external record; do nothing, or raise `Gone`, if it is deleted already."""
        raise NotImplementedError

    def is_restored(self, external: External) -> bool:
        """Whether a record that `delete` was called for, and that can still be read, was restored there.

        Return False for the state in which `delete` leaves records that the system does not remove, such as archived.
        """
        return True

    def fetch(self, external_id: str) -> External:
        """Return the external record as it is now. Raises `Gone`."""
        raise NotImplementedError

    def list_all(self, position: dict[str, Any] | None) -> Iterator[Page]:
        """Yield pages of all external records, after a page's position, without side effects.

        The default polls from the beginning. Override it if a poll of this system has side effects.
        """
        return self.changed_since(position)

    def bulk_fetch(self, external_ids: Sequence[str]) -> list[External | SyncError]:
        """Return an outcome for each id, in order. Override it if one call can read several records."""
        return one_by_one(self.fetch, external_ids, self.client.pace)

    def changed_at(self, external_id: str, since: datetime | None) -> datetime | None:
        """Return when a record was last changed, after `since`, where `fetch` does not say so; None: it is unknown."""
        return None

    def find(self, item: Item) -> External | None:
        """Return the external record with our mark, or another unique value; called before a create is retried."""
        return None

    def find_matching(self, item: Item) -> list[External]:
        """Return the external records with the item's match values; called where the system holds it already."""
        return []

    @property
    def mark_path(self) -> str:
        """The field with `Item.mark`; empty where there is none, or where it need not be checked."""
        return ""

    @property
    def can_fetch(self) -> bool:
        """Whether the subscriber implements `fetch`."""
        return type(self).fetch is not Subscriber.fetch

    @property
    def reads_many(self) -> bool:
        """Whether one call of `bulk_fetch` reads many records."""
        return type(self).bulk_fetch is not Subscriber.bulk_fetch

    @property
    def is_conditional(self) -> bool:
        """Whether writes name the record's version, `item.version`, and raise `Outdated` if it has another one by now.

        Records then have their `version` where `fetch` or the response to a write returns them.
        """
        return False

    @property
    def can_list(self) -> bool:
        """Whether the subscriber can list the records of the system."""
        kind = type(self)
        return kind.list_all is not Subscriber.list_all or kind.changed_since is not Subscriber.changed_since

    @property
    def can_identify(self) -> bool:
        """Whether `find` or `find_matching` can find a record that was created, and whose id is unknown."""
        kind = type(self)
        return kind.find is not Subscriber.find or kind.find_matching is not Subscriber.find_matching

    def match_values(self, data: Mapping[str, Any]) -> Flat:
        """Return the match values in nested external data, by path; nothing where one of them is empty."""
        paths = [path for path in map(self.mapper.path_of, self.match_on) if path is not None]
        values = {path: pick(data, path) for path in paths}
        return {} if any(value is MISSING or is_empty(value) for value in values.values()) else values

    def is_match(self, data: Mapping[str, Any], wanted: Flat) -> bool:
        """Whether an external record has these match values, however they are written."""
        values = self.match_values(data)
        return bool(values) and self.match_forms(values) == self.match_forms(wanted)

    def match_forms(self, values: Flat) -> Flat:
        """Return match values by path in the form in which they are compared; text without a kind as names are."""
        kinds = {self.mapper.path_of(column): self.records.match_as.get(column, "name") for column in self.match_on}
        return {path: match_form(kinds.get(path), value) for path, value in values.items()}

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
        """Yield pages of records that changed since a position (None: from the beginning), oldest first.

        Include the records that changed exactly at the position, so that ties are not lost.
        """
        raise NotImplementedError

    def replaces(self, name: str) -> bool:
        """Whether `update` replaces this nested object as a whole, so that it must hold what is not mapped as well.

        False for an object that the system merges itself, and for one that `update` writes in a way of its own.
        """
        return True

    def merge(self, theirs: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return `changes` with their nested objects merged onto those of the external record as just fetched."""
        return {
            name: self.mapper.onto(theirs.get(name), value, name) if self.replaces(name) else value
            for name, value in changes.items()
        }

    # --- called by `./syncflow check` -------------------------------------------------------------

    def describe(self) -> Mapping[str, ExternalField] | None:
        """Return the fields of external records by dotted path; None if they are unknown.

        The default reads them from one record. Override it if the system has an API for this.
        """
        for page in self.list_all(None):
            for external in page.records:
                if not external.deleted and external.data:
                    return fields_of(external.data)
            break
        return None

    def missing_permissions(self) -> list[str]:
        """Return a sentence for each permission that the login lacks, as far as it can be found without writing."""
        return []

    # --- bulk calls: the only ones that the conductor makes -----------------------------------------

    def batch_size(self, waiting: int) -> int:
        """Return the number of records for one call of `bulk_*` while `waiting` records are pending."""
        return self.bulk_size

    def bulk_create(self, items: Sequence[Item]) -> list[External | SyncError]:
        """Create these records and return an outcome for each, in order. Override it for a system with bulk calls."""
        return one_by_one(self.create, items, self.client.pace)

    def bulk_update(self, items: Sequence[Item]) -> list[External | SyncError | None]:
        """Update these records and return an outcome for each, in order."""
        return one_by_one(self.update, items, self.client.pace)

    def bulk_delete(self, items: Sequence[Item]) -> list[SyncError | None]:
        """Delete these records and return an outcome for each, in order."""
        return one_by_one(self.delete, items, self.client.pace)


def normalize_incoming(subscriber: Subscriber, external: External, *, complete: bool = False) -> External:
    """Return an external record after the subscriber's `after_receive`, which runs only on records with data.

    It holds none of our long secrets, which a system might quote in it.

    `complete`: it is a whole record, as from `fetch` or a list, in which `absent` says what a missing field means.

    Raises:
      TypeError: `after_receive` returned something else than an `External`.
    """
    if not external.data:
        return external
    normalized = subscriber.after_receive(replace(external, data=hide_in_data(external.data)))
    if not isinstance(normalized, External):
        raise TypeError(f"after_receive of {subscriber.name()} returned a {type(normalized).__name__}, not an External")
    if complete and subscriber.absent == "empty" and not normalized.deleted:
        return replace(normalized, data=subscriber.mapper.completed(normalized.data))
    return normalized
