"""The sweep finds lost messages, due retries and waiting events."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from models.ledger import SyncContext
from models.session import Database
from tests.support.fakes import TestHub
from tests.support.records import add, webhook


def test_a_lost_notification_is_published_again_unless_the_queue_is_full(hub: TestHub) -> None:
    add(hub)
    hub.conductor.relay()
    hub.publisher.published.clear()  # RabbitMQ lost all messages
    hub.conductor.sweep()
    assert hub.publisher.published == []  # the message may just be late
    hub.clock.tick(31)
    hub.publisher.depths = {"crm.customer": 5}
    hub.conductor.sweep()
    assert [what for what, _ in hub.publisher.published] == ["shop.customer"]
    hub.publisher.published.clear()
    hub.conductor.sweep()
    assert hub.publisher.published == []  # published a moment ago
    hub.publisher.depths = {}
    hub.conductor.sweep()
    hub.run()
    assert len(hub.shown("crm")) == 1


def test_a_start_publishes_pending_changes_immediately(hub: TestHub) -> None:
    add(hub)
    hub.conductor.relay()
    hub.publisher.published.clear()
    hub.clock.tick(0.001)
    hub.conductor.sweep(everything=True)
    hub.run()
    assert len(hub.shown("crm")) == len(hub.shown("shop")) == 1


def test_live_changes_go_before_retries(database: Database) -> None:
    hub = TestHub(database, "crm")
    add(hub)
    hub.conductor.relay()
    hub.publisher.published.clear()
    hub.clock.tick(31)
    hub.conductor.sweep()
    assert hub.publisher.published_later == [("crm.customer", ["1"])]


def test_the_inbox_of_a_paused_system_does_not_hide_other_inboxes(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conductor.outward.recovery.SWEEP_BATCH", 3)
    hub = TestHub(database, "crm", "shop")
    for number in range(5):
        webhook(hub, "crm", f"e{number}", "crm_1")
    webhook(hub, "shop", "e", "shop_1")
    hub.publisher.published.clear()
    hub.conductor.systems.pause("crm", "ann", "")
    hub.clock.tick(1000)
    hub.conductor.sweep()
    assert [ids for what, ids in hub.publisher.published if what == "inbox"] == [[6]]


def test_a_leaked_sync_context_does_not_suppress_later_changes(sqlite_hub: TestHub) -> None:
    hub = sqlite_hub
    with hub.conductor.database.write() as c:
        c.execute(sa.insert(SyncContext).values(id=1, origin="crm"))  # committed without the DELETE
    hub.conductor.sweep()
    add(hub)
    hub.run()
    assert len(hub.shown("crm")) == 1
