"""Sending: inspect what is unconfirmed, write ahead what is about to be sent, and call the system.

What is about to be sent is on disk before the call. If this process dies during the call, the next delivery inspects
what the system holds before it sends again (`conductor.links.in_doubt`).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

import sqlalchemy as sa

from conductor.context import UNKNOWN_TIME, Context
from conductor.links import in_doubt, leases, overwrites, state
from conductor.outward import duplicates, finding, responses
from conductor.outward.batch_sizes import BatchSizes, Call
from conductor.outward.planning import (
    RECONCILABLE_COLUMNS,
    DeliveryBatch,
    Plan,
    apply_unsubscriptions,
    changed,
    differing_fields,
)
from conductor.systems.concurrency import ConcurrencyLimiter
from conductor.systems.outages import OutageDetector, OutageWatch, as_down
from subscribers.base import Subscriber, normalize_incoming
from subscribers.calls import call_safely, renewed_by
from subscribers.errors import Reject, Retry, SyncError, SystemDown, Unidentified
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.paths import nest
from subscribers.mapping.values import same
from subscribers.records import External, Item

logger = logging.getLogger(__name__)

#: Operations whose unknown outcome matters later: it is found out before the next write.
CONFIRMED_OPERATIONS = ("create", "update")

#: The part of a lease's time that a call may take: the rest is for its outcome's way into the ledger.
_SHARE_FOR_CALL = 0.9


def must_inspect(plan: Plan) -> bool:
    """Return whether the system has to be asked what it holds before this is sent."""
    claim = plan.claim
    if claim.written_ahead:
        return False
    if not claim.link.is_linked:
        return not claim.fresh_create_token
    is_doubted = plan.operation == "update" and (claim.link.unconfirmed_write is not None or bool(plan.sibling_fields))
    return is_doubted or bool(plan.nested)


class Sender:
    """Sends the plans of a batch; every failure becomes the outcome of its record."""

    def __init__(self, context: Context, concurrency: ConcurrencyLimiter, outages: OutageDetector) -> None:
        self.context = context
        self.concurrency = concurrency
        self.outages = outages
        #: Subscriber -> how long its last call took, a record.
        self._seconds: dict[str, float] = {}
        self._sizes = BatchSizes()

    def seconds_per_record(self, subscriber: Subscriber) -> float | None:
        """Return how long the last call of this subscriber took a record; None before the first one."""
        return self._seconds.get(subscriber.name())

    def send(self, subscriber: Subscriber, plans: list[Plan], batch: DeliveryBatch) -> None:
        """Send what has no outcome yet."""
        watch = self.outages.watch(subscriber, is_failing=batch.permit.failing)
        if not self._inspect_batch(subscriber, plans, batch, watch):
            return
        self._write_ahead(
            [p for p in plans if p.is_open and p.operation in CONFIRMED_OPERATIONS and not p.claim.written_ahead],
            batch.token,
        )
        calls = deque(_calls(subscriber, plans, self._sizes.limit(subscriber)))
        while calls:
            call = calls.popleft()
            if not self._renew_leases(call.plans, batch.token):
                _mark_lease_lost(call.plans)
                continue
            if subscriber.bulk_size > 1:
                subscriber.client.pace()
            began = time.perf_counter()
            with self._under_lease(call.plans, batch.token):
                outcomes = call_safely(call.method, call.items)
            seconds = time.perf_counter() - began
            self._seconds[subscriber.name()] = seconds / len(call.plans)
            responses.take_outcomes(subscriber, call.plans, outcomes, seconds * 1000)
            calls.extendleft(reversed(self._sizes.smaller(subscriber, call)))
            with self._under_lease(call.plans, batch.token):
                responses.verify_gone(subscriber, call.plans)
            self._complete_answers(subscriber, call.plans, batch)
            if self._is_outage(plans, call.plans, watch, batch):
                return

    def _complete_answers(self, subscriber: Subscriber, plans: list[Plan], batch: DeliveryBatch) -> None:
        """Find records that the system has made or had already, and read what a response does not show."""
        for plan in plans:
            if isinstance(plan.error, Unidentified) and self._renew_leases([plan], batch.token):
                with self._under_lease([plan], batch.token):
                    responses.identify_created(subscriber, plan)
            elif duplicates.is_duplicate(plan) and self._renew_leases([plan], batch.token):
                with self._under_lease([plan], batch.token):
                    self._resolve_duplicate(subscriber, plan)
        if (mapper := batch.mapper) is None:
            return
        unread = [plan for plan in plans if responses.needs_read_back(subscriber, plan, mapper)]
        if unread and self._renew_leases(unread, batch.token):
            if subscriber.bulk_size > 1:
                subscriber.client.pace()
            with self._under_lease(unread, batch.token):
                responses.read_back(subscriber, unread, mapper)

    def _resolve_duplicate(self, subscriber: Subscriber, plan: Plan) -> None:
        duplicates.look_up(subscriber, plan)
        if plan.operation == "update" and self.context.database.run_in_transaction(
            duplicates.is_exchange, subscriber, plan
        ):
            duplicates.free(subscriber, plan)

    def _is_outage(
        self, plans: list[Plan], called: list[Plan], watch: OutageWatch, batch: DeliveryBatch, *, reads: bool = False
    ) -> bool:
        """Return whether the outcomes of a call mean that the system is down; then the other plans wait as well."""
        if any(plan.error is not None and plan.error.may_be_outage for plan in called):
            self._renew_leases(plans, batch.token)  # a call that hangs takes long, and another one may follow
        why = watch.judge([(plan.claim.record_id, plan.error) for plan in called], reads=reads)
        batch.is_answered = watch.answers
        down = next((plan.error for plan in called if plan.is_down), None)
        if why is None and down is None:
            return False
        for plan in plans:
            if plan.error is not None and plan.error.may_be_outage and plan.claim.record_id in watch.failed:
                plan.error = as_down(plan.error, why or str(down))
        _fail_remaining(plans, next(plan.error for plan in called if plan.error is not None and plan.is_down))
        return True

    def _under_lease(self, plans: list[Plan], token: str) -> AbstractContextManager[None]:
        """Return a block whose calls end before the leases of these plans do."""

        def left() -> float:
            if not self._renew_leases(plans, token):
                raise Retry("the lease ran out before the call", maybe_done=True)
            until = min(plan.claim.link.lease_until or self.context.clock() for plan in plans)
            return (until - self.context.clock()).total_seconds() * _SHARE_FOR_CALL

        return renewed_by(lambda: self._renew_leases(plans, token), left)

    def _renew_leases(self, plans: list[Plan], token: str) -> bool:
        """Renew the leases once a third of their time is over; return False if another process took one over."""
        if not any(self._is_short(plan) for plan in plans):
            return True
        self.concurrency.renew()
        ids = [plan.claim.link.id for plan in plans]
        renewed = self.context.later(self.context.policy.lease_seconds)
        is_ours = self.context.database.run_in_transaction(leases.renew, ids, token, renewed)
        for plan in plans:
            plan.claim.update_link(lease_until=renewed)
        return is_ours

    def _is_short(self, plan: Plan) -> bool:
        until = plan.claim.link.lease_until
        return until is None or until <= self.context.later(self.context.policy.lease_seconds * 2 / 3)

    # --- inspect ------------------------------------------------------------------------------------

    def _inspect_batch(
        self, subscriber: Subscriber, plans: list[Plan], batch: DeliveryBatch, watch: OutageWatch
    ) -> bool:
        """Inspect the records for which that is necessary; return False if nothing may be sent."""
        for plan in plans:
            if plan.is_open and plan.operation != "none" and batch.mapper is not None and must_inspect(plan):
                is_short = self._is_short(plan)
                if is_short and not self._renew_leases([p for p in plans if p.is_open], batch.token):
                    _mark_lease_lost(plans)
                    return False
                with self._under_lease([plan], batch.token):
                    self._inspect(subscriber, plan, batch.mapper)
                if plan.called and self._is_outage(plans, [plan], watch, batch, reads=True):
                    return False
                if plan.claim.found:
                    apply_unsubscriptions(plan, batch.rules)  # it was planned as a create
        return True

    def _inspect(self, subscriber: Subscriber, plan: Plan, mapper: Mapper) -> None:
        """Find out what the system holds, as far as this write depends on it."""
        if not plan.claim.link.is_linked:
            _find_unconfirmed_create(subscriber, plan, mapper)
        if plan.is_open and plan.operation == "update" and plan.claim.link.unconfirmed_write is not None:
            _verify_unconfirmed_update(subscriber, plan, mapper)
        if plan.is_open and plan.operation == "update":
            _keep_sibling_edits(subscriber, plan, mapper)
        if plan.is_open and plan.nested:
            _keep_unmapped_parts(subscriber, plan)

    # --- write ahead --------------------------------------------------------------------------------

    def _write_ahead(self, plans: list[Plan], token: str) -> None:
        """Store what is about to be sent, with what was inspected: an unconfirmed write is compared with that."""
        if not plans:
            return
        try:
            self.context.database.run_in_transaction(_store_unconfirmed, plans, token)
            return
        except sa.exc.OperationalError:
            raise
        except Exception:
            # One of them cannot be stored (an id that is taken, a number no column holds): only that one fails.
            logger.warning("the links of a batch could not be stored; storing one by one", exc_info=True)
        for plan in plans:
            self._write_ahead_one(plan, token)

    def _write_ahead_one(self, plan: Plan, token: str) -> None:
        try:
            self.context.database.run_in_transaction(_store_unconfirmed, [plan], token)
        except sa.exc.IntegrityError:
            found = plan.claim.link.external_id
            plan.claim.update_link(external_id=None)
            plan.claim.written_ahead = False
            plan.fail(
                Reject(f"{found} was found for it, which is linked to another record already", code="ambiguous_match")
            )
        except sa.exc.OperationalError:
            raise
        except Exception as error:
            plan.claim.written_ahead, plan.flat, plan.item = False, {}, None
            plan.fail(Reject(f"the data to send cannot be stored: {type(error).__name__}", code="unstorable"))


def _store_unconfirmed(connection: sa.Connection, plans: list[Plan], token: str) -> None:
    rows = []
    for plan in plans:
        plan.claim.update_link(unconfirmed_write=plan.ours)
        plan.claim.written_ahead = True
        known = {name: getattr(plan.claim.link, name) for name in RECONCILABLE_COLUMNS}
        rows.append({"id": plan.claim.link.id, "lease_owner": token, **known})
    found = {str(plan.claim.link.external_id): plan.claim.link.id for plan in plans if plan.claim.found}
    state.take_ids(connection, plans[0].claim.link.subscriber, found)
    # A relay may write the same links at this moment, in another order; the loser of that race starts again.
    leases.write_leased(connection, rows)


# --- calls ----------------------------------------------------------------------------------------------


def _calls(subscriber: Subscriber, plans: list[Plan], most: int | None) -> Iterator[Call]:
    """Yield the calls that the open plans need, of `most` records each.

    Those that release unique values come first, then those that take them.
    """
    for operation, method in (
        ("delete", subscriber.bulk_delete),
        ("archive", subscriber.bulk_update),
        ("update", subscriber.bulk_update),
        ("create", subscriber.bulk_create),
    ):
        chosen = [plan for plan in plans if plan.is_open and plan.operation == operation]
        if operation == "update":
            chosen = duplicates.freeing_first(subscriber, chosen)
        size = max(subscriber.batch_size(len(chosen)), 1)
        yield from Call(cast("Callable[[list[Item]], list[Any]]", method), chosen).parts(min(size, most or size))


def _mark_lease_lost(plans: list[Plan]) -> None:
    for plan in plans:
        if plan.is_open:
            plan.finish("waiting", "the lease ran out before the call")


def _fail_remaining(plans: list[Plan], down: SyncError) -> None:
    """Fail the rest of the batch without calls: the system is down for all of it."""
    for plan in plans:
        if plan.is_open:
            plan.fail(SystemDown(str(down), after=down.after))


# --- inspect one record ---------------------------------------------------------------------------------


def _fetch(subscriber: Subscriber, plan: Plan, item: Item) -> External | None:
    """Return what the system holds of a linked record, or fail the plan."""
    plan.called = True
    subscriber.client.pace()
    seen = call_safely(subscriber.fetch, item.linked_id)
    found = seen
    if not isinstance(seen, SyncError):
        found = call_safely(lambda: normalize_incoming(subscriber, seen, complete=True))
    if isinstance(found, SyncError):
        plan.fail(found)
        return None
    plan.claim.seen = seen
    return cast("External", found)


def _find_unconfirmed_create(subscriber: Subscriber, plan: Plan, mapper: Mapper) -> None:
    """Find the record of an earlier create whose outcome is unknown, so that it is not created twice."""
    assert plan.item is not None
    plan.called = True
    subscriber.client.pace()
    found = call_safely(finding.find, subscriber, plan)
    if isinstance(found, SyncError):
        plan.fail(found)
        return
    if found is None and plan.claim.link.created_without_id:
        found = responses.find_created(subscriber, plan)
        if isinstance(found, SyncError):
            plan.fail(found)
            return
    if found is None:
        if plan.operation == "delete":
            plan.finish("unchanged", "the record is deleted, and the system does not have it")
        return
    plan.claim.found = True
    # With what was sent as the base, an edit made there shows when its event arrives; only ours is sent now.
    base = in_doubt.created(plan.claim.link.unconfirmed_write, mapper.flatten(found.data))
    plan.claim.update_link(
        external_id=found.id,
        unlinked_at=None,
        base=base,
        remote_values=None,
        remote_version=None,
        unconfirmed_write=None,
        last_write_at=found.at or UNKNOWN_TIME,
    )
    plan.item = replace(plan.item, external_id=found.id, version=found.version)
    if plan.operation == "delete":
        return
    plan.operation = "update"
    plan.differing = differing_fields(plan.flat, base, {})
    plan.item = replace(plan.item, changes=changed(plan.item.data, plan.flat, plan.differing))
    if not plan.differing:
        plan.operation, plan.external = "match", found
        plan.finish("delivered", "an earlier attempt had created it")


def _verify_unconfirmed_update(subscriber: Subscriber, plan: Plan, mapper: Mapper) -> None:
    """Find out whether an earlier update arrived.

    If it did, a user may have edited the record there since, and sending it again would undo that edit.
    """
    claim, item = plan.claim, plan.item
    assert item is not None
    if (found := _fetch(subscriber, plan, item)) is None:
        return
    link = claim.link
    base, remote_values = in_doubt.rebase_unconfirmed(
        link.unconfirmed_write, mapper.flatten(found.data), link.base or {}, link.remote_values or {}
    )
    claim.update_link(
        base=base,
        remote_values=remote_values or None,
        write_windows=overwrites.ended(link.write_windows, found.at),
        remote_version=None,
        # The write was before this: an event that arrives later may be from before the write.
        last_write_at=found.at or UNKNOWN_TIME,
    )
    plan.differing = differing_fields(plan.flat, base, claim.conflicted)
    plan.item = replace(item, changes=changed(item.data, plan.flat, plan.differing), version=found.version)
    if not plan.differing:
        plan.operation = "match"
        plan.finish("delivered", "an earlier attempt had arrived")


def _keep_sibling_edits(subscriber: Subscriber, plan: Plan, mapper: Mapper) -> None:
    """Send edits made there to sibling fields back as they are.

    Nested objects are written whole. An edit whose event has not arrived yet would be lost once it is overwritten.
    """
    claim, item, siblings = plan.claim, plan.item, plan.sibling_fields
    assert item is not None
    if not siblings or not subscriber.can_fetch or (found := _fetch(subscriber, plan, item)) is None:
        return
    link, theirs = claim.link, mapper.flatten(found.data)
    base, remote_values = link.base or {}, link.remote_values or {}
    present = {path: theirs[path] for path in sorted(siblings) if path in theirs}
    if found.at is not None:
        windows = overwrites.begun(link.write_windows, found.at, link.last_write_at, present)
        claim.update_link(write_windows=windows)
    claim.remote_sibling_edits = {
        path: value for path, value in present.items() if not same(value, remote_values.get(path, base[path]))
    }
    if claim.remote_sibling_edits:
        plan.flat = {**plan.flat, **claim.remote_sibling_edits}
        data = nest(claim.remote_sibling_edits, onto=deepcopy(item.data))
        plan.item = replace(item, data=data, changes={top: data[top] for top in item.changes})


def _keep_unmapped_parts(subscriber: Subscriber, plan: Plan) -> None:
    """Merge the nested objects to send onto those that the system holds: what is not mapped in them stays as it is."""
    item = plan.item
    assert item is not None
    if plan.claim.seen is None and _fetch(subscriber, plan, item) is None:
        return
    assert plan.claim.seen is not None
    theirs = plan.claim.seen.data
    merged = subscriber.merge(theirs, {top: item.changes[top] for top in plan.nested})
    plan.item = replace(
        item,
        data={**item.data, **merged},
        changes={**item.changes, **merged},
        present=theirs,
        version=item.version or plan.claim.seen.version,
    )
