"""Child rows, such as invoice lines, sync with their record as one list in both directions."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from models.catalogues import CATALOGUES, InvoiceLine
from models.ledger import Change, DeadLetter, Link
from models.session import Database
from subscribers.errors import Reject
from subscribers.mapping import link_to
from subscribers.mapping.fields import Field, rows
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.paths import nest
from subscribers.mapping.validation import check_rows
from subscribers.mapping.values import same
from tests.support.fakes import FakeInvoice, FakeSubscriber, TestHub

INVOICE = CATALOGUES["invoice"]
LINE: dict[str, Field | str] = {
    "description": "text",
    "quantity": "amount.count",
    "unit_price": Field("amount.each", transform="minor_units"),
    "product_id": link_to("product", "product"),
}
MAPPER = Mapper(INVOICE, {"number": "number", "lines": rows("lines.data", LINE)})
TEA = {"description": "tea", "quantity": 2, "unit_price": 450, "product_id": 7}
POST = {"description": "postage", "quantity": 1, "unit_price": 300, "product_id": None}
TEA_THERE = {"text": "tea", "amount": {"count": 2, "each": "4.50"}, "product": "P7"}
POST_THERE = {"text": "postage", "amount": {"count": 1, "each": "3.00"}, "product": None}
LINKS = {("product", "7"): "P7"}
KEYS = {("product", "P7"): "7"}


def test_out_and_in_again() -> None:
    flat = MAPPER.outward({"number": "R1", "lines": [TEA, POST]}, links=LINKS)
    assert nest(flat) == {"number": "R1", "lines": {"data": [TEA_THERE, POST_THERE]}}
    theirs = MAPPER.flatten(nest(flat))
    assert theirs == flat
    assert MAPPER.inward(theirs, KEYS) == {"number": "R1", "lines": [TEA, POST]}
    assert list(MAPPER.references({"lines": [TEA, POST]})) == [("product", "7")]
    assert list(MAPPER.external_references(theirs)) == [("product", "P7")]
    assert MAPPER.relations() == {"product"}


def test_only_the_mapped_fields_of_a_row_count() -> None:
    theirs = {"lines": {"data": [{**TEA_THERE, "id": "li_1", "amount": {"count": 2.0, "each": "4.50", "tax": 1}}]}}
    ours = MAPPER.outward({"lines": [TEA]}, links=LINKS)
    assert same(MAPPER.flatten(theirs)["lines.data"], ours["lines.data"])
    assert not same(MAPPER.flatten(theirs)["lines.data"], [*ours["lines.data"], POST_THERE])


def test_rows_may_be_found_by_an_expression() -> None:
    entry = rows("lines[?kind=='good'].item", {"description": "text"}, direction="in")
    assert check_rows(Mapper(INVOICE, {"lines": entry}).rows(), INVOICE)[1] == []
    theirs = {"lines": [{"kind": "good", "item": {"text": "tea"}}, {"kind": "tax", "item": {"text": "x"}}]}
    mapper = Mapper(INVOICE, {"lines": entry})
    assert mapper.inward(mapper.flatten(theirs)) == {"lines": [{"description": "tea"}]}
    assert mapper.outward({"lines": [TEA]}) == {}


def test_no_rows_and_no_word_of_rows_are_two_things() -> None:
    assert MAPPER.flatten({"number": "R1"}) == {"number": "R1"}
    assert MAPPER.flatten({"lines": None}) == MAPPER.flatten({"lines": {"data": None}}) == {"lines.data": []}
    assert MAPPER.inward({"lines.data": []}) == {"lines": []}
    assert same([], None)


def test_half_a_row_is_not_sent() -> None:
    """If a product is not in the external system yet, the list is omitted, as a relation is."""
    record = {"number": "R1", "lines": [POST, TEA]}
    assert MAPPER.outward(record, strict=False) == {"number": "R1"}
    wrong = {"number": "R1", "lines": [POST, {**POST, "unit_price": "dear"}]}
    assert MAPPER.outward(wrong, strict=False) == {"number": "R1"}
    with pytest.raises(Reject) as caught:
        MAPPER.outward(wrong)
    assert list(caught.value.fields) == ["lines.data[1].amount.each"]


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ([TEA_THERE, {"amount": {"count": "many", "each": "x"}}], {"[1].amount.count", "[1].amount.each"}),
        ([{"amount": {"count": None}}], {"[0].amount.count"}),
        ([{**POST_THERE, "product": "P9"}], {"[0].product"}),
        (["tea"], {""}),
        ({"0": TEA_THERE}, {""}),
        ("tea", {""}),
    ],
)
def test_errors_name_their_row_and_field(given: Any, fields: set[str]) -> None:
    with pytest.raises(Reject) as caught:
        MAPPER.inward(MAPPER.flatten({"lines": {"data": given}}), KEYS)
    assert set(caught.value.fields) == {f"lines.data{field}" for field in fields}


def test_the_form_of_the_panel_and_the_database() -> None:
    fields, problems = check_rows(MAPPER.rows(), INVOICE)
    assert problems == []
    assert fields == MAPPER.fields


def _lines(*inner: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"column": "lines", "path": "items", "rows": list(inner), **more}


SOME = {"column": "quantity", "path": "count"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"column": "lines", "path": "items"}, "row 1: 'lines' are child rows: map their columns in `rows`"),
        (
            _lines({"column": "colour", "path": "c"}),
            "row 1, lines 1: lines has no column 'colour'; its columns are product_id",
        ),
        (_lines({"column": "invoice_id", "path": "c"}), "has no column 'invoice_id'"),
        (_lines(SOME, {"column": "quantity", "path": "c"}), "row 1, lines 2: the column 'quantity' is mapped twice"),
        (_lines(SOME, {"column": "unit_price", "path": "count.each"}), "is inside the external field of another row"),
        (_lines(SOME | {"transform": "eval"}), "row 1, lines 1: unknown transform 'eval'"),
        (_lines(SOME | {"direction": "out"}), "row 1, lines 1: child rows are sent and merged as a whole"),
        (_lines(SOME | {"rows": [SOME]}), "row 1, lines 1: 'quantity' is a plain column, which cannot have `rows`"),
        (_lines(SOME | {"path": "a[0]"}), "row 1, lines 1: 'a[0]' must be a field name or a dotted path"),
        (_lines(), "child rows need at least one field"),
        (_lines(SOME, transform="text"), "cannot have a transform, relation or default"),
        (_lines(SOME, link="product"), "cannot have a transform, relation or default"),
        ({"column": "number", "path": "n", "rows": [SOME]}, "'number' is a plain column, which cannot have `rows`"),
        ({"column": "lines", "path": "items", "rows": "x"}, "row 1: rows: Input should be a valid list"),
    ],
)
def test_what_is_wrong_with_a_mapping_of_rows(row: dict[str, Any], says: str) -> None:
    _, problems = check_rows([row], INVOICE)
    assert any(says in problem for problem in problems), problems


def test_a_row_keeps_what_its_transform_loses_and_knows_its_invoices_currency() -> None:
    line = {"description": Field("text", "truncate:4"), "unit_price": Field("each", "minor_units:column=currency")}
    mapper = Mapper(INVOICE, {"currency": "currency", "lines": rows("lines", line)})
    one, two = {"description": "green tea", "unit_price": 5}, {"description": "postage", "unit_price": 3}
    here = {"currency": "jpy", "lines": [one, two]}
    flat = mapper.outward(here)
    assert flat["lines"] == [{"text": "gree", "each": "5"}, {"text": "post", "each": "3"}]
    flat["lines"] = [{"text": "new", "each": "7"}, {"text": "gree", "each": "6"}, {"text": "post", "each": "3"}]
    new = {"description": "new", "unit_price": 7}
    assert mapper.inward(flat, record=here)["lines"] == [new, {**one, "unit_price": 6}, two]
    assert mapper.inward({**flat, "currency": "eur"})["lines"][0] == {"description": "new", "unit_price": 700}
    assert check_rows(mapper.rows(), INVOICE)[1] == []


# --- writing child rows -------------------------------------------------------------------------------


@pytest.fixture
def invoice(database: Database) -> int:
    with database.write() as c:
        customer = CATALOGUES["customer"].insert(c, {"name": "Anna"})
        product = int(CATALOGUES["product"].insert(c, {"sku": "T", "name": "Tea"}))
        lines = [{**TEA, "product_id": product}, POST, {**POST, "description": "gift wrap"}]
        return int(INVOICE.insert(c, {"customer_id": int(customer), "number": "R1", "lines": lines}))


def _named(database: Database, invoice: int) -> list[tuple[Any, ...]]:
    columns = (InvoiceLine.description, InvoiceLine.quantity, InvoiceLine.product_id.is_not(None))
    with database.read() as c:
        statement = sa.select(*columns).where(InvoiceLine.invoice_id == invoice).order_by(InvoiceLine.id)
        return [tuple(row) for row in c.execute(statement)]


@pytest.mark.parametrize(
    "names",
    [
        ["tea", "postage", "gift wrap"],
        ["tea", "postage"],
        ["postage", "gift wrap"],
        ["gift wrap", "tea"],
        ["tea", "bow", "postage", "gift wrap"],
        ["bow", "tea", "postage", "gift wrap", "ribbon"],
        ["a", "b", "c", "d"],
        [],
    ],
)
def test_rows_come_out_in_their_order_and_keep_what_is_not_mapped(
    database: Database, invoice: int, names: list[str]
) -> None:
    quantities = {"tea": 2}
    rows_there = [{"description": name, "quantity": quantities.get(name, 1)} for name in names]
    for _ in range(2):
        with database.write() as c:
            before = c.execute(sa.select(sa.func.max(Change.id))).scalar()
            INVOICE.update(c, str(invoice), {"lines": rows_there})
        found = _named(database, invoice)
        assert [row[:2] for row in found] == [(one["description"], one["quantity"]) for one in rows_there]
        if "tea" in names:
            assert found[names.index("tea")][2], "the tea is still the product that it was"
    with database.read() as c:
        assert c.execute(sa.select(sa.func.max(Change.id))).scalar() == before, "the same again writes nothing"


def test_an_edited_row_is_known_again(database: Database, invoice: int) -> None:
    with database.write() as c:
        edited = [{"description": "bow", "quantity": 1}, {"description": "tea", "quantity": 5}]
        INVOICE.update(c, str(invoice), {"lines": edited})
    assert _named(database, invoice) == [("bow", 1, False), ("tea", 5, True)]


# --- through the conductor ------------------------------------------------------------------------------


class Bill(FakeInvoice):
    """Follow invoices with their lines."""

    field_to_data = {"number": "number", "lines": rows("lines.data", LINE)}


class Goods(FakeSubscriber):
    """Follow the products that the lines reference."""

    catalogue = "product"
    resource = "goods"
    field_to_data = {"sku": "sku", "name": "name"}


@pytest.fixture
def hub(database: Database, invoice: int) -> TestHub:
    hub = TestHub(database, "crm", "shop", kinds=(Bill, Goods))
    hub.run()
    return hub


def _bill(hub: TestHub, name: str) -> dict[str, Any]:
    return next(one for one in hub.shown(name) if "number" in one)


def _edit(hub: TestHub, name: str, lines: list[dict[str, Any]]) -> None:
    system = hub.systems[name]
    external_id = next(key for key, value in system.store.items() if "number" in value)
    hub.clock.tick()
    system.edit(external_id, lines={"data": lines})
    hub.clock.tick()
    hub.conductor.poll(f"{name}.invoice")
    hub.run()


def test_the_product_of_a_line_is_delivered_first(hub: TestHub) -> None:
    calls = [what for what in hub.systems["crm"].calls if what[0] == "create"]
    assert len(calls) == 2
    goods, bill = (list(hub.systems["crm"].store.items())[i] for i in (0, 1))
    assert goods[1]["sku"] == "T"
    first = bill[1]["lines"]["data"][0]
    assert first == {"text": "tea", "amount": {"count": 2, "each": "4.50"}, "product": goods[0]}
    assert [line["text"] for line in bill[1]["lines"]["data"]] == ["tea", "postage", "gift wrap"]


def test_a_changed_line_is_a_changed_invoice(hub: TestHub, database: Database, invoice: int) -> None:
    before = len(hub.systems["crm"].calls)
    with database.write() as c:
        c.execute(sa.update(InvoiceLine).where(InvoiceLine.description == "tea").values(quantity=3))
    hub.run()
    assert _bill(hub, "crm")["lines"]["data"][0]["amount"]["count"] == 3
    # `lines` is a nested object, so the invoice is fetched first to keep what is not mapped in it.
    assert [kind for kind, _ in hub.systems["crm"].calls[before:]] == ["fetch", "update"]


def test_lines_edited_in_a_system_are_applied_and_delivered_to_the_others_only(
    hub: TestHub, database: Database, invoice: int
) -> None:
    lines = _bill(hub, "crm")["lines"]["data"]
    edited = [{"text": "bow", "amount": {"count": 4, "each": "1.00"}, "id": "li_9"}, *lines[:2]]
    written = hub.systems["crm"].writes()
    _edit(hub, "crm", edited)
    assert _named(database, invoice) == [("bow", 4, False), ("tea", 2, True), ("postage", 1, False)]
    assert [line["text"] for line in _bill(hub, "shop")["lines"]["data"]] == ["bow", "tea", "postage"]
    assert hub.systems["crm"].writes() == written, "nothing echoes"
    with database.read() as c:
        newest = c.execute(sa.select(sa.func.max(Change.id))).scalar()
    for name in ("crm", "shop"):
        hub.conductor.poll(f"{name}.invoice")
        hub.run()
    with database.read() as c:
        assert c.execute(sa.select(sa.func.max(Change.id))).scalar() == newest


def test_lines_changed_on_both_sides_become_a_conflict_if_the_policy_is_ask(database: Database, invoice: int) -> None:
    asks = {"number": "number", "lines": rows("lines", {"description": "text", "quantity": "count"}, conflict="ask")}
    hub = TestHub(database, "crm", kinds=(Bill,), field_to_data=asks)
    hub.run()
    with database.write() as c:
        c.execute(sa.update(InvoiceLine).where(InvoiceLine.description == "tea").values(quantity=9))
    system = hub.systems["crm"]
    (external_id,) = system.store
    hub.clock.tick()
    system.edit(external_id, lines=[{"text": "tea", "count": 5}])
    hub.conductor.poll("crm.invoice")
    hub.run()
    assert _named(database, invoice)[0][:2] == ("tea", 9)
    assert system.store[external_id]["lines"] == [{"text": "tea", "count": 5}]
    with database.read() as c:
        assert c.execute(sa.select(Link.open_conflicts)).scalar() == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"amount": {"count": "lots"}}, "lines.data[0].amount.count"),
        ({"text": "x", "product": "P9"}, "its product P9 is not here"),
    ],
)
def test_lines_that_cannot_come_in_lose_nothing(
    hub: TestHub, database: Database, invoice: int, line: dict[str, Any], says: str
) -> None:
    before = _named(database, invoice)
    _edit(hub, "crm", [line])
    for _ in range(hub.conductor.context.policy.max_attempts):
        hub.clock.tick(100_000)
        hub.conductor.sweep()
        hub.run()
    assert _named(database, invoice) == before
    with database.read() as c:
        (letter,) = c.execute(sa.select(DeadLetter.__table__)).all()
    assert says in letter.message


def test_references_that_may_be_empty_can_be_left_out_also_in_rows() -> None:
    record = {"number": "R1", "lines": [TEA, POST]}
    emptied = {"number": "R1", "lines": [{**TEA, "product_id": None}, POST]}
    assert MAPPER.without_references(record, {}) == emptied
    assert MAPPER.without_references(record, LINKS) == record
    assert MAPPER.without_references(record, {}, {"lines.data.product"}) == record
    needed = {**LINE, "product_id": link_to("product", "product", required=True)}
    assert Mapper(INVOICE, {"lines": rows("lines", needed)}).without_references(record, {}) == record
    assert MAPPER.without_references({"number": "R1"}, {}) == {"number": "R1", "lines": None}
