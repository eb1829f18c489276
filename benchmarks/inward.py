"""Inward: signed webhooks that the web process accepts and the workers apply, and pages of a poll."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from pydantic import SecretStr

from benchmarks import catalogue
from benchmarks.hub import Hub, Workbench
from benchmarks.receiver import Stalled
from benchmarks.records import MAPPING, make, mapped
from benchmarks.report import Goal, Result, median, percentile, postgres_settings
from benchmarks.scale import Scale
from broker import LocalFanout
from conductor import Conductor
from models.catalogues import Customer
from models.ledger import Delivery, Inbox
from models.session import Database
from subscribers.base import Subscriber
from subscribers.records import External, Page
from subscribers.stripe import Stripe, StripeCustomer, StripeOptions
from subscribers.system import Options, System
from tests.chaos.fleet import free_port
from workers.publisher import DramatiqPublisher

#: Webhooks of one round, idle and during deliveries; webhooks of a burst; pages of a poll.
COUNTS = (2_000, 10_000, 20)
SHORT_COUNTS = (400, 2_000, 10)
QUICK_COUNTS = (40, 60, 2)

#: Records on a page of a poll, as with Stripe.
PAGE_RECORDS = 100

#: Connections that the sender keeps open; each sends one request after the other.
CONNECTIONS = 8

#: Every 20th webhook of a burst is sent twice, as systems do after a timeout.
DUPLICATE_EVERY = 20

#: Records in a commit, and the limit of pending deliveries, while deliveries run.
_BATCH_RECORDS = 500
_PENDING_DELIVERIES = 3_000

PROCESSES = ("relay", "worker", "worker", "web")
HOST = "127.0.0.1"
SECRET = "whsec_bench"

#: The start of all events, by the clock of the systems.
START = datetime.now(UTC) - timedelta(days=1)

#: Seconds until waiting times out.
_TIMEOUT_SECONDS = 600.0


def run(rounds: int, scale: Scale) -> Result:
    """Send webhooks to a hub, and have pages applied."""
    webhooks, burst, pages = scale.of(COUNTS, SHORT_COUNTS, QUICK_COUNTS)
    seen: dict[str, list[dict[str, float]]] = {}
    polled: dict[str, list[float]] = {}
    with Workbench() as bench:
        with web_hub(bench, PROCESSES) as (hub, sender):
            sender.acquaint(burst)
            for _ in range(rounds):
                seen.setdefault("nothing else", []).append(sender.send(webhooks))
                with _deliveries(hub):
                    seen.setdefault("deliveries", []).append(sender.send(webhooks))
                seen.setdefault("burst", []).append(sender.burst(burst))
        for _ in range(rounds):
            for kind in ("sqlite", "postgresql"):
                for what, rate in _polls(bench, kind, pages).items():
                    polled.setdefault(f"{kind}, {what}", []).append(rate)
        settings = postgres_settings(bench.postgres_server)
    medians = {name: {k: median([one[k] for one in found]) for k in found[0]} for name, found in seen.items()}
    pages_per_s = {name: median(found) for name, found in polled.items()}
    return Result(
        "inward",
        ("what", "per second", "p50 ms", "p99 ms", "applied per second"),
        [
            *((WORDS[name], one["accepted_per_s"], one["p50_ms"], one["p99_ms"], one["applied_per_s"])
              for name, one in medians.items()),
            *((f"pages of {PAGE_RECORDS} polled records, {name}", rate, "", "", rate * PAGE_RECORDS)
              for name, rate in pages_per_s.items()),
        ],
        {**medians, "pages_per_s": pages_per_s},
        settings | {
            "rounds": rounds, "webhooks": webhooks, "burst": burst, "connections": CONNECTIONS, "pages": pages,
            "gunicorn": "2 x 8 threads", "relays": 1, "workers": 2,
        },
        [Goal(f"a burst of {burst:,}", "all applied, none twice",
              f"{medians['burst']['lost']:.0f} lost, {medians['burst']['twice']:.0f} twice",
              all(one["lost"] == one["twice"] == 0 for one in seen["burst"]))],
    )  # fmt: skip


WORDS = {
    "nothing else": "webhooks accepted, nothing else going on",
    "deliveries": "webhooks accepted while deliveries run",
    "burst": "a burst of webhooks",
}


# --- webhooks -----------------------------------------------------------------------------------------


class Sender:
    """Sends signed Stripe events; each call changes the names of other customers."""

    def __init__(self, hub: Hub, port: int) -> None:
        self.hub, self.port = hub, port
        self.turns = self.sent = 0

    def acquaint(self, customers: int) -> None:
        """Link this number of customers, as a poll would; an event of an unlinked customer needs a fetch."""
        client = Stripe("stripe", StripeOptions(api_key=SecretStr("sk_test_bench")))
        subscriber = _StripePages(client)
        subscriber.pages = [
            Page([External(body["id"], body, at=_time(0)) for body in map(_customer, lot)], {})
            for lot in _lots(range(customers))
        ]
        conductor = Conductor(self.hub.database, {subscriber.name(): subscriber}, DramatiqPublisher(LocalFanout()))
        conductor.breaker.probe_now(client.name)  # a scheduler may have found that there is no Stripe to be polled
        if conductor.poll(subscriber.name()) != customers:
            raise RuntimeError("the customers could not be linked")

    def send(self, count: int) -> dict[str, float]:
        """Send this number of events; return the accepted events per second, and the milliseconds until each answer."""
        return self._send(self._events(count))

    def burst(self, count: int) -> dict[str, float]:
        """The same, some of them twice; and how many of the events had no effect, or more than one."""
        events = self._events(count)
        effects = self._effects()
        found = self._send(events, repeated=events[::DUPLICATE_EVERY])
        arrived = self._count(
            sa.select(sa.func.count()).select_from(Customer).where(Customer.name.endswith(f" {self.turns}"))
        )
        return found | {"lost": count - arrived, "twice": self._effects() - effects - arrived}

    def _send(self, events: Sequence[bytes], repeated: Sequence[bytes] = ()) -> dict[str, float]:
        signed = [(body, _signature(body)) for body in (*events, *repeated)]
        began = time.monotonic()
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            lots = [signed[start::CONNECTIONS] for start in range(CONNECTIONS)]
            taken = [seconds for lot in pool.map(self._post, lots) for seconds in lot]
        accepted = time.monotonic() - began
        self._await_applied()
        applied = time.monotonic() - began
        return {
            "accepted_per_s": len(signed) / accepted,
            "p50_ms": percentile(taken, 0.5) * 1000,
            "p99_ms": percentile(taken, 0.99) * 1000,
            "applied_per_s": len(events) / applied,
        }

    def _events(self, count: int) -> list[bytes]:
        self.turns += 1
        self.sent += count
        return [json.dumps(_event(number, self.turns)).encode() for number in range(count)]

    def _post(self, lot: Sequence[tuple[bytes, str]]) -> list[float]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        taken = []
        for body, signature in lot:
            headers = {"Stripe-Signature": signature, "Content-Type": "application/json"}
            began = time.monotonic()
            connection.request("POST", "/webhooks/stripe", body, headers)
            answer = connection.getresponse()
            said = answer.read()
            taken.append(time.monotonic() - began)
            if answer.status not in (200, 202):
                raise RuntimeError(f"a webhook was answered {answer.status}: {said!r}")
        connection.close()
        return taken

    def _count(self, statement: sa.Select[Any]) -> int:
        with self.hub.database.read() as connection:
            return int(connection.execute(statement).scalar_one())

    def _done(self) -> int:
        return self._count(sa.select(sa.func.count()).select_from(Inbox).where(Inbox.state == "done"))

    def _await_applied(self) -> None:
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while (done := self._done()) < self.sent:
            self.hub.check()
            if time.monotonic() > deadline:
                raise Stalled(f"{done:,} of {self.sent:,} events were applied; see {self.hub.folder}/*.log")
            time.sleep(0.02)

    def _effects(self) -> int:
        applied = (Delivery.direction == "in", Delivery.outcome == "applied", Delivery.inbox_id.is_not(None))
        return self._count(sa.select(sa.func.count()).select_from(Delivery).where(*applied))


def _customer(number: int, turn: int = 0) -> dict[str, Any]:
    values = mapped(make(number)) | {"name": f"Customer Number {number} {turn}"}
    return {"id": f"cus_{number:014d}", "object": "customer", "metadata": {}, "livemode": False} | values


def _event(number: int, turn: int) -> dict[str, Any]:
    return {
        "id": f"evt_{turn:04d}{number:010d}",
        "object": "event",
        "created": int(_time(turn).timestamp()),
        "type": "customer.updated",
        "data": {"object": _customer(number, turn)},
    }


def _time(turn: int) -> datetime:
    """When it happened there: events of the same second would have to be fetched."""
    return START + timedelta(seconds=turn)


def _lots(numbers: Sequence[int]) -> list[Sequence[int]]:
    return [numbers[start : start + PAGE_RECORDS] for start in range(0, len(numbers), PAGE_RECORDS)]


def _signature(body: bytes) -> str:
    at = int(time.time())
    digest = hmac.new(SECRET.encode(), b"%d.%s" % (at, body), hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


@contextmanager
def web_hub(bench: Workbench, processes: Sequence[str]) -> Iterator[tuple[Hub, Sender]]:
    """A hub with a web process, to which Stripe may send."""
    port = free_port()
    values = {
        "PORT": str(port),
        "STRIPE_API_KEY": "sk_test_bench",
        "STRIPE_API_BASE": f"http://{HOST}:{free_port()}",  # no server listens here: no fetch is expected
        "STRIPE_WEBHOOK_SECRET": SECRET,
    }
    with bench.hub(processes=processes, environment=values) as hub:
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"http://{HOST}:{port}/healthz", timeout=10) as answer:
                    if answer.status == 200:
                        break
            except (urllib.error.URLError, OSError) as error:
                hub.check()
                if time.monotonic() > deadline:
                    raise Stalled(f"the web process does not answer; see {hub.folder}/*.log") from error
                time.sleep(0.05)
        yield hub, Sender(hub, port)


@contextmanager
def _deliveries(hub: Hub) -> Iterator[None]:
    """Meanwhile records change and go to three systems, as fast as they can."""
    stop, written = threading.Event(), 0
    hub.receiver.reset()

    def write() -> None:
        nonlocal written
        while not stop.is_set():
            if written * len(hub.systems) - hub.receiver.read().records < _PENDING_DELIVERIES:
                hub.commit_new(_BATCH_RECORDS)
                written += _BATCH_RECORDS
            else:
                stop.wait(0.01)

    writer = threading.Thread(target=write, name="writer")
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()
    hub.wait(written)


# --- polls --------------------------------------------------------------------------------------------


class _InMemory(Subscriber):
    """Its pages are in memory already: what is measured is what the hub does with them."""

    pages: Sequence[Page] = ()

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
        yield from self.pages


class _Pages(_InMemory):
    system, catalogue = "pages", catalogue.TABLE.name
    field_to_data = MAPPING


class _StripePages(_InMemory, StripeCustomer):
    pass


def _polls(bench: Workbench, kind: str, count: int) -> dict[str, float]:
    """Pages a second: of records that are new here, that were edited there, and that are as they were."""
    turns: dict[str, dict[str, Any]] = {
        "new here": {},
        "edited there": {"name": "New"},
        "as they were": {"name": "New"},
    }
    found = {}
    with bench.database(kind) as url:
        database = Database(url)
        subscriber = _Pages(System("pages", Options()))
        conductor = Conductor(database, {subscriber.name(): subscriber}, DramatiqPublisher(LocalFanout()))
        conductor.prepare()
        for turn, (what, changes) in enumerate(turns.items()):
            subscriber.pages = [
                Page([External(f"p-{n}", mapped(make(n)) | changes, at=_time(turn)) for n in lot], {})
                for lot in _lots(range(count * PAGE_RECORDS))
            ]
            began = time.monotonic()
            conductor.poll(subscriber.name())
            found[what] = count / (time.monotonic() - began)
        database.close()
    return found
