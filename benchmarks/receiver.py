"""The target of the benchmarks' deliveries: counters in shared memory, written by several processes and read by one.

A receiver is a file that all processes map into memory. Each thread writes its own numbers, without locks or system
calls; the reader adds them up. Times are `time.monotonic_ns()`, which on Linux is one clock
for all processes. This file uses nothing but the standard library: the peers run it in an environment of their own.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

#: Numbers of 8 bytes in the head, and in the slot that one thread has for one subscriber.
_HEAD = _SLOT = 8
_USED = 0
_SUBSCRIBERS = 1
_IDS = 2
_SUBSCRIBER = 0
_CALLS = 1
_RECORDS = 2
_REPEATS = 3
_FIRST = 4
_LAST = 5

#: Threads times subscribers that may write to one receiver.
_SLOTS = 1024

#: Seconds between two reads while waiting. The times in the receiver are measured, not the times of the reads.
_PAUSE_SECONDS = 0.005

#: Seconds without progress after which waiting times out.
_TIMEOUT_SECONDS = 60.0


class Stalled(Exception):
    """The expected records did not arrive."""


@dataclass(frozen=True)
class Counts:
    """What one subscriber (or all) got: calls, records in them, records that were there before, and when."""

    calls: int
    records: int
    repeats: int
    first_ns: int
    last_ns: int


class Receiver:
    """Counters per subscriber (numbered from 0) and, per record (ids from 1), the time of its last delivery."""

    def __init__(self, path: Path | str, *, threads: bool = True) -> None:
        """Open a receiver that `create` made. Without `threads` the process counts as one, as with green threads."""
        self.path = Path(path)
        self._file = self.path.open("r+b")
        self._map = mmap.mmap(self._file.fileno(), 0)
        self._numbers = memoryview(self._map).cast("q")
        self.subscribers, self.ids = self._numbers[_SUBSCRIBERS], self._numbers[_IDS]
        self._times = _HEAD + _SLOTS * _SLOT
        self._threads = threads
        self._forked()
        os.register_at_fork(after_in_child=self._forked)

    @classmethod
    def create(cls, path: Path | str, subscribers: int, ids: int) -> Receiver:
        """Create a receiver for this number of subscribers; it keeps the times of records with ids up to `ids`."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        head = [0, subscribers, ids, *[0] * (_HEAD - 3)]
        with path.open("wb") as file:
            file.write(b"".join(number.to_bytes(8, "little") for number in head))
            file.truncate(8 * (_HEAD + _SLOTS * _SLOT + subscribers * (ids + 1)))
        return cls(path)

    def close(self) -> None:
        """Let go of the file; it stays."""
        self._numbers.release()
        self._map.close()
        self._file.close()

    # --- writing ------------------------------------------------------------------------------------

    def note(self, subscriber: int, ids: Sequence[int]) -> None:
        """One call of a subscriber has begun, with these records."""
        now, numbers = time.monotonic_ns(), self._numbers
        at = getattr(self._mine, "slots", {}).get(subscriber) or self._take(subscriber)
        times, repeats = self._times + subscriber * (self.ids + 1), 0
        for record in ids:
            if record <= self.ids:
                repeats += numbers[times + record] != 0
                numbers[times + record] = now
        if not numbers[at + _FIRST]:
            numbers[at + _FIRST] = now
        numbers[at + _LAST] = now
        numbers[at + _CALLS] += 1
        numbers[at + _REPEATS] += repeats
        numbers[at + _RECORDS] += len(ids)  # last: whoever waits for it finds all the others

    def _take(self, subscriber: int) -> int:
        """A slot that only this thread writes to."""
        with self._taking:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                number = self._numbers[_USED]
                if number == _SLOTS:
                    raise Stalled(f"more than {_SLOTS} threads write to {self.path}")
                self._numbers[_USED] = number + 1
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)
        at = _HEAD + number * _SLOT
        self._numbers[at + _SUBSCRIBER] = subscriber
        self._mine.__dict__.setdefault("slots", {})[subscriber] = at
        return at

    def _forked(self) -> None:
        self._mine = threading.local() if self._threads else SimpleNamespace()
        self._taking = threading.Lock()

    # --- reading ------------------------------------------------------------------------------------

    def read(self, subscriber: int | None = None) -> Counts:
        """What one subscriber got, or all of them together."""
        calls = records = repeats = first = last = 0
        numbers = self._numbers
        for number in range(numbers[_USED]):
            at = _HEAD + number * _SLOT
            if subscriber is not None and numbers[at + _SUBSCRIBER] != subscriber:
                continue
            records += numbers[at + _RECORDS]
            calls += numbers[at + _CALLS]
            repeats += numbers[at + _REPEATS]
            first = min(filter(None, (first, numbers[at + _FIRST])), default=0)
            last = max(last, numbers[at + _LAST])
        return Counts(calls, records, repeats, first, last)

    def times(self, subscriber: int) -> list[int]:
        """Return each record's time of last delivery, by its id: monotonic nanoseconds, 0 for never."""
        start = self._times + subscriber * (self.ids + 1)
        return self._numbers[start : start + self.ids + 1].tolist()

    def wait(
        self, records: int, subscriber: int | None = None, *, alive: Callable[[], object] = lambda: None
    ) -> Counts:
        """Wait until this many new records have arrived; repeats do not count. `alive` may raise.

        Raises:
          Stalled: for a minute nothing came.
        """
        before, moved = -1, time.monotonic()
        while (counts := self.read(subscriber)).records - counts.repeats < records:
            if counts.records != before:
                before, moved = counts.records, time.monotonic()
            elif time.monotonic() - moved > _TIMEOUT_SECONDS:
                raise Stalled(f"{counts.records - counts.repeats:,} of {records:,} records came, then nothing more")
            alive()
            time.sleep(_PAUSE_SECONDS)
        return counts

    def reset(self) -> None:
        """Reset all counters; only while no process writes."""
        for number in range(self._numbers[_USED]):
            at = _HEAD + number * _SLOT
            for place in (_CALLS, _RECORDS, _REPEATS, _FIRST, _LAST):
                self._numbers[at + place] = 0
        start = 8 * self._times
        self._map[start:] = bytes(len(self._map) - start)
