"""A mapping converts records in both directions and reports errors per field."""

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.catalogues import CATALOGUES
from subscribers.base import Subscriber
from subscribers.errors import Reject
from subscribers.mapping.fields import Field, rows
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.paths import MISSING, nest, pick, tops
from subscribers.mapping.validation import check_rows
from subscribers.mapping.values import same
from subscribers.registry import register

CUSTOMER = CATALOGUES["customer"]
FIELDS: dict[str, Field | str] = {
    "name": Field("Name", required=True),
    "email": "contact.email",
    "city": "contact.address.city",
    "country": Field("contact.address.country", "upper"),
    "phone": Field("Phone", direction="out"),
    "notes": Field("Notes", direction="in"),
    "currency": Field("Currency", default="eur"),
    "active": Field("Closed", "not"),
}
MAPPER = Mapper(CUSTOMER, FIELDS)
ANNA = {"name": "Anna", "email": "anna@example.org", "city": "Rome", "country": "it", "phone": "1", "active": True}


def test_outward_values_are_flat_and_omit_inward_fields() -> None:
    assert MAPPER.outward(ANNA) == {
        "Name": "Anna",
        "contact.email": "anna@example.org",
        "contact.address.city": "Rome",
        "contact.address.country": "IT",
        "Phone": "1",
        "Currency": "eur",
        "Closed": False,
    }


def test_all_errors_are_reported_together() -> None:
    with pytest.raises(Reject) as caught:
        MAPPER.outward({**ANNA, "name": "", "country": 7})
    assert set(caught.value.fields) == {"Name", "contact.address.country"}


def test_inward_undoes_the_transform_and_fits_the_column() -> None:
    assert MAPPER.inward({"contact.address.country": "IT", "Closed": True}) == {"country": "it", "active": False}


@pytest.mark.parametrize(
    ("flat", "says"),
    [
        ({"Name": ""}, "requires a value"),
        ({"Name": "x" * 256}, "allows 255"),
        ({"Name": {"first": "A"}}, "is text"),
        ({"Name": "a\x00b"}, "NUL"),
        ({"Closed": "yes"}, "true or false"),
    ],
)
def test_what_does_not_fit_its_column_is_rejected(flat: dict[str, Any], says: str) -> None:
    with pytest.raises(Reject, match=says) as caught:
        MAPPER.inward(flat)
    assert list(caught.value.fields) == list(flat)


def test_a_field_that_is_not_mentioned_is_not_an_empty_one() -> None:
    assert MAPPER.flatten({"Name": "Anna", "contact": {"email": None}}) == {"Name": "Anna", "contact.email": None}


def test_below_an_empty_parent_everything_is_empty() -> None:
    assert MAPPER.flatten({"contact": None}) == {
        "contact.email": None,
        "contact.address.city": None,
        "contact.address.country": None,
    }
    assert pick({}, "contact.email") is MISSING
    assert pick({"contact": "text"}, "contact.email") is MISSING


PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join)


@given(st.dictionaries(PATHS, st.one_of(st.none(), st.integers(), st.text("aé\x00 ", max_size=5)), max_size=6))
def test_nested_and_flat_say_the_same(flat: dict[str, Any]) -> None:
    leaves = {path: value for path, value in flat.items() if not any(other.startswith(f"{path}.") for other in flat)}
    nested = nest(leaves)
    assert {path: pick(nested, path) for path in leaves} == leaves


@given(
    st.fixed_dictionaries(
        {
            "name": st.text("abc ", min_size=1, max_size=20).filter(lambda text: text.strip() != ""),
            "email": st.one_of(st.none(), st.emails()),
            "city": st.one_of(st.none(), st.text("abc", min_size=1, max_size=20)),
            "country": st.one_of(st.none(), st.sampled_from(["de", "it", "us"])),
            "currency": st.sampled_from(["eur", "usd"]),
            "active": st.booleans(),
        }
    )
)
def test_out_and_in_again_changes_nothing(record: dict[str, Any]) -> None:
    theirs = MAPPER.flatten(nest(MAPPER.outward(record)))
    back = MAPPER.inward({path: value for path, value in theirs.items() if MAPPER.accepts_inward(path)})
    assert back == record


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (None, "", True),
        (12, 12.0, True),
        (True, 1, False),
        (False, None, False),
        ("a", "A", False),
        (date(2026, 1, 1), date(2026, 1, 1), True),
        ([1], [1], True),
    ],
)
def test_values_that_mean_the_same_are_equal(one: Any, other: Any, equal: bool) -> None:
    assert same(one, other) is equal
    assert same(other, one) is equal


def test_rows_of_a_mapping_come_back_as_they_were() -> None:
    fields, problems = check_rows(MAPPER.rows(), CUSTOMER)
    assert problems == []
    assert fields == MAPPER.fields


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "at least one field"),
        ([{"column": "nmae", "path": "Name"}], "no column 'nmae'"),
        ([{"column": "name", "path": "A"}, {"column": "name", "path": "B"}], "mapped twice"),
        ([{"column": "name", "path": "A"}, {"column": "email", "path": "A"}], "used twice"),
        ([{"column": "name", "path": "a..b"}], "must be a field name"),
        ([{"column": "name", "path": "A", "transform": "eval"}], "unknown transform 'eval'"),
        ([{"column": "name", "path": "A", "direction": "sideways"}], "direction"),
        ([{"column": "name", "path": "A", "colour": "red"}], "colour"),
        ([{"column": "created_at", "path": "A"}], "no column 'created_at'"),
    ],
)
def test_mapping_errors_are_reported_by_row(rows: list[dict[str, Any]], says: str) -> None:
    _, problems = check_rows(rows, CUSTOMER)
    assert any(says in problem for problem in problems)


# --- several fields, expressions, lossy transforms -------------------------------------------------------


def test_one_column_may_be_several_fields() -> None:
    mapper = Mapper(CUSTOMER, {"name": Field("person.first+person.last", "split_name"), "email": "email"})
    flat = mapper.outward({"name": "Anna van der Berg", "email": "a@example.org"})
    assert nest(flat) == {"person": {"first": "Anna", "last": "van der Berg"}, "email": "a@example.org"}
    assert mapper.flatten(nest(flat)) == flat
    assert mapper.inward({"person.first+person.last": ["Anna", "Rossi"]}) == {"name": "Anna Rossi"}
    assert mapper.paths() == ["person.first", "person.last", "email"]
    assert mapper.path_of("name") == "person.first+person.last"
    assert tops(flat) == ["person", "email"]
    assert mapper.flatten({"person": {"last": "Rossi"}}) == {}, "half of it is not a name"
    assert mapper.flatten({"person": {"first": None, "last": ""}}) == {"person.first+person.last": None}
    assert nest(mapper.outward({"name": None})) == {"person": {"first": None, "last": None}, "email": None}


def test_several_columns_may_be_one_field() -> None:
    mapper = Mapper(CUSTOMER, {"street+city": Field("label", "join_name")})
    assert mapper.outward({"street": "Anna", "city": "Rossi"}) == {"label": "Anna Rossi"}
    assert mapper.outward({"street": None, "city": ""}) == {"label": None}
    assert mapper.inward({"label": "Anna Rossi"}) == {"street": "Anna", "city": "Rossi"}
    assert mapper.inward({"label": None}) == {"street": None, "city": None}
    assert mapper.path_of("city") == "label"


def test_an_expression_reads_and_never_writes() -> None:
    where = "emails[?primary].value | [0]"
    mapper = Mapper(CUSTOMER, {"name": "name", "email": Field(where, direction="in")})
    theirs = mapper.flatten({"emails": [{"value": "a"}, {"value": "b", "primary": True}]})
    assert theirs == {where: "b"} and mapper.inward(theirs) == {"email": "b"}
    assert mapper.outward({"name": "Anna", "email": "a"}) == {"name": "Anna"}
    assert mapper.flatten({"name": "Anna"}) == {"name": "Anna"}, "not a word of it is not an empty one"
    assert mapper.flatten({"emails": []}) == {where: None}
    assert nest({"name": "Anna", **theirs}) == {"name": "Anna"}
    assert mapper.paths() == ["name"]


@pytest.mark.parametrize(
    ("data", "found"), [({"a": "x"}, "x"), ({"b": 1}, None), ({"a": 7}, MISSING), ({"c": 1}, MISSING)]
)
def test_an_expression_that_cannot_be_read_finds_nothing(data: dict[str, Any], found: Any) -> None:
    assert pick(data, "(a && join('', [a])) || b.c") == found


def test_what_a_transform_loses_stays_where_they_hold_just_that() -> None:
    long = "a long text that they cut"
    mapper = Mapper(CUSTOMER, {"notes": Field("note", "truncate:10"), "phone": Field("tel", "phone:DE")})
    here = {"notes": long, "phone": "030 123456"}
    flat = mapper.outward(here)
    assert flat == {"note": long[:10], "tel": "+4930123456"}
    assert mapper.inward(flat, record=here) == here
    assert mapper.inward({"note": "another", "tel": "+4930999999"}, record=here) == {
        "notes": "another",
        "phone": "+4930999999",
    }


def test_an_amount_uses_the_currency_of_its_record() -> None:
    mapper = Mapper(CATALOGUES["product"], {"price": Field("price", "minor_units:column=currency"), "currency": "unit"})
    assert mapper.outward({"price": 1250, "currency": "jpy"}) == {"price": "1250", "unit": "jpy"}
    assert mapper.inward({"price": "1250", "unit": "jpy"}) == {"price": 1250, "currency": "jpy"}
    assert mapper.inward({"price": "1.5"}, record={"price": 1, "currency": "kwd"}) == {"price": 1500}
    with pytest.raises(Reject, match="depends on currency"):
        mapper.inward({"price": "1.5"})


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"column": "name", "path": "a[0]"}, "is read-only: its direction must be `in`"),
        ({"column": "name", "path": "a[", "direction": "in"}, "or a JMESPath expression"),
        ({"column": "name", "path": "a+b"}, "without a transform a row maps 1 column to 1 external field"),
        ({"column": "name", "path": "a", "transform": "split_name"}, "maps 1 column(s) to 2 external field(s)"),
        ({"column": "name+city", "path": "a+b", "transform": "join_name"}, "maps 2 column(s) to 1 external field(s)"),
        ({"column": "name", "path": "a+b", "transform": "split_name", "default": "x"}, "cannot have a default"),
        ({"column": "name+town", "path": "a", "transform": "join_name"}, "no column 'town'"),
        ({"column": "name", "path": "a", "transform": "map:a=x,b=x"}, "'x' is twice on the right"),
        ({"column": "name", "path": "a", "transform": "minor_units:column=colour"}, "no column 'colour'"),
        ({"column": "id", "path": "a", "transform": "text", "link": "product"}, "a relation cannot have a transform"),
    ],
)
def test_what_is_wrong_with_a_row_of_the_more_artful_kind(row: dict[str, Any], says: str) -> None:
    _, problems = check_rows([row], CUSTOMER)
    assert any(says in text for text in problems), problems


def test_a_class_whose_mapping_is_wrong_is_refused_where_it_is_written() -> None:
    with pytest.raises(ValueError, match="Wrong: field_to_data: row 1: customer has no column 'nmae'"):
        register(type("Wrong", (Subscriber,), {"system": "x", "catalogue": "customer", "field_to_data": {"nmae": "n"}}))


def test_a_completed_record_has_every_field_that_comes_in() -> None:
    fields: dict[str, Field | str] = {
        "name": "name",
        "email": Field("mail", direction="out"),
        "city": "address.city",
        "notes": "tags[0]",
    }
    mapper = Mapper(CATALOGUES["customer"], fields)
    assert mapper.completed({"address": {"zip": "1"}}) == {
        "name": None,
        "address": {"zip": "1", "city": None},
        "tags": None,
    }
    assert mapper.flatten(mapper.completed({})) == {"name": None, "address.city": None, "tags[0]": None}
    lines = Mapper(CATALOGUES["invoice"], {"lines": rows("items", {"description": "text", "quantity": "count"})})
    assert lines.completed({"items": [{"count": 2}]}) == {"items": [{"count": 2, "text": None}]}
    assert lines.flatten(lines.completed({})) == {"items": []}
