"""Two hubs on one account, and marks that others wrote: docs/explanation/field-faults.md, row A18."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from models.catalogues import Customer
from models.ledger import Cursor, DeadLetter, Delivery, Inbox, Link, OtherHub
from models.session import Database
from simulators.salesforce import SalesforceSimulator
from simulators.stripe import StripeLike
from subscribers.errors import Retry
from subscribers.records import Item
from tests.support.awkward_rest import AwkwardRest, RestHub, answer, kind
from tests.support.dead_letters import open_letters
from tests.support.fakes import FakeSubscriber, LowercasingSubscriber, TestHub
from tests.support.records import add, edit, link, lose_answer, mark, one_row, record, retry_due, rows, settle, webhook
from tests.support.salesforce_hub import SalesforceHub
from tests.support.stripe_hub import StripeHub

OTHER = "0badcafe"

#: What somebody else may write into the field of the mark, for our record 1.
STRANGE = [f"1@{OTHER}", "1"]


def _take_in(hub: TestHub, how: str) -> None:
    """Have the hub see the record `crm_1`."""
    if how == "webhook":
        webhook(hub, "crm", "e1", "crm_1")
    elif how == "poll":
        hub.conductor.poll("crm.customer")
    else:
        hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer")
        for _ in range(9):
            hub.conductor.tasks.run_some()
            settle(hub)
    settle(hub)


def _names(hub: TestHub) -> list[str]:
    return [row.name for row in rows(hub, Customer)]


@pytest.mark.parametrize("how", ["webhook", "poll", "backfill"])
@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("match_on", [(), ("email",)], ids=["no match", "match"])
def test_a18_a_mark_that_is_not_ours_is_not_believed(
    database: Database, strange: str, how: str, match_on: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    hub = TestHub(database, "crm", match_on=match_on)
    hub.conductor.unsubscriptions.create("crm", None, None, None, "not yet", "ann")
    one = add(hub, email="ada@x.example")
    hub.run()
    hub.systems["crm"].add(name="Bea", email="bea@x.example", hub_id=strange)
    _take_in(hub, how)
    assert record(hub, one).name == "Ada"
    assert rows(hub, Link, Link.record_id == one, Link.external_id.is_not(None)) == []
    words = f"record 1 of another hub, {OTHER}" if "@" in strange else "record 1 without the id of a hub"
    assert words in caplog.text
    if how != "backfill":
        assert _names(hub) == ["Ada", "Bea"]
        (story,) = rows(hub, Delivery, Delivery.direction == "in", Delivery.operation == "create")
        assert words in story.reason


@pytest.mark.parametrize("how", ["webhook", "poll", "backfill"])
@pytest.mark.parametrize("strange", [*STRANGE, None])
def test_a18_the_match_columns_link_a_record_whatever_its_mark(
    database: Database, strange: str | None, how: str
) -> None:
    hub = TestHub(database, "crm", match_on=("email",))
    hub.conductor.unsubscriptions.create("crm", None, None, None, "not yet", "ann")
    one = add(hub, email="ada@x.example")
    hub.run()
    hub.systems["crm"].add(name="Ada", email="Ada@x.example", hub_id=strange)
    _take_in(hub, how)
    assert link(hub, "crm", one).external_id == "crm_1" and _names(hub) == ["Ada"]


def test_a18_a_plain_mark_tells_two_records_with_the_same_match_values_apart(database: Database) -> None:
    hub = TestHub(database, "crm", match_on=("email",))
    hub.conductor.unsubscriptions.create("crm", None, None, None, "not yet", "ann")
    one, two = add(hub, email="ada@x.example"), add(hub, email="ada@x.example")
    hub.run()
    hub.systems["crm"].add(name="Ada", email="ada@x.example", hub_id=two)
    _take_in(hub, "poll")
    assert link(hub, "crm", two).external_id == "crm_1" and link(hub, "crm", one).external_id is None


def test_a18_another_hub_is_noted_once_and_named_by_the_check(database: Database) -> None:
    hub = TestHub(database, "crm")
    for number in (1, 2):
        hub.systems["crm"].add(name="Bea", hub_id=f"{number}@{OTHER}")
    hub.conductor.poll("crm.customer")
    hub.conductor.poll("crm.customer")
    seen = one_row(hub, OtherHub)
    assert (seen.system, seen.hub_id, seen.external_id) == ("crm", OTHER, "crm_1")
    notes = [one.message for one in hub.conductor.connection_check.check("crm")["crm.customer"]]
    assert any(OTHER in note and "crm_1" in note for note in notes)


@pytest.mark.parametrize("kind", [FakeSubscriber, LowercasingSubscriber], ids=["single", "bulk"])
@pytest.mark.parametrize("arrived", [True, False])
def test_a18_a_lost_create_finds_its_own_record_only(
    database: Database, kind: type[FakeSubscriber], arrived: bool
) -> None:
    hub = TestHub(database, "crm", kinds=(kind,))
    crm = hub.systems["crm"]
    crm.add(name="Of the other hub", hub_id=f"1@{OTHER}")
    one = add(hub)
    lose_answer(hub, after=arrived)
    hub.run()
    retry_due(hub)
    ours = link(hub, "crm", one).external_id
    assert ours != "crm_1" and crm.store[ours]["hub_id"] == mark(hub, one)
    assert len(crm.store) == 2 and crm.store["crm_1"]["name"] == "Of the other hub"


class PlainlyMarked(FakeSubscriber):
    """A system that keeps no more than our record's id."""

    def create(self, item: Item) -> Any:
        return super().create(replace(item, hub=""))

    def find(self, item: Item) -> Any:
        return super().find(replace(item, hub=""))


@pytest.mark.parametrize("evidence", ["as sent", "match", "none"])
@pytest.mark.parametrize("how", ["retry", "poll"])
def test_a18_a_plain_mark_is_believed_by_what_was_sent_or_by_the_match_columns(
    database: Database, how: str, evidence: str
) -> None:
    match_on = ("email",) if evidence == "match" else ()
    hub = TestHub(database, "crm", kinds=(PlainlyMarked,), match_on=match_on)
    crm = hub.systems["crm"]
    one = add(hub, email="ada@x.example")
    lose_answer(hub, after=True)
    hub.run()
    hub.clock.tick()
    if evidence != "as sent":
        crm.edit("crm_1", phone="their edit, or another record")
    if how == "poll":
        hub.conductor.poll("crm.customer")
    retry_due(hub)
    linked = link(hub, "crm", one).external_id
    assert (linked == "crm_1") is (evidence != "none")
    assert len(crm.store) == (1 if evidence != "none" else 2)
    if evidence == "none" and how == "retry":
        created = rows(hub, Delivery, Delivery.operation == "create", Delivery.outcome == "delivered")[-1]
        assert "crm_1 there is another record" in created.reason


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("how", ["retry", "poll", "webhook"])
def test_a18_a_record_of_another_hub_is_not_deleted_with_our_unconfirmed_one(
    database: Database, strange: str, how: str
) -> None:
    hub = TestHub(database, "crm")
    one = add(hub)
    lose_answer(hub, after=False)
    hub.run()
    with database.write() as connection:
        hub.conductor.subscribers["crm.customer"].records.delete(connection, one)
    crm = hub.systems["crm"]
    crm.add(name="Of the other hub", hub_id=strange)
    if how != "retry":
        _take_in(hub, how)
    retry_due(hub)
    assert [data["name"] for data in crm.store.values()] == ["Of the other hub"]


@pytest.mark.parametrize("reused", [True, False])
@pytest.mark.parametrize("strange", STRANGE)
def test_a18_a_restored_record_with_a_mark_that_is_not_ours(database: Database, strange: str, reused: bool) -> None:
    hub = TestHub(database, "crm", reuses_ids=reused)
    one = add(hub)
    hub.run()
    crm = hub.systems["crm"]
    hub.clock.tick()
    crm.remove("crm_1")
    _take_in(hub, "webhook")
    hub.clock.tick()
    crm.store["crm_1"], crm.changed["crm_1"] = {"name": "Bea", "hub_id": strange}, hub.clock()
    crm.deleted.clear()
    webhook(hub, "crm", "e2", "crm_1")
    settle(hub)
    is_linked = link(hub, "crm", one).external_id == "crm_1" and link(hub, "crm", one).unlinked_at is None
    assert is_linked is not reused, "an id that is not reused is proof enough"
    assert record(hub, one).name == ("Ada" if reused else "Bea")
    codes = [letter.code for letter in open_letters(hub)]
    assert codes == (["reused_id"] if reused and strange == "1" else [])


# --- REST ---------------------------------------------------------------------------------------------------


def _cut(system: AwkwardRest, *, arrived: bool) -> None:
    """Answer the next create with a failure, after it took effect or before."""
    creates, refuses = system.creates, system.refuses

    def fails(*_: Any) -> Any:
        system.creates, system.refuses = creates, refuses
        return answer({"message": "bad gateway"}, 502)

    if arrived:
        system.creates = fails
    else:
        system.refuses = lambda id, data: None if id else fails()


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("arrived", [True, False])
@pytest.mark.parametrize("plain", [True, False], ids=["number", "text"])
def test_a18_a_lost_create_in_a_rest_system(
    database: Database, system: AwkwardRest, strange: str, arrived: bool, plain: bool
) -> None:
    ours = kind(record_id_field="external_ref", plain_mark=plain, match_on=("email",))
    hub = RestHub(database, system, ours)
    system.add(name="Bea", email="bea@x.example", external_ref=strange)
    one = add(hub, email="ada@x.example")
    _cut(system, arrived=arrived)
    hub.run()
    hub.wait()
    linked = one_row(hub, Link, Link.record_id == one).external_id
    assert linked == "2" and system.store["1"]["name"] == "Bea" and len(system.store) == 2
    assert system.store["2"]["external_ref"] == (one if plain else mark(hub, one))
    assert record(hub, one).name == "Ada" and rows(hub, DeadLetter) == []


@pytest.mark.parametrize("strange", STRANGE)
def test_a18_a_create_without_id_is_not_found_by_a_strange_mark(
    database: Database, system: AwkwardRest, strange: str
) -> None:
    hub = RestHub(database, system, kind(record_id_field="external_ref", match_on=("email",)))
    system.add(name="Bea", email="ada@x.example", external_ref=f"7@{OTHER}")
    system.add(name="Bea", email="bea@x.example", external_ref=strange)
    system.creates = lambda record: answer({"ok": True}, 201)
    one = add(hub, email="ada@x.example")
    hub.run()
    assert one_row(hub, Link, Link.record_id == one).external_id == "3"


def test_a18_a_duplicate_with_a_strange_mark_is_told_by_the_match_columns(
    database: Database, system: AwkwardRest
) -> None:
    hub = RestHub(database, system, kind(record_id_field="external_ref", plain_mark=True, match_on=("email",)))
    system.unique = ("name",)
    system.add(name="Ada", email="other@x.example", external_ref="1")
    one = add(hub, email="ada@x.example")
    hub.run()
    hub.wait()
    (letter,) = open_letters(hub)
    assert letter.record_id == one and system.store["1"]["email"] == "other@x.example"


def test_a18_a_mark_in_a_number_field_is_reported_by_the_check(database: Database, system: AwkwardRest) -> None:
    system.add(name="Ada", external_ref=5, email="a", phone="1", note="n")

    def wrong(**options: Any) -> list[str]:
        hub = RestHub(database, system, kind(record_id_field="external_ref", **options))
        found = hub.conductor.connection_check.check("awkward")["awkward.customer"]
        return [one.message for one in found if one.state == "wrong"]

    assert [text for text in wrong() if "plain_mark" in text and "external_ref" in text]
    assert wrong(plain_mark=True) == []


# --- Stripe and Salesforce ----------------------------------------------------------------------------------


def _webhooks(hub: StripeHub) -> None:
    hub.settle()


def _poll(hub: StripeHub) -> None:
    hub.conductor.poll("stripe.customer")
    hub.run()


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("take_in", [_webhooks, _poll])
def test_a18_metadata_of_another_hub_in_stripe(
    database: Database, stripe: StripeLike, strange: str, take_in: Callable[[StripeHub], None]
) -> None:
    hub = StripeHub(database, stripe)
    hub.conductor.unsubscriptions.create("stripe", None, None, None, "not yet", "ann")
    one = hub.add("customer", name="Ada", email="ada@x.example")
    hub.run()
    stripe.create_customer(name="Bea", email="bea@x.example", metadata={"syncflow_id": strange})
    take_in(hub)
    assert hub.record("customer", one)["name"] == "Ada"
    assert sorted(row["name"] for row in hub.records("customer")) == ["Ada", "Bea"]


def test_a18_a_create_in_stripe_that_died_finds_its_own_customer(database: Database, stripe: StripeLike) -> None:
    hub = StripeHub(database, stripe)
    theirs = stripe.create_customer(name="Bea", email="ada@x.example", metadata={"syncflow_id": f"1@{OTHER}"})
    one = hub.add("customer", name="Ada", email="ada@x.example")
    assert hub.die_after(1)
    hub.take_up()
    marks = {customer["name"]: customer["metadata"]["syncflow_id"] for customer in stripe.customers()}
    assert marks["Ada"] == mark(hub, one) and len(stripe.customers()) == 2
    assert hub.there(f"customers/{theirs['id']}")["name"] == "Bea"


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("what", ["customer", "invoice"])
def test_a18_an_upsert_in_salesforce_leaves_the_record_of_another_hub(
    database: Database, org: SalesforceSimulator, strange: str, what: str
) -> None:
    hub = SalesforceHub(database, org)
    sobject = {"customer": "Account", "invoice": "Invoice__c"}[what]
    theirs = org.add(sobject, Name="Theirs", Syncflow_Id__c=strange)
    customer = hub.add("customer", name="Ada", email="ada@x.example")
    if what == "invoice":
        line = {"description": "Setup", "quantity": 1, "unit_price": 99}
        hub.add("invoice", customer_id=int(customer), number="R-1", currency="eur", lines=[line])
    hub.run()
    found = {one["Name"]: one["Syncflow_Id__c"] for one in org.store.all(sobject)}
    assert found["Theirs"] == strange and len(found) == 2
    assert hub.link(what, "1").external_id != theirs


# --- a copy of the database ---------------------------------------------------------------------------------


def test_a18_a_copy_of_the_database_gets_an_id_of_its_own_and_is_linked_to_nothing(database: Database) -> None:
    hub = TestHub(database, "crm", match_on=("email",))
    one = add(hub, email="ada@x.example")
    hub.run()
    hub.conductor.poll("crm.customer")
    two = add(hub, email="bea@x.example")
    hub.systems["crm"].fail(Retry("no answer", maybe_done=True), after=True)
    hub.run()
    webhook(hub, "crm", "e1", "crm_1")
    identity = hub.conductor.identity
    former = identity.hub_id()
    with pytest.raises(ValueError, match=former):
        identity.renew("00000000", "ann")
    fresh = identity.renew(former, "ann")
    assert fresh != former and identity.hub_id() == fresh
    assert rows(hub, Link) == [] and rows(hub, Cursor) == [] and open_letters(hub) == []
    assert [row.state for row in rows(hub, Inbox)] == ["done"]
    hub.publisher.published.clear()
    edit(hub, one, phone="+1")
    edit(hub, two, phone="+2")
    settle(hub)
    marks = [data["hub_id"] for data in hub.systems["crm"].store.values()]
    assert marks == [f"1@{former}", f"2@{former}", f"1@{fresh}", f"2@{fresh}"], "nothing of the original is adopted"


def test_a18_a_new_database_gets_an_id_once(database: Database) -> None:
    first, second = TestHub(database, "crm"), TestHub(database, "crm")
    found = first.conductor.identity.hub_id()
    assert len(found) == 8 and int(found, 16) >= 0 and second.conductor.identity.hub_id() == found
