"""Queues in memory, for one process that is web, relay, worker and scheduler."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import dramatiq
from dramatiq.broker import MessageProxy
from dramatiq.brokers.stub import StubBroker, _StubConsumer
from dramatiq.errors import QueueNotFound

from messaging.messages import addressed_to, fanout_message, middleware

logger = logging.getLogger(__name__)


class LocalFanout(StubBroker):
    """Queues in memory.

    Messages are lost when the process ends; the next start publishes pending work from the ledger again.
    """

    def __init__(self) -> None:
        super().__init__(middleware=middleware())
        self.bindings: dict[str, str] = {}

    def bind(self, queue_name: str, routing_key: str) -> None:
        """Copy messages with this routing key to this queue."""
        self.bindings[queue_name] = routing_key
        self.declare_queue(queue_name)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 100) -> dramatiq.Consumer:
        """Return a consumer of this queue that keeps no failed messages."""
        try:
            return _LocalConsumer(self.queues[queue_name], [], prefetch, timeout)
        except KeyError:
            raise QueueNotFound(queue_name) from None

    def ensure(self) -> None:
        """Do nothing: declared queues exist."""

    def check(self) -> None:
        """Do nothing: memory needs no login."""

    def probe(self) -> None:
        """Do nothing: memory accepts every message."""

    def publish_change(self, catalogue: str, record_ids: Sequence[str]) -> None:
        """Copy the change to the queue of every subscriber of the catalogue."""
        message = fanout_message(catalogue, record_ids)
        for queue_name, routing_key in self.bindings.items():
            if routing_key == catalogue:
                self.enqueue(addressed_to(message, queue_name))

    def depth(self, queue_name: str) -> int:
        """Return the number of messages in a queue."""
        return int(self.queues[queue_name].qsize())

    def inspect_queues(self, names: Iterable[str]) -> dict[str, tuple[int, int | None]]:
        """Return queue -> (messages, None): the consumers are this process."""
        return {name: (int(self.queues[name].qsize()), None) for name in names if name in self.queues}


class _LocalConsumer(_StubConsumer):
    """Dramatiq's stub consumer without its list of failed messages, which would grow forever."""

    def nack(self, message: MessageProxy) -> None:
        logger.error("dropped a failed message: %s", message)
        self.ack(message)
