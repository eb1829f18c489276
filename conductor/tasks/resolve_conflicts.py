"""Resolving all conflicts of one field the same way, each with its own audit row."""

from __future__ import annotations

from typing import Any, Literal

import sqlalchemy as sa

from conductor.tasks.runner import Step, TaskKind, TaskRow
from i18n import gettext, gettext_noop
from models.ledger import Conflict

#: Conflicts resolved in one step.
PAGE = 50

#: The values that may win -> their label.
_CHOICES = {"ours": gettext_noop("internal value"), "theirs": gettext_noop("external value")}


class ResolveConflicts(TaskKind):
    """The argument is `{"path": field, "choice": "ours" or "theirs", "until": the newest conflict's id}`."""

    kind = "resolve"

    def start(self, by: str, *, subscriber: str, path: str, choice: Literal["ours", "theirs"]) -> int:
        """Resolve the conflicts that are open now; return the task's id.

        Raises:
          ValueError: there is no such subscriber.
        """
        found = sa.select(sa.func.count(Conflict.id), sa.func.max(Conflict.id)).where(*_open(subscriber, path))
        with self.context.database.read() as connection:
            total, newest = connection.execute(found).one()
        argument = {"path": path, "choice": choice, "until": newest or 0}
        return self.tasks.begin(self.kind, by, subscriber=subscriber, argument=argument, total=total)

    def step(self, task: TaskRow) -> Step:
        """Resolve the next conflicts; one that cannot be resolved now stays open and is counted."""
        after, argument = task.position.get("after", 0), task.argument
        is_open = _open(task.subscriber, argument["path"])
        page = sa.select(Conflict.id).where(*is_open, Conflict.id > after, Conflict.id <= argument["until"])
        with self.context.database.read() as connection:
            ids = list(connection.execute(page.order_by(Conflict.id).limit(PAGE)).scalars())
        succeeded, failed = task.succeeded, task.failed
        for number in ids:
            try:
                self.services.conflicts.resolve(number, argument["choice"], task.by)
                succeeded += 1
            except ValueError:
                failed += 1
        message = f"{succeeded} resolved: {argument['choice']}"
        message += f"; {failed} cannot be resolved now and stay open" if failed else ""
        position = {"after": ids[-1]} if ids else task.position
        return Step(succeeded + failed, succeeded, failed, position, finished=len(ids) < PAGE, message=message)

    @staticmethod
    def label(task: TaskRow) -> str:
        choice = _CHOICES[task.argument["choice"]]
        return gettext(
            "Resolve the conflicts of {subscriber} about {path}: {choice}",
            subscriber=task.subscriber,
            path=task.argument["path"],
            choice=gettext(choice),
        )


def _open(subscriber: str | None, path: str) -> tuple[Any, ...]:
    return Conflict.subscriber == subscriber, Conflict.path == path, Conflict.resolved_at.is_(None)
