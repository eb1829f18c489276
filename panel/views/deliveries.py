"""Deliveries: the history of every attempt, in both directions."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from flask import Response, abort

from conductor import pages
from i18n import gettext_noop
from models.ledger import Delivery
from models.query_hints import no_index
from panel.rendering import csv_export
from panel.views.base import PanelView, cursor_from_query, page, query_filters

OUTCOMES = ["delivered", "unchanged", "skipped", "failed", "dead", "waiting", "applied", "echo", "kept"]

_COLUMNS = (
    "id", "at", "subscriber", "record_id", "external_id", "direction", "operation", "outcome", "error", "reason",
    "attempt", "request_id", "duration",
)  # fmt: skip


class Deliveries(PanelView):
    title, path, icon, group = gettext_noop("Deliveries"), "/deliveries", "deliveries", gettext_noop("History")
    key = "v"

    @page("/")
    def index(self) -> str:
        filters = query_filters("subscriber", "record", "outcome")
        indexed, scanned = [], []
        if "record" in filters:
            indexed.append(Delivery.record_id == filters["record"])
        if "subscriber" in filters:
            indexed.append(self._of(filters["subscriber"], filters))
        if "outcome" in filters:
            scanned.append(Delivery.outcome == filters["outcome"])
        with self.conductor.database.read() as connection:
            listing = pages.newest(connection, Delivery, indexed, scanned, cursor_from_query())
        return self.render(
            "panel/deliveries.html",
            listing=listing,
            filters=filters,
            subscribers=self.conductor.subscribers,
            outcomes=OUTCOMES,
        )

    @page("/export.csv", needs="export")
    def export(self) -> Response:
        filters = query_filters("subscriber", "record", "outcome")
        conditions = [self._of(filters["subscriber"], filters)] if "subscriber" in filters else []
        columns = {"record": Delivery.record_id, "outcome": Delivery.outcome}
        conditions += [column == filters[name] for name, column in columns.items() if name in filters]
        return csv_export.download(self, Delivery, _COLUMNS, conditions, **filters)

    @staticmethod
    def _of(subscriber: str, filters: dict[str, str]) -> Any:
        """Filter by subscriber. With a record filter, use only the record's index: a record has few deliveries."""
        mine = Delivery.subscriber == subscriber
        return no_index(mine) if "record" in filters else mine

    @page("/<number:number>")
    def one(self, number: int) -> str:
        with self.conductor.database.read() as connection:
            row = connection.execute(sa.select(Delivery.__table__).where(Delivery.id == number)).one_or_none()
        if row is None:
            abort(404)
        return self.render("panel/delivery.html", row=row, subscribers=self.conductor.subscribers)
