"""Unsubscriptions: an operator creates and lifts the rules that hold back records from a system or subscriber."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from conductor.context import Context
from conductor.links import state
from i18n import gettext
from models.counting import capped_count
from models.ledger import Link, Unsubscription, UnsubscriptionRecord

#: What an unsubscription may cover; without an operation it covers all of them.
_OPERATIONS = ("create", "update", "delete")

#: The width of the column that holds a record's id.
_LONGEST_RECORD_ID = 64


def require_target(context: Context, name: str) -> None:
    """Check that a name to unsubscribe is a connected system or subscriber.

    Raises:
      ValueError: it is neither.
    """
    targets = {*context.subscribers, *context.systems}
    if name not in targets:
        known = ", ".join(sorted(targets))
        raise ValueError(gettext("unknown system or subscriber {name!r}; known: {known}", name=name, known=known))


class Unsubscriptions:
    """Creates and lifts unsubscriptions; each action writes its audit row."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def create(
        self,
        target: str,
        operation: str | None,
        record_ids: Sequence[str] | None,
        until: datetime | None,
        reason: str,
        by: str,
    ) -> int:
        """Keep records (all, or these), for one operation or all, from a system or subscriber; return the rule's id.

        Raises:
          ValueError: the target or the operation does not exist, the end is in the past, or the list of records is
            empty or holds an id that is too long.
        """
        self._check(target, operation, record_ids, until)
        with self.context.database.write() as connection:
            rule = connection.execute(
                sa.insert(Unsubscription)
                .values(
                    target=target,
                    operation=operation,
                    listed_only=record_ids is not None,
                    until=until,
                    reason=reason,
                    created_at=self.context.clock(),
                    created_by=by,
                )
                .returning(Unsubscription.id)
            ).scalar_one()
            if record_ids is not None:
                rows = [{"unsubscription_id": rule, "record_id": r} for r in dict.fromkeys(record_ids)]
                connection.execute(sa.insert(UnsubscriptionRecord), rows)
            details = {"operation": operation, "records": record_ids and len(record_ids), "reason": reason}
            self.context.audit(connection, by, "unsubscription.create", f"#{rule} {target}", **details)
        return int(rule)

    def _check(
        self, target: str, operation: str | None, record_ids: Sequence[str] | None, until: datetime | None
    ) -> None:
        require_target(self.context, target)
        if operation is not None and operation not in _OPERATIONS:
            raise ValueError(
                gettext(
                    "unknown operation {operation!r}; known operations: create, update, delete", operation=operation
                )
            )
        if record_ids is not None and not record_ids:
            raise ValueError(gettext("the list of records is empty"))
        if long := next((r for r in record_ids or () if len(r) > _LONGEST_RECORD_ID), None):
            raise ValueError(gettext("{start}... is too long for a record's id", start=long[:20]))
        if until is not None and until <= self.context.clock():
            raise ValueError(gettext("the end is in the past"))

    def missed(self, unsubscription_id: int) -> int:
        """Return how many records a rule has held back, up to `models.counting.DISPLAY_LIMIT`."""
        with self.context.database.read() as connection:
            kept = sa.select(Link.unsubscription_id).where(Link.unsubscription_id == unsubscription_id)
            return connection.execute(capped_count(kept)).scalar_one()

    def lift(self, unsubscription_id: int, by: str, *, deliver: bool = False) -> int:
        """Remove a rule; return how many of the records it held back are delivered now.

        With `deliver` that is all of them; without it, each is delivered with its next change.

        Raises:
          ValueError: there is no such rule.
        """
        with self.context.database.write() as connection:
            rule = Unsubscription.id == unsubscription_id
            target = connection.execute(sa.delete(Unsubscription).where(rule).returning(Unsubscription.target)).scalar()
            if target is None:
                raise ValueError(gettext("there is no unsubscription #{number}", number=unsubscription_id))
            now = self.context.clock()
            kept_back = state.release_unsubscribed(connection, unsubscription_id, now, deliver=deliver)
            count = kept_back if deliver else 0
            self.context.audit(connection, by, "unsubscription.lift", f"#{unsubscription_id} {target}", delivered=count)
        return int(count)
