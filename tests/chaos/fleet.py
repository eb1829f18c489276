"""The real fleet: every process as an operator would start it, with its own PostgreSQL and RabbitMQ."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

import psycopg

import child_processes
from settings import ROOT, VAR
from tests.chaos.proxy import HOST, Proxy
from tests.support.private_postgresql import standby_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: The processes of the hub: name -> command. Several relays and workers, as on several machines.
COMMANDS = {
    "web": "web",
    "relay-1": "relay",
    "relay-2": "relay",
    "worker-1": "worker",
    "worker-2": "worker",
    "scheduler": "scheduler",
}

#: The hub's timeouts, much shorter than usual, so that it recovers within the run. MAX_ATTEMPTS is higher
#: instead: with pauses of at most 3 s, a few seconds of trouble would use up 8 attempts.
PATIENCE = {
    "LEASE_SECONDS": "8",
    "STALE_SECONDS": "4",
    "SWEEP_SECONDS": "0.5",
    "RETRY_MIN_SECONDS": "0.3",
    "RETRY_MAX_SECONDS": "3",
    "MAX_ATTEMPTS": "40",
    "PROBE_MIN_SECONDS": "0.5",
    "PROBE_MAX_SECONDS": "3",
    "GRACE_SECONDS": "6",
    "WORKER_THREADS": "4",
    # The load deletes more than a user would. This run does not test the delete guard.
    "STRIPE_DELETE_LIMIT": "100000",
    "SALESFORCE_DELETE_LIMIT": "100000",
}

#: Below the range that Linux uses for outgoing connections (32768 and up).
PORTS = (20_000, 30_000)

#: The longest pause between two attempts to send a webhook, in seconds.
WEBHOOK_PAUSE = "2"

#: Seconds until a process is restarted after it was killed, and after it exited by itself.
RESTART_AFTER = 1.0


class Service:
    """A private PostgreSQL or RabbitMQ, managed through scripts/services."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.name = f"chaos-{os.getpid()}"
        self.port = 0

    def do(self, action: str) -> str:
        """Run start, stop, kill or wipe, and return the output."""
        command = [sys.executable, str(ROOT / "scripts" / "services"), self.kind, action, "--name", self.name]
        if action == "start":
            self.port = self.port or free_port()
            command += ["--port", str(self.port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.kind} {action}: {done.stdout}{done.stderr}")
        if action == "start":
            state = VAR / "services" / self.kind / self.name / "state.json"
            child_processes.watch(os.getpgid(json.loads(state.read_text())["pid"]))
        return done.stdout.strip()

    def remove(self) -> None:
        """Kill it and delete its data."""
        self.do("wipe")
        shutil.rmtree(VAR / "services" / self.kind / self.name, ignore_errors=True)


@dataclass
class Managed:
    """One process, restarted whenever it is not running."""

    name: str
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    #: Whether a fault ended it; otherwise it exited by itself.
    expected: bool = False
    restart_at: float = 0.0
    starts: int = 0


@dataclass
class Exit:
    """A process that exited by itself."""

    name: str
    status: int
    at: float


@dataclass
class Fleet:
    """Everything that runs. A context manager that ends all it started."""

    folder: Path
    seed: int
    #: With a standby that `fail_over` makes the primary.
    has_standby: bool = False
    exits: list[Exit] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.postgresql, self.rabbitmq = Service("postgresql"), Service("rabbitmq")
        self.environment: dict[str, str] = {}
        self.proxies: dict[str, Proxy] = {}
        self.urls: dict[str, str] = {}
        self.database_url = ""
        #: The way to the database, if there is a standby.
        self.database: Proxy | None = None
        self._standby = 0
        self._stack = contextlib.ExitStack()
        self._managed: dict[str, Managed] = {}
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            self._stack = stack
            self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # --- starting ---------------------------------------------------------------------------------

    def _start(self) -> None:
        services = (self.postgresql, self.rabbitmq)
        self._stack.callback(at_once, *(service.remove for service in services))
        server, broker = at_once(*(lambda service=service: service.do("start") for service in services))
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute("CREATE DATABASE syncflow")
        port = self._start_standby(server) if self.has_standby else self.postgresql.port
        self.database_url = f"postgresql://postgres@{HOST}:{port}/syncflow"
        web = free_port()
        self.environment = {
            **{name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TZ", "TMPDIR")},
            **PATIENCE,
            "DATABASE_URL": self.database_url,
            "BROKER_URL": broker,
            "SECRET_KEY": secrets.token_hex(32),
            "HOST": HOST,
            "PORT": str(web),
            "LOG_LEVEL": "INFO",
            "NO_PROXY": "*",
            "PYTHONUNBUFFERED": "1",
        }
        hooks = f"http://{HOST}:{web}/webhooks"
        at_once(
            lambda: self._start_stripe(f"{hooks}/stripe"),
            lambda: self._start_salesforce(f"{hooks}/salesforce"),
            lambda: self.run(["migrate"]),
        )
        self._stack.callback(self._stop_hub)
        for name, command in COMMANDS.items():
            self._managed[name] = Managed(name, self._command(command), self.folder / f"{name}.log")
            self._launch(self._managed[name])
        self._supervisor.start()

    def _start_standby(self, server: str) -> int:
        """Start a standby that confirms each commit; return the port that leads to the primary."""
        self._standby = self._stack.enter_context(standby_of(self.postgresql.port))
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            connection.execute("SELECT pg_reload_conf()")
        self.database = self._stack.enter_context(Proxy(free_port(), self.postgresql.port, self.seed))
        return self.database.port

    def fail_over(self) -> None:
        """Kill the primary, and lead everybody to the standby, which is the primary from now on."""
        assert self.database is not None
        self.postgresql.do("kill")
        with psycopg.connect(f"postgresql://postgres@{HOST}:{self._standby}/postgres", autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")
        self.database.lead_to(self._standby)

    def _start_stripe(self, hook: str) -> None:
        secret = f"whsec_{secrets.token_hex(16)}"
        url = self._start_system(
            "stripe",
            ["--webhook-url", hook, "--webhook-pause", WEBHOOK_PAUSE],
            {"STRIPE_WEBHOOK_SECRET": secret},
            free_port(),
        )
        proxy = self._proxy("stripe", url)
        self.environment |= {
            "STRIPE_API_KEY": "sk_test_chaos",
            "STRIPE_API_BASE": f"http://{HOST}:{proxy.port}",
            "STRIPE_WEBHOOK_SECRET": secret,
        }

    def _start_salesforce(self, hook: str) -> None:
        secret, client, port = secrets.token_hex(16), secrets.token_hex(16), free_port()
        certificates = self.folder / "certs"
        proxy = self._proxy("salesforce", f"https://{HOST}:{port}")
        self._start_system(
            "salesforce",
            ["--certs", str(certificates), "--notify-url", hook, "--public-url", f"https://{HOST}:{proxy.port}"],
            {
                "DEMO_SALESFORCE_CLIENT_ID": "chaos",
                "DEMO_SALESFORCE_CLIENT_SECRET": client,
                "DEMO_SALESFORCE_NOTIFY_SECRET": secret,
            },
            port,
        )
        self.environment |= {
            "SALESFORCE_INSTANCE_URL": f"https://{HOST}:{proxy.port}",
            "SALESFORCE_CONSUMER_KEY": "chaos",
            "SALESFORCE_CONSUMER_SECRET": client,
            "SALESFORCE_CA_BUNDLE": str(certificates / "ca.pem"),
            "SALESFORCE_WEBHOOK_SECRET": secret,
        }

    def _proxy(self, system: str, url: str) -> Proxy:
        proxy = Proxy(free_port(), int(url.rpartition(":")[2]), self.seed)
        self.proxies[system] = self._stack.enter_context(proxy)
        return proxy

    def _start_system(self, name: str, arguments: Sequence[str], more: Mapping[str, str], port: int) -> str:
        """Start a demo system, which prints its address first."""
        log = self._stack.enter_context((self.folder / f"{name}.log").open("ab"))
        process: subprocess.Popen[bytes] = child_processes.start(
            [sys.executable, "-m", f"simulators.{name}", "--port", str(port), *arguments],
            cwd=ROOT, env={**os.environ, **more}, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
        self._stack.callback(end, process)
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        if not url:
            raise RuntimeError(f"demo.{name} did not start; see {self.folder / name}.log")
        self.urls[name] = url
        return url

    @staticmethod
    def _command(name: str) -> list[str]:
        return [sys.executable, str(ROOT / "syncflow"), name]

    def run(self, arguments: Sequence[str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run one command of the hub until it exits."""
        command = [sys.executable, str(ROOT / "syncflow"), *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=dict(self.environment), capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            logger.warning("%s: exit status %d: %s", " ".join(arguments), done.returncode, done.stderr.strip()[-500:])
        return done

    # --- the hub's processes ----------------------------------------------------------------------

    def _launch(self, managed: Managed) -> None:
        with managed.log.open("ab") as log:
            managed.process = child_processes.start(
                managed.command, cwd=ROOT, env=self.environment, stdout=log, stderr=log
            )
        managed.expected = False
        managed.starts += 1

    def signal(self, name: str, number: signal.Signals, pause: float = RESTART_AFTER) -> bool:
        """Kill (with all its children) or terminate a process, to be restarted. Return False if it is not running."""
        with self._lock:
            managed = self._managed[name]
            process = managed.process
            if process is None or process.poll() is not None:
                return False
            managed.expected, managed.restart_at = True, time.monotonic() + pause
            if number == signal.SIGKILL:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            return True

    def running(self) -> bool:
        """Return whether every process is running."""
        with self._lock:
            return all(m.process is not None and m.process.poll() is None for m in self._managed.values())

    def _supervise(self) -> None:
        while not self._closing.wait(0.1):
            with self._lock:
                for managed in self._managed.values():
                    self._look_after(managed)

    def _look_after(self, managed: Managed) -> None:
        if managed.process is not None:
            status = managed.process.poll()
            if status is None:
                return
            if not managed.expected:
                self.exits.append(Exit(managed.name, status, time.time()))
                managed.restart_at = time.monotonic() + RESTART_AFTER
            managed.process = None
        if time.monotonic() >= managed.restart_at:
            self._launch(managed)

    def _stop_hub(self) -> None:
        self._closing.set()
        if self._supervisor.ident is not None:
            self._supervisor.join(5)
        for managed in self._managed.values():
            if managed.process is not None:
                kill(managed.process)


def at_once(*works: Callable[[], T]) -> list[T]:
    """Do all of these at the same time, and return their results."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [work.result() for work in [pool.submit(work) for work in works]]


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its children; nothing of it is needed any more."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
    if process.stdout is not None:
        process.stdout.close()


def free_port() -> int:
    """Return an unused port outside the range of outgoing connections, which could take it during an outage."""
    while True:
        port = random.randrange(*PORTS)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
