"""Conflicts of a link that need no decision any more."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from models.ledger import Conflict


def close_conflicts(
    connection: sa.Connection, link: Any, choice: str, now: datetime, but: Iterable[str] = ()
) -> dict[str, Any]:
    """Close the open conflicts of a link, except in the fields `but`; return the values of the link.

    `choice` says why no operator has to decide: both sides came to agree (`agreed`), or the record exists on one side
    only (`gone`).
    """
    if not link.open_conflicts:
        return {}
    connection.execute(
        sa.update(Conflict)
        .where(Conflict.link_id == link.id, Conflict.resolved_at.is_(None), Conflict.path.not_in(list(but)))
        .values(resolved_at=now, choice=choice)
    )
    return {"open_conflicts": 0}
