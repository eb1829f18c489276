"""The entries of `field_to_data`: what an author writes, and the rows that the panel edits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Direction = Literal["both", "out", "in"]

Conflict = Literal["internal", "external", "newest", "ask"]


@dataclass(frozen=True)
class Field:
    """One entry of `field_to_data`; a plain string is short for `Field(path)`.

    `path` has one of the forms in `paths`. `transform` is a name in `transforms.TRANSFORMS` with its
    arguments. `default` is sent instead of an empty internal value. `conflict` chooses the value if
    both sides changed the field since they were last in sync: `internal`, `external`, `newest`, or
    `ask`: an operator decides, and until then neither side is written. `link` names the catalogue
    that the column refers to, see :func:`link_to`. `rows` maps the columns of child rows, see
    :func:`rows`.
    """

    path: str
    transform: str | None = None
    direction: Direction = "both"
    conflict: Conflict = "newest"
    default: Any = None
    required: bool = False
    link: str | None = None
    rows: Mapping[str, Field] | None = None


def link_to(catalogue: str, path: str, *, required: bool = False, direction: Direction = "both") -> Field:
    """Map a relation: the column holds the key of a record of `catalogue`, and `path` its external id.

    If the related record is not in the system yet, it is delivered first, and this one waits
    without using up attempts. Of records that refer to one another, one whose reference is not
    `required` is first sent with it empty.
    """
    return Field(path, link=catalogue, required=required, direction=direction)


def rows(
    path: str,
    fields: Mapping[str, Field | str],
    *,
    direction: Direction = "both",
    conflict: Conflict = "newest",
    required: bool = False,
) -> Field:
    """Map child rows, such as the lines of an invoice: `path` is an external list, `fields` maps a row's columns.

    The rows are compared, merged and sent as a whole and in their order, so that direction and
    conflict policy apply to the list. External fields of a row that are not mapped are ignored.
    """
    return Field(path, direction=direction, conflict=conflict, required=required, rows=as_fields(fields))


def as_fields(fields: Mapping[str, Field | str]) -> dict[str, Field]:
    """Return the entries of a `field_to_data`, with each plain string as the `Field` it is short for."""
    return {column: entry if isinstance(entry, Field) else Field(entry) for column, entry in fields.items()}


class FieldRow(BaseModel):
    """A row of a mapping, as the panel edits it and the database stores it."""

    model_config = ConfigDict(extra="forbid")

    column: str
    path: str
    transform: str | None = None
    direction: Direction = "both"
    conflict: Conflict = "newest"
    default: Any = None
    required: bool = False
    link: str | None = None
    #: The fields of child rows, in the same form.
    rows: list[FieldRow] | None = None

    def field(self) -> Field:
        """Return the row as an entry of `field_to_data`."""
        inner = None if self.rows is None else {row.column: row.field() for row in self.rows}
        return Field(**self.model_dump(exclude={"column", "rows"}), rows=inner)


def entry_row(column: str, entry: Field) -> dict[str, Any]:
    """Return an entry of `field_to_data` as a dict with the fields of `FieldRow`."""
    inner = None if entry.rows is None else [entry_row(*pair) for pair in entry.rows.items()]
    return {"column": column, **vars(entry), "rows": inner}
