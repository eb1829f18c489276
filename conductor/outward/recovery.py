"""Recovery: the sweep publishes again what is owed and does not move.

Notifications may be lost, and processes die. The ledger is the truth, so the relay sweeps it every second or so for due
retries, stalled links and waiting inbox rows.
"""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from conductor.context import Context
from conductor.links import leases, state
from conductor.links.status import PENDING_LINKS
from conductor.outward.routing import MESSAGE_RECORDS
from models.ledger import Inbox, Link, SyncContext, System
from models.query_hints import no_index, range_equals
from subscribers.base import Subscriber

logger = logging.getLogger(__name__)

#: Links of one subscriber that one sweep publishes; more only where a subscriber takes more in one call.
SWEEP_BATCH = 2000

#: Links published while a system is down: the first that needs a call is the probe. For a system whose calls take many
#: records, as many as one call takes.
PROBE_BATCH = 20


@dataclass(frozen=True)
class _Stalled:
    """Which links of a subscriber count as stalled."""

    #: Published no later than this.
    before: datetime
    limit: int
    #: They probe a system that is down: the links published longest ago go first.
    is_probe: bool = False


class Recovery:
    """Finds what is owed and does not move."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def sweep(self, *, everything: bool = False) -> int:
        """Publish due retries and stalled work again; return how many pieces.

        Work that merely waits in a queue is left alone: a subscriber is swept only while its queue is empty.
        `everything` is for a start, when notifications may have died with the process before.
        """
        self._forget_leaked_context()
        swept = self._due_retries() + self._waiting_inbox()
        for name in sorted(self.context.subscribers):
            if self.context.publisher.depth(name) in (0, None):
                swept += self._stalled(name, everything)
        return swept

    def _forget_leaked_context(self) -> None:
        """Delete a context row that its writer has committed (SQLite).

        Such a row is meant for its writer's transaction. Every later change would count as the origin's own, and would
        never be sent there.
        """
        if not self.context.database.is_sqlite:
            return
        with self.context.database.read_autocommit() as connection:
            leaked = connection.execute(sa.select(SyncContext.origin, SyncContext.unsubscribe)).first()
        if leaked is not None:
            logger.warning("a writer committed with its sync context still set (%s); clearing the context", leaked)
            with self.context.database.write() as connection:
                connection.execute(sa.delete(SyncContext))

    # --- retries and stalled links ------------------------------------------------------------------

    def _due_retries(self) -> int:
        now = self.context.clock()
        with self.context.database.read_autocommit() as connection:
            if connection.execute(sa.select(Link.id).where(Link.retry_at <= now).limit(1)).first() is None:
                return 0
        links = self.context.database.run_in_transaction(state.take_due_retries, now, SWEEP_BATCH)
        self._publish(links)
        return len(links)

    def _stalled(self, name: str, everything: bool) -> int:
        now, stalled = self.context.clock(), self._stalled_now(self.context.subscribers[name], everything)
        ids = self._stalled_ids(name, stalled, now) if stalled is not None else []
        if not ids or stalled is None:
            return 0
        records = self.context.database.run_in_transaction(state.mark_published, ids, now)
        if stalled.is_probe:
            random.shuffle(records)  # another one each time: the record may be what the system fails at
        self._publish((name, record) for record in records)
        return len(records)

    def _stalled_now(self, subscriber: Subscriber, everything: bool) -> _Stalled | None:
        """Return which links of a subscriber count as stalled now; None while its system is not to be called."""
        statement = sa.select(System.__table__).where(System.name == subscriber.system)
        with self.context.database.read_autocommit() as connection:
            system = connection.execute(statement).one_or_none()
        now, before = self.context.clock(), self.context.later(-self.context.policy.stale_seconds)
        if system is not None and system.paused_at is not None:
            return None
        if system is not None and system.down_since is not None:
            if system.probe_at is not None and system.probe_at > now:
                return None
            limit = max(PROBE_BATCH, subscriber.batch_size(PROBE_BATCH))
            return _Stalled(now, limit, is_probe=True)
        if system is not None and system.up_since is not None:
            before = max(before, system.up_since)
        return _Stalled(now if everything else before, max(SWEEP_BATCH, subscriber.batch_size(SWEEP_BATCH)))

    def _stalled_ids(self, name: str, stalled: _Stalled, now: datetime) -> list[int]:
        # A read first: nearly always there is nothing, and that must not cost a write transaction.
        statement = (
            sa.select(Link.id)
            .where(range_equals(Link.subscriber, name), *PENDING_LINKS)
            .where(Link.retry_at.is_(None), leases.is_free(now))
            .where(
                sa.or_(
                    Link.published_at.is_(None),
                    Link.published_at <= stalled.before,
                    Link.lease_until.is_not(None),  # its worker died
                )
            )
            .order_by(Link.subscriber, Link.published_at if stalled.is_probe else Link.id)
            .limit(stalled.limit)
        )
        with self.context.database.read_autocommit() as connection:
            return list(connection.execute(statement).scalars())

    def _publish(self, links: Iterable[tuple[str, str]]) -> None:
        by_subscriber: defaultdict[str, list[str]] = defaultdict(list)
        for name, record in links:
            by_subscriber[name].append(record)
        for name, records in by_subscriber.items():
            if name not in self.context.subscribers:
                continue  # its system is no longer configured; it stays owed
            size = max(MESSAGE_RECORDS, self.context.subscribers[name].batch_size(len(records)))
            for start in range(0, len(records), size):
                self.context.publisher.records(name, records[start : start + size], later=True)

    # --- the inbox ----------------------------------------------------------------------------------

    def _waiting_inbox(self) -> int:
        by_system = self._due_inbox()
        ids = [inbox_id for its in by_system.values() for inbox_id in its]
        if not ids:
            return 0
        statement = (
            sa.update(Inbox)
            .where(Inbox.id.in_(ids), Inbox.state == "waiting")
            .values(retry_at=self.context.later(self.context.policy.stale_seconds))
        )
        self.context.database.run_in_transaction(lambda c: c.execute(statement))
        for system, its in by_system.items():
            self.context.publisher.inbox(system, its)
        return len(ids)

    def _due_inbox(self) -> dict[str, list[int]]:
        """Return due inbox rows by system, of systems that are not paused and whose queue is empty."""
        # Written out: an index over what waits is not used for a value that comes as a parameter.
        waits = Inbox.state == sa.literal_column("'waiting'")
        due = sa.select(Inbox.id, Inbox.system).where(waits, Inbox.retry_at <= self.context.clock())
        with self.context.database.read_autocommit() as connection:
            paused = set(connection.execute(sa.select(System.name).where(System.paused_at.is_not(None))).scalars())
            idle = [s for s in self.context.systems if s not in paused and not self.context.publisher.inbox_depth(s)]
            due = due.where(no_index(Inbox.system.in_(idle))).order_by(Inbox.id)
            rows = connection.execute(due.limit(SWEEP_BATCH)).all()
        by_system: defaultdict[str, list[int]] = defaultdict(list)
        for row in rows:
            by_system[row.system].append(row.id)
        return by_system
