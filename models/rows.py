"""Rows of the ledger as they were read, for code that passes them on; `models.ledger` explains the columns.

Each names the columns of its table in their order. `conductor.links.row` has the row of a link.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from models.ledger import Change, Conflict, Cursor, DeadLetter, Delivery, Process, Schedule, System, Unsubscription


class SystemRow(NamedTuple):
    """A row of `system`."""

    id: int
    name: str
    paused_at: datetime | None
    paused_by: str | None
    pause_reason: str | None
    down_since: datetime | None
    down_reason: str | None
    probe_at: datetime | None
    failures: int
    failing: dict[str, Any] | None
    up_since: datetime | None
    last_success_at: datetime | None
    rate_remaining: int | None
    rate_limit: int | None
    rate_reset_at: datetime | None
    rate_seen_at: datetime | None
    clock_offset: int | None
    next_call_at: datetime | None
    account: str | None
    other_account: str | None
    deletes: int
    deletes_since: datetime | None
    deletes_allowed_until: datetime | None
    webhooks_rejected: int
    webhook_rejected_at: datetime | None


class CursorRow(NamedTuple):
    """A row of `cursor`."""

    id: int
    subscriber: str
    position: dict[str, Any] | None
    polled_at: datetime | None
    seen_until: datetime | None
    failing_since: datetime | None
    result: str | None
    gap: str | None
    gap_since: datetime | None
    poller: str | None
    polling_until: datetime | None


class ProcessRow(NamedTuple):
    """A row of `process`."""

    id: int
    name: str
    kind: str
    started_at: datetime
    last_seen_at: datetime
    note: str | None


class ChangeRow(NamedTuple):
    """A row of `change`."""

    id: int
    catalogue: str
    record_id: str
    operation: str
    origin: str | None
    unsubscribe: str | None
    at: datetime
    relayed_at: datetime | None


class DeliveryRow(NamedTuple):
    """A row of `delivery`."""

    id: int
    subscriber: str
    record_id: str
    external_id: str | None
    direction: str
    operation: str
    outcome: str
    reason: str | None
    error: str | None
    payload: dict[str, Any] | None
    response: str | None
    inbox_id: int | None
    attempt: int
    request_id: str | None
    at: datetime
    duration: float | None


class DeadLetterRow(NamedTuple):
    """A row of `dead_letter`."""

    id: int
    subscriber: str
    record_id: str | None
    link_id: int | None
    inbox_id: int | None
    error: str
    fingerprint: str
    code: str
    message: str
    fields: dict[str, Any] | None
    payload: dict[str, Any] | None
    traceback: str | None
    at: datetime
    closed_at: datetime | None
    resolution: str | None
    task_id: int | None


class ConflictRow(NamedTuple):
    """A row of `conflict`."""

    id: int
    link_id: int
    subscriber: str
    record_id: str
    path: str
    base: Any | None
    ours: Any | None
    theirs: Any | None
    at: datetime
    resolved_at: datetime | None
    resolved_by: str | None
    choice: str | None


class ScheduleRow(NamedTuple):
    """A row of `schedule`."""

    id: int
    job: str
    every_seconds: int
    paused_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    result: str | None
    failed: bool


class UnsubscriptionRow(NamedTuple):
    """A row of `unsubscription`."""

    id: int
    target: str
    operation: str | None
    listed_only: bool
    until: datetime | None
    reason: str
    created_at: datetime
    created_by: str


for _row, _table in (
    (SystemRow, System),
    (CursorRow, Cursor),
    (ProcessRow, Process),
    (ChangeRow, Change),
    (DeliveryRow, Delivery),
    (DeadLetterRow, DeadLetter),
    (ConflictRow, Conflict),
    (ScheduleRow, Schedule),
    (UnsubscriptionRow, Unsubscription),
):
    if _row._fields != tuple(column.name for column in _table.__table__.c):
        raise TypeError(f"{_row.__name__} must list the columns of table `{_table.__tablename__}` in their order")
