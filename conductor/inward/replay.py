"""Replaying stored events: one event immediately, or a batch for a task; and discarding one.

Applying is safe to repeat: an event older than the known state is ignored, and one that agrees with it is an echo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.dead_letters.operations import reason_of
from conductor.dead_letters.store import DISCARDED, DeadLetterStore
from conductor.inward.awaited import INBOX_KIND_POLL
from conductor.inward.inbox import RELINK
from i18n import gettext
from models.history import first_since
from models.ledger import Inbox
from models.query_hints import no_index

#: Counting a window stops here.
REPLAY_LIMIT = 100_000


@dataclass(frozen=True)
class ReplayWindow:
    """The webhooks of one system received from `since` on and before `until`."""

    system: str
    since: datetime
    until: datetime


class InboxReplay:
    """Makes stored events due again, or ends one that is not applied."""

    def __init__(self, context: Context, letters: DeadLetterStore) -> None:
        self.context = context
        self.letters = letters

    def one(self, inbox_id: int, by: str) -> None:
        """Apply one inbox row again.

        Raises:
          ValueError: there is no such row, or it already waits.
        """
        with self.context.database.write() as connection:
            row = connection.execute(
                sa.update(Inbox)
                .where(Inbox.id == inbox_id, Inbox.state != "waiting")
                .values(self._due())
                .returning(Inbox.system, Inbox.event_id)
            ).one_or_none()
            if row is None:
                raise ValueError(gettext("event #{number} is already waiting, or does not exist", number=inbox_id))
            self.context.audit(connection, by, "inbox.replay", f"#{inbox_id} {row.system}", event=row.event_id)

    def discard(self, inbox_id: int, by: str, reason: str) -> None:
        """End an inbox row that is not applied, and close its dead letter.

        Raises:
          ValueError: the reason is empty, or there is no such row that waits or is dead.
        """
        result = f"{DISCARDED} {by}: {reason_of(reason)}"
        with self.context.database.write() as connection:
            row = connection.execute(
                sa.update(Inbox)
                .where(Inbox.id == inbox_id, Inbox.state != "done")
                .values(state="done", finished_at=self.context.clock(), retry_at=None, result=result, waits_for=None)
                .returning(Inbox.system, Inbox.event_id)
            ).one_or_none()
            if row is None:
                raise ValueError(gettext("event #{number} was already applied, or does not exist", number=inbox_id))
            letter = self.letters.of_inbox(connection, inbox_id)
            self.letters.close(connection, [letter] if letter is not None else [], result)
            details = {"event": row.event_id, "reason": reason.strip()}
            self.context.audit(connection, by, "inbox.discard", f"#{inbox_id} {row.system}", **details)

    def batch(self, connection: sa.Connection, inbox_ids: Sequence[int]) -> None:
        """Apply these inbox rows again, in the caller's transaction."""
        finished = (Inbox.id.in_(inbox_ids), Inbox.state != "waiting")
        connection.execute(sa.update(Inbox).where(*finished).values(self._due()))

    def count(self, window: ReplayWindow, limit: int = REPLAY_LIMIT) -> int:
        """Return the number of events in a window; counting stops at `limit`."""
        with self.context.database.read() as connection:
            first, end = self.id_range(connection, window)
            limited = sa.select(Inbox.id).where(*_in_window(window, first, end)).limit(limit).subquery()
            return int(connection.execute(sa.select(sa.func.count()).select_from(limited)).scalar_one())

    @staticmethod
    def id_range(connection: sa.Connection, window: ReplayWindow) -> tuple[int, int]:
        """Return the first id of a window and the first after it."""
        return (
            first_since(connection, Inbox, Inbox.received_at, window.since),
            first_since(connection, Inbox, Inbox.received_at, window.until),
        )

    @staticmethod
    def next_ids(connection: sa.Connection, window: ReplayWindow, first: int, end: int, limit: int) -> list[int]:
        """Return the ids of a window's next events, oldest first."""
        ids = sa.select(Inbox.id).where(*_in_window(window, first, end)).order_by(Inbox.id).limit(limit)
        return list(connection.scalars(ids))

    def _due(self) -> dict[str, Any]:
        # The sweep publishes it, after the events that are being applied.
        now = self.context.clock()
        return {"state": "waiting", "attempts": 0, "retry_at": now, "finished_at": None, "waits_for": None}


def _in_window(window: ReplayWindow, first: int, end: int) -> tuple[Any, ...]:
    return (
        Inbox.id >= first,
        Inbox.id < end,
        no_index(Inbox.system == window.system),
        Inbox.kind.not_in((INBOX_KIND_POLL, RELINK)),
    )
