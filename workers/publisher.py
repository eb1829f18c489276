"""The publisher of the conductor over Dramatiq's queues; every process has one."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import dramatiq

from broker import BrokerUnreachable, Fanout, LocalFanout
from conductor import QueueReport, QueuesUnavailable
from workers.queue_stats import Management, Queues

logger = logging.getLogger(__name__)

#: Suffix of the queue for the incoming events and polls of a system.
INBOX = ".inbox"

#: Suffix of the queue for retries and for work that is published again; new changes have priority.
LATER = ".later"

#: The queue of the periodic tick.
TICK_QUEUE = "syncflow.tick"


#: Webhooks that wait for the broker; the sweep publishes what does not fit.
_LONGEST_BACKLOG = 10_000


class Background:
    """Publishes from a thread of its own, for callers that must not wait for the broker.

    What cannot be published, or does not fit, is left to the sweep.
    """

    def __init__(self, publish: Callable[[str, Sequence[int]], None]) -> None:
        self._publish = publish
        self._waiting: queue.Queue[tuple[str, Sequence[int]]] = queue.Queue(_LONGEST_BACKLOG)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, system: str, inbox_ids: Sequence[int]) -> None:
        """Publish these inbox rows soon."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="background publisher", daemon=True)
                self._thread.start()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait((system, inbox_ids))

    def _run(self) -> None:
        while True:
            system, inbox_ids = self._waiting.get()
            try:
                self._publish(system, inbox_ids)
            except BrokerUnreachable as error:
                logger.warning("inbox rows of %s could not be published; the sweep will do it: %s", system, error)
            except Exception:
                logger.exception("inbox rows of %s could not be published; the sweep will do it", system)


class DramatiqPublisher:
    """Publishes by queue and actor name, so that a process that only publishes needs no actors."""

    def __init__(self, broker: Fanout, management: Management | None = None) -> None:
        self.broker = broker
        self._queues = Queues(broker, management)
        self._background = Background(self.inbox)
        #: Subscriber -> its system.
        self.systems: dict[str, str] = {}

    def changes(self, catalogue: str, record_ids: Sequence[str]) -> None:
        """Publish a change to all subscribers of its catalogue, see `broker.publish_change`."""
        self.broker.publish_change(catalogue, record_ids)

    def records(self, subscriber: str, record_ids: Sequence[str], *, later: bool = False) -> None:
        """Publish records to one subscriber; with `later`, to its queue for retries."""
        name = subscriber + LATER if later else subscriber
        self._send(name, name, {"record_ids": list(record_ids)})

    def inbox(self, system: str, inbox_ids: Sequence[int]) -> None:
        """Publish a message for each inbox row, so that each is retried separately."""
        for inbox_id in inbox_ids:
            self._send(system + INBOX, system + INBOX, {"inbox_id": inbox_id})

    def inbox_soon(self, system: str, inbox_ids: Sequence[int]) -> None:
        """Publish inbox rows from a thread of its own; the caller never waits for RabbitMQ."""
        if isinstance(self.broker, LocalFanout):
            self.inbox(system, inbox_ids)
        else:
            self._background.put(system, inbox_ids)

    def poll(self, subscriber: str, delay: float = 0.0) -> None:
        """Publish the poll of a subscriber, due in `delay` seconds.

        Raises:
          QueuesUnavailable: it could not be published.
        """
        system = self.systems[subscriber]
        try:
            self._send(system + INBOX, f"poll.{system}", {"subscriber": subscriber}, delay)
        except BrokerUnreachable as error:
            raise QueuesUnavailable(str(error)) from None

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

    def _send(self, name: str, actor: str, kwargs: dict[str, Any], delay: float = 0.0) -> None:
        message: dramatiq.Message[Any] = dramatiq.Message(name, actor, (), kwargs, {})
        self.broker.enqueue(message, delay=int(delay * 1000) or None)
