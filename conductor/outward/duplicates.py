"""Duplicates: a system refuses a record because another one there has a value that must be unique.

That other record is looked up. If no record of ours is linked to it, it is ours: it is linked by its match values, and
both sides are merged. If it belongs to a record of ours that is about to release the value, this one waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import sqlalchemy as sa

from conductor.context import Context
from conductor.links import state
from conductor.links.cycles import waits_for
from conductor.links.row import LinkRow, link_row
from conductor.outward import finding
from conductor.outward.outcomes import earlier_create_token, unless_newer
from conductor.outward.planning import Plan
from models.ledger import Change, Link
from subscribers.base import Subscriber, normalize_incoming
from subscribers.calls import call_safely
from subscribers.errors import Reject, SyncError
from subscribers.mapping.values import is_empty, same
from subscribers.records import External

#: Codes of the errors by which a system says that it has such a record already.
DUPLICATE_CODES = ("conflict", "duplicate")

#: Links that are owed a change and are compared with the refused values.
_MOST_HOLDERS = 500


@dataclass
class Decision:
    """What follows from a duplicate: the values of the link, and the links to publish. `error` fails the record."""

    values: state.Values | None = None
    publish: tuple[str, str] | None = None
    error: SyncError | None = None


def is_duplicate(plan: Plan) -> bool:
    """Whether the system refused a record because it has another one like it."""
    return plan.operation in ("create", "update") and plan.error is not None and plan.error.code in DUPLICATE_CODES


def look_up(subscriber: Subscriber, plan: Plan) -> None:
    """Find the record there that has the value already (`plan.existing`), as far as it can be found."""
    found = call_safely(_existing, subscriber, plan)
    if isinstance(found, SyncError):
        if found.pauses_system:
            plan.fail(found)
        return
    plan.existing = cast("External | None", found)


def _existing(subscriber: Subscriber, plan: Plan) -> External | None:
    item, existing_id = plan.item, plan.error.existing_id if plan.error is not None else None
    assert item is not None
    subscriber.client.pace()
    found = finding.find(subscriber, plan) if item.external_id is None else None
    if found is not None:
        return found
    if existing_id is not None:
        one = subscriber.fetch(existing_id)
        return normalize_incoming(subscriber, one) if _may_be(subscriber, plan, one) else None
    matching = [one for one in subscriber.find_matching(item) if one.id != item.external_id]
    return normalize_incoming(subscriber, matching[0]) if len(matching) == 1 else None


def _may_be(subscriber: Subscriber, plan: Plan, found: External) -> bool:
    is_marked = found.mark is not None and finding.is_ours(subscriber, plan, found)
    return is_marked or finding.is_match(subscriber, plan, found)


def is_exchange(connection: sa.Connection, subscriber: Subscriber, plan: Plan) -> bool:
    """Whether the record that has the value there waits for a value of this one."""
    holder = _link_to(connection, subscriber, plan.existing)
    return holder is not None and waits_for(connection, holder, plan.claim.link.id)


def free(subscriber: Subscriber, plan: Plan) -> None:
    """Empty the unique fields of a record there, if they may be empty: another record takes their values."""
    paths = [path for path in _unique_paths(subscriber, plan) if path in plan.differing and "." not in path]
    if plan.item is None or not paths or any(subscriber.mapper.entry(path).required for path in paths):
        return
    item = replace(plan.item, data={**plan.item.data, **dict.fromkeys(paths)}, changes=dict.fromkeys(paths))
    subscriber.client.pace()
    outcomes = call_safely(subscriber.bulk_update, [item])
    if not isinstance(outcomes, SyncError) and not any(isinstance(one, SyncError) for one in outcomes):
        plan.freed = paths


def freeing_first(subscriber: Subscriber, plans: list[Plan]) -> list[Plan]:
    """Sort updates so that one that releases a match value comes before the one that takes it."""
    matched = [path for path in map(subscriber.mapper.path_of, subscriber.match_on) if path is not None]
    paths = matched or list(dict.fromkeys(path for plan in plans for path in plan.differing))
    frees = {
        (path, str((plan.claim.link.base or {}).get(path))): plan
        for plan in plans
        for path in paths
        if path in plan.differing and not is_empty((plan.claim.link.base or {}).get(path))
    }
    ordered: dict[int, Plan] = {}
    for plan in plans if frees else ():
        chain, seen = [plan], {plan.claim.link.id}
        while (before := next(_freed_for(chain[-1], paths, frees), None)) and before.claim.link.id not in seen:
            seen.add(before.claim.link.id)
            chain.append(before)
        ordered |= {one.claim.link.id: one for one in reversed(chain) if one.claim.link.id not in ordered}
    return list(ordered.values()) or plans


def _freed_for(plan: Plan, paths: list[str], frees: dict[tuple[str, str], Plan]) -> Iterator[Plan]:
    taken = (frees.get((path, str(plan.flat.get(path)))) for path in paths if path in plan.differing)
    return (one for one in taken if one is not None and one is not plan)


class Duplicates:
    """Decides about records that a system refused as duplicates, in the transaction that records the decision."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def judge(self, connection: sa.Connection, subscriber: Subscriber, plan: Plan) -> Decision:
        """Return what follows; nothing where the record that has the value is unknown."""
        holder = _link_to(connection, subscriber, plan.existing) or self._about_to_free(connection, subscriber, plan)
        if holder is not None and holder.id != plan.claim.link.id:
            return self._wait_for(connection, subscriber, plan, holder)
        if plan.existing is None or plan.operation != "create":
            return self._try_again(plan) or Decision()
        return self._link(subscriber, plan, plan.existing)

    def _link(self, subscriber: Subscriber, plan: Plan, existing: External) -> Decision:
        """Link the record: without a base, both sides are merged before anything is sent."""
        plan.error = None
        plan.finish("waiting", f"{subscriber.system} has it already, as {existing.id}")
        retry_at = unless_newer(plan, self.context.later(self.context.policy.stale_seconds))
        return Decision(state.linked(existing.id, base={}) | state.postponed(0, retry_at))

    def _try_again(self, plan: Plan) -> Decision | None:
        """Try once more: another process, or the rest of this batch, may have released the value meanwhile."""
        if plan.claim.link.attempts or self.context.policy.max_attempts == 1:
            return None
        plan.finish("failed", str(plan.error))
        plan.error = None
        again = state.postponed(1, unless_newer(plan, self.context.later(self.context.policy.retry_min_seconds)))
        return Decision(self._unsent(plan) | again)

    @staticmethod
    def _unsent(plan: Plan) -> state.Values:
        values: state.Values = {"create_token": earlier_create_token(plan)} if plan.operation == "create" else {}
        return values | ({"unconfirmed_write": None} if plan.claim.written_ahead else {})

    def _wait_for(self, connection: sa.Connection, subscriber: Subscriber, plan: Plan, holder: LinkRow) -> Decision:
        what = f"{subscriber.catalogue} {holder.record_id}"
        is_gone = holder.record_id not in subscriber.records.read(connection, [holder.record_id])
        is_coming = holder.is_owed or _is_captured(connection, subscriber, holder.record_id)
        if not is_coming:
            keeps = subscriber.on_delete in ("ignore", "unlink") and plan.operation == "create"
            if is_gone and keeps and plan.existing is not None:
                state.write(connection, holder.id, state.recreated())
                return self._link(subscriber, plan, plan.existing)
            why = f"{what} is linked to that record of {subscriber.system}"
            return self._try_again(plan) or Decision(error=_refused(plan, why))
        if holder.dead_at is not None:
            return Decision(error=_refused(plan, f"{what} has the value there, and is a dead letter"))
        if waits_for(connection, holder, plan.claim.link.id) and not plan.freed:
            message = f"it exchanges a unique value with {what}: give one of them an unused value first, then its own"
            return Decision(error=_refused(plan, message))
        plan.error = None
        plan.finish("waiting", f"waiting until {what} releases its value in {subscriber.system}")
        retry_at = unless_newer(plan, self.context.later(self.context.policy.retry_min_seconds))
        values = self._unsent(plan) | state.blocked(holder.id, retry_at)
        if plan.freed:
            values["base"] = {**(plan.claim.link.base or {}), **dict.fromkeys(plan.freed)}
            values["remote_version"] = None
        return Decision(values, publish=(subscriber.name(), holder.record_id))

    @staticmethod
    def _about_to_free(connection: sa.Connection, subscriber: Subscriber, plan: Plan) -> LinkRow | None:
        """Return a link that is owed a change and has one of the refused values there, where no look-up found it."""
        if plan.existing is not None:
            return None
        paths = _unique_paths(subscriber, plan)
        owed = sa.select(Link.__table__).where(
            Link.subscriber == subscriber.name(),
            Link.owed_change > Link.synced_change,
            Link.external_id.is_not(None),
            Link.unlinked_at.is_(None),
            Link.id != plan.claim.link.id,
        )
        for row in connection.execute(owed.order_by(Link.id).limit(_MOST_HOLDERS)):
            holder = link_row(row)
            known = {**(holder.base or {}), **(holder.remote_values or {})}
            if any(path in known and same(known[path], plan.flat[path]) for path in paths):
                return holder
        return None


def _unique_paths(subscriber: Subscriber, plan: Plan) -> list[str]:
    """Return the fields that may have to be unique: those that the system names, or the match fields, or all texts."""
    sent = {path: value for path, value in plan.flat.items() if not is_empty(value)}
    named = [path for path in (plan.error.fields if plan.error is not None else ()) if path in sent]
    matched = [path for path in map(subscriber.mapper.path_of, subscriber.match_on) if path is not None]
    return named or [path for path in matched if path in sent] or [p for p, v in sent.items() if isinstance(v, str)]


def _refused(plan: Plan, why: str) -> Reject:
    assert plan.error is not None
    error = Reject(f"{plan.error}; {why}", fields=plan.error.fields, code="duplicate")
    error.request_id = plan.error.request_id
    return error.with_response(plan.error.response)


def _link_to(connection: sa.Connection, subscriber: Subscriber, external: External | None) -> LinkRow | None:
    if external is None:
        return None
    same_record = sa.select(Link.__table__).where(Link.subscriber == subscriber.name(), Link.external_id == external.id)
    row = connection.execute(same_record).one_or_none()
    return None if row is None else link_row(row)


def _is_captured(connection: sa.Connection, subscriber: Subscriber, record_id: str) -> bool:
    """Whether a change of the record waits to be routed."""
    waiting = sa.select(Change.id).where(Change.relayed_at.is_(None))
    own = (Change.catalogue == subscriber.catalogue, Change.record_id == record_id)
    return connection.execute(waiting.where(*own).limit(1)).scalar() is not None
