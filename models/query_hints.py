"""Saying a condition so that both databases find its rows by the index made for it, whatever else is in the table.

PostgreSQL plans by statistics of single columns, which tell nothing of what a ledger asks most: the few rows where one
column is greater than another, or where something is still open. SQLite has no statistics here at all.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import visitors


def range_equals(column: Any, value: Any) -> sa.ColumnElement[bool]:
    """`column = value`, to be ordered by that column and then by the id: an order only their index has.

    Said with an equal sign the order is that of the ids alone, which the primary key has too: PostgreSQL takes what is
    owed for a third of all rows, however few they are, and would look for the first ones through the whole table.
    """
    condition: sa.ColumnElement[bool] = column.between(value, value)
    return condition


def no_index(condition: Any) -> Any:
    """A condition to be checked row by row: SQLite, which has no statistics, would take any index on its column."""
    return visitors.replacement_traverse(condition, {}, _unindexed)


class _Unindexed(sa.ColumnElement[Any]):
    inherit_cache = True
    _traverse_internals = [("column", visitors.InternalTraversal.dp_clauseelement)]

    def __init__(self, column: sa.ColumnElement[Any]) -> None:
        self.column = column
        self.type = column.type


def _unindexed(element: Any, **_options: Any) -> Any:
    return _Unindexed(element) if isinstance(element, sa.Column) else None


@compiles(_Unindexed)
def _compile(element: _Unindexed, compiler: Any, **options: Any) -> str:
    text: str = compiler.process(element.column, **options)
    return f"+{text}" if compiler.dialect.name == "sqlite" else text
