"""Find rows of a long history by their time.

Ids grow with time, so a time is found by narrowing down a range of ids, without an index on the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa

from models.base import UtcDateTime
from models.ledger import Change, Delivery
from models.query_hints import no_index

#: Ids probed with one statement.
_PROBES = 16

#: The newest rows of a record's history that are searched by columns without an index.
_NEWEST = 200


def bounds(connection: sa.Connection, table: Any) -> tuple[int, int]:
    """Return the first id of a table, and its last id plus one; (0, 0) for an empty table."""
    # Two statements: SQLite reads the end of the index only for a single min() or max().
    low = connection.execute(sa.select(sa.func.min(table.id))).scalar()
    high = connection.execute(sa.select(sa.func.max(table.id))).scalar()
    return (0, 0) if low is None or high is None else (low, high + 1)


def first_since(connection: sa.Connection, table: Any, at: Any, since: datetime) -> int:
    """Return the first id whose row is not older than `since`; `at` is the column with the time."""
    low, high = bounds(connection, table)
    statement = _next_rows(table.__tablename__, at.key)
    while low < high:
        places = [low + (high - low) * part // _PROBES for part in range(_PROBES)]
        rows = connection.execute(statement, {f"place_{part}": place for part, place in enumerate(places)})
        near = {part: (found, when) for part, found, when in rows}
        for part, place in enumerate(places):
            if part not in near or near[part][1] >= since:  # no row: removed in the meantime
                high = place
                break
            low = near[part][0] + 1
    return low


@lru_cache
def _next_rows(table: str, at: str) -> Any:
    """Return a cached statement for the next row (number of the probe, id, time) after each probed id."""
    rows = [
        f"SELECT * FROM (SELECT {part}, id, {at} FROM {table} WHERE id >= :place_{part} ORDER BY id LIMIT 1) AS x{part}"
        for part in range(_PROBES)
    ]
    types = (sa.column("part", sa.Integer), sa.column("id", sa.BigInteger), sa.column("at", UtcDateTime))
    return sa.text(" UNION ALL ".join(rows)).columns(*types)


class Outcome(NamedTuple):
    """How an outward delivery ended, and when."""

    reason: str | None
    at: datetime


def newest_delivery(connection: sa.Connection, record_id: str, subscriber: str, outcome: str) -> Outcome | None:
    """Return the newest outward delivery of a record to a subscriber with this outcome, or None.

    Only the newest deliveries of the record are searched.
    """
    columns = (Delivery.id, Delivery.subscriber, Delivery.direction, Delivery.outcome, Delivery.reason, Delivery.at)
    newest = sa.select(*columns).where(Delivery.record_id == record_id).order_by(Delivery.id.desc())
    looked = newest.limit(_NEWEST).subquery()
    mine = (looked.c.subscriber == subscriber, looked.c.direction == "out", looked.c.outcome == outcome)
    newest_of_it = sa.select(looked.c.reason, looked.c.at).where(*mine).order_by(looked.c.id.desc()).limit(1)
    row = connection.execute(newest_of_it).one_or_none()
    return Outcome._make(row) if row is not None else None


def waiting_since(
    connection: sa.Connection, catalogue: str, record_ids: Sequence[str], system: str
) -> dict[str, datetime]:
    """Return those of these records that have a change for `system` which the relay has not routed: since when.

    The system that a change came from does not receive it back.
    """
    first = connection.execute(sa.select(sa.func.min(Change.id)).where(Change.relayed_at.is_(None))).scalar()
    if first is None:
        return {}
    of = (Change.catalogue == catalogue, Change.record_id.in_(record_ids), Change.id >= first)
    elsewhere = sa.or_(Change.origin.is_(None), Change.origin != system)
    waiting = sa.select(Change.record_id, sa.func.min(Change.at)).where(
        *of, no_index(Change.relayed_at).is_(None), elsewhere
    )
    return {record_id: at for record_id, at in connection.execute(waiting.group_by(Change.record_id))}
