"""Read a history page by page, newest rows first, at the same speed however long it is.

A page is found by key (`id` below the last one seen), never by OFFSET, and nothing is counted.
Conditions without an index are checked only in a limited stretch of the newest rows. A rare value
therefore cannot make the database read millions of rows for one page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from models.query_hints import no_index, range_equals

PAGE = 50

#: Maximum number of rows that one page searches for a condition without an index.
STRETCH = 50_000


@dataclass(frozen=True)
class Listing:
    """A page of rows; `older` is where the next page begins, `searched` how many rows were searched, if limited."""

    rows: list[Any]
    older: int | None = None
    searched: int | None = None


def newest(
    connection: sa.Connection,
    table: Any,
    indexed: Sequence[Any] = (),
    scanned: Sequence[Any] = (),
    before: int | None = None,
    within: tuple[Any, str] | None = None,
) -> Listing:
    """Return one page of `table` (a mapped class): rows with an id below `before`.

    `within`: a column and its value, for conditions that a partial index serves, see `models.query_hints.along`.
    """
    rows_of = table.__table__
    statement = sa.select(rows_of).where(*indexed).limit(PAGE + 1)
    if within is None:
        statement = statement.order_by(rows_of.c.id.desc())
    else:
        statement = statement.where(range_equals(*within)).order_by(within[0].desc(), rows_of.c.id.desc())
    if before is not None:
        statement = statement.where(rows_of.c.id < before)
    if not scanned:
        return _listing(connection.execute(statement).all())
    top = before if before is not None else _top(connection, rows_of)
    floor = max(top - STRETCH, 0)
    rows = connection.execute(statement.where(rows_of.c.id >= floor, *map(no_index, scanned))).all()
    listing = _listing(rows)
    if listing.older is None and floor > 0:
        return Listing(listing.rows, older=floor, searched=STRETCH)
    return listing


def merge(pages: Sequence[Listing]) -> Listing:
    """Return one page merged from several, each read by its own index."""
    rows = sorted((row for page in pages for row in page.rows), key=lambda row: row.id, reverse=True)
    more = len(rows) > PAGE or any(page.older for page in pages)
    rows = rows[:PAGE]
    return Listing(rows, older=rows[-1].id if more and rows else None)


def _top(connection: sa.Connection, table: sa.Table) -> int:
    return (connection.execute(sa.select(sa.func.max(table.c.id))).scalar() or 0) + 1


def _listing(rows: Sequence[Any]) -> Listing:
    page = list(rows[:PAGE])
    return Listing(page, older=page[-1].id if len(rows) > PAGE else None)
