"""Apply one external record to the internal database, inside one transaction.

Nothing here calls an external system. Where an event does not prove the record's newest state (it may be late, or from
the same second as a write of ours), the result is `NeedsFetch`; the caller fetches the record and applies that.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.internal.absence import Absent, Unreadable, last_captured, require_deletion
from conductor.internal.deletions import remove_here, restore_here
from conductor.inward import awaited, matching
from conductor.inward.history import write_delivery
from conductor.inward.incoming import Applied, HeldByDeleteGuard, Incoming, NeedsFetch
from conductor.inward.merging import RecordMerger, known_version, overwritten_edits, seen_values
from conductor.links import in_doubt, leases, lost, state
from conductor.links.conflicts import close_conflicts
from conductor.links.merge import unseen_edits
from conductor.links.relations import Relations, Unlinked
from conductor.links.row import LinkRow
from conductor.systems.delete_guard import DeleteGuard
from models.capture import sync_context
from models.catalogues import Record, UnreadableRecord, is_generated
from models.ledger import Inbox, OtherHub
from subscribers.base import Subscriber
from subscribers.errors import Reject
from subscribers.mapping.values import is_empty, same

logger = logging.getLogger(__name__)

#: The code of a record that lives under the id of a deleted one, while nothing says whether it is the same.
REUSED_ID = "reused_id"


class ReusedId(Reject):
    """A system may have given the id of a deleted record to another one: an operator decides."""

    code = REUSED_ID

    def __init__(self, subscriber: Subscriber, external_id: str, record_id: str) -> None:
        super().__init__(
            f"{external_id} was deleted and lives again; {subscriber.system} may have given the id of record "
            f"{record_id} to another record"
        )
        self.subscriber, self.record_id = subscriber.name(), record_id


class InboundApplier:
    """Decides what an external record means for the internal database, and does it."""

    def __init__(self, context: Context, relations: Relations, guard: DeleteGuard) -> None:
        self.context = context
        self.relations = relations
        self.guard = guard
        self.merger = RecordMerger(context, relations)

    def apply(self, connection: sa.Connection, incoming: Incoming) -> Applied | NeedsFetch:
        """Apply one external record inside the caller's transaction.

        Raises:
          LinkLeased: the record is being delivered.
          HeldByDeleteGuard: it is a deletion, and there are too many of them.
          SyncError: the record cannot be applied; the message says why.
        """
        try:
            return self._apply(connection, incoming)
        except UnreadableRecord as error:
            raise Unreadable(error) from None
        except Unlinked as wait:
            wait.own = incoming.reference
            raise

    def _apply(self, connection: sa.Connection, incoming: Incoming) -> Applied | NeedsFetch:
        if incoming.lost is not None:
            return self._link_again(connection, incoming, incoming.lost)
        link = matching.link_by_external_id(connection, incoming.subscriber, incoming.external.id)
        if link is None:
            return self._apply_unknown(connection, incoming)
        leases.take_over(connection, link, incoming.token, self.context.clock())
        if link.unlinked_at is not None:
            return self._apply_unlinked(connection, incoming, link)
        if incoming.external.deleted:
            return self._apply_deletion(connection, incoming, link)
        return self._apply_known(connection, incoming, link)

    def adopt(self, connection: sa.Connection, incoming: Incoming, where: Sequence[Any] = ()) -> str | None:
        """Link an external record to the internal one it belongs to, merge them and return the internal id.

        Return None if the record is linked already, or belongs to no internal record that meets `where`.

        Raises:
          LinkLeased, SyncError: as `apply` does.
        """
        try:
            return self._adopt(connection, incoming, where)
        except UnreadableRecord as error:
            raise Unreadable(error) from None

    def _adopt(self, connection: sa.Connection, incoming: Incoming, where: Sequence[Any]) -> str | None:
        subscriber, external = incoming.subscriber, incoming.external
        if external.deleted:
            return None
        known = matching.link_by_external_id(connection, subscriber, external.id)
        if known is not None:
            return self._adopt_restored(connection, incoming, known, where)
        record_id = matching.claimed_record(connection, incoming)
        if record_id is None and matching.link_without_record(connection, incoming) is not None:
            return None
        doubt = self._doubt(connection, incoming)
        record_id = record_id or matching.created_record(connection, incoming)
        record_id = record_id or matching.matched_record(connection, incoming)
        if record_id is None or (where and not subscriber.records.keep(connection, [record_id], where)):
            return None
        link = matching.link_by_record(connection, subscriber, record_id)
        if link is not None and link.is_linked:
            return None  # it belongs to another external record
        self._link_and_merge(connection, incoming, record_id, doubt)
        return record_id

    def _adopt_restored(
        self, connection: sa.Connection, incoming: Incoming, link: LinkRow, where: Sequence[Any]
    ) -> str | None:
        """Link a restored record again; one whose restoration is in doubt is left to the next poll or event."""
        subscriber = incoming.subscriber
        if link.is_linked or not _may_be_restored(incoming, link) or not _is_newer(incoming.external.at, link):
            return None
        if not subscriber.records.keep(connection, [link.record_id], where):
            return None
        leases.take_over(connection, link, incoming.token, self.context.clock())
        self._apply_restored(connection, incoming, link)
        return link.record_id

    # --- linked records -------------------------------------------------------------------------------

    def _apply_known(self, connection: sa.Connection, incoming: Incoming, link: LinkRow) -> Applied | NeedsFetch:
        subscriber = incoming.subscriber
        if not (incoming.flat or incoming.newest):
            return NeedsFetch("the event carries no fields")
        if incoming.newest and link.lease_owner != incoming.token:
            # It was linked, or our lease ran out, after the fetch: the fetched state may be outdated.
            raise leases.LinkLeased
        if _leaves_out_values(incoming, link):
            weighed = self._weigh(connection, incoming, link)
            return weighed or NeedsFetch("it leaves out fields, which may be empty there")
        overwritten = overwritten_edits(incoming, link)
        if _is_echo(incoming, link) and not overwritten:
            return self._echo(connection, incoming, link)
        incoming = self._without_unlinked(connection, incoming, link)
        if incoming.awaited:
            overwritten = overwritten_edits(incoming, link)
            if _is_echo(incoming, link) and not overwritten:
                return replace(self._echo(connection, incoming, link), awaits=incoming.first_awaited)
        record = subscriber.records.read(connection, [link.record_id], lock=True).get(link.record_id)
        if record is None:
            require_deletion(connection, subscriber.records, link.record_id)
            return self._skip(connection, incoming, link, "the record no longer exists in the database")
        if overwritten and not incoming.newest:
            return NeedsFetch("a write of ours may have overwritten this edit")
        if (weighed := self._weigh(connection, incoming, link)) is not None:
            return weighed
        return self._noted(connection, incoming, self.merger.merge(connection, incoming, link, record, overwritten))

    # --- references to records that are not linked yet --------------------------------------------------

    def _without_unlinked(self, connection: sa.Connection, incoming: Incoming, link: LinkRow | None = None) -> Incoming:
        """Return the record without its new optional references to records that are not linked yet."""
        if not incoming.subscriber.can_fetch:
            return incoming
        new = incoming.flat
        if link is not None:
            new = unseen_edits(link.base, link.remote_values, incoming.flat)
        awaits = self.relations.unlinked(connection, incoming.subscriber, incoming.mapper, new)
        return replace(incoming, awaited=awaits) if awaits else incoming

    def _merge_linked(
        self, connection: sa.Connection, incoming: Incoming, link: LinkRow, record: Record, message: str
    ) -> Applied:
        """Merge a record that this transaction has linked, and wake what waited for it."""
        incoming = self._without_unlinked(connection, incoming, link)
        merged = self.merger.merge(connection, incoming, link, record, overwritten={}, message=message)
        return self._linked(connection, incoming, merged)

    def _noted(self, connection: sa.Connection, incoming: Incoming, applied: Applied) -> Applied:
        """Keep that a reference was left out; an inbox row keeps it itself."""
        related = incoming.first_awaited
        if related is not None and incoming.inbox_id is None:
            awaited.pull(self.context, connection, related)
            awaited.complete_later(self.context, connection, incoming.reference, related)
        return replace(applied, awaits=related)

    def _linked(self, connection: sa.Connection, incoming: Incoming, applied: Applied) -> Applied:
        """Wake what waited for this record, which is linked now."""
        applied = self._noted(connection, incoming, applied)
        woken = awaited.wake(self.context, connection, incoming.reference.key, linked=True)
        return replace(applied, woken=tuple(woken))

    def _weigh(self, connection: sa.Connection, incoming: Incoming, link: LinkRow) -> Applied | NeedsFetch | None:
        """Skip an event that is older than what was applied, or have the record fetched; None: it is newer."""
        at = incoming.external.at
        if incoming.newest:
            return None
        if at is not None and link.last_seen_at is not None and at < link.last_seen_at:
            return Applied("skipped", "it is older than the state that was applied")
        if link.unconfirmed_write is not None or not _is_newer(at, link):
            return NeedsFetch("it may be older than the last write")
        return None

    def _echo(self, connection: sa.Connection, incoming: Incoming, link: LinkRow) -> Applied:
        """Note time and version of a state that changes nothing; the history gets no row for it."""
        version = _newer_version(incoming, link)
        if not version and _is_repeated(incoming, link):
            return Applied("echo", "seen before")
        if seen := {**seen_values(incoming, link), **version}:
            state.write(connection, link.id, seen)
        return Applied("echo", "both sides agreed on it already")

    def _skip(self, connection: sa.Connection, incoming: Incoming, link: LinkRow, message: str) -> Applied:
        if _is_repeated(incoming, link):
            return Applied("skipped", "seen before")
        if incoming.polled and incoming.external.at is None:
            return Applied("skipped", message)  # each poll lists it again
        if incoming.external.at is not None:
            state.write(connection, link.id, {"last_seen_at": incoming.external.at})
        return write_delivery(self.context, connection, incoming, link, "skipped", message)

    def _apply_deletion(self, connection: sa.Connection, incoming: Incoming, link: LinkRow) -> Applied | NeedsFetch:
        subscriber, now = incoming.subscriber, self.context.clock()
        weighed = self._weigh(connection, incoming, link)
        # A poll lists a merged record before the one it was merged into. If it had to wait for a fetch, that one would
        # be created as another record.
        is_sure = isinstance(weighed, NeedsFetch) and incoming.polled and incoming.external.merged_into
        if weighed is not None and not is_sure:
            return weighed
        merged_into = incoming.external.merged_into
        if merged_into and matching.link_by_external_id(connection, subscriber, merged_into) is None:
            return self._follow_merge(connection, incoming, link, merged_into)
        if not self.guard.reserve(connection, subscriber.system, 1, "from"):
            raise HeldByDeleteGuard
        lost.remember(connection, subscriber.system, link, now)
        # An edit that the system has not received outlives the deletion.
        recreate = subscriber.on_gone == "recreate" or (subscriber.on_gone == "delete" and link.is_owed)
        if recreate:
            values = state.recreated() | state.owed(now, state.Via.CALLER)
            message = "deleted in the system; it will be created again"
        else:
            values = state.unlinked(now, deleted_remotely=True, keep_base=subscriber.on_gone != "delete")
            values |= close_conflicts(connection, link, "gone", now)
            remove_here(connection, subscriber, link.record_id)
            message = f"deleted in the system; on_gone = {subscriber.on_gone}"
        if link.dead_at is not None:
            values |= state.revived()
        if incoming.external.at is not None:
            values["last_seen_at"] = incoming.external.at
        state.write(connection, link.id, values)
        return write_delivery(self.context, connection, incoming, link, "applied", message, owed=recreate)

    def _follow_merge(self, connection: sa.Connection, incoming: Incoming, link: LinkRow, merged_into: str) -> Applied:
        """Link to the record that the deleted one was merged into; no other link leads there."""
        # The base stays, so the values of the other record are applied as edits when its event arrives.
        state.write(connection, link.id, {"external_id": merged_into, "remote_version": None, "write_windows": None})
        message = f"merged into {merged_into} in the system, and linked to that record"
        return write_delivery(self.context, connection, incoming, link, "applied", message)

    # --- restored records -----------------------------------------------------------------------------

    def _apply_unlinked(self, connection: sa.Connection, incoming: Incoming, link: LinkRow) -> Applied | NeedsFetch:
        """Link a record again that lives again in the system; skip an event of one that stays deleted or unlinked."""
        if incoming.external.deleted or not _may_be_restored(incoming, link):
            return self._skip(connection, incoming, link, "it was deleted or unlinked before")
        if incoming.polled and not _is_newer(incoming.external.at, link):
            return NeedsFetch("it was deleted before, and may be restored")
        if (weighed := self._weigh(connection, incoming, link)) is not None:
            return weighed
        return self._apply_restored(connection, incoming, link)

    def _apply_restored(self, connection: sa.Connection, incoming: Incoming, link: LinkRow) -> Applied:
        """Link a living record under the id of a deleted one, or treat it as new if it is another record.

        Raises:
          ReusedId: the system may give the id of a deleted record to another one, and nothing tells which it is.
        """
        subscriber, external = incoming.subscriber, incoming.external
        record = subscriber.records.read(connection, [link.record_id], lock=True).get(link.record_id)
        if record is None or matching.is_another(connection, incoming, link.record_id):
            state.write(connection, link.id, {"external_id": None})
            return self._link_or_create(connection, incoming)
        is_marked = matching.own_mark(connection, incoming) is not None
        if not is_marked and subscriber.reuses_ids and not self._matches(connection, incoming, link):
            raise ReusedId(subscriber, external.id, link.record_id)
        return self._relink(connection, incoming, link)

    def _link_again(self, connection: sa.Connection, incoming: Incoming, gone: lost.Lost) -> Applied | NeedsFetch:
        """Link a record again that was taken for gone, by an operator's word, and merge it."""
        subscriber, now = incoming.subscriber, self.context.clock()
        link = matching.link_by_id(connection, subscriber, gone.link_id)
        leases.take_over(connection, link, incoming.token, now)
        if incoming.external.deleted:
            state.write(connection, link.id, {"retry_at": None})
            return Applied("skipped", f"{gone.external_id} is not there", self._owed(link))
        lost.forget(connection, gone)
        known = matching.link_by_external_id(connection, subscriber, incoming.external.id)
        if known is not None and known.is_linked:
            leases.take_over(connection, known, incoming.token, now)
            return self._apply_known(connection, incoming, known)  # linked again meanwhile
        record = subscriber.records.read(connection, [link.record_id], lock=True).get(link.record_id)
        if record is None and link.deleted_remotely:
            # Our record was deleted because theirs seemed to be.
            state.write(connection, link.id, {"external_id": None})
            return self._link_or_create(connection, incoming)
        if record is not None and link.deleted_remotely:
            return self._relink(connection, incoming, link)
        found = state.linked(incoming.external.id, gone.base, gone.remote_values)
        state.write(connection, link.id, found | state.owed(now, state.Via.CALLER) | state.revived())
        message = "it is there, and linked again"
        if record is None:
            require_deletion(connection, subscriber.records, link.record_id)
            return write_delivery(self.context, connection, incoming, link, "applied", message, owed=True)
        link = matching.existing_link(connection, subscriber, link.record_id)
        merged = self._merge_linked(connection, incoming, link, record, message)
        return replace(merged, owed=self._owed(link))  # no lease of this link ends, which would publish it

    @staticmethod
    def _owed(link: LinkRow) -> tuple[str, str] | None:
        return (link.subscriber, link.record_id) if link.is_owed else None

    @staticmethod
    def _matches(connection: sa.Connection, incoming: Incoming, link: LinkRow) -> bool:
        """Whether the `match_on` columns say that it is the record of this link."""
        return matching.candidates(connection, incoming, 2) == [link.record_id]

    def _relink(self, connection: sa.Connection, incoming: Incoming, link: LinkRow) -> Applied:
        """Link a restored record again and merge it: its base is what both sides held before the deletion."""
        subscriber, record_id = incoming.subscriber, link.record_id
        archived = restore_here(connection, subscriber, link)
        record = subscriber.records.read(connection, [record_id], lock=True)[record_id]
        base, remote_values = dict(link.base or {}), dict(link.remote_values or {})
        ours = self.merger.our_fields(connection, incoming, record)
        for path in filter(None, map(incoming.mapper.path_of, archived)):
            if path not in ours:
                continue
            # The deletion archived our record, so this is no edit of ours: the system's value counts.
            base[path] = ours[path]
            remote_values.pop(path, None)
        # What was edited here since the deletion was not sent.
        owed = state.owed(self.context.clock(), state.Via.CALLER)
        state.write(connection, link.id, state.linked(incoming.external.id, base, remote_values) | owed)
        link = matching.existing_link(connection, subscriber, record_id)
        message = "restored in the system, and linked again"
        return self._merge_linked(connection, incoming, link, record, message)

    # --- unknown records ------------------------------------------------------------------------------

    def _apply_unknown(self, connection: sa.Connection, incoming: Incoming) -> Applied | NeedsFetch:
        may_be_linked = self._may_be_linked(connection, incoming)
        if incoming.external.deleted and not may_be_linked:
            self._wait_for_creates(connection, incoming)
            return Applied("skipped", "deleted in the system, and never linked")
        if may_be_linked:
            return NeedsFetch("it may be linked under another form of its id")
        if not (incoming.newest or incoming.polled):
            return NeedsFetch("an unknown record may have changed or be deleted by now")
        record_id = matching.claimed_record(connection, incoming)
        if record_id is None and (link := matching.link_without_record(connection, incoming)) is not None:
            return self._owe_deletion(connection, incoming, link)
        return self._link_or_create(connection, incoming)

    @staticmethod
    def _may_be_linked(connection: sa.Connection, incoming: Incoming) -> bool:
        subscriber, external_id = incoming.subscriber, incoming.external.id
        if incoming.newest or not subscriber.can_fetch:
            return False
        return matching.other_form(connection, subscriber, external_id) is not None

    def _link_or_create(self, connection: sa.Connection, incoming: Incoming) -> Applied:
        record_id = matching.claimed_record(connection, incoming)
        if record_id is None:
            _refuse_hidden(connection, incoming)
        doubt = self._doubt(connection, incoming)
        record_id = record_id or matching.created_record(connection, incoming)
        record_id = record_id or matching.matched_record(connection, incoming)
        if record_id is not None:
            return self._link_and_merge(connection, incoming, record_id, doubt)
        self._wait_for_creates(connection, incoming)
        return self._create(connection, incoming, doubt)

    def _wait_for_creates(self, connection: sa.Connection, incoming: Incoming) -> None:
        """Have an event wait while a create is under way that may have made its record: it may overtake the response.

        A deletion tells no values: it waits no longer than a lease, and a poll lists it again.

        Raises:
          LinkLeased: the event has to wait.
        """
        now = self.context.clock()
        if incoming.external.deleted:
            received = sa.select(Inbox.received_at).where(Inbox.id == incoming.inbox_id)
            since = connection.execute(received).scalar() or now
            if incoming.polled or since <= self.context.later(-self.context.policy.lease_seconds):
                return
        if matching.is_being_created(connection, incoming, now):
            raise leases.LinkLeased

    def _doubt(self, connection: sa.Connection, incoming: Incoming) -> str:
        """Say why the record's mark is not believed; empty if it has none, or is."""
        mark = matching.doubted_mark(connection, incoming)
        if mark is None:
            return ""
        system, external_id = incoming.subscriber.system, incoming.external.id
        if mark.hub is None or self._note_hub(connection, system, mark.hub, external_id):
            logger.warning("%s %s: %s", incoming.subscriber.name(), external_id, mark)
        return str(mark)

    def _note_hub(self, connection: sa.Connection, system: str, hub: str, external_id: str) -> bool:
        """Keep that another hub works in a system; return False if that is known."""
        seen = {"system": system, "hub_id": hub, "external_id": external_id, "seen_at": self.context.clock()}
        insert = self.context.database.insert(OtherHub).values(**seen).on_conflict_do_nothing()
        return connection.execute(insert.returning(OtherHub.hub_id)).first() is not None

    def _create(self, connection: sa.Connection, incoming: Incoming, doubt: str) -> Applied:
        incoming = self._without_unlinked(connection, incoming)
        subscriber, mapper = incoming.subscriber, incoming.mapper
        flat = {path: value for path, value in incoming.flat.items() if mapper.accepts_inward(path)}
        values = mapper.inward(flat, self.relations.keys(connection, subscriber, mapper, flat))
        _check_required_columns(subscriber, values)
        given = {name: value for name, value in values.items() if value is not None}
        with sync_context(connection, origin=subscriber.system):
            record_id = subscriber.records.insert(connection, given)
        link = self.merger.link_created(connection, incoming, record_id)
        left_out = ", ".join(f"without {related}, which is not linked yet" for related in incoming.awaited.values())
        message = "; ".join(filter(None, ("created in the database", left_out, doubt)))
        applied = write_delivery(
            self.context, connection, incoming, link, "applied", message, operation="create", owed=link.is_owed
        )
        return self._linked(connection, incoming, applied)

    def _owe_deletion(self, connection: sa.Connection, incoming: Incoming, link: LinkRow) -> Applied:
        now = self.context.clock()
        leases.take_over(connection, link, incoming.token, now)
        found = {"external_id": incoming.external.id, "create_token": None}
        state.write(connection, link.id, found | state.owed(now, state.Via.CALLER))
        message = "deleted in the database; the deletion is pending"
        return write_delivery(self.context, connection, incoming, link, "skipped", message, owed=True)

    def _link_and_merge(self, connection: sa.Connection, incoming: Incoming, record_id: str, doubt: str) -> Applied:
        """Link an external record to an internal one and merge them, unless that one is linked already."""
        subscriber = incoming.subscriber
        link = matching.link_by_record(connection, subscriber, record_id)
        if link is None:
            self.merger.link_new(connection, incoming, record_id, base={})
        else:
            leases.take_over(connection, link, incoming.token, self.context.clock())
            if link.is_linked:
                message = f"it carries the id of record {record_id}, which is linked to {link.external_id}"
                if incoming.polled:
                    return Applied("skipped", message)  # each poll may list it again
                return write_delivery(self.context, connection, incoming, link, "skipped", message)
            is_claimed = matching.claimed_record(connection, incoming) == record_id
            if link.deleted_remotely and is_claimed:
                return self._relink(connection, incoming, link)
            state.write(connection, link.id, self._relinked(incoming, link, is_claimed))
        link = matching.existing_link(connection, subscriber, record_id)
        record = subscriber.records.read(connection, [record_id], lock=True)[record_id]
        return self._merge_linked(connection, incoming, link, record, doubt)

    def _relinked(self, incoming: Incoming, link: LinkRow, is_claimed: bool) -> state.Values:
        external = incoming.external
        if link.create_token is None or not is_claimed:
            return state.linked(external.id, base={})
        # Our own create, whose answer was lost: what it sent is the base, and what was edited since then is owed.
        base = in_doubt.created(link.unconfirmed_write, incoming.flat)
        return state.linked(external.id, base) | state.owed(self.context.clock(), state.Via.CALLER)


def _leaves_out_values(incoming: Incoming, link: LinkRow) -> bool:
    """Return whether an event lacks a field that had a value, from a system that leaves empty fields out."""
    subscriber, flat = incoming.subscriber, incoming.flat
    if incoming.newest or subscriber.absent != "empty" or not subscriber.can_fetch:
        return False
    whole = incoming.mapper.flatten(incoming.mapper.completed(incoming.external.data))
    return any(path not in flat and not is_empty((link.base or {}).get(path)) for path in whole)


def _is_echo(incoming: Incoming, link: LinkRow) -> bool:
    """Whether the record holds only what both sides agreed on."""
    base, remote_values = link.base or {}, link.remote_values or {}
    # Of a field in conflict since it was linked only the system's value is known.
    known = {**base, **remote_values}
    return all(path in known and same(value, known[path]) for path, value in incoming.flat.items())


def _may_be_restored(incoming: Incoming, link: LinkRow) -> bool:
    """Whether a living external record means that a deletion was undone, not that it was kept when ours was deleted."""
    subscriber = incoming.subscriber
    return link.deleted_remotely or (subscriber.on_delete == "delete" and subscriber.is_restored(incoming.external))


def _is_repeated(incoming: Incoming, link: LinkRow) -> bool:
    """Whether this state was processed before, as in the overlap of two polls: no second history row."""
    at = incoming.external.at
    return at is not None and link.last_seen_at is not None and at <= link.last_seen_at


def _is_newer(at: datetime | None, link: LinkRow) -> bool:
    """Whether this time is later than all that the link knows. Systems count whole seconds: a tie proves nothing."""
    return at is not None and all(known is None or at > known for known in (link.last_seen_at, link.last_write_at))


def _newer_version(incoming: Incoming, link: LinkRow) -> state.Values:
    """Return the version of an echo, unless it is known, or may be that of an older state."""
    version, at = known_version(incoming, link), incoming.external.at
    is_current = incoming.newest or link.remote_version is None or _is_newer(at, link)
    return {"remote_version": version} if version is not None and version != link.remote_version and is_current else {}


def _refuse_hidden(connection: sa.Connection, incoming: Incoming) -> None:
    """Refuse an external record whose linked record exists here but is not visible to us."""
    records, ours = incoming.subscriber.records, matching.own_mark(connection, incoming)
    if ours is not None and last_captured(connection, records, [ours]).get(ours) == "created":
        raise Absent(records, ours)


def _check_required_columns(subscriber: Subscriber, values: Record) -> None:
    missing = [
        column.name
        for column in subscriber.records.table.c
        if not column.nullable
        and values.get(column.name) is None
        and column.default is None
        and column.server_default is None
        and not column.primary_key
        and not is_generated(column)
    ]
    if missing:
        raise Reject(
            f"cannot be created in the database: {', '.join(missing)} would be empty", code="required_field_missing"
        )
