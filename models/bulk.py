"""Many rows in one statement.

On PostgreSQL the rows travel as one JSON parameter and are joined as a table, so that a batch costs
one round trip and one plan however long it is ("JSON Processing Functions": json_to_recordset).
SQLite has no round trips: there they are written one by one by the driver, with values in the form
SQLAlchemy stores them in, which costs a third of having it convert each.
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

from models.base import UtcDateTime

Row = Mapping[str, Any]
_DIALECT: sa.Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]

#: What `version_of` reads.
ROW_VERSION = "row_version"


def insert_many(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Insert rows that all have the same columns."""
    if not rows:
        return
    columns = tuple(rows[0])
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
    """What to select beside a table's columns so that `update_if` can tell a row that was touched since."""
    expression, _ = _present(dialect, table, ROW_VERSION)
    text = f"{expression}::text" if dialect == "postgresql" else expression
    return [sa.literal_column(text, sa.Text).label(ROW_VERSION)]


def update_if(
    connection: sa.Connection,
    table: sa.Table,
    rows: Sequence[Row],
    was: Sequence[Row],
    beside: tuple[sa.Table, Sequence[Row]] | None = None,
) -> set[int]:
    """As `update_many` by `id`, of those rows in which what they were (`was`) still stands; the ids of these.

    `was` has columns of the table, never NULL, or what `version_of` read. `beside` is another table and for each of the
    rows one to be inserted there if it is updated. All of it is one statement on PostgreSQL.
    """
    if not rows:
        return set()
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
        if beside is None:
            return set(_run(connection, text, known).scalars().all())
        other, made = beside
        names = ", ".join(made[0])
        source = _rows(other, tuple(made[0]), "for_id bigint", parameter="made")
        inserted = (
            f"INSERT INTO {other.name} ({names}) SELECT {names} FROM {source} JOIN updated ON updated.id = for_id"
        )
        text = f"WITH updated AS ({text}), inserted AS ({inserted}) SELECT id FROM updated"
        made = [{**new, "for_id": row["id"]} for row, new in zip(rows, made, strict=True)]
        return set(_run(connection, text, known, made=made).scalars().all())
    told = json.dumps([[row["id"], *old.values()] for row, old in zip(rows, was, strict=True)])
    stands = " AND ".join(
        f"{expression} = json_extract(known.value, '$[{place}]')"
        for place, (expression, _) in enumerate(present.values(), start=1)
    )
    statement = (
        f"SELECT {table.name}.id FROM json_each(?) AS known "
        f"JOIN {table.name} ON {table.name}.id = json_extract(known.value, '$[0]') WHERE {stands}"
    )
    standing = set(connection.exec_driver_sql(statement, (told,)).scalars())
    update_many(connection, table, [row for row in rows if row["id"] in standing])
    if beside is not None:
        insert_many(
            connection, beside[0], [new for row, new in zip(rows, beside[1], strict=True) if row["id"] in standing]
        )
    return standing


def _present(dialect: str, table: sa.Table, name: str) -> tuple[str, str]:
    """What stands in a row now, as SQL, and its type on PostgreSQL.

    A row's version is there the transaction that wrote it ("System Columns": xmin), on SQLite all that is in it.
    """
    if name != ROW_VERSION:
        return f"{table.name}.{name}", table.c[name].type.compile(_DIALECT)
    return (f"{table.name}.xmin", "xid") if dialect == "postgresql" else (_whole(table), "")


def upsert_many(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Row], match: Sequence[str], changes: Mapping[str, str]
) -> None:
    """Insert rows that all have the same columns; where `match` is taken, do `changes` to the row there is.

    `changes` are SQL: column -> an expression over `excluded` and the table. The rows are locked in the given order.
    """
    if not rows:
        return
    columns = tuple(rows[0])
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
    """`column` is one of these values: as one parameter, so that the statement is the same however many they are."""
    chosen = list(values)
    dialect = connection.dialect.name
    if not is_list(dialect, chosen):
        return cast("sa.ColumnElement[bool]", column.in_(chosen))
    return in_param(dialect, column, None, as_list(dialect, chosen))


def in_param(dialect: str, column: Any, name: str | None, value: Any = None) -> sa.ColumnElement[bool]:
    """`column` is one of the values of the parameter of this name, for a statement that is built once.

    What is given for it is made by `as_list`.
    """
    if dialect == "postgresql":
        array = postgresql.ARRAY(column.type)
        given = sa.select(sa.bindparam(name, value, type_=array, unique=name is None)).scalar_subquery()
        # From a subquery, so that the plan is not one for this many values: PostgreSQL would make a new one each time.
        return cast("sa.ColumnElement[bool]", column == sa.any_(sa.cast(given, array)))
    one = sa.func.json_each(sa.bindparam(name, value, type_=sa.Text, unique=name is None)).table_valued("value")
    return cast("sa.ColumnElement[bool]", column.in_(sa.select(one.c.value)))


def is_list(dialect: str, values: Sequence[Any]) -> bool:
    """Whether `as_list` takes them: SQLite has no other lists than those JSON can say."""
    return dialect == "postgresql" or all(type(value) in (int, str) for value in values)


def as_list(dialect: str, values: Sequence[Any]) -> Any:
    """Values as the parameter of `in_param`."""
    return list(values) if dialect == "postgresql" else json.dumps(list(values))  # of any length, unlike orjson's


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


@lru_cache(maxsize=64)  # a batch writes one time many times
def _utc_text(at: datetime) -> str:
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def _as_stored(kind: Any) -> Callable[[Any], Any]:
    """How SQLAlchemy writes a value of this type into SQLite."""
    if isinstance(kind, UtcDateTime):
        return _utc_text
    if isinstance(kind, sa.JSON):
        return lambda value: orjson.dumps(value, default=str).decode()
    return int if isinstance(kind, sa.Boolean) else lambda value: value


def _marks(columns: Sequence[str]) -> str:
    return ", ".join("?" * len(columns))


@lru_cache
def _whole(table: sa.Table) -> str:
    return f"json_array({', '.join(f'{table.name}.{column.name}' for column in table.c)})"
