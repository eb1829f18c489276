"""Dead letters, grouped by kind, to retry or discard."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from flask import Response as FlaskResponse
from flask import abort, flash, redirect, url_for
from werkzeug import Response

from conductor import REUSED_ID, DeadLetterFilter, dead_letter_groups, pages, remedy
from i18n import gettext, gettext_noop
from models.ledger import DeadLetter
from models.rows import DeadLetterRow
from panel.rendering import csv_export
from panel.views.base import (
    PanelView,
    action,
    cursor_from_query,
    form_field,
    page,
    parse_id,
    query_filters,
    redirect_error,
    redirect_success,
)
from panel.views.tasks import is_current, shown

_COLUMNS = (
    "id", "at", "subscriber", "record_id", "error", "code", "message", "fields", "fingerprint", "closed_at",
    "resolution",
)  # fmt: skip


#: Number of recent tasks about dead letters that the page shows.
_TASKS = 5


class DeadLetters(PanelView):
    title, path, icon = gettext_noop("Dead letters"), "/dead-letters", "dead-letters"
    key = "d"

    @page("/")
    def index(self) -> Response:
        filters = query_filters(*dead_letter_groups.FILTERS, "state")
        tasks = [row for row in self.conductor.tasks.list("retry", "discard", limit=_TASKS) if is_current(row)]
        with self.conductor.database.read() as connection:
            groups = dead_letter_groups.open_groups(connection, filters)
            matching = dead_letter_groups.count_open(connection, filters, groups)
            errors = dead_letter_groups.errors(connection)
            listing = _find(connection, filters)
            again = dead_letter_groups.being_retried(connection, map(DeadLetterRow._make, listing.rows))
        chosen = next((g for g in groups if g.fingerprint == filters.get("fingerprint")), None)
        values = {
            "listing": listing,
            "again": again,
            "kinds": groups,
            "most": dead_letter_groups.GROUPS,
            "chosen": chosen,
            "filters": filters,
            "matching": matching,
            "tasks": [shown(self.conductor.tasks, row) for row in tasks],
            "subscribers": self.conductor.subscribers,
            "errors": errors,
        }
        version = (groups, matching, errors, listing, sorted(again), [tuple(row) for row in tasks])
        return self.live("panel/dead_letters.html", version, lambda: values)

    @page("/export.csv", needs="export")
    def export(self) -> FlaskResponse:
        filters = query_filters(*dead_letter_groups.FILTERS, "state")
        is_closed = filters.get("state") == "closed"
        conditions = [DeadLetter.closed_at.is_not(None) if is_closed else DeadLetter.closed_at.is_(None)]
        conditions += [
            getattr(DeadLetter, name) == filters[name] for name in dead_letter_groups.FILTERS if name in filters
        ]
        return csv_export.download(self, DeadLetter, _COLUMNS, conditions, **filters)

    @page("/<number:number>")
    def one(self, number: int) -> Response:
        with self.conductor.database.read() as connection:
            found = connection.execute(sa.select(DeadLetter.__table__).where(DeadLetter.id == number)).one_or_none()
            if found is None:
                abort(404)
            row = DeadLetterRow._make(found)
            again = dead_letter_groups.being_retried(connection, [row])
        values = {
            "row": row,
            "again": row.id in again,
            "remedy": remedy(row.code),
            "asks": row.code == REUSED_ID,
            "subscribers": self.conductor.subscribers,
        }
        return self.live("panel/dead_letter.html", (tuple(row), values["again"]), lambda: values)

    @action("/retry", needs="retry")
    def retry(self) -> Response:
        """Retry one letter immediately, or start a task for all that match."""
        if (number := _chosen_one()) is not None:
            count = int(self.conductor.dead_letters.retry(number, self.current_email))
            return self._report(count, gettext_noop("1 dead letter will be retried."))
        task = self.conductor.tasks.start("retry", self.current_email, letters=_letters())
        return self._report(
            self.conductor.tasks.get(task).total or 0,
            gettext_noop("1 dead letter will be retried."),
            gettext_noop("{count} dead letters will be retried in the background."),
        )

    @action("/try-one", needs="retry")
    def try_one(self) -> Response:
        """Retry the newest of the letters that match, to see whether a fix helps."""
        with self.conductor.database.read() as connection:
            newest = sa.select(sa.func.max(DeadLetter.id)).where(*_letters().conditions())
            number = connection.execute(newest).scalar()
        if number is None or not self.conductor.dead_letters.retry(number, self.current_email):
            return redirect_error(
                gettext("Nothing to retry: these dead letters are already closed."), url_for(".index")
            )
        flash(gettext("This dead letter will be retried. This page shows the result."), "success")
        return redirect(url_for(".one", number=number), code=303)

    @action("/<number:number>/decide", needs="retry")
    def decide(self, number: int) -> Response:
        """Take the operator's word on whether a record under a deleted one's id is the same one."""
        try:
            self.conductor.relinking.decide(number, self.current_email, same=form_field("same") == "yes")
        except ValueError as error:
            return redirect_error(gettext("Not decided: {error}.", error=error), url_for(".index"))
        return redirect_success(gettext("Decided. The record is read again."), url_for(".one", number=number))

    @action("/discard", needs="discard")
    def discard(self) -> Response:
        """Discard one letter immediately, or start a task for all that match."""
        reason = form_field("reason")
        if not reason:
            return redirect_error(gettext("Enter a reason."), url_for(".index"))
        if (number := _chosen_one()) is not None:
            count = int(self.conductor.dead_letters.discard(number, self.current_email, reason))
            return self._report(count, gettext_noop("1 dead letter was discarded."))
        task = self.conductor.tasks.start("discard", self.current_email, letters=_letters(), reason=reason)
        return self._report(
            self.conductor.tasks.get(task).total or 0,
            gettext_noop("1 dead letter was discarded."),
            gettext_noop("{count} dead letters will be discarded in the background."),
        )

    @staticmethod
    def _report(count: int, one: str, many: str = "") -> Response:
        if count == 0:
            message = gettext("Nothing to do: these dead letters are already closed.")
        else:
            message = gettext(one) if count == 1 else gettext(many, count=f"{count:,}")
        return redirect_success(message, url_for(".index"))


def _find(connection: sa.Connection, filters: dict[str, str]) -> pages.Listing:
    if filters.get("state") == "closed":
        conditions: list[Any] = [
            getattr(DeadLetter, name) == filters[name] for name in dead_letter_groups.FILTERS if name in filters
        ]
        closed = [DeadLetter.closed_at.is_not(None), *conditions]
        return pages.newest(connection, DeadLetter, scanned=closed, before=cursor_from_query())
    # One index holds the open dead letters of each subscriber, newest first, and another those of each of its kinds.
    # There are few subscribers; one that no longer exists may still have dead letters.
    subscribers = sa.select(DeadLetter.subscriber).distinct().where(DeadLetter.closed_at.is_(None))
    names = [filters["subscriber"]] if "subscriber" in filters else connection.scalars(subscribers).all()
    is_open, kind = (
        dead_letter_groups.open_conditions({name: filters[name] for name in filters if name == "error"}),
        filters.get("fingerprint"),
    )
    listings = []
    for name in names:
        indexed = [*is_open, DeadLetter.subscriber == name] if kind else is_open
        within = (DeadLetter.fingerprint, kind) if kind else (DeadLetter.subscriber, name)
        listings.append(pages.newest(connection, DeadLetter, indexed, before=cursor_from_query(), within=within))
    return pages.merge(listings)


def _chosen_one() -> int | None:
    """Return the id in a form, or None if the form means all letters that match its filters."""
    if not (typed := form_field("id")):
        return None
    if (number := parse_id(typed)) is None:
        abort(404)
    return number


def _letters() -> DeadLetterFilter:
    """Return the filters of a form."""
    chosen = DeadLetterFilter(
        subscriber=form_field("subscriber") or None,
        error=form_field("error") or None,
        fingerprint=form_field("fingerprint") or None,
    )
    if chosen == DeadLetterFilter() and form_field("all") != "yes":
        abort(400, gettext("Nothing was selected."))
    return chosen
