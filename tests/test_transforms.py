"""Every named transform and its inverse belong together."""

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subscribers.transforms import TRANSFORMS

#: Values on which a transform loses nothing, so that there and back again is the same value.
LOSSLESS: dict[str, st.SearchStrategy[Any]] = {
    "upper": st.text("abcdefghijklmnopqrstuvwxyz0123456789 -"),
    "lower": st.text("abcdefghijklmnopqrstuvwxyz0123456789 -"),
    "strip": st.text().map(str.strip),
    "minor_units": st.integers(-(10**15), 10**15),
    # A number holds 15 digits for sure.
    "amount": st.integers(-(10**15) + 1, 10**15 - 1),
    "date": st.dates(),
    "yes_no": st.booleans(),
    "not": st.booleans(),
    "text": st.text(),
}


def test_every_transform_is_tested() -> None:
    assert set(LOSSLESS) == set(TRANSFORMS)


@pytest.mark.parametrize("name", TRANSFORMS)
@given(data=st.data())
def test_there_and_back_again(name: str, data: st.DataObject) -> None:
    value = data.draw(LOSSLESS[name])
    transform = TRANSFORMS[name]
    assert transform.inverse(transform.forward(value)) == value


@pytest.mark.parametrize("name", TRANSFORMS)
@given(
    value=st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.dates(), st.lists(st.text()))
)
def test_a_value_that_cannot_be_mapped_is_a_value_error(name: str, value: Any) -> None:
    for direction in (TRANSFORMS[name].forward, TRANSFORMS[name].inverse):
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
        ("amount", 1250, 12.5),
        ("amount", 1999, 19.99),
        ("date", date(2026, 11, 30), "2026-11-30"),
        ("yes_no", True, "yes"),
        ("not", True, False),
        ("upper", "de", "DE"),
    ],
)
def test_examples(name: str, here: Any, there: Any) -> None:
    assert TRANSFORMS[name].forward(here) == there
    assert TRANSFORMS[name].inverse(there) == here


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
    ],
)
def test_the_words_say_what_is_wrong(name: str, there: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TRANSFORMS[name].inverse(there)


def test_a_time_of_day_there_is_a_date_here() -> None:
    assert TRANSFORMS["date"].inverse("2026-11-30T10:00:00.000+0000") == date(2026, 11, 30)
