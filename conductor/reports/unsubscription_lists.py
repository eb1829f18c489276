"""Unsubscriptions as the panel lists them, and those that hold one record back."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from conductor.links.rules import in_force
from conductor.reports import pages
from models.ledger import Link, Unsubscription, UnsubscriptionRecord
from models.rows import UnsubscriptionRow
from subscribers.base import Subscriber

#: Records of one list that are read at most; one more shows that there are more.
LISTED_RECORDS = 500

_OPERATIONS = ("create", "update", "delete")


def newest(connection: sa.Connection, target: str, before: int | None) -> pages.Listing:
    """Return a page of unsubscriptions, all or those of a target."""
    return pages.newest(connection, Unsubscription, [Unsubscription.target == target] if target else [], before=before)


def one(connection: sa.Connection, number: int) -> UnsubscriptionRow | None:
    """Return an unsubscription; None if there is none with this number."""
    row = connection.execute(sa.select(Unsubscription.__table__).where(Unsubscription.id == number)).one_or_none()
    return UnsubscriptionRow._make(row) if row is not None else None


def records(connection: sa.Connection, number: int) -> list[str]:
    """Return the first records of an unsubscription's list, up to one more than `LISTED_RECORDS`."""
    listed = sa.select(UnsubscriptionRecord.record_id).where(UnsubscriptionRecord.unsubscription_id == number)
    return list(connection.scalars(listed.order_by(UnsubscriptionRecord.record_id).limit(LISTED_RECORDS + 1)))


def holding(
    connection: sa.Connection, subscriber: Subscriber, record_id: str, now: datetime
) -> tuple[list[UnsubscriptionRow], bool]:
    """Return the unsubscriptions that hold a record back, and whether a change of it is held back."""
    name = subscriber.name()
    rules = in_force(connection, (subscriber.system, name), [record_id], now)
    numbers = [rule.id for rule in rules if any(rule.covers(operation, record_id) for operation in _OPERATIONS)]
    rows = sa.select(Unsubscription.__table__).where(Unsubscription.id.in_(numbers)).order_by(Unsubscription.id)
    of = (Link.subscriber == name, Link.record_id == record_id, Link.unsubscription_id.is_not(None))
    found = [UnsubscriptionRow._make(row) for row in connection.execute(rows)]
    return found, connection.execute(sa.select(Link.id).where(*of)).first() is not None
