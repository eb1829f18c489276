"""The identity of this hub: its id, the other hubs that were seen, and a new id for a copy of the database."""

from __future__ import annotations

import sqlalchemy as sa

from conductor.context import Context
from conductor.links import conflicts, marks, state
from models.ledger import Cursor, DeadLetter, Hub, Inbox, LostRecord, OtherHub, System

#: How what the original was in the middle of ends in the copy.
_OF_THE_ORIGINAL = "it belongs to the hub that this database was copied from"


class HubIdentity:
    """The id that this hub writes into its marks. See `conductor.links.marks`."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def hub_id(self) -> str:
        """Return the id; a new database gets one."""
        return self.context.database.run_in_transaction(marks.hub_id)

    def renew(self, former: str, by: str) -> str:
        """Make a copy of a database a hub of its own: it gets a new id, and is linked to nothing. Return the id.

        Links, conflicts, cursors and known accounts are deleted; dead letters and waiting events are closed.

        Raises:
          ValueError: `former` is not the id of this database.
        """
        fresh, now = marks.new_hub_id(), self.context.clock()
        with self.context.database.write() as connection:
            known = marks.hub_id(connection)
            if former != known:
                raise ValueError(f"the id of this hub is {known}, not {former}")
            connection.execute(sa.update(Hub).values(hub_id=fresh))
            conflicts.forget_all(connection)
            state.forget_all(connection)
            connection.execute(sa.delete(Cursor))
            connection.execute(sa.delete(OtherHub))
            connection.execute(sa.delete(LostRecord))
            connection.execute(sa.update(System).values(account=None, other_account=None))
            ended = {"closed_at": now, "resolution": _OF_THE_ORIGINAL}
            connection.execute(sa.update(DeadLetter).where(DeadLetter.closed_at.is_(None)).values(**ended))
            connection.execute(sa.update(Inbox).where(Inbox.waits_for.is_not(None)).values(waits_for=None))
            done = {"state": "done", "finished_at": now, "retry_at": None, "result": _OF_THE_ORIGINAL}
            connection.execute(sa.update(Inbox).where(Inbox.state != "done").values(**done))
            self.context.audit(connection, by, "hub.new_id", fresh, former=former)
        return fresh
