"""Long work kept in the ledger: it outlives any process, shows how far it is, and can be stopped and resumed.

A task is a row. Whoever calls `run_some` takes one under a lease and does one bounded step of it by
the function registered for its kind. How far it got and what the step changed are committed together;
a process that dies in between loses one step, which is done again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from conductor.context import Context, new_token
from i18n import gettext
from models.ledger import Task

logger = logging.getLogger(__name__)

#: States of a task that somebody works at, or will.
OPEN = ("running", "stopping")


@dataclass(frozen=True)
class Step:
    """How far a task is after one step: its counts from the beginning, not what was added.

    `effect` is what the step changes in the database. It runs in the transaction that writes the
    counts, and only if the task is still ours; it may run twice when that transaction lost a race.
    `pause`: seconds in which there is nothing to do for this task. `message` say it to a person.
    """

    done: int
    succeeded: int = 0
    failed: int = 0
    position: dict[str, Any] | None = None
    finished: bool = False
    message: str = ""
    #: How much there is to do, where that was not known when the task began.
    total: int | None = None
    effect: Callable[[sa.Connection], None] | None = None
    pause: float = 0.0


def counted(step: Step, task: Any, count: Callable[[], int]) -> Step:
    """The step, with how much there is to do if that is not known yet: a click that begins a task counts no table."""
    return step if task.total is not None else replace(step, total=count())


#: Does one bounded step of a task (a row of `task`), in well under `LEASE_SECONDS`. What it raises ends the task
#: as failed; only a database that does not answer is waited for.
Work = Callable[[Any], Step]


class TaskRunner:
    """Starts, stops and works off tasks."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._kinds: dict[str, Work] = {}

    def register(self, kind: str, work: Work) -> None:
        """Say who does a step of the tasks of a kind."""
        self._kinds[kind] = work

    # --- what people do -------------------------------------------------------------------------------

    def start(
        self,
        kind: str,
        by: str,
        *,
        subscriber: str | None = None,
        argument: dict[str, Any] | None = None,
        total: int | None = None,
    ) -> int:
        """Begin a task; returns its id. The scheduler works it off.

        Raises:
          ValueError: nobody knows how to do this kind, or there is no such subscriber.
        """
        if kind not in self._kinds:
            raise ValueError(
                gettext("no kind of task {kind!r}; there are: {known}", kind=kind, known=", ".join(sorted(self._kinds)))
            )
        if subscriber is not None and subscriber not in self.context.subscribers:
            known = ", ".join(sorted(self.context.subscribers)) or gettext("none is configured")
            raise ValueError(gettext("no subscriber {name!r}; there are: {known}", name=subscriber, known=known))
        values = {"kind": kind, "subscriber": subscriber, "argument": argument or {}, "total": total, "by": by}
        with self.context.database.write() as connection:
            insert = sa.insert(Task).values(**values, state="running", created_at=self.context.clock())
            task_id = int(connection.execute(insert.returning(Task.id)).scalar_one())
            details = {"subscriber": subscriber, "argument": argument or {}, "total": total}
            self.context.audit(connection, by, "task.start", f"#{task_id} {kind}", **details)
        return task_id

    def stop(self, task_id: int, by: str) -> None:
        """Let a task end after the step in hand; what it has done stays done.

        Raises:
          ValueError: it does not run.
        """
        now = self.context.clock()
        is_held = sa.and_(Task.lease_owner.is_not(None), Task.lease_until > now)
        values = {
            "state": sa.case((is_held, "stopping"), else_="stopped"),
            "finished_at": sa.case((is_held, sa.null()), else_=sa.literal(now, Task.finished_at.type)),
        }
        self._change(task_id, by, "task.stop", ("running",), values)

    def resume(self, task_id: int, by: str) -> None:
        """Go on with a task that was stopped or has failed, from where it was.

        Raises:
          ValueError: it is neither.
        """
        values = {"state": "running", "finished_at": None, "lease_until": None}
        self._change(task_id, by, "task.resume", ("stopped", "failed"), values)

    def _change(self, task_id: int, by: str, action: str, states: Sequence[str], values: dict[str, Any]) -> None:
        with self.context.database.write() as connection:
            statement = sa.update(Task).where(Task.id == task_id, Task.state.in_(states)).values(**values)
            row = connection.execute(statement.returning(Task.kind, Task.done, Task.total)).one_or_none()
            if row is None:
                state = connection.execute(sa.select(Task.state).where(Task.id == task_id)).scalar()
                raise ValueError(
                    gettext("task #{number} is {state}", number=task_id, state=gettext(state))
                    if state
                    else gettext("there is no task #{number}", number=task_id)
                )
            self.context.audit(connection, by, action, f"#{task_id} {row.kind}", done=row.done, total=row.total)

    def get(self, task_id: int) -> Any:
        """One task as a row, or None."""
        with self.context.database.read() as connection:
            return connection.execute(sa.select(Task.__table__).where(Task.id == task_id)).one_or_none()

    def list(self, *kinds: str, unfinished: bool = False, limit: int = 50) -> Sequence[Any]:
        """The newest tasks (of these kinds) as rows, newest first."""
        statement = sa.select(Task.__table__).order_by(Task.id.desc()).limit(limit)
        if kinds:
            statement = statement.where(Task.kind.in_(kinds))
        if unfinished:
            statement = statement.where(Task.state.in_(OPEN))
        with self.context.database.read() as connection:
            return connection.execute(statement).all()

    # --- what the scheduler does ------------------------------------------------------------------------

    def run_some(self) -> bool:
        """Do one step of one task; False if there was nothing to do.

        Raises:
          OperationalError: the database does not answer; the step is done again when the lease has run out.
        """
        task = self._take()
        if task is None:
            return False
        if task.state == "stopping":
            self._release(task, {"state": "stopped", "finished_at": self.context.clock()})
            return True
        try:
            step = self._kinds[task.kind](task)
            self.context.database.run_in_transaction(self._commit, task, step)
        except sa.exc.OperationalError:
            raise
        except _LeaseLost:
            logger.warning("task #%d %s: another process took over; this step counts for nothing", task.id, task.kind)
        except Exception as error:
            logger.exception("task #%d %s failed", task.id, task.kind)
            message = f"{type(error).__name__}: {error}"
            self._release(task, {"state": "failed", "message": message, "finished_at": self.context.clock()})
        return True

    def _take(self) -> Any:
        """A task nobody holds, under a lease of ours; the one that has waited longest first."""
        now = self.context.clock()
        is_due = sa.or_(
            Task.lease_until.is_(None),
            Task.lease_until <= now,
            sa.and_(Task.lease_owner.is_(None), Task.state == "stopping"),
        )
        due = (
            sa.select(Task.id)
            .where(Task.state.in_(OPEN), Task.kind.in_(self._kinds), is_due)
            .order_by(Task.lease_until.asc().nulls_first(), Task.id)
            .limit(1)
        )
        with self.context.database.read() as connection:  # nearly always there is nothing
            if connection.execute(due).first() is None:
                return None
        mine = (
            sa.update(Task)
            .where(Task.id == due.with_for_update(skip_locked=True).scalar_subquery())
            .values(lease_owner=new_token(), lease_until=self.context.later(self.context.policy.lease))
            .returning(*Task.__table__.columns)
        )
        return self.context.database.run_in_transaction(lambda c: c.execute(mine).one_or_none())

    def _commit(self, connection: sa.Connection, task: Any, step: Step) -> None:
        now = self.context.clock()
        asked_to_stop = Task.state == "stopping"
        finished_at = sa.literal(now, Task.finished_at.type)
        values: dict[str, Any] = {
            "done": step.done,
            "succeeded": step.succeeded,
            "failed": step.failed,
            "position": step.position,
            "message": step.message or None,
            **({} if step.total is None else {"total": step.total}),
            "state": "done" if step.finished else sa.case((asked_to_stop, "stopped"), else_=Task.state),
            "finished_at": now if step.finished else sa.case((asked_to_stop, finished_at), else_=sa.null()),
            "lease_owner": None,
            "lease_until": self.context.later(step.pause),
        }
        mine = sa.update(Task).where(Task.id == task.id, Task.lease_owner == task.lease_owner)
        if not connection.execute(mine.values(**values)).rowcount:
            raise _LeaseLost
        if step.effect is not None:
            step.effect(connection)

    def _release(self, task: Any, values: dict[str, Any]) -> None:
        mine = sa.update(Task).where(Task.id == task.id, Task.lease_owner == task.lease_owner)
        statement = mine.values(**values, lease_owner=None, lease_until=None)
        self.context.database.run_in_transaction(lambda c: c.execute(statement))


class _LeaseLost(Exception):
    """The step took longer than its lease, and somebody else has the task now."""
