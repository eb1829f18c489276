"""The hub as run in production, with systems that only count: its processes, its database, its queues.

A benchmark starts it with `Workbench.hub`, writes to its database like any program, and reads the receiver.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import pika
import sqlalchemy as sa

import child_processes
from benchmarks import catalogue
from benchmarks.receiver import Counts, Receiver, Stalled
from benchmarks.systems import ReceiverSystem
from models.ledger import Process
from models.schema import migrate
from models.session import Database
from settings import ROOT, VAR
from tests.chaos.fleet import end
from tests.support import services
from workers.publisher import INBOX, LATER, TICK_QUEUE

#: Three systems that accept one record per call, as most do, and three that accept many.
SINGLE = (ReceiverSystem("one"), ReceiverSystem("two"), ReceiverSystem("three"))
BULK = tuple(ReceiverSystem(system.name, bulk=200) for system in SINGLE)

#: The processes that deliver, on two cores: a relay and two workers. Panel and scheduler are not involved.
FLEET = ("relay", "worker", "worker")

#: The most seconds the processes may take to start.
_START_SECONDS = 60.0


@dataclass
class Hub:
    """A running hub."""

    database: Database
    receiver: Receiver
    systems: Sequence[ReceiverSystem]
    folder: Path
    processes: list[tuple[str, subprocess.Popen[bytes]]] = field(default_factory=list)
    #: The id of the newest record.
    newest: int = 0

    def new_ids(self, count: int) -> range:
        """Return the ids of the next records to write."""
        first, self.newest = self.newest + 1, self.newest + count
        return range(first, self.newest + 1)

    def commit_new(self, count: int) -> tuple[range, int, int]:
        """Write new records in one transaction; return their ids and the monotonic ns before and after the commit."""
        ids = self.new_ids(count)
        return ids, *catalogue.commit_new(self.database, ids)

    def wait(self, records: int) -> Counts:
        """Wait until each system has received `records` records since the last `receiver.reset()`.

        Raises:
          Stalled: no more records arrive.
          RuntimeError: a process of the hub has exited.
        """
        return self.receiver.wait(records * len(self.systems), alive=self.check)

    def wait_until(self, condition: Callable[[], bool], what: str, patience: float, pause: float) -> None:
        """Check the condition every `pause` seconds until it is true, for at most `patience` seconds.

        Raises:
          Stalled: the condition stayed false; `what` describes the state in words.
          RuntimeError: a process of the hub has exited.
        """
        deadline = time.monotonic() + patience
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise Stalled(f"{what}; see {self.folder}/*.log")
            time.sleep(pause)

    def check(self) -> None:
        """Raise RuntimeError if a process has exited."""
        for kind, process in self.processes:
            if process.poll() is not None:
                raise RuntimeError(f"the {kind} ended with status {process.returncode}; see {self.folder}/*.log")


class Workbench:
    """The databases, queues, receivers and hubs of a benchmark. A `with` block removes them at its end.

    PostgreSQL and RabbitMQ are those of the tests (`make services`). The queues are in a separate vhost if this user
    may create one (or in that of BENCH_BROKER_URL).
    """

    def __init__(self) -> None:
        self.folder = VAR / "bench" / f"run-{os.getpid()}"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        os.environ.setdefault("SYNCFLOW_REQUIRE_SERVICES", "1")  # a missing service is an error here
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def broker_url(self) -> str:
        """Return the URL of a RabbitMQ vhost."""
        if given := os.environ.get("BENCH_BROKER_URL"):
            return given
        return self._stack.enter_context(services.fresh_vhost(services.rabbitmq_server()))

    @cached_property
    def postgres_server(self) -> str:
        """Return the URL, for psycopg, of a server on which databases can be created."""
        return services.postgres_server()

    @cached_property
    def _postgres_template(self) -> str:
        url = self._stack.enter_context(_fresh(self.postgres_server))
        _prepare(url)
        return url.rpartition("/")[2]

    @cached_property
    def _sqlite_template(self) -> Path:
        path = self.folder / "template.sqlite3"
        _prepare(f"sqlite:///{path}")
        return path

    @contextlib.contextmanager
    def database(self, kind: str) -> Iterator[str]:
        """Yield the URL of a new `postgresql` or `sqlite` database with all tables and triggers."""
        if kind == "postgresql":
            with _fresh(self.postgres_server, self._postgres_template) as url:
                yield url
            return
        path = self.folder / f"{secrets.token_hex(4)}.sqlite3"
        shutil.copy(self._sqlite_template, path)
        yield f"sqlite:///{path}"
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()

    @contextlib.contextmanager
    def receiver(self, subscribers: int = 3, ids: int = 200_000) -> Iterator[Receiver]:
        """Yield a receiver, which also keeps the times of records with ids up to `ids`."""
        receiver = Receiver.create(self.folder / f"{secrets.token_hex(4)}.receiver", subscribers, ids)
        try:
            yield receiver
        finally:
            receiver.close()
            receiver.path.unlink()

    @contextlib.contextmanager
    def hub(
        self,
        kind: str = "postgresql",
        systems: Sequence[ReceiverSystem] = SINGLE,
        *,
        processes: Sequence[str] | None = None,
        ids: int = 200_000,
        environment: Mapping[str, str] | None = None,
        on: str | None = None,
    ) -> Iterator[Hub]:
        """Start the hub: a fleet on PostgreSQL and RabbitMQ, or one standalone process on `sqlite`.

        `on` is the URL of its database, by default a new one.
        The hub is ready: a first record, with id 1, has reached all systems and is no longer counted.
        """
        standalone = kind == "sqlite"
        with (
            contextlib.nullcontext(on) if on else self.database(kind) as url,
            self.receiver(len(systems), ids) as receiver,
        ):
            broker = "memory://" if standalone else self.broker_url
            values = _environment(url, broker, systems, receiver, self.folder) | dict(environment or {})
            database = Database(url)
            hub = Hub(database, receiver, systems, self.folder)
            try:
                for process in processes or (("standalone",) if standalone else FLEET):
                    hub.processes.append((process, self._start(process, values)))
                _await_processes(hub)
                hub.commit_new(1)
                hub.wait(1)
                receiver.reset()
                yield hub
            finally:
                for _, running in hub.processes:
                    running.send_signal(signal.SIGTERM)
                for _, running in hub.processes:
                    end(running)
                database.close()
                if not standalone:
                    _delete_queues(broker, systems)

    def _start(self, kind: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{kind}.log").open("ab") as log:
            return child_processes.start(
                [sys.executable, "-m", "benchmarks.process", kind],
                cwd=ROOT, env=dict(environment), stdout=log, stderr=log,
            )  # fmt: skip


def _fresh(server: str, template: str = "template1") -> contextlib.AbstractContextManager[str]:
    return services.fresh_database(server, template)


def _prepare(url: str) -> None:
    database = Database(url)
    with database.write() as connection:
        catalogue.TABLE.create(connection)
    database.close()
    migrate(url)


def _environment(
    url: str, broker: str, systems: Sequence[ReceiverSystem], receiver: Receiver, folder: Path
) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TZ", "TMPDIR")}
    values = {
        "DATABASE_URL": url,
        "BROKER_URL": broker,
        "SECRET_KEY": secrets.token_hex(32),
        "SYNCFLOW_VAR": str(folder),
        "PORT": "0",
        "LOG_LEVEL": "WARNING",
        "BENCH_SYSTEMS": ",".join(system.name for system in systems),
    }
    for number, system in enumerate(systems):
        values |= system.environment(receiver.path, number)
    return kept | values


def _await_processes(hub: Hub) -> None:
    """Wait until each process has reported that it is alive."""
    deadline = time.monotonic() + _START_SECONDS
    alive = sa.select(sa.func.count()).select_from(Process)
    while True:
        hub.check()
        with hub.database.read() as connection:
            if connection.execute(alive).scalar_one() >= len(hub.processes):
                return
        if time.monotonic() > deadline:
            raise RuntimeError(f"the hub's processes did not start; see {hub.folder}/*.log")
        time.sleep(0.02)


def _delete_queues(url: str, systems: Sequence[ReceiverSystem]) -> None:
    names = [TICK_QUEUE]
    for system in systems:
        queue = f"{system.name}.{catalogue.TABLE.name}"
        names += [queue, queue + LATER, system.name + INBOX]
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    for name in names:
        for suffix in ("", ".DQ", ".XQ"):
            channel.queue_delete(name + suffix)
    connection.close()
