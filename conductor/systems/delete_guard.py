"""The delete guard: it pauses a system after unusually many deletions to or from it, until an operator decides.

A wrong WHERE clause, a failed import or the login of another account looks like many deletions, and no later sync
restores a deleted record. Each response that a linked record is gone counts as a deletion from the system.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import sqlalchemy as sa

from conductor.context import Context
from models.ledger import System

#: The time over which deletions are counted.
DELETE_WINDOW_SECONDS = 600

#: The name under which the guard pauses a system.
DELETE_GUARD = "delete guard"

#: What a record waits for that the guard holds.
HELD = f"held by the {DELETE_GUARD}"

#: Direction -> what an operator has to find out.
_QUESTIONS = {
    "to": "resume it with deletions allowed if they are intended, or else unsubscribe the operation delete first",
    "from": "is this the right account? If not, correct the login and link the lost records again; "
    "if the deletions are intended, resume it with deletions allowed",
}


class DeleteGuard:
    """Counts deletions by system, in the transaction that makes or plans them."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def reserve(self, connection: sa.Connection, name: str, deletes: int, direction: str) -> bool:
        """Count these deletions and return whether they may be made. If not, the system is paused.

        `direction`: `to` the system, or `from` it.
        """
        limit = self.context.systems[name].delete_limit
        if not deletes or limit is None:
            return True
        now = self.context.clock()
        row = connection.execute(
            sa.select(System.deletes, System.deletes_since, System.deletes_allowed_until, System.paused_at)
            .where(System.name == name)
            .with_for_update()
        ).one_or_none()
        if row is None or (row.deletes_allowed_until is not None and row.deletes_allowed_until > now):
            return True
        if row.paused_at is not None:
            return False
        fresh = row.deletes_since is None or row.deletes_since <= now - timedelta(seconds=DELETE_WINDOW_SECONDS)
        count = deletes if fresh else row.deletes + deletes
        values = {"deletes": count, "deletes_since": now if fresh else row.deletes_since}
        if count <= limit:
            connection.execute(sa.update(System).where(System.name == name).values(**values))
            return True
        self.pause(connection, name, direction)
        return False

    def refund(self, connection: sa.Connection, name: str, deletes: int, counted_at: datetime) -> None:
        """Take back the count of deletions that were not made; they count again when they are retried."""
        left = sa.case((System.deletes > deletes, System.deletes - deletes), else_=0)
        same_window = System.deletes_since <= counted_at
        connection.execute(sa.update(System).where(System.name == name, same_window).values(deletes=left))

    def pause(self, connection: sa.Connection, name: str, direction: str) -> None:
        """Pause the system until an operator decides."""
        limit = self.context.systems[name].delete_limit
        connection.execute(
            sa.update(System)
            .where(System.name == name, System.paused_at.is_(None))
            .values(
                paused_at=self.context.clock(),
                paused_by=DELETE_GUARD,
                pause_reason=f"more than {limit} deletions {direction} {name} "
                f"within {DELETE_WINDOW_SECONDS // 60} minutes; " + _QUESTIONS[direction],
            )
        )
