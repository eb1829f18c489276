"""Match forms: the normal forms in which values of `match_on` columns are compared, and the keys that find them."""

from __future__ import annotations

import itertools
import string
import unicodedata
from collections.abc import Callable
from typing import Any

from models.catalogues import without_separators

_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)

#: Names with more words are searched as they are, and in lower, upper and title case as a whole.
_MOST_WORDS = 4


def match_form(kind: str | None, value: Any, region: str | None = None) -> Any:
    """Return the normal form of a value of a column of this kind; None is a column that is compared as it is.

    email: trimmed, case folded, an international domain in its letters. name: Unicode NFC, case folded, one blank
    between words. phone: E.164, where a number without a country code belongs to `region`, two letters; a text that is
    no number is compared by its characters.
    """
    if kind is None or value is None:
        return value
    text = _text(value)
    if kind == "phone":
        return _e164(text, region) or without_separators(kind, text)
    if kind == "email":
        text = _with_domain(text, _in_letters)
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def match_keys(kind: str, value: Any, region: str | None = None) -> set[str]:
    """Return the keys (`models.match_keys`) of all ways to write a value.

    A database may fold the case of ASCII letters only, so that letters beyond them are searched in either case.
    """
    text = _text(value)
    if kind == "phone":
        return _phone_keys(text, region)
    written = {way for spelled in _spellings(kind, text) for way in _cased(spelled)}
    forms = {unicodedata.normalize(form, cased) for form in ("NFC", "NFD") for cased in written}
    return {without_separators(kind, folded) for one in forms for folded in (one.lower(), one.translate(_ASCII_LOWER))}


def _text(value: Any) -> str:
    return " ".join(str(one) for one in value if one) if isinstance(value, list | tuple) else str(value)


def _spellings(kind: str, text: str) -> set[str]:
    """Return other spellings that have the same form: an email's domain in letters or in ASCII, ss written as ß."""
    spelled = {text}
    if kind == "email":
        spelled |= {_with_domain(text, _in_letters), _with_domain(text, _in_ascii)}
    parts = text.casefold().split("ss")
    if 1 < len(parts) <= _MOST_WORDS:
        for pairs in itertools.product(("ss", "ß"), repeat=len(parts) - 1):
            spelled.add("".join(itertools.chain(*zip(parts, (*pairs, ""), strict=True))))
    return spelled


def _with_domain(text: str, write: Callable[[str], str]) -> str:
    name, at, domain = text.strip().rpartition("@")
    try:
        return f"{name}{at}{write(domain)}"
    except UnicodeError:  # not the name of a domain
        return text


def _in_letters(domain: str) -> str:
    lower = domain.lower()
    return lower.encode("ascii").decode("idna") if "xn--" in lower else domain


def _in_ascii(domain: str) -> str:
    return domain if domain.isascii() else domain.encode("idna").decode("ascii")


def _cased(text: str) -> set[str]:
    whole = {text, text.lower(), text.upper(), text.title(), text.casefold()}
    words = text.split()
    if text.isascii() or len(words) > _MOST_WORDS:
        return whole
    each = [{word.lower(), word.upper(), word.title()} for word in words]
    return whole | {" ".join(chosen) for chosen in itertools.product(*each)}


def _e164(text: str, region: str | None) -> str | None:
    import phonenumbers  # noqa: PLC0415

    text = text.strip()
    if text.startswith("00"):
        text = f"+{text[2:]}"
    try:
        number = phonenumbers.parse(text, region.upper() if region else None)
    except phonenumbers.NumberParseException:
        return None
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def _phone_keys(text: str, region: str | None) -> set[str]:
    import phonenumbers  # noqa: PLC0415

    own = without_separators("phone", text).lower()
    normal = _e164(text, region)
    if normal is None:
        return {own}
    number = phonenumbers.parse(normal)
    code, rest = str(number.country_code), phonenumbers.national_significant_number(number)
    national = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
    digits = "".join(char for char in national if char.isdigit())
    international = {f"{prefix}{code}{zero}{rest}" for prefix in ("+", "00", "", "tel:+") for zero in ("", "0")}
    return {own, normal, rest, digits, *international}
