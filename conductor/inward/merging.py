"""The three-way merge of an incoming record, written to the internal database.

`base` is what both sides last agreed on, `theirs` what the system holds now, `ours` what the database holds now.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import sqlalchemy as sa

from conductor.context import UNKNOWN_TIME, Context
from conductor.inward import matching
from conductor.inward.history import write_delivery
from conductor.inward.incoming import Applied, Incoming
from conductor.links import in_doubt, overwrites, state
from conductor.links.conflicts import record_conflicts
from conductor.links.merge import Merge, Winner, merge, rebase
from conductor.links.relations import Relations, our_side
from conductor.links.row import LinkRow
from models.capture import sync_context
from models.catalogues import Record
from models.ledger import Change, Link, System
from subscribers.base import Subscriber
from subscribers.mapping.values import Flat, is_empty, same


class RecordMerger:
    """Merges external records into linked internal ones, and links new ones."""

    def __init__(self, context: Context, relations: Relations) -> None:
        self.context = context
        self.relations = relations

    def merge(
        self,
        connection: sa.Connection,
        incoming: Incoming,
        link: LinkRow,
        record: Record,
        overwritten: Flat,
        message: str = "",
    ) -> Applied:
        """Merge an external record into its internal one and update the link.

        `overwritten` holds remote edits that a write of ours has overwritten: see `overwritten_edits`. `message` says
        in the history why the record is merged.
        """
        base, remote_values = in_doubt.rebase_unconfirmed(
            link.unconfirmed_write, incoming.flat, link.base or {}, link.remote_values or {}
        )
        ours = self.our_fields(connection, incoming, record)
        result = merge(
            base=base,
            remote_values=remote_values,
            theirs={**incoming.flat, **overwritten},
            ours=ours,
            comes_in=incoming.mapper.accepts_inward,
            winner=lambda path: self._winner(connection, incoming, link, path),
            overridden_values=link.overridden_values if _is_as_we_wrote(incoming.external.at, link) else None,
        )
        ours_now = ours
        if result.take:
            ours_now = self._update_record(connection, incoming, link.record_id, record, result.take)
        new_base, new_remote_values = rebase(result, base, remote_values, ours_now)
        # The system no longer holds an overwritten edit, so it is owed that value.
        new_base |= {path: incoming.flat.get(path) for path in overwritten}
        new_base = _left_out(incoming, ours_now) | new_base
        new_remote_values = {path: value for path, value in new_remote_values.items() if path not in overwritten}
        values: state.Values = {
            "base": new_base,
            "remote_values": new_remote_values or None,
            "remote_version": known_version(incoming, link),
            "unconfirmed_write": None,
            **_times(incoming, link, overwritten),
            **record_conflicts(connection, link, base | remote_values, ours, result, self.context.clock()),
        }
        if one_way := {path: value for path, value in result.keep.items() if not incoming.mapper.accepts_inward(path)}:
            values["overridden_values"] = {**(link.overridden_values or {}), **one_way}
        if owed := bool(result.keep or overwritten) or _has_unsent(ours_now, {**new_base, **result.ask}):
            values |= state.owed(self.context.clock(), state.Via.CALLER)
        if link.is_owed and (link.dead_at is not None or not link.base):
            # What this record waited for, or died of, may be over.
            owed = True
            values |= state.owed(self.context.clock(), state.Via.CALLER) | state.revived()
        state.write(connection, link.id, values)
        outcome = "applied" if result.take else "kept" if result.keep or result.ask else "echo"
        operation = "merge" if result.take and result.keep else "update"
        if not (message or owed or overwritten) and _asks_only_again(result, remote_values):
            return Applied(outcome, _describe(result))
        message = "; ".join(filter(None, (message, _describe(result))))
        return write_delivery(
            self.context, connection, incoming, link, outcome, message, operation=operation, owed=owed
        )

    def link_created(self, connection: sa.Connection, incoming: Incoming, record_id: str) -> LinkRow:
        """Link the internal record that was just created from this external one."""
        subscriber, mapper, flat = incoming.subscriber, incoming.mapper, incoming.flat
        record = subscriber.records.read(connection, [record_id])[record_id]
        ours = self.our_fields(connection, incoming, record)
        # The system is owed fields that only go out and that it holds differently.
        keep = {path: v for path, v in flat.items() if not mapper.accepts_inward(path) and not same(v, ours.get(path))}
        take = {path: value for path, value in flat.items() if path not in keep}
        base, remote_values = rebase(Merge(take=take, keep=keep), {}, {}, ours)
        base |= _left_out(incoming, ours)
        self.link_new(connection, incoming, record_id, base, remote_values)
        if keep or _has_unsent(ours, base):
            same_link = (Link.subscriber == subscriber.name(), Link.record_id == record_id)
            state.owe(connection, same_link, self.context.clock(), state.Via.CALLER)
        return matching.existing_link(connection, subscriber, record_id)

    def link_new(
        self,
        connection: sa.Connection,
        incoming: Incoming,
        record_id: str,
        base: Flat,
        remote_values: Flat | None = None,
    ) -> None:
        """Write the link between an internal record and an external one that no link knew so far."""
        external = incoming.external
        values = state.linked(external.id, base, remote_values)
        values |= {
            "last_seen_at": external.at,
            "synced_at": self.context.clock(),
            "remote_version": external.version,
        }
        state.link_record(connection, incoming.subscriber.name(), record_id, values)

    def our_fields(self, connection: sa.Connection, incoming: Incoming, record: Record) -> Flat:
        """Return the mapped fields of our record, in the system's form."""
        subscriber, mapper = incoming.subscriber, incoming.mapper
        related = self.relations.load(connection, subscriber, mapper, [record])
        return our_side(subscriber, mapper, record, related)[0]

    def _update_record(
        self, connection: sa.Connection, incoming: Incoming, record_id: str, record: Record, take: Flat
    ) -> Flat:
        """Write the fields that the system wins and return our fields as they are then."""
        subscriber, mapper = incoming.subscriber, incoming.mapper
        values = mapper.inward(take, self.relations.keys(connection, subscriber, mapper, take), record)
        with sync_context(connection, origin=subscriber.system):
            subscriber.records.update(connection, record_id, values)
        return self.our_fields(connection, incoming, subscriber.records.read(connection, [record_id])[record_id])

    def _winner(self, connection: sa.Connection, incoming: Incoming, link: LinkRow, path: str) -> Winner:
        policy = incoming.mapper.entry(path).conflict
        if policy != "newest":
            return policy
        ours_at = newest_edit(connection, incoming.subscriber, link.record_id)
        theirs_at = by_our_clock(connection, incoming.subscriber, incoming.edited_at)
        # Without two times to compare, the edit in the database wins.
        return "external" if ours_at and theirs_at and theirs_at > ours_at else "internal"


def by_our_clock(connection: sa.Connection, subscriber: Subscriber, at: datetime | None) -> datetime | None:
    """Return a time of the subscriber's system by our clock: the system's own may be wrong."""
    offset = subscriber.client.clock_offset
    if offset is None:  # this process has not called the system yet
        offset = connection.execute(sa.select(System.clock_offset).where(System.name == subscriber.system)).scalar()
    return at - timedelta(seconds=offset) if at is not None and offset else at


def newest_edit(connection: sa.Connection, subscriber: Subscriber, record_id: str) -> datetime | None:
    """Return when a record was last changed here, by anyone but the subscriber's system."""
    changes = (Change.catalogue == subscriber.catalogue, Change.record_id == record_id)
    others = sa.or_(Change.origin.is_(None), Change.origin != subscriber.system)
    at: datetime | None = connection.execute(sa.select(sa.func.max(Change.at)).where(*changes, others)).scalar()
    return at


def overwritten_edits(incoming: Incoming, link: LinkRow) -> Flat:
    """Return edits of the event that a write of ours has overwritten since.

    Nested objects are written whole. An edit made between our reading of such an object and our writing of it is
    lost in the system; only the event of that edit still has its value.
    """
    edits: Flat = {}
    for window in _overwriting_windows(incoming, link):
        before = window["fields"]
        changed = {
            path: value
            for path, value in incoming.event_flat.items()
            if path in before and incoming.mapper.accepts_inward(path) and not same(value, before[path])
        }
        if incoming.event is not None:
            # A fetched field that is not as we wrote it was edited even later.
            changed = {path: value for path, value in changed.items() if same(incoming.flat.get(path), before[path])}
        edits |= changed
    return edits


def known_version(incoming: Incoming, link: LinkRow) -> str | None:
    """Return the version of the incoming state, if all its values are known: an event may have only some of them."""
    is_whole = incoming.newest or incoming.polled or (link.base or {}).keys() <= incoming.flat.keys()
    return incoming.external.version if is_whole else None


def seen_values(incoming: Incoming, link: LinkRow) -> state.Values:
    """Return the link values that note the incoming state as seen."""
    at = incoming.external.at
    if at is None:
        return {}
    seen: state.Values = {"last_seen_at": at}
    if incoming.newest and link.last_write_at is not None and link.last_write_at >= UNKNOWN_TIME:
        # The time of our last write was unknown. The record was fetched after that write, so it is not later than `at`,
        # and what is edited from now on was not overwritten by it.
        endless = [window for window in link.write_windows or [] if window.get("until") == UNKNOWN_TIME.isoformat()]
        seen |= {"last_write_at": at, "write_windows": overwrites.without(link.write_windows, endless)}
    return seen


def _left_out(incoming: Incoming, ours: Flat) -> Flat:
    """Return the base of references that were left out: ours, so that they are not sent before theirs is known."""
    return {path: ours.get(path) for path in incoming.awaited}


def _times(incoming: Incoming, link: LinkRow, overwritten: Flat) -> state.Values:
    """Return the link's times and write windows after a merge."""
    values: state.Values = {}
    if link.unconfirmed_write is not None:
        values["write_windows"] = overwrites.ended(link.write_windows, incoming.external.at)
    values |= seen_values(incoming, link)
    if overwritten:
        windows = values.get("write_windows", link.write_windows)
        values["write_windows"] = overwrites.without(windows, _overwriting_windows(incoming, link))
    return values


def _overwriting_windows(incoming: Incoming, link: LinkRow) -> overwrites.WriteWindows:
    return overwrites.around(link.write_windows, incoming.event_at)


def _is_as_we_wrote(at: datetime | None, link: LinkRow) -> bool:
    """Whether the system has not changed the record since our last write."""
    return at is not None and link.last_write_at is not None and at <= link.last_write_at


def _has_unsent(ours: Flat, base: Flat) -> bool:
    """Whether a field has a value here that the system does not mention, so it was never sent."""
    return any(path not in base and not is_empty(value) for path, value in ours.items())


def _asks_only_again(result: Merge, remote_values: Flat) -> bool:
    """Whether a merge only found the conflicts again that already wait for an operator."""
    if result.take or result.keep or result.agreed or result.form or not result.ask:
        return False
    return all(path in remote_values and same(value, remote_values[path]) for path, value in result.ask.items())


def _describe(result: Merge) -> str:
    parts = [
        f"{label}: {', '.join(paths)}"
        for label, paths in (
            ("applied", result.take),
            ("kept ours", result.keep),
            ("waiting for a decision", result.ask),
            ("changed on both sides", result.conflicts),
        )
        if paths
    ]
    return "; ".join(parts) or "both sides had changed to the same values"
