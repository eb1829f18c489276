"""Retention: remove settled history when its retention ends; open dead letters, conflicts and tasks stay."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.tasks.runner import OPEN_TASK_STATES
from conductor.throughput_counter import ThroughputCounter
from models.history import bounds, first_since
from models.ledger import (
    AuditEntry,
    Change,
    Conflict,
    DeadLetter,
    Delivery,
    Inbox,
    JobRun,
    Link,
    LostRecord,
    Process,
    Schedule,
    Task,
)

#: Rows removed in one transaction.
_BATCH = 5000

#: Times that do not grow with the id. All rows of their tables are read; there are few.
_ENDS = (DeadLetter.closed_at, Conflict.resolved_at)

_HAS_LETTER = sa.exists().where(DeadLetter.inbox_id == Inbox.id, DeadLetter.closed_at.is_(None))
#: A captured deletion is kept until it is delivered: without it the record would count as hidden.
_RELAYED = sa.and_(
    Change.relayed_at.is_not(None),
    ~sa.and_(
        Change.operation == "deleted",
        sa.exists().where(Link.record_id == Change.record_id, Link.owed_change > Link.synced_change),
    ),
)
_SETTLED = sa.or_(Inbox.state == "done", sa.and_(Inbox.state == "dead", ~_HAS_LETTER))


class Retention:
    """Removes old history."""

    def __init__(self, context: Context, throughput: ThroughputCounter) -> None:
        self.context = context
        self.throughput = throughput

    def remove_old(self) -> str:
        """Remove settled history that is older than its retention, in small transactions; return what was removed."""
        now, policy = self.context.clock(), self.context.policy
        old, audited = now - timedelta(days=policy.history_days), now - timedelta(days=policy.audit_days)
        yesterday = now - timedelta(days=1)
        removed = 0
        always = sa.true()
        for table, at, before, settled in (
            (Delivery, Delivery.at, old, always),
            (Change, Change.at, old, _RELAYED),
            (LostRecord, LostRecord.at, old, always),
            (DeadLetter, DeadLetter.closed_at, old, always),
            (Conflict, Conflict.resolved_at, old, always),
            # After the dead letters: an event with an open dead letter can still be retried.
            (Inbox, Inbox.received_at, old, _SETTLED),
            (AuditEntry, AuditEntry.at, audited, always),
            (JobRun, JobRun.slot, self._oldest_slot(), always),
            (Task, Task.created_at, old, Task.state.not_in(OPEN_TASK_STATES)),
        ):
            removed += self._remove(table, at, before, settled)
        with self.context.database.write() as connection:
            connection.execute(sa.delete(Process).where(Process.last_seen_at < yesterday))
            removed += self.throughput.remove_old(connection, policy.history_days)
        return f"{removed} old rows removed"

    def _oldest_slot(self) -> datetime:
        """Return a time before the start of every current slot: a current slot that is removed is claimed again."""
        with self.context.database.read_autocommit() as connection:
            longest = connection.execute(sa.select(sa.func.max(Schedule.every_seconds))).scalar() or 0
        return self.context.clock() - timedelta(seconds=max(longest, 24 * 3600))

    def _remove(self, table: Any, at: Any, before: datetime, settled: Any) -> int:
        with self.context.database.read_autocommit() as connection:
            start, end = bounds(connection, table)
            if at not in _ENDS:
                end = first_since(connection, table, at, before)
        removed = 0
        for low in range(start, end, _BATCH):
            high = min(low + _BATCH, end)
            statement = sa.delete(table).where(table.id >= low, table.id < high, at < before, settled)
            with self.context.database.write() as connection:
                removed += connection.execute(statement).rowcount
        return removed
