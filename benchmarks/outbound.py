"""Outbound I/O: a slow system compared with its limit; and a fast system while another one is slow."""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks.hub import Hub, Workbench
from benchmarks.report import Goal, Result, interleaved, median, percentile, postgres_settings
from benchmarks.scale import Scale
from benchmarks.systems import ReceiverSystem

#: Milliseconds of a call; concurrent calls allowed; records of a small and a large burst, one in each call.
DELAY_MS = 50.0
CONCURRENT_CALLS = 16
BURSTS = (500, 6_400)
SHORT_BURSTS = (500, 3_200)
QUICK_BURSTS = (40,)

#: Share of what the limit allows in theory that one worker process should reach.
AIM_SHARE = 0.9

#: Milliseconds a call of the slow system takes, and records it is owed before anything is measured.
SLOW_MS = 1_000.0
BACKLOG = 1_000
QUICK_BACKLOG = 40

#: Changes a second, and for how many seconds, while the fast system's latency is taken.
PER_SECOND = 50
SECONDS = 20
SHORT_SECONDS = 6
QUICK_SECONDS = 1

#: Target: how much longer deliveries to the fast system may take while the other system is slow.
AIM_RATIO = 1.25

#: One worker process, and at the end no waiting for the slow system.
PROCESSES = ("relay", "worker")
ENVIRONMENT = {"GRACE_SECONDS": "2"}


def run(rounds: int, scale: Scale) -> Result:
    """Measure both."""
    bursts, backlog = scale.of(BURSTS, SHORT_BURSTS, QUICK_BURSTS), scale.of(BACKLOG, BACKLOG, QUICK_BACKLOG)
    seconds = scale.of(SECONDS, SHORT_SECONDS, QUICK_SECONDS)
    theory = CONCURRENT_CALLS * 1000 / DELAY_MS
    with Workbench() as bench:
        limited = [_limited(bench, bursts) for _ in range(rounds)]
        neighbours = interleaved(
            {
                "next to a fast system": lambda: _latency(bench, 0.0, backlog, seconds),
                "next to a slow system": lambda: _latency(bench, SLOW_MS, backlog, seconds),
            },
            rounds,
        )
        settings = postgres_settings(bench.postgres_server)
    rates = {records: median([one[records] for one in limited]) for records in bursts}
    latency = {
        name: {"p50_ms": median([one[0] for one in found]), "p99_ms": median([one[1] for one in found])}
        for name, found in neighbours.items()
    }
    alone, slowed = latency.values()
    goals = [
        *(
            Goal(
                f"{records:,} calls of {DELAY_MS:.0f} ms, {CONCURRENT_CALLS} concurrent, one worker process",
                f">= {AIM_SHARE:.0%} of {theory:.0f}/s",
                f"{rate:.0f}/s, {rate / theory:.0%}",
                rate >= AIM_SHARE * theory,
            )
            for records, rate in rates.items()
        ),
        *(
            Goal(
                f"{k.removesuffix('_ms')} of a fast system next to a slow one",
                f"<= {AIM_RATIO} x",
                f"{slowed[k] / alone[k]:.2f} x",
                slowed[k] <= AIM_RATIO * alone[k],
            )
            for k in alone
        ),
    ]
    return Result(
        "outbound",
        ("what", "calls per second", "of the theory", "p50 ms", "p99 ms"),
        [
            *(
                (
                    f"{records:,} calls of {DELAY_MS:.0f} ms, {CONCURRENT_CALLS} concurrent",
                    rate,
                    f"{rate / theory:.0%}",
                    "",
                    "",
                )
                for records, rate in rates.items()
            ),
            *((f"commit to call, fast {name}", "", "", one["p50_ms"], one["p99_ms"]) for name, one in latency.items()),
        ],
        {
            "calls_per_s": {str(records): rate for records, rate in rates.items()},
            "theory_per_s": theory,
            "latency": latency,
        },
        settings
        | {"rounds": rounds, "workers": 1, "backlog_of_the_slow": backlog, "slow_ms": SLOW_MS}
        | {"changes_per_s": PER_SECOND, "seconds": seconds},
        goals,
    )


def _limited(bench: Workbench, bursts: Sequence[int]) -> dict[int, float]:
    """Calls a second of each burst, from the first one's beginning to the last one's end."""
    system, found = ReceiverSystem("one", delay_ms=DELAY_MS, concurrency=CONCURRENT_CALLS), {}
    with bench.hub(systems=[system], processes=PROCESSES) as hub:
        for records in bursts:
            hub.commit_new(records)
            counts = hub.wait(records)
            found[records] = counts.calls / ((counts.last_ns - counts.first_ns) / 1e9 + DELAY_MS / 1000)
            hub.receiver.reset()
    return found


def _latency(bench: Workbench, delay_ms: float, backlog: int, seconds: float) -> tuple[float, float]:
    """Milliseconds from commit to the fast system's call, p50 and p99, while another is owed a backlog."""
    systems = [ReceiverSystem("fast"), ReceiverSystem("other", delay_ms=delay_ms)]
    with bench.hub(systems=systems, processes=PROCESSES, environment=ENVIRONMENT) as hub:
        hub.commit_new(backlog)
        _await_fast(hub, backlog)
        committed, start = {}, time.monotonic()
        for number in range(int(seconds * PER_SECOND)):
            time.sleep(max(0.0, start + number / PER_SECOND - time.monotonic()))
            ids, _, done = hub.commit_new(1)
            committed[ids[0]] = done
        _await_fast(hub, backlog + len(committed))
        called = hub.receiver.times(0)
        taken = [(called[record] - done) / 1e6 for record, done in committed.items()]
        del called  # the receiver cannot be closed while a reference to it exists
    return percentile(taken, 0.5), percentile(taken, 0.99)


def _await_fast(hub: Hub, records: int) -> None:
    hub.receiver.wait(records, 0, alive=hub.check)
