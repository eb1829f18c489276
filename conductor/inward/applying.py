"""Applying: one external record is merged into the internal database, inside one transaction.

Calls nobody. Where it cannot know whether what came in is the newest (out of order, same second as
a write of ours), it raises `NeedsFetch`, and is called again with the record as it was fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.context import UNKNOWN_TIME, Context
from conductor.inward.incoming import Applied, HeldByDeleteGuard, Incoming, NeedsFetch
from conductor.links import in_doubt, leases, overwrites, state
from conductor.links.conflicts import close_conflicts
from conductor.links.deletions import remove_here
from conductor.links.leases import LinkLeased
from conductor.links.merge import Merge, Winner, merge, rebase
from conductor.links.relations import Relations, our_side
from conductor.links.state import Via
from conductor.redaction import redact
from conductor.systems.delete_guard import DeleteGuard
from models.capture import sync_context
from models.catalogues import Record
from models.ledger import Change, Conflict, Delivery, Link
from subscribers.base import Subscriber
from subscribers.errors import Reject
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.values import Flat, is_empty, same


class InboundApplier:
    """The one place where what came in meets what is here."""

    def __init__(self, context: Context, relations: Relations, guard: DeleteGuard) -> None:
        self.context = context
        self.relations = relations
        self.guard = guard

    def apply(self, connection: sa.Connection, incoming: Incoming, *, polled: bool = False) -> Applied:
        """Merge one external record into the internal database, inside the caller's transaction.

        `polled`: it was read from the system just now, so an unknown record may be believed.

        Raises:
          NeedsFetch, Busy: try again that way.
          SyncError: it cannot be applied; the message says why.
        """
        subscriber, external = incoming.subscriber, incoming.external
        link = self._link(connection, Link.external_id == external.id, subscriber)
        if link is None:
            return self._unknown(connection, incoming, polled)
        leases.take_over(connection, link, incoming.token, self.context.clock())
        if link.unlinked_at is not None:
            return self._pass_over(connection, incoming, link, "it is deleted or unlinked here since")
        if external.deleted:
            return self._deleted(connection, incoming, link)
        theirs = incoming.mapper.flatten(external.data)
        if not (theirs or incoming.newest):
            raise NeedsFetch  # a thin event: it says that, not what
        if incoming.newest and link.lease_owner != incoming.token:
            # Linked, or delivered to, since it was fetched: it may not be the newest any more.
            raise LinkLeased
        undone = _undone(incoming, link, theirs)
        if self._is_echo(link, theirs) and not undone:
            return self._echo(connection, incoming, link)
        record = subscriber.records.read(connection, [link.record_id], lock=True).get(link.record_id)
        if record is None:
            return self._pass_over(connection, incoming, link, "the record is deleted here")
        if not incoming.newest:
            if undone:
                raise NeedsFetch
            if link.last_seen_at is not None and external.at is not None and external.at < link.last_seen_at:
                return self._note(connection, incoming, link, "skipped", "it is older than what is known here")
            if link.unconfirmed_write is not None or not _is_newer(external.at, link):
                raise NeedsFetch
        return self._merge(connection, incoming, link, record, theirs)

    def _link(self, connection: sa.Connection, condition: Any, subscriber: Subscriber) -> Any:
        statement = sa.select(Link.__table__).where(Link.subscriber == subscriber.name(), condition)
        return connection.execute(statement.with_for_update()).one_or_none()

    @staticmethod
    def _is_echo(link: Any, theirs: Flat) -> bool:
        base, remote_values = link.base or {}, link.remote_values or {}
        return all(path in base and same(value, remote_values.get(path, base[path])) for path, value in theirs.items())

    def _echo(self, connection: sa.Connection, incoming: Incoming, link: Any) -> Applied:
        seen = incoming.external.at
        if seen is not None and link.last_seen_at is not None and seen <= link.last_seen_at:
            return Applied("echo", "seen before")  # a poll's overlap: nothing to write down again
        self._see(connection, link, seen)
        if seen is not None and (written := self._written_by_now(incoming, link)):
            state.write(connection, link.id, written)
        return self._note(connection, incoming, link, "echo", "it is what was agreed already")

    def _pass_over(self, connection: sa.Connection, incoming: Incoming, link: Any, words: str) -> Applied:
        """Nothing is to be done; a poll's overlap is not written down again."""
        seen = incoming.external.at
        if seen is not None and link.last_seen_at is not None and seen <= link.last_seen_at:
            return Applied("skipped", "seen before")
        self._see(connection, link, seen)
        return self._note(connection, incoming, link, "skipped", words)

    def _see(self, connection: sa.Connection, link: Any, seen: datetime | None) -> None:
        # Ours may be the newer knowledge: an echo can be late.
        if seen is not None and (link.last_seen_at is None or seen > link.last_seen_at):
            state.write(connection, link.id, {"last_seen_at": seen})

    def _merge(self, connection: sa.Connection, incoming: Incoming, link: Any, record: Record, theirs: Flat) -> Applied:
        subscriber, mapper = incoming.subscriber, incoming.mapper
        base, remote_values = link.base or {}, link.remote_values or {}
        related = self.relations.load(connection, subscriber, mapper, [record])
        ours, _ = our_side(subscriber, mapper, record, related)
        base, remote_values = in_doubt.rebase_unconfirmed(link.unconfirmed_write, theirs, base, remote_values)
        undone = _undone(incoming, link, theirs)
        stands = {path: theirs.get(path) for path in undone}
        theirs = {**theirs, **undone}
        result = merge(
            base=base,
            remote_values=remote_values,
            theirs=theirs,
            ours=ours,
            comes_in=mapper.accepts_inward,
            winner=lambda path: self._winner(connection, incoming, link, path),
            overridden_values=link.overridden_values if _is_as_we_wrote(incoming.external.at, link) else None,
        )
        if result.take:
            self._write_record(connection, subscriber, mapper, link.record_id, record, result.take)
        now_here = subscriber.records.read(connection, [link.record_id])[link.record_id]
        related = self.relations.load(connection, subscriber, mapper, [now_here])
        ours_now, _ = our_side(subscriber, mapper, now_here, related)
        new_base, new_remote_values = rebase(result, base, remote_values, ours_now)
        # What our own write has undone is not what they hold: they are owed it.
        new_base |= stands
        new_remote_values = {path: value for path, value in new_remote_values.items() if path not in undone}
        values: dict[str, Any] = {
            "base": new_base,
            "remote_values": new_remote_values or None,
            "unconfirmed_write": None,
        }
        if link.unconfirmed_write is not None:
            values["write_windows"] = overwrites.ended(link.write_windows, incoming.external.at)
        if result.ask or link.open_conflicts:
            bases = {path: remote_values.get(path, base.get(path)) for path in result.ask}
            values["open_conflicts"] = self._ask(connection, link, bases, ours, result)
        if one_way := {path: value for path, value in result.keep.items() if not mapper.accepts_inward(path)}:
            values["overridden_values"] = {**(link.overridden_values or {}), **one_way}
        if incoming.external.at is not None:
            values |= {"last_seen_at": incoming.external.at, **self._written_by_now(incoming, link)}
        if undone:
            values["write_windows"] = overwrites.without(
                values.get("write_windows", link.write_windows), _windows(incoming, link)
            )
        owed = bool(result.keep or undone) or _unsent(ours_now, new_base)
        if owed:
            # They hold something else than the internal database says: they are owed ours.
            values |= state.owed(self.context.clock(), Via.CALLER)
        state.write(connection, link.id, values)
        outcome = "applied" if result.take else "kept" if result.keep or result.ask else "echo"
        return self._note(connection, incoming, link, outcome, _words(result), owed=owed)

    @staticmethod
    def _written_by_now(incoming: Incoming, link: Any) -> dict[str, Any]:
        """When our last write was, by their clock, at the latest: a fetch that came after it tells."""
        if incoming.newest and link.last_write_at is not None and link.last_write_at >= UNKNOWN_TIME:
            # What is edited from now on is after it, and was not undone by it.
            at_last = [one for one in link.write_windows or [] if one.get("until") == UNKNOWN_TIME.isoformat()]
            return {
                "last_write_at": incoming.external.at,
                "write_windows": overwrites.without(link.write_windows, at_last),
            }
        return {}

    def _ask(self, connection: sa.Connection, link: Any, base: Flat, ours: Flat, result: Merge) -> int:
        """Keep both versions of fields a person decides about; returns how many are open now."""
        now = self.context.clock()
        settled = [*result.take, *result.keep, *result.settled]
        is_open = sa.and_(Conflict.link_id == link.id, Conflict.resolved_at.is_(None))
        connection.execute(
            sa.update(Conflict).where(is_open, Conflict.path.in_(settled)).values(resolved_at=now, choice="agreed")
        )
        for path, theirs in result.ask.items():
            versions = {"ours": ours.get(path), "theirs": theirs, "at": now}
            known = connection.execute(sa.update(Conflict).where(is_open, Conflict.path == path).values(**versions))
            if not known.rowcount:
                row = {"link_id": link.id, "subscriber": link.subscriber, "record_id": link.record_id, "path": path}
                connection.execute(sa.insert(Conflict).values(**row, base=base.get(path), **versions))
        return int(connection.execute(sa.select(sa.func.count(Conflict.id)).where(is_open)).scalar_one())

    def _winner(self, connection: sa.Connection, incoming: Incoming, link: Any, path: str) -> Winner:
        policy = incoming.mapper.entry(path).conflict
        if policy != "newest":
            return policy
        subscriber = incoming.subscriber
        ours_at = connection.execute(
            sa.select(sa.func.max(Change.at))
            .where(Change.catalogue == subscriber.catalogue, Change.record_id == link.record_id)
            .where(sa.or_(Change.origin.is_(None), Change.origin != subscriber.system))
        ).scalar()
        theirs_at = incoming.external.at
        # Without two times to compare, what a person did here stands.
        return "external" if ours_at and theirs_at and theirs_at > ours_at else "internal"

    def _write_record(
        self,
        connection: sa.Connection,
        subscriber: Subscriber,
        mapper: Mapper,
        record_id: str,
        record: Record,
        take: Flat,
    ) -> None:
        values = mapper.inward(take, self.relations.keys(connection, subscriber, mapper, take), record)
        with sync_context(connection, origin=subscriber.system):
            subscriber.records.update(connection, record_id, values)

    def _deleted(self, connection: sa.Connection, incoming: Incoming, link: Any) -> Applied:
        subscriber = incoming.subscriber
        policy = subscriber.on_gone
        if moved := self._moved(connection, incoming, link):
            return moved
        if not self.guard.allows(connection, subscriber.system, 1, "from"):
            raise HeldByDeleteGuard
        now = self.context.clock()
        # An edit made here that they have not seen outlives their deletion.
        is_recreated = policy == "recreate" or (link.owed_change > link.synced_change and policy == "delete")
        if is_recreated:
            state.write(connection, link.id, state.recreated() | state.owed(now, Via.CALLER))
        else:
            closed = close_conflicts(connection, link, "gone", now)
            remove_here(connection, subscriber, link.record_id)
            state.write(connection, link.id, state.unlinked(now, deleted_remotely=True) | closed)
        done = "it is created again" if is_recreated else f"on_gone = {policy}"
        return self._note(connection, incoming, link, "applied", f"deleted there; {done}", owed=is_recreated)

    def _moved(self, connection: sa.Connection, incoming: Incoming, link: Any) -> Applied | None:
        """Merged there into a record that nothing here is linked to: it lives on in that one."""
        heir = incoming.external.merged_into
        if heir is None or self._link(connection, Link.external_id == heir, incoming.subscriber) is not None:
            return None
        # What was agreed stays the base: what the other record has in its place comes in with it.
        state.write(connection, link.id, {"external_id": heir, "write_windows": None})
        return self._note(connection, incoming, link, "applied", f"merged there into {heir}, which it is linked to now")

    # --- records nobody here knows ------------------------------------------------------------------------

    def _unknown(self, connection: sa.Connection, incoming: Incoming, polled: bool) -> Applied:
        subscriber, external = incoming.subscriber, incoming.external
        if external.deleted:
            return Applied("skipped", "deleted there, and never known here")
        if not (incoming.newest or polled):
            raise NeedsFetch  # it may have changed or gone since
        claimed = self._claimed(connection, incoming)
        if claimed is None and (link := self._left_over(connection, incoming)) is not None:
            return self._owe_deletion(connection, incoming, link)
        record_id = claimed or self._matched(connection, incoming)
        if record_id is not None:
            return self._adopt(connection, incoming, record_id)
        mapper = incoming.mapper
        flat = {p: v for p, v in mapper.flatten(external.data).items() if mapper.accepts_inward(p)}
        values = mapper.inward(flat, self.relations.keys(connection, subscriber, mapper, flat))
        self._require(subscriber, incoming.mapper, values)
        given = {name: value for name, value in values.items() if value is not None}
        with sync_context(connection, origin=subscriber.system):
            record_id = subscriber.records.insert(connection, given)
        link = self._new_link(connection, incoming, record_id)
        owed = bool(link.owed_change > link.synced_change)
        return self._note(connection, incoming, link, "applied", "created here", operation="create", owed=owed)

    def adopt(self, connection: sa.Connection, incoming: Incoming, where: Sequence[Any] = ()) -> str | None:
        """Link an external record to the internal one it is of, and merge them; returns that one's id.

        None: it is linked already, or of no record here that meets the conditions `where`.

        Raises:
          Busy, SyncError: as `apply` does.
        """
        subscriber, external = incoming.subscriber, incoming.external
        if external.deleted or self._link(connection, Link.external_id == external.id, subscriber) is not None:
            return None
        claimed = self._claimed(connection, incoming)
        if claimed is None and self._left_over(connection, incoming) is not None:
            return None
        record_id = claimed or self._matched(connection, incoming)
        if record_id is None or (where and not subscriber.records.keep(connection, [record_id], where)):
            return None
        link = self._link(connection, Link.record_id == record_id, subscriber)
        if link is not None and link.external_id is not None:
            return None  # it is of another one there, or was deleted there
        self._adopt(connection, incoming, record_id)
        return record_id

    def candidates(
        self, connection: sa.Connection, incoming: Incoming, limit: int, where: Sequence[Any] = ()
    ) -> list[str]:
        """The internal records that an external one may be of."""
        if claimed := self._claimed(connection, incoming):
            return [claimed]
        if self._left_over(connection, incoming) is not None:
            return []
        values = self._match_values(incoming)
        found = incoming.subscriber.records.find(connection, values, limit) if values else []
        return incoming.subscriber.records.keep(connection, found, where)

    def _claimed(self, connection: sa.Connection, incoming: Incoming) -> str | None:
        """The internal record whose id the external one carries, if that can be true."""
        subscriber, record_id = incoming.subscriber, incoming.external.record_id
        if record_id is None:
            return None
        try:
            with connection.begin_nested():  # PostgreSQL gives up a transaction in which a look-up failed
                exists = record_id in subscriber.records.read(connection, [record_id])
        except (ValueError, OverflowError, sa.exc.DBAPIError):
            return None  # not an id of ours
        return record_id if exists else None

    def _left_over(self, connection: sa.Connection, incoming: Incoming) -> Any:
        """The link of a record deleted here before anybody knew that creating it there had worked.

        Neither a new record nor another one that looks like it: it is still to be deleted there.
        """
        if incoming.external.record_id is None:
            return None
        link = self._link(connection, Link.record_id == incoming.external.record_id, incoming.subscriber)
        return None if link is None or link.external_id is not None else link

    def _owe_deletion(self, connection: sa.Connection, incoming: Incoming, link: Any) -> Applied:
        external = incoming.external
        leases.take_over(connection, link, incoming.token, self.context.clock())
        known = {"external_id": external.id, "create_token": None}
        state.write(connection, link.id, known | state.owed(self.context.clock(), Via.CALLER))
        return self._note(connection, incoming, link, "skipped", "it is deleted here, which is owed there", owed=True)

    def _matched(self, connection: sa.Connection, incoming: Incoming) -> str | None:
        """The one internal record that agrees in all `match_on` columns and is not linked yet."""
        subscriber = incoming.subscriber
        values = self._match_values(incoming)
        found = subscriber.records.find(connection, values) if values else []
        if len(found) > 1:
            names = ", ".join(subscriber.match_on)
            raise Reject(f"several records here have the same {names} as {incoming.external.id}: which is it?")
        if not found:
            return None
        link = self._link(connection, Link.record_id == found[0], subscriber)
        taken = link is not None and link.external_id is not None and link.unlinked_at is None
        return None if taken else found[0]

    @staticmethod
    def _match_values(incoming: Incoming) -> Record:
        """Its values of the `match_on` columns; nothing where one of them is empty."""
        mapper = incoming.mapper
        paths = [path for path in map(mapper.path_of, incoming.subscriber.match_on) if path is not None]
        theirs = mapper.flatten(incoming.external.data)
        if not paths or any(is_empty(theirs.get(path)) for path in paths):
            return {}
        return mapper.inward({path: theirs[path] for path in paths})

    def _adopt(self, connection: sa.Connection, incoming: Incoming, record_id: str) -> Applied:
        subscriber, external = incoming.subscriber, incoming.external
        theirs = incoming.mapper.flatten(external.data)
        link = self._link(connection, Link.record_id == record_id, subscriber)
        if link is None:
            link = self._new_link(connection, incoming, record_id, base={})
        else:
            leases.take_over(connection, link, incoming.token, self.context.clock())
            if link.external_id is not None and link.unlinked_at is None:
                words = f"it says it is record {record_id}, but that is linked to {link.external_id}"
                return self._note(connection, incoming, link, "skipped", words)
            values = state.linked(external.id, base={})
            if link.create_token is not None and external.record_id == record_id:
                # Our own create, whose answer was lost: what it sent is the base, and ours since then is owed.
                values["base"] = in_doubt.created(link.unconfirmed_write, theirs)
                values |= state.owed(self.context.clock(), Via.CALLER)
            state.write(connection, link.id, values)
            link = self._link(connection, Link.id == link.id, subscriber)
        record = subscriber.records.read(connection, [record_id], lock=True)[record_id]
        return self._merge(connection, incoming, link, record, theirs)

    def _new_link(self, connection: sa.Connection, incoming: Incoming, record_id: str, base: Flat | None = None) -> Any:
        subscriber, external, mapper = incoming.subscriber, incoming.external, incoming.mapper
        remote_values: Flat = {}
        is_owed = False
        if base is None:
            theirs = mapper.flatten(external.data)
            record = subscriber.records.read(connection, [record_id])[record_id]
            related = self.relations.load(connection, subscriber, mapper, [record])
            ours, _ = our_side(subscriber, mapper, record, related)
            # What only goes out, and is not so there yet, they are owed.
            keep = {p: v for p, v in theirs.items() if not mapper.accepts_inward(p) and not same(v, ours.get(p))}
            take = {p: v for p, v in theirs.items() if p not in keep}
            base, remote_values = rebase(Merge(take=take, keep=keep), {}, {}, ours)
            is_owed = bool(keep) or _unsent(ours, base)
        now, name = self.context.clock(), subscriber.name()
        values = state.linked(external.id, base, remote_values) | {"last_seen_at": external.at, "synced_at": now}
        # A link of this record may be left from an earlier external one that is gone.
        state.link_to(connection, name, record_id, values)
        if is_owed:
            state.owe(connection, (Link.subscriber == name, Link.record_id == record_id), now, Via.CALLER)
        return self._link(connection, Link.record_id == record_id, subscriber)

    @staticmethod
    def _require(subscriber: Subscriber, mapper: Mapper, values: Record) -> None:
        table = subscriber.records.table
        missing = [
            column.name
            for column in table.c
            if not column.nullable
            and values.get(column.name) is None
            and column.default is None
            and column.server_default is None
            and not column.primary_key
        ]
        if missing:
            raise Reject(f"cannot be created here: {', '.join(missing)} would be empty", fields={})

    def _note(
        self,
        connection: sa.Connection,
        incoming: Incoming,
        link: Any,
        outcome: str,
        words: str,
        *,
        operation: str = "update",
        owed: bool = False,
    ) -> Applied:
        """Write the history's row."""
        external = incoming.external
        name = incoming.subscriber.name()
        connection.execute(
            sa.insert(Delivery).values(
                subscriber=name,
                record_id=link.record_id,
                external_id=external.id,
                direction="in",
                operation="delete" if external.deleted else operation,
                outcome=outcome,
                reason=words,
                payload=redact(incoming.mapper.flatten(external.data)) or None,
                inbox_id=incoming.inbox_id,
                request_id=external.request_id,
                at=self.context.clock(),
            )
        )
        waits = incoming.token is None and link.owed_change > link.synced_change and link.dead_at is None
        still_owed = owed or waits
        return Applied(outcome, f"{name} {external.id}: {words}", (name, link.record_id) if still_owed else None)


def _windows(incoming: Incoming, link: Any) -> overwrites.Windows:
    """Our writes by which what it tells of may have been undone."""
    return overwrites.around(link.write_windows, (incoming.event or incoming.external).at)


def _undone(incoming: Incoming, link: Any, theirs: Flat) -> Flat:
    """What was edited there between our reading a nested object and writing it back whole, and was undone by that.

    Nothing but the event of that edit tells of it: afterwards the record stands as we wrote it.
    """
    undone: Flat = {}
    told = incoming.mapper.flatten((incoming.event or incoming.external).data)
    for window in _windows(incoming, link):
        stood = window["fields"]
        changed = {
            path: value
            for path, value in told.items()
            if path in stood and incoming.mapper.accepts_inward(path) and not same(value, stood[path])
        }
        # Fetched since, and not as we wrote it any more: that is newer still.
        is_fetched = incoming.event is not None
        undone |= {p: v for p, v in changed.items() if not is_fetched or same(theirs.get(p), stood[p])}
    return undone


def _is_newer(at: datetime | None, link: Any) -> bool:
    """Certainly newer than all that is known: systems' clocks tick in seconds, so a tie is no proof."""
    if at is None:
        return False
    return all(known is None or at > known for known in (link.last_seen_at, link.last_write_at))


def _is_as_we_wrote(at: datetime | None, link: Any) -> bool:
    """Whether nothing was changed there since our own last write."""
    return at is not None and link.last_write_at is not None and at <= link.last_write_at


def _unsent(ours: Flat, base: Flat) -> bool:
    """Whether they have never been told of something: they did not mention it, and it is not empty here."""
    return any(path not in base and not is_empty(value) for path, value in ours.items())


def _words(result: Merge) -> str:
    parts = []
    if result.take:
        parts.append(f"taken: {', '.join(result.take)}")
    if result.keep:
        parts.append(f"ours kept: {', '.join(result.keep)}")
    if result.ask:
        parts.append(f"a person is asked about: {', '.join(result.ask)}")
    if result.conflicts:
        parts.append(f"changed on both sides: {', '.join(result.conflicts)}")
    return "; ".join(parts) or "both sides had changed to the same"
