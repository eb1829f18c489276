"""The conductor: the MainClass. It keeps the list of subscribers and decides who is owed what and
when their methods are called. Actors, routes and commands call it and decide nothing themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from conductor.conflicts import ConflictResolution
from conductor.context import Context
from conductor.dead_letters.operations import DeadLetterOperations
from conductor.dead_letters.store import DeadLetterFilter, DeadLetterStore
from conductor.inward.applying import InboundApplier
from conductor.inward.inbox import Inward
from conductor.links.relations import Relations
from conductor.mappings.preview import Effect, Preview, Previews
from conductor.mappings.store import MappingRefused, Mappings
from conductor.outward.delivery import Outward
from conductor.outward.results import ResultWriter
from conductor.outward.routing import Routing
from conductor.policy import Policy
from conductor.publisher import Publisher, QueueReport
from conductor.records import Records
from conductor.reports import overview as views
from conductor.reports.throughput import ThroughputCounter
from conductor.schedule import JobScheduler
from conductor.systems.caller import SystemCaller
from conductor.systems.circuit_breaker import CircuitBreaker
from conductor.systems.concurrency import Limits
from conductor.systems.connection_check import Checking, Finding
from conductor.systems.control import SystemControl
from conductor.systems.delete_guard import DeleteGuard
from conductor.tasks.backfill import Backfill
from conductor.tasks.check_connection import Connection
from conductor.tasks.discard_dead_letters import Discarding
from conductor.tasks.reconcile import Reconcile
from conductor.tasks.replay_webhooks import Replaying
from conductor.tasks.resend_records import Resending
from conductor.tasks.resolve_conflicts import Alike
from conductor.tasks.retry_dead_letters import Retrying
from conductor.tasks.runner import TaskRunner
from conductor.unsubscriptions import Unsubscriptions
from models.base import utcnow
from models.session import Database
from subscribers.base import Subscriber
from subscribers.mapping.mapper import Mapper

#: Who pushed a record, in the audit trail, where a program of the database's owner did.
API = "API"


class Conductor:
    """Everything Syncflow can do, over one database and one set of connected subscribers."""

    def __init__(
        self,
        database: Database,
        subscribers: Mapping[str, Subscriber],
        publisher: Publisher,
        policy: Policy | None = None,
        clock: Callable[[], datetime] = utcnow,
    ) -> None:
        self.context = Context(database, subscribers, publisher, policy or Policy(), clock)
        self.breaker = CircuitBreaker(self.context)
        self.letters = DeadLetterStore(self.context)
        self.dead_letters = DeadLetterOperations(self.context, self.letters)
        self.mappings = Mappings(self.context)
        self.relations = Relations(self.context)
        self.limits = Limits(self.context)
        self.guard = DeleteGuard(self.context)
        self.routing = Routing(self.context)
        settling = ResultWriter(self.context, self.breaker, self.letters, self.relations)
        self.outward = Outward(
            self.context, self.breaker, self.mappings, self.relations, settling, self.limits, self.guard
        )
        applying = InboundApplier(self.context, self.relations, self.guard)
        self.inward = Inward(self.context, self.breaker, self.mappings, self.letters, applying, self.guard, self.limits)
        self.systems = SystemControl(self.context, self.breaker)
        self.unsubscriptions = Unsubscriptions(self.context)
        self.conflicts = ConflictResolution(self.context, self.mappings, self.relations)
        self.records = Records(self.context)
        self.previews = Previews(self.context, self.mappings, self.relations)
        self.throughput = ThroughputCounter(self.context)
        self.schedule = JobScheduler(self.context, self.throughput)
        self.tasks = TaskRunner(self.context)
        self.retrying = Retrying(self.context, self.letters, self.tasks)
        self.discarding = Discarding(self.context, self.letters, self.tasks)
        self.replaying = Replaying(self.context, self.tasks)
        self.alike = Alike(self.context, self.conflicts, self.tasks)
        self.resending = Resending(self.context, self.mappings, self.relations, self.tasks)
        self.caller = SystemCaller(self.context, self.breaker, self.limits)
        self.filling = Backfill(self.context, self.mappings, self.letters, applying, self.caller, self.tasks)
        self.checking = Checking(self.context, self.mappings)
        self.connection = Connection(self.context, self.checking, self.tasks)
        self.comparing = Reconcile(self.context, self.mappings, self.relations, self.inward, self.caller, self.tasks)

    def prepare(self) -> None:
        """Make sure that systems and jobs have their rows; every process does it at its start."""
        self.breaker.ensure_rows()
        self.schedule.ensure_rows()
        self.limits.attach()

    def stop(self) -> None:
        """From now on finish only what is in hand; the rest goes back to its queue."""
        self.context.stopping.set()

    @property
    def database(self) -> Database:
        """The internal database, which also holds the ledger."""
        return self.context.database

    @property
    def subscribers(self) -> Mapping[str, Subscriber]:
        """The connected subscribers by name."""
        return self.context.subscribers

    # --- outward ------------------------------------------------------------------------------------

    def relay(self) -> int:
        """Route waiting changes and announce them; how many there were. See `Routing.relay`."""
        return self.routing.relay()

    def sweep(self, *, everything: bool = False) -> int:
        """Announce again what is owed and does not move. See `Routing.sweep`."""
        return self.routing.sweep(everything=everything)

    def deliver(self, subscriber: str, record_ids: Sequence[str]) -> None:
        """Bring these records of one subscriber up to date. See `Outward.deliver`."""
        self.outward.deliver(subscriber, record_ids)

    def push(self, catalogue: str, record_id: str, unsubscribe: Iterable[str] = (), by: str = API) -> int:
        """Deliver a record to all its subscribers except these. See `Records.push`."""
        return self.records.push(catalogue, record_id, unsubscribe, by)

    # --- inward -------------------------------------------------------------------------------------

    def store_webhook(self, system: str, body: bytes, headers: Mapping[str, str]) -> bool:
        """Verify and store a webhook; True if it is new. See `Inward.store_webhook`."""
        return self.inward.store_webhook(system, body, headers)

    def acknowledgement(self, system: str, body: bytes) -> tuple[str, str] | None:
        """How a stored webhook is to be answered. See `Inward.acknowledgement`."""
        return self.inward.acknowledgement(system, body)

    def receive(self, inbox_id: int) -> None:
        """Apply a stored webhook. See `Inward.receive`."""
        self.inward.receive(inbox_id)

    def poll(self, subscriber: str) -> int:
        """Read what changed in a system; how many records came in. See `Inward.poll`."""
        return self.inward.poll(subscriber)

    # --- people -------------------------------------------------------------------------------------

    def retry(self, letters: DeadLetterFilter, by: str) -> int:
        """Try dead letters again. See `DeadLetterOperations.retry`."""
        return self.dead_letters.retry(letters, by)

    def retry_many(self, letters: DeadLetterFilter, by: str) -> int:
        """Try dead letters again as a task, a few hundred at a time; its id. See `Retrying.start`."""
        return self.retrying.start(letters, by)

    def backfill(self, subscriber: str, by: str, where: Mapping[str, str] | None = None) -> int:
        """Bring the records there are to a subscriber, as a task; its id. See `Backfill.start`."""
        return self.filling.start(subscriber, by, where)

    def reconcile(self, subscriber: str, by: str, *, repair: bool = False) -> int:
        """Find (and repair) what drifted apart, as a task; its id. See `Reconcile.start`."""
        return self.comparing.start(subscriber, by, repair=repair)

    def check(self, system: str) -> dict[str, list[Finding]]:
        """Whether a system lets its subscribers do their work. See `Checking.check`."""
        return self.checking.check(system)

    def discard(self, letters: DeadLetterFilter, by: str, reason: str) -> int:
        """Close dead letters unsent. See `DeadLetterOperations.discard`."""
        return self.dead_letters.discard(letters, by, reason)

    def discard_many(self, letters: DeadLetterFilter, by: str, reason: str) -> int:
        """Close dead letters unsent as a task, a few hundred at a time; its id. See `Discarding.start`."""
        return self.discarding.start(letters, by, reason)

    def pause(self, system: str, by: str, reason: str) -> None:
        """Until its callers are moved: `systems.pause`."""
        self.systems.pause(system, by, reason)

    def resume(self, system: str, by: str, *, allow_deletes: bool = False) -> None:
        """Until its callers are moved: `systems.resume`."""
        self.systems.resume(system, by, allow_deletes=allow_deletes)

    def poll_soon(self, subscriber: str, by: str) -> None:
        """Until its callers are moved: `systems.poll_now`."""
        self.systems.poll_now(subscriber, by)

    def missed(self, unsubscription_id: int) -> int:
        """Until its callers are moved: `unsubscriptions.missed`."""
        return self.unsubscriptions.missed(unsubscription_id)

    def unsubscribe(
        self,
        target: str,
        operation: str | None,
        record_ids: list[str] | None,
        until: datetime | None,
        reason: str,
        by: str,
    ) -> int:
        """Until its callers are moved: `unsubscriptions.create`."""
        return self.unsubscriptions.create(target, operation, record_ids, until, reason, by)

    def lift(self, unsubscription_id: int, by: str, *, bring: bool = False) -> int:
        """Until its callers are moved: `unsubscriptions.lift`."""
        return self.unsubscriptions.lift(unsubscription_id, by, deliver=bring)

    def settle_conflict(self, conflict_id: int, choice: Literal["ours", "theirs"], by: str) -> None:
        """Until its callers are moved: `conflicts.resolve`."""
        self.conflicts.resolve(conflict_id, choice, by)

    def settle_alike(self, subscriber: str, path: str, choice: Literal["ours", "theirs"], by: str) -> int:
        """Decide all conflicts of one field alike, as a task. See `Alike.start`."""
        return self.alike.start(subscriber, path, choice, by)

    def mapping(self, subscriber: str) -> tuple[Mapper, int]:
        """The mapping in force and its version. See `Mappings.current`."""
        with self.database.read() as connection:
            try:
                return self.mappings.current(connection, subscriber)
            except MappingRefused:
                # Saved once and out of date since: the code's own is the place to start mending it from.
                return self.subscribers[subscriber].default_mapper, self.mappings.version(connection, subscriber)

    def save_mapping(self, subscriber: str, rows: list[dict[str, Any]] | None, by: str, expected_version: int) -> int:
        """Save a mapping. See `Mappings.save`."""
        return self.mappings.save(subscriber, rows, by, expected_version)

    def preview_mapping(self, subscriber: str, rows: list[dict[str, Any]], record_id: str) -> Preview | None:
        """One record through a mapping that is not saved. See `Previews.record`."""
        return self.previews.record(subscriber, rows, record_id)

    def resend(self, subscriber: str, by: str) -> int:
        """Send again what the mapping in force makes different, as a task. See `Resending.start`."""
        return self.resending.start(subscriber, by)

    def mapping_effect(self, subscriber: str, rows: list[dict[str, Any]]) -> Effect:
        """How many records it would change. See `Previews.effect`."""
        return self.previews.effect(subscriber, rows)

    def overview_version(self) -> views.OverviewVersion:
        """Whether the overview may be another; much cheaper than it. See `conductor.reports.overview`."""
        with self.database.read_autocommit() as connection:
            return views.overview_version(self.context, connection)

    def overview(self, seen: views.OverviewVersion | None = None) -> views.Overview:
        """How everything stands, for somebody who may have glanced at it. See `conductor.reports.overview`."""
        with self.database.read_autocommit() as connection:
            return views.overview(self.context, connection, seen or views.overview_version(self.context, connection))

    def queues(self) -> QueueReport:
        """The broker's queues. See `Publisher.queues`."""
        return self.context.publisher.queues()
