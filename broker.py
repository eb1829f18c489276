"""The Dramatiq broker: a topic exchange and a durable queue per subscriber, or the same within one process.

A change is published once to the exchange `syncflow.changes`, with the catalogue as routing key.
RabbitMQ copies it to the queue of every subscriber of that catalogue. Dramatiq's envelope names one
queue and one actor, so each consumer replaces them by its own: one published message becomes one
actor call per subscriber. Dead letters are in the ledger; the `.XQ` queues hold only messages that
cannot be parsed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import dramatiq
import orjson
import pika
import pika.exceptions
from dramatiq.broker import MessageProxy
from dramatiq.brokers.rabbitmq import RabbitmqBroker, _RabbitmqConsumer
from dramatiq.brokers.stub import StubBroker, _StubConsumer
from dramatiq.encoder import Encoder
from dramatiq.errors import ConnectionClosed, QueueNotFound
from dramatiq.middleware import Middleware, Retries, ShutdownNotifications
from periodiq import PeriodiqMiddleware

from settings import Settings

logger = logging.getLogger(__name__)

#: The exchange for all changes. Any AMQP consumer may bind a queue of its own to it.
EXCHANGE = "syncflow.changes"

#: The actor in a published change; each consumer replaces it by its own.
FANOUT_ACTOR = "deliver"

#: A periodic tick older than this is dropped: the next tick starts all jobs that are due.
_MAX_TICK_AGE_SECONDS = 50

#: Attempts of a publish, each over a new connection.
_PUBLISH_ATTEMPTS = 3

_CONNECTION_ERRORS = (pika.exceptions.AMQPConnectionError, pika.exceptions.AMQPChannelError)


#: Name in the text of a pika error -> its cause.
_CAUSES = {
    "ConnectionRefusedError": "the connection is refused",
    "gaierror": "the host name is unknown",
    "Timeout": "the connection timed out",
    "StreamLostError": "the connection was closed",
    "ConnectionResetError": "the connection was closed",
}


class BrokerUnreachable(Exception):
    """The broker does not answer. Work that could not be published is still pending in the ledger."""


class OrjsonEncoder(Encoder):
    """Encode Dramatiq's messages as JSON with orjson."""

    def encode(self, data: dict[str, Any]) -> bytes:
        """Return the fields of a message as JSON."""
        # Copied: the result of orjson keeps its whole buffer of 32 kB, and messages may wait in memory.
        return bytes(memoryview(orjson.dumps(data)))

    def decode(self, data: bytes) -> dict[str, Any]:
        """Return the fields of a message from JSON."""
        fields: dict[str, Any] = orjson.loads(data)
        return fields


def _middleware() -> list[Middleware]:
    return [Retries(), ShutdownNotifications(), PeriodiqMiddleware(skip_delay=_MAX_TICK_AGE_SECONDS)]


def fanout_message(catalogue: str, record_ids: Sequence[str]) -> dramatiq.Message[Any]:
    """Return the message that publishes a change: ids, never data."""
    return dramatiq.Message(
        queue_name=EXCHANGE,
        actor_name=FANOUT_ACTOR,
        args=(),
        kwargs={"catalogue": catalogue, "record_ids": list(record_ids)},
        options={},
    )


class RabbitmqFanout(RabbitmqBroker):
    """Dramatiq's RabbitMQ broker with the exchange, the bindings, and the consumer that rewrites messages."""

    def __init__(self, url: str, queue_type: str) -> None:
        super().__init__(url=url, confirm_delivery=True, middleware=_middleware())
        self.url = url
        self.queue_type = queue_type
        #: Queue -> routing key.
        self.bindings: dict[str, str] = {}
        self._depth_lock = threading.Lock()

    @RabbitmqBroker.connection.getter  # type: ignore[attr-defined,untyped-decorator]
    def connection(self) -> pika.BlockingConnection:
        """This thread's connection. An unknown host name raises the error of a broker that does not answer."""
        try:
            return RabbitmqBroker.connection.fget(self)  # type: ignore[attr-defined,no-any-return]
        except OSError as error:
            raise pika.exceptions.AMQPConnectionError(repr(error)) from None

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
          BrokerUnreachable: RabbitMQ does not answer.
        """
        try:
            for queue_name in sorted(self.get_declared_queues()):
                self.queues_pending.add(queue_name)
                self._ensure_queue(queue_name)
        except (ConnectionClosed, *_CONNECTION_ERRORS) as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: BaseException) -> BrokerUnreachable:
        """Return an error with the cause, and never the login."""
        parameters = pika.URLParameters(self.url)
        where, details = f"{parameters.host}:{parameters.port}", repr(error)
        if "ProbableAuthenticationError" in details:
            return BrokerUnreachable(f"RabbitMQ at {where} refuses the login: check BROKER_URL")
        if "ProbableAccessDeniedError" in details or "NOT_ALLOWED" in details:
            host = f"virtual host {parameters.virtual_host!r}"
            return BrokerUnreachable(f"RabbitMQ at {where} has no {host} for this login: check BROKER_URL")
        cause = next((cause for name, cause in _CAUSES.items() if name in details), None)
        return BrokerUnreachable(f"RabbitMQ does not answer at {where}: {cause or type(error).__name__}")

    def publish_change(self, catalogue: str, record_ids: Sequence[str]) -> None:
        """Publish to the exchange, and wait until RabbitMQ has stored the message.

        Raises:
          BrokerUnreachable: it could not be published.
        """
        body = fanout_message(catalogue, record_ids).encode()
        properties = pika.BasicProperties(delivery_mode=2, content_type="application/json", type=catalogue)
        for attempt in range(1, _PUBLISH_ATTEMPTS + 1):
            try:
                self.channel.basic_publish(EXCHANGE, catalogue, body, properties, mandatory=True)
                return
            except _CONNECTION_ERRORS as error:
                del self.connection
                if attempt == _PUBLISH_ATTEMPTS:
                    raise self._unreachable(error) from None
                if isinstance(error, pika.exceptions.AMQPChannelError):
                    self.ensure()  # the exchange or all queues are missing

    def depth(self, queue_name: str) -> int:
        """Return the number of messages ready in a queue; a missing queue is created.

        Raises:
          BrokerUnreachable: RabbitMQ does not answer.
        """
        for _ in range(2):
            try:
                return int(self.channel.queue_declare(queue_name, passive=True).method.message_count)
            except pika.exceptions.ChannelClosedByBroker:
                del self.connection
                self.ensure()
            except _CONNECTION_ERRORS:
                del self.connection  # the server closed the idle connection
        raise BrokerUnreachable("RabbitMQ does not answer")

    def inspect_queues(self, names: Iterable[str], timeout: float) -> dict[str, tuple[int, int | None]]:
        """Return queue -> (messages ready, consumers) for those queues that exist, by passive declares.

        This uses a connection of its own, so that a page waits at most `timeout` seconds for each response.

        Raises:
          BrokerUnreachable: RabbitMQ does not answer.
        """
        parameters = pika.URLParameters(self.url)
        parameters.socket_timeout = parameters.stack_timeout = parameters.blocked_connection_timeout = timeout
        parameters.connection_attempts = 1
        found: dict[str, tuple[int, int | None]] = {}
        try:
            with pika.BlockingConnection(parameters) as connection:
                channel = connection.channel()
                for name in names:
                    try:
                        declared = channel.queue_declare(name, passive=True).method
                        found[name] = (int(declared.message_count), int(declared.consumer_count))
                    except pika.exceptions.ChannelClosedByBroker:  # no such queue
                        channel = connection.channel()
        except (OSError, *_CONNECTION_ERRORS) as error:
            raise self._unreachable(error) from None
        return found


class _FanoutConsumer(_RabbitmqConsumer):
    """Replaces the queue of each message by its own, and the actor of a published change.

    An envelope with another queue would end Dramatiq's worker thread, whatever its sender.
    """

    def __next__(self) -> MessageProxy | None:
        proxy: Any = super().__next__()
        if proxy is None:
            return None
        if not _is_valid(proxy._message):
            logger.error("%s: rejected an invalid message; it is in the .XQ queue", self.queue_name)
            self.nack(proxy)
            return None
        proxy._message = _addressed_to(proxy._message, self.queue_name)
        rewritten: MessageProxy = proxy
        return rewritten


def _is_valid(message: Any) -> bool:
    """Whether the envelope has the types that Dramatiq assumes; an invalid one would be redelivered forever."""
    return (
        isinstance(message.actor_name, str)
        and isinstance(message.kwargs, dict)
        and isinstance(message.options, dict)
        and "throws" not in message.options  # it names classes, which JSON cannot represent
    )


def _addressed_to(message: dramatiq.Message[Any], queue_name: str) -> dramatiq.Message[Any]:
    actor = queue_name if message.actor_name == FANOUT_ACTOR else message.actor_name
    return replace(message, queue_name=queue_name, actor_name=actor)


class LocalFanout(StubBroker):
    """Queues in memory, for one process that is web, relay, worker and scheduler.

    Messages are lost when the process ends; the next start publishes pending work from the ledger again.
    """

    def __init__(self) -> None:
        super().__init__(middleware=_middleware())
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

    def publish_change(self, catalogue: str, record_ids: Sequence[str]) -> None:
        """Copy the change to the queue of every subscriber of the catalogue."""
        message = fanout_message(catalogue, record_ids)
        for queue_name, routing_key in self.bindings.items():
            if routing_key == catalogue:
                self.enqueue(_addressed_to(message, queue_name))

    def depth(self, queue_name: str) -> int:
        """Return the number of messages in a queue."""
        return int(self.queues[queue_name].qsize())

    def inspect_queues(self, names: Iterable[str], timeout: float) -> dict[str, tuple[int, int | None]]:
        """Return queue -> (messages, None): the consumers are this process."""
        return {name: (int(self.queues[name].qsize()), None) for name in names if name in self.queues}


class _LocalConsumer(_StubConsumer):
    """Dramatiq's stub consumer without its list of failed messages, which would grow forever."""

    def nack(self, message: MessageProxy) -> None:
        logger.error("dropped a failed message: %s", message)
        self.ack(message)


Fanout = RabbitmqFanout | LocalFanout


def make_broker(settings: Settings) -> Fanout:
    """Return the broker for these settings, and make it Dramatiq's global broker."""
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # it logs a traceback for every lost connection
    local = settings.standalone
    broker: Fanout = LocalFanout() if local else RabbitmqFanout(settings.broker_url, settings.queue_type)
    dramatiq.set_encoder(OrjsonEncoder())
    dramatiq.set_broker(broker)
    return broker
