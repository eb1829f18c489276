"""Helpers for the acceptance tests: start and stop real processes, wait, and inspect systems from outside."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import pika
import pika.exceptions
import requests
import sqlalchemy as sa

import child_processes
from settings import ROOT
from tests.support import services

T = TypeVar("T")

#: Seconds to wait for a process to exit after a stop request; longer than the grace time of the process.
STOP_SECONDS = 20.0
#: Below the ephemeral port range, so that no outgoing connection takes one of these ports
#: between two starts.
PORTS = range(15_000, 32_000)

#: Every process started, in order, for failure reports.
started: list["Process"] = []


def eventually(check: Callable[[], T], seconds: float = 30.0) -> T:
    """Wait until `check` returns something true, and return it.

    Raise AssertionError after `seconds`, with the last result or exception. An AssertionError or a refused
    connection counts as "not yet".
    """
    deadline = time.monotonic() + seconds
    pause = 0.02
    while True:
        try:
            last: Any = check()
            if last:
                return last  # type: ignore[no-any-return]
        except (AssertionError, requests.RequestException) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {seconds:g} s; the last state was: {last!r}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.2)


def next_second() -> None:
    """Wait until the clock shows the next second: external systems report times in whole seconds."""
    time.sleep(1.05 - time.time() % 1)


def free_port() -> int:
    """Return a port on which nothing listens."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


def environment(**settings: str) -> dict[str, str]:
    """Return the environment of a process: these settings, and from the tester's own only what every program needs."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR", "USER") if name in os.environ}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**kept, "PATH": path, "PYTHONUNBUFFERED": "1", "LOG_FORMAT": "json", **settings}


class Process:
    """One process in its own process group, with its output in a file."""

    def __init__(self, name: str, command: list[str], settings: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.output = folder / f"{name.replace(' ', '-')}-{len(started)}.log"
        with self.output.open("wb") as output:
            self.popen = child_processes.start(
                command,
                cwd=ROOT,
                env=dict(settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        started.append(self)

    @property
    def printed(self) -> str:
        """Return the output so far."""
        return self.output.read_text(errors="replace")

    def tail(self, characters: int = 4000) -> str:
        """Return the end of the output and the exit status."""
        return f"{self.printed[-characters:]}\n(exit status: {self.popen.poll()})"

    @property
    def runs(self) -> bool:
        return self.popen.poll() is None

    def wait_for(self, pattern: str, seconds: float = 30.0) -> str:
        """Wait until this pattern is printed and return its first group; AssertionError if the process ends first."""
        deadline = time.monotonic() + seconds
        while True:
            ended = not self.runs
            if found := re.search(pattern, self.printed, re.MULTILINE):
                return found.group(1)
            assert not ended, f"{self.name} has ended with exit status {self.popen.returncode}"
            assert time.monotonic() < deadline, f"{self.name} has not printed {pattern!r} after {seconds:g} s"
            time.sleep(0.05)

    def ask(self, number: int = signal.SIGTERM, *, group: bool = False) -> None:
        """Send a signal to the process, or to its whole group, as Ctrl-C in a terminal does."""
        (os.killpg if group else os.kill)(self.popen.pid, number)

    def end(self) -> int:
        """Wait until the process has ended and return its exit status."""
        try:
            return self.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs {STOP_SECONDS:g} s after it was asked to end") from None

    def stop(self) -> int:
        """Send SIGTERM, wait, and return the exit status."""
        self.ask()
        return self.end()

    def kill(self) -> None:
        """Kill the process immediately, as a power failure would."""
        if self.runs:
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(STOP_SECONDS)


@contextmanager
def ended_at_the_end(settings: Mapping[str, str]) -> Iterator[None]:
    """End all processes that were started inside the block with this environment."""
    before = len(started)
    try:
        yield
    finally:
        for process in reversed(started[before:]):
            process.kill()
        for pid in family(settings["SYNCFLOW_VAR"]):
            os.kill(pid, signal.SIGKILL)


def family(var: str) -> list[int]:
    """Return the processes with this SYNCFLOW_VAR in their environment: those started by a test, and their children."""
    wanted = f"SYNCFLOW_VAR={var}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue  # owned by another user, or ended meanwhile
    return sorted(found)


# --- the two external systems, from outside -----------------------------------------------------------


class StripeSystem:
    """The Stripe-like system as users and tests see it. Nothing here adds an API call to its journal."""

    def __init__(self, url: str) -> None:
        self.url = url

    def customers(self, record_id: object) -> list[dict[str, Any]]:
        """Return the customers that carry this record's id: at most one if all is well."""
        everyone = _get(f"{self.url}/_control/customers")["customers"]
        marks = [(one.get("metadata") or {}).get("syncflow_id") for one in everyone]
        return [one for one, mark in zip(everyone, marks, strict=True) if _record_id(mark) == str(record_id)]

    def customer(self, record_id: object) -> dict[str, Any]:
        """Return the only customer of this record; AssertionError if there is none or more than one."""
        (one,) = _exactly_one(self.customers(record_id))
        return one

    def edit(self, external_id: str, **changes: str) -> None:
        """Open the customer's page, change these fields and save."""
        submit(f"{self.url}/ui/customers/{external_id}", changes)

    def calls(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the API calls after that number."""
        return list(_get(f"{self.url}/_control/journal?since={since}")["calls"])

    def last_call(self) -> int:
        return int(_get(f"{self.url}/_control/journal?since=0")["last"])

    def order(self, **fault: Any) -> None:
        """Order a fault, see `simulators.faults`."""
        _post(f"{self.url}/_control/faults", fault)

    def faults(self) -> list[dict[str, Any]]:
        """Return the faults that are not used up yet."""
        return list(_get(f"{self.url}/_control/faults")["faults"])

    def webhooks(self) -> list[dict[str, Any]]:
        """Return the attempts to deliver webhooks."""
        return list(_get(f"{self.url}/_control/webhooks")["attempts"])


class SalesforceSystem:
    """The Salesforce-like system as users and tests see it. Pages and control calls use plain HTTP."""

    def __init__(self, url: str) -> None:
        self.url = url.replace("https://", "http://")

    def accounts(self, record_id: object) -> list[dict[str, Any]]:
        everyone = _get(f"{self.url}/_control/records/Account")
        living = [one for one in everyone if not one["IsDeleted"]]
        return [one for one in living if _record_id(one["Syncflow_Id__c"]) == str(record_id)]

    def account(self, record_id: object) -> dict[str, Any]:
        (one,) = _exactly_one(self.accounts(record_id))
        return one

    def edit(self, external_id: str, **changes: str) -> None:
        submit(f"{self.url}/ui/Account/{external_id}", changes)

    def calls(self, since: int = 0) -> list[dict[str, Any]]:
        return list(_get(f"{self.url}/_control/journal?since={since}"))

    def last_call(self) -> int:
        return max((int(one["number"]) for one in self.calls()), default=0)

    def writes(self, since: int) -> list[dict[str, Any]]:
        """Return the calls after that number that changed records or tried to."""
        return [one for one in self.calls(since) if one["method"] != "GET" and "/oauth2/" not in one["path"]]


def _record_id(mark: str | None) -> str | None:
    """Return the id of the record in a mark."""
    return mark.partition("@")[0] if mark else None


def _exactly_one(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    assert len(found) == 1, f"{len(found)} records there: {found}"
    return found


def _get(url: str) -> Any:
    answer = requests.get(url, timeout=10)
    answer.raise_for_status()
    return answer.json()


def _post(url: str, value: Any) -> None:
    requests.post(url, json=value, timeout=10).raise_for_status()


# --- pages ----------------------------------------------------------------------------------------------


class _Form(HTMLParser):
    """The first form of a page: its target and the values of its fields."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self._area: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "form" and self.action is None:
            self.action = given.get("action") or ""
        elif tag in ("input", "textarea") and given.get("name"):
            self.fields[str(given["name"])] = given.get("value") or ""
            self._area = str(given["name"]) if tag == "textarea" else None

    def handle_data(self, data: str) -> None:
        if self._area:
            self.fields[self._area] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea":
            self._area = None


def submit(url: str, changes: Mapping[str, str], session: requests.Session | None = None) -> requests.Response:
    """Open a page, change these fields of its form, submit it as a browser does, and return the page that follows."""
    browser = session or requests.Session()
    page = browser.get(url, timeout=10)
    page.raise_for_status()
    form = _Form(page.text)
    assert form.action is not None and set(changes) <= set(form.fields), f"the form at {url} has {list(form.fields)}"
    address = urljoin(page.url, form.action)
    headers = {"Origin": "{0.scheme}://{0.netloc}".format(urlsplit(url))}
    answer = browser.post(address, data=form.fields | dict(changes), headers=headers, timeout=10)
    answer.raise_for_status()
    return answer


# --- the database -----------------------------------------------------------------------------------------


class Sql:
    """Another program's connection to the internal database, which knows nothing of Syncflow."""

    def __init__(self, url: str) -> None:
        self.engine = sa.create_engine(url, poolclass=sa.NullPool)

    def __call__(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        """Run one statement in its own transaction and return its rows, if any."""
        with self.engine.begin() as connection:
            result = connection.execute(sa.text(statement), values)
            return [dict(row) for row in result.mappings()] if result.returns_rows else []

    def one(self, statement: str, **values: Any) -> Any:
        """Return the first column of the only row."""
        ((value,),) = (row.values() for row in self(statement, **values))
        return value

    def customer(self, record_id: object) -> dict[str, Any]:
        (row,) = self("SELECT * FROM customer WHERE id = :id", id=record_id)
        return row

    def add(self, name: str, **columns: Any) -> int:
        """Insert a customer, as another program would, and return its id."""
        given = {"name": name, "email": f"{name.lower().replace(' ', '.')}@acceptance.example", **columns}
        names, places = ", ".join(given), ", ".join(f":{column}" for column in given)
        return int(self.one(f"INSERT INTO customer ({names}) VALUES ({places}) RETURNING id", **given))

    def owing(self) -> dict[str, int]:
        """Return the outstanding work by kind; empty when nothing is left to do."""
        counts = {
            "changes": "SELECT count(*) FROM change WHERE relayed_at IS NULL",
            "links": "SELECT count(*) FROM link WHERE owed_change > synced_change AND dead_at IS NULL",
            "leases": "SELECT count(*) FROM link WHERE lease_until IS NOT NULL",
            "inbox": "SELECT count(*) FROM inbox WHERE state = 'waiting'",
        }
        found = {kind: int(self.one(statement)) for kind, statement in counts.items()}
        return {kind: count for kind, count in found.items() if count}

    def settled(self, seconds: float = 30.0) -> None:
        """Wait until nothing is outstanding."""
        eventually(lambda: not (owing := self.owing()) or _still(owing), seconds)


def _still(owing: object) -> bool:
    raise AssertionError(f"still owed: {owing}")


# --- RabbitMQ -----------------------------------------------------------------------------------------------

QUEUES = ("stripe.customer", "salesforce.customer", "stripe.inbox", "salesforce.inbox", "syncflow.tick")


@contextmanager
def vhost(server_url: str) -> Iterator[str]:
    """Yield a dedicated vhost, or else the server's default vhost, locked so that no other fleet uses it."""
    with services.fresh_vhost(server_url) as url:
        if url != server_url:
            yield url
            return
        with connected(server_url) as connection:
            channel = eventually(lambda: _locked(connection), seconds=90)
            _remove_queues(channel)
            try:
                yield url
            finally:
                _remove_queues(channel)


@contextmanager
def connected(url: str) -> Iterator[pika.BlockingConnection]:
    """Yield a connection that may stay idle."""
    parameters = pika.URLParameters(url)
    parameters.heartbeat = 0
    connection = pika.BlockingConnection(parameters)
    try:
        yield connection
    finally:
        connection.close()


def _locked(connection: pika.BlockingConnection) -> Any:
    """Return a channel as soon as no other run holds the queue that serves as a lock."""
    channel = connection.channel()
    try:
        channel.queue_declare("syncflow.acceptance.lock", exclusive=True)
    except pika.exceptions.ChannelClosedByBroker as error:
        raise AssertionError(f"another run has this vhost: {error}") from None
    return channel


def _remove_queues(channel: Any) -> None:
    for queue in QUEUES:
        for suffix in ("", ".DQ", ".XQ"):
            channel.queue_delete(queue + suffix)
