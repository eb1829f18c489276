"""What a system's owner allows: calls per second and calls at once, held over all worker processes.

Both live in the database: a rate as the instant the next call may begin, a concurrency as slots
with an owner and an end, so that a slot of a worker that died is free again by itself.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial

import sqlalchemy as sa

from conductor.hub import Hub, new_token
from models.ledger import CallSlot, System

#: Seconds of calls reserved at once, so that a high rate does not cost a transaction a call.
_RESERVE_SECONDS = 0.1

#: Seconds between two looks for a free slot.
_SLOT_PAUSE = 0.02


class Stopping(Exception):
    """This process stops: work that has not begun is handed back."""


class Limits:
    """Paces calls and hands out slots."""

    def __init__(self, hub: Hub, sleep: Callable[[float], None] = time.sleep) -> None:
        self.hub = hub
        self.sleep = sleep
        self._lock = threading.Lock()
        self._held = threading.local()
        self._reserved: dict[str, deque[datetime]] = {}

    def attach(self) -> None:
        """Have every system with a rate wait for its turn before each call."""
        for name, system in self.hub.systems.items():
            if rate := system.requests_per_second:
                system.pace = partial(self.wait, name, rate)  # type: ignore[method-assign]
            if limit := system.concurrency:
                self._ensure_slots(name, limit)

    # --- calls per second -----------------------------------------------------------------------------

    def wait(self, name: str, rate: float) -> None:
        """Return when this process may begin one call."""
        with self._lock:
            reserved = self._reserved.setdefault(name, deque())
            # Turns that were not taken are lost, or they would all be taken at once some day.
            forgotten = self.hub.later(-_RESERVE_SECONDS)
            while reserved and reserved[0] < forgotten:
                reserved.popleft()
            if not reserved:
                reserved.extend(self._reserve(name, rate))
            turn = reserved.popleft()
        seconds = (turn - self.hub.clock()).total_seconds()
        if seconds > 0:
            self.sleep(seconds)

    def _reserve(self, name: str, rate: float) -> list[datetime]:
        count = max(int(rate * _RESERVE_SECONDS), 1)
        with self.hub.database.write() as connection:
            now = self.hub.clock()
            row = sa.select(System.next_call_at).where(System.name == name).with_for_update()
            start = max(connection.execute(row).scalar() or now, now)
            end = start + timedelta(seconds=count / rate)
            connection.execute(sa.update(System).where(System.name == name).values(next_call_at=end))
        return [start + timedelta(seconds=number / rate) for number in range(count)]

    # --- calls at once --------------------------------------------------------------------------------

    @contextmanager
    def slot(self, name: str) -> Iterator[None]:
        """Hold one of the system's slots; waits for one. A system without a limit has no slots.

        Raises:
          Stopping: this process is asked to stop, and there was no slot.
        """
        limit = self.hub.systems[name].concurrency
        if not limit:
            yield
            return
        token = new_token()
        while not self._take(name, limit, token):
            if self.hub.stopping.is_set():
                raise Stopping
            self.sleep(_SLOT_PAUSE)
        self._held.token = token
        try:
            yield
        finally:
            self._held.token = None
            with self.hub.database.write() as connection:
                connection.execute(sa.update(CallSlot).where(CallSlot.owner == token).values(owner=None, until=None))

    def renew(self) -> None:
        """Keep the slot this thread holds, if it holds one, for another lease."""
        if (token := getattr(self._held, "token", None)) is not None:
            until = self.hub.later(self.hub.policy.lease)
            with self.hub.database.write() as connection:
                connection.execute(sa.update(CallSlot).where(CallSlot.owner == token).values(until=until))

    def _take(self, name: str, limit: int, token: str) -> bool:
        now = self.hub.clock()
        free = (
            sa.select(CallSlot.id)
            .where(CallSlot.system == name, CallSlot.number <= limit)
            .where(sa.or_(CallSlot.until.is_(None), CallSlot.until <= now))
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        statement = (
            sa.update(CallSlot)
            .where(CallSlot.id == free.scalar_subquery())
            .values(owner=token, until=self.hub.later(self.hub.policy.lease))
        )
        with self.hub.database.write() as connection:
            return connection.execute(statement).rowcount == 1

    def _ensure_slots(self, name: str, limit: int) -> None:
        with self.hub.database.write() as connection:
            for number in range(1, limit + 1):
                insert = self.hub.database.insert(CallSlot).values(system=name, number=number)
                connection.execute(insert.on_conflict_do_nothing(index_elements=["system", "number"]))
