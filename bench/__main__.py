"""Run benchmarks: `python -m bench [NAME ...] [--rounds 3] [--quick]`."""

from __future__ import annotations

import argparse
import importlib
import sys

from bench.report import Result, machine, show

#: In this order they are run; each is a module of this package with `run(rounds, quick) -> Result`.
BENCHES: tuple[str, ...] = (
    "steps",
    "fanout",
    "latency",
    "calls",
    "outbound",
    "capture",
    "inward",
    "memory",
    "panel",
    "growth",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the named benchmarks, or all; 1 if one could not be run."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of: {', '.join(BENCHES)}; all without a name")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; medians are told (default 3)")
    parser.add_argument("--quick", action="store_true", help="small counts: to see that it runs, not how fast")
    chosen = parser.parse_args(arguments)
    if unknown := sorted(set(chosen.names) - set(BENCHES)):
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are: {', '.join(BENCHES)}")
    for name in chosen.names or BENCHES:
        result: Result = importlib.import_module(f"bench.{name}").run(rounds=chosen.rounds, quick=chosen.quick)
        show(result, machine())
    return 0


if __name__ == "__main__":
    sys.exit(main())
