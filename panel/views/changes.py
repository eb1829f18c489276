"""Changes: the captured changes of records in the database."""

from __future__ import annotations

from typing import Any

from flask import Response

from conductor import pages
from i18n import gettext_noop
from models.catalogues import CATALOGUES
from models.ledger import Change
from models.query_hints import no_index
from panel.rendering import csv_export
from panel.views.base import PanelView, cursor_from_query, page, query_filters

_COLUMNS = ("id", "at", "catalogue", "record_id", "operation", "origin", "unsubscribe", "relayed_at")


class Changes(PanelView):
    title, path, icon, group = gettext_noop("Changes"), "/changes", "changes", gettext_noop("History")
    key = "h"

    @page("/")
    def index(self) -> str:
        filters = query_filters("catalogue", "record", "state")
        catalogues = [filters["catalogue"]] if "catalogue" in filters else list(CATALOGUES)
        waiting = [Change.relayed_at.is_(None)] if filters.get("state") == "waiting" else []
        with self.conductor.database.read() as connection:
            if "record" in filters:
                of = [
                    [Change.catalogue == name, Change.record_id == filters["record"], *waiting] for name in catalogues
                ]
                listings = [
                    pages.newest(connection, Change, conditions, before=cursor_from_query()) for conditions in of
                ]
                listing = pages.merge(listings)
            else:
                scanned = [Change.catalogue == filters["catalogue"]] if "catalogue" in filters else []
                listing = pages.newest(connection, Change, waiting, scanned, cursor_from_query())
        return self.render("panel/changes.html", listing=listing, filters=filters, catalogues=CATALOGUES)

    @page("/export.csv", needs="export")
    def export(self) -> Response:
        filters = query_filters("catalogue", "record", "state")
        conditions: list[Any] = [Change.relayed_at.is_(None)] if filters.get("state") == "waiting" else []
        if "record" in filters:
            # Always filter by catalogue: the index starts with it.
            catalogues = [filters["catalogue"]] if "catalogue" in filters else list(CATALOGUES)
            conditions += [Change.catalogue.in_(catalogues), Change.record_id == filters["record"]]
        elif "catalogue" in filters:
            conditions.append(no_index(Change.catalogue == filters["catalogue"]))
        return csv_export.download(self, Change, _COLUMNS, conditions, **filters)
