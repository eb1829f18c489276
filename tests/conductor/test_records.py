"""Pushing a record to its subscribers."""

from __future__ import annotations

import sqlalchemy as sa

from models.ledger import Change
from tests.support.fakes import TestHub
from tests.support.records import (
    add,
)


def test_push_calls_every_subscriber_except_the_unsubscribed(hub: TestHub) -> None:
    one = add(hub)
    hub.conductor.push("customer", one, unsubscribe=["shop"])
    with hub.conductor.database.write() as c:
        c.execute(sa.delete(Change).where(Change.unsubscribe.is_(None)))
    hub.run()
    assert (len(hub.shown("crm")), len(hub.shown("shop"))) == (1, 0)
