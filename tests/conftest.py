"""Fixtures for all tests. services.py finds the services behind them."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from models.schema import migrate
from models.session import Database
from simulators.salesforce import SalesforceSimulator
from tests.support import services
from tests.support.database_pool import DatabasePool

pytest.register_assert_rewrite("tests.subscribers.contract")

# The run time of an example depends only on the load of the machine.
settings.register_profile("syncflow", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("syncflow")

NEEDS_SERVICES = {"postgres_server", "postgres_url", "rabbitmq_server", "rabbitmq_url", "rabbitmq_vhost"}
NOT_UNIT = ("services", "acceptance", "browser")

#: The slowest files, slowest first. With `--dist loadfile` a worker takes its next file shortly before it finishes
#: the current one; a slow file that starts last would keep one worker busy while all others are idle.
LONGEST = (
    "panel/test_browser.py",
    "panel/test_access.py",
    "panel/test_browser_tasks.py",
    "chaos/test_chaos.py",
    "acceptance/test_fleet.py",
    "project/test_bench.py",
    "acceptance/test_demo.py",
    "histories/test_model.py",
    "workers/test_workers.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Keep the order below with `--dist loadfile`: xdist would start with the files that hold the most tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one worker more than processors: tests spend a third of their time waiting."""
    return (os.cpu_count() or 1) + 1


def _rank(item: pytest.Item) -> int:
    name = "/".join(item.path.parts[-2:])
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by the fixtures they request, and put the slowest files first."""
    if hasattr(config, "workerinput"):
        items.sort(key=_rank)
    for item in items:
        if NEEDS_SERVICES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("services")
        if not any(item.get_closest_marker(name) for name in NOT_UNIT):
            item.add_marker("unit")


# --- databases ------------------------------------------------------------------


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'syncflow.db'}"


@pytest.fixture(scope="session")
def postgres_server() -> str:
    """Return the psycopg URL of a server on which tests may create databases."""
    return services.postgres_server()


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """Yield the URL of a fresh, empty PostgreSQL database."""
    with services.fresh_database(postgres_server) as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def database_url(request: pytest.FixtureRequest) -> str:
    """Return the URL of a fresh, empty database: the test runs once on SQLite and once on PostgreSQL."""
    fixture = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    return str(request.getfixturevalue(fixture))


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a migrated SQLite file to copy: a migration takes longer than most tests."""
    path = tmp_path_factory.mktemp("template") / "syncflow.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_pool(postgres_server: str) -> Iterator[DatabasePool]:
    """Yield the migrated PostgreSQL databases that the tests of this process use in turn."""
    pool = DatabasePool(postgres_server)
    yield pool
    pool.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def migrated_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Yield the URL of a database with all tables and capture triggers, as `./syncflow migrate` creates it."""
    if request.param == "sqlite":
        path = tmp_path / "syncflow.db"
        shutil.copy(request.getfixturevalue("migrated_sqlite"), path)
        yield f"sqlite:///{path}"
        return
    pool: DatabasePool = request.getfixturevalue("postgres_pool")
    with pool.lend() as url:
        yield url


@pytest.fixture
def database(migrated_url: str) -> Iterator[Database]:
    """Yield the migrated database, opened."""
    database = Database(migrated_url)
    yield database
    database.close()


@pytest.fixture
def sqlite_database(migrated_sqlite: Path, tmp_path: Path) -> Iterator[Database]:
    """Yield a migrated SQLite database, for tests that do not depend on the kind of database."""
    path = tmp_path / "syncflow.db"
    shutil.copy(migrated_sqlite, path)
    database = Database(f"sqlite:///{path}")
    yield database
    database.close()


# --- RabbitMQ -------------------------------------------------------------------


@pytest.fixture(scope="session")
def rabbitmq_server() -> str:
    """Return the URL of a node on its default vhost."""
    return services.rabbitmq_server()


@pytest.fixture(scope="session")
def rabbitmq_url(rabbitmq_server: str) -> Iterator[str]:
    """Yield the URL of a vhost that all tests of this run share."""
    with services.fresh_vhost(rabbitmq_server) as url:
        yield url


@pytest.fixture
def rabbitmq_vhost(rabbitmq_server: str) -> Iterator[Callable[[], str]]:
    """Yield a function that creates vhosts, for tests that need their own."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(services.fresh_vhost(rabbitmq_server))


# --- a Salesforce org -----------------------------------------------------------


@pytest.fixture(scope="session")
def salesforce_org(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SalesforceSimulator]:
    """Yield a simulated org that all tests of this run share; `org` resets it."""
    with SalesforceSimulator(certs=tmp_path_factory.mktemp("certificates")) as simulator:
        yield simulator


@pytest.fixture
def org(salesforce_org: SalesforceSimulator) -> SalesforceSimulator:
    """Return the simulated Salesforce org, empty."""
    salesforce_org.org.reset()
    salesforce_org.clock.thaw()
    return salesforce_org


# --- the browser ----------------------------------------------------------------


@pytest.fixture(scope="session")
def chromium_path() -> str:
    return services.chromium()
