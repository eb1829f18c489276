"""A whole hub inside a test: real conductor, broker and workers over fake systems, with the real clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pika
import sqlalchemy as sa

from broker import EXCHANGE, Fanout, LocalFanout
from conductor import Conductor, Policy
from models.base import utcnow
from models.catalogues import Customer
from models.ledger import Link
from models.session import Database
from settings import Settings
from subscribers.base import Subscriber
from tests.support.fakes import FakeSubscriber, FakeSystem
from workers.actors import bind_queues
from workers.publisher import INBOX, LATER, TICK_QUEUE, DramatiqPublisher
from workers.relay import Relay
from workers.runtime import Runtime
from workers.worker import WorkerPool

CUSTOMER = Customer.__table__

#: Seconds to wait for any condition, on a busy machine.
PATIENCE = 30.0


def until(condition: Callable[[], Any], what: str = "it never happened") -> Any:
    """Wait until a condition is true and return its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
    return value


class Hub:
    """One hub process, as `workers.runtime.build` assembles it, with fake systems."""

    def __init__(
        self,
        database: Database,
        *names: str,
        broker: Fanout | None = None,
        systems: dict[str, FakeSystem] | None = None,
        **attributes: Any,
    ) -> None:
        self.database = database
        self.broker = broker or LocalFanout()
        self.settings = Settings(_env_file=None, worker_threads=2, grace_seconds=20, sweep_seconds=0.1)
        self.systems = systems or {name: FakeSystem(name, utcnow) for name in names}
        subscribers: dict[str, Subscriber] = {}
        for name, system in self.systems.items():
            cls: type[FakeSubscriber] = type(
                f"{name.title()}Customer", (FakeSubscriber,), {"system": name, **attributes}
            )
            subscribers[cls.name()] = cls(system)
        senders = DramatiqPublisher(self.broker)
        senders.systems = {name: s.system for name, s in subscribers.items()}
        bind_queues(self.broker, subscribers)
        self.conductor = Conductor(database, subscribers, senders, Policy(stale_seconds=2.0, lease_seconds=20.0))
        self.conductor.prepare()
        self.runtime = Runtime(self.settings, database, self.broker, self.conductor)

    @contextmanager
    def relaying(self, sweep_seconds: float = 0.1) -> Iterator[threading.Event]:
        """Run a relay during the block."""
        stop = threading.Event()
        thread = threading.Thread(target=Relay(self.conductor, sweep_seconds).run, args=(stop,))
        thread.start()
        try:
            yield stop
        finally:
            stop.set()
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the relay does not stop"

    @contextmanager
    def working(self) -> Iterator[WorkerPool]:
        """Run workers during the block."""
        fleet = WorkerPool(self.runtime)
        fleet.start()
        try:
            yield fleet
        finally:
            fleet.stop()

    def held(self, name: str) -> list[str]:
        """Return the names of the customers in a system."""
        return sorted(data["name"] for data in list(self.systems[name].store.values()))

    def outstanding(self) -> int:
        """Return the number of links with outstanding work."""
        with self.database.read() as connection:
            owed = sa.select(sa.func.count()).select_from(Link).where(Link.owed_change > Link.synced_change)
            return int(connection.execute(owed).scalar_one())


def add(database: Database, *names: str) -> None:
    """Insert customers in one transaction."""
    with database.write() as connection:
        connection.execute(sa.insert(CUSTOMER), [{"name": name} for name in names])


def wipe(url: str, *systems: str) -> None:
    """Delete from RabbitMQ everything that a hub with these systems declares."""
    names = [TICK_QUEUE]
    for system in systems:
        names += [f"{system}.customer", f"{system}.customer{LATER}", system + INBOX]
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.exchange_delete(EXCHANGE)
    for name in names:
        for suffix in ("", ".DQ", ".XQ"):
            channel.queue_delete(name + suffix)
    connection.close()
