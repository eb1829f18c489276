"""A claimed record and what is planned for it: the data that travels through an outward delivery."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import orjson

from conductor.links.relations import Related
from conductor.links.rules import Rule
from conductor.systems.circuit_breaker import Permit
from models.catalogues import Record
from models.ledger import Link
from subscribers.errors import SyncError
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.paths import tops, tops_of
from subscribers.mapping.values import Flat
from subscribers.records import External, Item

_LINK_COLUMNS = tuple(column.name for column in Link.__table__.c)


#: What a call is told against when nobody learned how it ended.
RECONCILABLE_COLUMNS = (
    "external_id",
    "unlinked_at",
    "base",
    "remote_values",
    "unconfirmed_write",
    "write_windows",
    "last_write_at",
)


@dataclass
class Claim:
    """A link under our lease, with the record as it is now (None: it does not exist)."""

    link: Any
    #: The link's version when it was read: it is ours only if nobody touched it until it is claimed.
    version: str
    record: Record | None
    #: True: nobody has begun to create it before.
    fresh_create_token: bool
    #: Fields whose conflict waits for a person -> what the system holds.
    asked: Flat = field(default_factory=dict)
    #: Fields beside ours in a nested object that were edited there and have not come in yet -> what the system holds.
    beside: Flat = field(default_factory=dict)

    #: What is about to be sent is on disk.
    told: bool = False
    #: A create that was begun before was found to be done.
    found: bool = False

    @property
    def record_id(self) -> str:
        """The record's id in the ledger."""
        return str(self.link.record_id)

    @property
    def linked(self) -> bool:
        """Whether there is a live external record."""
        return self.link.external_id is not None and self.link.unlinked_at is None

    def now_with(self, **values: Any) -> None:
        """Go on as if the link had these values."""
        self.link = SimpleNamespace(**{**vars(self.link), **values})


@dataclass
class Batch:
    """Records of one subscriber under one lease, and what is needed to plan for them."""

    token: str
    #: Whether the system may be called, as of when the links were read.
    gate: Permit
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
    #: The fields of an update in which ours differs from what the system is known to hold.
    differing: list[str] = field(default_factory=list)
    #: delivered, unchanged, skipped, failed, dead or waiting; None until it is known.
    outcome: str | None = None
    reason: str | None = None
    error: SyncError | None = None
    external: External | None = None
    rule: Rule | None = None
    #: The rule was lifted before this was written down.
    lifted: bool = False
    #: What the link is owed when it is settled: more than was claimed, if the record has changed since.
    owed_now: int = 0
    #: The system was called for it, if only to look.
    asked: bool = False
    #: Milliseconds of the call that was to write it.
    duration: float | None = None
    #: What `sent` was made of, and what it came to.
    _sent: tuple[tuple[Any, ...], set[str]] | None = field(default=None, init=False, repr=False)

    @property
    def is_open(self) -> bool:
        """Whether something is still to be done."""
        return self.outcome is None and self.error is None

    @property
    def sent(self) -> set[str]:
        """The fields that travel: with an update only what differs, by whole top-level objects."""
        made_of = (self.operation, self.item, self.flat)
        if self._sent is None or any(now is not then for now, then in zip(made_of, self._sent[0], strict=True)):
            self._sent = made_of, self._travelling()
        return self._sent[1]

    def _travelling(self) -> set[str]:
        if self.operation == "create" or self.item is None:
            return set(self.flat)
        travels = self.item.changes.keys()
        return {path for path in self.flat if not travels.isdisjoint(tops_of(path))}

    @property
    def beside(self) -> set[str]:
        """Of an update, the fields that only travel because they lie in one object with one that differs."""
        return self.sent.difference(self.differing, self.claim.asked)

    @property
    def ours(self) -> Flat:
        """What travels and is ours: not what goes along as it stands there."""
        return {path: self.flat[path] for path in self.sent - set(self.claim.beside) - set(self.claim.asked)}

    @property
    def is_down(self) -> bool:
        """Whether the call failed because the system is down."""
        return self.error is not None and self.error.pauses_system

    @property
    def was_answered(self) -> bool:
        """Whether the system said anything at all."""
        return self.duration is not None and not (self.error is not None and self.error.unanswered)

    def settle(self, outcome: str, reason: str | None = None) -> Plan:
        """Say how it ended."""
        self.outcome, self.reason = outcome, reason
        return self

    def fail(self, error: SyncError) -> Plan:
        """It ended with this error; what that means is decided when it is written down."""
        self.error = error
        return self


def make_claim(row: Any, record: Record | None, token: str, asked: Flat) -> Claim:
    """A link that was read, its columns first, as it will be under the lease of this name."""
    link = SimpleNamespace(**dict(zip(_LINK_COLUMNS, row, strict=False)))
    creates = link.external_id is None or link.unlinked_at is not None
    fresh_create_token = creates and link.create_token is None
    if fresh_create_token:
        # The intent to create is on disk before the call that creates.
        link.create_token = token
    return Claim(link, row.row_version, record, fresh_create_token, asked)


def make_item(claim: Claim, data: dict[str, Any], changes: dict[str, Any]) -> Item:
    """The record as a subscriber's methods are given it."""
    # The same creation, tried again, has the same key; an edited one must have another, since
    # systems refuse a key that comes with other data.
    seed = [claim.link.subscriber, claim.record_id, claim.link.create_token, data]
    return Item(
        record_id=claim.record_id,
        record=claim.record or {},
        data=data,
        changes=changes,
        external_id=claim.link.external_id if claim.linked else None,
        key=hashlib.sha256(_canonical(seed)).hexdigest()[:40],
    )


def _canonical(value: Any) -> bytes:
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError):  # a number of more than 64 bits, half a character
        return json.dumps(value, sort_keys=True, default=str).encode()


def changed(data: dict[str, Any], flat: Flat, differing: Iterable[str]) -> dict[str, Any]:
    """What an update sends: top-level fields with something that differs, and what `before_send` added beside them."""
    same = set(tops(flat)) - set(tops(differing))
    return {top: value for top, value in data.items() if top not in same}
