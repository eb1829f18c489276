"""Matching an unknown external record to a record in the database."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from models.capture import sync_context
from models.catalogues import Customer
from models.session import Database
from subscribers.errors import Retry
from subscribers.mapping.fields import Field
from tests.support.fakes import TestHub
from tests.support.records import CUSTOMER, add, link, lose_answer, record, retry_due, rows, webhook


def test_match_on_links_instead_of_creating(database: Database) -> None:
    hub = TestHub(database, "crm", match_on=("email",))
    with database.write() as c, sync_context(c, origin="crm"):
        c.execute(sa.insert(CUSTOMER).values(name="Ada", email="ada@x.org"))
    hub.run()
    hub.systems["crm"].add(name="Ada L.", email="ada@x.org")
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    with database.read() as c:
        assert c.execute(sa.select(sa.func.count()).select_from(CUSTOMER)).scalar() == 1
    assert link(hub, "crm").external_id == "crm_1"


@pytest.mark.parametrize("mark", ["not-a-number", "99999999999999999999999", "12345"])
def test_a_record_with_a_foreign_hub_id_becomes_a_new_record(database: Database, mark: str) -> None:
    hub = TestHub(database, "crm")
    hub.systems["crm"].add(name="Copied from elsewhere", hub_id=mark)
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    assert record(hub).name == "Copied from elsewhere"


def test_the_event_of_our_own_create_links_it_when_the_answer_was_lost(database: Database) -> None:
    hub = TestHub(database, "crm")
    one = add(hub)
    lose_answer(hub, after=True)
    hub.run()
    assert link(hub, "crm").external_id is None
    crm = hub.systems["crm"]
    hub.clock.tick()
    edited = crm.edit("crm_1", phone="theirs, over what we had created")
    hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], edited)
    assert [row.id for row in rows(hub, Customer)] == [int(one)] and link(hub, "crm").external_id == "crm_1"
    retry_due(hub)
    assert record(hub, one).phone == crm.store["crm_1"]["phone"] == "theirs, over what we had created"


def test_linking_fills_empty_remote_fields_and_erases_nothing_of_ours(database: Database) -> None:
    wins = {"name": "name", "email": "email", "notes": Field("notes", conflict="external")}
    hub = TestHub(database, "crm", match_on=("email",), field_to_data=wins)
    hub.conductor.unsubscriptions.create("crm", None, None, None, "not yet", "ann")
    one = add(hub, email="ada@x.org", notes="written here")
    hub.run()
    hub.systems["crm"].add(name="Ada", email="ada@x.org", notes=None)
    hub.conductor.poll("crm.customer")
    hub.run()
    assert record(hub, one).notes == "written here" and link(hub, "crm").external_id == "crm_1"


@pytest.mark.parametrize("way", ["poll", "backfill"])
def test_the_remains_of_a_deleted_record_are_not_matched_to_another(database: Database, way: str) -> None:
    hub = TestHub(database, "crm", match_on=("email",))
    one = add(hub, email="ada@x.org", phone="1")
    hub.systems["crm"].fail(Retry("no answer", maybe_done=True), after=True)
    hub.run()
    two = add(hub, email="ada@x.org", phone="2")
    with database.write() as connection:
        connection.execute(sa.delete(Customer).where(Customer.id == int(one)))
    if way == "poll":
        hub.conductor.poll("crm.customer")
    else:
        hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer")
        hub.conductor.tasks.run_some()
    for _ in range(3):
        hub.run()
        hub.clock.tick(61)
        hub.conductor.sweep()
    assert record(hub, two).phone == "2" and [shown["phone"] for shown in hub.shown("crm")] == ["2"]


def test_fields_missing_in_a_matched_record_are_sent_to_it(database: Database) -> None:
    hub = TestHub(database, "crm", match_on=("email",))
    hub.conductor.systems.pause("crm", "ann", "")
    one = add(hub, email="a@x.org", phone="1")
    hub.conductor.relay()
    hub.publisher.published.clear()
    with database.write() as c:
        c.execute(sa.text("UPDATE link SET synced_change = owed_change, owed_since = NULL"))
    hub.conductor.systems.resume("crm", "ann")
    hub.systems["crm"].add(name="Ada", email="a@x.org")
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    assert link(hub, "crm", one).external_id == "crm_1" and hub.shown("crm")[0]["phone"] == "1"
