"""Outward delivery: bring records of one subscriber up to date with the internal database.

The way of a batch: claim the links under a lease and read the records' present state (one
transaction); plan without touching anything; call the system; write link, delivery and dead
letter for the whole batch (one transaction). A process that dies anywhere leaves the links owed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa

from conductor.health import Health
from conductor.hub import Hub, new_token
from conductor.letters import Letters
from conductor.mappings import MappingRefused, Mappings
from conductor.unsubscriptions import Rule, in_force
from models.capture import sync_context
from models.catalogues import Record
from models.ledger import Delivery, Link
from subscribers.base import External, Item, Subscriber, attempt
from subscribers.errors import Gone, Reject, Retry, Skip, SyncError, SystemDown
from subscribers.mapping import Flat, Mapper, nest, same

logger = logging.getLogger(__name__)

#: Records claimed at once for a system without bulk calls: their calls must fit into the lease.
SINGLE_CHUNK = 20

#: Seconds one message may keep a worker busy; what is left by then goes back into the queue, so
#: that a slow system neither runs into RabbitMQ's consumer timeout nor holds up a stop.
MESSAGE_BUDGET = 60.0

#: How often records that changed while they were being sent are taken up again at once.
_ROUNDS = 5


@dataclass
class Claim:
    """A link under our lease, with the record as it is now (None: it does not exist)."""

    link: Any
    record: Record | None
    fresh_intent: bool

    @property
    def record_id(self) -> str:
        """The record's id in the ledger."""
        return str(self.link.record_id)

    @property
    def linked(self) -> bool:
        """Whether there is a live external record."""
        return self.link.external_id is not None and self.link.gone_at is None


@dataclass
class Plan:
    """What is to be done about one claim, and then how it went."""

    claim: Claim
    #: create, update, delete, archive, unlink or none.
    operation: str = "none"
    item: Item | None = None
    flat: Flat = field(default_factory=dict)
    #: delivered, unchanged, skipped, failed, dead or waiting; None until it is known.
    outcome: str | None = None
    reason: str | None = None
    error: SyncError | None = None
    external: External | None = None
    rule: Rule | None = None
    #: Milliseconds of the call.
    duration: float | None = None

    def settle(self, outcome: str, reason: str | None = None) -> Plan:
        """Say how it ended."""
        self.outcome, self.reason = outcome, reason
        return self

    def fail(self, error: SyncError) -> Plan:
        """It ended with this error; what that means is decided when it is written down."""
        self.error = error
        return self


class Outward:
    """Delivers what is owed."""

    def __init__(self, hub: Hub, health: Health, mappings: Mappings, letters: Letters) -> None:
        self.hub = hub
        self.health = health
        self.mappings = mappings
        self.letters = letters

    def deliver(self, name: str, record_ids: Sequence[str]) -> None:
        """Bring these records of one subscriber up to date, as far as they are owed anything."""
        subscriber = self.hub.subscribers.get(name)
        if subscriber is None:
            logger.info("%s is not configured here; what it is owed stays in the ledger", name)
            return
        size = subscriber.bulk_size if subscriber.bulk_size > 1 else SINGLE_CHUNK
        waiting = list(dict.fromkeys(record_ids))
        began = time.monotonic()
        while waiting:
            if self.hub.stopping.is_set() or time.monotonic() - began > MESSAGE_BUDGET:
                self.hub.announcer.records(name, waiting)
                return
            gate = self.health.gate(subscriber.system)
            if not gate.open:
                logger.info("%s: %d records wait: %s", name, len(waiting), gate.reason)
                return
            chunk, waiting = waiting[: 1 if gate.probing else size], waiting[1 if gate.probing else size :]
            self._deliver_chunk(subscriber, chunk)

    def _deliver_chunk(self, subscriber: Subscriber, record_ids: list[str]) -> None:
        for _ in range(_ROUNDS):
            record_ids = self._round(subscriber, record_ids)
            if not record_ids:
                return
        self.hub.announcer.records(subscriber.name(), record_ids)

    def _round(self, subscriber: Subscriber, record_ids: list[str]) -> list[str]:
        """One pass over these records; returns those that are owed something again."""
        token = new_token()
        claims, mapper, rules = self.hub.database.transact(self._claim, subscriber, record_ids, token)
        if not claims:
            return []
        plans = [self._plan(subscriber, claim, mapper, rules) for claim in claims]
        self._call(subscriber, plans, mapper, token)
        return self.hub.database.transact(self._write, subscriber, plans, mapper, token)

    # --- claim --------------------------------------------------------------------------------------

    def _claim(
        self, connection: sa.Connection, subscriber: Subscriber, record_ids: list[str], token: str
    ) -> tuple[list[Claim], Mapper | None, list[Rule]]:
        now = self.hub.clock()
        mine = (
            sa.select(Link.id)
            .where(Link.subscriber == subscriber.name(), Link.record_id.in_(record_ids))
            .where(Link.owed_change > Link.synced_change, Link.dead_at.is_(None))
            .where(sa.or_(Link.retry_at.is_(None), Link.retry_at <= now))
            .where(sa.or_(Link.lease_until.is_(None), Link.lease_until <= now))
            .order_by(Link.record_id)
            .with_for_update(skip_locked=True)
        )
        creating = sa.or_(Link.external_id.is_(None), Link.gone_at.is_not(None))
        rows = connection.execute(
            sa.update(Link)
            .where(Link.id.in_(mine))
            .values(
                lease_owner=token,
                lease_until=self.hub.later(self.hub.policy.lease),
                # The intent to create is on disk before the call that creates.
                intent=sa.case((creating, sa.func.coalesce(Link.intent, token)), else_=Link.intent),
            )
            .returning(Link.__table__)
        ).all()
        if not rows:
            return [], None, []
        ids = [row.record_id for row in rows]
        # Read after the claim: whatever was committed before its change was routed is seen.
        records = subscriber.records.read(connection, ids)
        targets = (subscriber.system, subscriber.name())
        rules = in_force(connection, targets, ids, now)
        mapper = attempt(lambda: self.mappings.current(connection, subscriber.name())[0])
        claims = [Claim(row, records.get(row.record_id), row.intent == token) for row in rows]
        return claims, mapper if isinstance(mapper, Mapper) else None, rules

    # --- plan ---------------------------------------------------------------------------------------

    def _plan(self, subscriber: Subscriber, claim: Claim, mapper: Mapper | None, rules: list[Rule]) -> Plan:
        plan = Plan(claim)
        if mapper is None:
            return plan.fail(Reject(f"the mapping of {subscriber.name()} does not fit its table any more"))
        outcome = attempt(self._choose, subscriber, plan, mapper)
        if isinstance(outcome, SyncError):
            plan.fail(outcome)
        if plan.outcome is None and plan.operation != "none":
            plan.rule = next((r for r in rules if r.covers(plan.operation, claim.record_id)), None)
            if plan.rule is not None:
                plan.error = None
                plan.settle("skipped", plan.rule.words)
        return plan

    def _choose(self, subscriber: Subscriber, plan: Plan, mapper: Mapper) -> None:
        claim = plan.claim
        if claim.record is None:
            self._choose_removal(subscriber, plan)
            return
        if not subscriber.wants(claim.record):
            plan.settle("skipped", f"{subscriber.name()} does not want this record")
            return
        if claim.link.gone_at is not None and claim.link.gone_there and subscriber.on_gone != "recreate":
            when = f"{claim.link.gone_at:%Y-%m-%d %H:%M} UTC"
            plan.settle("skipped", f"it was deleted in {subscriber.system} at {when} and is unlinked since")
            return
        plan.operation = "update" if claim.linked else "create"
        plan.flat = mapper.outward(claim.record)
        data = nest(plan.flat)
        subscriber.validate(data)
        agreed = claim.link.agreed or {}
        differing = [p for p, v in plan.flat.items() if p not in agreed or not same(v, agreed[p])]
        if claim.linked and not differing:
            plan.settle("unchanged", "the system holds all of it already")
        changes = data if not claim.linked else {top: data[top] for top in _tops(differing)}
        plan.item = _item(claim, data, changes, plan.flat)

    def _choose_removal(self, subscriber: Subscriber, plan: Plan) -> None:
        claim = plan.claim
        if not claim.linked:
            if claim.fresh_intent or claim.link.gone_at is not None:
                plan.settle("unchanged", "the record is deleted, and the system does not have it")
                return
            plan.operation = "delete"  # a create was begun: it may be there, see _resolve
            plan.item = _item(claim, {}, {}, {})
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
            plan.item = _item(claim, data, data, plan.flat)

    # --- call ---------------------------------------------------------------------------------------

    def _call(self, subscriber: Subscriber, plans: list[Plan], mapper: Mapper | None, token: str) -> None:
        open_plans = [p for p in plans if p.outcome is None and p.error is None]
        for plan in open_plans:
            if not plan.claim.linked and not plan.claim.fresh_intent and mapper is not None:
                self._resolve(subscriber, plan, mapper)
        for operation, call in (
            ("create", subscriber.bulk_create),
            ("update", subscriber.bulk_update),
            ("archive", subscriber.bulk_update),
            ("delete", subscriber.bulk_delete),
        ):
            chosen = [p for p in open_plans if p.operation == operation and p.outcome is None and p.error is None]
            size = max(subscriber.bulk_size, 1)
            for start in range(0, len(chosen), size):
                self._call_chunk(subscriber, call, chosen[start : start + size], plans, token)

    def _call_chunk(self, subscriber: Subscriber, call: Any, chosen: list[Plan], plans: list[Plan], token: str) -> None:
        down = next((p.error for p in plans if isinstance(p.error, SystemDown)), None)
        if down is not None:  # said once for the batch: the others need not find out by themselves
            for plan in chosen:
                plan.fail(SystemDown(str(down), after=down.after))
            return
        if not self._still_ours(chosen, token):
            for plan in chosen:
                plan.settle("waiting", "the lease ran out before the call")
            return
        items = [plan.item for plan in chosen]
        began = time.perf_counter()
        outcomes = attempt(call, items)
        duration = (time.perf_counter() - began) * 1000
        if isinstance(outcomes, SyncError):
            outcomes = [outcomes] * len(chosen)
        for plan, outcome in zip(chosen, outcomes, strict=True):
            plan.duration = duration
            if isinstance(outcome, SyncError):
                plan.fail(outcome)
            else:
                plan.external = outcome
                plan.settle("delivered")

    def _still_ours(self, plans: list[Plan], token: str) -> bool:
        """Renew the lease where half of it is gone; False if somebody else took over."""
        until = min(plan.claim.link.lease_until for plan in plans)
        if until > self.hub.later(self.hub.policy.lease / 2):
            return True
        ids = [plan.claim.link.id for plan in plans]
        renewed = self.hub.later(self.hub.policy.lease)
        statement = sa.update(Link).where(Link.id.in_(ids), Link.lease_owner == token).values(lease_until=renewed)
        rows = self.hub.database.transact(lambda c: c.execute(statement).rowcount)
        for plan in plans:
            plan.claim.link = _with(plan.claim.link, lease_until=renewed)
        return bool(rows == len(ids))

    def _resolve(self, subscriber: Subscriber, plan: Plan, mapper: Mapper) -> None:
        """A create was begun before and nobody knows how it ended: look before doing it again."""
        assert plan.item is not None
        found = attempt(subscriber.find, plan.item)
        if isinstance(found, SyncError):
            plan.fail(found)
            return
        if found is None:
            if plan.operation == "delete":
                plan.settle("unchanged", "the record is deleted, and the system does not have it")
            return
        agreed = mapper.theirs(found.data)
        plan.claim.link = _with(plan.claim.link, external_id=found.id, gone_at=None, agreed=agreed, held=None)
        if plan.operation == "delete":
            plan.item = replace(plan.item, external_id=found.id)
            return
        differing = [p for p, v in plan.flat.items() if p not in agreed or not same(v, agreed[p])]
        changes = {top: plan.item.data[top] for top in _tops(differing)}
        plan.item = replace(plan.item, external_id=found.id, changes=changes)
        plan.external = found
        plan.operation = "update" if differing else "match"
        if not differing:
            plan.settle("delivered", "an earlier attempt had created it")

    # --- write --------------------------------------------------------------------------------------

    def _write(
        self,
        connection: sa.Connection,
        subscriber: Subscriber,
        plans: list[Plan],
        mapper: Mapper | None,
        token: str,
    ) -> list[str]:
        now = self.hub.clock()
        down = next((p.error for p in plans if isinstance(p.error, SystemDown)), None)
        if down is not None:
            self.health.went_down(connection, subscriber.system, down)
        elif any(p.duration is not None for p in plans):
            self.health.succeeded(connection, subscriber.system)
        deliveries = []
        again = []
        told_down = False
        for plan in sorted(plans, key=lambda p: p.claim.record_id):
            values = self._link_values(connection, subscriber, plan, mapper, now)
            if self._update_link(connection, plan, values, token):
                again.append(plan.claim.record_id)
            if plan.outcome == "waiting":
                if told_down or plan.error is None:
                    continue  # one row tells it for all that wait
                told_down = True
            deliveries.append(self._delivery(subscriber, plan, now))
        if deliveries:
            connection.execute(sa.insert(Delivery), deliveries)
        return again

    def _update_link(self, connection: sa.Connection, plan: Plan, values: dict[str, Any], token: str) -> bool:
        """Write one link and give the lease back; True if more is owed by now and may be sent at once."""
        row = connection.execute(
            sa.update(Link)
            .where(Link.id == plan.claim.link.id, Link.lease_owner == token)
            .values(lease_owner=None, lease_until=None, **values)
            .returning(Link.owed_change, Link.synced_change)
        ).one_or_none()
        if row is None or plan.outcome == "waiting":
            return False  # somebody else has it, or the sweep brings it back with its system
        # More may be owed by now, and its news may have come while we held the lease.
        return bool(row.owed_change > plan.claim.link.owed_change)

    def _link_values(
        self,
        connection: sa.Connection,
        subscriber: Subscriber,
        plan: Plan,
        mapper: Mapper | None,
        now: datetime,
    ) -> dict[str, Any]:
        if plan.error is not None:
            values = self._after_error(connection, subscriber, plan, now)
            if values is not None:
                return values
        if plan.outcome == "waiting":
            return {}
        link = plan.claim.link
        values = {
            "synced_change": link.owed_change,
            # Changes that arrived meanwhile are owed since about now.
            "owed_since": sa.case((Link.owed_change > link.owed_change, now), else_=sa.null()),
            "attempts": 0,
            "retry_at": None,
            "unsubscription_id": plan.rule.id if plan.rule else None,
            # A create that was never begun, or that is done, leaves no question open.
            "intent": link.intent if plan.outcome == "skipped" and not plan.claim.fresh_intent else None,
        }
        if plan.outcome in ("delivered", "unchanged"):
            values |= self._agreement(plan, mapper, now)
            if link.dead_letter_id is not None:
                self.letters.close(connection, [link.dead_letter_id], plan.outcome)
        return values

    def _agreement(self, plan: Plan, mapper: Mapper | None, now: datetime) -> dict[str, Any]:
        """What hub and system agree on from now on."""
        link, external = plan.claim.link, plan.external
        wrote = external.at if external is not None and external.at is not None else now
        if plan.operation in ("delete", "unlink"):
            gone = {"gone_at": now, "gone_there": False, "agreed": None, "held": None}
            return gone | {"external_id": link.external_id, "wrote_at": wrote}
        values: dict[str, Any] = {"synced_at": now}
        if plan.operation == "archive":
            # It stays linked: should the record come back, everything is sent anew.
            return values | {"agreed": None, "held": None, "wrote_at": wrote}
        if plan.operation not in ("create", "update", "match"):
            return values
        sent = set(plan.flat) if plan.operation == "create" else _below(plan.flat, plan.item)
        reply = mapper.theirs(external.data) if mapper is not None and external is not None else {}
        held = {p: v for p, v in (link.held or {}).items() if p not in sent} if plan.claim.linked else {}
        held |= {p: reply[p] for p in sent if p in reply and not same(reply[p], plan.flat[p])}
        base = (link.agreed or {}) if plan.claim.linked else {}
        incoming = {p: v for p, v in base.items() if p not in plan.flat}
        values |= {"agreed": {**incoming, **plan.flat}, "held": held or None, "gone_at": None, "gone_there": False}
        if plan.outcome == "delivered" and plan.operation != "match":
            values["wrote_at"] = wrote
        if external is not None or link.external_id is not None:
            values["external_id"] = external.id if external is not None else link.external_id
        return values

    def _after_error(
        self, connection: sa.Connection, subscriber: Subscriber, plan: Plan, now: datetime
    ) -> dict[str, Any] | None:
        """Link values after a failure; None if it turned out to be no failure."""
        error, link = plan.error, plan.claim.link
        assert error is not None
        # A create that certainly did not happen leaves no question open.
        known: dict[str, Any] = {} if error.maybe_done or not plan.claim.fresh_intent else {"intent": None}
        if isinstance(error, Skip):
            plan.settle("skipped", str(error))
            return None
        if isinstance(error, Gone) and plan.operation != "create":
            return self._after_gone(connection, subscriber, plan, now)
        if isinstance(error, SystemDown):
            plan.settle("waiting", str(error))
            return known
        attempts = link.attempts + 1
        if isinstance(error, Retry) and attempts < self.hub.policy.max_attempts:
            plan.settle("failed", str(error))
            pause = max(self.hub.policy.backoff(attempts), error.after or 0.0)
            return known | {"attempts": attempts, "retry_at": _unless_newer(link, self.hub.later(pause))}
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
        return known | {
            "attempts": attempts,
            "retry_at": None,
            "dead_at": _unless_newer(link, now),
            "dead_letter_id": letter,
        }

    def _after_gone(
        self, connection: sa.Connection, subscriber: Subscriber, plan: Plan, now: datetime
    ) -> dict[str, Any] | None:
        if plan.operation == "delete":
            plan.settle("delivered", "it was gone already")
            return None
        policy = subscriber.on_gone
        if policy == "recreate":
            plan.settle("failed", f"it was deleted in {subscriber.system}; creating it again")
            forgotten = {"external_id": None, "agreed": None, "held": None, "gone_at": None}
            return forgotten | {"owed_change": Link.owed_change + 1}
        remove_here(connection, subscriber, plan.claim.record_id)
        plan.settle("skipped", f"it was deleted in {subscriber.system}; on_gone = {policy}")
        return {
            "gone_at": now,
            "gone_there": True,
            "agreed": None,
            "held": None,
            "synced_change": plan.claim.link.owed_change,
            "owed_since": None,
            "attempts": 0,
        }

    def _delivery(self, subscriber: Subscriber, plan: Plan, now: datetime) -> dict[str, Any]:
        link, external = plan.claim.link, plan.external
        request_id = plan.error.request_id if plan.error else external.request_id if external else None
        payload = plan.flat
        if plan.item is not None and plan.operation == "update":
            payload = {p: plan.flat[p] for p in _below(plan.flat, plan.item)}
        return {
            "subscriber": subscriber.name(),
            "record_id": plan.claim.record_id,
            "external_id": external.id if external is not None else link.external_id,
            "direction": "out",
            "operation": plan.operation,
            "outcome": plan.outcome,
            "reason": plan.reason,
            "error": type(plan.error).__name__ if plan.error else None,
            "payload": payload or None,
            "attempt": link.attempts + 1,
            "request_id": request_id,
            "at": now,
            "duration": plan.duration,
        }


def remove_here(connection: sa.Connection, subscriber: Subscriber, record_id: str) -> None:
    """Do to the internal record what `on_gone` says, as a change that came from the system."""
    catalogue = subscriber.records
    with sync_context(connection, origin=subscriber.system):
        if subscriber.on_gone == "delete":
            catalogue.delete(connection, record_id)
        elif subscriber.on_gone == "archive":
            catalogue.update(connection, record_id, catalogue.archive)


def _item(claim: Claim, data: dict[str, Any], changes: dict[str, Any], flat: Flat) -> Item:
    # The same creation, tried again, has the same key; an edited one must have another, since
    # systems refuse a key that comes with other data.
    text = json.dumps([claim.link.subscriber, claim.record_id, claim.link.intent, flat], sort_keys=True, default=str)
    return Item(
        record_id=claim.record_id,
        record=claim.record or {},
        data=data,
        changes=changes,
        external_id=claim.link.external_id if claim.linked else None,
        key=hashlib.sha256(text.encode()).hexdigest()[:40],
    )


def _unless_newer(link: Any, when: datetime) -> Any:
    """`when`, or nothing if a newer change is owed by now: the edit may be what mends it."""
    return sa.case((Link.owed_change > link.owed_change, sa.null()), else_=sa.literal(when, Link.retry_at.type))


def _tops(paths: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(path.split(".")[0] for path in paths))


def _below(flat: Flat, item: Item | None) -> set[str]:
    """The paths that travel with the item's changes."""
    return {path for path in flat if item is not None and path.split(".")[0] in item.changes}


def _with(row: Any, **values: Any) -> Any:
    """A copy of a link's row with some values replaced."""
    current = dict(row._mapping) if hasattr(row, "_mapping") else vars(row)
    return SimpleNamespace(**{**current, **values})


__all__ = ["MappingRefused", "Outward", "remove_here"]
