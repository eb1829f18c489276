"""Brokers, databases and processes that failed: docs/explanation/field-faults.md, group C."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dramatiq
import pika
import psycopg
import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient

from broker import BrokerBlocked, BrokerUnreachable, OrjsonEncoder, RabbitmqFanout
from cli import main
from models.ledger import Inbox
from models.ledger import Process as Started
from models.schema import is_current, migrate
from models.session import Database
from panel.app import create_app
from settings import ROOT, Settings, SettingsError, get_settings
from simulators.certificates import ensure_certificates
from tests.acceptance.processes import Process, ended_at_the_end, environment, family, free_port
from tests.support import services
from tests.support.private_postgresql import pgbouncer, private_postgresql, standby_of
from tests.support.private_rabbitmq import Node, private_rabbitmq
from tests.support.runtimes import Hub, add, until
from tests.support.wire import Wire
from workers.runtime import build
from workers.worker import wait_for_broker

#: A fleet runs on PostgreSQL.
fleet = pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)

#: Seconds that RabbitMQ may take to answer, short so that a test does not wait long.
BROKER_SECONDS = 1.0


@pytest.fixture(autouse=True)
def _encoder() -> Iterator[None]:
    before = dramatiq.get_encoder()
    dramatiq.set_encoder(OrjsonEncoder())
    yield
    dramatiq.set_encoder(before)


@pytest.fixture(scope="module")
def node(rabbitmq_server: str) -> Iterator[Node]:
    """Yield a private RabbitMQ node that the tests of this file share."""
    with private_rabbitmq("field") as running:
        yield running


@pytest.fixture
def vhost(node: Node) -> Iterator[str]:
    with node.vhost() as name:
        yield name


@pytest.fixture
def connect(node: Node, vhost: str) -> Iterator[Callable[..., RabbitmqFanout]]:
    """Yield a function that makes brokers on the vhost, with the queues of one subscriber."""
    with ExitStack() as stack:

        def make(url: str = "", queue_type: str = "classic", seconds: float = BROKER_SECONDS) -> RabbitmqFanout:
            broker = RabbitmqFanout(url or node.url(vhost), queue_type, seconds)
            broker.bind("crm.customer", "customer")
            stack.callback(broker.close)
            return broker

        yield make


@contextmanager
def panel_of(hub: Hub) -> Iterator[FlaskClient]:
    """Yield a client of the web application, as a probe or a system uses it."""
    yield create_app(hub.conductor, Settings(_env_file=None, secret_key="k" * 32)).test_client()


def bounded(work: Callable[[], Any], seconds: float) -> None:
    """Check that this work raises BrokerUnreachable within the given number of seconds."""
    began = time.monotonic()
    with pytest.raises(BrokerUnreachable):
        work()
    assert time.monotonic() - began < seconds


# C31: the broker blocks publishers


@fleet
def test_c31_a_webhook_is_answered_while_an_alarm_blocks_publishers(
    node: Node, connect: Callable[..., RabbitmqFanout], database: Database
) -> None:
    hub = Hub(database, "crm", broker=connect())
    hub.broker.ensure()
    with hub.working(), hub.relaying(), panel_of(hub) as client:
        with node.alarm("memory", "disk"):
            for number in range(5):
                assert (
                    client.post("/webhooks/crm", data=f"e{number} c{number}", headers={"X-Fake": "signed"}).status_code
                    == 202
                )
            until(lambda: client.get("/healthz").get_json()["broker"] == "blocked")
            assert client.get("/healthz").status_code == 200
            assert (client.get("/readyz").status_code, client.get("/readyz").get_json()["status"]) == (200, "ready")
            report = hub.conductor.reports.queues()
            assert (
                report.error is not None and "low on disk & memory" in report.error and "crm.customer" in report.queues
            )
            add(hub.database, "Ada")
            bounded(lambda: [hub.broker.publish_change("customer", ["1"]) for _ in range(3)], 5)
            with pytest.raises(BrokerBlocked, match="accepts no messages: low on disk & memory"):
                hub.broker.publish_change("customer", ["1"])
        until(lambda: hub.held("crm") == ["Ada"])
        waiting = sa.select(sa.func.count()).select_from(Inbox).where(Inbox.state == "waiting")
        until(lambda: database_value(database, waiting) == 0)
        until(lambda: client.get("/healthz").get_json()["broker"] == "ok")


def database_value(database: Database, statement: Any) -> Any:
    with database.read() as connection:
        return connection.execute(statement).scalar_one()


def test_c31_every_call_ends_while_the_broker_is_frozen(node: Node, connect: Callable[..., RabbitmqFanout]) -> None:
    used, fresh = connect(), connect()
    used.ensure()
    used.publish_change("customer", ["1"])
    used.seconds = fresh.seconds = used.connection.seconds = 0.2
    used.address.socket_timeout = used.address.stack_timeout = 0.2
    fresh.address.socket_timeout = fresh.address.stack_timeout = 0.2
    with node.frozen():
        for broker in (used, fresh):
            message: dramatiq.Message[Any] = dramatiq.Message("crm.customer", "crm.customer", (), {}, {})
            for work in (
                lambda b=broker: b.publish_change("customer", ["2"]),
                lambda b=broker, m=message: b.enqueue(m),
                lambda b=broker: b.depth("crm.customer"),
                broker.ensure,
                broker.probe,
                broker.check,
                lambda b=broker: b.inspect_queues(["crm.customer"]),
                lambda b=broker: b.consume("crm.customer"),
            ):
                bounded(work, 2)
    later = connect()
    later.publish_change("customer", ["3"])
    assert later.depth("crm.customer") >= 2


@fleet
def test_c31_a_worker_stops_within_its_grace_time_while_the_broker_is_frozen(
    node: Node, connect: Callable[..., RabbitmqFanout], database: Database
) -> None:
    hub = Hub(database, "crm", "shop", broker=connect())
    hub.broker.ensure()
    with ExitStack() as stack, hub.working() as pool:
        add(hub.database, "Ada")
        with hub.relaying():
            until(lambda: hub.held("crm") == hub.held("shop") == ["Ada"])
            stack.enter_context(node.frozen())
            add(hub.database, "Bob")
        began = time.monotonic()
        pool.stop()
        hub.broker.close()
        assert time.monotonic() - began < 10


def test_c31_a_full_queue_that_rejects_holds_up_no_other(
    node: Node, vhost: str, connect: Callable[..., RabbitmqFanout], caplog: pytest.LogCaptureFixture
) -> None:
    broker = connect()
    broker.bind("shop.customer", "customer")
    broker.ensure()
    node.put(
        f"policies/{vhost}/full", pattern="^crm.customer$", definition={"max-length": 1, "overflow": "reject-publish"}
    )
    message: dramatiq.Message[Any] = dramatiq.Message("crm.customer", "crm.customer", (), {}, {})

    def refused() -> bool:
        broker.publish_change("customer", ["1"])  # raises nothing: the sweep repeats what was refused
        broker.enqueue(message)
        return "has reached the length limit" in caplog.text

    until(refused)
    before = broker.depth("shop.customer")
    broker.publish_change("customer", ["2"])
    assert broker.depth("shop.customer") == before + 1


def test_c31_a_channel_that_was_closed_is_opened_again(node: Node, connect: Callable[..., RabbitmqFanout]) -> None:
    broker = connect()
    broker.ensure()
    with pytest.raises(pika.exceptions.ChannelClosedByBroker):
        broker.channel.queue_declare("no.such.queue", passive=True)
    broker.publish_change("customer", ["1"])
    assert broker.depth("crm.customer") == 1


# C32: a database that became read-only


def on(port: int, url: str) -> str:
    """Return a database URL with another port."""
    return sa.engine.make_url(url).set(host="127.0.0.1", port=port).render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def primary() -> Iterator[int]:
    """Yield the port of a private PostgreSQL server."""
    with private_postgresql("field") as port:
        yield port


@pytest.fixture(scope="module")
def standby(primary: int) -> Iterator[int]:
    """Yield the port of a streaming standby of `primary`."""
    with standby_of(primary) as port:
        yield port


@contextmanager
def wired(port: int) -> Iterator[Wire]:
    wire = Wire("127.0.0.1", port)
    try:
        yield wire
    finally:
        wire.close()


def accept(client: FlaskClient, name: str) -> int:
    """Send a webhook and return the status of the answer."""
    return client.post("/webhooks/crm", data=f"{name} {name}", headers={"X-Fake": "signed"}).status_code


def test_c32_connections_to_a_standby_are_dropped_after_a_failover(primary: int, standby: int) -> None:
    server = f"postgresql://postgres@127.0.0.1:{primary}/postgres"
    with services.fresh_database(server) as url, wired(primary) as wire:
        migrate(url)
        database = Database(on(wire.port, url))
        hub = Hub(database, "crm")
        with hub.working(), hub.relaying(), panel_of(hub) as client:
            add(database, "Ada")
            until(lambda: hub.held("crm") == ["Ada"])
            wire.target = "127.0.0.1", standby  # a virtual address that still leads to the old primary
            wire.cut()
            until(lambda: client.get("/readyz").get_json()["status"] == "the database is read-only")
            assert client.get("/readyz").status_code == accept(client, "e1") == 503
            assert client.get("/healthz").status_code == 200
            wire.target = "127.0.0.1", primary  # the connections to the standby stay open
            until(lambda: client.get("/readyz").status_code == 200)
            assert [accept(client, f"new{number}") for number in range(5)] == [202] * 5
            add(database, "Bob")
            until(lambda: hub.held("crm") == ["Ada", "Bob"])
        database.close()


def test_c32_target_session_attrs_finds_the_server_that_accepts_writes(primary: int, standby: int) -> None:
    server = f"postgresql://postgres@127.0.0.1:{primary}/postgres"
    hosts = f"host=127.0.0.1:{standby}&host=127.0.0.1:{primary}"
    url = f"postgresql://postgres@/postgres?{hosts}&target_session_attrs=read-write"
    for address, recovering in ((url, False), (on(standby, server), True)):
        database = Database(Settings(_env_file=None, database_url=address).database_url)
        assert database_value(database, sa.text("SELECT pg_is_in_recovery()")) is recovering
        database.close()


@fleet
def test_c32_connections_that_the_server_ends_are_replaced(database: Database, postgres_server: str) -> None:
    hub = Hub(database, "crm")
    with hub.working(), hub.relaying(), panel_of(hub) as client:
        assert accept(client, "e1") == 202
        with psycopg.connect(postgres_server, autocommit=True) as admin:
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            admin.execute(others, (database.url.database,))
        statuses = [accept(client, f"after{number}") for number in range(4)]
        assert set(statuses) <= {202, 503} and statuses[1:] == [202] * 3  # one connection shows it for all
        add(database, "Ada")
        until(lambda: "Ada" in hub.held("crm"))


@fleet
def test_c32_a_database_that_is_read_only_by_its_settings(database: Database, postgres_server: str) -> None:
    hub = Hub(database, "crm")
    with panel_of(hub) as client:
        assert accept(client, "e1") == 202
        with psycopg.connect(postgres_server, autocommit=True) as admin:
            for value, status in (("on", 503), ("off", 202)):
                admin.execute(f'ALTER DATABASE "{database.url.database}" SET default_transaction_read_only = {value}')
                if value == "on":
                    database.engine.dispose()
                assert accept(client, f"e-{value}") == status
                assert client.get("/readyz").status_code == (200 if status == 202 else 503)


# C33: connections that answer nothing


@pytest.fixture
def behind_wire(migrated_url: str) -> Iterator[tuple[str, Wire]]:
    """Yield the URL of the database behind a wire, and the wire."""
    with wired(sa.engine.make_url(migrated_url).port or 5432) as wire:
        yield on(wire.port, migrated_url), wire


@fleet
def test_c33_black_holed_connections_are_given_up_and_replaced(behind_wire: tuple[str, Wire]) -> None:
    url, wire = behind_wire
    database = Database(url, seconds=1.0)
    hub = Hub(database, "crm")
    with hub.working(), hub.relaying(), panel_of(hub) as client:
        add(database, "Ada")
        until(lambda: hub.held("crm") == ["Ada"])
        wire.freeze()
        began = time.monotonic()
        assert accept(client, "e1") == 503
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        assert time.monotonic() - began < 30
        wire.cut()
        wire.thaw()
        until(lambda: accept(client, "e2") in (200, 202))
        add(database, "Bob")
        until(lambda: {"Ada", "Bob"} <= set(hub.held("crm")))
    database.close()


@fleet
def test_c33_a_statement_that_takes_too_long_is_ended_by_the_server(database: Database) -> None:
    limited = Database(database.url.render_as_string(hide_password=False), seconds=0.3)
    with pytest.raises(sa.exc.OperationalError, match="statement timeout"), limited.read() as connection:
        connection.execute(sa.text("SELECT pg_sleep(10)"))
    assert database_value(limited, sa.text("SELECT 1")) == 1
    limited.close()


@fleet
def test_c33_every_connection_has_keepalives_unless_its_url_says_otherwise(migrated_url: str) -> None:
    for url, idle in ((migrated_url, "10"), (f"{migrated_url}?keepalives_idle=77", "77")):
        database = Database(url)
        with database.read() as connection:
            raw: Any = connection.connection.driver_connection
            given = raw.info.get_parameters()
            assert (given["keepalives_idle"], given["tcp_user_timeout"], given["connect_timeout"]) == (
                idle,
                "20000",
                "5",
            )
        database.close()


@fleet
def test_c33_sigterm_is_heard_while_the_database_answers_nothing(
    behind_wire: tuple[str, Wire], rabbitmq_vhost: Callable[[], str], tmp_path: Path
) -> None:
    url, wire = behind_wire
    settings = environment(
        DATABASE_URL=url, BROKER_URL=rabbitmq_vhost(), SYNCFLOW_VAR=str(tmp_path), SECRET_KEY="0123456789" * 4
    )
    with ended_at_the_end(settings):
        relay = Process("relay", ["./syncflow", "relay"], settings, tmp_path)
        database = Database(url)
        started = sa.select(sa.func.count()).select_from(Started)
        until(lambda: relay.runs and database_value(database, started) == 1)
        database.close()
        wire.freeze()
        assert relay.stop() == 0  # within its grace time of 20 s


# C34: a pooler in transaction mode


@fleet
@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
def test_c34_a_hub_behind_pgbouncer_leaves_no_session_state(
    migrated_url: str, postgres_server: str, pool_mode: str
) -> None:
    with pgbouncer(postgres_server, pool_mode) as port:
        url = on(port, migrated_url)
        database = Database(url, by_key=True, seconds=20.0, direct_url=migrated_url)
        hub = Hub(database, "crm", "shop")
        with hub.working(), hub.relaying(sweep_seconds=60):
            for number in range(12):  # more often than psycopg needs to prepare a statement
                add(database, f"n{number:02}")
                until(lambda n=number: len(hub.held("crm")) == len(hub.held("shop")) == n + 1)  # type: ignore[misc]
        assert not database.needs_direct_url
        with psycopg.connect(url.replace("+psycopg", ""), prepare_threshold=None) as other:
            assert other.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
            for name, value in (("enable_seqscan", "on"), ("statement_timeout", "0"), ("jit", "on")):
                assert other.execute(f"SHOW {name}").fetchone() == (value,)
        database.close()


@fleet
def test_c34_a_pooler_without_a_direct_url_is_refused_in_one_sentence(
    migrated_url: str, postgres_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pgbouncer(postgres_server) as port:
        settings = Settings(_env_file=None, database_url=on(port, migrated_url))
        with pytest.raises(
            SettingsError, match=r"^DATABASE_URL: it leads to a connection pooler such as PgBouncer, so set"
        ):
            build(settings)
        direct = Database(migrated_url)
        assert database_value(direct, sa.text("SELECT 1")) == 1 and not direct.needs_direct_url
        direct.close()


def test_c34_migrate_works_through_pgbouncer(postgres_server: str, postgres_url: str) -> None:
    with pgbouncer(postgres_server) as port:
        migrate(on(port, postgres_url))
        database = Database(postgres_url)
        assert is_current(database)
        database.close()


# C35: a broker that refuses, in its own words


def words_of(work: Callable[[], Any]) -> str:
    """Return the error of this work."""
    with pytest.raises(BrokerUnreachable) as caught:
        work()
    assert "guest:guest" not in str(caught.value) and "wrong-password" not in str(caught.value)
    return f"{caught.value.state}: {caught.value}"


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_c35_a_queue_of_another_type(
    node: Node, vhost: str, connect: Callable[..., RabbitmqFanout], queue_type: str
) -> None:
    connect(queue_type=queue_type).ensure()
    other = connect(queue_type="quorum" if queue_type == "classic" else "classic")
    for work in (other.ensure, other.check):
        words = words_of(work)
        assert words.startswith(f"refused: RabbitMQ at {node.host} refuses: PRECONDITION_FAILED - inequivalent arg")
        assert "'crm.customer" in words and "set QUEUE_TYPE" in words


def test_c35_an_exchange_of_another_type(node: Node, vhost: str, connect: Callable[..., RabbitmqFanout]) -> None:
    node.put(f"exchanges/{vhost}/syncflow.changes", type="fanout", durable=True)
    words = words_of(connect().ensure)
    assert "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'syncflow.changes'" in words


@pytest.mark.parametrize("missing", ["configure", "write", "read"])
def test_c35_a_user_without_a_permission(
    node: Node, vhost: str, connect: Callable[..., RabbitmqFanout], missing: str
) -> None:
    connect().ensure()
    node.put("users/poor", password="poor", tags="")
    node.put(f"permissions/{vhost}/poor", **{"configure": ".*", "write": ".*", "read": ".*", missing: "^$"})
    broker = connect(node.url(vhost, login="poor:poor"))
    words = words_of(broker.check)
    assert (
        words.startswith(f"refused: RabbitMQ at {node.host} refuses: ACCESS_REFUSED - ") and "set_permissions" in words
    )
    if missing == "write":
        assert "ACCESS_REFUSED" in words_of(lambda: broker.publish_change("customer", ["1"]))
    if missing == "read":
        assert "ACCESS_REFUSED" in words_of(lambda: broker.consume("crm.customer"))


def test_c35_a_wrong_password_and_a_missing_vhost(node: Node, connect: Callable[..., RabbitmqFanout]) -> None:
    for url, words in (
        (node.url(login="guest:wrong-password"), "refuses the login: ACCESS_REFUSED - Login was refused"),
        (node.url("nowhere"), "refuses: NOT_ALLOWED - vhost nowhere not found"),
    ):
        broker = connect(url)
        for work in (broker.ensure, broker.check, broker.probe, lambda b=broker: b.publish_change("customer", ["1"])):
            assert words in words_of(work)


def serve(answer: bytes | None, certificate: tuple[Path, Path] | None = None) -> int:
    """Serve connections that answer these bytes and close, or nothing at all for None; return the port."""
    server = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []

    def run() -> None:
        while True:
            connection, _ = server.accept()
            kept.append(connection)
            if certificate is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(*certificate)
                try:
                    connection = context.wrap_socket(connection, server_side=True)
                except OSError:
                    continue
            if answer is not None:
                connection.recv(100)
                connection.sendall(answer)
                connection.close()

    threading.Thread(target=run, daemon=True).start()
    return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    made = ensure_certificates(tmp_path_factory.mktemp("certificates"))
    return made.server, made.server_key


@pytest.mark.parametrize(
    ("scheme", "server", "words"),
    [
        ("amqp", "http", "refused: .* the port is not that of RabbitMQ, or needs TLS"),
        ("amqp", "silent", "unreachable: .* it accepts connections, but does not respond"),
        ("amqp", "closed", "unreachable: .* the connection is refused"),
        ("amqp", "tls", "refused: .* the port is not that of RabbitMQ, or needs TLS .amqps://"),
        ("amqps", "rabbitmq", "refused: .* the port does not use TLS: write amqp://"),
        ("amqps", "http", "refused: .* the port does not use TLS"),
        ("amqps", "tls", "refused: the certificate of .* is not accepted: .*; see"),
    ],
)
def test_c35_a_port_that_is_not_the_one_of_rabbitmq(
    node: Node,
    connect: Callable[..., RabbitmqFanout],
    certificate: tuple[Path, Path],
    scheme: str,
    server: str,
    words: str,
) -> None:
    ports: dict[str, Callable[[], int]] = {
        "http": lambda: serve(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        "silent": lambda: serve(None),
        "closed": lambda: 1,
        "tls": lambda: serve(b"", certificate),
        "rabbitmq": lambda: int(node.host.partition(":")[2]),
    }
    broker = connect(f"{scheme}://guest:guest@127.0.0.1:{ports[server]()}/")
    assert re.match(words, words_of(broker.ensure))


def test_c35_status_and_check_say_what_rabbitmq_said(
    node: Node,
    migrated_sqlite: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = shutil.copy(migrated_sqlite, tmp_path / "syncflow.db")
    monkeypatch.setitem(Settings.model_config, "env_file", None)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{path}")
    monkeypatch.setenv("BROKER_URL", node.url("nowhere"))
    monkeypatch.setattr(dramatiq.broker, "global_broker", dramatiq.broker.global_broker)  # restored at the end
    get_settings.cache_clear()
    for command, line in (("status", "rabbitmq       refused  RabbitMQ at"), ("check", "  wrong RabbitMQ at")):
        assert main([command]) == 1
        said = capsys.readouterr().out
        assert line in said and "vhost nowhere not found; check the virtual host in BROKER_URL" in said
    get_settings.cache_clear()


@fleet
def test_c35_a_waiting_process_logs_the_reason(
    node: Node, connect: Callable[..., RabbitmqFanout], database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(database, "crm", broker=connect(node.url("nowhere")))
    stop = threading.Event()
    thread = threading.Thread(target=wait_for_broker, args=(hub.runtime, stop))
    thread.start()
    until(lambda: "NOT_ALLOWED - vhost nowhere not found; check the virtual host" in caplog.text)
    stop.set()
    thread.join()


# C36: a parent that is killed


@pytest.fixture
def hangup() -> Iterator[None]:
    """Have started programs end at SIGHUP and SIGINT, also if these tests run under `nohup` or in the background."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


#: Starts a shell that starts another process and ignores SIGTERM, as a chain of processes does; prints all ids.
CHAIN = """
import subprocess, sys, time
sys.path.insert(0, {root!r})
import child_processes
child = child_processes.start(["sh", "-c", "sleep 600 & echo $!; echo $$; wait"], stdout=subprocess.PIPE, text=True)
print(child.stdout.readline().strip(), child.stdout.readline().strip(), flush=True)
time.sleep(600)
"""


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_c36_children_and_their_children_end_with_their_parent(how: signal.Signals) -> None:
    command = [sys.executable, "-c", CHAIN.format(root=str(ROOT))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout is not None
        chain = [int(number) for number in parent.stdout.readline().split()]
        assert len(chain) == 2 and all(map(lives, chain))
        parent.send_signal(how)
    until(lambda: not any(map(lives, chain)))


def lives(pid: int) -> bool:
    """Return whether a process runs; one that nothing has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize(
    ("which", "how"), [("make", signal.SIGKILL), ("make", signal.SIGTERM), ("what started make", signal.SIGKILL)]
)
def test_c36_a_program_started_by_make_ends_with_it(tmp_path: Path, which: str, how: signal.Signals) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys, time, os; sys.path.insert(0, {str(ROOT)!r}); import child_processes\n"
        "is_orphaned = child_processes.is_orphaned()\n"
        "print(os.getpid(), os.getppid(), flush=True)\n"
        "while not is_orphaned(): time.sleep(0.05)\n"
    )
    (tmp_path / "Makefile").write_text(f"run:\n\t@exec {sys.executable} {program}\n")
    shell = ["sh", "-c", "make run; true"]
    # The tests may run under make themselves; an inner make would then print the directories it enters.
    outside = {name: value for name, value in os.environ.items() if name not in {"MAKELEVEL", "MAKEFLAGS", "MFLAGS"}}
    with subprocess.Popen(
        shell, cwd=tmp_path, env=outside, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as started:
        assert started.stdout is not None
        pid, make = map(int, started.stdout.readline().split())
        os.kill(make if which == "make" else started.pid, how)
        until(lambda: not lives(pid))


@pytest.mark.acceptance
@pytest.mark.usefixtures("hangup")
def test_c36_nothing_of_make_run_is_left(tmp_path: Path) -> None:
    settings = environment(PORT=str(free_port()), SYNCFLOW_VAR=str(tmp_path / "var"))
    with ended_at_the_end(settings):
        # `-o setup`: what it installs is there already. The demo is stopped while it starts: most children run by then.
        make = Process("make", ["make", "-o", "setup", "run"], settings, tmp_path)
        until(lambda: len(family(settings["SYNCFLOW_VAR"])) >= 5)  # make, demo, guard, two systems
        os.kill(make.popen.pid, signal.SIGKILL)
        until(lambda: not [pid for pid in family(settings["SYNCFLOW_VAR"]) if lives(pid)])
