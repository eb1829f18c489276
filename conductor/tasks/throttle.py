"""TODO."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from conductor.context import Context
from conductor.links.status import PENDING
from conductor.outward.recovery import SWEEP_BATCH
from models.ledger import Link
from models.query_hints import range_equals

#: A subscriber that is owed so many records (or as many as one call takes) gets no more that can wait.
BACKLOG_LIMIT = 1000


def below_backlog_limit(context: Context, connection: sa.Connection, subscribers: Iterable[str]) -> bool:
    """Whether these subscribers have worked off enough to be given more that can wait."""
    for name in subscribers:
        subscriber = context.subscribers.get(name)
        # A system that takes many thousands in one job is to get them.
        plenty = max(BACKLOG_LIMIT, subscriber.batch_size(SWEEP_BATCH) if subscriber else 0)
        owed = (range_equals(Link.subscriber, name), *PENDING)
        some = sa.select(Link.id).where(*owed).order_by(Link.subscriber, Link.id).limit(plenty).subquery()
        if connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one() >= plenty:
            return False
    return True
