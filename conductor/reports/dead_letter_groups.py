"""The open dead letters in groups: those of one subscriber that need the same fix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.dead_letters.remedies import Remedy, remedy
from conductor.dead_letters.store import DeadLetterFilter
from models.counting import capped_count
from models.ledger import DeadLetter, Inbox, Link
from models.rows import DeadLetterRow

#: The filters for open dead letters.
FILTERS = ("subscriber", "error", "fingerprint")

#: Groups shown, the largest first: more than an operator can read.
GROUPS = 200


@dataclass(frozen=True)
class Group:
    """Open dead letters of one subscriber that need the same fix; message and time are those of the newest."""

    subscriber: str
    fingerprint: str
    error: str
    message: str
    count: int
    newest: int
    at: datetime
    remedy: Remedy


def open_groups(connection: sa.Connection, filters: dict[str, str]) -> list[Group]:
    """Return the largest groups of the open dead letters that match, with their counts."""
    letters = DeadLetter.__table__
    counted = (
        sa.select(
            letters.c.subscriber,
            letters.c.fingerprint,
            sa.func.count().label("letters"),
            sa.func.max(letters.c.id).label("newest"),
        )
        .where(*open_conditions(filters))
        .group_by(letters.c.subscriber, letters.c.fingerprint)
        .order_by(sa.func.count().desc())
        .limit(GROUPS)
    )
    kinds = {row.newest: row for row in connection.execute(counted)}
    columns = (letters.c.id, letters.c.error, letters.c.message, letters.c.at, letters.c.code)
    groups = []
    for number, error, message, at, code in connection.execute(
        sa.select(*columns).where(letters.c.id.in_(list(kinds)))
    ):
        kind = kinds[number]
        groups.append(Group(kind.subscriber, kind.fingerprint, error, message, kind.letters, number, at, remedy(code)))
    return sorted(groups, key=lambda group: (-group.count, group.subscriber))


def open_conditions(filters: dict[str, str]) -> list[Any]:
    """Return the conditions for the open dead letters that match: those that a task with this filter takes."""
    chosen = {name: filters.get(name) for name in FILTERS}
    return DeadLetterFilter(ids=None, **chosen).conditions()


def count_open(connection: sa.Connection, filters: dict[str, str], groups: list[Group]) -> int:
    """Return how many open dead letters match. If there are more groups than are shown, it stops at a limit."""
    if len(groups) < GROUPS:
        return sum(group.count for group in groups)
    # In the order of the partial index: otherwise PostgreSQL may expect many rows, and read the whole table.
    some = (
        sa.select(DeadLetter.id)
        .where(*open_conditions(filters))
        .order_by(DeadLetter.subscriber, DeadLetter.fingerprint)
    )
    return connection.execute(capped_count(some)).scalar_one()


def errors(connection: sa.Connection) -> list[str]:
    """Return the error classes of the open dead letters. A group has one, so the newest of each group suffices."""
    kinds = sa.select(sa.func.max(DeadLetter.id)).where(DeadLetter.closed_at.is_(None))
    newest = kinds.group_by(DeadLetter.subscriber, DeadLetter.fingerprint)
    return sorted(connection.scalars(sa.select(DeadLetter.error).distinct().where(DeadLetter.id.in_(newest))))


def being_retried(connection: sa.Connection, letters: Iterable[DeadLetterRow]) -> set[int]:
    """Return the ids of open dead letters that are being retried; they close when their record is delivered."""
    letters = list(letters)
    links = sa.select(Link.id).where(Link.id.in_([row.link_id for row in letters]), Link.dead_at.is_(None))
    inbox = sa.select(Inbox.id).where(Inbox.id.in_([row.inbox_id for row in letters]), Inbox.state == "waiting")
    moving_links, moving_inbox = set(connection.scalars(links)), set(connection.scalars(inbox))
    return {
        row.id for row in letters if not row.closed_at and (row.link_id in moving_links or row.inbox_id in moving_inbox)
    }
