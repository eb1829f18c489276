"""Linking again what was taken for gone, by an operator's word.

Each record is fetched first: one that is really gone stays unlinked.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.dead_letters.store import DeadLetterStore
from conductor.inward.applying import REUSED_ID
from conductor.inward.inbox import store_relink
from conductor.links import lost, state
from conductor.links.row import link_row
from conductor.systems.control import SystemControl
from conductor.systems.delete_guard import DELETE_GUARD
from i18n import gettext
from models.ledger import Cursor, DeadLetter, Inbox, Link, System

#: Records that were lost within this time are linked again.
RELINK_HOURS = 24


class Relinking:
    """An operator's actions on records that a system reported as gone; each writes its audit row."""

    def __init__(self, context: Context, letters: DeadLetterStore, systems: SystemControl) -> None:
        self.context = context
        self.letters = letters
        self.systems = systems

    def count(self, system: str) -> int:
        """Return how many records of a system were lost in the last RELINK_HOURS, and are not linked again."""
        with self.context.database.read() as connection:
            return lost.count_since(connection, system, self._since())

    def relink(self, system: str, by: str) -> int:
        """Have the records fetched that were lost in the last RELINK_HOURS, and those linked that are there.

        A system that is paused because of them is resumed. Return the number of the records.

        Raises:
          ValueError: there is no such system.
        """
        self.systems.require(system)
        subscribers = self.context.subscribers
        with self.context.database.write() as connection:
            found = [
                (name, one)
                for name, one in lost.lost_since(connection, system, self._since())
                if name in subscribers and subscribers[name].can_fetch
            ]
            for name, one in found:
                store_relink(self.context, connection, subscribers[name], one)
            # What they are owed waits for the fetch: a create in place of a lost record would make a second one.
            state.hold(connection, [one.link_id for _, one in found], self.context.later(RELINK_HOURS * 3600))
            self.context.audit(connection, by, "system.relink", system, records=len(found))
            paused_by = connection.execute(sa.select(System.paused_by).where(System.name == system)).scalar()
        if paused_by == DELETE_GUARD:
            self.systems.resume(system, by)
        return len(found)

    def accept_account(self, system: str, by: str, *, unlink: bool) -> str:
        """Take the account that the login leads to as the system's own from now on, and resume it; return its id.

        `unlink`: its records are none of the linked ones, so all links are removed. A backfill then links or creates
        them there. Without it the links stay, as for a copy of the account that has the same ids.

        Raises:
          ValueError: there is no such system, or its login leads to the known account.
        """
        names = [one.name() for one in self.context.of_system(system)]
        with self.context.database.write() as connection:
            row = connection.execute(
                sa.select(System.account, System.other_account).where(System.name == system).with_for_update()
            ).one_or_none()
            if row is None or row.other_account is None:
                raise ValueError(gettext("the login of {system} leads to no other account", system=system))
            values = {"account": row.other_account, "other_account": None}
            connection.execute(sa.update(System).where(System.name == system).values(**values))
            if unlink:
                state.forget_account(connection, names)
                lost.forget_system(connection, system)
                connection.execute(sa.update(Cursor).where(Cursor.subscriber.in_(names)).values(position=None))
            details = {"before": row.account, "account": row.other_account, "unlink": unlink}
            self.context.audit(connection, by, "system.account", system, **details)
        self.systems.resume(system, by)
        return str(row.other_account)

    def decide(self, letter_id: int, by: str, *, same: bool) -> None:
        """Say whether the record under a deleted one's id is the same record, or another one.

        The other dead letters that ask the same are decided as well.

        Raises:
          ValueError: there is no open dead letter that asks this.
        """
        with self.context.database.write() as connection:
            asked = sa.select(DeadLetter.subscriber, DeadLetter.record_id)
            one = connection.execute(asked.where(DeadLetter.id == letter_id, *_ASKS)).one_or_none()
            link = None if one is None else connection.execute(_link_of(one.subscriber, one.record_id)).one_or_none()
            if one is None or link is None or link.external_id is None:
                raise ValueError(
                    gettext("dead letter #{number} does not ask whether it is the same record", number=letter_id)
                )
            columns = (DeadLetter.id, DeadLetter.link_id, DeadLetter.inbox_id)
            of_record = (DeadLetter.subscriber == one.subscriber, DeadLetter.record_id == one.record_id)
            letters = connection.execute(sa.select(*columns).where(*_ASKS, *of_record)).all()
            if same:
                store_relink(
                    self.context, connection, self.context.subscribers[one.subscriber], lost.of_link(link_row(link))
                )
                self._end(connection, letters, f"the same record, says {by}")
            else:
                state.write(connection, link.id, {"external_id": None})
                self.letters.retry(connection, letters)
            action = "dead_letter.same_record" if same else "dead_letter.another_record"
            self.context.audit(connection, by, action, f"#{letter_id} {one.subscriber}")

    def _since(self) -> Any:
        return self.context.clock() - timedelta(hours=RELINK_HOURS)

    def _end(self, connection: sa.Connection, letters: Any, result: str) -> None:
        """Close dead letters and their events: the record is fetched instead."""
        events = Inbox.id.in_([letter.inbox_id for letter in letters])
        now = self.context.clock()
        done = {"state": "done", "finished_at": now, "retry_at": None, "result": result, "waits_for": None}
        connection.execute(sa.update(Inbox).where(events).values(**done))
        self.letters.close(connection, [letter.id for letter in letters], result)


_ASKS = (DeadLetter.code == REUSED_ID, DeadLetter.closed_at.is_(None))


def _link_of(subscriber: str, record_id: str | None) -> sa.Select[Any]:
    return sa.select(Link.__table__).where(Link.subscriber == subscriber, Link.record_id == record_id).with_for_update()
