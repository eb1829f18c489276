"""Finding: the record there that a create of ours has made, or that the system holds already."""

from __future__ import annotations

import logging

from conductor.links import in_doubt, marks
from conductor.outward.planning import Plan
from subscribers.base import Subscriber, normalize_incoming
from subscribers.records import External

logger = logging.getLogger(__name__)


def find(subscriber: Subscriber, plan: Plan, *, complete: bool = False) -> External | None:
    """Return what `Subscriber.find` finds for a record, unless its mark says that it is not ours."""
    assert plan.item is not None
    found = subscriber.find(plan.item)
    if found is None:
        return None
    if is_ours(subscriber, plan, found):
        return normalize_incoming(subscriber, found, complete=complete)
    plan.doubt = f"{found.id} there is another record: {marks.parse(found.mark)}"
    logger.warning("%s %s: %s", subscriber.name(), plan.item.record_id, plan.doubt)
    return None


def is_ours(subscriber: Subscriber, plan: Plan, found: External) -> bool:
    """Whether the mark of a record that was found allows that it is this one; the match values confirm a plain mark."""
    item = plan.item
    assert item is not None

    def is_confirmed() -> bool:
        if is_match(subscriber, plan, found):
            return True
        return in_doubt.is_as_sent(plan.claim.link.unconfirmed_write, subscriber.mapper.flatten(found.data))

    return marks.is_of(found.mark, item.record_id, item.hub, is_confirmed)


def is_match(subscriber: Subscriber, plan: Plan, found: External) -> bool:
    """Whether a record there has the match values of this one."""
    wanted = subscriber.match_values(plan.item.data) if plan.item is not None else {}
    return bool(wanted) and subscriber.is_match(found.data, wanted)
