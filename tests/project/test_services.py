"""The fixtures that provide fresh databases and vhosts work as documented."""

from collections.abc import Callable

import pika
import psycopg
import pytest
from sqlalchemy import create_engine, text

from tests.support import services
from tests.support.database_pool import DatabasePool


def test_a_database_url_is_fresh_and_works(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE stone (weight integer)"))
        assert connection.execute(text("SELECT count(*) FROM stone")).scalar_one() == 0
    engine.dispose()


def test_a_database_is_dropped_even_while_somebody_is_connected(postgres_server: str) -> None:
    with services.fresh_database(postgres_server) as url:
        name = url.rpartition("/")[2]
        forgotten = psycopg.connect(url.replace("+psycopg", ""))
    with psycopg.connect(postgres_server) as server:
        assert server.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None
    forgotten.close()


def test_vhosts_are_usable_and_apart(rabbitmq_url: str, rabbitmq_vhost: Callable[[], str]) -> None:
    own = rabbitmq_vhost()
    if own.endswith("/%2F"):
        pytest.skip("the RabbitMQ that TEST_BROKER_URL names lets us make no vhosts")
    assert own != rabbitmq_url
    for url in (rabbitmq_url, own):
        connection = pika.BlockingConnection(pika.URLParameters(url))
        connection.channel().queue_declare("pebbles", exclusive=True)
        connection.close()


@pytest.mark.parametrize(
    ("name", "abandoned"),
    [
        ("syncflow_test_00000001cafecafe", True),
        ("syncflow_test_somebody", False),
        ("syncflow", False),
    ],
)
def test_only_old_leftovers_of_tests_count_as_abandoned(name: str, abandoned: bool) -> None:
    assert services.is_abandoned(name) is abandoned
    assert not services.is_abandoned(services.random_name())


def test_a_missing_service_is_a_skip_on_a_laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("SYNCFLOW_REQUIRE_SERVICES", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no such thing"):
        services.missing("no such thing")


@pytest.mark.parametrize("variable", ["CI", "SYNCFLOW_REQUIRE_SERVICES"])
def test_a_missing_service_is_an_error_where_it_was_promised(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(RuntimeError, match="no such thing"):
        services.missing("no such thing")


def test_a_database_that_is_lent_again_is_as_the_migrations_leave_it(postgres_pool: DatabasePool) -> None:
    with postgres_pool.lend() as url, psycopg.connect(_plain(url), autocommit=True) as connection:
        connection.execute("INSERT INTO customer (name) VALUES ('Ada')")
        assert connection.execute("SELECT count(*) FROM change").fetchone() == (1,)
    with postgres_pool.lend() as again, psycopg.connect(_plain(again), autocommit=True) as connection:
        assert again == url
        assert connection.execute("SELECT count(*) FROM customer").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM change").fetchone() == (0,)
        assert connection.execute("INSERT INTO customer (name) VALUES ('Ada') RETURNING id").fetchone() == (1,)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE extra (id int)",
        "ALTER TABLE customer DISABLE TRIGGER ALL",
        "ALTER TABLE customer ALTER COLUMN notes TYPE varchar",
        "CREATE SCHEMA other",
    ],
)
def test_a_database_with_another_schema_is_not_lent_again(postgres_pool: DatabasePool, statement: str) -> None:
    with postgres_pool.lend() as url, psycopg.connect(_plain(url), autocommit=True) as connection:
        connection.execute(statement)
    with postgres_pool.lend() as again:
        assert again != url


def _plain(url: str) -> str:
    return url.replace("postgresql+psycopg:", "postgresql:")
