"""Throttling: tasks add work that can wait only while their subscribers have little to do."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from conductor.context import Context
from conductor.links.status import PENDING_LINKS
from conductor.outward.recovery import SWEEP_BATCH
from models.ledger import Link
from models.query_hints import range_equals

#: A subscriber with this many pending records (or as many as one call takes) gets no more from tasks.
BACKLOG_LIMIT = 1000

#: Seconds until a task that waits looks again.
PAUSE_SECONDS = 1.0


def below_backlog_limit(context: Context, connection: sa.Connection, subscribers: Iterable[str]) -> bool:
    """Return whether each of these subscribers has few enough pending records to get more."""
    for name in subscribers:
        subscriber = context.subscribers.get(name)
        # A system that takes many thousands of records in one job needs them together.
        limit = max(BACKLOG_LIMIT, subscriber.batch_size(SWEEP_BATCH) if subscriber else 0)
        owed = (range_equals(Link.subscriber, name), *PENDING_LINKS)
        some = sa.select(Link.id).where(*owed).order_by(Link.subscriber, Link.id).limit(limit).subquery()
        if connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one() >= limit:
            return False
    return True
