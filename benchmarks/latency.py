"""Latency: from a commit (the peers: from publishing) until the call of the external system begins."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.candidates import HUB, STANDALONE, VARIANTS, Entry, peers
from benchmarks.hub import Workbench
from benchmarks.report import Goal, Result, interleaved, median, percentile, postgres_settings
from benchmarks.scale import Scale

#: Idle: one change every so many milliseconds, this often a round.
IDLE_PAUSE_MS = 200.0
IDLE_CHANGES = 17
SHORT_IDLE_CHANGES = 7
QUICK_IDLE_CHANGES = 3
#: Under load: 100 changes a second, for so many seconds a round, of the hub and of each peer.
LOAD_PAUSE_MS = 10.0
SECONDS = (10.0, 5.0)
SHORT_SECONDS = (4.0, 2.0)
QUICK_SECONDS = (0.3, 0.3)

#: Milliseconds under load: half of all, and 99 of 100.
P50_AIM = 10.0
P99_AIM = 40.0

_NOTE = (
    f"Idle: a change every {IDLE_PAUSE_MS:g} ms; under load one each {LOAD_PAUSE_MS:g} ms, for the hub twice as "
    "long as for the peers. Three calls a change, all of them counted. "
    "Medians of the rounds' p50 and p99, and the longest of all. A peer's clock starts before it publishes, the hub's "
    "when the writer's commit has returned."
)

Found = dict[str, list[float]]


def run(rounds: int, scale: Scale) -> Result:
    """Measure all of them, in turn."""
    others, left_out = peers(quick=scale is Scale.QUICK)
    # The variants of a peer differ in what latency does not depend on.
    entries = [HUB, STANDALONE, *(entry for entry in others if entry.name not in VARIANTS)]
    if scale is Scale.QUICK:
        entries = [HUB, others[0]]
    with Workbench() as bench:
        seen = interleaved({entry.name: _measure(bench, entry, scale) for entry in entries}, rounds)
        settings = postgres_settings(bench.postgres_server) | {"rounds": rounds, "subscribers": 3}
    figures = {
        name: {when: _summary([one[when] for one in found]) for when in ("idle", "load")}
        for name, found in seen.items()
    }
    words = ("p50_ms", "p99_ms", "max_ms")
    return Result(
        "latency",
        ("ms", *(f"{when} {word.removesuffix('_ms')}" for when in ("idle", "load") for word in words)),
        [
            (name, *(found[when][word] for when in ("idle", "load") for word in words))
            for name, found in figures.items()
        ],
        figures,
        settings,
        [] if scale is Scale.QUICK else _goals(figures),
        [_NOTE, *left_out],
    )


def _measure(bench: Workbench, entry: Entry, scale: Scale) -> Callable[[], Found]:
    idle = scale.of(IDLE_CHANGES, SHORT_IDLE_CHANGES, QUICK_IDLE_CHANGES)
    seconds = scale.of(SECONDS, SHORT_SECONDS, QUICK_SECONDS)[entry not in (HUB, STANDALONE)]

    def measured() -> Found:
        with entry.start(bench) as candidate:
            return {
                "idle": candidate.latencies(idle, IDLE_PAUSE_MS),
                "load": candidate.latencies(round(seconds * 1000 / LOAD_PAUSE_MS), LOAD_PAUSE_MS),
            }

    return measured


def _summary(rounds: list[list[float]]) -> dict[str, float]:
    return {
        "p50_ms": median([percentile(found, 0.5) for found in rounds]),
        "p99_ms": median([percentile(found, 0.99) for found in rounds]),
        "max_ms": max(map(max, rounds)),
    }


def _goals(figures: dict[str, dict[str, dict[str, float]]]) -> list[Goal]:
    goals = []
    for name in (HUB.name, STANDALONE.name):
        found = figures[name]["load"]
        for word, aim in (("p50_ms", P50_AIM), ("p99_ms", P99_AIM)):
            what = f"{name}, 100 changes/s, {word.removesuffix('_ms')}"
            goals.append(Goal(what, f"<= {aim:g} ms", f"{found[word]:.1f} ms", found[word] <= aim))
    return goals
