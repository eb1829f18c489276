"""One record's story over all systems, the search that leads there, and editing the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from flask import abort, flash, redirect, request, url_for
from werkzeug import Response

from conductor import story
from conductor.editing import EditConflict, EditRefused, as_typed, editable
from i18n import mark, say
from models import search
from models.catalogues import CATALOGUES, Catalogue
from models.indexes import unindexed
from models.ledger import DeadLetter, Link
from panel import telling
from panel.paging import STRETCH
from panel.views.base import PanelView, action, done, page, refused

#: Most results a search shows.
_MOST = 20


@dataclass(frozen=True)
class Hit:
    """A record a search found, and by what."""

    catalogue: str
    record_id: str
    label: str
    found_by: str


class Records(PanelView):
    title, path = mark("Records"), "/record"
    in_menu = False

    @page("/")
    def search(self) -> Response | str:
        text = request.args.get("q", "").strip()
        with self.conductor.database.read() as connection:
            found = find(connection, text) if text else Found([])
        if len(found.hits) == 1:
            hit = found.hits[0]
            return redirect(url_for(".one", catalogue=hit.catalogue, record_id=hit.record_id))
        return self.render("panel/search.html", text=text, hits=found.hits, searched=found.searched)

    @page("/<catalogue>/<path:record_id>")
    def one(self, catalogue: str, record_id: str) -> Response:
        about = _catalogue(catalogue)
        names = [name for name, s in self.conductor.subscribers.items() if s.catalogue == catalogue]
        with self.conductor.database.read() as connection:
            record = _read(connection, about, record_id)
            standings = story.standings(self.conductor.hub, connection, catalogue, record_id, exists=record is not None)
            timeline = story.timeline(connection, catalogue, names, record_id, request.args.get("before"))
        if record is None and not timeline.entries and all(standing.link is None for standing in standings):
            abort(404)
        values = {
            "catalogue": about,
            "record_id": record_id,
            "record": record,
            "standings": standings,
            "timeline": timeline,
            "subscribers": self.conductor.subscribers,
            "told": telling.told,
            "short": telling.short,
            "system_title": telling.title,
        }
        return self.live("panel/record.html", (record, standings, timeline), lambda: values)

    @page("/<catalogue>/<path:record_id>/edit", needs="edit")
    def edit(self, catalogue: str, record_id: str) -> str:
        about = _catalogue(catalogue)
        with self.conductor.database.read() as connection:
            record = _read(connection, about, record_id)
        if record is None:
            abort(404)
        typed = {column.name: as_typed(record[column.name]) for column in editable(about)}
        return self._form(about, record_id, typed, typed, {})

    @action("/<catalogue>/<path:record_id>/edit", needs="edit")
    def save(self, catalogue: str, record_id: str) -> Response | tuple[str, int]:
        about = _catalogue(catalogue)
        names = [column.name for column in editable(about)]
        # A browser sends texts with the line ends of old.
        typed = {n: request.form[f"to.{n}"].replace("\r\n", "\n") for n in names if f"to.{n}" in request.form}
        seen = {n: request.form[f"was.{n}"].replace("\r\n", "\n") for n in names if f"was.{n}" in request.form}
        here = url_for(".one", catalogue=catalogue, record_id=record_id)
        try:
            count = self.conductor.editing.edit(catalogue, record_id, typed, seen, self.who)
        except EditRefused as error:
            return self._form(about, record_id, typed, seen, error.problems), 422
        except EditConflict as error:
            # What was typed stays. Who saves again has seen what stands there by now.
            flash(say("Nothing was saved: {error}.", error=error), "error")
            return self._form(about, record_id, typed, {**seen, **error.moved}, {}, error.moved), 409
        except ValueError as error:
            return refused(say("Nothing was saved: {error}.", error=error), here)
        if not count:
            return done(say("Nothing was changed."), here)
        return done(say("Saved. It flows to every system from here, as any change does."), here)

    @action("/<catalogue>/<path:record_id>/sync", needs="retry")
    def sync(self, catalogue: str, record_id: str) -> Response:
        """Have it looked at again by all its subscribers, as if it had just changed."""
        _catalogue(catalogue)
        here = url_for(".one", catalogue=catalogue, record_id=record_id)
        try:
            self.conductor.editing.sync(catalogue, record_id, self.who)
        except ValueError as error:
            return refused(f"{error}.", here)
        return done(say("Every system is asked to take it now; what differs there is sent."), here)

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
            words=_words_per_column(self.conductor, letters),
        )


def _catalogue(name: str) -> Catalogue:
    if name not in CATALOGUES:
        abort(404)
    return CATALOGUES[name]


def _letters(connection: sa.Connection, subscribers: Any, about: Catalogue, record_id: str) -> list[Any]:
    """The open dead letters of a record."""
    names = [name for name, s in subscribers.items() if s.catalogue == about.name]
    mine = (
        DeadLetter.record_id == record_id,
        unindexed(DeadLetter.subscriber.in_(names)),
        DeadLetter.closed_at.is_(None),
    )
    return list(connection.execute(sa.select(DeadLetter.__table__).where(*mine).order_by(DeadLetter.id).limit(20)))


def _words_per_column(conductor: Any, letters: list[Any]) -> dict[str, list[str]]:
    """What the systems say of each column: their words per external field, led back by the mapping in force."""
    found: dict[str, list[str]] = {}
    for letter in letters:
        fields = conductor.mapping(letter.subscriber)[0].fields
        column_of = {entry.path: column for column, entry in fields.items()}
        for path, words in (letter.fields or {}).items():
            if path in column_of:
                found.setdefault(column_of[path], []).append(f"{telling.title(letter.subscriber)}: {words}")
    return found


# --- finding --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What a search found; `searched`: how many rows it looked through where no index could tell."""

    hits: list[Hit]
    searched: int | None = None


def find(connection: sa.Connection, text: str) -> Found:
    """Records by id, external id, or the words people know them by; the surest first."""
    hits: dict[tuple[str, str], Hit] = {}
    for catalogue in CATALOGUES.values():
        for hit in [*_by_id(connection, catalogue, text), *_by_external_id(connection, catalogue, text)]:
            hits.setdefault((hit.catalogue, hit.record_id), hit)
    for catalogue in CATALOGUES.values():
        for hit in _by_exact_value(connection, catalogue, text):
            hits.setdefault((hit.catalogue, hit.record_id), hit)
    if hits and "@" in text:
        return Found(list(hits.values())[:_MOST])  # a whole address was meant, and the words in many are many
    searched = None
    for catalogue in CATALOGUES.values():
        if search.installed(connection, catalogue):
            by_words = _by_words(connection, catalogue, text)
        else:
            by_words, searched = _by_beginning(connection, catalogue, text), STRETCH
        for hit in by_words:
            hits.setdefault((hit.catalogue, hit.record_id), hit)
    return Found(list(hits.values())[:_MOST], searched)


def _by_id(connection: sa.Connection, catalogue: Catalogue, text: str) -> list[Hit]:
    record = _read(connection, catalogue, text)
    return [_hit(catalogue, record, say("id"))] if record else []


def _by_external_id(connection: sa.Connection, catalogue: Catalogue, text: str) -> list[Hit]:
    rows = connection.execute(
        sa.select(Link.record_id, Link.subscriber)
        .where(Link.external_id == text, Link.subscriber.like(f"%.{catalogue.name}"))
        .limit(_MOST)
    ).all()
    records = catalogue.read(connection, [row.record_id for row in rows])
    return [
        _hit(
            catalogue,
            records.get(row.record_id, {catalogue.key.name: row.record_id}),
            say("id in {subscriber}", subscriber=row.subscriber),
        )
        for row in rows
    ]


def _by_exact_value(connection: sa.Connection, catalogue: Catalogue, text: str) -> list[Hit]:
    hits = []
    for name in catalogue.search_columns:
        column = catalogue.table.c[name]
        if search.has_index(column):
            statement = sa.select(catalogue.table).where(column.in_({text, text.lower()})).limit(_MOST)
            hits += [_hit(catalogue, row, name) for row in connection.execute(statement).mappings()]
    return hits


def _by_words(connection: sa.Connection, catalogue: Catalogue, text: str) -> list[Hit]:
    keys = search.find(connection, catalogue, text, _MOST)
    statement = sa.select(catalogue.table).where(catalogue.key.in_(keys)).order_by(catalogue.key)
    columns = say(" and ").join(catalogue.search_columns)
    return [
        _hit(catalogue, row, say("words in {columns}", columns=columns))
        for row in connection.execute(statement).mappings()
    ]


def _by_beginning(connection: sa.Connection, catalogue: Catalogue, text: str) -> list[Hit]:
    """Without an index of words: what begins like it, in the newest stretch of the table."""
    hits = []
    stretch = _newest_stretch(connection, catalogue)
    for name in catalogue.search_columns:
        starts = sa.func.lower(catalogue.table.c[name]).startswith(text.lower(), autoescape=True)
        statement = sa.select(catalogue.table).where(starts, *stretch).order_by(catalogue.key).limit(_MOST)
        hits += [_hit(catalogue, row, name) for row in connection.execute(statement).mappings()]
    return hits


def _newest_stretch(connection: sa.Connection, catalogue: Catalogue) -> list[Any]:
    if catalogue.key.type.python_type is int:
        top = connection.execute(sa.select(sa.func.max(catalogue.key))).scalar() or 0
        return [catalogue.key > top - STRETCH]
    newest = sa.select(catalogue.key).order_by(catalogue.key.desc()).limit(STRETCH)
    return [catalogue.key.in_(newest)]


def _hit(catalogue: Catalogue, record: Any, found_by: str) -> Hit:
    label = record.get(catalogue.label) or ""
    return Hit(catalogue.name, str(record[catalogue.key.name]), str(label), found_by)


def _read(connection: sa.Connection, catalogue: Catalogue, record_id: str) -> dict[str, Any] | None:
    try:
        key = catalogue.key_of(record_id)
    except (ValueError, ArithmeticError):
        return None
    if isinstance(key, int) and not -(2**63) <= key < 2**63:
        return None
    return catalogue.read(connection, [record_id]).get(record_id)
