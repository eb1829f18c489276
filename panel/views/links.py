"""Links: what each subscriber knows of each record."""

from __future__ import annotations

import sqlalchemy as sa
from flask import abort

from models.ledger import Link
from panel import paging
from panel.views.base import PanelView, before, page, wanted


class Links(PanelView):
    title, path, icon, group = "Links", "/links", "links", "History"

    @page("/")
    def index(self) -> str:
        filters = wanted("subscriber", "record", "external", "state")
        with self.conductor.database.read() as connection:
            listing = self._find(connection, filters)
        return self.render(
            "panel/links.html",
            listing=listing,
            filters=filters,
            subscribers=self.conductor.subscribers,
        )

    @page("/<number:number>")
    def one(self, number: int) -> str:
        with self.conductor.database.read() as connection:
            row = connection.execute(sa.select(Link.__table__).where(Link.id == number)).one_or_none()
        if row is None:
            abort(404)
        return self.render("panel/link.html", row=row, subscribers=self.conductor.subscribers)

    def _find(self, connection: sa.Connection, filters: dict[str, str]) -> paging.Listing:
        conditions = []
        if "record" in filters:
            conditions.append(Link.record_id == filters["record"])
        if "external" in filters:
            conditions.append(Link.external_id == filters["external"])
        owed = filters.get("state") == "owed"
        if owed:
            conditions += [Link.owed_change > Link.synced_change, Link.dead_at.is_(None)]
        if "subscriber" not in filters and not owed:
            return paging.newest(connection, Link, conditions, before=before())
        # What is owed is indexed per subscriber, so it is asked for per subscriber.
        names = [filters["subscriber"]] if "subscriber" in filters else list(self.conductor.subscribers)
        if owed or conditions:
            pages = [
                paging.newest(connection, Link, [*conditions, Link.subscriber == name], before=before())
                for name in names
            ]
            return paging.merge(pages)
        return paging.newest(connection, Link, scanned=[Link.subscriber == names[0]], before=before())
