"""If our write overwrote a remote edit, the event of that edit reveals it."""

from __future__ import annotations

import pytest

from models.ledger import Link
from models.session import Database
from subscribers.errors import Reject, Skip, SyncError, SystemDown
from subscribers.records import External, Item
from tests.support.fakes import FakeSubscriber, TestHub
from tests.support.records import add, edit, one_row, record, webhook


def test_a_sibling_edit_that_our_write_undid_is_restored_by_its_event(database: Database) -> None:
    hub = TestHub(database, "crm", field_to_data={"name": "name", "street": "address.line1", "city": "address.city"})
    one = add(hub, street="0", city="0")
    hub.run()
    crm, edits = hub.systems["crm"], list[External]()

    def on_call(kind: str, what: str) -> None:
        if kind == "update" and not edits:  # between reading and writing the whole object
            edits.append(crm.edit("crm_1", address={"line1": "0", "city": "theirs"}))
            hub.clock.tick()

    crm.on_call = on_call
    hub.clock.tick()
    edit(hub, one, street="1")
    hub.run()
    assert crm.store["crm_1"]["address"] == {"line1": "1", "city": "0"}
    hub.conductor.poll("crm.customer")  # the hub sees its own write before the event of the edit
    hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], edits[0])
    hub.run()
    assert (record(hub, one).street, record(hub, one).city) == ("1", "theirs")
    assert crm.store["crm_1"]["address"] == {"line1": "1", "city": "theirs"}
    # The same event again has no effect.
    hub.clock.tick()
    crm.edit("crm_1", address={"line1": "1", "city": "later"})
    hub.conductor.poll("crm.customer")
    hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], edits[0])
    hub.run()
    assert record(hub, one).city == crm.store["crm_1"]["address"]["city"] == "later"


@pytest.mark.parametrize("silent", [False, True])
def test_a_remote_edit_after_our_write_was_not_undone_by_it(database: Database, silent: bool) -> None:
    class Maybe(FakeSubscriber):
        def update(self, item: Item) -> External | None:
            made = super().update(item)
            return None if silent else made

    fields = {"name": "name", "street": "address.line1", "city": "address.city"}
    hub = TestHub(database, "crm", kinds=(Maybe,), field_to_data=fields)
    one = add(hub, street="0", city="0")
    hub.run()
    crm, subscriber = hub.systems["crm"], hub.conductor.subscribers["crm.customer"]
    hub.clock.tick()
    edit(hub, one, street="1")  # sends the city too
    hub.run()
    events = []
    for city in ("theirs", "0"):  # edited in the external system, then reverted
        hub.clock.tick()
        events.append(crm.edit("crm_1", address={"line1": "1", "city": city}))
        hub.conductor.inward.inbox.apply_event(subscriber, events[-1])
        hub.run()
    hub.clock.tick()
    edit(hub, one, name="without the address")
    hub.run()
    hub.conductor.inward.inbox.apply_event(subscriber, events[0])  # polls overlap, so an event can repeat
    hub.run()
    assert record(hub, one).city == crm.store["crm_1"]["address"]["city"] == "0"


@pytest.mark.parametrize("events", ["before", "after", "never"])
def test_a_remote_sibling_edit_in_a_nested_object_is_not_overwritten(nested_hub: TestHub, events: str) -> None:
    one = add(nested_hub, city="Rome", street="Way 1")
    nested_hub.run()
    nested_hub.clock.tick()
    address = {"city": "Rome", "line1": "Way 2"}
    nested_hub.systems["crm"].edit("crm_1", address=address)
    edit(nested_hub, one, city="Oslo")
    if events == "before":
        webhook(nested_hub, "crm", "e1", "crm_1")
        nested_hub.run()
    nested_hub.run()
    assert nested_hub.shown("crm")[0]["address"] == {"city": "Oslo", "line1": "Way 2"}
    nested_hub.clock.tick()
    if events == "after":
        webhook(nested_hub, "crm", "e1", "crm_1")
    nested_hub.conductor.poll("crm.customer")
    nested_hub.conductor.sweep()  # same second as our write: postponed and fetched
    nested_hub.run()
    assert (record(nested_hub, one).city, record(nested_hub, one).street) == ("Oslo", "Way 2")
    for name in ("crm", "shop"):
        assert nested_hub.shown(name)[0]["address"] == {"city": "Oslo", "line1": "Way 2"}
    link = one_row(nested_hub, Link, Link.subscriber == "crm.customer")
    assert link.owed_change == link.synced_change


@pytest.mark.parametrize("writes_since", [0, 1, 3])
def test_a_remote_edit_that_our_write_undid_is_restored_by_a_late_event(nested_hub: TestHub, writes_since: int) -> None:
    one = add(nested_hub, city="Rome", street="Way 1")
    nested_hub.run()
    crm, events = nested_hub.systems["crm"], list[External]()

    def somebody_was_quicker(kind: str, what: str) -> None:
        if kind == "update":
            crm.on_call = lambda kind, what: None
            events.append(crm.edit("crm_1", address={"city": "Oslo", "line1": "Way 1"}))

    nested_hub.clock.tick()
    crm.on_call = somebody_was_quicker
    edit(nested_hub, one, street="Way 2")  # sends the city too
    nested_hub.run()
    assert crm.store["crm_1"]["address"] == {"city": "Rome", "line1": "Way 2"}
    for number in range(writes_since):
        nested_hub.clock.tick(60)
        edit(nested_hub, one, street=f"Way {number + 3}")
        nested_hub.run()
    nested_hub.clock.tick(60)
    for _ in range(2):  # once by webhook, once by poll
        nested_hub.conductor.inward.inbox.apply_event(nested_hub.conductor.subscribers["crm.customer"], events[0])
        nested_hub.run()
    assert record(nested_hub, one).city == "Oslo"
    expected = {"city": "Oslo", "line1": f"Way {writes_since + 2}"}
    assert nested_hub.shown("crm")[0]["address"] == nested_hub.shown("shop")[0]["address"] == expected
    edit(nested_hub, one, city="Rome")  # a user edits the database record
    nested_hub.clock.tick(60)
    nested_hub.run()
    nested_hub.conductor.inward.inbox.apply_event(nested_hub.conductor.subscribers["crm.customer"], events[0])
    nested_hub.run()
    assert record(nested_hub, one).city == "Rome"


def refuse_an_update(hub: TestHub, error: SyncError) -> None:
    """Make the next update fail with `error` and no effect; reads before it succeed."""
    crm = hub.systems["crm"]

    def refuse(kind: str, what: str) -> None:
        if kind == "update":
            crm.on_call = lambda kind, what: None
            crm.fail(error)

    crm.on_call = refuse


def to_oslo_and_back(hub: TestHub) -> list[External]:
    """Edit the city twice in the external system and return both events."""
    events = []
    for city in ("Oslo", "Rome"):
        hub.clock.tick(60)
        events.append(hub.systems["crm"].edit("crm_1", address={"city": city, "line1": "Way 1"}))
    hub.clock.tick(60)
    return events


def assert_stays_in_rome(hub: TestHub, record_id: str, events: list[External]) -> None:
    for event in events:
        hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], event)
        hub.run()
    assert record(hub, record_id).city == hub.systems["crm"].store["crm_1"]["address"]["city"] == "Rome"


@pytest.mark.parametrize("refused", [Reject("no such street"), SystemDown("503"), Skip("not now")])
def test_a_write_without_effect_undid_nothing(nested_hub: TestHub, refused: SyncError) -> None:
    one = add(nested_hub, city="Rome", street="Way 1")
    nested_hub.run()
    nested_hub.clock.tick(60)
    refuse_an_update(nested_hub, refused)
    edit(nested_hub, one, street="Way 2")
    nested_hub.run()
    nested_hub.clock.tick(60)
    edit(nested_hub, one, street="Way 1")  # reverted, so nothing is sent
    nested_hub.conductor.sweep()
    nested_hub.run()
    nested_hub.clock.tick(86_400)
    assert_stays_in_rome(nested_hub, one, to_oslo_and_back(nested_hub))


def test_a_write_without_effect_undid_nothing_before_the_next_write(nested_hub: TestHub) -> None:
    one = add(nested_hub, city="Rome", street="Way 1")
    nested_hub.run()
    nested_hub.clock.tick(60)
    refuse_an_update(nested_hub, Reject("no such street"))
    edit(nested_hub, one, street="Way 2")
    nested_hub.run()
    events = to_oslo_and_back(nested_hub)
    edit(nested_hub, one, street="Way 1", name="Ada K")  # only the name is written
    nested_hub.run()
    nested_hub.clock.tick(60)
    assert_stays_in_rome(nested_hub, one, events)


def test_write_windows_are_dropped_with_the_record_they_belong_to(nested_hub: TestHub) -> None:
    type(nested_hub.conductor.subscribers["crm.customer"]).on_gone = "recreate"
    one = add(nested_hub, city="Rome", street="Way 1")
    nested_hub.run()
    crm = nested_hub.systems["crm"]
    nested_hub.clock.tick()
    edit(nested_hub, one, street="Way 2")
    nested_hub.run()
    crm.remove("crm_1")
    edit(nested_hub, one, street="Way 3")  # in the same second
    nested_hub.run()
    nested_hub.conductor.sweep()
    nested_hub.run()
    events = crm.edit("crm_2", address={"city": "Oslo", "line1": "Way 3"})
    crm.edit("crm_2", address={"city": "Rome", "line1": "Way 3"})
    nested_hub.conductor.inward.inbox.apply_event(nested_hub.conductor.subscribers["crm.customer"], events)
    nested_hub.run()
    assert record(nested_hub, one).city == "Rome"
    assert crm.store["crm_2"]["address"] == {"city": "Rome", "line1": "Way 3"}


def test_an_event_of_a_second_with_two_writes_undoes_nothing(nested_hub: TestHub) -> None:
    one = add(nested_hub, city="Rome", street="Way 1")
    nested_hub.run()
    crm = nested_hub.systems["crm"]
    created = crm.external("crm_1")
    edit(nested_hub, one, street="Way 2")
    nested_hub.run()
    edit(nested_hub, one, city="Oslo")
    nested_hub.run()
    nested_hub.conductor.inward.inbox.apply_event(nested_hub.conductor.subscribers["crm.customer"], created)
    nested_hub.run()
    assert (record(nested_hub, one).city, record(nested_hub, one).street) == ("Oslo", "Way 2")
    assert crm.store["crm_1"]["address"] == {"city": "Oslo", "line1": "Way 2"}
