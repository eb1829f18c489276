"""The periodic jobs. Each due run starts once, however many schedulers tick.

periodiq fires one tick a minute and nothing else, because several schedules in one process lose ticks.
Each tick claims the slots of the coming minute; a slot is a row with a unique key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from conductor.context import Context
from conductor.retention import Retention
from i18n import gettext
from models.ledger import Cursor, JobRun, Schedule
from models.rows import ScheduleRow

logger = logging.getLogger(__name__)

#: Seconds between two ticks. A tick claims the slots that begin before the next one.
TICK_SECONDS = 60

#: The job that polls a subscriber is named by this prefix and the subscriber's name.
POLL = "poll "

#: The job that removes old history.
TIDY = "tidy"


@dataclass(frozen=True)
class Due:
    """A job's slot that this tick has claimed, and the seconds until it starts."""

    job: str
    slot: datetime
    delay: float


class JobScheduler:
    """Claims and runs periodic jobs."""

    def __init__(self, context: Context, retention: Retention) -> None:
        self.context = context
        self.retention = retention

    def intervals(self) -> dict[str, int]:
        """Return the seconds between two runs of each job."""
        polls = {f"{POLL}{s.name()}": s.poll_seconds for s in self.context.subscribers.values() if s.poll_seconds}
        return {**polls, TIDY: 24 * 3600}

    def ensure_rows(self) -> None:
        """Make sure that each job has its row. An existing row keeps its interval, which an operator may have set."""
        with self.context.database.write() as connection:
            for job, seconds in self.intervals().items():
                insert = self.context.database.insert(Schedule).values(job=job, every_seconds=seconds)
                connection.execute(insert.on_conflict_do_nothing(index_elements=["job"]))

    def describe(self, job: str) -> str:
        """Return what a job does, in one sentence."""
        if job == TIDY:
            return gettext("Removes finished history older than {n} days", n=self.context.policy.history_days)
        return gettext("Reads from {subscriber} what changed there", subscriber=job.removeprefix(POLL))

    def next_run(self, row: ScheduleRow) -> datetime | None:
        """Return when a job is due next; None if it is paused or its system not configured."""
        if row.paused_at is not None or row.job not in self.intervals():
            return None
        every = max(row.every_seconds, 1)
        return datetime.fromtimestamp((int(self.context.clock().timestamp()) // every + 1) * every, UTC)

    def is_late(self, row: ScheduleRow) -> bool:
        """Return whether a due run did not start: the scheduler or the worker is down or overloaded."""
        if row.paused_at is not None or row.started_at is None or row.job not in self.intervals():
            return False
        return self.context.clock() - row.started_at > timedelta(seconds=row.every_seconds + 2 * TICK_SECONDS)

    # --- actions of an operator -----------------------------------------------------------------------

    def pause(self, job: str, by: str) -> None:
        """Pause a job until it is resumed.

        Raises:
          KeyError: there is no such job.
        """
        self._set_paused(job, self.context.clock(), "schedule.pause", by)

    def resume(self, job: str, by: str) -> None:
        """Resume a job. If it missed runs, it runs once for all of them.

        Raises:
          KeyError: there is no such job.
        """
        self._set_paused(job, None, "schedule.resume", by)

    def _set_paused(self, job: str, at: datetime | None, action: str, by: str) -> None:
        with self.context.database.write() as connection:
            changed = connection.execute(sa.update(Schedule).where(Schedule.job == job).values(paused_at=at))
            if not changed.rowcount:
                raise KeyError(job)
            self.context.audit(connection, by, action, job)

    def run_soon(self, job: str, by: str) -> None:
        """Run a job now: a poll immediately, any other with the next tick, within a minute.

        Raises:
          KeyError: there is no such job.
          ValueError: it is paused and is not a poll.
        """
        if job not in self.intervals():
            raise KeyError(job)
        with self.context.database.write() as connection:
            row = connection.execute(sa.select(Schedule.__table__).where(Schedule.job == job)).one()
            if not job.startswith(POLL):
                if row.paused_at is not None:
                    raise ValueError(gettext("{job} is paused: resume it first", job=job))
                # Release the slot, so that the next tick claims it again.
                slot = _slots(self.context.clock(), max(row.every_seconds, 1))[0]
                connection.execute(sa.delete(JobRun).where(JobRun.job == job, JobRun.slot == slot))
            self.context.audit(connection, by, "schedule.run", job)
        if job.startswith(POLL):
            self.context.publisher.poll(job.removeprefix(POLL))

    # --- the tick -------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Claim and start the jobs that are due in the coming minute, and those that were missed."""
        self._restart_polls()
        # Retention last: it may take minutes, and polls do not wait for it.
        for due in sorted(self.claim(), key=lambda due: due.job == TIDY):
            if due.job == TIDY:
                self.run(TIDY, self.retention.remove_old)
            else:
                self._publish(due)

    def _restart_polls(self) -> None:
        """Publish polls again whose process died: the next slot of an infrequent job may be hours away."""
        died = sa.select(Cursor.subscriber).where(
            Cursor.poller.is_not(None), Cursor.polling_until <= self.context.clock()
        )
        running = sa.select(Schedule.job).where(Schedule.paused_at.is_(None))
        with self.context.database.read_autocommit() as connection:
            names = connection.scalars(died).all()
            polls = self.intervals().keys() & set(connection.scalars(running)) if names else set()
        for name in names:
            if POLL + name in polls:
                logger.warning("the process polling %s died; polling again", name)
                self.context.publisher.poll(name)

    def _publish(self, due: Due) -> None:
        try:
            self.context.publisher.poll(due.job.removeprefix(POLL), due.delay)
        except Exception:
            with self.context.database.write() as connection:  # Release the slot for the next tick.
                connection.execute(sa.delete(JobRun).where(JobRun.job == due.job, JobRun.slot == due.slot))
            raise

    def claim(self) -> list[Due]:
        """Claim the slots that no scheduler has claimed, and return them. Of missed slots only the newest counts."""
        now = self.context.clock()
        known = self.intervals()
        claimed = []
        with self.context.database.write() as connection:
            rows = connection.execute(sa.select(Schedule.__table__).where(Schedule.paused_at.is_(None))).all()
            for row in rows:
                if row.job not in known:
                    continue
                for slot in _slots(now, max(row.every_seconds, 1)):
                    insert = self.context.database.insert(JobRun).values(job=row.job, slot=slot)
                    mine = insert.on_conflict_do_nothing(index_elements=["job", "slot"]).returning(JobRun.id)
                    if connection.execute(mine).scalar() is not None:  # rowcount is unreliable on PostgreSQL
                        claimed.append(Due(row.job, slot, max((slot - now).total_seconds(), 0.0)))
        return claimed

    def run(self, job: str, work: Callable[[], object]) -> None:
        """Run a job and record its result."""
        self._note(job, started_at=self.context.clock(), finished_at=None, result="running")
        try:
            result = work()
        except Exception as error:
            self._note(job, finished_at=self.context.clock(), result=f"{type(error).__name__}: {error}", failed=True)
            raise
        self._note(job, finished_at=self.context.clock(), result=str(result), failed=False)

    def _note(self, job: str, **values: object) -> None:
        with self.context.database.write() as connection:
            connection.execute(sa.update(Schedule).where(Schedule.job == job).values(**values))


def _slots(now: datetime, every: int) -> list[datetime]:
    """Return the start of the current slot, and of those that begin before the next tick."""
    current = int(now.timestamp()) // every * every
    last = int(now.timestamp()) + TICK_SECONDS - 1
    return [datetime.fromtimestamp(stamp, UTC) for stamp in range(current, last + 1, every)]
