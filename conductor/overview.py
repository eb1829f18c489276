"""Is everything in sync? One state and one sentence per system, from the ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.hub import Hub
from models.ledger import Change, Cursor, DeadLetter, Inbox, Link, System

#: Counting stops here: "more than" says enough, and the page stays fast.
COUNT_LIMIT = 10_000


@dataclass(frozen=True)
class SubscriberStatus:
    """What one subscriber is owed now. Counts stop at COUNT_LIMIT."""

    name: str
    owed: int
    oldest_owed_since: datetime | None
    dead: int
    #: Why its polls fail now, if they do.
    poll_error: str | None = None


@dataclass(frozen=True)
class SystemStatus:
    """One system: `state` is ok, waiting, failing, down, paused or off; `words` say it to a person."""

    name: str
    state: str
    words: str
    subscribers: list[SubscriberStatus] = field(default_factory=list)
    since: datetime | None = None


@dataclass(frozen=True)
class Waiting:
    """Work nobody is named for yet: changes the relay has not routed, inbox rows not applied."""

    changes: int
    inbox: int


def systems(hub: Hub, connection: sa.Connection) -> list[SystemStatus]:
    """Every connected system, by name."""
    rows = {row.name: row for row in connection.execute(sa.select(System.__table__))}
    found = []
    for name in sorted(hub.systems):
        subscribers = [_subscriber(connection, s.name()) for s in hub.of_system(name)]
        found.append(_status(name, rows.get(name), subscribers))
    return found


def waiting(connection: sa.Connection) -> Waiting:
    """What has been captured or received and not been looked at yet."""
    changes = _count(connection, sa.select(Change.id).where(Change.relayed_at.is_(None)))
    return Waiting(changes, _count(connection, sa.select(Inbox.id).where(Inbox.state == "waiting")))


def _subscriber(connection: sa.Connection, name: str) -> SubscriberStatus:
    owed = (Link.subscriber == name, Link.owed_change > Link.synced_change, Link.dead_at.is_(None))
    oldest = sa.select(Link.owed_since).where(*owed).order_by(Link.id).limit(COUNT_LIMIT).subquery()
    failing = sa.select(Cursor.result).where(Cursor.subscriber == name, Cursor.failing_since.is_not(None))
    return SubscriberStatus(
        name,
        _count(connection, sa.select(Link.id).where(*owed)),
        connection.execute(sa.select(sa.func.min(oldest.c.owed_since))).scalar(),
        _count(
            connection,
            sa.select(DeadLetter.id).where(DeadLetter.subscriber == name, DeadLetter.closed_at.is_(None)),
        ),
        connection.execute(failing).scalar(),
    )


def _count(connection: sa.Connection, statement: Any) -> int:
    limited = statement.limit(COUNT_LIMIT).subquery()
    return int(connection.execute(sa.select(sa.func.count()).select_from(limited)).scalar_one())


def _status(name: str, row: Any, subscribers: list[SubscriberStatus]) -> SystemStatus:
    owed = sum(s.owed for s in subscribers)
    dead = sum(s.dead for s in subscribers)
    waits = f"{owed} record{'' if owed == 1 else 's'} wait{'s' if owed == 1 else ''}"
    if row is not None and row.paused_at is not None:
        why = f" ({row.pause_reason})" if row.pause_reason else ""
        return SystemStatus(name, "paused", f"paused by {row.paused_by}{why}; {waits}", subscribers, row.paused_at)
    if row is not None and row.down_since is not None:
        return SystemStatus(name, "down", f"{row.down_reason}; {waits}", subscribers, row.down_since)
    if failing := next((s for s in subscribers if s.poll_error), None):
        words = f"the poll of {failing.name} fails: {failing.poll_error}" + (f"; {waits}" if owed else "")
        return SystemStatus(name, "failing", words, subscribers)
    if dead:
        words = f"{dead} dead letter{'' if dead == 1 else 's'} to look at" + (f"; {waits}" if owed else "")
        return SystemStatus(name, "failing", words, subscribers)
    if owed:
        oldest = min((s.oldest_owed_since for s in subscribers if s.oldest_owed_since), default=None)
        return SystemStatus(name, "waiting", waits, subscribers, oldest)
    return SystemStatus(name, "ok", "everything is in sync", subscribers)
