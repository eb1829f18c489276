"""Webhooks are verified, stored once and acknowledged."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from models.ledger import Change, Inbox
from models.session import Database
from subscribers.errors import BadSignature
from tests.support.fakes import TestHub
from tests.support.records import add, outcomes, record, rows, webhook


def test_a_remote_edit_reaches_the_database_and_the_other_systems_only(hub: TestHub) -> None:
    one = add(hub, email="ada@x.org")
    hub.run()
    hub.clock.tick()
    hub.systems["crm"].edit("crm_1", email="new@x.org")
    calls = len(hub.systems["crm"].calls)
    assert webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    assert record(hub, one).email == "new@x.org"
    assert hub.shown("shop")[0]["email"] == "new@x.org"
    assert len(hub.systems["crm"].calls) == calls
    # A duplicate event is acknowledged but not applied again.
    assert not webhook(hub, "crm", "e1", "crm_1")
    # An echo of our own write causes no further change.
    webhook(hub, "shop", "e1", "shop_1")
    hub.run()
    assert outcomes(hub, direction="in")[-1] == ("in", "update", "applied")
    assert len(rows(hub, Change)) == 2


def test_a_webhook_with_a_bad_signature_leaves_only_a_count(hub: TestHub) -> None:
    with pytest.raises(BadSignature):
        hub.conductor.store_webhook("crm", b"e1 crm_1", {})
    assert rows(hub, Inbox) == []
    with hub.conductor.database.read() as c:
        assert c.execute(sa.text("SELECT webhooks_rejected FROM system WHERE name = 'crm'")).scalar() == 1


def test_an_event_id_of_any_length_is_stored(database: Database) -> None:
    hub = TestHub(database, "crm")
    assert hub.conductor.store_webhook("crm", b"e" * 5000 + b" crm_1", {"x-fake": "signed"})
    assert not hub.conductor.store_webhook("crm", b"e" * 5000 + b" crm_1", {"x-fake": "signed"})
    assert len(rows(hub, Inbox)[0].event_id) == 64
