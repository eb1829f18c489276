"""Mappings: which internal column is which external field, edited as a table, with a preview
and all versions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flask import abort, request, url_for
from werkzeug import Response

from conductor import Effect, MappingConflict, MappingRefused, Preview, mapping_diff, mapping_versions
from i18n import gettext, gettext_noop
from models.catalogues import CATALOGUES
from panel.forms import mapping
from panel.forms.mapping import Row
from panel.views.base import (
    LARGEST_ID,
    LARGEST_SMALL_ID,
    PanelView,
    action,
    page,
    parse_id,
    redirect_error,
    redirect_success,
)
from panel.views.tasks import shown
from subscribers.base import Subscriber
from subscribers.mapping.paths import MISSING
from subscribers.mapping.transforms import TRANSFORMS
from subscribers.mapping.validation import Problem

#: Direction of a row -> its label.
DIRECTIONS = {"both": gettext_noop("both ways"), "out": gettext_noop("out only"), "in": gettext_noop("in only")}
CONFLICTS = {
    "newest": gettext_noop("newest wins"),
    "internal": gettext_noop("internal wins"),
    "external": gettext_noop("external wins"),
    "ask": gettext_noop("ask an operator"),
}
#: Cell -> its title.
TITLES = {
    "column": gettext_noop("Internal column"),
    "path": gettext_noop("External field"),
    "direction": gettext_noop("Direction"),
    "transform": gettext_noop("Transform"),
    "link": gettext_noop("Relation to"),
    "conflict": gettext_noop("On conflict"),
    "default": gettext_noop("Default"),
    "required": gettext_noop("Required"),
}


@dataclass
class Draft:
    """The mapping in the editor: the rows as typed, the version they are based on, and results of the checks."""

    rows: list[Row]
    version: int
    problems: list[str] = field(default_factory=list)
    diff: list[mapping_diff.RowDiff] | None = None
    effect: Effect | None = None
    preview: Preview | None = None
    record: str = ""
    #: The version that another user saved in the meantime, and the merge with it.
    meanwhile: Any = None
    together: mapping_diff.MergedRows | None = None
    loaded: str = ""

    def wrong(self) -> dict[tuple[int, int | None], dict[str, list[str]]]:
        """Map (row, child row or None), counted from 0, to its cells and their problems."""
        places: dict[tuple[int, int | None], dict[str, list[str]]] = {}
        for problem in self.problems:
            if isinstance(problem, Problem):
                place = problem.row - 1, None if problem.child is None else problem.child - 1
                places.setdefault(place, {}).setdefault(problem.cell, []).append(problem.reason)
        return places

    def unplaced(self) -> list[str]:
        """Return the problems of the mapping as a whole."""
        return [problem for problem in self.problems if not isinstance(problem, Problem)]


class Mappings(PanelView):
    title, path, icon = gettext_noop("Mappings"), "/mappings", "mappings"
    key = "m"

    @page("/")
    def index(self) -> str:
        with self.conductor.database.read() as connection:
            newest_of = mapping_versions.newest_of_each(connection)
        subscribers = self.conductor.subscribers
        mappings = [(subscribers[name], *self.conductor.mappings.latest(name)) for name in sorted(subscribers)]
        changes = {
            s.name(): len(mapping_diff.diff(s.default_mapper.rows(), mapper.rows()))
            for s, mapper, version in mappings
            if version
        }
        return self.render("panel/mappings.html", mappings=mappings, newest_of=newest_of, changes=changes)

    @page("/<subscriber>")
    def edit(self, subscriber: str) -> str:
        known = self._known(subscriber)
        mapper, version = self.conductor.mappings.latest(subscriber)
        rows, loaded = mapper.rows(), ""
        if wanted := request.args.get("from", ""):
            rows, loaded = self._rows_of(known, wanted), wanted
        return self._form(known, Draft(mapping.shown(rows), version, loaded=loaded))

    @action("/<subscriber>", needs="mappings")
    def save(self, subscriber: str) -> Response | str | tuple[str, int]:
        """Handle every button of the form: change the table, preview it, or save it."""
        known = self._known(subscriber)
        pressed = request.form.get("do", "review")
        draft = Draft(
            mapping.typed(request.form, known.records),
            request.form.get("version", 0, type=int),
            record=request.form.get("record", "").strip(),
        )
        if pressed.partition(":")[0] in ("add", "remove"):
            draft.rows = mapping.changed(draft.rows, pressed)
            return self._form(known, draft)
        rows = mapping.parsed(draft.rows)
        if self.conductor.mappings.latest(subscriber)[1] != draft.version:
            return self._meanwhile(known, draft, rows)
        try:
            if pressed not in ("save", "send"):
                return self._form(known, self._tried(known, draft, rows))
            version = self.conductor.mappings.save(subscriber, rows, self.current_email, draft.version)
        except MappingRefused as error:
            draft.problems = error.problems
            return self._form(known, draft), 422
        except MappingConflict:
            return self._meanwhile(known, draft, rows)
        here = url_for(".edit", subscriber=subscriber)
        if pressed == "send":
            number = self.conductor.tasks.start("resend", self.current_email, subscriber=subscriber)
            return redirect_success(
                gettext(
                    "Version {version} of {subscriber} is active. Task #{number} resends the changed records.",
                    version=version,
                    subscriber=subscriber,
                    number=number,
                ),
                here,
            )
        return redirect_success(
            gettext("Version {version} of {subscriber} is active.", version=version, subscriber=subscriber), here
        )

    @page("/<subscriber>/versions/<small:number>")
    def version(self, subscriber: str, number: int) -> str:
        """Show a version and its differences from the previous and the active version."""
        known = self._known(subscriber)
        versions = self._versions(subscriber)
        saved = next((row for row in versions if row.version == number), None)
        if saved is None:
            abort(404)
        mapper, newest = self.conductor.mappings.latest(subscriber)
        rows = self._rows_of(known, str(number))
        return self.render(
            "panel/mapping_version.html",
            subscriber=known,
            saved=saved,
            newest=newest,
            since=mapping_diff.diff(self._rows_of(known, str(number - 1)), rows),
            until=mapping_diff.diff(rows, mapper.rows()),
            rows=mapping.shown(rows),
            **self._words(),
        )

    @action("/<subscriber>/default", needs="mappings")
    def default(self, subscriber: str) -> Response:
        self._known(subscriber)
        return self._put(
            subscriber, None, gettext_noop("{subscriber} was reset to the default mapping as version {version}.")
        )

    @action("/<subscriber>/versions/<small:number>/revert", needs="mappings")
    def revert(self, subscriber: str, number: int) -> Response:
        """Save an old version as a new one."""
        rows = self._rows_of(self._known(subscriber), str(number))
        return self._put(
            subscriber,
            rows,
            gettext_noop("Version {number} of {subscriber} was restored as version {version}."),
            number=number,
        )

    @action("/<subscriber>/send", needs="mappings")
    def send(self, subscriber: str) -> Response:
        """Resend the records that the active mapping changes."""
        self._known(subscriber)
        number = self.conductor.tasks.start("resend", self.current_email, subscriber=subscriber)
        return redirect_success(
            gettext("Task #{number} resends the changed records.", number=number),
            url_for(".edit", subscriber=subscriber),
        )

    def _put(self, subscriber: str, rows: list[Row] | None, words: str, **values: Any) -> Response:
        here = url_for(".edit", subscriber=subscriber)
        try:
            version = self.conductor.mappings.save(
                subscriber, rows, self.current_email, request.form.get("version", 0, type=int)
            )
        except (MappingConflict, MappingRefused) as error:
            return redirect_error(gettext("Not saved: {error}", error=error), here)
        return redirect_success(gettext(words, subscriber=subscriber, version=version, **values), here)

    def _tried(self, subscriber: Subscriber, draft: Draft, rows: list[Row]) -> Draft:
        """Compute the effect of a draft without saving it. Raises `MappingRefused`."""
        name = subscriber.name()
        draft.effect = self.conductor.previews.effect(name, rows)
        draft.diff = mapping_diff.diff(self.conductor.mappings.latest(name)[0].rows(), rows)
        record_id = self._find(subscriber, draft.record) if draft.record else draft.effect.example
        if record_id is None and not draft.record:
            record_id = self._any_record(subscriber)
        if record_id is not None:
            draft.preview = self.conductor.previews.record(name, rows, record_id)
        return draft

    def _find(self, subscriber: Subscriber, text: str) -> str | None:
        """Find a record by its id, email or label."""
        records = subscriber.records
        with self.conductor.database.read() as connection:
            try:
                key = records.key_of(text)
                fits = not isinstance(key, int) or 0 < key <= LARGEST_ID
                if fits and text in records.read(connection, [text]):
                    return text
            except (ValueError, ArithmeticError):
                pass
            for column in ("email", records.label):
                if column in records.table.c and (found := records.find(connection, {column: text}, limit=1)):
                    return found[0]
        return None

    def _any_record(self, subscriber: Subscriber) -> str | None:
        with self.conductor.database.read() as connection:
            return next(iter(subscriber.records.ids(connection, limit=1)), None)

    def _meanwhile(self, subscriber: Subscriber, draft: Draft, rows: list[Row]) -> tuple[str, int]:
        """Another user saved a version: merge both edits and show the result."""
        mapper, newest = self.conductor.mappings.latest(subscriber.name())
        base, theirs = self._rows_of(subscriber, str(draft.version)), mapper.rows()
        together = mapping_diff.merge_edits(base, rows, theirs)
        draft.meanwhile = next((row for row in self._versions(subscriber.name()) if row.version == newest), None)
        draft.rows, draft.version, draft.together = mapping.shown(together.rows), newest, together
        draft.diff = mapping_diff.diff(base, theirs)
        return self._form(subscriber, draft), 409

    def _rows_of(self, subscriber: Subscriber, version: str) -> list[Row]:
        """Return a version's rows; 0, and a version reset to it, is the default mapping."""
        if version in ("default", "0"):
            return subscriber.default_mapper.rows()  # with all cells
        number = parse_id(version, LARGEST_SMALL_ID)
        with self.conductor.database.read() as connection:
            row = mapping_versions.version(connection, subscriber.name(), number)
        if row is None:
            abort(404)
        rows = subscriber.default_mapper.rows() if row.fields is None else row.fields
        # An old version may lack cells that were added later.
        return mapping.parsed(mapping.shown(rows))

    def _versions(self, subscriber: str) -> list[Any]:
        with self.conductor.database.read() as connection:
            return mapping_versions.versions(connection, subscriber)

    def _form(self, subscriber: Subscriber, draft: Draft) -> str:
        name = subscriber.name()
        resend = next((row for row in self.conductor.tasks.list("resend") if row.subscriber == name), None)
        return self.render(
            "panel/mapping.html",
            subscriber=subscriber,
            draft=draft,
            wrong=draft.wrong(),
            versions=self._versions(name),
            children={child.name: child for child in subscriber.records.children},
            task=shown(self.conductor.tasks, resend) if resend else None,
            label=subscriber.records.label,
            **self._words(),
        )

    @staticmethod
    def _words() -> dict[str, Any]:
        return {
            "transforms": TRANSFORMS,
            "directions": _said(DIRECTIONS),
            "conflicts": _said(CONFLICTS),
            "links": {"": gettext("no relation")}
            | {name: gettext("a {catalogue}", catalogue=name) for name in CATALOGUES},
            "titles": _said(TITLES),
            "cells": mapping_diff.CELLS,
            "cell": _cell,
            "MISSING": MISSING,
        }

    def _known(self, subscriber: str) -> Subscriber:
        if subscriber not in self.conductor.subscribers:
            abort(404)
        return self.conductor.subscribers[subscriber]


def _said(words: dict[str, str]) -> dict[str, str]:
    return {key: gettext(text) for key, text in words.items()}


def _cell(name: str, value: Any) -> str:
    """Format a cell of a version."""
    if name == "direction":
        return gettext(DIRECTIONS.get(value, str(value)))
    if name == "conflict":
        return gettext(CONFLICTS.get(value, str(value)))
    if name == "required":
        return gettext("required") if value else gettext("not required")
    if name == "default":
        return mapping.show_default(value) or gettext("none")
    return str(value) if value else {"transform": gettext("unchanged"), "link": gettext("no relation")}.get(name, "")
