"""Fan-out: deliveries per second from the first commit to the last delivery, to three systems that only count."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable

from benchmarks.candidates import HUB, HUB_BULK, STANDALONE, STANDALONE_BULK, VARIANTS, WRITERS, Entry, peers
from benchmarks.hub import Workbench
from benchmarks.report import Goal, Result, interleaved, median, postgres_settings
from benchmarks.scale import Scale

#: Changes in one transaction; the last one for the hub and quick peers only, at which they are compared.
BURSTS = (1, 10, 1_000, 20_000)
SHORT_BURSTS = (1, 10, 1_000, 5_000)
QUICK_BURSTS = (1, 10, 100)
#: Changes of a burst that runs once, in the last round, for candidates with more than this many deliveries per second.
LARGE_BURST = 100_000
LARGE_BURST_MIN_RATE = 4_000
#: Changes that are committed (published and confirmed) one by one; fewer for slow peers.
STREAM = 2_000
SHORT_STREAM = 300
QUICK_STREAM = 20
SLOW_STREAM = 300

#: Candidate -> the target ratio.
RATIOS = {
    "raw pika": 1.0,
    "raw pika, acks in batches": 1.0,
    "Celery": 25.0,
    "Dramatiq": 12.0,
}

#: Target of deliveries per second on SQLite.
SQLITE_AIM = 6_000

_NOTES = (
    f"A burst is one transaction (the peers: one loop of publishing); the stream is committed one by one by {WRITERS} "
    "programs, published and confirmed one by one. Deliveries are changes times three. The hub: one relay, two "
    "workers; `bulk systems` take 200 records a call, the others one. The peers: raw pika three consumers, an ack "
    "each or one for fifty; Celery prefork 2; Dramatiq 2 processes of 8 threads; FastStream 2 workers; nameko 2 "
    "processes. The slow ones get at most 1,000 changes in a burst: beyond that their rate stays the same. "
    f"{LARGE_BURST:,} changes once, for candidates with more than {LARGE_BURST_MIN_RATE:,}/s at {BURSTS[-1]:,}.",
)


def run(rounds: int, scale: Scale) -> Result:
    """Measure all of them, in turn."""
    others, left_out = peers(quick=scale is Scale.QUICK)
    entries = scale.of(
        [HUB, STANDALONE, HUB_BULK, STANDALONE_BULK, *others],
        [HUB, STANDALONE, *(entry for entry in others if entry.name not in VARIANTS)],
        [HUB, STANDALONE, *others[1:]],
    )
    with Workbench() as bench:
        candidates = {entry.name: _measure(bench, entry, rounds, scale) for entry in entries}
        seen = interleaved(candidates, rounds)
        settings = postgres_settings(bench.postgres_server) | {"rounds": rounds, "subscribers": 3}
    bursts = scale.of((*BURSTS, LARGE_BURST), SHORT_BURSTS, QUICK_BURSTS)
    columns = [*(f"{changes:,}" for changes in bursts), "stream"]
    figures = {
        name: {c: median(rates) for c in columns if (rates := [one[c] for one in found if c in one])}
        for name, found in seen.items()
    }
    return Result(
        "fan-out",
        ("deliveries/s at changes", *columns),
        [(name, *(found.get(column, "") for column in columns)) for name, found in figures.items()],
        {"deliveries_per_s": figures},
        settings,
        [] if scale is Scale.QUICK else _goals(figures, f"{scale.of(BURSTS, SHORT_BURSTS, QUICK_BURSTS)[-1]:,}"),
        [*_NOTES, *left_out],
    )


def _measure(bench: Workbench, entry: Entry, rounds: int, scale: Scale) -> Callable[[], dict[str, float]]:
    """One round of one candidate: column -> deliveries per second."""
    turn = itertools.count(1)
    bursts, stream = scale.of(BURSTS, SHORT_BURSTS, QUICK_BURSTS), scale.of(STREAM, SHORT_STREAM, QUICK_STREAM)
    if not entry.quick:
        bursts, stream = bursts[:-1], min(stream, SLOW_STREAM)

    def measured() -> dict[str, float]:
        with entry.start(bench) as candidate:
            found = {f"{changes:,}": candidate.burst(changes) for changes in bursts}
            found["stream"] = candidate.stream(stream)
            last = next(turn) == rounds and scale is Scale.FULL
            if last and found.get(f"{BURSTS[-1]:,}", 0.0) > LARGE_BURST_MIN_RATE:
                found[f"{LARGE_BURST:,}"] = candidate.burst(LARGE_BURST)
        print(entry.name, {changes: round(rate) for changes, rate in found.items()}, file=sys.stderr)
        return found

    return measured


def _goals(figures: dict[str, dict[str, float]], largest: str) -> list[Goal]:
    def at_best(name: str) -> float:
        """At the largest burst; of those that get none so large, at the one before."""
        found = figures[name]
        return found.get(largest) or found["1,000"]

    goals = []
    for hub in (name for name in (HUB.name, HUB_BULK.name) if name in figures):
        for name, aim in RATIOS.items():
            if name in figures:
                ratio = at_best(hub) / at_best(name)
                goals.append(Goal(f"{hub} to {name}", f">= {aim:g} x", f"{ratio:.2f} x", ratio >= aim))
    for hub in (name for name in (STANDALONE.name, STANDALONE_BULK.name) if name in figures):
        rate = at_best(hub)
        goals.append(Goal(hub, f">= {SQLITE_AIM:,}/s", f"{rate:,.0f}/s", rate >= SQLITE_AIM))
    return goals
