"""How many records a process prepares and writes down at once, however many threads call systems for it.

Threads are there for calls, which only wait. What is done before and after a call is computing and talking with the
database: with more than a few large batches at once they would only hold each other up, each with all of it in memory.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

#: Gives the room back for a block in which something is called that only has to be waited for.
Away = Callable[[], AbstractContextManager[None]]


class Room:
    """For so many records. What was begun is finished before more begins, so that no more piles up in between."""

    def __init__(self, records: int) -> None:
        self._all = self._free = records
        self._coming_back = 0
        self._line: deque[object] = deque()
        lock = threading.Lock()
        self._for_begun, self._for_new = threading.Condition(lock), threading.Condition(lock)

    @contextmanager
    def taken(self, records: int) -> Iterator[Away]:
        """Begin a batch: waits until there is room for it, and nothing begun waits for some."""
        # A very large batch must not keep out those of another system.
        need = min(records, max(self._all // 2, 1))
        turn = object()
        with self._for_new:
            self._line.append(turn)
            try:
                # In the order they came: small ones could keep a large one out for good.
                self._for_new.wait_for(lambda: self._line[0] is turn and self._free >= need and not self._coming_back)
            finally:
                self._line.remove(turn)
                self._wake()
            self._free -= need
        try:
            yield lambda: self._away(need)
        finally:
            self._give_back(need)

    @contextmanager
    def _away(self, need: int) -> Iterator[None]:
        self._give_back(need)
        try:
            yield
        finally:
            with self._for_begun:
                self._coming_back += 1
                try:
                    self._for_begun.wait_for(lambda: self._free >= need)
                finally:
                    self._coming_back -= 1
                    self._free -= need
                    self._wake()

    def _give_back(self, need: int) -> None:
        with self._for_begun:
            self._free += need
            self._wake()

    def _wake(self) -> None:
        (self._for_begun if self._coming_back else self._for_new).notify_all()
