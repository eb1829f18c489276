"""Calls a system for a task: within its limits, and not while it is paused or down."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from conductor.context import Context
from conductor.systems.circuit_breaker import CircuitBreaker
from conductor.systems.concurrency import ConcurrencyLimiter, Stopping
from conductor.systems.outages import OutageDetector
from subscribers.base import Subscriber
from subscribers.errors import SyncError, SystemDown

T = TypeVar("T")


class SystemUnavailable(Exception):
    """The system cannot be called now. The message gives the reason, `after` the seconds until the next attempt."""

    def __init__(self, reason: str, after: float) -> None:
        super().__init__(reason)
        self.after = after


class SystemCaller:
    """Makes single calls."""

    def __init__(
        self, context: Context, breaker: CircuitBreaker, concurrency: ConcurrencyLimiter, outages: OutageDetector
    ) -> None:
        self.context = context
        self.breaker = breaker
        self.concurrency = concurrency
        self.outages = outages

    def call(self, subscriber: Subscriber, call: Callable[[], T]) -> T:
        """Make a call of a subscriber and return its result.

        Raises:
          SystemUnavailable: the system is paused or down, or this call found it down.
          SyncError: the call failed for another reason.
        """
        system = subscriber.system
        permit = self.breaker.permit(system)
        if not permit.allowed:
            raise SystemUnavailable(permit.reason, permit.after)
        if why := self.context.systems[system].defer_reason():
            raise SystemUnavailable(why, self.context.policy.stale_seconds)
        try:
            with self.concurrency.slot(system):
                self.context.systems[system].pace()
                result = self._call(subscriber, call)
        except Stopping:
            raise SystemUnavailable("the process is shutting down", 0.0) from None
        except SystemDown as error:
            self.context.database.run_in_transaction(self.breaker.went_down, system, error)
            raise SystemUnavailable(str(error), error.after or self.context.policy.probe_min_seconds) from None
        if permit.probing:
            self.context.database.run_in_transaction(self.breaker.succeeded, system)
        return result

    def _call(self, subscriber: Subscriber, call: Callable[[], T]) -> T:
        try:
            return call()
        except SyncError as error:
            raise self.outages.explain(subscriber, error) from error
