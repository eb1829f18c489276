"""Outward delivery: bring records of one subscriber up to date with the internal database.

The way of a batch: read the links and the records' present state; plan without touching anything;
claim the links that are still as they were read, under a lease, with what is about to be sent (one
transaction); call the system; write link, delivery and dead letter for the whole batch (one
transaction). A process that dies anywhere leaves the links owed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from conductor.context import UNKNOWN_TIME, Context, new_token
from conductor.links import in_doubt, leases, overwrites
from conductor.links.relations import Relations, our_side
from conductor.links.rules import in_force
from conductor.mappings.store import Mappings
from conductor.outward.planning import RECONCILABLE_COLUMNS, Batch, Claim, Plan, changed, make_claim, make_item
from conductor.outward.record_budget import RecordBudget, Yielded
from conductor.outward.results import FollowUp, ResultWriter
from conductor.systems.circuit_breaker import BREAKER_COLUMNS, CircuitBreaker, Permit
from conductor.systems.concurrency import Limits, Slot, Stopping
from conductor.systems.delete_guard import DeleteGuard
from models.base import UtcDateTime
from models.bulk import as_list, in_param, version_of
from models.ledger import Conflict, Link, Mapping, System, Unsubscription
from subscribers.base import Subscriber, normalize_incoming
from subscribers.calls import call_safely, renewed_by
from subscribers.errors import Reject, Retry, SyncError, SystemDown
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.paths import nest
from subscribers.mapping.values import Flat, same
from subscribers.records import External, Item

_LINK: Any = Link.__table__

logger = logging.getLogger(__name__)

#: Records claimed at once for a system without bulk calls, before it is known how long its calls take: these must fit
#: into the lease. Then as many as take this long, so that all workers who are free have some of a burst to do.
SINGLE_CHUNK, SMALLEST_CHUNK, LARGEST_CHUNK, CHUNK_SECONDS = 20, 4, 200, 0.4

#: Seconds one message may keep a worker busy; what is left by then goes back into the queue, so
#: that a slow system neither runs into RabbitMQ's consumer timeout nor holds up a stop.
MESSAGE_BUDGET = 60.0

#: Records prepared or written down at once by one process: four large batches, or eight small ones.
ROOM, LEAST_ROOM = 800, 100

#: What was read so many seconds before it is the batch's turn to call is read anew: the system may be paused by now.
_STALE_SECONDS = 1.0

#: How often records that changed while they were being sent are taken up again at once.
_ROUNDS = 5


@dataclass(frozen=True)
class _Turn:
    """What a batch holds while it is worked off: one of the system's slots, and room in this process."""

    slot: Slot
    away: Yielded

    def was_long_in_coming(self) -> bool:
        """Wait for the slot; True if what was read before may be out of date by now.

        Raises:
          Stopping: there is none, and this process is asked to stop.
        """
        if not self.slot.is_limited or self.slot.is_held:
            return False
        began = time.monotonic()
        with self.away():
            self.slot.take()
        return time.monotonic() - began > _STALE_SECONDS


class Outward:
    """Delivers what is owed."""

    def __init__(
        self,
        context: Context,
        health: CircuitBreaker,
        mappings: Mappings,
        relations: Relations,
        settling: ResultWriter,
        limits: Limits,
        guard: DeleteGuard,
    ) -> None:
        self.context = context
        self.breaker = health
        self.mappings = mappings
        self.relations = relations
        self.results = settling
        self.limits = limits
        self.guard = guard
        #: Subscriber -> how long its last calls took, each.
        self._seconds: dict[str, float] = {}
        self._room = RecordBudget(ROOM, LEAST_ROOM)

    def deliver(self, name: str, record_ids: Sequence[str]) -> None:
        """Bring these records of one subscriber up to date, as far as they are owed anything."""
        subscriber = self.context.subscribers.get(name)
        if subscriber is None:
            logger.info("%s is not configured here; what it is owed stays in the ledger", name)
            return
        waiting = list(dict.fromkeys(record_ids))
        began = time.monotonic()
        while waiting:
            if self.context.stopping.is_set() or time.monotonic() - began > MESSAGE_BUDGET:
                self.context.publisher.records(name, waiting)
                return
            waiting = self._deliver_some(subscriber, waiting)

    def _deliver_some(self, subscriber: Subscriber, waiting: list[str]) -> list[str]:
        """Deliver as many of these as fit into one batch; the others."""
        lot, slot = subscriber.batch_size(len(waiting)), self.limits.slot(subscriber.system)
        count = lot if lot > 1 else self._single_chunk(subscriber.name())
        if lot == 1 and slot.is_limited and not slot.is_sought:
            count = -(-min(count, len(waiting)) // 2)  # there are threads with nothing to do
        chunk, rest = waiting[:count], waiting[count:]
        with self._room.taken(len(chunk)) as away:
            return self._deliver_chunk(subscriber, chunk, rest, _Turn(slot, away))

    def _deliver_chunk(self, subscriber: Subscriber, chunk: list[str], rest: list[str], turn: _Turn) -> list[str]:
        name, lot = subscriber.name(), subscriber.batch_size(len(chunk) + len(rest))
        batch = self._look_up(subscriber, chunk)
        if not batch.gate.open:
            logger.info("%s: %d records wait: %s", name, len(chunk) + len(rest), batch.gate.reason)
            return []
        if batch.gate.probing and (lot == 1 or batch.gate.alone):
            # One of them shows whether the system is back: the first named, which is another one each time.
            place = {record_id: number for number, record_id in enumerate(chunk)}
            batch.claims.sort(key=lambda claim: place[claim.record_id])
            rest = [claim.record_id for claim in batch.claims[1:]] + rest
            batch.claims = batch.claims[:1]
        elif lot == 1 and not batch.gate.probing:
            # A call a record: whoever is free makes them at the same time, and shares what is too much for one again.
            half = -(-len(rest) // 2)
            for part in filter(None, (rest[:half], rest[half:])):
                self.context.publisher.records(name, part)
            rest = []
        try:
            called = self._work_off(subscriber, batch, turn)
        except Stopping:
            called = False
            self.context.publisher.records(name, [claim.record_id for claim in batch.claims])
        finally:
            turn.slot.release()
        if batch.gate.probing and not called:
            self.breaker.nothing_asked(subscriber.system)
        return rest

    def _single_chunk(self, name: str) -> int:
        seconds = self._seconds.get(name)
        fit = SINGLE_CHUNK if seconds is None else int(CHUNK_SECONDS / max(seconds, 1e-6))
        return min(max(fit, SMALLEST_CHUNK), LARGEST_CHUNK)

    def _work_off(self, subscriber: Subscriber, batch: Batch, turn: _Turn) -> bool:
        """Deliver this batch, and again what changes meanwhile; True if the system was called."""
        called = False
        for _ in range(_ROUNDS):
            again, calls = self._round(subscriber, batch, turn)
            called = called or calls
            if not again:
                return called
            batch = self._look_up(subscriber, again, probe=False)
            if not batch.gate.open:
                return called  # they stay owed, and are announced when the system is back
        self.context.publisher.records(subscriber.name(), again)
        return called

    def _round(self, subscriber: Subscriber, batch: Batch, turn: _Turn) -> tuple[list[str], bool]:
        """One pass over these records; those that are owed something again, and whether the system was called."""
        if not batch.claims:
            return [], False
        plans = [self._plan(subscriber, claim, batch) for claim in batch.claims]
        if any(plan.is_open for plan in plans) and turn.was_long_in_coming() and not batch.gate.probing:
            return [claim.record_id for claim in batch.claims], False
        plans, moved = self._claim(plans, batch.token)
        counted, at = self._hold_deletes(subscriber, plans), self.context.clock()
        with turn.away():
            self._call(subscriber, plans, batch)
            turn.slot.release()  # what is left to do calls nobody
        # These come back as if they had never been tried, and are counted then.
        spared = sum(plan.outcome == "waiting" or plan.is_down for plan in counted)
        if spared:
            self.context.database.run_in_transaction(self.guard.refund, subscriber.system, spared, at)
        settled = self._settle(subscriber, plans, batch)
        for name, record_id in settled.announce:
            self.context.publisher.records(name, [record_id])
        return settled.again + moved, any(plan.asked for plan in plans)

    def _settle(self, subscriber: Subscriber, plans: list[Plan], batch: Batch) -> FollowUp:
        plans, settled = self.results.write_at_once(subscriber, plans, batch)
        if not plans:
            return settled
        try:
            return settled.and_then(
                self.context.database.run_in_transaction(self.results.write, subscriber, plans, batch)
            )
        except sa.exc.OperationalError:
            raise
        except Exception:
            # One of them cannot be written down: it must not take its neighbours with it.
            logger.exception("%s: a batch could not be written down; one by one", subscriber.name())
        for plan in plans:
            try:
                one = self.context.database.run_in_transaction(self.results.write, subscriber, [plan], batch)
            except sa.exc.OperationalError:
                raise
            except Exception as error:
                unwritten = Reject(f"what came of it cannot be written down: {type(error).__name__}")
                # A create that was done is looked up when it is tried again, or there would be two.
                unwritten.maybe_done = plan.error is None or plan.error.maybe_done
                plan.external, plan.flat, plan.item, plan.reason, plan.outcome = None, {}, None, None, None
                plan.fail(unwritten)
                one = self.context.database.run_in_transaction(self.results.write, subscriber, [plan], batch)
            settled = settled.and_then(one)
        return settled

    # --- read and claim -----------------------------------------------------------------------------

    def _look_up(self, subscriber: Subscriber, record_ids: list[str], *, probe: bool = True) -> Batch:
        """Whether the system may be called, and then all that is needed to plan for these records.

        Without `probe` it may not while it is down.
        """
        with self.context.database.read_autocommit() as connection:
            return self._read(connection, subscriber, record_ids, probe)

    def _read(self, connection: sa.Connection, subscriber: Subscriber, record_ids: list[str], probe: bool) -> Batch:
        """Those of these links that are owed something and free, with what is needed to plan for them."""
        name, now, dialect = subscriber.name(), self.context.clock(), connection.dialect.name
        asked_for = {"name": name, "system": subscriber.system, "ids": as_list(dialect, record_ids), "now": now}
        rows = connection.execute(_free_links(dialect), asked_for).all()
        batch = Batch(new_token(), Permit(open=True))
        if not rows:
            return batch
        batch.gate = self.breaker.judge(subscriber.system, rows[0], probe=probe)
        if not batch.gate.open:
            return batch
        ids = [row.record_id for row in rows]
        # Read after the links: whatever was committed before its change was routed is seen.
        records = subscriber.records.read(connection, ids)
        if rows[0].unsubscribed:
            batch.rules = in_force(connection, (subscriber.system, name), ids, now)
        asked = _asked(connection, [row.id for row in rows if row.open_conflicts])
        batch.claims = [make_claim(row, records.get(row.record_id), batch.token, asked.get(row.id, {})) for row in rows]
        mapper = call_safely(lambda: self.mappings.current(connection, name, rows[0].mapping_version)[0])
        if isinstance(mapper, Mapper):
            batch.mapper = mapper
            batch.related = self.relations.load(connection, subscriber, mapper, records.values())
        return batch

    def _claim(self, plans: list[Plan], token: str) -> tuple[list[Plan], list[str]]:
        """Lease the links that nobody touched since they were read; these, and the records of the others.

        The intent to create, and where nothing has to be looked up before what is about to be sent, are on disk
        with it, before the call.
        """
        telling = {p.claim.link.id for p in plans if p.is_open and p.operation in _TOLD and not _needs_look(p)}
        try:
            taken = self.context.database.execute_atomic(self._lease, plans, token, telling)
        except sa.exc.OperationalError:
            raise
        except Exception:
            # What one of them is about to be sent cannot be written down: `_write_ahead` finds out which.
            logger.warning("a batch could not be claimed with what is to be sent; without", exc_info=True)
            telling = set()
            taken = self.context.database.execute_atomic(self._lease, plans, token, telling)
        mine = []
        for plan in plans:
            if (leased := taken.get(plan.claim.link.id)) is not None:
                plan.claim.now_with(**leased)
                plan.claim.told = plan.claim.link.id in telling
                mine.append(plan)
        return mine, [plan.claim.record_id for plan in plans if plan.claim.link.id not in taken]

    def _lease(
        self, connection: sa.Connection, plans: list[Plan], token: str, telling: set[int]
    ) -> dict[int, dict[str, Any]]:
        until = self.context.later(self.context.policy.lease)
        rows = []
        for plan in plans:
            link = plan.claim.link
            in_doubt = plan.ours if link.id in telling else link.unconfirmed_write
            rows.append(
                {
                    "id": link.id,
                    "lease_owner": token,
                    "lease_until": until,
                    "create_token": link.create_token,
                    "unconfirmed_write": in_doubt,
                }
            )
        taken = leases.take_unchanged(connection, rows, [plan.claim.version for plan in plans])
        return {row["id"]: row for row in rows if row["id"] in taken}

    # --- plan ---------------------------------------------------------------------------------------

    def _plan(self, subscriber: Subscriber, claim: Claim, batch: Batch) -> Plan:
        plan = Plan(claim)
        if batch.mapper is None:
            return plan.fail(Reject(f"the mapping of {subscriber.name()} does not fit its table any more"))
        outcome = call_safely(self._choose, subscriber, plan, batch, batch.mapper)
        if isinstance(outcome, SyncError):
            plan.fail(outcome)
        self._mind(plan, batch)
        return plan

    @staticmethod
    def _mind(plan: Plan, batch: Batch) -> None:
        """What an unsubscription covers is not sent."""
        if plan.outcome is None and plan.operation != "none":
            plan.rule = next((r for r in batch.rules if r.covers(plan.operation, plan.claim.record_id)), None)
            if plan.rule is not None:
                plan.error = None
                plan.settle("skipped", plan.rule.reason)

    def _choose(self, subscriber: Subscriber, plan: Plan, batch: Batch, mapper: Mapper) -> None:
        claim = plan.claim
        if claim.record is None:
            self._choose_removal(subscriber, plan)
            return
        if not subscriber.wants(claim.record):
            plan.settle("skipped", f"{subscriber.name()} does not want this record")
            return
        # Where it was deleted here with it, a record that exists has come back, and is created anew.
        stays_unlinked = subscriber.on_gone in ("unlink", "archive")
        if claim.link.unlinked_at is not None and claim.link.deleted_remotely and stays_unlinked:
            when = f"{claim.link.unlinked_at:%Y-%m-%d %H:%M} UTC"
            plan.settle("skipped", f"it was deleted in {subscriber.system} at {when} and is unlinked since")
            return
        plan.operation = "update" if claim.linked else "create"
        self.relations.check(mapper, claim.record, batch.related)
        plan.flat, data = our_side(subscriber, mapper, claim.record, batch.related, strict=True)
        if claim.asked:
            _hold_asked(claim, plan.flat)
            data = nest(plan.flat, onto=data)
        subscriber.validate(data)
        plan.differing = _differing(plan.flat, claim.link.base or {}, claim.asked)
        # What is in doubt may have arrived: it is looked at, also where ours is what it was before that.
        if claim.linked and not plan.differing and claim.link.unconfirmed_write is None:
            plan.settle("unchanged", "the system holds all of it already")
        changes = data if not claim.linked else changed(data, plan.flat, plan.differing)
        plan.item = make_item(claim, data, changes)

    def _choose_removal(self, subscriber: Subscriber, plan: Plan) -> None:
        claim = plan.claim
        if not claim.linked:
            if claim.fresh_create_token or claim.link.unlinked_at is not None:
                plan.settle("unchanged", "the record is deleted, and the system does not have it")
                return
            plan.operation = "delete"  # a create was begun: it may be there, see _resolve
            plan.item = make_item(claim, {}, {})
            return
        policy = subscriber.on_delete
        if policy == "ignore":
            plan.settle("skipped", "the record is deleted; on_delete = ignore leaves it there")
        elif policy == "unlink":
            plan.operation = "unlink"
            plan.settle("delivered", "the record is deleted; on_delete = unlink leaves it there, detached")
        else:
            plan.operation = policy
            plan.flat = dict(subscriber.archive_data) if policy == "archive" else {}
            data = nest(plan.flat)
            plan.item = make_item(claim, data, data)

    def _hold_deletes(self, subscriber: Subscriber, plans: list[Plan]) -> list[Plan]:
        """Have deletions wait where the guard says so; those it has counted and lets through."""
        deletes = [p for p in plans if p.is_open and p.operation in ("delete", "archive")]
        fresh = [p for p in deletes if p.claim.link.attempts == 0]  # a retry is no other deletion
        if not deletes or self.context.database.run_in_transaction(
            self.guard.allows, subscriber.system, len(fresh), "to"
        ):
            return fresh
        for plan in deletes:
            plan.settle("waiting", "held by the mass-delete guard")
        return []

    # --- call ---------------------------------------------------------------------------------------

    def _call(self, subscriber: Subscriber, plans: list[Plan], batch: Batch) -> None:
        for plan in plans:
            if plan.is_open and plan.operation != "none" and batch.mapper is not None and _needs_look(plan):
                short = plan.claim.link.lease_until <= self.context.later(self.context.policy.lease / 2)
                if short and not self._still_ours([p for p in plans if p.is_open], batch.token):
                    self._lose(plans)
                    return
                self._look(subscriber, plan, batch.mapper)
                if plan.claim.found:
                    self._mind(plan, batch)  # it was planned as a create
            if plan.error is not None and plan.is_down:
                _spare_the_others(plans, plan.error)
                return
        untold = [p for p in plans if p.is_open and p.operation in _TOLD and not p.claim.told]
        self._write_ahead(untold, batch.token)
        for operation, call in (
            ("create", subscriber.bulk_create),
            ("update", subscriber.bulk_update),
            ("archive", subscriber.bulk_update),
            ("delete", subscriber.bulk_delete),
        ):
            chosen = [p for p in plans if p.is_open and p.operation == operation]
            size = max(subscriber.batch_size(len(chosen)), 1)
            for start in range(0, len(chosen), size):
                some = chosen[start : start + size]
                self._call_chunk(subscriber, call, some, batch.token)
                if (down := next((p.error for p in some if p.is_down), None)) is not None:
                    _spare_the_others(plans, down)
                    return

    def _call_chunk(
        self, subscriber: Subscriber, call: Callable[[list[Item]], list[Any]], chosen: list[Plan], token: str
    ) -> None:
        if not self._still_ours(chosen, token):
            self._lose(chosen)
            return
        if subscriber.bulk_size > 1:
            subscriber.client.pace()
        began = time.perf_counter()
        with renewed_by(lambda: self._still_ours(chosen, token)):
            outcomes = call_safely(call, [plan.item for plan in chosen])
        duration = (time.perf_counter() - began) * 1000
        self._seconds[subscriber.name()] = duration / 1000 / len(chosen)
        if not isinstance(outcomes, SyncError) and len(outcomes) != len(chosen):
            outcomes = Retry(f"{len(outcomes)} outcomes for {len(chosen)} records", maybe_done=True)
        if isinstance(outcomes, SyncError):
            outcomes = [outcomes] * len(chosen)
        for plan, outcome in zip(chosen, outcomes, strict=True):
            plan.asked, plan.duration = True, duration
            if outcome is None and plan.operation == "create":
                outcome = Retry("create returned no id", maybe_done=True)
            if isinstance(outcome, SyncError):
                plan.fail(outcome)
            else:
                plan.external = outcome and _answered(subscriber, outcome)
                plan.settle("delivered")

    def _write_ahead(self, plans: list[Plan], token: str) -> None:
        """What is about to be sent is on disk before the call: should nobody live to tell how it ended.

        With it goes what was learned before the call, since that is what the new doubt is told against.
        """
        if not plans:
            return
        try:
            self.context.database.run_in_transaction(_write_doubts, plans, token)
            return
        except sa.exc.OperationalError:
            raise
        except Exception:
            # One of them cannot be written down (an id that is taken, a number no column holds): only that one fails.
            logger.warning("the links of a batch could not be written down; one by one", exc_info=True)
        for plan in plans:
            try:
                self.context.database.run_in_transaction(_write_doubts, [plan], token)
            except sa.exc.IntegrityError:
                found = plan.claim.link.external_id
                plan.claim.now_with(external_id=None)
                plan.claim.told = False
                plan.fail(Reject(f"{found} was found for it, which is linked to another record already"))
            except sa.exc.OperationalError:
                raise
            except Exception as error:
                plan.claim.told, plan.flat, plan.item = False, {}, None
                plan.fail(Reject(f"what is to be sent cannot be written down: {type(error).__name__}"))

    @staticmethod
    def _lose(plans: list[Plan]) -> None:
        for plan in plans:
            if plan.is_open:
                plan.settle("waiting", "the lease ran out before the call")

    def _still_ours(self, plans: list[Plan], token: str) -> bool:
        """Renew the lease where half of it is gone; False if somebody else took over."""
        until = min(plan.claim.link.lease_until for plan in plans)
        if until > self.context.later(self.context.policy.lease / 2):
            return True
        self.limits.renew()
        ids = [plan.claim.link.id for plan in plans]
        renewed = self.context.later(self.context.policy.lease)
        is_ours = self.context.database.run_in_transaction(leases.renew, ids, token, renewed)
        for plan in plans:
            plan.claim.now_with(lease_until=renewed)
        return is_ours

    def _look(self, subscriber: Subscriber, plan: Plan, mapper: Mapper) -> None:
        """Learn what has to be known before this is sent: what the system has."""
        if not plan.claim.linked:
            self._resolve(subscriber, plan, mapper)
        if plan.is_open and plan.operation == "update" and plan.claim.link.unconfirmed_write is not None:
            self._look_again(subscriber, plan, mapper)
        if plan.is_open and plan.operation == "update":
            self._spare(subscriber, plan, mapper)

    def _resolve(self, subscriber: Subscriber, plan: Plan, mapper: Mapper) -> None:
        """A create was begun before and nobody knows how it ended: look before doing it again."""
        assert plan.item is not None
        plan.asked = True
        subscriber.client.pace()
        found = call_safely(_found, subscriber, plan.item)
        if isinstance(found, SyncError):
            plan.fail(found)
            return
        if found is None:
            if plan.operation == "delete":
                plan.settle("unchanged", "the record is deleted, and the system does not have it")
            return
        plan.claim.found = True
        # Against what was sent then, an edit of theirs shows when it comes in; ours alone is sent now.
        base = in_doubt.created(plan.claim.link.unconfirmed_write, mapper.flatten(found.data))
        plan.claim.now_with(
            external_id=found.id, unlinked_at=None, base=base, remote_values=None, unconfirmed_write=None
        )
        plan.claim.now_with(last_write_at=found.at or UNKNOWN_TIME)
        if plan.operation == "delete":
            plan.item = replace(plan.item, external_id=found.id)
            return
        plan.differing = _differing(plan.flat, base, {})
        changes = changed(plan.item.data, plan.flat, plan.differing)
        plan.item = replace(plan.item, external_id=found.id, changes=changes)
        plan.operation = "update"
        if not plan.differing:
            plan.operation = "match"
            plan.external = found
            plan.settle("delivered", "an earlier attempt had created it")

    @staticmethod
    def _look_again(subscriber: Subscriber, plan: Plan, mapper: Mapper) -> None:
        """An update was sent and nobody knows whether it arrived: look before sending it again.

        If it did, somebody may have edited over it since; sending it again would undo that.
        """
        claim, item = plan.claim, plan.item
        assert item is not None
        plan.asked = True
        subscriber.client.pace()
        found = call_safely(lambda: normalize_incoming(subscriber, subscriber.fetch(item.linked_id)))
        if isinstance(found, SyncError):
            plan.fail(found)
            return
        theirs = mapper.flatten(found.data)
        base, remote_values = in_doubt.settle(
            claim.link.unconfirmed_write, theirs, claim.link.base or {}, claim.link.remote_values or {}
        )
        claim.now_with(
            base=base,
            remote_values=remote_values or None,
            write_windows=overwrites.ended(claim.link.write_windows, found.at),
        )
        # It was before this: what was read there earlier, and comes in later, may be from before it.
        claim.now_with(last_write_at=found.at or UNKNOWN_TIME)
        plan.differing = _differing(plan.flat, base, claim.asked)
        plan.item = replace(item, changes=changed(item.data, plan.flat, plan.differing))
        if not plan.differing:
            plan.operation = "match"
            plan.settle("delivered", "an earlier attempt had arrived")

    @staticmethod
    def _spare(subscriber: Subscriber, plan: Plan, mapper: Mapper) -> None:
        """Nested objects travel whole: what was edited there beside our change goes back as it is.

        It has not come in yet, and once overwritten it could not.
        """
        claim, item = plan.claim, plan.item
        assert item is not None
        base, remote_values = claim.link.base or {}, claim.link.remote_values or {}
        beside = plan.beside
        if not beside:
            return
        plan.asked = True
        subscriber.client.pace()
        found = call_safely(lambda: normalize_incoming(subscriber, subscriber.fetch(item.linked_id)))
        if isinstance(found, SyncError):
            plan.fail(found)
            return
        theirs = mapper.flatten(found.data)
        stood = {path: theirs[path] for path in sorted(beside) if path in theirs}
        if found.at is not None:
            claim.now_with(
                write_windows=overwrites.begun(claim.link.write_windows, found.at, claim.link.last_write_at, stood)
            )
        claim.beside = {p: v for p, v in stood.items() if not same(v, remote_values.get(p, base[p]))}
        if claim.beside:
            plan.flat = {**plan.flat, **claim.beside}
            data = nest(claim.beside, onto=deepcopy(item.data))
            plan.item = replace(item, data=data, changes={top: data[top] for top in item.changes})


@lru_cache
def _free_links(dialect: str) -> sa.Select[Any]:
    """Those of the records `ids` that are owed something and free, each with what holds for all of them.

    That is whether the `system` may be called, the version of the mapping, and whether any unsubscription is in force:
    of the same moment as the links. Built once, since that costs more than running it.
    """
    name, system = sa.bindparam("name", type_=sa.Text), sa.bindparam("system", type_=sa.Text)
    now = sa.bindparam("now", type_=UtcDateTime)
    version = sa.select(sa.func.coalesce(sa.func.max(Mapping.version), 0)).where(Mapping.subscriber == name)
    in_force = sa.or_(Unsubscription.until.is_(None), Unsubscription.until > now)
    unsubscribed = sa.exists().where(sa.or_(Unsubscription.target == system, Unsubscription.target == name), in_force)
    return (
        sa.select(
            _LINK,
            *version_of(dialect, _LINK),
            *BREAKER_COLUMNS,
            version.scalar_subquery().label("mapping_version"),
            unsubscribed.label("unsubscribed"),
        )
        .select_from(sa.outerjoin(_LINK, System, System.name == system))
        # By the record: while there are few links PostgreSQL would take any index that holds the subscriber as well.
        .where(Link.subscriber.concat(sa.literal_column("''")) == name, in_param(dialect, Link.record_id, "ids"))
        # Said as a difference: by the index over all that is owed PostgreSQL would look through a whole backlog.
        .where(Link.owed_change - Link.synced_change > 0, Link.dead_at.is_(None))
        .where(sa.or_(Link.retry_at.is_(None), Link.retry_at <= now))
        .where(leases.is_free(now))
        .order_by(Link.record_id)
    )


#: Operations whose outcome can be in doubt in a way that matters later.
_TOLD = ("create", "update")


def _spare_the_others(plans: list[Plan], down: SyncError) -> None:
    """Said once for the batch: those still to be called about need not find out by themselves."""
    for plan in plans:
        if plan.is_open:
            plan.fail(SystemDown(str(down), after=down.after))


def _needs_look(plan: Plan) -> bool:
    """Whether the system has to be asked something before this is sent."""
    claim = plan.claim
    if claim.told:
        return False
    if not claim.linked:
        return not claim.fresh_create_token
    return plan.operation == "update" and (claim.link.unconfirmed_write is not None or bool(plan.beside))


def _found(subscriber: Subscriber, item: Item) -> External | None:
    external = subscriber.find(item)
    return external and normalize_incoming(subscriber, external)


def _answered(subscriber: Subscriber, external: External) -> External:
    """The answer to a write. It is done: where `after_receive` fails the answer's data are not used, its id is."""
    made = call_safely(normalize_incoming, subscriber, external)
    if isinstance(made, SyncError):
        logger.error("%s %s: the answer cannot be used: %s", subscriber.name(), external.id, made, exc_info=made)
        return replace(external, data={})
    return made  # type: ignore[no-any-return]


def _write_doubts(connection: sa.Connection, plans: list[Plan], token: str) -> None:
    rows = []
    # A relay may mark the same links at this moment, in another order: who loses that race begins again.
    for plan in plans:
        plan.claim.now_with(unconfirmed_write=plan.ours)
        plan.claim.told = True
        known = {name: getattr(plan.claim.link, name) for name in RECONCILABLE_COLUMNS}
        rows.append({"id": plan.claim.link.id, "lease_owner": token, **known})
    leases.write_leased(connection, rows)


def _differing(flat: Flat, base: Flat, asked: Flat) -> list[str]:
    return [p for p, v in flat.items() if p not in asked and (p not in base or not same(v, base[p]))]


def _asked(connection: sa.Connection, link_ids: list[int]) -> dict[int, Flat]:
    """Open conflicts: link -> field -> what the system holds."""
    found: dict[int, Flat] = {}
    if link_ids:
        statement = sa.select(Conflict.link_id, Conflict.path, Conflict.theirs)
        rows = connection.execute(statement.where(Conflict.link_id.in_(link_ids), Conflict.resolved_at.is_(None)))
        for row in rows:
            found.setdefault(row.link_id, {})[row.path] = row.theirs
    return found


def _hold_asked(claim: Claim, flat: Flat) -> None:
    """Where a person is asked, the system keeps what it holds; a conflict that settled itself is forgotten."""
    for path, theirs in list(claim.asked.items()):
        if path not in flat or same(flat[path], theirs):
            del claim.asked[path]
        else:
            flat[path] = theirs
