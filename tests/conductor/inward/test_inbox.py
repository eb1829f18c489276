"""If an event does not prove the current state, the hub fetches the record."""

from __future__ import annotations

from models.ledger import DeadLetter, Inbox, System
from subscribers.errors import SystemDown
from subscribers.records import External
from tests.support.dead_letters import retry_all
from tests.support.fakes import TestHub
from tests.support.records import add, edit, one_row, record, rows, webhook


def test_an_event_of_the_same_second_as_our_write_is_fetched(hub: TestHub) -> None:
    one = add(hub, email="1@x.org")
    hub.run()
    crm, subscriber = hub.systems["crm"], hub.conductor.subscribers["crm.customer"]
    stale = crm.edit("crm_1", email="2@x.org")
    crm.edit("crm_1", email="3@x.org")
    hub.conductor.inward.inbox.apply_event(subscriber, stale)
    assert ("fetch", "crm_1") in crm.calls
    hub.run()
    assert record(hub, one).email == "3@x.org"


def test_an_event_without_fields_is_fetched(hub: TestHub) -> None:
    one = add(hub, email="1@x.org")
    hub.run()
    hub.clock.tick()
    hub.systems["crm"].edit("crm_1", email="2@x.org")
    subscriber = hub.conductor.subscribers["crm.customer"]
    hub.conductor.inward.inbox.apply_event(subscriber, External("crm_1", {"id": "crm_1"}, at=hub.clock()))
    assert record(hub, one).email == "2@x.org"


def test_an_event_without_a_mapped_field_is_no_echo_but_fetched(nested_hub: TestHub) -> None:
    one = add(nested_hub)
    nested_hub.run()
    nested_hub.clock.tick()
    edited = nested_hub.systems["crm"].edit("crm_1", name="Bea")
    thin = External("crm_1", {"Id": "crm_1"}, at=edited.at)
    nested_hub.conductor.inward.inbox.apply_event(nested_hub.conductor.subscribers["crm.customer"], thin)
    assert record(nested_hub, one).name == "Bea"


def test_a_fetch_from_before_the_record_was_linked_is_not_treated_as_the_newest(nested_hub: TestHub) -> None:
    crm, subscriber = nested_hub.systems["crm"], nested_hub.conductor.subscribers["crm.customer"]
    crm.add(name="Bob", email="bob@x.org")
    webhook(nested_hub, "crm", "e1", "crm_1")
    nested_hub.publisher.published.clear()
    fetch = subscriber.fetch

    def slow(external_id: str) -> External:
        found = fetch(external_id)
        subscriber.fetch = fetch  # type: ignore[method-assign]
        nested_hub.clock.tick()
        nested_hub.conductor.poll("crm.customer")
        edit(nested_hub, "1", name="Bobby")
        nested_hub.run()
        return found

    subscriber.fetch = slow  # type: ignore[method-assign]
    nested_hub.conductor.receive(one_row(nested_hub, Inbox).id)
    assert record(nested_hub, "1").name == "Bobby"
    nested_hub.clock.tick(5)
    nested_hub.conductor.sweep()
    nested_hub.run()
    assert one_row(nested_hub, Inbox).state == "done"
    assert record(nested_hub, "1").name == "Bobby" == nested_hub.shown("crm")[0]["name"]


def test_webhooks_that_wait_for_a_system_do_not_keep_it_down(nested_hub: TestHub) -> None:
    one = add(nested_hub)
    nested_hub.run()
    crm = nested_hub.systems["crm"]
    crm.edit("crm_1", name="Bea")
    webhook(nested_hub, "crm", "e1", "crm_1")
    with nested_hub.conductor.database.write() as connection:
        nested_hub.conductor.breaker.went_down(connection, "crm", SystemDown("503"))
    before = one_row(nested_hub, System, System.name == "crm")
    inbox_id = one_row(nested_hub, Inbox).id
    for _ in range(3):
        nested_hub.conductor.receive(inbox_id)
    after = one_row(nested_hub, System, System.name == "crm")
    assert (after.failures, after.probe_at, after.down_reason) == (1, before.probe_at, "503")
    assert one_row(nested_hub, Inbox).state == "waiting"
    nested_hub.clock.tick(3)
    nested_hub.conductor.sweep()
    nested_hub.run()
    assert one_row(nested_hub, System, System.name == "crm").down_since is None
    assert record(nested_hub, one).name == "Bea"


def test_an_incoming_record_that_the_database_refuses_becomes_a_dead_letter(hub: TestHub) -> None:
    hub.systems["crm"].add(email="noname@x.org")
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    (letter,) = rows(hub, DeadLetter)
    assert "name would be empty" in letter.message and rows(hub, Inbox)[0].state == "dead"
    # The record is fixed in the external system; the dead letter is then retried.
    hub.systems["crm"].edit("crm_1", name="Named")
    retry_all(hub.conductor, "ann")
    hub.conductor.sweep()
    hub.run()
    assert record(hub).name == "Named" and rows(hub, DeadLetter)[0].closed_at is not None
