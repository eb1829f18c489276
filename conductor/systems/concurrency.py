"""How many calls to a system may run at the same time, over all worker processes.

A slot is a row with an owner and an end, so a slot of a worker that died is free again after its lease. Threads of one
process hand a slot on among themselves for a while: that needs no statement, and no slot is idle in between.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa

from conductor.context import Context, new_token
from models.base import UtcDateTime
from models.ledger import CallSlot

#: Seconds between two queries for a free slot.
_SLOT_PAUSE_SECONDS = 0.02

#: Seconds for which a process may hand a slot on. After that, another process has a chance to take it.
_KEEP_SECONDS = 1.0


class Stopping(Exception):
    """This process stops, so work that has not begun goes back to its queue."""


@dataclass
class Held:
    """A slot of this process, and the monotonic time since when."""

    token: str
    since: float


@dataclass(eq=False)
class _Waiter:
    """A thread that waits for a slot. Only the first in a system's line queries the database."""

    called: threading.Event = field(default_factory=threading.Event)
    is_first: bool = False
    #: The slot it took, or that another thread handed on to it.
    given: Held | None = None


class ConcurrencyLimiter:
    """Hands out slots. `rest` waits for an event, up to a number of seconds."""

    def __init__(
        self,
        context: Context,
        rest: Callable[[threading.Event, float | None], object] = threading.Event.wait,
    ) -> None:
        self.context = context
        self.rest = rest
        self._lock = threading.Lock()
        self._mine = threading.local()
        #: System -> the threads of this process that wait for one of its slots, in the order of their arrival.
        self._lines: dict[str, deque[_Waiter]] = {}

    def ensure_slots(self) -> None:
        """Make sure that each system with a limit has its slots."""
        for name, system in self.context.systems.items():
            if limit := system.concurrency:
                self._ensure_slots(name, limit)

    def slot(self, name: str) -> Slot:
        """Return one of the system's slots, for a `with` block. A system without a limit has no slots.

        Entering it raises:
          Stopping: this process is asked to stop, and there was no slot.
        """
        return Slot(self, name if self.context.systems[name].concurrency else None)

    def renew(self) -> None:
        """Renew the lease of the slot that this thread holds, if it holds one."""
        if (held := getattr(self._mine, "slot", None)) is not None:
            until = self.context.later(self.context.policy.lease_seconds)
            with self.context.database.write() as connection:
                connection.execute(sa.update(CallSlot).where(CallSlot.owner == held.token).values(until=until))

    def is_waited_for(self, name: str) -> bool:
        """Return whether a thread of this process waits for a slot."""
        return bool(self._lines.get(name))

    def enter(self, name: str) -> Held:
        """Wait for a slot; see `Slot`."""
        waiter = _Waiter()
        with self._lock:
            line = self._lines.setdefault(name, deque())
            line.append(waiter)
        try:
            while not self._is_given(line, waiter):
                if waiter.is_first and not self._ask(name, waiter) and self.context.stopping.is_set():
                    raise Stopping
                if waiter.given is None:
                    self.rest(waiter.called, _SLOT_PAUSE_SECONDS if waiter.is_first else None)
        except BaseException:
            self._step_out(name, line, waiter)
            raise
        assert waiter.given is not None
        self._mine.slot = waiter.given
        return waiter.given

    def leave(self, name: str, held: Held) -> None:
        """Give a slot to a waiting thread of this process, or free it for any process; see `Slot`."""
        self._mine.slot = None
        self._pass_on(name, held)

    def _is_given(self, line: deque[_Waiter], waiter: _Waiter) -> bool:
        """Return whether a thread has its slot. If not, its event is set when that may have changed."""
        with self._lock:
            if waiter.given is None:
                waiter.is_first = line[0] is waiter
                waiter.called.clear()
            return waiter.given is not None

    def _ask(self, name: str, waiter: _Waiter) -> bool:
        """Take free slots for this thread and for those behind it in the line; return whether there was one."""
        line = self._lines[name]
        taken, since = self._take(name, max(len(line), 1)), time.monotonic()
        for token in taken:
            self._pass_on(name, Held(token, since))
        return bool(taken)

    def _step_out(self, name: str, line: deque[_Waiter], waiter: _Waiter) -> None:
        with self._lock:
            held = waiter.given
            if held is None:
                line.remove(waiter)
                if line:
                    line[0].called.set()
        if held is not None:
            self._pass_on(name, held)

    def _pass_on(self, name: str, held: Held) -> None:
        """Hand a slot to the first thread in the line, or free it for any process."""
        with self._lock:
            line = self._lines[name]
            if line and time.monotonic() - held.since < _KEEP_SECONDS:
                waiter = line.popleft()
                waiter.given = held
                waiter.called.set()
                if line:
                    line[0].called.set()
                return
        with self.context.database.write() as connection:
            connection.execute(sa.update(CallSlot).where(CallSlot.owner == held.token).values(owner=None, until=None))

    def _take(self, name: str, count: int) -> list[str]:
        """Take up to `count` free slots; return their tokens."""
        limit = self.context.systems[name].concurrency
        now, until = self.context.clock(), self.context.later(self.context.policy.lease_seconds)
        values = {"of": name, "limit": limit, "count": count, "now": now, "token": new_token(), "until_": until}
        return self.context.database.execute_atomic(lambda connection: list(connection.scalars(_take_free(), values)))

    def _ensure_slots(self, name: str, limit: int) -> None:
        with self.context.database.write() as connection:
            for number in range(1, limit + 1):
                insert = self.context.database.insert(CallSlot).values(system=name, number=number)
                connection.execute(insert.on_conflict_do_nothing(index_elements=["system", "number"]))


class Slot:
    """A slot of one thread. The thread may release it before the block ends, and take it again."""

    def __init__(self, limiter: ConcurrencyLimiter, name: str | None) -> None:
        self._limiter = limiter
        #: The system, if it has a limit.
        self._name = name
        self._held: Held | None = None

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release()

    def take(self) -> None:
        """Wait for a slot, unless it is held.

        Raises:
          Stopping: this process is asked to stop, and no slot was free.
        """
        if self._name is not None and self._held is None:
            self._held = self._limiter.enter(self._name)

    @property
    def is_limited(self) -> bool:
        """Return whether the system has a limit. If not, taking a slot never waits."""
        return self._name is not None

    @property
    def is_held(self) -> bool:
        """Return whether the thread holds it."""
        return self._held is not None

    @property
    def is_sought(self) -> bool:
        """Return whether another thread of this process waits for one of the system's slots."""
        return self._name is not None and self._limiter.is_waited_for(self._name)

    def release(self) -> None:
        """Release the slot to the next thread or process, if it is held."""
        if self._name is not None and self._held is not None:
            held, self._held = self._held, None
            self._limiter.leave(self._name, held)


@lru_cache
def _take_free() -> Any:
    """Return the statement that makes `token`, with the slot's number, the owner of up to `count` free slots."""
    now = sa.bindparam("now", type_=UtcDateTime)
    free = (
        sa.select(CallSlot.id)
        .where(CallSlot.system == sa.bindparam("of"), CallSlot.number <= sa.bindparam("limit", type_=sa.Integer))
        .where(sa.or_(CallSlot.until.is_(None), CallSlot.until <= now))
        .limit(sa.bindparam("count", type_=sa.Integer))
        .with_for_update(skip_locked=True)
    )
    owner = sa.bindparam("token", type_=sa.Text) + "." + sa.cast(CallSlot.number, sa.Text)
    until = sa.bindparam("until_", type_=UtcDateTime)
    taken = sa.update(CallSlot).where(CallSlot.id.in_(free)).values({CallSlot.owner: owner, CallSlot.until: until})
    return taken.returning(CallSlot.owner)
