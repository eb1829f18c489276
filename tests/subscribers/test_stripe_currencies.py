"""Amounts in Stripe's minor units, for all currencies of ISO 4217."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from iso4217 import Currency

from subscribers.mapping.transforms import find
from subscribers.stripe.currencies import DECIMALS, UNSUPPORTED, decimals

#: The currencies with minor units, by their decimals in ISO 4217.
ISO = {one.code: int(one.exponent) for one in Currency if one.exponent is not None}
PAGE = Path(__file__).parents[2] / "docs" / "howto" / "stripe.md"


@pytest.mark.parametrize("code", sorted(ISO))
def test_ten_units_of_every_currency_are_ten_units_in_stripe(code: str) -> None:
    here = 10 * 10 ** ISO[code]
    transform = (
        find("stripe_amount:column=currency").of({"currency": code.lower()}) if code not in UNSUPPORTED else None
    )
    if transform is None:
        with pytest.raises(ValueError, match=f"does not support {code}"):
            find(f"stripe_amount:{code}")
        return
    assert transform.forward(here) == 10 * 10 ** decimals(code)
    assert transform.inverse(transform.forward(here)) == here


def test_the_currencies_that_differ_from_iso_are_those_of_stripes_special_cases() -> None:
    supported = ISO.keys() - UNSUPPORTED
    assert {code for code in supported if decimals(code) != ISO[code]} == {"ISK", "MGA", "UGX"}
    assert DECIMALS.keys() <= ISO.keys()


@pytest.mark.parametrize(
    ("code", "here", "there"),
    [
        ("ISK", 5_000, 500_000),
        ("ISK", -5, -500),
        ("UGX", 5, 500),
        ("JPY", 500, 500),
        ("KWD", 5_124, 5_124),
        ("HUF", 1_045, 1_045),
        ("TWD", 80_045, 80_045),
        ("MGA", 1_200, 12),
        ("EUR", 1_250, 1_250),
        ("EUR", 0, 0),
    ],
)
def test_amounts_by_stripes_own_examples(code: str, here: int, there: int) -> None:
    transform = find(f"stripe_amount:{code}")
    assert (transform.forward(here), transform.inverse(there)) == (there, here)


def test_a_fraction_that_stripe_does_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match="Stripe takes whole MGA only: 1250"):
        find("stripe_amount:MGA").forward(1250)


def test_a_fraction_that_the_database_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="a fraction of the smallest unit of ISK: 4010"):
        find("stripe_amount:ISK").inverse(4010)


def test_the_table_in_the_docs_is_the_table_in_the_code() -> None:
    text = PAGE.read_text().partition("<!-- checked: stripe currencies -->")[2]
    rows = re.findall(r"^\| ([A-Z]{3}(?:, [A-Z]{3})*) \| (\d?) ?\|", text, re.MULTILINE)
    documented = {code: digits for codes, digits in rows for code in codes.split(", ")}
    assert {code for code, digits in documented.items() if not digits} == UNSUPPORTED
    assert {code: int(digits) for code, digits in documented.items() if digits} == {**DECIMALS, "HUF": 2, "TWD": 2}
