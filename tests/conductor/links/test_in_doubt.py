"""A write without an answer stays unconfirmed until the external system shows its result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from models.capture import sync_context
from models.ledger import Inbox
from models.session import Database
from subscribers.errors import Retry
from subscribers.records import External, Page
from tests.support.fakes import TestHub
from tests.support.records import (
    CUSTOMER,
    add,
    edit,
    link,
    lose_answer,
    mark,
    one_row,
    record,
    retry_due,
    settle,
    webhook,
)


@pytest.mark.parametrize("arrived", [True, False])
def test_an_unconfirmed_update_is_verified_before_it_is_sent_again(database: Database, arrived: bool) -> None:
    hub = TestHub(database, "crm")
    one = add(hub, notes="0")
    hub.run()
    edit(hub, one, notes="1")
    lose_answer(hub, after=arrived)
    hub.run()
    retry_due(hub)
    assert hub.shown("crm")[0]["notes"] == "1"
    assert [kind for kind, _ in hub.systems["crm"].calls if kind == "update"] == ["update"] * (1 if arrived else 2)
    assert link(hub, "crm").unconfirmed_write is None and link(hub, "crm").base["notes"] == "1"


def test_a_remote_edit_over_an_update_whose_answer_was_lost_survives(database: Database) -> None:
    hub = TestHub(database, "crm", "shop")
    one = add(hub, notes="0", phone="0")
    hub.run()
    edit(hub, one, notes="1", phone="1")
    lose_answer(hub, after=True)
    hub.run()
    hub.clock.tick()
    hub.systems["crm"].edit("crm_1", notes="2, by who saw the 1")
    retry_due(hub)
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    assert (record(hub, one).notes, record(hub, one).phone) == ("2, by who saw the 1", "1")
    assert hub.shown("crm")[0]["notes"] == hub.shown("shop")[0]["notes"] == "2, by who saw the 1"


def test_a_remote_edit_over_an_update_whose_worker_died_survives(database: Database) -> None:
    hub = TestHub(database, "crm")
    one = add(hub, notes="0")
    hub.run()
    edit(hub, one, notes="1")
    hub.conductor.relay()
    hub.publisher.published.clear()
    crm = hub.systems["crm"]

    def die(kind: str, what: str) -> None:
        crm.edit("crm_1", notes="1")  # the write reached the system
        raise KeyboardInterrupt

    crm.on_call = die
    with pytest.raises(KeyboardInterrupt):
        hub.conductor.deliver("crm.customer", [one])
    crm.on_call = lambda kind, what: None
    hub.clock.tick()
    crm.edit("crm_1", notes="2, by who saw the 1")
    retry_due(hub)
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    assert record(hub, one).notes == crm.store["crm_1"]["notes"] == "2, by who saw the 1"


def test_an_edit_after_a_worker_died_is_not_mistaken_for_the_value_it_sent(database: Database) -> None:
    hub = TestHub(database, "crm")
    one = add(hub, notes="0")
    hub.run()
    edit(hub, one, notes="1")
    hub.conductor.relay()
    hub.publisher.published.clear()
    crm = hub.systems["crm"]

    def die(kind: str, what: str) -> None:
        crm.edit("crm_1", notes="1")
        raise KeyboardInterrupt

    crm.on_call = die
    with pytest.raises(KeyboardInterrupt):
        hub.conductor.deliver("crm.customer", [one])
    crm.on_call = lambda kind, what: None
    edit(hub, one, notes="2")  # captured but not routed yet
    hub.clock.tick(100)
    hub.conductor.deliver("crm.customer", [one])
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    retry_due(hub)
    assert record(hub, one).notes == crm.store["crm_1"]["notes"] == "2"


def test_a_remote_edit_over_a_create_whose_worker_died_survives(database: Database) -> None:
    hub = TestHub(database, "crm")
    one = add(hub, notes="1")
    hub.conductor.relay()
    hub.publisher.published.clear()
    crm = hub.systems["crm"]

    def die(kind: str, what: str) -> None:
        crm.add(name="Ada", notes="1", hub_id=mark(hub, one))
        raise KeyboardInterrupt

    crm.on_call = die
    with pytest.raises(KeyboardInterrupt):
        hub.conductor.deliver("crm.customer", [one])
    crm.on_call = lambda kind, what: None
    hub.clock.tick()
    crm.edit("crm_1", notes="2, by who saw the 1")
    retry_due(hub)
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    assert record(hub, one).notes == crm.store["crm_1"]["notes"] == "2, by who saw the 1"
    assert len(crm.store) == 1


def test_an_edit_that_skips_the_system_is_not_mistaken_for_the_value_a_dead_worker_sent(
    database: Database,
) -> None:
    hub = TestHub(database, "crm")
    one = add(hub)
    hub.conductor.relay()
    hub.publisher.published.clear()
    crm = hub.systems["crm"]

    def die(kind: str, what: str) -> None:
        crm.add(name="Ada", hub_id=mark(hub, one))
        raise KeyboardInterrupt

    crm.on_call = die
    with pytest.raises(KeyboardInterrupt):
        hub.conductor.deliver("crm.customer", [one])
    crm.on_call = lambda kind, what: None
    with database.write() as c, sync_context(c, unsubscribe=["crm"]):
        c.execute(sa.update(CUSTOMER).values(notes="not for them, this time"))
    retry_due(hub)
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    assert record(hub, one).notes == "not for them, this time"


def test_a_failed_lookup_proves_nothing_about_the_create_before_it(database: Database) -> None:
    hub = TestHub(database, "crm")
    one = add(hub, phone="4")
    lose_answer(hub, after=True)
    hub.run()
    edit(hub, one, phone=None)
    lose_answer(hub, after=True)  # the lookup
    hub.run()
    retry_due(hub)
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    assert record(hub, one).phone is None and hub.shown("crm")[0]["phone"] is None


def test_a_remote_edit_over_an_unconfirmed_update_is_applied_when_its_event_is_first(database: Database) -> None:
    hub = TestHub(database, "crm")
    one = add(hub, notes="0")
    hub.run()
    edit(hub, one, notes="1")
    lose_answer(hub, after=True)
    hub.run()
    hub.clock.tick()
    hub.systems["crm"].edit("crm_1", notes="2, by who saw the 1")
    edit(hub, one, phone="another field, later")  # makes the database record the newer one
    webhook(hub, "crm", "e1", "crm_1")
    ((_, ids),) = [news for news in hub.publisher.published if news[0] == "inbox"]
    hub.publisher.published.clear()
    hub.conductor.receive(ids[0])
    retry_due(hub)
    assert record(hub, one).notes == hub.shown("crm")[0]["notes"] == "2, by who saw the 1"


def test_siblings_sent_with_an_unconfirmed_update_do_not_count_as_ours(database: Database) -> None:
    hub = TestHub(database, "crm", field_to_data={"name": "name", "street": "address.line1", "city": "address.city"})
    one = add(hub, street="0", city="0")
    hub.run()
    hub.systems["crm"].edit("crm_1", address={"line1": "0", "city": "theirs, not seen here yet"})
    edit(hub, one, street="1")
    hub.systems["crm"].fail(Retry("cut", maybe_done=True), after=True)
    real = hub.systems["crm"].failures.pop()

    def on_update(kind: str, what: str) -> None:
        if kind == "update" and real not in hub.systems["crm"].failures and not done:
            done.append(1)
            hub.systems["crm"].failures.append(real)

    done: list[int] = []
    hub.systems["crm"].on_call = on_update
    hub.run()
    retry_due(hub)
    hub.conductor.poll("crm.customer")
    retry_due(hub)
    assert (record(hub, one).street, record(hub, one).city) == ("1", "theirs, not seen here yet")
    assert hub.shown("crm")[0]["address"] == {"line1": "1", "city": "theirs, not seen here yet"}


def test_an_event_from_before_an_unconfirmed_write_is_not_an_edit_over_it(database: Database) -> None:
    hub = TestHub(database, "crm")
    one = add(hub, notes="0")
    hub.run()
    crm, edits = hub.systems["crm"], list[External]()

    def on_call(kind: str, what: str) -> None:
        if kind == "update" and not edits:
            edits.append(crm.edit("crm_1", notes="theirs, a moment before ours arrives"))

    crm.on_call = on_call
    hub.clock.tick()
    edit(hub, one, notes="1")
    lose_answer(hub, after=True)
    hub.run()
    hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], edits[0])
    retry_due(hub)
    assert record(hub, one).notes == crm.store["crm_1"]["notes"] == "1"


def test_the_lookup_of_an_unconfirmed_create_is_remembered_after_the_next_lost_answer(database: Database) -> None:
    hub = TestHub(database, "crm")
    one = add(hub, name="0", phone="0")
    lose_answer(hub, after=True)
    hub.run()
    hub.systems["crm"].edit("crm_1", phone="theirs, not seen here yet")
    edit(hub, one, name="1")
    crm = hub.systems["crm"]

    def on_call(kind: str, what: str) -> None:
        if kind == "update" and len([call for call in crm.calls if call[0] == "update"]) == 1:
            crm.failures.append((Retry("cut", maybe_done=True), True))

    crm.on_call = on_call
    retry_due(hub)
    retry_due(hub)
    hub.conductor.poll("crm.customer")
    retry_due(hub)
    assert (record(hub, one).name, record(hub, one).phone) == ("1", "theirs, not seen here yet")
    assert (crm.store["crm_1"]["name"], crm.store["crm_1"]["phone"]) == ("1", "theirs, not seen here yet")


def test_an_edit_reverted_while_unconfirmed_is_reverted_remotely(database: Database) -> None:
    hub = TestHub(database, "crm")
    one = add(hub, notes="0")
    hub.run()
    edit(hub, one, notes="1")
    lose_answer(hub, after=True)
    hub.run()
    edit(hub, one, notes="0")  # the last agreed value, not the one in the system
    retry_due(hub)
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    assert record(hub, one).notes == hub.shown("crm")[0]["notes"] == "0"


def test_a_write_stays_unconfirmed_while_its_record_is_skipped(database: Database) -> None:
    hub = TestHub(database, "crm")
    one = add(hub, notes="0")
    hub.run()
    edit(hub, one, notes="1")
    lose_answer(hub, after=True)
    hub.run()
    rule = hub.conductor.unsubscriptions.create("crm", None, [one], None, "freeze", by="ann")
    retry_due(hub)
    assert link(hub, "crm").unconfirmed_write == {"notes": "1"}
    edit(hub, one, notes="0")
    hub.run()
    hub.conductor.unsubscriptions.lift(rule, by="ann", deliver=True)
    retry_due(hub)
    assert record(hub, one).notes == hub.shown("crm")[0]["notes"] == "0"
    assert link(hub, "crm").unconfirmed_write is None


def test_a_newly_mapped_field_did_not_arrive_unless_the_system_shows_it(database: Database) -> None:
    hub = TestHub(database, "crm", field_to_data={"name": "name"})
    one = add(hub, notes="1")
    hub.run()
    crm = hub.systems["crm"]
    crm.edit("crm_1", notes=None)  # an unmapped field of the system, mapped in the next step
    mapped = [{"column": name, "path": name} for name in ("name", "notes")]
    hub.conductor.mappings.save("crm.customer", mapped, "ann", 0)
    edit(hub, one, name="new")
    lose_answer(hub, after=False)
    hub.run()
    retry_due(hub)
    hub.conductor.poll("crm.customer")
    retry_due(hub)
    assert record(hub, one).notes == crm.store["crm_1"]["notes"] == "1"


def test_a_record_deleted_while_its_create_is_unconfirmed_does_not_come_back(nested_hub: TestHub) -> None:
    one = add(nested_hub, email="a@x.org")
    crm = nested_hub.systems["crm"]
    crm.fail(Retry("no response in time", maybe_done=True), after=True)
    nested_hub.run()
    assert [record["hub_id"] for record in crm.store.values()] == [mark(nested_hub, one)]
    with nested_hub.conductor.database.write() as c:
        c.execute(sa.delete(CUSTOMER))
    webhook(nested_hub, "crm", "e1", "crm_1")  # processed before the relay and the worker run
    nested_hub.conductor.receive(one_row(nested_hub, Inbox).id)
    nested_hub.run()
    nested_hub.clock.tick(30)
    nested_hub.conductor.sweep()
    nested_hub.run()
    with nested_hub.conductor.database.read() as c:
        assert c.execute(sa.select(CUSTOMER)).all() == []
    assert nested_hub.shown("crm") == nested_hub.shown("shop") == []


def test_a_page_read_before_an_unconfirmed_write_does_not_undo_it(nested_hub: TestHub) -> None:
    one = add(nested_hub, email="old@x.org")
    nested_hub.run()
    crm = nested_hub.systems["crm"]
    nested_hub.clock.tick()
    crm.edit("crm_1", name="Bea")
    hold_back_page(nested_hub)
    nested_hub.clock.tick()
    edit(nested_hub, one, email="new@x.org")
    crm.fail(Retry("no response in time", maybe_done=True), after=True)
    nested_hub.run()
    settle(nested_hub)
    assert crm.store["crm_1"]["email"] == "new@x.org"
    nested_hub.conductor.poll("crm.customer")
    assert record(nested_hub, one).email == "new@x.org"
    settle(nested_hub)
    assert (record(nested_hub, one).name, record(nested_hub, one).email) == ("Bea", "new@x.org")
    assert crm.writes() == [("create", one), ("update", "crm_1")]


def hold_back_page(hub: TestHub) -> list[Page]:
    """Read the pages now and let the next poll apply them, as after a database outage."""
    subscriber = hub.conductor.subscribers["crm.customer"]
    read, pages = subscriber.changed_since, list(subscriber.changed_since(None))

    def late(position: dict[str, Any] | None) -> Iterator[Page]:
        subscriber.changed_since = read  # type: ignore[method-assign]
        yield from pages

    subscriber.changed_since = late  # type: ignore[method-assign]
    return pages
