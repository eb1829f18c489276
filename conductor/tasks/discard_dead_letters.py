"""Discarding many dead letters, a few hundred in each step."""

from __future__ import annotations

import sqlalchemy as sa

from conductor.dead_letters.operations import reason_of
from conductor.dead_letters.store import DeadLetterFilter
from conductor.tasks.runner import Step, TaskKind, TaskRow
from i18n import gettext_noop

#: Letters closed in one step.
DISCARD_BATCH = 500


class DiscardDeadLetters(TaskKind):
    """The argument is a `DeadLetterFilter` without its empty fields, and the `reason`."""

    kind = "discard"
    succeeded = gettext_noop("are discarded")
    failed = gettext_noop("could not be discarded")

    def start(self, by: str, *, letters: DeadLetterFilter, reason: str) -> int:
        """Close the letters that are open now; return the task's id.

        Raises:
          ValueError: the reason is empty.
        """
        argument = letters.chosen() | {"reason": reason_of(reason)}
        with self.context.database.read() as connection:
            total = self.services.letters.count(connection, letters)
        return self.tasks.begin(self.kind, by, argument=argument, total=total)

    def step(self, task: TaskRow) -> Step:
        """Close the next letters, with an audit row for each step: its count stays right if the task is stopped."""
        chosen = dict(task.argument)
        reason = chosen.pop("reason")
        letters = DeadLetterFilter(**chosen)
        after = task.position.get("after", 0)
        with self.context.database.read() as connection:
            # A letter that was written or updated after the start was not selected.
            rows = self.services.letters.page(connection, letters, after, DISCARD_BATCH, until=task.created_at)
        done = task.done + len(rows)
        message = f"{done} discarded: {reason}"
        if not rows:
            return Step(done, done, position=task.position, message=message, finished=True)

        def effect(connection: sa.Connection) -> None:
            self.services.letters.discard(connection, rows, task.by, reason)
            details = {"count": len(rows), "reason": reason, "task": task.id}
            self.context.audit(connection, task.by, "dead_letter.discard", letters.describe(), **details)

        return Step(done, done, position={"after": rows[-1].id}, message=message, effect=effect)

    @staticmethod
    def label(task: TaskRow) -> str:
        """Return what a task does; the reason is in its message and on each letter."""
        letters = DeadLetterFilter(**{name: value for name, value in task.argument.items() if name != "reason"})
        return letters.label(gettext_noop("Discard dead letters"), gettext_noop("Discard dead letters of {subscriber}"))
