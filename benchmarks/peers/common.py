"""Shared by all peers: their environment variables, the delivery, and the protocol by which they publish on request."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from benchmarks.receiver import Receiver
from benchmarks.records import Record, make, mapped

SUBSCRIBERS = ("one", "two", "three")

BROKER_URL = os.environ.get("BROKER_URL", "amqp://guest:guest@127.0.0.1:5672/%2F")

#: Prefix of every queue and exchange name.
PREFIX = os.environ.get("BENCH_PREFIX", "bench")

#: A PostgreSQL database that records each delivery; empty for none.
LEDGER_URL = os.environ.get("BENCH_LEDGER", "")

#: The ledger's table, for a peer that keeps one.
LEDGER = """
    CREATE TABLE IF NOT EXISTS peer_delivery (
        id bigserial PRIMARY KEY, subscriber text NOT NULL, record_id text NOT NULL, outcome text NOT NULL,
        at timestamptz NOT NULL DEFAULT now()
    )
"""


@cache
def _receiver() -> Receiver:
    return Receiver(os.environ["BENCH_RECEIVER"], threads="eventlet" not in sys.modules)


def deliver(subscriber: str, record: Record) -> dict[str, Any]:
    """Map the record, send it, and return the data sent."""
    data = mapped(record)
    _receiver().note(SUBSCRIBERS.index(subscriber), [record["id"]])
    return data


@cache
def _ledger() -> Any:
    import psycopg  # noqa: PLC0415

    return psycopg.connect(LEDGER_URL, autocommit=True)


def write_down(subscriber: str, record: Record, outcome: str) -> None:
    """Write and commit a ledger row; do nothing without a ledger."""
    if LEDGER_URL:
        _ledger().execute(
            "INSERT INTO peer_delivery (subscriber, record_id, outcome) VALUES (%s, %s, %s)",
            (subscriber, str(record["id"]), outcome),
        )


def serve(publish: Callable[[Sequence[Record]], None]) -> None:
    """Publish as standard input requests, one JSON object per line, and answer each with a JSON object.

    `{"first": 1, "count": 10, "pause_ms": 0, "each": false}` publishes `count` records together; with `each`, one by
    one, at least `pause_ms` milliseconds apart. The answer's `began` holds the monotonic nanoseconds before each
    publish: one number, or one per record.
    """
    print("{}", flush=True)  # ready
    for line in sys.stdin:
        asked = json.loads(line)
        records = [{"id": number, **make(number)} for number in range(asked["first"], asked["first"] + asked["count"])]
        if asked["each"]:
            began = [_at(at, publish, record) for record, at in zip(records, _beats(asked["pause_ms"]), strict=False)]
        else:
            began = [time.monotonic_ns()]
            publish(records)
        print(json.dumps({"began": began}), flush=True)


def _beats(pause_ms: float) -> Iterator[float]:
    at = time.monotonic()
    while True:
        yield at
        at += pause_ms / 1000


def _at(at: float, publish: Callable[[Sequence[Record]], None], record: Record) -> int:
    time.sleep(max(at - time.monotonic(), 0.0))
    now = time.monotonic_ns()
    publish([record])
    return now
