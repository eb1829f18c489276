"""A record crosses over by its mapping, and what does not fit is said per field."""

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.catalogues import CATALOGUES
from subscribers.errors import Reject
from subscribers.mapping import MISSING, Field, Mapper, check_rows, nest, pick, same

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


def test_outward_is_flat_and_leaves_out_what_only_comes_in() -> None:
    assert MAPPER.outward(ANNA) == {
        "Name": "Anna",
        "contact.email": "anna@example.org",
        "contact.address.city": "Rome",
        "contact.address.country": "IT",
        "Phone": "1",
        "Currency": "eur",
        "Closed": False,
    }


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(Reject) as caught:
        MAPPER.outward({**ANNA, "name": "", "country": 7})
    assert set(caught.value.fields) == {"Name", "contact.address.country"}


def test_inward_undoes_the_transform_and_fits_the_column() -> None:
    assert MAPPER.inward({"contact.address.country": "IT", "Closed": True}) == {"country": "it", "active": False}


@pytest.mark.parametrize(
    ("flat", "says"),
    [
        ({"Name": ""}, "needs a value"),
        ({"Name": "x" * 256}, "holds 255"),
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
    assert MAPPER.theirs({"Name": "Anna", "contact": {"email": None}}) == {"Name": "Anna", "contact.email": None}


def test_below_an_empty_parent_everything_is_empty() -> None:
    assert MAPPER.theirs({"contact": None}) == {
        "contact.email": None,
        "contact.address.city": None,
        "contact.address.country": None,
    }
    assert pick({}, "contact.email") is MISSING
    assert pick({"contact": "text"}, "contact.email") is MISSING


PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join)


@given(st.dictionaries(PATHS, st.one_of(st.none(), st.integers(), st.text(max_size=5)), max_size=6))
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
    theirs = MAPPER.theirs(nest(MAPPER.outward(record)))
    back = MAPPER.inward({path: value for path, value in theirs.items() if MAPPER.comes_in(path)})
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
def test_same_is_what_a_person_would_call_the_same(one: Any, other: Any, equal: bool) -> None:
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
        ([{"column": "name", "path": "a..b"}], "no field name"),
        ([{"column": "name", "path": "A", "transform": "eval"}], "no transform 'eval'"),
        ([{"column": "name", "path": "A", "direction": "sideways"}], "direction"),
        ([{"column": "name", "path": "A", "colour": "red"}], "colour"),
        ([{"column": "created_at", "path": "A"}], "no column 'created_at'"),
    ],
)
def test_what_is_wrong_with_a_mapping_is_said_by_row(rows: list[dict[str, Any]], says: str) -> None:
    _, problems = check_rows(rows, CUSTOMER)
    assert any(says in problem for problem in problems)
