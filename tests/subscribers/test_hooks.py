"""The hooks before_send and after_receive are applied everywhere the mapping is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from models.catalogues import CATALOGUES, Record
from models.ledger import DeadLetter, Delivery, Inbox, Link
from models.session import Database
from subscribers.errors import Retry
from subscribers.mapping.fields import Field
from subscribers.records import External, Item
from subscribers.rules import length
from tests.support.fakes import FakeSubscriber, TestHub

CUSTOMER = CATALOGUES["customer"]


class Shouting(FakeSubscriber):
    """A subscriber whose hooks convert names to upper case and add a source mark."""

    field_to_data = {"name": "name", "city": "address.city", "notes": Field("notes", direction="out")}
    rules = {"name": [length(max=9)]}

    def before_send(self, data: dict[str, Any], record: Record) -> dict[str, Any]:
        if record["name"] == "Bug":
            raise KeyError("no such thing")
        name = data["name"] and data["name"].upper()
        return {**data, "name": name, "source": {"from": "hub", "customer": record["id"]}}

    def after_receive(self, external: External) -> External:
        if external.data["name"] == "BUG":
            raise KeyError("no such thing")
        return replace(external, data={**external.data, "name": external.data["name"].upper()})


def _hub_with_customer(database: Database, **values: Any) -> tuple[TestHub, str]:
    hub = TestHub(database, "crm", kinds=(Shouting,))
    with database.write() as c:
        key = CUSTOMER.insert(c, {"name": "Anna", "city": "Rome", **values})
    hub.run()
    return hub, key


def _here(database: Database, key: str) -> Record:
    with database.read() as c:
        return CUSTOMER.read(c, [key])[key]


def _update(database: Database, key: str, **values: Any) -> None:
    with database.write() as c:
        CUSTOMER.update(c, key, values)


def test_what_is_sent_is_made_before_it_is_compared(database: Database) -> None:
    hub, key = _hub_with_customer(database)
    (there,) = hub.shown("crm")
    assert there == {
        "name": "ANNA",
        "address": {"city": "Rome"},
        "notes": None,
        "source": {"from": "hub", "customer": int(key)},
    }
    _update(database, key, name="anna")
    hub.run()
    assert [kind for kind, _ in hub.systems["crm"].writes()] == ["create"], "it is ANNA there already"
    _update(database, key, notes="new")
    sent = []
    subscriber = hub.conductor.subscribers["crm.customer"]
    update = subscriber.update

    def record_changes(item: Item) -> External | None:
        sent.append(item.changes)
        return update(item)

    subscriber.update = record_changes  # type: ignore[method-assign]
    hub.run()
    assert sent == [{"notes": "new", "source": {"from": "hub", "customer": int(key)}}]


def test_an_external_edit_is_merged_with_the_sent_values(database: Database) -> None:
    """A merge also applies before_send to our side; otherwise each remote edit would appear as two."""
    hub, key = _hub_with_customer(database)
    (external_id,) = hub.systems["crm"].store
    for edit in ({"address": {"city": "Paris"}}, {"name": "Anna"}, {"name": "Berta"}):
        hub.clock.tick()
        hub.systems["crm"].edit(external_id, **edit)
        hub.conductor.poll("crm.customer")
        hub.run()
    record = _here(database, key)
    assert (record["name"], record["city"]) == ("BERTA", "Paris")
    assert [kind for kind, _ in hub.systems["crm"].writes()] == ["create"]


def test_rules_see_what_is_sent(database: Database) -> None:
    _hub_with_customer(database, name="Annabella the Great")
    with database.read() as c:
        (letter,) = c.execute(sa.select(DeadLetter.__table__)).all()
    assert letter.fields == {"name": "is longer than 9 characters"}


def test_a_bug_before_sending_is_one_records_and_loses_nothing(database: Database) -> None:
    hub, _ = _hub_with_customer(database)
    with database.write() as c:
        bug = CUSTOMER.insert(c, {"name": "Bug"})
        CUSTOMER.insert(c, {"name": "Carla"})
    hub.run()
    assert {one["name"] for one in hub.shown("crm")} == {"ANNA", "CARLA"}
    with database.read() as c:
        link = c.execute(sa.select(Link.__table__).where(Link.record_id == bug)).one()
        said = c.execute(sa.select(Delivery.reason).where(Delivery.record_id == bug)).scalars().all()
    assert link.owed_change > link.synced_change and link.attempts == 1
    assert "no such thing" in str(said[-1])
    _update(database, bug, name="Berta")
    hub.run()
    assert {one["name"] for one in hub.shown("crm")} == {"ANNA", "BERTA", "CARLA"}


def test_a_bug_in_after_receive_keeps_the_event(database: Database) -> None:
    hub, key = _hub_with_customer(database)
    (external_id,) = hub.systems["crm"].store
    hub.clock.tick()
    hub.systems["crm"].edit(external_id, name="BUG")
    hub.conductor.poll("crm.customer")
    hub.run()
    assert _here(database, key)["name"] == "Anna"
    with database.read() as c:
        (row,) = c.execute(sa.select(Inbox.__table__)).all()
    assert row.state == "waiting"
    hub.systems["crm"].edit(external_id, name="Carla")
    hub.clock.tick(100_000)
    hub.conductor.sweep()
    hub.run()
    assert _here(database, key)["name"] == "CARLA"


def test_a_bug_in_reading_the_answer_does_not_undo_the_write(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    hub, key = _hub_with_customer(database)
    subscriber = hub.conductor.subscribers["crm.customer"]
    reads = subscriber.after_receive

    def fail_on_oslo(external: External) -> External:
        return reads(external) if external.data.get("address") != {"city": "Oslo"} else None  # type: ignore[return-value]

    subscriber.after_receive = fail_on_oslo  # type: ignore[method-assign]
    _update(database, key, city="Oslo")
    hub.run()
    assert "the response cannot be used" in caplog.text
    assert hub.shown("crm")[0]["address"] == {"city": "Oslo"}
    with database.read() as c:
        link = c.execute(sa.select(Link.__table__)).one()
    assert link.owed_change == link.synced_change and link.base["address.city"] == "Oslo"


def test_a_create_of_unknown_end_is_found_through_after_receive(database: Database) -> None:
    hub, _ = _hub_with_customer(database)
    hub.systems["crm"].fail(Retry("cut", maybe_done=True), after=True)
    with database.write() as c:
        CUSTOMER.insert(c, {"name": "Dora"})
    hub.run()
    hub.clock.tick(100_000)
    hub.conductor.sweep()
    hub.run()
    assert sorted(one["name"] for one in hub.shown("crm")) == ["ANNA", "DORA"]
