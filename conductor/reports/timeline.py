"""The timeline of one record across all systems: its changes, deliveries, conflicts and closed dead letters.

All rows are read from the ledger by the record's id; no query scans a table, however long the history is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa

from models.ledger import Change, Conflict, DeadLetter, Delivery, Link
from models.query_hints import no_index
from models.rows import ChangeRow, ConflictRow, DeadLetterRow, DeliveryRow
from subscribers.mapping.values import same

#: Lines on one page of a timeline, and the number of earlier deliveries that are read for previous values.
PAGE = 60
_BEFORE = 40


#: Outcomes that need no attention.
_NOISE = {"echo", "unchanged"}


Row = TypeVar("Row")
TimelineRow = ChangeRow | DeliveryRow | ConflictRow | DeadLetterRow


@dataclass(frozen=True)
class Difference:
    """One external field of a payload, with its previous value as far as the history holds it."""

    path: str
    value: Any
    before: Any = None
    #: Whether the previous value is known.
    known: bool = False

    @property
    def changed(self) -> bool:
        """Whether the value differs from the previous one."""
        return not self.known or not same(self.value, self.before)


@dataclass
class TimelineEvent:
    """One line of a timeline. `kind` is change, out, in, conflict, resolved or closed; `row` is the ledger's row."""

    at: datetime
    kind: str
    row: TimelineRow
    fields: list[Difference] = field(default_factory=list)
    #: Repetitions of this event, newest first: attempts that failed the same way.
    again: list[TimelineEvent] = field(default_factory=list)

    @property
    def is_routine(self) -> bool:
        """Whether the event needs no attention: an echo, a repeat, or a delivery with nothing to send."""
        return isinstance(self.row, DeliveryRow) and (
            self.row.outcome in _NOISE or (self.kind == "in" and self.row.outcome == "skipped")
        )


@dataclass(frozen=True)
class Timeline:
    """A page of events, newest first; consecutive routine events form one list. `older` begins the next page."""

    entries: list[TimelineEvent | list[TimelineEvent]]
    older: str | None = None


def timeline(
    connection: sa.Connection, catalogue: str, names: Sequence[str], record_id: str, before: str | None = None
) -> Timeline:
    """Return the events of a record, newest first. `before` is the `older` of the previous page."""
    upto_change, upto_delivery = _position(before)
    changes = _rows(
        connection,
        ChangeRow,
        Change,
        Change.catalogue == catalogue,
        Change.record_id == record_id,
        upto=upto_change,
        limit=PAGE + 1,
    )
    deliveries = _rows(
        connection,
        DeliveryRow,
        Delivery,
        Delivery.record_id == record_id,
        no_index(Delivery.subscriber.in_(names)),  # With a filter by subscriber SQLite would read all of its rows.
        upto=upto_delivery,
        limit=PAGE + 1 + _BEFORE,
    )
    differences = _differences(deliveries)
    moments = [TimelineEvent(row.at, "change", row) for row in changes]
    moments += [
        TimelineEvent(row.at, row.direction, row, differences.get(row.id, [])) for row in deliveries[: PAGE + 1]
    ]
    # A change comes before its effects, even with the same time; within a kind the id decides.
    moments.sort(key=lambda moment: (moment.at, moment.kind != "change", moment.row.id), reverse=True)
    shown, older = moments[:PAGE], None
    if len(moments) > PAGE:
        older = "-".join(
            str(_next(shown, kinds, upto))
            for kinds, upto in ((("change",), upto_change), (("in", "out"), upto_delivery))
        )
    shown += _decisions(connection, names, record_id, shown, first=before is None, last=older is None)
    shown.sort(key=lambda moment: (moment.at, moment.kind != "change", moment.row.id), reverse=True)
    return Timeline(_folded(shown), older)


def _next(shown: list[TimelineEvent], kinds: tuple[str, ...], upto: int | None) -> int:
    """Return the id below which the next page of a kind starts: the last one shown, else `upto`; 0 for the newest."""
    ids = [moment.row.id for moment in shown if moment.kind in kinds]
    return min(ids) if ids else upto or 0


def _position(before: str | None) -> tuple[int | None, int | None]:
    parts = (before or "").split("-")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
        return None, None
    change, delivery = (int(part) or None for part in parts)
    return change, delivery


def _decisions(
    connection: sa.Connection,
    names: Sequence[str],
    record_id: str,
    shown: list[TimelineEvent],
    *,
    first: bool,
    last: bool,
) -> list[TimelineEvent]:
    """Return the conflicts and closed dead letters that belong to this page of the timeline."""
    links = sa.select(Link.id).where(Link.record_id == record_id, Link.subscriber.in_(names))
    found: list[TimelineEvent] = []
    of_links = Conflict.link_id.in_(list(connection.scalars(links)))
    for row in _rows(connection, ConflictRow, Conflict, of_links, limit=PAGE):
        found.append(TimelineEvent(row.at, "conflict", row))
        if row.resolved_at is not None:
            found.append(TimelineEvent(row.resolved_at, "resolved", row))
    letters = (DeadLetter.record_id == record_id, DeadLetter.subscriber.in_(names), DeadLetter.closed_at.is_not(None))
    found += [
        TimelineEvent(letter.closed_at, "closed", letter)
        for letter in _rows(connection, DeadLetterRow, DeadLetter, *letters, limit=PAGE)
        if letter.closed_at is not None
    ]
    newest = None if first or not shown else shown[0].at
    oldest = None if last or not shown else shown[-1].at
    return [m for m in found if (newest is None or m.at <= newest) and (oldest is None or m.at > oldest)]


def _differences(deliveries: Sequence[DeliveryRow]) -> dict[int, list[Difference]]:
    """Return each delivery's payload fields, each with the value that the system was known to hold before."""
    known: dict[str, dict[str, Any]] = {}
    found: dict[int, list[Difference]] = {}
    for row in reversed(deliveries):
        there = known.setdefault(row.subscriber, {})
        payload = row.payload or {}
        found[row.id] = [Difference(path, value, there.get(path), path in there) for path, value in payload.items()]
        if row.outcome in ("delivered", "applied", "kept", "echo"):
            there.update(payload)
    return found


def _folded(moments: Iterable[TimelineEvent]) -> list[TimelineEvent | list[TimelineEvent]]:
    entries: list[TimelineEvent | list[TimelineEvent]] = []
    for moment in moments:
        last = entries[-1] if entries else None
        if moment.is_routine:
            if isinstance(last, list):
                last.append(moment)
            else:
                entries.append([moment])
        elif isinstance(last, TimelineEvent) and _is_alike(last, moment):
            last.again.append(moment)
        else:
            entries.append(moment)
    return entries


def _is_alike(one: TimelineEvent, other: TimelineEvent) -> bool:
    """Return whether both attempts failed the same way."""
    if not isinstance(one.row, DeliveryRow) or not isinstance(other.row, DeliveryRow):
        return False
    if (one.kind, one.row.outcome) != ("out", "failed"):
        return False
    return (one.kind, *_failure(one.row)) == (other.kind, *_failure(other.row))


def _failure(row: DeliveryRow) -> tuple[str, str, str | None]:
    return row.outcome, row.subscriber, row.reason


def _rows(
    connection: sa.Connection,
    make: Callable[..., Row],
    table: type[Change | Delivery | Conflict | DeadLetter],
    *conditions: sa.ColumnElement[bool],
    upto: int | None = None,
    limit: int | None = None,
) -> list[Row]:
    """Return rows of a table, newest first, with ids below `upto`."""
    statement = sa.select(table.__table__).where(*conditions).order_by(table.id.desc()).limit(limit)
    if upto is not None:
        statement = statement.where(table.id < upto)
    return [make(*row) for row in connection.execute(statement)]
