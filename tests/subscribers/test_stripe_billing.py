"""Two-way sync of products with prices and invoices with lines, by Stripe's rules."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from models.session import Database
from simulators.stripe import StripeLike
from tests.support.records import mark
from tests.support.stripe_hub import StripeHub, emptied

DUE = datetime.now(UTC).date() + timedelta(days=20)


@pytest.fixture(scope="module")
def server() -> Iterator[StripeLike]:
    with StripeLike() as stripe:
        yield stripe


@pytest.fixture
def hub(server: StripeLike, migrated_sqlite: Path, tmp_path: Path) -> Iterator[StripeHub]:
    emptied(server)
    shutil.copy(migrated_sqlite, tmp_path / "hub.db")
    database = Database(f"sqlite:///{tmp_path / 'hub.db'}")
    sa.event.listen(
        database.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF")
    )  # faster; no test needs durable writes
    yield StripeHub(database, server)
    database.close()


def lamp(hub: StripeHub, **values: Any) -> int:
    return hub.add("product", **{"sku": "L1", "name": "Lamp", "price": 1250, "currency": "eur", **values})


def bill(hub: StripeHub, *, lines: bool = True, **values: Any) -> int:
    """Insert an invoice for a new customer, with one product line and one line without a product."""
    customer = hub.add("customer", name="Anna", email="anna@example.org")
    product = lamp(hub)
    invoice = hub.add("invoice", **{"customer_id": customer, "number": "R-1", "due_date": DUE, **values})
    if lines:
        hub.add("line", invoice_id=invoice, product_id=product, description="lamps", quantity=2, unit_price=1200)
        hub.add("line", invoice_id=invoice, description="postage", quantity=1, unit_price=300)
    return invoice


def shown(invoice: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Return the lines of an invoice in their order."""
    lines = sorted(invoice["lines"]["data"], key=lambda line: line["metadata"].get("syncflow_line", "9"))
    return [(line["description"], line["quantity"], line["price"]["unit_amount"]) for line in lines]


def day_of(timestamp: int) -> date:
    return datetime.fromtimestamp(timestamp, UTC).date()


# --- products ---------------------------------------------------------------------------------------------


def test_a_product_is_created_with_its_price_in_one_call(hub: StripeHub) -> None:
    id = lamp(hub)
    hub.settle()
    (product,) = hub.all("products")
    (price,) = hub.all("prices")
    assert (product["name"], product["active"], product["default_price"]) == ("Lamp", True, price["id"])
    assert product["metadata"] == {"sku": "L1", "syncflow_id": mark(hub, id)}
    assert (price["unit_amount"], price["currency"], price["metadata"]) == (1250, "eur", {"syncflow_id": mark(hub, id)})
    assert len(hub.stripe.journal.calls("POST")) == 1
    assert hub.stripe.journal.calls("POST")[0].idempotency_key


def test_another_price_is_a_new_one_and_the_old_one_is_archived(hub: StripeHub) -> None:
    id = lamp(hub)
    hub.settle()
    for amount in (1400, 1250, 1400):  # changed and reverted within a day: Stripe still knows the first keys
        hub.edit("product", id, price=amount)
        hub.settle()
        (product,) = hub.all("products")
        prices = {price["id"]: (price["unit_amount"], price["active"]) for price in hub.all("prices")}
        assert prices.pop(product["default_price"]) == (amount, True)
        assert not any(active for _, active in prices.values())
    assert len(hub.all("prices")) == 4
    assert product["metadata"] == {"sku": "L1", "syncflow_id": mark(hub, id)}
    assert hub.record("product", id)["price"] == 1400 and hub.letters() == []


def test_an_idempotency_key_of_an_archived_price_is_not_reused(hub: StripeHub) -> None:
    id = lamp(hub)
    hub.settle()
    hub.edit("product", id, price=1400)
    hub.settle()
    (product,), (first, second) = hub.all("products"), hub.all("prices")
    hub.stripe.by_hand("POST", f"/v1/prices/{first['id']}", active=True)
    hub.stripe.by_hand("POST", f"/v1/products/{product['id']}", default_price=first["id"])
    hub.stripe.by_hand("POST", f"/v1/prices/{second['id']}", active=False)
    hub.settle()
    assert hub.record("product", id)["price"] == 1250
    hub.edit("product", id, price=1400)  # repeats the first price change
    hub.settle()
    (product,) = hub.all("products")
    assert product["default_price"] == hub.all("prices")[2]["id"] and hub.letters() == []


def test_a_product_and_its_price_are_applied_and_updated_in_stripe(hub: StripeHub) -> None:
    made = hub.stripe.by_hand(
        "POST", "/v1/products", name="Vase", default_price_data={"currency": "usd", "unit_amount": "900"}
    )
    hub.settle()
    (here,) = hub.records("product")
    assert (here["name"], here["sku"], here["price"], here["currency"]) == ("Vase", made["id"], 900, "usd")
    price = hub.stripe.by_hand("POST", "/v1/prices", product=made["id"], currency="usd", unit_amount="950")
    hub.stripe.by_hand("POST", f"/v1/products/{made['id']}", default_price=price["id"], name="Tall vase")
    hub.settle()
    (here,) = hub.records("product")
    assert (here["name"], here["price"]) == ("Tall vase", 950)
    assert hub.stripe.journal.calls("POST") == []


def test_a_product_in_tiers_keeps_them_until_a_price_is_set_here(hub: StripeHub) -> None:
    made = hub.stripe.by_hand("POST", "/v1/products", name="Power")
    tiers = hub.stripe.by_hand("POST", "/v1/prices", product=made["id"], currency="eur")
    hub.stripe.by_hand("POST", f"/v1/products/{made['id']}", default_price=tiers["id"])
    hub.settle()
    (here,) = hub.records("product")
    assert here["price"] == 0 and len(hub.all("prices")) == 1
    hub.edit("product", here["id"], price=700)
    hub.settle()
    assert [(p["unit_amount"], p["active"]) for p in hub.all("prices")] == [(None, False), (700, True)]


def test_a_recurring_price_stays_recurring(hub: StripeHub) -> None:
    data = {"currency": "eur", "unit_amount": "900", "recurring": {"interval": "month"}}
    made = hub.stripe.by_hand("POST", "/v1/products", name="Plan", default_price_data=data)
    hub.settle()
    (here,) = hub.records("product")
    hub.edit("product", here["id"], price=1000)
    hub.settle()
    new = hub.there(f"products/{made['id']}", **{"expand[]": "default_price"})["default_price"]
    assert (new["unit_amount"], new["recurring"]["interval"]) == (1000, "month")


def test_a_product_with_prices_is_archived_one_without_is_deleted(hub: StripeHub) -> None:
    priced, free = lamp(hub), lamp(hub, sku="F", name="Flyer", price=0)
    hub.settle()
    hub.remove("product", priced)
    hub.remove("product", free)
    hub.settle()
    assert [(p["name"], p["active"]) for p in hub.all("products")] == [("Lamp", False)]
    assert hub.records("product") == [] and hub.letters() == []
    hub.stripe.by_hand("POST", f"/v1/products/{hub.all('products')[0]['id']}", name="Old lamp")
    hub.settle()
    assert hub.records("product") == []
    hub.stripe.by_hand("POST", f"/v1/products/{hub.all('products')[0]['id']}", active="true")
    hub.settle()
    assert [(p["name"], p["active"]) for p in hub.records("product")] == [("Old lamp", True)]


# --- invoices ---------------------------------------------------------------------------------------------


def test_an_invoice_is_delivered_with_its_references_and_paid_in_stripe(hub: StripeHub) -> None:
    id = bill(hub, status="open")
    hub.settle()
    (invoice,) = hub.all("invoices")
    (customer,), (product,) = hub.all("customers"), hub.all("products")
    assert (invoice["customer"], invoice["number"], invoice["status"]) == (customer["id"], "R-1", "open")
    assert invoice["metadata"] == {"syncflow_id": mark(hub, id)} and invoice["auto_advance"] is False
    assert day_of(invoice["due_date"]) == DUE and invoice["total"] == 2700
    assert shown(invoice) == [("lamps", 2, 1200), ("postage", 1, 300)]
    items = hub.all("invoiceitems")
    assert items[0]["price"]["product"] == product["id"]
    assert all(item["metadata"]["syncflow_id"] == mark(hub, id) for item in items)
    creates = [c for c in hub.stripe.journal.calls("POST") if c.path.count("/") == 2]
    assert len({c.idempotency_key for c in creates}) == len(creates) == 5

    hub.stripe.by_hand("POST", f"/v1/invoices/{invoice['id']}/pay", source="card")
    writes = len(hub.stripe.journal.calls("POST"))
    hub.settle()
    assert hub.record("invoice", id)["status"] == "paid"
    assert len(hub.stripe.journal.calls("POST")) == writes  # nothing is sent back


def test_every_call_is_paced(hub: StripeHub) -> None:
    """Otherwise operations with several calls would exceed the configured calls per second."""
    id = bill(hub, status="draft")
    hub.run()
    hub.edit("line", hub.records("line")[0]["id"], quantity=3)
    hub.edit("product", hub.records("product")[0]["id"], price=5)
    hub.run()
    hub.remove("invoice", id)
    hub.run()
    assert hub.client.paces == len(hub.stripe.journal) > 15


def test_a_draft_is_edited_line_by_line(hub: StripeHub) -> None:
    id = bill(hub)
    hub.settle()
    kept = hub.all("invoiceitems")[1]["id"]
    lamps = hub.record("invoice", id)["lines"]
    assert len(lamps) == 2
    first = hub.records("line")[0]["id"]
    hub.edit("line", first, quantity=3)
    hub.add("line", invoice_id=id, description="gift", quantity=1, unit_price=0)
    hub.edit("invoice", id, due_date=DUE + timedelta(days=1))
    hub.settle()
    (invoice,) = hub.all("invoices")
    assert shown(invoice) == [("lamps", 3, 1200), ("postage", 1, 300), ("gift", 1, 0)]
    assert kept in {item["id"] for item in hub.all("invoiceitems")}
    assert day_of(invoice["due_date"]) == DUE + timedelta(days=1)
    hub.edit("line", first, product_id=None)  # an item cannot change its product, so a new item replaces it
    hub.settle()
    (invoice,) = hub.all("invoices")
    assert shown(invoice) == [("lamps", 3, 1200), ("postage", 1, 300), ("gift", 1, 0)]
    assert all("syncflow_product" not in line["metadata"] for line in invoice["lines"]["data"])


def test_a_removed_and_restored_line_is_a_new_item(hub: StripeHub) -> None:
    id = bill(hub, lines=False)
    hub.settle()
    for _ in range(2):
        line = hub.add("line", invoice_id=id, description="gift", quantity=1, unit_price=5)
        hub.settle()
        assert shown(hub.all("invoices")[0]) == [("gift", 1, 5)]
        with hub.database.write() as c:
            c.exec_driver_sql(f"DELETE FROM invoice_line WHERE id = {line}")
        hub.settle()
        assert hub.all("invoiceitems") == []


def test_a_stripe_invoice_is_applied_gets_lines_and_is_finalized(hub: StripeHub) -> None:
    customer = hub.stripe.create_customer(name="Bob", email="bob@example.org")
    made = hub.stripe.by_hand("POST", "/v1/invoices", customer=customer["id"], currency="eur")
    common = {"customer": customer["id"], "invoice": made["id"], "currency": "eur"}
    hub.stripe.by_hand("POST", "/v1/invoiceitems", **common, description="work", unit_amount="5000", quantity="2")
    hub.settle()
    (here,) = hub.records("invoice")
    assert (here["number"], here["status"]) == (made["id"], "draft")
    for n in range(11):  # more lines than the invoice object includes
        hub.stripe.by_hand("POST", "/v1/invoiceitems", **common, description=f"n{n}", amount=str(n))
    hub.stripe.by_hand("POST", f"/v1/invoices/{made['id']}/finalize")
    hub.settle()
    here = hub.record("invoice", here["id"])
    assert (here["number"], here["status"]) == ("STRIPE-0001", "open")
    lines = [(line["description"], line["quantity"], line["unit_price"]) for line in here["lines"]]
    assert lines == [("work", 2, 5000), *((f"n{n}", 1, n) for n in range(11))]
    assert hub.stripe.journal.calls("POST") == [] and hub.letters() == []


@pytest.mark.parametrize("there", ["open", "paid", "void"])
def test_an_edit_of_a_final_invoice_is_rejected_with_a_message(hub: StripeHub, there: str) -> None:
    id = bill(hub, status=there.replace("void", "open"))
    hub.settle()
    if there == "void":
        hub.edit("invoice", id, status="void")
        hub.settle()
    line = hub.records("line")[0]["id"]
    hub.stripe.journal.clear()
    hub.edit("line", line, quantity=7)
    hub.settle()
    (letter,) = hub.letters()
    assert f"lines: cannot be changed: the invoice is {there} in Stripe, and final" in letter
    hub.clock.tick(7200)
    hub.conductor.sweep()
    hub.settle()
    assert len([d for d in hub.deliveries("stripe.invoice") if d.outcome == "dead"]) == 1
    assert hub.stripe.journal.calls("POST") == []
    hub.edit("line", line, quantity=2)  # reverted: the error is gone
    hub.settle()
    assert hub.letters() == []


@pytest.mark.parametrize(
    ("before", "after", "there"),
    [
        ("draft", "open", "open"),
        ("draft", "paid", "paid"),
        ("draft", "void", "void"),
        ("open", "paid", "paid"),
        ("open", "void", "void"),
        ("open", "draft", "open"),
        ("paid", "void", "paid"),
    ],
)
def test_its_status_moves_as_far_as_stripes_rules_go(hub: StripeHub, before: str, after: str, there: str) -> None:
    id = bill(hub, status=before)
    hub.settle()
    hub.edit("invoice", id, status=after)
    hub.settle()
    (invoice,) = hub.all("invoices")
    assert invoice["status"] == there and invoice["metadata"] == {"syncflow_id": mark(hub, id)}
    assert invoice["paid_out_of_band"] is (there == "paid")
    assert bool(hub.letters()) is (there != after)


def test_an_invoice_of_zero_is_paid_by_stripe_immediately(hub: StripeHub) -> None:
    id = bill(hub, lines=False, status="open")
    hub.settle()
    assert hub.record("invoice", id)["status"] == "paid" and hub.letters() == []


def test_a_deleted_draft_is_deleted_and_leaves_no_items_waiting(hub: StripeHub) -> None:
    draft = bill(hub)
    hub.settle()
    hub.remove("invoice", draft)
    hub.settle()
    assert hub.all("invoices") == [] and hub.all("invoiceitems") == [] and hub.letters() == []


@pytest.mark.parametrize(("status", "there", "letters"), [("open", "void", 0), ("paid", "paid", 1)])
def test_a_deleted_final_invoice_is_voided_if_that_is_possible(
    hub: StripeHub, status: str, there: str, letters: int
) -> None:
    id = bill(hub, status=status)
    hub.settle()
    hub.remove("invoice", id)
    hub.settle()
    assert [one["status"] for one in hub.all("invoices")] == [there]
    assert len(hub.letters()) == letters and hub.records("invoice") == []


def test_a_refused_line_is_corrected_without_a_second_invoice(hub: StripeHub) -> None:
    refusal = hub.stripe.faults.fail(400, 100, method="POST", path="/v1/invoiceitems")
    id = bill(hub, status="open")
    hub.settle()
    assert len(hub.letters()) == 1 and [one["status"] for one in hub.all("invoices")] == ["draft"]
    assert hub.record("invoice", id)["status"] == "open"
    assert refusal.times > 90, "its own events may not repeat the write without end"
    hub.stripe.faults.clear()
    hub.edit("line", hub.records("line")[0]["id"], quantity=5)
    hub.settle()
    (invoice,) = hub.all("invoices")
    assert (invoice["status"], shown(invoice)) == ("open", [("lamps", 5, 1200), ("postage", 1, 300)])
    assert hub.letters() == []


# --- a worker that dies between the calls -------------------------------------------------------------------


@pytest.mark.parametrize(("write", "forgets"), [(3, True), (4, False), (5, True), (6, False), (7, True)])
def test_a_creation_cut_short_is_completed_once(hub: StripeHub, write: int, forgets: bool) -> None:
    """Customer and product take one call each; the invoice takes six: lines, status and mark."""
    id = bill(hub, status="paid")
    assert hub.die_after(write)
    if forgets:
        hub.stripe.forget_keys()
    for event in hub.news():
        hub.webhook(event)
    hub.run()  # these webhooks must not be treated as user edits
    hub.take_up()
    (invoice,) = hub.all("invoices")
    assert (invoice["status"], invoice["paid_out_of_band"]) == ("paid", True)
    assert shown(invoice) == [("lamps", 2, 1200), ("postage", 1, 300)] and len(hub.all("invoiceitems")) == 2
    assert invoice["metadata"] == {"syncflow_id": mark(hub, id)}
    here = hub.record("invoice", id)
    assert here["status"] == "paid" and [line["quantity"] for line in here["lines"]] == [2, 1]
    assert hub.letters() == []


@pytest.mark.parametrize("write", [1, 2, 3, 5, 7])
def test_an_update_cut_short_is_completed(hub: StripeHub, write: int) -> None:
    id = bill(hub)
    hub.settle()
    first, second = (line["id"] for line in hub.records("line"))
    with hub.database.write() as c:
        c.exec_driver_sql(f"UPDATE invoice_line SET product_id = NULL WHERE id = {first}")
        c.exec_driver_sql(f"UPDATE invoice_line SET quantity = 4 WHERE id = {second}")
        c.exec_driver_sql(f"UPDATE invoice SET status = 'paid', number = 'R-2' WHERE id = {id}")
    assert hub.die_after(write)
    for event in hub.news():
        hub.webhook(event)
    hub.run()
    hub.take_up()
    (invoice,) = hub.all("invoices")
    assert (invoice["status"], invoice["number"]) == ("paid", "R-2")
    assert shown(invoice) == [("lamps", 2, 1200), ("postage", 4, 300)]
    assert invoice["metadata"] == {"syncflow_id": mark(hub, id)}
    here = hub.record("invoice", id)
    assert here["status"] == "paid" and [line["quantity"] for line in here["lines"]] == [2, 4]
    assert hub.letters() == [] and len(hub.all("invoiceitems")) == 2


@pytest.mark.parametrize("write", range(1, 5))
def test_a_change_of_price_cut_short_is_completed(hub: StripeHub, write: int) -> None:
    id = lamp(hub)
    hub.settle()
    hub.edit("product", id, price=1400)
    assert hub.die_after(write)
    hub.stripe.forget_keys()
    for event in hub.news():
        hub.webhook(event)
    hub.run()
    hub.take_up()
    (product,) = hub.all("products")
    assert [(p["unit_amount"], p["active"]) for p in hub.all("prices")] == [(1250, False), (1400, True)]
    assert product["default_price"] == hub.all("prices")[1]["id"]
    assert product["metadata"] == {"sku": "L1", "syncflow_id": mark(hub, id)}
    assert hub.record("product", id)["price"] == 1400 and hub.letters() == []


# --- polls ------------------------------------------------------------------------------------------------


def test_polls_see_new_changed_and_deleted_ones(hub: StripeHub) -> None:
    id = bill(hub)
    hub.settle()
    (invoice,) = hub.all("invoices")
    for name in ("customer", "product", "invoice"):
        hub.conductor.poll(f"stripe.{name}")
    assert hub.conductor.poll("stripe.invoice") <= 1  # the last minute is read again
    hub.stripe.by_hand("POST", f"/v1/invoices/{invoice['id']}", number="R-9")
    hub.stripe.by_hand("POST", "/v1/products", name="Vase")
    hub.conductor.poll("stripe.invoice")
    hub.conductor.poll("stripe.product")
    hub.conductor.sweep()
    hub.run()
    assert hub.record("invoice", id)["number"] == "R-9"
    assert [one["name"] for one in hub.records("product")] == ["Lamp", "Vase"]
    hub.stripe.by_hand("DELETE", f"/v1/invoices/{invoice['id']}")
    hub.conductor.poll("stripe.invoice")
    hub.conductor.sweep()  # a deletion in the second of the edit is fetched first
    hub.run()
    assert hub.deliveries("stripe.invoice")[-1].reason == "deleted in the system; on_gone = unlink"
    assert hub.letters() == []


def test_a_position_older_than_stripes_events_reads_everything_again(hub: StripeHub) -> None:
    hub.stripe.by_hand("POST", "/v1/products", name="Vase")
    subscriber = hub.conductor.subscribers["stripe.product"]
    pages = list(subscriber.changed_since({"since": int(time.time()) - 31 * 86_400}))
    assert [one.data["name"] for one in pages[0].records] == ["Vase"]
    assert pages[-1].position["since"] > time.time() - hub.client.overlap_seconds - 60
    assert len(hub.stripe.journal.calls("GET", "/v1/events")) <= 2
