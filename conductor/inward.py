"""Inward sync: what came in by webhook or poll is merged into the internal database.

Both ways end in :meth:`Inward.apply`. It works inside one transaction and calls nobody; where it
cannot know whether what came in is the newest (out of order, same second as a write of ours), it
asks for the record to be fetched, under the link's lease, and is called again with that.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.guard import Guard
from conductor.health import Gate, Health
from conductor.hub import Hub, new_token
from conductor.letters import Letters
from conductor.mappings import Mappings
from conductor.merge import Merge, Winner, merge, rebase
from conductor.relations import Relations, related_flat
from conductor.settling import remove_here
from models.capture import sync_context
from models.catalogues import Record
from models.ledger import Change, Conflict, Cursor, Delivery, Inbox, Link, System
from subscribers.base import External, Page, Subscriber
from subscribers.errors import BadSignature, Gone, Reject, Retry, SyncError, SystemDown
from subscribers.mapping import Flat, Mapper, is_empty, same

logger = logging.getLogger(__name__)

#: Seconds until something that came in while its record was being delivered is looked at again.
BUSY_PAUSE = 1.0

#: Headers worth keeping with a webhook; the others may hold secrets.
_KEPT_HEADERS = ("content-type", "user-agent", "date", "x-request-id")

#: `kind` of an inbox row that holds a polled record.
POLLED = "poll"


class UnknownSystem(Exception):
    """No connected system has this name."""


class _NeedsFetch(Exception):
    """What came in may not be the newest: the record has to be fetched."""


class _Guarded(Exception):
    """The mass-delete guard holds it back until a person says that it is meant."""


class _Busy(Exception):
    """The record is being delivered at this moment."""


class _Closed(Exception):
    """The system is not to be called now. That is no news of the system itself."""

    def __init__(self, gate: Gate) -> None:
        super().__init__(gate.reason)
        self.after = gate.after


@dataclass
class Applied:
    """How one incoming record ended: in words, and what is to be announced after the commit."""

    outcome: str
    words: str
    owed: tuple[str, str] | None = None


@dataclass
class _Incoming:
    """One external record on its way in."""

    subscriber: Subscriber
    external: External
    mapper: Mapper
    #: It is known to be the record's newest state (it was just fetched).
    newest: bool = False
    #: The lease under which it was fetched.
    token: str | None = None


class Inward:
    """Stores what comes in, and applies it."""

    def __init__(
        self, hub: Hub, health: Health, mappings: Mappings, letters: Letters, relations: Relations, guard: Guard
    ) -> None:
        self.hub = hub
        self.health = health
        self.mappings = mappings
        self.letters = letters
        self.relations = relations
        self.guard = guard

    # --- webhooks -----------------------------------------------------------------------------------

    def store_webhook(self, system: str, body: bytes, headers: Mapping[str, str]) -> bool:
        """Check who sent it and store it; True if it is new. It is on disk when this returns.

        Raises:
          UnknownSystem, BadSignature, BadWebhook: nothing was stored.
        """
        client = self.hub.systems.get(system)
        if client is None:
            raise UnknownSystem(system)
        lowered = {name.lower(): value for name, value in headers.items()}
        try:
            event_id = client.verify(body, lowered)
        except BadSignature:
            self._count_rejected(system)
            raise
        values = {
            "system": system,
            "event_id": event_id,
            "kind": "webhook",
            "body": body.decode("utf-8", "replace"),
            "headers": {name: lowered[name] for name in _KEPT_HEADERS if name in lowered},
            "received_at": self.hub.clock(),
            "retry_at": self.hub.later(self.hub.policy.stale),
        }
        with self.hub.database.write() as connection:
            inbox_id = self._store(connection, values)
        if inbox_id is not None:
            self._announce_inbox(system, [inbox_id])
        return inbox_id is not None

    def _store(self, connection: sa.Connection, values: dict[str, Any]) -> int | None:
        statement = (
            self.hub.database.insert(Inbox)
            .values(**values)
            .on_conflict_do_nothing(index_elements=["system", "event_id"])
            .returning(Inbox.id)
        )
        return connection.execute(statement).scalar()

    def _announce_inbox(self, system: str, ids: list[int]) -> None:
        try:
            self.hub.announcer.inbox(system, ids)
        except Exception:
            # It is stored and will be swept; the sender must not be told otherwise.
            logger.warning("the inbox could not be announced; the sweep will do it", exc_info=True)

    def _count_rejected(self, system: str) -> None:
        statement = (
            sa.update(System)
            .where(System.name == system)
            .values(webhooks_rejected=System.webhooks_rejected + 1, webhook_rejected_at=self.hub.clock())
        )
        with self.hub.database.write() as connection:
            connection.execute(statement)

    def receive(self, inbox_id: int) -> None:
        """Apply one inbox row and write down what it led to."""
        with self.hub.database.read() as connection:
            row = connection.execute(
                sa.select(Inbox.__table__).where(Inbox.id == inbox_id, Inbox.state == "waiting")
            ).one_or_none()
        if row is None:
            return
        name = row.subscriber or row.system
        if self.health.is_paused(row.system):
            return  # it waits; resuming the system announces it
        try:
            self._settle_inbox(row, "; ".join(self._receive(row)) or "nothing here follows this kind of record")
        except _Guarded:
            self.hub.database.transact(self.guard.trip, row.system, "from")
        except _Busy:
            self._postpone(row, "the record is being delivered", BUSY_PAUSE, attempts=row.attempts)
        except _Closed as closed:
            self._postpone(row, str(closed), max(closed.after, BUSY_PAUSE), attempts=row.attempts)
        except SystemDown as error:
            self.hub.database.transact(self.health.went_down, row.system, error)
            self._postpone(row, str(error), error.after or self.hub.policy.probe_first, attempts=row.attempts)
        except SyncError as error:
            self._failed(row, name, error)
        except Exception as error:
            logger.exception("inbox row %d could not be applied", row.id)
            wrapped = Retry(f"{type(error).__name__}: {_first_line(error)}")
            wrapped.__cause__ = error
            self._failed(row, name, wrapped)

    def _receive(self, row: Any) -> list[str]:
        if row.kind == POLLED:
            subscriber = self.hub.subscribers[row.subscriber]
            return [self._apply_fetched(subscriber, _load(row.body)).words]
        words = []
        client = self.hub.systems.get(row.system)
        if client is None:
            raise Retry(f"the system {row.system} is not configured any more")
        for event in client.events(row.body.encode()):
            for subscriber in self.hub.of_system(row.system):
                if subscriber.resource == event.resource:
                    words.append(self.take(subscriber, event.external).words)
        return words

    def _settle_inbox(self, row: Any, result: str) -> None:
        with self.hub.database.write() as connection:
            connection.execute(
                sa.update(Inbox)
                .where(Inbox.id == row.id)
                .values(state="done", settled_at=self.hub.clock(), result=result, retry_at=None)
            )
            letters = sa.text("SELECT id FROM dead_letter WHERE inbox_id = :id AND closed_at IS NULL")
            ids = list(connection.execute(letters, {"id": row.id}).scalars()) if row.attempts else []
            self.letters.close(connection, ids, result)

    def _postpone(self, row: Any, result: str, seconds: float, *, attempts: int) -> None:
        with self.hub.database.write() as connection:
            connection.execute(
                sa.update(Inbox)
                .where(Inbox.id == row.id)
                .values(result=result, retry_at=self.hub.later(seconds), attempts=attempts)
            )

    def _failed(self, row: Any, name: str, error: SyncError) -> None:
        attempts = row.attempts + 1
        if isinstance(error, Retry | Gone) and attempts < self.hub.policy.max_attempts:
            after = error.after if isinstance(error, Retry) else None
            self._postpone(row, str(error), after or self.hub.policy.backoff(attempts), attempts=attempts)
            return
        with self.hub.database.write() as connection:
            connection.execute(
                sa.update(Inbox)
                .where(Inbox.id == row.id)
                .values(state="dead", result=str(error), retry_at=None, attempts=attempts)
            )
            open_letter = sa.text("SELECT id FROM dead_letter WHERE inbox_id = :id AND closed_at IS NULL")
            letter = connection.execute(open_letter, {"id": row.id}).scalar()
            self.letters.write(connection, name, error, inbox_id=row.id, letter_id=letter)

    # --- polls ----------------------------------------------------------------------------------------

    def poll(self, name: str) -> int:
        """Read what changed since the cursor; each page's effects and its cursor commit together.

        Returns how many records came in. A system that is paused or down is not asked.
        """
        subscriber = self.hub.subscribers[name]
        gate = self.health.gate(subscriber.system)
        if not gate.open:
            logger.info("%s is not polled: %s", name, gate.reason)
            return 0
        with self.hub.database.read() as connection:
            position = connection.execute(sa.select(Cursor.position).where(Cursor.subscriber == name)).scalar()
        count = 0
        try:
            for page in self._paced(subscriber, position):
                owed = self.hub.database.transact(self._apply_page, subscriber, page)
                count += len(page.records)
                self._announce_owed(owed)
        except _Guarded:
            self.hub.database.transact(self.guard.trip, subscriber.system, "from")
            return count
        except SyncError as error:
            self.hub.database.transact(self._poll_failed, subscriber, error)
            raise
        result = f"{count} records" if count else "nothing new"
        self.hub.database.transact(self._polled, subscriber, result)
        return count

    @staticmethod
    def _paced(subscriber: Subscriber, position: dict[str, Any] | None) -> Iterator[Page]:
        subscriber.client.pace()
        for page in subscriber.changed_since(position):
            yield page
            subscriber.client.pace()

    def _polled(self, connection: sa.Connection, subscriber: Subscriber, result: str) -> None:
        self._write_cursor(connection, subscriber.name(), {"polled_at": self.hub.clock(), "result": result})
        self.health.succeeded(connection, subscriber.system)

    def _poll_failed(self, connection: sa.Connection, subscriber: Subscriber, error: SyncError) -> None:
        self._write_cursor(connection, subscriber.name(), {"polled_at": self.hub.clock(), "result": str(error)})
        if isinstance(error, SystemDown):
            self.health.went_down(connection, subscriber.system, error)

    def _write_cursor(self, connection: sa.Connection, name: str, values: dict[str, Any]) -> None:
        insert = self.hub.database.insert(Cursor).values(subscriber=name, **values)
        connection.execute(insert.on_conflict_do_update(index_elements=["subscriber"], set_=values))

    def _apply_page(self, connection: sa.Connection, subscriber: Subscriber, page: Page) -> list[tuple[str, str]]:
        mapper = self.mappings.current(connection, subscriber.name())[0]
        owed = []
        for external in page.records:
            incoming = _Incoming(subscriber, external, mapper, newest=False)
            try:
                with connection.begin_nested():  # one bad record must not take its page down
                    applied = self.apply(connection, incoming, polled=page.current)
            except (_Busy, _NeedsFetch, SyncError, sa.exc.DBAPIError) as error:
                self._set_aside(connection, subscriber, external, error)
                continue
            if applied.owed:
                owed.append(applied.owed)
        self._write_cursor(connection, subscriber.name(), {"position": page.position})
        return owed

    def _set_aside(
        self, connection: sa.Connection, subscriber: Subscriber, external: External, error: Exception
    ) -> None:
        """Keep a polled record that cannot be applied now, so that the cursor may move on."""
        logger.debug("%s %s is set aside: %r", subscriber.name(), external.id, error)
        self._store(
            connection,
            {
                "system": subscriber.system,
                "subscriber": subscriber.name(),
                "event_id": f"poll:{subscriber.name()}:{external.id}:{external.at}",
                "kind": POLLED,
                "body": _dump(external),
                "received_at": self.hub.clock(),
                "retry_at": self.hub.clock(),
            },
        )

    # --- one record -------------------------------------------------------------------------------------

    def take(self, subscriber: Subscriber, external: External) -> Applied:
        """Apply what a webhook said of one record, fetching the record where that is not safe."""
        try:
            applied = self.hub.database.transact(self._apply_one, subscriber, external)
        except _NeedsFetch:
            return self._apply_fetched(subscriber, external)
        self._announce_owed([applied.owed] if applied.owed else [])
        return applied

    def _apply_one(
        self, connection: sa.Connection, /, subscriber: Subscriber, external: External, **more: Any
    ) -> Applied:
        mapper = self.mappings.current(connection, subscriber.name())[0]
        return self.apply(connection, _Incoming(subscriber, external, mapper, **more))

    def _apply_fetched(self, subscriber: Subscriber, external: External) -> Applied:
        """Fetch the record as it is now, while nobody delivers it, and apply that."""
        gate = self.health.gate(subscriber.system)
        if not gate.open:
            raise _Closed(gate)
        token = new_token()
        link_id = self._lease(subscriber, external, token)
        try:
            try:
                subscriber.client.pace()
                fresh = subscriber.fetch(external.id)
            except Gone:
                fresh = replace(external, deleted=True, data={})
            if gate.probing:
                self.hub.database.transact(self.health.succeeded, subscriber.system)
            applied = self.hub.database.transact(self._apply_one, subscriber, fresh, newest=True, token=token)
        finally:
            owed = self._release(link_id, token) if link_id is not None else None
        self._announce_owed([pair for pair in (owed or applied.owed,) if pair])
        return applied

    def _lease(self, subscriber: Subscriber, external: External, token: str) -> int | None:
        """Take the link's lease; None where there is no link yet."""
        now = self.hub.clock()
        same_link = sa.and_(Link.subscriber == subscriber.name(), Link.external_id == external.id)
        statement = (
            sa.update(Link)
            .where(same_link, sa.or_(Link.lease_until.is_(None), Link.lease_until <= now))
            .values(lease_owner=token, lease_until=self.hub.later(self.hub.policy.lease))
            .returning(Link.id)
        )

        def lease(connection: sa.Connection) -> int | None:
            taken: int | None = connection.execute(statement).scalar()
            if taken is None and connection.execute(sa.select(Link.id).where(same_link)).scalar() is not None:
                raise _Busy
            return taken

        return self.hub.database.transact(lease)

    def _release(self, link_id: int, token: str) -> tuple[str, str] | None:
        """Give the lease back; the link, if it is owed something (whose news may have come meanwhile)."""
        statement = (
            sa.update(Link)
            .where(Link.id == link_id, Link.lease_owner == token)
            .values(lease_owner=None, lease_until=None)
            .returning(Link.subscriber, Link.record_id, Link.owed_change, Link.synced_change)
        )
        row = self.hub.database.transact(lambda c: c.execute(statement).one_or_none())
        return (row.subscriber, row.record_id) if row and row.owed_change > row.synced_change else None

    def _announce_owed(self, pairs: list[tuple[str, str]]) -> None:
        for name, record in pairs:
            try:
                self.hub.announcer.records(name, [record])
            except Exception:
                logger.warning("%s %s could not be announced; the sweep will do it", name, record, exc_info=True)

    def apply(self, connection: sa.Connection, incoming: _Incoming, *, polled: bool = False) -> Applied:
        """Merge one external record into the internal database, inside the caller's transaction.

        `polled`: it was read from the system just now, so an unknown record may be believed.

        Raises:
          _NeedsFetch, _Busy: try again that way.
          SyncError: it cannot be applied; the message says why.
        """
        subscriber, external = incoming.subscriber, incoming.external
        link = self._link(connection, Link.external_id == external.id, subscriber)
        if link is None:
            return self._unknown(connection, incoming, polled)
        self._check_free(link, incoming)
        if link.gone_at is not None:
            return self._pass_over(connection, incoming, link, "it is deleted or unlinked here since")
        if external.deleted:
            return self._deleted(connection, incoming, link)
        theirs = incoming.mapper.theirs(external.data)
        if not (theirs or incoming.newest):
            raise _NeedsFetch  # a thin event: it says that, not what
        if incoming.newest and link.lease_owner != incoming.token:
            # Linked, or delivered to, since it was fetched: it may not be the newest any more.
            raise _Busy
        if self._is_echo(link, theirs):
            return self._echo(connection, incoming, link)
        record = subscriber.records.read(connection, [link.record_id], lock=True).get(link.record_id)
        if record is None:
            return self._pass_over(connection, incoming, link, "the record is deleted here")
        if not incoming.newest:
            if link.seen_at is not None and external.at is not None and external.at < link.seen_at:
                return self._note(connection, incoming, link, "skipped", "it is older than what is known here")
            if not _is_newer(external.at, link):
                raise _NeedsFetch
        return self._merge(connection, incoming, link, record, theirs)

    def _link(self, connection: sa.Connection, condition: Any, subscriber: Subscriber) -> Any:
        statement = sa.select(Link.__table__).where(Link.subscriber == subscriber.name(), condition)
        return connection.execute(statement.with_for_update()).one_or_none()

    def _check_free(self, link: Any, incoming: _Incoming) -> None:
        held = link.lease_until is not None and link.lease_until > self.hub.clock()
        if held and link.lease_owner != incoming.token:
            raise _Busy

    @staticmethod
    def _is_echo(link: Any, theirs: Flat) -> bool:
        agreed, held = link.agreed or {}, link.held or {}
        return all(path in agreed and same(value, held.get(path, agreed[path])) for path, value in theirs.items())

    def _echo(self, connection: sa.Connection, incoming: _Incoming, link: Any) -> Applied:
        seen = incoming.external.at
        if seen is not None and link.seen_at is not None and seen <= link.seen_at:
            return Applied("echo", "seen before")  # a poll's overlap: nothing to write down again
        self._see(connection, link, seen)
        return self._note(connection, incoming, link, "echo", "it is what was agreed already")

    def _pass_over(self, connection: sa.Connection, incoming: _Incoming, link: Any, words: str) -> Applied:
        """Nothing is to be done; a poll's overlap is not written down again."""
        seen = incoming.external.at
        if seen is not None and link.seen_at is not None and seen <= link.seen_at:
            return Applied("skipped", "seen before")
        self._see(connection, link, seen)
        return self._note(connection, incoming, link, "skipped", words)

    def _see(self, connection: sa.Connection, link: Any, seen: datetime | None) -> None:
        # Ours may be the newer knowledge: an echo can be late.
        if seen is not None and (link.seen_at is None or seen > link.seen_at):
            connection.execute(sa.update(Link).where(Link.id == link.id).values(seen_at=seen))

    def _merge(
        self, connection: sa.Connection, incoming: _Incoming, link: Any, record: Record, theirs: Flat
    ) -> Applied:
        subscriber, mapper = incoming.subscriber, incoming.mapper
        agreed, held = link.agreed or {}, link.held or {}
        related = self.relations.load(connection, subscriber, mapper, [record])
        ours = related_flat(mapper, record, related)
        result = merge(
            agreed=agreed,
            held=held,
            theirs=theirs,
            ours=ours,
            comes_in=mapper.comes_in,
            winner=lambda path: self._winner(connection, incoming, link, path),
        )
        if result.take:
            self._write_record(connection, subscriber, mapper, link.record_id, result.take)
        now_here = subscriber.records.read(connection, [link.record_id])[link.record_id]
        related = self.relations.load(connection, subscriber, mapper, [now_here])
        ours_now = related_flat(mapper, now_here, related)
        new_agreed, new_held = rebase(result, agreed, held, ours_now)
        values: dict[str, Any] = {"agreed": new_agreed, "held": new_held or None}
        if result.ask or link.open_conflicts:
            base = {path: held.get(path, agreed.get(path)) for path in result.ask}
            values["open_conflicts"] = self._ask(connection, link, base, ours, result)
        if incoming.external.at is not None:
            values["seen_at"] = incoming.external.at
        owed = bool(result.keep) or _unsent(ours_now, new_agreed)
        if owed:
            # They hold something else than the internal database says: they are owed ours.
            values |= {"owed_change": Link.owed_change + 1, **self._owed_now()}
        connection.execute(sa.update(Link).where(Link.id == link.id).values(**values))
        outcome = "applied" if result.take else "kept" if result.keep or result.ask else "echo"
        return self._note(connection, incoming, link, outcome, _words(result), owed=owed)

    def _owed_now(self) -> dict[str, Any]:
        now = self.hub.clock()
        return {"owed_since": sa.func.coalesce(Link.owed_since, now), "announced_at": now}

    def _ask(self, connection: sa.Connection, link: Any, base: Flat, ours: Flat, result: Merge) -> int:
        """Keep both versions of fields a person decides about; returns how many are open now."""
        now = self.hub.clock()
        settled = [*result.take, *result.keep, *result.settled]
        is_open = sa.and_(Conflict.link_id == link.id, Conflict.settled_at.is_(None))
        connection.execute(
            sa.update(Conflict).where(is_open, Conflict.path.in_(settled)).values(settled_at=now, choice="agreed")
        )
        for path, theirs in result.ask.items():
            versions = {"ours": ours.get(path), "theirs": theirs, "at": now}
            known = connection.execute(sa.update(Conflict).where(is_open, Conflict.path == path).values(**versions))
            if not known.rowcount:
                row = {"link_id": link.id, "subscriber": link.subscriber, "record_id": link.record_id, "path": path}
                connection.execute(sa.insert(Conflict).values(**row, base=base.get(path), **versions))
        return int(connection.execute(sa.select(sa.func.count(Conflict.id)).where(is_open)).scalar_one())

    def _winner(self, connection: sa.Connection, incoming: _Incoming, link: Any, path: str) -> Winner:
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
        self, connection: sa.Connection, subscriber: Subscriber, mapper: Mapper, record_id: str, take: Flat
    ) -> None:
        values = mapper.inward(take, self.relations.keys(connection, subscriber, mapper, take))
        with sync_context(connection, origin=subscriber.system):
            subscriber.records.update(connection, record_id, values)

    def _deleted(self, connection: sa.Connection, incoming: _Incoming, link: Any) -> Applied:
        subscriber = incoming.subscriber
        policy = subscriber.on_gone
        if not self.guard.allows(connection, subscriber.system, 1, "from"):
            raise _Guarded
        values: dict[str, Any] = {"agreed": None, "held": None}
        # An edit made here that they have not seen outlives their deletion.
        unseen = link.owed_change > link.synced_change and policy == "delete"
        if policy == "recreate" or unseen:
            values |= {
                "external_id": None,
                "owed_change": Link.owed_change + 1,
                "owed_since": sa.func.coalesce(Link.owed_since, self.hub.clock()),
                "announced_at": self.hub.clock(),
            }
        else:
            values |= {"gone_at": self.hub.clock(), "gone_there": True}
            remove_here(connection, subscriber, link.record_id)
        connection.execute(sa.update(Link).where(Link.id == link.id).values(**values))
        done = "it is created again" if "owed_change" in values else f"on_gone = {policy}"
        return self._note(connection, incoming, link, "applied", f"deleted there; {done}", owed="owed_change" in values)

    # --- records nobody here knows ------------------------------------------------------------------------

    def _unknown(self, connection: sa.Connection, incoming: _Incoming, polled: bool) -> Applied:
        subscriber, external = incoming.subscriber, incoming.external
        if external.deleted:
            return Applied("skipped", "deleted there, and never known here")
        if not (incoming.newest or polled):
            raise _NeedsFetch  # it may have changed or gone since
        record_id = self._claimed(connection, incoming) or self._matched(connection, incoming)
        if record_id is not None:
            return self._adopt(connection, incoming, record_id)
        if (applied := self._left_over(connection, incoming)) is not None:
            return applied
        mapper = incoming.mapper
        flat = {p: v for p, v in mapper.theirs(external.data).items() if mapper.comes_in(p)}
        values = mapper.inward(flat, self.relations.keys(connection, subscriber, mapper, flat))
        self._require(subscriber, incoming.mapper, values)
        given = {name: value for name, value in values.items() if value is not None}
        with sync_context(connection, origin=subscriber.system):
            record_id = subscriber.records.insert(connection, given)
        link = self._new_link(connection, incoming, record_id)
        owed = bool(link.owed_change > link.synced_change)
        return self._note(connection, incoming, link, "applied", "created here", operation="create", owed=owed)

    def _claimed(self, connection: sa.Connection, incoming: _Incoming) -> str | None:
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

    def _left_over(self, connection: sa.Connection, incoming: _Incoming) -> Applied | None:
        """A record of ours, deleted here before anybody knew that creating it there had worked: no new one."""
        subscriber, external = incoming.subscriber, incoming.external
        if external.record_id is None:
            return None
        link = self._link(connection, Link.record_id == external.record_id, subscriber)
        if link is None or link.external_id is not None:
            return None
        self._check_free(link, incoming)
        values = {
            "external_id": external.id,
            "intent": None,
            "owed_change": Link.owed_change + 1,
            "owed_since": sa.func.coalesce(Link.owed_since, self.hub.clock()),
            "announced_at": self.hub.clock(),
        }
        connection.execute(sa.update(Link).where(Link.id == link.id).values(**values))
        return self._note(connection, incoming, link, "skipped", "it is deleted here, which is owed there", owed=True)

    def _matched(self, connection: sa.Connection, incoming: _Incoming) -> str | None:
        """The one internal record that agrees in all `match_on` columns and is not linked yet."""
        subscriber, mapper = incoming.subscriber, incoming.mapper
        paths = [mapper.fields[column].path for column in subscriber.match_on if column in mapper.fields]
        theirs = mapper.theirs(incoming.external.data)
        if not paths or any(is_empty(theirs.get(path)) for path in paths):
            return None
        found = subscriber.records.find(connection, mapper.inward({p: theirs[p] for p in paths}))
        if len(found) > 1:
            names = ", ".join(subscriber.match_on)
            raise Reject(f"several records here have the same {names} as {incoming.external.id}: which is it?")
        if not found:
            return None
        link = self._link(connection, Link.record_id == found[0], subscriber)
        taken = link is not None and link.external_id is not None and link.gone_at is None
        return None if taken else found[0]

    def _adopt(self, connection: sa.Connection, incoming: _Incoming, record_id: str) -> Applied:
        subscriber, external = incoming.subscriber, incoming.external
        theirs = incoming.mapper.theirs(external.data)
        link = self._link(connection, Link.record_id == record_id, subscriber)
        if link is None:
            link = self._new_link(connection, incoming, record_id, agreed={})
        else:
            self._check_free(link, incoming)
            if link.external_id is not None and link.gone_at is None:
                words = f"it says it is record {record_id}, but that is linked to {link.external_id}"
                return self._note(connection, incoming, link, "skipped", words)
            values: dict[str, Any] = {"external_id": external.id, "gone_at": None, "gone_there": False, "intent": None}
            values |= {"agreed": {}, "held": None}
            if link.intent is not None and external.record_id == record_id:
                # Our own create, whose answer was lost: what it sent is the base, and ours since then is owed.
                values |= {"agreed": link.agreed or theirs, "owed_change": Link.owed_change + 1, **self._owed_now()}
            connection.execute(sa.update(Link).where(Link.id == link.id).values(**values))
            link = self._link(connection, Link.id == link.id, subscriber)
        record = subscriber.records.read(connection, [record_id], lock=True)[record_id]
        return self._merge(connection, incoming, link, record, theirs)

    def _new_link(
        self, connection: sa.Connection, incoming: _Incoming, record_id: str, agreed: Flat | None = None
    ) -> Any:
        subscriber, external, mapper = incoming.subscriber, incoming.external, incoming.mapper
        held: Flat = {}
        owed: dict[str, Any] = {}
        if agreed is None:
            theirs = mapper.theirs(external.data)
            record = subscriber.records.read(connection, [record_id])[record_id]
            ours = related_flat(mapper, record, self.relations.load(connection, subscriber, mapper, [record]))
            # What only goes out, and is not so there yet, they are owed.
            keep = {p: v for p, v in theirs.items() if not mapper.comes_in(p) and not same(v, ours.get(p))}
            take = {p: v for p, v in theirs.items() if p not in keep}
            agreed, held = rebase(Merge(take=take, keep=keep), {}, {}, ours)
            if keep or _unsent(ours, agreed):
                owed = {"owed_change": Link.owed_change + 1, **self._owed_now()}
        values = {
            "external_id": external.id,
            "gone_at": None,
            "gone_there": False,
            "intent": None,
            "agreed": agreed,
            "held": held or None,
            "seen_at": external.at,
            "synced_at": self.hub.clock(),
        }
        # A link of this record may be left from an earlier external one that is gone.
        insert = self.hub.database.insert(Link).values(subscriber=subscriber.name(), record_id=record_id, **values)
        connection.execute(insert.on_conflict_do_update(index_elements=["subscriber", "record_id"], set_=values))
        if owed:
            is_it = sa.and_(Link.subscriber == subscriber.name(), Link.record_id == record_id)
            connection.execute(sa.update(Link).where(is_it).values(**owed))
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
        incoming: _Incoming,
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
                payload=incoming.mapper.theirs(external.data) or None,
                request_id=external.request_id,
                at=self.hub.clock(),
            )
        )
        waits = incoming.token is None and link.owed_change > link.synced_change and link.dead_at is None
        still_owed = owed or waits
        return Applied(outcome, f"{name} {external.id}: {words}", (name, link.record_id) if still_owed else None)


def _is_newer(at: datetime | None, link: Any) -> bool:
    """Certainly newer than all that is known: systems' clocks tick in seconds, so a tie is no proof."""
    if at is None:
        return False
    return all(known is None or at > known for known in (link.seen_at, link.wrote_at))


def _unsent(ours: Flat, agreed: Flat) -> bool:
    """Whether they have never been told of something: they did not mention it, and it is not empty here."""
    return any(path not in agreed and not is_empty(value) for path, value in ours.items())


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


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:300]


def _dump(external: External) -> str:
    return json.dumps({**vars(external), "at": external.at.isoformat() if external.at else None}, default=str)


def _load(body: str) -> External:
    values = json.loads(body)
    return External(**{**values, "at": datetime.fromisoformat(values["at"]) if values["at"] else None})
