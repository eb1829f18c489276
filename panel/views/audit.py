"""Audit: who did what."""

from __future__ import annotations

from flask import Response

from models.ledger import AuditEntry
from panel import exporting, paging
from panel.views.base import PanelView, before, page, wanted


class Audit(PanelView):
    title, path, icon, group, needs = "Audit", "/audit", "audit", "Administration", "audit"

    @page("/", needs="audit")
    def index(self) -> str:
        filters = wanted("who", "action")
        scanned = [getattr(AuditEntry, name) == value for name, value in filters.items()]
        with self.conductor.database.read() as connection:
            listing = paging.newest(connection, AuditEntry, scanned=scanned, before=before())
        return self.render("panel/audit.html", listing=listing, filters=filters)

    @page("/export.csv", needs="audit")
    def export(self) -> Response:
        filters = wanted("who", "action")
        conditions = [getattr(AuditEntry, name) == value for name, value in filters.items()]
        columns = ("id", "at", "who", "action", "target", "details")
        return exporting.download(self, AuditEntry, columns, conditions, **filters)
