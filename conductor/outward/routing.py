"""Routing: from captured changes to what each subscriber is owed, and the news of it.

The relay calls :meth:`Routing.relay` whenever something was committed and :meth:`Routing.sweep`
every second or so. Marking who is owed what and marking the change as relayed is one transaction;
the news goes out after it. A process that dies in between has lost news only, and the sweep
announces again whatever is owed and does not move.
"""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.links import leases, state
from conductor.links.rules import unsubscribed_names
from conductor.links.status import PENDING
from models.ledger import Change, Delivery, Inbox, Link, SyncContext, System
from models.query_hints import no_index, range_equals
from subscribers.base import Subscriber

logger = logging.getLogger(__name__)

#: Changes taken in one transaction: the first of a burst are under way while the others are routed.
RELAY_BATCH = 1000

#: Records named by one message; more only where a subscriber takes more in one call.
MESSAGE_RECORDS = 200

#: Links announced again by one sweep of one subscriber; more only likewise.
SWEEP_BATCH = 2000

#: Links announced while a system is down: the first that needs a call is the probe. Of a system whose calls take many,
#: as many as one takes.
PROBE_BATCH = 20

#: The next changes to be routed. In order, or statistics of a time with much to do could make PostgreSQL read the whole
#: table for one of them.
_WAITING = (
    sa.select(Change.id)
    .where(Change.relayed_at.is_(None))
    .order_by(Change.id)
    .limit(sa.bindparam("limit", type_=sa.Integer))
    .with_for_update(skip_locked=True)
)


@lru_cache
def _take(dialect: str) -> sa.UpdateBase:
    """Mark them as relayed, and read them."""
    if dialect == "postgresql":
        # As a list: of a subquery it would not know that there are few.
        chosen: Any = Change.id == sa.any_(sa.func.array(_WAITING.scalar_subquery()))
    else:
        chosen = Change.id.in_(_WAITING)
    change: Any = Change.__table__
    return sa.update(change).where(chosen).values(relayed_at=sa.bindparam("now")).returning(*change.c)


@dataclass
class _Owed:
    """What one subscriber is to be marked with for one record, from all its changes in the batch."""

    change: int
    since: datetime


@dataclass
class Batch:
    """The outcome of one relay transaction: how many changes, and the records to announce by catalogue."""

    changes: int = 0
    news: dict[str, list[str]] = field(default_factory=dict)


class Routing:
    """Decides who is owed what."""

    def __init__(self, context: Context) -> None:
        self.context = context

    # --- captured changes -------------------------------------------------------------------------

    def relay(self, limit: int = RELAY_BATCH) -> int:
        """Route the next waiting changes and announce them; returns how many there were, all of them if below `limit`.

        Raises whatever the announcer raises: the marks are committed by then, so nothing is lost.
        """
        if self.context.database.is_sqlite:
            # Often there is nothing, and looking must not cost the single writer's place.
            with self.context.database.read_autocommit() as connection:
                if connection.execute(_WAITING, {"limit": 1}).first() is None:
                    return 0
        batch = self.context.database.run_in_transaction(self.route, limit)
        self.announce(batch)
        return batch.changes

    def route(self, connection: sa.Connection, limit: int = RELAY_BATCH) -> Batch:
        """Mark in the links who is owed what, and the changes as relayed, in one transaction.

        Several relays may run: each takes rows nobody else holds.
        """
        taken = connection.execute(_take(connection.dialect.name), {"limit": limit, "now": self.context.clock()})
        rows = sorted(taken, key=lambda row: row.id)
        if not rows:
            return Batch()
        owed: dict[tuple[str, str], _Owed] = {}
        skips: list[dict[str, Any]] = []
        news: defaultdict[str, dict[str, None]] = defaultdict(dict)
        for row in rows:
            for subscriber in self.context.of_catalogue(row.catalogue):
                skip = self._excluded(row, subscriber)
                if skip is None:
                    mark = owed.setdefault((subscriber.name(), row.record_id), _Owed(row.id, row.at))
                    mark.change = max(mark.change, row.id)
                    news[row.catalogue][row.record_id] = None
                    continue
                if skip:
                    skips.append(self._skip(row, subscriber, skip))
        self._mark(connection, owed)
        if skips:
            connection.execute(sa.insert(Delivery), skips)
        return Batch(len(rows), {catalogue: list(records) for catalogue, records in news.items()})

    def announce(self, batch: Batch) -> None:
        """Tell the subscribers of each catalogue, as many records a message as were waiting."""
        for catalogue, records in batch.news.items():
            for start in range(0, len(records), MESSAGE_RECORDS):
                self.context.publisher.changes(catalogue, records[start : start + MESSAGE_RECORDS])

    @staticmethod
    def _excluded(change: Any, subscriber: Subscriber) -> str | None:
        """None: the subscriber is owed the change. Else why not; empty for what needs no record."""
        if change.origin == subscriber.system:
            return ""  # it came from there; the inward delivery tells the story
        if {subscriber.system, subscriber.name()} & unsubscribed_names(change.unsubscribe):
            return f"the writer's unsubscribe list: {change.unsubscribe}"
        return None

    def _skip(self, change: Any, subscriber: Subscriber, reason: str) -> dict[str, Any]:
        return {
            "subscriber": subscriber.name(),
            "record_id": change.record_id,
            "direction": "out",
            "operation": "none",
            "outcome": "skipped",
            "reason": reason,
            "at": self.context.clock(),
        }

    def _mark(self, connection: sa.Connection, owed: dict[tuple[str, str], _Owed]) -> None:
        # In one order in every process, so that relays and workers do not deadlock.
        changes = ((name, record, mark.change, mark.since) for (name, record), mark in sorted(owed.items()))
        state.owe_changes(connection, changes, self.context.clock())

    # --- what is owed and does not move -------------------------------------------------------------

    def sweep(self, *, everything: bool = False) -> int:
        """Announce due retries and stalled work again; returns how many pieces.

        Work that merely waits in a queue is left alone: a subscriber is swept only while its queue is
        empty. `everything` is for a start, when news may have died with the process before.
        """
        self._forget_leaked_context()
        swept = self._due_retries() + self._waiting_inbox()
        for name in sorted(self.context.subscribers):
            if self.context.publisher.depth(name) in (0, None):
                swept += self._stalled(name, everything)
        return swept

    def _forget_leaked_context(self) -> None:
        """SQLite: a context row is meant for its writer's transaction; one that everybody sees was left behind.

        Every change after it would count as the origin's own, and never be sent there.
        """
        if not self.context.database.is_sqlite:
            return
        with self.context.database.read_autocommit() as connection:
            leaked = connection.execute(sa.select(SyncContext.origin, SyncContext.unsubscribe)).first()
        if leaked is not None:
            logger.warning("a writer has committed inside its sync context (%s); it is forgotten now", leaked)
            with self.context.database.write() as connection:
                connection.execute(sa.delete(SyncContext))

    def _due_retries(self) -> int:
        now = self.context.clock()
        with self.context.database.read_autocommit() as connection:
            if connection.execute(sa.select(Link.id).where(Link.retry_at <= now).limit(1)).first() is None:
                return 0
        pairs = self.context.database.run_in_transaction(state.take_due_retries, now, SWEEP_BATCH)
        self._tell(pairs)
        return len(pairs)

    def _stalled(self, name: str, everything: bool) -> int:
        subscriber = self.context.subscribers[name]
        with self.context.database.read_autocommit() as connection:
            system = connection.execute(
                sa.select(System.__table__).where(System.name == subscriber.system)
            ).one_or_none()
        if system is not None and system.paused_at is not None:
            return 0
        limit = max(SWEEP_BATCH, subscriber.batch_size(SWEEP_BATCH))
        first: Any = Link.id
        now = self.context.clock()
        old = self.context.later(-self.context.policy.stale)
        if system is not None and system.down_since is not None:
            if system.probe_at is not None and system.probe_at > now:
                return 0
            # The first of these few that needs a call is the probe.
            limit, old, first = max(PROBE_BATCH, subscriber.batch_size(PROBE_BATCH)), now, Link.announced_at
        elif system is not None and system.up_since is not None:
            old = max(old, system.up_since)
        ids = self._stalled_ids(name, now if everything else old, now, limit, first)
        if not ids:
            return 0
        records = self.context.database.run_in_transaction(state.mark_published, ids, now)
        if first is Link.announced_at:
            random.shuffle(records)  # another one each time: it may be the record that is answered so
        self._tell((name, record) for record in records)
        return len(records)

    def _stalled_ids(self, name: str, old: datetime, now: datetime, limit: int, first: Any) -> list[int]:
        # A read first: nearly always there is nothing, and that must not cost a write transaction.
        statement = (
            sa.select(Link.id)
            .where(range_equals(Link.subscriber, name), *PENDING)
            .where(Link.retry_at.is_(None), leases.is_free(now))
            .where(
                sa.or_(
                    Link.announced_at.is_(None),
                    Link.announced_at <= old,
                    Link.lease_until.is_not(None),  # its worker died
                )
            )
            .order_by(Link.subscriber, first)
            .limit(limit)
        )
        with self.context.database.read_autocommit() as connection:
            return list(connection.execute(statement).scalars())

    def _waiting_inbox(self) -> int:
        now = self.context.clock()
        # Written out: an index over what waits is not used for a value that comes as a parameter.
        waits = Inbox.state == sa.literal_column("'waiting'")
        due = sa.select(Inbox.id, Inbox.system).where(waits, Inbox.retry_at <= now)
        with self.context.database.read_autocommit() as connection:
            paused = set(connection.execute(sa.select(System.name).where(System.paused_at.is_not(None))).scalars())
            idle = [s for s in self.context.systems if s not in paused and not self.context.publisher.inbox_depth(s)]
            due = due.where(no_index(Inbox.system.in_(idle))).order_by(Inbox.id)
            rows = connection.execute(due.limit(SWEEP_BATCH)).all()
        if not rows:
            return 0
        statement = (
            sa.update(Inbox)
            .where(Inbox.id.in_([row.id for row in rows]), Inbox.state == "waiting")
            .values(retry_at=self.context.later(self.context.policy.stale))
        )
        self.context.database.run_in_transaction(lambda c: c.execute(statement))
        by_system: defaultdict[str, list[int]] = defaultdict(list)
        for row in rows:
            by_system[row.system].append(row.id)
        for system, ids in by_system.items():
            self.context.publisher.inbox(system, ids)
        return len(rows)

    def _tell(self, pairs: Iterable[tuple[str, str]]) -> None:
        by_subscriber: defaultdict[str, list[str]] = defaultdict(list)
        for name, record in pairs:
            by_subscriber[name].append(record)
        for name, records in by_subscriber.items():
            if name not in self.context.subscribers:
                continue  # its system is not configured any more; it stays owed
            size = max(MESSAGE_RECORDS, self.context.subscribers[name].batch_size(len(records)))
            for start in range(0, len(records), size):
                self.context.publisher.records(name, records[start : start + size], later=True)
