"""Conflicts: fields that changed on both sides, shown with their base and both values, for an operator to resolve."""

from __future__ import annotations

from itertools import groupby
from typing import Any, Literal

from flask import abort, request, url_for
from werkzeug import Response

from conductor import conflict_lists
from i18n import gettext, gettext_noop
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

#: How a conflict was resolved -> the label.
_CHOICES = {
    "ours": gettext_noop("internal value"),
    "theirs": gettext_noop("external value"),
    "agreed": gettext_noop("equal values"),
    "gone": gettext_noop("record deleted"),
}


class Conflicts(PanelView):
    title, path, icon = gettext_noop("Conflicts"), "/conflicts", "conflicts"
    key = "c"

    @page("/")
    def index(self) -> str:
        filters = query_filters("subscriber", "field", "state")
        resolved = filters.get("state") == "resolved"
        newest = conflict_lists.newest_resolved if resolved else conflict_lists.newest_open
        with self.conductor.database.read() as connection:
            listing = newest(connection, filters.get("subscriber"), filters.get("field"), cursor_from_query())
            kinds = [] if resolved else conflict_lists.kinds(connection)
            names = conflict_lists.record_labels(connection, self.conductor.subscribers, listing.rows)
        tasks = [row for row in self.conductor.tasks.list("resolve", limit=1) if is_current(row)]
        # Group the fields of a record; the record with the newest conflict comes first.
        together = sorted(listing.rows, key=lambda row: (-self._newest(listing.rows, row.link_id), row.link_id, row.id))
        records = [list(rows) for _link, rows in groupby(together, key=lambda row: row.link_id)]
        return self.render(
            "panel/conflicts.html",
            listing=listing,
            records=records,
            names=names,
            kinds=kinds,
            choices=_CHOICES,
            task=shown(self.conductor.tasks, tasks[0]) if tasks else None,
            filters=filters,
            subscribers=self.conductor.subscribers,
        )

    @action("/resolve", needs="resolve")
    def resolve(self) -> Response:
        """Resolve fields of one record: `choice.<number>` is ours or theirs; `all` is the choice for each `number`."""
        everything = form_field("all")
        numbers = {text: number for text in request.form.getlist("number") if (number := parse_id(text)) is not None}
        picked = {number: everything or form_field(f"choice.{text}") for text, number in numbers.items()}
        choices = {number: choice for number, choice in picked.items() if choice}
        if not choices:
            return redirect_error(
                gettext("Choose the internal or the external value first."), url_for("conflicts.index")
            )
        for choice in choices.values():
            _checked(choice)
        with self.conductor.database.read() as connection:
            known = conflict_lists.existing(connection, choices)
        if known != set(choices):
            abort(404)
        for number, choice in choices.items():
            try:
                self.conductor.conflicts.resolve(number, _checked(choice), self.current_email)
            except ValueError as error:
                return redirect_error(
                    gettext("Conflict #{number} was not resolved: {error}.", number=number, error=error),
                    url_for("conflicts.index"),
                )
        resolved = ", ".join(f"#{number} {gettext(_CHOICES[choice])}" for number, choice in choices.items())
        return redirect_success(gettext("Resolved: {resolved}.", resolved=resolved), url_for("conflicts.index"))

    @page("/resolve-all", needs="resolve")
    def confirm_all(self) -> str:
        """Ask for confirmation before all conflicts of a field are resolved: their count and some examples."""
        subscriber, path, choice = (request.args.get(name, "") for name in ("subscriber", "field", "choice"))
        self._known(subscriber)
        with self.conductor.database.read() as connection:
            count, rows = conflict_lists.of_field(connection, subscriber, path)
            names = conflict_lists.record_labels(connection, self.conductor.subscribers, rows)
        return self.render(
            "panel/conflicts_of_field.html",
            subscriber=subscriber,
            path=path,
            choice=_checked(choice),
            count=count,
            examples=rows,
            names=names,
        )

    @action("/resolve-all", needs="resolve")
    def resolve_all(self) -> Response:
        self._known(form_field("subscriber"))
        number = self.conductor.tasks.start(
            "resolve",
            self.current_email,
            subscriber=form_field("subscriber"),
            path=form_field("field"),
            choice=_checked(form_field("choice")),
        )
        return redirect_success(gettext("Task #{number} resolves them.", number=number), url_for("conflicts.index"))

    def _known(self, subscriber: str) -> None:
        if subscriber not in self.conductor.subscribers:
            abort(404)

    @staticmethod
    def _newest(rows: list[Any], link_id: int) -> int:
        return max(int(row.id) for row in rows if row.link_id == link_id)


def _checked(choice: str) -> Choice:
    if choice not in ("ours", "theirs"):
        abort(400, gettext("Choose the internal or the external value."))
    return "ours" if choice == "ours" else "theirs"
