"""Updates in doubt: sent, and nobody knows whether they arrived.

The link keeps what was sent (`Link.doubt`). Where a worker died over it nothing was written down; what
it sent is then what is owed still, as long as the record has not changed since. An edit of theirs made
over what arrived must show as theirs, or sending ours again would undo it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from models.ledger import Change, Link
from subscribers.base import Subscriber
from subscribers.mapping import Flat, same


def of_the_dead() -> Any:
    """`Link.doubt` for whoever takes a lease that nobody gave back: empty, if only that much is known."""
    died = sa.and_(Link.lease_owner.is_not(None), Link.owed_change == Link.claimed_change)
    nothing_known = sa.literal({}, Link.doubt.type)
    return sa.case((died, sa.func.coalesce(Link.doubt, nothing_known)), else_=Link.doubt)


def changed_since(connection: sa.Connection, subscriber: Subscriber, record_ids: list[str]) -> set[str]:
    """Records that have changed and whose change is not routed yet."""
    waiting = (Change.catalogue == subscriber.catalogue, Change.record_id.in_(record_ids), Change.relayed_at.is_(None))
    return set(connection.execute(sa.select(Change.record_id).where(*waiting)).scalars()) if record_ids else set()


def tried(link: Any, ours: Flat, asked: Flat) -> Flat:
    """What was sent of which nobody knows whether it arrived; empty where nothing is in doubt."""
    if link.doubt is None:
        return {}
    agreed = link.agreed or {}
    return link.doubt or {p: v for p, v in ours.items() if p not in asked and not same(v, agreed.get(p))}


def settle(sent: Flat, theirs: Flat, agreed: Flat, held: Flat) -> tuple[Flat, Flat]:
    """The base (agreed, held) once it is seen what they hold: what arrived is agreed."""
    agreed, held = dict(agreed), dict(held)
    for path, value in sent.items():
        did_not_arrive = path in agreed and same(theirs.get(path), held.get(path, agreed[path]))
        if path in theirs and not did_not_arrive:
            agreed[path] = value  # what differs from it now is an edit of theirs
            held.pop(path, None)
    return agreed, held
