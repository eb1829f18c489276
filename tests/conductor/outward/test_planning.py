"""Which operation a record needs and which fields it sends."""

from __future__ import annotations

import sqlalchemy as sa

from models.ledger import Delivery
from models.session import Database
from tests.support.fakes import LowercasingSubscriber, TestHub
from tests.support.records import CUSTOMER, add, edit, record, rows, webhook


def test_an_edit_sends_only_the_fields_that_differ(hub: TestHub) -> None:
    one = add(hub, phone="1")
    hub.run()
    edit(hub, one, phone="2")
    hub.run()
    (delivery,) = rows(hub, Delivery, Delivery.subscriber == "crm.customer", Delivery.operation == "update")
    assert delivery.payload == {"phone": "2"}


def test_an_edit_of_an_unmapped_column_makes_no_call(hub: TestHub) -> None:
    one = add(hub)
    hub.run()
    edit(hub, one, currency="eur")
    hub.run()
    assert hub.systems["crm"].writes() == [("create", one)]


def test_a_record_deleted_before_it_was_created_remotely_makes_no_call(hub: TestHub) -> None:
    add(hub)
    with hub.conductor.database.write() as c:
        c.execute(sa.delete(CUSTOMER))
    hub.run()
    assert hub.systems["crm"].calls == []


def test_a_value_normalized_by_the_system_is_neither_an_edit_nor_a_difference(database: Database) -> None:
    hub = TestHub(database, "crm", kinds=(LowercasingSubscriber,))
    one = add(hub, email="ADA@X.org")
    hub.run()
    hub.clock.tick()
    hub.systems["crm"].edit("crm_1", phone="9")
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    assert (record(hub, one).email, record(hub, one).phone) == ("ADA@X.org", "9")
    edit(hub, one, notes="n")
    hub.run()
    assert hub.shown("crm")[0]["email"] == "ada@x.org"
    (update,) = rows(hub, Delivery, Delivery.operation == "update", Delivery.direction == "out")
    assert update.payload == {"notes": "n"}
