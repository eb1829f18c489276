"""Planning: which operation a claimed record needs, and which fields it sends. Calls no system and writes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from conductor.internal.absence import Absent, Unreadable
from conductor.links.relations import Related, Relations, our_side
from conductor.links.row import LinkRow
from conductor.links.rules import Rule
from conductor.systems.circuit_breaker import Permit
from models.catalogues import Record, UnreadableRecord
from subscribers.base import Subscriber
from subscribers.calls import call_safely
from subscribers.errors import Reject, SyncError
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.paths import nest, tops, tops_of
from subscribers.mapping.values import Flat, same
from subscribers.records import External, Item

#: What an unconfirmed write is compared with later; it is stored together with the write.
RECONCILABLE_COLUMNS = (
    "external_id",
    "unlinked_at",
    "base",
    "remote_values",
    "unconfirmed_write",
    "write_windows",
    "last_write_at",
    "remote_version",
)


@dataclass
class Claim:
    """A link under our lease, with its record as it is now (None: it does not exist)."""

    link: LinkRow
    #: The link's version when it was read; the claim succeeds only if it is still the same.
    version: str
    record: Record | None
    #: True: no create was begun before.
    fresh_create_token: bool
    #: Fields whose conflict waits for an operator -> the system's value.
    conflicted: Flat = field(default_factory=dict)
    #: Sibling fields in a nested object that were edited there, and whose event has not arrived -> the system's value.
    remote_sibling_edits: Flat = field(default_factory=dict)
    #: What is about to be sent is on disk.
    written_ahead: bool = False
    #: The outcome of an earlier create was unknown, and its record was found.
    found: bool = False
    #: What the system holds, as just fetched.
    seen: External | None = None
    #: Without a record: whether its deletion was captured.
    is_deleted: bool = False
    #: Without a record: what of it cannot be read.
    unreadable: UnreadableRecord | None = None

    @property
    def record_id(self) -> str:
        """The record's id in the ledger."""
        return self.link.record_id

    def update_link(self, **values: Any) -> None:
        """Continue with these values of the link."""
        self.link = self.link._replace(**values)


@dataclass
class DeliveryBatch:
    """Records of one subscriber under one lease, and what is needed to plan for them."""

    token: str
    #: Whether the system may be called, as of when the links were read.
    permit: Permit
    claims: list[Claim] = field(default_factory=list)
    #: None: the mapping saved in the panel no longer fits its table.
    mapper: Mapper | None = None
    rules: list[Rule] = field(default_factory=list)
    related: Related = field(default_factory=Related)
    #: The id of this hub, as of when the links were read.
    hub: str = ""
    #: The system answered a call, though perhaps not about one of these records.
    is_answered: bool = False

    @property
    def record_ids(self) -> list[str]:
        """The records of the batch."""
        return [claim.record_id for claim in self.claims]


@dataclass
class Plan:
    """What one claim needs, and then its outcome."""

    claim: Claim
    #: create, update, delete, archive, unlink, match or none.
    operation: str = "none"
    item: Item | None = None
    flat: Flat = field(default_factory=dict)
    #: The fields of an update in which ours differs from what the system is known to hold.
    differing: list[str] = field(default_factory=list)
    #: delivered, unchanged, skipped, failed, dead or waiting; None until it is known.
    outcome: str | None = None
    reason: str | None = None
    error: SyncError | None = None
    external: External | None = None
    #: The record that the system has already, where it refused this one as a duplicate.
    existing: External | None = None
    #: Fields that were emptied there, so that another record can take their values.
    freed: list[str] = field(default_factory=list)
    rule: Rule | None = None
    #: The rule was lifted before the outcome was recorded.
    lifted: bool = False
    #: It turned out to be gone, and the delete guard waits for an operator.
    is_held: bool = False
    #: What the link is owed when the outcome is recorded: more than was claimed, if the record has changed since.
    owed_now: int = 0
    #: Since when it is owed what was not claimed.
    owed_since: datetime | None = None
    #: A record there has our record's id in its mark, but is not believed to be ours, for this reason.
    doubt: str | None = None
    #: References to records of a cycle were left out; the next update sends them.
    lacks_references: bool = False
    #: The system was called for it, if only to inspect what it holds.
    called: bool = False
    #: Whether an update replaces a nested object as a whole, by its name.
    replaces: Callable[[str], bool] = field(default=lambda name: False, repr=False)
    #: Milliseconds of the call that writes it.
    duration: float | None = None
    #: What `response` was computed from, and the result.
    _flat_response: tuple[External, Flat] | None = field(default=None, init=False, repr=False)
    #: What `sent` was computed from, and the result.
    _sent: tuple[tuple[Any, ...], set[str]] | None = field(default=None, init=False, repr=False)

    @property
    def is_open(self) -> bool:
        """Whether it has no outcome yet."""
        return self.outcome is None and self.error is None

    @property
    def is_down(self) -> bool:
        """Whether the call failed because the system is down."""
        return self.error is not None and self.error.pauses_system

    @property
    def sent(self) -> set[str]:
        """The fields that travel: of an update only what differs, by whole top-level objects."""
        source = (self.operation, self.item, self.flat)
        if self._sent is None or any(now is not then for now, then in zip(source, self._sent[0], strict=True)):
            self._sent = source, self._travelling()
        return self._sent[1]

    def _travelling(self) -> set[str]:
        if self.operation == "create" or self.item is None:
            return set(self.flat)
        travels = self.item.changes.keys()
        return {path for path in self.flat if not travels.isdisjoint(tops_of(path))}

    @property
    def sibling_fields(self) -> set[str]:
        """The fields of an update that travel only because one field of their object differs."""
        return self.sent.difference(self.differing, self.claim.conflicted)

    @property
    def nested(self) -> list[str]:
        """The nested objects that travel and are replaced as a whole, with whatever is in them."""
        if self.item is None or self.operation not in ("update", "archive"):
            return []
        inner = {top for path in self.sent for top in tops_of(path) if top != path or isinstance(self.flat[path], list)}
        return [top for top in self.item.changes if top in inner and self.replaces(top)]

    @property
    def ours(self) -> Flat:
        """What travels with our value, not with the value that the system holds."""
        kept = set(self.claim.remote_sibling_edits) | set(self.claim.conflicted)
        return {path: self.flat[path] for path in self.sent - kept}

    @property
    def was_answered(self) -> bool:
        """Whether the system answered the call, if only with an error."""
        return self.duration is not None and not (self.error is not None and self.error.may_be_outage)

    def response(self, mapper: Mapper) -> Flat:
        """Return the mapped fields of the system's response, flat."""
        if self.external is None:
            return {}
        if self._flat_response is None or self._flat_response[0] is not self.external:
            self._flat_response = self.external, mapper.flatten(self.external.data)
        return self._flat_response[1]

    @property
    def to_merge(self) -> str | None:
        """The external id of a record that was found, and is merged before anything is sent."""
        link = self.claim.link
        if self.outcome != "waiting":
            return None
        if self.existing is not None:
            return self.existing.id
        return link.external_id if link.is_linked and link.base == {} else None

    def finish(self, outcome: str, reason: str | None = None) -> None:
        """Set the outcome."""
        self.outcome, self.reason = outcome, reason

    def fail(self, error: SyncError) -> None:
        """End with this error; what it means is decided when it is recorded."""
        self.error = error


class Unseen(NamedTuple):
    """The links of writes before which a look is needed. `creates` may exist there already, by their match fields."""

    updates: list[LinkRow]
    deletes: list[LinkRow]
    creates: list[LinkRow]


def make_claim(link: LinkRow, version: str, record: Record | None, token: str, conflicted: Flat) -> Claim:
    """Make the claim of a link as it will be under the lease `token`."""
    fresh = not link.is_linked and link.create_token is None
    if fresh:
        # The token is on disk before the call that creates.
        link = link._replace(create_token=token)
    return Claim(link, version, record, fresh, conflicted)


def plan_delivery(subscriber: Subscriber, claim: Claim, batch: DeliveryBatch) -> Plan:
    """Decide what one record needs."""
    # Without `fetch`, the parts of an object that are not mapped are unknown, so that it is sent as it is mapped.
    plan = Plan(claim, replaces=subscriber.replaces) if subscriber.can_fetch else Plan(claim)
    if batch.mapper is None:
        plan.fail(Reject(f"the mapping of {subscriber.name()} no longer fits its table", code="mapping_outdated"))
        return plan
    outcome = call_safely(_choose, subscriber, plan, batch, batch.mapper)
    if isinstance(outcome, SyncError):
        plan.fail(outcome)
    apply_unsubscriptions(plan, batch.rules)
    return plan


def unseen_writes(subscriber: Subscriber, plans: Iterable[Plan], mapper: Mapper | None) -> Unseen:
    """Return the writes that may overwrite an edit made in the system, or repeat a record that was created there.

    A field whose conflicts ours always wins needs no look.
    """
    unseen = Unseen([], [], [])
    for plan in plans:
        link = plan.claim.link
        if mapper is None or not plan.is_open:
            continue
        if plan.operation == "create" and plan.claim.fresh_create_token and subscriber.match_on:
            unseen.creates.append(link)
        if not link.is_linked or link.base is None:
            continue
        if plan.operation == "update" and any(_may_lose(mapper, path) for path in plan.differing):
            unseen.updates.append(link)
        elif plan.operation in ("delete", "archive") and any(_may_lose(mapper, path) for path in link.base):
            unseen.deletes.append(link)
    return unseen


def _may_lose(mapper: Mapper, path: str) -> bool:
    return mapper.accepts_inward(path) and mapper.entry(path).conflict != "internal"


def end_unseen(plans: Iterable[Plan], errors: Mapping[int, SyncError], waiting: Container[int]) -> None:
    """End the plans of records that could not be looked at, or that another process polls, merges or delivers."""
    for plan in plans:
        if plan.is_open and (error := errors.get(plan.claim.link.id)) is not None:
            plan.fail(error)
        elif plan.is_open and plan.claim.link.id in waiting:
            plan.finish("waiting", "another process is reading what changed there")


def apply_unsubscriptions(plan: Plan, rules: list[Rule]) -> None:
    """Skip what an unsubscription covers."""
    if plan.outcome is not None or plan.operation == "none":
        return
    plan.rule = next((rule for rule in rules if rule.covers(plan.operation, plan.claim.record_id)), None)
    if plan.rule is not None:
        plan.error = None
        plan.finish("skipped", plan.rule.reason)


def _choose(subscriber: Subscriber, plan: Plan, batch: DeliveryBatch, mapper: Mapper) -> None:
    claim = plan.claim
    if claim.unreadable is not None:
        raise Unreadable(claim.unreadable)
    if claim.record is None:
        if not claim.is_deleted:
            raise Absent(subscriber.records, claim.record_id)
        _choose_removal(subscriber, plan, batch.hub)
        return
    if not subscriber.wants(claim.record):
        plan.finish("skipped", f"{subscriber.name()} filters this record out")
        return
    # Where on_gone deletes our record as well, one that exists was created since, and is sent.
    stays_unlinked = claim.link.deleted_remotely and subscriber.on_gone in ("unlink", "archive")
    if claim.link.unlinked_at is not None and stays_unlinked:
        when = f"{claim.link.unlinked_at:%Y-%m-%d %H:%M} UTC"
        plan.finish("skipped", f"it was deleted in {subscriber.system} at {when} and has been unlinked since then")
        return
    if claim.link.is_linked and claim.link.base == {}:
        plan.finish("waiting", f"it was found in {subscriber.system}; both sides will be merged first")
        return
    plan.operation = "update" if claim.link.is_linked else "create"
    record = Relations.check(subscriber, mapper, claim.link, claim.record, batch.related)
    plan.lacks_references = record != claim.record
    plan.flat, data = our_side(subscriber, mapper, record, batch.related, strict=True)
    if claim.conflicted:
        _keep_conflicted_values(claim, plan.flat)
        data = nest(plan.flat, onto=data)
    subscriber.validate(data)
    plan.differing = differing_fields(plan.flat, claim.link.base or {}, claim.conflicted)
    # An unconfirmed write may have arrived, so it is inspected even where our values are the agreed ones again.
    if claim.link.is_linked and not plan.differing and claim.link.unconfirmed_write is None:
        plan.finish("unchanged", "the system holds all of it already")
    changes = changed(data, plan.flat, plan.differing) if claim.link.is_linked else data
    plan.item = make_item(claim, data, changes, batch.hub)


def _choose_removal(subscriber: Subscriber, plan: Plan, hub: str) -> None:
    claim = plan.claim
    if not claim.link.is_linked:
        if claim.fresh_create_token or claim.link.unlinked_at is not None:
            plan.finish("unchanged", "the record is deleted, and the system does not have it")
            return
        plan.operation = "delete"  # a create was begun: the system may have the record, see `sending`
        plan.item = make_item(claim, {}, {}, hub)
        return
    policy = subscriber.on_delete
    if policy == "ignore":
        plan.finish("skipped", "the record is deleted; on_delete = ignore leaves it there")
    elif policy == "unlink":
        plan.operation = "unlink"
        plan.finish("delivered", "the record is deleted; on_delete = unlink leaves it there, detached")
    else:
        plan.operation = policy
        plan.flat = dict(subscriber.archive_data) if policy == "archive" else {}
        data = nest(plan.flat)
        plan.item = make_item(claim, data, data, hub)


def _keep_conflicted_values(claim: Claim, flat: Flat) -> None:
    """Keep the system's values of fields in conflict; forget conflicts in which both sides agree by now."""
    for path, theirs in list(claim.conflicted.items()):
        if path not in flat or same(flat[path], theirs):
            del claim.conflicted[path]
        else:
            flat[path] = theirs


def differing_fields(flat: Flat, base: Flat, conflicted: Flat) -> list[str]:
    """Return the fields in which ours differs from the base, without those in conflict."""
    return [p for p, v in flat.items() if p not in conflicted and (p not in base or not same(v, base[p]))]


def make_item(claim: Claim, data: dict[str, Any], changes: dict[str, Any], hub: str) -> Item:
    """Return the record as a subscriber's methods receive it."""
    # A create that is repeated has the same key. Edited data need another key, since systems refuse a key that
    # arrives with other data.
    is_linked = claim.link.is_linked
    seed = [hub, claim.link.subscriber, claim.record_id, claim.link.create_token, data]
    return Item(
        record_id=claim.record_id,
        record=claim.record or {},
        data=data,
        changes=changes,
        external_id=claim.link.external_id if is_linked else None,
        key=hashlib.sha256(_canonical(seed)).hexdigest()[:40],
        # After a write whose outcome is unknown, the version is unknown as well.
        version=claim.link.remote_version if is_linked and claim.link.unconfirmed_write is None else None,
        hub=hub,
    )


def changed(data: dict[str, Any], flat: Flat, differing: Iterable[str]) -> dict[str, Any]:
    """Return what an update sends: top-level fields in which something differs, and what `before_send` added."""
    unchanged = set(tops(flat)) - set(tops(differing))
    return {top: value for top, value in data.items() if top not in unchanged}


def _canonical(value: Any) -> bytes:
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError):  # a number of more than 64 bits, half a character
        return json.dumps(value, sort_keys=True, default=str).encode()
