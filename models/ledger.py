"""The ledger: what changed, who is owed what, what was done about it, and what came in.

Queues carry the news; these tables are the truth. Record ids are text here, whatever the type
of the catalogue's key.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, BigId, Json, utcnow


def _where(name: str, *columns: str, condition: str, unique: bool = False) -> sa.Index:
    """An index over the few rows that meet a condition, so that it stays small as history grows."""
    clause = sa.text(condition)
    return sa.Index(name, *columns, unique=unique, postgresql_where=clause, sqlite_where=clause)


class Change(Base):
    """A row of the outbox: record R of catalogue C was created, updated or deleted, by whom."""

    __tablename__ = "change"
    __table_args__ = (
        _where("ix_change_waiting", "id", condition="relayed_at IS NULL"),
        sa.Index("ix_change_record", "catalogue", "record_id", "id"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    catalogue: Mapped[str] = mapped_column(sa.String(64))
    record_id: Mapped[str] = mapped_column(sa.String(64))
    #: created, updated or deleted.
    operation: Mapped[str] = mapped_column(sa.String(8))
    #: The system the change came from; none when a person or a program of ours made it.
    origin: Mapped[str | None] = mapped_column(sa.String(64))
    #: The writer's own unsubscribe list: systems or subscribers, separated by commas.
    unsubscribe: Mapped[str | None] = mapped_column(sa.Text)
    at: Mapped[datetime]
    #: When the relay marked in the links who is owed it.
    relayed_at: Mapped[datetime | None]


class SyncContext(Base):
    """SQLite only: who is writing. One row, visible only inside the writer's own transaction."""

    __tablename__ = "sync_context"

    id: Mapped[int] = mapped_column(primary_key=True)
    origin: Mapped[str | None] = mapped_column(sa.String(64))
    unsubscribe: Mapped[str | None] = mapped_column(sa.Text)


_OWED = "owed_change > synced_change AND dead_at IS NULL"


class Link(Base):
    """What one subscriber knows of one record: external id, what was agreed, what is still owed."""

    __tablename__ = "link"
    __table_args__ = (
        # Each of these is written with every delivery, so they serve both questions: one subscriber's link of a
        # record (of an external one), and all links of it.
        sa.UniqueConstraint("record_id", "subscriber"),
        sa.UniqueConstraint("external_id", "subscriber"),
        _where("ix_link_owed", "subscriber", "id", condition=_OWED),
        _where("ix_link_owed_since", "subscriber", "owed_since", condition=_OWED),
        _where("ix_link_failing", "subscriber", "owed_since", condition="attempts > 0 AND dead_at IS NULL"),
        _where("ix_link_retry", "retry_at", condition="retry_at IS NOT NULL"),
        _where("ix_link_skipped", "unsubscription_id", condition="unsubscription_id IS NOT NULL"),
        _where("ix_link_dead_letter", "dead_letter_id", condition="dead_letter_id IS NOT NULL"),
        _where("ix_link_blocked_by", "blocked_by", condition="blocked_by IS NOT NULL"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    #: `system.catalogue`, the subscriber's name and the name of its queue.
    subscriber: Mapped[str] = mapped_column(sa.String(64))
    record_id: Mapped[str] = mapped_column(sa.String(64))
    external_id: Mapped[str | None] = mapped_column(sa.String(255))

    #: Grows with every change owed; at least the id of the newest such change. `owed > synced` is
    #: the truth of what is outstanding.
    owed_change: Mapped[int] = mapped_column(sa.BigInteger, default=0, server_default="0")
    synced_change: Mapped[int] = mapped_column(sa.BigInteger, default=0, server_default="0")
    #: When the oldest change that is still owed was captured.
    owed_since: Mapped[datetime | None]
    #: When the news was last put into the subscriber's queue.
    announced_at: Mapped[datetime | None]
    synced_at: Mapped[datetime | None]

    #: External field -> value as we mapped it when hub and system last agreed.
    base: Mapped[dict[str, Any] | None]
    #: External field -> value as the system stores it, only where that differs from `base`.
    remote_values: Mapped[dict[str, Any] | None]
    #: External field that only goes out -> what they held when ours was last sent again over it.
    overridden_values: Mapped[dict[str, Any] | None]
    #: By the system's clock: the newest state of theirs that was merged, and our own last write.
    last_seen_at: Mapped[datetime | None]
    last_write_at: Mapped[datetime | None]
    #: Deleted or detached: the external id is kept so that late events are recognised.
    unlinked_at: Mapped[datetime | None]
    #: True: the external side was deleted there; False: we did it.
    deleted_remotely: Mapped[bool] = mapped_column(default=False, server_default=sa.false())

    #: A create was begun under this key and its outcome is not known yet.
    create_token: Mapped[str | None] = mapped_column(sa.String(64))
    #: Written before a create or an update is sent, gone when its outcome is known: field -> value.
    unconfirmed_write: Mapped[dict[str, Any] | None]
    #: What each of our last writes put back beside its own fields in nested objects (`fields`), as it stood there when
    #: it was read (`since`, by the system's clock) until that write (`until`): an edit there in between is undone.
    write_windows: Mapped[list[dict[str, Any]] | None]
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    retry_at: Mapped[datetime | None]
    lease_owner: Mapped[str | None] = mapped_column(sa.String(64))
    lease_until: Mapped[datetime | None]
    dead_at: Mapped[datetime | None]
    #: The open dead letter, also while the record is being tried again.
    dead_letter_id: Mapped[int | None] = mapped_column(BigId)
    #: The unsubscription that covered the record when it was last looked at.
    unsubscription_id: Mapped[int | None]
    #: The link of the related record that has to be delivered first.
    blocked_by: Mapped[int | None] = mapped_column(BigId)
    #: Fields whose conflict waits for a person.
    open_conflicts: Mapped[int] = mapped_column(default=0, server_default="0")


class Delivery(Base):
    """The history: one attempt to bring one record to one system (or from it), and how it ended."""

    __tablename__ = "delivery"
    __table_args__ = (
        sa.Index("ix_delivery_record", "record_id", "id"),
        sa.Index("ix_delivery_subscriber", "subscriber", "id"),
        _where("ix_delivery_inbox", "inbox_id", condition="inbox_id IS NOT NULL"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    subscriber: Mapped[str] = mapped_column(sa.String(64))
    record_id: Mapped[str] = mapped_column(sa.String(64))
    external_id: Mapped[str | None] = mapped_column(sa.String(255))
    #: `out` or `in`.
    direction: Mapped[str] = mapped_column(sa.String(3))
    #: create, update, delete, archive, unlink, match or none.
    operation: Mapped[str] = mapped_column(sa.String(16))
    #: delivered, unchanged, skipped, failed, dead, waiting (out); applied, echo, kept, skipped, dead (in).
    outcome: Mapped[str] = mapped_column(sa.String(16))
    #: In words: the rule that skipped it, the system's own words for a failure.
    reason: Mapped[str | None] = mapped_column(sa.Text)
    error: Mapped[str | None] = mapped_column(sa.String(64))
    #: What was sent or came in, external field -> value.
    payload: Mapped[dict[str, Any] | None]
    #: What the system answered: JSON or text, redacted and cut, see `conductor.redaction`.
    reply: Mapped[str | None] = mapped_column(sa.Text)
    #: The inbox row that an inward one was read from; none for what a poll read itself.
    inbox_id: Mapped[int | None] = mapped_column(BigId)
    attempt: Mapped[int] = mapped_column(default=1, server_default="1")
    #: The system's own id of the call, to quote to its support.
    request_id: Mapped[str | None] = mapped_column(sa.String(128))
    at: Mapped[datetime] = mapped_column(default=utcnow)
    #: Milliseconds of the call that carried it (a bulk call counts whole for each of its records).
    duration: Mapped[float | None]


class Throughput(Base):
    """How many deliveries one subscriber had in one minute or hour: what charts are drawn from."""

    __tablename__ = "throughput"
    __table_args__ = (sa.UniqueConstraint("seconds", "at", "subscriber"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    #: How long the stretch is, 60 or 3600, and when it begins.
    seconds: Mapped[int]
    at: Mapped[datetime]
    subscriber: Mapped[str] = mapped_column(sa.String(64))
    #: Brought there; taken over from there; tried in vain; given up.
    delivered: Mapped[int]
    received: Mapped[int]
    failed: Mapped[int]
    dead: Mapped[int]


class ThroughputWatermark(Base):
    """How far the deliveries are counted. One row, which is also the lock of whoever counts."""

    __tablename__ = "throughput_mark"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: Deliveries up to this id are in `throughput`.
    counted_to: Mapped[int] = mapped_column(sa.BigInteger, default=0, server_default="0")
    #: PostgreSQL: the newest id at the last look, and the transactions that were writing deliveries then.
    top: Mapped[int] = mapped_column(sa.BigInteger, default=0, server_default="0")
    writers: Mapped[list[Any] | None]


class DeadLetter(Base):
    """A delivery, outward or inward, that a person has to look at; closed when mended or discarded."""

    __tablename__ = "dead_letter"
    __table_args__ = (
        _where("ix_dead_letter_open", "subscriber", "fingerprint", "id", condition="closed_at IS NULL"),
        sa.Index("ix_dead_letter_record", "record_id"),
        _where("ix_dead_letter_since", "subscriber", "id", condition="closed_at IS NULL"),
        _where("ix_dead_letter_task", "task_id", condition="task_id IS NOT NULL"),
        _where("uq_dead_letter_link", "link_id", condition="closed_at IS NULL AND link_id IS NOT NULL", unique=True),
        _where("uq_dead_letter_inbox", "inbox_id", condition="closed_at IS NULL AND inbox_id IS NOT NULL", unique=True),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    subscriber: Mapped[str] = mapped_column(sa.String(64))
    record_id: Mapped[str | None] = mapped_column(sa.String(64))
    link_id: Mapped[int | None] = mapped_column(BigId)
    inbox_id: Mapped[int | None] = mapped_column(BigId)
    #: The error's class, and the error without its varying parts: what groups letters of one kind.
    error: Mapped[str] = mapped_column(sa.String(64))
    fingerprint: Mapped[str] = mapped_column(sa.String(64))
    #: The error's cause, which names the remedy.
    code: Mapped[str] = mapped_column(sa.String(64), default="failed", server_default="failed")
    message: Mapped[str] = mapped_column(sa.Text)
    #: The system's own words per external field.
    fields: Mapped[dict[str, Any] | None]
    payload: Mapped[dict[str, Any] | None]
    traceback: Mapped[str | None] = mapped_column(sa.Text)
    at: Mapped[datetime] = mapped_column(default=utcnow)
    closed_at: Mapped[datetime | None]
    #: How it ended: delivered, or discarded with a person's reason.
    resolution: Mapped[str | None] = mapped_column(sa.Text)
    #: The task that last had it tried again.
    task_id: Mapped[int | None] = mapped_column(BigId)


class Conflict(Base):
    """A field that changed on both sides and waits for a person: both versions and the base are kept.

    Values are the external ones, see `subscribers.mapping.mapper`.
    """

    __tablename__ = "conflict"
    __table_args__ = (
        _where("uq_conflict_open", "link_id", "path", condition="resolved_at IS NULL", unique=True),
        _where("ix_conflict_open", "subscriber", "id", condition="resolved_at IS NULL"),
        sa.Index("ix_conflict_link", "link_id"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    link_id: Mapped[int] = mapped_column(BigId)
    subscriber: Mapped[str] = mapped_column(sa.String(64))
    record_id: Mapped[str] = mapped_column(sa.String(64))
    #: The external field.
    path: Mapped[str] = mapped_column(sa.String(255))
    base: Mapped[Any | None] = mapped_column(Json)
    ours: Mapped[Any | None] = mapped_column(Json)
    theirs: Mapped[Any | None] = mapped_column(Json)
    at: Mapped[datetime] = mapped_column(default=utcnow)
    resolved_at: Mapped[datetime | None]
    resolved_by: Mapped[str | None] = mapped_column(sa.String(255))
    #: ours, theirs, or agreed (the sides came to agree by themselves).
    choice: Mapped[str | None] = mapped_column(sa.String(8))


class CallSlot(Base):
    """One of the calls a system with a concurrency limit may have under way, over all processes."""

    __tablename__ = "call_slot"
    __table_args__ = (sa.UniqueConstraint("system", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    system: Mapped[str] = mapped_column(sa.String(64))
    number: Mapped[int]
    owner: Mapped[str | None] = mapped_column(sa.String(64))
    until: Mapped[datetime | None]


class Inbox(Base):
    """What came in, stored before it was acknowledged: webhooks, and polled records to be looked at again."""

    __tablename__ = "inbox"
    __table_args__ = (
        sa.UniqueConstraint("system", "event_id"),
        _where("ix_inbox_waiting", "id", condition="state = 'waiting'"),
        _where("ix_inbox_dead", "id", condition="state = 'dead'"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    system: Mapped[str] = mapped_column(sa.String(64))
    event_id: Mapped[str] = mapped_column(sa.String(255))
    #: The system's word for what happened, `customer.updated`.
    kind: Mapped[str] = mapped_column(sa.String(64), default="", server_default="")
    body: Mapped[str] = mapped_column(sa.Text)
    headers: Mapped[dict[str, Any] | None]
    received_at: Mapped[datetime] = mapped_column(default=utcnow)
    #: The subscriber a polled record belongs to; none for a webhook.
    subscriber: Mapped[str | None] = mapped_column(sa.String(64))
    #: waiting, done or dead.
    state: Mapped[str] = mapped_column(sa.String(8), default="waiting", server_default="waiting")
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    #: When it is announced (again) if it still waits then.
    retry_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    #: In words, what it led to.
    result: Mapped[str | None] = mapped_column(sa.Text)


class RefusedWebhook(Base):
    """A webhook that was not taken, and why. Strangers can send any number: each system keeps its newest few.

    They are kept in a ring: the n-th refused one goes to slot n modulo their number.
    """

    __tablename__ = "refused_webhook"
    __table_args__ = (sa.UniqueConstraint("system", "slot"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    system: Mapped[str] = mapped_column(sa.String(64))
    slot: Mapped[int]
    at: Mapped[datetime]
    reason: Mapped[str] = mapped_column(sa.Text)
    #: Redacted and cut; of the body only how it begins.
    headers: Mapped[dict[str, Any] | None]
    body: Mapped[str] = mapped_column(sa.Text)
    #: Bytes of the whole body.
    size: Mapped[int]


class Cursor(Base):
    """How far a poll of one subscriber has read."""

    __tablename__ = "cursor"

    id: Mapped[int] = mapped_column(primary_key=True)
    subscriber: Mapped[str] = mapped_column(sa.String(64), unique=True)
    position: Mapped[dict[str, Any] | None]
    polled_at: Mapped[datetime | None]
    #: Since when polls have failed; none while they work.
    failing_since: Mapped[datetime | None]
    result: Mapped[str | None] = mapped_column(sa.Text)
    #: Who polls just now, and until when nobody else may: one that takes longer than its interval is the only one.
    poller: Mapped[str | None] = mapped_column(sa.String(64))
    polling_until: Mapped[datetime | None]


class System(Base):
    """One external system as the hub sees it: paused by a person, or down by itself."""

    __tablename__ = "system"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(64), unique=True)
    paused_at: Mapped[datetime | None]
    paused_by: Mapped[str | None] = mapped_column(sa.String(255))
    pause_reason: Mapped[str | None] = mapped_column(sa.Text)
    down_since: Mapped[datetime | None]
    down_reason: Mapped[str | None] = mapped_column(sa.Text)
    #: While down: when one record may be tried again, and how many tries failed in a row.
    probe_at: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(default=0, server_default="0")
    #: When it last came back or was resumed: what was announced before is announced again.
    up_since: Mapped[datetime | None]
    last_success_at: Mapped[datetime | None]
    #: What its answers said last of their own limit: calls left, of how many, until when; and when they said so.
    rate_remaining: Mapped[int | None]
    rate_limit: Mapped[int | None]
    rate_reset_at: Mapped[datetime | None]
    rate_seen_at: Mapped[datetime | None]
    #: When the next call may begin, for a system with a rate limit; shared by all processes.
    next_call_at: Mapped[datetime | None]
    #: The mass-delete guard: deletes to and from it since the window began, and until when a person lets them flow.
    deletes: Mapped[int] = mapped_column(default=0, server_default="0")
    deletes_since: Mapped[datetime | None]
    deletes_allowed_until: Mapped[datetime | None]
    #: Webhooks refused; of the newest ones `refused_webhook` keeps a little.
    webhooks_rejected: Mapped[int] = mapped_column(default=0, server_default="0")
    webhook_rejected_at: Mapped[datetime | None]


class Mapping(Base):
    """One version of a subscriber's `field_to_data` as edited in the panel; the newest is in force.

    `fields` is a list of rows, see `subscribers.mapping.mapper.FieldRow`; none means back to the code's own.
    """

    __tablename__ = "mapping"
    __table_args__ = (sa.UniqueConstraint("subscriber", "version"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    subscriber: Mapped[str] = mapped_column(sa.String(64))
    version: Mapped[int]
    fields: Mapped[list[Any] | None]
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    created_by: Mapped[str] = mapped_column(sa.String(255))


class Unsubscription(Base):
    """A rule that stops data flowing to a subscriber: all, one operation, or some records."""

    __tablename__ = "unsubscription"

    id: Mapped[int] = mapped_column(primary_key=True)
    #: A system (`stripe`) or a subscriber (`stripe.customer`).
    target: Mapped[str] = mapped_column(sa.String(64), index=True)
    #: create, update, delete; none means all.
    operation: Mapped[str | None] = mapped_column(sa.String(8))
    #: True: only the records listed in `unsubscription_record`.
    listed_only: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    until: Mapped[datetime | None]
    reason: Mapped[str] = mapped_column(sa.Text, default="", server_default="")
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    created_by: Mapped[str] = mapped_column(sa.String(255), default="", server_default="")


class UnsubscriptionRecord(Base):
    """One record an unsubscription with `listed_only` covers."""

    __tablename__ = "unsubscription_record"

    unsubscription_id: Mapped[int] = mapped_column(
        sa.ForeignKey("unsubscription.id", ondelete="CASCADE"), primary_key=True
    )
    record_id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)


class Schedule(Base):
    """A periodic job: how often, paused or not, and how its last run ended."""

    __tablename__ = "schedule"

    id: Mapped[int] = mapped_column(primary_key=True)
    job: Mapped[str] = mapped_column(sa.String(80), unique=True)
    every_seconds: Mapped[int]
    paused_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    result: Mapped[str | None] = mapped_column(sa.Text)
    #: Whether the last run that ended did so with an error.
    failed: Mapped[bool] = mapped_column(default=False, server_default=sa.false())


class JobRun(Base):
    """One due run of a job. The unique slot makes it run once, however many schedulers tick."""

    __tablename__ = "job_run"
    __table_args__ = (sa.UniqueConstraint("job", "slot"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    job: Mapped[str] = mapped_column(sa.String(80))
    slot: Mapped[datetime]


class Task(Base):
    """Long work that a person began: how far it is, and who works at it. See `conductor.tasks.runner`."""

    __tablename__ = "task"
    __table_args__ = (_where("ix_task_open", "id", condition="state IN ('running', 'stopping')"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    #: `retry`, `backfill`, `reconcile`.
    kind: Mapped[str] = mapped_column(sa.String(16))
    subscriber: Mapped[str | None] = mapped_column(sa.String(64))
    #: What was asked for, as its kind reads it.
    argument: Mapped[dict[str, Any]]
    #: running, stopping, stopped, done or failed.
    state: Mapped[str] = mapped_column(sa.String(8))
    #: How many pieces there are, where that is known, and of those: handled, well, badly.
    total: Mapped[int | None]
    done: Mapped[int] = mapped_column(default=0, server_default="0")
    succeeded: Mapped[int] = mapped_column(default=0, server_default="0")
    failed: Mapped[int] = mapped_column(default=0, server_default="0")
    #: Where the next step begins, as its kind reads it.
    position: Mapped[dict[str, Any] | None]
    #: How far it is, in words.
    message: Mapped[str | None] = mapped_column(sa.Text)
    by: Mapped[str] = mapped_column(sa.String(255))
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    finished_at: Mapped[datetime | None]
    #: Who does a step just now; without an owner, `lease_until` is when the next step may begin.
    lease_owner: Mapped[str | None] = mapped_column(sa.String(64))
    lease_until: Mapped[datetime | None]


class Process(Base):
    """A running process of the hub, known by its heartbeat."""

    __tablename__ = "process"

    id: Mapped[int] = mapped_column(primary_key=True)
    #: web, relay, worker or scheduler, with host and pid.
    name: Mapped[str] = mapped_column(sa.String(128), unique=True)
    kind: Mapped[str] = mapped_column(sa.String(16))
    started_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    note: Mapped[str | None] = mapped_column(sa.Text)


class AuditEntry(Base):
    """One write by a person: who did what to what, with the values before and after."""

    __tablename__ = "audit_entry"

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(default=utcnow, index=True)
    who: Mapped[str] = mapped_column(sa.String(255))
    action: Mapped[str] = mapped_column(sa.String(64))
    target: Mapped[str] = mapped_column(sa.String(255))
    details: Mapped[dict[str, Any] | None]
