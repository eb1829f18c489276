"""Where a value stands in a system's nested data.

| form                    | what it is                                                                  |
|-------------------------|-----------------------------------------------------------------------------|
| `email`                 | a field                                                                     |
| `address.city`          | a field of an object                                                        |
| `FirstName+LastName`    | several fields that are one value, a list, with us; see `transforms`        |
| `emails[?primary] \\| [0]` | a JMESPath expression (https://jmespath.org/specification.html); reads only |
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError

logger = logging.getLogger(__name__)

_DOTTED = r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*)*"
_PATH = re.compile(rf"{_DOTTED}(\+{_DOTTED})*")


class _Missing:
    """Stands for "the system did not mention this field", which is not the same as empty."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()


@lru_cache(maxsize=4096)
def is_plain(path: str) -> bool:
    """Whether there can be written too: it is no expression."""
    return _PATH.fullmatch(path) is not None


def parts(path: str) -> list[str]:
    """The dotted paths of a plain one: more than one where several fields are one value."""
    return path.split("+")


def tops(paths: Iterable[str]) -> list[str]:
    """The top-level fields of these plain paths, each once."""
    return list(dict.fromkeys(top for path in paths for top in tops_of(path)))


@lru_cache(maxsize=4096)
def tops_of(path: str) -> tuple[str, ...]:
    """The top-level fields of one plain path: more than one where several fields are one value."""
    return tuple(dict.fromkeys(part.partition(".")[0] for part in parts(path)))


def problem(path: str) -> str | None:
    """What is wrong with a path, in words."""
    if is_plain(path):
        return None
    try:
        _expression(path)
    except JMESPathError as error:
        why = " ".join(str(error).split("\n", 1)[0].split())
        return f"{path!r} is no field name, no dotted path such as address.city, and no JMESPath expression: {why}"
    return None


def pick(data: Mapping[str, Any], path: str) -> Any:
    """The value at a path of nested data, or MISSING. Below an empty parent everything is empty.

    Several fields are a list; None if all are empty, MISSING if the system did not mention one of them.
    """
    if not is_plain(path):
        return _search(data, path)
    if "+" not in path:
        return _at(data, path)
    found = [_at(data, part) for part in parts(path)]
    if any(value is MISSING for value in found):
        return MISSING
    return found if any(value not in (None, "") for value in found) else None


def _at(data: Mapping[str, Any], path: str) -> Any:
    value: Any = data
    for part in path.split("."):
        if value is None:
            return None
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


def nest(flat: Mapping[str, Any], onto: dict[str, Any] | None = None) -> dict[str, Any]:
    """Flat entries as nested data: {"address.city": "Rome"} -> {"address": {"city": "Rome"}}; `onto` is added to.

    What an expression found is left out: nobody can say where it belongs.
    """
    nested: dict[str, Any] = {} if onto is None else onto
    for path, value in flat.items():
        places = _places(path)
        if len(places) == 1:
            _put(nested, *places[0], value)
        else:  # several fields; an expression has no places
            for (parents, last), one in zip(places, value or (None,) * len(places), strict=bool(places)):
                _put(nested, parents, last, one)
    return nested


def _put(nested: dict[str, Any], parents: tuple[str, ...], last: str, value: Any) -> None:
    place = nested
    for part in parents:
        inner = place.get(part)
        if not isinstance(inner, dict):
            inner = place[part] = {}
        place = inner
    place[last] = value


@lru_cache(maxsize=4096)
def _places(path: str) -> tuple[tuple[tuple[str, ...], str], ...]:
    """Where the values of a path are written: (objects it lies in, field) of each; nowhere for an expression."""
    if not is_plain(path):
        return ()
    split = (part.split(".") for part in parts(path))
    return tuple((tuple(parents), last) for *parents, last in split)


def _search(data: Mapping[str, Any], path: str) -> Any:
    expression = _expression(path)
    if not any(name in data for name in _roots(expression.parsed)):
        return MISSING
    try:
        return expression.search(data)
    except JMESPathError as error:
        logger.warning("%r cannot be read: %s", path, error)
        return MISSING


@lru_cache(maxsize=512)
def _expression(path: str) -> Any:
    return jmespath.compile(path)


def _roots(node: Mapping[str, Any]) -> set[str]:
    """The top-level fields an expression begins with: where none is there, the system said nothing of it."""
    if node["type"] == "field":
        return {str(node["value"])}
    inner = node.get("children", [])
    if node["type"] in _MANY:
        return set().union(*map(_roots, inner))
    return _roots(inner[0]) if inner else set()


#: Nodes of an expression that begin at the same place with each of their children; others lead from the first on.
_MANY = {
    *("function_expression", "multi_select_list", "multi_select_dict", "key_val_pair"),
    *("or_expression", "and_expression", "comparator"),
}
