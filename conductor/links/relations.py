"""Relations: an invoice needs its customer's id in the same system, so the customer is delivered first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.links import state
from conductor.links.cycles import Cycle, chain_from, find_cycle
from conductor.links.row import LinkRow, link_row
from conductor.links.rules import lock_rules
from i18n import gettext
from models.bulk import in_values
from models.catalogues import Record
from models.ledger import DeadLetter, Link
from subscribers.base import Subscriber
from subscribers.errors import Reject, Retry, SyncError
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.paths import MISSING, nest, pick
from subscribers.mapping.values import Flat, plain
from subscribers.rules import required_paths


@dataclass
class Related:
    """What a batch knows of related records: (catalogue, record) -> its id in the system, where it is linked."""

    ids: dict[tuple[str, str], str] = field(default_factory=dict)


class WaitsFor(SyncError):
    """The record cannot be sent before a related one. See `Relations.judge`."""

    counts_attempt = False
    code = "waits_for_relation"

    def __init__(self, catalogue: str, record_id: str) -> None:
        super().__init__(gettext("it waits for its {catalogue} {record_id}", catalogue=catalogue, record_id=record_id))
        self.catalogue = catalogue
        self.record_id = record_id


@dataclass(frozen=True)
class Reference:
    """An external record that another one refers to, by the subscriber that follows it."""

    subscriber: str
    external_id: str

    @property
    def key(self) -> str:
        """The reference as one text."""
        return f"{self.subscriber} {self.external_id}"

    def __str__(self) -> str:
        return f"its {self.subscriber.partition('.')[2]} {self.external_id}"


class Unlinked(Retry):
    """The record cannot be applied before a related external record is linked."""

    def __init__(self, related: Reference) -> None:
        super().__init__(f"{related} is not linked yet")
        self.related = related
        #: The record that refers to it, where that is known.
        self.own: Reference | None = None


@dataclass
class Verdict:
    """The decision about a record that waits: `error` fails it, `skip` skips it, else it waits for the link `parent`.

    Without `parent` it no longer needs to wait. `publish` is the link (subscriber, record) to publish now.
    """

    error: SyncError | None = None
    skip: str | None = None
    unsubscription_id: int | None = None
    parent: int | None = None
    publish: tuple[str, str] | None = None
    #: Why it waits, where that is not only its related record.
    reason: str | None = None


class Relations:
    """Loads the links of related records, and decides about records that wait for one."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def load(
        self, connection: sa.Connection, subscriber: Subscriber, mapper: Mapper, records: Iterable[Record]
    ) -> Related:
        """Return the ids in the system of all linked records that these records point to."""
        wanted: defaultdict[str, set[str]] = defaultdict(set)
        for record in records:
            for catalogue, record_id in mapper.references(record):
                wanted[catalogue].add(record_id)
        related = Related()
        for catalogue, ids in wanted.items():
            name = f"{subscriber.system}.{catalogue}"
            statement = sa.select(Link.record_id, Link.external_id).where(
                Link.subscriber == name,
                Link.record_id.in_(ids),
                Link.external_id.is_not(None),
                Link.unlinked_at.is_(None),
            )
            for row in connection.execute(statement):
                related.ids[catalogue, row.record_id] = str(row.external_id)
        return related

    def keys(
        self, connection: sa.Connection, subscriber: Subscriber, mapper: Mapper, flat: Mapping[str, Any]
    ) -> dict[tuple[str, str], str]:
        """Return our ids of the related records that an external one points to.

        Raises:
          Unlinked: one of them is not linked yet.
        """
        keys: dict[tuple[str, str], str] = {}
        for catalogue, external_id in set(mapper.external_references(flat)):
            related = Reference(f"{subscriber.system}.{catalogue}", external_id)
            if (record_id := self.record_of(connection, related)) is None:
                raise Unlinked(related)
            keys[catalogue, external_id] = record_id
        return keys

    def unlinked(
        self, connection: sa.Connection, subscriber: Subscriber, mapper: Mapper, flat: Mapping[str, Any]
    ) -> dict[str, Reference]:
        """Return the references of an external record, by field, that may be left out until they are linked."""
        found: dict[str, Reference] = {}
        for path, catalogue, external_id in mapper.optional_references(flat):
            related = Reference(f"{subscriber.system}.{catalogue}", external_id)
            if self.can_pull(related) and self.record_of(connection, related) is None:
                found[path] = related
        return found

    def record_of(self, connection: sa.Connection, external: Reference) -> str | None:
        """Return the record of ours that is linked to an external one, or was and still exists."""
        subscriber = self.context.subscribers.get(external.subscriber)
        known = (Link.subscriber == external.subscriber, Link.external_id == external.external_id)
        link = connection.execute(sa.select(Link.record_id, Link.unlinked_at).where(*known)).one_or_none()
        if link is None:
            return None
        if link.unlinked_at is not None and subscriber is not None:
            # The record of a link that was removed may be deleted too.
            return next(iter(subscriber.records.keep(connection, [link.record_id], ())), None)
        return str(link.record_id)

    def can_pull(self, related: Reference) -> bool:
        """Whether a record can be read from its system."""
        subscriber = self.context.subscribers.get(related.subscriber)
        return subscriber is not None and subscriber.can_fetch

    @staticmethod
    def check(subscriber: Subscriber, mapper: Mapper, link: LinkRow, record: Record, related: Related) -> Record:
        """Return the record as it is sent: that of a link that goes first lacks its references to unknown records.

        Raises:
          WaitsFor: a related record is not in the system.
        """
        if link.goes_first:
            record = mapper.without_references(record, related.ids, required_paths(subscriber.rules))
        for catalogue, record_id in mapper.references(record):
            if (catalogue, record_id) not in related.ids:
                raise WaitsFor(catalogue, record_id)
        return record

    def judge(self, connection: sa.Connection, subscriber: Subscriber, link: LinkRow, wait: WaitsFor) -> Verdict:
        """Decide about a record that waits, in the transaction that records the decision."""
        name = f"{subscriber.system}.{wait.catalogue}"
        what = f"its {wait.catalogue} {wait.record_id}"
        if name not in self.context.subscribers:
            return Verdict(
                Reject(
                    f"it points to {what}, but {subscriber.system} has no subscriber for that", code="relation_missing"
                )
            )
        parent = _link_of(connection, name, wait.record_id) or self._owe(connection, name, wait)
        if parent is None:
            return Verdict(Reject(f"{what} does not exist", code="relation_missing"))
        if parent.is_owed and (cycle := find_cycle(connection, self.context, link, parent)) is not None:
            return self._break(connection, link, parent, cycle)
        if parent.dead_at is not None:
            return Verdict(Reject(_why_dead(connection, what, parent), code="relation_dead"), parent=parent.id)
        if parent.is_owed:
            return Verdict(parent=parent.id, publish=(name, wait.record_id))
        if parent.unsubscription_id is not None:
            if not lock_rules(connection, [parent.unsubscription_id]):
                return Verdict(publish=(subscriber.name(), link.record_id))  # it is being lifted
            skip = f"{what} is not in {subscriber.system}: unsubscription #{parent.unsubscription_id} holds it back"
            return Verdict(skip=skip, unsubscription_id=parent.unsubscription_id)
        if parent.is_linked:
            return Verdict(publish=(subscriber.name(), link.record_id))  # it was delivered meanwhile
        why = f"{what} is not in {subscriber.system}: unlinked, filtered out or deleted"
        return Verdict(Reject(why, code="relation_missing"), parent=parent.id)

    def _owe(self, connection: sa.Connection, name: str, wait: WaitsFor) -> LinkRow | None:
        """Return the link of a related record that was never owed, and owe it; None if the record does not exist."""
        subscriber = self.context.subscribers[name]
        if wait.record_id not in subscriber.records.read(connection, [wait.record_id]):
            return None
        state.owe_first(connection, name, wait.record_id, self.context.clock())
        return _link_of(connection, name, wait.record_id)

    def _break(self, connection: sa.Connection, link: LinkRow, parent: LinkRow, cycle: Cycle) -> Verdict:
        """Have one record of a cycle go first, with its reference empty."""
        first = cycle.first
        if first is None:
            message = f"{cycle}, and every one of these references is required"
            return Verdict(Reject(message, code="relation_cycle"), parent=parent.id)
        publish = (first.subscriber, first.record_id)
        if first.id == link.id:
            return Verdict(parent=link.id, publish=publish, reason=f"{cycle}: it goes first, without the reference")
        state.go_first(connection, first.id, self.context.clock())
        return Verdict(parent=parent.id, publish=publish, reason=f"{cycle}: {first.label} goes first")

    def are_waited_for(self, subscriber: Subscriber) -> bool:
        """Return whether records of other catalogues point to the records of this subscriber."""
        return any(subscriber.catalogue in s.mapper.relations() for s in self.context.of_system(subscriber.system))

    def wake(
        self, connection: sa.Connection, subscriber: Subscriber, delivered: list[int], ended: list[int]
    ) -> list[tuple[str, str]]:
        """Free the links that wait for these; return them, for the caller to publish. See `state.wake`."""
        if not self.are_waited_for(subscriber):
            return []
        return state.wake(connection, delivered, ended, self.context.clock())


def _link_of(connection: sa.Connection, subscriber: str, record_id: str) -> LinkRow | None:
    statement = sa.select(Link.__table__).where(Link.subscriber == subscriber, Link.record_id == record_id)
    row = connection.execute(statement).one_or_none()
    return None if row is None else link_row(row)


def _why_dead(connection: sa.Connection, what: str, parent: LinkRow) -> str:
    """Return the message about a related record that is a dead letter, with the reason at the end of the chain."""
    chain = chain_from(connection, parent.id)
    ids = [one.dead_letter_id for one in chain if one.dead_letter_id is not None]
    known = sa.select(DeadLetter.id, DeadLetter.code, DeadLetter.message).where(
        in_values(connection, DeadLetter.id, ids)
    )
    letters = {row.id: row for row in connection.execute(known)}
    for link in chain:
        letter = letters.get(link.dead_letter_id)
        if letter is not None and letter.code != "relation_dead":
            through = "" if link.id == parent.id else f" waits for {link.label}, which"
            return f"{what}{through} is a dead letter: {letter.message}"
    return f"{what} is a dead letter"


def our_side(
    subscriber: Subscriber, mapper: Mapper, record: Record, related: Related, *, strict: bool = False
) -> tuple[Flat, dict[str, Any]]:
    """Return our side of a record, flat and nested: mapped, with its relations, and changed by `before_send`.

    Without `strict`, for a merge, it has only the fields that can be mapped.
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
