"""Memory of each process: at rest, at work, and with a large backlog that it must not hold."""

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
from benchmarks.systems import SinkOf
from models.ledger import Change

#: Records that go to three systems, webhooks that come in, and changes that a system is owed which takes its time.
COUNTS = (20_000, 1_000, 500_000)
SHORT_COUNTS = (20_000, 500, 100_000)
QUICK_COUNTS = (200, 20, 1_000)

#: Records a commit of the backlog.
_LOT = 5_000

FLEET = ("relay", "worker", "scheduler", "web")
#: A call takes so long that hardly any of the backlog goes.
SLOW = SinkOf("slow", delay_ms=2_000.0)

#: Process -> megabytes it may take.
AIMS = {"relay": 80, "worker": 120, "standalone": 200}
#: How much a backlog may add to what a process takes at work, to be called flat.
FLAT = 1.1

#: Seconds between two samples, of rest before the first, and until waiting is given up.
_PAUSE = 0.2
_REST = 3.0
_PATIENCE = 1800.0

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
        goals.append(Goal(f"{process}, backlog against load", f"<= {FLAT} x", f"{ratio:.2f} x", ratio <= FLAT))
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


# --- what they do -------------------------------------------------------------------------------------


def _at_rest(hub: Hub) -> dict[str, Taken]:
    time.sleep(_REST)  # what started with the process has its say: first sweep, first heartbeat
    return _sample(hub)


def _deliver(hub: Hub, records: int, sender: Sender | None = None, webhooks: int = 0) -> None:
    hub.commit_new(records)
    if sender is not None:
        sender.send(webhooks)
    hub.wait(records)


def _owed(hub: Hub, backlog: int) -> dict[str, Taken]:
    """The most that the processes take while so many changes pile up, and when all of them are routed."""
    waiting = sa.select(sa.func.count()).select_from(Change).where(Change.relayed_at.is_(None))

    def routed() -> bool:
        with hub.database.read() as connection:
            return not connection.execute(waiting).scalar_one()

    with _watched(hub) as most:
        for start in range(0, backlog, _LOT):
            hub.commit_new(min(_LOT, backlog - start))
        hub.wait_until(routed, "the relay does not come to an end", _PATIENCE, _PAUSE)
        time.sleep(_REST)
    return most


# --- looking --------------------------------------------------------------------------------------------


@contextmanager
def _watched(hub: Hub) -> Iterator[dict[str, Taken]]:
    """The most that each process takes in a block."""
    most: dict[str, Taken] = {}
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(_PAUSE):
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
