"""FastStream: a fanout exchange and a durable queue per subscriber, publisher confirms (its default).

Follows FastStream's documentation ("RabbitMQ": exchanges, queues; "CLI": workers):
`faststream run benchmarks.peers.faststream_app:app --workers 2`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

from faststream import FastStream
from faststream.rabbit import Channel, ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue

from benchmarks.peers.common import BROKER_URL, PREFIX, deliver, serve
from benchmarks.records import Record

broker = RabbitBroker(BROKER_URL, default_channel=Channel(prefetch_count=100))
app = FastStream(broker)
exchange = RabbitExchange(PREFIX, type=ExchangeType.FANOUT, durable=True)


def _queue(subscriber: str) -> RabbitQueue:
    return RabbitQueue(f"{PREFIX}.{subscriber}", durable=True)


@broker.subscriber(_queue("one"), exchange)
async def one(record: dict[str, Any]) -> None:
    """The first subscriber."""
    deliver("one", record)


@broker.subscriber(_queue("two"), exchange)
async def two(record: dict[str, Any]) -> None:
    """The second."""
    deliver("two", record)


@broker.subscriber(_queue("three"), exchange)
async def three(record: dict[str, Any]) -> None:
    """The third."""
    deliver("three", record)


async def _publish(publisher: RabbitBroker, records: Sequence[Record]) -> None:
    for record in records:
        await publisher.publish(record, exchange=exchange, persist=True)


def main() -> None:
    """Publish on request, from an event loop that keeps running between requests."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    publisher = RabbitBroker(BROKER_URL)
    asyncio.run_coroutine_threadsafe(publisher.connect(), loop).result()
    serve(lambda records: asyncio.run_coroutine_threadsafe(_publish(publisher, records), loop).result())


if __name__ == "__main__":
    main()
