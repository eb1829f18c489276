"""The conflicts of a link: every statement that writes table `conflict`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from conductor.links import state
from conductor.links.merge import Merge
from conductor.links.row import LinkRow
from models.ledger import Conflict, Link

_IS_OPEN = Conflict.resolved_at.is_(None)


class OpenConflict(NamedTuple):
    """A conflict that waits for a decision, as it was read. The three values are external ones."""

    id: int
    link_id: int
    subscriber: str
    record_id: str
    path: str
    base: Any
    ours: Any
    theirs: Any


def open_conflict(connection: sa.Connection, conflict_id: int) -> OpenConflict | None:
    """Return the open conflict with this id, if there is one."""
    columns = [getattr(Conflict, name) for name in OpenConflict._fields]
    row = connection.execute(sa.select(*columns).where(Conflict.id == conflict_id, _IS_OPEN)).one_or_none()
    return OpenConflict._make(row) if row is not None else None


def record_conflicts(
    connection: sa.Connection,
    link: LinkRow,
    known: Mapping[str, Any],
    ours: Mapping[str, Any],
    result: Merge,
    now: datetime,
) -> dict[str, Any]:
    """Close the conflicts that a merge resolves, store both versions of the new ones, return the values of the link.

    `known` is what the system held before the merge.
    """
    if not (result.ask or link.open_conflicts):
        return {}
    of_link = sa.and_(Conflict.link_id == link.id, _IS_OPEN)
    resolved = Conflict.path.in_([*result.take, *result.keep, *result.agreed])
    connection.execute(sa.update(Conflict).where(of_link, resolved).values(resolved_at=now, choice="agreed"))
    for path, theirs in result.ask.items():
        versions = {"ours": ours.get(path), "theirs": theirs, "at": now}
        updated = connection.execute(sa.update(Conflict).where(of_link, Conflict.path == path).values(**versions))
        if not updated.rowcount:
            row = {"link_id": link.id, "subscriber": link.subscriber, "record_id": link.record_id, "path": path}
            connection.execute(sa.insert(Conflict).values(**row, base=known.get(path), **versions))
    return {"open_conflicts": connection.execute(sa.select(sa.func.count(Conflict.id)).where(of_link)).scalar_one()}


def decide_conflict(
    connection: sa.Connection, conflict: OpenConflict, choice: str, by: str, now: datetime
) -> dict[str, Any]:
    """Close a conflict as an operator decided; return the values of the link."""
    closed = {"resolved_at": now, "resolved_by": by, "choice": choice}
    connection.execute(sa.update(Conflict).where(Conflict.id == conflict.id, _IS_OPEN).values(**closed))
    return {"open_conflicts": Link.open_conflicts - 1}


def close_conflicts(
    connection: sa.Connection, link: LinkRow, choice: str, now: datetime, but: Iterable[str] = ()
) -> dict[str, Any]:
    """Close the open conflicts of a link, except in the fields `but`; return the values of the link.

    `choice` says why no operator has to decide: both sides came to agree (`agreed`), or the record exists on one side
    only (`gone`).
    """
    if not link.open_conflicts:
        return {}
    connection.execute(
        sa.update(Conflict)
        .where(Conflict.link_id == link.id, _IS_OPEN, Conflict.path.not_in(list(but)))
        .values(resolved_at=now, choice=choice)
    )
    return {"open_conflicts": 0}


def close_deleted(connection: sa.Connection, deleted: Collection[tuple[str, str]], now: datetime) -> None:
    """Close the open conflicts of records that were deleted here, for subscribers that do not receive the deletion.

    `deleted`: (subscriber, record id). No operator could decide these from then on.
    """
    if not deleted:
        return
    subscribers, records = ({key[part] for key in deleted} for part in (0, 1))
    found = sa.select(Link.id, Link.subscriber, Link.record_id).where(
        Link.open_conflicts > 0, Link.subscriber.in_(subscribers), Link.record_id.in_(records)
    )
    for link in connection.execute(found.order_by(Link.id)).all():
        if (link.subscriber, link.record_id) in deleted:
            gone = {"resolved_at": now, "choice": "gone"}
            connection.execute(sa.update(Conflict).where(Conflict.link_id == link.id, _IS_OPEN).values(**gone))
            state.write(connection, link.id, {"open_conflicts": 0})


def forget_all(connection: sa.Connection) -> None:
    """Delete all conflicts, with the links that they belong to."""
    connection.execute(sa.delete(Conflict))
