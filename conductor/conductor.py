"""The conductor: it knows all subscribers and decides when their methods are called.

Actors, routes and commands call it and decide nothing themselves. The verbs of the engine are its methods; what an
operator does and sees is offered by its services, which are attributes named like the folders and files of conductor/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

from conductor.capture_watch import CaptureWatch
from conductor.conflicts import ConflictResolution
from conductor.context import Context
from conductor.dead_letters.operations import DeadLetterOperations
from conductor.dead_letters.store import DeadLetterStore
from conductor.hub import HubIdentity
from conductor.inward import Inward
from conductor.inward.relinking import Relinking
from conductor.inward.replay import InboxReplay
from conductor.links.relations import Relations
from conductor.mappings.preview import Previews
from conductor.mappings.store import Mappings
from conductor.outward.delivery import Outward
from conductor.outward.loading import BatchLoader
from conductor.outward.recovery import Recovery
from conductor.outward.results import ResultWriter
from conductor.outward.routing import Routing
from conductor.outward.sending import Sender
from conductor.policy import Policy
from conductor.publisher import Publisher
from conductor.records import Records
from conductor.reports import Reports
from conductor.retention import Retention
from conductor.schedule import JobScheduler
from conductor.systems.caller import SystemCaller
from conductor.systems.circuit_breaker import CircuitBreaker
from conductor.systems.concurrency import ConcurrencyLimiter
from conductor.systems.connection_check import ConnectionCheck
from conductor.systems.control import SystemControl
from conductor.systems.delete_guard import DeleteGuard
from conductor.systems.outages import OutageDetector
from conductor.systems.rate_limits import RateLimiter
from conductor.tasks.kinds import make_task_runner
from conductor.tasks.services import Services
from conductor.throughput_counter import ThroughputCounter
from conductor.unsubscriptions import Unsubscriptions
from models.base import utcnow
from models.catalogues import note_generated
from models.session import Database
from subscribers.base import Subscriber

#: The name in the audit trail where a program pushed a record.
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
        self.rate_limits = RateLimiter(self.context)
        self.concurrency = ConcurrencyLimiter(self.context)
        self.guard = DeleteGuard(self.context)
        self.outages = OutageDetector(self.context)
        self.routing = Routing(self.context)
        self.recovery = Recovery(self.context)
        self.inward = Inward(
            self.context,
            self.breaker,
            self.mappings,
            self.letters,
            self.relations,
            self.guard,
            self.concurrency,
            self.outages,
        )
        self.outward = Outward(
            self.context,
            self.breaker,
            BatchLoader(self.context, self.breaker, self.mappings, self.relations),
            Sender(self.context, self.concurrency, self.outages),
            ResultWriter(self.context, self.breaker, self.letters, self.relations, self.guard),
            self.concurrency,
            self.guard,
            self.inward.inbox.refetch,
            self.inward.remote_edits,
        )
        self.identity = HubIdentity(self.context)
        self.systems = SystemControl(self.context, self.breaker)
        self.unsubscriptions = Unsubscriptions(self.context)
        self.conflicts = ConflictResolution(self.context, self.mappings, self.relations)
        self.records = Records(self.context)
        self.previews = Previews(self.context, self.mappings, self.relations)
        self.throughput = ThroughputCounter(self.context)
        self.schedule = JobScheduler(self.context, Retention(self.context, self.throughput))
        self.reports = Reports(self.context)
        self.caller = SystemCaller(self.context, self.breaker, self.concurrency, self.outages)
        self.connection_check = ConnectionCheck(self.context, self.mappings)
        self.replay = InboxReplay(self.context, self.letters)
        self.relinking = Relinking(self.context, self.letters, self.systems)
        self.tasks = make_task_runner(
            Services(
                context=self.context,
                mappings=self.mappings,
                relations=self.relations,
                letters=self.letters,
                conflicts=self.conflicts,
                applier=self.inward.applying,
                inbox=self.inward.inbox,
                replay=self.replay,
                caller=self.caller,
                connection_check=self.connection_check,
            )
        )
        self.capture = CaptureWatch(self.context, self.tasks)

    def prepare(self) -> None:
        """Make sure that hub, systems, jobs and slots have their rows. Every process calls this when it starts."""
        self.breaker.ensure_rows()
        self.schedule.ensure_rows()
        self.identity.hub_id()
        self.rate_limits.attach()
        self.concurrency.ensure_slots()
        with self.database.read() as connection:
            note_generated(connection)

    def stop(self) -> None:
        """Finish the calls in progress; all other work goes back to its queue."""
        self.context.stopping.set()

    @property
    def database(self) -> Database:
        """The internal database, which also holds the ledger."""
        return self.context.database

    @property
    def subscribers(self) -> Mapping[str, Subscriber]:
        """The connected subscribers by name."""
        return self.context.subscribers

    def of_system(self, system: str) -> list[Subscriber]:
        """Return the subscribers of a system."""
        return self.context.of_system(system)

    def of_catalogue(self, catalogue: str) -> list[Subscriber]:
        """Return the subscribers that follow a catalogue."""
        return self.context.of_catalogue(catalogue)

    # --- outward ------------------------------------------------------------------------------------

    def relay(self) -> int:
        """Route waiting changes and publish them; return how many there were. See `Routing.relay`."""
        return self.routing.relay()

    def sweep(self, *, everything: bool = False) -> int:
        """Publish due retries and stalled work again; return how much. See `Recovery.sweep`.

        `everything`: the hub has just started. Systems are then polled before what they are owed goes out.
        """
        if everything:
            self.inward.polling.forget_seen()
        return self.recovery.sweep(everything=everything)

    def deliver(self, subscriber: str, record_ids: Sequence[str]) -> None:
        """Bring these records of one subscriber up to date. See `Outward.deliver`."""
        self.outward.deliver(subscriber, record_ids)

    def push(self, catalogue: str, record_id: str, unsubscribe: Iterable[str] = (), by: str = API) -> int:
        """Deliver a record to all its subscribers except these. See `Records.push`."""
        return self.records.push(catalogue, record_id, unsubscribe, by)

    # --- inward -------------------------------------------------------------------------------------

    def store_webhook(self, system: str, body: bytes, headers: Mapping[str, str]) -> bool:
        """Verify and store a webhook; return whether it is new. See `Webhooks.store`."""
        return self.inward.webhooks.store(system, body, headers)

    def acknowledgement(self, system: str, body: bytes) -> tuple[str, str] | None:
        """Return the response to a stored webhook, if its system expects one. See `Webhooks.acknowledgement`."""
        return self.inward.webhooks.acknowledgement(system, body)

    def receive(self, inbox_id: int) -> None:
        """Apply a stored webhook. See `InboxProcessor.process`."""
        self.inward.inbox.process(inbox_id)

    def poll(self, subscriber: str) -> int:
        """Read the changes of a system; return how many records there were. See `Polling.poll`."""
        return self.inward.polling.poll(subscriber)
