"""What people do: pause systems, keep unsubscribe lists.

Each function writes its audit row in the transaction that does the work. The panel and the
command line call these and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from conductor.context import Context
from conductor.links import leases, state
from conductor.links.merge import Merge, rebase
from conductor.links.relations import Relations, our_side
from conductor.links.state import Via
from conductor.mappings.store import Mappings
from conductor.systems.circuit_breaker import CircuitBreaker
from i18n import gettext
from models.capture import sync_context
from models.counting import DISPLAY_LIMIT
from models.ledger import (
    Change,
    Conflict,
    Inbox,
    Link,
    System,
    Unsubscription,
    UnsubscriptionRecord,
)
from models.query_hints import no_index
from subscribers.base import Subscriber
from subscribers.errors import SyncError
from subscribers.mapping.values import Flat

#: How long deletes flow after a person has said that they are meant.
_DELETES_ALLOWED_SECONDS = 3600


class Desk:
    """The operator's desk."""

    def __init__(
        self,
        context: Context,
        health: CircuitBreaker,
        mappings: Mappings,
        relations: Relations,
    ) -> None:
        self.context = context
        self.breaker = health
        self.mappings = mappings
        self.relations = relations

    # --- systems ------------------------------------------------------------------------------------

    def pause(self, system: str, by: str, reason: str) -> None:
        """Send nothing to this system, and poll nothing from it, until it is resumed. What is owed waits."""
        self._require_system(system)
        now = self.context.clock()
        with self.context.database.write() as connection:
            values = {"paused_at": now, "paused_by": by, "pause_reason": reason or None}
            self._update_system(connection, system, values)
            self.context.audit(connection, by, "system.pause", system, reason=reason)

    def resume(self, system: str, by: str, *, allow_deletes: bool = False) -> None:
        """Let it flow again; what waited is announced with the next sweep. A system that is down is tried at once.

        `allow_deletes`: what the mass-delete guard held back is meant, and flows for the next hour.
        """
        self._require_system(system)
        now = self.context.clock()
        values: dict[str, Any] = {
            "paused_at": None,
            "paused_by": None,
            "pause_reason": None,
            "up_since": now,
            "probe_at": now,
        }
        if allow_deletes:
            values |= {"deletes": 0, "deletes_allowed_until": self.context.later(_DELETES_ALLOWED_SECONDS)}
        with self.context.database.write() as connection:
            self._update_system(connection, system, values)
            # As the index over what waits says it; by the system SQLite would read all that ever came from there.
            waiting = (no_index(Inbox.system == system), Inbox.state == sa.literal_column("'waiting'"))
            connection.execute(sa.update(Inbox).where(*waiting).values(retry_at=now))
            self.context.audit(connection, by, "system.resume", system, allow_deletes=allow_deletes)

    def poll_soon(self, subscriber: str, by: str) -> None:
        """Have a subscriber polled now; a system that is down is asked too."""
        if subscriber not in self.context.subscribers:
            raise KeyError(subscriber)
        with self.context.database.write() as connection:
            self.context.audit(connection, by, "subscriber.poll", subscriber)
        self.breaker.probe_again(self.context.subscribers[subscriber].system)
        self.context.publisher.poll(subscriber)

    def _update_system(self, connection: sa.Connection, system: str, values: dict[str, Any]) -> None:
        insert = self.context.database.insert(System).values(name=system, **values)
        connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=values))

    def _require_system(self, system: str) -> None:
        if system not in self.context.systems:
            known = ", ".join(sorted(self.context.systems)) or gettext("none is configured")
            raise ValueError(gettext("no system {name!r}; there are: {known}", name=system, known=known))

    # --- unsubscriptions ----------------------------------------------------------------------------

    def unsubscribe(
        self,
        target: str,
        operation: str | None,
        record_ids: list[str] | None,
        until: datetime | None,
        reason: str,
        by: str,
    ) -> int:
        """Make a rule: nothing (of this operation, of these records) flows to a system or subscriber.

        Raises:
          ValueError: no such target or operation, or an empty list of records.
        """
        targets = set(self.context.subscribers) | set(self.context.systems)
        if target not in targets:
            known = ", ".join(sorted(targets))
            raise ValueError(gettext("no system or subscriber {name!r}; there are: {known}", name=target, known=known))
        if operation not in (None, "create", "update", "delete"):
            raise ValueError(
                gettext("no operation {operation!r}; there are create, update and delete", operation=operation)
            )
        if record_ids is not None and not record_ids:
            raise ValueError(gettext("the list of records is empty"))
        if record_ids is not None and (long := next((r for r in record_ids if len(r) > 64), None)):
            raise ValueError(gettext("{start}... is too long for a record's id", start=long[:20]))
        if until is not None and until <= self.context.clock():
            raise ValueError(gettext("the end lies in the past"))
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

    def missed(self, unsubscription_id: int) -> int:
        """How many records a rule has kept back: what lifting it could bring over. Stops at COUNT_LIMIT."""
        with self.context.database.read() as connection:
            kept = sa.select(Link.unsubscription_id).where(Link.unsubscription_id == unsubscription_id)
            some = kept.limit(DISPLAY_LIMIT).subquery()
            return int(connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one())

    def lift(self, unsubscription_id: int, by: str, *, bring: bool = False) -> int:
        """Remove a rule. With `bring` the records it kept back are owed at once, else with their next change.

        Returns how many records are brought over.
        """
        with self.context.database.write() as connection:
            rule = Unsubscription.id == unsubscription_id
            target = connection.execute(sa.delete(Unsubscription).where(rule).returning(Unsubscription.target)).scalar()
            if target is None:
                raise ValueError(gettext("there is no unsubscription #{number}", number=unsubscription_id))
            now = self.context.clock()
            kept_back = state.release_unsubscribed(connection, unsubscription_id, now, deliver=bring)
            count = kept_back if bring else 0
            self.context.audit(connection, by, "unsubscription.lift", f"#{unsubscription_id} {target}", brought=count)
        return int(count)

    # --- conflicts ----------------------------------------------------------------------------------

    def settle_conflict(self, conflict_id: int, choice: Literal["ours", "theirs"], by: str) -> None:
        """Decide a field that changed on both sides; the side that lost is brought up to date.

        Raises:
          ValueError: there is no such open conflict, its record is gone or being delivered just now, or their value
            does not fit here.
        """
        try:
            self._settle_conflict(conflict_id, choice, by)
        except SyncError as error:
            raise ValueError(str(error)) from error

    def _settle_conflict(self, conflict_id: int, choice: str, by: str) -> None:
        with self.context.database.write() as connection:
            is_open = sa.and_(Conflict.id == conflict_id, Conflict.resolved_at.is_(None))
            conflict = connection.execute(sa.select(Conflict.__table__).where(is_open)).one_or_none()
            if conflict is None:
                raise ValueError(gettext("there is no open conflict #{number}", number=conflict_id))
            locked = sa.select(Link.__table__).where(Link.id == conflict.link_id).with_for_update()
            link = connection.execute(locked).one()
            if leases.is_held(link, self.context.clock()):
                raise ValueError(gettext("the record is being delivered at this moment; try again"))
            # A lease that ran out is taken away: who had it may live on, and knows nothing of this.
            values = self._settled_values(connection, conflict, link, choice)
            state.write(connection, link.id, values | leases.RELEASED)
            closed = {"resolved_at": self.context.clock(), "resolved_by": by, "choice": choice}
            connection.execute(sa.update(Conflict).where(is_open).values(**closed))
            target = f"#{conflict_id} {conflict.subscriber} {conflict.record_id} {conflict.path}"
            versions = {"base": conflict.base, "ours": conflict.ours, "theirs": conflict.theirs}
            self.context.audit(connection, by, "conflict.settle", target, choice=choice, **versions)

    def _settled_values(self, connection: sa.Connection, conflict: Any, link: Any, choice: str) -> dict[str, Any]:
        subscriber = self.context.subscribers[conflict.subscriber]
        if not self.mappings.current(connection, conflict.subscriber)[0].accepts_inward(conflict.path):
            return {"open_conflicts": Link.open_conflicts - 1}  # the field is not mapped any more
        result = Merge(**{"keep" if choice == "ours" else "take": {conflict.path: conflict.theirs}})
        if choice == "theirs":
            mapper = self.mappings.current(connection, conflict.subscriber)[0]
            keys = self.relations.keys(connection, subscriber, mapper, result.take)
            record = subscriber.records.read(connection, [link.record_id], lock=True).get(link.record_id)
            with sync_context(connection, origin=subscriber.system):
                subscriber.records.update(connection, link.record_id, mapper.inward(result.take, keys, record))
        ours = self._ours(connection, subscriber, link.record_id)
        base, remote_values = rebase(result, link.base or {}, link.remote_values or {}, ours)
        values: dict[str, Any] = {
            "base": base,
            "remote_values": remote_values or None,
            "open_conflicts": Link.open_conflicts - 1,
        }
        if choice == "ours":
            values |= state.owed(self.context.clock(), Via.DUE)
        return values

    def _ours(self, connection: sa.Connection, subscriber: Subscriber, record_id: str) -> Flat:
        record = subscriber.records.read(connection, [record_id]).get(record_id)
        if record is None:
            raise ValueError(gettext("the record does not exist any more"))
        mapper = self.mappings.current(connection, subscriber.name())[0]
        related = self.relations.load(connection, subscriber, mapper, [record])
        return our_side(subscriber, mapper, record, related)[0]

    # --- asking directly ----------------------------------------------------------------------------

    def push(self, catalogue: str, record_id: str, unsubscribe: Iterable[str] = ()) -> int:
        """Have a record looked at by all its subscribers but these, as if it had just changed.

        Returns the id of the change row; it takes the same way as a captured change.
        """
        with self.context.database.write() as connection:
            change = connection.execute(
                sa.insert(Change)
                .values(
                    catalogue=catalogue,
                    record_id=record_id,
                    operation="updated",
                    unsubscribe=",".join(unsubscribe) or None,
                    at=self.context.clock(),
                )
                .returning(Change.id)
            ).scalar_one()
        return int(change)
