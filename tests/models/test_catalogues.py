"""Catalogues: records with their child rows, keys of any type, and existing tables of other programs."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
import sqlalchemy as sa

from models import capture
from models.capture import sync_context
from models.catalogues import CATALOGUES, Catalogue, ChildRows, declare
from models.ledger import Change
from models.session import Database
from tests.support.fakes import TestHub
from tests.support.records import mark

CUSTOMER = CATALOGUES["customer"]
PRODUCT = CATALOGUES["product"]
INVOICE = CATALOGUES["invoice"]


@pytest.fixture
def connection(database: Database) -> Iterator[sa.Connection]:
    with database.write() as connection:
        yield connection


def changes(connection: sa.Connection) -> list[tuple[str, str]]:
    rows = connection.execute(sa.select(Change.record_id, Change.operation).order_by(Change.id))
    return [(row[0], row[1]) for row in rows]


def line(**values: Any) -> dict[str, Any]:
    return {"product_id": None, "description": None, "quantity": 1, "unit_price": 0, **values}


# --- records ----------------------------------------------------------------------------------------------


def test_a_record_is_written_and_read(connection: sa.Connection) -> None:
    one = CUSTOMER.insert(connection, {"name": "Ada", "email": "ada@x.org"})
    two = CUSTOMER.insert(connection, {"name": "Bob"})
    records = CUSTOMER.read(connection, [two, one, "999"])
    assert set(records) == {one, two} and isinstance(one, str)
    assert records[one]["email"] == "ada@x.org" and records[one]["active"] is True
    assert records[one]["created_at"].utcoffset() is not None
    CUSTOMER.update(connection, one, {"email": None, "city": "Rome"})
    assert CUSTOMER.read(connection, [one], lock=True)[one]["city"] == "Rome"
    assert CUSTOMER.read(connection, [one])[one]["email"] is None
    assert CUSTOMER.read(connection, [two])[two]["city"] is None
    CUSTOMER.delete(connection, one)
    assert CUSTOMER.read(connection, [one]) == {} and CUSTOMER.read(connection, []) == {}


def test_find_needs_all_values_and_says_when_there_are_several(connection: sa.Connection) -> None:
    ids = [CUSTOMER.insert(connection, {"name": "Ada", "email": mail}) for mail in ("a@x.org", "b@x.org", "a@x.org")]
    assert CUSTOMER.find(connection, {"email": "b@x.org"}) == [ids[1]]
    assert CUSTOMER.find(connection, {"email": "a@x.org", "name": "Ada"}) == [ids[0], ids[2]]
    assert CUSTOMER.find(connection, {"name": "Ada"}) == ids[:2], "two are enough to know that it is not one"
    assert CUSTOMER.find(connection, {"email": "a@x.org", "name": "Bob"}) == []


def test_an_unknown_column_is_an_error_and_writes_nothing(connection: sa.Connection) -> None:
    with pytest.raises(sa.exc.CompileError):
        CUSTOMER.insert(connection, {"name": "Ada", "shoe_size": 38})
    assert changes(connection) == []


def test_an_invalid_key_raises_value_error(connection: sa.Connection) -> None:
    with pytest.raises(ValueError):
        CUSTOMER.key_of("abc")


# --- child rows -------------------------------------------------------------------------------------------


@pytest.fixture
def invoice(connection: sa.Connection) -> str:
    """An invoice with two lines."""
    customer = CUSTOMER.insert(connection, {"name": "Ada"})
    product = PRODUCT.insert(connection, {"sku": "tea", "name": "Tea", "price": 450})
    values = {"customer_id": int(customer), "number": "R1", "due_date": date(2026, 12, 1)}
    lines = [line(product_id=int(product), quantity=2, unit_price=450), line(description="postage", unit_price=300)]
    invoice = INVOICE.insert(connection, {**values, "lines": lines})
    connection.execute(sa.delete(Change))
    return invoice


def test_child_rows_travel_with_their_record(connection: sa.Connection, invoice: str) -> None:
    record = INVOICE.read(connection, [invoice])[invoice]
    assert record["due_date"] == date(2026, 12, 1)
    assert [one["unit_price"] for one in record["lines"]] == [450, 300]
    assert set(record["lines"][0]) == {"product_id", "description", "quantity", "unit_price"}
    assert INVOICE.columns[-1] == "lines" and "created_at" not in INVOICE.columns


def test_a_list_of_child_rows_replaces_the_previous_rows(connection: sa.Connection, invoice: str) -> None:
    INVOICE.update(connection, invoice, {"status": "open"})
    assert len(INVOICE.read(connection, [invoice])[invoice]["lines"]) == 2  # not mentioned, not touched
    INVOICE.update(connection, invoice, {"lines": [line(description="all in one", unit_price=1200)]})
    assert INVOICE.read(connection, [invoice])[invoice]["lines"] == [line(description="all in one", unit_price=1200)]
    INVOICE.update(connection, invoice, {"lines": []})
    assert INVOICE.read(connection, [invoice])[invoice]["lines"] == []
    assert {record for record, _ in changes(connection)} == {invoice}


def test_child_rows_of_several_records_are_not_mixed_up(connection: sa.Connection, invoice: str) -> None:
    customer = INVOICE.read(connection, [invoice])[invoice]["customer_id"]
    other = INVOICE.insert(connection, {"customer_id": customer, "number": "R2", "lines": [line(quantity=9)]})
    none = INVOICE.insert(connection, {"customer_id": customer, "number": "R3"})
    records = INVOICE.read(connection, [invoice, other, none])
    assert [len(records[key]["lines"]) for key in (invoice, other, none)] == [2, 1, 0]


def test_a_record_is_deleted_with_its_child_rows(connection: sa.Connection, invoice: str) -> None:
    INVOICE.delete(connection, invoice)
    assert connection.execute(sa.text("SELECT count(*) FROM invoice_line")).scalar() == 0
    assert (invoice, "deleted") in changes(connection)


# --- tables of the user's own -----------------------------------------------------------------------------


def another_applications_tables() -> dict[str, sa.Table]:
    """As they may have stood there for years: keys of other types, names that need quoting, other words for lines."""
    metadata = sa.MetaData()
    return {
        "uuid": sa.Table(
            "Orders", metadata, sa.Column("Order Id", sa.Uuid, primary_key=True), sa.Column("select", sa.Text)
        ),
        "text": sa.Table("country", metadata, sa.Column("code", sa.Text, primary_key=True), sa.Column("name", sa.Text)),
        "line": sa.Table(
            "Order Line",
            metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("Order", sa.ForeignKey("Orders.Order Id")),
            sa.Column("what", sa.Text),
        ),
    }


@pytest.fixture
def tables(database: Database) -> Iterator[dict[str, sa.Table]]:
    tables = another_applications_tables()
    tables["uuid"].metadata.create_all(database.engine)
    before = set(CATALOGUES)
    yield tables
    for name in set(CATALOGUES) - before:
        del CATALOGUES[name]


@pytest.mark.parametrize("kind,keys", [("uuid", [uuid.UUID(int=7), uuid.uuid4()]), ("text", ["DE", "it's 100%"])])
def test_keys_of_other_types(database: Database, tables: dict[str, sa.Table], kind: str, keys: list[Any]) -> None:
    table = tables[kind]
    catalogue = declare(Catalogue("theirs", table))
    key, value = table.c.keys()
    with database.write() as c:
        capture.install(c)
        ids = [catalogue.insert(c, {key: one, value: f"v{n}"}) for n, one in enumerate(keys)]
        assert ids == [str(one) for one in keys]
        assert [catalogue.key_of(one) for one in ids] == keys
        assert catalogue.read(c, ids)[ids[1]] == {key: keys[1], value: "v1"}
        catalogue.update(c, ids[0], {value: "new"})
        assert catalogue.find(c, {value: "new"}) == [ids[0]]
        catalogue.delete(c, ids[1])
        # The trigger's ids are the ids by which records are read.
        captured = changes(c)
        assert captured == [(ids[0], "created"), (ids[1], "created"), (ids[0], "updated"), (ids[1], "deleted")]
        assert set(catalogue.read(c, [record for record, _ in captured])) == {ids[0]}


def test_an_existing_table_is_declared_in_a_few_lines(database: Database, tables: dict[str, sa.Table]) -> None:
    theirs = sa.MetaData()
    orders = sa.Table("Orders", theirs, autoload_with=database.engine)
    lines = sa.Table("Order Line", theirs, autoload_with=database.engine)
    declare(Catalogue("order", orders, children=(ChildRows("lines", lines, "Order"),), label="select"))
    with database.write() as c:
        capture.install(c)

    one, two = (str(uuid.uuid4()) for _ in range(2))
    order = CATALOGUES["order"]
    with database.write() as c, sync_context(c, origin="crm"):
        for key in (one, two):
            order.insert(c, {"Order Id": order.key_of(key), "select": "x", "lines": [{"what": "tea"}]})
    with database.write() as c:
        assert {record for record, _ in changes(c)} == {one, two}
        assert set(c.execute(sa.select(Change.origin)).scalars()) == {"crm"}
        c.execute(sa.delete(Change))
        c.execute(sa.update(lines).where(lines.c["Order"] == order.key_of(one)).values(what="coffee"))
        assert changes(c) == [(one, "updated")]
        assert order.read(c, [one])[one]["lines"] == [{"what": "coffee"}]


def test_an_existing_table_is_synced_like_our_own(database: Database, tables: dict[str, sa.Table]) -> None:
    countries = declare(Catalogue("country", tables["text"]))
    with database.write() as c:
        capture.install(c)
    hub = TestHub(database, "crm", "shop", catalogue="country", field_to_data={"name": "name"})
    with database.write() as c:
        countries.insert(c, {"code": "DE", "name": "Germany"})
    hub.run()
    assert hub.shown("crm") == hub.shown("shop") == [{"name": "Germany"}]
    assert hub.systems["crm"].store["crm_1"]["hub_id"] == mark(hub, "DE")
    hub.clock.tick()
    hub.systems["crm"].edit("crm_1", name="Deutschland")
    hub.conductor.store_webhook("crm", b"e1 crm_1", {"x-fake": "signed"})
    hub.run()
    assert hub.shown("shop") == [{"name": "Deutschland"}]
    with database.write() as c:
        assert countries.read(c, ["DE"])["DE"]["name"] == "Deutschland"
        countries.delete(c, "DE")
    hub.run()
    assert hub.shown("crm") == hub.shown("shop") == []


def test_a_table_without_a_key_of_one_column_is_refused() -> None:
    pair = sa.Table("pair", sa.MetaData(), *(sa.Column(name, sa.Integer, primary_key=True) for name in "ab"))
    bare = sa.Table("bare", sa.MetaData(), sa.Column("a", sa.Integer))
    for table in (pair, bare):
        with pytest.raises(ValueError, match=rf"catalogue x: the table {table.name} needs a primary key of one column"):
            Catalogue("x", table)
