"""Check the rows of a mapping against a catalogue, and report every problem with its row and cell."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from i18n import gettext
from models.catalogues import CATALOGUES, Catalogue, ChildRows, children_by_name
from subscribers.mapping.fields import Field, FieldRow
from subscribers.mapping.paths import is_plain, parts, problem
from subscribers.mapping.transforms import Transform, find
from subscribers.mapping.values import plain


class Problem(str):
    """One problem of a mapping as a sentence, with its place.

    `row` counts from 1, and so does `child` within child rows (None: the row itself). `cell` is the
    name of a field of `FieldRow`.
    """

    row: int
    child: int | None
    cell: str
    reason: str

    def __new__(cls, row: int, cell: str, reason: str, child: tuple[str, int] | None = None) -> Problem:
        where = gettext("row {n}", n=row)
        if child:
            where = gettext("row {n}, {column} {place}", n=row, column=child[0], place=child[1])
        made = super().__new__(cls, f"{where}: {reason}")
        made.row, made.child, made.cell, made.reason = row, child and child[1], cell, reason
        return made


#: The cell of a row, and its problem.
_CellProblem = tuple[str, str]


def check_rows(
    rows: Iterable[Mapping[str, Any]], catalogue: Catalogue | ChildRows
) -> tuple[dict[str, Field], list[str]]:
    """Return the mapping of these rows, and a `Problem` for each thing that is wrong with them."""
    parsed: list[tuple[int, FieldRow]] = []
    problems: list[str] = []
    for number, raw in enumerate(rows, start=1):
        try:
            parsed.append((number, FieldRow.model_validate(raw)))
        except ValidationError as error:
            for item in error.errors(include_url=False):
                place = ".".join(map(str, item["loc"]))
                words = item["msg"]
                if item["type"] == "extra_forbidden":
                    near = difflib.get_close_matches(place, FieldRow.model_fields, 1)
                    words = gettext("is an unknown key") + (
                        gettext("; did you mean {near}?", near=near[0]) if near else ""
                    )
                problems.append(Problem(number, place.partition(".")[0], f"{place}: {words}"))
    fields: dict[str, Field] = {}
    for number, row, wrong in _check(parsed, catalogue):
        problems += [Problem(number, cell, reason) for cell, reason in wrong]
        if row.rows is not None and (child := children_by_name(catalogue).get(row.column)) is not None:
            problems += _check_inner(number, row, child)
        if not wrong:
            fields[row.column] = row.field()
    if not fields and not problems:
        problems.append(gettext("a mapping needs at least one field"))
    return fields, problems


def _check(
    rows: list[tuple[int, FieldRow]], catalogue: Catalogue | ChildRows
) -> Iterator[tuple[int, FieldRow, list[_CellProblem]]]:
    paths: set[str] = set()
    columns: set[str] = set()
    for number, row in rows:
        wrong = [*_check_column(row, catalogue), *_check_path(row), *_check_names(row, catalogue)]
        twice = [name for name in parts(row.column) if name in columns]
        wrong += [("column", gettext("the column {name!r} is mapped twice", name=name)) for name in twice]
        own = parts(row.path) if is_plain(row.path) else [row.path]
        for path in own if is_plain(row.path) else ():
            if any(path.startswith(f"{p}.") or p.startswith(f"{path}.") for p in paths):
                wrong.append(
                    ("path", gettext("{path!r} is inside the external field of another row, or contains it", path=path))
                )
        wrong += [
            ("path", gettext("the external field {path!r} is used twice", path=path)) for path in own if path in paths
        ]
        columns.update(parts(row.column))
        paths.update(own)
        yield number, row, wrong


def _check_column(row: FieldRow, catalogue: Catalogue | ChildRows) -> Iterator[_CellProblem]:
    children = children_by_name(catalogue)
    for column in parts(row.column):
        if column not in catalogue.columns:
            known = ", ".join(catalogue.columns)
            words = gettext(
                "{name} has no column {column!r}; its columns are {known}",
                name=catalogue.name,
                column=column,
                known=known,
            )
            yield "column", words
        elif column in children and (row.rows is None or column != row.column):
            columns = ", ".join(children[column].columns)
            words = gettext(
                "{column!r} are child rows: map their columns in `rows` ({columns})",
                column=column,
                columns=columns,
            )
            yield "column", words
        elif column not in children and row.rows is not None:
            known = ", ".join(children)
            there_are = (
                gettext("{name} has child rows {known}", name=catalogue.name, known=known)
                if children
                else gettext("{name} has no child rows", name=catalogue.name)
            )
            plain_column = gettext("{column!r} is a plain column, which cannot have `rows`", column=column)
            yield "column", f"{plain_column}; {there_are}"


def _check_path(row: FieldRow) -> Iterator[_CellProblem]:
    if text := problem(row.path):
        yield "path", text
    elif not is_plain(row.path) and row.direction != "in":
        yield (
            "path",
            gettext("{path!r} is an expression, which is read-only: its direction must be `in`", path=row.path),
        )


def _check_names(row: FieldRow, catalogue: Catalogue | ChildRows) -> Iterator[_CellProblem]:
    if row.rows is not None and (row.transform or row.link or row.default is not None):
        yield (
            "transform",
            gettext("child rows cannot have a transform, relation or default; their fields can"),
        )
    if row.link and row.link not in CATALOGUES:
        yield (
            "link",
            gettext(
                "unknown catalogue {link!r}; known catalogues: {known}", link=row.link, known=", ".join(CATALOGUES)
            ),
        )
    transform = Transform(plain, plain)
    if row.transform:
        try:
            transform = find(row.transform)
        except ValueError as error:
            yield "transform", str(error)
            return
        if row.link:
            yield "transform", gettext("a relation cannot have a transform: its value is the external id")
    here, there = len(parts(row.column)), len(parts(row.path)) if is_plain(row.path) else 1
    if row.rows is None and (here, there) != (transform.here, transform.there):
        takes: dict[str, Any] = {"made": transform.there, "of": transform.here, "here": here, "there": there}
        takes |= {"column": row.column, "path": row.path}
        if row.transform:
            yield (
                "transform",
                gettext(
                    "the transform {name} maps {of} column(s) to {made} external field(s), "
                    "but {column!r} and {path!r} name {here} and {there}",
                    name=row.transform,
                    **takes,
                ),
            )
        else:
            yield (
                "transform",
                gettext(
                    "without a transform a row maps {of} column to {made} external field, "
                    "but {column!r} and {path!r} name {here} and {there}",
                    **takes,
                ),
            )
    if there > 1 and row.default is not None:
        yield "default", gettext("a row of several external fields cannot have a default")
    if transform.column is not None and transform.column not in _columns_around(catalogue):
        yield (
            "transform",
            gettext(
                "{transform}: {name} has no column {column!r}",
                transform=row.transform,
                name=catalogue.name,
                column=transform.column,
            ),
        )


def _columns_around(catalogue: Catalogue | ChildRows) -> set[str]:
    """Return the columns that a transform may depend on: those of the record, and for a child row of its parent."""
    around = {column.name for column in catalogue.table.c}
    for parent in CATALOGUES.values():
        if catalogue in parent.children:
            around |= {column.name for column in parent.table.c}
    return around


def _check_inner(number: int, row: FieldRow, child: ChildRows) -> list[str]:
    numbered = list(enumerate(row.rows or [], start=1))
    problems: list[str] = []
    for count, _one, wrong in _check([pair for pair in numbered if is_plain(pair[1].path)], child):
        problems += [Problem(number, cell, reason, (row.column, count)) for cell, reason in wrong]
    for count, one in numbered:
        inside = (row.column, count)
        if not is_plain(one.path):
            says = gettext("{path!r} must be a field name or a dotted path: it belongs to child rows", path=one.path)
            problems.append(Problem(number, "path", says, inside))
        if one.direction != "both" or one.conflict != "newest":
            says = gettext("child rows are sent and merged as a whole: set direction and conflict for the list")
            problems.append(Problem(number, "direction", says, inside))
    if not numbered:
        problems.append(Problem(number, "column", gettext("child rows need at least one field")))
    return problems
