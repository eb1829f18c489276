"""Finding one's way in a history, however long it is.

Ids grow with time, so where a time lies is found by narrowing down, and no index on the time is needed.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from models.base import UtcDateTime
from models.ledger import Change, Delivery

#: Places looked at with one statement.
_PLACES = 16

#: Rows of one record's history that are looked through for what is not indexed.
_NEWEST = 200


def bounds(connection: sa.Connection, table: Any) -> tuple[int, int]:
    """The first id of a table and the one after its last; (0, 0) for an empty one."""
    # Apart: together neither is read from the end of the index on SQLite.
    low = connection.execute(sa.select(sa.func.min(table.id))).scalar()
    high = connection.execute(sa.select(sa.func.max(table.id))).scalar()
    return (0, 0) if low is None or high is None else (low, high + 1)


def first_since(connection: sa.Connection, table: Any, at: Any, since: datetime) -> int:
    """The id from which on a table's rows are no older than `since`; `at` is its column that tells."""
    low, high = bounds(connection, table)
    statement = _next_rows(table.__tablename__, at.key)
    while low < high:
        places = [low + (high - low) * part // _PLACES for part in range(_PLACES)]
        rows = connection.execute(statement, {f"place_{part}": place for part, place in enumerate(places)})
        near = {part: (found, when) for part, found, when in rows}
        for part, place in enumerate(places):
            if part not in near or near[part][1] >= since:  # none: removed meanwhile
                high = place
                break
            low = near[part][0] + 1
    return low


@lru_cache
def _next_rows(table: str, at: str) -> Any:
    """The next row (place's number, id, time) from each of some places on; one statement, and made only once."""
    rows = [
        f"SELECT * FROM (SELECT {part}, id, {at} FROM {table} WHERE id >= :place_{part} ORDER BY id LIMIT 1) AS x{part}"
        for part in range(_PLACES)
    ]
    types = (sa.column("part", sa.Integer), sa.column("id", sa.BigInteger), sa.column("at", UtcDateTime))
    return sa.text(" UNION ALL ".join(rows)).columns(*types)


def newest_delivery(connection: sa.Connection, record_id: str, subscriber: str, outcome: str) -> Any:
    """The newest delivery (`reason`, `at`) of a record to a subscriber that ended so; None if there is none.

    Only the newest deliveries of the record are looked through, however many it has.
    """
    columns = (Delivery.id, Delivery.subscriber, Delivery.outcome, Delivery.reason, Delivery.at)
    newest = sa.select(*columns).where(Delivery.record_id == record_id).order_by(Delivery.id.desc())
    looked = newest.limit(_NEWEST).subquery()
    mine = sa.select(looked).where(looked.c.subscriber == subscriber, looked.c.outcome == outcome)
    return connection.execute(mine.order_by(looked.c.id.desc()).limit(1)).one_or_none()


def waiting_since(connection: sa.Connection, catalogue: str, record_id: str) -> datetime | None:
    """When the oldest change of a record was captured that the relay has not routed yet."""
    of = (Change.catalogue == catalogue, Change.record_id == record_id)
    newest = sa.select(Change.id, Change.at, Change.relayed_at).where(*of).order_by(Change.id.desc())
    looked = newest.limit(_NEWEST).subquery()
    waits = sa.select(looked.c.at).where(looked.c.relayed_at.is_(None)).order_by(looked.c.id).limit(1)
    since: datetime | None = connection.execute(waits).scalar()
    return since
