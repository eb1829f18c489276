"""One record's story over all systems, and the search that leads there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from flask import abort, redirect, request, url_for
from werkzeug import Response

from models.catalogues import CATALOGUES, Catalogue
from models.ledger import Change, DeadLetter, Delivery, Link
from panel.paging import STRETCH
from panel.views.base import PanelView, page

#: Most results a search shows, and most rows of each kind a timeline shows.
_MOST = 20
_TIMELINE = 100


@dataclass(frozen=True)
class Hit:
    """A record a search found, and by what."""

    catalogue: str
    record_id: str
    label: str
    found_by: str


class Records(PanelView):
    title, path = "Records", "/record"
    in_menu = False

    @page("/")
    def search(self) -> Response | str:
        text = request.args.get("q", "").strip()
        with self.conductor.database.read() as connection:
            hits = find(connection, text) if text else []
        if len(hits) == 1:
            return redirect(url_for(".one", catalogue=hits[0].catalogue, record_id=hits[0].record_id))
        return self.render("panel/search.html", text=text, hits=hits)

    @page("/<catalogue>/<path:record_id>")
    def one(self, catalogue: str, record_id: str) -> str:
        if catalogue not in CATALOGUES:
            abort(404)
        names = [name for name, s in self.conductor.subscribers.items() if s.catalogue == catalogue]
        with self.conductor.database.read() as connection:
            record = _read(connection, CATALOGUES[catalogue], record_id)
            links = _links(connection, names, record_id)
            letters = {link.id: letter for link in links if (letter := _letter(connection, link))}
            timeline = _timeline(connection, catalogue, names, record_id)
        if record is None and not links and not timeline:
            abort(404)
        return self.render(
            "panel/record.html",
            catalogue=CATALOGUES[catalogue],
            record_id=record_id,
            record=record,
            links=links,
            letters=letters,
            missing=sorted(set(names) - {link.subscriber for link in links}),
            timeline=timeline,
            subscribers=self.conductor.subscribers,
        )


def find(connection: sa.Connection, text: str) -> list[Hit]:
    """Records by id, external id, email or the column people know them by; the surest first."""
    hits: dict[tuple[str, str], Hit] = {}
    for catalogue in CATALOGUES.values():
        for hit in [*_by_id(connection, catalogue, text), *_by_external_id(connection, catalogue, text)]:
            hits.setdefault((hit.catalogue, hit.record_id), hit)
    for catalogue in CATALOGUES.values():
        for hit in _by_text(connection, catalogue, text):
            hits.setdefault((hit.catalogue, hit.record_id), hit)
    return list(hits.values())[:_MOST]


def _by_id(connection: sa.Connection, catalogue: Catalogue, text: str) -> list[Hit]:
    record = _read(connection, catalogue, text)
    return [_hit(catalogue, record, "id")] if record else []


def _by_external_id(connection: sa.Connection, catalogue: Catalogue, text: str) -> list[Hit]:
    rows = connection.execute(
        sa.select(Link.record_id, Link.subscriber)
        .where(Link.external_id == text, Link.subscriber.like(f"%.{catalogue.name}"))
        .limit(_MOST)
    ).all()
    records = catalogue.read(connection, [row.record_id for row in rows])
    return [
        _hit(catalogue, records.get(row.record_id, {catalogue.key.name: row.record_id}), f"id in {row.subscriber}")
        for row in rows
    ]


def _by_text(connection: sa.Connection, catalogue: Catalogue, text: str) -> list[Hit]:
    columns = [name for name in dict.fromkeys(("email", catalogue.label)) if name in catalogue.table.c]
    hits = []
    for name in columns:
        column = catalogue.table.c[name]
        starts = sa.func.lower(column).startswith(text.lower(), autoescape=True)
        for statement in (
            # At once, by its index; then what begins like it, in the newest stretch of the table.
            sa.select(catalogue.table).where(column.in_({text, text.lower()})) if _indexed(column) else None,
            sa.select(catalogue.table).where(starts, *_newest_stretch(connection, catalogue)),
        ):
            if statement is not None:
                rows = connection.execute(statement.order_by(catalogue.key).limit(_MOST)).mappings()
                hits += [_hit(catalogue, dict(row), name) for row in rows]
    return hits


def _newest_stretch(connection: sa.Connection, catalogue: Catalogue) -> list[Any]:
    if catalogue.key.type.python_type is not int:
        return []
    top = connection.execute(sa.select(sa.func.max(catalogue.key))).scalar() or 0
    return [catalogue.key > top - STRETCH]


def _indexed(column: sa.Column[Any]) -> bool:
    indexes = getattr(column.table, "indexes", ())
    return bool(column.unique) or any(next(iter(index.columns), None) is column for index in indexes)


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


def _links(connection: sa.Connection, names: list[str], record_id: str) -> list[Any]:
    links = Link.__table__
    statement = sa.select(links).where(links.c.subscriber.in_(names), links.c.record_id == record_id)
    return list(connection.execute(statement.order_by(links.c.subscriber)))


def _letter(connection: sa.Connection, link: Any) -> Any:
    letters = DeadLetter.__table__
    statement = sa.select(letters).where(letters.c.link_id == link.id, letters.c.closed_at.is_(None))
    return connection.execute(statement).one_or_none()


@dataclass(frozen=True)
class Moment:
    """One line of a timeline: a change here, or a delivery out or in."""

    at: datetime
    kind: str
    row: Any


def _timeline(connection: sa.Connection, catalogue: str, names: list[str], record_id: str) -> list[Moment]:
    changes, deliveries = Change.__table__, Delivery.__table__
    captured = sa.select(changes).where(changes.c.catalogue == catalogue, changes.c.record_id == record_id)
    tried = sa.select(deliveries).where(deliveries.c.record_id == record_id, deliveries.c.subscriber.in_(names))
    moments = [
        Moment(row.at, "change", row)
        for row in connection.execute(captured.order_by(changes.c.id.desc()).limit(_TIMELINE))
    ]
    moments += [
        Moment(row.at, row.direction, row)
        for row in connection.execute(tried.order_by(deliveries.c.id.desc()).limit(_TIMELINE))
    ]
    return sorted(moments, key=lambda moment: moment.at, reverse=True)[:_TIMELINE]
