"""Plain Dramatiq: an actor and a queue per subscriber, a message for each, publisher confirms.

Follows Dramatiq's user guide ("Workers", "RabbitMQ broker"): `dramatiq benchmarks.peers.dramatiq_plain -p 2 -t 8`, with
the default number of threads and one process per core.
"""

from __future__ import annotations

from collections.abc import Sequence

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchmarks.peers.common import BROKER_URL, PREFIX, SUBSCRIBERS, deliver, serve
from benchmarks.records import Record

broker = RabbitmqBroker(url=BROKER_URL, confirm_delivery=True)
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=f"{PREFIX}.one")
def one(record: Record) -> None:
    """Deliver to the first subscriber."""
    deliver("one", record)


@dramatiq.actor(queue_name=f"{PREFIX}.two")
def two(record: Record) -> None:
    """Deliver to the second subscriber."""
    deliver("two", record)


@dramatiq.actor(queue_name=f"{PREFIX}.three")
def three(record: Record) -> None:
    """Deliver to the third subscriber."""
    deliver("three", record)


ACTORS = (one, two, three)
assert [actor.actor_name for actor in ACTORS] == list(SUBSCRIBERS)


def publish(records: Sequence[Record]) -> None:
    """Send a message to each subscriber."""
    for record in records:
        for actor in ACTORS:
            actor.send(record)


if __name__ == "__main__":
    serve(publish)
