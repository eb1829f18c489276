"""What an operator does with one dead letter; the tasks `retry` and `discard` do the same with many.

Each function writes its audit row in the transaction that does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.dead_letters.store import DeadLetterFilter, DeadLetterStore
from i18n import gettext


class DeadLetterOperations:
    """Retries and discards a dead letter immediately."""

    def __init__(self, context: Context, letters: DeadLetterStore) -> None:
        self.context = context
        self.letters = letters

    def retry(self, letter_id: int, by: str) -> bool:
        """Retry an open letter, which closes when its record is delivered; return False if there is none."""
        return self._apply(letter_id, self.letters.retry, by, "dead_letter.retry")

    def discard(self, letter_id: int, by: str, reason: str) -> bool:
        """Close an open letter unsent; return False if there is none.

        Its record counts as up to date until the next change.

        Raises:
          ValueError: the reason is empty.
        """
        reason = reason_of(reason)
        return self._apply(
            letter_id,
            lambda connection, rows: self.letters.discard(connection, rows, by, reason),
            by,
            "dead_letter.discard",
            reason=reason,
        )

    def _apply(
        self,
        letter_id: int,
        work: Callable[[sa.Connection, Sequence[Any]], None],
        by: str,
        action: str,
        **details: object,
    ) -> bool:
        with self.context.database.write() as connection:
            rows = self.letters.page(connection, DeadLetterFilter(ids=[letter_id]))
            for row in rows:
                work(connection, rows)
                self.context.audit(connection, by, action, f"#{row.id} {row.subscriber}", **details)
        return bool(rows)


def reason_of(text: str) -> str:
    """Return a reason without surrounding blanks.

    Raises:
      ValueError: it is empty.
    """
    if not text.strip():
        raise ValueError(gettext("enter a reason for discarding the dead letter"))
    return text.strip()
