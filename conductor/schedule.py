"""The periodic jobs: what is due, exactly once, however many schedulers tick.

periodiq fires one tick a minute and nothing else (several schedules in one process lose ticks).
Each tick claims the jobs' slots of the coming minute; a slot is a row with a unique key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.reports.throughput import ThroughputCounter
from conductor.tasks.runner import OPEN
from i18n import gettext
from models.history import bounds, first_since
from models.ledger import (
    AuditEntry,
    Change,
    Conflict,
    Cursor,
    DeadLetter,
    Delivery,
    Inbox,
    JobRun,
    Process,
    Schedule,
    Task,
)

logger = logging.getLogger(__name__)

#: Seconds between two ticks, and how far ahead a tick looks.
TICK_SECONDS = 60

#: Rows removed in one transaction.
_TIDY_BATCH = 5000

#: How the job is called that polls a subscriber: this and its name.
POLL = "poll "

#: The job that removes old history.
TIDY = "tidy"

#: Times that do not grow with the id; of these tables all rows are looked at, and there are few.
_ENDS = (DeadLetter.closed_at, Conflict.resolved_at)

_HAS_LETTER = sa.exists().where(DeadLetter.inbox_id == Inbox.id, DeadLetter.closed_at.is_(None))
_SETTLED = sa.or_(Inbox.state == "done", sa.and_(Inbox.state == "dead", ~_HAS_LETTER))


@dataclass(frozen=True)
class Due:
    """A job's slot that this tick has claimed, and in how many seconds it starts."""

    job: str
    slot: datetime
    delay: float


class JobScheduler:
    """Claims and runs periodic jobs."""

    def __init__(self, context: Context, throughput: ThroughputCounter) -> None:
        self.context = context
        self.throughput = throughput

    def intervals(self) -> dict[str, int]:
        """Every job there is -> seconds between two runs."""
        polls = {f"{POLL}{s.name()}": s.poll_seconds for s in self.context.subscribers.values() if s.poll_seconds}
        return {**polls, TIDY: 24 * 3600}

    def ensure_rows(self) -> None:
        """Make sure each job has its row; how often it runs may have been changed by a person."""
        with self.context.database.write() as connection:
            for job, seconds in self.intervals().items():
                insert = self.context.database.insert(Schedule).values(job=job, every_seconds=seconds)
                connection.execute(insert.on_conflict_do_nothing(index_elements=["job"]))

    def words(self, job: str) -> str:
        """What a job does, for people."""
        if job == TIDY:
            return gettext("Removes settled history older than {n} days", n=self.context.policy.history_days)
        return gettext("Reads from {subscriber} what changed there", subscriber=job.removeprefix(POLL))

    def next_run(self, row: Any) -> datetime | None:
        """When a job (a row of `schedule`) is due next; None while it is paused or its system is not configured."""
        if row.paused_at is not None or row.job not in self.intervals():
            return None
        every = max(row.every_seconds, 1)
        return datetime.fromtimestamp((int(self.context.clock().timestamp()) // every + 1) * every, UTC)

    def is_late(self, row: Any) -> bool:
        """Whether a run was due and none began: the scheduler or the worker is not there, or has too much to do."""
        if row.paused_at is not None or row.started_at is None or row.job not in self.intervals():
            return False
        return bool(self.context.clock() - row.started_at > timedelta(seconds=row.every_seconds + 2 * TICK_SECONDS))

    # --- what people do -------------------------------------------------------------------------------

    def pause(self, job: str, by: str) -> None:
        """Let a job rest until it is resumed.

        Raises:
          KeyError: there is no such job.
        """
        self._set_paused(job, self.context.clock(), "schedule.pause", by)

    def resume(self, job: str, by: str) -> None:
        """Let a job run again; a run that was missed meanwhile is made up for once.

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
        """Have a job run: a poll at once, any other with the next tick, within a minute.

        Raises:
          KeyError: there is no such job.
          ValueError: it is paused, and no poll.
        """
        if job not in self.intervals():
            raise KeyError(job)
        with self.context.database.write() as connection:
            row = connection.execute(sa.select(Schedule.__table__).where(Schedule.job == job)).one()
            if not job.startswith(POLL):
                if row.paused_at is not None:
                    raise ValueError(gettext("{job} is paused: resume it first", job=job))
                # Given back: the next tick claims it again.
                slot = _slots(self.context.clock(), max(row.every_seconds, 1))[0]
                connection.execute(sa.delete(JobRun).where(JobRun.job == job, JobRun.slot == slot))
            self.context.audit(connection, by, "schedule.run", job)
        if job.startswith(POLL):
            self.context.publisher.poll(job.removeprefix(POLL))

    # --- what the tick does ---------------------------------------------------------------------------

    def tick(self) -> None:
        """Claim what is due in the coming minute, and what was missed, and have it run."""
        self._poll_again()
        # Tidying last: it may take minutes, and the polls need not wait for it.
        for due in sorted(self.claim(), key=lambda due: due.job == TIDY):
            if due.job == TIDY:
                self.run(TIDY, self.tidy)
            else:
                self._announce(due)

    def _poll_again(self) -> None:
        """Announce polls that began and died: the next of a slow schedule may be hours away."""
        died = sa.select(Cursor.subscriber).where(
            Cursor.poller.is_not(None), Cursor.polling_until <= self.context.clock()
        )
        running = sa.select(Schedule.job).where(Schedule.paused_at.is_(None))
        with self.context.database.read_autocommit() as connection:
            names = connection.scalars(died).all()
            polls = self.intervals().keys() & set(connection.scalars(running)) if names else set()
        for name in names:
            if POLL + name in polls:
                logger.warning("the poll of %s died; it is polled again", name)
                self.context.publisher.poll(name)

    def _announce(self, due: Due) -> None:
        try:
            self.context.publisher.poll(due.job.removeprefix(POLL), due.delay)
        except Exception:
            with self.context.database.write() as connection:  # given back: the next tick claims it again
                connection.execute(sa.delete(JobRun).where(JobRun.job == due.job, JobRun.slot == due.slot))
            raise

    def claim(self) -> list[Due]:
        """The slots nobody has claimed before; of missed ones only the newest."""
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
                    if connection.execute(mine).scalar() is not None:  # rowcount says nothing on PostgreSQL
                        claimed.append(Due(row.job, slot, max((slot - now).total_seconds(), 0.0)))
        return claimed

    def run(self, job: str, work: Callable[[], object]) -> None:
        """Run a job and write down how it ended."""
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

    def tidy(self) -> str:
        """Remove history older than its retention, in small transactions; what is open stays."""
        now, policy = self.context.clock(), self.context.policy
        old, audited = now - timedelta(days=policy.history_days), now - timedelta(days=policy.audit_days)
        yesterday = now - timedelta(days=1)
        removed = 0
        always = sa.true()
        for table, at, before, settled in (
            (Delivery, Delivery.at, old, always),
            (Change, Change.at, old, Change.relayed_at.is_not(None)),
            (DeadLetter, DeadLetter.closed_at, old, always),
            (Conflict, Conflict.resolved_at, old, always),
            # After the letters: one whose letter is open can still be tried again.
            (
                Inbox,
                Inbox.received_at,
                old,
                _SETTLED,
            ),
            (AuditEntry, AuditEntry.at, audited, always),
            (JobRun, JobRun.slot, self._passed(), always),
            (Task, Task.created_at, old, Task.state.not_in(OPEN)),
        ):
            removed += self._remove(table, at, before, settled)
        with self.context.database.write() as connection:
            connection.execute(sa.delete(Process).where(Process.last_seen_at < yesterday))
            removed += self.throughput.thin(connection, policy.history_days)
        return f"{removed} old rows removed"

    def _passed(self) -> datetime:
        """No job's running slot began before this: one that is forgotten would be claimed again."""
        with self.context.database.read_autocommit() as connection:
            longest = connection.execute(sa.select(sa.func.max(Schedule.every_seconds))).scalar() or 0
        return self.context.clock() - timedelta(seconds=max(longest, 24 * 3600))

    def _remove(self, table: Any, at: Any, before: datetime, settled: Any) -> int:
        with self.context.database.read_autocommit() as connection:
            start, end = bounds(connection, table)
            if at not in _ENDS:
                end = first_since(connection, table, at, before)
        removed = 0
        for low in range(start, end, _TIDY_BATCH):
            high = min(low + _TIDY_BATCH, end)
            statement = sa.delete(table).where(table.id >= low, table.id < high, at < before, settled)
            with self.context.database.write() as connection:
                removed += connection.execute(statement).rowcount
        return removed


def _slots(now: datetime, every: int) -> list[datetime]:
    """The running slot and those that begin before the next tick."""
    current = int(now.timestamp()) // every * every
    last = int(now.timestamp()) + TICK_SECONDS - 1
    return [datetime.fromtimestamp(stamp, UTC) for stamp in range(current, last + 1, every)]
