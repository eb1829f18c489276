"""Delivery: bring records of one subscriber up to date with the internal database.

A batch takes these steps:

1. load the links and the records' present state (`loading`);
2. plan, without writing or calling anything (`planning`);
3. claim the links that are unchanged since, with what is about to be sent, in one transaction;
4. send: call the system (`sending`);
5. record link, delivery and dead letter of the whole batch, in one transaction (`results`).

A process that dies at any point leaves the links owed, and the sweep publishes them again (`recovery`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import sqlalchemy as sa

from conductor.context import Context
from conductor.links import leases
from conductor.links.row import LinkRow
from conductor.outward.loading import BatchLoader
from conductor.outward.planning import DeliveryBatch, Plan, end_unseen, plan_delivery, unseen_writes
from conductor.outward.record_budget import RecordBudget, Yielded
from conductor.outward.results import FollowUp, ResultWriter
from conductor.outward.sending import CONFIRMED_OPERATIONS, Sender, must_inspect
from conductor.systems.circuit_breaker import CircuitBreaker
from conductor.systems.concurrency import ConcurrencyLimiter, Slot, Stopping
from conductor.systems.delete_guard import HELD, DeleteGuard
from subscribers.base import Subscriber
from subscribers.errors import Reject, SyncError

logger = logging.getLogger(__name__)

#: Records claimed together for a system without bulk calls, before the duration of its calls is known. They must fit
#: into the lease.
FIRST_CHUNK = 20
#: Once it is known: as many records as take this long, so that all idle workers get a share of a burst.
CHUNK_SECONDS = 0.4
SMALLEST_CHUNK = 4
LARGEST_CHUNK = 200

#: How long one message may keep a worker busy. The rest goes back into the queue, so that a slow system neither
#: reaches RabbitMQ's consumer timeout nor delays a stop.
MESSAGE_BUDGET_SECONDS = 60.0

#: Records that one process prepares and records at a time: four large batches, or eight small ones.
RECORD_BUDGET = 800
SMALLEST_BATCH_COST = 100

#: A batch that waited longer than this for its slot is loaded again: the system may be paused by now.
_STALE_SECONDS = 1.0

#: How often records that change while they are sent are delivered again immediately.
_ROUNDS = 5


@dataclass(frozen=True)
class _Turn:
    """What a batch holds while it is delivered: one of the system's slots, and a share of the record budget."""

    slot: Slot
    yielded: Yielded

    def waited_long(self) -> bool:
        """Wait for the slot; return True if what was loaded before may be outdated by now.

        Raises:
          Stopping: there is no slot, and this process is asked to stop.
        """
        if not self.slot.is_limited or self.slot.is_held:
            return False
        began = time.monotonic()
        with self.yielded():
            self.slot.take()
        return time.monotonic() - began > _STALE_SECONDS


class LookResult(Protocol):
    """What a look found, by link: errors of records that may not be written now, and records that others hold."""

    @property
    def errors(self) -> Mapping[int, SyncError]: ...

    @property
    def waiting(self) -> Container[int]: ...


class Looker(Protocol):
    """Sees edits made in a system before a batch overwrites them, and merges them. Provided by `conductor.inward`."""

    def look(
        self,
        subscriber: Subscriber,
        updates: Sequence[LinkRow],
        deletes: Sequence[LinkRow],
        creates: Sequence[LinkRow],
        *,
        probing: bool,
    ) -> LookResult | None:
        """Return what was found; None if the edits are known already."""


class Outward:
    """Delivers what is owed."""

    def __init__(
        self,
        context: Context,
        breaker: CircuitBreaker,
        loader: BatchLoader,
        sender: Sender,
        results: ResultWriter,
        concurrency: ConcurrencyLimiter,
        guard: DeleteGuard,
        merge: Callable[[Subscriber, str], object],
        looker: Looker,
    ) -> None:
        """`merge` fetches a linked external record and merges it into ours."""
        self.context = context
        self.merge = merge
        self.breaker = breaker
        self.loader = loader
        self.sender = sender
        self.results = results
        self.concurrency = concurrency
        self.guard = guard
        self.looker = looker
        self._budget = RecordBudget(RECORD_BUDGET, SMALLEST_BATCH_COST)

    def deliver(self, name: str, record_ids: Sequence[str]) -> None:
        """Bring these records of one subscriber up to date, as far as they are owed a change."""
        subscriber = self.context.subscribers.get(name)
        if subscriber is None:
            logger.info("%s is not configured here; what it is owed stays in the ledger", name)
            return
        waiting = list(dict.fromkeys(record_ids))
        began = time.monotonic()
        while waiting:
            if self.context.stopping.is_set() or time.monotonic() - began > MESSAGE_BUDGET_SECONDS:
                self.context.publisher.records(name, waiting)
                return
            slot = self.concurrency.slot(subscriber.system)
            count = self._chunk_size(subscriber, len(waiting), slot)
            chunk, rest = waiting[:count], waiting[count:]
            with self._budget.taken(len(chunk)) as yielded:
                waiting = self._deliver_chunk(subscriber, chunk, rest, _Turn(slot, yielded))

    def _chunk_size(self, subscriber: Subscriber, waiting: int, slot: Slot) -> int:
        size = subscriber.batch_size(waiting)
        if size > 1:
            return size
        seconds = self.sender.seconds_per_record(subscriber)
        fit = FIRST_CHUNK if seconds is None else int(CHUNK_SECONDS / max(seconds, 1e-6))
        count = min(max(fit, SMALLEST_CHUNK), LARGEST_CHUNK)
        if slot.is_limited and not slot.is_sought:
            return -(-min(count, waiting) // 2)  # leave half to threads that are idle
        return count

    def _deliver_chunk(self, subscriber: Subscriber, chunk: list[str], rest: list[str], turn: _Turn) -> list[str]:
        """Deliver a chunk; return those of `rest` that are left to this process."""
        batch = self.loader.load(subscriber, chunk)
        if not batch.permit.allowed:
            logger.info("%s: %d records wait: %s", subscriber.name(), len(chunk) + len(rest), batch.permit.reason)
            return []
        is_single = subscriber.batch_size(len(chunk) + len(rest)) == 1
        is_probe = batch.permit.probing
        if is_probe and (is_single or batch.permit.alone):
            rest = _keep_one_probe(batch, chunk) + rest
        elif is_single and not is_probe:
            self._share(subscriber, rest)
            rest = []
        try:
            called = self._deliver_batch(subscriber, batch, turn)
        finally:
            turn.slot.release()
        if is_probe and not called:
            self.breaker.release_probe(subscriber.system)
        return rest

    def _look(
        self, subscriber: Subscriber, plans: list[Plan], batch: DeliveryBatch, seen: set[tuple[int, int, int]]
    ) -> LookResult | None:
        """See what the system holds of the records that are about to be overwritten; None if that is not needed.

        `seen`: the links, changes and attempts for which this was done before.
        """
        fresh = [plan for plan in plans if _attempt(plan.claim.link) not in seen]
        unseen = unseen_writes(subscriber, fresh, batch.mapper)
        if not any(unseen):
            return None
        seen |= {_attempt(link) for links in unseen for link in links}
        return self.looker.look(subscriber, *unseen, probing=batch.permit.probing)

    def _share(self, subscriber: Subscriber, rest: list[str]) -> None:
        """Publish the rest in two halves: with one call a record, idle workers call at the same time."""
        half = -(-len(rest) // 2)
        for part in filter(None, (rest[:half], rest[half:])):
            self.context.publisher.records(subscriber.name(), part)

    def _deliver_batch(self, subscriber: Subscriber, batch: DeliveryBatch, turn: _Turn) -> bool:
        """Deliver a batch, and again what changes meanwhile; return whether the system was called."""
        called, seen = False, set[tuple[int, int, int]]()
        for _ in range(_ROUNDS):
            if not batch.claims:
                return called
            again = batch.record_ids
            plans = [plan_delivery(subscriber, claim, batch) for claim in batch.claims]
            if (looked := self._look(subscriber, plans, batch, seen)) is not None:
                called, batch = True, self.loader.load(subscriber, again, probe=False)
                if not batch.permit.allowed or not batch.claims:
                    return called
                again = batch.record_ids
                plans = [plan_delivery(subscriber, claim, batch) for claim in batch.claims]
                end_unseen(plans, looked.errors, looked.waiting)
            try:
                is_outdated = any(plan.is_open for plan in plans) and turn.waited_long() and not batch.permit.probing
            except Stopping:
                break
            if not is_outdated:
                plans, again = self._claim(plans, batch.token)
                counted, at = self._hold_deletes(subscriber, plans), self.context.clock()
                with turn.yielded():
                    self.sender.send(subscriber, plans, batch)
                    turn.slot.release()  # the rest of the round calls no system
                self._refund_deletes(subscriber, counted, at)
                again = self._record(subscriber, plans, batch) + again
                called = called or any(plan.called for plan in plans)
            if not again:
                return called
            batch = self.loader.load(subscriber, again, probe=False)
            if not batch.permit.allowed:
                return called  # they stay owed, and are published when the system is back
        self.context.publisher.records(subscriber.name(), again)
        return called

    # --- claim --------------------------------------------------------------------------------------

    def _claim(self, plans: list[Plan], token: str) -> tuple[list[Plan], list[str]]:
        """Lease the links that are unchanged since they were read; return their plans, and the records of the others.

        The create token is on disk before the call, and so is what is about to be sent where nothing has to be
        inspected first.
        """
        ahead = {
            plan.claim.link.id
            for plan in plans
            if plan.is_open and plan.operation in CONFIRMED_OPERATIONS and not must_inspect(plan)
        }
        try:
            taken = self.context.database.execute_atomic(self._lease, plans, token, ahead)
        except sa.exc.OperationalError:
            raise
        except Exception:
            # What one of them is about to send cannot be stored; the sender finds out which.
            logger.warning("a batch could not be claimed with what is to be sent; claiming without", exc_info=True)
            ahead = set()
            taken = self.context.database.execute_atomic(self._lease, plans, token, ahead)
        ours = []
        for plan in plans:
            if (values := taken.get(plan.claim.link.id)) is not None:
                plan.claim.update_link(**values)
                plan.claim.written_ahead = plan.claim.link.id in ahead
                ours.append(plan)
        return ours, [plan.claim.record_id for plan in plans if plan.claim.link.id not in taken]

    def _lease(
        self, connection: sa.Connection, plans: list[Plan], token: str, ahead: set[int]
    ) -> dict[int, dict[str, Any]]:
        until = self.context.later(self.context.policy.lease_seconds)
        rows = []
        for plan in plans:
            link = plan.claim.link
            unconfirmed_write = plan.ours if link.id in ahead else link.unconfirmed_write
            rows.append(
                {
                    "id": link.id,
                    "lease_owner": token,
                    "lease_until": until,
                    "next_owed_since": None,
                    "create_token": link.create_token,
                    "unconfirmed_write": unconfirmed_write,
                }
            )
        taken = leases.take_unchanged(connection, rows, [plan.claim.version for plan in plans])
        return {row["id"]: row for row in rows if row["id"] in taken}

    # --- the delete guard ----------------------------------------------------------------------

    def _hold_deletes(self, subscriber: Subscriber, plans: list[Plan]) -> list[Plan]:
        """Postpone deletions that the guard does not allow; return those that it has counted and allows."""
        deletes = [plan for plan in plans if plan.is_open and plan.operation in ("delete", "archive")]
        fresh = [plan for plan in deletes if plan.claim.link.attempts == 0]  # a retry is no other deletion
        if not deletes or self.context.database.run_in_transaction(
            self.guard.reserve, subscriber.system, len(fresh), "to"
        ):
            return fresh
        for plan in deletes:
            plan.finish("waiting", HELD)
        return []

    def _refund_deletes(self, subscriber: Subscriber, counted: list[Plan], at: datetime) -> None:
        """Give back to the guard the deletions that were not tried: they are counted when they are."""
        untried = sum(plan.outcome == "waiting" or plan.is_down for plan in counted)
        if untried:
            self.context.database.run_in_transaction(self.guard.refund, subscriber.system, untried, at)

    # --- record -------------------------------------------------------------------------------------

    def _record(self, subscriber: Subscriber, plans: list[Plan], batch: DeliveryBatch) -> list[str]:
        """Record the outcomes and publish what follows; return the records that are owed another change."""
        plans, follow_up = self.results.record_plain(subscriber, plans, batch)
        if plans:
            follow_up = follow_up.and_then(self._record_others(subscriber, plans, batch))
        for name, record_id in follow_up.publish:
            self.context.publisher.records(name, [record_id])
        for external_id in follow_up.merge:
            self._merge(subscriber, external_id)
        return follow_up.again

    def _merge(self, subscriber: Subscriber, external_id: str) -> None:
        """Merge a record that was found; if that fails, the next delivery of the record tries it again."""
        try:
            self.merge(subscriber, external_id)
        except Exception as error:
            logger.warning("%s %s was found and could not be merged yet: %s", subscriber.name(), external_id, error)

    def _record_others(self, subscriber: Subscriber, plans: list[Plan], batch: DeliveryBatch) -> FollowUp:
        try:
            return self.context.database.run_in_transaction(self.results.record, subscriber, plans, batch)
        except sa.exc.OperationalError:
            raise
        except Exception:
            # One of them cannot be stored; that must not fail the others.
            logger.exception("%s: a batch could not be recorded; recording one by one", subscriber.name())
        follow_up = FollowUp()
        for plan in plans:
            follow_up = follow_up.and_then(self._record_one(subscriber, plan, batch))
        return follow_up

    def _record_one(self, subscriber: Subscriber, plan: Plan, batch: DeliveryBatch) -> FollowUp:
        try:
            return self.context.database.run_in_transaction(self.results.record, subscriber, [plan], batch)
        except sa.exc.OperationalError:
            raise
        except Exception as error:
            unwritten = Reject(f"the outcome cannot be stored: {type(error).__name__}", code="unstorable")
            # A create that succeeded must be found before it is tried again, or there would be two records.
            unwritten.maybe_done = plan.error is None or plan.error.maybe_done
            plan.external, plan.flat, plan.item, plan.reason, plan.outcome = None, {}, None, None, None
            plan.fail(unwritten)
            return self.context.database.run_in_transaction(self.results.record, subscriber, [plan], batch)


def _attempt(link: LinkRow) -> tuple[int, int, int]:
    return link.id, link.owed_change, link.attempts


def _keep_one_probe(batch: DeliveryBatch, chunk: list[str]) -> list[str]:
    """Reduce a batch to the record that probes whether the system is back; return the others.

    It is the first that the message names, which is another one each time.
    """
    place = {record_id: number for number, record_id in enumerate(chunk)}
    batch.claims.sort(key=lambda claim: place[claim.record_id])
    others = [claim.record_id for claim in batch.claims[1:]]
    batch.claims = batch.claims[:1]
    return others
