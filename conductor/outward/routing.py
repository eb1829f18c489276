"""Routing: from captured changes to the subscribers that are owed them, and the notification of these.

The relay calls :meth:`Routing.relay` whenever a transaction was committed. Owing a change and marking it as relayed is
one transaction; the notifications follow it. A process that dies in between loses only notifications, and the sweep
(`recovery`) publishes again what is owed and does not move.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.links import conflicts, state
from conductor.links.rules import unsubscribed_names
from models.ledger import Change, Delivery
from subscribers.base import Subscriber

#: Changes taken in one transaction: the first of a burst are delivered while the others are routed.
RELAY_BATCH = 1000

#: Records named by one message; more only where a subscriber takes more in one call.
MESSAGE_RECORDS = 200

#: The next changes to be routed. In order, or statistics of a busy time could make PostgreSQL read the whole table for
#: one of them.
_WAITING = (
    sa.select(Change.id)
    .where(Change.relayed_at.is_(None))
    .order_by(Change.id)
    .limit(sa.bindparam("limit", type_=sa.Integer))
    .with_for_update(skip_locked=True)
)


@dataclass(frozen=True)
class CapturedChange:
    """A row of the outbox on its way to the subscribers."""

    id: int
    catalogue: str
    record_id: str
    operation: str
    origin: str | None
    unsubscribe: str | None
    at: datetime


@dataclass
class _Owed:
    """What one subscriber is owed for one record, from all its changes in the batch."""

    change: int
    since: datetime


@dataclass(frozen=True)
class RoutedChanges:
    """The outcome of one relay transaction: how many changes, and the records to publish by catalogue."""

    changes: int = 0
    records: dict[str, list[str]] = field(default_factory=dict)


class Routing:
    """Decides which subscriber is owed which change."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def relay(self, limit: int = RELAY_BATCH) -> int:
        """Route the next waiting changes and publish them; return how many there were: all of them if below `limit`.

        Raises whatever the publisher raises: the links are committed by then, so nothing is lost.
        """
        if self.context.database.is_sqlite:
            # Often there is nothing, and finding that out must not take the single writer's place.
            with self.context.database.read_autocommit() as connection:
                if connection.execute(_WAITING, {"limit": 1}).first() is None:
                    return 0
        routed = self.context.database.run_in_transaction(self.route, limit)
        self.publish(routed)
        return routed.changes

    def route(self, connection: sa.Connection, limit: int = RELAY_BATCH) -> RoutedChanges:
        """Owe the next changes to their subscribers and mark them as relayed, in one transaction.

        Several relays may run: each takes rows that no other has locked.
        """
        changes = _take(connection, limit, self.context.clock())
        owed: dict[tuple[str, str], _Owed] = {}
        skips: list[dict[str, Any]] = []
        undelivered: set[tuple[str, str]] = set()
        records: defaultdict[str, dict[str, None]] = defaultdict(dict)
        for change in changes:
            for subscriber in self.context.of_catalogue(change.catalogue):
                reason = _excluded(change, subscriber)
                if reason is None:
                    mark = owed.setdefault((subscriber.name(), change.record_id), _Owed(change.id, change.at))
                    mark.change = max(mark.change, change.id)
                    records[change.catalogue][change.record_id] = None
                    continue
                if change.operation == "deleted":
                    undelivered.add((subscriber.name(), change.record_id))
                if reason:
                    skips.append(self._skip(change, subscriber, reason))
        # In one order in every process, so that relays and workers do not deadlock.
        ordered = ((name, record, mark.change, mark.since) for (name, record), mark in sorted(owed.items()))
        state.owe_changes(connection, ordered, self.context.clock())
        conflicts.close_deleted(connection, undelivered, self.context.clock())
        if skips:
            connection.execute(sa.insert(Delivery), skips)
        return RoutedChanges(len(changes), {catalogue: list(ids) for catalogue, ids in records.items()})

    def publish(self, routed: RoutedChanges) -> None:
        """Notify the subscribers of each catalogue, with as many records a message as were waiting."""
        for catalogue, records in routed.records.items():
            for start in range(0, len(records), MESSAGE_RECORDS):
                self.context.publisher.changes(catalogue, records[start : start + MESSAGE_RECORDS])

    def _skip(self, change: CapturedChange, subscriber: Subscriber, reason: str) -> dict[str, Any]:
        return {
            "subscriber": subscriber.name(),
            "record_id": change.record_id,
            "direction": "out",
            "operation": "none",
            "outcome": "skipped",
            "reason": reason,
            "at": self.context.clock(),
        }


def _excluded(change: CapturedChange, subscriber: Subscriber) -> str | None:
    """Return None if the subscriber is owed the change, else the reason; an empty one is not recorded."""
    if change.origin == subscriber.system:
        return ""  # it came from there, and the inward delivery records that
    if {subscriber.system, subscriber.name()} & unsubscribed_names(change.unsubscribe):
        return f"the writer's unsubscribe list: {change.unsubscribe}"
    return None


def _take(connection: sa.Connection, limit: int, now: datetime) -> Sequence[CapturedChange]:
    """Mark the next waiting changes as relayed, and return them in order."""
    rows = connection.execute(_taking(connection.dialect.name), {"limit": limit, "now": now})
    return [CapturedChange(*row) for row in sorted(rows)]


@lru_cache
def _taking(dialect: str) -> sa.UpdateBase:
    if dialect == "postgresql":
        # As a list: of a subquery it would not know that there are few.
        chosen: Any = Change.id == sa.any_(sa.func.array(_WAITING.scalar_subquery()))
    else:
        chosen = Change.id.in_(_WAITING)
    change: Any = Change.__table__
    columns = [change.c[name] for name in CapturedChange.__dataclass_fields__]
    return sa.update(change).where(chosen).values(relayed_at=sa.bindparam("now")).returning(*columns)
