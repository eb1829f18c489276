"""Inbox: what came in, with its body, and what it led to."""

from __future__ import annotations

import re
from typing import Any

import sqlalchemy as sa
from flask import abort

from conductor.redaction import MASK
from models.ledger import Inbox
from panel import paging
from panel.views.base import PanelView, before, page, wanted

#: Headers that prove who sent a webhook, or carry a login.
_SECRET_HEADER = re.compile(r"authorization|cookie|signature|token|secret|key|password", re.IGNORECASE)


class InboxPage(PanelView):
    title, path, icon, group = "Inbox", "/inbox", "inbox", "History"

    @page("/")
    def index(self) -> str:
        filters = wanted("system", "event", "state")
        indexed, scanned = [], []
        if "event" in filters:
            systems = [filters["system"]] if "system" in filters else list(self.conductor.systems)
            indexed += [Inbox.system.in_(systems), Inbox.event_id == filters["event"]]
        elif "system" in filters:
            scanned.append(Inbox.system == filters["system"])
        if filters.get("state") == "waiting":
            indexed.append(Inbox.state == sa.literal_column("'waiting'"))
        elif "state" in filters:
            scanned.append(Inbox.state == filters["state"])
        with self.conductor.database.read() as connection:
            listing = paging.newest(connection, Inbox, indexed, scanned, before())
        return self.render("panel/inbox.html", listing=listing, filters=filters, systems=sorted(self.conductor.systems))

    @page("/<number:number>")
    def one(self, number: int) -> str:
        with self.conductor.database.read() as connection:
            row = connection.execute(sa.select(Inbox.__table__).where(Inbox.id == number)).one_or_none()
        if row is None:
            abort(404)
        return self.render("panel/inbox_one.html", row=row, headers=safe_headers(row.headers or {}))


def safe_headers(headers: dict[str, Any]) -> dict[str, str]:
    """Headers with the values of those that are secret hidden."""
    return {name: MASK if _SECRET_HEADER.search(name) else str(value) for name, value in headers.items()}
