"""The scheduler: periodiq's loop with its one actor, the tick of every minute; and the loop of the tasks."""

from __future__ import annotations

import logging
import threading

import dramatiq
import sqlalchemy as sa
from periodiq import Scheduler

from broker import BrokerUnreachable
from conductor import Conductor

logger = logging.getLogger(__name__)

#: Seconds between two looks for a task.
_TASK_PAUSE = 1.0


def run_tasks(conductor: Conductor, stop: threading.Event) -> None:
    """Do steps of tasks until asked to stop. Several schedulers may: a task is worked at under a lease."""
    while not stop.is_set():
        try:
            worked = conductor.tasks.run_some()
        except sa.exc.SQLAlchemyError as error:
            logger.warning("tasks wait: %s", str(error).split("\n", 1)[0])
            worked = False
        if not worked:
            stop.wait(_TASK_PAUSE)


class TickScheduler(Scheduler):  # type: ignore[misc]
    """periodiq's scheduler; a broker that is away costs a tick, not the process.

    Two schedulers, missed ticks and restarts within a minute do no harm: the slots in the database
    decide what runs, see `conductor.schedule`.
    """

    def __init__(self, tick: dramatiq.Actor[[], None], stop: threading.Event) -> None:
        super().__init__(actors=[tick])
        self._stop = stop

    def send_actors(self, actors: list[dramatiq.Actor[[], None]], now: object) -> None:
        """Send the tick."""
        try:
            super().send_actors(actors, now)
        except (BrokerUnreachable, dramatiq.ConnectionClosed) as error:
            logger.warning("no tick this minute, the next one catches up: %s", error)

    def run(self) -> None:
        """Tick at once, then every minute, until asked to stop. Main thread only: it uses SIGALRM."""
        self.schedule()
        while not self._stop.is_set():
            if self.alarm_q.get(block=True) and not self._stop.is_set():
                self.schedule()

    def wake(self) -> None:
        """Let `run` see that it is asked to stop."""
        self.alarm_q.put(True)
