"""Retrying many dead letters, a few hundred in each step, and then counting the outcomes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.dead_letters.store import DISCARDED, DeadLetterFilter
from conductor.tasks.runner import Step, TaskKind, TaskRow
from conductor.tasks.throttle import PAUSE_SECONDS, below_backlog_limit
from i18n import gettext_noop
from models.ledger import DeadLetter, Inbox, Link

#: Letters retried in one step.
RETRY_BATCH = 500

#: Seconds after which the counts are final, even if some records still have attempts left.
_LONGEST_WATCH_SECONDS = 3600


class RetryDeadLetters(TaskKind):
    """The argument is a `DeadLetterFilter` without its empty fields."""

    kind = "retry"
    succeeded = gettext_noop("succeeded")
    failed = gettext_noop("failed again")

    def start(self, by: str, *, letters: DeadLetterFilter) -> int:
        """Retry the letters that are open now; return the task's id."""
        with self.context.database.read() as connection:
            total = self.services.letters.count(connection, letters)
        return self.tasks.begin(self.kind, by, argument=letters.chosen(), total=total)

    def step(self, task: TaskRow) -> Step:
        """Retry the next letters; after the last one, count the outcomes."""
        position = task.position
        if "watching_since" in position:
            return self._watch(task, position)
        letters, after = DeadLetterFilter(**task.argument), position.get("after", 0)
        with self.context.database.read() as connection:
            # A letter that was written after the start belongs to no task yet.
            rows = self.services.letters.page(connection, letters, after, RETRY_BATCH, until=task.created_at)
            room = below_backlog_limit(self.context, connection, {row.subscriber for row in rows})
        if not rows:
            watching = {**position, "watching_since": self.context.clock().isoformat()}
            return Step(task.done, position=watching, message=f"{task.done} retried")
        if not room:
            message = "waits: the systems have a backlog"
            return Step(task.done, position=task.position, message=message, pause=PAUSE_SECONDS)

        def effect(connection: sa.Connection) -> None:
            self.services.letters.retry(connection, rows, task_id=task.id)

        done = task.done + len(rows)
        return Step(done, position={"after": rows[-1].id}, message=f"{done} retried", effect=effect)

    def _watch(self, task: TaskRow, position: dict[str, Any]) -> Step:
        succeeded, failed, discarded = self._outcomes(task.id)
        under_way = task.done - succeeded - failed - discarded
        watched = self.context.clock() - datetime.fromisoformat(position["watching_since"])
        message = f"{succeeded} of {task.done} succeeded, {failed} failed again"
        if discarded:
            message += f", {discarded} discarded"
        if under_way > 0:
            message += f", {under_way} under way"
        finished = under_way <= 0 or watched.total_seconds() > _LONGEST_WATCH_SECONDS
        return Step(
            task.done, succeeded, failed, position=position, message=message, finished=finished, pause=PAUSE_SECONDS
        )

    def _outcomes(self, task_id: int) -> tuple[int, int, int]:
        """Return how many of the letters that this task retried succeeded, failed again, were discarded since."""
        is_discarded = DeadLetter.resolution.like(f"{DISCARDED}%")
        is_closed = DeadLetter.closed_at.is_not(None)
        is_dead = sa.and_(~is_closed, sa.or_(Link.dead_at.is_not(None), Inbox.state == "dead"))
        statement = (
            sa.select(
                sa.func.count().filter(is_closed, ~is_discarded),
                sa.func.count().filter(is_dead),
                sa.func.count().filter(is_closed, is_discarded),
            )
            .select_from(DeadLetter)
            .outerjoin(Link, Link.id == DeadLetter.link_id)
            .outerjoin(Inbox, Inbox.id == DeadLetter.inbox_id)
            .where(DeadLetter.task_id == task_id)
        )
        with self.context.database.read() as connection:
            succeeded, failed, discarded = connection.execute(statement).one()
        return succeeded, failed, discarded

    @staticmethod
    def label(task: TaskRow) -> str:
        letters = DeadLetterFilter(**task.argument)
        return letters.label(gettext_noop("Retry dead letters"), gettext_noop("Retry dead letters of {subscriber}"))
