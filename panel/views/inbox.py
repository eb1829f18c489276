"""Inbox: stored and refused events with their headers, body and result; one event or a period can be replayed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from flask import Response as FlaskResponse
from flask import abort, redirect, url_for
from werkzeug import Response

from conductor import INBOX_KIND_POLL, ReplayWindow, pages
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
from redaction import body_text, safe_headers

_COLUMNS = ("id", "received_at", "system", "kind", "event_id", "state", "attempts", "finished_at", "result")

#: Resulting deliveries shown for one event.
_MOST = 50


class InboxPage(PanelView):
    title, path, icon, group = gettext_noop("Inbox"), "/inbox", "inbox", gettext_noop("History")
    key = "i"

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
            "body": body_text(row.body),
            "headers": safe_headers(row.headers or {}),
            "deliveries": deliveries,
            "letter": letter,
            "is_poll": row.kind == INBOX_KIND_POLL,
            "subscribers": self.conductor.subscribers,
        }
        return self.live("panel/inbox_event.html", (tuple(row), len(deliveries), letter), lambda: values)

    @action("/<number:number>/body", needs="bodies")
    def body(self, number: int) -> str:
        """Show the body as it was received. A POST, because it leaves an audit row."""
        with self.conductor.database.write() as connection:
            row = connection.execute(sa.select(Inbox.__table__).where(Inbox.id == number)).one_or_none()
            if row is None:
                abort(404)
            self.conductor.context.audit(connection, self.current_email, "inbox.body", f"{row.system} {number}")
        return self.render("panel/inbox_body.html", row=row)

    @page("/refused")
    def refused(self) -> str:
        """Show the newest refused webhooks of each system."""
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
            gettext("The event will be applied again. This page shows the result."), url_for(".one", number=number)
        )

    @action("/<number:number>/discard", needs="discard")
    def discard(self, number: int) -> Response:
        try:
            self.conductor.replay.discard(number, self.current_email, form_field("reason"))
        except ValueError as error:
            return redirect_error(gettext("Not discarded: {error}.", error=error), url_for(".one", number=number))
        return redirect_success(gettext("The event is discarded."), url_for(".one", number=number))

    @action("/replay", needs="replay")
    def replay_window(self) -> Response:
        """Start a task that replays all events of a system in a period."""
        window = _window({name: form_field(name) for name in ("system", "since", "until")})
        if window is None:
            return redirect_error(gettext("Choose a system, a start and an end."), url_for(".index"))
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
        """Return conditions that an index serves, conditions to scan for, and the id to start below."""
        indexed: list[Any] = []
        scanned: list[Any] = []
        upto = cursor_from_query()
        if "event" in filters:
            systems = [filters["system"]] if "system" in filters else list(self.conductor.systems)
            indexed += [Inbox.system.in_(systems), Inbox.event_id == filters["event"]]
        elif "system" in filters:
            scanned.append(Inbox.system == filters["system"])
        if filters.get("state") in ("waiting", "dead"):
            # A literal: a partial index is not used for a value that is a parameter.
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
    """Parse a date and time as UTC; return None for anything else."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when
