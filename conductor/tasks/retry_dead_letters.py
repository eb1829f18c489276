"""Trying many dead letters again, as a task: a few hundred at a time, and then seen through to how they ended."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.dead_letters.store import DISCARDED, DeadLetterFilter, DeadLetterStore
from conductor.tasks.runner import Step, TaskRunner
from conductor.tasks.throttle import below_backlog_limit
from models.ledger import DeadLetter, Inbox, Link

#: The kind of these tasks.
RETRY = "retry"

#: Letters tried again in one step.
RETRY_BATCH = 500


#: Seconds until it is looked again whether there is room, or how those that were tried again fare.
_PAUSE = 1.0

#: Seconds after which the count is final: what is still under way then has its attempts before it.
_LONGEST = 3600


class Retrying:
    """Does the steps of `retry` tasks. The argument is a `DeadLetterFilter`, what is None left out."""

    def __init__(self, context: Context, letters: DeadLetterStore, tasks: TaskRunner) -> None:
        self.context = context
        self.letters = letters
        self.tasks = tasks
        tasks.register(RETRY, self.step)

    def start(self, letters: DeadLetterFilter, by: str) -> int:
        """Begin to try these letters again; returns the task's id."""
        with self.context.database.read() as connection:
            count = sa.select(sa.func.count(DeadLetter.id)).where(*letters.conditions())
            total = connection.execute(count).scalar_one()
        return self.tasks.start(RETRY, by, argument=letters.chosen(), total=total)

    def step(self, task: Any) -> Step:
        """Try the next letters again; after the last one, count how they ended."""
        position = task.position or {}
        if "watching_since" in position:
            return self._watch(task, position)
        with self.context.database.read() as connection:
            rows = connection.execute(
                sa.select(DeadLetter.id, DeadLetter.link_id, DeadLetter.inbox_id, DeadLetter.subscriber)
                .where(*DeadLetterFilter(**task.argument).conditions(), DeadLetter.id > position.get("after", 0))
                # A letter that is written later has another task to wait for.
                .where(DeadLetter.at <= task.created_at)
                .order_by(DeadLetter.id)
                .limit(RETRY_BATCH)
            ).all()
            room = below_backlog_limit(self.context, connection, {row.subscriber for row in rows})
        if not rows:
            watching = {**position, "watching_since": self.context.clock().isoformat()}
            return Step(task.done, position=watching, message=f"{task.done} tried again")
        if not room:
            message = "waits: their systems have plenty to do"
            return Step(task.done, position=task.position, message=message, pause=_PAUSE)

        def effect(connection: sa.Connection) -> None:
            self.letters.retry(connection, rows, task_id=task.id)

        done = task.done + len(rows)
        return Step(done, position={"after": rows[-1].id}, message=f"{done} tried again", effect=effect)

    def _watch(self, task: Any, position: dict[str, Any]) -> Step:
        succeeded, failed, discarded = self._outcomes(task.id)
        under_way = task.done - succeeded - failed - discarded
        over = datetime.fromisoformat(position["watching_since"]) + timedelta(seconds=_LONGEST) < self.context.clock()
        message = f"{succeeded} of {task.done} succeeded, {failed} failed again"
        if discarded:
            message += f", {discarded} discarded"
        if under_way > 0:
            message += f", {under_way} under way"
        finished = under_way <= 0 or over
        return Step(task.done, succeeded, failed, position=position, message=message, finished=finished, pause=_PAUSE)

    def _outcomes(self, task_id: int) -> tuple[int, int, int]:
        """Of the letters this task had tried again: mended, dead again, discarded by a person since."""
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
