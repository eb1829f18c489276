"""Audit: who did what."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import sqlalchemy as sa
from flask import Response, abort

from models.ledger import AuditEntry
from panel import paging
from panel.exports import csv_file
from panel.views.base import PanelView, before, page, wanted

#: Rows read at once for an export.
_PAGE = 1000


class Audit(PanelView):
    title, path, icon, group, needs = "Audit", "/audit", "audit", "Administration", "audit"

    @page("/", needs="audit")
    def index(self) -> str:
        filters = wanted("who", "action", "what", "since", "until")
        with self.conductor.database.read() as connection:
            listing = paging.newest(connection, AuditEntry, scanned=_conditions(filters), before=before())
        return self.render("panel/audit.html", listing=listing, filters=filters)

    @page("/export", needs="audit")
    def export(self) -> Response:
        """All that match, newest first, as CSV."""
        conditions = _conditions(wanted("who", "action", "what", "since", "until"))
        headings = ("id", "when (UTC)", "who", "action", "what", "details")
        return csv_file("syncflow-audit", headings, self._rows(conditions))

    def _rows(self, conditions: list[Any]) -> Iterator[tuple[Any, ...]]:
        trail = AuditEntry.__table__
        below: int | None = None
        while True:
            statement = sa.select(trail).where(*conditions).order_by(trail.c.id.desc()).limit(_PAGE)
            if below is not None:
                statement = statement.where(trail.c.id < below)
            # A connection for a page, not for the whole download: a slow reader holds up nobody.
            with self.conductor.database.read() as connection:
                rows = connection.execute(statement).all()
            for row in rows:
                yield row.id, row.at.isoformat(), row.who, row.action, row.target, row.details
            if len(rows) < _PAGE:
                return
            below = rows[-1].id


def _conditions(filters: dict[str, str]) -> list[Any]:
    trail = AuditEntry
    conditions: list[Any] = []
    if who := filters.get("who"):
        conditions.append(trail.who == who.lower() if "@" in who else trail.who.startswith(who, autoescape=True))
    if action := filters.get("action"):
        conditions.append(trail.action.startswith(action, autoescape=True))
    if what := filters.get("what"):
        conditions.append(trail.target.contains(what, autoescape=True))
    if since := filters.get("since"):
        conditions.append(trail.at >= _day(since))
    if until := filters.get("until"):
        conditions.append(trail.at < _day(until) + timedelta(days=1))
    return conditions


def _day(text: str) -> datetime:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        abort(400, f"{text!r} is no day such as 2026-12-31.")
    if not 1900 < day.year < 9999:
        abort(400, f"{text} is too far away.")
    return datetime.combine(day, time(), UTC)
