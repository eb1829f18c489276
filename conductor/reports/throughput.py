"""Deliveries per minute and hour, counted from the history: each delivery exactly once, and never all at a time.

A minute's row is kept for two days and an hour's as long as the history, so a chart over any span
reads some hundred rows, however many deliveries there were.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from models.ledger import Delivery, Throughput, ThroughputWatermark

MINUTE, HOUR = 60, 3600

#: Days a minute's row is kept; an hour's row stays as long as the history.
MINUTE_DAYS = 2

#: Deliveries counted in one transaction, and transactions in one go: a long backlog must not hold up who counts.
_BATCH = 50_000
_BATCHES = 4

#: PostgreSQL gives out ids before their rows can be seen, so a smaller one may appear later. Whoever was given
#: one holds this lock until its row is there or never will be: ids up to the newest are certain once all
#: transactions are gone that held it after that one was seen. SQLite has one writer, and it is us.
_WRITERS = sa.text(
    "SELECT virtualtransaction FROM pg_locks WHERE relation = 'delivery'::regclass AND mode = 'RowExclusiveLock' "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)

#: What is counted, in the order of the columns.
COLUMNS = ("delivered", "received", "failed", "dead")


@dataclass(frozen=True)
class Span:
    """A stretch of time a chart may show: its length, its points' distance and the rows they are made of; seconds."""

    length: int
    step: int
    row: int


SPANS = {
    "1h": Span(HOUR, MINUTE, MINUTE),
    "6h": Span(6 * HOUR, MINUTE, MINUTE),
    "24h": Span(24 * HOUR, 5 * MINUTE, MINUTE),
    "7d": Span(7 * 24 * HOUR, HOUR, HOUR),
    "30d": Span(30 * 24 * HOUR, 3 * HOUR, HOUR),
}


@dataclass
class Series:
    """One point a step, oldest first: when it begins (seconds since 1970), and the counts of that step."""

    step: int
    at: list[int] = field(default_factory=list)
    counts: dict[str, list[int]] = field(default_factory=dict)

    def per_minute(self, column: str) -> list[float]:
        """The counts of a column as a rate."""
        return [round(count * MINUTE / self.step, 2) for count in self.counts[column]]


class ThroughputCounter:
    """Counts the deliveries and tells how many there were when."""

    def __init__(self, context: Context) -> None:
        self.context = context

    # --- counting ---------------------------------------------------------------------------------------

    def count(self) -> int:
        """Count the deliveries that came since; returns how many. Cheap when there are none.

        Where several processes count, one does and the others have nothing to do.
        """
        done = 0
        for _ in range(_BATCHES):
            if not self._is_news():
                break
            batch = self.context.database.run_in_transaction(self._count_batch)
            done += batch
            if batch < _BATCH:
                break
        return done

    def _is_news(self) -> bool:
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
            return 0  # another process counts
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
        # Only when the last top is reached: busy writers would else move it away for ever.
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
        counts: defaultdict[tuple[int, int, str], dict[str, int]] = defaultdict(lambda: dict.fromkeys(COLUMNS, 0))
        for subscriber, direction, outcome, minute, count in rows:
            if (column := _column(direction, outcome)) is not None:
                for seconds in (MINUTE, HOUR):
                    counts[seconds, int(minute) // seconds * seconds, subscriber][column] += count
        if not counts:
            return
        insert = self.context.database.insert(Throughput)
        added = {name: getattr(Throughput, name) + getattr(insert.excluded, name) for name in COLUMNS}
        statement = insert.on_conflict_do_update(index_elements=["seconds", "at", "subscriber"], set_=added)
        connection.execute(
            statement,
            [
                {"seconds": seconds, "at": datetime.fromtimestamp(at, UTC), "subscriber": subscriber, **values}
                for (seconds, at, subscriber), values in sorted(counts.items())
            ],
        )

    def _minute(self) -> Any:
        """The minute a delivery belongs to, in seconds since 1970."""
        if self.context.database.is_sqlite:
            return sa.extract("epoch", Delivery.at) / sa.literal_column("60") * sa.literal_column("60")
        return sa.extract("epoch", sa.func.date_trunc("minute", Delivery.at))

    def thin(self, connection: sa.Connection, history_days: int) -> int:
        """Forget minutes and hours nobody asks for any more; returns how many rows."""
        removed = 0
        for seconds, days in ((MINUTE, MINUTE_DAYS), (HOUR, history_days)):
            old = self.context.clock() - timedelta(days=days)
            statement = sa.delete(Throughput).where(Throughput.seconds == seconds, Throughput.at < old)
            removed += connection.execute(statement).rowcount
        return removed

    # --- telling ----------------------------------------------------------------------------------------

    def series(self, connection: sa.Connection, span: Span, subscriber: str | None = None) -> Series:
        """The counts of a span that ends with the last full step, of one subscriber or of all."""
        statement = _OF_ALL if subscriber is None else _OF_ALL.where(Throughput.subscriber == subscriber)
        begin = self._begin(span)
        series = _empty(begin, span)
        for at, *counts in connection.execute(statement, _within(begin, span)):
            _put(series, at, counts)
        return series

    def by_subscriber(self, connection: sa.Connection, span: Span) -> dict[str, Series]:
        """The same of each subscriber that had any."""
        begin = self._begin(span)
        all_series: dict[str, Series] = {}
        for subscriber, at, *counts in connection.execute(_OF_EACH, _within(begin, span)):
            if subscriber not in all_series:
                all_series[subscriber] = _empty(begin, span)
            _put(all_series[subscriber], at, counts)
        return all_series

    def version(self, connection: sa.Connection, span: Span) -> tuple[Any, ...]:
        """Another one whenever `series` of all is another; a single row, where that reads some hundred.

        Counts only grow, and only the oldest are forgotten.
        """
        begin = self._begin(span)
        return begin, *connection.execute(_SUM, _within(begin, span)).one()

    def _begin(self, span: Span) -> int:
        end = int(self.context.clock().timestamp()) // span.step * span.step
        return end - span.length


# Statements are built once: building one costs as much as a small one takes.
_COUNTS = [getattr(Throughput, name) for name in COLUMNS]
_IN_SPAN = (
    Throughput.seconds == sa.bindparam("row"),
    Throughput.at >= sa.bindparam("begin"),
    Throughput.at < sa.bindparam("end"),
)
#: In seconds since 1970: hundreds of times need not become Python's, to be made numbers of again.
_AT = sa.cast(sa.extract("epoch", Throughput.at), sa.BigInteger)
_OF_ALL = sa.select(_AT, *map(sa.func.sum, _COUNTS)).where(*_IN_SPAN).group_by(Throughput.at)
_OF_EACH = sa.select(Throughput.subscriber, _AT, *_COUNTS).where(*_IN_SPAN)
_SUM = sa.select(sa.func.min(Throughput.at), sa.func.sum(sum(_COUNTS[1:], _COUNTS[0]))).where(*_IN_SPAN)


def _within(begin: int, span: Span) -> dict[str, Any]:
    first, end = (datetime.fromtimestamp(at, UTC) for at in (begin, begin + span.length))
    return {"row": span.row, "begin": first, "end": end}


def _column(direction: str, outcome: str) -> str | None:
    """What a delivery counts as; nothing was done in the others."""
    if outcome in ("failed", "dead"):
        return outcome
    return {("out", "delivered"): "delivered", ("in", "applied"): "received"}.get((direction, outcome))


def _empty(begin: int, span: Span) -> Series:
    at = list(range(begin, begin + span.length, span.step))
    return Series(span.step, at, {name: [0] * len(at) for name in COLUMNS})


def _put(series: Series, at: int, counts: Sequence[int]) -> None:
    place = (at - series.at[0]) // series.step
    for of_column, count in zip(series.counts.values(), counts, strict=True):
        of_column[place] += count
