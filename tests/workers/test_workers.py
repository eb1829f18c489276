"""The worker fleet: real Dramatiq workers with fake systems, standalone and with RabbitMQ and PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import pytest
import sqlalchemy as sa

from broker import OrjsonEncoder, RabbitmqFanout
from models.base import utcnow
from models.ledger import Cursor, Delivery, Inbox, Schedule
from models.schema import migrate
from models.session import Database
from tests.support.fakes import FakeSystem
from tests.support.runtimes import CUSTOMER, Hub, add, until, wipe
from workers.worker import wait_for_broker

MakeHub = Callable[..., Hub]


@pytest.fixture(autouse=True)
def _encoder() -> Iterator[None]:
    before = dramatiq.get_encoder()
    dramatiq.set_encoder(OrjsonEncoder())
    yield
    dramatiq.set_encoder(before)


@pytest.fixture(params=["standalone", pytest.param("fleet", marks=pytest.mark.services)])
def make_hub(request: pytest.FixtureRequest) -> Iterator[MakeHub]:
    """Return a function that makes hubs on one database and broker: SQLite in process, or PostgreSQL and RabbitMQ."""
    remote = request.param == "fleet"
    url = request.getfixturevalue("postgres_url" if remote else "sqlite_url")
    rabbitmq = request.getfixturevalue("rabbitmq_url") if remote else None
    migrate(url)
    database = Database(url)
    brokers: list[RabbitmqFanout] = []

    def make(*names: str, **more: Any) -> Hub:
        broker = None
        if rabbitmq:
            if not brokers:
                wipe(rabbitmq, "slow", "fast", "crm", "shop")
            broker = RabbitmqFanout(rabbitmq, "classic")
            brokers.append(broker)
        hub = Hub(database, *names, broker=broker, **more)
        wait_for_broker(hub.runtime, threading.Event())
        return hub

    yield make
    for broker in brokers:
        broker.close()
    database.close()


@contextmanager
def held_up(system: FakeSystem) -> Iterator[threading.Event]:
    """Block all calls of a system until the block ends or the yielded event is set."""
    answer = threading.Event()

    def wait(kind: str, what: str) -> None:
        answer.wait(60)

    system.on_call = wait
    try:
        yield answer
    finally:
        answer.set()


def test_a_change_is_delivered_from_the_database_to_the_system(make_hub: MakeHub) -> None:
    hub = make_hub("crm", "shop")
    with hub.working(), hub.relaying():
        add(hub.database, "Ada", "Bob")
        until(lambda: hub.held("crm") == hub.held("shop") == ["Ada", "Bob"])
        with hub.database.write() as c:
            c.execute(sa.update(CUSTOMER).values(notes="edited"))
        until(lambda: all(d["notes"] == "edited" for s in hub.systems.values() for d in list(s.store.values())))
        until(lambda: hub.outstanding() == 0)
    assert [len(system.writes()) for system in hub.systems.values()] == [4, 4]


def test_a_received_change_is_delivered_only_to_the_other_systems(make_hub: MakeHub) -> None:
    hub = make_hub("crm", "shop")
    with hub.working(), hub.relaying():
        add(hub.database, "Ada")
        until(lambda: hub.held("crm") == hub.held("shop") == ["Ada"])
        until(lambda: hub.outstanding() == 0)
        (external_id,) = hub.systems["crm"].store
        until(lambda: utcnow() > hub.systems["crm"].changed[external_id])
        hub.systems["crm"].edit(external_id, name="Ada L.")
        body = f"e1 {external_id}".encode()
        assert hub.conductor.store_webhook("crm", body, {"X-Fake": "signed"})
        until(lambda: hub.held("shop") == ["Ada L."])
        # A poll that the actor runs.
        hub.systems["crm"].add(name="Eve")
        hub.conductor.systems.poll_now("crm.customer", by="ann")
        until(lambda: hub.held("shop") == ["Ada L.", "Eve"])
        until(lambda: hub.outstanding() == 0)
    assert [kind for kind, _ in hub.systems["crm"].writes()] == ["create"]
    with hub.database.read() as c:
        assert c.execute(sa.select(Inbox.state).where(Inbox.event_id == "e1")).scalar_one() == "done"
        job = sa.select(Schedule.result).where(Schedule.job == "poll crm.customer")
        assert c.execute(job).scalar() is None  # it has no schedule: this poll was requested by hand
        assert str(c.execute(sa.select(Cursor.result)).scalar_one()).endswith("records")


def test_a_slow_system_does_not_hold_up_a_fast_one(make_hub: MakeHub) -> None:
    hub = make_hub("slow", "fast")
    with held_up(hub.systems["slow"]) as answer, hub.working(), hub.relaying():
        for number in range(12):  # more messages than a worker processes and prefetches
            add(hub.database, f"n{number:02}")
            until(lambda n=number: len(hub.held("fast")) == n + 1, "the fast system waits for the slow one")  # type: ignore[misc]
        assert hub.held("slow") == []
        answer.set()
        until(lambda: hub.held("slow") == hub.held("fast"))


def test_stop_finishes_current_work_and_requeues_the_rest(make_hub: MakeHub) -> None:
    hub = make_hub("crm")
    crm = hub.systems["crm"]
    add(hub.database, *(f"n{number:02}" for number in range(60)))
    with held_up(crm) as answer, hub.relaying(), hub.working() as fleet:
        until(lambda: crm.calls)
        stopping = threading.Thread(target=fleet.stop)
        stopping.start()
        until(hub.conductor.context.stopping.is_set)
        answer.set()
        stopping.join()
    done = len(hub.held("crm"))
    assert 0 < done < 60, "the call in hand is finished, and no more are begun than its chunk"
    assert hub.outstanding() == 60 - done
    with hub.database.read() as c:
        assert c.execute(sa.select(sa.func.count()).select_from(Delivery)).scalar() == done
    # The next process delivers the rest, and nothing twice.
    again = make_hub(systems=hub.systems)
    with again.working(), again.relaying():
        until(lambda: len(again.held("crm")) == 60)
        until(lambda: again.outstanding() == 0)
    assert len(crm.writes()) == 60


def test_news_lost_with_a_process_are_announced_by_the_next(make_hub: MakeHub) -> None:
    """Losing the queues loses nothing: the database records what is pending."""
    hub = make_hub("crm")
    add(hub.database, "Ada", "Bob")
    hub.conductor.relay()
    for name in list(hub.broker.get_declared_queues()):
        hub.broker.flush(name)
    again = make_hub(systems=hub.systems)
    with again.working(), again.relaying():
        until(lambda: again.held("crm") == ["Ada", "Bob"])


def test_two_worker_processes_create_nothing_twice(make_hub: MakeHub) -> None:
    hub = make_hub("crm")
    other = make_hub(systems=hub.systems)
    with hub.working(), other.working(), hub.relaying(), other.relaying():
        for number in range(10):
            add(hub.database, *(f"n{number}-{i}" for i in range(5)))
        until(lambda: len(hub.held("crm")) >= 50)
        until(lambda: hub.outstanding() == 0)
    assert len(hub.held("crm")) == 50


def test_an_actor_whose_database_is_away_is_retried(make_hub: MakeHub) -> None:
    hub = make_hub("crm")
    add(hub.database, "Ada")
    hub.conductor.relay()  # publishes the only message
    with hub.database.write() as c:
        c.execute(sa.text("ALTER TABLE link RENAME TO link_away"))
    attempts: list[Any] = []

    class Counting(dramatiq.Middleware):
        def after_process_message(
            self, broker: Any, message: Any, *, result: Any = None, exception: Any = None
        ) -> None:
            attempts.append(exception)

    hub.broker.add_middleware(Counting())
    with hub.working():
        until(lambda: attempts)
        assert isinstance(attempts[0], sa.exc.DBAPIError) and hub.held("crm") == []
        with hub.database.write() as c:
            c.execute(sa.text("ALTER TABLE link_away RENAME TO link"))
        until(lambda: hub.held("crm") == ["Ada"], "it was not tried again")
        until(lambda: hub.outstanding() == 0)


def test_the_tick_starts_due_polls(make_hub: MakeHub) -> None:
    hub = make_hub("crm", poll_seconds=3600)
    hub.systems["crm"].add(name="Ada")
    with hub.working(), hub.relaying():
        for _ in range(3):  # like several schedulers, or a restarted one
            hub.broker.enqueue(dramatiq.Message("syncflow.tick", "tick", (), {}, {}))

        def found() -> bool:
            with hub.database.read() as c:
                return c.execute(sa.select(CUSTOMER.c.name)).scalars().all() == ["Ada"]

        until(found)
        until(lambda: _result(hub) == "1 records")
    assert hub.systems["crm"].calls == []


def _result(hub: Hub) -> str | None:
    with hub.database.read() as c:
        job = sa.select(Schedule.result).where(Schedule.job == "poll crm.customer")
        return c.execute(job).scalar()


def test_the_fleet_has_threads_of_its_own_for_each_system(make_hub: MakeHub) -> None:
    hub = make_hub("crm", "shop")
    with hub.working() as fleet:
        queues = [set(worker.consumer_whitelist or ()) for worker in fleet.workers]
    assert queues[0] == {"syncflow.tick"}
    assert {"crm.customer", "crm.inbox"} <= queues[1] and {"shop.customer", "shop.inbox"} <= queues[2]
    declared = {name.removesuffix(".DQ") for name in hub.broker.get_declared_queues()}
    assert set.union(*queues) == declared, "a queue without a consumer"
    assert sum(len(names) for names in queues) == len(set.union(*queues))


def test_a_process_waits_for_a_broker_that_starts_later(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("workers.worker._BROKER_RETRY_SECONDS", 0.01)
    migrate(sqlite_url)
    database = Database(sqlite_url)
    hub = Hub(database, "crm", broker=RabbitmqFanout("amqp://127.0.0.1:1/", "classic"))
    asked, ensure = [0], hub.broker.ensure

    def counted() -> None:
        asked[0] += 1
        ensure()

    monkeypatch.setattr(hub.broker, "ensure", counted)
    stop = threading.Event()
    waiting = threading.Thread(target=wait_for_broker, args=(hub.runtime, stop))
    waiting.start()
    until(lambda: asked[0] > 3)
    assert caplog.text.count("waiting for the broker") == 1, "said once, however long it takes"
    assert "RabbitMQ does not answer at 127.0.0.1:1: the connection is refused" in caplog.text
    stop.set()
    waiting.join(30)
    assert not waiting.is_alive()
    database.close()
