"""Conflicts: fields that changed on both sides, base, ours and theirs side by side, for a person to settle."""

from __future__ import annotations

import sqlalchemy as sa
from flask import abort, url_for
from werkzeug import Response

from models.ledger import Conflict
from panel import paging
from panel.views.base import PanelView, action, before, done, field, page, refused, wanted


class Conflicts(PanelView):
    title, path, icon = "Conflicts", "/conflicts", "conflicts"

    @page("/")
    def index(self) -> str:
        filters = wanted("subscriber", "state")
        settled = filters.get("state") == "settled"
        state = Conflict.settled_at.is_not(None) if settled else Conflict.settled_at.is_(None)
        subscriber = [Conflict.subscriber == filters["subscriber"]] if "subscriber" in filters else []
        with self.conductor.database.read() as connection:
            # Open ones are few and have an index; settled ones are history.
            if settled:
                listing = paging.newest(connection, Conflict, scanned=[state, *subscriber], before=before())
            else:
                listing = paging.newest(connection, Conflict, [state, *subscriber], before=before())
        return self.render(
            "panel/conflicts.html", listing=listing, filters=filters, subscribers=self.conductor.subscribers
        )

    @action("/<number:number>/settle", needs="settle")
    def settle(self, number: int) -> Response:
        with self.conductor.database.read() as connection:
            exists = connection.execute(sa.select(Conflict.id).where(Conflict.id == number)).scalar()
        if exists is None:
            abort(404)
        choice = field("choice")
        if choice not in ("ours", "theirs"):
            abort(400, "Choose ours or theirs.")
        try:
            self.conductor.settle_conflict(number, "ours" if choice == "ours" else "theirs", self.who)
        except ValueError as error:
            return refused(f"Not settled: {error}.", url_for("conflicts.index"))
        return done(f"Conflict #{number} is settled: {choice} it is.", url_for("conflicts.index"))
