"""Counts deliveries per minute and hour from the history: each delivery once, a limited number at a time."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from models.ledger import Delivery, Throughput, ThroughputWatermark

#: The durations with a row each, in seconds.
MINUTE = 60
HOUR = 3600

#: Days that a minute's row is kept. An hour's row stays as long as the history.
MINUTE_DAYS = 2

#: Deliveries counted in one transaction.
_BATCH = 50_000

#: Transactions in one call: the caller has other work than to count a long backlog.
_BATCHES = 4

#: PostgreSQL assigns ids before their rows are visible, so a smaller id may appear later. A transaction that was
#: assigned one holds this lock until it ends. The ids up to the newest are therefore final once all transactions have
#: ended that held the lock after the newest was read. SQLite has one writer at a time and needs none of this.
_WRITERS = sa.text(
    "SELECT virtualtransaction FROM pg_locks WHERE relation = 'delivery'::regclass AND mode = 'RowExclusiveLock' "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)

#: The counts of a row, in the order of its columns.
THROUGHPUT_COLUMNS = ("delivered", "received", "failed", "dead")


class ThroughputCounter:
    """Counts deliveries and removes old counts."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def count(self) -> int:
        """Count the deliveries since the last call, and return their number. Cheap if there are none.

        If several processes count at the same time, one counts and the others return 0.
        """
        done = 0
        for _ in range(_BATCHES):
            if not self._has_uncounted():
                break
            batch = self.context.database.run_in_transaction(self._count_batch)
            done += batch
            if batch < _BATCH:
                break
        return done

    def _has_uncounted(self) -> bool:
        newest = sa.select(sa.func.max(Delivery.id)).scalar_subquery()
        counted = sa.select(ThroughputWatermark.counted_to).scalar_subquery()
        with self.context.database.read() as connection:
            top, done = connection.execute(sa.select(newest, counted)).one()
        return top is not None and top > (done or 0)

    def _count_batch(self, connection: sa.Connection) -> int:
        insert = self.context.database.insert(ThroughputWatermark).values(id=1)
        connection.execute(insert.on_conflict_do_nothing(index_elements=["id"]))
        held = sa.select(ThroughputWatermark.__table__).with_for_update(skip_locked=True)
        mark = connection.execute(held).one_or_none()
        if mark is None:
            return 0  # Another process counts.
        newest = connection.execute(sa.select(sa.func.max(Delivery.id))).scalar() or 0
        writers = [] if self.context.database.is_sqlite else list(connection.execute(_WRITERS).scalars())
        if not writers:
            sure = newest
        elif set(writers).isdisjoint(mark.writers or ()):
            sure = mark.top
        else:
            sure = mark.counted_to
        end = max(min(sure, mark.counted_to + _BATCH), mark.counted_to)
        if end > mark.counted_to:
            self._add(connection, mark.counted_to, end)
        values: dict[str, Any] = {"counted_to": end}
        # Only once the last top is reached: busy writers would otherwise keep moving it away.
        if sure >= mark.top:
            values |= {"top": newest, "writers": writers}
        connection.execute(sa.update(ThroughputWatermark).values(**values))
        return int(end - mark.counted_to)

    def _add(self, connection: sa.Connection, low: int, high: int) -> None:
        rows = connection.execute(
            sa.select(Delivery.subscriber, Delivery.direction, Delivery.outcome, self._minute(), sa.func.count())
            .where(Delivery.id > low, Delivery.id <= high)
            .group_by(sa.text("1"), sa.text("2"), sa.text("3"), sa.text("4"))
        )
        counts: defaultdict[tuple[int, int, str], dict[str, int]] = defaultdict(
            lambda: dict.fromkeys(THROUGHPUT_COLUMNS, 0)
        )
        for subscriber, direction, outcome, minute, count in rows:
            if (column := _column(direction, outcome)) is not None:
                for seconds in (MINUTE, HOUR):
                    counts[seconds, int(minute) // seconds * seconds, subscriber][column] += count
        if not counts:
            return
        insert = self.context.database.insert(Throughput)
        added = {name: getattr(Throughput, name) + getattr(insert.excluded, name) for name in THROUGHPUT_COLUMNS}
        statement = insert.on_conflict_do_update(index_elements=["seconds", "at", "subscriber"], set_=added)
        connection.execute(
            statement,
            [
                {"seconds": seconds, "at": datetime.fromtimestamp(at, UTC), "subscriber": subscriber, **values}
                for (seconds, at, subscriber), values in sorted(counts.items())
            ],
        )

    def _minute(self) -> Any:
        """Return the expression for the minute of a delivery, in seconds since 1970."""
        if self.context.database.is_sqlite:
            return sa.extract("epoch", Delivery.at) / sa.literal_column("60") * sa.literal_column("60")
        return sa.extract("epoch", sa.func.date_trunc("minute", Delivery.at))

    def remove_old(self, connection: sa.Connection, history_days: int) -> int:
        """Remove the rows that no chart shows from now on; return their number."""
        removed = 0
        for seconds, days in ((MINUTE, MINUTE_DAYS), (HOUR, history_days)):
            old = self.context.clock() - timedelta(days=days)
            statement = sa.delete(Throughput).where(Throughput.seconds == seconds, Throughput.at < old)
            removed += connection.execute(statement).rowcount
        return removed


def _column(direction: str, outcome: str) -> str | None:
    """Return the column that counts a delivery; None if the delivery did nothing."""
    if outcome in ("failed", "dead"):
        return outcome
    return {("out", "delivered"): "delivered", ("in", "applied"): "received"}.get((direction, outcome))
