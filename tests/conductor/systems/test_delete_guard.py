"""Unusually many deletions pause a system until an operator allows them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from conductor import Policy
from models.ledger import Inbox, System
from models.session import Database
from subscribers.errors import Retry, SystemDown
from tests.support.fakes import TestHub
from tests.support.records import CUSTOMER, add, rows, webhook


def guarded_hub(database: Database, **attributes: Any) -> TestHub:
    hub = TestHub(database, "crm", "shop", **attributes)
    hub.systems["crm"].delete_limit = 3
    for number in range(6):
        add(hub, name=f"n{number}")
    hub.run()
    return hub


def test_too_many_deletions_to_a_system_pause_it(database: Database) -> None:
    hub = guarded_hub(database)
    with database.write() as c:
        c.execute(sa.delete(CUSTOMER))
    hub.run()
    assert len(hub.shown("crm")) == 6 and hub.shown("shop") == []
    (system,) = rows(hub, System, System.name == "crm")
    assert system.paused_by == "delete guard" and "more than 3 deletions to crm" in system.pause_reason
    hub.conductor.systems.resume("crm", by="ann")  # without confirming the deletions
    hub.conductor.sweep()
    hub.run()
    assert len(hub.shown("crm")) == 6
    hub.conductor.systems.resume("crm", by="ann", allow_deletes=True)
    hub.conductor.sweep()
    hub.run()
    assert hub.shown("crm") == []


def test_too_many_deletions_from_a_system_pause_it_and_delete_nothing(database: Database) -> None:
    hub = guarded_hub(database, on_gone="delete")
    hub.clock.tick()
    for external_id in list(hub.systems["crm"].store):
        hub.systems["crm"].remove(external_id)
        webhook(hub, "crm", f"e{external_id}", external_id)
    hub.run()
    left = hub.shown("shop")
    assert len(left) == 3
    hub.clock.tick(1000)
    hub.conductor.sweep()
    hub.run()
    assert len(hub.shown("shop")) == 3 and rows(hub, Inbox, Inbox.state == "waiting")
    hub.conductor.systems.resume("crm", by="ann", allow_deletes=True)
    hub.conductor.sweep()
    hub.run()
    assert hub.shown("shop") == [] and rows(hub, Inbox, Inbox.state == "waiting") == []


def test_a_poll_full_of_deletions_moves_no_cursor_until_they_are_allowed(database: Database) -> None:
    hub = guarded_hub(database, on_gone="delete")
    hub.clock.tick()
    for external_id in list(hub.systems["crm"].store):
        hub.systems["crm"].remove(external_id)
    hub.conductor.poll("crm.customer")
    hub.run()
    assert len(hub.shown("shop")) == 6
    hub.conductor.systems.resume("crm", by="ann", allow_deletes=True)
    hub.conductor.poll("crm.customer")
    hub.run()
    assert hub.shown("shop") == []


def test_the_guard_counts_a_deletion_once_however_often_it_is_retried(database: Database) -> None:
    hub = TestHub(database, "crm", policy=Policy(max_attempts=20))
    hub.systems["crm"].delete_limit = 3
    add(hub), add(hub)
    hub.run()
    hub.systems["crm"].fail(Retry("500"), times=10)
    with database.write() as connection:
        connection.execute(sa.text("DELETE FROM customer"))
    for _ in range(10):
        hub.run()
        hub.clock.tick(60)
        hub.conductor.sweep()
    assert rows(hub, System, System.name == "crm")[0].paused_at is None and hub.shown("crm") == []


def test_the_guard_does_not_count_a_deletion_at_each_probe_of_an_outage(database: Database) -> None:
    hub = TestHub(database, "crm", bulk_size=200)
    crm = hub.systems["crm"]
    crm.delete_limit = 3
    add(hub), add(hub)
    hub.run()
    crm.fail(SystemDown("503"), times=10)
    with database.write() as connection:
        connection.execute(sa.text("DELETE FROM customer"))
    hub.run()
    for _ in range(8):
        hub.clock.tick(61)
        hub.conductor.sweep()
        hub.run()
    system = rows(hub, System, System.name == "crm")[0]
    assert (system.paused_at, system.deletes) == (None, 0) and system.down_since is not None
    crm.failures.clear()
    hub.clock.tick(61)
    hub.conductor.sweep()
    hub.run()
    assert hub.shown("crm") == [] and rows(hub, System, System.name == "crm")[0].deletes == 2
