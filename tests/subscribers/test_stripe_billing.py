"""Products with prices and invoices with lines, both ways, by Stripe's rules, through the conductor."""

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
from tests.support.stripe_world import StripeWorld

DUE = datetime.now(UTC).date() + timedelta(days=20)


@pytest.fixture(scope="module")
def server() -> Iterator[StripeLike]:
    with StripeLike() as stripe:
        yield stripe


@pytest.fixture
def world(server: StripeLike, migrated_sqlite: Path, tmp_path: Path) -> Iterator[StripeWorld]:
    server.reset()
    server.faults.clear()
    server.journal.clear()
    shutil.copy(migrated_sqlite, tmp_path / "hub.db")
    database = Database(f"sqlite:///{tmp_path / 'hub.db'}")
    sa.event.listen(
        database.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF")
    )  # fast; none is cut off
    yield StripeWorld(database, server)
    database.close()


def lamp(world: StripeWorld, **values: Any) -> int:
    return world.add("product", **{"sku": "L1", "name": "Lamp", "price": 1250, "currency": "eur", **values})


def bill(world: StripeWorld, *, lines: bool = True, **values: Any) -> int:
    """An invoice of a new customer, with a line of a product and one without."""
    customer = world.add("customer", name="Anna", email="anna@example.org")
    product = lamp(world)
    invoice = world.add("invoice", **{"customer_id": customer, "number": "R-1", "due_date": DUE, **values})
    if lines:
        world.add("line", invoice_id=invoice, product_id=product, description="lamps", quantity=2, unit_price=1200)
        world.add("line", invoice_id=invoice, description="postage", quantity=1, unit_price=300)
    return invoice


def shown(invoice: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Its lines, in the order of their places."""
    lines = sorted(invoice["lines"]["data"], key=lambda line: line["metadata"].get("syncflow_line", "9"))
    return [(line["description"], line["quantity"], line["price"]["unit_amount"]) for line in lines]


def day_of(timestamp: int) -> date:
    return datetime.fromtimestamp(timestamp, UTC).date()


# --- products ---------------------------------------------------------------------------------------------


def test_a_product_goes_out_with_its_price_in_one_call(world: StripeWorld) -> None:
    id = lamp(world)
    world.settle()
    (product,) = world.all("products")
    (price,) = world.all("prices")
    assert (product["name"], product["active"], product["default_price"]) == ("Lamp", True, price["id"])
    assert product["metadata"] == {"sku": "L1", "syncflow_id": str(id)}
    assert (price["unit_amount"], price["currency"], price["metadata"]) == (1250, "eur", {"syncflow_id": str(id)})
    assert len(world.stripe.journal.calls("POST")) == 1
    assert world.stripe.journal.calls("POST")[0].idempotency_key


def test_another_price_is_a_new_one_and_the_old_one_is_archived(world: StripeWorld) -> None:
    id = lamp(world)
    world.settle()
    for amount in (1400, 1250, 1400):  # there and back within a day: Stripe still knows the keys of the first time
        world.edit("product", id, price=amount)
        world.settle()
        (product,) = world.all("products")
        prices = {price["id"]: (price["unit_amount"], price["active"]) for price in world.all("prices")}
        assert prices.pop(product["default_price"]) == (amount, True)
        assert not any(active for _, active in prices.values())
    assert len(world.all("prices")) == 4
    assert product["metadata"] == {"sku": "L1", "syncflow_id": str(id)}
    assert world.record("product", id)["price"] == 1400 and world.letters() == []


def test_a_key_that_stands_for_an_archived_price_is_not_believed(world: StripeWorld) -> None:
    id = lamp(world)
    world.settle()
    world.edit("product", id, price=1400)
    world.settle()
    (product,), (first, second) = world.all("products"), world.all("prices")
    world.stripe.by_hand("POST", f"/v1/prices/{first['id']}", active=True)
    world.stripe.by_hand("POST", f"/v1/products/{product['id']}", default_price=first["id"])
    world.stripe.by_hand("POST", f"/v1/prices/{second['id']}", active=False)
    world.settle()
    assert world.record("product", id)["price"] == 1250
    world.edit("product", id, price=1400)  # the same change of the same price as before
    world.settle()
    (product,) = world.all("products")
    assert product["default_price"] == world.all("prices")[2]["id"] and world.letters() == []


def test_a_product_and_its_price_come_in_and_change_there(world: StripeWorld) -> None:
    made = world.stripe.by_hand(
        "POST", "/v1/products", name="Vase", default_price_data={"currency": "usd", "unit_amount": "900"}
    )
    world.settle()
    (here,) = world.records("product")
    assert (here["name"], here["sku"], here["price"], here["currency"]) == ("Vase", made["id"], 900, "usd")
    price = world.stripe.by_hand("POST", "/v1/prices", product=made["id"], currency="usd", unit_amount="950")
    world.stripe.by_hand("POST", f"/v1/products/{made['id']}", default_price=price["id"], name="Tall vase")
    world.settle()
    (here,) = world.records("product")
    assert (here["name"], here["price"]) == ("Tall vase", 950)
    assert world.stripe.journal.calls("POST") == []


def test_a_product_in_tiers_keeps_them_until_a_price_is_set_here(world: StripeWorld) -> None:
    made = world.stripe.by_hand("POST", "/v1/products", name="Power")
    tiers = world.stripe.by_hand("POST", "/v1/prices", product=made["id"], currency="eur")
    world.stripe.by_hand("POST", f"/v1/products/{made['id']}", default_price=tiers["id"])
    world.settle()
    (here,) = world.records("product")
    assert here["price"] == 0 and len(world.all("prices")) == 1
    world.edit("product", here["id"], price=700)
    world.settle()
    assert [(p["unit_amount"], p["active"]) for p in world.all("prices")] == [(None, False), (700, True)]


def test_a_recurring_price_stays_recurring(world: StripeWorld) -> None:
    data = {"currency": "eur", "unit_amount": "900", "recurring": {"interval": "month"}}
    made = world.stripe.by_hand("POST", "/v1/products", name="Plan", default_price_data=data)
    world.settle()
    (here,) = world.records("product")
    world.edit("product", here["id"], price=1000)
    world.settle()
    new = world.there(f"products/{made['id']}", **{"expand[]": "default_price"})["default_price"]
    assert (new["unit_amount"], new["recurring"]["interval"]) == (1000, "month")


def test_a_product_with_prices_is_archived_one_without_is_deleted(world: StripeWorld) -> None:
    priced, free = lamp(world), lamp(world, sku="F", name="Flyer", price=0)
    world.settle()
    world.remove("product", priced)
    world.remove("product", free)
    world.settle()
    assert [(p["name"], p["active"]) for p in world.all("products")] == [("Lamp", False)]
    assert world.records("product") == [] and world.letters() == []


# --- invoices ---------------------------------------------------------------------------------------------


def test_an_invoice_goes_out_with_all_it_needs_and_is_paid_there(world: StripeWorld) -> None:
    id = bill(world, status="open")
    world.settle()
    (invoice,) = world.all("invoices")
    (customer,), (product,) = world.all("customers"), world.all("products")
    assert (invoice["customer"], invoice["number"], invoice["status"]) == (customer["id"], "R-1", "open")
    assert invoice["metadata"] == {"syncflow_id": str(id)} and invoice["auto_advance"] is False
    assert day_of(invoice["due_date"]) == DUE and invoice["total"] == 2700
    assert shown(invoice) == [("lamps", 2, 1200), ("postage", 1, 300)]
    items = world.all("invoiceitems")
    assert items[0]["price"]["product"] == product["id"]
    assert all(item["metadata"]["syncflow_id"] == str(id) for item in items)
    creates = [c for c in world.stripe.journal.calls("POST") if c.path.count("/") == 2]
    assert len({c.idempotency_key for c in creates}) == len(creates) == 5

    world.stripe.by_hand("POST", f"/v1/invoices/{invoice['id']}/pay", source="card")
    writes = len(world.stripe.journal.calls("POST"))
    world.settle()
    assert world.record("invoice", id)["status"] == "paid"
    assert len(world.stripe.journal.calls("POST")) == writes  # nothing goes back


def test_every_call_is_paced(world: StripeWorld) -> None:
    """Else the calls per second that its owner allows would be exceeded by what takes several calls."""
    id = bill(world, status="draft")
    world.run()
    world.edit("line", world.records("line")[0]["id"], quantity=3)
    world.edit("product", world.records("product")[0]["id"], price=5)
    world.run()
    world.remove("invoice", id)
    world.run()
    assert world.client.paces == len(world.stripe.journal) > 15


def test_a_draft_is_edited_line_by_line(world: StripeWorld) -> None:
    id = bill(world)
    world.settle()
    kept = world.all("invoiceitems")[1]["id"]
    lamps = world.record("invoice", id)["lines"]
    assert len(lamps) == 2
    first = world.records("line")[0]["id"]
    world.edit("line", first, quantity=3)
    world.add("line", invoice_id=id, description="gift", quantity=1, unit_price=0)
    world.edit("invoice", id, due_date=DUE + timedelta(days=1))
    world.settle()
    (invoice,) = world.all("invoices")
    assert shown(invoice) == [("lamps", 3, 1200), ("postage", 1, 300), ("gift", 1, 0)]
    assert kept in {item["id"] for item in world.all("invoiceitems")}
    assert day_of(invoice["due_date"]) == DUE + timedelta(days=1)
    world.edit("line", first, product_id=None)  # an item keeps its product: it becomes another item
    world.settle()
    (invoice,) = world.all("invoices")
    assert shown(invoice) == [("lamps", 3, 1200), ("postage", 1, 300), ("gift", 1, 0)]
    assert all("syncflow_product" not in line["metadata"] for line in invoice["lines"]["data"])


def test_a_line_that_goes_and_comes_back_is_another_item(world: StripeWorld) -> None:
    id = bill(world, lines=False)
    world.settle()
    for _ in range(2):
        line = world.add("line", invoice_id=id, description="gift", quantity=1, unit_price=5)
        world.settle()
        assert shown(world.all("invoices")[0]) == [("gift", 1, 5)]
        with world.database.write() as c:
            c.exec_driver_sql(f"DELETE FROM invoice_line WHERE id = {line}")
        world.settle()
        assert world.all("invoiceitems") == []


def test_an_invoice_comes_in_grows_and_is_finalized_there(world: StripeWorld) -> None:
    customer = world.stripe.create_customer(name="Bob", email="bob@example.org")
    made = world.stripe.by_hand("POST", "/v1/invoices", customer=customer["id"], currency="eur")
    common = {"customer": customer["id"], "invoice": made["id"], "currency": "eur"}
    world.stripe.by_hand("POST", "/v1/invoiceitems", **common, description="work", unit_amount="5000", quantity="2")
    world.settle()
    (here,) = world.records("invoice")
    assert (here["number"], here["status"]) == (made["id"], "draft")
    for n in range(11):  # more lines than an invoice shows in itself
        world.stripe.by_hand("POST", "/v1/invoiceitems", **common, description=f"n{n}", amount=str(n))
    world.stripe.by_hand("POST", f"/v1/invoices/{made['id']}/finalize")
    world.settle()
    here = world.record("invoice", here["id"])
    assert (here["number"], here["status"]) == ("STRIPE-0001", "open")
    lines = [(line["description"], line["quantity"], line["unit_price"]) for line in here["lines"]]
    assert lines == [("work", 2, 5000), *((f"n{n}", 1, n) for n in range(11))]
    assert world.stripe.journal.calls("POST") == [] and world.letters() == []


@pytest.mark.parametrize("there", ["open", "paid", "void"])
def test_an_edit_of_a_final_invoice_is_refused_in_words_and_not_retried(world: StripeWorld, there: str) -> None:
    id = bill(world, status=there.replace("void", "open"))
    world.settle()
    if there == "void":
        world.edit("invoice", id, status="void")
        world.settle()
    line = world.records("line")[0]["id"]
    world.stripe.journal.clear()
    world.edit("line", line, quantity=7)
    world.settle()
    (letter,) = world.letters()
    assert f"lines: cannot be changed: the invoice is {there} in Stripe, and final" in letter
    world.clock.tick(7200)
    world.conductor.sweep()
    world.settle()
    assert len([d for d in world.deliveries("stripe.invoice") if d.outcome == "dead"]) == 1
    assert world.stripe.journal.calls("POST") == []
    world.edit("line", line, quantity=2)  # put back: nothing is wrong any more
    world.settle()
    assert world.letters() == []


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
def test_its_status_moves_as_far_as_stripes_rules_go(world: StripeWorld, before: str, after: str, there: str) -> None:
    id = bill(world, status=before)
    world.settle()
    world.edit("invoice", id, status=after)
    world.settle()
    (invoice,) = world.all("invoices")
    assert invoice["status"] == there and invoice["metadata"] == {"syncflow_id": str(id)}
    assert invoice["paid_out_of_band"] is (there == "paid")
    assert bool(world.letters()) is (there != after)


def test_an_invoice_about_nothing_is_paid_by_stripe_at_once(world: StripeWorld) -> None:
    id = bill(world, lines=False, status="open")
    world.settle()
    assert world.record("invoice", id)["status"] == "paid" and world.letters() == []


def test_a_deleted_draft_is_deleted_and_leaves_no_items_waiting(world: StripeWorld) -> None:
    draft = bill(world)
    world.settle()
    world.remove("invoice", draft)
    world.settle()
    assert world.all("invoices") == [] and world.all("invoiceitems") == [] and world.letters() == []


@pytest.mark.parametrize(("status", "there", "letters"), [("open", "void", 0), ("paid", "paid", 1)])
def test_a_deleted_final_invoice_is_voided_if_that_is_possible(
    world: StripeWorld, status: str, there: str, letters: int
) -> None:
    id = bill(world, status=status)
    world.settle()
    world.remove("invoice", id)
    world.settle()
    assert [one["status"] for one in world.all("invoices")] == [there]
    assert len(world.letters()) == letters


def test_what_stripe_refuses_of_a_line_is_mended_without_a_second_invoice(world: StripeWorld) -> None:
    world.stripe.faults.fail(400, method="POST", path="/v1/invoiceitems")
    id = bill(world, status="open")
    world.settle()
    assert len(world.letters()) == 1 and [one["status"] for one in world.all("invoices")] == ["draft"]
    assert world.record("invoice", id)["status"] == "open"
    world.edit("line", world.records("line")[0]["id"], quantity=5)
    world.settle()
    (invoice,) = world.all("invoices")
    assert (invoice["status"], shown(invoice)) == ("open", [("lamps", 5, 1200), ("postage", 1, 300)])
    assert world.letters() == []


# --- a worker that dies between the calls -------------------------------------------------------------------


@pytest.mark.parametrize(("write", "forgets"), [(3, True), (4, False), (5, True), (6, False), (7, True)])
def test_a_creation_cut_short_is_completed_once(world: StripeWorld, write: int, forgets: bool) -> None:
    """Customer and product take one call each; the invoice takes six, for its lines, its status and its mark."""
    id = bill(world, status="paid")
    assert world.die_after(write)
    if forgets:
        world.stripe.forget_keys()
    for event in world.news():
        world.webhook(event)
    world.run()  # what came in meanwhile must not be taken for what somebody wants
    world.take_up()
    (invoice,) = world.all("invoices")
    assert (invoice["status"], invoice["paid_out_of_band"]) == ("paid", True)
    assert shown(invoice) == [("lamps", 2, 1200), ("postage", 1, 300)] and len(world.all("invoiceitems")) == 2
    assert invoice["metadata"] == {"syncflow_id": str(id)}
    here = world.record("invoice", id)
    assert here["status"] == "paid" and [line["quantity"] for line in here["lines"]] == [2, 1]
    assert world.letters() == []


@pytest.mark.parametrize("write", [1, 2, 3, 5, 7])
def test_an_update_cut_short_is_completed(world: StripeWorld, write: int) -> None:
    id = bill(world)
    world.settle()
    first, second = (line["id"] for line in world.records("line"))
    with world.database.write() as c:
        c.exec_driver_sql(f"UPDATE invoice_line SET product_id = NULL WHERE id = {first}")
        c.exec_driver_sql(f"UPDATE invoice_line SET quantity = 4 WHERE id = {second}")
        c.exec_driver_sql(f"UPDATE invoice SET status = 'paid', number = 'R-2' WHERE id = {id}")
    assert world.die_after(write)
    for event in world.news():
        world.webhook(event)
    world.run()
    world.take_up()
    (invoice,) = world.all("invoices")
    assert (invoice["status"], invoice["number"]) == ("paid", "R-2")
    assert shown(invoice) == [("lamps", 2, 1200), ("postage", 4, 300)]
    assert invoice["metadata"] == {"syncflow_id": str(id)}
    here = world.record("invoice", id)
    assert here["status"] == "paid" and [line["quantity"] for line in here["lines"]] == [2, 4]
    assert world.letters() == [] and len(world.all("invoiceitems")) == 2


@pytest.mark.parametrize("write", range(1, 5))
def test_a_change_of_price_cut_short_is_completed(world: StripeWorld, write: int) -> None:
    id = lamp(world)
    world.settle()
    world.edit("product", id, price=1400)
    assert world.die_after(write)
    world.stripe.forget_keys()
    for event in world.news():
        world.webhook(event)
    world.run()
    world.take_up()
    (product,) = world.all("products")
    assert [(p["unit_amount"], p["active"]) for p in world.all("prices")] == [(1250, False), (1400, True)]
    assert product["default_price"] == world.all("prices")[1]["id"]
    assert product["metadata"] == {"sku": "L1", "syncflow_id": str(id)}
    assert world.record("product", id)["price"] == 1400 and world.letters() == []


# --- polls ------------------------------------------------------------------------------------------------


def test_polls_see_new_changed_and_deleted_ones(world: StripeWorld) -> None:
    id = bill(world)
    world.settle()
    (invoice,) = world.all("invoices")
    for name in ("customer", "product", "invoice"):
        world.conductor.poll(f"stripe.{name}")
    assert world.conductor.poll("stripe.invoice") <= 1  # so close to the present, the last minute is read again
    world.stripe.by_hand("POST", f"/v1/invoices/{invoice['id']}", number="R-9")
    world.stripe.by_hand("POST", "/v1/products", name="Vase")
    world.conductor.poll("stripe.invoice")
    world.conductor.poll("stripe.product")
    world.conductor.sweep()
    world.run()
    assert world.record("invoice", id)["number"] == "R-9"
    assert [one["name"] for one in world.records("product")] == ["Lamp", "Vase"]
    world.stripe.by_hand("DELETE", f"/v1/invoices/{invoice['id']}")
    world.conductor.poll("stripe.invoice")
    assert world.deliveries("stripe.invoice")[-1].reason == "deleted there; on_gone = unlink"
    assert world.letters() == []


def test_a_position_older_than_stripes_events_reads_everything_again(world: StripeWorld) -> None:
    world.stripe.by_hand("POST", "/v1/products", name="Vase")
    subscriber = world.conductor.subscribers["stripe.product"]
    pages = list(subscriber.changed_since({"since": int(time.time()) - 31 * 86_400}))
    assert [one.data["name"] for one in pages[0].records] == ["Vase"]
    assert pages[-1].position["since"] > time.time() - 120
    assert len(world.stripe.journal.calls("GET", "/v1/events")) <= 2
