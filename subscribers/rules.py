"""Declared rules of what a system accepts, checked before the call.

    rules = {"email": [required(), email()], "name": [length(max=255)], "address.country": [choices("DE", "AT")]}

Paths are dotted paths of the sent data. Only `required` applies to empty values. A path through a
list of child rows, such as `lines.quantity`, applies to each row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, ClassVar, Protocol

from email_validator import EmailNotValidError, validate_email

from subscribers.mapping.values import FieldErrors, is_empty


class Rule(Protocol):
    """Returns what is wrong with a value, to follow the name of its field; None for a valid value.

    A rule may have a `code`, which names the cause as that of a `SyncError` does.
    """

    def __call__(self, value: Any) -> str | None: ...


Rules = Mapping[str, Sequence[Rule]]


@dataclass(frozen=True)
class required:  # noqa: N801 - reads as a word in a table of rules
    """A value that is not empty."""

    code: ClassVar[str] = "required_field_missing"

    def __call__(self, value: Any) -> str | None:
        return "is required" if is_empty(value) else None


def required_paths(rules: Rules) -> set[str]:
    """Return the paths that may not be empty."""
    return {path for path, own in rules.items() if any(isinstance(rule, required) for rule in own)}


@dataclass(frozen=True)
class length:  # noqa: N801
    """A text of `min` to `max` characters, or a list of `min` to `max` rows."""

    code: ClassVar[str] = "too_long"

    min: int = 0
    max: int | None = None

    def __call__(self, value: Any) -> str | None:
        if not isinstance(value, str | list):
            return f"is of type {type(value).__name__}, not a text"
        what = "characters" if isinstance(value, str) else "rows"
        if self.max is not None and len(value) > self.max:
            return f"is longer than {self.max} {what}"
        return f"is shorter than {self.min} {what}" if len(value) < self.min else None


@dataclass(frozen=True)
class email:  # noqa: N801
    """An email address with valid syntax, whether its mailbox exists or not."""

    code: ClassVar[str] = "invalid_email"

    def __call__(self, value: Any) -> str | None:
        try:
            validate_email(str(value), check_deliverability=False)
        except EmailNotValidError as error:
            return f"is not an email address: {error}"
        return None


class choices:  # noqa: N801
    """One of the given values."""

    code: ClassVar[str] = "not_in_list"

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __call__(self, value: Any) -> str | None:
        return None if value in self.values else f"is {value!r}, not one of {', '.join(map(str, self.values))}"


@dataclass(frozen=True)
class between:  # noqa: N801
    """A number, or its text, from `min` to `max` inclusive; None for no limit."""

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
    """Check nested data by all rules.

    Raises:
      Reject: a value breaks a rule; `fields` has the first message of each field.
    """
    wrong = FieldErrors()
    for path, path_rules in rules.items():
        for place, value in _values(data, path.split(".")):
            for rule in path_rules:
                if is_empty(value) and not isinstance(rule, required):
                    continue
                if (message := rule(value)) is not None:
                    wrong.add(place, message, getattr(rule, "code", "invalid_value"))
    wrong.raise_if_any()


def _values(data: Any, names: Sequence[str], place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (place, value) for each value at a path; a missing value is None."""
    if not names:
        yield place, data
    elif isinstance(data, list):
        for number, row in enumerate(data):
            yield from _values(row, names, f"{place}[{number}]")
    else:
        inner = data.get(names[0]) if isinstance(data, Mapping) else None
        yield from _values(inner, names[1:], f"{place}.{names[0]}" if place else names[0])
