"""PostgreSQL connections: time limits, dropped when they are of no more use, and without session state in a pooler."""

from __future__ import annotations

import math
import os
import select
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa

T = TypeVar("T")

#: The channel that the capture triggers notify of changes.
CHANNEL = "syncflow_change"

#: The advisory lock that a relay holds while it looks for changes by itself, so that writers need not notify it. The
#: database has one number for all hubs in it: a relay of another hub may keep ours waiting for half a second at most.
AWAKE_LOCK = 0x73796E63666C6F77  # the letters of "syncflow"

#: A setting of the database: with `off`, writers never notify the relay.
NOTIFY_SETTING = "syncflow.notify"

#: How long a pooled connection is assumed to be open after its last use.
_TRUSTED_SECONDS = 1.0

#: How long a ping may take, and a statement of a process that stops.
_HURRIED_SECONDS = 3.0

#: Options of libpq ("Parameter Key Words"): a host that does not answer is given up after 5 seconds. A dead connection
#: is found within 25 seconds, whether it waits for a response (keepalives) or an acknowledgement (tcp_user_timeout).
_NETWORK = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}

#: PostgreSQL plans a prepared statement once per connection. For a small table the plan may be a full scan, which
#: stays in use when the table has grown. Processes that only read by key plan as if the tables were large ("Query
#: Planning": Planner Method Configuration).
_BY_KEY = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off", "jit": "off"}

#: A process that was stopped in the middle of a transaction holds its locks no longer than this.
_IDLE_IN_TRANSACTION_SECONDS = 60

#: SQLSTATE read_only_sql_transaction: a standby, or a server that an operator made read-only.
_READ_ONLY = "25006"

#: SQLSTATEs of a server that ends or starts: admin_shutdown, crash_shutdown, cannot_connect_now, idle_session_timeout,
#: idle_in_transaction_session_timeout.
_GOING_AWAY = {"57P01", "57P02", "57P03", "57P05", "25P03"}


#: The driver reads times in no other style, whatever the database's own one is.
_DATE_STYLE = "ISO, MDY"


@dataclass
class Limit:
    """How many seconds a statement may take; infinite without a limit."""

    seconds: float = math.inf

    def hurry(self) -> None:
        """Give up a statement that is not answered soon, because the process stops."""
        self.seconds = min(self.seconds, _HURRIED_SECONDS)


class _Connection(psycopg.Connection[Any]):
    """A connection whose statements have a time limit, also where the network swallows the response.

    The server has a limit of its own, but its cancellation travels on the same connection.
    """

    limit = Limit()

    def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        return super().wait(self._limited(gen), *arguments, **options)

    def _limited(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        began = time.monotonic()
        try:
            state = next(gen)
            while True:
                ready = yield state
                if not ready and time.monotonic() - began > self.limit.seconds:
                    self.close()
                    raise psycopg.OperationalError(f"PostgreSQL has not responded for {self.limit.seconds:g} s")
                state = gen.send(ready)
        except StopIteration as end:
            result: T = end.value
            return result


class PostgreSQL:
    """The engine of one process for one PostgreSQL database.

    A connection through a pooler in transaction mode, such as PgBouncer, belongs to us only during a transaction: it
    gets no settings of its own and prepares no statements.
    """

    def __init__(self, url: sa.engine.URL, *, limit: Limit, by_key: bool, **options: Any) -> None:
        # PgBouncer keeps these settings for each client, if they are sent at the start of the connection.
        os.environ |= {"PGTZ": "UTC", "PGDATESTYLE": _DATE_STYLE}
        self.limit = limit
        #: Whether the newest connection leads through a pooler; None before the first.
        self.is_pooled: bool | None = None
        self._settings = _settings(limit, by_key=by_key)
        network = {name: value for name, value in _NETWORK.items() if name not in url.query}
        self.engine = sa.create_engine(url, hide_parameters=True, connect_args=network, **options)
        for name, handler in (
            ("do_connect", self._open),
            ("connect", self._prepare),
            ("checkin", self._checkin),
            ("checkout", self._checkout),
        ):
            sa.event.listen(self.engine, name, handler)
        sa.event.listen(self.engine, "handle_error", _explain, retval=True)

    def _open(self, _dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
        connection = _Connection.connect(*arguments, **options)
        connection.limit = self.limit
        return connection

    def _prepare(self, connection: Any, _record: Any) -> None:
        """Set this session's settings, unless it is not ours: a pooler reports a process id of its own."""
        values = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in self._settings.items())
        ours = f"SELECT {values} WHERE pg_backend_pid() = {connection.info.backend_pid}"
        self.is_pooled = connection.execute(ours).fetchone() is None
        connection.commit()
        if self.is_pooled:
            connection.prepare_threshold = None

    @staticmethod
    def _checkin(_connection: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    def _checkout(self, connection: Any, record: Any, _proxy: Any) -> None:
        """Ping a connection before its use if it was idle for _TRUSTED_SECONDS.

        `pool_pre_ping` pings each time, which would be a third of the round trips of a small transaction.
        """
        if time.monotonic() - record.info.get("idle_since", math.inf) < _TRUSTED_SECONDS:
            return
        connection.limit = Limit(min(self.limit.seconds, _HURRIED_SECONDS))
        try:
            self.engine.dialect.do_ping(connection)
        except psycopg.Error as error:
            # The pool connects again, also instead of its other connections: they are as old.
            raise sa.exc.InvalidatePoolError from error
        connection.limit = self.limit


def _settings(limit: Limit, *, by_key: bool) -> dict[str, str]:
    found = {"timezone": "UTC", "datestyle": _DATE_STYLE, "intervalstyle": "postgres"}
    if math.isfinite(limit.seconds):
        found["statement_timeout"] = str(round(limit.seconds * 1000))
    if by_key:
        found |= _BY_KEY | {"idle_in_transaction_session_timeout": f"{_IDLE_IN_TRANSACTION_SECONDS}s"}
    return found


def _explain(context: sa.engine.ExceptionContext) -> BaseException | None:
    """Drop the pool where the server is of no more use, and raise the error of a database that does not answer."""
    state = getattr(context.original_exception, "sqlstate", None)
    if state != _READ_ONLY and state not in _GOING_AWAY:
        return None
    context.is_disconnect = True
    if isinstance(context.sqlalchemy_exception, sa.exc.OperationalError):
        return None
    return sa.exc.OperationalError(
        context.statement, None, context.original_exception, hide_parameters=True, connection_invalidated=True
    )


def is_read_only(error: BaseException) -> bool:
    """Return whether a statement failed because the server accepts no writes."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == _READ_ONLY


class PostgresListener:
    """Waits for the notifications of the capture triggers, on a connection of its own."""

    def __init__(self, engine: sa.Engine) -> None:
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        #: Whether writers notify at all; see `_WAKES` in `models.postgresql_triggers`.
        self.is_notified = bool(self._connection.execute(_NOTIFIES).scalar())
        self._is_awake = False
        self._connection.execute(sa.text(f"LISTEN {CHANNEL}"))
        self._raw: Any = self._connection.connection.driver_connection

    def wait(self, timeout: float) -> None:
        """Return after a commit, or after `timeout` seconds."""
        try:
            select.select([self._raw.fileno()], [], [], timeout)
            # Consume all notifications, so that a burst wakes us once.
            for _ in self._raw.notifies(timeout=0):
                continue
        except psycopg.Error as error:
            # Raised as SQLAlchemy's error: callers do not know the driver.
            raise sa.exc.OperationalError(f"LISTEN {CHANNEL}", None, error) from error

    def stay_awake(self, is_awake: bool) -> None:
        """Have writers send no notifications while the caller looks for changes by itself, or send them again.

        Another relay may have the lock: then it is that one's to keep writers quiet.
        """
        if is_awake and not self._is_awake:
            self._is_awake = bool(self._connection.execute(_LOCK).scalar())
        elif self._is_awake and not is_awake:
            self._connection.execute(_UNLOCK)
            self._is_awake = False

    def close(self) -> None:
        """Close the connection: it still listens, so it must not return to the pool."""
        self._connection.invalidate()
        self._connection.close()


_LOCK = sa.text(f"SELECT pg_try_advisory_lock({AWAKE_LOCK})")
_UNLOCK = sa.text(f"SELECT pg_advisory_unlock({AWAKE_LOCK})")
_NOTIFIES = sa.text(
    "SELECT current_setting('max_prepared_transactions') = '0' "
    f"AND current_setting('{NOTIFY_SETTING}', true) IS DISTINCT FROM 'off'"
)
