"""Many rows in one statement.

On PostgreSQL the rows travel as one JSON parameter and are joined as a table, so that a batch costs
one round trip and one plan however long it is ("JSON Processing Functions": json_to_recordset).
SQLite has no round trips: there they are written one by one by the driver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

Row = Mapping[str, Any]
_DIALECT: sa.Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]


def insert_many(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Insert rows that all have the same columns."""
    if not rows:
        return
    if connection.dialect.name != "postgresql":
        connection.execute(sa.insert(table), list(rows))
        return
    columns = tuple(name for name in rows[0])
    names = ", ".join(columns)
    _run(connection, f"INSERT INTO {table.name} ({names}) SELECT {names} FROM {_rows(table, columns)}", rows)


def update_many(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Row], match: Sequence[str] = ("id",)
) -> None:
    """Set these columns of the rows whose `match` columns have these values; all have the same columns."""
    if not rows:
        return
    columns = [name for name in rows[0] if name not in match]
    if connection.dialect.name == "postgresql":
        values = ", ".join(f"{name} = new_row.{name}" for name in columns)
        found = " AND ".join(f"{table.name}.{name} = new_row.{name}" for name in match)
        source = _rows(table, (*match, *columns))
        _run(connection, f"UPDATE {table.name} SET {values} FROM {source} WHERE {found}", rows)
        return
    bound = [{f"new_{name}": value for name, value in row.items()} for row in rows]
    connection.execute(_one_by_one(table, tuple(columns), tuple(match)), bound)


def _run(connection: sa.Connection, text: str, rows: Sequence[Row]) -> None:
    connection.exec_driver_sql(text, {"rows": orjson.dumps(list(rows), default=str).decode()})


@lru_cache
def _rows(table: sa.Table, columns: tuple[str, ...]) -> str:
    types = ", ".join(f"{name} {table.c[name].type.compile(_DIALECT)}" for name in columns)
    return f"json_to_recordset(%(rows)s::json) AS new_row ({types})"


@lru_cache
def _one_by_one(table: sa.Table, columns: tuple[str, ...], match: tuple[str, ...]) -> Any:
    bound = {name: sa.bindparam(f"new_{name}", type_=table.c[name].type) for name in (*match, *columns)}
    found = [table.c[name] == bound[name] for name in match]
    return sa.update(table).where(*found).values({name: bound[name] for name in columns})
