"""Convert between the mapping editor's form and the conductor's rows.

The fields of the third row are called `2.column`, `2.path` and so on; those of its first child row
`2_0.column`. A row of child rows carries `2.rows`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from models.catalogues import Catalogue

#: A row as typed: all text, except `required` and `rows`, the child rows or None.
Row = dict[str, Any]

_TEXTS = ("column", "path", "transform", "link", "direction", "conflict", "default")
_NAME = re.compile(r"(\d{1,4})(?:_(\d{1,4}))?\.(\w+)")

EMPTY: Row = dict.fromkeys(_TEXTS, "") | {"direction": "both", "conflict": "newest", "required": False, "rows": None}


def typed(form: Mapping[str, str], catalogue: Catalogue) -> list[Row]:
    """Return the rows of the form. A row whose column is a list of child rows has `rows`."""
    found: dict[tuple[int, int], Row] = {}
    for name in form:
        if (match := _NAME.fullmatch(name)) and match[3] in (*_TEXTS, "required"):
            place = int(match[1]), -1 if match[2] is None else int(match[2])
            row = found.setdefault(place, dict(EMPTY))
            text = form[name].strip()
            row[match[3]] = text == "yes" if match[3] == "required" else text
    children = {child.name for child in catalogue.children}
    rows: list[Row] = []
    for (_number, child), row in sorted(found.items()):
        if child < 0:
            rows.append({**row, "rows": [] if row["column"] in children else None})
        elif rows and rows[-1]["rows"] is not None:
            rows[-1]["rows"].append(row)
    return rows


def _is_place(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 6


def changed(rows: list[Row], pressed: str) -> list[Row]:
    """Apply a button of the table to the rows: `add`, `add:2` (a child row), `remove:2` or `remove:2_0`."""
    what, _, place = pressed.partition(":")
    number, _, child = place.partition("_")
    if what == "add" and not place:
        return [*rows, dict(EMPTY)]
    if not _is_place(number) or int(number) >= len(rows):
        return rows
    row = rows[int(number)]
    if what == "add" and row["rows"] is not None:
        row["rows"].append(dict(EMPTY))
    elif what == "remove" and _is_place(child) and row["rows"]:
        row["rows"] = [one for place, one in enumerate(row["rows"]) if place != int(child)]
    elif what == "remove" and not child:
        return [one for place, one in enumerate(rows) if place != int(number)]
    return rows


def parsed(rows: list[Row]) -> list[Row]:
    """Convert typed rows to the conductor's rows."""
    return [_parsed(row) for row in rows]


def _parsed(row: Row) -> Row:
    inner = None if row["rows"] is None else parsed(row["rows"])
    made = {**row, "transform": row["transform"] or None, "link": row["link"] or None, "rows": inner}
    return {**made, "default": parse_default(row["default"])}


def shown(rows: list[Row]) -> list[Row]:
    """Convert the conductor's rows to typed rows. Rows of an old version may lack newer cells."""
    return [_shown(row) for row in rows]


def _shown(row: Row) -> Row:
    inner = None if row.get("rows") is None else shown(row["rows"])
    made = {**EMPTY, **row, "transform": row.get("transform") or "", "link": row.get("link") or "", "rows": inner}
    return {**made, "default": show_default(row.get("default"))}


def parse_default(text: str) -> Any:
    """Parse a typed default: 12, true and "12" are JSON, empty is None, anything else is text."""
    if not text:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str | int | float | bool) else text


def show_default(value: Any) -> str:
    """Format a default for the form; text that would parse as JSON is quoted."""
    if value is None:
        return ""
    return value if isinstance(value, str) and parse_default(value) == value else json.dumps(value)
