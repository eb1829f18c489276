"""Responses: what a system made of a write, from its response or, where that does not show it, from reading it once.

A system may store another form of a value than was sent (lower case, rounded, shortened). Unless that form is known,
the next poll shows it as an edit. And a create whose response has no id must not be sent again: its record is found, or
the dead letter says that it cannot be.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

from conductor.links.stored_forms import may_be_form
from conductor.outward import finding
from conductor.outward.planning import Plan
from subscribers.base import Subscriber, normalize_incoming
from subscribers.calls import call_safely
from subscribers.errors import Gone, Retry, SyncError, Unidentifiable, Unidentified
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.values import is_empty, same
from subscribers.records import External

logger = logging.getLogger(__name__)

#: Clocks of HTTP responses tick in seconds, and the response comes after the write: a later state was edited since.
_TICK = timedelta(seconds=1)


def take_outcomes(subscriber: Subscriber, plans: list[Plan], outcomes: Any, milliseconds: float) -> None:
    """Give each plan its outcome of a call; an error of the call is the outcome of all."""
    if isinstance(outcomes, SyncError):
        outcomes = [outcomes] * len(plans)
    for plan, outcome in zip(plans, _in_order(plans, list(outcomes)), strict=True):
        plan.called, plan.duration = True, milliseconds
        if outcome is None and plan.operation == "create":
            plan.fail(Unidentified("create returned no id"))
        elif isinstance(outcome, SyncError):
            plan.fail(outcome)
        else:
            plan.external = outcome and _normalize(subscriber, outcome)
            plan.finish("delivered", plan.doubt)


def _in_order(plans: list[Plan], outcomes: list[Any]) -> list[Any]:
    """Return an outcome for each plan; in a list that is too short or in another order, each goes to whom it names.

    A record that no outcome names is looked up before it is sent again.
    """
    of_record = {name: plan for plan in plans for name in (plan.claim.record_id, plan.item and plan.item.mark)}
    of_external = {plan.item.external_id: plan for plan in plans if plan.item is not None and plan.item.external_id}
    named = [
        (of_external.get(one.id) or of_record.get(one.mark)) if isinstance(one, External) else None for one in outcomes
    ]
    is_complete = len(outcomes) == len(plans)
    if is_complete and all(plan is None or plan is own for plan, own in zip(named, plans, strict=True)):
        return outcomes
    found = {plan.claim.record_id: one for plan, one in zip(named, outcomes, strict=True) if plan is not None}
    unnamed = Retry(f"none of the {len(outcomes)} outcomes for {len(plans)} records names this one", maybe_done=True)
    return [found.get(plan.claim.record_id, unnamed) for plan in plans]


def _normalize(subscriber: Subscriber, external: External) -> External:
    """Return the response to a write as our fields. If `after_receive` fails, its id is used and its data are not."""
    made = call_safely(normalize_incoming, subscriber, external)
    if isinstance(made, SyncError):
        logger.error("%s %s: the response cannot be used: %s", subscriber.name(), external.id, made, exc_info=made)
        return replace(external, data={})
    return cast("External", made)


# --- a create whose response has no id ----------------------------------------------------------------------


def verify_gone(subscriber: Subscriber, plans: list[Plan]) -> None:
    """Fetch the linked records that a call reported as gone, before that is believed.

    Such a response may also mean a record that this one refers to, or a wrong address. A subscriber without `fetch` is
    believed.
    """
    doubted = [plan for plan in plans if plan.error is not None and plan.error.unlinks and plan.claim.link.is_linked]
    if not doubted or not subscriber.can_fetch:
        return
    subscriber.client.pace()
    ids = [plan.item.linked_id for plan in doubted if plan.item is not None]
    found = call_safely(subscriber.bulk_fetch, ids)
    for plan, one in zip(doubted, [found] * len(doubted) if isinstance(found, SyncError) else found, strict=True):
        assert plan.error is not None
        plan.fail(_seen_or_gone(subscriber, plan.error, one).with_response(plan.error.response))


def _seen_or_gone(subscriber: Subscriber, gone: SyncError, found: External | SyncError) -> SyncError:
    """Return the error of a record that was reported as gone, by what a fetch found."""
    if isinstance(found, SyncError) and found.merged_into is not None:
        message = f"it was merged there into {found.merged_into}; the next poll will report it"
        return Retry(message, after=subscriber.poll_seconds, request_id=gone.request_id)
    if isinstance(found, SyncError):
        return gone if found.unlinks else found
    message = f"it is reported as gone but can be read, so a record that it refers to may be missing: {gone}"
    return Retry(message, request_id=gone.request_id, code="reference_missing")


def find_created(subscriber: Subscriber, plan: Plan) -> External | SyncError:
    """Return the record that a create has made: by our mark, or by its match values."""
    if not subscriber.can_identify:
        return Unidentifiable(
            f"{subscriber.system} has created it, and there is nothing to find its id by: "
            "set a field for our mark (record_id_field) or match_on, then retry"
        )
    found = call_safely(_find_created, subscriber, plan)
    if found is None:
        return Unidentified(f"{subscriber.system} has created it, and it is not found there yet")
    return cast("External | SyncError", found)


def _find_created(subscriber: Subscriber, plan: Plan) -> External | None:
    assert plan.item is not None
    subscriber.client.pace()
    if (found := finding.find(subscriber, plan, complete=True)) is not None:
        return found
    # One with the mark of another record or hub is not this one.
    matching = [one for one in subscriber.find_matching(plan.item) if finding.is_ours(subscriber, plan, one)]
    return normalize_incoming(subscriber, matching[0], complete=True) if len(matching) == 1 else None


def identify_created(subscriber: Subscriber, plan: Plan) -> None:
    """Find the record of a create whose response had no id; the plan fails where that is not possible."""
    assert plan.item is not None
    found = find_created(subscriber, plan)
    if isinstance(found, External):
        plan.error, plan.external = None, found
        plan.finish("delivered", "the response had no id; the record was found")
    elif isinstance(found, Unidentified) and plan.error is not None:
        plan.fail(
            type(found)(f"{plan.error}; {found}", request_id=plan.error.request_id).with_response(plan.error.response)
        )


# --- a write whose response does not show what was stored ---------------------------------------------------


def needs_read_back(subscriber: Subscriber, plan: Plan, mapper: Mapper) -> bool:
    """Whether the record has to be read: the response does not show what the system made of our values."""
    wrote = plan.outcome == "delivered" and plan.operation in ("create", "update")
    if not wrote or subscriber.read_back == "never" or not subscriber.can_fetch:
        return False
    shown = plan.response(mapper)
    is_missing = any(path not in shown and not is_empty(plan.flat[path]) for path in plan.ours)
    return subscriber.read_back == "always" or is_missing or _shows_former(plan, mapper)


def read_back(subscriber: Subscriber, plans: list[Plan], mapper: Mapper) -> None:
    """Read the records of these plans, and take what the system made of our values.

    A record that cannot be read now keeps its response: an edit or another form of it shows at the next poll.
    """
    ids = [plan.external.id if plan.external is not None else _linked_id(plan) for plan in plans]
    found = call_safely(subscriber.bulk_fetch, ids)
    if isinstance(found, SyncError) or len(found) != len(plans):
        found = [found] * len(plans)
    for plan, external_id, one in zip(plans, ids, found, strict=True):
        normal = call_safely(normalize_incoming, subscriber, one) if isinstance(one, External) else one
        if isinstance(normal, External) and (normal.id == external_id or normal.id not in ids):
            _take_stored(plan, normal, mapper)
        elif plan.operation == "create" and isinstance(one, Gone) and subscriber.can_identify:
            _correct_id(subscriber, plan, external_id)
        else:
            logger.info("%s %s could not be read after it was written: %s", subscriber.name(), external_id, normal)


def _correct_id(subscriber: Subscriber, plan: Plan, external_id: str) -> None:
    """Take the id of the created record where it can be found: that in the response is the id of something else."""
    found = find_created(subscriber, plan)
    if isinstance(found, External):
        plan.external = found
        plan.reason = f"the response had the id {external_id}, which leads nowhere; the record was found"
    else:
        logger.info("%s %s cannot be read after it was created: %s", subscriber.name(), external_id, found)


def _linked_id(plan: Plan) -> str:
    assert plan.item is not None
    return plan.item.linked_id


def _take_stored(plan: Plan, stored: External, mapper: Mapper) -> None:
    answer = plan.external
    # The time of a response with data is that of the state in it, which may be an old one.
    answered_at = answer.at if answer is not None and not answer.data else None
    if answered_at is not None and stored.at is not None and stored.at >= answered_at + _TICK:
        return  # edited since: its event shows the edit
    plan.external = replace(
        stored,
        at=stored.at or answered_at,
        request_id=(answer.request_id if answer is not None else None) or stored.request_id,
    )
    if plan.operation == "update" and plan.differing and all(_is_former(plan, path, mapper) for path in plan.differing):
        fields = ", ".join(plan.differing)
        plan.outcome, plan.external = None, None
        plan.fail(Retry(f"the write was accepted, but the record still has the former {fields}", maybe_done=True))


def _shows_former(plan: Plan, mapper: Mapper) -> bool:
    return plan.operation == "update" and any(_is_former(plan, path, mapper) for path in plan.differing)


def _is_former(plan: Plan, path: str, mapper: Mapper) -> bool:
    """Whether the system shows the value from before the write, which is no form of ours."""
    base, shown = plan.claim.link.base or {}, plan.response(mapper)
    if path not in base or path not in shown or same(shown[path], plan.flat[path]):
        return False
    former = (plan.claim.link.remote_values or {}).get(path, base[path])
    return same(shown[path], former) and not may_be_form(plan.flat[path], shown[path])
