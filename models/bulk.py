"""Many rows in one statement.

On PostgreSQL the rows are one JSON parameter that is joined as a table, so that a batch of any size
takes one round trip and one plan ("JSON Processing Functions": json_to_recordset). SQLite has no
round trips: the driver writes the rows one by one, converted here to the form in which SQLAlchemy
stores them, which takes a third of its own conversion's time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, cast

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from models.base import ShownJson, ShownText, UtcDateTime

Row = Mapping[str, Any]
_DIALECT: sa.Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]

#: The name of the column that `version_of` selects.
ROW_VERSION = "row_version"


def insert_many(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Insert rows that all have the same columns."""
    if not rows:
        return
    rows, columns = _as_shown(table, rows), tuple(rows[0])
    names = ", ".join(columns)
    if connection.dialect.name != "postgresql":
        _run_each(connection, f"INSERT INTO {table.name} ({names}) VALUES ({_marks(columns)})", table, columns, rows)
        return
    _run(connection, f"INSERT INTO {table.name} ({names}) SELECT {names} FROM {_rows(table, columns)}", rows)


def update_many(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Row], match: Sequence[str] = ("id",)
) -> None:
    """Set these columns of the rows whose `match` columns have these values; all have the same columns."""
    if not rows:
        return
    rows = _as_shown(table, rows)
    columns = [name for name in rows[0] if name not in match]
    if connection.dialect.name == "postgresql":
        values = ", ".join(f"{name} = new_row.{name}" for name in columns)
        found = " AND ".join(f"{table.name}.{name} = new_row.{name}" for name in match)
        source = _rows(table, (*match, *columns))
        _run(connection, f"UPDATE {table.name} SET {values} FROM {source} WHERE {found}", rows)
        return
    values = ", ".join(f"{name} = ?" for name in columns)
    found = " AND ".join(f"{name} = ?" for name in match)
    _run_each(connection, f"UPDATE {table.name} SET {values} WHERE {found}", table, (*columns, *match), rows)


def version_of(dialect: str, table: sa.Table) -> list[Any]:
    """Return the column to select in addition to a table's own, so that `update_if` detects a changed row."""
    expression, _ = _present(dialect, table, ROW_VERSION)
    text = f"{expression}::text" if dialect == "postgresql" else expression
    return [sa.literal_column(text, sa.Text).label(ROW_VERSION)]


def update_if(
    connection: sa.Connection,
    table: sa.Table,
    rows: Sequence[Row],
    was: Sequence[Row],
    also_insert: tuple[sa.Table, Sequence[Row]] | None = None,
) -> set[int]:
    """Update rows by `id` if they still have their previous values; return the ids of the updated rows.

    `was` holds the previous values of some columns of each row, never NULL, or the column of `version_of`.
    `also_insert` is another table, and for each row one to insert there if the row is updated. On PostgreSQL all of
    it is one statement.
    """
    if not rows:
        return set()
    rows = _as_shown(table, rows)
    columns = tuple(name for name in rows[0] if name != "id")
    present = {name: _present(connection.dialect.name, table, name) for name in was[0]}
    if connection.dialect.name == "postgresql":
        source = _rows(table, ("id", *columns), *(f"was_{name} {kind}" for name, (_, kind) in present.items()))
        stands = " AND ".join(f"{expression} = new_row.was_{name}" for name, (expression, _) in present.items())
        values = ", ".join(f"{name} = new_row.{name}" for name in columns)
        text = f"UPDATE {table.name} SET {values} FROM {source} WHERE {table.name}.id = new_row.id AND {stands}"
        text += f" RETURNING {table.name}.id"
        known = [
            {**row, **{f"was_{name}": value for name, value in old.items()}} for row, old in zip(rows, was, strict=True)
        ]
        if also_insert is None:
            return set(_run(connection, text, known).scalars().all())
        other, made = also_insert[0], _as_shown(*also_insert)
        names = ", ".join(made[0])
        source = _rows(other, tuple(made[0]), "for_id bigint", parameter="made")
        inserted = (
            f"INSERT INTO {other.name} ({names}) SELECT {names} FROM {source} JOIN updated ON updated.id = for_id"
        )
        text = f"WITH updated AS ({text}), inserted AS ({inserted}) SELECT id FROM updated"
        made = [{**new, "for_id": row["id"]} for row, new in zip(rows, made, strict=True)]
        return set(_run(connection, text, known, made=made).scalars().all())
    previous = json.dumps([[row["id"], *old.values()] for row, old in zip(rows, was, strict=True)])
    stands = " AND ".join(
        f"{expression} = json_extract(known.value, '$[{place}]')"
        for place, (expression, _) in enumerate(present.values(), start=1)
    )
    statement = (
        f"SELECT {table.name}.id FROM json_each(?) AS known "
        f"JOIN {table.name} ON {table.name}.id = json_extract(known.value, '$[0]') WHERE {stands}"
    )
    unchanged = set(connection.exec_driver_sql(statement, (previous,)).scalars())
    update_many(connection, table, [row for row in rows if row["id"] in unchanged])
    if also_insert is not None:
        insert_many(
            connection,
            also_insert[0],
            [new for row, new in zip(rows, also_insert[1], strict=True) if row["id"] in unchanged],
        )
    return unchanged


def _present(dialect: str, table: sa.Table, name: str) -> tuple[str, str]:
    """Return the SQL of a row's present value, and its type on PostgreSQL.

    The version of a row is the transaction that wrote it on PostgreSQL ("System Columns": xmin), and all of its
    values on SQLite.
    """
    if name != ROW_VERSION:
        return f"{table.name}.{name}", table.c[name].type.compile(_DIALECT)
    return (f"{table.name}.xmin", "xid") if dialect == "postgresql" else (_whole(table), "")


def upsert_many(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Row], match: Sequence[str], changes: Mapping[str, str]
) -> None:
    """Insert rows that all have the same columns; update the existing row if the `match` columns conflict.

    `changes` is the update: column -> an SQL expression over `excluded` and the table. The rows are locked in the
    given order.
    """
    if not rows:
        return
    rows, columns = _as_shown(table, rows), tuple(rows[0])
    names = ", ".join(columns)
    values = ", ".join(f"{name} = {expression}" for name, expression in changes.items())
    conflict = f"ON CONFLICT ({', '.join(match)}) DO UPDATE SET {values}"
    if connection.dialect.name == "postgresql":
        _run(
            connection,
            f"INSERT INTO {table.name} ({names}) SELECT {names} FROM {_rows(table, columns)} {conflict}",
            rows,
        )
        return
    text = f"INSERT INTO {table.name} ({names}) VALUES ({_marks(columns)}) {conflict}"
    _run_each(connection, text, table, columns, rows)


def in_values(connection: sa.Connection, column: Any, values: Iterable[Any]) -> sa.ColumnElement[bool]:
    """Return the condition that `column` is one of these values, as one parameter for any number of values."""
    chosen = list(values)
    dialect = connection.dialect.name
    if not is_list(dialect, chosen):
        return cast("sa.ColumnElement[bool]", column.in_(chosen))
    return in_param(dialect, column, None, as_list(dialect, chosen))


def in_param(dialect: str, column: Any, name: str | None, value: Any = None) -> sa.ColumnElement[bool]:
    """Return the condition that `column` is one of the values of a named parameter, for a cached statement.

    Pass `as_list(values)` for the parameter.
    """
    if dialect == "postgresql":
        array = postgresql.ARRAY(column.type)
        given = sa.select(sa.bindparam(name, value, type_=array, unique=name is None)).scalar_subquery()
        # In a subquery, so that PostgreSQL does not plan again for each number of values.
        return cast("sa.ColumnElement[bool]", column == sa.any_(sa.cast(given, array)))
    one = sa.func.json_each(sa.bindparam(name, value, type_=sa.Text, unique=name is None)).table_valued("value")
    return cast("sa.ColumnElement[bool]", column.in_(sa.select(one.c.value)))


def is_list(dialect: str, values: Sequence[Any]) -> bool:
    """Whether `as_list` can represent these values; on SQLite a list is JSON."""
    return dialect == "postgresql" or all(type(value) in (int, str) for value in values)


def as_list(dialect: str, values: Sequence[Any]) -> Any:
    """Return values as the parameter of `in_param`."""
    return list(values) if dialect == "postgresql" else json.dumps(list(values))  # orjson cannot write large integers


def _as_shown(table: sa.Table, rows: Sequence[Row]) -> Sequence[Row]:
    """Return rows whose texts for operators hold no secrets."""
    shown = [(name, kind) for name in rows[0] if isinstance(kind := table.c[name].type, ShownText | ShownJson)]
    if not shown:
        return rows
    return [{**row, **{name: kind.process_bind_param(row[name], None) for name, kind in shown}} for row in rows]


def _run(connection: sa.Connection, text: str, rows: Sequence[Row], **more: Sequence[Row]) -> sa.CursorResult[Any]:
    tables = {"rows": rows, **more}
    return connection.exec_driver_sql(text, {name: _as_json(table) for name, table in tables.items()})


def _as_json(rows: Sequence[Row]) -> str:
    return orjson.dumps(list(rows), default=str).decode()


@lru_cache
def _rows(table: sa.Table, columns: tuple[str, ...], *more: str, parameter: str = "rows") -> str:
    types = ", ".join([*(f"{name} {table.c[name].type.compile(_DIALECT)}" for name in columns), *more])
    return f"json_to_recordset(%({parameter})s::json) AS new_row ({types})"


def _run_each(
    connection: sa.Connection, text: str, table: sa.Table, columns: Sequence[str], rows: Sequence[Row]
) -> None:
    stored = [(name, _as_stored(table.c[name].type)) for name in columns]
    values = [tuple(None if row[name] is None else made(row[name]) for name, made in stored) for row in rows]
    connection.exec_driver_sql(text, values)


@lru_cache(maxsize=64)  # a batch writes the same time to many rows
def _utc_text(at: datetime) -> str:
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def _as_stored(kind: Any) -> Callable[[Any], Any]:
    """Return the function that converts a value as SQLAlchemy stores this type in SQLite."""
    if isinstance(kind, UtcDateTime):
        return _utc_text
    if isinstance(kind, sa.JSON | ShownJson):
        return lambda value: orjson.dumps(value, default=str).decode()
    return int if isinstance(kind, sa.Boolean) else lambda value: value


def _marks(columns: Sequence[str]) -> str:
    return ", ".join("?" * len(columns))


@lru_cache
def _whole(table: sa.Table) -> str:
    return f"json_array({', '.join(f'{table.name}.{column.name}' for column in table.c)})"
