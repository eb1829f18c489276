"""Links: the state of each record with each subscriber."""

from __future__ import annotations

import sqlalchemy as sa
from flask import Response, abort

from conductor import PENDING_LINKS, link_row, pages
from i18n import gettext_noop
from models.ledger import Link
from panel.rendering import csv_export
from panel.views.base import PanelView, cursor_from_query, page, query_filters

_COLUMNS = (
    "id", "subscriber", "record_id", "external_id", "synced_at", "owed_since", "attempts", "retry_at", "dead_at",
    "unlinked_at", "unsubscription_id", "open_conflicts",
)  # fmt: skip


class Links(PanelView):
    title, path, icon, group = gettext_noop("Links"), "/links", "links", gettext_noop("History")
    key = "l"

    @page("/")
    def index(self) -> str:
        filters = query_filters("subscriber", "record", "external", "state")
        with self.conductor.database.read() as connection:
            listing = self._find(connection, filters)
            statuses = self.conductor.reports.link_statuses(connection, map(link_row, listing.rows))
        return self.render(
            "panel/links.html",
            listing=listing,
            statuses=statuses,
            filters=filters,
            subscribers=self.conductor.subscribers,
        )

    @page("/export.csv", needs="export")
    def export(self) -> Response:
        filters = query_filters("subscriber", "record", "external", "state")
        columns = {"subscriber": Link.subscriber, "record": Link.record_id, "external": Link.external_id}
        conditions = [columns[name] == value for name, value in filters.items() if name in columns]
        if filters.get("state") == "owed":
            conditions += PENDING_LINKS
        return csv_export.download(self, Link, _COLUMNS, conditions, **filters)

    @page("/<number:number>")
    def one(self, number: int) -> str:
        with self.conductor.database.read() as connection:
            row = connection.execute(sa.select(Link.__table__).where(Link.id == number)).one_or_none()
            if row is None:
                abort(404)
            link = link_row(row)
            status = self.conductor.reports.link_statuses(connection, [link])[link.id]
        return self.render("panel/link.html", row=link, status=status, subscribers=self.conductor.subscribers)

    def _find(self, connection: sa.Connection, filters: dict[str, str]) -> pages.Listing:
        conditions = []
        if "record" in filters:
            conditions.append(Link.record_id == filters["record"])
        if "external" in filters:
            conditions.append(Link.external_id == filters["external"])
        owed = filters.get("state") == "owed"
        if owed:
            conditions += PENDING_LINKS
        names = [filters["subscriber"]] if "subscriber" in filters else list(self.conductor.subscribers)
        if owed:
            # The index of pending links starts with the subscriber.
            listings = [
                pages.newest(connection, Link, conditions, before=cursor_from_query(), within=(Link.subscriber, name))
                for name in names
            ]
            return pages.merge(listings)
        if "subscriber" not in filters:
            return pages.newest(connection, Link, conditions, before=cursor_from_query())
        mine = [Link.subscriber == names[0]]
        if conditions:
            return pages.newest(connection, Link, [*conditions, *mine], before=cursor_from_query())
        return pages.newest(connection, Link, scanned=mine, before=cursor_from_query())
