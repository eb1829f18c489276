"""Counts of deliveries in a span of time, for charts.

A chart of any span reads a few hundred rows that `conductor.throughput_counter` wrote, however long the history is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.throughput_counter import HOUR, MINUTE, THROUGHPUT_COLUMNS
from models.ledger import Throughput


@dataclass(frozen=True)
class Span:
    """A span of time that a chart can show; all values in seconds."""

    length: int
    #: The time between two points.
    step: int
    #: The duration of the rows that a point sums up.
    row: int


THROUGHPUT_SPANS = {
    "1h": Span(HOUR, MINUTE, MINUTE),
    "6h": Span(6 * HOUR, MINUTE, MINUTE),
    "24h": Span(24 * HOUR, 5 * MINUTE, MINUTE),
    "7d": Span(7 * 24 * HOUR, HOUR, HOUR),
    "30d": Span(30 * 24 * HOUR, 3 * HOUR, HOUR),
}


@dataclass
class Series:
    """One point per step, oldest first: its start in seconds since 1970, and the counts of that step."""

    step: int
    at: list[int] = field(default_factory=list)
    counts: dict[str, list[int]] = field(default_factory=dict)

    def per_minute(self, column: str) -> list[float]:
        """Return the counts of a column as rates."""
        return [round(count * MINUTE / self.step, 2) for count in self.counts[column]]


class ThroughputReport:
    """Reads the counts of deliveries."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def series(self, connection: sa.Connection, span: Span, subscriber: str | None = None) -> Series:
        """Return the counts of a span that ends with the last full step, of one subscriber or of all."""
        statement = _OF_ALL if subscriber is None else _OF_ALL.where(Throughput.subscriber == subscriber)
        begin = self._begin(span)
        series = _empty(begin, span)
        for at, *counts in connection.execute(statement, _within(begin, span)):
            _put(series, at, counts)
        return series

    def by_subscriber(self, connection: sa.Connection, span: Span) -> dict[str, Series]:
        """Return the series of each subscriber that had deliveries."""
        begin = self._begin(span)
        all_series: dict[str, Series] = {}
        for subscriber, at, *counts in connection.execute(_OF_EACH, _within(begin, span)):
            if subscriber not in all_series:
                all_series[subscriber] = _empty(begin, span)
            _put(all_series[subscriber], at, counts)
        return all_series

    def version(self, connection: sa.Connection, span: Span) -> tuple[Any, ...]:
        """Return a value that changes whenever the `series` of all subscribers does. It reads a single row.

        That is enough because counts only grow, and only the oldest are removed.
        """
        begin = self._begin(span)
        return begin, *connection.execute(_SUM, _within(begin, span)).one()

    def _begin(self, span: Span) -> int:
        end = int(self.context.clock().timestamp()) // span.step * span.step
        return end - span.length


# Statements are built once: building one takes as long as running a small one.
_COUNTS = [getattr(Throughput, name) for name in THROUGHPUT_COLUMNS]
_IN_SPAN = (
    Throughput.seconds == sa.bindparam("row"),
    Throughput.at >= sa.bindparam("begin"),
    Throughput.at < sa.bindparam("end"),
)
#: In seconds since 1970, which saves converting hundreds of times to Python's type and back.
_AT = sa.cast(sa.extract("epoch", Throughput.at), sa.BigInteger)
_OF_ALL = sa.select(_AT, *map(sa.func.sum, _COUNTS)).where(*_IN_SPAN).group_by(Throughput.at)
_OF_EACH = sa.select(Throughput.subscriber, _AT, *_COUNTS).where(*_IN_SPAN)
_SUM = sa.select(sa.func.min(Throughput.at), sa.func.sum(sum(_COUNTS[1:], _COUNTS[0]))).where(*_IN_SPAN)


def _within(begin: int, span: Span) -> dict[str, Any]:
    first, end = (datetime.fromtimestamp(at, UTC) for at in (begin, begin + span.length))
    return {"row": span.row, "begin": first, "end": end}


def _empty(begin: int, span: Span) -> Series:
    at = list(range(begin, begin + span.length, span.step))
    return Series(span.step, at, {name: [0] * len(at) for name in THROUGHPUT_COLUMNS})


def _put(series: Series, at: int, counts: Sequence[int]) -> None:
    place = (at - series.at[0]) // series.step
    for of_column, count in zip(series.counts.values(), counts, strict=True):
        of_column[place] += count
