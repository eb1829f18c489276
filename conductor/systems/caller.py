"""Calling a system for something other than a delivery: within its limits, and not while it is paused or down."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from conductor.context import Context
from conductor.systems.circuit_breaker import CircuitBreaker
from conductor.systems.concurrency import ConcurrencyLimiter, Stopping
from subscribers.errors import SystemDown

T = TypeVar("T")


class SystemUnavailable(Exception):
    """The system is not to be called now; `after` is in seconds, the message says why."""

    def __init__(self, words: str, after: float) -> None:
        super().__init__(words)
        self.after = after


class SystemCaller:
    """Makes single calls for tasks."""

    def __init__(self, context: Context, health: CircuitBreaker, concurrency: ConcurrencyLimiter) -> None:
        self.context = context
        self.breaker = health
        self.concurrency = concurrency

    def call(self, system: str, call: Callable[[], T]) -> T:
        """What `call` returns.

        Raises:
          NotNow: the system is paused or down, or turned out to be.
          SyncError: any other failure of the call.
        """
        gate = self.breaker.gate(system)
        if not gate.open:
            raise SystemUnavailable(gate.reason, gate.after)
        if why := self.context.systems[system].defer_reason():
            raise SystemUnavailable(why, self.context.policy.stale)
        try:
            with self.concurrency.slot(system):
                self.context.systems[system].pace()
                result = call()
        except Stopping:
            raise SystemUnavailable("this process stops", 0.0) from None
        except SystemDown as error:
            self.context.database.run_in_transaction(self.breaker.went_down, system, error)
            raise SystemUnavailable(str(error), error.after or self.context.policy.probe_min) from None
        if gate.probing:
            self.context.database.run_in_transaction(self.breaker.succeeded, system)
        return result
