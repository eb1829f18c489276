"""Replaying: what came in is applied once more, one event or all of a stretch of time.

Applying is safe to repeat: what is older than what is known by now is passed over, and what agrees is an echo.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.inward.inbox import POLLED
from conductor.tasks.runner import Step, TaskRunner
from i18n import gettext
from models.history import first_since
from models.ledger import Inbox
from models.query_hints import no_index

KIND = "replay"

#: Events put back into the queue in one step, and the seconds until the next: what comes in now goes before.
STEP, PAUSE = 100, 1.0

#: Counting a window stops here.
REPLAY_LIMIT = 100_000


@dataclass(frozen=True)
class Window:
    """The webhooks of one system received from `since` on and before `until`."""

    system: str
    since: datetime
    until: datetime


class Replaying:
    """Applies again what came in."""

    def __init__(self, context: Context, tasks: TaskRunner) -> None:
        self.context = context
        self.tasks = tasks
        tasks.register(KIND, self.step)

    def one(self, inbox_id: int, by: str) -> None:
        """Apply one inbox row again.

        Raises:
          ValueError: there is none, or it waits already.
        """
        with self.context.database.write() as connection:
            row = connection.execute(
                sa.update(Inbox)
                .where(Inbox.id == inbox_id, Inbox.state != "waiting")
                .values(self._again())
                .returning(Inbox.system, Inbox.event_id)
            ).one_or_none()
            if row is None:
                raise ValueError(gettext("inbox #{number} waits already, or there is none", number=inbox_id))
            self.context.audit(connection, by, "inbox.replay", f"#{inbox_id} {row.system}", event=row.event_id)

    def count(self, window: Window, limit: int = REPLAY_LIMIT) -> int:
        """How many events a window holds; stops at `limit`."""
        with self.context.database.read() as connection:
            first, end = self._range(connection, window)
            limited = sa.select(Inbox.id).where(*_of(window, first, end)).limit(limit).subquery()
            return int(connection.execute(sa.select(sa.func.count()).select_from(limited)).scalar_one())

    def start(self, window: Window, by: str) -> int:
        """Apply all of a window again, oldest first, as a task; its id.

        Raises:
          ValueError: there is no such system, or nothing in the window.
        """
        if window.system not in self.context.systems:
            raise ValueError(gettext("no system {name!r}", name=window.system))
        if window.since >= window.until:
            raise ValueError(gettext("the window ends before it begins"))
        total = self.count(window)
        if not total:
            raise ValueError(gettext("{system} sent nothing in that time", system=window.system))
        argument = {
            "system": window.system,
            "since": window.since.isoformat(),
            "until": window.until.isoformat(),
        }
        return self.tasks.start(KIND, by, argument=argument, total=total)

    def step(self, task: Any) -> Step:
        """Put the next few back into the queue."""
        times = (datetime.fromisoformat(task.argument[name]) for name in ("since", "until"))
        window = Window(task.argument["system"], *times)
        with self.context.database.read() as connection:
            if task.position:
                first, end = task.position["next"], task.position["end"]
            else:
                first, end = self._range(connection, window)
            mine = sa.select(Inbox.id).where(*_of(window, first, end)).order_by(Inbox.id)
            ids = list(connection.scalars(mine.limit(STEP)))
        if not ids:
            message = f"{task.done} event{'' if task.done == 1 else 's'} applied again"
            return Step(task.done, succeeded=task.done, position=task.position, finished=True, message=message)

        def effect(connection: sa.Connection) -> None:
            settled = (Inbox.id.in_(ids), Inbox.state != "waiting")
            connection.execute(sa.update(Inbox).where(*settled).values(self._again()))

        done = task.done + len(ids)
        return Step(done, succeeded=done, position={"next": ids[-1] + 1, "end": end}, effect=effect, pause=PAUSE)

    def _again(self) -> dict[str, Any]:
        # The sweep announces it: at once, and after what is under way.
        return {"state": "waiting", "attempts": 0, "retry_at": self.context.clock(), "finished_at": None}

    @staticmethod
    def _range(connection: sa.Connection, window: Window) -> tuple[int, int]:
        return (
            first_since(connection, Inbox, Inbox.received_at, window.since),
            first_since(connection, Inbox, Inbox.received_at, window.until),
        )


def _of(window: Window, first: int, end: int) -> tuple[Any, ...]:
    return Inbox.id >= first, Inbox.id < end, no_index(Inbox.system == window.system), Inbox.kind != POLLED
