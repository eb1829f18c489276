"""Audit: which user did what."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from flask import Response, abort

from conductor import pages
from i18n import gettext, gettext_noop
from models.ledger import AuditEntry
from panel.rendering import csv_export
from panel.views.base import PanelView, cursor_from_query, page, query_filters


class Audit(PanelView):
    title, path, icon, group, needs = gettext_noop("Audit"), "/audit", "audit", gettext_noop("Administration"), "audit"
    key = "a"

    @page("/", needs="audit")
    def index(self) -> str:
        filters = query_filters("who", "action", "what", "since", "until")
        with self.conductor.database.read() as connection:
            listing = pages.newest(connection, AuditEntry, scanned=_conditions(filters), before=cursor_from_query())
        return self.render("panel/audit.html", listing=listing, filters=filters)

    @page("/export.csv", needs="audit")
    def export(self) -> Response:
        """Export all matching entries as CSV, newest first."""
        filters = query_filters("who", "action", "what", "since", "until")
        columns = ("id", "at", "who", "action", "target", "details")
        return csv_export.download(self, AuditEntry, columns, _conditions(filters), **filters)


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
        abort(400, gettext("{text!r} is not a date such as 2026-12-31.", text=text))
    if not 1900 < day.year < 9999:
        abort(400, gettext("{text} is out of range.", text=text))
    return datetime.combine(day, time(), UTC)
