"""The ledgers of the benchmarks: filled databases, kept between runs, and a conductor that uses them."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import sqlalchemy as sa
from psycopg import sql

from benchmarks import seeding
from benchmarks.seeding import Size
from conductor import Conductor, QueueReport
from models.base import utcnow
from models.catalogues import Customer
from models.ledger import AuditEntry, Change, Delivery, Link, ThroughputWatermark
from models.schema import migrate
from models.session import Database
from settings import VAR
from subscribers.base import Subscriber
from subscribers.errors import SyncError
from subscribers.records import External, Item
from subscribers.system import Options, System
from tests.support import services

logger = logging.getLogger(__name__)

KINDS = ("sqlite", "postgresql")
_NAME = "syncflow_bench_seeded"
_FOLDER = VAR / "bench"


@contextmanager
def seeded(kind: str, size: Size, *, keep: bool) -> Iterator[Database]:
    """Yield a filled database; `keep` reuses that of an earlier run, if it was made for these tables and this size."""
    with ExitStack() as stack:
        url = _kept(kind, size) if keep else stack.enter_context(_passing(kind))
        database = Database(url)
        stack.callback(database.close)
        if not (keep and _is_made_for(database, size)):
            database.close()
            _make(url, size)
            database = Database(url)
            stack.callback(database.close)
        seeding.freshen(database)
        yield database


@contextmanager
def empty(kind: str) -> Iterator[Database]:
    """Yield a migrated database without rows."""
    with _passing(kind) as url:
        migrate(url)
        database = Database(url)
        try:
            yield database
        finally:
            database.close()


@contextmanager
def left_as_it_was(database: Database) -> Iterator[None]:
    """Delete the rows that the block added, at its end; changes to other rows stay."""
    # Changes last: deleting records adds some.
    added: tuple[Any, ...] = (AuditEntry, Delivery, Link, Customer, Change)
    with database.read() as connection:
        tops = [(table, connection.execute(sa.select(sa.func.max(table.id))).scalar() or 0) for table in added]
        counted = connection.execute(sa.select(ThroughputWatermark.counted_to)).scalar() or 0
    try:
        yield
    finally:
        with database.write() as connection:
            for table, top in tops:
                connection.execute(sa.delete(table).where(table.id > top))
            # SQLite reuses their ids.
            connection.execute(sa.update(ThroughputWatermark).values(counted_to=counted))
        if not database.is_sqlite:
            seeding.vacuum(database)


def _make(url: str, size: Size) -> None:
    logger.warning("filling %s with %s links and %s deliveries", url, f"{size.links:,}", f"{size.deliveries:,}")
    if url.startswith("sqlite"):
        path = Path(str(sa.engine.make_url(url).database))
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()
    else:
        server, name = services.postgres_server(), urlsplit(url).path[1:]
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    migrate(url)
    database = Database(url)
    try:
        seeding.fill(database, size)
        with database.write() as connection:
            connection.execute(sa.text("CREATE TABLE made_for (what VARCHAR(64))"))
            connection.execute(sa.text("INSERT INTO made_for VALUES (:what)"), {"what": _made_for(size)})
    finally:
        database.close()


def _is_made_for(database: Database, size: Size) -> bool:
    try:
        with database.read() as connection:
            return connection.execute(sa.text("SELECT what FROM made_for")).scalar() == _made_for(size)
    except sa.exc.DBAPIError:
        return False  # it does not exist, or filling it was interrupted


def _made_for(size: Size) -> str:
    return hashlib.sha256(f"{seeding.VERSION} {size} {seeding.schema()}".encode()).hexdigest()


def _kept(kind: str, size: Size) -> str:
    """Return the URL of the database of this size. Each size has its own, so that none is filled repeatedly."""
    if kind == "sqlite":
        _FOLDER.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{_FOLDER / f'seeded-{size.links}.sqlite3'}"
    name = f"/{_NAME}_{size.links}"
    return urlsplit(services.postgres_server())._replace(scheme="postgresql+psycopg", path=name).geturl()


@contextmanager
def _passing(kind: str) -> Iterator[str]:
    """Yield the URL of an empty database, and drop the database afterwards."""
    if kind == "sqlite":
        folder = tempfile.mkdtemp(prefix="syncflow-bench-")
        try:
            yield f"sqlite:///{folder}/ledger.sqlite3"
        finally:
            shutil.rmtree(folder)
    else:
        with services.fresh_database(services.postgres_server()) as url:
            yield url


# --- a conductor that uses it ----------------------------------------------------------------------------


class _Customer(Subscriber):
    """Customers of a system that accepts every call and replies without delay."""

    catalogue, resource = "customer", "customers"
    field_to_data = {"name": "name", "email": "email", "city": "address.city", "active": "active"}
    bulk_size = 200

    def bulk_create(self, items: Sequence[Item]) -> list[External | SyncError]:
        return [External(id=f"new_{item.record_id}", data=item.data, at=utcnow()) for item in items]

    def bulk_update(self, items: Sequence[Item]) -> list[External | SyncError | None]:
        return [External(id=item.linked_id, data=item.data, at=utcnow()) for item in items]


class Shop(_Customer):
    system = "shop"
    poll_seconds = 60


class Crm(_Customer):
    system = "crm"


class Desk(_Customer):
    system = "desk"


class Heard:
    """An announcer that keeps its announcements instead of queueing them."""

    def __init__(self) -> None:
        self.news: list[tuple[str, list[str]]] = []

    def changes(self, catalogue: str, record_ids: Sequence[str]) -> None:
        self.news.append((catalogue, list(record_ids)))

    def records(self, subscriber: str, record_ids: Sequence[str], *, later: bool = False) -> None: ...

    def inbox(self, system: str, inbox_ids: Sequence[int]) -> None: ...

    def inbox_soon(self, system: str, inbox_ids: Sequence[int]) -> None: ...

    def poll(self, subscriber: str, delay: float = 0.0) -> None: ...

    def inbox_depth(self, system: str) -> int | None:
        return 0

    def depth(self, subscriber: str) -> int | None:
        return 0

    def queues(self) -> QueueReport:
        return QueueReport("memory", utcnow())


def conduct(database: Database, *classes: type[Subscriber]) -> tuple[Conductor, Heard]:
    """Return a conductor with these subscribers, by default all three, and its announcer."""
    made: Mapping[str, Subscriber] = {
        f"{of.system}.{of.catalogue}": of(System(of.system, Options())) for of in classes or (Shop, Crm, Desk)
    }
    heard = Heard()
    conductor = Conductor(database, made, heard)
    conductor.prepare()
    return conductor, heard
