"""The hub of the model: two hub processes over one database, fake systems, a broker and users.

At every call of a system and around every transaction, a step of the other process may run in the middle
of a step, or the process may be killed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from conductor import Conductor, Policy, QueueReport
from models.capture import sync_context
from models.catalogues import Customer
from models.ledger import Conflict, Cursor, DeadLetter, Delivery, Inbox, Link, Unsubscription
from subscribers.errors import Reject, Retry, SyncError, SystemDown
from subscribers.records import Item
from tests.histories.model_conflicts import Conflicts
from tests.histories.model_systems import (
    FIELDS,
    BrokerAway,
    Crash,
    ModelSystem,
    Profile,
    Surprise,
    Violation,
    shared_database,
    subscriber_class,
)
from tests.support.dead_letters import discard_all, retry_all
from tests.support.fakes import Clock

Step = tuple[Any, ...]

CUSTOMER: Any = Customer.__table__

#: Lease time in seconds, short so that histories outlast it.
POLICY = Policy(
    lease_seconds=60,
    stale_seconds=30,
    max_attempts=3,
    retry_min_seconds=2,
    retry_max_seconds=10,
    probe_min_seconds=2,
    probe_max_seconds=20,
)

#: The longest that a call may take: a lease protects only under this assumption.
LONGEST_CALL = POLICY.lease_seconds / 2 - 1

#: Most records and external records of a history; few, so that its steps interact.
MOST_RECORDS = 4

#: Rounds after which a hub that still has work counts as never settling.
MOST_ROUNDS = 40


class Queue:
    """The broker: a list of messages that may be lost, duplicated or delivered out of order."""

    def __init__(self, hub: ModelHub) -> None:
        self.hub = hub
        self.messages: list[tuple[str, list[Any]]] = []
        self.away = 0

    def _put(self, where: str, ids: Sequence[Any]) -> None:
        if self.away and not self.hub.quiet:
            self.away -= 1
            self.hub.note("the broker is away")
            raise BrokerAway
        self.messages.append((where, list(ids)))

    def changes(self, catalogue: str, record_ids: Sequence[str]) -> None:
        for name in self.hub.subscribers:
            self._put(name, record_ids)

    def records(self, subscriber: str, record_ids: Sequence[str], *, later: bool = False) -> None:
        self._put(subscriber, record_ids)

    def inbox(self, system: str, inbox_ids: Sequence[int]) -> None:
        for inbox_id in inbox_ids:
            self._put("inbox", [inbox_id])

    def inbox_soon(self, system: str, inbox_ids: Sequence[int]) -> None:
        self.inbox(system, inbox_ids)

    def poll(self, subscriber: str, delay: float = 0.0) -> None:
        self._put(f"poll {subscriber}", [])

    def inbox_depth(self, system: str) -> int | None:
        return 0

    def queues(self) -> QueueReport:
        return QueueReport("broker", error="the model has no broker")

    def depth(self, subscriber: str) -> int | None:
        return sum(where == subscriber for where, _ in self.messages)


@dataclass
class Excuse:
    """Why a subscriber may validly hold something else: until a change after `upto` is due for it."""

    subscriber: str
    #: None: all records.
    record_id: str | None
    #: create: it may be missing; update: it may differ; delete: it may still exist.
    operations: frozenset[str]
    upto: int
    why: str


EVERYTHING = frozenset({"create", "update", "delete"})


@dataclass
class RuleMade:
    """An unsubscription in force."""

    id: int
    subscribers: list[str]
    operation: str | None
    records: list[str] | None
    until: datetime | None
    #: The number of the step that created it.
    step: int


class ModelHub:
    """Two hub processes over one database, fake systems, a broker and users."""

    def __init__(
        self, profiles: Mapping[str, Profile], check: Callable[[ModelHub], None], *, trace: bool = False
    ) -> None:
        #: The check to run whenever the hub has settled.
        self.check = check
        self.database = shared_database()
        self.database.hub = None
        self.database.empty()
        self.clock = Clock()
        self.queue = Queue(self)
        self.profiles = profiles
        self.systems = {name: ModelSystem(name, self, profile) for name, profile in profiles.items()}
        self.processes = [self._process() for _ in range(2)]
        self.subscribers = list(self.processes[0].subscribers)
        self.processes[0].breaker.ensure_rows()
        self.trace: list[str] | None = [] if trace else None

        self.quiet = False
        self.depth = 0
        self.number = 0
        self.inside = 0
        self.dead = False
        #: (subscriber, record id) of creates whose answer must not be lost before it is stored.
        self.fragile: set[tuple[str, str]] = set()
        self.failure: Violation | None = None
        #: (subscriber, record id) of the writes in progress, and the systems they call.
        self.under_way: set[tuple[str, str]] = set()
        self.callers: list[str] = []
        #: Seconds that have passed during each call in progress.
        self.calling: list[float] = []
        #: (whether only calls count, boundaries to go, what happens then: a crash, or a step of another process).
        self.armed: list[tuple[bool, int, Step | None]] = []

        #: How many times each record id was used.
        self.incarnations: dict[str, int] = {}
        self.inserted = 0
        self.next_id = itertools.count(1)
        self.paused: set[str] = set()
        self.rules: list[RuleMade] = []
        self.excuses: list[Excuse] = []
        #: (change id, subscriber) that a writer excluded.
        self.left_out: set[tuple[int, str]] = set()
        #: (side, id, column) -> values written since the last agreement, in order.
        self.written: dict[tuple[str, str, str], list[Any]] = {}
        #: The records at the last agreement.
        self.base: dict[str, dict[str, Any]] = {}
        self.tainted: set[str] = set()
        self.all_tainted = False
        #: Systems that lost an answer: the hub may have taken their own form of a value for an edit.
        self.unanswered: set[str] = set()
        #: (system, record id) that validly differed at the last agreement.
        self.unequal: set[tuple[str, str]] = set()
        self.discarded: set[str] = set()
        self.conflicts = Conflicts(self)
        self.database.hub = self

    def _process(self) -> Conductor:
        subscribers = {}
        for name, system in self.systems.items():
            cls = subscriber_class(name, system.profile)
            subscribers[cls.name()] = cls(system)
        return Conductor(self.database, subscribers, self.queue, POLICY, self.clock)

    @property
    def conductor(self) -> Conductor:
        """Return the process that runs now: a step in the middle of another step runs in the other process."""
        return self.processes[self.depth % 2]

    def note(self, text: str) -> None:
        """Add a line to the trace, for the reader of a failing history."""
        if self.trace is not None:
            self.trace.append(f"{self.clock():%M:%S.%f}"[:9] + "  " * (self.depth + 1) + text)

    def violated(self, words: str) -> Violation:
        """Store the first violation and return it, so that it is reported even if the code under test swallows it."""
        if self.failure is None:
            self.failure = Violation(words)
        return self.failure

    # --- interruptions ------------------------------------------------------------------------------------

    def boundary(self, where: str) -> None:
        """Mark a point at which this process may die or another process may run a step."""
        if self.dead:
            raise Crash
        if where == "committed" and self.fragile:
            self.fragile &= self._under_lease()
        if self.quiet or not self.armed or self.fragile:
            return
        if where.endswith((" asked", " done")):
            self.armed = [(calls, left - 1, what) for calls, left, what in self.armed]
        else:
            self.armed = [(calls, left - (not calls), what) for calls, left, what in self.armed]
        for index, (_, left, what) in enumerate(self.armed):
            if left > 0 or (what is not None and (self.inside or self.depth > 1)):
                continue
            del self.armed[index]
            if what is None:
                self.note(f"crash at: {where}")
                self.unanswered.update(self.systems)
                self.conflicts.blur()
                self.dead = True
                raise Crash
            self.note(f"meanwhile, at: {where}")
            if not all(profile.conditional for profile in self.profiles.values()):
                self.conflicts.blur()
            self.depth += 1
            try:
                self.do(what)
            finally:
                self.depth -= 1
            return

    @contextmanager
    def writing(self, subscriber: Any, kind: str, items: Sequence[Item]) -> Iterator[None]:
        """Check a write: it obeys unsubscriptions made before this step, and no other worker writes the records."""
        if self.dead:
            raise Crash
        name = subscriber.name()
        for item in items:
            meant = kind if item.record else "delete"  # archiving counts as a delete of the record
            for rule in self.rules:
                covers = name in rule.subscribers and rule.operation in (None, meant)
                covers &= rule.records is None or item.record_id in rule.records
                if covers and rule.step < self.number and self._in_force(rule):
                    raise self.violated(f"(g) {kind} of {item.record_id} sent in spite of unsubscription {rule.id}")
        mine = {(name, item.record_id) for item in items}
        if twice := mine & self.under_way:
            raise self.violated(f"(h) two write at once: {sorted(twice)}")
        self.under_way |= mine
        self.callers.append(subscriber.system)
        try:
            yield
        finally:
            self.under_way -= mine
            self.callers.pop()

    def _in_force(self, rule: RuleMade) -> bool:
        return rule.until is None or rule.until > self.clock()

    def do(self, step: Step) -> None:
        """Run one step of one process, which may die during it."""
        if self.failure is not None:
            raise self.failure
        if not self.depth:
            self.number += 1
        self.clock.tick(0.05)
        self._expire()
        self.note(" ".join(map(str, step)))
        try:
            getattr(self, f"do_{step[0]}")(*step[1:])
        except Crash:
            self.dead = False
            self.fragile.clear()
        except BrokerAway:
            self.note("gives up: the broker is away")
        except (SyncError, Surprise) as error:
            self.note(f"gives up: {error!r}")  # from a poll: the next poll tries again
        if self.failure is not None:
            raise self.failure

    # --- users and programs at the database -----------------------------------------------------------------

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the internal records by id."""
        with self.engine_read() as connection:
            rows = connection.exec_driver_sql(_RECORDS).mappings()
            return {str(row["id"]): {**row, "active": bool(row["active"])} for row in rows}

    def _under_lease(self) -> set[tuple[str, str]]:
        with self.engine_read() as connection:
            leased = sa.select(Link.subscriber, Link.record_id).where(Link.lease_owner.is_not(None))
            return {(row.subscriber, row.record_id) for row in connection.execute(leased)}

    def engine_read(self) -> Any:
        """Return a connection that is never interrupted."""
        return self.database.engine.connect()

    def _write(self, context: int, work: Callable[[sa.Connection], Any]) -> None:
        """Run a program's transaction, possibly with an origin or an unsubscribe list."""
        names = list(self.systems)
        origin, unsubscribe = None, []
        if context % 8 == 6:
            unsubscribe = [names[context // 8 % len(names)]]
        elif context % 8 == 7:
            origin = names[context // 8 % len(names)]
        with self.database.plain_write() as connection:
            before = connection.exec_driver_sql("SELECT max(id) FROM change").scalar() or 0
            with sync_context(connection, origin=origin, unsubscribe=unsubscribe):
                work(connection)
            rows = connection.exec_driver_sql(f"SELECT id, record_id FROM change WHERE id > {before}").all()
        if out := [*unsubscribe, *([origin] if origin else [])]:
            for _, record in rows:
                self.conflicts.forget(record)
        if origin is not None:
            # The stated origin need not be true.
            self.tainted.update(record for _, record in rows)
        for change, record in rows:
            for name in (f"{system}.customer" for system in out):
                self.left_out.add((change, name))
                self.excuses.append(Excuse(name, record, EVERYTHING, change, "the writer left it out"))

    def _pick(self, number: int, among: Iterable[str]) -> str | None:
        chosen = sorted(among)
        return chosen[number % len(chosen)] if chosen else None

    def wrote(self, side: str, key: str, values: Mapping[str, Any]) -> None:
        """Record which side wrote which values since the last agreement."""
        for column, value in values.items():
            self.written.setdefault((side, key, column), []).append(value)

    def do_insert(self, a: int, b: int, context: int) -> None:
        """Insert a record into the database."""
        if len(self.records()) >= MOST_RECORDS:
            return
        values = {"name": f"name{a}", "email": value("email", a), "phone": value("phone", b), "notes": None}
        self._insert(values, context)

    def _insert(self, values: dict[str, Any], context: int, record_id: str | None = None) -> None:
        created: list[str] = []

        def work(connection: sa.Connection) -> None:
            own = {"id": int(record_id)} if record_id else {}
            statement = sa.insert(CUSTOMER).values(**values, **own).returning(CUSTOMER.c.id)
            created.append(str(connection.execute(statement).scalar_one()))
            # Before any process can see the change.
            self.incarnations[created[0]] = self.incarnations.get(created[0], 0) + 1

        self._write(context, work)
        self.inserted += 1
        if self.incarnations[created[0]] > 1:
            self.tainted.add(created[0])
            self.conflicts.forget(created[0])
        self.wrote("hub", created[0], {**dict.fromkeys((*FIELDS, "city")), **values})

    def do_recreate(self, number: int, a: int, context: int) -> None:
        """Insert a deleted record again under its id."""
        gone = self._pick(number, set(self.incarnations) - set(self.records()))
        if gone is not None:
            self._insert({"name": f"name{a}", "email": value("email", a)}, context, gone)

    def do_edit(self, number: int, column: int, v: int, context: int) -> None:
        """Edit one field of a record in the database."""
        record = self._pick(number, self.records())
        if record is None:
            return
        name = FIELDS[column % 4]
        new = value(name, v) or f"name{v}" if name == "name" else value(name, v)
        statement = sa.update(CUSTOMER).where(CUSTOMER.c.id == int(record)).values({name: new})
        before = self.records()[record][name]
        self._write(context, lambda connection: connection.execute(statement))
        if new != before:
            self.wrote("hub", record, {name: new})
            if context % 8 < 6:
                self.conflicts.edited_here(record, name, before, new)

    def do_edit_all(self, column: int, v: int, context: int) -> None:
        """Edit all records of the database with one statement."""
        name = FIELDS[1 + column % 3]
        new = value(name, v)
        records = self.records()
        self._write(context, lambda connection: connection.execute(sa.update(CUSTOMER).values({name: new})))
        for record, before in records.items():
            if before[name] != new:
                self.wrote("hub", record, {name: new})
                if context % 8 < 6:
                    self.conflicts.edited_here(record, name, before[name], new)

    def do_delete(self, number: int, context: int) -> None:
        """Delete a record from the database."""
        record = self._pick(number, self.records())
        if record is not None:
            statement = sa.delete(CUSTOMER).where(CUSTOMER.c.id == int(record))
            self._write(context, lambda connection: connection.execute(statement))
            self.tainted.add(record)
            self.conflicts.forget(record)

    # --- users of the external systems -------------------------------------------------------------------------

    def _system(self, number: int) -> ModelSystem:
        return list(self.systems.values())[number % len(self.systems)]

    def do_x_add(self, s: int, a: int, b: int) -> None:
        """Create a record in the external system, as its user."""
        system = self._system(s)
        if len(system.store) >= MOST_RECORDS:
            return
        values = {"name": f"name{a}" if a % 16 else None, "email": value("email", b), "phone": None, "notes": None}
        external = system.add(**values, address={"city": None})
        system.by_people += 1
        self.wrote(system.name, external.id, {**self._stored(system, external.id), "city": None})

    def _stored(self, system: ModelSystem, external_id: str) -> dict[str, Any]:
        return {column: system.store[external_id][column] for column in FIELDS}

    def do_x_edit(self, s: int, number: int, column: int, v: int) -> None:
        """Edit a record in the external system, as its user."""
        system = self._system(s)
        external = self._pick(number, system.store)
        if external is None:
            return
        name = FIELDS[column % 4]
        before = system.store[external].get(name)
        if self.depth and external in system.unread:
            why = "edited between a write and the reading of what it stored"
            update = frozenset({"update"})
            record = system.ours[external][0] if external in system.ours else self.record_of(system, external)
            self.excuses.append(Excuse(f"{system.name}.customer", record, update, self._now(), why))
        system.edit(external, **{name: value(name, v)})
        if system.store[external][name] != before:
            self.wrote(system.name, external, {name: system.store[external][name]})
            record = self.record_of(system, external)
            self.conflicts.edited_there(record, name, before, system.store[external][name])

    def record_of(self, system: ModelSystem, external_id: str) -> str | None:
        """Return the record that is linked to this external record."""
        linked = (Link.subscriber == f"{system.name}.customer", Link.external_id == external_id)
        with self.engine_read() as connection:
            linked_one = sa.select(Link.record_id).where(*linked, Link.unlinked_at.is_(None))
            record_id: str | None = connection.execute(linked_one).scalar()
        return record_id

    def agreed(self, name: str, record_id: str) -> dict[str, Any] | None:
        """Return the values that both sides last agreed on; None if the record is not linked."""
        linked = (Link.subscriber == name, Link.record_id == record_id, Link.unlinked_at.is_(None))
        with self.engine_read() as connection:
            base: dict[str, Any] | None = connection.execute(
                sa.select(Link.base).where(*linked, Link.external_id.is_not(None))
            ).scalar()
        return base

    def looks(self, name: str) -> bool:
        """Whether edits made in the system are seen before ours overwrite them."""
        if self.conductor.subscribers[name].look_first in ("auto", "fetch"):
            return True
        with self.engine_read() as connection:
            polled = sa.select(Cursor.id).where(Cursor.subscriber == name, Cursor.position.is_not(None))
            return connection.execute(polled).scalar() is not None

    def has_left(self, system: str, external_id: str) -> bool:
        """Whether the hub knows that no record lives under this id any more, or never knew one."""
        name = f"{system}.customer"
        linked = (Link.subscriber == name, Link.external_id == external_id, Link.unlinked_at.is_(None))
        with self.engine_read() as connection:
            return connection.execute(sa.select(Link.id).where(*linked)).scalar() is None

    def reused(self, system: ModelSystem, external_id: str) -> None:
        """Note that an id belongs to another record from now on: nothing is expected of those that had it."""
        name = f"{system.name}.customer"
        with self.engine_read() as connection:
            had = sa.select(Delivery.record_id).where(Delivery.subscriber == name, Delivery.external_id == external_id)
            self.tainted.update(connection.execute(had).scalars())
        for column in (*FIELDS, "city"):
            self.written.pop((system.name, external_id, column), None)

    def do_x_delete(self, s: int, number: int) -> None:
        """Delete a record in the external system, as its user."""
        system = self._system(s)
        external = self._pick(number, system.store)
        if external is not None:
            self.conflicts.forget(self.record_of(system, external))
            system.remove(external)

    def do_x_restore(self, s: int, number: int) -> None:
        """Restore a deleted record in the external system, as its user."""
        system = self._system(s)
        external = self._pick(number, system.trash)
        if external is not None and len(system.store) < MOST_RECORDS:
            system.restore(external)
            self.wrote(system.name, external, self._stored(system, external))
            self.conflicts.forget_all()

    # --- webhooks and polls -----------------------------------------------------------------------------------

    def do_hook(self, s: int, number: int, again: int) -> None:
        """Deliver the oldest or another webhook of the system, possibly twice."""
        system = self._system(s)
        if not system.untold:
            return
        index = number % len(system.untold)
        event = system.untold[index]
        if again % 3 != 2:
            del system.untold[index]
        self.conductor.store_webhook(system.name, f"e{event}".encode(), {})

    def do_hook_now(self, s: int) -> None:
        """Deliver the newest webhook and process it immediately."""
        system = self._system(s)
        if system.log:
            self.do_hook_old(s, len(system.log) - 1)
            mine = [message for message in self.queue.messages if message[0] == "inbox"]
            for message in mine:
                if message in self.queue.messages:  # unless an interleaved step has taken it
                    self.queue.messages.remove(message)
                    self._consume(message)

    def do_hook_old(self, s: int, number: int) -> None:
        """Deliver any past webhook: it may have been lost, or processed long ago."""
        system = self._system(s)
        if system.log:
            self.conductor.store_webhook(system.name, f"e{number % len(system.log)}".encode(), {})

    def do_hook_lost(self, s: int, number: int) -> None:
        """Lose a webhook."""
        system = self._system(s)
        if system.untold:
            del system.untold[number % len(system.untold)]

    def do_poll(self, s: int) -> None:
        """Poll the system."""
        self.conductor.poll(f"{self._system(s).name}.customer")

    # --- the hub ------------------------------------------------------------------------------------------------

    def do_relay(self) -> None:
        """Run the relay."""
        self.conductor.relay()

    def do_sweep(self, everything: int) -> None:
        """Run the sweep."""
        self.conductor.sweep(everything=everything % 4 == 3)

    def do_work(self, number: int, how: int) -> None:
        """Process the next or another message, possibly duplicated, or lost with the worker."""
        if not self.queue.messages:
            return
        index = number % len(self.queue.messages)
        message = self.queue.messages[index]
        if how % 8 == 7:
            self._consume(message)  # to be delivered again later
            return
        del self.queue.messages[index]
        if how % 8 == 6:
            self.note(f"lost: {message}")
            return
        self._consume(message, requeue=how % 2 == 0)

    def _consume(self, message: tuple[str, list[Any]], *, requeue: bool = False) -> None:
        where, ids = message
        self.note(f"takes {where} {ids}")
        try:
            if where == "inbox":
                self.conductor.receive(ids[0])
            elif where.startswith("poll "):
                self.conductor.poll(where.removeprefix("poll "))
            else:
                self.conductor.deliver(where, ids)
        except (Crash, BrokerAway):
            if requeue:
                self.queue.messages.append(message)
            raise

    def do_run(self, limit: int) -> None:
        """Run the relay and let the workers process messages for a while."""
        self.conductor.relay()
        for _ in range(2 + limit % 8):
            if not self.queue.messages:
                return
            self._consume(self.queue.messages.pop(0), requeue=True)

    def do_deliver(self, s: int) -> None:
        """Deliver outdated notifications of all records again."""
        system = self.callers[-1] if s == 3 and self.callers else self._system(s).name
        self.conductor.deliver(f"{system}.customer", sorted(self.incarnations))

    def do_wipe(self) -> None:
        """Lose all messages of the broker."""
        self.queue.messages.clear()

    def do_stop(self) -> None:
        """Ask a process to stop while it works, then start it again."""
        conductor = self.conductor
        conductor.stop()
        try:
            if self.queue.messages:
                self._consume(self.queue.messages.pop(0), requeue=True)
        finally:
            conductor.context.stopping.clear()

    def do_tick(self, seconds: float) -> None:
        """Advance the clock; during a call by no more than a call may take."""
        if self.calling:
            seconds = min(seconds, LONGEST_CALL - max(self.calling))
            self.calling = [passed + seconds for passed in self.calling]
        if seconds > 0:
            self.clock.tick(seconds)
        self._expire()

    # --- faults -------------------------------------------------------------------------------------------------

    def do_fail(self, s: int, kind: int, after: int, times: int) -> None:
        """Make the next calls of a system fail, before or after they take effect."""
        error: Exception = (
            Retry("500: try later"),
            Retry("timeout", maybe_done=True),
            SystemDown("503"),
            SystemDown("429", after=7),
            SystemDown("connection reset", maybe_done=True),
            Surprise("surprise"),
            Reject("422: refused this once"),
        )[kind % 7]
        done = bool(after % 2) and kind % 7 in (1, 4, 5)
        system = self._system(s)
        system.failures += [(error, done)] * (1 + times % 3)  # type: ignore[list-item]

    def do_outage(self, s: int, kind: int, minutes: int) -> None:
        """Make a system fail every call for some minutes."""
        system = self._system(s)
        system.outage, system.out_until = kind, system.clock() + timedelta(minutes=1 + minutes)

    def do_broker_away(self, times: int) -> None:
        """Make the broker refuse the next messages."""
        self.queue.away = 1 + times % 3

    def do_crash(self, calls: int, boundaries: int) -> None:
        """Crash the process that reaches this boundary."""
        self.armed.append((bool(calls), boundaries, None))

    def do_meanwhile(self, calls: int, boundaries: int, step: Step) -> None:
        """Run this step in another process when the boundary is reached."""
        self.armed.append((bool(calls), boundaries, step))

    def do_then(self, *steps: Step) -> None:
        """Run several steps in a row."""
        for step in steps:
            self.do(step)

    # --- operators ------------------------------------------------------------------------------------------------

    def _now(self) -> int:
        with self.engine_read() as connection:
            return connection.exec_driver_sql("SELECT max(id) FROM change").scalar() or 0

    def do_pause(self, s: int) -> None:
        """Pause a system, as an operator."""
        self.paused.add(self._system(s).name)
        self.conductor.systems.pause(self._system(s).name, "ann", "")

    def do_resume(self, s: int) -> None:
        """Resume a system, as an operator."""
        self.conductor.systems.resume(self._system(s).name, "ann")

    def do_retry(self) -> None:
        """Retry all dead letters, as an operator."""
        retry_all(self.conductor, "ann")

    def do_discard(self) -> None:
        """Discard all dead letters, as an operator."""
        with self.engine_read() as connection:
            rows = connection.execute(sa.select(DeadLetter.__table__).where(DeadLetter.closed_at.is_(None))).all()
            bodies = dict(connection.execute(sa.select(Inbox.id, Inbox.body)).all())
        try:
            discard_all(self.conductor, "ann", "because")
        finally:  # the process may die just after the commit
            for row in rows:
                if row.link_id is not None:
                    self.excuses.append(Excuse(row.subscriber, row.record_id, EVERYTHING, self._now(), "discarded"))
                else:
                    self.discarded.add(bodies[row.inbox_id])
                    self.all_tainted = True

    def do_decide(self, number: int, side: int) -> None:
        """Decide an open conflict, as an operator."""
        with self.engine_read() as connection:
            waiting = sa.select(Conflict.__table__).where(Conflict.resolved_at.is_(None)).order_by(Conflict.id)
            rows = connection.execute(waiting).all()
        if not rows:
            return
        row = rows[number % len(rows)]
        self.conflicts.forget(row.record_id)
        try:
            self.conductor.conflicts.resolve(row.id, "theirs" if side % 2 else "ours", "ann")
        except ValueError as error:  # their value does not fit, or the record is being delivered
            self.note(f"not decided: {error}")
            if self.quiet:
                self.conductor.conflicts.resolve(row.id, "ours", "ann")

    def do_unsubscribe(self, s: int, operation: int, record: int, until: int) -> None:
        """Create an unsubscription, as an operator."""
        system = self._system(s)
        target = system.name if record % 2 else f"{system.name}.customer"
        kind = (None, None, "create", "update", "delete")[operation % 5]
        chosen = self._pick(record, self.incarnations) if record % 3 else None
        end = self.clock.now + (self.clock.now - self.clock.now.replace(minute=0)) / 60 if until % 2 else None
        end = end if end is not None and end > self.clock() else None
        records = [chosen] if chosen else None
        before = self._standing()
        try:
            self.conductor.unsubscriptions.create(target, kind, records, end, "", "ann")
        finally:  # it is in force even if the process dies right after the commit
            for rule in self._standing() - before:
                self.rules.append(RuleMade(rule, [f"{system.name}.customer"], kind, records, end, self.number))

    def do_lift(self, number: int) -> None:
        """Lift an unsubscription, as an operator."""
        if not self.rules:
            return
        rule = self.rules[number % len(self.rules)]
        if rule.id not in self._standing():
            return
        self._excuse(rule)
        try:
            self.conductor.unsubscriptions.lift(rule.id, "ann")
        finally:  # it stays in force if the process dies before the commit
            if rule.id not in self._standing():
                self.rules.remove(rule)

    def _standing(self) -> set[int]:
        """Return the ids of the existing unsubscriptions."""
        with self.engine_read() as connection:
            return set(connection.execute(sa.select(Unsubscription.id)).scalars())

    def _expire(self) -> None:
        for rule in [rule for rule in self.rules if not self._in_force(rule)]:
            self._excuse(rule)
            self.rules.remove(rule)

    def _excuse(self, rule: RuleMade) -> None:
        kinds = EVERYTHING if rule.operation is None else frozenset({rule.operation})
        upto = self._now()
        for name in rule.subscribers:
            records: Sequence[str | None] = list(rule.records or []) or [None]
            for record in records:
                self.excuses.append(Excuse(name, record, kinds, upto, f"unsubscription {rule.id}"))

    def do_mapping(self, s: int, variant: int) -> None:
        """Edit a mapping in the panel, as an operator."""
        system = self._system(s)
        name = f"{system.name}.customer"
        _, version = self.conductor.mappings.latest(name)
        rows = self.conductor.subscribers[name].default_mapper.rows()
        if variant % 4 == 1:
            rows = [row for row in rows if row["column"] != "phone"]
        elif variant % 4 == 2:
            rows = [{**row, "path": "remarks"} if row["column"] == "notes" else row for row in rows]
        elif variant % 4 == 3:
            rows = [{**row, "direction": "out"} if row["column"] == "phone" else row for row in rows]
        try:
            self.conductor.mappings.save(name, None if variant % 4 == 0 else rows, "ann", version)
        finally:  # the process may die just after the commit
            self.excuses.append(Excuse(name, None, frozenset({"update"}), self._now(), "the mapping was edited"))
            self.all_tainted = True

    def do_push(self, number: int, context: int) -> None:
        """Push a record, as an operator or program."""
        record = self._pick(number, self.incarnations)
        if record is None:
            return
        names = list(self.systems)
        out = [names[context // 4 % len(names)]] if context % 4 == 3 else []
        before = self._now()
        self.conflicts.forget(record)
        try:
            self.conductor.push("customer", record, unsubscribe=out)
        except ValueError as error:
            if record in self.records():
                raise
            self.note(f"refused: {error}")
        finally:  # it may have taken effect although the process died
            change = self._now()
            for system in out if change > before else []:
                self.left_out.add((change, f"{system}.customer"))
                self.excuses.append(Excuse(f"{system}.customer", record, EVERYTHING, change, "pushed without it"))

    # --- rest -------------------------------------------------------------------------------------------------------

    def do_settle(self) -> None:
        """Let everything settle, check that all is well, and continue."""
        if self.depth:
            return
        self.quiet = True
        self.armed.clear()
        try:
            self.check(self)
        finally:
            self.quiet = False

    def calm(self) -> None:
        """End all faults and pauses."""
        self.queue.away = 0
        for system in self.systems.values():
            system.polled = -1
            system.failures.clear()
            system.out_until = None
            if system.name in self.paused:
                self.conductor.systems.resume(system.name, "ann")
        self.paused.clear()

    def come_to_rest(self) -> None:
        """Sweep and poll until nothing changes."""
        for _ in range(MOST_ROUNDS):
            self.clock.tick(100)
            self._expire()
            self.work_off()
            if self.outstanding():
                continue
            if self.poll_all() and not self.queue.messages and not self.outstanding():
                return
        raise self.violated("(c) it does not come to rest")

    def work_off(self) -> None:
        self.conductor.relay()
        self.conductor.sweep()
        for _ in range(200):
            if not self.queue.messages:
                return
            self._consume(self.queue.messages.pop(0))
            if not self.queue.messages:
                self.conductor.relay()
        raise self.violated("(c) the queue never gets empty")

    def poll_all(self, *, again: bool = False) -> bool:
        """Poll every system with events since its last poll; return whether all of them could be polled."""
        asked = True
        for system in self.systems.values():
            if system.polled == len(system.log) and not again:
                continue
            before, events = len(system.calls), len(system.log)
            self.conductor.poll(f"{system.name}.customer")
            if len(system.calls) > before:
                system.polled = events
            else:
                asked = False  # it counts as down, and another process probes it
        return asked

    def outstanding(self) -> bool:
        """Return whether the ledger shows outstanding work."""
        with self.engine_read() as connection:
            return bool(connection.exec_driver_sql(_OUTSTANDING).scalar())

    def run(self, steps: Iterable[Step]) -> None:
        """Run a whole history."""
        random.seed(1)  # the jitter of retry delays
        try:
            for step in steps:
                self.do(step)
            self.do(("settle",))
        finally:
            self.database.hub = None


_RECORDS = "SELECT id, name, email, phone, city, notes, active FROM customer ORDER BY id"
_OUTSTANDING = """
    SELECT EXISTS (SELECT 1 FROM change WHERE relayed_at IS NULL)
        OR EXISTS (SELECT 1 FROM link WHERE owed_change > synced_change AND dead_at IS NULL)
        OR EXISTS (SELECT 1 FROM inbox WHERE state = 'waiting')
"""


def value(column: str, number: int) -> Any:
    """Return the value for this number: a few that repeat, an empty one, untidy ones, bad ones and unique ones."""
    if number % 8 == 6:
        return None
    if number % 8 == 7:
        return f" {column.upper()}{number} "
    if column == "notes" and number % 16 == 13:
        return "reject" if number % 32 == 13 else "stumble"
    return f"{column}{number}"
