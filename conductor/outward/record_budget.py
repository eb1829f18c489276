"""How many records a process prepares and writes down at once, however many threads call systems for it.

Threads are there for calls, which only wait. What is done before and after a call is computing and talking with the
database: with more than a few large batches at once they would only hold each other up, each with all of it in memory.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

_Line = deque[tuple[int, threading.Event]]

#: Gives the room back for a block in which something is called that only has to be waited for.
Yielded = Callable[[], AbstractContextManager[None]]


class RecordBudget:
    """For so many records; a small batch takes the room of `least`, for it has a connection to the database as well.

    What was begun is finished before more begins, so that no more piles up in between.
    """

    def __init__(self, records: int, least: int = 1) -> None:
        self._all = self._free = records
        self._least = least
        self._lock = threading.Lock()
        #: Who waits, in the order they came: small ones could keep a large one out for good.
        self._begun, self._new = _Line(), _Line()

    @contextmanager
    def taken(self, records: int) -> Iterator[Yielded]:
        """Begin a batch: waits until there is room for it, and nothing begun waits for some."""
        # A very large batch must not keep out those of another system.
        need = min(max(records, self._least), max(self._all // 2, 1))
        try:
            self._enter(self._new, need)
            yield lambda: self._away(need)
        finally:
            self._leave(need)

    @contextmanager
    def _away(self, need: int) -> Iterator[None]:
        self._leave(need)
        try:
            yield
        finally:
            self._enter(self._begun, need)

    def _enter(self, line: _Line, need: int) -> None:
        """Wait for room, and take it; it is taken also where this is interrupted."""
        turn = threading.Event()
        with self._lock:
            line.append((need, turn))
            self._let_in()
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
            self._let_in()

    def _let_in(self) -> None:
        while (line := self._begun or self._new) and self._free >= line[0][0]:
            need, turn = line.popleft()
            self._free -= need
            turn.set()
