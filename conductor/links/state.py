"""The verbs of a link: all statements that change its state. `status` names the state it is in.

Only this module and `leases` write table `link`. Each verb sets all columns that belong to its meaning. A verb either
runs its statement, or returns the values for a batch that writes many links with one statement (`write_many`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect

from conductor.links.leases import RELEASED
from conductor.links.row import LinkRow
from models.bulk import Row, in_values, update_if, update_many, upsert_many
from models.ledger import Delivery, Link
from subscribers.mapping.values import Flat

Values = dict[str, Any]

_LINK: Any = Link.__table__
_DELIVERY: Any = Delivery.__table__
_IDENTITY = ("subscriber", "record_id")


# --- values for a batch ---------------------------------------------------------------------------------


class Via(Enum):
    """How a link that is owed a change reaches its subscriber's queue."""

    #: The caller publishes it after the commit.
    CALLER = "caller"
    #: The next sweep publishes it, even while the queue is not empty.
    DUE = "due"
    #: A sweep publishes it when the queue is empty, so that live changes go first.
    SWEEP = "sweep"


def owed(now: datetime, via: Via) -> Values:
    """The values of a link that is owed one more change. Its age counts from the oldest change it is owed."""
    values: Values = {"owed_change": Link.owed_change + 1, **_aged(now)}
    if via is Via.DUE:
        return values | {"retry_at": now}
    return values | {"published_at": now if via is Via.CALLER else None}


def settled(link: LinkRow, owed_since: datetime | None) -> Values:
    """The values of a link whose claimed change is delivered or skipped.

    `owed_since` is the age of what it is still owed, where the record changed during the delivery.
    """
    return {
        "synced_change": link.owed_change,
        "owed_since": owed_since,
        "attempts": 0,
        "retry_at": None,
        "blocked_by": None,
    }


def postponed(attempts: int, retry_at: datetime | None) -> Values:
    """The values of a link that is tried again at `retry_at`; None: immediately, for a newer change is owed."""
    return {"attempts": attempts, "retry_at": retry_at}


def revived() -> Values:
    """The values of a link that is tried again as soon as it is published, with all its attempts."""
    return {"dead_at": None, "attempts": 0, "retry_at": None}


def blocked(parent: int | None, retry_at: datetime | None) -> Values:
    """The values of a link that waits for the link `parent`, until `retry_at` at the latest."""
    return {"blocked_by": parent, "retry_at": retry_at}


def buried(attempts: int, dead_at: datetime | None, letter_id: int) -> Values:
    """The values of a dead letter's link; `dead_at` is None where a newer change is owed, which is still sent."""
    return {"attempts": attempts, "retry_at": None, "dead_at": dead_at, "dead_letter_id": letter_id}


def linked(external_id: str, base: Flat, remote_values: Flat | None = None) -> Values:
    """The values of a link to an external record that it did not know before."""
    return {
        "external_id": external_id,
        "unlinked_at": None,
        "deleted_remotely": False,
        "create_token": None,
        "created_without_id": False,
        "base": base,
        "remote_values": remote_values or None,
        "remote_version": None,
        "unconfirmed_write": None,
        "write_windows": None,
    }


def unlinked(now: datetime, *, deleted_remotely: bool, keep_base: bool = False) -> Values:
    """The values of a link whose external record is deleted or detached; its id is kept to recognise late events.

    `keep_base` is for a record that remains here: if the external one is restored, what was edited here since then is
    known by its base.
    """
    forgotten = {} if keep_base else {"base": None, "remote_values": None}
    return {
        "unlinked_at": now,
        "deleted_remotely": deleted_remotely,
        **forgotten,
        "remote_version": None,
        "unconfirmed_write": None,
        "write_windows": None,
    }


def recreated() -> Values:
    """The values of a link that forgets its external record, so that the next delivery creates another one."""
    return {
        "external_id": None,
        "unlinked_at": None,
        "create_token": None,
        "created_without_id": False,
        "base": None,
        "remote_values": None,
        "remote_version": None,
        "unconfirmed_write": None,
        "write_windows": None,
    }


# --- statements: what a link is owed ----------------------------------------------------------------------


def owe_changes(connection: sa.Connection, changes: Iterable[tuple[str, str, int, datetime]], now: datetime) -> None:
    """Owe captured changes: (subscriber, record, newest change, captured at). The caller publishes them.

    Pass them in one order in every process, so that relays and workers do not deadlock.
    """
    rows = [
        {"subscriber": name, "record_id": record, "owed_change": change, "owed_since": since, "published_at": now}
        for name, record, change, since in changes
    ]
    greatest = "max" if connection.dialect.name == "sqlite" else "greatest"
    updates = {
        # Always growing: two transactions may commit in another order than they took their change ids, and a delivery
        # under way must not settle a change that it has not read.
        "owed_change": f"{greatest}(excluded.owed_change, link.owed_change + 1)",
        "owed_since": "coalesce(link.owed_since, excluded.owed_since)",
        "next_owed_since": "coalesce(link.next_owed_since, excluded.owed_since)",
        "published_at": "excluded.published_at",
        # The edit may have fixed what failed.
        "attempts": "0",
        "retry_at": "NULL",
        "dead_at": "NULL",
    }
    upsert_many(connection, _LINK, rows, _IDENTITY, updates)


def owe(connection: sa.Connection, where: Sequence[Any], now: datetime, via: Via) -> None:
    """Owe one more change to the links that meet these conditions."""
    connection.execute(sa.update(Link).where(*where).values(**owed(now, via)))


def owe_settled(connection: sa.Connection, link_ids: Sequence[int], now: datetime) -> None:
    """Owe a change to those of these links that are owed none; a sweep publishes them."""
    owe(connection, (Link.id.in_(link_ids), Link.owed_change == Link.synced_change), now, Via.SWEEP)


def owe_missing(connection: sa.Connection, subscriber: str, record_ids: Iterable[str], now: datetime) -> None:
    """Owe those of these records that are neither linked nor owed already; a sweep publishes them."""
    rows = [
        {"subscriber": subscriber, "record_id": record, "owed_change": 1, "owed_since": now}
        # In one order in every process, so that relays and workers do not deadlock.
        for record in sorted(record_ids)
    ]
    if not rows:
        return
    statement = _insert(connection).on_conflict_do_update(
        index_elements=_IDENTITY,
        set_=owed(now, Via.SWEEP) | {"attempts": 0, "retry_at": None, "dead_at": None},
        where=sa.and_(Link.external_id.is_(None), Link.owed_change == Link.synced_change),
    )
    connection.execute(statement, rows)


def owe_first(connection: sa.Connection, subscriber: str, record_id: str, now: datetime) -> None:
    """Make the link of a record that was never owed, unless it exists by now. The caller publishes it."""
    values = {"owed_change": 1, "owed_since": now, "published_at": now}
    insert = _insert(connection).values(subscriber=subscriber, record_id=record_id, **values)
    connection.execute(insert.on_conflict_do_nothing(index_elements=_IDENTITY))


def release_unsubscribed(connection: sa.Connection, unsubscription_id: int, now: datetime, *, deliver: bool) -> int:
    """Forget an unsubscription in the links it held back; with `deliver` they are owed. Return how many there are."""
    values = {"unsubscription_id": None} | (owed(now, Via.DUE) if deliver else {})
    held = sa.update(Link).where(Link.unsubscription_id == unsubscription_id).values(**values)
    return int(connection.execute(held).rowcount)


# --- statements: when it is tried -------------------------------------------------------------------------


def take_due_retries(connection: sa.Connection, now: datetime, limit: int) -> list[tuple[str, str]]:
    """Return (subscriber, record) of links whose retry is due; they count as published now."""
    due = sa.select(Link.id).where(Link.retry_at <= now).order_by(Link.subscriber, Link.record_id).limit(limit)
    taken = sa.update(Link).where(Link.id.in_(due.with_for_update(skip_locked=True)))
    rows = connection.execute(taken.values(retry_at=None, published_at=now).returning(Link.subscriber, Link.record_id))
    return [(row.subscriber, row.record_id) for row in rows]


def hold(connection: sa.Connection, link_ids: Sequence[int], until: datetime) -> None:
    """Deliver what these links are owed at `until`; a new edit of a record comes sooner."""
    waiting = (in_values(connection, Link.id, link_ids), Link.owed_change > Link.synced_change)
    connection.execute(sa.update(Link).where(*waiting).values(retry_at=until))


def mark_published(connection: sa.Connection, link_ids: Sequence[int], now: datetime) -> list[str]:
    """Note that these links are published now; return their records."""
    links = sa.update(Link).where(in_values(connection, Link.id, link_ids))
    return list(connection.execute(links.values(published_at=now).returning(Link.record_id)).scalars())


def leave_to_sweep(connection: sa.Connection, subscriber: str, record_ids: Sequence[str]) -> None:
    """Have a sweep publish what these records are owed, after live changes."""
    links = sa.update(Link).where(Link.subscriber == subscriber, Link.record_id.in_(record_ids))
    connection.execute(links.values(published_at=None))


def wake(
    connection: sa.Connection, delivered: Sequence[int], ended: Sequence[int], now: datetime
) -> list[tuple[str, str]]:
    """Free the links that wait for these; return their (subscriber, record), for the caller to publish.

    A link that died with its related record is tried again only when that one is `delivered`.
    """
    values = {"blocked_by": None, "retry_at": None, "published_at": now, "dead_at": None}
    waiting = sa.or_(Link.blocked_by.in_(delivered), sa.and_(Link.blocked_by.in_(ended), Link.dead_at.is_(None)))
    rows = connection.execute(
        sa.update(Link).where(waiting).values(**values).returning(Link.subscriber, Link.record_id)
    )
    return [(row.subscriber, row.record_id) for row in rows]


def go_first(connection: sa.Connection, link_id: int, now: datetime) -> None:
    """Have a link of a cycle wait for itself only. The caller publishes it."""
    values = {"blocked_by": link_id, "retry_at": None, "published_at": now, "dead_at": None}
    connection.execute(sa.update(Link).where(Link.id == link_id).values(**values))


# --- statements: dead letters -----------------------------------------------------------------------------


def bury_unsent(connection: sa.Connection, subscriber: str, record_id: str, now: datetime) -> int:
    """Owe a record and hold it as a dead letter from the start; return the link's id, for `set_letter`."""
    insert = _insert(connection).values(
        subscriber=subscriber, record_id=record_id, owed_change=1, owed_since=now, dead_at=now
    )
    values = {"owed_change": Link.owed_change + 1, **_aged(now), "dead_at": now}
    upsert = insert.on_conflict_do_update(index_elements=_IDENTITY, set_=values)
    return int(connection.execute(upsert.returning(Link.id)).scalar_one())


def set_letter(connection: sa.Connection, link_id: int, letter_id: int) -> None:
    """Note a link's open dead letter."""
    connection.execute(sa.update(Link).where(Link.id == link_id).values(dead_letter_id=letter_id))


def forget_letters(connection: sa.Connection, letter_ids: Sequence[int]) -> None:
    """Forget dead letters that are closed."""
    connection.execute(sa.update(Link).where(Link.dead_letter_id.in_(letter_ids)).values(dead_letter_id=None))


def forget_all(connection: sa.Connection) -> None:
    """Delete all links: no record is linked to a system any more."""
    connection.execute(sa.delete(Link))


def revive(connection: sa.Connection, link_ids: Sequence[int], now: datetime) -> None:
    """Have the links of dead letters tried again immediately, with all their attempts."""
    connection.execute(sa.update(Link).where(Link.id.in_(link_ids)).values(dead_at=None, attempts=0, retry_at=now))


def settle_unsent(connection: sa.Connection, link_ids: Sequence[int], letter_ids: Sequence[int]) -> None:
    """Count dead links as settled until their next change.

    A record that was edited since is sent; one that has another dead letter by now keeps it.
    """
    same = (Link.id.in_(link_ids), Link.dead_at.is_not(None), Link.dead_letter_id.in_(letter_ids))
    values = {"synced_change": Link.owed_change, "owed_since": None, "dead_at": None, "attempts": 0, "retry_at": None}
    connection.execute(sa.update(Link).where(*same).values(**values))


# --- statements: links and values -------------------------------------------------------------------------


def link_record(connection: sa.Connection, subscriber: str, record_id: str, values: Values) -> None:
    """Write the link of a record: a new one, or one that is left from an external record that is gone."""
    insert = _insert(connection).values(subscriber=subscriber, record_id=record_id, **values)
    connection.execute(insert.on_conflict_do_update(index_elements=_IDENTITY, set_=values))


def take_ids(connection: sa.Connection, subscriber: str, taken: Mapping[str, int]) -> None:
    """Have unlinked links forget external ids that the system has given to the records of other links.

    `taken`: the id of the link that each external id belongs to from now on.
    """
    if taken:
        forgotten = (Link.subscriber == subscriber, Link.external_id.in_(list(taken)), Link.unlinked_at.is_not(None))
        others = (*forgotten, Link.id.not_in(list(taken.values())))
        connection.execute(sa.update(Link).where(*others).values(external_id=None))


def forget_account(connection: sa.Connection, subscribers: Sequence[str]) -> None:
    """Forget all external records of these subscribers: they are of an account that is no longer used."""
    linked = (Link.subscriber.in_(subscribers), Link.external_id.is_not(None))
    values = {**recreated(), "deleted_remotely": False, "last_seen_at": None, "last_write_at": None}
    connection.execute(sa.update(Link).where(*linked).values(**values))


def write(connection: sa.Connection, link_id: int, values: Mapping[str, Any]) -> None:
    """Write these values to one link."""
    connection.execute(sa.update(Link).where(Link.id == link_id).values(**values))


def write_many(connection: sa.Connection, rows: Sequence[Row]) -> None:
    """Write many links by `id` with one statement; all rows have the same columns."""
    update_many(connection, _LINK, rows)


def write_settled(connection: sa.Connection, rows: Sequence[Row], token: str, deliveries: Sequence[Row]) -> set[int]:
    """Write links that are settled, each with its delivery; return the ids of those that were written.

    Those are the links whose lease is still ours and that are owed nothing new. On PostgreSQL it is one statement.
    """
    was = [{"lease_owner": token, "owed_change": row["synced_change"]} for row in rows]
    return update_if(connection, _LINK, rows, was, (_DELIVERY, deliveries))


def freed(link_id: int, values: Values) -> Values:
    """The row of a link for `write_many`: with these values, and its lease given back."""
    return {"id": link_id, **RELEASED, **values}


def _aged(now: datetime) -> Values:
    """The ages of a link that is owed one more change now."""
    return {
        "owed_since": sa.func.coalesce(Link.owed_since, now),
        "next_owed_since": sa.func.coalesce(Link.next_owed_since, now),
    }


def _insert(connection: sa.Connection) -> Any:
    return sqlite_dialect.insert(Link) if connection.dialect.name == "sqlite" else postgresql.insert(Link)
