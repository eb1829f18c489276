"""How the engine publishes ids to the queues, and reads the state of the queues; workers implement it."""

from __future__ import annotations

from collections.abc import Sequence
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


class QueuesUnavailable(Exception):
    """The broker does not accept messages, and nothing repeats this one."""


class Publisher(Protocol):
    """Puts notifications into queues. Any of them may be lost: the sweep publishes again what the ledger owes."""

    def changes(self, catalogue: str, record_ids: Sequence[str]) -> None:
        """Publish changed records to the queue of every subscriber of this catalogue."""

    def records(self, subscriber: str, record_ids: Sequence[str], *, later: bool = False) -> None:
        """Publish records to be delivered to one subscriber; with `later`, live changes go first."""

    def inbox(self, system: str, inbox_ids: Sequence[int]) -> None:
        """Publish inbox rows of a system to be processed."""

    def inbox_soon(self, system: str, inbox_ids: Sequence[int]) -> None:
        """Publish inbox rows without waiting for the broker."""

    def poll(self, subscriber: str, delay: float = 0.0) -> None:
        """Publish a poll of this subscriber, `delay` seconds from now.

        Raises:
          QueuesUnavailable: it could not be published.
        """

    def inbox_depth(self, system: str) -> int | None:
        """Return how many messages wait in the queue of a system's webhooks and polls; None if that is unknown."""

    def depth(self, subscriber: str) -> int | None:
        """Return how many messages wait in a subscriber's queue; None if that is unknown."""

    def queues(self) -> QueueReport:
        """Return all queues, for the panel. It never waits long, so the report may be some seconds old."""
