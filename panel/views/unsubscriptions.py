"""Unsubscriptions: what does not flow, to whom, until when and why."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import sqlalchemy as sa
from flask import abort, request, url_for
from werkzeug import Response

from models.base import utcnow
from models.ledger import Unsubscription, UnsubscriptionRecord
from panel.paging import PAGE
from panel.views.base import PanelView, action, before, done, field, page

OPERATIONS = {"": "everything", "create": "create only", "update": "update only", "delete": "delete only"}

#: Most records one list may hold.
_LONGEST_LIST = 100_000
#: How many records of a list one page shows.
_SHOWN = 500


class Unsubscriptions(PanelView):
    title, path, icon = "Unsubscriptions", "/unsubscriptions", "unsubscriptions"

    @page("/")
    def index(self) -> str:
        return self._page()

    @page("/<number:number>")
    def one(self, number: int) -> str:
        with self.conductor.database.read() as connection:
            row = connection.execute(
                sa.select(Unsubscription.__table__).where(Unsubscription.id == number)
            ).one_or_none()
            records = connection.execute(
                sa.select(UnsubscriptionRecord.record_id)
                .where(UnsubscriptionRecord.unsubscription_id == number)
                .order_by(UnsubscriptionRecord.record_id)
                .limit(_SHOWN + 1)
            ).scalars()
            listed = list(records)
        if row is None:
            abort(404)
        return self.render(
            "panel/unsubscription.html", row=row, records=listed[:_SHOWN], more=len(listed) > _SHOWN, now=utcnow()
        )

    @action("/", needs="unsubscribe")
    def create(self) -> Response | tuple[str, int]:
        problems: list[str] = []
        target = field("target")
        if target not in self._targets():
            problems.append("Choose a system or a subscriber.")
        operation = field("operation")
        if operation not in OPERATIONS:
            problems.append("Choose what does not flow.")
        records = record_list(field("records"))
        if field("scope") == "records" and not records:
            problems.append("List at least one record, or choose all records.")
        if len(records) > _LONGEST_LIST:
            problems.append(f"At most {_LONGEST_LIST:,} records fit one list; this one has {len(records):,}.")
        until = _until(problems)
        reason = field("reason")
        if not reason:
            problems.append("Say why: others will ask.")
        if problems:
            return self._page(problems), 422
        listed = records if field("scope") == "records" else None
        number = self.conductor.unsubscribe(target, operation or None, listed, until, reason, self.who)
        return done(f"Unsubscription #{number} is in force.", url_for(".index"))

    @action("/<number:number>/lift", needs="unsubscribe")
    def lift(self, number: int) -> Response:
        with self.conductor.database.read() as connection:
            known = connection.execute(sa.select(Unsubscription.id).where(Unsubscription.id == number)).one_or_none()
        if known is None:
            abort(404)
        if field("bring") == "yes":
            brought = self.conductor.lift(number, self.who, bring=True)
            return done(f"Unsubscription #{number} is lifted; {brought:,} records are on their way.", url_for(".index"))
        self.conductor.lift(number, self.who)
        words = "What it kept back flows with each record's next change."
        return done(f"Unsubscription #{number} is lifted. {words}", url_for(".index"))

    def _targets(self) -> list[str]:
        return sorted(self.conductor.systems) + sorted(self.conductor.subscribers)

    def _page(self, problems: list[str] | None = None) -> str:
        rules = Unsubscription.__table__
        statement = sa.select(rules).order_by(rules.c.id.desc()).limit(PAGE + 1)
        if (start := before()) is not None:
            statement = statement.where(rules.c.id < start)
        with self.conductor.database.read() as connection:
            rows = connection.execute(statement).all()
        return self.render(
            "panel/unsubscriptions.html",
            rows=rows[:PAGE],
            older=rows[PAGE - 1].id if len(rows) > PAGE else None,
            targets=self._targets(),
            operations=OPERATIONS,
            problems=problems or [],
            form=request.form,
            now=utcnow(),
        )


def record_list(text: str) -> list[str]:
    """The record ids of a pasted list, separated by anything that is not part of an id; each once."""
    return list(dict.fromkeys(part for part in re.split(r"[\s,;]+", text) if part))


def _until(problems: list[str]) -> datetime | None:
    text = field("until")
    if not text:
        return None
    try:
        until = datetime.fromisoformat(text)
    except ValueError:
        problems.append("The end is no date and time such as 2026-12-31T18:00.")
        return None
    until = until.replace(tzinfo=UTC) if until.tzinfo is None else until
    if until <= utcnow():
        problems.append("The end lies in the past.")
    return until
