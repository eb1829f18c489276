"""Where in a history a time lies: ids grow with time, so bisection finds it and no index on the time is needed."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa


def bounds(connection: sa.Connection, table: Any) -> tuple[int, int]:
    """The first id of a table and the one after its last; (0, 0) for an empty one."""
    # Apart: together neither is read from the end of the index on SQLite.
    low = connection.execute(sa.select(sa.func.min(table.id))).scalar()
    high = connection.execute(sa.select(sa.func.max(table.id))).scalar()
    return (0, 0) if low is None or high is None else (low, high + 1)


def first_since(connection: sa.Connection, table: Any, at: Any, since: datetime) -> int:
    """The id from which on a table's rows are no older than `since`; `at` is its column that tells."""
    low, high = bounds(connection, table)
    while low < high:
        middle = (low + high) // 2
        found = sa.select(table.id, at).where(table.id >= middle).order_by(table.id).limit(1)
        near = connection.execute(found).one_or_none()
        if near is None:  # removed meanwhile
            high = middle
        elif near[1] < since:
            low = near[0] + 1
        else:
            high = middle
    return low
