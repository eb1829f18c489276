"""How the engine publishes ids to the queues, and reads the state of the queues; workers implement it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True)
class QueueState:
    """A queue of the broker: messages that wait, messages a worker has in hand, and who reads it.

    What the broker was not asked for or does not tell is None.
    """

    name: str
    ready: int
    in_hand: int | None = None
    consumers: int | None = None


@dataclass(frozen=True)
class QueueReport:
    """The queues as they were at one moment, or why they could not be read.

    `source` says who told: memory, broker (passive declares) or management (its HTTP API); `note` why it was not
    the management, although one is configured.
    """

    source: str
    at: datetime | None = None
    queues: dict[str, QueueState] = field(default_factory=dict)
    error: str | None = None
    note: str | None = None


class Publisher(Protocol):
    """Puts news into queues. It may lose any of it: the ledger's sweeps announce it again."""

    def changes(self, catalogue: str, record_ids: Sequence[str]) -> None:
        """Fan out to the queue of every subscriber bound to this catalogue."""

    def records(self, subscriber: str, record_ids: Sequence[str], *, later: bool = False) -> None:
        """These records of one subscriber want to be delivered; `later`: live changes go first."""

    def inbox(self, system: str, inbox_ids: Sequence[int]) -> None:
        """These inbox rows of a system want to be looked at."""

    def poll(self, subscriber: str, delay: float = 0.0) -> None:
        """This subscriber wants to be polled, `delay` seconds from now."""

    def inbox_depth(self, system: str) -> int | None:
        """Messages waiting in the queue of a system's webhooks and polls; None where that cannot be told now."""

    def depth(self, subscriber: str) -> int | None:
        """Messages waiting in a subscriber's queue; None where that cannot be told now."""

    def queues(self) -> QueueReport:
        """All queues, for people; never waits for long, so it may be some seconds old."""
