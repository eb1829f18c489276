"""The checks for probes: whether this process lives, and whether it can do its work."""

from __future__ import annotations

import logging
import secrets
import threading

import sqlalchemy as sa
from flask import Blueprint, Response, current_app, jsonify

from conductor import Conductor
from models.base import utcnow
from models.ledger import Process
from models.session import Database, is_read_only

logger = logging.getLogger(__name__)

blueprint = Blueprint("health", __name__)

#: The longest time a probe waits for the database.
_WAIT_SECONDS = 5.0


@blueprint.get("/healthz")
def healthz() -> tuple[Response, int]:
    """Report that this process serves requests, and the state of the broker. Needs no login, no database."""
    conductor: Conductor = current_app.extensions["syncflow"]
    return jsonify(status="ok", broker=conductor.reports.queues().state), 200


@blueprint.get("/readyz")
def readyz() -> tuple[Response, int]:
    """Report whether the database accepts a write. Needs no login.

    Webhooks are accepted while the broker is away, so its state is reported, but does not count; neither does that of
    the capture of writes.
    """
    conductor: Conductor = current_app.extensions["syncflow"]
    readiness: Readiness = current_app.extensions["syncflow_readiness"]
    problem = readiness.problem()
    capture = "unknown" if problem else "broken" if conductor.reports.broken_captures() else "intact"
    body = jsonify(status=problem or "ready", broker=conductor.reports.queues().state, capture=capture)
    return body, 503 if problem else 200


class Readiness:
    """Writes to the database on request. Requests that arrive during a write share its result."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._lock = threading.Lock()
        self._writing: _Write | None = None

    def problem(self) -> str | None:
        """Return why the database accepts no write; None if it does."""
        with self._lock:
            if self._writing is None or not self._writing.is_alive():
                self._writing = _Write(self.database)
                self._writing.start()
            write = self._writing
        write.join(_WAIT_SECONDS)
        return "the database does not respond" if write.is_alive() else write.problem


class _Write(threading.Thread):
    """One transaction that leaves nothing behind, but is committed like every other."""

    def __init__(self, database: Database) -> None:
        super().__init__(name="readiness", daemon=True)
        self.database = database
        self.problem: str | None = None

    def run(self) -> None:
        name, now = f"readyz {secrets.token_hex(8)}", utcnow()
        try:
            with self.database.write() as connection:
                row = {"name": name, "kind": "readyz", "started_at": now, "last_seen_at": now}
                connection.execute(sa.insert(Process).values(row))
                connection.execute(sa.delete(Process).where(Process.name == name))
        except sa.exc.SQLAlchemyError as error:
            self.problem = "the database is read-only" if is_read_only(error) else "the database is unavailable"
            logger.warning("readyz: %s: %s", self.problem, str(error).split("\n", 1)[0])
