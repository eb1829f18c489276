"""Whether every write to a table can be captured; where not, the reason, before a trigger is installed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import sqlalchemy as sa

from models.capture_sources import Source
from models.postgresql_triggers import Place
from models.record_ids import kind_of_key
from models.sqlite_triggers import uniques_of


class CaptureRefused(Exception):
    """Some writes to a table could not be captured. `reasons` has a sentence for each problem; nothing was changed."""

    def __init__(self, reasons: Iterable[str]) -> None:
        self.reasons = list(reasons)
        super().__init__("\n".join(self.reasons))


_KINDS = {
    "v": "is a view. Declare the table that it reads",
    "m": "is a materialized view. Declare a table that it reads",
    "f": "is a foreign table, which other servers write. Declare it in a hub on that server's database",
}

_RELATION = sa.text("""
    SELECT c.oid, c.relkind::text AS kind, c.relispartition AS is_partition,
        format('%I.%I', n.nspname, c.relname) AS name, quote_ident(current_schema()) AS ledger,
        EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid) AS inherits,
        EXISTS (SELECT FROM pg_subscription_rel s WHERE s.srrelid = c.oid) AS is_subscribed
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass(:name)
""")
# A domain counts as the type that it restricts.
_TYPES = sa.text("""
    SELECT a.attname AS name, coalesce(base.typname, t.typname)::text AS type
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_type base ON base.oid = t.typbasetype
    WHERE a.attrelid = to_regclass(:name) AND a.attnum > 0 AND NOT a.attisdropped
""")

#: Type of a key in PostgreSQL -> its kind in `record_ids`; others are texts.
_KEYS = {
    "int2": "integer",
    "int4": "integer",
    "int8": "integer",
    "numeric": "number",
    "uuid": "uuid",
    "date": "date",
    "timestamp": "timestamp",
    "timestamptz": "instant",
    "bytea": "bytes",
    "inet": "address",
}

_DESCENDANTS = sa.text("""
    WITH RECURSIVE tree AS (
        SELECT inhrelid AS oid FROM pg_inherits WHERE inhparent = :oid
        UNION ALL SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid
    )
    SELECT format('%I.%I', n.nspname, c.relname) AS name, c.relkind::text AS kind
    FROM tree JOIN pg_class c ON c.oid = tree.oid JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY 1
""")


def exists(connection: sa.Connection, source: Source) -> bool:
    """Return whether there is a table or view of this name."""
    inspector, table = sa.inspect(connection), source.table
    if connection.dialect.name == "postgresql":
        return connection.execute(_RELATION, {"name": _quoted(connection, table)}).first() is not None
    return inspector.has_table(table.name, schema=table.schema)


def place_of(connection: sa.Connection, source: Source) -> Place:
    """Return where a source is in a PostgreSQL database."""
    found = connection.execute(_RELATION, {"name": _quoted(connection, source.table)}).one()
    below = connection.execute(_DESCENDANTS, {"oid": found.oid}).all()
    by_row = found.kind == "p" or found.inherits
    return Place(found.name, found.ledger, by_row, tuple(row.name for row in below))


def problems(connection: sa.Connection, source: Source) -> Iterator[str]:
    """Yield the reasons why some writes to the table of a source could not be captured."""
    about = f"{source.catalogue}: {source.table.name}"
    if kind_of_key(source.key.type) is None:
        yield (
            f"{about}.{source.key.name} is of type {source.key.type!r}, whose values have no exact text. "
            "Use a key that is a number without a fraction, a text, a UUID or a date"
        )
    if not source.primary_key:
        yield f"{about} has no primary key. Add one, and declare its columns with primary_key=True"
    columns = _columns(connection, source.table)
    if missing := [column.name for column in source.table.c if column.name not in columns]:
        yield f"{about} has no column {', '.join(missing)}. Correct the declaration of the catalogue"
    elif connection.dialect.name == "postgresql":
        yield from _postgresql(connection, source, about)
        actual = columns[source.key.name]
        if kind_of_key(source.key.type) not in (None, _KEYS.get(actual, "text")):
            yield (
                f"{about}.{source.key.name} is declared as {source.key.type!r}, but it is {actual} in the database. "
                "Declare that type"
            )
    else:
        yield from _sqlite(connection, source, about)


def _columns(connection: sa.Connection, table: sa.Table) -> dict[str, str]:
    """Return the columns that the database has, each with the name of its type."""
    if connection.dialect.name == "postgresql":
        rows = connection.execute(_TYPES, {"name": _quoted(connection, table)})
    else:
        rows = connection.execute(sa.text("SELECT name, type FROM pragma_table_xinfo(:name)"), {"name": table.name})
    return {row.name: row.type for row in rows}


def _postgresql(connection: sa.Connection, source: Source, about: str) -> Iterator[str]:
    found = connection.execute(_RELATION, {"name": _quoted(connection, source.table)}).one()
    if found.kind in _KINDS:
        yield f"{about} {_KINDS[found.kind]}"
        return
    below = connection.execute(_DESCENDANTS, {"oid": found.oid}).all()
    if found.kind == "r" and below:
        yield (
            f"{about} has tables that inherit from it ({', '.join(row.name for row in below)}), and a write to a "
            "table that is added later would be lost. Use declarative partitioning (PARTITION BY)"
        )
    if foreign := [row.name for row in below if row.kind == "f"]:
        yield f"{about} has partitions on other servers ({', '.join(foreign)}), where nothing can be captured"
    if found.is_subscribed:
        yield f"{about} is filled by logical replication, which runs no triggers of statements"


def _sqlite(connection: sa.Connection, source: Source, about: str) -> Iterator[str]:
    found = connection.execute(
        sa.text("SELECT type, sql FROM sqlite_master WHERE name = :name"), {"name": source.table.name}
    ).one()
    if found.type != "table":
        yield f"{about} {_KINDS['v']}"
    elif found.sql.lstrip().upper().startswith("CREATE VIRTUAL"):
        yield f"{about} is a virtual table, which has no triggers. Declare the table that holds its data"
    else:
        try:
            uniques_of(connection, source)
        except LookupError as error:
            yield (
                f"{about} has the unique index {error.args[0]} over an expression: a row that REPLACE displaces by it "
                "could not be captured. Put the index on a generated column with that expression"
            )


def _quoted(connection: sa.Connection, table: sa.Table) -> str:
    return connection.dialect.identifier_preparer.format_table(table)
