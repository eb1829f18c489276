"""Results: record the outcome of a batch of deliveries: link, delivery and dead letter, in one transaction."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.dead_letters.store import DeadLetterStore
from conductor.internal.deletions import remove_here
from conductor.links import lost, state
from conductor.links.conflicts import close_conflicts
from conductor.links.relations import Relations, Verdict, WaitsFor
from conductor.links.row import LinkRow
from conductor.links.rules import lock_rules
from conductor.outward.duplicates import Duplicates, is_duplicate
from conductor.outward.outcomes import (
    delivery_row,
    earlier_create_token,
    failed_values,
    is_owed_again,
    is_plain,
    is_sent_again,
    settled_values,
    unless_newer,
)
from conductor.outward.planning import DeliveryBatch, Plan
from conductor.systems.circuit_breaker import CircuitBreaker
from conductor.systems.delete_guard import HELD, DeleteGuard
from models.bulk import in_values, insert_many
from models.history import newest_delivery
from models.ledger import Delivery, Link, System
from subscribers.base import Subscriber
from subscribers.errors import Gone, SyncError
from subscribers.mapping.mapper import Mapper

logger = logging.getLogger(__name__)

_DELIVERY: Any = Delivery.__table__


@dataclass
class FollowUp:
    """What follows from a recorded batch: records to deliver again immediately, and links to publish."""

    again: list[str] = field(default_factory=list)
    publish: list[tuple[str, str]] = field(default_factory=list)
    #: External ids of records that were found, and are merged first.
    merge: list[str] = field(default_factory=list)

    def and_then(self, other: FollowUp) -> FollowUp:
        """Return this and what follows from more records."""
        return FollowUp(self.again + other.again, self.publish + other.publish, self.merge + other.merge)


class ResultWriter:
    """Decides what each outcome means for its link, and records it."""

    def __init__(
        self,
        context: Context,
        breaker: CircuitBreaker,
        letters: DeadLetterStore,
        relations: Relations,
        guard: DeleteGuard,
    ) -> None:
        self.context = context
        self.guard = guard
        self.breaker = breaker
        self.letters = letters
        self.relations = relations
        self.duplicates = Duplicates(context)

    def record_plain(
        self, subscriber: Subscriber, plans: list[Plan], batch: DeliveryBatch
    ) -> tuple[list[Plan], FollowUp]:
        """Record plain outcomes of links that are owed nothing new; return the other plans, for `record`.

        Nearly all outcomes are plain, and need not be locked and read again first.
        """
        alike = self._plain_rows(subscriber, plans, batch)
        written = set[int]()
        for pairs in alike.values():
            links, deliveries = [link for link, _ in pairs], [delivery for _, delivery in pairs]
            try:
                written |= self.context.database.execute_atomic(state.write_settled, links, batch.token, deliveries)
            except sa.exc.OperationalError:
                raise
            except Exception:
                logger.debug(
                    "%s: a batch could not be stored; storing each row separately", subscriber.name(), exc_info=True
                )
        ended = [plan for plan in plans if plan.claim.link.id in written]
        to_note = not batch.permit.noted or self.breaker.has_new_rate(subscriber.system)
        if to_note and any(plan.was_answered for plan in ended):
            self.context.database.run_in_transaction(self.breaker.succeeded, subscriber.system)
        follow_up = FollowUp()
        if ended and self.relations.are_waited_for(subscriber):
            follow_up.publish = self.context.database.run_in_transaction(self._wake, subscriber, ended)
        return [plan for plan in plans if plan.claim.link.id not in written], follow_up

    def _plain_rows(
        self, subscriber: Subscriber, plans: list[Plan], batch: DeliveryBatch
    ) -> dict[tuple[str, ...], list[tuple[state.Values, state.Values]]]:
        """Return the rows (link, delivery) of plain outcomes, by the columns of the link that they write."""
        now = self.context.clock()
        alike: defaultdict[tuple[str, ...], list[tuple[state.Values, state.Values]]] = defaultdict(list)
        for plan in plans:
            if not is_plain(plan):
                continue
            try:
                link = state.freed(plan.claim.link.id, settled_values(plan, batch.mapper, None, now))
                alike[tuple(link)].append((link, delivery_row(subscriber, plan, now)))
            except Exception:
                logger.debug("%s: `record` reports what is wrong with %s", subscriber.name(), plan.claim.record_id)
        return alike

    def record(
        self, connection: sa.Connection, subscriber: Subscriber, plans: list[Plan], batch: DeliveryBatch
    ) -> FollowUp:
        """Record the outcomes of a batch and give its leases back."""
        now, follow_up = self.context.clock(), FollowUp()
        # Copies: a transaction that loses a race starts again with the plans as they were.
        plans = [replace(plan) for plan in plans]
        self._note_health(connection, subscriber, plans, batch)
        _find_merged(connection, subscriber, plans)
        self._hold_gone(connection, subscriber, plans)
        _ignore_lifted_rules(connection, plans)
        owed = _lock(connection, plans, batch.token)
        state.take_ids(connection, subscriber.name(), _new_ids(plans))
        rows: defaultdict[tuple[str, ...], list[state.Values]] = defaultdict(list)
        for plan in plans:
            link = plan.claim.link
            if link.id not in owed:
                _finish_too_late(plan)
                continue
            (plan.owed_now, plan.owed_since), is_blocked = owed[link.id], isinstance(plan.error, WaitsFor)
            row = state.freed(link.id, self._link_values(connection, subscriber, plan, batch.mapper, follow_up))
            if is_blocked:  # the check for a cycle reads what the links before it wait for, and may change that
                state.write_many(connection, [row])
            else:
                rows[tuple(row)].append(row)
            if plan.to_merge is not None:
                follow_up.merge.append(plan.to_merge)
            if is_owed_again(plan) or plan.lifted or (plan.outcome == "failed" and is_sent_again(plan)):
                follow_up.again.append(plan.claim.record_id)
        for alike in rows.values():
            state.write_many(connection, alike)
        deliveries = [delivery_row(subscriber, plan, now) for plan in _reported(plans)]
        insert_many(connection, _DELIVERY, deliveries)
        follow_up.publish += self._wake(connection, subscriber, plans)
        return follow_up

    def _note_health(
        self, connection: sa.Connection, subscriber: Subscriber, plans: list[Plan], batch: DeliveryBatch
    ) -> None:
        down = next((p.error for p in plans if p.error is not None and p.is_down), None)
        if down is not None:
            self.breaker.went_down(connection, subscriber.system, down)
        elif batch.is_answered or any(p.was_answered for p in plans):
            self.breaker.succeeded(connection, subscriber.system)

    def _hold_gone(self, connection: sa.Connection, subscriber: Subscriber, plans: list[Plan]) -> None:
        """Have records that turned out to be gone wait with their links if there are too many of them.

        A deletion of ours counted before it was sent.
        """
        gone = [plan for plan in plans if plan.operation == "update" and plan.error is not None and plan.error.unlinks]
        if not self.guard.reserve(connection, subscriber.system, len(gone), "from"):
            for plan in gone:
                plan.is_held = True

    def _wake(self, connection: sa.Connection, subscriber: Subscriber, plans: list[Plan]) -> list[tuple[str, str]]:
        delivered = [p.claim.link.id for p in plans if p.outcome in ("delivered", "unchanged")]
        ended = [p.claim.link.id for p in plans if p.outcome in ("dead", "skipped")]
        return self.relations.wake(connection, subscriber, delivered, ended)

    # --- one link -----------------------------------------------------------------------------------

    def _link_values(
        self,
        connection: sa.Connection,
        subscriber: Subscriber,
        plan: Plan,
        mapper: Mapper | None,
        follow_up: FollowUp,
    ) -> state.Values:
        unsubscription = plan.rule.id if plan.rule else None
        if isinstance(plan.error, WaitsFor):
            verdict = self.relations.judge(connection, subscriber, plan.claim.link, plan.error)
            if verdict.publish is not None:
                follow_up.publish.append(verdict.publish)
            if verdict.error is not None:
                plan.error = verdict.error
                values = self._failed(connection, subscriber, plan, verdict.error)
                return (values or {}) | {"blocked_by": verdict.parent}
            if not verdict.skip:
                return self._blocked(plan, verdict)
            plan.error = None
            plan.finish("skipped", verdict.skip)
            unsubscription = verdict.unsubscription_id
        if is_duplicate(plan):
            decision = self.duplicates.judge(connection, subscriber, plan)
            if decision.publish is not None:
                follow_up.publish.append(decision.publish)
            if decision.values is not None:
                return decision.values
            plan.error = decision.error or plan.error
        if plan.error is not None:
            values = self._failed(connection, subscriber, plan, plan.error)
            if values is not None:
                return values
        if plan.outcome == "waiting":
            later = {"retry_at": self.context.later(self.context.policy.stale_seconds)} if plan.to_merge else {}
            return {"create_token": earlier_create_token(plan), **later}
        return self._settled(connection, plan, mapper, unsubscription)

    def _blocked(self, plan: Plan, verdict: Verdict) -> state.Values:
        """Return the values of a link that waits for another one.

        The other one wakes it; the time is only a safety net. Without `parent` the other one was delivered meanwhile
        and wakes no more: then it is published, and no time may delay it. Nor one that goes first.
        """
        plan.finish("waiting", verdict.reason or str(plan.error))
        is_woken = verdict.parent not in (None, plan.claim.link.id)
        retry_at = self.context.later(self.context.policy.stale_seconds) if is_woken else None
        return state.blocked(verdict.parent, unless_newer(plan, retry_at)) | {
            "create_token": earlier_create_token(plan)
        }

    def _settled(
        self, connection: sa.Connection, plan: Plan, mapper: Mapper | None, unsubscription: int | None
    ) -> state.Values:
        link, now = plan.claim.link, self.context.clock()
        owes_references = plan.lacks_references and plan.outcome != "skipped"
        if owes_references:
            plan.owed_now, plan.owed_since = plan.owed_now + 1, link.owed_since
        values = settled_values(plan, mapper, unsubscription, now)
        if owes_references:
            values["owed_change"] = plan.owed_now
        if plan.claim.record is None:
            values |= close_conflicts(connection, link, "gone", now)
        elif values.get("open_conflicts", link.open_conflicts) != link.open_conflicts:
            close_conflicts(connection, link, "agreed", now, but=plan.claim.conflicted)
        self._close_letter(connection, plan)
        return values

    def _close_letter(self, connection: sa.Connection, plan: Plan) -> None:
        if (letter := plan.claim.link.dead_letter_id) is not None:
            resolution = f"{plan.outcome}: {plan.reason}" if plan.outcome == "skipped" else str(plan.outcome)
            self.letters.close(connection, [letter], resolution)

    # --- failures -----------------------------------------------------------------------------------

    def _failed(
        self, connection: sa.Connection, subscriber: Subscriber, plan: Plan, error: SyncError
    ) -> state.Values | None:
        """Return the values after a failure; None if it was no failure, and the link is settled."""
        if error.skips:
            plan.finish("skipped", str(error))
            return None
        if error.unlinks and plan.operation != "create" and not plan.is_held:
            return self._gone(connection, subscriber, plan)
        known = failed_values(plan, error)
        if error.pauses_system or plan.is_held:
            plan.finish("waiting", HELD if plan.is_held else str(error))
            return known
        policy = self.context.policy
        attempts = plan.claim.link.attempts + 1
        if attempts >= policy.max_attempts and self._may_be_the_network(connection, subscriber, plan.claim.link, error):
            attempts = policy.max_attempts - 1
        if not error.is_terminal and attempts < policy.max_attempts:
            plan.finish("failed", str(error))
            if is_sent_again(plan):
                return known | state.postponed(attempts, None)
            pause = policy.backoff(attempts, error.after)
            return known | state.postponed(attempts, unless_newer(plan, self.context.later(pause)))
        return known | self._buried(connection, subscriber, plan, error, attempts)

    def _buried(
        self, connection: sa.Connection, subscriber: Subscriber, plan: Plan, error: SyncError, attempts: int
    ) -> state.Values:
        plan.finish("dead", str(error))
        letter = self.letters.write(
            connection,
            subscriber.name(),
            error,
            record_id=plan.claim.record_id,
            link_id=plan.claim.link.id,
            payload=plan.flat,
            letter_id=plan.claim.link.dead_letter_id,
        )
        return state.buried(attempts, unless_newer(plan, self.context.clock()), letter)

    def _may_be_the_network(
        self, connection: sa.Connection, subscriber: Subscriber, link: LinkRow, error: SyncError
    ) -> bool:
        """Return whether no call to the system was answered since this record was tried before."""
        if not error.unanswered:
            return False
        system = sa.select(System.last_success_at).where(System.name == subscriber.system)
        answered = connection.execute(system).scalar()
        before = newest_delivery(connection, link.record_id, link.subscriber, "failed")
        return answered is None or (before is not None and answered < before.at)

    def _gone(self, connection: sa.Connection, subscriber: Subscriber, plan: Plan) -> state.Values | None:
        """Do what `on_gone` says about a record that the system no longer has."""
        lost.remember(connection, subscriber.system, plan.claim.link, self.context.clock())
        if plan.operation == "delete":
            plan.finish("delivered", "it was gone already")
            return None
        policy = subscriber.on_gone
        # An edit that the system has not received outlives the deletion, as it does when an event reports it.
        if policy in ("recreate", "delete"):
            plan.finish("failed", f"it was deleted in {subscriber.system}; creating it again")
            plan.owed_now += 1
            return state.recreated() | {"owed_change": plan.owed_now}
        remove_here(connection, subscriber, plan.claim.record_id)
        plan.finish("skipped", f"it was deleted in {subscriber.system}; on_gone = {policy}")
        self._close_letter(connection, plan)
        link, now = plan.claim.link, self.context.clock()
        ended = state.unlinked(now, deleted_remotely=True, keep_base=True)
        values = state.settled(link, plan.owed_since) | ended
        return values | close_conflicts(connection, link, "gone", now)


def _new_ids(plans: list[Plan]) -> dict[str, int]:
    """Return the external ids that links did not have before, each with its link."""
    created = [plan for plan in plans if plan.operation in ("create", "match")]
    return {plan.external.id: plan.claim.link.id for plan in created if plan.external is not None}


def _find_merged(connection: sa.Connection, subscriber: Subscriber, plans: list[Plan]) -> None:
    """Take a record as gone whose update reached the record of another link: it was merged into that one."""
    moved = {
        plan.external.id: plan
        for plan in plans
        if plan.operation == "update" and plan.external is not None and plan.external.id != plan.claim.link.external_id
    }
    if not moved:
        return
    others = (Link.subscriber == subscriber.name(), in_values(connection, Link.external_id, list(moved)))
    for external_id in map(str, connection.execute(sa.select(Link.external_id).where(*others)).scalars()):
        plan = moved[external_id]
        plan.outcome, plan.external = None, None
        plan.fail(Gone(f"it was merged there into {external_id}", merged_into=external_id))


def _lock(connection: sa.Connection, plans: list[Plan], token: str) -> dict[int, tuple[int, datetime | None]]:
    """Lock the links that are still ours until the commit; return what each is owed now, and since when beyond us."""
    if not plans:
        return {}
    ids = [plan.claim.link.id for plan in plans]
    columns = (Link.id, Link.owed_change, Link.next_owed_since)
    ours = sa.select(*columns).where(in_values(connection, Link.id, ids), Link.lease_owner == token)
    # In one order in every process, so that relays and workers do not deadlock.
    rows = connection.execute(ours.order_by(Link.record_id).with_for_update())
    return {row.id: (row.owed_change, row.next_owed_since) for row in rows}


def _ignore_lifted_rules(connection: sa.Connection, plans: list[Plan]) -> None:
    """Do not skip by an unsubscription that was lifted meanwhile: lifting it did not find these links."""
    existing = lock_rules(connection, {plan.rule.id for plan in plans if plan.rule is not None})
    for plan in plans:
        if plan.rule is not None and plan.rule.id not in existing:
            plan.rule, plan.lifted = None, True
            plan.finish("waiting", "the unsubscription was lifted meanwhile")


def _finish_too_late(plan: Plan) -> None:
    """End a plan whose lease another process has: what follows, such as a dead letter, is recorded there."""
    if plan.outcome is None:
        plan.finish("waiting" if plan.duration is None else "failed", f"the lease was lost: {plan.error}")


def _reported(plans: list[Plan]) -> Iterator[Plan]:
    """Yield the plans that get a row in the history: of all that wait for their system, one."""
    is_down_reported = False
    for plan in plans:
        if plan.outcome == "waiting":
            if is_down_reported or plan.error is None:
                continue
            is_down_reported = not isinstance(plan.error, WaitsFor)
        yield plan
