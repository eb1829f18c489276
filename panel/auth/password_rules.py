"""Refuse passwords that are too short, too long, or that a list of common passwords leads to."""

from __future__ import annotations

import re
from typing import Any

from flask_security.password_util import PasswordUtil

from i18n import gettext, gettext_noop
from panel.auth.settings import PASSWORD_LENGTH

#: Characters of the longest password: a hash of a much longer one would be refused, and costs time.
LONGEST_PASSWORD = 1000

#: Characters that must remain without common words, years, sequences and repetitions.
_OWN_CHARACTERS = 6

TOO_LONG = gettext_noop("The password is too long: at most {length} characters.")
_TOO_SHORT = gettext_noop("The password is too short: at least {length} characters.")
_TOO_COMMON = gettext_noop(
    "The password is too easy to guess: apart from common words, years and sequences, at least {length} characters."
)

_COMMON = (
    "password", "passwort", "passwd", "kennwort", "parola", "admin", "administrator", "root", "user", "login",
    "welcome", "willkommen", "secret", "geheim", "letmein", "iloveyou", "master", "monkey", "dragon",
    "football", "baseball", "superman", "batman", "sunshine", "princess", "shadow", "trustno", "changeme",
    "default", "sample", "test", "hallo", "hello", "access", "qwerty", "qwertz", "azerty", "asdfgh", "yxcvbn",
    "zxcvbn", "company", "firma", "office", "server", "database", "summer", "winter", "spring", "autumn",
    "sommer", "herbst", "fruehling", "january", "february", "march", "april", "june", "july", "august",
    "september", "october", "november", "december", "januar", "februar", "maerz", "juni", "juli", "oktober",
    "dezember", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "montag",
    "dienstag", "mittwoch", "donnerstag", "freitag", "samstag", "sonntag", "syncflow", "stripe", "salesforce",
    "correcthorse",
)  # fmt: skip
_LEET = str.maketrans("0134578@$!", "oleastbasi")
_SEQUENCES = (
    "abcdefghijklmnopqrstuvwxyz",
    "01234567890",
    "qwertyuiop",
    "qwertzuiop",
    "asdfghjkl",
    "yxcvbnm",
    "zxcvbnm",
)
_YEAR = re.compile(r"(19|20)\d\d")


class Rules(PasswordUtil):
    """The rules for new passwords."""

    def validate(self, password: str, is_register: bool, **kwargs: Any) -> tuple[list[str] | None, str]:
        """Return what is wrong with a new password, and its normal form."""
        if len(password) > LONGEST_PASSWORD:
            return [gettext(TOO_LONG, length=LONGEST_PASSWORD)], ""
        normal = self.normalize(password)
        if len(normal) < PASSWORD_LENGTH:
            return [gettext(_TOO_SHORT, length=PASSWORD_LENGTH)], normal
        user = kwargs.get("user")
        email = str(kwargs.get("email") or (user.email if user is not None else ""))
        if own_characters(normal, email) < _OWN_CHARACTERS:
            return [gettext(_TOO_COMMON, length=_OWN_CHARACTERS)], normal
        return None, normal


def own_characters(password: str, email: str = "") -> int:
    """Return how many different letters and digits remain without common words, years, sequences and the email."""
    rest = _YEAR.sub(" ", password.casefold())
    rest = _without_sequences(rest)
    own_names = [name for name in re.split(r"[^a-z0-9]+", email.casefold()) if len(name) > 2]
    for word in sorted([*_COMMON, *own_names], key=len, reverse=True):
        rest = rest.replace(word, " ")
        # As it is written with digits and signs in the place of letters, such as p4ssw0rd.
        plain = rest.translate(_LEET)
        while (place := plain.find(word)) >= 0:
            rest = rest[:place] + " " * len(word) + rest[place + len(word) :]
            plain = rest.translate(_LEET)
    return len({character for character in rest if character.isalnum()})


def _without_sequences(text: str) -> str:
    """Return the text without runs of at least three characters as they follow one another, in either direction."""
    for line in (*_SEQUENCES, *(sequence[::-1] for sequence in _SEQUENCES)):
        for size in range(len(line), 2, -1):
            for start in range(len(line) - size + 1):
                text = text.replace(line[start : start + size], " ")
    return text
