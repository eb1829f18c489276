"""Unsubscriptions: list, create and lift rules, and check whether a record is held back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from flask import abort, request, url_for
from werkzeug import Response

from conductor import unsubscription_lists
from i18n import gettext, gettext_noop, ngettext
from models import search
from models.base import utcnow
from models.catalogues import Catalogue
from panel.forms import record_list
from panel.forms.record_list import Found
from panel.views.base import LARGEST_SMALL_ID, PanelView, action, cursor_from_query, form_field, page, redirect_success

OPERATIONS = {
    "": gettext_noop("all operations"),
    "create": gettext_noop("create only"),
    "update": gettext_noop("update only"),
    "delete": gettext_noop("delete only"),
}

#: Records in one list at most.
_LONGEST_LIST = 100_000


@dataclass(frozen=True)
class Held:
    """The unsubscriptions that cover a record of a subscriber, and whether a change is held back."""

    subscriber: str
    catalogue: str
    record_id: str
    label: str
    #: (the rule's row, the operations it stops)
    rules: list[tuple[Any, str]]
    kept_back: bool


class Unsubscriptions(PanelView):
    title, path, icon = gettext_noop("Unsubscriptions"), "/unsubscriptions", "unsubscriptions"
    key = "u"

    @page("/")
    def index(self) -> str:
        return self._page()

    @page("/<small:number>")
    def one(self, number: int) -> str:
        with self.conductor.database.read() as connection:
            row = unsubscription_lists.one(connection, number)
            listed = unsubscription_lists.records(connection, number)
        if row is None:
            abort(404)
        return self.render(
            "panel/unsubscription.html",
            row=row,
            records=listed[: unsubscription_lists.LISTED_RECORDS],
            more=len(listed) > unsubscription_lists.LISTED_RECORDS,
            now=utcnow(),
            missed=self.conductor.unsubscriptions.missed(number),
            operations=OPERATIONS,
        )

    @action("/", needs="unsubscribe")
    def create(self) -> Response | str | tuple[str, int]:
        """Create an unsubscription, or first add a record to the list or check the list."""
        problems: list[str] = []
        entries = record_list.split(form_field("records"))
        pressed = form_field("do") or "create"
        if (upload := request.files.get("file")) and upload.filename:
            try:
                entries += record_list.from_csv(upload.read())
            except ValueError as error:
                problems.append(
                    gettext("{filename} could not be read: {error}.", filename=upload.filename, error=error)
                )
        if len(entries) > _LONGEST_LIST:
            problems.append(
                gettext(
                    "A list can hold at most {most:,} records; this one has {n:,}.", most=_LONGEST_LIST, n=len(entries)
                )
            )
            return self._page(problems, entries=entries), 422
        target = form_field("target")
        if target not in self._targets():
            problems.append(gettext("Choose a system or a subscriber."))
            if pressed != "create":
                return self._page(problems, entries=entries), 422
        wants_list = form_field("scope") == "records"
        catalogues = self._catalogues(target)
        if pressed == "find":
            entries += self._search(catalogues, form_field("find"), problems)
        with self.conductor.database.read() as connection:
            found = record_list.look_up(connection, catalogues, entries)
        if pressed in ("find", "preview") or (problems and upload):
            return self._page(problems, entries=entries, found=found)
        operation = form_field("operation")
        if operation not in OPERATIONS:
            problems.append(gettext("Choose the operations to stop."))
        if wants_list and not entries:
            problems.append(gettext("List at least one record, or choose all records."))
        if entries and not wants_list:
            problems.append(
                gettext("You entered a list of records but chose all records. Clear the list, or choose only these.")
            )
        until = _until(problems)
        reason = form_field("reason")
        if not reason:
            problems.append(gettext("Enter a reason."))
        if wants_list and found.unknown and form_field("unknown") != "yes":
            problems.append(gettext("Some records in the list were not found, see below."))
        if problems:
            return self._page(problems, entries=entries, found=found if wants_list and entries else None), 422
        try:
            number = self.conductor.unsubscriptions.create(
                target, operation or None, found.ids if wants_list else None, until, reason, self.current_email
            )
        except ValueError as error:
            return self._page([f"{error}."], entries=entries, found=found), 422
        return redirect_success(gettext("Unsubscription #{number} is active.", number=number), url_for(".index"))

    @action("/<small:number>/lift", needs="unsubscribe")
    def lift(self, number: int) -> Response:
        with self.conductor.database.read() as connection:
            known = unsubscription_lists.one(connection, number)
        if known is None:
            abort(404)
        if form_field("deliver") == "yes":
            count = self.conductor.unsubscriptions.lift(number, self.current_email, deliver=True)
            return redirect_success(
                ngettext(
                    "Unsubscription #{number} is lifted. {count} record will be delivered.",
                    "Unsubscription #{number} is lifted. {count} records will be delivered.",
                    count,
                    number=number,
                    count=f"{count:,}",
                ),
                url_for(".index"),
            )
        self.conductor.unsubscriptions.lift(number, self.current_email)
        words = gettext(
            "Unsubscription #{number} is lifted. Each held-back record is delivered with its next change.",
            number=number,
        )
        return redirect_success(words, url_for(".index"))

    def _targets(self) -> list[str]:
        return sorted(self.conductor.systems) + sorted(self.conductor.subscribers)

    def _catalogues(self, target: str) -> list[Catalogue]:
        meant = [s.records for s in self.conductor.subscribers.values() if target in (s.system, s.name(), "")]
        return list({catalogue.name: catalogue for catalogue in meant}.values())

    def _search(self, catalogues: list[Catalogue], text: str, problems: list[str]) -> list[str]:
        """Return the ids of records with this id, email or name."""
        with self.conductor.database.read() as connection:
            found = _candidates(connection, catalogues, text) if text else []
        if not found:
            words = (
                gettext("No record found for {text!r}.", text=text)
                if text
                else gettext("Enter an id, an email or a name.")
            )
            problems.append(words)
        return [record_id for _catalogue, record_id, _label in found]

    def _held(self, text: str) -> list[Held]:
        """Return the rules that hold a record back, for each subscriber of its catalogue."""
        held = []
        with self.conductor.database.read() as connection:
            for catalogue, record_id, label in _candidates(connection, self._catalogues(""), text):
                for subscriber in self.conductor.of_catalogue(catalogue.name):
                    rows, kept_back = unsubscription_lists.holding(connection, subscriber, record_id, utcnow())
                    rules = [(row, OPERATIONS[row.operation or ""]) for row in rows]
                    held.append(Held(subscriber.name(), catalogue.name, record_id, label, rules, kept_back))
        return held

    def _page(
        self, problems: list[str] | None = None, *, entries: list[str] | None = None, found: Found | None = None
    ) -> str:
        target = request.args.get("target", "").strip()
        with self.conductor.database.read() as connection:
            listing = unsubscription_lists.newest(connection, target, cursor_from_query(LARGEST_SMALL_ID))
        asked = request.args.get("record", "").strip()
        return self.render(
            "panel/unsubscriptions.html",
            rows=listing.rows,
            older=listing.older,
            targets=self._targets(),
            target=target,
            operations=OPERATIONS,
            problems=problems or [],
            form=request.form,
            entries=entries or [],
            found=found,
            asked=asked,
            held=self._held(asked) if asked else [],
            now=utcnow(),
        )


def _candidates(connection: sa.Connection, catalogues: list[Catalogue], text: str) -> list[tuple[Catalogue, str, str]]:
    """Return (catalogue, record id, label) of a few records with this id, email or name."""
    hits: list[tuple[Catalogue, str, str]] = []
    for catalogue in catalogues:
        ids = [text] if record_list.key_of(catalogue, text) is not None else []
        ids += search.exactly(connection, catalogue, text, dict.fromkeys(("email", catalogue.label)), limit=5)
        records = catalogue.read(connection, ids)
        hits += [
            (catalogue, record_id, str(record.get(catalogue.label) or "")) for record_id, record in records.items()
        ]
    return hits


def _until(problems: list[str]) -> datetime | None:
    text = form_field("until")
    if not text:
        return None
    try:
        until = datetime.fromisoformat(text)
    except ValueError:
        problems.append(gettext("The end is not a date and time such as 2026-12-31T18:00."))
        return None
    until = until.replace(tzinfo=UTC) if until.tzinfo is None else until
    if until <= utcnow():
        problems.append(gettext("The end is in the past."))
    return until
