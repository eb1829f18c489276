"""Inward sync: takes what comes in by webhook and poll, and sees to it that it is applied.

Both ways end in :meth:`conductor.inward.applying.Applying.apply`. Where that cannot know whether what came
in is the newest, the record is fetched under the link's lease, and that is applied.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.context import Context, new_token
from conductor.dead_letters.store import DeadLetterStore
from conductor.inward.applying import InboundApplier
from conductor.inward.incoming import Applied, HeldByDeleteGuard, Incoming, NeedsFetch
from conductor.links import leases
from conductor.links.leases import LinkLeased
from conductor.mappings.store import Mappings
from conductor.redaction import LONGEST_STRANGER, reply_text, safe_headers, secrets_in, without
from conductor.systems.circuit_breaker import CircuitBreaker, Permit
from conductor.systems.concurrency import Limits, Stopping
from conductor.systems.delete_guard import DeleteGuard
from models.ledger import Cursor, Inbox, RefusedWebhook, System
from subscribers.base import Subscriber, normalize_incoming
from subscribers.calls import call_safely, renewed_by
from subscribers.errors import BadSignature, BadWebhook, Gone, Retry, SyncError, SystemDown
from subscribers.records import External, Page
from subscribers.system import System as Client

logger = logging.getLogger(__name__)

#: Seconds until something that came in while its record was being delivered is looked at again.
BUSY_PAUSE = 1.0

#: Refused webhooks of a system that are kept.
KEPT_REFUSED = 100

#: Characters of an event's id; of a longer one a digest is kept.
_LONGEST_EVENT_ID = 255

#: Of a refused body larger than this only the beginning is looked at; bytes.
LARGEST_READ = 64 * 1024

#: `kind` of an inbox row that holds a polled record.
POLLED = "poll"


class UnknownSystem(Exception):
    """No connected system has this name."""


class _Overtaken(Exception):
    """The turn ran out, and another poll reads on from the same place."""


class _Closed(Exception):
    """The system is not to be called now. That is no news of the system itself."""

    def __init__(self, gate: Permit) -> None:
        super().__init__(gate.reason)
        self.after = gate.after


class Inward:
    """Stores what comes in, and applies it."""

    def __init__(
        self,
        context: Context,
        health: CircuitBreaker,
        mappings: Mappings,
        letters: DeadLetterStore,
        applying: InboundApplier,
        guard: DeleteGuard,
        limits: Limits,
    ) -> None:
        self.context = context
        self.breaker = health
        self.mappings = mappings
        self.letters = letters
        self.applying = applying
        self.guard = guard
        self.limits = limits

    # --- webhooks -----------------------------------------------------------------------------------

    def store_webhook(self, system: str, body: bytes, headers: Mapping[str, str]) -> bool:
        """Check who sent it and store it; True if it is new. It is on disk when this returns.

        Raises:
          UnknownSystem, BadSignature, BadWebhook: nothing was stored.
        """
        client = self.context.systems.get(system)
        if client is None:
            raise UnknownSystem(system)
        lowered = {name.lower(): value for name, value in headers.items()}
        try:
            events = client.unpack(body, lowered)
        except (BadSignature, BadWebhook) as error:
            self._note_refused(client, body, lowered, error)
            raise
        shared = {
            "system": system,
            "kind": "webhook",
            "headers": safe_headers(lowered, secrets_in(client.options)),
            "received_at": self.context.clock(),
            "retry_at": self.context.later(self.context.policy.stale),
        }
        with self.context.database.write() as connection:
            stored = [self._store(connection, {**shared, **_event_values(*event)}) for event in events]
        new = [inbox_id for inbox_id in stored if inbox_id is not None]
        if new:
            self._announce_inbox(system, new)
        return bool(new)

    def acknowledgement(self, system: str, body: bytes) -> tuple[str, str] | None:
        """(body, content type) with which a stored webhook is to be answered; None where a 2xx is enough."""
        return self.context.systems[system].acknowledgement(body)

    def _store(self, connection: sa.Connection, values: dict[str, Any], *, reopen: bool = False) -> int | None:
        """The row's id; None if it is there already. `reopen`: one that is settled is looked at again."""
        insert = self.context.database.insert(Inbox).values(**values)
        same_event = ["system", "event_id"]
        if reopen:
            fresh = {"state": "waiting", "attempts": 0, "finished_at": None}
            fresh |= {"body": values["body"], "retry_at": values["retry_at"]}
            insert = insert.on_conflict_do_update(index_elements=same_event, set_=fresh, where=Inbox.state == "done")
        else:
            insert = insert.on_conflict_do_nothing(index_elements=same_event)
        return connection.execute(insert.returning(Inbox.id)).scalar()

    def _announce_inbox(self, system: str, ids: list[int]) -> None:
        try:
            self.context.publisher.inbox(system, ids)
        except Exception:
            # It is stored and will be swept; the sender must not be told otherwise.
            logger.warning("the inbox could not be announced; the sweep will do it", exc_info=True)

    def _note_refused(self, client: Client, body: bytes, headers: Mapping[str, str], error: Exception) -> None:
        """Count it, and keep so much that a person sees whose it is: a stranger's, or a secret that does not fit."""
        now, secrets = self.context.clock(), secrets_in(client.options)
        counted = (
            sa.update(System)
            .where(System.name == client.name)
            .values(webhooks_rejected=System.webhooks_rejected + 1, webhook_rejected_at=now)
            .returning(System.webhooks_rejected)
        )
        start = body[: 4 * LONGEST_STRANGER] if len(body) > LARGEST_READ else body
        trace = {
            "at": now,
            "reason": without(str(error), secrets),
            "headers": safe_headers(headers, secrets),
            "body": reply_text(start.decode("utf-8", "replace"), secrets, LONGEST_STRANGER),
            "size": len(body),
        }
        with self.context.database.write() as connection:
            number = connection.execute(counted).scalar() or 0
            insert = self.context.database.insert(RefusedWebhook).values(
                system=client.name, slot=number % KEPT_REFUSED, **trace
            )
            connection.execute(insert.on_conflict_do_update(index_elements=["system", "slot"], set_=trace))

    def receive(self, inbox_id: int) -> None:
        """Apply one inbox row and write down what it led to."""
        with self.context.database.read_autocommit() as connection:
            row = connection.execute(
                sa.select(Inbox.__table__).where(Inbox.id == inbox_id, Inbox.state == "waiting")
            ).one_or_none()
        if row is None:
            return
        name = row.subscriber or row.system
        if self.breaker.is_paused(row.system):
            return  # it waits; resuming the system announces it
        try:
            self._settle_inbox(row, "; ".join(self._receive(row)) or "nothing here follows this kind of record")
        except HeldByDeleteGuard:
            self.context.database.run_in_transaction(self.guard.trip, row.system, "from")
        except Stopping:
            return  # it waits in the inbox
        except LinkLeased:
            self._postpone(row, "the record is being delivered", BUSY_PAUSE, attempts=row.attempts)
        except _Closed as closed:
            self._postpone(row, str(closed), max(closed.after, BUSY_PAUSE), attempts=row.attempts)
        except SystemDown as error:
            self.context.database.run_in_transaction(self.breaker.went_down, row.system, error)
            self._postpone(row, str(error), error.after or self.context.policy.probe_min, attempts=row.attempts)
        except SyncError as error:
            self._failed(row, name, error)
        except Exception as error:
            logger.exception("inbox row %d could not be applied", row.id)
            wrapped = Retry(f"{type(error).__name__}: {_first_line(error)}")
            wrapped.__cause__ = error
            self._failed(row, name, wrapped)

    def _receive(self, row: Any) -> list[str]:
        if row.kind == POLLED:
            subscriber = self.context.subscribers[row.subscriber]
            polled = _load(row.body)
            made = call_safely(normalize_incoming, subscriber, polled)
            # What cannot be used says only which record it is: that one is fetched.
            event = replace(polled, data={}) if isinstance(made, SyncError) else made
            return [self._apply_fetched(subscriber, event, row.id).words]
        words = []
        client = self.context.systems.get(row.system)
        if client is None:
            raise Retry(f"the system {row.system} is not configured any more")
        for event in client.events(row.body.encode()):
            for subscriber in self.context.of_system(row.system):
                if subscriber.resource == event.resource:
                    words.append(self.take(subscriber, event.external, row.id).words)
        return words

    def _settle_inbox(self, row: Any, result: str) -> None:
        with self.context.database.write() as connection:
            connection.execute(
                sa.update(Inbox)
                .where(Inbox.id == row.id)
                .values(state="done", finished_at=self.context.clock(), result=result, retry_at=None)
            )
            letter = self.letters.of_inbox(connection, row.id)
            self.letters.close(connection, [letter] if letter is not None else [], result)

    def _postpone(self, row: Any, result: str, seconds: float, *, attempts: int) -> None:
        with self.context.database.write() as connection:
            connection.execute(
                sa.update(Inbox)
                .where(Inbox.id == row.id)
                .values(result=result, retry_at=self.context.later(seconds), attempts=attempts)
            )

    def _failed(self, row: Any, name: str, error: SyncError) -> None:
        attempts = row.attempts + 1
        if isinstance(error, Retry | Gone) and attempts < self.context.policy.max_attempts:
            after = error.after if isinstance(error, Retry) else None
            self._postpone(row, str(error), after or self.context.policy.backoff(attempts), attempts=attempts)
            return
        with self.context.database.write() as connection:
            connection.execute(
                sa.update(Inbox)
                .where(Inbox.id == row.id)
                .values(state="dead", result=str(error), retry_at=None, attempts=attempts)
            )
            letter = self.letters.of_inbox(connection, row.id)
            self.letters.write(connection, name, error, inbox_id=row.id, letter_id=letter)

    # --- polls ----------------------------------------------------------------------------------------

    def poll(self, name: str) -> int:
        """Read what changed since the cursor; each page's effects and its cursor commit together.

        Returns how many records came in. A system that is paused or down is not asked, nor while another poll of this
        subscriber is under way: it may take longer than the time between two.
        """
        subscriber = self.context.subscribers[name]
        gate = self.breaker.gate(subscriber.system)
        if not gate.open:
            logger.info("%s is not polled: %s", name, gate.reason)
            return 0
        count = self._poll_in_turn(subscriber, new_token())
        if count is None and gate.probing:
            self.breaker.nothing_asked(subscriber.system)
        return count or 0

    def _poll_in_turn(self, subscriber: Subscriber, token: str) -> int | None:
        """Poll if nobody else does; None if the system was not asked."""
        name = subscriber.name()
        if why := subscriber.client.defer_reason():
            self.context.database.run_in_transaction(self._write_cursor, name, {"result": f"not polled: {why}"})
            return None
        cursor = self.context.database.run_in_transaction(self._take_turn, name, token)
        if cursor is None:
            logger.info("%s is being polled already", name)
            return None
        try:
            with renewed_by(lambda: self._keep_turn(name, token)):
                return self._read_on(subscriber, cursor.position, token)
        finally:
            self.context.database.run_in_transaction(self._end_turn, name, token)

    def _take_turn(self, connection: sa.Connection, name: str, token: str) -> Any:
        """The cursor, if nobody polls."""
        now = self.context.clock()
        mine = {"poller": token, "polling_until": self.context.later(self.context.policy.lease)}
        is_free = sa.or_(Cursor.polling_until.is_(None), Cursor.polling_until <= now)
        insert = self.context.database.insert(Cursor).values(subscriber=name, **mine)
        taken = insert.on_conflict_do_update(index_elements=["subscriber"], set_=mine, where=is_free)
        return connection.execute(taken.returning(Cursor.position)).one_or_none()

    def _keep_turn(self, name: str, token: str) -> None:
        self.limits.renew()
        self.context.database.run_in_transaction(self._write_turn, name, token, {})

    def _write_turn(self, connection: sa.Connection, name: str, token: str, values: dict[str, Any]) -> None:
        """Renew the turn, with these values of the cursor.

        Raises:
          _Overtaken: somebody else polls by now.
        """
        until = self.context.later(self.context.policy.lease)
        mine = sa.update(Cursor).where(Cursor.subscriber == name, Cursor.poller == token)
        if not connection.execute(mine.values(polling_until=until, **values)).rowcount:
            raise _Overtaken

    @staticmethod
    def _end_turn(connection: sa.Connection, name: str, token: str) -> None:
        mine = sa.update(Cursor).where(Cursor.subscriber == name, Cursor.poller == token)
        connection.execute(mine.values(poller=None, polling_until=None))

    def _read_on(self, subscriber: Subscriber, position: dict[str, Any] | None, token: str) -> int | None:
        """Read and apply pages from this position; how many records came in, None if the system was not asked."""
        count = 0
        try:
            with self.limits.slot(subscriber.system):
                for page in self._paced(subscriber, position):
                    owed = self.context.database.run_in_transaction(self._apply_page, subscriber, page, token)
                    self.limits.renew()
                    count += len(page.records)
                    self._announce_owed(owed)
        except Stopping:
            return None  # there was no slot
        except _Overtaken:
            logger.warning("the poll of %s took too long over a page; another one reads on", subscriber.name())
            return count
        except HeldByDeleteGuard:
            self.context.database.run_in_transaction(self.guard.trip, subscriber.system, "from")
            return count
        except SyncError as error:
            self.context.database.run_in_transaction(self._poll_failed, subscriber, error)
            raise
        result = f"{count} records" if count else "nothing new"
        self.context.database.run_in_transaction(self._polled, subscriber, result)
        return count

    @staticmethod
    def _paced(subscriber: Subscriber, position: dict[str, Any] | None) -> Iterator[Page]:
        subscriber.client.pace()
        for page in subscriber.changed_since(position):
            yield page
            subscriber.client.pace()

    def _polled(self, connection: sa.Connection, subscriber: Subscriber, result: str) -> None:
        self._write_cursor(
            connection, subscriber.name(), {"polled_at": self.context.clock(), "failing_since": None, "result": result}
        )
        self.breaker.succeeded(connection, subscriber.system)

    def _poll_failed(self, connection: sa.Connection, subscriber: Subscriber, error: SyncError) -> None:
        logger.warning("the poll of %s failed: %s", subscriber.name(), error)
        now = self.context.clock()
        self._write_cursor(connection, subscriber.name(), {"polled_at": now, "result": str(error)})
        mine = (Cursor.subscriber == subscriber.name(), Cursor.failing_since.is_(None))
        connection.execute(sa.update(Cursor).where(*mine).values(failing_since=now))
        if isinstance(error, SystemDown):
            self.breaker.went_down(connection, subscriber.system, error)

    def _write_cursor(self, connection: sa.Connection, name: str, values: dict[str, Any]) -> None:
        insert = self.context.database.insert(Cursor).values(subscriber=name, **values)
        connection.execute(insert.on_conflict_do_update(index_elements=["subscriber"], set_=values))

    def _apply_page(
        self, connection: sa.Connection, subscriber: Subscriber, page: Page, token: str
    ) -> list[tuple[str, str]]:
        mapper = self.mappings.current(connection, subscriber.name())[0]
        owed = []
        for external in page.records:
            try:
                incoming = Incoming(subscriber, normalize_incoming(subscriber, external), mapper, newest=False)
                with connection.begin_nested():  # one bad record must not take its page down
                    applied = self.applying.apply(connection, incoming, polled=page.current)
            except (HeldByDeleteGuard, sa.exc.OperationalError):
                raise  # not this record's fault
            except Exception as error:
                self._set_aside(connection, subscriber, external, error)
                continue
            if applied.owed:
                owed.append(applied.owed)
        self._write_turn(connection, subscriber.name(), token, {"position": page.position})
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
                "received_at": self.context.clock(),
                "retry_at": self.context.clock(),
            },
            # Systems tell times in seconds: another edit of the same second has the same name.
            reopen=True,
        )

    # --- one record -------------------------------------------------------------------------------------

    def take(self, subscriber: Subscriber, external: External, inbox_id: int | None = None) -> Applied:
        """Apply what a webhook said of one record, fetching the record where that is not safe."""
        external = normalize_incoming(subscriber, external)
        try:
            applied = self.context.database.run_in_transaction(self._apply_one, subscriber, external, inbox_id=inbox_id)
        except NeedsFetch:
            return self._apply_fetched(subscriber, external, inbox_id)
        self._announce_owed([applied.owed] if applied.owed else [])
        return applied

    def look_again(self, subscriber: Subscriber, external_id: str) -> Applied:
        """Fetch a linked record as it is now and apply that, as if it had been reported.

        Raises:
          Busy, Guarded, SyncError: it cannot be applied now.
        """
        try:
            return self._apply_fetched(subscriber, External(external_id))
        except _Closed as closed:
            raise SystemDown(str(closed), after=closed.after) from None

    def _apply_one(
        self, connection: sa.Connection, /, subscriber: Subscriber, external: External, **more: Any
    ) -> Applied:
        mapper = self.mappings.current(connection, subscriber.name())[0]
        return self.applying.apply(connection, Incoming(subscriber, external, mapper, **more))

    def _apply_fetched(self, subscriber: Subscriber, external: External, inbox_id: int | None = None) -> Applied:
        """Fetch the record as it is now, while nobody delivers it, and apply that."""
        gate = self.breaker.gate(subscriber.system)
        if not gate.open:
            raise _Closed(gate)
        token = new_token()
        now, until = self.context.clock(), self.context.later(self.context.policy.lease)
        link_id = self.context.database.run_in_transaction(
            leases.take, subscriber.name(), external.id, token, now, until
        )
        try:
            try:
                with self.limits.slot(subscriber.system):
                    subscriber.client.pace()
                    fresh = normalize_incoming(subscriber, subscriber.fetch(external.id))
            except Gone as gone:
                heir = gone.merged_into or external.merged_into
                fresh = replace(external, deleted=True, data={}, merged_into=heir)
            if gate.probing:
                self.context.database.run_in_transaction(self.breaker.succeeded, subscriber.system)
            more = {"newest": True, "token": token, "event": external, "inbox_id": inbox_id}
            applied = self.context.database.run_in_transaction(self._apply_one, subscriber, fresh, **more)
        finally:
            owed = None
            if link_id is not None:
                owed = self.context.database.run_in_transaction(leases.release, link_id, token)
        self._announce_owed([pair for pair in (owed or applied.owed,) if pair])
        return applied

    def _announce_owed(self, pairs: list[tuple[str, str]]) -> None:
        for name, record in pairs:
            try:
                self.context.publisher.records(name, [record])
            except Exception:
                logger.warning("%s %s could not be announced; the sweep will do it", name, record, exc_info=True)


def _event_values(event_id: str, body: bytes) -> dict[str, str]:
    name = event_id if len(event_id) <= _LONGEST_EVENT_ID else _digest(event_id)
    return {"event_id": name, "body": body.decode("utf-8", "replace")}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:300]


def _dump(external: External) -> str:
    return json.dumps({**vars(external), "at": external.at.isoformat() if external.at else None}, default=str)


def _load(body: str) -> External:
    values = json.loads(body)
    return External(**{**values, "at": datetime.fromisoformat(values["at"]) if values["at"] else None})
