"""Contacts, products and invoices with their lines, through the real conductor against the simulated org."""

import json
import re
from datetime import date
from typing import Any

import pytest

from models.session import Database
from settings import ROOT
from simulators.salesforce import SalesforceSimulator
from subscribers.base import Subscriber
from subscribers.mapping import Field
from subscribers.salesforce import SalesforceInvoice, SalesforceProduct
from tests.support.salesforce_world import SalesforceWorld

LINES = [
    {"product_id": None, "description": "Setup", "quantity": 1, "unit_price": 9900},
    {"product_id": None, "description": "Hours", "quantity": 3, "unit_price": 12050},
]


@pytest.fixture
def world(sqlite_database: Database, org: SalesforceSimulator) -> SalesforceWorld:
    return SalesforceWorld(sqlite_database, org)


def invoice(world: SalesforceWorld, lines: list[dict[str, Any]] = LINES, number: str = "R-1") -> str:
    customer = world.add("customer", name=f"Ada of {number}", email=f"{number}@x.org")
    values = {"number": number, "status": "open", "due_date": date(2026, 12, 24)}
    made = world.add("invoice", customer_id=int(customer), lines=lines, **values)
    world.run()
    return made


def lines_there(world: SalesforceWorld) -> list[tuple[Any, ...]]:
    rows = sorted(world.org.store.all("Invoice_Line__c"), key=lambda row: (row["Invoice__c"], row["Position__c"]))
    return [(row["Description__c"], row["Quantity__c"], row["Unit_Price__c"]) for row in rows]


def lines_here(world: SalesforceWorld, invoice_id: str) -> list[tuple[Any, ...]]:
    record = world.record("invoice", invoice_id)
    assert record is not None
    return [(row["description"], row["quantity"], row["unit_price"]) for row in record["lines"]]


# --- products and contacts ------------------------------------------------------------------------


def test_a_product_goes_out_and_its_price_comes_back(world: SalesforceWorld) -> None:
    product = world.add("product", sku="A-1", name="Lamp", price=1250, currency="eur")
    world.run()
    (there,) = world.org.store.all("Product2")
    shown = {name: there[name] for name in ("ProductCode", "Name", "Price__c", "Currency__c", "IsActive")}
    assert shown == {
        "ProductCode": "A-1",
        "Name": "Lamp",
        "Price__c": 12.5,
        "Currency__c": "EUR",
        "IsActive": True,
    }
    world.org.clock.advance(100)
    world.org.edit("Product2", there["Id"], Price__c=19.99)
    before = world.writes()
    world.poll("product")
    here = world.record("product", product)
    assert here is not None and (here["price"], here["currency"]) == (1999, "eur")
    assert world.writes() == before


def test_customers_may_be_contacts(sqlite_database: Database, org: SalesforceSimulator) -> None:
    world = SalesforceWorld(sqlite_database, org, objects="Contact")
    assert list(world.conductor.subscribers) == ["salesforce.customer"]
    ada = world.add("customer", name="Ada  King Lovelace", email="ada@x.org", city="London")
    cher = world.add("customer", name="Cher")
    world.run()
    first, second = org.store.all("Contact")
    assert (first["FirstName"], first["LastName"], first["MailingCity"]) == ("Ada King", "Lovelace", "London")
    assert (second["FirstName"], second["LastName"]) == (None, "Cher")
    assert world.link("customer", cher).external_id == second["Id"]
    org.clock.advance(100)
    org.edit("Contact", first["Id"], LastName="Byron")
    world.poll("customer")
    here = world.record("customer", ada)
    assert here is not None and here["name"] == "Ada King Byron"
    assert len(world.writes()) == 1


def test_a_name_that_does_not_fit_a_contact_is_said_before(sqlite_database: Database, org: SalesforceSimulator) -> None:
    world = SalesforceWorld(sqlite_database, org, objects="Contact")
    world.add("customer", name="x" * 81)
    world.run()
    (dead,) = world.deliveries(outcome="dead")
    assert "LastName: longer than 80 characters" in dead.reason and world.writes() == []


def test_only_the_objects_that_are_set_up_are_kept(sqlite_database: Database, org: SalesforceSimulator) -> None:
    world = SalesforceWorld(sqlite_database, org, objects="Product2, Account")
    assert sorted(world.conductor.subscribers) == ["salesforce.customer", "salesforce.product"]


@pytest.mark.parametrize(
    ("heading", "subscriber"),
    [("### Products", SalesforceProduct), ("### Invoices", SalesforceInvoice)],
)
def test_the_documented_mappings_are_the_shipped_ones(heading: str, subscriber: type[Subscriber]) -> None:
    section = (ROOT / "docs" / "salesforce.md").read_text().split(f"{heading}\n")[1]
    entries: dict[str, Field | str] = dict(subscriber.field_to_data)
    lines = entries.get("lines")
    if isinstance(lines, Field):
        entries |= lines.rows or {}
    mapped = {column: entry if isinstance(entry, str) else entry.path for column, entry in entries.items()}
    assert dict(re.findall(r"(?m)^\| `(\w+)` \| `([\w.]+)` \|$", section.split("\n#")[0])) == mapped


# --- invoices out -----------------------------------------------------------------------------------


def test_an_invoice_goes_out_with_its_lines_after_whom_it_points_to(world: SalesforceWorld) -> None:
    lamp = int(world.add("product", sku="A-1", name="Lamp"))
    invoice(world, [{**LINES[0], "product_id": lamp}, LINES[1]])
    (there,) = world.org.store.all("Invoice__c")
    (account,) = world.org.store.all("Account")
    (product,) = world.org.store.all("Product2")
    assert (there["Name"], there["Customer__c"], there["Status__c"]) == ("R-1", account["Id"], "open")
    assert (there["Due_Date__c"], there["Currency__c"]) == ("2026-12-24", "EUR")
    assert lines_there(world) == [("Setup", 1, 99.0), ("Hours", 3, 120.5)]
    assert [row["Product__c"] for row in world.org.store.all("Invoice_Line__c")] == [product["Id"], None]
    before = world.writes()
    assert before.count(("POST", "composite/graph")) == 1
    world.org.clock.advance(100)
    world.poll("invoice")
    world.poll("invoice")
    assert world.writes() == before, "what was read back is what was sent"


def test_lines_are_kept_in_agreement_as_a_whole(world: SalesforceWorld) -> None:
    one = invoice(world)
    world.org.clock.advance(100)
    world.org.add("Invoice_Line__c", Invoice__c=world.link("invoice", one).external_id, Description__c="Theirs")
    world.edit("invoice", one, lines=[LINES[1]])
    world.run()
    assert lines_there(world) == [("Hours", 3, 120.5)]
    world.edit("invoice", one, status="paid")
    world.run()
    assert world.org.store.all("Invoice__c")[0]["Status__c"] == "paid"
    assert world.writes()[-1] == ("PATCH", "composite/sobjects"), "its lines did not change"


def test_many_invoices_are_few_calls(world: SalesforceWorld) -> None:
    customer = int(world.add("customer", name="Ada"))
    for number in range(100):
        world.add("invoice", customer_id=customer, number=f"R-{number}", lines=LINES)
    world.run()
    assert world.writes().count(("POST", "composite/graph")) == 2
    assert len(lines_there(world)) == 200


def test_an_invoice_is_written_as_a_whole_or_not_at_all(world: SalesforceWorld) -> None:
    world.add("customer", name="Ada")
    world.run()
    world.org.faults.clear()
    too_much = [LINES[0], {**LINES[1], "unit_price": 10**18}]
    good = world.add("invoice", customer_id=1, number="R-1", lines=LINES)
    bad = world.add("invoice", customer_id=1, number="R-2", lines=too_much)
    world.run()
    assert [one["Name"] for one in world.org.store.all("Invoice__c")] == ["R-1"]
    assert len(lines_there(world)) == 2 and world.link("invoice", good).external_id
    (dead,) = world.deliveries(outcome="dead")
    assert dead.record_id == bad and "Lines__r[1]" in dead.reason and "NUMBER_OUTSIDE_VALID_RANGE" in dead.reason
    world.edit("invoice", bad, lines=LINES)
    world.run()
    assert [one["Name"] for one in world.org.store.all("Invoice__c")] == ["R-1", "R-2"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_invoice_whose_answer_was_lost_is_there_once(world: SalesforceWorld, when: str) -> None:
    world.add("customer", name="Ada")
    world.run()
    world.org.drop(when=when, path="composite/graph")
    one = world.add("invoice", customer_id=1, number="R-1", lines=LINES)
    world.run()
    world.org.clock.advance(100)
    world.conductor.deliver("salesforce.invoice", [one])
    assert [row["Name"] for row in world.org.store.all("Invoice__c")] == ["R-1"]
    assert lines_there(world) == [("Setup", 1, 99.0), ("Hours", 3, 120.5)]
    assert lines_here(world, one) == [("Setup", 1, 9900), ("Hours", 3, 12050)]
    link = world.link("invoice", one)
    assert link.owed_change == link.synced_change


def test_the_history_has_salesforces_own_answer(world: SalesforceWorld) -> None:
    one = invoice(world)
    world.org.fail_items(code="FIELD_CUSTOM_VALIDATION_EXCEPTION", message="no such day")
    world.edit("invoice", one, lines=LINES[:1])
    world.run()
    delivery = world.deliveries(subscriber="salesforce.invoice")[-1]
    assert delivery.error == "Reject"
    answer = json.loads(delivery.reply)
    assert answer["httpStatusCode"] == 400 and answer["body"][0]["message"] == "no such day"


def test_an_org_without_the_object_unlinks_nothing(world: SalesforceWorld) -> None:
    one = invoice(world)
    message = "The requested resource does not exist"
    world.org.fail(status=404, code="NOT_FOUND", message=message, path="composite/graph")
    world.edit("invoice", one, lines=LINES[:1])
    world.run()
    link = world.link("invoice", one)
    assert link.unlinked_at is None and link.dead_at is not None


def test_creating_what_is_there_already_takes_its_lines_over(world: SalesforceWorld) -> None:
    there = world.org.add("Invoice__c", Name="R-1", Syncflow_Id__c="1")
    world.org.add("Invoice_Line__c", Invoice__c=there, Description__c="Of before")
    invoice(world)
    assert lines_there(world) == [("Setup", 1, 99.0), ("Hours", 3, 120.5)]


def test_a_customer_deleted_there_does_not_unlink_the_invoice(world: SalesforceWorld) -> None:
    one = invoice(world)
    world.org.remove("Account", world.link("customer", "1").external_id)
    world.edit("invoice", one, customer_id=int(world.add("customer", name="Bob")))
    world.run()
    assert world.link("invoice", one).unlinked_at is None
    (account,) = world.org.store.all("Account")
    assert world.org.store.all("Invoice__c")[0]["Customer__c"] == account["Id"]
    world.edit("invoice", one, customer_id=1)  # linked still, as no poll has told of it
    world.run()
    assert world.link("invoice", one).unlinked_at is None
    (failed,) = world.deliveries(outcome="failed", subscriber="salesforce.invoice")
    assert "a record that it points to is deleted there" in failed.reason


# --- invoices in ------------------------------------------------------------------------------------


def test_lines_edited_added_and_deleted_there_come_in(world: SalesforceWorld) -> None:
    one = invoice(world)
    first, second = sorted(world.org.store.all("Invoice_Line__c"), key=lambda row: row["Position__c"])
    parent = first["Invoice__c"]
    world.org.clock.advance(100)
    world.poll("invoice")
    world.org.edit("Invoice_Line__c", second["Id"], Quantity__c=5)
    world.org.add("Invoice_Line__c", Invoice__c=parent, Description__c="Travel", Quantity__c=1, Unit_Price__c=80)
    before = world.writes()
    world.org.clock.advance(100)
    world.poll("invoice")
    assert lines_here(world, one) == [("Setup", 1, 9900), ("Hours", 5, 12050), ("Travel", 1, 8000)]
    world.org.remove("Invoice_Line__c", first["Id"])
    world.org.clock.advance(100)
    world.poll("invoice")
    assert lines_here(world, one) == [("Hours", 5, 12050), ("Travel", 1, 8000)]
    assert world.writes() == before, "nothing of it goes back"


def test_an_invoice_made_there_comes_in_with_customer_and_lines(world: SalesforceWorld) -> None:
    customer = world.add("customer", name="Ada")
    world.run()
    account = world.link("customer", customer).external_id
    there = world.org.add("Invoice__c", Name="S-1", Customer__c=account, Currency__c="CHF", Due_Date__c="2026-12-31")
    world.org.add(
        "Invoice_Line__c", Invoice__c=there, Position__c=1, Description__c="Hours", Quantity__c=2, Unit_Price__c=0.5
    )
    world.poll("invoice")
    here = world.record("invoice", "1")
    assert here is not None
    assert (here["number"], here["customer_id"], here["currency"]) == ("S-1", int(customer), "chf")
    assert (here["status"], here["due_date"]) == ("draft", date(2026, 12, 31))
    assert lines_here(world, "1") == [("Hours", 2, 50)]


def test_a_half_read_page_of_lines_is_read_on(world: SalesforceWorld) -> None:
    world.org.org.page_size = 3
    try:
        one = invoice(world, [{**LINES[0], "description": f"N{n}"} for n in range(7)])
        world.org.clock.advance(100)
        world.poll("invoice")
        assert len(lines_here(world, one)) == 7
    finally:
        world.org.org.page_size = 2000
