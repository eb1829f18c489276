"""The values that travel through this folder: an incoming record, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from conductor.links.lost import Lost
from conductor.links.relations import Reference
from subscribers.base import Subscriber
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.values import Flat
from subscribers.records import External


@dataclass(frozen=True)
class Incoming:
    """One external record on its way in."""

    subscriber: Subscriber
    external: External
    mapper: Mapper
    #: The record was just fetched under a lease, so this is its newest state.
    newest: bool = False
    #: A poll just read the record, so it exists. An event does not prove that: it may be late.
    polled: bool = False
    #: The lease under which the record was fetched.
    token: str | None = None
    #: The event because of which the record was fetched.
    event: External | None = None
    #: The inbox row that holds the event.
    inbox_id: int | None = None
    #: What a link knew of this record before it was taken for gone: an operator says that it is still the same one.
    lost: Lost | None = None
    #: Fields that are left out -> the related record that is not linked yet.
    awaited: Mapping[str, Reference] = field(default_factory=dict)

    @cached_property
    def flat(self) -> Flat:
        """The mapped fields of the external record, by dotted path."""
        return self._fields(self.external)

    @cached_property
    def event_flat(self) -> Flat:
        """The mapped fields that the event itself carried; without a fetch the same as `flat`."""
        return self.flat if self.event is None else self._fields(self.event)

    def _fields(self, external: External) -> Flat:
        flat = self.mapper.flatten(external.data)
        return {path: value for path, value in flat.items() if path not in self.awaited} if self.awaited else flat

    @property
    def first_awaited(self) -> Reference | None:
        """A related record that is not linked yet, if a field is left out because of one."""
        return next(iter(self.awaited.values()), None)

    @property
    def reference(self) -> Reference:
        """The external record as others refer to it."""
        return Reference(self.subscriber.name(), self.external.id)

    @property
    def edited_at(self) -> datetime | None:
        """When the record was last edited there; None if only the time of the answer is known."""
        if self.external.is_exact:
            return self.external.at
        return self.event.at if self.event is not None else None

    @property
    def event_at(self) -> datetime | None:
        """The time of the event, by the system's clock."""
        return (self.event or self.external).at


@dataclass(frozen=True)
class Applied:
    """What became of an incoming record.

    `owed` names the link to publish after the commit, if any. `awaits` is a related record whose reference was left
    out. `woken` are the inbox rows that waited for this record, to be published as well.
    """

    outcome: str
    message: str
    owed: tuple[str, str] | None = None
    awaits: Reference | None = None
    woken: tuple[int, ...] = ()


@dataclass(frozen=True)
class NeedsFetch:
    """The event does not prove the record's newest state, for this reason: fetch the record and apply that."""

    reason: str


@dataclass(frozen=True)
class Postponed:
    """The system may not be called now, for this reason: try again after `after_seconds`."""

    reason: str
    after_seconds: float


class HeldByDeleteGuard(Exception):
    """The delete guard holds a deletion until an operator allows it.

    An exception, because the transaction has to roll back: no record of a held page is applied.
    """
