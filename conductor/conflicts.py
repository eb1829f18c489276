"""Resolving conflicts: an operator chooses a side for a field that changed on both."""

from __future__ import annotations

from typing import Literal

import sqlalchemy as sa

from conductor.context import Context
from conductor.links import leases, state
from conductor.links.conflicts import OpenConflict, decide_conflict, open_conflict
from conductor.links.merge import Merge, rebase
from conductor.links.relations import Relations, our_side
from conductor.links.row import LinkRow, link_row
from conductor.links.state import Via
from conductor.mappings.store import Mappings
from i18n import gettext
from models.capture import sync_context
from models.ledger import Link
from subscribers.base import Subscriber
from subscribers.errors import SyncError
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.values import Flat

#: The side whose value is kept.
Choice = Literal["ours", "theirs"]


class ConflictResolution:
    """Resolves open conflicts."""

    def __init__(self, context: Context, mappings: Mappings, relations: Relations) -> None:
        self.context = context
        self.mappings = mappings
        self.relations = relations

    def resolve(self, conflict_id: int, choice: Choice, by: str) -> None:
        """Resolve a conflict: the chosen side's value is written to the other side.

        Raises:
          ValueError: there is no such open conflict, its record was deleted or is being delivered, or the system's
            value does not fit the record.
        """
        try:
            with self.context.database.write() as connection:
                self._resolve(connection, conflict_id, choice, by)
        except SyncError as error:
            raise ValueError(str(error)) from error

    def _resolve(self, connection: sa.Connection, conflict_id: int, choice: Choice, by: str) -> None:
        conflict = open_conflict(connection, conflict_id)
        if conflict is None:
            raise ValueError(gettext("there is no open conflict #{number}", number=conflict_id))
        locked = sa.select(Link.__table__).where(Link.id == conflict.link_id).with_for_update()
        link = link_row(connection.execute(locked).one())
        now = self.context.clock()
        if leases.is_held(link, now):
            raise ValueError(gettext("the record is being delivered at this moment; try again"))
        # Take an expired lease away: its owner may still run, and has not seen this resolution.
        values = self._resolution(connection, conflict, link, choice) | leases.RELEASED
        state.write(connection, link.id, values | decide_conflict(connection, conflict, choice, by, now))
        target = f"#{conflict_id} {conflict.subscriber} {conflict.record_id} {conflict.path}"
        versions = {"base": conflict.base, "ours": conflict.ours, "theirs": conflict.theirs}
        self.context.audit(connection, by, "conflict.resolve", target, choice=choice, **versions)

    def _resolution(
        self, connection: sa.Connection, conflict: OpenConflict, link: LinkRow, choice: Choice
    ) -> state.Values:
        """Write the system's value to the record if it was chosen; return what changes in the link."""
        subscriber = self.context.subscribers[conflict.subscriber]
        mapper = self.mappings.current(connection, conflict.subscriber)[0]
        if not mapper.accepts_inward(conflict.path):
            return {}  # the field is no longer mapped
        theirs = {conflict.path: conflict.theirs}
        result = Merge(keep=theirs) if choice == "ours" else Merge(take=theirs)
        if choice == "theirs":
            keys = self.relations.keys(connection, subscriber, mapper, result.take)
            record = subscriber.records.read(connection, [link.record_id], lock=True).get(link.record_id)
            with sync_context(connection, origin=subscriber.system):
                subscriber.records.update(connection, link.record_id, mapper.inward(result.take, keys, record))
        ours = self._ours(connection, subscriber, mapper, link.record_id)
        base, remote_values = rebase(result, link.base or {}, link.remote_values or {}, ours)
        values: state.Values = {"base": base, "remote_values": remote_values or None}
        if choice == "ours":
            values |= state.owed(self.context.clock(), Via.DUE)
        return values

    def _ours(self, connection: sa.Connection, subscriber: Subscriber, mapper: Mapper, record_id: str) -> Flat:
        record = subscriber.records.read(connection, [record_id]).get(record_id)
        if record is None:
            raise ValueError(gettext("the record no longer exists"))
        related = self.relations.load(connection, subscriber, mapper, [record])
        return our_side(subscriber, mapper, record, related)[0]
