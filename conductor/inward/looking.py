"""Looking before writing: edits made in a system that no event has reported are merged before ours overwrite them.

The look comes before the batch takes its leases. What was edited there is applied like any event, by the policies of
its fields, and the batch is planned again afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.inward.inbox import InboxProcessor
from conductor.inward.incoming import Postponed
from conductor.inward.merging import newest_edit
from conductor.inward.polling import Polling
from conductor.links import leases, state
from conductor.links.row import LinkRow
from conductor.mappings.store import Mappings
from conductor.systems.circuit_breaker import CircuitBreaker
from conductor.systems.concurrency import ConcurrencyLimiter
from conductor.systems.outages import OutageDetector
from models.ledger import Cursor, Link
from subscribers.base import Subscriber, normalize_incoming
from subscribers.calls import call_safely
from subscribers.errors import Gone, Reject, Retry, SyncError
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.values import Flat, is_empty, same
from subscribers.records import External


@dataclass(frozen=True)
class Looked:
    """What a look found: errors of records that may not be written now, by link."""

    errors: dict[int, SyncError]


class Looking:
    """Sees what a system holds before a batch overwrites it."""

    def __init__(
        self,
        context: Context,
        breaker: CircuitBreaker,
        mappings: Mappings,
        polling: Polling,
        inbox: InboxProcessor,
        concurrency: ConcurrencyLimiter,
        outages: OutageDetector,
    ) -> None:
        self.context = context
        self.breaker = breaker
        self.mappings = mappings
        self.polling = polling
        self.inbox = inbox
        self.concurrency = concurrency
        self.outages = outages

    def look(
        self, subscriber: Subscriber, updates: Sequence[LinkRow], deletes: Sequence[LinkRow], *, probing: bool
    ) -> Looked | None:
        """Merge what was edited in these records; None if a poll since our change has shown it already.

        Of a record to be deleted, an edit made there is only reported: it cannot be merged into a deleted record.
        """
        way = look_of(subscriber)
        if way == "poll":
            if (cursor := self._cursor(subscriber)) is None:
                return None
            if not deletes and all(_is_seen(link, cursor.seen_until) for link in updates):
                return None
            if updates and not probing and self._poll(subscriber):
                updates = []
        if way == "never":
            return None
        return self._fetch(subscriber, [*updates], [*deletes], probing) if updates or deletes else Looked({})

    # --- by a poll ------------------------------------------------------------------------------------

    def _cursor(self, subscriber: Subscriber) -> Any:
        """Return the cursor of a subscriber that was polled before: the first poll reads everything."""
        polled = (Cursor.subscriber == subscriber.name(), Cursor.position.is_not(None))
        with self.context.database.read_autocommit() as connection:
            return connection.execute(sa.select(Cursor.seen_until).where(*polled)).one_or_none()

    def _poll(self, subscriber: Subscriber) -> bool:
        """Poll once for the whole batch; return False if that is not possible now, so that its records are fetched."""
        try:
            turn = self.polling.look(subscriber)
        except SyncError:
            return False  # recorded; the breaker knows if the system is down
        for inbox_id in turn.postponed if turn is not None else ():
            self.inbox.process(inbox_id)
        return turn is not None

    # --- by fetching ----------------------------------------------------------------------------------

    def _fetch(self, subscriber: Subscriber, updates: list[LinkRow], deletes: list[LinkRow], probing: bool) -> Looked:
        links = [*updates, *deletes]
        found = self._read(subscriber, [str(link.external_id) for link in links])
        down = next((one for one in found if isinstance(one, SyncError) and one.pauses_system), None)
        if down is not None:
            self.context.database.run_in_transaction(self.breaker.went_down, subscriber.system, down)
            return Looked({})
        if probing:
            self.context.database.run_in_transaction(self.breaker.succeeded, subscriber.system)
        with self.context.database.read() as connection:
            mapper = self.mappings.current(connection, subscriber.name())[0]
        errors: dict[int, SyncError] = {}
        for number, (link, theirs) in enumerate(zip(links, found, strict=True)):
            error = self._take(subscriber, mapper, link, theirs, is_delete=number >= len(updates))
            if error is not None:
                errors[link.id] = error
        return Looked(errors)

    def _read(self, subscriber: Subscriber, ids: list[str]) -> list[External | SyncError]:
        with self.concurrency.slot(subscriber.system):
            reads_many = type(subscriber).bulk_fetch is not Subscriber.bulk_fetch
            if reads_many:
                subscriber.client.pace()
            if len(ids) > 1 or reads_many:
                found = call_safely(subscriber.bulk_fetch, ids)
            else:
                subscriber.client.pace()
                found = [call_safely(subscriber.fetch, ids[0])]
        if not isinstance(found, SyncError) and len(found) != len(ids):
            found = Retry(f"{len(found)} records for {len(ids)} ids")
        if isinstance(found, SyncError):
            found = [found] * len(ids)
        explained: dict[int, SyncError] = {}
        for external_id, one in zip(ids, found, strict=True):
            if isinstance(one, SyncError) and one.may_be_outage and id(one) not in explained:
                explained[id(one)] = self.outages.explain(subscriber, one, external_id)
        return [explained.get(id(one), one) for one in found]

    def _take(
        self, subscriber: Subscriber, mapper: Mapper, link: LinkRow, theirs: External | SyncError, *, is_delete: bool
    ) -> SyncError | None:
        """Apply what a record holds; return an error if it may not be written now."""
        normal = call_safely(normalize_incoming, subscriber, theirs) if isinstance(theirs, External) else theirs
        if isinstance(normal, SyncError) and not isinstance(normal, Gone):
            return normal
        edited = edits(link, mapper.flatten(normal.data)) if isinstance(normal, External) else {}
        if isinstance(normal, External) and not edited:
            return None
        if is_delete:
            return self._edited_there(subscriber, mapper, link, normal, edited) if edited else None
        at = normal.at if isinstance(normal, External) else None
        if isinstance(normal, External) and not normal.is_exact:
            at = _known_time(call_safely(subscriber.changed_at, normal.id, link.synced_at))
        return self._merge(subscriber, External(str(link.external_id), at=at))

    def _merge(self, subscriber: Subscriber, event: External) -> SyncError | None:
        try:
            applied = self.inbox.refetch(subscriber, event.id, event.at)
        except leases.LinkLeased:
            return None  # another process delivers it, so it is not claimed here
        except SyncError as error:
            return error
        return Retry(applied.reason, after=applied.after_seconds) if isinstance(applied, Postponed) else None

    def _edited_there(
        self, subscriber: Subscriber, mapper: Mapper, link: LinkRow, theirs: External, edited: Flat
    ) -> SyncError | None:
        """Return the error of a deletion whose record was edited there meanwhile, unless the policies let ours win.

        Their values become the base, so that a retry by an operator deletes the record.
        """
        at = (
            theirs.at if theirs.is_exact else _known_time(call_safely(subscriber.changed_at, theirs.id, link.synced_at))
        )
        with self.context.database.write() as connection:
            ours_at = newest_edit(connection, subscriber, link.record_id)
            lost = [path for path in edited if not _ours_wins(mapper, path, ours_at, at)]
            if not lost:
                return None
            base = {"base": {**(link.base or {}), **edited}, "remote_values": None}
            unheld = (Link.id == link.id, leases.is_free(self.context.clock()))
            if connection.execute(sa.select(Link.id).where(*unheld).with_for_update()).first() is not None:
                state.write(connection, link.id, base)
        fields = {path: f"is {edited[path]!r} there" for path in lost}
        message = (
            f"it was edited in {subscriber.system} before our deletion: {', '.join(lost)}; retry to delete it anyway"
        )
        return Reject(message, fields=fields, code="edited_there")


def look_of(subscriber: Subscriber) -> str:
    """Return how a subscriber looks before it writes: `poll`, `fetch` or `never`."""
    kind = type(subscriber)
    if not subscriber.can_fetch:
        return "never"
    if subscriber.look_first != "auto":
        return subscriber.look_first
    if kind.bulk_fetch is not Subscriber.bulk_fetch:
        return "fetch"
    return "poll" if kind.changed_since is not Subscriber.changed_since else "never"


def edits(link: LinkRow, theirs: Flat) -> Flat:
    """Return the fields in which a record differs from what the link knows of it."""
    base, remote_values = link.base or {}, link.remote_values or {}
    return {
        path: value
        for path, value in theirs.items()
        if (not same(value, remote_values.get(path, base[path])) if path in base else not is_empty(value))
    }


def _is_seen(link: LinkRow, seen_until: datetime | None) -> bool:
    ours = link.published_at or link.owed_since
    return seen_until is not None and ours is not None and ours < seen_until


def _known_time(at: Any) -> datetime | None:
    return at if isinstance(at, datetime) else None


def _ours_wins(mapper: Mapper, path: str, ours_at: datetime | None, theirs_at: datetime | None) -> bool:
    if not mapper.accepts_inward(path):
        return True
    policy = mapper.entry(path).conflict
    older = ours_at is not None and theirs_at is not None and theirs_at <= ours_at
    return policy == "internal" or (policy == "newest" and (older or theirs_at is None))
