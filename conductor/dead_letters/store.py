"""Dead letters: failures that an operator has to resolve, grouped by kind."""

from __future__ import annotations

import hashlib
import logging
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.links import state
from i18n import gettext
from models.ledger import DeadLetter, Inbox
from redaction import hide, shorten
from subscribers.errors import SyncError

logger = logging.getLogger(__name__)

#: Parts of a message that differ between records: quoted values, numbers, long ids.
_VARYING = re.compile(
    r"\S+@\S+|https?://\S+|'[^']*'|\"[^\"]*\"|`[^`]*`|[\u201c\u201e][^\u201d\u201c]*[\u201d\u201c]|\b[\w-]*\d[\w-]*\b"
)

#: A shorter value of a record may occur in any sentence by chance.
_SHORTEST_VALUE = 4

#: The beginning of the resolution of a discarded letter.
DISCARDED = "discarded by"


def fingerprint(error: SyncError, payload: Mapping[str, Any] | None = None) -> str:
    """Return a hash of the error's class and message that is the same for errors with the same remedy.

    It leaves out the record's own values (`payload`, external field -> value), which systems quote, and
    everything that looks like a value: quoted texts, numbers, ids.
    """
    text = str(error)
    own = {str(value) for value in (payload or {}).values() if isinstance(value, str) and len(value) >= _SHORTEST_VALUE}
    for value in sorted(own, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", "*", text, flags=re.IGNORECASE)
    stable = _VARYING.sub("*", text)
    return hashlib.sha256(f"{type(error).__name__}:{stable}".encode()).hexdigest()[:16]


def trace(error: SyncError) -> str | None:
    """Return the traceback of the exception behind an error, or None if the system reported the error itself."""
    cause = error.__cause__
    if cause is None or isinstance(cause, SyncError):
        return None
    return hide("".join(traceback.format_exception(cause)))[-8000:]


@dataclass(frozen=True)
class DeadLetterFilter:
    """Selects open dead letters by the fields that are set; without any it selects all."""

    ids: list[int] | None = None
    subscriber: str | None = None
    fingerprint: str | None = None
    error: str | None = None

    def conditions(self) -> list[Any]:
        """Return the conditions on `dead_letter`."""
        conditions: list[Any] = [DeadLetter.closed_at.is_(None)]
        if self.ids is not None:
            conditions.append(DeadLetter.id.in_(self.ids))
        for name in ("subscriber", "fingerprint", "error"):
            if (value := getattr(self, name)) is not None:
                conditions.append(getattr(DeadLetter, name) == value)
        return conditions

    def chosen(self) -> dict[str, Any]:
        """Return the fields that are set: the argument of a task about these letters."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def describe(self) -> str:
        """Return the target of an audit row."""
        return ", ".join(f"{name} {value}" for name, value in self.chosen().items()) or "all"

    def label(self, of_all: str, of_one: str) -> str:
        """Return the label of a task about these letters: `of_all`, or `of_one` with its {subscriber}, and the rest."""
        what = gettext(of_one, subscriber=self.subscriber) if self.subscriber else gettext(of_all)
        what += gettext(", of one kind") if self.fingerprint else ""
        others = []
        if self.error is not None:
            others.append(f"error {self.error}")
        if self.ids is not None:
            others.append("ids " + gettext("{count:,} chosen", count=len(self.ids)))
        return what + (": " + ", ".join(others) if others else "")


class DeadLetterStore:
    """Writes and closes dead letters; always inside the caller's transaction."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def write(
        self,
        connection: sa.Connection,
        subscriber: str,
        error: SyncError,
        *,
        record_id: str | None = None,
        link_id: int | None = None,
        inbox_id: int | None = None,
        payload: Mapping[str, Any] | None = None,
        letter_id: int | None = None,
    ) -> int:
        """Insert a letter, or update the open one `letter_id`; return its id."""
        logger.warning("dead letter: %s %s: %s: %s", subscriber, record_id or "", type(error).__name__, error)
        values = {
            "subscriber": subscriber,
            "record_id": record_id,
            "link_id": link_id,
            "inbox_id": inbox_id,
            "error": type(error).__name__,
            "code": error.code,
            "fingerprint": fingerprint(error, payload),
            "message": str(error),
            "fields": dict(error.fields) or None,
            "payload": shorten(payload) if payload is not None else None,
            "traceback": trace(error),
            "at": self.context.clock(),
        }
        if letter_id is not None:
            renewed = connection.execute(
                sa.update(DeadLetter).where(DeadLetter.id == letter_id, DeadLetter.closed_at.is_(None)).values(**values)
            )
            if renewed.rowcount:
                return letter_id
        inserted = connection.execute(sa.insert(DeadLetter).values(**values).returning(DeadLetter.id))
        return int(inserted.scalar_one())

    @staticmethod
    def count(connection: sa.Connection, letters: DeadLetterFilter) -> int:
        """Return the number of open letters."""
        count = sa.select(sa.func.count(DeadLetter.id)).where(*letters.conditions())
        return int(connection.execute(count).scalar_one())

    @staticmethod
    def page(
        connection: sa.Connection,
        letters: DeadLetterFilter,
        after: int = 0,
        limit: int | None = None,
        until: datetime | None = None,
    ) -> Sequence[Any]:
        """Return the next open letters by id, as rows for `retry` and `discard`; only those written by `until`."""
        columns = (DeadLetter.id, DeadLetter.link_id, DeadLetter.inbox_id, DeadLetter.subscriber)
        matching = [*letters.conditions(), DeadLetter.id > after]
        if until is not None:
            matching.append(DeadLetter.at <= until)
        return connection.execute(sa.select(*columns).where(*matching).order_by(DeadLetter.id).limit(limit)).all()

    def retry(self, connection: sa.Connection, rows: Iterable[Any], *, task_id: int | None = None) -> None:
        """Make the deliveries and events of these letters (rows with `id`, `link_id`, `inbox_id`) due immediately.

        `task_id`: the task that counts the outcomes.
        """
        now = self.context.clock()
        links = [row.link_id for row in rows if row.link_id is not None]
        inbox = [row.inbox_id for row in rows if row.inbox_id is not None]
        state.revive(connection, links, now)
        connection.execute(
            sa.update(Inbox)
            .where(Inbox.id.in_(inbox), Inbox.state == "dead")
            .values(state="waiting", retry_at=now, attempts=0, waits_for=None)
        )
        if task_id is not None:
            letters = DeadLetter.id.in_([row.id for row in rows])
            connection.execute(sa.update(DeadLetter).where(letters).values(task_id=task_id))

    def discard(self, connection: sa.Connection, rows: Iterable[Any], by: str, reason: str) -> None:
        """Close letters (rows with `id`, `link_id`) unsent: their links count as up to date until the next change."""
        letters = [row.id for row in rows]
        links = [row.link_id for row in rows if row.link_id is not None]
        state.settle_unsent(connection, links, letters)
        self.close(connection, letters, f"{DISCARDED} {by}: {reason}")

    def of_inbox(self, connection: sa.Connection, inbox_id: int) -> int | None:
        """Return the id of the open letter of an inbox row, or None."""
        is_open = (DeadLetter.inbox_id == inbox_id, DeadLetter.closed_at.is_(None))
        letter: int | None = connection.execute(sa.select(DeadLetter.id).where(*is_open)).scalar()
        return letter

    def close(self, connection: sa.Connection, letter_ids: list[int], resolution: str) -> None:
        """Close letters with this resolution, and remove them from their links."""
        if not letter_ids:
            return
        connection.execute(
            sa.update(DeadLetter)
            .where(DeadLetter.id.in_(letter_ids), DeadLetter.closed_at.is_(None))
            .values(closed_at=self.context.clock(), resolution=resolution)
        )
        state.forget_letters(connection, letter_ids)
