"""Dead letters: what a person has to look at, grouped by kind, and sent again or discarded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from flask import abort, url_for
from werkzeug import Response

from conductor import LetterFilter
from models.ledger import DeadLetter, Inbox, Link
from panel import paging
from panel.views.base import PanelView, action, before, done, field, page, refused, wanted

_FILTERS = ("subscriber", "error", "fingerprint")


#: Kinds of error shown, the largest first: more than a person can read.
KINDS = 200


@dataclass(frozen=True)
class Group:
    """Open letters of one subscriber that are mended the same way."""

    subscriber: str
    fingerprint: str
    error: str
    message: str
    count: int

    def matches(self, filters: dict[str, str]) -> bool:
        """Whether its letters are among those asked for."""
        return all(getattr(self, name) == filters[name] for name in _FILTERS if name in filters)


class DeadLetters(PanelView):
    title, path, icon = "Dead letters", "/dead-letters", "dead-letters"

    @page("/")
    def index(self) -> str:
        filters = wanted(*_FILTERS, "state")
        with self.conductor.database.read() as connection:
            groups = open_groups(connection)
            listing = _find(connection, filters, groups)
            again = _trying_again(connection, listing.rows)
        matching = [group for group in groups if group.matches(filters)]
        return self.render(
            "panel/dead_letters.html",
            listing=listing,
            again=again,
            groups=groups,
            filters=filters,
            matching=sum(group.count for group in matching),
            subscribers=self.conductor.subscribers,
            errors=sorted({group.error for group in groups}),
        )

    @page("/<number:number>")
    def one(self, number: int) -> str:
        with self.conductor.database.read() as connection:
            row = connection.execute(sa.select(DeadLetter.__table__).where(DeadLetter.id == number)).one_or_none()
            again = _trying_again(connection, [row] if row else [])
        if row is None:
            abort(404)
        return self.render(
            "panel/dead_letter.html", row=row, again=row.id in again, subscribers=self.conductor.subscribers
        )

    @action("/retry", needs="retry")
    def retry(self) -> Response:
        count = self.conductor.retry(_letters(), self.who)
        return done(_told(count, "goes again", "go again"), url_for(".index"))

    @action("/discard", needs="discard")
    def discard(self) -> Response:
        reason = field("reason")
        if not reason:
            return refused("Say why they need not be sent.", url_for(".index"))
        count = self.conductor.discard(_letters(), self.who, reason)
        return done(_told(count, "is discarded", "are discarded"), url_for(".index"))


def open_groups(connection: sa.Connection) -> list[Group]:
    """The kinds of open letters with their counts, largest first. Counted in the index alone."""
    letters = DeadLetter.__table__
    counted = (
        sa.select(
            letters.c.subscriber,
            letters.c.fingerprint,
            sa.func.count().label("letters"),
            sa.func.max(letters.c.id).label("newest"),
        )
        .where(letters.c.closed_at.is_(None))
        .group_by(letters.c.subscriber, letters.c.fingerprint)
        .order_by(sa.func.count().desc())
        .limit(KINDS)
    )
    kinds = {row.newest: row for row in connection.execute(counted)}
    examples = sa.select(letters.c.id, letters.c.error, letters.c.message).where(letters.c.id.in_(list(kinds)))
    groups = []
    for row in connection.execute(examples):
        kind = kinds[row.id]
        groups.append(Group(kind.subscriber, kind.fingerprint, row.error, row.message, kind.letters))
    return sorted(groups, key=lambda group: (-group.count, group.subscriber))


def _find(connection: sa.Connection, filters: dict[str, str], groups: list[Group]) -> paging.Listing:
    if filters.get("state") == "closed":
        conditions: list[Any] = [getattr(DeadLetter, name) == filters[name] for name in _FILTERS if name in filters]
        closed = [DeadLetter.closed_at.is_not(None), *conditions]
        return paging.newest(connection, DeadLetter, scanned=closed, before=before())
    # Each kind is one range of the index of open letters; there are few kinds.
    matching = [group for group in groups if group.matches(filters)]
    pages = [
        paging.newest(
            connection,
            DeadLetter,
            [
                DeadLetter.closed_at.is_(None),
                DeadLetter.subscriber == group.subscriber,
                DeadLetter.fingerprint == group.fingerprint,
            ],
            before=before(),
        )
        for group in matching
    ]
    return paging.merge(pages)


def _trying_again(connection: sa.Connection, letters: list[Any]) -> set[int]:
    """Letters somebody retried already: they close once their record is through."""
    links = sa.select(Link.id).where(Link.id.in_([row.link_id for row in letters]), Link.dead_at.is_(None))
    inbox = sa.select(Inbox.id).where(Inbox.id.in_([row.inbox_id for row in letters]), Inbox.state == "waiting")
    moving_links, moving_inbox = set(connection.scalars(links)), set(connection.scalars(inbox))
    return {
        row.id for row in letters if not row.closed_at and (row.link_id in moving_links or row.inbox_id in moving_inbox)
    }


def _letters() -> LetterFilter:
    """The letters a form means: one by its id, or all that match the filters."""
    number = field("id")
    if number.isdigit():
        return LetterFilter(ids=[int(number)])
    chosen = LetterFilter(
        subscriber=field("subscriber") or None,
        error=field("error") or None,
        fingerprint=field("fingerprint") or None,
    )
    if chosen == LetterFilter() and field("all") != "yes":
        abort(400, "Nothing was chosen.")
    return chosen


def _told(count: int, one: str, many: str) -> str:
    if count == 0:
        return "Nothing to do: those letters were closed already."
    return f"1 dead letter {one}." if count == 1 else f"{count:,} dead letters {many}."
