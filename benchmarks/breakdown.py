"""`make bench-breakdown`: where a delivery's time goes, step by step.

One thread of this process routes and delivers changes of the benchmarks' record to three systems that answer
immediately, 200 records in a call, without a broker. The figures per delivery include the CPU time of this process
and of the database server.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks import catalogue
from benchmarks.hub import Workbench
from benchmarks.ledgers import Heard
from benchmarks.records import MAPPING
from benchmarks.report import Result, interleaved, median
from benchmarks.scale import Scale
from conductor import Conductor, Policy
from conductor.outward import delivery
from models.session import Database
from subscribers.base import Subscriber
from subscribers.errors import SyncError
from subscribers.records import External, Item
from subscribers.system import Options, System

#: Changes of one transaction; times all are edited after they were created.
_CHANGES = 4_000
_SHORT_CHANGES = 2_000
_QUICK_CHANGES = 200
_EDITS = 2

#: Step -> the part of the conductor that does it, and its function.
_STEPS: dict[str, tuple[Callable[[Conductor], Any], str]] = {
    "route: mark who is owed what": (lambda conductor: conductor.routing, "route"),
    "read the links and records": (lambda conductor: conductor.outward.loader, "load"),
    "plan": (lambda _conductor: delivery, "plan_delivery"),
    "claim, with what is to be sent": (lambda conductor: conductor.outward, "_claim"),
    "call": (lambda conductor: conductor.outward.sender, "send"),
    "write down how it went": (lambda conductor: conductor.outward, "_record"),
}
_ALL = "all of it"
_OURS = "processor time of the hub"
_SERVERS = "processor time of PostgreSQL"


class _Receiver(Subscriber):
    catalogue = catalogue.TABLE.name
    field_to_data = MAPPING
    bulk_size = 200

    def bulk_create(self, items: Sequence[Item]) -> list[External | SyncError]:
        return [External(f"there-{item.record_id}") for item in items]

    def bulk_update(self, items: Sequence[Item]) -> list[External | SyncError | None]:
        return [None for _ in items]


_RECEIVERS = [type(f"Receiver{number}", (_Receiver,), {"system": f"receiver{number}"}) for number in range(3)]


def run(rounds: int, scale: Scale) -> Result:
    """Measure both databases in turn."""
    changes = scale.of(_CHANGES, _SHORT_CHANGES, _QUICK_CHANGES)
    with Workbench() as bench:
        candidates = {kind: partial(_measure, bench, kind, changes) for kind in ("postgresql", "sqlite")}
        seen = interleaved(candidates, rounds)
    figures = {
        kind: {f"{step}, us": median([one[step] for one in found]) for step in found[0]} for kind, found in seen.items()
    }
    names = list(figures["postgresql"])
    return Result(
        "breakdown",
        ("microseconds a delivery", *figures),
        [(name.removesuffix(", us"), *(figures[kind][name] for kind in figures)) for name in names],
        figures,
        {"changes": changes, "subscribers": len(_RECEIVERS), "edits of each": _EDITS},
    )


def _measure(bench: Workbench, kind: str, changes: int) -> dict[str, float]:
    """Microseconds a delivery of each step, over the edits of one run."""
    # One of the clocked functions belongs to a module, so it must be put back.
    with bench.database(kind) as url, ExitStack() as clocked:
        database = Database(url)
        heard, spent = Heard(), defaultdict[str, float](float)
        connected = {receiver.name(): receiver(System(receiver.system, Options())) for receiver in _RECEIVERS}  # type: ignore[attr-defined]
        conductor = Conductor(database, connected, heard, Policy())
        conductor.prepare()
        for step, (part, method) in _STEPS.items():
            owner = part(conductor)
            clocked.callback(setattr, owner, method, getattr(owner, method))
            setattr(owner, method, _clocked(getattr(owner, method), spent, step))
        catalogue.commit_new(database, range(1, changes + 1))
        _deliver(conductor, heard)
        spent.clear()
        for edit in range(_EDITS):
            catalogue.commit_edits(database, range(1, changes + 1), name=f"Name {edit}")
            began, ours, servers = time.perf_counter(), time.process_time(), _server_seconds(database)
            _deliver(conductor, heard)
            spent[_SERVERS] += _server_seconds(database) - servers
            spent[_OURS] += time.process_time() - ours
            spent[_ALL] += time.perf_counter() - began
        _check(database)
        database.close()
    deliveries = changes * len(_RECEIVERS) * _EDITS
    return {step: round(spent[step] / deliveries * 1e6, 1) for step in (*_STEPS, _ALL, _OURS, _SERVERS)}


def _deliver(conductor: Conductor, heard: Heard) -> None:
    while conductor.relay():
        pass
    for _catalogue, records in heard.news:
        for name in conductor.subscribers:
            conductor.deliver(name, records)
    heard.news.clear()


def _clocked(work: Callable[..., Any], spent: dict[str, float], step: str) -> Callable[..., Any]:
    def clocked(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return work(*arguments, **options)
        finally:
            spent[step] += time.perf_counter() - began

    return clocked


def _server_seconds(database: Database) -> float:
    """Processor time of the server's processes at work for this database, where they run on this machine."""
    if database.is_sqlite:
        return 0.0
    with database.read() as connection:
        mine = sa.text("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
        pids = connection.execute(mine).scalars().all()
    spent = 0.0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # proc(5): utime, stime
    return spent


def _check(database: Database) -> None:
    with database.read() as connection:
        owed = connection.execute(sa.text("SELECT count(*) FROM link WHERE owed_change > synced_change")).scalar_one()
    if owed:
        raise AssertionError(f"{owed} deliveries were not made")
