"""What every process is made of: settings -> database, broker, subscribers, conductor, heartbeat."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
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
from settings import Settings, SettingsError, get_settings
from subscribers.config_file import register_file
from subscribers.registry import connect
from workers.actors import bind_queues
from workers.publisher import DramatiqPublisher
from workers.queue_stats import Management

logger = logging.getLogger(__name__)

#: Seconds between two tries to reach a database that does not answer.
_DATABASE_PAUSE = 1.0

#: Seconds between two heartbeats.
HEARTBEAT_SECONDS = 5.0


#: Objects made before the collector looks at the youngest, and how many such looks before it looks at older ones.
_COLLECT_AFTER = (50_000, 20, 100)

#: How long a thread may keep the interpreter while others wait.
_SWITCH_SECONDS = 0.001


@dataclass
class Runtime:
    """The parts of one process."""

    settings: Settings
    database: Database
    broker: Fanout
    conductor: Conductor

    def close(self) -> None:
        """Give back connections."""
        self.broker.close()
        self.database.close()


def build(settings: Settings | None = None, *, by_key: bool = False) -> Runtime:
    """Put a process together; `by_key`: one that needs no statistics of the database's, see `Database`.

    Raises:
      SettingsError: a setting is missing or wrong, or the database was not migrated.
      OperationalError: the database does not answer.
    """
    settings = settings or get_settings()
    database = Database(settings.database_url, by_key=by_key)
    if not is_current(database):
        raise SettingsError("DATABASE_URL: this database's tables are not up to date; run: ./syncflow migrate")
    if settings.syncflow_systems:
        register_file(settings.syncflow_systems)
    connected = connect()
    broker = make_broker(settings)
    senders = DramatiqPublisher(broker, Management.from_settings(settings))
    senders.systems = {name: s.system for name, s in connected.items()}
    bind_queues(broker, connected)
    conductor = Conductor(database, connected, senders, Policy.from_settings(settings))
    conductor.prepare()
    return Runtime(settings, database, broker, conductor)


def build_when_up(settings: Settings, *, by_key: bool = False) -> Runtime:
    """Put a process together as soon as the database answers: one that restarts takes no process with it.

    Raises:
      SettingsError: as `build` does.
    """
    while True:
        try:
            return build(settings, by_key=by_key)
        except sa.exc.OperationalError as error:
            logger.warning("waiting for the database: %s", str(error).split("\n", 1)[0])
            time.sleep(_DATABASE_PAUSE)


def configure_logging(settings: Settings) -> None:
    """One line an event: for people in development, JSON in production."""
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
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
            renderer,
        ]
        if settings.log_format == "json"
        else [structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        foreign_pre_chain=shared,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for noisy in ("alembic", "urllib3", "werkzeug", "dramatiq", "simple_salesforce", "periodiq"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # A worker a system is what we want, see workers.worker.
    for broker in ("LocalFanout", "RabbitmqFanout"):
        logging.getLogger(f"dramatiq.broker.{broker}").addFilter(lambda r: "same type twice" not in r.getMessage())


class Heartbeat:
    """Writes every few seconds that this process is alive."""

    def __init__(self, database: Database, kind: str) -> None:
        self.database = database
        self.kind = kind
        self.name = f"{kind} {socket.gethostname()}:{os.getpid()}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"heartbeat-{kind}", daemon=True)

    def start(self) -> Heartbeat:
        """Begin."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End, and say so: a process that left is not one that died."""
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
            logger.warning("no heartbeat: the database does not answer: %s", str(error).split("\n", 1)[0])


def prepare_for_work() -> None:
    """Tune the interpreter for what these processes do, once all is loaded.

    The garbage collector leaves alone what there is now, and looks for new garbage less often: a batch makes tens of
    thousands of objects that end with it, and going over them, and over all that was loaded, again and again costs a
    tenth of a delivery. A thread that has something to do, such as a change that just came, waits less for one that
    works off a batch.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
    sys.setswitchinterval(_SWITCH_SECONDS)


def stop_on_signals(stop: threading.Event) -> None:
    """SIGTERM and SIGINT ask this process to stop."""

    def asked(number: int, _frame: FrameType | None) -> None:
        logger.info("stopping (%s)", signal.Signals(number).name)
        stop.set()

    signal.signal(signal.SIGTERM, asked)
    signal.signal(signal.SIGINT, asked)
