"""Forms of conditions that make both databases use the index meant for them.

PostgreSQL plans by statistics of single columns. They do not cover the ledger's usual conditions: one column greater
than another, or a row that is still open. SQLite has no statistics here.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import visitors


def range_equals(column: Any, value: Any) -> sa.ColumnElement[bool]:
    """Return `column = value` as a range, for a query ordered by this column and then by id.

    With `=` the planner reduces that order to the id, which the primary key provides too. PostgreSQL estimates pending
    links at a third of all rows, and would scan the whole table by its primary key.
    """
    condition: sa.ColumnElement[bool] = column.between(value, value)
    return condition


def no_index(condition: Any) -> Any:
    """Return a condition that is checked row by row: without statistics SQLite would use any index on its column."""
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
