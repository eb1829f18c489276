"""The record budget: how many records a process prepares and records at a time, however many threads call systems.

Threads serve calls, which only wait. The work before and after a call is computation and database access: more than a
few large batches at a time would only delay each other, each with all its records in memory.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

_Line = deque[tuple[int, threading.Event]]

#: Gives the share back for a block that only waits for a call.
Yielded = Callable[[], AbstractContextManager[None]]


class RecordBudget:
    """Admits batches of `records` records in total; a small batch counts as `least`, for it needs a connection as well.

    Batches that were begun are finished before others begin, so that unfinished work does not pile up.
    """

    def __init__(self, records: int, least: int = 1) -> None:
        self._all = self._free = records
        self._least = least
        self._lock = threading.Lock()
        #: Waiting batches in the order of arrival: small ones could otherwise keep a large one out forever.
        self._begun, self._new = _Line(), _Line()

    @contextmanager
    def taken(self, records: int) -> Iterator[Yielded]:
        """Begin a batch: wait until it fits and no begun batch waits."""
        # A very large batch must leave room for those of another system.
        need = min(max(records, self._least), max(self._all // 2, 1))
        try:
            self._enter(self._new, need)
            yield lambda: self._yield_share(need)
        finally:
            self._leave(need)

    @contextmanager
    def _yield_share(self, need: int) -> Iterator[None]:
        self._leave(need)
        try:
            yield
        finally:
            self._enter(self._begun, need)

    def _enter(self, line: _Line, need: int) -> None:
        """Wait for a share, and take it; an interrupted wait takes it as well, since the caller gives it back."""
        turn = threading.Event()
        with self._lock:
            line.append((need, turn))
            self._admit()
        try:
            turn.wait()
        finally:
            with self._lock:
                if not turn.is_set():
                    line.remove((need, turn))
                    self._free -= need

    def _leave(self, need: int) -> None:
        with self._lock:
            self._free += need
            self._admit()

    def _admit(self) -> None:
        while (line := self._begun or self._new) and self._free >= line[0][0]:
            need, turn = line.popleft()
            self._free -= need
            turn.set()
