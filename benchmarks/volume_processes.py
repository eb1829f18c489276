"""Fan-out, latency and capture on a ledger with a long history, compared with an empty one; see `benchmarks.volume`.

The hub runs as its own processes; its three systems, and the table of their records, come into the large ledger for the
time of a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from benchmarks import catalogue
from benchmarks.candidates import HubCandidate
from benchmarks.hub import Workbench
from benchmarks.ledgers import left_as_it_was
from benchmarks.report import Goal, interleaved, median, percentile
from benchmarks.scale import Scale
from models import capture
from models.ledger import System
from models.session import Database

#: Changes in one transaction; changes a round at 100 a second; rows that one UPDATE changes.
COUNTS = (20_000, 1_000, 100_000)
SHORT_COUNTS = (5_000, 300, 20_000)
QUICK_COUNTS = (100, 20, 200)
PAUSE_MS = 10.0

#: What is measured -> whether more of it is better.
FAN_OUT = "fan-out, deliveries/s"
P50 = "latency p50, ms"
P99 = "latency p99, ms"
UPDATE = "bulk UPDATE, ms"
MORE_IS_BETTER = {FAN_OUT}

AIM_RATIO = 1.25

_EMPTY = "empty"
_LARGE = "large"


@dataclass
class Again:
    """Kind of database -> what -> the median on the ledger that begins empty and on the large one, and the ratio.

    The ratio is how many times more it costs on the large one.
    """

    figures: dict[str, dict[str, dict[str, float]]]

    @property
    def goals(self) -> list[Goal]:
        """Each figure is to be within its aim."""
        return [
            Goal(f"{what.rpartition(',')[0] or what}, {kind}: large to empty", f"<= {AIM_RATIO}",
                 f"{found['ratio']:.2f}", found["ratio"] <= AIM_RATIO)
            for kind, all_of in self.figures.items()
            for what, found in all_of.items()
        ]  # fmt: skip


def again(bench: Workbench, large: dict[str, Database], rounds: int, scale: Scale) -> Again:
    """Measure on these large ledgers, by kind of database, and in turn on new ones."""
    counts = scale.of(COUNTS, SHORT_COUNTS, QUICK_COUNTS)
    candidates = {
        (kind, where): _measure(bench, kind, database if where == _LARGE else None, *counts)
        for kind, database in large.items()
        for where in (_EMPTY, _LARGE)
    }
    seen = interleaved(candidates, rounds)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for kind in large:
        for what in (FAN_OUT, P50, P99, UPDATE):
            empty, grown = (median([one[what] for one in seen[kind, where]]) for where in (_EMPTY, _LARGE))
            ratio = empty / grown if what in MORE_IS_BETTER else grown / empty
            figures.setdefault(kind, {})[what] = {_EMPTY: empty, _LARGE: grown, "ratio": round(ratio, 2)}
    return Again(figures)


def _measure(
    bench: Workbench, kind: str, large: Database | None, changes: int, latencies: int, rows: int
) -> Callable[[], dict[str, float]]:
    def measured() -> dict[str, float]:
        with bench.database(kind) if large is None else _lent(large) as url:
            with bench.hub(kind, on=url) as hub:
                candidate = HubCandidate(hub)
                rate = candidate.burst(changes)
                found = candidate.latencies(latencies, PAUSE_MS)
            # No relay runs, so that only the capture is measured.
            database = Database(url)
            catalogue.commit_new(database, range(hub.newest + 1, rows + 1))
            began = time.perf_counter()
            with database.write() as connection:
                connection.execute(sa.update(catalogue.TABLE).values(city=f"City {time.time_ns()}"))
            took = (time.perf_counter() - began) * 1000
            database.close()
        return {FAN_OUT: rate, P50: percentile(found, 0.5), P99: percentile(found, 0.99), UPDATE: took}

    return measured


@contextmanager
def _lent(database: Database) -> Iterator[str]:
    """The URL of a ledger that has the benchmarks' table for as long; afterwards it is as it was."""
    with left_as_it_was(database):
        with database.read() as connection:
            systems = set(connection.scalars(sa.select(System.name)))
        with database.write() as connection:
            catalogue.TABLE.create(connection)
            capture.install(connection)
        try:
            yield database.url.render_as_string(hide_password=False)
        finally:
            with database.write() as connection:
                catalogue.TABLE.drop(connection)
                capture.install(connection)
                connection.execute(sa.delete(System).where(System.name.not_in(systems)))
