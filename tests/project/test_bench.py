"""Each benchmark runs and reports its figures; its speed is not tested here."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import orjson
import pytest

from benchmarks.__main__ import BENCHES
from benchmarks.report import percentile
from benchmarks.sink import Sink

ROOT = Path(__file__).resolve().parents[2]


#: Benchmarks that start few processes; the others use the same harness with more processes.
SHORT = ("steps", "fanout", "capture", "panel")


@pytest.mark.parametrize("name", SHORT)
def test_a_benchmark_ends_with_a_line_for_programs(name: str, rabbitmq_url: str) -> None:
    # In a process of its own, as users run it: benchmarks declare tables of their own.
    command = [sys.executable, "-m", "benchmarks", name, "--quick"]
    environment = {**os.environ, "BENCH_BROKER_URL": rabbitmq_url}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    said = orjson.loads(ended.stdout.splitlines()[-1])
    assert said["figures"] and said["machine"]["cores"]


def test_every_benchmark_has_its_module() -> None:
    assert all(importlib.util.find_spec(f"benchmarks.{name}") for name in BENCHES)


def test_a_sink_adds_up_what_threads_and_processes_note(tmp_path: Path) -> None:
    sink = Sink.create(tmp_path / "sink", subscribers=2, ids=10)
    threads = [threading.Thread(target=sink.note, args=(number % 2, [number + 1, 10])) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if (child := os.fork()) == 0:
        sink.note(0, [9])
        os._exit(0)
    os.waitpid(child, 0)
    everything = sink.wait(7)
    assert (everything.calls, everything.records, everything.repeats) == (5, 9, 2)
    assert sink.read(0).records == 5
    assert [record for record, at in enumerate(sink.times(0)) if at] == [1, 3, 9, 10]
    assert everything.first_ns <= everything.last_ns == max(*sink.times(0), *sink.times(1))
    sink.reset()
    assert sink.read().records == 0
    assert not any(sink.times(0))
    sink.close()


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([1], 0.99) == 1
    assert percentile(list(range(1, 101)), 0.99) == 99
