"""Records: search, status and timeline of one record in all systems, and editing it."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from flask import abort, flash, redirect, request, url_for
from werkzeug import Response

from conductor import Conductor, EditConflict, EditRefused, as_typed, editable, read_record, record_search, timeline
from i18n import gettext, gettext_noop
from models.catalogues import CATALOGUES, Catalogue
from models.ledger import DeadLetter
from models.query_hints import no_index
from models.rows import DeadLetterRow
from panel.rendering import timeline_text
from panel.views.base import PanelView, action, page, redirect_error, redirect_success
from subscribers.base import Subscriber


class Records(PanelView):
    title, path = gettext_noop("Records"), "/record"
    in_menu = False

    @page("/")
    def search(self) -> Response | str:
        text = request.args.get("q", "").strip()
        with self.conductor.database.read() as connection:
            found = record_search.find(connection, text) if text else record_search.Found([])
        if len(found.hits) == 1:
            hit = found.hits[0]
            return redirect(url_for(".one", catalogue=hit.catalogue, record_id=hit.record_id))
        return self.render("panel/search.html", text=text, hits=found.hits, searched=found.searched)

    @page("/<catalogue>/<path:record_id>")
    def one(self, catalogue: str, record_id: str) -> Response:
        about = _catalogue(catalogue)
        names = [name for name, s in self.conductor.subscribers.items() if s.catalogue == catalogue]
        with self.conductor.database.read() as connection:
            record = read_record(connection, about, record_id)
            record_statuses = self.conductor.reports.record_statuses(
                connection, catalogue, record_id, exists=record is not None
            )
            story = timeline.timeline(connection, catalogue, names, record_id, request.args.get("before"))
        if record is None and not story.entries and all(status.link is None for status in record_statuses):
            abort(404)
        values = {
            "catalogue": about,
            "record_id": record_id,
            "record": record,
            "record_statuses": record_statuses,
            "timeline": story,
            "subscribers": self.conductor.subscribers,
            "describe_event": timeline_text.describe_event,
            "short": timeline_text.short,
            "system_title": timeline_text.title,
        }
        return self.live("panel/record.html", (record, record_statuses, story), lambda: values)

    @page("/<catalogue>/<path:record_id>/edit", needs="edit")
    def edit(self, catalogue: str, record_id: str) -> str:
        about = _catalogue(catalogue)
        with self.conductor.database.read() as connection:
            record = read_record(connection, about, record_id)
        if record is None:
            abort(404)
        typed = {column.name: as_typed(record[column.name]) for column in editable(about)}
        return self._form(about, record_id, typed, typed, {})

    @action("/<catalogue>/<path:record_id>/edit", needs="edit")
    def save(self, catalogue: str, record_id: str) -> Response | tuple[str, int]:
        about = _catalogue(catalogue)
        names = [column.name for column in editable(about)]
        # Browsers submit text with CRLF line ends.
        typed = {n: request.form[f"to.{n}"].replace("\r\n", "\n") for n in names if f"to.{n}" in request.form}
        seen = {n: request.form[f"was.{n}"].replace("\r\n", "\n") for n in names if f"was.{n}" in request.form}
        here = url_for(".one", catalogue=catalogue, record_id=record_id)
        try:
            count = self.conductor.records.edit(catalogue, record_id, typed, seen, self.current_email)
        except EditRefused as error:
            return self._form(about, record_id, typed, seen, error.problems), 422
        except EditConflict as error:
            # Keep the typed values. Saving again overwrites the newer values shown on the page.
            flash(gettext("Not saved: {error}.", error=error), "error")
            return self._form(about, record_id, typed, {**seen, **error.moved}, {}, error.moved), 409
        except ValueError as error:
            return redirect_error(gettext("Not saved: {error}.", error=error), here)
        if not count:
            return redirect_success(gettext("Nothing was changed."), here)
        return redirect_success(gettext("Saved. The change will be delivered to every system."), here)

    @action("/<catalogue>/<path:record_id>/push", needs="retry")
    def push(self, catalogue: str, record_id: str) -> Response:
        """Deliver the record to all its subscribers again, as if it had just changed."""
        _catalogue(catalogue)
        here = url_for(".one", catalogue=catalogue, record_id=record_id)
        try:
            self.conductor.push(catalogue, record_id, by=self.current_email)
        except ValueError as error:
            return redirect_error(f"{error}.", here)
        return redirect_success(gettext("Push started. Fields that differ are sent to every system."), here)

    def _form(
        self,
        about: Catalogue,
        record_id: str,
        typed: dict[str, str],
        seen: dict[str, str],
        problems: dict[str, str],
        moved: Mapping[str, str] | None = None,
    ) -> str:
        with self.conductor.database.read() as connection:
            letters = _letters(connection, self.conductor.subscribers, about, record_id)
        return self.render(
            "panel/record_edit.html",
            catalogue=about,
            record_id=record_id,
            columns=editable(about),
            typed=typed,
            seen=seen,
            problems=problems,
            moved=moved or {},
            letters=letters,
            words=_messages_by_column(self.conductor, letters),
        )


def _catalogue(name: str) -> Catalogue:
    if name not in CATALOGUES:
        abort(404)
    return CATALOGUES[name]


def _letters(
    connection: sa.Connection, subscribers: Mapping[str, Subscriber], about: Catalogue, record_id: str
) -> list[DeadLetterRow]:
    """Return the open dead letters of a record."""
    names = [name for name, s in subscribers.items() if s.catalogue == about.name]
    mine = (
        DeadLetter.record_id == record_id,
        no_index(DeadLetter.subscriber.in_(names)),
        DeadLetter.closed_at.is_(None),
    )
    found = connection.execute(sa.select(DeadLetter.__table__).where(*mine).order_by(DeadLetter.id).limit(20))
    return [DeadLetterRow._make(row) for row in found]


def _messages_by_column(conductor: Conductor, letters: list[DeadLetterRow]) -> dict[str, list[str]]:
    """Map each column to the systems' error messages about it, using the active mappings."""
    found: dict[str, list[str]] = {}
    for letter in letters:
        fields = conductor.mappings.latest(letter.subscriber)[0].fields
        column_of = {entry.path: column for column, entry in fields.items()}
        for path, words in (letter.fields or {}).items():
            if path in column_of:
                found.setdefault(column_of[path], []).append(f"{timeline_text.title(letter.subscriber)}: {words}")
    return found
