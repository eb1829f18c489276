"""Which events change the database: known and unknown records, late events, echoes."""

from __future__ import annotations

import sqlalchemy as sa

from models.catalogues import Customer
from models.ledger import Inbox
from models.session import Database
from subscribers.errors import Retry
from subscribers.mapping.fields import Field
from subscribers.records import Item
from tests.support.fakes import FakeSubscriber, TestHub
from tests.support.records import CUSTOMER, add, edit, mark, record, rows, webhook


def test_a_late_event_never_regresses_a_record(hub: TestHub) -> None:
    one = add(hub, email="1@x.org")
    hub.run()
    crm, subscriber = hub.systems["crm"], hub.conductor.subscribers["crm.customer"]
    hub.clock.tick()
    old = crm.edit("crm_1", email="2@x.org")
    hub.clock.tick()
    new = crm.edit("crm_1", email="3@x.org")
    for event in (new, old, old, new):
        hub.conductor.inward.inbox.apply_event(subscriber, event)
    hub.run()
    assert record(hub, one).email == "3@x.org" == hub.shown("shop")[0]["email"]


def test_a_remote_record_is_created_in_the_database_and_the_other_systems(hub: TestHub) -> None:
    hub.systems["crm"].add(name="Bob", email="bob@x.org")
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    assert record(hub).name == "Bob"
    assert hub.shown("shop")[0]["name"] == "Bob"
    assert hub.systems["crm"].writes() == []


def test_the_event_of_a_create_still_in_progress_makes_no_duplicate(hub: TestHub) -> None:
    one = add(hub)
    hub.conductor.relay()
    hub.publisher.published.clear()
    crm = hub.systems["crm"]
    results: list[bool] = []

    def meanwhile(kind: str, what: str) -> None:
        if kind == "create":
            crm.add(name="Ada", hub_id=mark(hub, one))
            results.append(webhook(hub, "crm", "e1", "crm_1"))
            ((_, ids),) = hub.publisher.published
            hub.conductor.receive(ids[0])  # while the create is in progress
            crm.store.clear()

    crm.on_call = meanwhile
    hub.conductor.deliver("crm.customer", [one])
    with hub.conductor.database.read() as c:
        assert c.execute(sa.select(sa.func.count()).select_from(CUSTOMER)).scalar() == 1
    assert rows(hub, Inbox)[0].state == "waiting" and results == [True]


def test_an_old_event_of_an_unknown_record_applies_its_current_state(database: Database) -> None:
    hub = TestHub(database, "crm")
    crm = hub.systems["crm"]
    old_event = crm.add(name="as it was")
    hub.clock.tick()
    crm.edit("crm_1", name="as it is")
    hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], old_event)
    assert [row.name for row in rows(hub, Customer)] == ["as it is"]
    gone = crm.add(name="gone since")
    crm.remove("crm_2")
    hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], gone)
    assert [row.name for row in rows(hub, Customer)] == ["as it is"]


def test_a_write_without_a_remote_time_makes_no_event_newer(database: Database) -> None:
    class Silent(FakeSubscriber):
        read_back = "never"

        def update(self, item: Item) -> None:
            super().update(item)

    hub = TestHub(database, "crm", kinds=(Silent,))
    one = add(hub, notes="0")
    hub.run()
    crm = hub.systems["crm"]
    hub.clock.tick(5)  # the external system's clock is 5 s ahead of the hub's
    late = crm.edit("crm_1", notes="theirs")
    hub.clock.tick(-5)
    edit(hub, one, notes="ours, later")
    hub.run()
    hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], late)
    hub.run()
    assert record(hub, one).notes == "ours, later"


def test_an_edit_made_after_a_create_whose_answer_was_lost_survives_its_webhook(database: Database) -> None:
    # Regression: the webhook of our own create was treated as a remote edit and overwrote the later edit.
    mapping = {"name": Field("name", conflict="external"), "email": Field("email", conflict="external")}
    hub = TestHub(database, "crm", field_to_data=mapping)
    one = add(hub, email="first@x.org")
    hub.systems["crm"].fail(Retry("no response in time", maybe_done=True), after=True)
    hub.run()
    edit(hub, one, email="second@x.org")
    webhook(hub, "crm", "e1", "crm_1")
    hub.conductor.receive(1)
    assert record(hub, one).email == "second@x.org"
    hub.run()
    assert hub.shown("crm")[0]["email"] == "second@x.org"
