"""Conflicts: fields that changed on both sides, base, ours and theirs side by side, for a person to settle."""

from __future__ import annotations

from itertools import groupby
from typing import Any, Literal

import sqlalchemy as sa
from flask import abort, request, url_for
from werkzeug import Response

from conductor import pages
from i18n import gettext, gettext_noop
from models.ledger import Conflict
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

Choice = Literal["ours", "theirs"]

#: Kinds of conflict offered to be settled alike, and examples shown before.
_KINDS = 12
_EXAMPLES = 5


class Conflicts(PanelView):
    title, path, icon = gettext_noop("Conflicts"), "/conflicts", "conflicts"

    @page("/")
    def index(self) -> str:
        filters = query_filters("subscriber", "field", "state")
        settled = filters.get("state") == "settled"
        state = Conflict.resolved_at.is_not(None) if settled else Conflict.resolved_at.is_(None)
        columns = {"subscriber": Conflict.subscriber, "field": Conflict.path}
        chosen = [column == filters[name] for name, column in columns.items() if name in filters]
        with self.conductor.database.read() as connection:
            # Open ones are few and have an index; settled ones are history.
            if settled:
                listing = pages.newest(connection, Conflict, scanned=[state, *chosen], before=cursor_from_query())
                kinds: list[Any] = []
            else:
                kinds = self._kinds(connection)
                listing = self._open(connection, filters)
            names = self._names(connection, listing.rows)
        settling = [row for row in self.conductor.tasks.list("resolve", limit=1) if is_current(row)]
        # One record's fields stand together, the record with the newest of them first.
        together = sorted(listing.rows, key=lambda row: (-self._newest(listing.rows, row.link_id), row.link_id, row.id))
        records = [list(rows) for _link, rows in groupby(together, key=lambda row: row.link_id)]
        return self.render(
            "panel/conflicts.html",
            listing=listing,
            records=records,
            names=names,
            kinds=kinds,
            task=shown(self.conductor.tasks, settling[0]) if settling else None,
            filters=filters,
            subscribers=self.conductor.subscribers,
        )

    @staticmethod
    def _open(connection: sa.Connection, filters: dict[str, str]) -> pages.Listing:
        """Those that wait for a person, asked for by subscriber as their index has them."""
        is_open = Conflict.resolved_at.is_(None)
        conditions = [is_open, Conflict.path == filters["field"]] if "field" in filters else [is_open]
        names = [filters["subscriber"]] if "subscriber" in filters else _subscribers(connection)
        listings = [
            pages.newest(
                connection, Conflict, conditions, before=cursor_from_query(), within=(Conflict.subscriber, name)
            )
            for name in names
        ]
        return pages.merge(listings)

    @action("/settle", needs="settle")
    def settle(self) -> Response:
        """Settle some fields of one record: `choice.<number>` is ours or theirs; `all` is it for each `number`."""
        everything = form_field("all")
        numbers = {text: number for text in request.form.getlist("number") if (number := parse_id(text)) is not None}
        picked = {number: everything or form_field(f"choice.{text}") for text, number in numbers.items()}
        choices = {number: choice for number, choice in picked.items() if choice}
        if not choices:
            return redirect_error(gettext("Choose ours or theirs first."), url_for("conflicts.index"))
        for choice in choices.values():
            _checked(choice)
        with self.conductor.database.read() as connection:
            known = connection.execute(sa.select(Conflict.id).where(Conflict.id.in_(choices))).scalars().all()
        if set(known) != set(choices):
            abort(404)
        for number, choice in choices.items():
            try:
                self.conductor.conflicts.resolve(number, _checked(choice), self.current_email)
            except ValueError as error:
                return redirect_error(
                    gettext("Conflict #{number} is not settled: {error}.", number=number, error=error),
                    url_for("conflicts.index"),
                )
        settled = ", ".join(f"#{number} {gettext(choice)}" for number, choice in choices.items())
        return redirect_success(gettext("Settled: {settled}.", settled=settled), url_for("conflicts.index"))

    @page("/alike", needs="settle")
    def alike(self) -> str:
        """Before all of one field are settled alike: how many, and what it means for some of them."""
        subscriber, path, choice = (request.args.get(name, "") for name in ("subscriber", "field", "choice"))
        self._known(subscriber)
        is_open = (Conflict.subscriber == subscriber, Conflict.path == path, Conflict.resolved_at.is_(None))
        with self.conductor.database.read() as connection:
            count = connection.execute(sa.select(sa.func.count(Conflict.id)).where(*is_open)).scalar_one()
            rows = connection.execute(
                sa.select(Conflict.__table__).where(*is_open).order_by(Conflict.id.desc()).limit(_EXAMPLES)
            ).all()
            names = self._names(connection, rows)
        return self.render(
            "panel/conflicts_of_field.html",
            subscriber=subscriber,
            path=path,
            choice=_checked(choice),
            count=count,
            examples=rows,
            names=names,
        )

    @action("/alike", needs="settle")
    def settle_alike(self) -> Response:
        self._known(form_field("subscriber"))
        number = self.conductor.tasks.start(
            "resolve",
            self.current_email,
            subscriber=form_field("subscriber"),
            path=form_field("field"),
            choice=_checked(form_field("choice")),
        )
        return redirect_success(gettext("Task #{number} settles them.", number=number), url_for("conflicts.index"))

    def _known(self, subscriber: str) -> None:
        if subscriber not in self.conductor.subscribers:
            abort(404)

    @staticmethod
    def _kinds(connection: sa.Connection) -> list[Any]:
        """Open conflicts by subscriber and field, the most first; the index of open ones bounds the work."""
        count = sa.func.count().label("count")
        statement = sa.select(Conflict.subscriber, Conflict.path, count).where(Conflict.resolved_at.is_(None))
        grouped = statement.group_by(Conflict.subscriber, Conflict.path).order_by(count.desc(), Conflict.path)
        return list(connection.execute(grouped.limit(_KINDS)))

    @staticmethod
    def _newest(rows: list[Any], link_id: int) -> int:
        return max(int(row.id) for row in rows if row.link_id == link_id)

    def _names(self, connection: sa.Connection, rows: Any) -> dict[tuple[str, str], str]:
        """(subscriber, record id) -> what people know the record by."""
        names: dict[tuple[str, str], str] = {}
        for subscriber in {row.subscriber for row in rows} & set(self.conductor.subscribers):
            catalogue = self.conductor.subscribers[subscriber].records
            ids = {row.record_id for row in rows if row.subscriber == subscriber}
            for record_id, record in catalogue.read(connection, ids).items():
                names[subscriber, record_id] = str(record.get(catalogue.label) or "")
        return names


def _subscribers(connection: sa.Connection) -> list[str]:
    """Those with open conflicts, configured or not."""
    names = sa.select(Conflict.subscriber).where(Conflict.resolved_at.is_(None)).distinct()
    return list(connection.scalars(names))


def _checked(choice: str) -> Choice:
    if choice not in ("ours", "theirs"):
        abort(400, gettext("Choose ours or theirs."))
    return "ours" if choice == "ours" else "theirs"
