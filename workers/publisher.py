"""The publisher of the conductor over Dramatiq's queues; every process has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dramatiq

from broker import BrokerUnreachable, Fanout
from conductor import QueueReport
from workers.queue_stats import Management, Queues

#: Suffix of the queue for the incoming events and polls of a system.
INBOX = ".inbox"

#: Suffix of the queue for retries and for work that is published again; new changes have priority.
LATER = ".later"

#: The queue of the periodic tick.
TICK_QUEUE = "syncflow.tick"


class DramatiqPublisher:
    """Publishes by queue and actor name, so that a process that only publishes needs no actors."""

    def __init__(self, broker: Fanout, management: Management | None = None) -> None:
        self.broker = broker
        self._queues = Queues(broker, management)
        #: Subscriber -> its system.
        self.systems: dict[str, str] = {}

    def changes(self, catalogue: str, record_ids: Sequence[str]) -> None:
        """Publish a change to all subscribers of its catalogue, see `broker.publish_change`."""
        self.broker.publish_change(catalogue, record_ids)

    def records(self, subscriber: str, record_ids: Sequence[str], *, later: bool = False) -> None:
        """Publish records to one subscriber; with `later`, to its queue for retries."""
        queue = subscriber + LATER if later else subscriber
        self._send(queue, queue, {"record_ids": list(record_ids)})

    def inbox(self, system: str, inbox_ids: Sequence[int]) -> None:
        """Publish a message for each inbox row, so that each is retried separately."""
        for inbox_id in inbox_ids:
            self._send(system + INBOX, system + INBOX, {"inbox_id": inbox_id})

    def poll(self, subscriber: str, delay: float = 0.0) -> None:
        """Publish the poll of a subscriber, due in `delay` seconds."""
        queue = self.systems[subscriber] + INBOX
        self._send(queue, f"poll.{self.systems[subscriber]}", {"subscriber": subscriber}, delay)

    def depth(self, subscriber: str) -> int | None:
        """Return the number of messages in the two queues of a subscriber."""
        return self.broker.depth(subscriber) + self.broker.depth(subscriber + LATER)

    def inbox_depth(self, system: str) -> int | None:
        """Return the number of messages in the inbox queue of a system."""
        return self.broker.depth(system + INBOX)

    def queues(self) -> QueueReport:
        """Return the state of all queues, at most some seconds old."""
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
