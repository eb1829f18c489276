"""Conflicts as the panel lists them: open ones by subscriber and field, resolved ones as a history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from conductor.reports import pages
from models.ledger import Conflict
from models.rows import ConflictRow
from subscribers.base import Subscriber

#: Subscribers and fields with open conflicts that are counted at most.
_KINDS = 12
#: Conflicts of one field that are read as examples.
_EXAMPLES = 5

_IS_OPEN = Conflict.resolved_at.is_(None)


def newest_open(
    connection: sa.Connection, subscriber: str | None, field: str | None, before: int | None
) -> pages.Listing:
    """Return a page of open conflicts, read per subscriber to use their index."""
    conditions = [_IS_OPEN] if field is None else [_IS_OPEN, Conflict.path == field]
    # Configured or not: a conflict of a subscriber that was removed stays open.
    names = (
        [subscriber]
        if subscriber is not None
        else connection.scalars(sa.select(Conflict.subscriber).where(_IS_OPEN).distinct())
    )
    listings = [
        pages.newest(connection, Conflict, conditions, before=before, within=(Conflict.subscriber, name))
        for name in list(names)
    ]
    return pages.merge(listings)


def newest_resolved(
    connection: sa.Connection, subscriber: str | None, field: str | None, before: int | None
) -> pages.Listing:
    """Return a page of resolved conflicts."""
    asked = {Conflict.subscriber: subscriber, Conflict.path: field}
    chosen = [column == value for column, value in asked.items() if value is not None]
    return pages.newest(connection, Conflict, scanned=[Conflict.resolved_at.is_not(None), *chosen], before=before)


def kinds(connection: sa.Connection) -> list[Any]:
    """Count the open conflicts by subscriber and field, highest count first. Reads only the index of open ones."""
    count = sa.func.count().label("count")
    statement = sa.select(Conflict.subscriber, Conflict.path, count).where(_IS_OPEN)
    grouped = statement.group_by(Conflict.subscriber, Conflict.path).order_by(count.desc(), Conflict.path)
    return list(connection.execute(grouped.limit(_KINDS)))


def of_field(connection: sa.Connection, subscriber: str, path: str) -> tuple[int, list[ConflictRow]]:
    """Return the number of open conflicts of a field, and the newest as examples."""
    of = (Conflict.subscriber == subscriber, Conflict.path == path, _IS_OPEN)
    count = connection.execute(sa.select(sa.func.count(Conflict.id)).where(*of)).scalar_one()
    examples = sa.select(Conflict.__table__).where(*of).order_by(Conflict.id.desc()).limit(_EXAMPLES)
    return count, [ConflictRow._make(row) for row in connection.execute(examples)]


def existing(connection: sa.Connection, numbers: Iterable[int]) -> set[int]:
    """Return those of these numbers that are conflicts."""
    return set(connection.scalars(sa.select(Conflict.id).where(Conflict.id.in_(list(numbers)))))


def record_labels(
    connection: sa.Connection, subscribers: Mapping[str, Subscriber], rows: Iterable[Any]
) -> dict[tuple[str, str], str]:
    """Map (subscriber, record id) of these rows to the label of the record."""
    rows = list(rows)
    labels: dict[tuple[str, str], str] = {}
    for subscriber in {row.subscriber for row in rows} & set(subscribers):
        catalogue = subscribers[subscriber].records
        ids = {row.record_id for row in rows if row.subscriber == subscriber}
        for record_id, record in catalogue.read(connection, ids).items():
            labels[subscriber, record_id] = str(record.get(catalogue.label) or "")
    return labels
