"""Settling all conflicts of one field alike, as a task: each as if a person had chosen, with its own audit row."""

from __future__ import annotations

from typing import Any, Literal

import sqlalchemy as sa

from conductor.conflicts import ConflictResolution
from conductor.context import Context
from conductor.tasks.runner import Step, TaskRunner
from models.ledger import Conflict

#: The kind of these tasks.
SETTLE = "settle"

#: Conflicts settled in one step.
PAGE = 50


class Alike:
    """Does the steps of `settle` tasks. The argument is `{"path": field, "choice": "ours" or "theirs"}`."""

    def __init__(self, context: Context, conflicts: ConflictResolution, tasks: TaskRunner) -> None:
        self.context = context
        self.conflicts = conflicts
        self.tasks = tasks
        tasks.register(SETTLE, self.step)

    def count(self, subscriber: str, path: str) -> int:
        """How many conflicts of this field wait for a person."""
        with self.context.database.read() as connection:
            found = sa.select(sa.func.count(Conflict.id)).where(*_open(subscriber, path))
            return int(connection.execute(found).scalar_one())

    def start(self, subscriber: str, path: str, choice: Literal["ours", "theirs"], by: str) -> int:
        """Begin to settle those that are open now; returns the task's id.

        Raises:
          ValueError: no such subscriber.
        """
        with self.context.database.read() as connection:
            newest = sa.select(sa.func.max(Conflict.id)).where(*_open(subscriber, path))
            until = connection.execute(newest).scalar() or 0
        argument = {"path": path, "choice": choice, "until": until}
        total = self.count(subscriber, path)
        return self.tasks.start(SETTLE, by, subscriber=subscriber, argument=argument, total=total)

    def step(self, task: Any) -> Step:
        """Settle the next ones. What cannot be settled now stays open, and is counted."""
        after, argument = (task.position or {}).get("after", 0), task.argument
        is_open = _open(task.subscriber, argument["path"])
        page = sa.select(Conflict.id).where(*is_open, Conflict.id > after, Conflict.id <= argument["until"])
        with self.context.database.read() as connection:
            ids = list(connection.execute(page.order_by(Conflict.id).limit(PAGE)).scalars())
        succeeded, failed = task.succeeded, task.failed
        for number in ids:
            try:
                self.conflicts.resolve(number, argument["choice"], task.by)
                succeeded += 1
            except ValueError:
                failed += 1
        message = f"{succeeded} settled: {argument['choice']} it is"
        message += f"; {failed} could not be settled just now and stay open" if failed else ""
        position = {"after": ids[-1]} if ids else task.position
        return Step(succeeded + failed, succeeded, failed, position, finished=len(ids) < PAGE, message=message)


def _open(subscriber: str, path: str) -> tuple[Any, ...]:
    return Conflict.subscriber == subscriber, Conflict.path == path, Conflict.resolved_at.is_(None)
