"""Class attributes as options: validated when a class is created, and available in the file of systems.

The options of a subscriber or system class are its typed `ClassVar`s. Their types are validated and
their values are the defaults, both in code and in the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

import jmespath
from jmespath.exceptions import JMESPathError
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, create_model

#: The options of every subscriber; `field_to_data` has a validation of its own.
COMMON_OPTIONS = (
    "resource",
    "match_on",
    "on_delete",
    "on_gone",
    "archive_data",
    "poll_seconds",
    "look_first",
    "look_limit",
)


@cache
def _compiled(expression: str) -> Any:
    return jmespath.compile(expression)


def _expression(value: str) -> str:
    if value:
        try:
            _compiled(value)
        except JMESPathError as error:
            raise ValueError(f"is not a valid JMESPath expression: {str(error).splitlines()[0]}") from None
    return value


#: The place of a value in JSON: a name, a dotted path, or any JMESPath expression; `@` is the whole document.
JmesPath = Annotated[str, AfterValidator(_expression)]


def search_json(expression: str, data: Any) -> Any:
    """Return the value at a JMESPath expression; None if there is none or it does not apply to the data."""
    try:
        return _compiled(expression).search(data) if expression else None
    except JMESPathError:  # a function in it does not accept a value of this type
        return None


def options_of(cls: type, names: tuple[str, ...]) -> type[BaseModel]:
    """Return a model of these class attributes, which forbids others; one without a value is required."""
    hints = get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {name: (get_args(hints[name])[0], getattr(cls, name, ...)) for name in names}
    return create_model(cls.__name__, __config__=ConfigDict(extra="forbid"), **fields)


def own_options(cls: type) -> tuple[str, ...]:
    """Return the options that this class itself declares: its annotated class attributes."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple(name for name in cls.__annotations__ if get_origin(hints[name]) is ClassVar)


def check_options(cls: type, base: type, names: tuple[str, ...]) -> None:
    """Validate the attributes of a class against the options of `base`, at import.

    Raises:
      ValueError: an attribute is wrong; the message names class and attribute.
    """
    given = {name: cls.__dict__[name] for name in names if name in cls.__dict__}
    try:
        options_of(base, names).model_validate(given)
    except ValidationError as error:
        wrong = [item for item in error.errors(include_url=False, include_input=False) if item["type"] != "missing"]
        if wrong:
            raise ValueError("\n".join(f"{cls.__name__}.{line}" for line in error_lines(wrong))) from None


def error_lines(errors: Iterable[Any]) -> list[str]:
    """Return `place: problem` for each validation error, without the values."""
    messages = {"missing": "is missing"}
    return [
        f"{'.'.join(map(str, e['loc']))}: {messages.get(e['type']) or e['msg'].removeprefix('Value error, ')}"
        for e in errors
    ]


__all__ = ["COMMON_OPTIONS", "JmesPath", "check_options", "error_lines", "options_of", "own_options", "search_json"]
