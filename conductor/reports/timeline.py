"""One record over all systems: where it stands with each, in a sentence, and all that happened to it.

Everything is read from the ledger, by the record's id: nothing here scans, however long the history is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from models.ledger import Change, Conflict, DeadLetter, Delivery, Link
from models.query_hints import no_index
from subscribers.mapping.values import same

#: Lines of a timeline on one page, and how many deliveries before it are read for what was there before.
PAGE = 60
_BEFORE = 40


#: What happened without anything to tell.
_NOISE = {"echo", "unchanged"}


@dataclass(frozen=True)
class Difference:
    """One external field of a payload, beside what was there before as far as the history tells."""

    path: str
    value: Any
    before: Any = None
    #: Whether a value before it is known.
    known: bool = False

    @property
    def changed(self) -> bool:
        """Whether it is another value than before."""
        return not self.known or not same(self.value, self.before)


@dataclass
class TimelineEvent:
    """One line of a timeline. `kind` is change, out, in, conflict, settled or closed; `row` the ledger's row."""

    at: datetime
    kind: str
    row: Any
    fields: list[Difference] = field(default_factory=list)
    #: The same once more, newest first: attempts that failed alike.
    again: list[TimelineEvent] = field(default_factory=list)

    @property
    def is_routine(self) -> bool:
        """Whether it tells nothing new: an echo, a repeat, a delivery with nothing to send."""
        return self.kind in ("in", "out") and (
            self.row.outcome in _NOISE or (self.kind == "in" and self.row.outcome == "skipped")
        )


@dataclass(frozen=True)
class Timeline:
    """A page of moments, newest first; noise that follows on noise is one list. `older` begins the next page."""

    entries: list[TimelineEvent | list[TimelineEvent]]
    older: str | None = None


# --- where it stands ------------------------------------------------------------------------------------


# --- what happened --------------------------------------------------------------------------------------


def timeline(
    connection: sa.Connection, catalogue: str, names: Sequence[str], record_id: str, before: str | None = None
) -> Timeline:
    """What happened to a record, newest first. `before` is the `older` of the page before this one."""
    upto_change, upto_delivery = _position(before)
    changes = _rows(
        connection, Change, Change.catalogue == catalogue, _of(Change, record_id), upto=upto_change, limit=PAGE + 1
    )
    deliveries = _rows(
        connection,
        Delivery,
        _of(Delivery, record_id),
        no_index(Delivery.subscriber.in_(names)),  # of one subscriber SQLite would read all there is
        upto=upto_delivery,
        limit=PAGE + 1 + _BEFORE,
    )
    differences = _differences(deliveries)
    moments = [TimelineEvent(row.at, "change", row) for row in changes]
    moments += [
        TimelineEvent(row.at, row.direction, row, differences.get(row.id, [])) for row in deliveries[: PAGE + 1]
    ]
    # A change comes before what it led to, also in the same instant; within a kind the id tells.
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
    """Where the rows of a kind go on: below the last one shown; 0 stands for the beginning of an untouched kind."""
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
    """Conflicts and closed dead letters, as far as they belong to this page of the timeline."""
    links = sa.select(Link.id).where(Link.record_id == record_id, Link.subscriber.in_(names))
    found: list[TimelineEvent] = []
    for row in _rows(connection, Conflict, Conflict.link_id.in_(list(connection.scalars(links))), limit=PAGE):
        found.append(TimelineEvent(row.at, "conflict", row))
        if row.resolved_at is not None:
            found.append(TimelineEvent(row.resolved_at, "settled", row))
    letters = (_of(DeadLetter, record_id), DeadLetter.subscriber.in_(names), DeadLetter.closed_at.is_not(None))
    found += [
        TimelineEvent(row.closed_at, "closed", row) for row in _rows(connection, DeadLetter, *letters, limit=PAGE)
    ]
    newest = None if first or not shown else shown[0].at
    oldest = None if last or not shown else shown[-1].at
    return [m for m in found if (newest is None or m.at <= newest) and (oldest is None or m.at > oldest)]


def _differences(deliveries: Sequence[Any]) -> dict[int, list[Difference]]:
    """Per delivery its payload's fields, each beside what that system was known to hold before."""
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
    """Attempts that failed the same way."""
    if one.kind != "out" or other.kind != "out" or {one.row.outcome, other.row.outcome} != {"failed"}:
        return False
    return bool(one.row.subscriber == other.row.subscriber and one.row.reason == other.row.reason)


def _of(table: Any, record_id: str) -> Any:
    return table.record_id == record_id


def _rows(
    connection: sa.Connection, table: Any, *conditions: Any, upto: int | None = None, limit: int | None = None
) -> list[Any]:
    statement = sa.select(table.__table__).where(*conditions).order_by(table.id.desc()).limit(limit)
    if upto is not None:
        statement = statement.where(table.id < upto)
    return list(connection.execute(statement))
