"""`python -m tests.chaos`: SECONDS of load and faults (180), repeatable with SEED; exit status 1 on any violation.

With `FAULTS=failover` PostgreSQL has a standby, which takes over in the middle of the run.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from settings import VAR
from tests.chaos.checker import Checker, Violation, take_snapshot
from tests.chaos.event_log import EventLog
from tests.chaos.faults import Faults
from tests.chaos.fleet import Fleet, at_once
from tests.chaos.history import describe_violations
from tests.chaos.load import Load
from tests.chaos.recovery import Recovery, wait_until_quiet

KINDS = ("lost", "duplicated", "differing", "unexplained")

#: Seconds between the start of the load and the first fault, so that there is data to break.
HEAD_START = 2.0


def main() -> int:
    """Run once and return the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    seconds = float(os.environ.get("SECONDS") or 180)
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1_000_000))
    folder = VAR / "chaos" / f"{seed}-{os.getpid()}"
    say(f"chaos for {seconds:g} s, SEED={seed}; logs in {folder}")
    with Fleet(folder, seed, has_standby="failover" in os.environ.get("FAULTS", "")) as fleet:
        result = run(fleet, seconds, seed)
    if result["ok"]:
        shutil.rmtree(folder, ignore_errors=True)
    ok = result.pop("ok")
    print(json.dumps(result), flush=True)
    return 0 if ok else 1


def run(fleet: Fleet, seconds: float, seed: int) -> dict[str, object]:
    """Run load and faults, wait until all is quiet, poll, wait again and compare; return the figures."""
    event_log, recovery = EventLog(), Recovery(fleet)
    if words := wait_until_quiet(fleet, still=0.0):
        raise RuntimeError(f"the fleet did not start: {words}")
    load, faults = Load(fleet, event_log, seed), Faults(fleet, seconds - HEAD_START, seed, recovery.ended)
    say("the fleet runs; load and faults begin")
    recovery.start()
    load.start()
    time.sleep(HEAD_START)
    faults.start()
    time.sleep(max(seconds - HEAD_START, 0.0))
    faults.stop()
    load.stop()
    began = time.monotonic()
    unsettled = settle(fleet)
    say(f"quiet after {time.monotonic() - began:.1f} s" if not unsettled else f"never quiet: {unsettled}")
    recovery.stop()
    snapshot = take_snapshot(fleet)
    checker = Checker(snapshot, event_log)
    violations = checker.checker()
    if unsettled:
        violations.append(Violation("unexplained", f"not quiet: {unsettled}"))
    counts = Counter(violation.kind for violation in violations)
    say(f"changes     {event_log.changes}: " + ", ".join(f"{n} {what}" for what, n in sorted(event_log.counts.items())))
    calls = ", ".join(f"{system} {len(calls)}" for system, calls in snapshot.journals.items())
    say(f"calls       {snapshot.calls}: {calls}")
    say(f"faults      {faults.kills} kills, {faults.outages} outages: {_list(faults.counts)}")
    say(
        f"records     {len(snapshot.customers)} here, "
        + ", ".join(f"{len(r)} in {s}" for s, r in snapshot.systems.items())
    )
    say(
        f"conflicts   {checker.conflicts} fields edited on two sides at once; {len(snapshot.letters)} open dead letters"
    )
    say(f"recovery    {recovery.words()}; {len(recovery.unfinished)} not recovered")
    exits = Counter(f"{one.name} (status {one.status})" for one in fleet.exits)
    say(f"exits       {len(fleet.exits)} processes ended by themselves: {_list(exits)}")
    if violations:
        report(fleet, list(describe_violations(fleet, snapshot, event_log, violations)), fleet.folder / "histories")
    for violation in violations[:40]:
        say(f"{violation.kind.upper()}: {violation.words}")
    for kind in KINDS:
        say(f"{kind:<12}{counts[kind]}")
    return {
        "seed": seed,
        "seconds": seconds,
        "changes": event_log.changes,
        "calls": snapshot.calls,
        "kills": faults.kills,
        "outages": faults.outages,
        "recovered": len(recovery.seconds),
        **{kind: counts[kind] for kind in KINDS},
        "ok": not violations,
    }


def settle(fleet: Fleet) -> str | None:
    """Wait until all is quiet, poll both systems again, and wait again; return None, or the work that did not end."""
    words = wait_until_quiet(fleet)
    polls = at_once(*(lambda system=system: fleet.run(["poll", system]) for system in fleet.urls))
    for system, polled in zip(fleet.urls, polls, strict=True):
        if polled.returncode:
            words = words or f"the last poll of {system} failed: {polled.stderr.strip()[-300:]}"
    return words or wait_until_quiet(fleet)


def report(fleet: Fleet, lines: list[str], path: Path) -> None:
    """Print the histories and store them with the logs."""
    path.write_text("\n".join(lines))
    print("\n".join(lines), flush=True)


def say(text: str) -> None:
    """Print a progress line."""
    print(f"chaos: {text}", flush=True)


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "none"


if __name__ == "__main__":
    sys.exit(main())
