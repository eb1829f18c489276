"""The saved versions of the mappings."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from models.ledger import Mapping

#: Versions of one subscriber that are listed at most.
_MOST = 100


def newest_of_each(connection: sa.Connection) -> dict[str, Any]:
    """Return the newest version of each subscriber that has one: who saved it, when, and whether it is the default."""
    newest = sa.select(sa.func.max(Mapping.id)).group_by(Mapping.subscriber)
    is_default = Mapping.fields.is_(None).label("is_default")
    columns = (Mapping.subscriber, Mapping.version, Mapping.created_at, Mapping.created_by, is_default)
    saved = sa.select(*columns).where(Mapping.id.in_(list(connection.scalars(newest))))
    return {row.subscriber: row for row in connection.execute(saved)}


def versions(connection: sa.Connection, subscriber: str) -> list[Any]:
    """Return the versions of one subscriber, newest first."""
    saved = sa.select(Mapping.__table__).where(Mapping.subscriber == subscriber)
    return list(connection.execute(saved.order_by(Mapping.version.desc()).limit(_MOST)))


def version(connection: sa.Connection, subscriber: str, number: int | None) -> Any:
    """Return one version; its `fields` are None where it is the default. None if there is no such version."""
    saved = sa.select(Mapping.__table__).where(Mapping.subscriber == subscriber, Mapping.version == number)
    return connection.execute(saved).one_or_none()
