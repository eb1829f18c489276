"""Paths: the place of a value in the nested data of a system.

| form                    | meaning                                                                     |
|-------------------------|-----------------------------------------------------------------------------|
| `email`                 | a field                                                                     |
| `address.city`          | a field of an object                                                        |
| `FirstName+LastName`    | several fields that are mapped to one column; see `transforms`              |
| `emails[?primary] \\| [0]` | a JMESPath expression (https://jmespath.org/specification.html); read-only  |
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
    """The value of a field that is not in the data, which differs from an empty one."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()


@lru_cache(maxsize=4096)
def is_plain(path: str) -> bool:
    """Return whether a path can be written, and so is not an expression."""
    return _PATH.fullmatch(path) is not None


def parts(path: str) -> list[str]:
    """Return the dotted paths in a plain path: several if they are joined by a plus."""
    return path.split("+")


def tops(paths: Iterable[str]) -> list[str]:
    """Return the top-level fields of these plain paths, each once."""
    return list(dict.fromkeys(top for path in paths for top in tops_of(path)))


@lru_cache(maxsize=4096)
def tops_of(path: str) -> tuple[str, ...]:
    """Return the top-level fields of one plain path: several if paths are joined by a plus."""
    return tuple(dict.fromkeys(part.partition(".")[0] for part in parts(path)))


def problem(path: str) -> str | None:
    """Return what is wrong with a path; None if it is valid."""
    if is_plain(path):
        return None
    try:
        _expression(path)
    except JMESPathError as error:
        why = " ".join(str(error).split("\n", 1)[0].split())
        forms = "a field name, a dotted path such as address.city, or a JMESPath expression"
        return f"{path!r} must be {forms}: {why}"
    return None


def pick(data: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path of nested data, or MISSING. Below an empty parent every value is empty.

    Several fields are a list: None if all are empty, MISSING if one of them is missing.
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


def fill(data: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return a copy of nested data in which a field that is missing at this path is None."""
    if not is_plain(path):
        return {**dict.fromkeys(sorted(_roots(_expression(path).parsed))), **data}
    filled = dict(data)
    for part in parts(path):
        top, _, rest = part.partition(".")
        inner = filled.get(top)
        filled[top] = fill(inner, rest) if rest and isinstance(inner, Mapping) else inner
    return filled


def nest(flat: Mapping[str, Any], onto: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return flat entries as nested data: {"address.city": "Rome"} -> {"address": {"city": "Rome"}}.

    The entries are added to `onto` if it is given. Values of expressions have no place, and are left out.
    """
    nested: dict[str, Any] = {} if onto is None else onto
    for path, value in flat.items():
        places = _places(path)
        if len(places) == 1:
            _put(nested, *places[0], value)
        else:  # several fields, or an expression, which has no place
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
    """Return the places to write the values of a path, as (parent objects, field); none for an expression."""
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
        logger.warning("cannot evaluate %r: %s", path, error)
        return MISSING


@lru_cache(maxsize=512)
def _expression(path: str) -> Any:
    return jmespath.compile(path)


def _roots(node: Mapping[str, Any]) -> set[str]:
    """Return the top-level fields that an expression reads; if none is in the data, its value is missing."""
    if node["type"] == "field":
        return {str(node["value"])}
    inner = node.get("children", [])
    if node["type"] in _MANY:
        return set().union(*map(_roots, inner))
    return _roots(inner[0]) if inner else set()


#: Nodes that evaluate each of their children against the same data; others continue from their first child.
_MANY = {
    *("function_expression", "multi_select_list", "multi_select_dict", "key_val_pair"),
    *("or_expression", "and_expression", "comparator"),
}
