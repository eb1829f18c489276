"""Leases: while one process holds a link's lease, no other process delivers or merges that record.

A lease is a token and an end. A process that dies leaves a lease that runs out. All writes under a lease name its
token, so a process that lost its lease cannot overwrite what the next holder wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.links.row import LinkRow
from models.bulk import ROW_VERSION, Row, update_if, update_many
from models.ledger import Link

_LINK: Any = Link.__table__

#: The lease columns of a link that no process holds.
RELEASED: dict[str, Any] = {"lease_owner": None, "lease_until": None}


class LinkLeased(Exception):
    """Another process holds the lease of this link."""


def is_held(link: LinkRow, now: datetime) -> bool:
    """Whether a process holds the lease of this link."""
    return link.lease_until is not None and link.lease_until > now


def is_free(now: Any) -> sa.ColumnElement[bool]:
    """The condition for links whose lease no process holds."""
    return sa.or_(Link.lease_until.is_(None), Link.lease_until <= now)


def take(
    connection: sa.Connection, subscriber: str, external_id: str, token: str, now: datetime, until: datetime
) -> int | None:
    """Take the lease of the link to an external record; return the link's id, or None if there is no link.

    Raises:
      LinkLeased: another process holds it.
    """
    same_link = sa.and_(Link.subscriber == subscriber, Link.external_id == external_id)
    statement = sa.update(Link).where(same_link, is_free(now)).values(lease_owner=token, lease_until=until)
    taken: int | None = connection.execute(statement.returning(Link.id)).scalar()
    if taken is None and connection.execute(sa.select(Link.id).where(same_link)).scalar() is not None:
        raise LinkLeased
    return taken


def take_unchanged(connection: sa.Connection, rows: Sequence[Row], versions: Sequence[str]) -> set[int]:
    """Lease a batch of links, each only if its row still has the version that was read; return the ids of these.

    `rows` have `id`, both lease columns and what must be on disk before the external call.
    """
    return update_if(connection, _LINK, rows, [{ROW_VERSION: version} for version in versions])


def write_leased(connection: sa.Connection, rows: Sequence[Row]) -> None:
    """Write columns of links by `id` and `lease_owner`: a link whose lease was lost stays as it is."""
    update_many(connection, _LINK, rows, match=("id", "lease_owner"))


def renew(connection: sa.Connection, link_ids: Sequence[int], token: str, until: datetime) -> bool:
    """Extend the leases of a batch; return False if another process has taken one of them over."""
    statement = sa.update(Link).where(Link.id.in_(link_ids), Link.lease_owner == token).values(lease_until=until)
    return bool(connection.execute(statement).rowcount == len(link_ids))


def take_over(connection: sa.Connection, link: LinkRow, token: str | None, now: datetime) -> None:
    """End a lease that ran out, unless it is our own (`token`): its holder may live on with an outdated view.

    Raises:
      LinkLeased: another process holds it.
    """
    if link.lease_owner in (None, token):
        return
    if is_held(link, now):
        raise LinkLeased
    connection.execute(sa.update(Link).where(Link.id == link.id).values(**RELEASED))


def release(connection: sa.Connection, link_id: int, token: str) -> tuple[str, str] | None:
    """Give our lease back; return (subscriber, record) if the link is owed a change to be published."""
    statement = sa.update(Link).where(Link.id == link_id, Link.lease_owner == token).values(**RELEASED)
    columns = (Link.subscriber, Link.record_id, Link.owed_change, Link.synced_change)
    row = connection.execute(statement.returning(*columns)).one_or_none()
    return (row.subscriber, row.record_id) if row and row.owed_change > row.synced_change else None
