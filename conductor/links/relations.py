"""Relations: an invoice needs its customer's id in the same system, so the customer goes first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.links import state
from conductor.links.rules import lock_rules
from i18n import gettext
from models.catalogues import Record
from models.ledger import DeadLetter, Link
from subscribers.base import Subscriber
from subscribers.errors import Reject, Retry, SyncError
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.paths import MISSING, nest, pick
from subscribers.mapping.values import Flat, plain

#: Links followed to find a cycle.
_LONGEST_CHAIN = 20


@dataclass
class Related:
    """What a batch knows of related records: the system's ids, and the links of those without one."""

    ids: dict[tuple[str, str], str] = field(default_factory=dict)
    links: dict[tuple[str, str], Any] = field(default_factory=dict)


class WaitsFor(SyncError):
    """The record cannot be sent before a related one. See `Relations.judge`."""

    counts_attempt = False
    code = "waits_for_relation"

    def __init__(self, catalogue: str, record_id: str) -> None:
        super().__init__(gettext("it waits for its {catalogue} {record_id}", catalogue=catalogue, record_id=record_id))
        self.catalogue = catalogue
        self.record_id = record_id


@dataclass
class Verdict:
    """What becomes of a record that waits: `error` ends it, else it waits for the link `parent`; or for none."""

    error: SyncError | None = None
    skip: str | None = None
    unsubscription_id: int | None = None
    parent: int | None = None
    announce: tuple[str, str] | None = None


class Relations:
    """Looks up related records' links, and decides about records that wait for one."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def load(
        self, connection: sa.Connection, subscriber: Subscriber, mapper: Mapper, records: Iterable[Record]
    ) -> Related:
        """The links of all records these ones point to."""
        wanted: defaultdict[str, set[str]] = defaultdict(set)
        for record in records:
            for catalogue, record_id in mapper.references(record):
                wanted[catalogue].add(record_id)
        related = Related()
        for catalogue, ids in wanted.items():
            name = f"{subscriber.system}.{catalogue}"
            statement = sa.select(Link.__table__).where(Link.subscriber == name, Link.record_id.in_(ids))
            for row in connection.execute(statement):
                related.links[catalogue, row.record_id] = row
                if row.external_id is not None and row.unlinked_at is None:
                    related.ids[catalogue, row.record_id] = row.external_id
        return related

    def keys(
        self, connection: sa.Connection, subscriber: Subscriber, mapper: Mapper, flat: Mapping[str, Any]
    ) -> dict[tuple[str, str], str]:
        """Our ids of the related records an external one points to.

        Raises:
          Retry: one of them is not known here yet.
        """
        keys: dict[tuple[str, str], str] = {}
        for catalogue, external_id in set(mapper.external_references(flat)):
            name = f"{subscriber.system}.{catalogue}"
            statement = sa.select(Link.record_id).where(Link.subscriber == name, Link.external_id == external_id)
            record_id = connection.execute(statement).scalar()
            if record_id is None:
                raise Retry(f"its {catalogue} {external_id} is not known here yet")
            keys[catalogue, external_id] = record_id
        return keys

    @staticmethod
    def check(mapper: Mapper, record: Record, related: Related) -> None:
        """Raise `WaitsFor` for the first related record that is not in the system."""
        for catalogue, record_id in mapper.references(record):
            if (catalogue, record_id) not in related.ids:
                raise WaitsFor(catalogue, record_id)

    def judge(self, connection: sa.Connection, subscriber: Subscriber, link: Any, wait: WaitsFor) -> Verdict:
        """Decide, in the transaction that writes it down, what becomes of a record that waits."""
        name = f"{subscriber.system}.{wait.catalogue}"
        what = f"its {wait.catalogue} {wait.record_id}"
        if name not in self.context.subscribers:
            return Verdict(Reject(f"it points to {what}, but {subscriber.system} has no subscriber for that"))
        statement = sa.select(Link.__table__).where(Link.subscriber == name, Link.record_id == wait.record_id)
        parent = connection.execute(statement).one_or_none()
        if parent is None:
            parent = self._owe(connection, name, wait)
            if parent is None:
                return Verdict(Reject(f"{what} does not exist"))
        if parent.dead_at is not None:
            letter = sa.select(DeadLetter.message).where(DeadLetter.id == parent.dead_letter_id)
            why = connection.execute(letter).scalar() or "no reason is known"
            return Verdict(Reject(f"{what} is a dead letter: {why}"), parent=parent.id)
        if parent.owed_change > parent.synced_change:
            if self._is_cycle(connection, link.id, parent):
                return Verdict(Reject(f"it and {what} wait for one another"))
            return Verdict(parent=parent.id, announce=(name, wait.record_id))
        if parent.unsubscription_id is not None:
            if not lock_rules(connection, [parent.unsubscription_id]):
                return Verdict(announce=(subscriber.name(), link.record_id))  # it is being lifted
            skip = f"{what} is not in {subscriber.system}: unsubscription #{parent.unsubscription_id} covers it"
            return Verdict(skip=skip, unsubscription_id=parent.unsubscription_id)
        if parent.external_id is not None and parent.unlinked_at is None:
            return Verdict(announce=(subscriber.name(), link.record_id))  # it came meanwhile
        return Verdict(Reject(f"{what} is not in {subscriber.system}: unlinked, unwanted or deleted"), parent=parent.id)

    def _owe(self, connection: sa.Connection, name: str, wait: WaitsFor) -> Any:
        """A link for a related record nobody has asked to sync so far, owed from now on."""
        subscriber = self.context.subscribers[name]
        if wait.record_id not in subscriber.records.read(connection, [wait.record_id]):
            return None
        state.owe_first(connection, name, wait.record_id, self.context.clock())
        statement = sa.select(Link.__table__).where(Link.subscriber == name, Link.record_id == wait.record_id)
        return connection.execute(statement).one()

    @staticmethod
    def _is_cycle(connection: sa.Connection, link_id: int, parent: Any) -> bool:
        blocked_by = parent.blocked_by
        for _ in range(_LONGEST_CHAIN):
            if blocked_by is None:
                return False
            if blocked_by == link_id:
                return True
            blocked_by = connection.execute(sa.select(Link.blocked_by).where(Link.id == blocked_by)).scalar()
        return True

    def are_waited_for(self, subscriber: Subscriber) -> bool:
        """Whether records of other catalogues point to its records."""
        return any(subscriber.catalogue in s.mapper.relations() for s in self.context.of_system(subscriber.system))

    def wake(
        self, connection: sa.Connection, subscriber: Subscriber, delivered: list[int], ended: list[int]
    ) -> list[tuple[str, str]]:
        """Links that waited for these: to be announced. What died with its parent lives when that is delivered."""
        if not self.are_waited_for(subscriber):
            return []
        return state.wake(connection, delivered, ended, self.context.clock())


def our_side(
    subscriber: Subscriber, mapper: Mapper, record: Record, related: Related, *, strict: bool = False
) -> tuple[Flat, dict[str, Any]]:
    """Our side of a record, flat and nested: as it is mapped, relations included, and as `before_send` has it then.

    Without `strict`, for a merge, it is what can be mapped.
    """
    flat = mapper.outward(record, strict=strict, links=related.ids)
    if mapper.paths_are_single and type(subscriber).before_send is Subscriber.before_send:
        return flat, nest(flat)
    data = subscriber.before_send(nest(flat), record)
    if not isinstance(data, dict):
        raise TypeError(f"before_send of {subscriber.name()} returned a {type(data).__name__}, not a dict")
    found = {path: pick(data, path) for path in flat}
    flat = {path: plain(value) for path, value in found.items() if value is not MISSING}
    return flat, nest(flat, onto=data)
