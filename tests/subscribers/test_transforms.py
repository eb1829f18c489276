"""Each named transform matches its inverse."""

import re
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pycountry
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subscribers.mapping.transforms import TRANSFORMS, find

WORDS = ["Anna", "Maria", "van", "der", "Berg", "Dr.", "Li", "O'Hara"]
TIMES = st.datetimes(timezones=st.just(UTC)).filter(lambda when: 1902 < when.year < 2200)

#: Values that a transform converts without loss, so that a round trip returns the same value.
LOSSLESS: dict[str, st.SearchStrategy[Any]] = {
    "upper": st.text("abcdefghijklmnopqrstuvwxyz0123456789 -"),
    "lower": st.text("abcdefghijklmnopqrstuvwxyz0123456789 -"),
    "strip": st.text().map(str.strip),
    "truncate:8": st.text(max_size=8),
    "minor_units": st.integers(-(10**15), 10**15),
    "minor_units:JPY": st.integers(-(10**15), 10**15),
    "minor_units:KWD": st.integers(-(10**15), 10**15),
    "amount": st.integers(-(10**13), 10**13),
    "amount:KWD": st.integers(-(10**13), 10**13),
    "stripe_amount:EUR": st.integers(-(10**13), 10**13),
    "stripe_amount:ISK": st.integers(-(10**13), 10**13),
    "date": st.dates(),
    "datetime:Europe/Berlin": TIMES,
    "datetime:UTC": TIMES,
    "unix": TIMES.map(lambda when: when.replace(microsecond=0)),
    "unix:milliseconds": TIMES.map(lambda when: when.replace(microsecond=when.microsecond // 1000 * 1000)),
    "yes_no": st.booleans(),
    "bool:Y/N": st.booleans(),
    "not": st.booleans(),
    "map:open=Open,paid=Paid,a%2Cb=x%3Dy": st.sampled_from(["open", "paid", "a,b"]),
    "text": st.text(),
    "number_text": st.one_of(
        st.integers(-(10**20), 10**20), st.decimals(-(10**9), 10**9, places=4, allow_nan=False, allow_infinity=False)
    ),
    "text_number": st.integers(-(10**18), 10**18).map(str),
    "phone:DE": st.sampled_from(["+4930123456", "+14155552671", "+390612345678"]),
    "phone": st.sampled_from(["+4930123456", "+442071838750"]),
    "country:alpha-3": st.sampled_from([country.alpha_2 for country in pycountry.countries]),
    "country:name": st.sampled_from([country.alpha_2 for country in pycountry.countries]),
    "split_name": st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join),
    "join_name": st.sampled_from([["Anna", "Rossi"], ["Anna Maria", "van der Berg"], [None, "Rossi"]]),
}


def test_every_transform_is_tested() -> None:
    assert {words.partition(":")[0] for words in LOSSLESS} == set(TRANSFORMS)


@pytest.mark.parametrize("name", LOSSLESS)
@given(data=st.data())
def test_a_transform_and_its_inverse_return_the_value(name: str, data: st.DataObject) -> None:
    value = data.draw(LOSSLESS[name])
    transform = find(name)
    assert transform.inverse(transform.forward(value)) == value


@pytest.mark.parametrize("name", LOSSLESS)
@given(
    value=st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.dates(), st.datetimes(), st.decimals(),
        st.lists(st.one_of(st.none(), st.text(), st.integers()), max_size=3),
    )
)  # fmt: skip
def test_a_value_that_cannot_be_mapped_is_a_value_error(name: str, value: Any) -> None:
    for direction in (find(name).forward, find(name).inverse):
        try:
            direction(value)
        except ValueError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("name", "here", "there"),
    [
        ("minor_units", 1250, "12.50"),
        ("minor_units", -5, "-0.05"),
        ("minor_units", 0, "0.00"),
        ("date", date(2026, 11, 30), "2026-11-30"),
        ("yes_no", True, "yes"),
        ("not", True, False),
        ("upper", "de", "DE"),
        ("minor_units:JPY", 1250, "1250"),
        ("minor_units:kwd", 1250, "1.250"),
        ("amount", 1250, 12.5),
        ("bool:1/0", True, "1"),
        ("map:open=Open,paid=Paid", "paid", "Paid"),
        ("phone:DE", "+4930123456", "+4930123456"),
        ("country:alpha-3", "DE", "DEU"),
        ("country:name", "BO", "Bolivia"),
        ("datetime:Europe/Berlin", datetime(2026, 7, 1, 10, tzinfo=UTC), "2026-07-01T12:00:00+02:00"),
        ("unix", datetime(2026, 1, 1, tzinfo=UTC), 1767225600),
        ("number_text", Decimal("12.50"), "12.50"),
        ("text_number", "12", 12),
        ("split_name", "Anna Maria van der Berg", ["Anna Maria", "van der Berg"]),
        ("split_name", "Rossi", [None, "Rossi"]),
        ("split_name", "Rossi, Anna", ["Rossi,", "Anna"]),
        ("join_name", ["Anna", "Rossi"], "Anna Rossi"),
    ],
)
def test_examples(name: str, here: Any, there: Any) -> None:
    assert find(name).forward(here) == there
    assert find(name).inverse(there) == here


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("phone:DE", "030 / 12 34-56", "+4930123456"),
        ("country:name", "de", "Germany"),
        ("unix", date(2026, 1, 1), 1767225600),
        ("truncate:3", "abcdef", "abc"),
    ],
)
def test_forms_that_are_made_equal(name: str, one: Any, other: Any) -> None:
    assert find(name).forward(one) == other


def test_a_time_without_an_offset_is_meant_as_the_zones_clocks_show_it() -> None:
    assert find("datetime:Europe/Berlin").inverse("2026-07-01T12:00:00") == datetime(2026, 7, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("eval", "unknown transform 'eval'; known transforms: upper"),
        ("upper:x", "takes no arguments"),
        ("truncate", "needs arguments, as in truncate:40"),
        ("truncate:0", "a number of characters"),
        ("map:open=Open,paid=Open", "'Open' is twice on the right"),
        ("map:open=Open,open=Shut", "'open' is twice on the left"),
        ("map:open", "not a pair such as open=Open"),
        ("bool:Y/y", "two different words"),
        ("phone:Germany", "not a region"),
        ("country:alpha-2", "alpha-3 or name"),
        ("datetime:Mars", "not a time zone"),
        ("datetime:../../etc/passwd", "not a time zone"),
        ("unix:days", "seconds or milliseconds"),
        ("minor_units:ABC", "not a currency"),
        ("minor_units:XAU", "no minor units"),
        ("minor_units:column=", "a currency such as EUR, or column="),
    ],
)
def test_an_invalid_transform_is_refused_with_a_reason(words: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        find(words)


def test_an_amount_with_a_currency_column() -> None:
    transform = find("minor_units:column=currency")
    assert transform.of({"currency": "jpy"}).forward(1250) == "1250"
    assert transform.of({"currency": "kwd"}).inverse("1.250") == 1250
    for record in ({}, {"currency": None}, {"currency": "abc"}):
        with pytest.raises(ValueError, match="currency"):
            transform.of(record)


@pytest.mark.parametrize(
    ("name", "there", "says"),
    [
        ("minor_units", "12.505", "more than two decimals"),
        ("minor_units", "a lot", "not an amount of money"),
        ("minor_units", "Infinity", "not an amount of money"),
        ("minor_units", "NaN", "not an amount of money"),
        ("minor_units", "9" * 40, "not an amount of money"),
        ("yes_no", "perhaps", "expected yes or no"),
        ("not", "true", "expected true or false"),
        ("upper", 7, "expected text"),
        ("minor_units:JPY", "12.5", "more than no decimals"),
        ("phone:DE", "call me", "not a phone number"),
        ("phone", "030 123456", "not a phone number"),
        ("phone:US", "415-555-2671 ext. 5", "has an extension"),
        ("country:name", "Atlantis", "not a country"),
        ("map:open=Open", "Shut", "not one of Open"),
        ("text_number", 1.5, "expected a whole number"),
    ],
)
def test_a_value_without_an_inverse_is_refused_with_a_reason(name: str, there: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        find(name).inverse(there)


def test_an_external_time_becomes_an_internal_date() -> None:
    assert find("date").inverse("2026-11-30T10:00:00.000+0000") == date(2026, 11, 30)
