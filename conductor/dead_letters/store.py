"""Dead letters: what a person has to look at, in words, grouped by kind."""

from __future__ import annotations

import hashlib
import logging
import re
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.redaction import redact
from models.ledger import DeadLetter, Inbox, Link
from subscribers.errors import SyncError

logger = logging.getLogger(__name__)

#: What varies from one record to the next: quoted values, numbers, long ids.
_VARYING = re.compile(
    r"\S+@\S+|https?://\S+|'[^']*'|\"[^\"]*\"|`[^`]*`|[\u201c\u201e][^\u201d\u201c]*[\u201d\u201c]|\b[\w-]*\d[\w-]*\b"
)

#: Shorter values of a record are found in any sentence.
_SHORTEST_VALUE = 4

#: How the resolution of a letter begins that a person has closed unsent.
DISCARDED = "discarded by"


def fingerprint(error: SyncError, payload: Mapping[str, Any] | None = None) -> str:
    """The same for errors that are mended the same way: class and words, without what varies.

    That is what the record itself says (`payload`, external field -> value), which systems like to quote back,
    and anything that looks like a value: quoted texts, numbers, ids.
    """
    text = str(error)
    own = {str(value) for value in (payload or {}).values() if isinstance(value, str) and len(value) >= _SHORTEST_VALUE}
    for value in sorted(own, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", "*", text, flags=re.IGNORECASE)
    stable = _VARYING.sub("*", text)
    return hashlib.sha256(f"{type(error).__name__}:{stable}".encode()).hexdigest()[:16]


def trace(error: SyncError) -> str | None:
    """The traceback of the bug behind an error; none for what a system plainly said."""
    cause = error.__cause__
    if cause is None or isinstance(cause, SyncError):
        return None
    return "".join(traceback.format_exception(cause))[-8000:]


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
        """Write a letter, or the open one `letter_id` anew; returns its id."""
        logger.warning("dead letter: %s %s: %s: %s", subscriber, record_id or "", type(error).__name__, error)
        values = {
            "subscriber": subscriber,
            "record_id": record_id,
            "link_id": link_id,
            "inbox_id": inbox_id,
            "error": type(error).__name__,
            "fingerprint": fingerprint(error, payload),
            "message": str(error),
            "fields": dict(error.fields) or None,
            "payload": redact(payload) if payload is not None else None,
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

    def again(self, connection: sa.Connection, rows: Iterable[Any], *, task_id: int | None = None) -> None:
        """Have what these letters (rows with `id`, `link_id`, `inbox_id`) are about tried again at once.

        `task_id`: the task that sees to it, and counts how they end.
        """
        now = self.context.clock()
        links = [row.link_id for row in rows if row.link_id is not None]
        inbox = [row.inbox_id for row in rows if row.inbox_id is not None]
        connection.execute(sa.update(Link).where(Link.id.in_(links)).values(dead_at=None, attempts=0, retry_at=now))
        connection.execute(
            sa.update(Inbox)
            .where(Inbox.id.in_(inbox), Inbox.state == "dead")
            .values(state="waiting", retry_at=now, attempts=0)
        )
        if task_id is not None:
            letters = DeadLetter.id.in_([row.id for row in rows])
            connection.execute(sa.update(DeadLetter).where(letters).values(task_id=task_id))

    def of_inbox(self, connection: sa.Connection, inbox_id: int) -> int | None:
        """The open letter about an inbox row, if there is one."""
        is_open = (DeadLetter.inbox_id == inbox_id, DeadLetter.closed_at.is_(None))
        letter: int | None = connection.execute(sa.select(DeadLetter.id).where(*is_open)).scalar()
        return letter

    def close(self, connection: sa.Connection, letter_ids: list[int], resolution: str) -> None:
        """Close letters, with how it ended in words, and forget them in their links."""
        if not letter_ids:
            return
        connection.execute(
            sa.update(DeadLetter)
            .where(DeadLetter.id.in_(letter_ids), DeadLetter.closed_at.is_(None))
            .values(closed_at=self.context.clock(), resolution=resolution)
        )
        connection.execute(sa.update(Link).where(Link.dead_letter_id.in_(letter_ids)).values(dead_letter_id=None))
