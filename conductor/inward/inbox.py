"""The inbox: store events, apply a stored one, postpone it, or give it up as a dead letter.

Where an event does not prove the record's newest state, the record is fetched under the link's lease and applied.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.context import Context, new_token
from conductor.dead_letters.store import DeadLetterStore
from conductor.inward import awaited, matching
from conductor.inward.applying import InboundApplier, ReusedId
from conductor.inward.incoming import Applied, HeldByDeleteGuard, Incoming, NeedsFetch, Postponed
from conductor.links import leases
from conductor.links.lost import Lost
from conductor.links.relations import Reference, Unlinked
from conductor.mappings.store import Mappings
from conductor.systems.circuit_breaker import CircuitBreaker
from conductor.systems.concurrency import ConcurrencyLimiter, Stopping
from conductor.systems.delete_guard import HELD, DeleteGuard
from conductor.systems.outages import OutageDetector
from models.ledger import Inbox, System
from redaction import hide
from subscribers.base import Subscriber, normalize_incoming
from subscribers.calls import call_safely
from subscribers.errors import BadWebhook, Gone, Reject, Retry, SyncError
from subscribers.mapping.mapper import Mapper
from subscribers.records import External

logger = logging.getLogger(__name__)

#: The pause of an event whose record is being delivered; no event is tried again sooner.
SHORTEST_PAUSE_SECONDS = 1.0

#: A row that failed before leaves the probes of a system that is down to others, unless nothing else takes one for this
#: long: the row may be the reason for the failure.
SUSPECT_SECONDS = 120.0

#: Characters of an unexpected error that are shown.
_ERROR_CHARACTERS = 300

#: `kind` of an inbox row that holds a record which an operator wants to be linked again.
RELINK = "relink"

#: Polled records that wait to be applied and are known to a look before a write: more than a poll usually postpones.
_MOST_WAITING = 1000

#: Ids under which one record is fetched, each time because the system returned it under another one.
_MOST_IDS = 3


@dataclass(frozen=True)
class KnownAs:
    """A record was returned, or is linked, under this id, which is another one than the event has."""

    id: str


@dataclass(frozen=True)
class InboxRow:
    """A stored event that waits to be applied."""

    id: int
    system: str
    #: The subscriber of a polled record; None for a webhook.
    subscriber: str | None
    kind: str
    body: str
    attempts: int
    received_at: datetime
    event_id: str
    waits_for: str | None

    @property
    def pulls(self) -> str | None:
        """The key of the record that the row pulls, see `awaited`."""
        return awaited.pulled_by(self.event_id)


_COLUMNS = (
    Inbox.id,
    Inbox.system,
    Inbox.subscriber,
    Inbox.kind,
    Inbox.body,
    Inbox.attempts,
    Inbox.received_at,
    Inbox.event_id,
    Inbox.waits_for,
)


@dataclass(eq=False)
class InboxProcessor:
    """Applies stored events."""

    context: Context
    breaker: CircuitBreaker
    mappings: Mappings
    letters: DeadLetterStore
    applying: InboundApplier
    guard: DeleteGuard
    concurrency: ConcurrencyLimiter
    outages: OutageDetector

    def process(self, inbox_id: int) -> None:
        """Apply one inbox row and record the result. A row that is not waiting is left alone."""
        row = self._waiting_row(inbox_id)
        if row is None or self.breaker.is_paused(row.system):
            return  # resuming a paused system publishes its rows
        try:
            result = self._apply_row(row)
            if isinstance(result, Postponed):
                seconds = max(result.after_seconds, SHORTEST_PAUSE_SECONDS)
                self._postpone(row, result.reason, seconds, attempts=row.attempts)
            else:
                self._mark_applied(row, *result)
        except HeldByDeleteGuard:
            self.context.database.run_in_transaction(self.guard.pause, row.system, "from")
        except Stopping:
            return  # another process applies the row
        except Unlinked as wait:
            self._await(row, wait)
        except leases.LinkLeased:
            self._wait_for_lease(row)
        except BadWebhook as error:
            self._fail(row, Reject(str(error), code="event_invalid"))
        except SyncError as error:
            self._fail(row, error)
        except Exception as error:
            logger.exception("inbox row %d could not be applied", row.id)
            wrapped = Retry(f"{type(error).__name__}: {_first_line(error)}", code="bug")
            wrapped.__cause__ = error
            self._fail(row, wrapped)

    def apply_event(
        self, subscriber: Subscriber, external: External, inbox_id: int | None = None, *, is_suspect: bool = False
    ) -> Applied | Postponed:
        """Apply the record of an event; fetch the record where the event does not prove its newest state.

        `is_suspect`: the event failed before, so it probes a system that is down only if nothing else does.

        Raises:
          LinkLeased, HeldByDeleteGuard, SyncError: it cannot be applied now.
        """
        external = normalize_incoming(subscriber, external)
        applied = self._apply(subscriber, lambda mapper: Incoming(subscriber, external, mapper, inbox_id=inbox_id))
        if isinstance(applied, NeedsFetch):
            return self._fetch_and_apply(subscriber, external, inbox_id, is_suspect=is_suspect)
        self._publish(subscriber, applied)
        return applied

    def refetch(self, subscriber: Subscriber, external_id: str, at: datetime | None = None) -> Applied | Postponed:
        """Fetch a linked record and apply it, as if an event had reported it, `at` this time of the system.

        Raises:
          LinkLeased: the record is being delivered.
          SyncError: it cannot be applied, for a reason of this record.
        """
        try:
            return self._fetch_and_apply(subscriber, External(external_id, at=at))
        except HeldByDeleteGuard:
            self.context.database.run_in_transaction(self.guard.pause, subscriber.system, "from")
            return Postponed(HELD, self.context.policy.stale_seconds)
        except Stopping:
            return Postponed("the process is shutting down", 0.0)
        except Unlinked as wait:
            if self.applying.relations.can_pull(wait.related):
                with self.context.database.write() as connection:
                    awaited.pull(self.context, connection, wait.related)
            raise
        except SyncError as error:
            if not error.pauses_system:
                raise
            return self._went_down(subscriber.system, error)

    # --- one row --------------------------------------------------------------------------------------

    def _waiting_row(self, inbox_id: int) -> InboxRow | None:
        waiting = sa.select(*_COLUMNS).where(Inbox.id == inbox_id, Inbox.state == "waiting")
        with self.context.database.read_autocommit() as connection:
            row = connection.execute(waiting).one_or_none()
        return None if row is None else InboxRow(*row)

    def _apply_row(self, row: InboxRow) -> tuple[str, Reference | None] | Postponed:
        """Apply all records of a row.

        Return the results as text and a related record whose reference was left out, or why the row has to wait.
        """
        messages, awaits = [], None
        for result in self._results(row):
            if isinstance(result, Postponed):
                return result
            messages.append(result.message)
            awaits = awaits or result.awaits
        return "; ".join(messages) or "no subscriber follows this kind of record", awaits

    def _results(self, row: InboxRow) -> Iterator[Applied | Postponed]:
        if row.subscriber is not None:
            subscriber = self.context.subscribers[row.subscriber]
            yield self._relink(row, subscriber) if row.kind == RELINK else self._apply_polled(row, subscriber)
            return
        client = self.context.systems.get(row.system)
        if client is None:
            raise Retry(f"the system {row.system} is no longer configured")
        for event in client.events(row.body.encode()):
            for subscriber in self.context.of_system(row.system):
                if subscriber.resource == event.resource:
                    yield self.apply_event(subscriber, event.external, row.id, is_suspect=row.attempts > 0)

    def _apply_polled(self, row: InboxRow, subscriber: Subscriber) -> Applied | Postponed:
        polled = _load(row.body)
        if row.pulls is not None and row.waits_for is None and self._is_linked(subscriber, polled.id):
            return Applied("echo", "it is linked by now")
        normalized = call_safely(normalize_incoming, subscriber, polled)
        # A record that cannot be normalized still names the record to fetch.
        event = replace(polled, data={}) if isinstance(normalized, SyncError) else normalized
        return self._fetch_and_apply(subscriber, event, row.id, is_suspect=row.attempts > 0)

    def _relink(self, row: InboxRow, subscriber: Subscriber) -> Applied | Postponed:
        lost = Lost.load(row.body)
        return self._fetch_and_apply(
            subscriber, External(lost.external_id), row.id, is_suspect=row.attempts > 0, lost=lost
        )

    def _is_linked(self, subscriber: Subscriber, external_id: str) -> bool:
        with self.context.database.read_autocommit() as connection:
            related = Reference(subscriber.name(), external_id)
            return self.applying.relations.record_of(connection, related) is not None

    def _mark_applied(self, row: InboxRow, result: str, awaits: Reference | None) -> None:
        """Note what was done; a row whose record lacks a reference is applied again when that can be set."""
        now = self.context.clock()
        values = {"state": "done", "finished_at": now, "result": result, "retry_at": None, "waits_for": None}
        with self.context.database.write() as connection:
            if awaits is not None:
                values["waits_for"] = awaits.key
                if self.applying.relations.record_of(connection, awaits) is not None:
                    values |= {"state": "waiting", "finished_at": None, "retry_at": now}
                elif row.waits_for != awaits.key:
                    awaited.pull(self.context, connection, awaits)
            connection.execute(sa.update(Inbox).where(Inbox.id == row.id).values(**values))
            letter = self.letters.of_inbox(connection, row.id)
            self.letters.close(connection, [letter] if letter is not None else [], result)
            woken = self._end_pull(connection, row)
        publish_rows(self.context, row.system, woken)

    def _end_pull(self, connection: sa.Connection, row: InboxRow) -> list[int]:
        """Wake the rows that wait for the record that this one has pulled."""
        return [] if row.pulls is None else awaited.wake(self.context, connection, row.pulls, linked=False)

    def _await(self, row: InboxRow, wait: Unlinked) -> None:
        """Have a row wait until a related record is linked, or give it up if that can never be."""
        own, related = wait.own, wait.related
        if own is None or not self.applying.relations.can_pull(related):
            self._fail(row, wait)
            return
        with self.context.database.write() as connection:
            is_linked = self.applying.relations.record_of(connection, related) is not None
            never = None if is_linked else awaited.why_never(connection, wait, own, row.waits_for)
            seconds = 0.0 if is_linked else awaited.RECHECK_SECONDS
            waits = {"waits_for": related.key, "result": str(wait), "retry_at": self.context.later(seconds)}
            connection.execute(sa.update(Inbox).where(Inbox.id == row.id).values(**waits))
            if never is None and not is_linked:
                awaited.pull(self.context, connection, related)
        if never is not None:
            self._fail(row, never)

    def _postpone(self, row: InboxRow, reason: str, seconds: float, *, attempts: int) -> None:
        with self.context.database.write() as connection:
            connection.execute(
                sa.update(Inbox)
                .where(Inbox.id == row.id)
                .values(result=reason, retry_at=self.context.later(seconds), attempts=attempts)
            )

    def _wait_for_lease(self, row: InboxRow) -> None:
        """Postpone a row whose record is being delivered; longer than a lease takes, this uses up attempts."""
        if row.received_at > self.context.later(-self.context.policy.lease_seconds):
            self._postpone(row, "the record is being delivered", SHORTEST_PAUSE_SECONDS, attempts=row.attempts)
        else:
            self._fail(row, Retry("the record is being delivered each time", code="attempts_exhausted"))

    def _fail(self, row: InboxRow, error: SyncError) -> None:
        """Postpone a row that failed, as the error's policy says, or make it a dead letter."""
        attempts = row.attempts + (not error.pauses_system or self._fails_alone(row.system, error))
        may_end = attempts >= self.context.policy.max_attempts
        if error.pauses_system and not may_end:
            down = self._went_down(row.system, error)
            self._postpone(row, down.reason, down.after_seconds, attempts=attempts)
            return
        # An event may arrive before its record can be read, so `Gone` is tried again here.
        if not may_end and (error.unlinks or not error.is_terminal):
            pause = self.context.policy.backoff(attempts, error.after)
            self._postpone(row, str(error), pause, attempts=attempts)
            return
        with self.context.database.write() as connection:
            connection.execute(
                sa.update(Inbox)
                .where(Inbox.id == row.id)
                .values(state="dead", result=str(error), retry_at=None, attempts=attempts)
            )
            letter = self.letters.of_inbox(connection, row.id)
            name, record_id = row.subscriber or row.system, None
            if isinstance(error, ReusedId):
                name, record_id = error.subscriber, error.record_id
            self.letters.write(connection, name, error, record_id=record_id, inbox_id=row.id, letter_id=letter)
            woken = self._end_pull(connection, row)
        publish_rows(self.context, row.system, woken)

    def _went_down(self, system: str, error: SyncError) -> Postponed:
        self.context.database.run_in_transaction(self.breaker.went_down, system, error)
        return Postponed(str(error), error.after or self.context.policy.probe_min_seconds)

    def _fails_alone(self, system: str, error: SyncError) -> bool:
        """Return whether the system seems to be down for this row and was up for others just before.

        Such a failure uses up an attempt, so that the row ends. A system that says how long to wait is really busy.
        """
        with self.context.database.read_autocommit() as connection:
            is_up = sa.select(System.down_since.is_(None)).where(System.name == system)
            return error.after is None and bool(connection.execute(is_up).scalar())

    # --- one record -----------------------------------------------------------------------------------

    def _fetch_and_apply(
        self,
        subscriber: Subscriber,
        event: External,
        inbox_id: int | None = None,
        *,
        is_suspect: bool = False,
        lost: Lost | None = None,
    ) -> Applied | Postponed:
        """Fetch a record under its link's lease, so that no process delivers it meanwhile, and apply it."""
        permit = self.breaker.permit(subscriber.system, overdue=SUSPECT_SECONDS if is_suspect else 0.0)
        if not permit.allowed:
            return Postponed(permit.reason, permit.after)
        named = event
        for _ in range(_MOST_IDS):
            applied = self._fetch_under_lease(subscriber, named, inbox_id, lost, probing=permit.probing)
            if isinstance(applied, Applied):
                return applied
            named = replace(named, id=applied.id, merged_into=None, deleted=False)
        raise Retry(f"{event.id} is returned under another id each time, last under {named.id}", code="id_changes")

    def _fetch_under_lease(
        self, subscriber: Subscriber, event: External, inbox_id: int | None, lost: Lost | None, *, probing: bool
    ) -> Applied | KnownAs:
        """Fetch and apply a record; return the other id under which it has to be fetched, if there is one."""
        token = new_token()
        link_id = self._lease(subscriber, event.id, token)
        owed = None
        try:
            fetched = self._fetch(subscriber, event)
            if probing:
                self.context.database.run_in_transaction(self.breaker.succeeded, subscriber.system)
            known_as = None
            if link_id is None and fetched.deleted:
                known_as = self._linked_form(subscriber, event.id)
            elif fetched.id != event.id:
                known_as = KnownAs(fetched.id)
                # The link follows to the record that it is now, as it does to one that it was merged into.
                fetched = External(event.id, at=fetched.at, deleted=True, merged_into=fetched.id)
            if known_as is not None and link_id is None:
                return known_as
            applied = self._apply(
                subscriber,
                lambda mapper: Incoming(
                    subscriber, fetched, mapper, newest=True, token=token, event=event, inbox_id=inbox_id, lost=lost
                ),
            )
            if isinstance(applied, NeedsFetch):
                raise AssertionError(f"{event.id} was fetched, and still {applied.reason}")
            owed = applied.owed
        finally:
            if link_id is not None:
                owed = self.context.database.run_in_transaction(leases.release, link_id, token) or owed
        self._publish(subscriber, replace(applied, owed=owed))
        return known_as or applied

    def _linked_form(self, subscriber: Subscriber, external_id: str) -> KnownAs | None:
        """Return the linked id that is another form of one which nothing is linked to."""
        with self.context.database.read() as connection:
            linked = matching.other_form(connection, subscriber, external_id)
        return None if linked is None else KnownAs(linked)

    def _publish(self, subscriber: Subscriber, applied: Applied) -> None:
        publish_owed(self.context, [applied.owed])
        publish_rows(self.context, subscriber.system, applied.woken)

    def _fetch(self, subscriber: Subscriber, event: External) -> External:
        """Return the record as it is now; one that no longer exists is returned as deleted."""
        try:
            with self.concurrency.slot(subscriber.system):
                subscriber.client.pace()
                return normalize_incoming(subscriber, subscriber.fetch(event.id), complete=True)
        except Gone as gone:
            return replace(event, deleted=True, data={}, merged_into=gone.merged_into or event.merged_into)
        except SyncError as error:
            raise self.outages.explain(subscriber, error, event.id) from error

    def _lease(self, subscriber: Subscriber, external_id: str, token: str) -> int | None:
        """Take the lease of the link to this record. Return the link's id, or None if there is no link."""
        now, until = self.context.clock(), self.context.later(self.context.policy.lease_seconds)
        return self.context.database.run_in_transaction(leases.take, subscriber.name(), external_id, token, now, until)

    def _apply(self, subscriber: Subscriber, make: Callable[[Mapper], Incoming]) -> Applied | NeedsFetch:
        """Apply, in one transaction, what `make` makes with the mapping in force."""

        def work(connection: sa.Connection) -> Applied | NeedsFetch:
            mapper = self.mappings.current(connection, subscriber.name())[0]
            return self.applying.apply(connection, make(mapper))

        return self.context.database.run_in_transaction(work)


def store_event(
    context: Context, connection: sa.Connection, values: dict[str, Any], *, reopen: bool = False
) -> int | None:
    """Insert an inbox row and return its id; None if the event is stored already.

    `reopen`: an event that is stored and done waits again, with the new body.
    """
    insert = context.database.insert(Inbox).values(**values)
    same_event = ["system", "event_id"]
    if reopen:
        fresh = {"state": "waiting", "attempts": 0, "finished_at": None, "waits_for": None}
        fresh |= {"body": values["body"], "retry_at": values["retry_at"]}
        insert = insert.on_conflict_do_update(index_elements=same_event, set_=fresh, where=Inbox.state == "done")
    else:
        insert = insert.on_conflict_do_nothing(index_elements=same_event)
    row_id: int | None = connection.execute(insert.returning(Inbox.id)).scalar()
    return row_id


def store_polled(context: Context, connection: sa.Connection, subscriber: Subscriber, external: External) -> int | None:
    """Store a polled record that cannot be applied now; return the id of its row, or None if it waits already."""
    now = context.clock()
    return store_event(
        context,
        connection,
        {
            "system": subscriber.system,
            "subscriber": subscriber.name(),
            "event_id": f"poll:{subscriber.name()}:{external.id}:{external.at}",
            "kind": awaited.INBOX_KIND_POLL,
            "body": _dump(external),
            "received_at": now,
            "retry_at": now,
        },
        # Systems count whole seconds: another edit in the same second has the same event id.
        reopen=True,
    )


def waiting_ids(connection: sa.Connection, subscriber: str) -> set[str]:
    """Return the external ids of polled records that wait to be applied."""
    polled = (Inbox.subscriber == subscriber, Inbox.state == "waiting", Inbox.kind == awaited.INBOX_KIND_POLL)
    bodies = connection.execute(sa.select(Inbox.body).where(*polled).order_by(Inbox.id).limit(_MOST_WAITING))
    return {_load(body).id for body in bodies.scalars()}


def store_relink(context: Context, connection: sa.Connection, subscriber: Subscriber, lost: Lost) -> int | None:
    """Have a record that was taken for gone fetched, and linked again if it is there; return the id of its row."""
    now = context.clock()
    return store_event(
        context,
        connection,
        {
            "system": subscriber.system,
            "subscriber": subscriber.name(),
            "event_id": f"relink:{new_token()}",
            "kind": RELINK,
            "body": lost.dump(),
            "received_at": now,
            "retry_at": now,
        },
    )


def publish_owed(context: Context, owed: Iterable[tuple[str, str] | None]) -> None:
    """Publish the links that applying a record made owed; a failure is left to the sweep."""
    for name, record_id in filter(None, owed):
        try:
            context.publisher.records(name, [record_id])
        except Exception:
            logger.warning("%s %s could not be published; the sweep will do it", name, record_id, exc_info=True)


def publish_rows(context: Context, system: str, inbox_ids: Iterable[int]) -> None:
    """Publish inbox rows that were woken; a failure is left to the sweep."""
    ids = list(inbox_ids)
    try:
        if ids:
            context.publisher.inbox(system, ids)
    except Exception:
        logger.warning("inbox rows %s of %s could not be published; the sweep will do it", ids, system, exc_info=True)


def _first_line(error: Exception) -> str:
    return hide(str(error)).strip().split("\n", 1)[0][:_ERROR_CHARACTERS]


def _dump(external: External) -> str:
    return json.dumps({**vars(external), "at": external.at.isoformat() if external.at else None}, default=str)


def _load(body: str) -> External:
    values = json.loads(body)
    return External(**{**values, "at": datetime.fromisoformat(values["at"]) if values["at"] else None})
