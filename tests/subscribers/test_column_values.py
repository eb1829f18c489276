"""Every type of column has one JSON form, in both directions and on both databases."""

from __future__ import annotations

import ipaddress
import json
import math
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql

from models.base import UtcDateTime
from models.catalogues import Catalogue
from models.session import Database
from subscribers.errors import Reject
from subscribers.mapping.coercion import coerce
from subscribers.mapping.column_values import to_json
from subscribers.mapping.mapper import Mapper

_ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
_TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=20)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=5,
)

#: Type of a column -> values that it can hold.
VALUES: dict[str, tuple[sa.types.TypeEngine[Any], st.SearchStrategy[Any]]] = {
    "integer": (sa.Integer(), st.integers(-(2**31), 2**31 - 1)),
    "bigint": (sa.BigInteger(), st.integers(-(2**63) + 1, 2**63 - 1)),
    "numeric(12, 4)": (sa.Numeric(12, 4), st.decimals(-(10**8) + 1, 10**8 - 1, places=4)),
    "numeric": (sa.Numeric(), st.decimals(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9)),
    "double": (sa.Double(), st.floats(allow_nan=False, allow_infinity=False)),
    "boolean": (sa.Boolean(), st.booleans()),
    "text": (sa.Text(), _TEXTS),
    "char(8)": (sa.CHAR(8), st.text("abc", min_size=1, max_size=8)),
    "citext": (postgresql.CITEXT(), _TEXTS),
    "enum": (sa.Enum("red", "blue", name="colour"), st.sampled_from(["red", "blue"])),
    "date": (sa.Date(), st.dates()),
    "timestamp": (sa.DateTime(), st.datetimes()),
    "timestamptz": (
        UtcDateTime(),
        st.datetimes(min_value=datetime.fromisoformat("0002-01-01"), timezones=st.just(UTC)),
    ),
    "time": (sa.Time(), st.times()),
    "timetz": (sa.Time(timezone=True), st.times(timezones=_ZONES)),
    "interval": (sa.Interval(), st.timedeltas(timedelta(days=-9999), timedelta(days=9999))),
    "uuid": (sa.Uuid(), st.uuids()),
    "uuid as text": (sa.Uuid(as_uuid=False), st.uuids().map(str)),
    "bytes": (sa.LargeBinary(), st.binary(min_size=1)),
    "json": (sa.JSON(), _JSON.filter(lambda value: value is not None and value != "")),
    "inet": (postgresql.INET(), st.ip_addresses().map(str)),
    "cidr": (postgresql.CIDR(), st.ip_addresses().map(lambda address: str(ipaddress.ip_network(address)))),
    "macaddr": (postgresql.MACADDR(), st.just("08:00:2b:01:02:03")),
    "bit": (postgresql.BIT(8, varying=True), st.text("01", min_size=1, max_size=8)),
    "integer[]": (sa.ARRAY(sa.Integer), st.lists(st.none() | st.integers(-9, 9), max_size=4)),
    "uuid[]": (sa.ARRAY(sa.Uuid()), st.lists(st.uuids(), max_size=3)),
    "numeric(6, 2)[]": (sa.ARRAY(sa.Numeric(6, 2)), st.lists(st.decimals(-99, 99, places=2), max_size=3)),
    "int8range": (
        postgresql.INT8RANGE(),
        st.tuples(st.none() | st.integers(-9, 0), st.none() | st.integers(1, 9)).map(lambda e: postgresql.Range(*e)),
    ),
    "daterange": (
        postgresql.DATERANGE(),
        st.dates().map(lambda day: postgresql.Range(day, None)) | st.just(postgresql.Range(empty=True)),
    ),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a15_every_value_comes_back_from_its_json_form(kind: str) -> None:
    column = sa.Column("value", VALUES[kind][0])

    @given(VALUES[kind][1])
    def comes_back(value: Any) -> None:
        if isinstance(value, str) and value == "":
            return
        form = json.loads(json.dumps(to_json(column, value)))
        assert coerce(column, form) == value
        assert to_json(column, coerce(column, form)) == form

    comes_back()


#: Type of a column -> a value as SQL, and its form.
STORED_ON_BOTH: dict[str, tuple[sa.types.TypeEngine[Any], Any, Any]] = {
    "numeric": (sa.Numeric(10, 2), Decimal("12.5"), "12.50"),
    "plain_numeric": (sa.Numeric(), Decimal("5"), "5"),
    "big": (sa.BigInteger(), 2**53 + 1, 2**53 + 1),
    "uuid": (sa.Uuid(), uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "day": (sa.Date(), date(2026, 2, 28), "2026-02-28"),
    "clock": (sa.Time(), time(3, 4, 5), "03:04:05"),
    "length": (sa.Interval(), timedelta(days=1, seconds=7384.5), "P1DT2H3M4.5S"),
    "bytes": (sa.LargeBinary(), b"\x00\xff", "AP8="),
    "flag": (sa.Boolean(), True, True),
    "json": (sa.JSON(), {"a": [1, None]}, {"a": [1, None]}),
    "instant": (UtcDateTime(), datetime(2026, 2, 28, tzinfo=UTC), "2026-02-28T00:00:00+00:00"),
    "colour": (sa.Enum("red", "blue", name="colour"), "red", "red"),
}
STORED_ON_POSTGRESQL: dict[str, tuple[sa.types.TypeEngine[Any], Any, Any]] = {
    "address": (postgresql.INET(), "10.0.0.1", "10.0.0.1"),
    "network": (postgresql.CIDR(), "10.0.0.0/8", "10.0.0.0/8"),
    "device": (postgresql.MACADDR(), "08:00:2b:01:02:03", "08:00:2b:01:02:03"),
    "amount": (postgresql.MONEY(), "1234.50", "1234.50"),
    "bits": (postgresql.BIT(3), "101", "101"),
    "code": (sa.CHAR(8), "AB", "AB"),
    "clock_there": (sa.Time(timezone=True), time(3, 4, tzinfo=UTC), "03:04:00+00:00"),
    "numbers": (sa.ARRAY(sa.Numeric(6, 2)), [Decimal("1.50")], ["1.50"]),
    "span": (postgresql.INT4RANGE(), postgresql.Range(1, 5), {"lower": 1, "upper": 5, "bounds": "[)"}),
    "days": (
        postgresql.DATERANGE(),
        postgresql.Range(date(2026, 1, 1)),
        {"lower": "2026-01-01", "upper": None, "bounds": "[)"},
    ),
    "spans": (postgresql.INT4MULTIRANGE(), [postgresql.Range(1, 5)], [{"lower": 1, "upper": 5, "bounds": "[)"}]),
}


@pytest.mark.filterwarnings("ignore:Dialect sqlite.* does not support Decimal")
def test_a15_a_stored_value_has_its_form_and_can_be_written_from_it(database: Database) -> None:
    stored = STORED_ON_BOTH if database.is_sqlite else STORED_ON_BOTH | STORED_ON_POSTGRESQL
    columns = [sa.Column(name, kind) for name, (kind, _, _) in stored.items()]
    table = sa.Table("thing", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), *columns)
    table.create(database.engine)
    things = Catalogue("thing", table, label="id")
    mapper = Mapper(things, {name: name for name in stored})
    forms = {name: form for name, (_, _, form) in stored.items()}
    with database.write() as connection:
        first = things.insert(connection, {name: value for name, (_, value, _) in stored.items()})
        assert mapper.outward(things.read(connection, [first])[first]) == forms
        second = things.insert(connection, mapper.inward(forms))
        assert mapper.outward(things.read(connection, [second])[second]) == forms
        things.update(connection, first, mapper.inward(forms))
        assert mapper.outward(things.read(connection, [first])[first]) == forms


@pytest.mark.parametrize(
    "kind,value",
    [
        (sa.Numeric(), Decimal("NaN")),
        (sa.Numeric(), Decimal("Infinity")),
        (sa.Double(), math.nan),
        (sa.Double(), -math.inf),
        (sa.Text(), b"\xff"),
        (sa.Integer(), "many"),
        (sa.Date(), "soon"),
        (sa.ARRAY(sa.Double()), [1.0, math.inf]),
    ],
)
def test_a15_a_value_without_a_form_is_refused_with_its_column(kind: sa.types.TypeEngine[Any], value: Any) -> None:
    things = Catalogue(
        "thing", sa.Table("t", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("size", kind))
    )
    with pytest.raises(Reject, match="size holds") as refused:
        Mapper(things, {"size": "weight"}).outward({"size": value})
    assert refused.value.code == "unreadable" and list(refused.value.fields) == ["weight"]


@pytest.mark.parametrize(
    "kind,text",
    [(sa.Numeric(), "NaN"), (sa.Numeric(), "many"), (sa.Uuid(), "x"), (sa.Interval(), "P1Y"), (sa.LargeBinary(), "?")],
)
def test_a15_a_text_that_is_no_form_of_the_type_is_refused(kind: sa.types.TypeEngine[Any], text: str) -> None:
    with pytest.raises(ValueError):
        coerce(sa.Column("size", kind), text)
