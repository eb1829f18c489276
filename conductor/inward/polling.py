"""Polls: read what changed in a system since the cursor, page by page, one poll of a subscriber at a time.

A page's effects and the cursor's new position commit together, so a poll that fails continues where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from conductor.context import Context, new_token
from conductor.inward.applying import InboundApplier
from conductor.inward.inbox import publish_owed, publish_rows, store_polled
from conductor.inward.incoming import HeldByDeleteGuard, Incoming, NeedsFetch
from conductor.mappings.store import Mappings
from conductor.systems.circuit_breaker import CircuitBreaker
from conductor.systems.concurrency import ConcurrencyLimiter, Stopping
from conductor.systems.delete_guard import DeleteGuard
from conductor.systems.outages import OutageDetector
from models.ledger import Cursor
from subscribers.base import Subscriber, normalize_incoming
from subscribers.calls import renewed_by
from subscribers.errors import SyncError
from subscribers.mapping.mapper import Mapper
from subscribers.records import External, Page

logger = logging.getLogger(__name__)


#: `Cursor.seen_until` between a start of the hub and the next complete poll.
NOT_SINCE_START = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Turn:
    """The right to poll a subscriber and to move its cursor, and the position to read from."""

    subscriber: str
    token: str
    position: dict[str, Any] | None
    #: When it began, by our clock.
    began: datetime
    #: External id -> the inbox row of a record that could not be applied immediately; None if it waits there already.
    postponed: dict[str, int | None] = field(default_factory=dict)
    #: Inbox rows that waited for a record of the page being applied.
    woken: list[int] = field(default_factory=list)


class TurnLost(Exception):
    """The turn ran out, and another poll took it over.

    An exception, because the page's transaction has to roll back: the other poll reads that page as well.
    """


@dataclass(eq=False)
class Polling:
    """Polls subscribers."""

    context: Context
    breaker: CircuitBreaker
    mappings: Mappings
    applying: InboundApplier
    guard: DeleteGuard
    concurrency: ConcurrencyLimiter
    outages: OutageDetector

    def poll(self, name: str) -> int:
        """Read and apply what changed since the cursor. Return the number of records read.

        A system that is paused or down is not called. A subscriber that another process is polling is skipped: a poll
        may take longer than its interval.
        """
        subscriber = self.context.subscribers[name]
        permit = self.breaker.permit(subscriber.system)
        if not permit.allowed:
            logger.info("%s is not polled: %s", name, permit.reason)
            return 0
        count = self._poll_in_turn(subscriber)[0]
        if count is None and permit.probing:
            self.breaker.release_probe(subscriber.system)
        return count or 0

    def look(self, subscriber: Subscriber) -> Turn | None:
        """Poll because a batch is about to be written; return the turn, or None if the system was not called.

        The caller has checked that the system may be called.
        """
        count, turn = self._poll_in_turn(subscriber)
        return None if count is None else turn

    def forget_seen(self) -> None:
        """Have each subscriber that was polled be polled again before what is owed goes out: the hub has just started.

        It may have been stopped for less than the interval of the polls.
        """
        polled = sa.update(Cursor).where(Cursor.seen_until.is_not(None))
        self.context.database.run_in_transaction(lambda c: c.execute(polled.values(seen_until=NOT_SINCE_START)))

    def _poll_in_turn(self, subscriber: Subscriber) -> tuple[int | None, Turn | None]:
        """Poll if no other process does. Return the number of records, None if the system was not called."""
        name = subscriber.name()
        if reason := subscriber.client.defer_reason():
            self.context.database.run_in_transaction(self._write_cursor, name, {"result": f"not polled: {reason}"})
            return None, None
        turn = self.context.database.run_in_transaction(self._take_turn, name)
        if turn is None:
            logger.info("%s is not polled: another process is polling it", name)
            return None, None
        try:
            with renewed_by(lambda: self._renew(turn)):
                return self._read_pages(subscriber, turn), turn
        finally:
            self.context.database.run_in_transaction(self._end_turn, turn)

    def _read_pages(self, subscriber: Subscriber, turn: Turn) -> int | None:
        """Read and apply pages. Return the number of records, or None if the system was not called."""
        count = 0
        try:
            with self.concurrency.slot(subscriber.system):
                for page in _paced_pages(subscriber, turn.position):
                    turn.woken.clear()
                    owed = self.context.database.run_in_transaction(self._apply_page, subscriber, page, turn)
                    self.concurrency.renew()
                    count += len(page.records)
                    publish_owed(self.context, owed)
                    publish_rows(self.context, subscriber.system, turn.woken)
        except Stopping:
            return None
        except TurnLost:
            logger.warning(
                "the poll of %s exceeded its lease on one page; another poll has taken over", subscriber.name()
            )
            return count
        except HeldByDeleteGuard:
            self.context.database.run_in_transaction(self.guard.pause, subscriber.system, "from")
            return count
        except SyncError as failure:
            error = self.outages.explain(subscriber, failure)
            self.context.database.run_in_transaction(self._mark_failed, subscriber, error)
            raise error from failure
        result = f"{count} records" if count else "nothing new"
        self.context.database.run_in_transaction(self._mark_succeeded, turn, subscriber, result)
        return count

    # --- one page -------------------------------------------------------------------------------------

    def _apply_page(
        self, connection: sa.Connection, subscriber: Subscriber, page: Page, turn: Turn
    ) -> list[tuple[str, str]]:
        """Apply a page and move the cursor. Return the links to publish."""
        mapper = self.mappings.current(connection, subscriber.name())[0]
        outcomes = [
            self._apply_or_store(connection, subscriber, mapper, page, external, turn) for external in page.records
        ]
        values: dict[str, Any] = {"position": page.position}
        if page.gap:
            logger.warning("the poll of %s has a gap: %s", subscriber.name(), page.gap)
            values |= {"gap": page.gap, "gap_since": self.context.clock()}
        self._write_turn(connection, turn, values)
        return [owed for owed in outcomes if owed is not None]

    def _apply_or_store(
        self,
        connection: sa.Connection,
        subscriber: Subscriber,
        mapper: Mapper,
        page: Page,
        external: External,
        turn: Turn,
    ) -> tuple[str, str] | None:
        """Apply a polled record; one that cannot be applied now goes to the inbox, so that the cursor may move on."""
        try:
            normalized = normalize_incoming(subscriber, external, complete=page.current)
            incoming = Incoming(subscriber, normalized, mapper, polled=page.current)
            with connection.begin_nested():  # a record that fails must not take its page down
                applied = self.applying.apply(connection, incoming)
        except (HeldByDeleteGuard, sa.exc.OperationalError):
            raise  # the record is not at fault
        except Exception as error:
            reason = repr(error)
        else:
            if not isinstance(applied, NeedsFetch):
                turn.woken.extend(applied.woken)
                return applied.owed
            reason = applied.reason
        logger.debug("%s %s goes to the inbox: %s", subscriber.name(), external.id, reason)
        inbox_id = store_polled(self.context, connection, subscriber, external)
        turn.postponed[external.id] = inbox_id or turn.postponed.get(external.id)
        return None

    # --- turn and cursor ------------------------------------------------------------------------------

    def _take_turn(self, connection: sa.Connection, name: str) -> Turn | None:
        now, token = self.context.clock(), new_token()
        values = {"poller": token, "polling_until": self.context.later(self.context.policy.lease_seconds)}
        is_free = sa.or_(Cursor.polling_until.is_(None), Cursor.polling_until <= now)
        insert = self.context.database.insert(Cursor).values(subscriber=name, **values)
        taken = insert.on_conflict_do_update(index_elements=["subscriber"], set_=values, where=is_free)
        row = connection.execute(taken.returning(Cursor.position)).one_or_none()
        return None if row is None else Turn(name, token, row.position, now)

    def _renew(self, turn: Turn) -> None:
        self.concurrency.renew()
        self.context.database.run_in_transaction(self._write_turn, turn, {})

    def _write_turn(self, connection: sa.Connection, turn: Turn, values: dict[str, Any]) -> None:
        """Extend the turn and write these values of the cursor.

        Raises:
          TurnLost: another poll has taken the turn over.
        """
        until = self.context.later(self.context.policy.lease_seconds)
        cursor = sa.update(Cursor).where(Cursor.subscriber == turn.subscriber, Cursor.poller == turn.token)
        if not connection.execute(cursor.values(polling_until=until, **values)).rowcount:
            raise TurnLost

    @staticmethod
    def _end_turn(connection: sa.Connection, turn: Turn) -> None:
        cursor = sa.update(Cursor).where(Cursor.subscriber == turn.subscriber, Cursor.poller == turn.token)
        connection.execute(cursor.values(poller=None, polling_until=None))

    def _mark_succeeded(self, connection: sa.Connection, turn: Turn, subscriber: Subscriber, result: str) -> None:
        now = self.context.clock()
        values = {"polled_at": now, "seen_until": turn.began, "failing_since": None, "result": result}
        self._write_cursor(connection, subscriber.name(), values)
        self.breaker.succeeded(connection, subscriber.system)

    def _mark_failed(self, connection: sa.Connection, subscriber: Subscriber, error: SyncError) -> None:
        logger.warning("the poll of %s failed: %s", subscriber.name(), error)
        now = self.context.clock()
        self._write_cursor(connection, subscriber.name(), {"polled_at": now, "result": str(error)})
        begins = (Cursor.subscriber == subscriber.name(), Cursor.failing_since.is_(None))
        connection.execute(sa.update(Cursor).where(*begins).values(failing_since=now))
        if error.pauses_system:
            self.breaker.went_down(connection, subscriber.system, error)

    def _write_cursor(self, connection: sa.Connection, name: str, values: dict[str, Any]) -> None:
        insert = self.context.database.insert(Cursor).values(subscriber=name, **values)
        connection.execute(insert.on_conflict_do_update(index_elements=["subscriber"], set_=values))


def _paced_pages(subscriber: Subscriber, position: dict[str, Any] | None) -> Iterator[Page]:
    subscriber.client.pace()
    for page in subscriber.changed_since(position):
        yield page
        subscriber.client.pace()
