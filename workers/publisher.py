"""Putting news into queues: the announcer the conductor is given. Used by every process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dramatiq

from broker import BrokerUnreachable, Fanout
from conductor import QueueReport
from workers.queue_stats import Management, Queues

#: Suffix of the queue on which a system's webhooks and polls are worked off.
INBOX = ".inbox"

#: Suffix of the queue for retries and for work announced again: live changes go before it.
LATER = ".later"

#: The queue of the periodic tick.
TICK_QUEUE = "syncflow.tick"


class DramatiqPublisher:
    """Builds each message by hand, so that a process that only sends need not know the actors."""

    def __init__(self, broker: Fanout, management: Management | None = None) -> None:
        self.broker = broker
        self._queues = Queues(broker, management)
        #: Subscriber -> its system; set with the subscribers.
        self.systems: dict[str, str] = {}

    def changes(self, catalogue: str, record_ids: Sequence[str]) -> None:
        """Fan out: see `broker.publish_change`."""
        self.broker.publish_change(catalogue, record_ids)

    def records(self, subscriber: str, record_ids: Sequence[str], *, later: bool = False) -> None:
        """Straight into the one queue they concern, or into the one that is worked off after it."""
        queue = subscriber + LATER if later else subscriber
        self._send(queue, queue, {"record_ids": list(record_ids)})

    def inbox(self, system: str, inbox_ids: Sequence[int]) -> None:
        """One message an inbox row: each is retried on its own."""
        for inbox_id in inbox_ids:
            self._send(system + INBOX, system + INBOX, {"inbox_id": inbox_id})

    def poll(self, subscriber: str, delay: float = 0.0) -> None:
        """Have a subscriber polled, after `delay` seconds."""
        queue = self.systems[subscriber] + INBOX
        self._send(queue, f"poll.{self.systems[subscriber]}", {"subscriber": subscriber}, delay)

    def depth(self, subscriber: str) -> int | None:
        """Messages waiting in a subscriber's two queues."""
        return self.broker.depth(subscriber) + self.broker.depth(subscriber + LATER)

    def inbox_depth(self, system: str) -> int | None:
        """Messages waiting in a system's inbox queue."""
        return self.broker.depth(system + INBOX)

    def queues(self) -> QueueReport:
        """All queues, some seconds old at most."""
        self._queues.names = [
            *(name + suffix for name in self.systems for suffix in ("", LATER)),
            *sorted({system + INBOX for system in self.systems.values()}),
            TICK_QUEUE,
        ]
        return self._queues.latest()

    def _send(self, queue: str, actor: str, kwargs: dict[str, Any], delay: float = 0.0) -> None:
        message: dramatiq.Message[Any] = dramatiq.Message(queue, actor, (), kwargs, {})
        try:
            self.broker.enqueue(message, delay=int(delay * 1000) or None)
        except dramatiq.ConnectionClosed as error:
            raise BrokerUnreachable(f"RabbitMQ does not answer: {error!r}") from None
