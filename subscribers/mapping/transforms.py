"""Named transforms of values, each with its inverse.

A mapping refers to a transform by name, with arguments after a colon (`phone:DE`), and so can never
run code. :func:`find` returns the transform.

The packages for names, phone numbers and currencies take some megabytes, so they are imported by the
first transform that needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any
from urllib.parse import unquote
from zoneinfo import ZoneInfo

import pycountry

from i18n import gettext, gettext_noop
from subscribers.mapping.values import InvalidValue

Value = Any


@dataclass(frozen=True)
class Transform:
    """`forward` converts the internal value to the external one, `inverse` the reverse.

    Both raise ValueError, with a message for operators, for a value they cannot convert. They are not
    called with empty values. A transform may depend on another `column` of the record: `by` returns
    the transform for a value of it. `here` and `there` are the numbers of columns and of external
    fields; several values are a list.
    """

    forward: Callable[[Value], Value]
    inverse: Callable[[Value], Value]
    column: str | None = None
    by: Callable[[Value], Transform] | None = None
    here: int = 1
    there: int = 1

    def of(self, record: Mapping[str, Any]) -> Transform:
        """Return the transform for this record, resolved by the column that it depends on."""
        if self.column is None or self.by is None:
            return self
        if record.get(self.column) in (None, ""):
            raise ValueError(f"depends on {self.column}, which is empty")
        return self.by(record[self.column])


@dataclass(frozen=True)
class Kind:
    """A named transform: `make` creates it from its arguments, the text after the colon ("" for none).

    `example` shows the arguments, in brackets if they are optional; empty if it has none.
    """

    make: Callable[[str], Transform]
    description: str
    example: str = ""


@lru_cache(maxsize=512)
def find(spec: str) -> Transform:
    """Return the transform for a name and its arguments, such as `phone:DE`.

    Raises:
      ValueError: there is no such transform, or its arguments are wrong.
    """
    name, colon, arguments = spec.partition(":")
    kind = TRANSFORMS.get(name)
    if kind is None:
        raise ValueError(
            gettext("unknown transform {name!r}; known transforms: {known}", name=spec, known=", ".join(TRANSFORMS))
        )
    if colon and not kind.example:
        raise ValueError(
            gettext("the transform {name} takes no arguments, but has {given!r}", name=name, given=arguments)
        )
    if not arguments and kind.example and not kind.example.startswith("["):
        raise ValueError(
            gettext("the transform {name} needs arguments, as in {name}:{example}", name=name, example=kind.example)
        )
    try:
        return kind.make(arguments)
    except ValueError as error:
        raise ValueError(gettext("the transform {name!r}: {error}", name=spec, error=error)) from None


def _simple(forward: Callable[[Value], Value], inverse: Callable[[Value], Value], description: str) -> Kind:
    transform = Transform(forward, inverse)
    return Kind(lambda _: transform, description)


def _text(value: Value) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, found {type(value).__name__}")
    return value


# --- names ------------------------------------------------------------------------------------------


def _split_name(value: Value) -> list[str | None]:
    words = _text(value).split()
    if not words:
        raise ValueError("expected a name, found only spaces")
    from nameparser import HumanName  # noqa: PLC0415

    name = HumanName(" ".join(words))
    # "van der Berg" is one last name. A name that HumanName would reorder keeps its order.
    given, family = f"{name.title} {name.first} {name.middle}".split(), f"{name.last} {name.suffix}".split()
    if given + family != words or not family:
        given, family = words[:-1], words[-1:]
    return [" ".join(given) or None, " ".join(family)]


def _join_name(value: Value) -> str:
    if not (isinstance(value, list | tuple) and len(value) == 2):
        raise ValueError("expected a first and a last name")
    words = [word for part in value if part not in (None, "") for word in _text(part).split()]
    if not words:
        raise ValueError("expected a first or a last name, found only spaces")
    return " ".join(words)


# --- phone numbers and countries -----------------------------------------------------------------------


def _phone(region: str) -> Transform:
    import phonenumbers  # noqa: PLC0415

    region = region.upper()
    if region and region not in phonenumbers.SUPPORTED_REGIONS:
        raise ValueError(f"{region!r} is not a region; use two letters such as DE")

    def normal(value: Value) -> str:
        try:
            number = phonenumbers.parse(_text(value), region or None)
        except phonenumbers.NumberParseException as error:
            raise ValueError(f"{value!r} is not a phone number: {error}") from None
        if number.extension:
            raise ValueError(f"{value!r} has an extension, which an E.164 number cannot carry")
        if not phonenumbers.is_possible_number(number):
            raise ValueError(f"{value!r} is not a phone number: too long or too short")
        return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)

    return Transform(normal, normal)


def _country(form: str) -> Transform:
    if form not in ("alpha-3", "name"):
        raise ValueError("requires alpha-3 or name")

    def forward(value: Value) -> str:
        country = pycountry.countries.get(alpha_2=_text(value).upper())
        if country is None:
            raise ValueError(f"{value!r} is not a country code; use two letters such as DE (ISO 3166-1 alpha-2)")
        return str(country.alpha_3 if form == "alpha-3" else getattr(country, "common_name", country.name))

    def inverse(value: Value) -> str:
        text = _text(value).strip()
        try:
            country = (
                pycountry.countries.lookup(text) if form == "name" else pycountry.countries.get(alpha_3=text.upper())
            )
        except LookupError:
            country = None
        if country is None:
            such = "an English name" if form == "name" else "three letters such as DEU"
            raise ValueError(f"{value!r} is not a country; use {such} (ISO 3166-1)")
        return str(country.alpha_2)

    return Transform(forward, inverse)


# --- money and numbers -------------------------------------------------------------------------------


def minor_digits(currency: str) -> int:
    """Return the decimals of a currency (ISO 4217).

    Raises:
      ValueError: it is no currency, or has no minor units.
    """
    from iso4217 import Currency  # noqa: PLC0415

    try:
        exponent = Currency(_text(currency).upper()).exponent
    except ValueError:
        raise ValueError(f"{currency!r} is not a currency; use three letters such as EUR (ISO 4217)") from None
    if exponent is None:
        raise ValueError(f"{currency} has no minor units")
    return int(exponent)


def by_currency(arguments: str, make: Callable[[str], Transform]) -> Transform:
    """Return the transform that `make` returns for a currency: the one in the arguments, or that of a column."""
    word, equals, column = arguments.partition("=")
    if not equals:
        return make(arguments)
    if word != "column" or not column:
        raise ValueError("requires a currency such as EUR, or column= and the column with the currency")
    return Transform(_unbound, _unbound, column, lambda currency: make(_text(currency)))


def _minor_units(arguments: str, write: Callable[[Decimal], Value] = lambda amount: f"{amount:f}") -> Transform:
    return by_currency(arguments, lambda currency: _decimal_amount(minor_digits(currency) if currency else 2, write))


def _decimal_amount(exponent: int, write: Callable[[Decimal], Value]) -> Transform:
    def forward(minor: Value) -> Value:
        if isinstance(minor, bool) or not isinstance(minor, int):
            raise ValueError("expected a whole number of minor units")
        if abs(minor) >= 2**63:
            raise ValueError(f"too large: {minor}")
        return write(Decimal(minor).scaleb(-exponent))

    def inverse(value: Value) -> int:
        # An amount must fit into a 64-bit column.
        amount = _decimal(value, "an amount of money")
        if abs(amount) >= 10**16:
            raise ValueError(f"not an amount of money: {value!r}")
        scaled = amount.scaleb(exponent)
        if scaled != scaled.to_integral_value():
            raise ValueError(f"more than {_DIGITS.get(exponent, exponent)} decimals: {value}")
        return int(scaled)

    return Transform(forward, inverse)


_DIGITS = {0: "no", 2: "two", 3: "three"}


def _unbound(value: Value) -> Value:
    raise ValueError("depends on another column of the record")


def _decimal(value: Value, what: str = "a number") -> Decimal:
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        raise ValueError(f"not {what}: {value!r}") from None
    if isinstance(value, bool) or not amount.is_finite():
        raise ValueError(f"not {what}: {value!r}")
    return amount


def _number_to_text(value: Value) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError(f"expected a number, found {type(value).__name__}")
    return f"{_decimal(value):f}"


def _text_to_number(value: Value) -> int | Decimal:
    amount = _decimal(_text(value).strip())
    if amount.adjusted() > _MAX_DIGITS or amount.as_tuple().exponent < -_MAX_DIGITS:  # type: ignore[operator]
        raise ValueError(f"more than {_MAX_DIGITS} digits: {value!r}")
    return int(amount) if amount == amount.to_integral_value() else amount


_MAX_DIGITS = 27


def _digits_to_number(value: Value) -> int:
    text = _text(value)
    if not (text.isascii() and text.removeprefix("-").isdecimal()) or str(int(text[:20])) != text:
        raise ValueError(f"{value!r} is not an integer in canonical form of at most 20 digits")
    return int(text)


def _number_to_digits(value: Value) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected a whole number, found {value!r}")
    return str(value)


# --- dates and times ----------------------------------------------------------------------------------


def _to_iso(value: Value) -> str:
    if not isinstance(value, date):
        raise ValueError("expected a date")
    return value.isoformat()


def _from_iso(value: Value) -> date:
    return date.fromisoformat(_text(value)[:10])


def _instant(value: Value) -> datetime:
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, datetime):
        raise ValueError(f"expected a time, found {type(value).__name__}")
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _datetime(name: str) -> Transform:
    try:
        zone = ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        raise ValueError(f"{name!r} is not a time zone; use a name such as Europe/Berlin") from None

    def forward(value: Value) -> str:
        try:
            return _instant(value).astimezone(zone).isoformat()
        except OverflowError:
            raise ValueError(f"{value} is out of range in {name}") from None

    def inverse(value: Value) -> datetime:
        when = datetime.fromisoformat(_text(value))
        try:  # a time without an offset is local time of the zone
            return (when.replace(tzinfo=zone) if when.tzinfo is None else when).astimezone(UTC)
        except OverflowError:
            raise ValueError(f"{value} is out of range") from None

    return Transform(forward, inverse)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _unix(unit: str) -> Transform:
    units = {"": timedelta(seconds=1), "seconds": timedelta(seconds=1), "milliseconds": timedelta(milliseconds=1)}
    if unit not in units:
        raise ValueError("requires seconds or milliseconds")
    step = units[unit]

    def inverse(value: Value) -> datetime:
        amount = _decimal(value, "a number of seconds since 1970")
        try:
            return _EPOCH + timedelta(microseconds=int(amount * (step // timedelta(microseconds=1))))
        except OverflowError:
            raise ValueError(f"{value!r} is out of range") from None

    return Transform(lambda value: (_instant(value) - _EPOCH) // step, inverse)


# --- mapped values --------------------------------------------------------------------------------------------


def _map(arguments: str) -> Transform:
    pairs = []
    for item in arguments.split(","):
        here, equals, there = item.partition("=")
        if not (equals and here and there):
            raise ValueError(
                f"{item!r} is not a pair such as open=Open (write a comma in a value as %2C, and = as %3D)"
            )
        pairs.append((unquote(here.strip()), unquote(there.strip())))
    out, back = dict(pairs), {there: here for here, there in pairs}
    for side, known in ((0, out), (1, back)):
        if len(known) < len(pairs):
            values = [pair[side] for pair in pairs]
            twice = next(value for value in values if values.count(value) > 1)
            raise ValueError(f"{twice!r} is twice on the {'left' if side == 0 else 'right'}: each value must be unique")

    def look_up(known: Mapping[str, str]) -> Callable[[Value], str]:
        def find_in(value: Value) -> str:
            if isinstance(value, list | dict | bool) or str(value) not in known:
                raise InvalidValue(f"{value!r} is not one of {', '.join(known)}", "not_in_list")
            return known[str(value)]

        return find_in

    return Transform(look_up(out), look_up(back))


def _bool(arguments: str) -> Transform:
    yes, slash, no = arguments.partition("/")
    if not (slash and yes and no) or yes.lower() == no.lower():
        raise ValueError("requires two different words such as Y/N")

    def forward(value: Value) -> str:
        if not isinstance(value, bool):
            raise ValueError("expected true or false")
        return yes if value else no

    def inverse(value: Value) -> bool:
        word = str(value).strip().lower()
        if word not in (yes.lower(), no.lower()):
            raise ValueError(f"expected {yes} or {no}, found {value!r}")
        return word == yes.lower()

    return Transform(forward, inverse)


def _not(value: Value) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return not value


def _truncate(arguments: str) -> Transform:
    if not arguments.isdecimal() or not int(arguments[:9]) > 0:
        raise ValueError("requires a number of characters")
    most = int(arguments)
    # The cut text of a longer one comes back as an echo, which Mapper.inward recognises.
    return Transform(lambda value: _text(value)[:most], _text)


TRANSFORMS: dict[str, Kind] = {
    "upper": _simple(
        lambda v: _text(v).upper(),
        lambda v: _text(v).lower(),
        gettext_noop("lower case in the database, UPPER CASE in the system"),
    ),
    "lower": _simple(lambda v: _text(v).lower(), lambda v: _text(v).lower(), gettext_noop("lower case on both sides")),
    "strip": _simple(
        lambda v: _text(v).strip(), lambda v: _text(v).strip(), gettext_noop("without spaces at the start and end")
    ),
    "truncate": Kind(_truncate, gettext_noop("cut to this many characters in the system, whole in the database"), "40"),
    "minor_units": Kind(
        _minor_units,
        gettext_noop("1250 cents in the database, the text 12.50 in the system"),
        "[EUR or column=currency]",
    ),
    "amount": Kind(
        lambda arguments: _minor_units(arguments, float),
        gettext_noop("1250 cents in the database, the number 12.5 in the system"),
        "[EUR or column=currency]",
    ),
    "date": _simple(_to_iso, _from_iso, gettext_noop("a date in the database, the text 2026-11-30 in the system")),
    "datetime": Kind(
        _datetime, gettext_noop("a time in the database, local time of a time zone in the system"), "Europe/Berlin"
    ),
    "unix": Kind(
        _unix,
        gettext_noop("a time or date in the database, seconds since 1970 in the system"),
        "[seconds or milliseconds]",
    ),
    "yes_no": Kind(lambda _: _bool("yes/no"), gettext_noop("true/false in the database, yes/no in the system")),
    "bool": Kind(_bool, gettext_noop("true/false in the database, two words in the system"), "Y/N"),
    "not": _simple(_not, _not, gettext_noop("the opposite of true/false")),
    "map": Kind(_map, gettext_noop("one word in the database, another in the system"), "open=Open,paid=Paid"),
    "text": _simple(str, _text, gettext_noop("any value as text")),
    "number_text": _simple(
        _number_to_text, _text_to_number, gettext_noop("a number in the database, text in the system")
    ),
    "text_number": _simple(
        _digits_to_number,
        _number_to_digits,
        gettext_noop("the digits of an integer in the database, a number in the system"),
    ),
    "phone": Kind(
        _phone, gettext_noop("+4930123456 in the system (E.164); the region applies to numbers without +"), "[DE]"
    ),
    "country": Kind(_country, gettext_noop("DE in the database, DEU or Germany in the system"), "alpha-3 or name"),
    "split_name": Kind(
        lambda _: Transform(_split_name, _join_name, there=2),
        gettext_noop("a full name in the database, first and last name in the system"),
    ),
    "join_name": Kind(
        lambda _: Transform(_join_name, _split_name, here=2),
        gettext_noop("first and last name in the database, a full name in the system"),
    ),
}
