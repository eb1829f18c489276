"""External records that turned out to be gone: what their links knew is kept, so that they can be linked again.

Where the login leads to another account, the system reports every record as gone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.links.row import LinkRow
from models.ledger import Link, LostRecord
from subscribers.mapping.values import Flat


@dataclass(frozen=True)
class Lost:
    """One such record: its link, and what both sides agreed on."""

    link_id: int
    external_id: str
    base: Flat
    remote_values: Flat

    def dump(self) -> str:
        """Return it as text, for the inbox."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def load(cls, text: str) -> Lost:
        """Return what `dump` has written."""
        return cls(**json.loads(text))


def of_link(link: LinkRow) -> Lost:
    """Return the external record that a link knows, or knew before it was unlinked."""
    return Lost(link.id, str(link.external_id), link.base or {}, link.remote_values or {})


def remember(connection: sa.Connection, system: str, link: LinkRow, now: datetime) -> None:
    """Keep what a link knows of its external record, which is gone."""
    connection.execute(sa.insert(LostRecord).values(system=system, at=now, **asdict(of_link(link))))


def forget(connection: sa.Connection, lost: Lost) -> None:
    """Remove a record that is linked again."""
    same = (LostRecord.link_id == lost.link_id, LostRecord.external_id == lost.external_id)
    connection.execute(sa.delete(LostRecord).where(*same))


def forget_system(connection: sa.Connection, system: str) -> None:
    """Remove all lost records of a system: they are of an account that is no longer used."""
    connection.execute(sa.delete(LostRecord).where(LostRecord.system == system))


def count_since(connection: sa.Connection, system: str, since: datetime) -> int:
    """Return how many records of a system were lost since then."""
    found = sa.select(sa.func.count(LostRecord.id)).where(*_since(system, since))
    return int(connection.execute(found).scalar_one())


def lost_since(connection: sa.Connection, system: str, since: datetime) -> Sequence[tuple[str, Lost]]:
    """Return (subscriber, record) of what a system has lost since then, the oldest first."""
    columns = (Link.subscriber, *(getattr(LostRecord, name) for name in Lost.__dataclass_fields__))
    joined = sa.select(*columns).join(Link, Link.id == LostRecord.link_id)
    rows = connection.execute(joined.where(*_since(system, since)).order_by(LostRecord.id)).all()
    return [(row[0], Lost(row[1], row[2], row[3] or {}, row[4] or {})) for row in rows]


def _since(system: str, since: datetime) -> tuple[Any, ...]:
    return LostRecord.system == system, LostRecord.at >= since
