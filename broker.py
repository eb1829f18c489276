"""The Dramatiq broker: one topic exchange, a durable queue per subscriber, and the same in process.

A change is published once to the exchange `syncflow.changes` with the catalogue as routing key;
RabbitMQ copies it to the queue of every subscriber bound to that catalogue. Dramatiq's envelope
names one queue and one actor, so a consumer rewrites it to its own: one published message becomes
each subscriber's own actor call. Dead letters live in the ledger; the `.XQ` queues hold only
messages that nobody could read.
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

#: The exchange every change goes through. Any AMQP consumer may bind a queue of its own to it.
EXCHANGE = "syncflow.changes"

#: The actor a published change names; each consumer puts its own in its place.
FANOUT_ACTOR = "deliver"

#: A periodic tick older than this many seconds is dropped: the schedule's slots catch up by themselves.
_TICK_LATE = 50

#: Times a publish is tried over a new connection before it is given up.
_PUBLISH_TRIES = 3

_CONNECTION_ERRORS = (pika.exceptions.AMQPConnectionError, pika.exceptions.AMQPChannelError)


#: What pika wraps -> what it means.
_CAUSES = {
    "ConnectionRefusedError": "nothing listens there",
    "gaierror": "there is no such host",
    "Timeout": "no answer in time",
    "StreamLostError": "the connection was cut",
    "ConnectionResetError": "the connection was cut",
}


class BrokerUnreachable(Exception):
    """The broker does not answer; what was to be announced is still owed in the ledger."""


class OrjsonEncoder(Encoder):
    """Dramatiq's messages as JSON, by the faster codec."""

    def encode(self, data: dict[str, Any]) -> bytes:
        """The message's fields as JSON."""
        # A copy: what orjson returns keeps all the room it was written in, 32 kB, and messages may wait in memory.
        return bytes(memoryview(orjson.dumps(data)))

    def decode(self, data: bytes) -> dict[str, Any]:
        """JSON as the message's fields."""
        fields: dict[str, Any] = orjson.loads(data)
        return fields


def _middleware() -> list[Middleware]:
    return [Retries(), ShutdownNotifications(), PeriodiqMiddleware(skip_delay=_TICK_LATE)]


def fanout_message(catalogue: str, record_ids: Sequence[str]) -> dramatiq.Message[Any]:
    """A change as it is published: ids, never data."""
    return dramatiq.Message(
        queue_name=EXCHANGE,
        actor_name=FANOUT_ACTOR,
        args=(),
        kwargs={"catalogue": catalogue, "record_ids": list(record_ids)},
        options={},
    )


class RabbitmqFanout(RabbitmqBroker):
    """Dramatiq's RabbitMQ broker with the exchange, the bindings and the rewriting consumer."""

    def __init__(self, url: str, queue_type: str) -> None:
        super().__init__(url=url, confirm_delivery=True, middleware=_middleware())
        self.url = url
        self.queue_type = queue_type
        #: Queue -> routing key.
        self.bindings: dict[str, str] = {}
        self._depth_lock = threading.Lock()

    @RabbitmqBroker.connection.getter  # type: ignore[attr-defined,untyped-decorator]
    def connection(self) -> pika.BlockingConnection:
        """This thread's connection; a host name that cannot be resolved is a broker that does not answer."""
        try:
            return RabbitmqBroker.connection.fget(self)  # type: ignore[attr-defined,no-any-return]
        except OSError as error:
            raise pika.exceptions.AMQPConnectionError(repr(error)) from None

    @property
    def consumer_class(self) -> type[_RabbitmqConsumer]:
        """The consumer that makes each message its queue's own."""
        return _FanoutConsumer

    def bind(self, queue_name: str, routing_key: str) -> None:
        """Have this queue get a copy of what is published with this routing key."""
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
        """Create the exchange, the queues and the bindings, where they are missing.

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
        """What stands in the way, in words; never the login."""
        parameters = pika.URLParameters(self.url)
        where, said = f"{parameters.host}:{parameters.port}", repr(error)
        if "ProbableAuthenticationError" in said:
            return BrokerUnreachable(f"RabbitMQ at {where} refuses the login; see BROKER_URL")
        if "ProbableAccessDeniedError" in said or "NOT_ALLOWED" in said:
            missing_permissions = f"no virtual host {parameters.virtual_host!r} for this login"
            return BrokerUnreachable(f"RabbitMQ at {where} has {missing_permissions}; see BROKER_URL")
        why = next((words for name, words in _CAUSES.items() if name in said), None)
        return BrokerUnreachable(f"RabbitMQ does not answer at {where}: {why or type(error).__name__}")

    def publish_change(self, catalogue: str, record_ids: Sequence[str]) -> None:
        """Publish to the exchange and wait until RabbitMQ has it on disk.

        Raises:
          BrokerUnreachable: it could not be published.
        """
        body = fanout_message(catalogue, record_ids).encode()
        properties = pika.BasicProperties(delivery_mode=2, content_type="application/json", type=catalogue)
        for attempt in range(1, _PUBLISH_TRIES + 1):
            try:
                self.channel.basic_publish(EXCHANGE, catalogue, body, properties, mandatory=True)
                return
            except _CONNECTION_ERRORS as error:
                del self.connection
                if attempt == _PUBLISH_TRIES:
                    raise self._unreachable(error) from None
                if isinstance(error, pika.exceptions.AMQPChannelError):
                    self.ensure()  # the exchange or all queues are gone: wiped, or never there

    def depth(self, queue_name: str) -> int:
        """Messages ready in a queue; a missing queue is created anew and empty.

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
                del self.connection  # an idle connection the server closed: the next one will do
        raise BrokerUnreachable("RabbitMQ does not answer")

    def inspect_queues(self, names: Iterable[str], timeout: float) -> dict[str, tuple[int, int | None]]:
        """Messages ready and consumers of those queues that exist, by passive declares.

        Over a connection of its own, closed again: who looks on behalf of a person must not wait longer than `timeout`
        seconds for an answer, and is nobody's worker.

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
                        said = channel.queue_declare(name, passive=True).method
                        found[name] = (int(said.message_count), int(said.consumer_count))
                    except pika.exceptions.ChannelClosedByBroker:  # no such queue
                        channel = connection.channel()
        except (OSError, *_CONNECTION_ERRORS) as error:
            raise self._unreachable(error) from None
        return found


class _FanoutConsumer(_RabbitmqConsumer):
    """Gives each message this queue's name and, for a fanned-out one, this queue's actor.

    An envelope that names another queue would kill Dramatiq's worker thread, whoever sent it.
    """

    def __next__(self) -> MessageProxy | None:
        proxy: Any = super().__next__()
        if proxy is None:
            return None
        if not _is_sound(proxy._message):
            logger.error("%s: a message no actor can be called with is set aside", self.queue_name)
            self.nack(proxy)
            return None
        proxy._message = _own(proxy._message, self.queue_name)
        sound: MessageProxy = proxy
        return sound


def _is_sound(message: Any) -> bool:
    """Whether the envelope's fields are what Dramatiq takes for granted; else it would be read again for ever."""
    return (
        isinstance(message.actor_name, str)
        and isinstance(message.kwargs, dict)
        and isinstance(message.options, dict)
        and "throws" not in message.options  # names classes, which JSON cannot carry
    )


def _own(message: dramatiq.Message[Any], queue_name: str) -> dramatiq.Message[Any]:
    actor = queue_name if message.actor_name == FANOUT_ACTOR else message.actor_name
    return replace(message, queue_name=queue_name, actor_name=actor)


class LocalFanout(StubBroker):
    """The same in process: queues in memory, for one process that is web, relay, worker and scheduler.

    What is in them when the process ends is lost, and announced again from the ledger at the next start.
    """

    def __init__(self) -> None:
        super().__init__(middleware=_middleware())
        self.bindings: dict[str, str] = {}

    def bind(self, queue_name: str, routing_key: str) -> None:
        """Have this queue get a copy of what is published with this routing key."""
        self.bindings[queue_name] = routing_key
        self.declare_queue(queue_name)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 100) -> dramatiq.Consumer:
        """A consumer that keeps no dead messages."""
        try:
            return _LocalConsumer(self.queues[queue_name], [], prefetch, timeout)
        except KeyError:
            raise QueueNotFound(queue_name) from None

    def ensure(self) -> None:
        """Nothing to create: queues come with their declaration."""

    def publish_change(self, catalogue: str, record_ids: Sequence[str]) -> None:
        """Copy the change to the queue of every subscriber bound to the catalogue."""
        message = fanout_message(catalogue, record_ids)
        for queue_name, routing_key in self.bindings.items():
            if routing_key == catalogue:
                self.enqueue(_own(message, queue_name))

    def depth(self, queue_name: str) -> int:
        """Messages waiting in a queue."""
        return int(self.queues[queue_name].qsize())

    def inspect_queues(self, names: Iterable[str], timeout: float) -> dict[str, tuple[int, int | None]]:
        """Messages waiting in those queues; who reads them is this process itself."""
        return {name: (int(self.queues[name].qsize()), None) for name in names if name in self.queues}


class _LocalConsumer(_StubConsumer):
    """Dramatiq's stub remembers failed messages for tests; a hub that runs for months must not."""

    def nack(self, message: MessageProxy) -> None:
        logger.error("message given up: %s", message)
        self.ack(message)


Fanout = RabbitmqFanout | LocalFanout


def make_broker(settings: Settings) -> Fanout:
    """The broker the settings ask for, also made Dramatiq's global one."""
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # it logs a traceback for every lost connection
    local = settings.standalone
    broker: Fanout = LocalFanout() if local else RabbitmqFanout(settings.broker_url, settings.queue_type)
    dramatiq.set_encoder(OrjsonEncoder())
    dramatiq.set_broker(broker)
    return broker
