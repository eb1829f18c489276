"""Mappings: which internal column is which external field, edited as a table, every version kept."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from flask import abort, flash, redirect, request, url_for
from werkzeug import Response

from conductor import MappingConflict, MappingRefused
from models.catalogues import CATALOGUES
from models.ledger import Mapping
from panel.views.base import PanelView, action, done, page
from subscribers.transforms import TRANSFORMS

Row = dict[str, Any]

#: The choices of a row, with what they mean.
DIRECTIONS = {"both": "both ways", "out": "out only", "in": "in only"}
CONFLICTS = {"newest": "newest wins", "internal": "internal wins", "external": "external wins", "ask": "ask a person"}

#: Longest history shown; versions are made by people, so there are few.
_VERSIONS = 100


class Mappings(PanelView):
    title, path, icon = "Mappings", "/mappings", "mappings"

    @page("/")
    def index(self) -> str:
        newest = sa.select(Mapping.subscriber, sa.func.max(Mapping.id)).group_by(Mapping.subscriber)
        with self.conductor.database.read() as connection:
            ids = [row[1] for row in connection.execute(newest)]
            saved = connection.execute(
                sa.select(Mapping.subscriber, Mapping.version, Mapping.created_at, Mapping.created_by,
                          Mapping.fields.is_(None).label("is_default")).where(Mapping.id.in_(ids))
            )  # fmt: skip
            newest_of = {row.subscriber: row for row in saved}
        mappings = [(name, *self.conductor.mapping(name)) for name in sorted(self.conductor.subscribers)]
        return self.render("panel/mappings.html", mappings=mappings, newest_of=newest_of)

    @page("/<subscriber>")
    def edit(self, subscriber: str) -> str:
        self._known(subscriber)
        mapper, version = self.conductor.mapping(subscriber)
        return self._form(subscriber, [shown_row(row) for row in mapper.rows()], version)

    @action("/<subscriber>", needs="mappings")
    def save(self, subscriber: str) -> Response | str | tuple[str, int]:
        self._known(subscriber)
        rows, expected = _rows_of_form(), request.form.get("version", 0, type=int)
        pressed = field_pressed()
        if pressed != "save":
            return self._form(subscriber, _with_row_changed(rows, pressed), expected)
        try:
            version = self.conductor.save_mapping(subscriber, [parsed_row(row) for row in rows], self.who, expected)
        except MappingRefused as error:
            return self._form(subscriber, rows, expected, error.problems), 422
        except MappingConflict:
            return self._form(subscriber, rows, expected, [_CONFLICT], conflict=True), 409
        return done(f"Version {version} of {subscriber} is in force.", url_for(".edit", subscriber=subscriber))

    @action("/<subscriber>/default", needs="mappings")
    def default(self, subscriber: str) -> Response:
        self._known(subscriber)
        expected = request.form.get("version", 0, type=int)
        here = url_for(".edit", subscriber=subscriber)
        try:
            version = self.conductor.save_mapping(subscriber, None, self.who, expected)
        except (MappingConflict, MappingRefused) as error:
            flash(str(error), "error")
            return redirect(here, code=303)
        return done(f"{subscriber} is back to the code's default, as version {version}.", here)

    def _form(
        self, subscriber: str, rows: list[Row], version: int, problems: list[str] | None = None, conflict: bool = False
    ) -> str:
        with self.conductor.database.read() as connection:
            versions = connection.execute(
                sa.select(Mapping.__table__)
                .where(Mapping.subscriber == subscriber)
                .order_by(Mapping.version.desc())
                .limit(_VERSIONS)
            ).all()
        return self.render(
            "panel/mapping.html",
            subscriber=self.conductor.subscribers[subscriber],
            rows=rows,
            version=version,
            versions=versions,
            problems=problems or [],
            conflict=conflict,
            transforms=TRANSFORMS,
            directions=DIRECTIONS,
            conflicts=CONFLICTS,
            links={"": "no relation"} | {name: f"a {name}" for name in CATALOGUES},
        )

    def _known(self, subscriber: str) -> None:
        if subscriber not in self.conductor.subscribers:
            abort(404)


_CONFLICT = (
    "Somebody saved another version while you were editing. Nothing of yours is saved yet: "
    "open the version in force in another tab, compare, and enter your changes there."
)

_COLUMNS = ("column", "path", "transform", "link", "direction", "conflict", "default", "required", "rows")


def field_pressed() -> str:
    """Which of the form's buttons was pressed: save, add or remove:<row>."""
    return request.form.get("do", "save")


def _rows_of_form() -> list[Row]:
    """The table as typed: the fields of row 3 are called `3.column`, `3.path` and so on."""
    numbers = sorted({int(name.partition(".")[0]) for name in request.form if name.partition(".")[0].isdigit()})
    rows = [{name: request.form.get(f"{number}.{name}", "").strip() for name in _COLUMNS} for number in numbers]
    return [{**row, "required": row["required"] == "yes"} for row in rows]


def _with_row_changed(rows: list[Row], pressed: str) -> list[Row]:
    what, _, number = pressed.partition(":")
    if what == "add":
        return [*rows, dict.fromkeys(_COLUMNS, "") | {"direction": "both", "conflict": "newest"}]
    if what == "remove" and number.isdigit():
        return [row for index, row in enumerate(rows) if index != int(number)]
    return rows


def parsed_row(row: Row) -> Row:
    """A typed row as the conductor takes it."""
    empty_is_none = {name: row[name] or None for name in ("transform", "link")}
    return {**row, **empty_is_none, "default": parse_default(row["default"]), "rows": _parse_rows(row["rows"])}


def _parse_rows(text: str) -> Any:
    """The fields of child rows, which the form carries along as JSON; what is no JSON is refused as it is."""
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text


def parse_default(text: str) -> Any:
    """What a typed default means: 12, true and "12" are JSON, nothing is none, all else is text."""
    if not text:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str | int | float | bool) else text


def show_default(value: Any) -> str:
    """The other way round: text that would be read as something else stands in quotes."""
    if value is None:
        return ""
    return value if isinstance(value, str) and parse_default(value) == value else json.dumps(value)


def shown_row(row: Row) -> Row:
    """A row of a mapping as the form shows it."""
    none_is_empty = {name: row[name] or "" for name in ("transform", "link")}
    rows = json.dumps(row["rows"]) if row.get("rows") is not None else ""
    return {**row, **none_is_empty, "default": show_default(row["default"]), "rows": rows}
