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

from conductor.hub import Hub
from conductor.tasks import OPEN
from models.ledger import Change, Delivery, Inbox, JobRun, Process, Schedule, Task

logger = logging.getLogger(__name__)

#: Seconds between two ticks, and how far ahead a tick looks.
TICK_SECONDS = 60

#: Days that settled history is kept.
HISTORY_DAYS = 90

#: Rows removed in one transaction.
_TIDY_BATCH = 5000

#: The job that removes old history.
TIDY = "tidy"


@dataclass(frozen=True)
class Due:
    """A job's slot that this tick has claimed, and in how many seconds it starts."""

    job: str
    slot: datetime
    delay: float


class Jobs:
    """Claims and runs periodic jobs."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def intervals(self) -> dict[str, int]:
        """Every job there is -> seconds between two runs."""
        polls = {f"poll {s.name()}": s.poll_seconds for s in self.hub.subscribers.values() if s.poll_seconds}
        return {**polls, TIDY: 24 * 3600}

    def ensure_rows(self) -> None:
        """Make sure each job has its row; how often it runs may have been changed by a person."""
        with self.hub.database.write() as connection:
            for job, seconds in self.intervals().items():
                insert = self.hub.database.insert(Schedule).values(job=job, every_seconds=seconds)
                connection.execute(insert.on_conflict_do_nothing(index_elements=["job"]))

    def tick(self) -> None:
        """Claim what is due in the coming minute, and what was missed, and have it run."""
        # Tidying last: it may take minutes, and the polls need not wait for it.
        for due in sorted(self.claim(), key=lambda due: due.job == TIDY):
            if due.job == TIDY:
                self.run(TIDY, self.tidy)
            else:
                self._announce(due)

    def _announce(self, due: Due) -> None:
        try:
            self.hub.announcer.poll(due.job.removeprefix("poll "), due.delay)
        except Exception:
            with self.hub.database.write() as connection:  # given back: the next tick claims it again
                connection.execute(sa.delete(JobRun).where(JobRun.job == due.job, JobRun.slot == due.slot))
            raise

    def claim(self) -> list[Due]:
        """The slots nobody has claimed before; of missed ones only the newest."""
        now = self.hub.clock()
        known = self.intervals()
        claimed = []
        with self.hub.database.write() as connection:
            rows = connection.execute(sa.select(Schedule.__table__).where(Schedule.paused_at.is_(None))).all()
            for row in rows:
                if row.job not in known:
                    continue
                for slot in _slots(now, max(row.every_seconds, 1)):
                    insert = self.hub.database.insert(JobRun).values(job=row.job, slot=slot)
                    mine = insert.on_conflict_do_nothing(index_elements=["job", "slot"]).returning(JobRun.id)
                    if connection.execute(mine).scalar() is not None:  # rowcount says nothing on PostgreSQL
                        claimed.append(Due(row.job, slot, max((slot - now).total_seconds(), 0.0)))
        return claimed

    def run(self, job: str, work: Callable[[], object]) -> None:
        """Run a job and write down how it ended."""
        self._note(job, started_at=self.hub.clock(), finished_at=None, result="running")
        try:
            result = work()
        except Exception as error:
            self._note(job, finished_at=self.hub.clock(), result=f"{type(error).__name__}: {error}")
            raise
        self._note(job, finished_at=self.hub.clock(), result=str(result))

    def _note(self, job: str, **values: object) -> None:
        with self.hub.database.write() as connection:
            connection.execute(sa.update(Schedule).where(Schedule.job == job).values(**values))

    def tidy(self) -> str:
        """Remove history older than its retention, in small transactions; what is open stays."""
        old = self.hub.clock() - timedelta(days=HISTORY_DAYS)
        yesterday = self.hub.clock() - timedelta(days=1)
        removed = 0
        always = sa.true()
        for table, at, before, settled in (
            (Delivery, Delivery.at, old, always),
            (Change, Change.at, old, Change.relayed_at.is_not(None)),
            (Inbox, Inbox.received_at, old, Inbox.state == "done"),
            (JobRun, JobRun.slot, self._passed(), always),
            (Task, Task.created_at, old, Task.state.not_in(OPEN)),
        ):
            removed += self._remove(table, at, before, settled)
        with self.hub.database.write() as connection:
            connection.execute(sa.delete(Process).where(Process.seen_at < yesterday))
        return f"{removed} old rows removed"

    def _passed(self) -> datetime:
        """No job's running slot began before this: one that is forgotten would be claimed again."""
        with self.hub.database.read() as connection:
            longest = connection.execute(sa.select(sa.func.max(Schedule.every_seconds))).scalar() or 0
        return self.hub.clock() - timedelta(seconds=max(longest, 24 * 3600))

    def _remove(self, table: Any, at: Any, before: datetime, settled: Any) -> int:
        start, end = self._range(table, at, before)
        removed = 0
        for low in range(start, end, _TIDY_BATCH):
            high = min(low + _TIDY_BATCH, end)
            statement = sa.delete(table).where(table.id >= low, table.id < high, at < before, settled)
            with self.hub.database.write() as connection:
                removed += connection.execute(statement).rowcount
        return removed

    def _range(self, table: Any, at: Any, before: datetime) -> tuple[int, int]:
        """The ids of rows older than `before`, by bisection: ids grow with time, and no index on the time is needed."""
        with self.hub.database.read() as connection:
            row = connection.execute(sa.select(sa.func.min(table.id), sa.func.max(table.id))).one()
            if row[0] is None:
                return 0, 0
            low, high = row[0], row[1] + 1
            while low < high:
                middle = (low + high) // 2
                found = sa.select(table.id, at).where(table.id >= middle).order_by(table.id).limit(1)
                near = connection.execute(found).one()
                if near[1] < before:
                    low = near[0] + 1
                else:
                    high = middle
            return row[0], low


def _slots(now: datetime, every: int) -> list[datetime]:
    """The running slot and those that begin before the next tick."""
    current = int(now.timestamp()) // every * every
    last = int(now.timestamp()) + TICK_SECONDS - 1
    return [datetime.fromtimestamp(stamp, UTC) for stamp in range(current, last + 1, every)]
