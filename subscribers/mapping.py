"""`field_to_data`: which internal column is which external field, and how values cross over.

Two shapes of a record's external side are used throughout: *nested*, as the system's JSON has it
(`{"address": {"city": "Rome"}}`), and *flat*, one entry a mapped field keyed by its dotted path
(`{"address.city": "Rome"}`). Comparisons and the ledger use the flat one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, ValidationError

from models.catalogues import CATALOGUES, Catalogue, Record
from subscribers.errors import Reject, clean
from subscribers.transforms import TRANSFORMS

Flat = dict[str, Any]
#: (catalogue, id on one side) -> id on the other side.
Links = Mapping[tuple[str, str], str]
Direction = Literal["both", "out", "in"]
Conflict = Literal["internal", "external", "newest", "ask"]

_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*)*")


@dataclass(frozen=True)
class Field:
    """One entry of `field_to_data`; a plain string is short for `Field(path)`.

    `default` is sent where the internal value is empty. `conflict` says who wins where both sides
    changed the field since they last agreed: `internal`, `external`, `newest`, or `ask`: a person
    settles it, and until then neither side is written. `link` names the catalogue whose record the
    column points to: the other system's id of that record travels, see :func:`link_to`.
    """

    path: str
    transform: str | None = None
    direction: Direction = "both"
    conflict: Conflict = "newest"
    default: Any = None
    required: bool = False
    link: str | None = None


def link_to(catalogue: str, path: str, *, required: bool = False, direction: Direction = "both") -> Field:
    """A relation: the column holds the key of a record of `catalogue`, `path` the other system's id of it.

    Where that record is not in the system yet it is delivered first, and this one waits without
    using up attempts.
    """
    return Field(path, link=catalogue, required=required, direction=direction)


class FieldRow(BaseModel):
    """A row of a mapping as the panel edits and the database keeps it."""

    model_config = ConfigDict(extra="forbid")

    column: str
    path: str
    transform: str | None = None
    direction: Direction = "both"
    conflict: Conflict = "newest"
    default: Any = None
    required: bool = False
    link: str | None = None

    def field(self) -> Field:
        """The same, as a mapping's entry."""
        return Field(**self.model_dump(exclude={"column"}))


class Mapper:
    """Carries records over between a catalogue and one subscriber's external fields."""

    def __init__(self, catalogue: Catalogue, fields: Mapping[str, Field | str]) -> None:
        self.catalogue = catalogue
        self.fields = {column: entry if isinstance(entry, Field) else Field(entry) for column, entry in fields.items()}
        self._column_of = {entry.path: column for column, entry in self.fields.items()}

    def rows(self) -> list[dict[str, Any]]:
        """The mapping as rows for the panel and the database."""
        return [{"column": column, **vars(entry)} for column, entry in self.fields.items()]

    def relations(self) -> dict[str, str]:
        """Columns that point to a record of a catalogue: column -> catalogue."""
        return {column: entry.link for column, entry in self.fields.items() if entry.link}

    def outward(self, record: Record, *, strict: bool = True, links: Links | None = None) -> Flat:
        """What the system shall hold of this record, by path.

        `links` gives the system's id of each related record, by (catalogue, record id); where a
        relation's is not known the field is left out.

        Raises:
          Reject: with the words per field, where a value cannot be mapped or a required one is empty;
            without `strict`, what can be mapped is returned instead.
        """
        flat: Flat = {}
        wrong: dict[str, str] = {}
        for column, entry in self.fields.items():
            if entry.direction == "in":
                continue
            value = record.get(column)
            if entry.link and not is_empty(value):
                if (entry.link, str(value)) not in (links or {}):
                    continue
                value = (links or {})[entry.link, str(value)]
            elif is_empty(value):
                value = entry.default
            elif entry.transform:
                try:
                    value = TRANSFORMS[entry.transform].forward(value)
                except ValueError as error:
                    wrong[entry.path] = str(error)
                    continue
            if entry.required and is_empty(value):
                wrong[entry.path] = f"is required, but {column} is empty"
            flat[entry.path] = plain(value)
        if wrong and strict:
            raise Reject(words(wrong), fields=wrong)
        return flat

    def theirs(self, data: Mapping[str, Any]) -> Flat:
        """The mapped fields of an external record, by path; one that is not mentioned is left out."""
        found = {}
        for entry in self.fields.values():
            value = pick(data, entry.path)
            if value is not MISSING:
                found[entry.path] = plain(value)
        return found

    def comes_in(self, path: str) -> bool:
        """Whether a change of this external field may change the internal record."""
        return path in self._column_of and self.entry(path).direction != "out"

    def entry(self, path: str) -> Field:
        """The mapping entry of an external field."""
        return self.fields[self._column_of[path]]

    def inward(self, flat: Mapping[str, Any], keys: Links | None = None) -> Record:
        """Internal column values for these external fields.

        `keys` gives our id of each related record, by (catalogue, the system's id).

        Raises:
          Reject: with the words per field, where a value does not fit its column.
        """
        record: Record = {}
        wrong: dict[str, str] = {}
        for path, value in flat.items():
            column = self._column_of[path]
            entry = self.fields[column]
            try:
                if not is_empty(value) and entry.link:
                    value = _key(self.catalogue.table.c[column], (keys or {}).get((entry.link, str(value))))
                elif not is_empty(value) and entry.transform:
                    value = TRANSFORMS[entry.transform].inverse(value)
                record[column] = fit(self.catalogue.table.c[column], value)
            except ValueError as error:
                wrong[path] = str(error)
        if wrong:
            raise Reject(words(wrong), fields=wrong)
        return record


def check_rows(rows: Iterable[Mapping[str, Any]], catalogue: Catalogue) -> tuple[dict[str, Field], list[str]]:
    """The mapping these rows make, and everything wrong with them, one sentence each naming the row."""
    fields: dict[str, Field] = {}
    problems: list[str] = []
    paths: set[str] = set()
    for number, raw in enumerate(rows, start=1):
        try:
            row = FieldRow.model_validate(raw)
        except ValidationError as error:
            for item in error.errors(include_url=False):
                problems.append(f"row {number}: {'.'.join(map(str, item['loc']))}: {item['msg']}")
            continue
        if row.column not in catalogue.columns or row.column not in catalogue.table.c:
            known = ", ".join(name for name in catalogue.columns if name in catalogue.table.c)
            problems.append(f"row {number}: {catalogue.name} has no column {row.column!r}; it has {known}")
        if row.column in fields:
            problems.append(f"row {number}: the column {row.column!r} is mapped twice")
        if not _PATH.fullmatch(row.path):
            problems.append(f"row {number}: {row.path!r} is no field name or dotted path such as address.city")
        if any(row.path.startswith(f"{p}.") or p.startswith(f"{row.path}.") for p in paths):
            problems.append(f"row {number}: {row.path!r} is inside, or holds, another row's external field")
        if row.path in paths:
            problems.append(f"row {number}: the external field {row.path!r} is used twice")
        if row.link and row.link not in CATALOGUES:
            problems.append(f"row {number}: no catalogue {row.link!r} to link to; there are {', '.join(CATALOGUES)}")
        if row.transform and row.transform not in TRANSFORMS:
            problems.append(f"row {number}: no transform {row.transform!r}; there are {', '.join(TRANSFORMS)}")
        fields[row.column] = row.field()
        paths.add(row.path)
    if not fields and not problems:
        problems.append("a mapping needs at least one field")
    return fields, problems


def _key(column: sa.Column[Any], record_id: str | None) -> Any:
    if record_id is None:
        raise ValueError("points to a record that is not known here")
    python_type = column.type.python_type
    return record_id if python_type is str else python_type(record_id)


class _Missing:
    """Stands for "the system did not mention this field", which is not the same as empty."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()


def pick(data: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of nested data, or MISSING. Below an empty parent everything is empty."""
    value: Any = data
    for part in path.split("."):
        if value is None:
            return None
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Flat entries as nested data: {"address.city": "Rome"} -> {"address": {"city": "Rome"}}."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        place = nested
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = value
    return nested


def same(one: Any, other: Any) -> bool:
    """Whether two values mean the same to a person: empty text and nothing do, 12 and 12.0 do."""
    if is_empty(one) and is_empty(other):
        return True
    if isinstance(one, bool) is not isinstance(other, bool):
        return False
    return bool(one == other)


def is_empty(value: Any) -> bool:
    """None and empty text."""
    return value is None or value == ""


def plain(value: Any) -> Any:
    """A value as JSON can carry it, the same way each time."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def words(wrong: Mapping[str, str]) -> str:
    """Complaints per field as one sentence."""
    return "; ".join(f"{name}: {text}" for name, text in wrong.items())


def fit(column: sa.Column[Any], value: Any) -> Any:
    """A value as this column takes it.

    Raises:
      ValueError: it does not fit; the message says why.
    """
    if is_empty(value):
        if not column.nullable:
            raise ValueError(f"is empty, but {column.name} needs a value")
        return None
    expected = column.type.python_type
    if expected is str:
        return _fit_text(column, value)
    if expected is date and isinstance(value, str):
        return date.fromisoformat(value[:10])
    if expected is datetime and isinstance(value, str):
        return datetime.fromisoformat(value)
    if expected is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if expected is int and isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"{value} is too large for {column.name}")
    if isinstance(value, bool) is not (expected is bool) or not isinstance(value, expected):
        raise ValueError(f"{value!r} is no {expected.__name__}, as {column.name} needs")
    return value


def _fit_text(column: sa.Column[Any], value: Any) -> str:
    if isinstance(value, dict | list):
        raise ValueError(f"is a {type(value).__name__}, but {column.name} is text")
    text = str(value)
    length = getattr(column.type, "length", None)
    if length is not None and len(text) > length:
        raise ValueError(f"{len(text)} characters, but {column.name} holds {length}")
    if "\x00" in text:
        raise ValueError("holds a NUL character, which no text column takes")
    return text
