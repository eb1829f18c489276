"""Replaying the webhooks of a system in a window of time."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.inward.replay import ReplayWindow
from conductor.tasks.runner import Step, TaskKind, TaskRow
from conductor.tasks.throttle import PAUSE_SECONDS
from i18n import gettext, gettext_noop

#: Events made due in one step; new events are applied before them.
REPLAY_BATCH = 100


class ReplayWebhooks(TaskKind):
    """The argument is a `ReplayWindow`, its times in ISO format."""

    kind = "replay"
    succeeded = gettext_noop("are applied again")
    failed = gettext_noop("were skipped")

    def start(self, by: str, *, window: ReplayWindow) -> int:
        """Apply all events of a window again, oldest first; return the task's id.

        Raises:
          ValueError: there is no such system, or no event in the window.
        """
        if window.system not in self.context.systems:
            raise ValueError(gettext("unknown system {name!r}", name=window.system))
        if window.since >= window.until:
            raise ValueError(gettext("the period ends before it starts"))
        total = self.services.replay.count(window)
        if not total:
            raise ValueError(gettext("{system} sent nothing in this period", system=window.system))
        argument = {
            "system": window.system,
            "since": window.since.isoformat(),
            "until": window.until.isoformat(),
        }
        return self.tasks.begin(self.kind, by, argument=argument, total=total)

    def step(self, task: TaskRow) -> Step:
        """Make the next events due."""
        replay, window = self.services.replay, _window(task.argument)
        with self.context.database.read() as connection:
            if task.position:
                first, end = task.position["next"], task.position["end"]
            else:
                first, end = replay.id_range(connection, window)
            ids = replay.next_ids(connection, window, first, end, REPLAY_BATCH)
        if not ids:
            message = f"{task.done} event{'' if task.done == 1 else 's'} applied again"
            return Step(task.done, succeeded=task.done, position=task.position, finished=True, message=message)

        def effect(connection: sa.Connection) -> None:
            replay.batch(connection, ids)

        done = task.done + len(ids)
        position = {"next": ids[-1] + 1, "end": end}
        return Step(done, succeeded=done, position=position, effect=effect, pause=PAUSE_SECONDS)

    @staticmethod
    def label(task: TaskRow) -> str:
        since, until = (task.argument[end][:16].replace("T", " ") for end in ("since", "until"))
        system = task.argument["system"]
        return gettext("Replay webhooks of {system}, {since} to {until} UTC", system=system, since=since, until=until)


def _window(argument: dict[str, Any]) -> ReplayWindow:
    since, until = (datetime.fromisoformat(argument[name]) for name in ("since", "until"))
    return ReplayWindow(argument["system"], since, until)
