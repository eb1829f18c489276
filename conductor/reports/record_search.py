"""Find records by id, by external id, and by the words in their search columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from conductor.records import read_record
from conductor.reports.pages import STRETCH
from i18n import gettext
from models import search
from models.catalogues import CATALOGUES, Catalogue, Record
from models.ledger import Link

#: The number of results that a search shows.
_MOST = 20


@dataclass(frozen=True)
class Hit:
    """A record that a search found, and what it matched."""

    catalogue: str
    record_id: str
    label: str
    found_by: str


@dataclass(frozen=True)
class Found:
    """The results of a search; `searched` is the number of newest rows it was limited to, where there is no index."""

    hits: list[Hit]
    searched: int | None = None


def find(connection: sa.Connection, text: str) -> Found:
    """Return the records that match an id, an external id or words, the most certain matches first."""
    hits: dict[tuple[str, str], Hit] = {}
    for catalogue in CATALOGUES.values():
        for hit in [*_by_id(connection, catalogue, text), *_by_external_id(connection, catalogue, text)]:
            hits.setdefault((hit.catalogue, hit.record_id), hit)
    for catalogue in CATALOGUES.values():
        for hit in _by_exact_value(connection, catalogue, text):
            hits.setdefault((hit.catalogue, hit.record_id), hit)
    if hits and "@" in text:
        return Found(list(hits.values())[:_MOST])  # a complete address: its words would match many other records
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
    record = read_record(connection, catalogue, text)
    return [_hit(catalogue, text, record, gettext("id"))] if record else []


def _by_external_id(connection: sa.Connection, catalogue: Catalogue, text: str) -> list[Hit]:
    rows = connection.execute(
        sa.select(Link.record_id, Link.subscriber)
        .where(Link.external_id == text, Link.subscriber.like(f"%.{catalogue.name}"))
        .limit(_MOST)
    ).all()
    records, _ = catalogue.read_each(connection, [row.record_id for row in rows])
    return [
        _hit(
            catalogue,
            row.record_id,
            records.get(row.record_id, {}),
            gettext("id in {subscriber}", subscriber=row.subscriber),
        )
        for row in rows
    ]


def _by_exact_value(connection: sa.Connection, catalogue: Catalogue, text: str) -> list[Hit]:
    hits = []
    for name in catalogue.search_columns:
        column = catalogue.table.c[name]
        if search.has_index(column):
            hits += _hits(connection, catalogue, name, column.in_({text, text.lower()}))
    return hits


def _by_words(connection: sa.Connection, catalogue: Catalogue, text: str) -> list[Hit]:
    keys = search.find(connection, catalogue, text, _MOST)
    columns = gettext(" and ").join(catalogue.search_columns)
    return _hits(connection, catalogue, gettext("words in {columns}", columns=columns), catalogue.key.in_(keys))


def _by_beginning(connection: sa.Connection, catalogue: Catalogue, text: str) -> list[Hit]:
    """Without a full-text index: return the newest records with a column that begins with the text."""
    hits = []
    stretch = _newest_stretch(connection, catalogue)
    for name in catalogue.search_columns:
        starts = sa.func.lower(catalogue.table.c[name]).startswith(text.lower(), autoescape=True)
        hits += _hits(connection, catalogue, name, starts, *stretch)
    return hits


def _newest_stretch(connection: sa.Connection, catalogue: Catalogue) -> list[Any]:
    if catalogue.key.type.python_type is int:
        top = connection.execute(sa.select(sa.func.max(catalogue.key))).scalar() or 0
        return [catalogue.key > top - STRETCH]
    newest = sa.select(catalogue.key).order_by(catalogue.key.desc()).limit(STRETCH)
    return [catalogue.key.in_(newest)]


def _hits(connection: sa.Connection, catalogue: Catalogue, found_by: str, *where: Any) -> list[Hit]:
    records, unreadable = catalogue.read_each(connection, catalogue.ids(connection, *where, limit=_MOST))
    records |= {record_id: {} for record_id in unreadable}
    return [_hit(catalogue, record_id, record, found_by) for record_id, record in records.items()]


def _hit(catalogue: Catalogue, record_id: str, record: Record, found_by: str) -> Hit:
    return Hit(catalogue.name, record_id, str(record.get(catalogue.label) or ""), found_by)
