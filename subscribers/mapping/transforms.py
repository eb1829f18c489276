"""Named transforms of values, each with its inverse.

A closed registry: a mapping edited in the panel names one of these, with arguments after a colon
(`phone:DE`), and can never run code. :func:`find` makes a transform of such words.

The packages that know names, phone numbers and currencies are loaded by the first mapping that needs
one: most processes never do, and together they take some megabytes.
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

Value = Any


@dataclass(frozen=True)
class Transform:
    """`forward` maps the internal value to the external one, `inverse` the other way.

    Both raise ValueError, with words for a person, for a value they cannot map. Empty values are not
    given to them. `column` names another column of the record on which it depends: `by` makes the
    transform for its value. `here` and `there` are how many values there are on each side; more than
    one are a list.
    """

    forward: Callable[[Value], Value]
    inverse: Callable[[Value], Value]
    column: str | None = None
    by: Callable[[Value], Transform] | None = None
    here: int = 1
    there: int = 1

    def of(self, record: Mapping[str, Any]) -> Transform:
        """The transform for a value of this record."""
        if self.column is None or self.by is None:
            return self
        if record.get(self.column) in (None, ""):
            raise ValueError(f"depends on {self.column}, which is not known")
        return self.by(record[self.column])


@dataclass(frozen=True)
class Kind:
    """A named transform: `make` is given its arguments, the text after the colon ("" for none).

    `example` shows the arguments where it takes any; in brackets where it can do without.
    """

    make: Callable[[str], Transform]
    description: str
    example: str = ""


def find(words: str) -> Transform:
    """The transform of this name and these arguments.

    Raises:
      ValueError: there is none; the message says what there is, or what is wrong with the arguments.
    """
    return _find(words)


@lru_cache(maxsize=512)
def _find(words: str) -> Transform:
    name, colon, arguments = words.partition(":")
    kind = TRANSFORMS.get(name)
    if kind is None:
        raise ValueError(gettext("no transform {name!r}; there are {known}", name=words, known=", ".join(TRANSFORMS)))
    if colon and not kind.example:
        words = gettext("the transform {name} takes no arguments, but is given {given!r}", name=name, given=arguments)
        raise ValueError(words)
    if not arguments and kind.example and not kind.example.startswith("["):
        raise ValueError(
            gettext("the transform {name} needs arguments, as in {name}:{example}", name=name, example=kind.example)
        )
    try:
        return kind.make(arguments)
    except ValueError as error:
        raise ValueError(gettext("the transform {name!r}: {error}", name=words, error=error)) from None


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
        raise ValueError("expected a name, found blanks")
    from nameparser import HumanName  # noqa: PLC0415

    name = HumanName(" ".join(words))
    # "van der Berg" is one last name; what a reader of names would put into another order stays in its own.
    given, family = f"{name.title} {name.first} {name.middle}".split(), f"{name.last} {name.suffix}".split()
    if given + family != words or not family:
        given, family = words[:-1], words[-1:]
    return [" ".join(given) or None, " ".join(family)]


def _join_name(value: Value) -> str:
    if not (isinstance(value, list | tuple) and len(value) == 2):
        raise ValueError("expected a first and a last name")
    words = [word for part in value if part not in (None, "") for word in _text(part).split()]
    if not words:
        raise ValueError("expected a first or a last name, found blanks")
    return " ".join(words)


# --- phone numbers and countries -----------------------------------------------------------------------


def _phone(region: str) -> Transform:
    import phonenumbers  # noqa: PLC0415

    region = region.upper()
    if region and region not in phonenumbers.SUPPORTED_REGIONS:
        raise ValueError(f"{region!r} is no region; two letters such as DE are")

    def normal(value: Value) -> str:
        try:
            number = phonenumbers.parse(_text(value), region or None)
        except phonenumbers.NumberParseException as error:
            raise ValueError(f"{value!r} is no phone number: {error}") from None
        if number.extension:
            raise ValueError(f"{value!r} has an extension, which an E.164 number cannot carry")
        if not phonenumbers.is_possible_number(number):
            raise ValueError(f"{value!r} is no phone number: too long or too short")
        return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)

    return Transform(normal, normal)


def _country(form: str) -> Transform:
    if form not in ("alpha-3", "name"):
        raise ValueError("alpha-3 or name is needed")

    def forward(value: Value) -> str:
        country = pycountry.countries.get(alpha_2=_text(value).upper())
        if country is None:
            raise ValueError(f"{value!r} is no country; two letters such as DE are (ISO 3166-1 alpha-2)")
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
            raise ValueError(f"{value!r} is no country; {such} (ISO 3166-1) is")
        return str(country.alpha_2)

    return Transform(forward, inverse)


# --- money and numbers -------------------------------------------------------------------------------


def _exponent(currency: Value) -> int:
    from iso4217 import Currency  # noqa: PLC0415

    try:
        exponent = Currency(_text(currency).upper()).exponent
    except ValueError:
        raise ValueError(f"{currency!r} is no currency; three letters such as EUR are (ISO 4217)") from None
    if exponent is None:
        raise ValueError(f"{currency} has no minor units")
    return int(exponent)


def _minor_units(arguments: str, write: Callable[[Decimal], Value] = lambda amount: f"{amount:f}") -> Transform:
    word, equals, column = arguments.partition("=")
    if equals:
        if word != "column" or not column:
            raise ValueError("a currency such as EUR, or column= and the column that holds it, is needed")
        return Transform(_unbound, _unbound, column, lambda currency: _minor_units(_text(currency), write))
    exponent = _exponent(arguments) if arguments else 2

    def forward(minor: Value) -> Value:
        if isinstance(minor, bool) or not isinstance(minor, int):
            raise ValueError("expected a whole number of minor units")
        if abs(minor) >= 2**63:
            raise ValueError(f"too large: {minor}")
        return write(Decimal(minor).scaleb(-exponent))

    def inverse(value: Value) -> int:
        # More digits than a 64-bit column holds would be rounded in silence; infinity and NaN are no amounts either.
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
    if amount.adjusted() > _MOST_DIGITS or amount.as_tuple().exponent < -_MOST_DIGITS:  # type: ignore[operator]
        raise ValueError(f"more than {_MOST_DIGITS} digits: {value!r}")
    return int(amount) if amount == amount.to_integral_value() else amount


_MOST_DIGITS = 27


def _digits_to_number(value: Value) -> int:
    text = _text(value)
    if not (text.isascii() and text.removeprefix("-").isdecimal()) or str(int(text[:20])) != text:
        raise ValueError(f"{value!r} is no whole number as numbers are written, of at most 20 digits")
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
        raise ValueError(f"{name!r} is no time zone; names such as Europe/Berlin are") from None

    def forward(value: Value) -> str:
        try:
            return _instant(value).astimezone(zone).isoformat()
        except OverflowError:
            raise ValueError(f"{value} is out of range in {name}") from None

    def inverse(value: Value) -> datetime:
        when = datetime.fromisoformat(_text(value))
        try:  # one that names no offset is meant as the clocks of the zone show it
            return (when.replace(tzinfo=zone) if when.tzinfo is None else when).astimezone(UTC)
        except OverflowError:
            raise ValueError(f"{value} is out of range") from None

    return Transform(forward, inverse)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _unix(unit: str) -> Transform:
    units = {"": timedelta(seconds=1), "seconds": timedelta(seconds=1), "milliseconds": timedelta(milliseconds=1)}
    if unit not in units:
        raise ValueError("seconds or milliseconds is needed")
    step = units[unit]

    def inverse(value: Value) -> datetime:
        amount = _decimal(value, "a number of seconds since 1970")
        try:
            return _EPOCH + timedelta(microseconds=int(amount * (step // timedelta(microseconds=1))))
        except OverflowError:
            raise ValueError(f"{value!r} is out of range") from None

    return Transform(lambda value: (_instant(value) - _EPOCH) // step, inverse)


# --- words --------------------------------------------------------------------------------------------


def _map(arguments: str) -> Transform:
    pairs = []
    for item in arguments.split(","):
        here, equals, there = item.partition("=")
        if not (equals and here and there):
            raise ValueError(f"{item!r} is no pair such as open=Open (commas and = in a value are %2C and %3D)")
        pairs.append((unquote(here.strip()), unquote(there.strip())))
    out, back = dict(pairs), {there: here for here, there in pairs}
    for side, known in ((0, out), (1, back)):
        if len(known) < len(pairs):
            values = [pair[side] for pair in pairs]
            twice = next(value for value in values if values.count(value) > 1)
            raise ValueError(f"{twice!r} stands {'here' if side == 0 else 'there'} for two values: which is it?")

    def look_up(known: Mapping[str, str]) -> Callable[[Value], str]:
        def find_in(value: Value) -> str:
            if isinstance(value, list | dict | bool) or str(value) not in known:
                raise ValueError(f"{value!r} is none of {', '.join(known)}")
            return known[str(value)]

        return find_in

    return Transform(look_up(out), look_up(back))


def _bool(arguments: str) -> Transform:
    yes, slash, no = arguments.partition("/")
    if not (slash and yes and no) or yes.lower() == no.lower():
        raise ValueError("two different words such as Y/N are needed")

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
        raise ValueError("a number of characters is needed")
    most = int(arguments)
    # What they hold of a longer text is an echo of ours, and known as such: see Mapper.inward.
    return Transform(lambda value: _text(value)[:most], _text)


TRANSFORMS: dict[str, Kind] = {
    "upper": _simple(
        lambda v: _text(v).upper(), lambda v: _text(v).lower(), gettext_noop("lower case here, UPPER CASE there")
    ),
    "lower": _simple(lambda v: _text(v).lower(), lambda v: _text(v).lower(), gettext_noop("lower case on both sides")),
    "strip": _simple(lambda v: _text(v).strip(), lambda v: _text(v).strip(), gettext_noop("without blanks around it")),
    "truncate": Kind(_truncate, gettext_noop("cut to so many characters there, whole here"), "40"),
    "minor_units": Kind(_minor_units, gettext_noop("1250 cents here, 12.50 there"), "[EUR or column=currency]"),
    "amount": Kind(
        lambda arguments: _minor_units(arguments, float),
        gettext_noop("1250 cents here, the number 12.5 there"),
        "[EUR or column=currency]",
    ),
    "date": _simple(_to_iso, _from_iso, gettext_noop("a date here, 2026-11-30 there")),
    "datetime": Kind(_datetime, gettext_noop("a time here, there as the clocks of a zone show it"), "Europe/Berlin"),
    "unix": Kind(_unix, gettext_noop("a time or date here, seconds since 1970 there"), "[seconds or milliseconds]"),
    "yes_no": Kind(lambda _: _bool("yes/no"), gettext_noop("true/false here, yes/no there")),
    "bool": Kind(_bool, gettext_noop("true/false here, two words there"), "Y/N"),
    "not": _simple(_not, _not, gettext_noop("the opposite of true/false")),
    "map": Kind(_map, gettext_noop("one word here, another there"), "open=Open,paid=Paid"),
    "text": _simple(str, _text, gettext_noop("anything as text")),
    "number_text": _simple(_number_to_text, _text_to_number, gettext_noop("a number here, text there")),
    "text_number": _simple(
        _digits_to_number, _number_to_digits, gettext_noop("the digits of a whole number here, a number there")
    ),
    "phone": Kind(_phone, gettext_noop("+4930123456 there (E.164); the region is that of numbers without +"), "[DE]"),
    "country": Kind(_country, gettext_noop("DE here, DEU or Germany there"), "alpha-3 or name"),
    "split_name": Kind(
        lambda _: Transform(_split_name, _join_name, there=2), gettext_noop("a full name here, first+last name there")
    ),
    "join_name": Kind(
        lambda _: Transform(_join_name, _split_name, here=2), gettext_noop("first+last name here, a full name there")
    ),
}
