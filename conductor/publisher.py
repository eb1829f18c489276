"""How the engine publishes ids to the queues; workers implement it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from conductor.queue_report import QueueReader


class QueuesUnavailable(Exception):
    """The broker does not accept messages, and nothing repeats this one."""


class Publisher(QueueReader, Protocol):
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
