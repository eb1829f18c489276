"""How many batches a process prepares and writes down at once, however many threads call systems for it.

Threads are there for calls, which only wait. What is done before and after a call is computing and talking with the
database: beyond a few at once they would only hold each other up, each with a batch in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Hands:
    """So many at once. What was begun is finished before anything else begins, so that no more piles up in between."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._coming_back = 0
        lock = threading.Lock()
        self._for_begun, self._for_new = threading.Condition(lock), threading.Condition(lock)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Begin something: waits until a hand is free that nothing begun waits for."""
        with self._for_new:
            self._for_new.wait_for(lambda: self._free and not self._coming_back)
            self._free -= 1
            self._pass_on()
        try:
            yield
        finally:
            self._give_back()

    @contextmanager
    def away(self) -> Iterator[None]:
        """In a block of `taken`: while something is called that only has to be waited for."""
        self._give_back()
        try:
            yield
        finally:
            with self._for_begun:
                self._coming_back += 1
                self._for_begun.wait_for(lambda: self._free)
                self._coming_back -= 1
                self._free -= 1
                self._pass_on()

    def _give_back(self) -> None:
        with self._for_begun:
            self._free += 1
            self._pass_on()

    def _pass_on(self) -> None:
        """Wake the next one, where there is a hand for it."""
        if self._free:
            (self._for_begun if self._coming_back else self._for_new).notify()
