"""The version of the overview, which is much cheaper to read than the overview."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from models.ledger import (
    AuditEntry,
    CaptureState,
    Change,
    Conflict,
    Cursor,
    DeadLetter,
    Delivery,
    Inbox,
    Process,
    Schedule,
    System,
    ThroughputWatermark,
)
from models.rows import CursorRow, ProcessRow, SystemRow

#: A process without a heartbeat for this many seconds counts as dead.
ALIVE_SECONDS = 20.0

#: An overview is rebuilt after this time, even if its version has not changed.
_LONGEST_AGE_SECONDS = 30

#: A literal, so that SQLite uses the partial index over waiting rows.
_WAITING: Any = sa.literal_column("'waiting'")


@dataclass(frozen=True)
class OverviewVersion:
    """The few rows that both an overview and its version need. The read time does not depend on the size of the ledger.

    `version` changes whenever the overview may have changed.
    """

    version: str
    systems: dict[str, SystemRow]
    polls: dict[str, CursorRow]
    processes: list[ProcessRow]


# Statements are built once: building one takes as long as running a small one.
_NEWEST = sa.select(
    *(
        sa.select(sa.func.max(table.id)).scalar_subquery()
        for table in (Change, Delivery, Inbox, DeadLetter, AuditEntry, Conflict)
    ),
    sa.select(sa.func.min(Change.id)).where(Change.relayed_at.is_(None)).scalar_subquery(),
    sa.select(sa.func.min(Inbox.id)).where(Inbox.state == _WAITING).scalar_subquery(),
    sa.select(sa.func.max(ThroughputWatermark.counted_to)).scalar_subquery(),
    sa.select(sa.func.max(CaptureState.broken_since)).scalar_subquery(),
    sa.select(sa.func.max(CaptureState.intact_at)).where(CaptureState.broken_since.is_not(None)).scalar_subquery(),
)
_SYSTEMS = sa.select(System.__table__).order_by(System.name)
_POLLS = sa.select(Cursor.__table__).order_by(Cursor.subscriber)
_PROCESSES = sa.select(Process.__table__).order_by(Process.kind, Process.name)
_JOBS = sa.select(
    Schedule.job, Schedule.paused_at, Schedule.started_at, Schedule.finished_at, Schedule.result
).order_by(Schedule.job)


def overview_version(context: Context, connection: sa.Connection) -> OverviewVersion:
    """Return the values from which the version is made: some values by key, and tables of a few rows."""
    newest, jobs = connection.execute(_NEWEST).one(), connection.execute(_JOBS).all()
    systems = [SystemRow._make(row) for row in connection.execute(_SYSTEMS)]
    polls = [CursorRow._make(row) for row in connection.execute(_POLLS)]
    processes = [ProcessRow._make(row) for row in connection.execute(_PROCESSES)]
    seen = (
        tuple(newest),
        [tuple(row) for row in jobs],
        # Without the columns that change with every call.
        [(s.name, s.paused_at, s.down_since, s.probe_at, s.failures, s.up_since, s.webhooks_rejected) for s in systems],
        [(row.subscriber, row.polled_at, row.failing_since, row.gap_since) for row in polls],
        [(row.name, is_alive(context, row)) for row in processes],
        int(context.clock().timestamp()) // _LONGEST_AGE_SECONDS,
    )
    version = hashlib.sha256(repr(seen).encode()).hexdigest()
    return OverviewVersion(
        version, {row.name: row for row in systems}, {row.subscriber: row for row in polls}, processes
    )


def is_alive(context: Context, process: ProcessRow) -> bool:
    """Return whether a process has sent a heartbeat recently."""
    return (context.clock() - process.last_seen_at).total_seconds() < ALIVE_SECONDS
