"""The broker: one publish delivers a copy to each bound subscriber, in RabbitMQ and in process."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import dramatiq
import pika
import pytest
from dramatiq import Worker

from broker import (
    EXCHANGE,
    BrokerUnreachable,
    Fanout,
    LocalFanout,
    OrjsonEncoder,
    RabbitmqFanout,
    fanout_message,
    make_broker,
)
from settings import Settings
from tests.support.wire import Wire

#: Seconds any condition below may take on a busy machine.
PATIENCE = 20.0


def until(condition: Callable[[], Any], what: str = "it never happened") -> Any:
    """Wait until the condition is true and return its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
    return value


@pytest.fixture(autouse=True)
def _encoder() -> Iterator[None]:
    before, pika_level = dramatiq.get_encoder(), logging.getLogger("pika").level
    dramatiq.set_encoder(OrjsonEncoder())
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    yield
    dramatiq.set_encoder(before)
    logging.getLogger("pika").setLevel(pika_level)


QUEUES = ("crm.customer", "shop.customer", "shop.product")


@pytest.fixture
def vhost(rabbitmq_url: str) -> str:
    """Return the tests' vhost without the exchange and queues of earlier tests."""
    with amqp(rabbitmq_url) as channel:
        channel.exchange_delete(EXCHANGE)
        for name in QUEUES:
            for suffix in ("", ".DQ", ".XQ"):
                channel.queue_delete(name + suffix)
    return rabbitmq_url


@pytest.fixture
def rabbitmq(vhost: str) -> Iterator[RabbitmqFanout]:
    broker = RabbitmqFanout(vhost, "classic")
    yield broker
    broker.close()


@pytest.fixture(params=["local", pytest.param("rabbitmq", marks=pytest.mark.services)])
def broker(request: pytest.FixtureRequest) -> Iterator[Fanout]:
    """Return each kind of broker with the customer queues of two systems and the product queue of one."""
    made: Fanout = LocalFanout() if request.param == "local" else request.getfixturevalue("rabbitmq")
    bind(made)
    yield made
    made.close()


def bind(broker: Fanout) -> None:
    broker.bind("crm.customer", "customer")
    broker.bind("shop.customer", "customer")
    broker.bind("shop.product", "product")
    broker.ensure()


@contextmanager
def amqp(url: str) -> Iterator[Any]:
    """Open a channel as another program does."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        yield connection.channel()
    finally:
        if connection.is_open:
            connection.close()


class Actors:
    """One actor per queue, as the workers create them; records the arguments of each call."""

    def __init__(self, broker: Fanout) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.failures: dict[str, int] = {}
        for name in sorted(broker.bindings):
            dramatiq.actor(broker=broker, actor_name=name, queue_name=name, min_backoff=10, max_backoff=10)(
                self._make(name)
            )

    def _make(self, name: str) -> Callable[..., None]:
        def deliver(record_ids: list[str], catalogue: str | None = None) -> None:
            self.calls.append((name, record_ids))
            if self.failures.get(name, 0) > 0:
                self.failures[name] -= 1
                raise ConnectionResetError("our own trouble")

        return deliver

    def of(self, name: str) -> list[Any]:
        return [what for who, what in list(self.calls) if who == name]


@contextmanager
def working(broker: Fanout) -> Iterator[Actors]:
    actors = Actors(broker)
    worker = Worker(broker, worker_timeout=50, worker_threads=2)
    worker.start()
    try:
        yield actors
    finally:
        worker.stop(10_000)


# --- both -------------------------------------------------------------------------------------------------


def test_a_change_becomes_each_bound_subscribers_own_call(broker: Fanout) -> None:
    with working(broker) as actors:
        broker.publish_change("customer", ["1", "2"])
        broker.publish_change("product", ["7"])
        until(lambda: len(actors.calls) == 3)
    assert sorted(actors.calls) == [
        ("crm.customer", ["1", "2"]),
        ("shop.customer", ["1", "2"]),
        ("shop.product", ["7"]),
    ]


def test_a_retry_goes_to_the_one_queue_it_concerns(broker: Fanout) -> None:
    with working(broker) as actors:
        actors.failures = {"crm.customer": 2}
        broker.publish_change("customer", ["1"])
        until(lambda: len(actors.of("crm.customer")) == 3)
        until(lambda: len(actors.of("shop.customer")) == 1)
    assert len(actors.calls) == 4


def test_depth_counts_what_waits(broker: Fanout) -> None:
    assert broker.depth("crm.customer") == 0
    for number in range(3):
        broker.publish_change("customer", [str(number)])
    until(lambda: broker.depth("crm.customer") == 3)
    assert broker.depth("shop.product") == 0
    with working(broker) as actors:
        until(lambda: len(actors.calls) == 6)
        until(lambda: broker.depth("crm.customer") == 0)


def test_the_message_carries_ids_and_no_data() -> None:
    fields = json.loads(fanout_message("customer", ["1", "2"]).encode())
    assert fields["kwargs"] == {"catalogue": "customer", "record_ids": ["1", "2"]}
    assert (fields["actor_name"], fields["queue_name"], fields["args"]) == ("deliver", EXCHANGE, [])


def test_in_process_a_message_given_up_is_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    broker = LocalFanout()
    bind(broker)
    with working(broker) as actors:
        broker.enqueue(dramatiq.Message("crm.customer", "nobody", (), {}, {}))
        broker.publish_change("customer", ["1"])
        until(lambda: len(actors.calls) == 2)
        until(lambda: "dropped a failed message" in caplog.text)
    assert all(len(letters) == 0 for letters in broker.dead_letters_by_queue.values())
    broker.close()


# --- RabbitMQ ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_exchange_queues_and_bindings_are_as_documented(vhost: str, queue_type: str) -> None:
    broker = RabbitmqFanout(vhost, queue_type)
    bind(broker)
    with amqp(vhost) as channel:
        # Declaring again succeeds only with identical properties.
        channel.exchange_declare(EXCHANGE, exchange_type="topic", durable=True)
        extra = {"x-queue-type": "quorum"} if queue_type == "quorum" else {}
        for name in QUEUES:
            arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{name}.XQ", **extra}
            channel.queue_declare(name, durable=True, arguments=arguments)
            channel.queue_declare(f"{name}.DQ", durable=True, arguments=arguments)
            channel.queue_declare(f"{name}.XQ", passive=True)
        # Another program's queue gets a copy too, persistent and readable.
        channel.queue_declare("warehouse", exclusive=True)
        channel.queue_bind("warehouse", EXCHANGE, routing_key="customer")
        broker.publish_change("customer", ["1"])
        method, properties, body = until(lambda: (got := channel.basic_get("warehouse", auto_ack=True))[0] and got)
        assert method.routing_key == "customer" and properties.delivery_mode == 2
        assert properties.content_type == "application/json" and properties.type == "customer"
        assert json.loads(body)["kwargs"] == {"catalogue": "customer", "record_ids": ["1"]}
        assert [broker.depth(name) for name in QUEUES] == [1, 1, 0]
    broker.close()


def test_quorum_queues_work(vhost: str) -> None:
    broker = RabbitmqFanout(vhost, "quorum")
    bind(broker)
    with working(broker) as actors:
        actors.failures = {"crm.customer": 1}
        broker.publish_change("customer", ["1"])
        until(lambda: len(actors.calls) == 3)
    broker.close()


ENVELOPE = json.loads(fanout_message("customer", ["foreign"]).encode())
FOREIGN = {
    "no JSON": b"\xff\x00 not json",
    "a list": b"[]",
    "empty": b"",
    "null": b"null",
    "another program's": json.dumps({"event": "hello"}).encode(),
    "no options": json.dumps({**ENVELOPE, "options": None}).encode(),
    "options are text": json.dumps({**ENVELOPE, "options": "eta"}).encode(),
    "kwargs are a list": json.dumps({**ENVELOPE, "kwargs": ["a"]}).encode(),
    "kwargs are unknown": json.dumps({**ENVELOPE, "kwargs": {"x": 1}, "options": {"max_retries": 0}}).encode(),
    "actor is a list": json.dumps({**ENVELOPE, "actor_name": []}).encode(),
    "actor is unknown": json.dumps({**ENVELOPE, "actor_name": "nobody"}).encode(),
    "throws is text": json.dumps({**ENVELOPE, "kwargs": {}, "options": {"throws": "x", "max_retries": 0}}).encode(),
    "retries are text": json.dumps({**ENVELOPE, "kwargs": {}, "options": {"retries": "x"}}).encode(),
    "eta is text": json.dumps({**ENVELOPE, "kwargs": {}, "options": {"eta": "soon", "max_retries": 0}}).encode(),
}


def test_no_foreign_message_kills_or_stops_the_worker(rabbitmq: RabbitmqFanout, vhost: str) -> None:
    bind(rabbitmq)
    with working(rabbitmq) as actors, amqp(vhost) as channel:
        for body in FOREIGN.values():
            # More of each than the worker has threads; one kind used to be redelivered forever.
            for _ in range(3):
                channel.basic_publish("", "crm.customer", body)
        rabbitmq.publish_change("customer", ["after"])
        until(lambda: ["after"] in actors.of("crm.customer"), "a foreign message stopped the worker")
        until(lambda: ["after"] in actors.of("shop.customer"))
        until(lambda: rabbitmq.get_queue_message_counts("crm.customer")[:2] == (0, 0), "something goes round")
        for _ in range(4):
            rabbitmq.publish_change("customer", ["again"])
        until(lambda: actors.of("crm.customer").count(["again"]) == 4)
    # Unreadable messages are set aside, and no message is left unacknowledged.
    in_queue, delayed, aside = rabbitmq.get_queue_message_counts("crm.customer")
    assert (in_queue, delayed) == (0, 0) and aside > len(FOREIGN)


def test_an_envelope_that_names_another_queue_is_worked_off_where_it_is(rabbitmq: RabbitmqFanout, vhost: str) -> None:
    bind(rabbitmq)
    with working(rabbitmq) as actors, amqp(vhost) as channel:
        for number in range(4):  # more than the worker has threads
            envelope = {**ENVELOPE, "queue_name": "no.such.queue", "message_id": str(number)}
            channel.basic_publish("", "crm.customer", json.dumps(envelope).encode())
        until(lambda: actors.of("crm.customer") == [["foreign"]] * 4)
        rabbitmq.publish_change("customer", ["after"])
        until(lambda: actors.of("crm.customer")[-1] == ["after"])


def test_a_wiped_broker_is_furnished_again_by_the_next_publish(rabbitmq: RabbitmqFanout, vhost: str) -> None:
    bind(rabbitmq)
    with amqp(vhost) as channel:
        channel.exchange_delete(EXCHANGE)
        rabbitmq.publish_change("customer", ["1"])
        assert rabbitmq.depth("crm.customer") == rabbitmq.depth("shop.customer") == 1
        for name in QUEUES:
            channel.queue_delete(name)
        rabbitmq.publish_change("customer", ["2"])
        assert rabbitmq.depth("crm.customer") == rabbitmq.depth("shop.customer") == 1
        # A publish does not notice that one queue is missing; reading its depth does and declares it.
        channel.queue_delete("crm.customer")
        rabbitmq.publish_change("customer", ["3"])
        assert rabbitmq.depth("crm.customer") == 0
        rabbitmq.publish_change("customer", ["4"])
        assert (rabbitmq.depth("crm.customer"), rabbitmq.depth("shop.customer")) == (1, 3)
        # A message for a single queue declares that queue.
        channel.queue_delete("shop.product")
        rabbitmq.enqueue(dramatiq.Message("shop.product", "shop.product", (), {}, {}))
        assert rabbitmq.depth("shop.product") == 1


def test_a_consumer_whose_queue_is_deleted_comes_back(rabbitmq: RabbitmqFanout, vhost: str) -> None:
    bind(rabbitmq)
    with working(rabbitmq) as actors, amqp(vhost) as channel:
        rabbitmq.publish_change("customer", ["1"])
        until(lambda: len(actors.calls) == 2)
        channel.queue_delete("crm.customer")
        until(lambda: rabbitmq.depth("crm.customer") == 0)

        def arrived() -> bool:
            rabbitmq.publish_change("customer", ["2"])
            return ["2"] in actors.of("crm.customer")

        until(arrived)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_an_unreachable_broker_is_reported_immediately(host: str) -> None:
    broker = RabbitmqFanout(f"amqp://guest:guest@{host}:{closed_port()}/%2F", "classic")
    broker.bind("crm.customer", "customer")
    began = time.monotonic()
    for call in (
        lambda: broker.publish_change("customer", ["1"]),
        lambda: broker.depth("crm.customer"),
        broker.ensure,
    ):
        with pytest.raises(BrokerUnreachable, match="RabbitMQ does not answer"):
            call()
    assert time.monotonic() - began < PATIENCE
    broker.close()


def test_the_message_of_an_unreachable_broker_has_no_password() -> None:
    broker = RabbitmqFanout(f"amqp://guest:hunter2@127.0.0.1:{closed_port()}/%2F", "classic")
    broker.bind("crm.customer", "customer")
    with pytest.raises(BrokerUnreachable) as said:
        broker.publish_change("customer", ["1"])
    assert "hunter2" not in str(said.value)


@pytest.fixture
def wire(vhost: str) -> Iterator[Wire]:
    parts = urlsplit(vhost)
    wire = Wire(parts.hostname or "127.0.0.1", parts.port or 5672)
    yield wire
    wire.close()


def through(wire: Wire, url: str) -> str:
    """Return the URL of the broker behind a wire."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{wire.port}").geturl()


def test_an_idle_connection_that_was_closed_costs_nothing(wire: Wire, vhost: str) -> None:
    broker = RabbitmqFanout(through(wire, vhost), "classic")
    bind(broker)
    for number in range(1, 3):
        wire.cut()
        broker.publish_change("customer", [str(number)])
        wire.cut()
        assert broker.depth("crm.customer") == number
    wire.cut()
    broker.enqueue(dramatiq.Message("crm.customer", "crm.customer", (), {}, {}))
    wire.cut()
    broker.ensure()
    assert broker.depth("crm.customer") == 3
    broker.close()


def test_a_worker_with_cut_connections_reconnects(wire: Wire, vhost: str) -> None:
    broker = RabbitmqFanout(through(wire, vhost), "classic")
    bind(broker)
    with working(broker) as actors:
        broker.publish_change("customer", ["1"])
        until(lambda: len(actors.calls) == 2)
        wire.cut()
        broker.publish_change("customer", ["2"])
        until(lambda: ["2"] in actors.of("crm.customer") and ["2"] in actors.of("shop.customer"))
    broker.close()


def test_threads_that_publish_have_each_their_own_connection(rabbitmq: RabbitmqFanout) -> None:
    bind(rabbitmq)
    failures: list[BaseException] = []

    def publish() -> None:
        try:
            for _ in range(5):
                rabbitmq.publish_change("customer", ["1"])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and rabbitmq.depth("crm.customer") == 20


def test_make_broker_follows_the_settings() -> None:
    before = dramatiq.broker.global_broker
    try:
        local = make_broker(Settings(_env_file=None, broker_url="memory://"))
        remote = make_broker(
            Settings(_env_file=None, broker_url="amqp://guest:guest@127.0.0.1:1/", queue_type="quorum")
        )
        assert isinstance(local, LocalFanout) and isinstance(remote, RabbitmqFanout)
        assert remote.queue_type == "quorum" and dramatiq.get_broker() is remote
    finally:
        dramatiq.broker.global_broker = before


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (
            "amqp://guest:s3cret@{where}/%2F",
            r"^RabbitMQ at {where} refuses the login: ACCESS_REFUSED - Login was refused .*; check user",
        ),
        (
            "amqp://guest:guest@{where}/nowhere",
            r"^RabbitMQ at {where} refuses: NOT_ALLOWED - vhost nowhere not found; check the virtual host",
        ),
        ("amqp://guest:guest@127.0.0.1:1/", r"^RabbitMQ does not answer at 127\.0\.0\.1:1: the connection is refused$"),
        (
            "amqp://u:s3cret@nobody.invalid:5672/",
            r"^RabbitMQ does not answer at nobody.invalid:5672: the host name is unknown",
        ),
    ],
)
def test_a_wrong_broker_address_is_reported_in_one_line(rabbitmq_url: str, url: str, words: str) -> None:
    parts = urlsplit(rabbitmq_url)
    where = f"{parts.hostname}:{parts.port or 5672}"
    broker = RabbitmqFanout(url.format(where=where), "classic")
    broker.bind("crm.customer", "customer")
    for ask in (broker.ensure, lambda: broker.inspect_queues(["crm.customer"])):
        with pytest.raises(BrokerUnreachable, match=words.format(where=where)):
            ask()


def test_a_message_that_waits_in_memory_takes_no_more_room_than_it_is_long() -> None:
    fields, encoder = fanout_message("customer", [str(number) for number in range(200)]).asdict(), OrjsonEncoder()
    encoder.encode(fields)
    tracemalloc.start()
    try:
        waiting = [encoder.encode(fields) for _ in range(10)]
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken < 2 * sum(map(len, waiting))
