"""Cycles: records that refer to one another, or a record to itself, so that each waits for the next.

One of them goes first, with the reference empty, and a second update sends the reference. The link of that record waits
for itself until the first one is sent. Where every reference is required, nothing can go first.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.links.row import LinkRow
from models.catalogues import Record
from models.ledger import Link
from subscribers.base import Subscriber
from subscribers.rules import required_paths

#: Records of a cycle that a message names.
_NAMED = 5


@dataclass(frozen=True)
class WaitingLink:
    """A link in a chain of links, each of which waits for the next."""

    id: int
    subscriber: str
    record_id: str
    blocked_by: int | None
    dead_letter_id: int | None

    @property
    def label(self) -> str:
        """The record in a message."""
        return f"{self.subscriber.partition('.')[2]} {self.record_id}"


@dataclass(frozen=True)
class Cycle:
    """Links that wait for one another, in their order. `first` is the one that may go first; None: there is none."""

    members: list[WaitingLink]
    first: WaitingLink | None

    def __str__(self) -> str:
        if len(self.members) == 1:
            return "it refers to itself"
        others = [one.label for one in self.members[1:]]
        if len(others) > _NAMED:
            others = [*others[: _NAMED - 1], f"{len(others) - _NAMED + 1} more"]
        return f"{' and '.join([', '.join(['it', *others[:-1]]), others[-1]])} wait for one another"


def chain_from(connection: sa.Connection, link_id: int) -> list[WaitingLink]:
    """Return this link, the one that it waits for, and so on: to one that waits for none, or for one before it."""
    columns = (Link.id, Link.subscriber, Link.record_id, Link.blocked_by, Link.dead_letter_id)
    chain = sa.select(*columns).where(Link.id == link_id).cte("chain", recursive=True)
    chain = chain.union(sa.select(*columns).where(Link.id == chain.c.blocked_by))
    found = {row.id: WaitingLink(*row) for row in connection.execute(sa.select(chain))}
    ordered: list[WaitingLink] = []
    next_id: int | None = link_id
    while next_id is not None and (link := found.pop(next_id, None)) is not None:
        ordered.append(link)
        next_id = link.blocked_by
    return ordered


def waits_for(connection: sa.Connection, holder: LinkRow, link_id: int) -> bool:
    """Return whether a link waits for this other one, if only through others."""
    return any(one.id == link_id for one in chain_from(connection, holder.id)[1:])


def find_cycle(connection: sa.Connection, context: Context, link: LinkRow, parent: LinkRow) -> Cycle | None:
    """Return the cycle that a link closes by waiting for `parent`; None if there is none.

    A link that has not been tried since its record was edited may wait for a record that it no longer refers to.
    """
    if parent.id != link.id and parent.blocked_by is None:
        return None
    chain = chain_from(connection, parent.id)
    ids = [one.id for one in chain]
    if link.id not in ids:
        return None
    own = WaitingLink(link.id, link.subscriber, link.record_id, parent.id, link.dead_letter_id)
    members = [own, *chain[: ids.index(link.id)]]
    if any(one.subscriber not in context.subscribers for one in members):
        return None
    records = _records_of(connection, context, members)
    first: WaitingLink | None = None
    for member, following in zip(members, members[1:] + members[:1], strict=True):
        record = records.get((member.subscriber, member.record_id))
        subscriber = context.subscribers[member.subscriber]
        pair = (context.subscribers[following.subscriber].catalogue, following.record_id)
        if record is None or pair not in subscriber.mapper.references(record):
            return None
        if first is None and pair not in subscriber.mapper.references(_emptied(subscriber, record)):
            first = member
    return Cycle(members, first)


def _emptied(subscriber: Subscriber, record: Record) -> Record:
    return subscriber.mapper.without_references(record, {}, required_paths(subscriber.rules))


def _records_of(connection: sa.Connection, context: Context, members: list[WaitingLink]) -> dict[tuple[str, str], Any]:
    wanted: defaultdict[str, list[str]] = defaultdict(list)
    for member in members:
        wanted[member.subscriber].append(member.record_id)
    return {
        (name, record_id): record
        for name, ids in wanted.items()
        for record_id, record in context.subscribers[name].records.read(connection, ids).items()
    }
