"""Memory of each process: idle, under load, and with a large backlog that it must not keep in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.hub import Hub, Workbench
from benchmarks.inward import Sender, web_hub
from benchmarks.report import Goal, Result, postgres_settings
from benchmarks.scale import Scale
from benchmarks.systems import ReceiverSystem
from models.ledger import Change

#: Records for three systems, received webhooks, and pending changes of a slow system.
COUNTS = (20_000, 1_000, 500_000)
SHORT_COUNTS = (20_000, 500, 100_000)
QUICK_COUNTS = (200, 20, 1_000)

#: Records a commit of the backlog.
_BATCH_RECORDS = 5_000

FLEET = ("relay", "worker", "scheduler", "web")
#: Calls of the slow system take this long, so that the backlog hardly shrinks.
SLOW = ReceiverSystem("slow", delay_ms=2_000.0)

#: Process -> megabytes it may take.
AIMS = {"relay": 80, "worker": 120, "standalone": 200}
#: How much a backlog may add to what a process takes at work, to be called flat.
AIM_RATIO = 1.1

#: Seconds between two samples, of rest before the first, and until waiting times out.
_PAUSE_SECONDS = 0.2
_REST_SECONDS = 3.0
_TIMEOUT_SECONDS = 1800.0

IDLE = "idle"
LOAD = "under load"
OWED = "with a backlog"


@dataclass(frozen=True)
class Taken:
    """Megabytes: what is in memory (`rss`), and with what is shared split among those that share it (`pss`)."""

    rss: float
    pss: float

    def most(self, other: Taken) -> Taken:
        """The larger of each."""
        return Taken(max(self.rss, other.rss), max(self.pss, other.pss))


def run(rounds: int, scale: Scale) -> Result:
    """Measure all processes, once: what a process takes does not depend on who else uses the machine."""
    del rounds
    records, webhooks, backlog = scale.of(COUNTS, SHORT_COUNTS, QUICK_COUNTS)
    seen: dict[str, dict[str, Taken]] = {}

    def note(state: str, taken: dict[str, Taken]) -> None:
        for process, one in taken.items():
            seen.setdefault(process, {})[state] = one

    with Workbench() as bench:
        with web_hub(bench, FLEET) as (hub, sender):
            sender.acquaint(webhooks)
            note(IDLE, _at_rest(hub))
            with _watched(hub) as most:
                _deliver(hub, records, sender, webhooks)
            note(LOAD, most)
        with bench.hub(systems=[SLOW], processes=FLEET, environment={"GRACE_SECONDS": "3"}) as hub:
            note(OWED, _owed(hub, backlog))
        with bench.hub("sqlite") as hub:
            note(IDLE, _at_rest(hub))
            with _watched(hub) as most:
                _deliver(hub, records)
            note(LOAD, most)
        with bench.hub("sqlite", systems=[SLOW], environment={"GRACE_SECONDS": "3"}) as hub:
            note(OWED, _owed(hub, backlog))
        settings = postgres_settings(bench.postgres_server)
    return _result(seen, settings | {"records": records, "webhooks": webhooks, "backlog": backlog})


def _result(seen: dict[str, dict[str, Taken]], settings: dict[str, Any]) -> Result:
    states = (IDLE, LOAD, OWED)
    goals = []
    for process, aim in AIMS.items():
        most = max(one.pss for one in seen[process].values())
        goals.append(Goal(f"{process}, most of all", f"<= {aim} MB", f"{most:.0f} MB", most <= aim))
        ratio = seen[process][OWED].pss / seen[process][LOAD].pss
        goals.append(
            Goal(f"{process}, backlog against load", f"<= {AIM_RATIO} x", f"{ratio:.2f} x", ratio <= AIM_RATIO)
        )
    return Result(
        "memory",
        ("PSS (RSS), MB", *states),
        [
            (process, *(f"{one.pss:.0f} ({one.rss:.0f})" for one in (found[state] for state in states)))
            for process, found in seen.items()
        ],
        {
            f"{process}, {state}": {"pss_mb": one.pss, "rss_mb": one.rss}
            for process, found in seen.items()
            for state, one in found.items()
        },
        settings,
        goals,
    )


# --- the load -------------------------------------------------------------------------------------


def _at_rest(hub: Hub) -> dict[str, Taken]:
    time.sleep(_REST_SECONDS)  # what started with the process has its say: first sweep, first heartbeat
    return _sample(hub)


def _deliver(hub: Hub, records: int, sender: Sender | None = None, webhooks: int = 0) -> None:
    hub.commit_new(records)
    if sender is not None:
        sender.send(webhooks)
    hub.wait(records)


def _owed(hub: Hub, backlog: int) -> dict[str, Taken]:
    """Return the peak memory of the processes while the backlog grows, and after all of it is routed."""
    waiting = sa.select(sa.func.count()).select_from(Change).where(Change.relayed_at.is_(None))

    def routed() -> bool:
        with hub.database.read() as connection:
            return not connection.execute(waiting).scalar_one()

    with _watched(hub) as most:
        for start in range(0, backlog, _BATCH_RECORDS):
            hub.commit_new(min(_BATCH_RECORDS, backlog - start))
        hub.wait_until(routed, "the relay does not come to an end", _TIMEOUT_SECONDS, _PAUSE_SECONDS)
        time.sleep(_REST_SECONDS)
    return most


# --- sampling --------------------------------------------------------------------------------------------


@contextmanager
def _watched(hub: Hub) -> Iterator[dict[str, Taken]]:
    """The most that each process takes in a block."""
    most: dict[str, Taken] = {}
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(_PAUSE_SECONDS):
            for process, taken in _sample(hub).items():
                most[process] = taken.most(most.get(process, taken))

    watcher = threading.Thread(target=look, name="watcher")
    watcher.start()
    try:
        yield most
    finally:
        stop.set()
        watcher.join()
    for process, taken in _sample(hub).items():
        most[process] = taken.most(most.get(process, taken))


def _sample(hub: Hub) -> dict[str, Taken]:
    """What each process takes now; of gunicorn's workers the larger one."""
    found = {}
    for kind, process in hub.processes:
        found[kind] = _taken(process.pid)
        if workers := [_taken(pid) for pid in _children(process.pid)]:
            found[f"{kind}, each worker"] = Taken(max(one.rss for one in workers), max(one.pss for one in workers))
    return found


def _taken(pid: int) -> Taken:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    return Taken(kilobytes["Rss"] / 1024, kilobytes["Pss"] / 1024)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
