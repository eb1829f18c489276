"""Declared rules of what a system takes: said before the call, all at once, in words per field.

    rules = {"email": [required(), email()], "name": [length(max=255)], "address.country": [choices("DE", "AT")]}

Paths are dotted, of the nested data that is sent. A rule is asked only about a value that is there;
`required` is what says that there must be one. For child rows a path leads through the list, and the
rule is asked about each row: `lines.quantity`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol

from email_validator import EmailNotValidError, validate_email

from subscribers.errors import Reject
from subscribers.mapping.values import describe_fields, is_empty


class Rule(Protocol):
    """Says what is wrong with a value: words that follow the field's name, or None."""

    def __call__(self, value: Any) -> str | None: ...


Rules = Mapping[str, Sequence[Rule]]


@dataclass(frozen=True)
class required:  # noqa: N801 - read as a word in a table of rules
    """There must be a value."""

    def __call__(self, value: Any) -> str | None:
        return "is required" if is_empty(value) else None


@dataclass(frozen=True)
class length:  # noqa: N801
    """A text of so many characters, or a list of so many rows."""

    min: int = 0
    max: int | None = None

    def __call__(self, value: Any) -> str | None:
        if not isinstance(value, str | list):
            return f"is a {type(value).__name__}, not a text"
        what = "characters" if isinstance(value, str) else "rows"
        if self.max is not None and len(value) > self.max:
            return f"longer than {self.max} {what}"
        return f"shorter than {self.min} {what}" if len(value) < self.min else None


@dataclass(frozen=True)
class email:  # noqa: N801
    """An address as mail systems take it; nobody is asked whether the mailbox exists."""

    def __call__(self, value: Any) -> str | None:
        try:
            validate_email(str(value), check_deliverability=False)
        except EmailNotValidError as error:
            return f"is no email address: {error}"
        return None


class choices:  # noqa: N801
    """One of these values."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __call__(self, value: Any) -> str | None:
        return None if value in self.values else f"is {value!r}, not one of {', '.join(map(str, self.values))}"


@dataclass(frozen=True)
class between:  # noqa: N801
    """A number, or a text that is one, from `min` to `max`, both included; None for no limit."""

    min: float | Decimal | None = None
    max: float | Decimal | None = None

    def __call__(self, value: Any) -> str | None:
        try:
            number = Decimal(str(value))
        except InvalidOperation:
            number = Decimal("NaN")
        if isinstance(value, bool) or not number.is_finite():
            return f"is {value!r}, not a number"
        if self.min is not None and number < Decimal(str(self.min)):
            return f"is {value}, less than {self.min}"
        if self.max is not None and number > Decimal(str(self.max)):
            return f"is {value}, more than {self.max}"
        return None


def check(rules: Rules, data: Mapping[str, Any]) -> None:
    """Ask all rules about nested data.

    Raises:
      Reject: with the words per field; of several complaints about one field the first.
    """
    wrong: dict[str, str] = {}
    for path, asked in rules.items():
        for place, value in _values(data, path.split(".")):
            for rule in asked:
                if is_empty(value) and not isinstance(rule, required):
                    continue
                if (complaint := rule(value)) is not None:
                    wrong.setdefault(place, complaint)
    if wrong:
        raise Reject(describe_fields(wrong), fields=wrong)


def _values(data: Any, names: Sequence[str], place: str = "") -> Iterator[tuple[str, Any]]:
    """(where, value) for each value that a path leads to; a value that is not there is None."""
    if not names:
        yield place, data
    elif isinstance(data, list):
        for number, row in enumerate(data):
            yield from _values(row, names, f"{place}[{number}]")
    else:
        inner = data.get(names[0]) if isinstance(data, Mapping) else None
        yield from _values(inner, names[1:], f"{place}.{names[0]}" if place else names[0])
