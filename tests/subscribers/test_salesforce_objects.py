"""Contacts, products and invoices with lines: the real conductor against the simulated org."""

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
from tests.support.records import mark
from tests.support.salesforce_hub import SalesforceHub

LINES = [
    {"product_id": None, "description": "Setup", "quantity": 1, "unit_price": 9900},
    {"product_id": None, "description": "Hours", "quantity": 3, "unit_price": 12050},
]


@pytest.fixture
def hub(sqlite_database: Database, org: SalesforceSimulator) -> SalesforceHub:
    return SalesforceHub(sqlite_database, org)


def invoice(hub: SalesforceHub, lines: list[dict[str, Any]] = LINES, number: str = "R-1") -> str:
    customer = hub.add("customer", name=f"Ada of {number}", email=f"{number}@x.org")
    values = {"number": number, "status": "open", "due_date": date(2026, 12, 24)}
    made = hub.add("invoice", customer_id=int(customer), lines=lines, **values)
    hub.run()
    return made


def lines_there(hub: SalesforceHub) -> list[tuple[Any, ...]]:
    rows = sorted(hub.org.store.all("Invoice_Line__c"), key=lambda row: (row["Invoice__c"], row["Position__c"]))
    return [(row["Description__c"], row["Quantity__c"], row["Unit_Price__c"]) for row in rows]


def lines_here(hub: SalesforceHub, invoice_id: str) -> list[tuple[Any, ...]]:
    record = hub.record("invoice", invoice_id)
    assert record is not None
    return [(row["description"], row["quantity"], row["unit_price"]) for row in record["lines"]]


# --- products and contacts ------------------------------------------------------------------------


def test_a_product_goes_out_and_its_price_comes_back(hub: SalesforceHub) -> None:
    product = hub.add("product", sku="A-1", name="Lamp", price=1250, currency="eur")
    hub.run()
    (there,) = hub.org.store.all("Product2")
    shown = {name: there[name] for name in ("ProductCode", "Name", "Price__c", "Currency__c", "IsActive")}
    assert shown == {
        "ProductCode": "A-1",
        "Name": "Lamp",
        "Price__c": 12.5,
        "Currency__c": "EUR",
        "IsActive": True,
    }
    hub.org.clock.advance(100)
    hub.org.edit("Product2", there["Id"], Price__c=19.99)
    before = hub.writes()
    hub.poll("product")
    here = hub.record("product", product)
    assert here is not None and (here["price"], here["currency"]) == (1999, "eur")
    assert hub.writes() == before


def test_customers_may_be_contacts(sqlite_database: Database, org: SalesforceSimulator) -> None:
    hub = SalesforceHub(sqlite_database, org, objects="Contact")
    assert list(hub.conductor.subscribers) == ["salesforce.customer"]
    ada = hub.add("customer", name="Ada  King Lovelace", email="ada@x.org", city="London")
    cher = hub.add("customer", name="Cher")
    hub.run()
    first, second = org.store.all("Contact")
    assert (first["FirstName"], first["LastName"], first["MailingCity"]) == ("Ada King", "Lovelace", "London")
    assert (second["FirstName"], second["LastName"]) == (None, "Cher")
    assert hub.link("customer", cher).external_id == second["Id"]
    org.clock.advance(100)
    org.edit("Contact", first["Id"], LastName="Byron")
    hub.poll("customer")
    here = hub.record("customer", ada)
    assert here is not None and here["name"] == "Ada King Byron"
    assert len(hub.writes()) == 1


def test_a_name_that_is_too_long_for_a_contact_is_rejected_before_the_call(
    sqlite_database: Database, org: SalesforceSimulator
) -> None:
    hub = SalesforceHub(sqlite_database, org, objects="Contact")
    hub.add("customer", name="x" * 81)
    hub.run()
    (dead,) = hub.deliveries(outcome="dead")
    assert "LastName: is longer than 80 characters" in dead.reason and hub.writes() == []


def test_only_the_objects_that_are_set_up_are_kept(sqlite_database: Database, org: SalesforceSimulator) -> None:
    hub = SalesforceHub(sqlite_database, org, objects="Product2, Account")
    assert sorted(hub.conductor.subscribers) == ["salesforce.customer", "salesforce.product"]


@pytest.mark.parametrize(
    ("heading", "subscriber"),
    [("### Products", SalesforceProduct), ("### Invoices", SalesforceInvoice)],
)
def test_the_documented_mappings_are_the_shipped_ones(heading: str, subscriber: type[Subscriber]) -> None:
    section = (ROOT / "docs/howto/salesforce.md").read_text().split(f"{heading}\n")[1]
    entries: dict[str, Field | str] = dict(subscriber.field_to_data)
    lines = entries.get("lines")
    if isinstance(lines, Field):
        entries |= lines.rows or {}
    mapped = {column: entry if isinstance(entry, str) else entry.path for column, entry in entries.items()}
    assert dict(re.findall(r"(?m)^\| `(\w+)` \| `([\w.]+)` \|$", section.split("\n#")[0])) == mapped


# --- outgoing invoices ------------------------------------------------------------------------------


def test_an_invoice_is_delivered_with_its_lines_after_its_references(hub: SalesforceHub) -> None:
    lamp = int(hub.add("product", sku="A-1", name="Lamp"))
    invoice(hub, [{**LINES[0], "product_id": lamp}, LINES[1]])
    (there,) = hub.org.store.all("Invoice__c")
    (account,) = hub.org.store.all("Account")
    (product,) = hub.org.store.all("Product2")
    assert (there["Name"], there["Customer__c"], there["Status__c"]) == ("R-1", account["Id"], "open")
    assert (there["Due_Date__c"], there["Currency__c"]) == ("2026-12-24", "EUR")
    assert lines_there(hub) == [("Setup", 1, 99.0), ("Hours", 3, 120.5)]
    assert [row["Product__c"] for row in hub.org.store.all("Invoice_Line__c")] == [product["Id"], None]
    before = hub.writes()
    assert before.count(("POST", "composite/graph")) == 1
    hub.org.clock.advance(100)
    hub.poll("invoice")
    hub.poll("invoice")
    assert hub.writes() == before, "what was read back is what was sent"


def test_lines_are_kept_in_agreement_as_a_whole(hub: SalesforceHub) -> None:
    one = invoice(hub)
    hub.org.clock.advance(100)
    hub.org.add("Invoice_Line__c", Invoice__c=hub.link("invoice", one).external_id, Description__c="Theirs")
    hub.edit("invoice", one, lines=[LINES[1]])
    hub.run()
    assert lines_there(hub) == [("Hours", 3, 120.5)]
    hub.edit("invoice", one, status="paid")
    hub.run()
    assert hub.org.store.all("Invoice__c")[0]["Status__c"] == "paid"
    assert hub.writes()[-1] == ("PATCH", "composite/sobjects"), "its lines did not change"


def test_many_invoices_are_few_calls(hub: SalesforceHub) -> None:
    customer = int(hub.add("customer", name="Ada"))
    for number in range(100):
        hub.add("invoice", customer_id=customer, number=f"R-{number}", lines=LINES)
    hub.run()
    assert hub.writes().count(("POST", "composite/graph")) == 2
    assert len(lines_there(hub)) == 200


def test_an_invoice_is_written_as_a_whole_or_not_at_all(hub: SalesforceHub) -> None:
    hub.add("customer", name="Ada")
    hub.run()
    hub.org.faults.clear()
    too_much = [LINES[0], {**LINES[1], "unit_price": 10**18}]
    good = hub.add("invoice", customer_id=1, number="R-1", lines=LINES)
    bad = hub.add("invoice", customer_id=1, number="R-2", lines=too_much)
    hub.run()
    assert [one["Name"] for one in hub.org.store.all("Invoice__c")] == ["R-1"]
    assert len(lines_there(hub)) == 2 and hub.link("invoice", good).external_id
    (dead,) = hub.deliveries(outcome="dead")
    assert dead.record_id == bad and "Lines__r[1]" in dead.reason and "NUMBER_OUTSIDE_VALID_RANGE" in dead.reason
    hub.edit("invoice", bad, lines=LINES)
    hub.run()
    assert [one["Name"] for one in hub.org.store.all("Invoice__c")] == ["R-1", "R-2"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_invoice_whose_answer_was_lost_is_there_once(hub: SalesforceHub, when: str) -> None:
    hub.add("customer", name="Ada")
    hub.run()
    hub.org.drop(when=when, path="composite/graph")
    one = hub.add("invoice", customer_id=1, number="R-1", lines=LINES)
    hub.run()
    hub.org.clock.advance(100)
    hub.conductor.deliver("salesforce.invoice", [one])
    assert [row["Name"] for row in hub.org.store.all("Invoice__c")] == ["R-1"]
    assert lines_there(hub) == [("Setup", 1, 99.0), ("Hours", 3, 120.5)]
    assert lines_here(hub, one) == [("Setup", 1, 9900), ("Hours", 3, 12050)]
    link = hub.link("invoice", one)
    assert link.owed_change == link.synced_change


def test_the_history_has_salesforces_own_answer(hub: SalesforceHub) -> None:
    one = invoice(hub)
    hub.org.fail_items(code="FIELD_CUSTOM_VALIDATION_EXCEPTION", message="no such day")
    hub.edit("invoice", one, lines=LINES[:1])
    hub.run()
    delivery = hub.deliveries(subscriber="salesforce.invoice")[-1]
    assert delivery.error == "Reject"
    answer = json.loads(delivery.response)
    assert answer["httpStatusCode"] == 400 and answer["body"][0]["message"] == "no such day"


def test_an_org_without_the_object_unlinks_nothing(hub: SalesforceHub) -> None:
    one = invoice(hub)
    message = "The requested resource does not exist"
    hub.org.fail(status=404, code="NOT_FOUND", message=message, path="composite/graph")
    hub.edit("invoice", one, lines=LINES[:1])
    hub.run()
    link = hub.link("invoice", one)
    assert link.unlinked_at is None and link.dead_at is not None


def test_creating_an_existing_invoice_adopts_its_lines(hub: SalesforceHub) -> None:
    there = hub.org.add("Invoice__c", Name="R-1", Syncflow_Id__c=mark(hub, 1))
    hub.org.add("Invoice_Line__c", Invoice__c=there, Description__c="Of before")
    invoice(hub)
    assert lines_there(hub) == [("Setup", 1, 99.0), ("Hours", 3, 120.5)]


def test_a_customer_deleted_in_the_system_does_not_unlink_the_invoice(hub: SalesforceHub) -> None:
    one = invoice(hub)
    hub.org.remove("Account", hub.link("customer", "1").external_id)
    hub.edit("invoice", one, customer_id=int(hub.add("customer", name="Bob")))
    hub.run()
    assert hub.link("invoice", one).unlinked_at is None
    (account,) = hub.org.store.all("Account")
    assert hub.org.store.all("Invoice__c")[0]["Customer__c"] == account["Id"]
    hub.edit("invoice", one, customer_id=1)  # still linked, because no poll has reported the deletion
    hub.run()
    assert hub.link("invoice", one).unlinked_at is None
    (failed,) = hub.deliveries(outcome="failed", subscriber="salesforce.invoice")
    assert "a record that it refers to may be missing" in failed.reason


# --- incoming invoices ------------------------------------------------------------------------------


def test_lines_edited_added_and_deleted_in_the_system_are_applied(hub: SalesforceHub) -> None:
    one = invoice(hub)
    first, second = sorted(hub.org.store.all("Invoice_Line__c"), key=lambda row: row["Position__c"])
    parent = first["Invoice__c"]
    hub.org.clock.advance(100)
    hub.poll("invoice")
    hub.org.edit("Invoice_Line__c", second["Id"], Quantity__c=5)
    hub.org.add("Invoice_Line__c", Invoice__c=parent, Description__c="Travel", Quantity__c=1, Unit_Price__c=80)
    before = hub.writes()
    hub.org.clock.advance(100)
    hub.poll("invoice")
    assert lines_here(hub, one) == [("Setup", 1, 9900), ("Hours", 5, 12050), ("Travel", 1, 8000)]
    hub.org.remove("Invoice_Line__c", first["Id"])
    hub.org.clock.advance(100)
    hub.poll("invoice")
    assert lines_here(hub, one) == [("Hours", 5, 12050), ("Travel", 1, 8000)]
    assert hub.writes() == before, "nothing of it goes back"


def test_an_invoice_created_in_the_system_is_applied_with_customer_and_lines(hub: SalesforceHub) -> None:
    customer = hub.add("customer", name="Ada")
    hub.run()
    account = hub.link("customer", customer).external_id
    there = hub.org.add("Invoice__c", Name="S-1", Customer__c=account, Currency__c="CHF", Due_Date__c="2026-12-31")
    hub.org.add(
        "Invoice_Line__c", Invoice__c=there, Position__c=1, Description__c="Hours", Quantity__c=2, Unit_Price__c=0.5
    )
    hub.poll("invoice")
    here = hub.record("invoice", "1")
    assert here is not None
    assert (here["number"], here["customer_id"], here["currency"]) == ("S-1", int(customer), "chf")
    assert (here["status"], here["due_date"]) == ("draft", date(2026, 12, 31))
    assert lines_here(hub, "1") == [("Hours", 2, 50)]


def test_a_half_read_page_of_lines_is_read_on(hub: SalesforceHub) -> None:
    hub.org.org.page_size = 3
    try:
        one = invoice(hub, [{**LINES[0], "description": f"N{n}"} for n in range(7)])
        hub.org.clock.advance(100)
        hub.poll("invoice")
        assert len(lines_here(hub, one)) == 7
    finally:
        hub.org.org.page_size = 2000
