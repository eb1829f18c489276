"""Outcomes: what the end of a delivery means for the values of its link, and its row in the history."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from conductor.context import UNKNOWN_TIME
from conductor.links import overwrites, state
from conductor.links.merge import unseen_edits
from conductor.links.relations import WaitsFor
from conductor.outward.planning import RECONCILABLE_COLUMNS, Plan
from redaction import response_text, shorten
from subscribers.base import Subscriber
from subscribers.errors import CREATED_WITHOUT_ID, Outdated, SyncError
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.values import same


def is_plain(plan: Plan) -> bool:
    """Return whether only the link and its delivery have to be written for this outcome."""
    link, claim = plan.claim.link, plan.claim
    ended = plan.error is None and plan.rule is None and plan.outcome in ("delivered", "unchanged", "skipped")
    conflicts = 0 if claim.record is None else len(claim.conflicted)
    return ended and not plan.lacks_references and link.dead_letter_id is None and link.open_conflicts == conflicts


def is_owed_again(plan: Plan) -> bool:
    """Return whether a newer change may be sent immediately: its notification may have come while we held the lease."""
    if plan.outcome == "waiting" and not isinstance(plan.error, WaitsFor):
        return False  # the sweep publishes it when its system is back
    return plan.owed_now > plan.claim.link.owed_change


def is_sent_again(plan: Plan) -> bool:
    """Whether a record is sent again without a pause: it was edited there, and the look that follows merges that."""
    return isinstance(plan.error, Outdated) and plan.error.after is None and plan.claim.link.attempts == 0


def unless_newer(plan: Plan, when: datetime | None) -> datetime | None:
    """Return `when`, or None if a newer change is owed by now: that edit may have fixed what failed."""
    return None if plan.owed_now > plan.claim.link.owed_change else when


def earlier_create_token(plan: Plan) -> str | None:
    """Return the token of a create that an earlier batch began, whose outcome is still unknown."""
    return None if plan.claim.fresh_create_token else plan.claim.link.create_token


def settled_values(plan: Plan, mapper: Mapper | None, unsubscription: int | None, now: datetime) -> state.Values:
    """Return the values of a link that is up to date, or for which nothing is to be sent."""
    link, is_skipped = plan.claim.link, plan.outcome == "skipped"
    values = state.settled(link, plan.owed_since) | {
        "unsubscription_id": unsubscription,
        # A create that was never begun, or that is done, has no unknown outcome.
        "create_token": earlier_create_token(plan) if is_skipped else None,
    }
    if not is_skipped or plan.claim.written_ahead:  # a write that was not inspected stays unconfirmed
        values["unconfirmed_write"] = None
    if is_skipped and plan.claim.written_ahead:
        values["write_windows"] = overwrites.dropped(link.write_windows)
    if is_skipped and plan.claim.found:
        values |= {name: getattr(link, name) for name in RECONCILABLE_COLUMNS} | {"create_token": None}
    if plan.outcome in ("delivered", "unchanged"):
        values |= _agreed_values(plan, mapper, now)
    return values


def _agreed_values(plan: Plan, mapper: Mapper | None, now: datetime) -> state.Values:
    """Return what hub and system agree on from now on."""
    link, external = plan.claim.link, plan.external
    # Without the system's time no event can be known to be newer than our write: events are fetched until one is.
    wrote = external.at if external is not None and external.at is not None else UNKNOWN_TIME
    if plan.operation in ("delete", "unlink"):
        ended = state.unlinked(now, deleted_remotely=False)
        return ended | {"external_id": link.external_id, "last_write_at": wrote}
    if plan.operation == "archive":
        # It stays linked. If the record is created again, everything is sent.
        forgotten = {"base": None, "remote_values": None, "remote_version": None}
        return {"synced_at": now, **forgotten, "last_write_at": wrote}
    if plan.operation not in ("create", "update", "match"):
        forgotten = {"base": None, "remote_values": None} if plan.claim.record is None else {}
        return {"synced_at": now, **forgotten}
    return _written_values(plan, mapper, now, wrote)


def _written_values(plan: Plan, mapper: Mapper | None, now: datetime, wrote: datetime) -> state.Values:
    link, external = plan.claim.link, plan.external
    values = _agreed_base(plan, mapper) | {
        "synced_at": now,
        "unlinked_at": None,
        "deleted_remotely": False,
        "created_without_id": False,
        "open_conflicts": len(plan.claim.conflicted),
    }
    if plan.outcome == "delivered":
        values["last_write_at"] = link.last_write_at if plan.operation == "match" else wrote
        values["remote_version"] = _answered_version(plan, mapper, values)
        values["write_windows"] = overwrites.ended(link.write_windows, wrote)
    else:
        values["write_windows"] = overwrites.dropped(link.write_windows)
    if external is not None or link.external_id is not None:
        values["external_id"] = external.id if external is not None else link.external_id
    return values


def _agreed_base(plan: Plan, mapper: Mapper | None) -> state.Values:
    """Return the base, and the system's form of it where that differs."""
    link = plan.claim.link
    not_ours = {**plan.claim.conflicted, **plan.claim.remote_sibling_edits}
    sent = plan.sent if plan.operation != "match" else set()
    shown = plan.response(mapper) if mapper is not None else {}
    known = (link.remote_values or {}) if link.is_linked else {}
    remote_values = {p: v for p, v in known.items() if p not in sent or p in not_ours}
    remote_values |= {
        p: shown[p] for p in sent if p in shown and p not in not_ours and not same(shown[p], plan.flat[p])
    }
    ours = {p: v for p, v in plan.flat.items() if p not in not_ours}
    # Fields that only come in, and fields in conflict, keep their base.
    kept = {p: v for p, v in (link.base or {}).items() if p not in ours} if link.is_linked else {}
    return {"base": {**kept, **ours}, "remote_values": remote_values or None}


def _answered_version(plan: Plan, mapper: Mapper | None, values: state.Values) -> str | None:
    """Return the version in the response; None if an edit that is not known here may be part of that state.

    A conditional write has overwritten none. Any other response must show all fields as they are known.
    """
    external = plan.external
    if external is None or external.version is None or mapper is None:
        return None
    base, remote_values, shown = values["base"], values["remote_values"], plan.response(mapper)
    is_sure = plan.operation == "create" or (plan.item is not None and plan.item.version is not None)
    is_known = (is_sure or base.keys() <= shown.keys()) and not unseen_edits(base, remote_values, shown)
    return external.version if is_known else None


def failed_values(plan: Plan, error: SyncError) -> state.Values:
    """Return what a failure reveals about the write: whether it may have happened, and with which data."""
    claim = plan.claim
    may_have_happened = plan.duration is not None and error.maybe_done
    values: state.Values = {}
    if isinstance(error, Outdated):
        values["remote_version"] = None
    if error.code == CREATED_WITHOUT_ID:
        values["created_without_id"] = True
    if not claim.link.is_linked and not (may_have_happened and plan.operation == "create"):
        values["create_token"] = earlier_create_token(plan)
    if claim.written_ahead and not may_have_happened:
        # The call did nothing, or was not made.
        values["unconfirmed_write"] = None
        values["write_windows"] = overwrites.dropped(claim.link.write_windows)
    return values


def delivery_row(subscriber: Subscriber, plan: Plan, now: datetime) -> dict[str, Any]:
    """Return the history's row of a delivery."""
    link, external, error = plan.claim.link, plan.external, plan.error
    request_id = error.request_id if error else external.request_id if external else None
    answer = error.response if error else external.data if external else None
    payload = {path: plan.flat[path] for path in sorted(plan.sent)}
    return {
        "subscriber": subscriber.name(),
        "record_id": plan.claim.record_id,
        "external_id": external.id if external is not None else link.external_id,
        "direction": "out",
        "operation": plan.operation,
        "outcome": plan.outcome,
        "reason": plan.reason,
        "error": type(error).__name__ if error else None,
        "payload": shorten(payload) or None,
        "response": response_text(answer) if answer else None,
        "attempt": link.attempts + 1,
        "request_id": request_id,
        "at": now,
        "duration": plan.duration,
    }
