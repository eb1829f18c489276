"""A short chaos run: the real fleet under load and faults ends with every record equal on every side."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from settings import ROOT

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(420)]

#: Seconds of load and faults. Startup, settling and the comparison take additional time.
SECONDS = 20


def test_after_a_short_chaos_run_every_system_agrees() -> None:
    """`make chaos` runs for minutes, with a different seed each time."""
    environment = {**os.environ, "SECONDS": str(SECONDS), "SEED": os.environ.get("SEED", "20")}
    run = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        told, _ = run.communicate(timeout=360)
    except subprocess.TimeoutExpired:
        run.terminate()  # it stops all its children
        told, _ = run.communicate(timeout=60)
    assert run.returncode == 0, told[-20_000:]
    figures = json.loads(told.splitlines()[-1])
    assert {name: figures[name] for name in ("lost", "duplicated", "differing", "unexplained")} == {
        "lost": 0,
        "duplicated": 0,
        "differing": 0,
        "unexplained": 0,
    }
    assert figures["changes"] > 100 and figures["calls"] > 100, told
    assert figures["kills"] >= 1 and figures["outages"] >= 3, told
