"""The database: one engine for each process, read and write transactions, and waiting for commits."""

from __future__ import annotations

import logging
import math
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.pool import NullPool, QueuePool

from models.postgresql import CHANNEL, Limit, PostgresListener, PostgreSQL, is_read_only

__all__ = ["CHANNEL", "Database", "Listener", "is_read_only"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")

#: Seconds SQLite waits for another writer before it gives up.
_SQLITE_BUSY_SECONDS = 30

#: Attempts of a transaction that fails because of a deadlock or a serialization conflict.
_TRANSACTION_ATTEMPTS = 5

_RETRYABLE_STATES = {"40001", "40P01"}  # SQLSTATE serialization_failure, deadlock_detected


class Database:
    """An SQLite file or a PostgreSQL database; this class hides their differences.

    `by_key` is for a process that reads rows by key and never scans whole tables. On PostgreSQL a statement may take
    `seconds`; None is no limit. `direct_url` leads to the server itself where `url` leads to a connection pooler.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 20,
        by_key: bool = False,
        seconds: float | None = None,
        direct_url: str = "",
    ) -> None:
        self.url = sa.engine.make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.direct_url = direct_url
        self._limit = Limit(math.inf if seconds is None else seconds)
        self._postgresql: PostgreSQL | None = None
        if self.is_sqlite:
            self.engine = _sqlite_engine(self.url)
        else:
            self._postgresql = PostgreSQL(
                self.url,
                limit=self._limit,
                by_key=by_key,
                pool_size=pool_size,
                max_overflow=10,
                pool_use_lifo=True,  # keeps to few connections, which have prepared statements
                **_JSON,
            )
            self.engine = self._postgresql.engine
        self._writing = self.engine.execution_options(syncflow_write=True)
        # SQLite has one writer. Threads of this process wait for a lock, because SQLite's own wait polls at intervals
        # of up to a tenth of a second.
        self._writer_lock: AbstractContextManager[object] = threading.RLock() if self.is_sqlite else nullcontext()
        # On PostgreSQL each statement is a transaction, and sees what was committed before it.
        self._autocommit = (
            self.engine if self.is_sqlite else self.engine.execution_options(isolation_level="AUTOCOMMIT")
        )

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Yield a connection for reading; writes on it are rolled back."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def read_autocommit(self) -> Iterator[sa.Connection]:
        """Yield a connection for a few reads of a delivery, without round trips for BEGIN and ROLLBACK.

        Prepared statements survive, too: psycopg discards those of a connection on a rollback.
        """
        with self._autocommit.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Yield a connection in a transaction, committed at the end and rolled back on an error.

        On SQLite it locks the database for writing immediately, so that it cannot fail later because of
        another writer.
        """
        with self._writer_lock, self._writing.connect() as connection, connection.begin():
            yield connection

    def run_in_transaction(
        self, work: Callable[Concatenate[sa.Connection, P], T], *arguments: P.args, **options: P.kwargs
    ) -> T:
        """Run `work(connection, ...)` in a write transaction; retry after a deadlock or serialization conflict."""
        return self._retry_conflicts(self.write, work, *arguments, **options)

    def execute_atomic(
        self, work: Callable[Concatenate[sa.Connection, P], T], *arguments: P.args, **options: P.kwargs
    ) -> T:
        """Run `work` as `run_in_transaction` does, without a transaction on PostgreSQL: for work of one statement."""
        return self._retry_conflicts(
            self.write if self.is_sqlite else self.read_autocommit, work, *arguments, **options
        )

    @staticmethod
    def _retry_conflicts(
        within: Callable[[], AbstractContextManager[sa.Connection]],
        work: Callable[Concatenate[sa.Connection, P], T],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> T:
        for attempt in range(1, _TRANSACTION_ATTEMPTS + 1):
            try:
                with within() as connection:
                    return work(connection, *arguments, **options)
            except sa.exc.OperationalError as error:
                if attempt == _TRANSACTION_ATTEMPTS or getattr(error.orig, "sqlstate", None) not in _RETRYABLE_STATES:
                    raise
                logger.info("retrying a transaction after a conflict (attempt %d)", attempt)
                time.sleep(random.uniform(0.01, 0.05) * attempt)  # jitter, not a secret
        raise AssertionError("unreachable")

    def insert(self, table: Any) -> Any:
        """Return an INSERT with `on_conflict_do_update` and `on_conflict_do_nothing`."""
        return sqlite_dialect.insert(table) if self.is_sqlite else postgresql.insert(table)

    def listener(self) -> Listener:
        """Return a listener, which waits for commits."""
        if self.is_sqlite:
            return _SqliteListener(self)
        if not self.direct_url:
            return PostgresListener(self.engine)
        url = sa.engine.make_url(self.direct_url)
        return PostgresListener(PostgreSQL(url, limit=self._limit, by_key=False, poolclass=NullPool).engine)

    @property
    def needs_direct_url(self) -> bool:
        """Whether the connections lead through a pooler, which loses notifications, and no direct URL is known."""
        return self._postgresql is not None and bool(self._postgresql.is_pooled) and not self.direct_url

    def hurry(self) -> None:
        """Give up statements that are not answered soon: the process stops."""
        self._limit.hurry()

    def close(self) -> None:
        """Close all pooled connections."""
        self.engine.dispose()


def _dumps(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()


#: How JSON columns are written and read.
_JSON: dict[str, Any] = {"json_serializer": _dumps, "json_deserializer": orjson.loads}


class Listener(Protocol):
    """Waits for commits. It may return without one, but never later than the timeout."""

    #: Whether a commit ends the wait; otherwise only the timeout does.
    is_notified: bool

    def wait(self, timeout: float) -> None:
        """Return after a commit, or after `timeout` seconds."""

    def stay_awake(self, is_awake: bool) -> None:
        """Spare writers the notification while the caller looks for changes by itself."""

    def close(self) -> None:
        """Close the connection."""


class _SqliteListener:
    #: `PRAGMA data_version` reads one integer in shared memory, which is cheap.
    INTERVAL_SECONDS = 0.005
    is_notified = True

    def __init__(self, database: Database) -> None:
        # In autocommit mode: within a transaction the version does not change.
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

    def stay_awake(self, is_awake: bool) -> None:
        """Do nothing: writers to SQLite send no notifications."""

    def close(self) -> None:
        self._connection.close()


def _sqlite_engine(url: sa.engine.URL) -> sa.Engine:
    engine = sa.create_engine(
        url,
        poolclass=QueuePool,
        pool_size=20,
        max_overflow=20,
        connect_args={"timeout": _SQLITE_BUSY_SECONDS, "check_same_thread": False},
        hide_parameters=True,  # keeps the data of records out of logs
        **_JSON,
    )

    @sa.event.listens_for(engine, "do_connect")
    def _create_private(*_arguments: Any) -> None:
        # SQLite would create the file for all users of the machine, and gives its WAL the same permissions.
        path = Path(str(url.database))
        if not path.exists() and path.parent.is_dir():
            with suppress(OSError):  # SQLite says what is wrong
                path.touch(mode=0o600)

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        # We execute BEGIN ourselves: the driver's comes too late for a consistent read.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        write = connection.get_execution_options().get("syncflow_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine
