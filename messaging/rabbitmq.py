"""The broker over RabbitMQ: the exchange, the bindings, and the consumer that rewrites messages."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import dramatiq
import pika
import pika.exceptions
from dramatiq.broker import MessageProxy
from dramatiq.brokers.rabbitmq import RabbitmqBroker, _RabbitmqConsumer
from dramatiq.errors import ConnectionClosed
from dramatiq.logging import get_logger

from messaging.connection import BoundedConnection, connect
from messaging.errors import BrokerUnreachable, cause_of, explain, place
from messaging.messages import EXCHANGE, addressed_to, fanout_message, middleware

logger = logging.getLogger(__name__)

#: Attempts of a publish, each over a new connection.
_PUBLISH_ATTEMPTS = 3

#: Seconds in which nothing is published after RabbitMQ gave no answer or was blocked: each try would wait again.
_PAUSE_SECONDS = 2.0

#: Seconds between two heartbeats of a consumer, so that a dead connection is replaced within half a minute.
_CONSUMER_HEARTBEAT_SECONDS = 15

#: The time limit of a request while RabbitMQ is known not to answer and the process stops.
_HURRIED_SECONDS = 0.05

#: The routing key of a message that no queue receives, which shows whether RabbitMQ accepts messages.
_PROBE = "syncflow.probe"

_QUEUE_IS_FULL = "a queue has reached the length limit of its policy; raise the limit, or start more workers"

#: AMQP's code for a queue or exchange that does not exist.
_NOT_FOUND = 404

_CONNECTION_ERRORS = (pika.exceptions.AMQPConnectionError, pika.exceptions.AMQPChannelError)


class RabbitmqFanout(RabbitmqBroker):
    """Dramatiq's RabbitMQ broker with the exchange, the bindings, and the consumer that rewrites messages.

    No request takes longer than `seconds`.
    """

    def __init__(self, url: str, queue_type: str, seconds: float = 5.0) -> None:
        super().__init__(url=url, confirm_delivery=True, middleware=middleware())
        self.url = url
        self.queue_type = queue_type
        self.seconds = seconds
        #: Queue -> routing key.
        self.bindings: dict[str, str] = {}
        #: Where RabbitMQ is, with the time limits of a connection.
        self.address = self._parameters()
        #: The last reason why RabbitMQ took no messages, and until when none is published because of it.
        self._trouble: BrokerUnreachable | None = None
        self._paused_until = 0.0

    def _parameters(self) -> pika.URLParameters:
        parameters = pika.URLParameters(self.url)
        parameters.socket_timeout = parameters.stack_timeout = self.seconds
        parameters.connection_attempts = 1
        return parameters

    @RabbitmqBroker.connection.getter  # type: ignore[attr-defined,untyped-decorator]
    def connection(self) -> BoundedConnection:
        """This thread's connection.

        Raises:
          BrokerUnreachable: there is none, with the reason.
        """
        connection: BoundedConnection | None = getattr(self.state, "connection", None)
        if connection is None:
            connection = self.state.connection = connect(self.address, self.seconds)
            self.connections.add(connection)
        return connection

    def connect_consumer(self) -> BoundedConnection:
        """Return a new connection for a consumer.

        Raises:
          BrokerUnreachable: there is none, with the reason.
        """
        parameters = self._parameters()
        if "heartbeat=" not in self.url:
            parameters.heartbeat = _CONSUMER_HEARTBEAT_SECONDS
        return connect(parameters, self.seconds)

    @property
    def consumer_class(self) -> type[_RabbitmqConsumer]:
        """The consumer class, which rewrites messages."""
        return _FanoutConsumer

    def bind(self, queue_name: str, routing_key: str) -> None:
        """Copy messages with this routing key to this queue."""
        self.bindings[queue_name] = routing_key
        self.declare_queue(queue_name)

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        arguments: dict[str, Any] = super()._build_queue_arguments(queue_name)
        if self.queue_type == "quorum":
            arguments["x-queue-type"] = "quorum"
        return arguments

    def _declare_queue(self, queue_name: str) -> Any:
        declared = super()._declare_queue(queue_name)
        if queue_name in self.bindings:
            self.channel.exchange_declare(EXCHANGE, exchange_type="topic", durable=True)
            self.channel.queue_bind(queue_name, EXCHANGE, routing_key=self.bindings[queue_name])
        return declared

    def ensure(self) -> None:
        """Create the exchange, the queues and the bindings that are missing.

        Raises:
          BrokerUnreachable: RabbitMQ does not answer, or refuses.
        """
        with self.explained(), self._own_connection():
            for queue_name in sorted(self.get_declared_queues()):
                self.queues_pending.add(queue_name)
                self._ensure_queue(queue_name)

    def check(self) -> None:
        """Create what is missing, and test that this login may consume, and that RabbitMQ accepts messages.

        Raises:
          BrokerUnreachable: it does not work, with the reason and what to do.
        """
        self.ensure()
        with self.explained(), connect(self.address, self.seconds) as connection:
            channel = connection.channel()
            channel.basic_qos(prefetch_count=1)
            for queue_name in sorted(self.get_declared_queues())[:1]:
                # Closing the channel returns a message that arrives meanwhile.
                channel.basic_consume(queue_name, lambda *_: None)
        self.probe()

    def probe(self) -> None:
        """Publish a message that no queue receives, over a connection of its own.

        Raises:
          BrokerUnreachable: RabbitMQ does not answer, or accepts no messages.
        """
        with self.explained(), connect(self.address, self.seconds) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.basic_publish("", _PROBE, b"")
            channel.close()  # an alarm lets the first message through, and answers nothing after it

    def publish_change(self, catalogue: str, record_ids: Sequence[str]) -> None:
        """Publish to the exchange, and wait until RabbitMQ has stored the message.

        Raises:
          BrokerUnreachable: it could not be published.
        """
        body = fanout_message(catalogue, record_ids).encode()
        properties = pika.BasicProperties(delivery_mode=2, content_type="application/json", type=catalogue)
        self._refuse_while_paused()
        with self.explained(), self._own_connection():
            for attempt in range(1, _PUBLISH_ATTEMPTS + 1):
                try:
                    self.channel.basic_publish(EXCHANGE, catalogue, body, properties, mandatory=True)
                    return
                except pika.exceptions.NackError:
                    raise
                except _CONNECTION_ERRORS as error:
                    del self.connection
                    if attempt == _PUBLISH_ATTEMPTS:
                        raise
                    if isinstance(error, pika.exceptions.AMQPChannelError):
                        self.ensure()  # the exchange or all queues are missing

    def enqueue(self, message: dramatiq.Message[Any], *, delay: int | None = None) -> dramatiq.Message[Any]:
        """Publish a message to its queue, `delay` milliseconds from now.

        Raises:
          BrokerUnreachable: it could not be published.
        """
        self._refuse_while_paused()
        with self.explained(), self._own_connection():
            super().enqueue(message, delay=delay)
        return message

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> dramatiq.Consumer:
        """Return a consumer of a queue; a missing queue is created.

        Raises:
          BrokerUnreachable: RabbitMQ does not answer, or refuses.
        """
        with self.explained(), self._own_connection():
            consumer: dramatiq.Consumer = super().consume(queue_name, prefetch, timeout)
        return consumer

    def depth(self, queue_name: str) -> int:
        """Return the number of messages ready in a queue; a missing queue is created.

        Raises:
          BrokerUnreachable: RabbitMQ does not answer.
        """
        with self.explained(), self._own_connection():
            for _ in range(2):
                try:
                    return int(self.channel.queue_declare(queue_name, passive=True).method.message_count)
                except pika.exceptions.ChannelClosedByBroker:
                    del self.connection
                    self.ensure()
                except _CONNECTION_ERRORS:
                    del self.connection  # the server closed the idle connection
        raise BrokerUnreachable(f"RabbitMQ does not answer at {place(self.address)}")

    def inspect_queues(self, names: Iterable[str]) -> dict[str, tuple[int, int | None]]:
        """Return queue -> (messages ready, consumers) for those queues that exist, by passive declares.

        This uses a connection of its own.

        Raises:
          BrokerUnreachable: RabbitMQ does not answer.
        """
        found: dict[str, tuple[int, int | None]] = {}
        with self.explained(), connect(self.address, self.seconds) as connection:
            channel = connection.channel()
            for name in names:
                try:
                    declared = channel.queue_declare(name, passive=True).method
                    found[name] = (int(declared.message_count), int(declared.consumer_count))
                except pika.exceptions.ChannelClosedByBroker as error:
                    if error.reply_code != _NOT_FOUND:
                        raise
                    channel = connection.channel()
        return found

    def close(self) -> None:
        """Close all connections, within `seconds` altogether if RabbitMQ does not answer."""
        for connection in list(self.connections):
            try:
                with self.closing(connection):
                    connection.close()
            except BrokerUnreachable as error:
                logger.debug("cannot close a connection: %s", error)

    # --- trouble ------------------------------------------------------------------------------------------

    def _refuse_while_paused(self) -> None:
        if self._trouble is not None and time.monotonic() < self._paused_until:
            raise type(self._trouble)(str(self._trouble))

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise the errors of pika and Dramatiq as BrokerUnreachable, with the reason."""
        try:
            yield
        except (ConnectionClosed, OSError, pika.exceptions.AMQPError) as error:
            if isinstance(cause_of(error), pika.exceptions.NackError):
                # The other queues have the message. The sweep repeats it to this one when it is empty.
                logger.warning("RabbitMQ at %s refuses a message: %s", place(self.address), _QUEUE_IS_FULL)
                return
            explained = explain(error, self.address)
            if explained.pauses:
                self._trouble, self._paused_until = explained, time.monotonic() + _PAUSE_SECONDS
            raise explained from None

    @contextmanager
    def _own_connection(self) -> Iterator[None]:
        """Forget this thread's connection after an error that ended it."""
        try:
            yield
        except BrokerUnreachable:
            del self.connection
            raise

    def closing(self, connection: Any) -> AbstractContextManager[None]:
        """Close a connection in the block, within the time that is left for it."""
        connection.seconds = _HURRIED_SECONDS if time.monotonic() < self._paused_until else self.seconds
        return self.explained()


class _FanoutConsumer(_RabbitmqConsumer):
    """Replaces the queue of each message by its own, and the actor of a published change.

    An envelope with another queue would end Dramatiq's worker thread, whatever its sender.
    """

    broker: RabbitmqFanout

    def __init__(self, broker: RabbitmqFanout, queue_name: str, prefetch: int, timeout: int) -> None:
        self.broker = broker
        self.queue_name = queue_name
        self.logger = get_logger(__name__, type(self))
        self.known_tags: set[int] = set()
        with broker.explained():
            self.connection = broker.connect_consumer()
            self.channel = self.connection.channel()
            self.channel.basic_qos(prefetch_count=prefetch)
            self.iterator = self.channel.consume(queue_name, inactivity_timeout=timeout / 1000)

    def __next__(self) -> MessageProxy | None:
        with self.broker.explained():
            proxy: Any = super().__next__()
        if proxy is None:
            return None
        if not _is_valid(proxy._message):
            logger.error("%s: rejected an invalid message; it is in the .XQ queue", self.queue_name)
            self.nack(proxy)
            return None
        proxy._message = addressed_to(proxy._message, self.queue_name)
        rewritten: MessageProxy = proxy
        return rewritten

    def close(self) -> None:
        with self.broker.closing(self.connection):
            super().close()


def _is_valid(message: Any) -> bool:
    """Whether the envelope has the types that Dramatiq assumes; an invalid one would be redelivered forever."""
    return (
        isinstance(message.actor_name, str)
        and isinstance(message.kwargs, dict)
        and isinstance(message.options, dict)
        and "throws" not in message.options  # it names classes, which JSON cannot represent
    )
