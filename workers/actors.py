"""The Dramatiq actors: one per subscriber, one pair per system, and the tick.

Each parses its message and calls the conductor. Failures of external systems are recorded in the
ledger, so Dramatiq retries only failures of our own, such as a database that does not answer. When
these retries are used up, the sweep publishes the work again.
"""

from __future__ import annotations

from typing import Any

import dramatiq
from periodiq import cron

from broker import Fanout
from conductor import Conductor
from subscribers.base import Subscriber
from subscribers.errors import SyncError
from workers.publisher import INBOX, LATER, TICK_QUEUE

#: Dramatiq's retries after a failure of our own; pauses in milliseconds.
_OPTIONS: dict[str, Any] = {"max_retries": 3, "min_backoff": 1_000, "max_backoff": 30_000}

#: Dramatiq's priority of retries, after new changes with 0: it processes lower numbers first.
_RETRY_PRIORITY = 100


def bind_queues(broker: Fanout, subscribers: dict[str, Subscriber]) -> None:
    """Declare all queues and bindings. Every process does this, so that no message is published without a queue."""
    for name, subscriber in subscribers.items():
        broker.bind(name, subscriber.catalogue)
        broker.declare_queue(name + LATER)
        broker.declare_queue(subscriber.system + INBOX)
    broker.declare_queue(TICK_QUEUE)


def register(broker: Fanout, conductor: Conductor) -> None:
    """Create the actors that this process can run."""
    for name in conductor.subscribers:
        _deliver_actor(broker, conductor, name)
    for system in conductor.systems:
        _inbox_actors(broker, conductor, system)
    _tick_actor(broker, conductor)


def _deliver_actor(broker: Fanout, conductor: Conductor, name: str) -> None:
    def deliver(record_ids: list[str], catalogue: str | None = None) -> None:
        conductor.deliver(name, [str(record_id) for record_id in record_ids])

    for queue, priority in ((name, 0), (name + LATER, _RETRY_PRIORITY)):
        dramatiq.actor(broker=broker, actor_name=queue, queue_name=queue, priority=priority, **_OPTIONS)(deliver)


def _inbox_actors(broker: Fanout, conductor: Conductor, system: str) -> None:
    def receive(inbox_id: int) -> None:
        conductor.receive(inbox_id)

    def poll(subscriber: str) -> None:
        try:
            conductor.schedule.run(f"poll {subscriber}", lambda: f"{conductor.poll(subscriber)} records")
        except SyncError:
            return  # recorded in the system's state; the cursor has not moved, so the next run polls the same

    queue = system + INBOX
    dramatiq.actor(broker=broker, actor_name=queue, queue_name=queue, **_OPTIONS)(receive)
    dramatiq.actor(broker=broker, actor_name=f"poll.{system}", queue_name=queue, max_retries=0)(poll)


def _tick_actor(broker: Fanout, conductor: Conductor) -> None:
    def tick() -> None:
        conductor.schedule.tick()

    # Without retries: the slots in the database decide which jobs are due, see conductor.schedule.
    schedule = cron("* * * * *")
    dramatiq.actor(broker=broker, actor_name="tick", queue_name=TICK_QUEUE, max_retries=0, periodic=schedule)(tick)
