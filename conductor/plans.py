"""A claimed record and what is planned for it: the data that travels through an outward delivery."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from conductor.relations import Related
from conductor.unsubscriptions import Rule
from models.catalogues import Record
from subscribers.base import External, Item
from subscribers.errors import Retry, SyncError
from subscribers.mapping import Flat, Mapper
from subscribers.paths import tops


@dataclass
class Claim:
    """A link under our lease, with the record as it is now (None: it does not exist)."""

    link: Any
    record: Record | None
    #: True: nobody has begun to create it before.
    fresh_intent: bool
    #: Fields whose conflict waits for a person -> what the system holds.
    asked: Flat = field(default_factory=dict)
    #: Fields beside ours in a nested object that were edited there and have not come in yet -> what the system holds.
    beside: Flat = field(default_factory=dict)

    #: What is about to be sent is on disk.
    told: bool = False

    @property
    def record_id(self) -> str:
        """The record's id in the ledger."""
        return str(self.link.record_id)

    @property
    def linked(self) -> bool:
        """Whether there is a live external record."""
        return self.link.external_id is not None and self.link.gone_at is None

    def now_with(self, **values: Any) -> None:
        """Go on as if the link had these values."""
        current = dict(self.link._mapping) if hasattr(self.link, "_mapping") else vars(self.link)
        self.link = SimpleNamespace(**{**current, **values})


@dataclass
class Batch:
    """Records of one subscriber under one lease, and what is needed to plan for them."""

    token: str
    claims: list[Claim] = field(default_factory=list)
    #: None: the mapping saved in the panel does not fit its table any more.
    mapper: Mapper | None = None
    rules: list[Rule] = field(default_factory=list)
    related: Related = field(default_factory=Related)


@dataclass
class Plan:
    """What is to be done about one claim, and then how it went."""

    claim: Claim
    #: create, update, delete, archive, unlink, match or none.
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

    @property
    def is_open(self) -> bool:
        """Whether something is still to be done."""
        return self.outcome is None and self.error is None

    @property
    def sent(self) -> set[str]:
        """The fields that travel: with an update only what differs, by whole top-level objects."""
        if self.operation == "create" or self.item is None:
            return set(self.flat)
        return {path for path in self.flat if any(top in self.item.changes for top in tops([path]))}

    @property
    def ours(self) -> Flat:
        """What travels and is ours: not what goes along as it stands there."""
        return {path: self.flat[path] for path in self.sent - set(self.claim.beside) - set(self.claim.asked)}

    @property
    def was_answered(self) -> bool:
        """Whether the system said anything at all."""
        return self.duration is not None and not (isinstance(self.error, Retry) and self.error.unanswered)

    def settle(self, outcome: str, reason: str | None = None) -> Plan:
        """Say how it ended."""
        self.outcome, self.reason = outcome, reason
        return self

    def fail(self, error: SyncError) -> Plan:
        """It ended with this error; what that means is decided when it is written down."""
        self.error = error
        return self


def make_item(claim: Claim, data: dict[str, Any], changes: dict[str, Any]) -> Item:
    """The record as a subscriber's methods are given it."""
    # The same creation, tried again, has the same key; an edited one must have another, since
    # systems refuse a key that comes with other data.
    seed = [claim.link.subscriber, claim.record_id, claim.link.intent, data]
    text = json.dumps(seed, sort_keys=True, default=str)
    return Item(
        record_id=claim.record_id,
        record=claim.record or {},
        data=data,
        changes=changes,
        external_id=claim.link.external_id if claim.linked else None,
        key=hashlib.sha256(text.encode()).hexdigest()[:40],
    )


def changed(data: dict[str, Any], flat: Flat, differing: Iterable[str]) -> dict[str, Any]:
    """What an update sends: top-level fields with something that differs, and what `before_send` added beside them."""
    same = set(tops(flat)) - set(tops(differing))
    return {top: value for top, value in data.items() if top not in same}
