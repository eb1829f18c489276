"""Stripe's minor units, where they differ from ISO 4217, and the transform of amounts between the two.

Guide "Supported currencies" (docs.stripe.com/currencies), sections "Zero-decimal currencies", "Three-decimal
currencies" and "Special cases". Every currency that these do not name has two decimals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from i18n import gettext_noop
from subscribers.mapping.transforms import TRANSFORMS, Kind, Transform, by_currency, minor_digits

#: Currency -> decimals of an amount in Stripe's API, unless they are two.
#: HUF and TWD are not here: they are without decimals in payouts only, which Syncflow does not write.
DECIMALS: Mapping[str, int] = {
    **dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF"), 0),
    **dict.fromkeys(("VND", "VUV", "XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "JOD", "KWD", "OMR", "TND"), 3),
    # Whole amounts only, written with two decimals for backwards compatibility: 5 ISK are 500.
    "ISK": 2,
    "UGX": 2,
}

#: Currencies with other decimals than two in ISO 4217 that Stripe does not know.
UNSUPPORTED = frozenset({"CLF", "IQD", "LYD", "UYI", "UYW"})


def decimals(currency: str) -> int:
    """Return the decimals of an amount of this currency in Stripe's API.

    Raises:
      ValueError: Stripe does not support the currency, so its amounts have no defined unit.
    """
    if currency.upper() in UNSUPPORTED:
        raise ValueError(f"Stripe does not support {currency.upper()}")
    return DECIMALS.get(currency.upper(), 2)


def _amount(currency: str) -> Transform:
    shift = decimals(currency) - minor_digits(currency)
    code = currency.upper()
    return Transform(
        lambda minor: _scaled(minor, shift, f"Stripe takes whole {code} only"),
        lambda minor: _scaled(minor, -shift, f"a fraction of the smallest unit of {code}"),
    )


def _scaled(amount: Any, digits: int, problem: str) -> int:
    if isinstance(amount, bool) or not isinstance(amount, int):
        raise ValueError(f"expected a whole number of minor units, found {amount!r}")
    if digits >= 0:
        return amount * int(10**digits)
    whole, rest = divmod(amount, int(10**-digits))
    if rest:
        raise ValueError(f"{problem}: {amount}")
    return whole


TRANSFORMS["stripe_amount"] = Kind(
    lambda arguments: by_currency(arguments, _amount),
    gettext_noop("5 krónur are 5 in the database and 500 in Stripe, which has its own minor units"),
    "EUR or column=currency",
)
