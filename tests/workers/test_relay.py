"""The relay: commits wake it, and it loses nothing when it, the broker or the database goes away."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa

from broker import BrokerUnreachable
from conductor import Conductor, Policy
from models.base import utcnow
from models.ledger import Change
from models.schema import migrate
from models.session import Database
from tests.support.fakes import FakeSubscriber, FakeSystem, RecordingPublisher
from tests.support.runtimes import PATIENCE, add, until
from workers.relay import Pace, Relay


class Killed(BaseException):
    """The most abrupt end that is possible within one process."""


class Wire(RecordingPublisher):
    """A publisher whose broker can be unreachable, or whose process can be killed as it publishes."""

    def __init__(self) -> None:
        super().__init__()
        self.trouble: BaseException | None = None
        #: The error that kills its process as it publishes a change; after that it publishes nothing.
        self.killed_by: BaseException | None = None
        self.tried = 0

    def changes(self, catalogue: str, record_ids: Sequence[str]) -> None:
        if self.killed_by is not None:
            raise self.killed_by
        self._try()
        super().changes(catalogue, record_ids)

    def records(self, subscriber: str, record_ids: Sequence[str], **more: Any) -> None:
        self._try()
        if self.killed_by is None:
            super().records(subscriber, record_ids, **more)

    def inbox_depth(self, system: str) -> int | None:
        return 0

    def depth(self, subscriber: str) -> int | None:
        self._try()
        return super().depth(subscriber)

    def _try(self) -> None:
        self.tried += 1
        if self.trouble is not None:
            raise self.trouble

    def announced(self) -> list[str]:
        """Return every announced record, once per announcement."""
        return [record for _, records in list(self.published) for record in records]


class Crm(FakeSubscriber):
    system = "crm"


def conduct(database: Database, wire: Wire) -> Conductor:
    crm = Crm(FakeSystem("crm", utcnow))
    conductor = Conductor(database, {crm.name(): crm}, wire, Policy())
    conductor.prepare()
    return conductor


class Running:
    """Relays in threads, each with its own conductor, like separate processes."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.threads: list[threading.Thread] = []
        self.deaths: list[BaseException] = []

    def start(self, database: Database, wire: Wire, sweep_seconds: float = 0.2) -> Wire:
        relay = Relay(conduct(database, wire), sweep_seconds)

        def run() -> None:
            try:
                relay.run(self.stop)
            except BaseException as error:
                self.deaths.append(error)

        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()
        return wire

    def finish(self) -> float:
        """Ask all relays to stop and return how many seconds that took."""
        began = time.monotonic()
        self.stop.set()
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the relay does not stop"
        return time.monotonic() - began


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running()
    yield running
    running.finish()


def waiting(database: Database) -> int:
    with database.read() as connection:
        statement = sa.select(sa.func.count()).select_from(Change).where(Change.relayed_at.is_(None))
        return int(connection.execute(statement).scalar_one())


def test_a_commit_wakes_it_long_before_the_next_sweep(database: Database, running: Running) -> None:
    wire = running.start(database, Wire(), sweep_seconds=3600)
    until(lambda: wire.tried > 0)  # it has caught up, and waits
    for number in range(1, 4):
        add(database, "Ada")
        until(lambda n=number: len(wire.announced()) == n)  # type: ignore[misc]
    assert waiting(database) == 0


def test_changes_committed_before_the_start_are_published(database: Database, running: Running) -> None:
    add(database, "Ada", "Bob")
    wire = running.start(database, Wire())
    until(lambda: sorted(wire.announced()[:2]) == ["1", "2"])


def test_a_burst_is_few_messages(database: Database, running: Running) -> None:
    add(database, *(f"n{number}" for number in range(450)))
    wire = running.start(database, Wire(), sweep_seconds=3600)
    until(lambda: len(set(wire.announced())) == 450)
    fanned = [len(ids) for what, ids in wire.published if what == "changes customer"]
    assert fanned == [200, 200, 50]


def test_killed_between_commit_and_publish_the_next_start_announces(database: Database, running: Running) -> None:
    add(database, "Ada")
    dying = Wire()
    dying.killed_by = Killed()
    running.start(database, dying)
    until(lambda: running.deaths)
    assert waiting(database) == 0 and dying.announced() == []  # it was routed, but its announcement is lost
    wire = running.start(database, Wire(), sweep_seconds=3600)
    until(lambda: wire.announced() == ["1"])


def test_killed_before_the_commit_the_next_start_routes(database: Database) -> None:
    add(database, "Ada")
    conductor = conduct(database, Wire())
    with pytest.raises(Killed), database.write() as connection:
        assert conductor.routing.route(connection).changes == 1
        raise Killed
    assert waiting(database) == 1
    assert conductor.relay() == 1 and waiting(database) == 0


def test_a_broker_that_was_away_is_caught_up_with(
    database: Database, running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("workers.relay._ERROR_PAUSE_SECONDS", 0.05)
    wire = Wire()
    wire.trouble = BrokerUnreachable("RabbitMQ does not answer")
    running.start(database, wire, sweep_seconds=3600)
    for _ in range(3):
        add(database, "Ada")
        until(lambda: waiting(database) == 0)
        tried = wire.tried
        until(lambda t=tried: wire.tried > t + 1)  # type: ignore[misc]  # it keeps trying
        assert wire.announced() == []
    wire.trouble = None
    until(lambda: set(wire.announced()) == {"1", "2", "3"})
    assert "the relay pauses: RabbitMQ does not answer" in caplog.text
    add(database, "Bob")
    until(lambda: "4" in wire.announced())
    assert running.deaths == []


@pytest.mark.parametrize("sweep_seconds", [0.05, 3600])
def test_it_stops_promptly(database: Database, running: Running, sweep_seconds: float) -> None:
    wire = running.start(database, Wire(), sweep_seconds)
    until(lambda: wire.tried > 0)
    assert running.finish() < 5
    assert running.deaths == []


def test_it_stops_promptly_while_the_broker_is_away(database: Database, running: Running) -> None:
    wire = Wire()
    wire.trouble = BrokerUnreachable("RabbitMQ does not answer")
    add(database, "Ada")
    running.start(database, wire)
    until(lambda: wire.tried > 0)
    assert running.finish() < 5


def test_two_side_by_side_route_every_change_once(postgres_url: str, running: Running) -> None:
    migrate(postgres_url)
    database = Database(postgres_url)
    wires = [running.start(database, Wire(), sweep_seconds=3600) for _ in range(2)]
    until(lambda: all(wire.tried for wire in wires))

    def write() -> None:
        for _ in range(25):
            add(database, "Ada", "Bob")

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    def fanned() -> list[str]:
        return [r for wire in wires for what, ids in list(wire.published) if what == "changes customer" for r in ids]

    until(lambda: len(set(fanned())) == 150)
    until(lambda: waiting(database) == 0)
    running.finish()
    assert len(fanned()) == 150, "a change was routed twice"
    database.close()


def cut(database: Database) -> None:
    """Terminate all connections to this database except our own."""
    others = "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with database.read() as connection:
        connection.execute(sa.text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity {others}"))


def test_the_relay_waits_while_the_database_restarts(
    postgres_url: str, running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("workers.relay._ERROR_PAUSE_SECONDS", 0.05)
    caplog.set_level(logging.WARNING, "workers.relay")
    migrate(postgres_url)
    database, ours = Database(postgres_url), Database(postgres_url)
    wire = running.start(ours, Wire(), sweep_seconds=3600)
    until(lambda: wire.tried > 0)
    for number in range(1, 3):
        cut(database)
        until(lambda n=number: caplog.text.count("the relay pauses") >= n or running.deaths)  # type: ignore[misc]
        assert running.deaths == []
        add(database, "Ada")
        until(lambda n=number: str(n) in wire.announced())  # type: ignore[misc]
    running.finish()
    for one in (database, ours):
        one.close()


def test_the_relay_is_woken_instead_of_polling_often(
    database: Database, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.relay._STOP_CHECK_SECONDS", 8.0)
    wire = running.start(database, Wire(), sweep_seconds=3600)
    until(lambda: wire.tried > 0)
    for number in range(1, 4):
        began = time.monotonic()
        add(database, "Ada")
        until(lambda n=number: len(wire.announced()) >= n)  # type: ignore[misc]
        assert time.monotonic() - began < 4
    running.stop.set()
    add(database, "Bob")  # wakes the relay, so that it sees the stop request


def looks(pace: Pace, *routed: int, seconds: float = 0.004, begin: float = 100.0) -> list[float]:
    """Return the pauses after looks that follow one another after so many seconds."""
    return [pace.after(count, begin + number * seconds, is_notified=True) for number, count in enumerate(routed)]


def test_a_relay_with_little_to_do_waits_to_be_notified() -> None:
    pace = Pace()
    assert looks(pace, 1, 0, 1, 0, seconds=0.05) == [0.5] * 4
    assert not pace.is_busy(100.2)


def test_a_busy_relay_looks_by_itself_and_waits_longer_while_there_is_nothing() -> None:
    pace = Pace()
    pauses = looks(pace, 10, 10, 10, 0, 0, 0, 0)
    assert pauses[2] == pytest.approx(0.003) and pace.is_busy(100.1)
    assert all(later == pytest.approx(1.5 * earlier) for earlier, later in pairwise(pauses[2:]))
    assert not pace.is_busy(100.6)
    assert looks(pace, *[0] * 20, begin=100.6)[-1] == 0.5


def test_a_relay_without_notifications_never_waits_long() -> None:
    pace = Pace()
    pauses = [pace.after(count, 100 + number, is_notified=False) for number, count in enumerate((1, *[0] * 20))]
    assert pauses[0] == pytest.approx(0.003) and max(pauses) == pytest.approx(0.05)
