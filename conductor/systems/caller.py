"""Calling a system for something other than a delivery: within its limits, and not while it is paused or down."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from conductor.context import Hub
from conductor.systems.circuit_breaker import Health
from conductor.systems.concurrency import Limits, Stopping
from subscribers.errors import SystemDown

T = TypeVar("T")


class NotNow(Exception):
    """The system is not to be called now; `after` is in seconds, the message says why."""

    def __init__(self, words: str, after: float) -> None:
        super().__init__(words)
        self.after = after


class Asking:
    """Makes single calls for tasks."""

    def __init__(self, hub: Hub, health: Health, limits: Limits) -> None:
        self.hub = hub
        self.health = health
        self.limits = limits

    def ask(self, system: str, call: Callable[[], T]) -> T:
        """What `call` returns.

        Raises:
          NotNow: the system is paused or down, or turned out to be.
          SyncError: any other failure of the call.
        """
        gate = self.health.gate(system)
        if not gate.open:
            raise NotNow(gate.reason, gate.after)
        if why := self.hub.systems[system].wait_reason():
            raise NotNow(why, self.hub.policy.stale)
        try:
            with self.limits.slot(system):
                self.hub.systems[system].pace()
                result = call()
        except Stopping:
            raise NotNow("this process stops", 0.0) from None
        except SystemDown as error:
            self.hub.database.transact(self.health.went_down, system, error)
            raise NotNow(str(error), error.after or self.hub.policy.probe_first) from None
        if gate.probing:
            self.hub.database.transact(self.health.succeeded, system)
        return result
