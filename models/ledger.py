"""The ledger: changes, links with their pending work, deliveries, and incoming events.

These tables are the truth; queues only carry notifications. Record ids are text, whatever the type
of the catalogue's key.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, BigId, Json, ShownJson, ShownText, utcnow


def _where(name: str, *columns: str, condition: str, unique: bool = False) -> sa.Index:
    """Return a partial index, which stays small while the history grows."""
    clause = sa.text(condition)
    return sa.Index(name, *columns, unique=unique, postgresql_where=clause, sqlite_where=clause)


class Change(Base):
    """A captured change: a record was created, updated or deleted. The relay reads these as its outbox."""

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
    #: The system that the change came from; none for a change made in the database.
    origin: Mapped[str | None] = mapped_column(sa.String(64))
    #: The writer's unsubscribe list: systems or subscribers, separated by commas.
    unsubscribe: Mapped[str | None] = mapped_column(sa.Text)
    at: Mapped[datetime]
    #: When the relay marked the change as pending in the links.
    relayed_at: Mapped[datetime | None]


class CaptureFault(Base):
    """A write that the capture triggers could not record as a change, or only without its columns (PostgreSQL)."""

    __tablename__ = "capture_fault"

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    catalogue: Mapped[str] = mapped_column(sa.String(64))
    #: The table, with its schema.
    source: Mapped[str] = mapped_column(sa.String(160))
    #: insert, update, delete or truncate.
    event: Mapped[str] = mapped_column(sa.String(8))
    #: Whether no change was recorded; otherwise each row of the statement counts as changed.
    is_lost: Mapped[bool]
    #: The SQLSTATE and PostgreSQL's message.
    code: Mapped[str] = mapped_column(sa.String(5))
    reason: Mapped[str] = mapped_column(sa.Text)
    at: Mapped[datetime]


class CaptureState(Base):
    """What the last look at the capture triggers of a catalogue found."""

    __tablename__ = "capture_state"

    catalogue: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    #: The last look that found every write captured.
    intact_at: Mapped[datetime | None]
    #: Since when writes may not be captured, and why; none while all are.
    broken_since: Mapped[datetime | None]
    reason: Mapped[str | None] = mapped_column(sa.Text)


class SyncContext(Base):
    """SQLite only: origin and unsubscribe list of a write, in one row that only its transaction sees."""

    __tablename__ = "sync_context"

    id: Mapped[int] = mapped_column(primary_key=True)
    origin: Mapped[str | None] = mapped_column(sa.String(64))
    unsubscribe: Mapped[str | None] = mapped_column(sa.Text)


class DisplacedRow(Base):
    """SQLite only: rows that a write may displace by REPLACE, between its BEFORE and its AFTER trigger."""

    __tablename__ = "displaced_row"

    id: Mapped[int] = mapped_column(primary_key=True)
    catalogue: Mapped[str] = mapped_column(sa.String(64))
    record_id: Mapped[str] = mapped_column(sa.String(64))
    #: The key as the table holds it.
    key: Mapped[str] = mapped_column(sa.Text)


_OWED = "owed_change > synced_change AND dead_at IS NULL"


class Link(Base):
    """The state of one record in one system: external id, base of the merge, and pending work."""

    __tablename__ = "link"
    __table_args__ = (
        # Each index is written with every delivery, so each serves two queries: the link of a record (or external
        # record) to one subscriber, and all links of it.
        sa.UniqueConstraint("record_id", "subscriber"),
        sa.UniqueConstraint("external_id", "subscriber"),
        _where("ix_link_owed", "subscriber", "id", condition=_OWED),
        _where("ix_link_owed_since", "subscriber", "owed_since", condition=_OWED),
        _where("ix_link_failing", "subscriber", "owed_since", condition="attempts > 0 AND dead_at IS NULL"),
        _where("ix_link_retry", "retry_at", condition="retry_at IS NOT NULL"),
        _where("ix_link_skipped", "unsubscription_id", condition="unsubscription_id IS NOT NULL"),
        _where("ix_link_dead_letter", "dead_letter_id", condition="dead_letter_id IS NOT NULL"),
        _where("ix_link_blocked_by", "blocked_by", condition="blocked_by IS NOT NULL"),
        _where("ix_link_creating", "subscriber", condition="create_token IS NOT NULL"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    #: `system.catalogue`, the subscriber's name and the name of its queue.
    subscriber: Mapped[str] = mapped_column(sa.String(64))
    record_id: Mapped[str] = mapped_column(sa.String(64))
    external_id: Mapped[str | None] = mapped_column(sa.String(255))

    #: Grows with every pending change, at least to its id. Work is pending while `owed_change > synced_change`.
    owed_change: Mapped[int] = mapped_column(sa.BigInteger, default=0, server_default="0")
    synced_change: Mapped[int] = mapped_column(sa.BigInteger, default=0, server_default="0")
    #: When the oldest pending change was captured.
    owed_since: Mapped[datetime | None]
    #: The same without the changes that a delivery has claimed: what `owed_since` becomes when they are delivered.
    next_owed_since: Mapped[datetime | None]
    #: When the pending work was last published to the subscriber's queue.
    published_at: Mapped[datetime | None]
    synced_at: Mapped[datetime | None]

    #: External field -> mapped value when database and system were last in sync: the base of the merge.
    base: Mapped[dict[str, Any] | None]
    #: External field -> value as the system stores it, only where that differs from `base`.
    remote_values: Mapped[dict[str, Any] | None]
    #: External field of direction `out` -> the external value that our last delivery overwrote.
    overridden_values: Mapped[dict[str, Any] | None]
    #: By the system's clock: the time of the newest external state that was merged, and of our last write.
    last_seen_at: Mapped[datetime | None]
    last_write_at: Mapped[datetime | None]
    #: The system's name of the newest state of which all values are known here, for its conditional writes.
    remote_version: Mapped[str | None] = mapped_column(sa.String(255))
    #: When the records were unlinked; the external id is kept to recognise late events.
    unlinked_at: Mapped[datetime | None]
    #: True: the external record was deleted in its system; False: the hub unlinked it.
    deleted_remotely: Mapped[bool] = mapped_column(default=False, server_default=sa.false())

    #: The idempotency key of a create whose outcome is unknown.
    create_token: Mapped[str | None] = mapped_column(sa.String(64))
    #: The create was done, but its response had no id: it is never sent again.
    created_without_id: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    #: Field -> value of a create or update that was sent; None again when its outcome is known.
    unconfirmed_write: Mapped[dict[str, Any] | None]
    #: The sibling fields (`fields`) that our last writes sent back unchanged within nested objects. An external edit
    #: of them between the read (`since`, by the system's clock) and the write (`until`) was overwritten.
    write_windows: Mapped[list[dict[str, Any]] | None]
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    retry_at: Mapped[datetime | None]
    lease_owner: Mapped[str | None] = mapped_column(sa.String(64))
    lease_until: Mapped[datetime | None]
    dead_at: Mapped[datetime | None]
    #: The open dead letter, also while the record is retried.
    dead_letter_id: Mapped[int | None] = mapped_column(BigId)
    #: The unsubscription that covered the record at the last delivery.
    unsubscription_id: Mapped[int | None]
    #: The link of a related record that must be delivered first.
    blocked_by: Mapped[int | None] = mapped_column(BigId)
    #: The number of open conflicts.
    open_conflicts: Mapped[int] = mapped_column(default=0, server_default="0")


class LostRecord(Base):
    """An external record that turned out to be gone, with what its link knew of it: it may be linked again.

    Another account's login reports every record as gone.
    """

    __tablename__ = "lost_record"
    __table_args__ = (sa.Index("ix_lost_record_system", "system", "at"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    system: Mapped[str] = mapped_column(sa.String(64))
    link_id: Mapped[int] = mapped_column(BigId)
    external_id: Mapped[str] = mapped_column(sa.String(255))
    base: Mapped[dict[str, Any] | None]
    remote_values: Mapped[dict[str, Any] | None]
    at: Mapped[datetime]


class Delivery(Base):
    """One attempt to deliver a record to a system, or to apply one from it, and its outcome."""

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
    #: create, update, delete, archive, unlink, match, merge (in: some fields applied, others kept) or none.
    operation: Mapped[str] = mapped_column(sa.String(16))
    #: delivered, unchanged, skipped, failed, dead, waiting (out); applied, echo, kept, skipped, dead (in).
    outcome: Mapped[str] = mapped_column(sa.String(16))
    #: The rule that skipped the record, or the system's message of a failure.
    reason: Mapped[str | None] = mapped_column(ShownText())
    error: Mapped[str | None] = mapped_column(sa.String(64))
    #: External field -> value that was sent or received.
    payload: Mapped[dict[str, Any] | None] = mapped_column(ShownJson())
    #: The system's response: JSON or text, redacted and shortened, see `redaction.response_text`.
    response: Mapped[str | None] = mapped_column(ShownText())
    #: The inbox row of an inward delivery; none for a record that a poll applied.
    inbox_id: Mapped[int | None] = mapped_column(BigId)
    attempt: Mapped[int] = mapped_column(default=1, server_default="1")
    #: The system's id of the call, for its support.
    request_id: Mapped[str | None] = mapped_column(ShownText(128))
    at: Mapped[datetime] = mapped_column(default=utcnow)
    #: Duration of the call in milliseconds; a bulk call counts in full for each of its records.
    duration: Mapped[float | None]


class Throughput(Base):
    """The number of deliveries of one subscriber in one minute or hour, for charts."""

    __tablename__ = "throughput"
    __table_args__ = (sa.UniqueConstraint("seconds", "at", "subscriber"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    #: The length of the interval, 60 or 3600, and its start.
    seconds: Mapped[int]
    at: Mapped[datetime]
    subscriber: Mapped[str] = mapped_column(sa.String(64))
    #: Outward deliveries; inward ones; failed attempts; new dead letters.
    delivered: Mapped[int]
    received: Mapped[int]
    failed: Mapped[int]
    dead: Mapped[int]


class ThroughputWatermark(Base):
    """How far deliveries are counted. One row, which is also the lock of the counting process."""

    __tablename__ = "throughput_watermark"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: Deliveries up to this id are in `throughput`.
    counted_to: Mapped[int] = mapped_column(sa.BigInteger, default=0, server_default="0")
    #: PostgreSQL: the newest id at the last count, and the transactions that were open then.
    top: Mapped[int] = mapped_column(sa.BigInteger, default=0, server_default="0")
    writers: Mapped[list[Any] | None]


class DeadLetter(Base):
    """A delivery, outward or inward, that needs an operator; closed when it is resolved or discarded."""

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
    #: The class of the error, and a hash of its message without varying parts; both group similar dead letters.
    error: Mapped[str] = mapped_column(sa.String(64))
    fingerprint: Mapped[str] = mapped_column(sa.String(64))
    #: The error's cause, which names the remedy.
    code: Mapped[str] = mapped_column(sa.String(64), default="failed", server_default="failed")
    message: Mapped[str] = mapped_column(ShownText())
    #: External field -> the system's message.
    fields: Mapped[dict[str, Any] | None] = mapped_column(ShownJson(names=False))
    payload: Mapped[dict[str, Any] | None] = mapped_column(ShownJson())
    traceback: Mapped[str | None] = mapped_column(ShownText())
    at: Mapped[datetime] = mapped_column(default=utcnow)
    closed_at: Mapped[datetime | None]
    #: The end: delivered, or discarded with the operator's reason.
    resolution: Mapped[str | None] = mapped_column(ShownText())
    #: The task that last retried it.
    task_id: Mapped[int | None] = mapped_column(BigId)


class Conflict(Base):
    """A field that changed on both sides and needs an operator's decision, with both values and the base.

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
    #: ours, theirs, or agreed (both sides got the same value).
    choice: Mapped[str | None] = mapped_column(sa.String(8))


class CallSlot(Base):
    """One of the concurrent calls that the limit of a system allows, over all processes."""

    __tablename__ = "call_slot"
    __table_args__ = (sa.UniqueConstraint("system", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    system: Mapped[str] = mapped_column(sa.String(64))
    number: Mapped[int]
    owner: Mapped[str | None] = mapped_column(sa.String(64))
    until: Mapped[datetime | None]


class Inbox(Base):
    """An incoming event: a webhook, stored before it is acknowledged, or a polled record to apply later."""

    __tablename__ = "inbox"
    __table_args__ = (
        sa.UniqueConstraint("system", "event_id"),
        _where("ix_inbox_waiting", "id", condition="state = 'waiting'"),
        _where("ix_inbox_dead", "id", condition="state = 'dead'"),
        _where("ix_inbox_waits_for", "waits_for", condition="waits_for IS NOT NULL"),
        _where("ix_inbox_polled", "subscriber", condition="state = 'waiting' AND subscriber IS NOT NULL"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    system: Mapped[str] = mapped_column(sa.String(64))
    event_id: Mapped[str] = mapped_column(sa.String(255))
    #: The system's type of the event, such as `customer.updated`.
    kind: Mapped[str] = mapped_column(sa.String(64), default="", server_default="")
    body: Mapped[str] = mapped_column(sa.Text)
    headers: Mapped[dict[str, Any] | None] = mapped_column(ShownJson())
    received_at: Mapped[datetime] = mapped_column(default=utcnow)
    #: The subscriber of a polled record; none for a webhook.
    subscriber: Mapped[str | None] = mapped_column(sa.String(64))
    #: waiting, done or dead.
    state: Mapped[str] = mapped_column(sa.String(8), default="waiting", server_default="waiting")
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    #: When it is published again if it is still waiting.
    retry_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    #: What was done with it, as text.
    result: Mapped[str | None] = mapped_column(ShownText())
    #: The related record that is to be linked before this one is complete: subscriber, space, external id.
    waits_for: Mapped[str | None] = mapped_column(sa.String(320))


class RefusedWebhook(Base):
    """A refused webhook, and the reason. Anyone can send webhooks, so only the newest of each system are kept.

    They are kept in a ring: the n-th refused one goes to slot n modulo their number.
    """

    __tablename__ = "refused_webhook"
    __table_args__ = (sa.UniqueConstraint("system", "slot"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    system: Mapped[str] = mapped_column(sa.String(64))
    slot: Mapped[int]
    at: Mapped[datetime]
    reason: Mapped[str] = mapped_column(ShownText())
    #: Redacted and shortened; of the body, only the beginning.
    headers: Mapped[dict[str, Any] | None] = mapped_column(ShownJson())
    body: Mapped[str] = mapped_column(ShownText())
    #: Bytes of the whole body.
    size: Mapped[int]


class Cursor(Base):
    """The position of the polls of one subscriber."""

    __tablename__ = "cursor"

    id: Mapped[int] = mapped_column(primary_key=True)
    subscriber: Mapped[str] = mapped_column(sa.String(64), unique=True)
    position: Mapped[dict[str, Any] | None]
    polled_at: Mapped[datetime | None]
    #: When the last complete poll began: what was changed in the system before has been seen.
    seen_until: Mapped[datetime | None]
    #: When polls began to fail; none while they succeed.
    failing_since: Mapped[datetime | None]
    result: Mapped[str | None] = mapped_column(ShownText())
    #: What the system could no longer report to a poll, and since when that is known; none after a reconcile.
    gap: Mapped[str | None] = mapped_column(ShownText())
    gap_since: Mapped[datetime | None]
    #: The lease of the running poll: only one poll of a subscriber runs at a time.
    poller: Mapped[str | None] = mapped_column(sa.String(64))
    polling_until: Mapped[datetime | None]


class System(Base):
    """The state of one external system: paused by an operator, or down."""

    __tablename__ = "system"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(64), unique=True)
    paused_at: Mapped[datetime | None]
    paused_by: Mapped[str | None] = mapped_column(sa.String(255))
    pause_reason: Mapped[str | None] = mapped_column(ShownText())
    down_since: Mapped[datetime | None]
    down_reason: Mapped[str | None] = mapped_column(ShownText())
    #: While down: when one record may be tried as a probe, and how many probes have failed.
    probe_at: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(default=0, server_default="0")
    #: Records that failed without a response: `streak` since the last one that was processed, `suspects` before it.
    failing: Mapped[dict[str, Any] | None]
    #: When it last recovered or was resumed: work that was published before is published again.
    up_since: Mapped[datetime | None]
    last_success_at: Mapped[datetime | None]
    #: The rate limit in the last response: remaining calls, limit, time of the reset; and the time of the response.
    rate_remaining: Mapped[int | None]
    rate_limit: Mapped[int | None]
    rate_reset_at: Mapped[datetime | None]
    rate_seen_at: Mapped[datetime | None]
    #: Seconds by which the system's clock is ahead of ours, by its last response.
    clock_offset: Mapped[int | None]
    #: For a system with a rate limit: when the next call of any process may begin.
    next_call_at: Mapped[datetime | None]
    #: The account that the login belonged to at the first contact, and another one that it leads to now.
    account: Mapped[str | None] = mapped_column(sa.String(255))
    other_account: Mapped[str | None] = mapped_column(sa.String(255))
    #: The delete guard: deletions to and from the system, start of the window, and end of an operator's approval.
    deletes: Mapped[int] = mapped_column(default=0, server_default="0")
    deletes_since: Mapped[datetime | None]
    deletes_allowed_until: Mapped[datetime | None]
    #: The number of refused webhooks; `refused_webhook` keeps the newest.
    webhooks_rejected: Mapped[int] = mapped_column(default=0, server_default="0")
    webhook_rejected_at: Mapped[datetime | None]


class Hub(Base):
    """This hub, in one row. Its id is part of the mark of each external record that it creates."""

    __tablename__ = "hub"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: Eight hexadecimal digits.
    hub_id: Mapped[str] = mapped_column(sa.String(8))


class OtherHub(Base):
    """Another hub whose mark was seen in a system, and the first record that had it."""

    __tablename__ = "other_hub"

    system: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    hub_id: Mapped[str] = mapped_column(sa.String(8), primary_key=True)
    external_id: Mapped[str] = mapped_column(sa.String(255))
    seen_at: Mapped[datetime]


class Mapping(Base):
    """One version of a subscriber's `field_to_data` from the panel; the newest is in force.

    `fields` is a list of rows, see `subscribers.mapping.fields.FieldRow`; none restores the mapping of the code.
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
    """A rule that stops deliveries to a subscriber: all of them, one operation, or some records."""

    __tablename__ = "unsubscription"

    id: Mapped[int] = mapped_column(primary_key=True)
    #: A system (`stripe`) or a subscriber (`stripe.customer`).
    target: Mapped[str] = mapped_column(sa.String(64), index=True)
    #: create, update or delete; none for all.
    operation: Mapped[str | None] = mapped_column(sa.String(8))
    #: True: only the records listed in `unsubscription_record`.
    listed_only: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    until: Mapped[datetime | None]
    reason: Mapped[str] = mapped_column(sa.Text, default="", server_default="")
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    created_by: Mapped[str] = mapped_column(sa.String(255), default="", server_default="")


class UnsubscriptionRecord(Base):
    """One record of an unsubscription with `listed_only`."""

    __tablename__ = "unsubscription_record"

    unsubscription_id: Mapped[int] = mapped_column(
        sa.ForeignKey("unsubscription.id", ondelete="CASCADE"), primary_key=True
    )
    record_id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)


class Schedule(Base):
    """A periodic job: its interval, whether it is paused, and the result of its last run."""

    __tablename__ = "schedule"

    id: Mapped[int] = mapped_column(primary_key=True)
    job: Mapped[str] = mapped_column(sa.String(80), unique=True)
    every_seconds: Mapped[int]
    paused_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    result: Mapped[str | None] = mapped_column(ShownText())
    #: Whether the last finished run failed.
    failed: Mapped[bool] = mapped_column(default=False, server_default=sa.false())


class JobRun(Base):
    """One due run of a job. The unique slot makes it run once, with any number of schedulers."""

    __tablename__ = "job_run"
    __table_args__ = (sa.UniqueConstraint("job", "slot"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    job: Mapped[str] = mapped_column(sa.String(80))
    slot: Mapped[datetime]


class Task(Base):
    """A long operation that an operator started, its progress and its lease; see `conductor.tasks.runner`."""

    __tablename__ = "task"
    __table_args__ = (_where("ix_task_open", "id", condition="state IN ('running', 'stopping')"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    #: `retry`, `backfill`, `reconcile`.
    kind: Mapped[str] = mapped_column(sa.String(16))
    subscriber: Mapped[str | None] = mapped_column(sa.String(64))
    #: The parameters of its kind.
    argument: Mapped[dict[str, Any]]
    #: running, stopping, stopped, done or failed.
    state: Mapped[str] = mapped_column(sa.String(8))
    #: The number of items, if it is known, and how many are done, have succeeded, have failed.
    total: Mapped[int | None]
    done: Mapped[int] = mapped_column(default=0, server_default="0")
    succeeded: Mapped[int] = mapped_column(default=0, server_default="0")
    failed: Mapped[int] = mapped_column(default=0, server_default="0")
    #: The start of the next step, for its kind.
    position: Mapped[dict[str, Any] | None]
    #: The progress or result as text.
    message: Mapped[str | None] = mapped_column(ShownText())
    by: Mapped[str] = mapped_column(sa.String(255))
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    finished_at: Mapped[datetime | None]
    #: The process that runs a step; without an owner, `lease_until` is when the next step may begin.
    lease_owner: Mapped[str | None] = mapped_column(sa.String(64))
    lease_until: Mapped[datetime | None]


class Process(Base):
    """A running process of the hub, with its last heartbeat."""

    __tablename__ = "process"

    id: Mapped[int] = mapped_column(primary_key=True)
    #: web, relay, worker or scheduler, with host and pid.
    name: Mapped[str] = mapped_column(sa.String(128), unique=True)
    kind: Mapped[str] = mapped_column(sa.String(16))
    started_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    note: Mapped[str | None] = mapped_column(ShownText())


class AuditEntry(Base):
    """One action of an operator: user, action and target, with the values before and after."""

    __tablename__ = "audit_entry"

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(default=utcnow, index=True)
    who: Mapped[str] = mapped_column(sa.String(255))
    action: Mapped[str] = mapped_column(sa.String(64))
    target: Mapped[str] = mapped_column(sa.String(255))
    details: Mapped[dict[str, Any] | None] = mapped_column(ShownJson())
