"""The faults and their times: a plan made from the seed before the run, and carried out during it."""

from __future__ import annotations

import logging
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import requests

from tests.chaos.fleet import COMMANDS, Fleet, Service
from tests.chaos.proxy import Mode
from tests.support.private_rabbitmq import Node

logger = logging.getLogger(__name__)

#: Mean seconds between two faults of a kind.
EVERY = {
    "process": 3.0,
    "network": 5.0,
    "call": 1.2,
    "webhook": 0.8,
    "session": 12.0,
    "service": 40.0,
    "late_deletion": 8.0,
}

#: The faults that every run includes, each with its time as a fraction of the run.
SURELY: tuple[tuple[float, str, tuple[Any, ...]], ...] = (
    (0.05, "late_deletion", ()),
    (0.10, "service", ("postgresql", "kill", 1.0)),
    (0.15, "outage", ("stripe",)),
    (0.25, "service", ("rabbitmq", "wipe", 1.0)),
    (0.45, "alarm", ()),
    (0.55, "outage", ("salesforce",)),
    (0.60, "service", ("rabbitmq", "kill", 1.0)),
    (0.85, "service", ("postgresql", "stop", 1.0)),
)

#: With `FAULTS=failover`: instead of all other faults of PostgreSQL.
FAIL_OVER = 0.5

#: How long a system answers 502 to all requests: a fraction of the run, but no longer than a number of seconds.
OUTAGE, LONGEST_OUTAGE = 0.15, 60.0

#: How long RabbitMQ's memory alarm lasts, in the same way.
ALARM, LONGEST_ALARM = 0.1, 20.0

#: Most faults that may wait for a system. One that is down gets only one call in three seconds,
#: and with more faults it would never come up.
ARMED = 2

#: More calls than any outage lasts.
MOST_CALLS = 10_000

#: How late a late deletion is reported.
LATE_SECONDS = 8.0

WEBHOOK_FAULTS = ("webhook_drop", "webhook_duplicate", "webhook_reorder", "webhook_delay")


@dataclass(frozen=True)
class Outage:
    """A fault with a start and an end, in seconds since the epoch; for a killed process both are the same."""

    what: str
    began: float
    ended: float


class Faults:
    """Carry out the plan in a separate thread between `start` and `stop`."""

    def __init__(self, fleet: Fleet, seconds: float, seed: int, ended: Callable[[Outage], None]) -> None:
        self.fleet = fleet
        self.ended = ended
        self.kills = 0
        self.outages = 0
        self.counts: Counter[str] = Counter()
        self.seconds = seconds
        self.plan = plan(seconds, random.Random(seed), failover=fleet.has_standby)
        self._pick = random.Random(seed + 7)
        self._stop = threading.Event()
        # scripts/services handles one command at a time: no server may stay down until the other one has started.
        self._services = threading.Lock()
        self._networks = {system: threading.Lock() for system in fleet.proxies}
        self._thread = threading.Thread(target=self._run, name="faults", daemon=True)
        self._helpers: list[threading.Thread] = []
        self.failed: list[BaseException] = []
        self._http = requests.Session()
        self._http.trust_env = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the faults, restore what is down, and cancel ordered faults that are not used up."""
        self._stop.set()
        self._thread.join(30)
        for helper in self._helpers:
            helper.join(200)
        for proxy in self.fleet.proxies.values():
            proxy.set("open")
        for system in self.fleet.urls:
            self._control(system, "DELETE", "faults")
        if self.failed:
            raise self.failed[0]

    def _run(self) -> None:
        began = time.monotonic()
        for at, what, arguments in self.plan:
            if self._stop.wait(max(began + at - time.monotonic(), 0.0)):
                return
            try:
                getattr(self, f"_{what}")(*arguments)
            except requests.RequestException as error:
                logger.warning("fault %s %s could not be ordered: %s", what, arguments, error)

    # --- processes ----------------------------------------------------------------------------------

    def _process(self, name: str, gently: bool) -> None:
        number = signal.SIGTERM if gently else signal.SIGKILL
        if not self.fleet.signal(name, number):
            return
        self.counts[f"{number.name} {name}"] += 1
        self.kills += 1
        now = time.time()
        self.ended(Outage(f"{number.name} {name}", now, now))

    # --- services -----------------------------------------------------------------------------------

    def _service(self, kind: str, how: str, pause: float) -> None:
        service = self.fleet.postgresql if kind == "postgresql" else self.fleet.rabbitmq
        self._aside(lambda: self._restart(service, how, pause))

    def _restart(self, service: Service, how: str, pause: float) -> None:
        with self._services:
            if self._stop.is_set():
                return
            began = time.time()
            service.do(how)
            time.sleep(pause)
            service.do("start")
            self._note(f"{service.kind} {how}", began)

    def _alarm(self) -> None:
        self._aside(self._raise_alarm)

    def _raise_alarm(self) -> None:
        """Let RabbitMQ accept no messages, as when its memory is short."""
        with self._services:
            if self._stop.is_set():
                return
            began = time.time()
            with Node(self.fleet.rabbitmq.name).alarm("memory"):
                self._stop.wait(min(ALARM * self.seconds, LONGEST_ALARM))
            self._note("rabbitmq memory alarm", began)

    def _failover(self) -> None:
        self._aside(self._fail_over)

    def _fail_over(self) -> None:
        with self._services:
            began = time.time()
            self.fleet.fail_over()
            self._note("postgresql failover", began)

    # --- the network --------------------------------------------------------------------------------

    def _network(self, system: str, mode: Mode, seconds: float) -> None:
        self._aside(lambda: self._disturb(system, mode, seconds))

    def _disturb(self, system: str, mode: Mode, seconds: float) -> None:
        with self._networks[system]:
            if self._stop.is_set():
                return
            began = time.time()
            self.fleet.proxies[system].set(mode)
            self._stop.wait(seconds)
            self.fleet.proxies[system].set("open")
            self._note(f"network {system} {mode}", began)

    # --- the systems ----------------------------------------------------------------------------------

    def _call(self, system: str, fault: dict[str, Any]) -> None:
        armed = self._control(system, "GET", "faults")
        calls = [one for one in (armed["faults"] if system == "stripe" else armed) if "webhook" not in one["kind"]]
        if len(calls) >= ARMED:
            return
        self._control(system, "POST", "faults", fault)
        self.counts[f"{system} {fault.get('status', fault['kind'])}"] += 1

    def _outage(self, system: str) -> None:
        self._aside(lambda: self._answer_nothing_else(system))

    def _answer_nothing_else(self, system: str) -> None:
        """Answer 502 to every call."""
        began, times = time.time(), {"stripe": "times", "salesforce": "count"}[system]
        self._control(system, "POST", "faults", {"kind": "fail", "status": 502, times: MOST_CALLS})
        self._stop.wait(min(OUTAGE * self.seconds, LONGEST_OUTAGE))
        self._control(system, "DELETE", "faults")
        self._note(f"{system} 502", began)

    def _late_deletion(self) -> None:
        """Report the next deletion late and twice, when the record may have other news."""
        for kind in ("webhook_delay", "webhook_duplicate"):
            deletion = {"kind": kind, "path": "customer.deleted", "seconds": LATE_SECONDS}
            self._control("stripe", "POST", "faults", deletion)
        self.counts["late deletions"] += 1

    def _webhook(self, kind: str, seconds: float) -> None:
        self._control("stripe", "POST", "faults", {"kind": kind, "seconds": seconds})
        self.counts[kind] += 1

    def _session(self) -> None:
        self._control("salesforce", "POST", "expire_sessions", {})
        self.counts["salesforce sessions expired"] += 1

    def _control(self, system: str, method: str, what: str, body: Any = None) -> Any:
        certificates = str(self.fleet.folder / "certs" / "ca.pem")
        url = f"{self.fleet.urls[system]}/_control/{what}"
        reply = self._http.request(method, url, json=body, timeout=20, verify=certificates)
        reply.raise_for_status()
        return reply.json()

    # --- bookkeeping ----------------------------------------------------------------------------------

    def _aside(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except Exception as error:
                logger.exception("a fault could not be ended")
                self.failed.append(error)

        helper = threading.Thread(target=run, daemon=True)
        self._helpers.append(helper)
        helper.start()

    def _note(self, what: str, began: float) -> None:
        self.outages += 1
        self.counts[what] += 1
        self.ended(Outage(what, began, time.time()))


Step = tuple[float, str, tuple[Any, ...]]


def plan(seconds: float, pick: random.Random, *, failover: bool = False) -> list[Step]:
    """Return (second, kind, arguments) of every fault, in order."""
    steps: list[Step] = [(part * seconds, kind, arguments) for part, kind, arguments in SURELY]
    for kind, mean in EVERY.items():
        at = pick.expovariate(1 / mean)
        while at < seconds:
            steps.append((at, kind, _DRAW[kind](pick)))
            at += pick.expovariate(1 / mean)
    if failover:
        steps = [step for step in steps if step[2][:1] != ("postgresql",)]
        steps.append((FAIL_OVER * seconds, "failover", ()))
    return sorted(steps, key=lambda step: step[0])


def _process(pick: random.Random) -> tuple[Any, ...]:
    return pick.choice(list(COMMANDS)), pick.random() < 0.3


def _service(pick: random.Random) -> tuple[Any, ...]:
    # The wipe happens only once, see SURELY.
    kind, how = pick.choice([(kind, how) for kind in ("postgresql", "rabbitmq") for how in ("stop", "kill")])
    return kind, how, pick.uniform(0.0, 2.0)


def _network(pick: random.Random) -> tuple[Any, ...]:
    mode = pick.choice(("refuse", "cut", "slow", "reset"))
    return pick.choice(("stripe", "salesforce")), mode, pick.uniform(0.5, 3.0)


def _call(pick: random.Random) -> tuple[Any, ...]:
    system = pick.choice(("stripe", "salesforce"))
    return system, (_stripe_fault if system == "stripe" else _salesforce_fault)(pick)


def _stripe_fault(pick: random.Random) -> dict[str, Any]:
    times = pick.randint(1, 4)
    return pick.choice(
        [
            {"kind": "fail", "status": 429, "retry_after": 1, "times": times},
            {"kind": "fail", "status": 500, "times": times},
            {"kind": "fail", "status": 500, "times": times, "method": "POST", "remember": True},
            {"kind": "fail", "status": 503, "times": times},
            {"kind": "fail", "status": 409, "times": times},
            {"kind": "drop", "times": times, "method": "POST"},
            {"kind": "drop", "times": times},
            {"kind": "delay", "times": times, "seconds": pick.uniform(0.2, 2.0)},
        ]
    )


def _salesforce_fault(pick: random.Random) -> dict[str, Any]:
    count = pick.randint(1, 4)
    return pick.choice(
        [
            {"kind": "fail", "status": 429, "code": "TOO_MANY_REQUESTS", "retry_after": "1", "count": count},
            {"kind": "fail", "status": 403, "code": "REQUEST_LIMIT_EXCEEDED", "retry_after": "1", "count": count},
            {"kind": "fail", "status": 500, "code": "UNKNOWN_EXCEPTION", "count": count},
            {"kind": "fail", "status": 503, "count": count},
            {"kind": "fail", "status": 503, "html": True, "count": count},
            {"kind": "fail_item", "code": "UNABLE_TO_LOCK_ROW", "count": count},
            {"kind": "drop", "when": "before", "count": count},
            {"kind": "drop", "when": "after", "method": "PATCH", "count": count},
            {"kind": "drop", "when": "inside", "count": count},
            {"kind": "delay", "seconds": pick.uniform(0.2, 2.0), "count": count},
        ]
    )


def _webhook(pick: random.Random) -> tuple[Any, ...]:
    return pick.choice(WEBHOOK_FAULTS), pick.uniform(0.5, 6.0)


_DRAW: dict[str, Callable[[random.Random], tuple[Any, ...]]] = {
    "process": _process,
    "service": _service,
    "network": _network,
    "call": _call,
    "webhook": _webhook,
    "session": lambda pick: (),
    "late_deletion": lambda pick: (),
}
