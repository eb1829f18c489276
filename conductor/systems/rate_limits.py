"""How many calls to a system may begin in a second, over all worker processes.

The system's row holds the time when the next call may begin. A process reserves the calls of a fraction of a second
there, so a high rate does not need a transaction for each call.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

import sqlalchemy as sa

from conductor.context import Context
from models.ledger import System

#: Seconds of calls reserved in one transaction.
_RESERVE_SECONDS = 0.1


class RateLimiter:
    """Paces the calls of every system that has a rate."""

    def __init__(self, context: Context, sleep: Callable[[float], None] = time.sleep) -> None:
        self.context = context
        self.sleep = sleep
        self._lock = threading.Lock()
        self._reserved: dict[str, deque[datetime]] = {}

    def attach(self) -> None:
        """Make each system with a rate wait for its turn before each call."""
        for name, system in self.context.systems.items():
            if rate := system.requests_per_second:
                system.pace = partial(self.wait, name, rate)  # type: ignore[method-assign]

    def wait(self, name: str, rate: float) -> None:
        """Return when this process may begin one call."""
        with self._lock:
            reserved = self._reserved.setdefault(name, deque())
            # Drop turns that were not taken: saved up, they would let a burst of calls begin together.
            expired = self.context.later(-_RESERVE_SECONDS)
            while reserved and reserved[0] < expired:
                reserved.popleft()
            if not reserved:
                reserved.extend(self._reserve(name, rate))
            turn = reserved.popleft()
        seconds = (turn - self.context.clock()).total_seconds()
        if seconds > 0:
            self.sleep(seconds)

    def _reserve(self, name: str, rate: float) -> list[datetime]:
        count = max(int(rate * _RESERVE_SECONDS), 1)
        with self.context.database.write() as connection:
            now = self.context.clock()
            row = sa.select(System.next_call_at).where(System.name == name).with_for_update()
            start = max(connection.execute(row).scalar() or now, now)
            end = start + timedelta(seconds=count / rate)
            connection.execute(sa.update(System).where(System.name == name).values(next_call_at=end))
        return [start + timedelta(seconds=number / rate) for number in range(count)]
