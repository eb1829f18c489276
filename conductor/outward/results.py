"""Writing down how a batch of deliveries went: link, delivery and dead letter, in one transaction."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.context import UNKNOWN_TIME, Context
from conductor.dead_letters.store import DeadLetterStore
from conductor.links import overwrites, state
from conductor.links.conflicts import close_conflicts
from conductor.links.deletions import remove_here
from conductor.links.relations import Relations, WaitsFor
from conductor.links.rules import lock_rules
from conductor.outward.planning import RECONCILABLE_COLUMNS, Batch, Plan
from conductor.redaction import redact, reply_text, secrets_in
from conductor.systems.circuit_breaker import CircuitBreaker
from models.bulk import in_values, insert_many
from models.history import newest_delivery
from models.ledger import Delivery, Link, System
from subscribers.base import Subscriber
from subscribers.errors import Gone, Retry, Skip, SyncError, SystemDown
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.values import same

logger = logging.getLogger(__name__)

_DELIVERY: Any = Delivery.__table__


@dataclass
class FollowUp:
    """What follows from a settled batch: records to take up again at once, links to announce."""

    again: list[str] = field(default_factory=list)
    announce: list[tuple[str, str]] = field(default_factory=list)

    def and_then(self, other: FollowUp) -> FollowUp:
        """This and what follows from more records."""
        return FollowUp(self.again + other.again, self.announce + other.announce)


class ResultWriter:
    """Decides what each outcome means for the link."""

    def __init__(
        self, context: Context, health: CircuitBreaker, letters: DeadLetterStore, relations: Relations
    ) -> None:
        self.context = context
        self.breaker = health
        self.letters = letters
        self.relations = relations
        #: System -> what no reply that is kept may quote.
        self._secrets_of: dict[str, tuple[str, ...]] = {}

    def write(self, connection: sa.Connection, subscriber: Subscriber, plans: list[Plan], batch: Batch) -> FollowUp:
        """Write down the whole batch and give the leases back."""
        settled, now = FollowUp(), self.context.clock()
        plans = [replace(plan) for plan in plans]  # what is decided here is decided anew should it lose a race
        self._note_health(connection, subscriber, plans)
        self._look_at_rules(connection, plans)
        deliveries = []
        told_down = False
        owed = self._lock(connection, plans, batch.token)
        links: defaultdict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
        for plan in plans:
            link_id = plan.claim.link.id
            plan.owed_now = owed.get(link_id, plan.claim.link.owed_change)
            waits = isinstance(plan.error, WaitsFor)
            if link_id not in owed:
                # Somebody else has it by now: what follows, such as a dead letter, is theirs to write.
                if plan.outcome is None:
                    plan.settle("waiting" if plan.duration is None else "failed", f"too late: {plan.error}")
            else:
                row = state.freed(link_id, self._link_values(connection, subscriber, plan, batch.mapper, settled))
                links[tuple(row)].append(row)
                if waits:  # whether the next one closes a circle is told by what this one waits for
                    state.write_many(connection, [row])
                if _is_owed_again(plan) or plan.lifted:
                    settled.again.append(plan.claim.record_id)
            if plan.outcome == "waiting":
                if told_down or plan.error is None:
                    continue  # one row tells it for all that wait
                told_down = not isinstance(plan.error, WaitsFor)
            deliveries.append(self._delivery(subscriber, plan, now))
        for rows in links.values():
            state.write_many(connection, rows)
        insert_many(connection, _DELIVERY, deliveries)
        settled.announce += self._wake(connection, subscriber, plans)
        return settled

    def write_at_once(self, subscriber: Subscriber, plans: list[Plan], batch: Batch) -> tuple[list[Plan], FollowUp]:
        """Write down what simply ended, where nothing new is owed meanwhile; the plans that `write` has to see to.

        Nearly all simply end, and need not be locked and read again before.
        """
        now = self.context.clock()
        alike: defaultdict[tuple[str, ...], list[tuple[dict[str, Any], dict[str, Any]]]] = defaultdict(list)
        for plan in plans:
            if not _is_plain(plan):
                continue
            try:
                values = self._ended(plan, batch.mapper, plan.rule.id if plan.rule else None, now)
                link = state.freed(plan.claim.link.id, values)
                alike[tuple(link)].append((link, self._delivery(subscriber, plan, now)))
            except Exception:
                logger.debug("%s: `write` tells what is wrong with %s", subscriber.name(), plan.claim.record_id)
        written = set[int]()
        for pairs in alike.values():
            links, deliveries = [link for link, _ in pairs], [delivery for _, delivery in pairs]
            try:
                written |= self.context.database.execute_atomic(state.write_settled, links, batch.token, deliveries)
            except sa.exc.OperationalError:
                raise
            except Exception:
                logger.debug("%s: `write` finds out which of them cannot be written", subscriber.name(), exc_info=True)
        settled = FollowUp()
        ended = [plan for plan in plans if plan.claim.link.id in written]
        to_note = not batch.gate.noted or self.breaker.has_news(subscriber.system)
        if to_note and any(plan.was_answered for plan in ended):
            self.context.database.run_in_transaction(self.breaker.succeeded, subscriber.system)
        if ended and self.relations.are_waited_for(subscriber):
            settled.announce = self.context.database.run_in_transaction(self._wake, subscriber, ended)
        return [plan for plan in plans if plan.claim.link.id not in written], settled

    @staticmethod
    def _look_at_rules(connection: sa.Connection, plans: list[Plan]) -> None:
        """What an unsubscription covered that was lifted meanwhile is not skipped: who lifted it saw no such link."""
        stand = lock_rules(connection, {plan.rule.id for plan in plans if plan.rule is not None})
        for plan in plans:
            if plan.rule is not None and plan.rule.id not in stand:
                plan.rule, plan.lifted = None, True
                plan.settle("waiting", "the unsubscription was lifted meanwhile")

    def _note_health(self, connection: sa.Connection, subscriber: Subscriber, plans: list[Plan]) -> None:
        down = next((p.error for p in plans if isinstance(p.error, SystemDown)), None)
        if down is not None:
            self.breaker.went_down(connection, subscriber.system, down)
        elif any(p.was_answered for p in plans):
            self.breaker.succeeded(connection, subscriber.system)

    def _wake(self, connection: sa.Connection, subscriber: Subscriber, plans: list[Plan]) -> list[tuple[str, str]]:
        delivered = [p.claim.link.id for p in plans if p.outcome in ("delivered", "unchanged")]
        ended = [p.claim.link.id for p in plans if p.outcome in ("dead", "skipped")]
        return self.relations.wake(connection, subscriber, delivered, ended)

    @staticmethod
    def _lock(connection: sa.Connection, plans: list[Plan], token: str) -> dict[int, int]:
        """Link -> what it is owed now, of the links that are still ours; nobody changes these until the commit."""
        if not plans:
            return {}
        ids = [plan.claim.link.id for plan in plans]
        mine = sa.select(Link.id, Link.owed_change).where(
            in_values(connection, Link.id, ids), Link.lease_owner == token
        )
        # In one order in every process, so that relays and workers do not deadlock.
        rows = connection.execute(mine.order_by(Link.record_id).with_for_update())
        return {row.id: row.owed_change for row in rows}

    def _link_values(
        self,
        connection: sa.Connection,
        subscriber: Subscriber,
        plan: Plan,
        mapper: Mapper | None,
        settled: FollowUp,
    ) -> dict[str, Any]:
        link = plan.claim.link
        unsubscription = plan.rule.id if plan.rule else None
        if isinstance(plan.error, WaitsFor):
            verdict = self.relations.judge(connection, subscriber, link, plan.error)
            if verdict.announce:
                settled.announce.append(verdict.announce)
            if verdict.skip:
                plan.error = None
                plan.settle("skipped", verdict.skip)
                unsubscription = verdict.unsubscription_id
            elif verdict.error:
                plan.error = verdict.error
                return self._after_error(connection, subscriber, plan) | {"blocked_by": verdict.parent}  # type: ignore[operator]
            else:
                plan.settle("waiting", str(plan.error))
                # Woken when the parent is through; the time is the net below that. A parent that came meanwhile
                # wakes nobody any more: then it is announced, and no time may keep that from being heard.
                net = self.context.later(self.context.policy.stale) if verdict.parent is not None else None
                retry_at = _unless_newer(plan, net)
                return state.blocked(verdict.parent, retry_at) | {"create_token": _unbegun(plan)}
        if plan.error is not None:
            values = self._after_error(connection, subscriber, plan)
            if values is not None:
                return values
        if plan.outcome == "waiting":
            return {"create_token": _unbegun(plan)}
        now = self.context.clock()
        values = self._ended(plan, mapper, unsubscription, now)
        if plan.claim.record is None:
            values |= close_conflicts(connection, link, "gone", now)
        elif values.get("open_conflicts", link.open_conflicts) != link.open_conflicts:
            close_conflicts(connection, link, "agreed", now, but=plan.claim.asked)
        self._close_letter(connection, plan)
        return values

    def _ended(self, plan: Plan, mapper: Mapper | None, unsubscription: int | None, now: datetime) -> dict[str, Any]:
        """The link's values when it is up to date, or nothing is to be sent."""
        link = plan.claim.link
        values = state.settled(link, plan.owed_now, now) | {
            "unsubscription_id": unsubscription,
            # A create that was never begun, or that is done, leaves no question open.
            "create_token": _unbegun(plan) if plan.outcome == "skipped" else None,
        }
        if plan.outcome != "skipped" or plan.claim.told:  # what was not looked at is as doubtful as before
            values["unconfirmed_write"] = None
        if plan.outcome == "skipped" and plan.claim.told:
            values["write_windows"] = overwrites.dropped(link.write_windows)
        if plan.outcome == "skipped" and plan.claim.found:
            values |= {name: getattr(link, name) for name in RECONCILABLE_COLUMNS} | {"create_token": None}
        if plan.outcome in ("delivered", "unchanged"):
            values |= self._agreement(plan, mapper, now)
        return values

    def _close_letter(self, connection: sa.Connection, plan: Plan) -> None:
        if (letter := plan.claim.link.dead_letter_id) is not None:
            words = f"{plan.outcome}: {plan.reason}" if plan.outcome == "skipped" else str(plan.outcome)
            self.letters.close(connection, [letter], words)

    def _agreement(self, plan: Plan, mapper: Mapper | None, now: datetime) -> dict[str, Any]:
        """What hub and system agree on from now on."""
        link, external = plan.claim.link, plan.external
        # Without a time of theirs nothing can be told newer than our write: events are fetched until one is seen.
        wrote = external.at if external is not None and external.at is not None else UNKNOWN_TIME
        if plan.operation in ("delete", "unlink"):
            gone = state.unlinked(now, deleted_remotely=False)
            return gone | {"external_id": link.external_id, "last_write_at": wrote}
        values: dict[str, Any] = {"synced_at": now}
        if plan.operation == "archive":
            # It stays linked: should the record come back, everything is sent anew.
            return values | {"base": None, "remote_values": None, "last_write_at": wrote}
        if plan.operation not in ("create", "update", "match"):
            return values
        values |= self._bases(plan, mapper) | {"unlinked_at": None, "deleted_remotely": False}
        values["open_conflicts"] = len(plan.claim.asked)
        if plan.outcome == "delivered":
            values["last_write_at"] = link.last_write_at if plan.operation == "match" else wrote
        if plan.outcome == "delivered":
            values["write_windows"] = overwrites.ended(link.write_windows, wrote)
        else:
            values["write_windows"] = overwrites.dropped(link.write_windows)
        if external is not None or link.external_id is not None:
            values["external_id"] = external.id if external is not None else link.external_id
        return values

    @staticmethod
    def _bases(plan: Plan, mapper: Mapper | None) -> dict[str, Any]:
        link, asked = plan.claim.link, {**plan.claim.asked, **plan.claim.beside}
        sent = plan.sent if plan.operation != "match" else set()
        reply = mapper.flatten(plan.external.data) if mapper is not None and plan.external is not None else {}
        linked = plan.claim.linked
        remote_values = (
            {p: v for p, v in (link.remote_values or {}).items() if p not in sent or p in asked} if linked else {}
        )
        remote_values |= {
            p: reply[p] for p in sent if p in reply and p not in asked and not same(reply[p], plan.flat[p])
        }
        old = (link.base or {}) if linked else {}
        ours = {p: v for p, v in plan.flat.items() if p not in asked}
        # What only comes in, and what a person is asked about, keeps its base.
        kept = {p: v for p, v in old.items() if p not in ours}
        return {"base": {**kept, **ours}, "remote_values": remote_values or None}

    # --- failures -----------------------------------------------------------------------------------

    def _after_error(self, connection: sa.Connection, subscriber: Subscriber, plan: Plan) -> dict[str, Any] | None:
        """Link values after a failure; None if it turned out to be no failure."""
        error, link = plan.error, plan.claim.link
        assert error is not None
        if isinstance(error, Skip):
            plan.settle("skipped", str(error))
            return None
        if isinstance(error, Gone) and plan.operation != "create":
            return self._after_gone(connection, subscriber, plan)
        known: dict[str, Any] = _after_create(plan, error) | _after_call(plan, error)
        if isinstance(error, SystemDown):
            plan.settle("waiting", str(error))
            return known
        attempts = link.attempts + 1
        if attempts >= self.context.policy.max_attempts and self._may_be_the_network(
            connection, subscriber, link, error
        ):
            attempts = self.context.policy.max_attempts - 1
        if isinstance(error, Retry) and attempts < self.context.policy.max_attempts:
            plan.settle("failed", str(error))
            pause = max(self.context.policy.backoff(attempts), error.after or 0.0)
            return known | state.postponed(attempts, _unless_newer(plan, self.context.later(pause)))
        plan.settle("dead", str(error))
        letter = self.letters.write(
            connection,
            subscriber.name(),
            error,
            record_id=plan.claim.record_id,
            link_id=link.id,
            payload=plan.flat,
            letter_id=link.dead_letter_id,
        )
        dead_at = _unless_newer(plan, self.context.clock())
        return known | state.buried(attempts, dead_at, letter)

    def _may_be_the_network(
        self, connection: sa.Connection, subscriber: Subscriber, link: Any, error: SyncError
    ) -> bool:
        """No answer came, and nobody else has had one since this record was tried before."""
        if not (isinstance(error, Retry) and error.unanswered):
            return False
        system = sa.select(System.last_success_at).where(System.name == subscriber.system)
        answered = connection.execute(system).scalar()
        before = newest_delivery(connection, link.record_id, link.subscriber, "failed")
        return answered is None or (before is not None and answered < before.at)

    def _after_gone(self, connection: sa.Connection, subscriber: Subscriber, plan: Plan) -> dict[str, Any] | None:
        if plan.operation == "delete":
            plan.settle("delivered", "it was gone already")
            return None
        policy = subscriber.on_gone
        if policy == "recreate":
            plan.settle("failed", f"it was deleted in {subscriber.system}; creating it again")
            plan.owed_now += 1
            return state.recreated() | {"owed_change": plan.owed_now}
        remove_here(connection, subscriber, plan.claim.record_id)
        plan.settle("skipped", f"it was deleted in {subscriber.system}; on_gone = {policy}")
        self._close_letter(connection, plan)
        now = self.context.clock()
        values = state.settled(plan.claim.link, plan.owed_now, now) | state.unlinked(now, deleted_remotely=True)
        return values | close_conflicts(connection, plan.claim.link, "gone", now)

    def _delivery(self, subscriber: Subscriber, plan: Plan, now: datetime) -> dict[str, Any]:
        link, external = plan.claim.link, plan.external
        request_id = plan.error.request_id if plan.error else external.request_id if external else None
        payload = {path: plan.flat[path] for path in sorted(plan.sent)}
        return {
            "subscriber": subscriber.name(),
            "record_id": plan.claim.record_id,
            "external_id": external.id if external is not None else link.external_id,
            "direction": "out",
            "operation": plan.operation,
            "outcome": plan.outcome,
            "reason": plan.reason,
            "error": type(plan.error).__name__ if plan.error else None,
            "payload": redact(payload) or None,
            "reply": self._reply(subscriber, plan),
            "attempt": link.attempts + 1,
            "request_id": request_id,
            "at": now,
            "duration": plan.duration,
        }

    def _reply(self, subscriber: Subscriber, plan: Plan) -> str | None:
        answer = plan.error.reply if plan.error else plan.external.data if plan.external else None
        return reply_text(answer, self._secrets(subscriber)) if answer else None

    def _secrets(self, subscriber: Subscriber) -> tuple[str, ...]:
        known = self._secrets_of.get(subscriber.system)
        if known is None:
            known = self._secrets_of[subscriber.system] = secrets_in(subscriber.client.options)
        return known


def _is_plain(plan: Plan) -> bool:
    """It ended, and only its link and its delivery have to be written for that."""
    link, claim = plan.claim.link, plan.claim
    ended = plan.error is None and plan.rule is None and plan.outcome in ("delivered", "unchanged", "skipped")
    asked = 0 if claim.record is None else len(claim.asked)
    return ended and link.dead_letter_id is None and link.open_conflicts == asked


def _unbegun(plan: Plan) -> str | None:
    """The intent after a create that this batch did not begin: an older question stays open."""
    return None if plan.claim.fresh_create_token else plan.claim.link.create_token


def _after_create(plan: Plan, error: SyncError) -> dict[str, Any]:
    """What a failure says of a create: whether it may have happened, and with which data."""
    if plan.claim.linked:
        return {}
    if error.maybe_done and plan.operation == "create" and plan.duration is not None:
        return {}
    return {"create_token": _unbegun(plan)}


def _after_call(plan: Plan, error: SyncError) -> dict[str, Any]:
    """A call that certainly did nothing, or was not made, leaves nothing in doubt; see `conductor.links.in_doubt`."""
    was_sent = plan.duration is not None and error.maybe_done
    if not plan.claim.told or was_sent:
        return {}
    return {"unconfirmed_write": None, "write_windows": overwrites.dropped(plan.claim.link.write_windows)}


def _unless_newer(plan: Plan, when: datetime | None) -> datetime | None:
    """`when`, or nothing if a newer change is owed by now: the edit may be what mends it."""
    return None if plan.owed_now > plan.claim.link.owed_change else when


def _is_owed_again(plan: Plan) -> bool:
    """More is owed by now and may be sent at once: its news may have come while we held the lease."""
    if plan.outcome == "waiting" and not isinstance(plan.error, WaitsFor):
        return False  # the sweep brings it back with its system
    return bool(plan.owed_now > plan.claim.link.owed_change)
