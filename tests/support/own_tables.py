"""Tables of another application, declared as catalogues for the length of a test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from models import capture
from models.catalogues import CATALOGUES, Catalogue, declare
from models.ledger import Change
from models.session import Database


@contextmanager
def owned(database: Database, catalogue: Catalogue, *statements: str) -> Iterator[Catalogue]:
    """Declare a catalogue; create its table by these statements, or as it is declared; install the triggers."""
    execute(database, *statements)
    if not statements:
        catalogue.table.metadata.create_all(database.engine)
    declare(catalogue)
    try:
        with database.write() as connection:
            capture.install(connection)
        yield catalogue
    finally:
        del CATALOGUES[catalogue.name]


def execute(database: Database, *statements: str) -> None:
    """Run statements as another program would, each in its own transaction."""
    for statement in statements:
        with database.write() as connection:
            connection.exec_driver_sql(statement)


def captured(database: Database, *statements: str) -> list[tuple[str, str]]:
    """Run statements; return (record, operation) of the changes they made, in order."""
    with database.write() as connection:
        connection.execute(sa.delete(Change))
    execute(database, *statements)
    with database.read() as connection:
        rows: Sequence[Any] = connection.execute(
            sa.select(Change.record_id, Change.operation).order_by(Change.id)
        ).all()
    return [(row.record_id, row.operation) for row in rows]


def table(name: str, key: sa.types.TypeEngine[Any] | None = None, *columns: sa.Column[Any]) -> sa.Table:
    """Return a table of its own metadata with the key `id`."""
    return sa.Table(name, sa.MetaData(), sa.Column("id", key or sa.Integer(), primary_key=True), *columns)
