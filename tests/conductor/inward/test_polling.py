"""A subscriber runs one poll at a time; a page and its cursor are stored together."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from models.ledger import Cursor, DeadLetter, Delivery, Inbox, Link
from models.session import Database
from subscribers.calls import still_working
from subscribers.errors import SystemDown
from subscribers.records import External
from tests.support.fakes import FakeSubscriber, TestHub
from tests.support.records import add, edit, record, retry_due, rows


def test_a_poll_stores_pages_and_cursor_together(hub: TestHub) -> None:
    one = add(hub)
    hub.run()
    crm = hub.systems["crm"]
    hub.clock.tick()
    crm.edit("crm_1", notes="polled")
    crm.add(name="New there")
    assert hub.conductor.poll("crm.customer") == 2
    hub.run()
    assert record(hub, one).notes == "polled" and record(hub, "2").name == "New there"
    assert len(hub.shown("shop")) == 2
    before = len(rows(hub, Delivery))
    hub.conductor.poll("crm.customer")  # the overlap is read again and changes nothing
    hub.run()
    assert len(rows(hub, Delivery)) == before
    assert rows(hub, Cursor)[0].result == "2 records"


def test_a_bad_record_in_a_page_is_set_aside_and_the_cursor_moves_on(hub: TestHub) -> None:
    crm = hub.systems["crm"]
    crm.add(email="noname@x.org")
    hub.clock.tick()
    crm.add(name="Good")
    hub.conductor.poll("crm.customer")
    assert record(hub, "1").name == "Good"
    hub.conductor.sweep()
    hub.run()
    (letter,) = rows(hub, DeadLetter)
    assert letter.inbox_id == rows(hub, Inbox)[0].id


def test_a_poll_of_a_system_that_is_down_moves_no_cursor(hub: TestHub) -> None:
    class Broken(Exception):
        pass

    subscriber = hub.conductor.subscribers["crm.customer"]
    subscriber.changed_since = lambda position: (_ for _ in ()).throw(SystemDown("503"))  # type: ignore[method-assign]
    with pytest.raises(SystemDown):
        hub.conductor.poll("crm.customer")
    assert rows(hub, Cursor)[0].position is None and hub.conductor.poll("crm.customer") == 0


def test_a_poll_that_takes_longer_than_its_interval_is_the_only_one(database: Database) -> None:
    hub = TestHub(database, "crm")
    add(hub)
    hub.run()
    subscriber, seen = hub.conductor.subscribers["crm.customer"], []
    read = subscriber.changed_since

    def long(position: Any) -> Iterator[Any]:
        for page in read(position):
            seen.append(page)
            for _ in range(3):  # each call renews the lease for the following pages
                hub.clock.tick(hub.conductor.context.policy.lease_seconds - 1)
                still_working()
            assert hub.conductor.poll("crm.customer") == 0
            yield page

    subscriber.changed_since = long  # type: ignore[method-assign]
    assert hub.conductor.poll("crm.customer") == 1 and len(seen) == 1
    assert hub.conductor.poll("crm.customer") == 1 and len(seen) == 2  # the lease was released


def test_a_poll_whose_claim_expired_applies_nothing_more(database: Database) -> None:
    hub = TestHub(database, "crm")
    one = add(hub)
    hub.run()
    hub.clock.tick()
    hub.systems["crm"].edit("crm_1", notes="read long ago")
    subscriber = hub.conductor.subscribers["crm.customer"]
    read = subscriber.changed_since

    def slow(position: Any) -> Iterator[Any]:
        subscriber.changed_since = read  # type: ignore[method-assign]
        (page,) = read(position)
        hub.clock.tick(hub.conductor.context.policy.lease_seconds + 1)
        hub.systems["crm"].edit("crm_1", notes="newest")
        assert hub.conductor.poll("crm.customer") == 1
        yield page

    subscriber.changed_since = slow  # type: ignore[method-assign]
    newest = hub.clock.now + timedelta(seconds=hub.conductor.context.policy.lease_seconds + 1)
    assert hub.conductor.poll("crm.customer") == 0
    assert rows(hub, Cursor)[0].position == {"since": newest.isoformat()}
    hub.run()
    assert record(hub, one).notes == "newest"


def test_a_poll_that_died_is_repeated(database: Database) -> None:
    hub = TestHub(database, "crm", poll_seconds=24 * 3600)
    hub.conductor.prepare()
    hub.conductor.schedule.tick()
    hub.publisher.published.clear()
    subscriber = hub.conductor.subscribers["crm.customer"]
    pages = subscriber.changed_since

    class Killed(BaseException):
        pass

    def dies(position: Any) -> Iterator[Any]:
        raise Killed

    subscriber.changed_since = dies  # type: ignore[method-assign]
    polling = hub.conductor.inward.polling
    polling._end_turn = lambda *_: None  # type: ignore[method-assign] # the process died
    with pytest.raises(Killed):
        hub.conductor.poll("crm.customer")
    subscriber.changed_since = pages  # type: ignore[method-assign]
    del polling._end_turn
    hub.conductor.schedule.tick()
    assert hub.publisher.published == [] and hub.conductor.poll("crm.customer") == 0
    hub.clock.tick(hub.conductor.context.policy.lease_seconds)
    hub.conductor.schedule.tick()
    assert hub.publisher.published == [("poll crm.customer", [])]
    hub.conductor.poll("crm.customer")
    hub.publisher.published.clear()
    hub.conductor.schedule.tick()
    assert hub.publisher.published == []


def test_a_poll_that_could_not_be_queued_is_claimed_again(database: Database) -> None:
    hub = TestHub(database, "crm", poll_seconds=3600)
    hub.conductor.prepare()
    publish = hub.publisher.poll

    def away(subscriber: str, delay: float = 0.0) -> None:
        raise ConnectionError("the broker is away")

    hub.publisher.poll = away  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        hub.conductor.schedule.tick()
    hub.publisher.poll = publish  # type: ignore[method-assign]
    hub.conductor.schedule.tick()
    assert ("poll crm.customer", []) in hub.publisher.published
    hub.publisher.published.clear()
    hub.conductor.schedule.tick()
    assert hub.publisher.published == []


def test_two_polled_edits_of_one_second_both_arrive(database: Database) -> None:
    hub = TestHub(database, "crm")
    one = add(hub)
    hub.run()
    for notes in ("first", "second"):  # same second as our write: postponed and fetched
        hub.systems["crm"].edit("crm_1", notes=notes)
        hub.conductor.poll("crm.customer")
        hub.conductor.sweep()
        hub.run()
        assert record(hub, one).notes == notes


def test_a_polled_record_that_was_set_aside_passes_through_after_receive(database: Database) -> None:
    class Shouting(FakeSubscriber):
        def after_receive(self, external: External) -> External:
            address = external.data.get("address") or {}
            quiet = {name: value and value.lower() for name, value in address.items()}
            return External(external.id, {**external.data, "address": quiet}, at=external.at)

    fields = {"name": "name", "street": "address.line1", "city": "address.city"}
    hub = TestHub(database, "crm", kinds=(Shouting,), field_to_data=fields)
    one = add(hub, street="a", city="rome")
    hub.run()
    crm = hub.systems["crm"]
    crm.store["crm_1"]["address"]["city"] = "ROME"  # the form that the system stores
    hub.clock.tick()
    edit(hub, one, street="b")  # sends the city too
    hub.run()
    crm.store["crm_1"]["address"]["city"] = "ROME"
    with database.write() as c:
        c.execute(sa.update(Link).values(lease_owner="another", lease_until=hub.clock.now + timedelta(seconds=9)))
    hub.conductor.poll("crm.customer")
    assert [row.kind for row in rows(hub, Inbox)] == ["poll"]
    retry_due(hub)
    assert record(hub, one).city == "rome"


def test_a_number_that_fits_no_column_is_set_aside(database: Database) -> None:
    hub = TestHub(database, "crm", field_to_data={"name": "name", "id": "number"})
    hub.systems["crm"].add(name="x", number=10**30)
    hub.clock.tick()
    hub.systems["crm"].add(name="Good", number=5)
    hub.conductor.poll("crm.customer")
    assert record(hub, "5").name == "Good"
