"""Class attributes as options: checked where a class is made, and the same names in a file of systems.

What a class of subscribers or systems lets its author choose are its `ClassVar`s with a type. Their
types are the rules, their values the defaults, for code and files alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

import jmespath
from jmespath.exceptions import JMESPathError
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, create_model

#: What every subscriber lets its author choose; `field_to_data` is checked by itself.
COMMON_OPTIONS = ("resource", "match_on", "on_delete", "on_gone", "archive_data", "poll_seconds")


@cache
def _compiled(expression: str) -> Any:
    return jmespath.compile(expression)


def _expression(value: str) -> str:
    if value:
        try:
            _compiled(value)
        except JMESPathError as error:
            raise ValueError(f"is no JMESPath expression: {str(error).splitlines()[0]}") from None
    return value


#: Where something stands in JSON: a name, a dotted path, or any JMESPath expression; `@` is all of it.
JmesPath = Annotated[str, AfterValidator(_expression)]


def search_json(expression: str, data: Any) -> Any:
    """What stands there; None for nothing, for data the expression cannot be worked out on, and without one."""
    try:
        return _compiled(expression).search(data) if expression else None
    except JMESPathError:  # a function of its was given a type it does not take
        return None


def options_of(cls: type, names: tuple[str, ...]) -> type[BaseModel]:
    """These class attributes as a model that knows no others; one without a value is required."""
    hints = get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {name: (get_args(hints[name])[0], getattr(cls, name, ...)) for name in names}
    return create_model(cls.__name__, __config__=ConfigDict(extra="forbid"), **fields)


def own_options(cls: type) -> tuple[str, ...]:
    """The options that this very class brings: its annotated class attributes."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple(name for name in cls.__annotations__ if get_origin(hints[name]) is ClassVar)


def check_options(cls: type, base: type, names: tuple[str, ...]) -> None:
    """Refuse a class whose attributes `base` would not take.

    Raises:
      ValueError: naming class and attribute; said at import, not at the first record.
    """
    given = {name: cls.__dict__[name] for name in names if name in cls.__dict__}
    try:
        options_of(base, names).model_validate(given)
    except ValidationError as error:
        wrong = [item for item in error.errors(include_url=False, include_input=False) if item["type"] != "missing"]
        if wrong:
            raise ValueError("\n".join(f"{cls.__name__}.{line}" for line in error_lines(wrong))) from None


def error_lines(errors: Iterable[Any]) -> list[str]:
    """`where: what is wrong`, one line each, without the values."""
    said = {"missing": "is missing"}
    return [
        f"{'.'.join(map(str, e['loc']))}: {said.get(e['type']) or e['msg'].removeprefix('Value error, ')}"
        for e in errors
    ]


__all__ = ["COMMON_OPTIONS", "JmesPath", "check_options", "error_lines", "options_of", "own_options", "search_json"]
