"""The database: one engine per process, read and write transactions, waking up on changes."""

from __future__ import annotations

import logging
import math
import random
import select
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Concatenate, ParamSpec, TypeVar

import orjson
import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.pool import QueuePool

logger = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")

#: PostgreSQL channel on which the capture triggers say that something changed.
CHANNEL = "syncflow_change"

#: Seconds SQLite waits for another writer before it gives up.
_SQLITE_BUSY_SECONDS = 30

#: Seconds a pooled connection to PostgreSQL is taken to stand after its last use.
_TRUSTED_SECONDS = 1.0

#: PostgreSQL plans a prepared statement once for a connection. While a table is young, all of it is read as fast as one
#: row, and a statement so planned reads all of it ever after: thousands of rows for each delivery. What processes only
#: look up by key is planned as if the tables were large ("Query Planning": Planner Method Configuration).
_BY_KEY = "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off"

#: How often a database transaction that lost a race (deadlock, serialization) is run again.
_TRANSACTION_TRIES = 5

_LOST_A_RACE = {"40001", "40P01"}  # SQLSTATE serialization_failure, deadlock_detected


class Database:
    """An SQLite file or a PostgreSQL database, with the few things that differ kept here.

    `by_key` is for a process that looks rows up by key and never goes through whole tables.
    """

    def __init__(self, url: str, *, pool_size: int = 20, by_key: bool = False) -> None:
        self.url = sa.engine.make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            self.engine = _sqlite_engine(self.url)
        else:
            self.engine = sa.create_engine(
                self.url,
                pool_size=pool_size,
                max_overflow=10,
                pool_use_lifo=True,  # few are in use at a time: these have their statements prepared
                hide_parameters=True,
                **_JSON,
            )
            _prepare(self.engine, f"SET TIME ZONE 'UTC'; {_BY_KEY}" if by_key else "SET TIME ZONE 'UTC'")
            _ask_the_idle(self.engine)
        self._writing = self.engine.execution_options(syncflow_write=True)
        # SQLite has one writer. Threads of this process wait for their turn here: SQLite would have each of them sleep
        # for up to a tenth of a second before it looks again.
        self._turn: AbstractContextManager[object] = threading.RLock() if self.is_sqlite else nullcontext()
        # Each statement by itself on PostgreSQL, which sees what is committed when it begins either way.
        self._looking = self.engine if self.is_sqlite else self.engine.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection for reading; nothing done on it is kept."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def read_autocommit(self) -> Iterator[sa.Connection]:
        """A connection for a few reads on the way of a delivery: it costs no round trips of its own.

        Nor what is prepared there: psycopg forgets a connection's statements when a transaction is rolled back, as one
        that only read is.
        """
        with self._looking.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction, committed at the end and rolled back on an error.

        On SQLite it takes the single writer's place at once, so that it never fails half way
        because another writer was first.
        """
        with self._turn, self._writing.connect() as connection, connection.begin():
            yield connection

    def run_in_transaction(
        self, work: Callable[Concatenate[sa.Connection, P], T], *arguments: P.args, **options: P.kwargs
    ) -> T:
        """Run `work(connection, ...)` in a write transaction, again from the start when it lost a race."""
        return self._insist(self.write, work, *arguments, **options)

    def execute_atomic(
        self, work: Callable[Concatenate[sa.Connection, P], T], *arguments: P.args, **options: P.kwargs
    ) -> T:
        """Run `work` as `run_in_transaction` does, without a transaction on PostgreSQL: for work of one statement."""
        return self._insist(self.write if self.is_sqlite else self.read_autocommit, work, *arguments, **options)

    @staticmethod
    def _insist(
        within: Callable[[], AbstractContextManager[sa.Connection]],
        work: Callable[Concatenate[sa.Connection, P], T],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> T:
        for attempt in range(1, _TRANSACTION_TRIES + 1):
            try:
                with within() as connection:
                    return work(connection, *arguments, **options)
            except sa.exc.OperationalError as error:
                if attempt == _TRANSACTION_TRIES or getattr(error.orig, "sqlstate", None) not in _LOST_A_RACE:
                    raise
                logger.info("transaction lost a race, running it again (attempt %d)", attempt)
                time.sleep(random.uniform(0.01, 0.05) * attempt)  # jitter, not a secret
        raise AssertionError("unreachable")

    def insert(self, table: Any) -> Any:
        """An INSERT that knows `on_conflict_do_update` and `on_conflict_do_nothing`."""
        return sqlite_dialect.insert(table) if self.is_sqlite else postgresql.insert(table)

    def listener(self) -> Listener:
        """Something that waits until the database has probably changed."""
        return _SqliteListener(self) if self.is_sqlite else _PostgresListener(self)

    def close(self) -> None:
        """Close all pooled connections."""
        self.engine.dispose()


def _dumps(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()


#: How JSON columns are written and read.
_JSON: dict[str, Any] = {"json_serializer": _dumps, "json_deserializer": orjson.loads}


class Listener:
    """Waits for commits. It may wake for nothing; it may miss none for longer than the timeout."""

    def wait(self, timeout: float) -> None:
        """Return when something was committed, or after `timeout` seconds."""
        raise NotImplementedError

    def close(self) -> None:
        """Give the connection back."""
        raise NotImplementedError


class _PostgresListener(Listener):
    def __init__(self, database: Database) -> None:
        self._connection = database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._connection.execute(sa.text(f"LISTEN {CHANNEL}"))
        self._raw: Any = self._connection.connection.driver_connection

    def wait(self, timeout: float) -> None:
        try:
            select.select([self._raw.fileno()], [], [], timeout)
            # Take all that is waiting, so that a burst wakes us once.
            for _ in self._raw.notifies(timeout=0):
                continue
        except psycopg.Error as error:
            # As SQLAlchemy would say it: who waits need not know the driver.
            raise sa.exc.OperationalError(f"LISTEN {CHANNEL}", None, error) from error

    def close(self) -> None:
        # The connection listens: it must not go back to the pool as if it were fresh.
        self._connection.invalidate()
        self._connection.close()


class _SqliteListener(Listener):
    #: `PRAGMA data_version` is a read of one integer in shared memory: cheap enough to ask often.
    INTERVAL_SECONDS = 0.005

    def __init__(self, database: Database) -> None:
        # Outside any transaction: inside one the version would stand still.
        path = str(database.url.database)
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._version = self._read()

    def _read(self) -> int:
        try:
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error as error:
            raise sa.exc.OperationalError("PRAGMA data_version", None, error) from error

    def wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while (version := self._read()) == self._version and time.monotonic() < deadline:
            time.sleep(self.INTERVAL_SECONDS)
        self._version = version

    def close(self) -> None:
        self._connection.close()


def _prepare(engine: sa.Engine, settings: str) -> None:
    """Say this once on each connection; of times, that they are read as UTC, whatever zone the server is in."""

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.execute(settings)
        connection.commit()


def _ask_the_idle(engine: sa.Engine) -> None:
    """Have a pooled connection asked whether it still stands when it was not used for a moment.

    Each time, as `pool_pre_ping` does, would be a third of the round trips of a small transaction.
    """

    @sa.event.listens_for(engine, "checkin")
    def _checkin(_connection: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    @sa.event.listens_for(engine, "checkout")
    def _checkout(connection: Any, record: Any, _proxy: Any) -> None:
        if time.monotonic() - record.info.get("idle_since", math.inf) < _TRUSTED_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except psycopg.Error as error:
            raise sa.exc.DisconnectionError from error  # the pool connects anew and asks again


def _sqlite_engine(url: sa.engine.URL) -> sa.Engine:
    engine = sa.create_engine(
        url,
        poolclass=QueuePool,
        pool_size=20,
        max_overflow=20,
        connect_args={"timeout": _SQLITE_BUSY_SECONDS, "check_same_thread": False},
        hide_parameters=True,  # records' data has no place in logs
        **_JSON,
    )

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        # We say BEGIN ourselves: the driver's own comes too late to see a consistent state.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        write = connection.get_execution_options().get("syncflow_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine
