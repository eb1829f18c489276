"""Data of Salesforce and Stripe that was lost or wrong in the field: docs/explanation/field-faults.md, group A."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from conductor import Conductor
from models.base import utcnow
from models.catalogues import CATALOGUES, Customer
from models.ledger import Change, Link
from models.session import Database
from simulators.salesforce import SalesforceSimulator
from simulators.stripe import StripeLike
from subscribers.errors import Gone, SystemDown
from subscribers.files.subscriber import FileSubscriber
from subscribers.files.system import FileOptions, FileSystem
from subscribers.mapping import rows
from subscribers.records import External
from subscribers.rest import RestOptions, RestSubscriber, RestSystem
from subscribers.salesforce.subscriber import DELETED_INTERVAL_SECONDS
from tests.support import records
from tests.support.awkward_rest import AwkwardRest, RestHub, kind
from tests.support.both_vendors import BothVendorsHub
from tests.support.fakes import FakeSubscriber, LowercasingSubscriber, TestHub
from tests.support.records import add
from tests.support.salesforce_hub import SalesforceHub
from tests.support.stripe_hub import StripeHub


@pytest.fixture
def salesforce(database: Database, org: SalesforceSimulator) -> SalesforceHub:
    return SalesforceHub(database, org)


# A2, A3: deleted there and restored


@pytest.mark.parametrize("on_gone", ["archive", "unlink"])
@pytest.mark.parametrize("seen", ["in two polls", "in one poll"])
def test_a03_a_record_restored_in_salesforce_is_linked_again(
    salesforce: SalesforceHub, monkeypatch: pytest.MonkeyPatch, on_gone: str, seen: str
) -> None:
    monkeypatch.setattr(type(salesforce.conductor.subscribers["salesforce.customer"]), "on_gone", on_gone)
    one = salesforce.add("customer", name="Ada", email="ada@x.example")
    salesforce.run()
    salesforce.poll("customer")
    account, org = salesforce.link("customer", one).external_id, salesforce.org
    org.clock.advance(2)
    org.remove("Account", account)
    if seen == "in two polls":
        salesforce.poll("customer")
        assert salesforce.link("customer", one).deleted_remotely
    org.clock.advance(2)
    org.store.undelete("Account", account)
    org.clock.advance(2)
    salesforce.poll("customer")
    held = salesforce.link("customer", one)
    assert (held.external_id, held.unlinked_at, held.deleted_remotely) == (account, None, False)
    here = salesforce.record("customer", one)
    assert here is not None and here["active"] and salesforce.count("customer") == 1
    salesforce.edit("customer", one, phone="+1")
    salesforce.run()
    assert org.store.get("Account", account)["Phone"] == "+1"


def test_a02_a_late_deletion_reported_by_salesforce_does_not_undo_a_restoration(salesforce: SalesforceHub) -> None:
    one = salesforce.add("customer", name="Ada", email="ada@x.example")
    salesforce.run()
    salesforce.poll("customer")
    account, org = salesforce.link("customer", one).external_id, salesforce.org
    org.clock.advance(2)
    org.remove("Account", account)
    org.clock.advance(60)
    org.store.undelete("Account", account)
    # The list of deletions is read every quarter of an hour, after the changes.
    org.clock.advance(DELETED_INTERVAL_SECONDS + 60)
    salesforce.poll("customer")
    salesforce.poll("customer")
    held = salesforce.link("customer", one)
    assert (held.external_id, held.unlinked_at) == (account, None) and salesforce.count("customer") == 1


TOMBSTONES = {"deleted_field": "deleted", "poll_seconds": 60}


@pytest.mark.parametrize("on_gone", ["archive", "unlink", "delete"])
def test_a02_a_tombstone_of_a_rest_list_is_weighed_by_its_time(
    database: Database, system: AwkwardRest, on_gone: str
) -> None:
    hub = RestHub(database, system, kind(**TOMBSTONES, on_gone=on_gone, match_on=("email",)))
    one = add(hub, email="ada@x.example")
    hub.run()
    hub.poll()
    system.edit("1", deleted=True)
    hub.poll()
    hub.wait()
    held = records.rows(hub, Link)[0]
    assert held.deleted_remotely and (records.record(hub, one) is None) is (on_gone == "delete")
    tombstone = dict(system.store["1"])
    system.edit("1", deleted=False, name="Bea")  # restored there
    hub.poll()
    hub.wait()
    (ours,) = records.rows(hub, Customer)
    assert (ours.name, ours.active) == ("Bea", True)
    told = External("1", tombstone, at=datetime.fromisoformat(tombstone["updated_at"]), deleted=True)
    hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["awkward.customer"], told)  # late
    (ours,) = records.rows(hub, Customer)
    assert (ours.name, ours.active) == ("Bea", True)


@pytest.mark.parametrize("on_gone", ["archive", "unlink", "delete"])
def test_a03_a_row_that_a_later_file_has_again_is_linked_again(
    sqlite_database: Database, tmp_path: Path, on_gone: str
) -> None:
    options: dict[str, Any] = {"system": "erp", "catalogue": "customer", "path": "customers", "key_field": "number"}
    options |= {"quiet_seconds": 0, "on_gone": on_gone, "match_on": ("email",)}
    options |= {"field_to_data": {"name": "name", "email": "mail"}}
    files = FileSystem("erp", FileOptions(folder=str(tmp_path)))
    hub = RestHub(sqlite_database, files, type("Rows", (FileSubscriber,), options))
    incoming = tmp_path / "customers" / "in"
    incoming.mkdir(parents=True)
    for number, text in enumerate(("7,Ada,a@x.example,", "7,,,true", "7,Bea,a@x.example,")):
        (incoming / f"{number}.csv").write_text(f"number,name,mail,deleted\n{text}\n")
        hub.conductor.poll("erp.customer")
        hub.wait()
        if number == 1:
            assert records.rows(hub, Link)[0].deleted_remotely
            assert [row.active for row in records.rows(hub, Customer)] == {
                "archive": [False],
                "unlink": [True],
                "delete": [],
            }[on_gone]
    (ours,) = records.rows(hub, Customer)
    assert (ours.name, ours.active) == ("Bea", True)
    assert [row.external_id for row in records.rows(hub, Link, Link.unlinked_at.is_(None))] == ["7"]


# A4: parts of a nested object that are not mapped


THEIRS = {"city": "Bath", "line1": "Way 1", "line2": "2nd floor", "state": "Avon", "geo": {"lat": 51, "lng": -2}}


def test_a04_parts_of_a_stripe_address_stay_as_they_are(database: Database, stripe: StripeLike) -> None:
    hub = StripeHub(database, stripe)
    one = hub.add("customer", name="Ada", email="ada@x.example", street="Way 1", city="Bath")
    hub.settle()
    (there,) = stripe.customers()
    theirs = {"line1": "Way 1", "city": "Bath", "line2": "2nd floor", "state": "Avon"}
    stripe.edit_customer(there["id"], address=theirs, metadata={"theirs": "x"})
    hub.edit("customer", one, city="Rome")
    hub.settle()
    (there,) = stripe.customers()
    assert {name: there["address"].get(name) for name in theirs} == {**theirs, "city": "Rome"}
    assert there["metadata"] == {"theirs": "x", "syncflow_id": records.mark(hub, one)}
    assert hub.record("customer", one)["city"] == "Rome"


class ListedByTheirs(FakeSubscriber):
    """A system that takes many records in one call and stores nested objects as they are sent."""

    bulk_size = 50


@pytest.mark.parametrize("kind", [FakeSubscriber, ListedByTheirs])
@pytest.mark.parametrize("fields", [{"city": "address.city"}, {"city": "address.city", "street": "address.line1"}])
def test_a04_parts_of_a_nested_object_stay_as_they_are(
    database: Database, kind: type[FakeSubscriber], fields: dict[str, str]
) -> None:
    hub = TestHub(database, "crm", kinds=[kind], field_to_data={"name": "name", **fields})
    ids = [add(hub, city="Bath", street="Way 1") for _ in range(2)]
    hub.run()
    for number in ("1", "2"):
        hub.systems["crm"].edit(f"crm_{number}", address=dict(THEIRS), tags=["vip"])
    for one in ids:
        records.edit(hub, one, city="Rome")
    hub.run()
    for there in hub.systems["crm"].store.values():
        assert there["address"] == {**THEIRS, "city": "Rome"} and there["tags"] == ["vip"]
    records.edit(hub, ids[0], city=None)
    hub.run()
    assert hub.systems["crm"].store["crm_1"]["address"] == {**THEIRS, "city": None}


def test_a04_a_record_that_is_archived_keeps_the_parts_of_its_objects(database: Database) -> None:
    hub = TestHub(database, "crm", on_delete="archive", archive_data={"state.closed": True})
    one = add(hub)
    hub.run()
    hub.systems["crm"].edit("crm_1", state={"closed": False, "reason": "none"})
    with hub.conductor.database.write() as connection:
        CATALOGUES["customer"].delete(connection, one)
    hub.run()
    assert hub.systems["crm"].store["crm_1"]["state"] == {"closed": True, "reason": "none"}


class FakeOrder(FakeSubscriber):
    """Invoices whose lines are an array of objects, two levels down."""

    catalogue = "invoice"
    resource = "order"
    field_to_data = {"number": "number", "lines": rows("cart.items", {"description": "text", "quantity": "count.n"})}


def test_a04_objects_of_an_array_keep_what_is_not_mapped(database: Database) -> None:
    hub = TestHub(database, "crm", kinds=[FakeOrder])
    customer = int(add(hub))
    lines = [{"description": text, "quantity": number} for number, text in enumerate("ABC", 1)]
    with hub.conductor.database.write() as connection:
        CATALOGUES["invoice"].insert(connection, {"customer_id": customer, "number": "R-1", "lines": lines})
    hub.run()
    theirs = [{"text": t, "count": {"n": n, "unit": f"u{t}"}, "sku": f"s{t}"} for n, t in enumerate("ABC", 1)]
    hub.systems["crm"].edit("crm_1", cart={"items": theirs, "coupon": "X"})
    with hub.conductor.database.write() as connection:  # A is removed, C changed, D is new
        changed = [lines[1], {"description": "C", "quantity": 9}, {"description": "D", "quantity": 4}]
        CATALOGUES["invoice"].update(connection, "1", {"lines": changed})
    hub.run()
    assert hub.systems["crm"].store["crm_1"]["cart"] == {
        "items": [
            theirs[1],
            {"text": "C", "count": {"n": 9, "unit": "uC"}, "sku": "sC"},
            {"text": "D", "count": {"n": 4}},
        ],
        "coupon": "X",
    }


class PutContact(RestSubscriber):
    system = "shop"
    catalogue = "customer"
    path = "/contacts"
    update_method = "PUT"
    read_only_fields = ("updated_at",)
    field_to_data = {"name": "name", "city": "address.city"}


@pytest.mark.parametrize("changed", [{"name": "Bea"}, {"city": "Rome"}])
def test_a04_a_put_writes_the_whole_record_back(
    sqlite_database: Database, httpserver: HTTPServer, changed: dict[str, str]
) -> None:
    present = {"id": 1, "name": "Ada", "address": {"city": "Bath", "state": "Avon"}, "vip": True, "note": None}
    stored = {**present, "updated_at": "2026-11-21T00:00:00Z"}
    bodies: list[Any] = []

    def put(request: Request) -> Response:
        bodies.append(request.get_json())
        return Response(json.dumps({**stored, **bodies[-1]}), content_type="application/json")

    httpserver.expect_request("/contacts", method="POST").respond_with_json(stored, status=201)
    httpserver.expect_request("/contacts/1", method="GET").respond_with_json(stored)
    httpserver.expect_request("/contacts/1", method="PUT").respond_with_handler(put)
    hub = TestHub(sqlite_database)
    client = RestSystem("shop", RestOptions(url=httpserver.url_for(""), token=SecretStr("t")))
    hub.conductor = Conductor(sqlite_database, {"shop.customer": PutContact(client)}, hub.publisher, None, hub.clock)
    hub.conductor.breaker.ensure_rows()
    one = add(hub, city="Bath")
    hub.run()
    records.edit(hub, one, **changed)
    hub.run()
    wanted = {**present, **({"name": "Bea"} if "name" in changed else {"address": {"city": "Rome", "state": "Avon"}})}
    assert bodies == [wanted]


def test_a04_a_compound_address_of_salesforce_keeps_its_other_parts(salesforce: SalesforceHub) -> None:
    one = salesforce.add("customer", name="Ada", city="Bath")
    salesforce.run()
    (there,) = salesforce.org.store.all("Account")
    salesforce.org.edit("Account", there["Id"], BillingState="Avon")
    salesforce.edit("customer", one, city="Rome")
    salesforce.run()
    (there,) = salesforce.org.store.all("Account")
    assert (there["BillingCity"], there["BillingState"]) == ("Rome", "Avon")


def test_a04_the_lines_of_a_salesforce_invoice_keep_their_own_fields(salesforce: SalesforceHub) -> None:
    customer = salesforce.add("customer", name="Ada")
    lines = [{"description": text, "quantity": 1, "unit_price": 100} for text in "ABC"]
    one = salesforce.add("invoice", customer_id=int(customer), number="R-1", lines=lines)
    salesforce.run()
    for row in salesforce.org.store.all("Invoice_Line__c"):
        salesforce.org.edit("Invoice_Line__c", row["Id"], Amount__c=ord(row["Description__c"]))
    salesforce.org.clock.advance(100)
    changed = [lines[2], {**lines[1], "unit_price": 200}, {"description": "D", "quantity": 7, "unit_price": 1}]
    salesforce.edit("invoice", one, lines=changed)
    salesforce.run()
    there = sorted(salesforce.org.store.all("Invoice_Line__c"), key=lambda row: row["Position__c"])
    shown = [(row["Description__c"], row["Unit_Price__c"], row["Amount__c"]) for row in there]
    assert shown == [("C", 1.0, ord("C")), ("B", 2.0, ord("B")), ("D", 0.01, None)]
    assert salesforce.deliveries(outcome="dead") == []


# A7: a code that only may mean gone


@pytest.mark.parametrize("code", ["INVALID_CROSS_REFERENCE_KEY", "ENTITY_IS_DELETED", "NOT_FOUND"])
def test_a07_an_edit_survives_a_code_that_only_may_mean_gone(salesforce: SalesforceHub, code: str) -> None:
    one = salesforce.add("customer", name="Ada")
    salesforce.run()
    salesforce.org.fail_items(code=code, path="composite")
    salesforce.edit("customer", one, phone="2")
    salesforce.run()
    assert salesforce.link("customer", one).unlinked_at is None
    (failed,) = salesforce.deliveries(outcome="failed")
    assert code in failed.reason and "can be read" in failed.reason
    salesforce.org.clock.advance(3600)
    salesforce.conductor.sweep()
    salesforce.run()
    assert [account["Phone"] for account in salesforce.org.store.all("Account")] == ["2"]


def test_a07_a_deletion_there_is_repeated_if_the_record_can_still_be_read(salesforce: SalesforceHub) -> None:
    one = salesforce.add("customer", name="Ada")
    salesforce.run()
    salesforce.org.fail_items(code="INVALID_CROSS_REFERENCE_KEY", path="composite")
    with salesforce.conductor.database.write() as connection:
        CATALOGUES["customer"].delete(connection, one)
    salesforce.run()
    assert salesforce.org.store.count("Account") == 1
    salesforce.org.clock.advance(3600)
    salesforce.conductor.sweep()
    salesforce.run()
    assert salesforce.org.store.count("Account") == 0


def test_a07_a_record_that_is_really_gone_is_unlinked(salesforce: SalesforceHub) -> None:
    one = salesforce.add("customer", name="Ada")
    salesforce.run()
    salesforce.org.remove("Account", salesforce.link("customer", one).external_id)
    salesforce.edit("customer", one, phone="2")
    salesforce.run()
    assert salesforce.link("customer", one).unlinked_at is not None


@pytest.mark.parametrize("kind", [FakeSubscriber, LowercasingSubscriber])
@pytest.mark.parametrize("policy", ["update", "delete", "archive"])
def test_a07_a_404_or_410_is_fetched_before_it_is_believed(
    database: Database, kind: type[FakeSubscriber], policy: str
) -> None:
    on_delete: dict[str, Any] = (
        {"on_delete": "archive", "archive_data": {"notes": "closed"}} if policy == "archive" else {}
    )
    hub = TestHub(database, "crm", kinds=[kind], **on_delete)
    one = records.add(hub)
    hub.run()
    if policy == "update":
        records.edit(hub, one, phone="2")
    else:
        with hub.conductor.database.write() as connection:
            CATALOGUES["customer"].delete(connection, one)
    hub.systems["crm"].fail(Gone("410: gone"))
    hub.run()
    assert records.link(hub, "crm").unlinked_at is None
    assert ("fetch", "crm_1") in hub.systems["crm"].calls
    records.retry_due(hub)
    there = hub.systems["crm"].store
    wanted = {"update": ("phone", "2"), "archive": ("notes", "closed")}
    assert there == {} if policy == "delete" else there["crm_1"][wanted[policy][0]] == wanted[policy][1]


def test_a07_a_system_that_is_down_at_the_second_look_unlinks_nothing(database: Database) -> None:
    hub = TestHub(database, "crm")
    one = records.add(hub)
    hub.run()
    records.edit(hub, one, phone="2")
    hub.systems["crm"].fail(Gone("404"))
    hub.systems["crm"].fail(SystemDown("503"))
    hub.run()
    assert records.link(hub, "crm").unlinked_at is None
    records.retry_due(hub)
    assert hub.systems["crm"].store["crm_1"]["phone"] == "2"


# A14: currencies whose minor units differ by vendor


@pytest.mark.parametrize(("currency", "amount", "in_stripe"), [("ISK", 5_000, 500_000), ("UGX", 5_000, 500_000)])
def test_a14_a_product_from_salesforce_costs_the_same_in_stripe(
    database: Database, org: SalesforceSimulator, stripe: StripeLike, currency: str, amount: int, in_stripe: int
) -> None:
    hub = BothVendorsHub(database, org, stripe)
    org.add("Product2", Name="Lamp", ProductCode="L1", Price__c=amount, Currency__c=currency, IsActive=True)
    hub.poll("product")
    (price,) = hub.stripe_prices()
    assert (price["unit_amount"], price["currency"]) == (in_stripe, currency.lower())


@pytest.mark.parametrize(("currency", "in_stripe", "amount"), [("isk", 500_000, 5_000), ("mga", 12, 12)])
def test_a14_a_product_from_stripe_costs_the_same_in_salesforce(
    database: Database, org: SalesforceSimulator, stripe: StripeLike, currency: str, in_stripe: int, amount: int
) -> None:
    hub = BothVendorsHub(database, org, stripe)
    price = {"unit_amount": in_stripe, "currency": currency}
    stripe.by_hand("POST", "/v1/products", name="Lamp", metadata={"sku": "L1"}, default_price_data=price)
    hub.conductor.poll("stripe.product")
    hub.run()
    (product,) = org.store.all("Product2")
    assert (product["Price__c"], product["Currency__c"]) == (amount, currency.upper())


# A16: a system whose clock is wrong


@pytest.mark.parametrize("minutes", [-10, 10])
@pytest.mark.parametrize("later", ["ours", "theirs"])
def test_a16_the_newest_edit_wins_whatever_the_clock_of_salesforce_says(
    database: Database, org: SalesforceSimulator, minutes: int, later: str
) -> None:
    hub = SalesforceHub(database, org)
    hub.conductor.context.clock = utcnow
    one = hub.add("customer", name="Ada", email="ada@x.example")
    org.clock.advance(minutes * 60)
    hub.run()
    hub.edit("customer", one, name="ours", phone="+1")
    org.clock.advance(2)
    between = timedelta(minutes=3 if later == "ours" else -3)
    with database.write() as connection:
        connection.execute(sa.update(Change).values(at=utcnow() + between))
    account = hub.link("customer", one).external_id
    org.edit("Account", account, Name="theirs")
    hub.run()
    here = hub.record("customer", one)
    assert here is not None and here["name"] == later == org.store.get("Account", account)["Name"]
    assert org.store.get("Account", account)["Phone"] == "+1"


# B22 in Salesforce: a form of our value


def test_b22_the_form_that_salesforce_stores_is_no_edit_where_it_is_read_back(
    salesforce: SalesforceHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(salesforce.conductor.subscribers["salesforce.customer"]), "read_back", "always")
    one = salesforce.add("customer", name="Ada", email="ada@x.example", phone="  +1 ")
    salesforce.run()
    account, org = salesforce.link("customer", one).external_id, salesforce.org
    assert org.store.get("Account", account)["Phone"] == "+1"
    org.journal.clear()
    salesforce.poll("customer")
    here = salesforce.record("customer", one)
    assert here is not None and here["phone"] == "  +1 ", "our value stays, and is not written again"
    assert salesforce.writes() == []
