"""Discarding many dead letters, as a task: a few hundred at a time, each with the person's reason."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.dead_letters.operations import reason_of
from conductor.dead_letters.store import DeadLetterFilter, DeadLetterStore
from conductor.tasks.runner import Step, TaskRunner
from models.ledger import DeadLetter

#: The kind of these tasks.
DISCARD = "discard"

#: Letters closed in one step.
DISCARD_BATCH = 500


class Discarding:
    """Does the steps of `discard` tasks. The argument is a `DeadLetterFilter` without its Nones, and the `reason`."""

    def __init__(self, context: Context, letters: DeadLetterStore, tasks: TaskRunner) -> None:
        self.context = context
        self.letters = letters
        self.tasks = tasks
        tasks.register(DISCARD, self.step)

    def start(self, letters: DeadLetterFilter, by: str, reason: str) -> int:
        """Begin to close the letters that are open now; returns the task's id.

        Raises:
          ValueError: no reason is given.
        """
        reason = reason_of(reason)
        argument = letters.chosen() | {"reason": reason}
        with self.context.database.read() as connection:
            count = sa.select(sa.func.count(DeadLetter.id)).where(*letters.conditions())
            total = connection.execute(count).scalar_one()
        return self.tasks.start(DISCARD, by, argument=argument, total=total)

    def step(self, task: Any) -> Step:
        """Close the next letters. Each step has an audit row: so the count is right also where it is stopped."""
        after = (task.position or {}).get("after", 0)
        chosen = dict(task.argument)
        reason = chosen.pop("reason")
        letters = DeadLetterFilter(**chosen)
        with self.context.database.read() as connection:
            rows = connection.execute(
                sa.select(DeadLetter.id, DeadLetter.link_id, DeadLetter.inbox_id)
                # One that is written later, or anew because it was tried again meanwhile, was not meant.
                .where(*letters.conditions(), DeadLetter.id > after, DeadLetter.at <= task.created_at)
                .order_by(DeadLetter.id)
                .limit(DISCARD_BATCH)
            ).all()
        done = task.done + len(rows)
        message = f"{done} discarded: {reason}"
        if not rows:
            return Step(done, done, position=task.position, message=message, finished=True)

        def effect(connection: sa.Connection) -> None:
            self.letters.discard(connection, rows, task.by, reason)
            details = {"count": len(rows), "reason": reason, "task": task.id}
            self.context.audit(connection, task.by, "dead_letter.discard", letters.describe(), **details)

        return Step(done, done, position={"after": rows[-1].id}, message=message, effect=effect)
