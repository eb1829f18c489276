"""Run benchmarks: `python -m benchmarks [NAME ...] [--rounds 3] [--full | --quick]`."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys

from benchmarks.report import Result, machine, show
from benchmarks.scale import Scale

#: The benchmarks, in the order of a run; each is a module of this package with `run(rounds, scale) -> Result`.
BENCHES: tuple[str, ...] = (
    "breakdown",
    "fanout",
    "latency",
    "calls",
    "window",
    "outbound",
    "capture",
    "inward",
    "memory",
    "panel",
    "volume",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the named benchmarks, or all; return 1 if one could not be run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of: {', '.join(BENCHES)}; all without a name")
    parser.add_argument(
        "--rounds", type=int, default=3, help="interleaved rounds; the figures are their medians (default 3)"
    )
    less = parser.add_mutually_exclusive_group()
    less.add_argument("--full", action="store_true", help="run all with the full counts, as one named benchmark does")
    less.add_argument("--quick", action="store_true", help="small counts, to check that it runs, not how fast")
    chosen = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))  # leaves all `with` blocks, which end what they started
    if unknown := sorted(set(chosen.names) - set(BENCHES)):
        parser.error(f"unknown benchmark {', '.join(unknown)}; known benchmarks: {', '.join(BENCHES)}")
    scale = Scale.QUICK if chosen.quick else Scale.FULL if chosen.names or chosen.full else Scale.SHORT
    rounds = 1 if chosen.quick else chosen.rounds
    for name in chosen.names or BENCHES:
        result: Result = importlib.import_module(f"benchmarks.{name}").run(rounds=rounds, scale=scale)
        show(result, machine())
    return 0


if __name__ == "__main__":
    sys.exit(main())
