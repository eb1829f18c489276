"""The sender never repeats a create blindly: it searches for the record first."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from models.ledger import DeadLetter, Link
from models.session import Database
from subscribers.base import Subscriber
from subscribers.errors import Retry
from subscribers.mapping.fields import Field
from subscribers.records import External, Item
from tests.support.fakes import FakeSubscriber, TestHub
from tests.support.records import CUSTOMER, add, edit, link, mark, retry_due, rows


def test_a_create_whose_answer_was_lost_is_looked_up_before_it_is_repeated(hub: TestHub) -> None:
    one = add(hub)
    hub.systems["crm"].fail(Retry("no response in time", maybe_done=True), after=True)
    hub.run()
    assert link(hub, "crm", one).external_id is None and link(hub, "crm", one).create_token
    edit(hub, one, notes="edited meanwhile")
    hub.run()
    assert len(hub.shown("crm")) == 1
    assert hub.shown("crm")[0]["notes"] == "edited meanwhile"
    assert [kind for kind, _ in hub.systems["crm"].calls] == ["create", "find", "update"]


def test_a_worker_that_dies_after_the_create_causes_no_duplicate(hub: TestHub) -> None:
    one = add(hub)
    hub.conductor.relay()
    hub.publisher.published.clear()

    def die(kind: str, what: str) -> None:
        raise KeyboardInterrupt  # simulates a killed worker

    crm = hub.systems["crm"]
    crm.on_call = die
    with pytest.raises(KeyboardInterrupt):
        hub.conductor.deliver("crm.customer", [one])
    crm.add(name="Ada", hub_id=mark(hub, one))  # the call reached the system
    crm.on_call = lambda kind, what: None
    hub.conductor.deliver("crm.customer", [one])
    assert len(hub.shown("crm")) == 1 and crm.calls[-1][0] == "create"  # the lease has not expired
    hub.clock.tick(61)
    hub.conductor.sweep()
    hub.run()
    assert len(hub.shown("crm")) == 1
    assert link(hub, "crm", one).external_id == "crm_1"


def test_a_record_deleted_while_its_create_is_unconfirmed_is_deleted_remotely(hub: TestHub) -> None:
    add(hub)
    hub.systems["crm"].fail(Retry("no response in time", maybe_done=True), after=True)
    hub.run()
    with hub.conductor.database.write() as c:
        c.execute(sa.delete(CUSTOMER))
    hub.run()
    assert hub.shown("crm") == []


def test_a_create_that_returns_no_id_is_looked_up(database: Database) -> None:
    class Mute(FakeSubscriber):
        def create(self, item: Item) -> External:
            super().create(item)
            return None  # type: ignore[return-value]

    hub = TestHub(database, "crm", kinds=(Mute,))
    one = add(hub)
    hub.run()
    hub.clock.tick(10)
    hub.conductor.sweep()
    hub.run()
    assert len(hub.shown("crm")) == 1 and rows(hub, Link, Link.record_id == one)[0].external_id == "crm_1"


def test_a_create_whose_answer_cannot_be_stored_is_not_repeated(database: Database) -> None:
    class Huge(FakeSubscriber):
        def create(self, item: Item) -> External:
            made = super().create(item)
            return External(made.id, {**made.data, "notes": 10**30}, at=made.at)

    hub = TestHub(database, "crm", kinds=(Huge,))
    one = add(hub, notes="1")
    hub.run()
    assert link(hub, "crm").dead_at is not None
    edit(hub, one, notes="2")
    retry_due(hub)
    assert [data["notes"] for data in hub.shown("crm")] == ["2"]


def test_a_record_that_cannot_be_written_ahead_does_not_affect_its_batch(database: Database) -> None:
    fields = {"name": "name", "phone": Field("phone", transform="text_number")}
    hub = TestHub(database, "crm", field_to_data=fields)
    bad = add(hub, name="more than 64 bits", phone="9" * 20)
    add(hub, name="succeeded", phone="4")
    hub.run()
    assert [data["name"] for data in hub.shown("crm")] == ["succeeded"]
    assert "cannot be stored" in rows(hub, DeadLetter, DeadLetter.record_id == bad)[0].message
    assert link(hub, "crm", bad).dead_at is not None and link(hub, "crm", bad).lease_owner is None


class Unreadable(FakeSubscriber):
    """A subscriber that implements no `fetch`."""

    fetch = Subscriber.fetch
    field_to_data = {"name": "name", "city": "address.city", "street": "address.line1"}


def test_without_fetch_a_nested_object_is_sent_as_it_is_mapped(database: Database) -> None:
    hub = TestHub(database, "crm", kinds=(Unreadable,))
    one = add(hub, name="Ada", city="London", street="1 Main St")
    hub.run()
    edit(hub, one, city="Bath")
    hub.run()
    assert rows(hub, DeadLetter) == [] and link(hub, "crm", one).attempts == 0
    assert [shown["address"] for shown in hub.shown("crm")] == [{"city": "Bath", "line1": "1 Main St"}]


def test_without_fetch_a_record_reported_as_gone_is_unlinked(database: Database) -> None:
    hub = TestHub(database, "crm", kinds=(Unreadable,))
    one = add(hub, name="Ada")
    hub.run()
    hub.systems["crm"].store.clear()
    edit(hub, one, name="Ada Lovelace")
    hub.run()
    assert rows(hub, DeadLetter) == [] and link(hub, "crm", one).unlinked_at is not None
