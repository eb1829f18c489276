"""Inbox: what came in, with headers and body, what it led to, and what was refused; replayed one by one or by time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from flask import Response as FlaskResponse
from flask import abort, redirect, url_for
from werkzeug import Response

from conductor import POLLED, ReplayWindow, pages, safe_headers
from i18n import gettext, gettext_noop
from models.counting import DISPLAY_LIMIT
from models.history import first_since
from models.ledger import DeadLetter, Delivery, Inbox, RefusedWebhook
from models.query_hints import no_index
from panel.rendering import csv_export
from panel.views.base import (
    PanelView,
    action,
    cursor_from_query,
    form_field,
    page,
    query_filters,
    redirect_error,
    redirect_success,
)

_COLUMNS = ("id", "received_at", "system", "kind", "event_id", "state", "attempts", "finished_at", "result")

#: Deliveries shown of what one webhook led to.
_MOST = 50


class InboxPage(PanelView):
    title, path, icon, group = gettext_noop("Inbox"), "/inbox", "inbox", gettext_noop("History")

    @page("/")
    def index(self) -> str:
        filters = query_filters("system", "event", "state", "since", "until")
        window = _window(filters)
        with self.conductor.database.read() as connection:
            indexed, scanned, upto = self._conditions(connection, filters)
            listing = pages.newest(connection, Inbox, indexed, scanned, upto)
        count = self.conductor.replay.count(window, DISPLAY_LIMIT) if window else None
        return self.render(
            "panel/inbox.html",
            listing=listing,
            filters=filters,
            count=count,
            systems=sorted(self.conductor.systems),
        )

    @page("/<number:number>")
    def one(self, number: int) -> Response:
        with self.conductor.database.read() as connection:
            row = connection.execute(sa.select(Inbox.__table__).where(Inbox.id == number)).one_or_none()
            led = sa.select(Delivery.__table__).where(Delivery.inbox_id == number).order_by(Delivery.id.desc())
            deliveries = connection.execute(led.limit(_MOST)).all()
            is_open = (DeadLetter.inbox_id == number, DeadLetter.closed_at.is_(None))
            letter = connection.execute(sa.select(DeadLetter.id).where(*is_open)).scalar()
        if row is None:
            abort(404)
        values = {
            "row": row,
            "headers": safe_headers(row.headers or {}),
            "deliveries": deliveries,
            "letter": letter,
            "is_poll": row.kind == POLLED,
            "subscribers": self.conductor.subscribers,
        }
        return self.live("panel/inbox_event.html", (tuple(row), len(deliveries), letter), lambda: values)

    @page("/refused")
    def refused(self) -> str:
        """The newest webhooks that were not taken, of each system."""
        newest = sa.select(RefusedWebhook.__table__).order_by(RefusedWebhook.at.desc(), RefusedWebhook.id.desc())
        with self.conductor.database.read() as connection:
            rows = connection.execute(newest.limit(pages.PAGE)).all()
        return self.render("panel/refused_webhooks.html", rows=rows)

    @action("/<number:number>/replay", needs="replay")
    def replay(self, number: int) -> Response:
        try:
            self.conductor.replay.one(number, self.current_email)
        except ValueError as error:
            return redirect_error(gettext("Not replayed: {error}.", error=error), url_for(".one", number=number))
        return redirect_success(
            gettext("It is applied once more; the page tells what comes of it."), url_for(".one", number=number)
        )

    @action("/replay", needs="replay")
    def replay_window(self) -> Response:
        """All that a system sent in a stretch of time, as a task."""
        window = _window({name: form_field(name) for name in ("system", "since", "until")})
        if window is None:
            return redirect_error(gettext("Choose a system, and when the window begins and ends."), url_for(".index"))
        try:
            task = self.conductor.tasks.start("replay", self.current_email, window=window)
        except ValueError as error:
            return redirect_error(gettext("Not replayed: {error}.", error=error), url_for(".index"))
        return redirect(url_for("tasks.one", number=task), code=303)

    @page("/export.csv", needs="export")
    def export(self) -> FlaskResponse:
        filters = query_filters("system", "event", "state", "since", "until")
        with self.conductor.database.read() as connection:
            indexed, scanned, upto = self._conditions(connection, filters)
        end = [Inbox.id < upto] if upto is not None else []
        return csv_export.download(self, Inbox, _COLUMNS, [*indexed, *map(no_index, scanned), *end], **filters)

    def _conditions(
        self, connection: sa.Connection, filters: dict[str, str]
    ) -> tuple[list[Any], list[Any], int | None]:
        """What an index serves, what has to be looked for, and below which id to begin."""
        indexed: list[Any] = []
        scanned: list[Any] = []
        upto = cursor_from_query()
        if "event" in filters:
            systems = [filters["system"]] if "system" in filters else list(self.conductor.systems)
            indexed += [Inbox.system.in_(systems), Inbox.event_id == filters["event"]]
        elif "system" in filters:
            scanned.append(Inbox.system == filters["system"])
        if filters.get("state") in ("waiting", "dead"):
            # Written out: an index over some rows is not used for a value that comes as a parameter.
            indexed.append(Inbox.state == sa.literal_column(f"'{filters['state']}'"))
        elif "state" in filters:
            scanned.append(Inbox.state == filters["state"])
        if since := instant(filters.get("since", "")):
            indexed.append(Inbox.id >= first_since(connection, Inbox, Inbox.received_at, since))
        if until := instant(filters.get("until", "")):
            end = first_since(connection, Inbox, Inbox.received_at, until)
            upto = min(upto or end, end)
        return indexed, scanned, upto


def _window(filters: dict[str, str]) -> ReplayWindow | None:
    since, until = instant(filters.get("since", "")), instant(filters.get("until", ""))
    if "system" in filters and filters["system"] and since and until:
        return ReplayWindow(filters["system"], since, until)
    return None


def instant(text: str) -> datetime | None:
    """What a person chose as date and time, in UTC; None for anything else."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when
