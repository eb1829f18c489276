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
from benchmarks.receiver import Receiver
from benchmarks.report import percentile

ROOT = Path(__file__).resolve().parents[2]


#: Benchmarks that start few processes; the others use the same harness with more processes.
SHORT = ("breakdown", "fanout", "capture", "panel")


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


def test_a_receiver_sums_the_counts_of_threads_and_processes(tmp_path: Path) -> None:
    receiver = Receiver.create(tmp_path / "receiver", subscribers=2, ids=10)
    threads = [threading.Thread(target=receiver.note, args=(number % 2, [number + 1, 10])) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if (child := os.fork()) == 0:
        receiver.note(0, [9])
        os._exit(0)
    os.waitpid(child, 0)
    everything = receiver.wait(7)
    assert (everything.calls, everything.records, everything.repeats) == (5, 9, 2)
    assert receiver.read(0).records == 5
    assert [record for record, at in enumerate(receiver.times(0)) if at] == [1, 3, 9, 10]
    assert everything.first_ns <= everything.last_ns == max(*receiver.times(0), *receiver.times(1))
    receiver.reset()
    assert receiver.read().records == 0
    assert not any(receiver.times(0))
    receiver.close()


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([1], 0.99) == 1
    assert percentile(list(range(1, 101)), 0.99) == 99
