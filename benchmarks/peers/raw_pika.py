"""Raw pika: a fanout exchange, a durable queue and a consumer process per subscriber, publisher confirms, no ledger.

Follows pika's examples "Asynchronous publisher" and "Basic consumer". The publisher does not wait for each confirm but
has up to a thousand messages unconfirmed. The consumers acknowledge each message, as the examples do, or in batches of
fifty, which is the practical limit of Python with RabbitMQ.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import pika

from benchmarks.peers.common import BROKER_URL, PREFIX, SUBSCRIBERS, deliver, serve
from benchmarks.records import Record

#: The most messages published and not yet confirmed.
_WINDOW = 1_000

#: The most messages a consumer receives without acknowledging them.
_PREFETCH = 250

#: Seconds after which an incomplete batch is acknowledged.
_LONGEST_UNACKNOWLEDGED_SECONDS = 0.01

_PERSISTENT = pika.BasicProperties(delivery_mode=2, content_type="application/json")


def queue_of(subscriber: str) -> str:
    """Return the name of a subscriber's queue."""
    return f"{PREFIX}.{subscriber}"


def _declare(channel: Any) -> None:
    channel.exchange_declare(PREFIX, exchange_type="fanout", durable=True)
    for subscriber in SUBSCRIBERS:
        channel.queue_declare(queue_of(subscriber), durable=True)
        channel.queue_bind(queue_of(subscriber), PREFIX)


def consume(subscriber: str, acknowledge_at_once: int) -> None:
    """Process the messages of one subscriber's queue."""
    connection = pika.BlockingConnection(pika.URLParameters(BROKER_URL))
    channel = connection.channel()
    _declare(channel)
    channel.basic_qos(prefetch_count=_PREFETCH)
    done = acknowledged = 0

    def on_message(_channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        nonlocal done
        deliver(subscriber, orjson.loads(body))
        done = method.delivery_tag
        if done - acknowledged >= acknowledge_at_once:
            acknowledge()

    def acknowledge() -> None:
        nonlocal acknowledged
        if done > acknowledged:
            channel.basic_ack(done, multiple=True)
            acknowledged = done

    def acknowledge_now_and_then() -> None:
        acknowledge()
        connection.call_later(_LONGEST_UNACKNOWLEDGED_SECONDS, acknowledge_now_and_then)

    if acknowledge_at_once > 1:
        acknowledge_now_and_then()
    channel.basic_consume(queue_of(subscriber), on_message)
    channel.start_consuming()


class Publisher:
    """Publishes with confirms from its own thread; `publish` returns when all messages are confirmed."""

    def __init__(self) -> None:
        self._waiting: Iterator[bytes] = iter(())
        self._under_way = self._confirmed = 0
        self._done = threading.Event()
        self._ready = threading.Event()
        self._channel: Any = None
        self._connection = pika.SelectConnection(
            pika.URLParameters(BROKER_URL), on_open_callback=lambda c: c.channel(on_open_callback=self._opened)
        )
        threading.Thread(target=self._connection.ioloop.start, daemon=True).start()
        self._ready.wait()

    def publish(self, records: Sequence[Record]) -> None:
        """Publish each record to the exchange."""
        self._done.clear()
        self._waiting = map(orjson.dumps, records)
        self._connection.ioloop.add_callback_threadsafe(self._fill)
        self._done.wait()

    def _opened(self, channel: Any) -> None:
        self._channel = channel
        channel.confirm_delivery(self._on_confirm, callback=lambda _: self._ready.set())

    def _fill(self) -> None:
        while self._under_way < _WINDOW:
            if (body := next(self._waiting, None)) is None:
                break
            self._under_way += 1
            self._channel.basic_publish(PREFIX, "", body, _PERSISTENT)
        if not self._under_way:
            self._done.set()

    def _on_confirm(self, frame: Any) -> None:
        if not isinstance(frame.method, pika.spec.Basic.Ack):
            raise RuntimeError("RabbitMQ refused a message")
        newly = frame.method.delivery_tag - self._confirmed if frame.method.multiple else 1
        self._confirmed += newly
        self._under_way -= newly
        self._fill()


def main(arguments: Sequence[str]) -> None:
    """Run `consume SUBSCRIBER BATCH_SIZE_OF_ACKNOWLEDGEMENTS` or `publish`."""
    if arguments[0] == "consume":
        consume(arguments[1], int(arguments[2]))
        return
    serve(Publisher().publish)


if __name__ == "__main__":
    main(sys.argv[1:])
