"""Deletions in both directions follow on_delete and on_gone."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from conductor.inward.incoming import Incoming
from models.ledger import Delivery
from models.session import Database
from subscribers.errors import Gone, Reject
from subscribers.records import External
from tests.support.fakes import TestHub
from tests.support.records import CUSTOMER, add, edit, link, record, rows, webhook


def test_a_deleted_record_is_deleted_in_every_system(hub: TestHub) -> None:
    one = add(hub)
    hub.run()
    with hub.conductor.database.write() as c:
        c.execute(sa.delete(CUSTOMER))
    hub.run()
    assert hub.shown("crm") == hub.shown("shop") == []
    assert link(hub, "crm", one).unlinked_at is not None


@pytest.mark.parametrize("policy,left", [("unlink", 1), ("ignore", 1), ("archive", 1), ("delete", 0)])
def test_a_deletion_follows_on_delete(database: Database, policy: str, left: int) -> None:
    hub = TestHub(database, "crm", on_delete=policy, archive_data={"notes": "archived"})
    add(hub)
    hub.run()
    with hub.conductor.database.write() as c:
        c.execute(sa.delete(CUSTOMER))
    hub.run()
    assert len(hub.shown("crm")) == left
    if policy == "archive":
        assert hub.shown("crm")[0]["notes"] == "archived"


@pytest.mark.parametrize("policy", ["unlink", "delete", "archive", "recreate"])
def test_a_remote_deletion_follows_on_gone(database: Database, policy: str) -> None:
    hub = TestHub(database, "crm", "shop", on_gone=policy)
    one = add(hub)
    hub.run()
    hub.clock.tick()
    hub.systems["crm"].remove("crm_1")
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    here = record(hub, one)
    assert (here is None) == (policy == "delete")
    assert (here is not None and not here.active) == (policy == "archive")
    assert len(hub.shown("crm")) == (1 if policy == "recreate" else 0)
    assert len(hub.shown("shop")) == (0 if policy == "delete" else 1)
    if policy == "unlink":
        edit(hub, one, notes="x")
        hub.run()
        assert hub.shown("crm") == [] and hub.shown("shop")[0]["notes"] == "x"


def test_a_record_found_gone_during_an_update_follows_on_gone(database: Database) -> None:
    hub = TestHub(database, "crm", on_gone="recreate")
    one = add(hub)
    hub.run()
    hub.systems["crm"].remove("crm_1")
    edit(hub, one, notes="x")
    hub.run()
    assert hub.shown("crm")[0]["notes"] == "x" and link(hub, "crm").external_id == "crm_2"


def test_a_record_that_reappears_remotely_is_linked_again(database: Database) -> None:
    # Regression: the new link kept the old `unlinked_at`, so the hub never sent or applied anything for it.
    hub = TestHub(database, "crm", on_gone="delete")
    one = add(hub)
    hub.run()
    hub.systems["crm"].remove("crm_1")
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    assert record(hub, one) is None
    subscriber = hub.conductor.subscribers["crm.customer"]
    with database.write() as c:
        c.execute(sa.insert(CUSTOMER).values(id=int(one), name="Ada again"))
        mapper = hub.conductor.mappings.current(c, "crm.customer")[0]
        incoming = Incoming(subscriber, External("crm_2", {"name": "Ada again"}), mapper)
        hub.conductor.inward.applying.merger.link_created(c, incoming, one)
    assert link(hub, "crm", one).unlinked_at is None and not link(hub, "crm", one).deleted_remotely


def test_a_deletion_that_is_polled_again_is_not_recorded_again(database: Database) -> None:
    # Regression: while the record had a dead letter, each poll added a history row and announced it again.
    hub = TestHub(database, "crm")
    one = add(hub)
    hub.run()
    with database.write() as c:
        c.execute(sa.delete(CUSTOMER))
    hub.run()
    hub.systems["crm"].fail(Reject("no"))
    with database.write() as c:
        c.execute(sa.insert(CUSTOMER).values(id=int(one), name="Ada"))
    hub.run()
    assert link(hub, "crm", one).dead_at is not None
    hub.conductor.poll("crm.customer")
    hub.publisher.published.clear()
    before = len(rows(hub, Delivery))
    hub.conductor.poll("crm.customer")
    assert len(rows(hub, Delivery)) == before and hub.publisher.published == []


def test_gone_on_fetch_of_a_webhook_is_a_deletion(hub: TestHub) -> None:
    add(hub)
    hub.run()
    crm = hub.systems["crm"]
    crm.fail(Gone("404"))
    stale = crm.external("crm_1")
    crm.store["crm_1"]["notes"] = "x"
    stale = crm.external("crm_1")
    hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], stale)
    assert link(hub, "crm").deleted_remotely


def test_an_event_that_arrives_after_a_later_deletion_changes_nothing(database: Database) -> None:
    hub = TestHub(database, "crm", on_gone="archive")
    one = add(hub)
    hub.run()
    hub.clock.tick()
    crm, follows = hub.systems["crm"], hub.conductor.subscribers["crm.customer"]
    hub.conductor.inward.inbox.apply_event(follows, crm.remove("crm_1"))
    assert record(hub, one).active is False
    edit(hub, one, active=True)  # an operator reactivates the record
    hub.conductor.inward.inbox.apply_event(follows, External("crm_1"))
    assert record(hub, one).active is True and link(hub, "crm").unlinked_at is not None
