"""Looking before writing: edits made in a system that no event has reported are merged before ours overwrite them.

The look comes before the batch takes its leases. What was edited there is applied like any event, by the policies of
its fields, and the batch is planned again afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, cast

import sqlalchemy as sa

from conductor.context import Context
from conductor.inward.inbox import InboxProcessor, waiting_ids
from conductor.inward.incoming import Postponed
from conductor.inward.merging import by_our_clock, newest_edit
from conductor.inward.polling import NOT_SINCE_START, Polling, Turn
from conductor.links import leases, state
from conductor.links.merge import unseen_edits
from conductor.links.row import LinkRow
from conductor.links.status import PENDING_LINKS
from conductor.mappings.store import Mappings
from conductor.systems.circuit_breaker import CircuitBreaker
from conductor.systems.concurrency import ConcurrencyLimiter
from conductor.systems.outages import OutageDetector
from models.bulk import in_values
from models.ledger import Cursor, Inbox, Link
from models.query_hints import range_equals
from subscribers.base import Subscriber, normalize_incoming
from subscribers.calls import call_safely
from subscribers.errors import Gone, Reject, Retry, SyncError
from subscribers.mapping.mapper import Mapper
from subscribers.records import External

#: How long a batch waits for the poll of another thread or process, and how often it asks whether that has ended.
_MOST_POLL_SECONDS = 5.0
_PAUSE_SECONDS = 0.02


@dataclass(frozen=True)
class Looked:
    """What a look found, by link: errors of records that may not be written now, and records that others hold."""

    errors: dict[int, SyncError] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class _Needed:
    """The links of records to fetch; with `polls`, a poll shows the updates as well."""

    updates: Sequence[LinkRow]
    deletes: Sequence[LinkRow]
    polls: bool = False


@dataclass(eq=False)
class RemoteEdits:
    """Sees what a system holds before a batch overwrites it."""

    context: Context
    breaker: CircuitBreaker
    mappings: Mappings
    polling: Polling
    inbox: InboxProcessor
    concurrency: ConcurrencyLimiter
    outages: OutageDetector

    def look(
        self,
        subscriber: Subscriber,
        updates: Sequence[LinkRow],
        deletes: Sequence[LinkRow],
        creates: Sequence[LinkRow],
        *,
        probing: bool,
    ) -> Looked | None:
        """Merge what was edited in these records; None if nothing has to be seen, or a poll has shown it already.

        Of a record to be deleted, an edit made there is only reported: it cannot be merged into a deleted record.
        Records to be created wait for the first poll after a start, which may link them.
        """
        way = look_of(subscriber)
        cursor = self._cursor(subscriber) if creates or way in ("poll", "single") else None
        starts = bool(creates) and way != "never" and cursor is not None and cursor.seen_until == NOT_SINCE_START
        needed = self._needed(subscriber, way, cursor, updates, deletes)
        if not (needed.updates or needed.deletes or (starts and not probing)):
            return None
        looked = Looked()
        if (starts or needed.polls) and not probing:
            unapplied = self._poll(subscriber, [*updates, *deletes, *creates])
            if unapplied is not None and way != "condition":
                needed = replace(needed, updates=[one for one in needed.updates if one.external_id in unapplied])
            elif unapplied is None and starts and self._is_being_polled(subscriber):
                looked.waiting.update(link.id for link in creates)
        self._fetch(subscriber, needed, probing, looked)
        return looked

    def _needed(
        self, subscriber: Subscriber, way: str, cursor: Any, updates: Sequence[LinkRow], deletes: Sequence[LinkRow]
    ) -> _Needed:
        """Return which records have to be seen, and whether by a poll if that is possible now."""
        if way == "condition":
            return _Needed([*filter(_lacks_version, updates)], [*filter(_lacks_version, deletes)])
        if way == "fetch":
            return _Needed(updates, deletes)
        if way == "never" or (cursor is None and (way == "poll" or self._is_backlog(subscriber))):
            return _Needed([], [])
        if cursor is None:
            return _Needed(updates, deletes)
        unseen = [link for link in updates if not _is_seen(link, cursor.seen_until)]
        waiting = self._waiting(subscriber) if len(unseen) < len(updates) else set()
        unapplied = [one for one in updates if _is_seen(one, cursor.seen_until) and one.external_id in waiting]
        if way == "single":
            return _Needed([*unseen, *unapplied], deletes, polls=len(unseen) > 1)
        polls = bool(unseen) or not all(_is_seen(link, cursor.seen_until) for link in deletes)
        return _Needed([*unseen, *unapplied], deletes, polls)

    # --- by a poll ------------------------------------------------------------------------------------

    def _cursor(self, subscriber: Subscriber) -> Any:
        """Return the cursor of a subscriber that was polled before: the first poll reads everything."""
        if type(subscriber).changed_since is Subscriber.changed_since:
            return None
        polled = (Cursor.subscriber == subscriber.name(), Cursor.position.is_not(None))
        with self.context.database.read_autocommit() as connection:
            return connection.execute(sa.select(Cursor.seen_until).where(*polled)).one_or_none()

    def _poll(self, subscriber: Subscriber, links: Sequence[LinkRow]) -> set[str] | None:
        """Poll once for the whole batch, or wait for a poll of another thread or process that shows these links.

        Return the external ids of records that the poll read and could not apply; None if no poll was completed, so
        that the records are fetched.
        """
        deadline = time.monotonic() + _MOST_POLL_SECONDS
        while True:
            try:
                turn = self.polling.look(subscriber)
            except SyncError:
                return None  # recorded; the breaker knows if the system is down
            if turn is not None:
                # A poll whose turn was lost, or that the delete guard ended, has not read all pages.
                cursor = self._cursor(subscriber)
                is_complete = cursor is not None and cursor.seen_until is not None and cursor.seen_until >= turn.began
                return self._unapplied(subscriber, turn) if is_complete else None
            if not self._is_being_polled(subscriber):
                return None
            while self._is_being_polled(subscriber):
                if time.monotonic() > deadline or self.context.stopping.wait(_PAUSE_SECONDS):
                    return None
            cursor = self._cursor(subscriber)
            if cursor is not None and all(_is_seen(link, cursor.seen_until) for link in links):
                return self._waiting(subscriber)

    def _unapplied(self, subscriber: Subscriber, turn: Turn) -> set[str]:
        """Apply the records that a poll has postponed; return the external ids of those that are not applied yet."""
        rows = {row for row in turn.postponed.values() if row is not None}
        for row in rows:
            self.inbox.process(row)
        with self.context.database.read_autocommit() as connection:
            done = sa.select(Inbox.id).where(in_values(connection, Inbox.id, list(rows)), Inbox.state == "done")
            applied = set(connection.execute(done).scalars())
        failed = {external_id for external_id, row in turn.postponed.items() if row not in applied}
        return failed | self._waiting(subscriber)

    def _waiting(self, subscriber: Subscriber) -> set[str]:
        """Return the external ids of records that a poll has read, and that wait in the inbox."""
        with self.context.database.read_autocommit() as connection:
            return waiting_ids(connection, subscriber.name())

    def _is_being_polled(self, subscriber: Subscriber) -> bool:
        until = sa.select(Cursor.polling_until).where(Cursor.subscriber == subscriber.name())
        with self.context.database.read_autocommit() as connection:
            polling_until = connection.execute(until).scalar()
        return polling_until is not None and polling_until > self.context.clock()

    def _is_backlog(self, subscriber: Subscriber) -> bool:
        """Whether more records are pending than may be fetched one by one."""
        most = subscriber.look_limit
        pending = (
            sa.select(Link.id).where(range_equals(Link.subscriber, subscriber.name()), *PENDING_LINKS).limit(most + 1)
        )
        with self.context.database.read_autocommit() as connection:
            return len(connection.execute(pending).all()) > most

    # --- by fetching ----------------------------------------------------------------------------------

    def _fetch(self, subscriber: Subscriber, needed: _Needed, probing: bool, looked: Looked) -> None:
        """Read these records and merge what was edited in them; note those that may not be written now."""
        links = [*needed.updates, *needed.deletes]
        if not links:
            return
        found = self._read(subscriber, [str(link.external_id) for link in links])
        down = next((one for one in found if isinstance(one, SyncError) and one.pauses_system), None)
        if down is not None:
            self.context.database.run_in_transaction(self.breaker.went_down, subscriber.system, down)
            return
        if probing:
            self.context.database.run_in_transaction(self.breaker.succeeded, subscriber.system)
        with self.context.database.read() as connection:
            mapper = self.mappings.current(connection, subscriber.name())[0]
        unedited: dict[int, str | None] = {}
        for number, (link, theirs) in enumerate(zip(links, found, strict=True)):
            normal = _normal(subscriber, theirs)
            if isinstance(normal, External) and _is_as_known(mapper, link, normal):
                unedited[link.id] = normal.version
                continue
            try:
                error = self._take(subscriber, mapper, link, normal, is_delete=number >= len(needed.updates))
            except leases.LinkLeased:
                looked.waiting.add(link.id)  # its holder may end before this edit is seen, and publishes the link then
                continue
            if error is not None:
                looked.errors[link.id] = error
        if subscriber.is_conditional and unedited:
            self.context.database.run_in_transaction(self._note_versions, unedited)

    def _note_versions(self, connection: sa.Connection, versions: dict[int, str | None]) -> None:
        """Note the versions of records of which all values are known; one that is being delivered is left alone."""
        free = sa.select(Link.id).where(Link.id.in_(versions), leases.is_free(self.context.clock()))
        # In one order in every process, so that relays and workers do not deadlock.
        ids = connection.execute(free.order_by(Link.record_id).with_for_update()).scalars().all()
        state.write_many(connection, [{"id": link_id, "remote_version": versions[link_id]} for link_id in ids])

    def _read(self, subscriber: Subscriber, ids: list[str]) -> list[External | SyncError]:
        with self.concurrency.slot(subscriber.system):
            if subscriber.reads_many:
                subscriber.client.pace()
            if len(ids) > 1 or subscriber.reads_many:
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
        """Apply what an edited record holds; return an error if it may not be written now.

        Raises:
          LinkLeased: another process delivers or merges the record.
        """
        if isinstance(theirs, SyncError) and not isinstance(theirs, Gone):
            return theirs
        if isinstance(theirs, External) and theirs.id != link.external_id:
            return self._merge(subscriber, External(str(link.external_id), at=theirs.at))
        if is_delete:
            return self._edited_there(subscriber, mapper, link, theirs) if isinstance(theirs, External) else None
        at = theirs.at if isinstance(theirs, External) else None
        if isinstance(theirs, External) and not theirs.is_exact:
            at = _known_time(call_safely(subscriber.changed_at, theirs.id, link.synced_at))
        return self._merge(subscriber, External(str(link.external_id), at=at))

    def _merge(self, subscriber: Subscriber, event: External) -> SyncError | None:
        try:
            applied = self.inbox.refetch(subscriber, event.id, event.at)
        except SyncError as error:
            return error
        return Retry(applied.reason, after=applied.after_seconds) if isinstance(applied, Postponed) else None

    def _edited_there(
        self, subscriber: Subscriber, mapper: Mapper, link: LinkRow, theirs: External
    ) -> SyncError | None:
        """Return the error of a deletion whose record was edited there meanwhile, unless the policies let ours win.

        Their values become the base, so that a retry by an operator deletes the record.
        """
        edited = unseen_edits(link.base, link.remote_values, mapper.flatten(theirs.data))
        at = (
            theirs.at if theirs.is_exact else _known_time(call_safely(subscriber.changed_at, theirs.id, link.synced_at))
        )
        with self.context.database.write() as connection:
            ours_at = newest_edit(connection, subscriber, link.record_id)
            theirs_at = by_our_clock(connection, subscriber, at)
            lost = [path for path in edited if not _ours_wins(mapper, path, ours_at, theirs_at)]
            seen = {"base": {**(link.base or {}), **edited}, "remote_values": None} if lost else {}
            unheld = (Link.id == link.id, leases.is_free(self.context.clock()))
            if connection.execute(sa.select(Link.id).where(*unheld).with_for_update()).first() is not None:
                state.write(connection, link.id, {**seen, "remote_version": theirs.version})
        if not lost:
            return None
        fields = {path: f"is {edited[path]!r} there" for path in lost}
        message = (
            f"it was edited in {subscriber.system} before our deletion: {', '.join(lost)}; retry to delete it anyway"
        )
        return Reject(message, fields=fields, code="edited_there")


def look_of(subscriber: Subscriber) -> str:
    """Return how a subscriber looks before it writes: `condition`, `fetch`, `poll`, `single` or `never`.

    With `condition` the system itself refuses to overwrite what was not seen; only an unknown version is fetched. With
    `single` one call reads one record: it is fetched if it is the only one, and the system is polled for several.
    """
    if not subscriber.can_fetch:
        return "never"
    if subscriber.look_first != "auto":
        return subscriber.look_first
    if subscriber.is_conditional:
        return "condition"
    return "fetch" if subscriber.reads_many else "single"


def _is_seen(link: LinkRow, seen_until: datetime | None) -> bool:
    ours = link.published_at or link.owed_since
    return seen_until is not None and ours is not None and ours < seen_until


def _lacks_version(link: LinkRow) -> bool:
    return link.remote_version is None or link.unconfirmed_write is not None


def _normal(subscriber: Subscriber, theirs: External | SyncError) -> External | SyncError:
    if isinstance(theirs, SyncError):
        return theirs
    return cast("External | SyncError", call_safely(lambda: normalize_incoming(subscriber, theirs, complete=True)))


def _is_as_known(mapper: Mapper, link: LinkRow, theirs: External) -> bool:
    edited = unseen_edits(link.base, link.remote_values, mapper.flatten(theirs.data))
    return theirs.id == link.external_id and not edited


def _known_time(at: Any) -> datetime | None:
    return at if isinstance(at, datetime) else None


def _ours_wins(mapper: Mapper, path: str, ours_at: datetime | None, theirs_at: datetime | None) -> bool:
    if not mapper.accepts_inward(path):
        return True
    policy = mapper.entry(path).conflict
    older = ours_at is not None and theirs_at is not None and theirs_at <= ours_at
    return policy == "internal" or (policy == "newest" and (older or theirs_at is None))
