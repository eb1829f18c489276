"""Long work kept in the ledger: it outlives any process, shows its progress, and can be stopped and resumed.

A task is a row. `run_some` takes one under a lease and does one bounded step of it by the class of its kind.
The progress and the step's changes are committed together; if the process dies before, another does the step again.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import sqlalchemy as sa

from conductor.context import Context, new_token
from i18n import gettext, gettext_noop
from models.ledger import Task
from subscribers.base import Subscriber

if TYPE_CHECKING:
    from conductor.tasks.services import Services

logger = logging.getLogger(__name__)

#: States of a task that has steps left to do.
OPEN_TASK_STATES = ("running", "stopping")


class TaskRow(NamedTuple):
    """A task as it was read, in the order of the table; `models.ledger.Task` explains the columns."""

    id: int
    kind: str
    subscriber: str | None
    argument: dict[str, Any]
    state: str
    total: int | None
    done: int
    succeeded: int
    failed: int
    #: Empty before the first step.
    position: dict[str, Any]
    message: str
    by: str
    created_at: datetime
    finished_at: datetime | None
    lease_owner: str | None
    lease_until: datetime | None

    @classmethod
    def of(cls, row: sa.Row[Any]) -> TaskRow:
        """Make a task of a row with all columns of the table."""
        task = cls._make(row)
        return task._replace(position=task.position or {}, message=task.message or "")


if TaskRow._fields != tuple(column.name for column in Task.__table__.c):
    raise TypeError("TaskRow must list the columns of table `task` in their order")


@dataclass(frozen=True)
class Step:
    """The progress of a task after one step; the counts are totals since its start.

    `effect` makes the step's changes. It runs in the transaction that writes the counts, and only if the task is
    still ours; it may run twice if that transaction lost a race. `pause`: seconds until the next step.
    """

    done: int
    succeeded: int = 0
    failed: int = 0
    position: dict[str, Any] | None = None
    finished: bool = False
    message: str = ""
    #: The number of pieces, if it was not known at the start.
    total: int | None = None
    effect: Callable[[sa.Connection], None] | None = None
    pause: float = 0.0


def counted(step: Step, task: TaskRow, count: Callable[[], int]) -> Step:
    """Return the step with the total, counting it in the first step so that starting a task stays fast."""
    return step if task.total is not None else replace(step, total=count())


class TaskKind(ABC):
    """One kind of task: how it starts, how a step of it is done, and its texts."""

    #: The name in the ledger, and of the commands and pages that start it.
    kind: ClassVar[str]
    #: The meaning of a task's two counts.
    succeeded: ClassVar[str] = gettext_noop("succeeded")
    failed: ClassVar[str] = gettext_noop("failed")

    #: `start(by, *, ...)` checks its arguments, calls `TaskRunner.begin` and returns the task's id.
    start: Callable[..., int]

    def __init__(self, services: Services, tasks: TaskRunner) -> None:
        self.services = services
        self.context = services.context
        self.tasks = tasks

    def subscriber_of(self, task: TaskRow) -> Subscriber:
        """Return the subscriber of a task.

        Raises:
          ValueError: it is no longer configured.
        """
        found = self.context.subscribers.get(task.subscriber or "")
        if found is None:
            raise ValueError(f"{task.subscriber} is no longer configured")
        return found

    @abstractmethod
    def step(self, task: TaskRow) -> Step:
        """Do one bounded step of a task, in well under `LEASE_SECONDS`.

        An exception ends the task as failed; only while the database does not answer is the step repeated.
        """

    @staticmethod
    @abstractmethod
    def label(task: TaskRow) -> str:
        """Return what a task does, in the language of the user."""


class TaskRunner:
    """Starts, stops and runs tasks."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.kinds: dict[str, TaskKind] = {}

    # --- for operators --------------------------------------------------------------------------------

    def start(self, kind: str, by: str, **arguments: Any) -> int:
        """Start a task with the arguments of its kind's `start`; return its id. The scheduler does the steps.

        Raises:
          ValueError: there is no such kind, or an argument is wrong.
        """
        if kind not in self.kinds:
            raise ValueError(
                gettext(
                    "unknown kind of task {kind!r}; known kinds: {known}",
                    kind=kind,
                    known=", ".join(sorted(self.kinds)),
                )
            )
        return self.kinds[kind].start(by, **arguments)

    def begin(
        self,
        kind: str,
        by: str,
        *,
        subscriber: str | None = None,
        argument: dict[str, Any] | None = None,
        total: int | None = None,
    ) -> int:
        """Insert a task's row; return its id.

        Raises:
          ValueError: there is no such subscriber.
        """
        if subscriber is not None and subscriber not in self.context.subscribers:
            known = ", ".join(sorted(self.context.subscribers)) or gettext("none")
            raise ValueError(
                gettext("unknown subscriber {name!r}; known subscribers: {known}", name=subscriber, known=known)
            )
        values = {"kind": kind, "subscriber": subscriber, "argument": argument or {}, "total": total, "by": by}
        with self.context.database.write() as connection:
            insert = sa.insert(Task).values(**values, state="running", created_at=self.context.clock())
            task_id = int(connection.execute(insert.returning(Task.id)).scalar_one())
            details = {"subscriber": subscriber, "argument": argument or {}, "total": total}
            self.context.audit(connection, by, "task.start", f"#{task_id} {kind}", **details)
        return task_id

    def begin_or_resume(
        self, kind: str, by: str, *, subscriber: str, argument: dict[str, Any], afresh: bool = False
    ) -> int:
        """Resume the unfinished task with the same argument, or begin one; return its id.

        `afresh`: what an unfinished one has done counts no more, and it begins again.

        Raises:
          ValueError: there is no such subscriber.
        """
        for task in self.list(kind):
            if task.subscriber == subscriber and task.argument == argument and task.state != "done":
                if afresh:
                    self._begin_again(task.id, by)
                elif task.state in ("stopped", "failed"):
                    self.resume(task.id, by)
                return int(task.id)
        return self.begin(kind, by, subscriber=subscriber, argument=argument)

    def stop(self, task_id: int, by: str) -> None:
        """End a task after the current step; its finished steps stay done.

        Raises:
          ValueError: it is not running.
        """
        now = self.context.clock()
        is_held = sa.and_(Task.lease_owner.is_not(None), Task.lease_until > now)
        values = {
            "state": sa.case((is_held, "stopping"), else_="stopped"),
            "finished_at": sa.case((is_held, sa.null()), else_=sa.literal(now, Task.finished_at.type)),
        }
        self._change(task_id, by, "task.stop", ("running",), values)

    def resume(self, task_id: int, by: str) -> None:
        """Continue a task that was stopped or failed.

        Raises:
          ValueError: it is neither.
        """
        values = {"state": "running", "finished_at": None, "lease_until": None}
        self._change(task_id, by, "task.resume", ("stopped", "failed"), values)

    def _begin_again(self, task_id: int, by: str) -> None:
        """Begin a task again, also one that has just finished; the result of a step under way is discarded."""
        values = {"state": "running", "created_at": self.context.clock(), "finished_at": None, "message": None}
        values |= {"position": None, "total": None, "done": 0, "succeeded": 0, "failed": 0}
        values |= {"lease_owner": None, "lease_until": None}
        states = (*OPEN_TASK_STATES, "stopped", "failed", "done")
        self._change(task_id, by, "task.restart", states, values)

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

    def label(self, task: TaskRow) -> str:
        """Return what a task does."""
        kind = self.kinds.get(task.kind)
        return kind.label(task) if kind else f"{task.kind} {task.subscriber or ''}".strip()

    def counts(self, task: TaskRow) -> tuple[str, str]:
        """Return the English meaning of a task's counts `succeeded` and `failed`."""
        kind = self.kinds.get(task.kind, TaskKind)
        return kind.succeeded, kind.failed

    def get(self, task_id: int) -> TaskRow:
        """Return one task.

        Raises:
          LookupError: there is no such task.
        """
        with self.context.database.read() as connection:
            row = connection.execute(sa.select(Task.__table__).where(Task.id == task_id)).one_or_none()
        if row is None:
            raise LookupError(gettext("there is no task #{number}", number=task_id))
        return TaskRow.of(row)

    def list(self, *kinds: str, unfinished: bool = False, limit: int = 50) -> Sequence[TaskRow]:
        """Return the newest tasks (of these kinds), newest first."""
        statement = sa.select(Task.__table__).order_by(Task.id.desc()).limit(limit)
        if kinds:
            statement = statement.where(Task.kind.in_(kinds))
        if unfinished:
            statement = statement.where(Task.state.in_(OPEN_TASK_STATES))
        with self.context.database.read() as connection:
            return [TaskRow.of(row) for row in connection.execute(statement)]

    def newest_by(self, kind: str, name: str) -> dict[str, TaskRow]:
        """Return the newest task of a kind for each value of one argument."""
        newest = sa.select(sa.func.max(Task.id)).where(Task.kind == kind).group_by(Task.argument[name].as_string())
        with self.context.database.read() as connection:
            rows = connection.execute(sa.select(Task.__table__).where(Task.id.in_(newest))).all()
        return {row.argument[name]: TaskRow.of(row) for row in rows}

    # --- for the scheduler ----------------------------------------------------------------------------

    def run_some(self) -> bool:
        """Do one step of one task; False if there was nothing to do.

        Raises:
          OperationalError: the database does not answer; the step is repeated after the lease has expired.
        """
        task = self._take()
        if task is None:
            return False
        if task.state == "stopping":
            self._release(task, {"state": "stopped", "finished_at": self.context.clock()})
            return True
        try:
            step = self.kinds[task.kind].step(task)
            self.context.database.run_in_transaction(self._commit, task, step)
        except sa.exc.OperationalError:
            raise
        except _LeaseLost:
            logger.warning("task #%d %s: another process took over; this step is discarded", task.id, task.kind)
        except Exception as error:
            logger.exception("task #%d %s failed", task.id, task.kind)
            message = f"{type(error).__name__}: {error}"
            self._release(task, {"state": "failed", "message": message, "finished_at": self.context.clock()})
        return True

    def _take(self) -> TaskRow | None:
        """Lease a free task and return it, or None; the one that has waited longest first."""
        now = self.context.clock()
        is_due = sa.or_(
            Task.lease_until.is_(None),
            Task.lease_until <= now,
            sa.and_(Task.lease_owner.is_(None), Task.state == "stopping"),
        )
        due = (
            sa.select(Task.id)
            .where(Task.state.in_(OPEN_TASK_STATES), Task.kind.in_(self.kinds), is_due)
            .order_by(Task.lease_until.asc().nulls_first(), Task.id)
            .limit(1)
        )
        with self.context.database.read() as connection:  # nearly always there is none
            if connection.execute(due).first() is None:
                return None
        mine = (
            sa.update(Task)
            .where(Task.id == due.with_for_update(skip_locked=True).scalar_subquery())
            .values(lease_owner=new_token(), lease_until=self.context.later(self.context.policy.lease_seconds))
            .returning(*Task.__table__.columns)
        )
        taken = self.context.database.run_in_transaction(lambda c: c.execute(mine).one_or_none())
        return TaskRow.of(taken) if taken is not None else None

    def _commit(self, connection: sa.Connection, task: TaskRow, step: Step) -> None:
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

    def _release(self, task: TaskRow, values: dict[str, Any]) -> None:
        mine = sa.update(Task).where(Task.id == task.id, Task.lease_owner == task.lease_owner)
        statement = mine.values(**values, lease_owner=None, lease_until=None)
        self.context.database.run_in_transaction(lambda c: c.execute(statement))


class _LeaseLost(Exception):
    """The step took longer than its lease, and another process has the task now."""
