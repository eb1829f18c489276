"""TODO."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.dead_letters.remedies import Remedy, remedy
from conductor.dead_letters.store import DeadLetterFilter
from models.counting import capped_count
from models.ledger import DeadLetter, Inbox, Link

_FILTERS = ("subscriber", "error", "fingerprint")

#: Kinds of error shown, the largest first: more than a person can read.
KINDS = 200


@dataclass(frozen=True)
class Group:
    """Open letters of one subscriber that are mended the same way; message and time are those of the newest."""

    subscriber: str
    fingerprint: str
    error: str
    message: str
    count: int
    newest: int
    at: datetime
    advice: Remedy


def open_groups(connection: sa.Connection, filters: dict[str, str]) -> list[Group]:
    """The largest kinds of the open letters that match, with their counts."""
    letters = DeadLetter.__table__
    counted = (
        sa.select(
            letters.c.subscriber,
            letters.c.fingerprint,
            sa.func.count().label("letters"),
            sa.func.max(letters.c.id).label("newest"),
        )
        .where(*_open(filters))
        .group_by(letters.c.subscriber, letters.c.fingerprint)
        .order_by(sa.func.count().desc())
        .limit(KINDS)
    )
    kinds = {row.newest: row for row in connection.execute(counted)}
    columns = (letters.c.id, letters.c.error, letters.c.message, letters.c.at, letters.c.traceback.is_not(None))
    groups = []
    for number, error, message, at, is_bug in connection.execute(
        sa.select(*columns).where(letters.c.id.in_(list(kinds)))
    ):
        kind = kinds[number]
        fix = remedy(error, message, has_traceback=is_bug)
        groups.append(Group(kind.subscriber, kind.fingerprint, error, message, kind.letters, number, at, fix))
    return sorted(groups, key=lambda group: (-group.count, group.subscriber))


def _open(filters: dict[str, str]) -> list[Any]:
    """The open letters that match: the same that a task about them takes."""
    chosen = {name: filters.get(name) for name in _FILTERS}
    return DeadLetterFilter(ids=None, **chosen).conditions()


def _count(connection: sa.Connection, filters: dict[str, str], groups: list[Group]) -> int:
    """How many open letters match. Stops at COUNT_LIMIT where there are more kinds than are shown."""
    if len(groups) < KINDS:
        return sum(group.count for group in groups)
    # In the order of the index over just these: PostgreSQL may take them for many, and read the whole table.
    some = sa.select(DeadLetter.id).where(*_open(filters)).order_by(DeadLetter.subscriber, DeadLetter.fingerprint)
    return connection.execute(capped_count(some)).scalar_one()


def _errors(connection: sa.Connection) -> list[str]:
    """All errors to choose from. Those of one kind have the same: the newest of each is enough to look at."""
    kinds = sa.select(sa.func.max(DeadLetter.id)).where(DeadLetter.closed_at.is_(None))
    newest = kinds.group_by(DeadLetter.subscriber, DeadLetter.fingerprint)
    return sorted(connection.scalars(sa.select(DeadLetter.error).distinct().where(DeadLetter.id.in_(newest))))


def _trying_again(connection: sa.Connection, letters: list[Any]) -> set[int]:
    """Letters somebody retried already: they close once their record is through."""
    links = sa.select(Link.id).where(Link.id.in_([row.link_id for row in letters]), Link.dead_at.is_(None))
    inbox = sa.select(Inbox.id).where(Inbox.id.in_([row.inbox_id for row in letters]), Inbox.state == "waiting")
    moving_links, moving_inbox = set(connection.scalars(links)), set(connection.scalars(inbox))
    return {
        row.id for row in letters if not row.closed_at and (row.link_id in moving_links or row.inbox_id in moving_inbox)
    }
