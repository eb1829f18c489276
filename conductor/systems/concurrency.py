"""What a system's owner allows: calls per second and calls at once, held over all worker processes.

Both live in the database: a rate as the instant the next call may begin, a concurrency as slots
with an owner and an end, so that a slot of a worker that died is free again by itself. Threads of
one process hand slots on among themselves for a while: that costs nothing, and no time in which nobody calls.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa

from conductor.context import Context, new_token
from models.base import UtcDateTime
from models.ledger import CallSlot, System

#: Seconds of calls reserved at once, so that a high rate does not cost a transaction a call.
_RESERVE_SECONDS = 0.1

#: Seconds between two looks for a free slot.
_SLOT_PAUSE = 0.02

#: Seconds for which a process may hand a slot on; then another process has a chance to get it.
_KEEP_SECONDS = 1.0


class Stopping(Exception):
    """This process stops: work that has not begun is handed back."""


@dataclass
class Held:
    """A slot this process has, and since when (monotonic)."""

    token: str
    since: float


@dataclass(eq=False)
class _Waiter:
    """A thread that waits for a slot. Only the first of a system's line asks the database for one."""

    called: threading.Event = field(default_factory=threading.Event)
    is_first: bool = False
    #: What it got, or another thread handed on to it.
    given: Held | None = None


class Limits:
    """Paces calls and hands out slots. `rest` waits for an event, for so many seconds at most."""

    def __init__(
        self,
        context: Context,
        sleep: Callable[[float], None] = time.sleep,
        rest: Callable[[threading.Event, float | None], object] = threading.Event.wait,
    ) -> None:
        self.context = context
        self.sleep = sleep
        self.rest = rest
        self._lock = threading.Lock()
        self._mine = threading.local()
        self._reserved: dict[str, deque[datetime]] = {}
        #: System -> who waits for one of its slots here, in the order they came.
        self._lines: dict[str, deque[_Waiter]] = {}

    def attach(self) -> None:
        """Have every system with a rate wait for its turn before each call."""
        for name, system in self.context.systems.items():
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
            forgotten = self.context.later(-_RESERVE_SECONDS)
            while reserved and reserved[0] < forgotten:
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

    # --- calls at once --------------------------------------------------------------------------------

    def slot(self, name: str) -> Slot:
        """One of the system's slots, for a `with` block; a system without a limit has no slots.

        Entering it raises:
          Stopping: this process is asked to stop, and there was no slot.
        """
        return Slot(self, name if self.context.systems[name].concurrency else None)

    def renew(self) -> None:
        """Keep the slot this thread holds, if it holds one, for another lease."""
        if (held := getattr(self._mine, "slot", None)) is not None:
            until = self.context.later(self.context.policy.lease)
            with self.context.database.write() as connection:
                connection.execute(sa.update(CallSlot).where(CallSlot.owner == held.token).values(until=until))

    def is_waited_for(self, name: str) -> bool:
        """Whether any thread here waits for a slot."""
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
                    self.rest(waiter.called, _SLOT_PAUSE if waiter.is_first else None)
        except BaseException:
            self._step_out(name, line, waiter)
            raise
        assert waiter.given is not None
        self._mine.slot = waiter.given
        return waiter.given

    def leave(self, name: str, held: Held) -> None:
        """Give a slot to who waits for one here, or to any process; see `Slot`."""
        self._mine.slot = None
        self._pass_on(name, held)

    def _is_given(self, line: deque[_Waiter], waiter: _Waiter) -> bool:
        """Whether it has its slot; if not, it will be called when that may have changed."""
        with self._lock:
            if waiter.given is None:
                waiter.is_first = line[0] is waiter
                waiter.called.clear()
            return waiter.given is not None

    def _ask(self, name: str, waiter: _Waiter) -> bool:
        """Try to get a slot from the database, and one for everybody who waits behind."""
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
        """To the first of the line, who is followed by the next; or back, for any process."""
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
        """Take so many free slots, or as many as there are; their tokens."""
        limit = self.context.systems[name].concurrency
        now, until = self.context.clock(), self.context.later(self.context.policy.lease)
        values = {"of": name, "limit": limit, "count": count, "now": now, "token": new_token(), "until_": until}
        return self.context.database.execute_atomic(lambda connection: list(connection.scalars(_take_free(), values)))

    def _ensure_slots(self, name: str, limit: int) -> None:
        with self.context.database.write() as connection:
            for number in range(1, limit + 1):
                insert = self.context.database.insert(CallSlot).values(system=name, number=number)
                connection.execute(insert.on_conflict_do_nothing(index_elements=["system", "number"]))


class Slot:
    """A slot in the hands of one thread. It may be given back before the block ends, and taken again."""

    def __init__(self, limits: Limits, name: str | None) -> None:
        self._limits = limits
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
          Stopping: this process is asked to stop, and there was no slot.
        """
        if self._name is not None and self._held is None:
            self._held = self._limits.enter(self._name)

    @property
    def is_limited(self) -> bool:
        """Whether the system has a limit; if not, nothing here waits for anything."""
        return self._name is not None

    @property
    def is_held(self) -> bool:
        """Whether it is in hand."""
        return self._held is not None

    @property
    def is_sought(self) -> bool:
        """Whether a thread of this process waits for one of the system's slots."""
        return self._name is not None and self._limits.is_waited_for(self._name)

    def release(self) -> None:
        """Nothing is called any more: whoever waits may."""
        if self._name is not None and self._held is not None:
            held, self._held = self._held, None
            self._limits.leave(self._name, held)


@lru_cache
def _take_free() -> Any:
    """Make `token`, with the slot's number, the owner of `count` free slots of a system, if it has so many."""
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
