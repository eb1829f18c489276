"""What an operator does with dead letters: retry and discard them.

Each function writes its audit row in the transaction that does the work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.dead_letters.store import DeadLetterFilter, DeadLetterStore
from i18n import gettext
from models.ledger import DeadLetter

#: Dead letters handled in one transaction.
_BATCH = 1000


class DeadLetterOperations:
    """Retries and discards dead letters."""

    def __init__(self, context: Context, letters: DeadLetterStore) -> None:
        self.context = context
        self.letters = letters

    def retry(self, letters: DeadLetterFilter, by: str) -> int:
        """Retry immediately; return how many there are. A letter closes when its record is delivered."""
        return self._each_batch(letters, self.letters.retry, by, "dead_letter.retry")

    def discard(self, letters: DeadLetterFilter, by: str, reason: str) -> int:
        """Close letters unsent: their records count as up to date until the next change.

        Raises:
          ValueError: the reason is empty.
        """
        reason = reason_of(reason)
        return self._each_batch(
            letters,
            lambda connection, rows: self.letters.discard(connection, rows, by, reason),
            by,
            "dead_letter.discard",
            reason=reason,
        )

    def _each_batch(
        self,
        letters: DeadLetterFilter,
        work: Callable[[sa.Connection, Any], None],
        by: str,
        action: str,
        **details: object,
    ) -> int:
        done = 0
        after = 0
        while True:
            with self.context.database.write() as connection:
                rows = connection.execute(
                    sa.select(DeadLetter.id, DeadLetter.link_id, DeadLetter.inbox_id)
                    .where(*letters.conditions(), DeadLetter.id > after)
                    .order_by(DeadLetter.id)
                    .limit(_BATCH)
                ).all()
                if rows:
                    work(connection, rows)
                    after = rows[-1].id
                done += len(rows)
                if len(rows) < _BATCH:
                    self.context.audit(connection, by, action, letters.describe(), count=done, **details)
                    return done


def reason_of(text: str) -> str:
    """Return a reason without surrounding blanks.

    Raises:
      ValueError: it is empty.
    """
    if not text.strip():
        raise ValueError(gettext("say why: a discarded dead letter needs a reason"))
    return text.strip()
