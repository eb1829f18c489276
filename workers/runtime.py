"""The parts of every process: settings, database, broker, subscribers, conductor, logging and heartbeat."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import sqlalchemy as sa
import structlog

from broker import Fanout, make_broker
from conductor import Conductor, Policy
from models.base import utcnow
from models.ledger import Process
from models.schema import is_current
from models.session import Database
from redaction import hide_in
from settings import Settings, SettingsError, get_settings
from subscribers.config_file import register_file
from subscribers.registry import connect
from workers.actors import bind_queues
from workers.publisher import DramatiqPublisher
from workers.queue_stats import Management

logger = logging.getLogger(__name__)

#: Seconds between two attempts to reach the database.
_DATABASE_RETRY_SECONDS = 1.0

#: Seconds between two heartbeats.
HEARTBEAT_SECONDS = 5.0


#: Thresholds of the garbage collector: new objects before a collection, and collections before one of older objects.
_GC_THRESHOLDS = (50_000, 20, 100)

#: How long a thread may run while others wait for the interpreter.
_SWITCH_SECONDS = 0.001


@dataclass
class Runtime:
    """The parts of one process."""

    settings: Settings
    database: Database
    broker: Fanout
    conductor: Conductor

    def close(self) -> None:
        self.broker.close()
        self.database.close()


def build(settings: Settings | None = None, *, by_key: bool = False) -> Runtime:
    """Build the parts of a process; `by_key` is for one that reads rows only by key, see `Database`.

    Raises:
      SettingsError: a setting is missing or wrong, or the database is not migrated.
      OperationalError: the database does not answer.
    """
    settings = settings or get_settings()
    database = Database(
        settings.database_url,
        by_key=by_key,
        seconds=settings.database_timeout_seconds,
        direct_url=settings.database_direct_url,
    )
    current = is_current(database)
    if database.needs_direct_url:
        raise SettingsError(
            "DATABASE_URL: it leads to a connection pooler such as PgBouncer, so set DATABASE_DIRECT_URL to the "
            "address of PostgreSQL itself, where the relay can LISTEN"
        )
    if not current:
        raise SettingsError("DATABASE_URL: the tables of this database are not up to date; run ./syncflow migrate")
    if settings.syncflow_systems:
        register_file(settings.syncflow_systems)
    connected = connect()
    broker = make_broker(settings)
    publisher = DramatiqPublisher(broker, Management.from_settings(settings))
    publisher.systems = {name: s.system for name, s in connected.items()}
    bind_queues(broker, connected)
    conductor = Conductor(database, connected, publisher, Policy.from_settings(settings))
    conductor.prepare()
    return Runtime(settings, database, broker, conductor)


def build_when_up(settings: Settings, *, by_key: bool = False) -> Runtime:
    """Build the parts of a process as soon as the database answers, so that its restart ends no process.

    Raises:
      SettingsError: as `build` does.
    """
    while True:
        try:
            return build(settings, by_key=by_key)
        except sa.exc.OperationalError as error:
            logger.warning("waiting for the database: %s", str(error).split("\n", 1)[0])
            time.sleep(_DATABASE_RETRY_SECONDS)


def configure_logging(settings: Settings) -> None:
    """Log one line for each event: readable text in development, JSON in production."""
    # Tracebacks never show the values of variables, which may be secrets, whatever other packages are installed.
    sys.excepthook, threading.excepthook = sys.__excepthook__, threading.__excepthook__
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _hide_secrets,
            renderer,
        ],
        foreign_pre_chain=shared,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    gunicorn = logging.getLogger("gunicorn.error")
    gunicorn.handlers, gunicorn.propagate = [], True
    root.setLevel(settings.log_level)
    for noisy in ("alembic", "urllib3", "werkzeug", "dramatiq", "simple_salesforce", "periodiq"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Dramatiq warns of several workers in one process; we have one for each system, see workers.worker.
    for broker in ("LocalFanout", "RabbitmqFanout"):
        logging.getLogger(f"dramatiq.broker.{broker}").addFilter(lambda r: "same type twice" not in r.getMessage())


def _hide_secrets(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: hide_in(value, names=False) for name, value in event.items()}


class Heartbeat:
    """A thread that updates the row of this process every few seconds."""

    def __init__(self, database: Database, kind: str) -> None:
        self.database = database
        self.kind = kind
        self.name = f"{kind} {socket.gethostname()}:{os.getpid()}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"heartbeat-{kind}", daemon=True)

    def start(self) -> Heartbeat:
        """Start the thread."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop the thread and delete the row: only a process that died leaves one."""
        self._stop.set()
        self._thread.join()
        self._write(sa.delete(Process).where(Process.name == self.name))

    def _run(self) -> None:
        started = utcnow()
        while True:
            values = {"kind": self.kind, "started_at": started, "last_seen_at": utcnow()}
            insert = self.database.insert(Process).values(name=self.name, **values)
            self._write(insert.on_conflict_do_update(index_elements=["name"], set_=values))
            if self._stop.wait(HEARTBEAT_SECONDS):
                return

    def _write(self, statement: Any) -> None:
        try:
            with self.database.write() as connection:
                connection.execute(statement)
        except sa.exc.SQLAlchemyError as error:
            logger.warning("cannot write the heartbeat: %s", str(error).split("\n", 1)[0])


def prepare_for_work() -> None:
    """Tune the interpreter for deliveries, after everything is loaded.

    A batch creates tens of thousands of objects that live as long as it. With the default thresholds the garbage
    collector takes a tenth of a delivery's time, so it ignores the objects that exist now and runs less often. A
    short switch interval lets the thread of a new change run soon while another processes a batch.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    sys.setswitchinterval(_SWITCH_SECONDS)


def stop_on_signals(stop: threading.Event, database: Database) -> None:
    """Set `stop` on SIGTERM and SIGINT, and wait no longer for a database that does not answer."""

    def handle(number: int, _frame: FrameType | None) -> None:
        logger.info("stopping (%s)", signal.Signals(number).name)
        stop.set()
        database.hurry()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
