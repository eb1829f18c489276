"""The benchmarks' record as a catalogue of the hub, and functions that write to it."""

from __future__ import annotations

import time
from collections.abc import Iterable

import sqlalchemy as sa

from benchmarks.records import make
from models.base import BigId
from models.bulk import insert_many
from models.catalogues import CATALOGUES, Catalogue, declare
from models.session import Database

TABLE = sa.Table(
    "bench_record",
    sa.MetaData(),
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("email", sa.String(255)),
    sa.Column("phone", sa.String(40)),
    sa.Column("street", sa.String(255)),
    sa.Column("city", sa.String(100)),
    sa.Column("postal_code", sa.String(20)),
    sa.Column("country", sa.String(2)),
    sa.Column("currency", sa.String(3)),
    sa.Column("notes", sa.Text),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("credit_limit", sa.BigInteger),
    sa.Column("reference", sa.String(64)),
)

CATALOGUE = CATALOGUES.get(TABLE.name) or declare(Catalogue(TABLE.name, TABLE))

#: The most rows of one INSERT.
_PAGE = 5_000


def insert(connection: sa.Connection, ids: Iterable[int]) -> None:
    """Insert records with these numbers as ids."""
    rows = [{"id": number, **make(number)} for number in ids]
    for start in range(0, len(rows), _PAGE):
        insert_many(connection, TABLE, rows[start : start + _PAGE])


def commit_new(database: Database, ids: Iterable[int]) -> tuple[int, int]:
    """Write new records in one transaction; return the monotonic nanoseconds before and after the commit."""
    with database.write() as connection:
        insert(connection, ids)
        began = time.monotonic_ns()
    return began, time.monotonic_ns()


def commit_edits(database: Database, ids: Iterable[int], **values: object) -> tuple[int, int]:
    """Set columns of some records in one UPDATE; return the monotonic nanoseconds before and after the commit."""
    with database.write() as connection:
        connection.execute(sa.update(TABLE).where(TABLE.c.id.in_(list(ids))).values(**values))
        began = time.monotonic_ns()
    return began, time.monotonic_ns()
