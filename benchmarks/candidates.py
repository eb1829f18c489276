"""The candidates measured side by side: the hub and its alternatives, behind one interface."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import orjson
import pika
import psycopg
from pika.exceptions import ChannelClosedByBroker

import child_processes
from benchmarks import catalogue
from benchmarks.hub import BULK, SINGLE, Hub, Workbench
from benchmarks.peers.common import LEDGER, SUBSCRIBERS
from benchmarks.receiver import Counts, Receiver
from benchmarks.systems import ReceiverSystem
from settings import ROOT, VAR
from tests.chaos.fleet import end

#: Programs that write a stream to the hub's database: a single one would wait for its own commits.
WRITERS = 4

#: The most seconds a peer may take to start.
_START_SECONDS = 60.0

_VENV = VAR / "bench" / "venv"
_NAMED = "benchmarks/peers/requirements.txt"
_REQUIREMENTS = ROOT / _NAMED


class Candidate(Protocol):
    """A running system that delivers each change to three subscribers."""

    def burst(self, changes: int) -> float:
        """Return deliveries per second for a burst, from the first commit (publish) to the last delivery."""

    def stream(self, changes: int) -> float:
        """Return deliveries per second for changes that are committed (published and confirmed) one by one."""

    def latencies(self, changes: int, pause_ms: float) -> list[float]:
        """Return the milliseconds from commit (publish) to each call, with one change every `pause_ms`."""


@dataclass(frozen=True)
class Entry:
    """A candidate to start, and its name. `quick`: it can handle bursts of 20,000 changes and more."""

    name: str
    start: Callable[[Workbench], contextlib.AbstractContextManager[Candidate]]
    quick: bool = True


# --- the hub ------------------------------------------------------------------------------------------


class HubCandidate:
    """A running hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def burst(self, changes: int) -> float:
        _, began, _ = self.hub.commit_new(changes)
        return _rate(self.hub.wait(changes), began, self.hub.receiver)

    def stream(self, changes: int) -> float:
        ids = self.hub.new_ids(changes)
        began = time.monotonic_ns()
        with ThreadPoolExecutor(WRITERS) as writers:
            list(writers.map(lambda number: catalogue.commit_new(self.hub.database, [number]), ids))
        return _rate(self.hub.wait(changes), began, self.hub.receiver)

    def latencies(self, changes: int, pause_ms: float) -> list[float]:
        committed = {}
        at = time.monotonic()
        for number in self.hub.new_ids(changes):
            at += pause_ms / 1000
            time.sleep(max(at - time.monotonic(), 0.0))
            _, committed[number] = catalogue.commit_new(self.hub.database, [number])
        self.hub.wait(changes)
        return _latencies(self.hub.receiver, committed)


def _rate(counts: Counts, began_ns: int, receiver: Receiver) -> float:
    rate = (counts.records - counts.repeats) / ((counts.last_ns - began_ns) / 1e9)
    receiver.reset()
    return rate


def _latencies(receiver: Receiver, began: dict[int, int]) -> list[float]:
    found = []
    for subscriber in range(receiver.subscribers):
        times = receiver.times(subscriber)
        found += [(times[number] - at) / 1e6 for number, at in began.items()]
    receiver.reset()
    return found


def hub(name: str, kind: str, systems: Sequence[ReceiverSystem] = SINGLE) -> Entry:
    """Return an entry for the hub on `postgresql` with RabbitMQ, or standalone on `sqlite`."""

    @contextmanager
    def start(bench: Workbench) -> Iterator[Candidate]:
        with bench.hub(kind, systems) as running:
            yield HubCandidate(running)

    return Entry(name, start)


HUB = hub("hub, PostgreSQL", "postgresql")
HUB_BULK = hub("hub, PostgreSQL, bulk systems", "postgresql", BULK)
STANDALONE = hub("hub, SQLite", "sqlite")
STANDALONE_BULK = hub("hub, SQLite, bulk systems", "sqlite", BULK)


# --- the others ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """How to run one of benchmarks/peers.

    `{}` in names is a prefix. `commands` start the workers, after `python -m`; each queue then has `consumers`.
    """

    name: str
    module: str
    commands: Sequence[Sequence[str]]
    queues: Sequence[str]
    exchanges: Sequence[str] = ()
    consumers: int = 1
    own_environment: bool = True
    ledger: bool = False
    quick: bool = False


_QUEUES = tuple(f"{{}}.{subscriber}" for subscriber in SUBSCRIBERS)
_CELERY = ("celery", "-A", "benchmarks.peers.celery_app", "worker", "--concurrency", "2", "--loglevel", "WARNING")
_CELERY_QUEUES = ("{}.tasks",)


def _pika(name: str, acknowledge_at_once: int) -> Peer:
    commands = [("benchmarks.peers.raw_pika", "consume", each, str(acknowledge_at_once)) for each in SUBSCRIBERS]
    return Peer(name, "raw_pika", commands, _QUEUES, ("{}",), own_environment=False, quick=True)


PEERS = (
    _pika("raw pika", 1),
    _pika("raw pika, acks in batches", 50),
    Peer("Celery", "celery_app", [_CELERY], _CELERY_QUEUES, ("{}.tasks",)),
    Peer("Celery with a ledger", "celery_app", [_CELERY], _CELERY_QUEUES, ("{}.tasks",), ledger=True),
    Peer(
        "Dramatiq", "dramatiq_plain", [("dramatiq", "benchmarks.peers.dramatiq_plain", "-p", "2", "-t", "8")],
        [queue + suffix for queue in _QUEUES for suffix in ("", ".DQ", ".XQ")], consumers=2, own_environment=False,
    ),
    Peer(
        "FastStream", "faststream_app",
        [("faststream", "run", "benchmarks.peers.faststream_app:app", "--workers", "2", "--log-level", "warning")],
        _QUEUES, ("{}",), consumers=2,
    ),
    Peer(
        "nameko", "nameko_app",
        [("nameko", "run", "benchmarks.peers.nameko_app", "--broker", "{broker}")] * 2,
        [f"evt-{{}}_records-changed--{{}}_{name}.handle" for name in SUBSCRIBERS], ("{}_records.events",), consumers=2,
    ),
)  # fmt: skip


#: Entries that differ from another entry in one setting.
VARIANTS = ("raw pika, acks in batches", "Celery with a ledger")


class _PeerCandidate:
    def __init__(self, publisher: subprocess.Popen[bytes], receiver: Receiver, check: Callable[[], None]) -> None:
        self.publisher = publisher
        self.receiver = receiver
        self.check = check
        self._newest = 0

    def burst(self, changes: int) -> float:
        _, began = self._publish(changes)
        return _rate(self._wait(changes), began[0], self.receiver)

    def stream(self, changes: int) -> float:
        _, began = self._publish(changes, each=True)
        return _rate(self._wait(changes), began[0], self.receiver)

    def latencies(self, changes: int, pause_ms: float) -> list[float]:
        ids, began = self._publish(changes, pause_ms, each=True)
        self._wait(changes)
        return _latencies(self.receiver, dict(zip(ids, began, strict=True)))

    def _wait(self, changes: int) -> Counts:
        return self.receiver.wait(changes * len(SUBSCRIBERS), alive=self.check)

    def _publish(self, changes: int, pause_ms: float = 0.0, *, each: bool = False) -> tuple[range, list[int]]:
        ids = range(self._newest + 1, self._newest + changes + 1)
        self._newest += changes
        asked = {"first": ids.start, "count": changes, "pause_ms": pause_ms, "each": each}
        assert self.publisher.stdin is not None
        self.publisher.stdin.write(orjson.dumps(asked) + b"\n")
        self.publisher.stdin.flush()
        return ids, self._answer()["began"]

    def _answer(self) -> dict[str, list[int]]:
        assert self.publisher.stdout is not None
        line = self.publisher.stdout.readline()
        if not line:
            self.check()
            raise RuntimeError("the publisher has ended")
        answer: dict[str, list[int]] = orjson.loads(line)
        return answer

    def warm_up(self) -> None:
        """Wait until the publisher is ready and a first record has been delivered."""
        self._answer()
        self._publish(1)
        self._wait(1)
        self.receiver.reset()


@dataclass
class _Processes:
    """The processes of one peer."""

    folder: Path
    environment: dict[str, str]
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, command: Sequence[str], *, talks: bool = False) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE if talks else None
        with (self.folder / "peer.log").open("ab") as log:
            process = child_processes.start(
                command, cwd=ROOT, env=self.environment, stdin=pipe, stdout=pipe or log, stderr=log,
            )  # fmt: skip
        self.running.append(process)
        return process

    def check(self) -> None:
        """Raise RuntimeError if a process has exited."""
        for process in self.running:
            if process.poll() is not None:
                raise RuntimeError(f"{process.args!r} ended with {process.returncode}; see {self.folder}/peer.log")

    def stop(self) -> None:
        for process in self.running:
            if process.stdin is not None:
                process.stdin.close()
            process.send_signal(signal.SIGTERM)
        for process in self.running:
            end(process)


@contextmanager
def _running(peer: Peer, python: str, bench: Workbench) -> Iterator[Candidate]:
    prefix = f"bench{secrets.token_hex(4)}"
    queues = [name.replace("{}", prefix) for name in peer.queues]
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(bench.receiver(len(SUBSCRIBERS)))
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TZ", "TMPDIR")}
        values = {
            "BROKER_URL": bench.broker_url,
            "BENCH_PREFIX": prefix,
            "BENCH_RECEIVER": str(receiver.path),
            "PYTHONPATH": str(ROOT),
        }
        if peer.ledger:
            values["BENCH_LEDGER"] = stack.enter_context(_ledger(bench))
        processes = _Processes(bench.folder, kept | values)
        stack.callback(_delete, bench.broker_url, queues, [name.replace("{}", prefix) for name in peer.exchanges])
        stack.callback(processes.stop)
        for command in peer.commands:
            words = [word.replace("{broker}", bench.broker_url) for word in command]
            processes.start([python, "-m", *words])
        publisher = processes.start([python, "-m", f"benchmarks.peers.{peer.module}", "publish"], talks=True)
        _await_consumers(bench.broker_url, queues, peer.consumers, processes.check)
        candidate = _PeerCandidate(publisher, receiver, processes.check)
        candidate.warm_up()
        yield candidate


@contextmanager
def _ledger(bench: Workbench) -> Iterator[str]:
    with bench.database("postgresql") as url:
        plain = url.replace("postgresql+psycopg://", "postgresql://")
        with psycopg.connect(plain, autocommit=True) as connection:
            connection.execute(LEDGER)
        yield plain


def _await_consumers(url: str, queues: Sequence[str], wanted: int, check: Callable[[], None]) -> None:
    """Wait until each of these queues (except Dramatiq's for dead and delayed messages) has its consumers."""
    deadline = time.monotonic() + _START_SECONDS
    waiting = [queue for queue in queues if not queue.endswith((".DQ", ".XQ"))]
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        while waiting:
            check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"no consumers for {', '.join(waiting)}")
            try:
                if channel.queue_declare(waiting[0], passive=True).method.consumer_count >= wanted:
                    waiting.pop(0)
                    continue
            except ChannelClosedByBroker:  # the queue does not exist yet
                channel = connection.channel()
            time.sleep(0.02)


def _delete(url: str, queues: Sequence[str], exchanges: Sequence[str]) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        for queue in queues:
            channel.queue_delete(queue)
        for exchange in exchanges:
            channel.exchange_delete(exchange)


def peers(*, quick: bool = False) -> tuple[list[Entry], list[str]]:
    """Return the peers that can run, and a reason for each that cannot. `quick`: only those without installation."""
    found, why = [], []
    for peer in PEERS:
        python = sys.executable
        if peer.own_environment:
            if quick:
                continue
            try:
                python = _environment()
            except subprocess.CalledProcessError as error:
                why.append(f"{peer.name} is left out: {_NAMED} could not be installed: {error}")
                continue
        found.append(Entry(peer.name, _starter(peer, python), quick=peer.quick))
    return found, why


def _starter(peer: Peer, python: str) -> Callable[[Workbench], contextlib.AbstractContextManager[Candidate]]:
    return lambda bench: _running(peer, python, bench)


def _environment() -> str:
    """Return the Python of the peers' environment, which is installed on first use.

    Raises:
      CalledProcessError: a package could not be installed; pip has printed the reason on standard error.
    """
    python, stamp = _VENV / "bin" / "python", _VENV / "requirements.txt"
    wanted = _REQUIREMENTS.read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {_NAMED} into {_VENV}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(_VENV)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "-r", str(_REQUIREMENTS)], check=True)
        stamp.write_text(wanted)
    return str(python)
