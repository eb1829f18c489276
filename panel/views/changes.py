"""Changes: what happened to records in the internal database, as captured."""

from __future__ import annotations

from models.catalogues import CATALOGUES
from models.ledger import Change
from panel import paging
from panel.views.base import PanelView, before, page, wanted


class Changes(PanelView):
    title, path, icon, group = "Changes", "/changes", "changes", "History"

    @page("/")
    def index(self) -> str:
        filters = wanted("catalogue", "record", "state")
        catalogues = [filters["catalogue"]] if "catalogue" in filters else list(CATALOGUES)
        waiting = [Change.relayed_at.is_(None)] if filters.get("state") == "waiting" else []
        with self.conductor.database.read() as connection:
            if "record" in filters:
                of = [
                    [Change.catalogue == name, Change.record_id == filters["record"], *waiting] for name in catalogues
                ]
                pages = [paging.newest(connection, Change, conditions, before=before()) for conditions in of]
                listing = paging.merge(pages)
            else:
                scanned = [Change.catalogue == filters["catalogue"]] if "catalogue" in filters else []
                listing = paging.newest(connection, Change, waiting, scanned, before())
        return self.render("panel/changes.html", listing=listing, filters=filters, catalogues=CATALOGUES)
