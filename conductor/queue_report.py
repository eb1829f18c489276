"""The state of the queues, as the engine and the panel read it; workers implement the reading."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True)
class QueueState:
    """A queue of the broker: waiting messages, messages that a worker is processing, and the number of consumers.

    What is unknown is None.
    """

    name: str
    ready: int
    in_hand: int | None = None
    consumers: int | None = None


@dataclass(frozen=True)
class QueueReport:
    """The queues as they were at one moment, or why they could not be read.

    `source` is memory, broker (passive declares) or management (its HTTP API). `note` explains why it is not the
    management API although one is configured.
    """

    source: str
    at: datetime | None = None
    queues: dict[str, QueueState] = field(default_factory=dict)
    error: str | None = None
    #: The broker's state: ok, blocked (it accepts no messages), refused, unreachable or unknown.
    state: str = "ok"
    note: str | None = None


class QueueReader(Protocol):
    """Reads the state of the queues."""

    def inbox_depth(self, system: str) -> int | None:
        """Return how many messages wait in the queue of a system's webhooks and polls; None if that is unknown."""

    def depth(self, subscriber: str) -> int | None:
        """Return how many messages wait in a subscriber's queue; None if that is unknown."""

    def queues(self) -> QueueReport:
        """Return all queues, for the panel. It never waits long, so the report may be some seconds old."""
