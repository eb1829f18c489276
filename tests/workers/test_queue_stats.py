"""Queue depths: from RabbitMQ's management API, from passive declares, and when neither answers."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from broker import BrokerUnreachable, LocalFanout, RabbitmqFanout
from conductor import QueueReport, QueueState
from settings import Settings
from workers.queue_stats import Management, Queues

#: The answer of RabbitMQ 3.10.8 to GET /api/queues/{vhost}?columns=... It was recorded by hand from a private node,
#: which takes longer to start than all these tests. One queue was just created and has no numbers yet.
ANSWER = [
    {"consumers": 2, "messages_ready": 7, "messages_unacknowledged": 3, "name": "crm.customer"},
    {"name": "shop.customer"},
    {"consumers": 1, "messages_ready": 1, "messages_unacknowledged": 0, "name": "somebody.else"},
]


@contextmanager
def management(status: int = 200, body: Any = ANSWER) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Serve a management API on its own port; yield its address and a list of (path, login) of each request."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            login = base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode()
            asked.append((self.path.partition("?")[0], login))
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_arguments: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def settled(queues: Queues) -> QueueReport:
    """Wait for the first reading and return it."""
    deadline = time.monotonic() + 20
    while (report := queues.latest()).at is None:
        assert time.monotonic() < deadline
    return report


def test_the_management_request_uses_the_brokers_login() -> None:
    with management() as (host, asked):
        settings = Settings(broker_url="amqp://me:p%40ss@h/my%2Fhost", rabbitmq_management_url=f"http://{host}/")
        queues = Queues(LocalFanout(), Management.from_settings(settings))
        queues.names = ["crm.customer", "shop.customer"]
        report = settled(queues)
    assert report.source == "management" and report.error is None
    assert report.queues == {
        "crm.customer": QueueState("crm.customer", 7, 3, 2),
        "shop.customer": QueueState("shop.customer", 0, None, None),
    }
    assert asked == [("/api/queues/my%2Fhost", "me:p@ss")]


def test_a_login_in_the_management_address_takes_precedence_and_is_never_shown() -> None:
    settings = Settings(broker_url="amqp://me:mine@h", rabbitmq_management_url="https://you:yours@h:15671/rabbit")
    assert settings.management_page == "https://h:15671/rabbit"
    assert Management.from_settings(settings) == Management("https://h:15671/rabbit", ("you", "yours"), "/")
    assert Management.from_settings(Settings(rabbitmq_management_url="https://h")) is None  # standalone has no RabbitMQ


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        # RabbitMQ 3.10.8: a wrong password, a user without the tag, another user's virtual host; a missing one.
        (401, {"error": "not_authorized", "reason": "Login failed"}, "answers 401: Login failed$"),
        (401, {"error": "not_authorised", "reason": "Not management user"}, "answers 401: Not management user$"),
        (404, {"error": "Object Not Found", "reason": "Not Found"}, "answers 404: Not Found$"),
        (401, {}, "answers 401$"),
        (200, {"error": "x"}, "without its queues"),
        (302, [], "answers 302"),
    ],
)
def test_a_management_error_is_reported_without_the_login(status: int, body: Any, words: str) -> None:
    with management(status, body) as (host, _asked), pytest.raises(BrokerUnreachable, match=words) as said:
        Management(f"http://{host}", ("me", "s3cret"), "/").read()
    assert "s3cret" not in str(said.value)


def test_without_the_management_the_queues_are_declared_passively(rabbitmq_url: str) -> None:
    broker = RabbitmqFanout(rabbitmq_url, "classic")
    try:
        broker.bind("crm.customer", "customer")
        broker.ensure()
        broker.channel.queue_purge("crm.customer")
        broker.publish_change("customer", ["1"])
        queues = Queues(broker, Management("http://127.0.0.1:1", ("me", "s3cret"), "/"))
        queues.names = ["no.such.queue", "crm.customer"]
        report = settled(queues)
        broker.channel.queue_delete("crm.customer")
    finally:
        broker.close()
    assert (report.source, report.error) == ("broker", None)
    assert report.note == "RabbitMQ's management plugin does not answer: ConnectionError"
    assert report.queues == {"crm.customer": QueueState("crm.customer", 1, None, 0)}


def test_an_unreachable_management_is_reported_and_retried() -> None:
    now = [0.0]
    broker = RabbitmqFanout("amqp://me:s3cret@127.0.0.1:1", "classic")
    queues = Queues(broker, clock=lambda: now[0])
    queues.names = ["crm.customer"]
    report = settled(queues)
    assert report.error is not None and "does not answer" in report.error and "s3cret" not in report.error
    assert queues.latest() is report
    queues.broker = LocalFanout()
    queues.broker.declare_queue("crm.customer")
    now[0] += 60
    deadline = time.monotonic() + 20
    while queues.latest().error is not None:  # until then the page shows the last reading without waiting
        assert time.monotonic() < deadline
    assert queues.latest().queues == {"crm.customer": QueueState("crm.customer", 0, None, None)}
