"""External systems that only count, as the hub sees them: a class and a subscriber each.

The environment of the hub's processes defines them: `BENCH_SYSTEMS=one,two` names the systems, and `ONE_RECEIVER`,
`ONE_NUMBER`, `ONE_BULK`, `ONE_DELAY_MS` (and the limits of every system, such as `ONE_CONCURRENCY`) are the options
of the first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.catalogue import TABLE
from benchmarks.receiver import Receiver
from benchmarks.records import MAPPING
from subscribers.base import Subscriber
from subscribers.errors import SyncError
from subscribers.records import External, Item
from subscribers.registry import register
from subscribers.system import Options, System


@dataclass(frozen=True)
class ReceiverSystem:
    """The behaviour of a system: records per call, milliseconds per call, and concurrent calls it allows."""

    name: str
    bulk: int = 1
    delay_ms: float = 0.0
    concurrency: int | None = None

    def environment(self, path: Path, number: int) -> dict[str, str]:
        """Return the options of this system as environment variables; `number` is its number in the receiver."""
        options = {"RECEIVER": path, "NUMBER": number, "BULK": self.bulk, "DELAY_MS": self.delay_ms}
        if self.concurrency is not None:
            options["CONCURRENCY"] = self.concurrency
        return {f"{self.name.upper()}_{option}": str(value) for option, value in options.items()}


class _Options(Options):
    receiver: Path
    number: int
    bulk: int = 1
    delay_ms: float = 0.0


class _Counting(System):
    Options = _Options

    def __init__(self, name: str, options: _Options) -> None:
        super().__init__(name, options)
        self.receiver = Receiver(options.receiver)

    def call(self, ids: Sequence[str]) -> datetime:
        """Make one call with these records; return the time at which the system has them."""
        self.receiver.note(self.options.number, [int(record) for record in ids])
        if self.options.delay_ms:
            time.sleep(self.options.delay_ms / 1000)  # simulated processing time
        return datetime.now(UTC)


class _Records(Subscriber):
    catalogue = TABLE.name
    system_class = _Counting
    field_to_data = MAPPING

    def __init__(self, client: _Counting) -> None:
        super().__init__(client)
        self.bulk_size = client.options.bulk  # type: ignore[misc]

    def create(self, item: Item) -> External:
        return External(f"there-{item.record_id}", at=self.client.call([item.record_id]))

    def update(self, item: Item) -> External:
        return External(item.linked_id, at=self.client.call([item.record_id]))

    def delete(self, item: Item) -> None:
        self.client.call([item.record_id])


class _BulkRecords(_Records):
    def bulk_create(self, items: Sequence[Item]) -> list[External | SyncError]:
        at = self.client.call([item.record_id for item in items])
        return [External(f"there-{item.record_id}", at=at) for item in items]

    def bulk_update(self, items: Sequence[Item]) -> list[External | SyncError | None]:
        at = self.client.call([item.record_id for item in items])
        return [External(item.linked_id, at=at) for item in items]


def register_all() -> None:
    """Add a subscriber for each system that the environment names to the fan-out."""
    for name in filter(None, os.environ.get("BENCH_SYSTEMS", "").split(",")):
        base = _BulkRecords if int(os.environ.get(f"{name.upper()}_BULK", "1")) > 1 else _Records
        register(type(f"{name.title()}Records", (base,), {"system": name}))
