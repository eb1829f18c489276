"""The counts of the overview, each read through an index over just the rows it counts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

import sqlalchemy as sa

from conductor.links.status import PENDING_LINKS
from models.counting import capped_count
from models.ledger import Change, Conflict, DeadLetter, Inbox, Link
from models.query_hints import range_equals

#: Subscribers that one statement counts. For more of them PostgreSQL expects so high a cost that it compiles the
#: statement to machine code ("Just-in-Time Compilation"), which takes far longer than counting.
_SUBSCRIBERS_PER_STATEMENT = 20

#: A literal, so that SQLite uses the partial index over waiting rows.
_WAITING: Any = sa.literal_column("'waiting'")


class SubscriberCounts(NamedTuple):
    """The counts of one subscriber, in the order of the statement; they stop at `DISPLAY_LIMIT`."""

    name: str
    owed: int
    oldest_owed_since: datetime | None
    dead: int
    failing: int
    conflicts: int
    oldest_dead: datetime | None


@dataclass(frozen=True)
class Waiting:
    """Work without a subscriber yet: changes the relay has not routed, inbox rows not applied."""

    changes: int
    inbox: int


def subscriber_counts(connection: sa.Connection, names: list[str]) -> dict[str, SubscriberCounts]:
    """Return the counts of each of these subscribers, by name."""
    found: dict[str, SubscriberCounts] = {}
    for start in range(0, len(names), _SUBSCRIBERS_PER_STATEMENT):
        some = names[start : start + _SUBSCRIBERS_PER_STATEMENT]
        parameters = {f"name{place}": name for place, name in enumerate(some)}
        found |= {row.name: SubscriberCounts(*row) for row in connection.execute(_counting(len(some)), parameters)}
    return found


@cache
def _counting(number: int) -> sa.Select[Any]:
    """Return the statement that counts this many subscribers, `name0` and so on, in one round trip."""
    asked = sa.union_all(
        *(sa.select(sa.bindparam(f"name{place}", type_=Link.subscriber.type).label("name")) for place in range(number))
    ).subquery()
    owed = (Link.subscriber == asked.c.name, *PENDING_LINKS)
    # A literal: with a bound value SQLite does not use the partial index.
    failing = (Link.subscriber == asked.c.name, Link.attempts > sa.literal_column("0"), Link.dead_at.is_(None))
    letters = (DeadLetter.subscriber == asked.c.name, DeadLetter.closed_at.is_(None))
    oldest = (range_equals(DeadLetter.subscriber, asked.c.name), DeadLetter.closed_at.is_(None))
    first_dead = sa.select(DeadLetter.at).where(*oldest).order_by(DeadLetter.subscriber, DeadLetter.id).limit(1)
    conflicts = (Conflict.subscriber == asked.c.name, Conflict.resolved_at.is_(None))
    return sa.select(
        asked.c.name,
        _count(_of_links(owed).correlate(asked)).label("owed"),
        sa.select(sa.func.min(Link.owed_since)).where(*owed).scalar_subquery().label("oldest_owed_since"),
        _count(sa.select(DeadLetter.id).where(*letters).correlate(asked)).label("dead"),
        _count(_of_links(failing).correlate(asked)).label("failing"),
        _count(sa.select(Conflict.id).where(*conflicts).correlate(asked)).label("conflicts"),
        first_dead.scalar_subquery().label("oldest_dead"),
    )


def waiting_counts(connection: sa.Connection) -> Waiting:
    """Count the changes and events that have no subscriber yet."""
    return Waiting(*connection.execute(_WAITING_COUNTS).one())


def _of_links(conditions: Any) -> Any:
    # In the order of the partial index: otherwise PostgreSQL may expect many rows, and read the whole table.
    return sa.select(Link.id).where(*conditions).order_by(Link.owed_since)


def _count(statement: Any) -> Any:
    return capped_count(statement).scalar_subquery()


# In the order of the partial indexes, for the same reason as in `_of_links`.
_WAITING_COUNTS = sa.select(
    _count(sa.select(Change.id).where(Change.relayed_at.is_(None)).order_by(Change.id)),
    _count(sa.select(Inbox.id).where(Inbox.state == _WAITING).order_by(Inbox.id)),
)
