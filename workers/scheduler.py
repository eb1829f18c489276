"""The scheduler: the tick of each minute, over periodiq, and the loop that runs tasks."""

from __future__ import annotations

import logging
import threading

import dramatiq
import sqlalchemy as sa
from periodiq import Scheduler

from broker import BrokerUnreachable
from conductor import Conductor

logger = logging.getLogger(__name__)

#: Seconds between two searches for a task with a due step.
_TASK_INTERVAL_SECONDS = 1.0


def run_tasks(conductor: Conductor, stop: threading.Event) -> None:
    """Run steps of tasks until `stop` is set. Several schedulers may: each step runs under the task's lease."""
    while not stop.is_set():
        try:
            worked = conductor.tasks.run_some()
        except sa.exc.SQLAlchemyError as error:
            logger.warning("tasks pause: %s", str(error).split("\n", 1)[0])
            worked = False
        if not worked:
            stop.wait(_TASK_INTERVAL_SECONDS)


class TickScheduler(Scheduler):  # type: ignore[misc]
    """periodiq's scheduler, which survives a broker that does not answer.

    Several schedulers, missed ticks and restarts within a minute are harmless: the slots in the
    database decide which jobs run, see `conductor.schedule`.
    """

    def __init__(self, tick: dramatiq.Actor[[], None], stop: threading.Event) -> None:
        super().__init__(actors=[tick])
        self._stop = stop

    def send_actors(self, actors: list[dramatiq.Actor[[], None]], now: object) -> None:
        """Send the tick."""
        try:
            super().send_actors(actors, now)
        except BrokerUnreachable as error:
            logger.warning("missed a tick, the next one starts all due jobs: %s", error)

    def run(self) -> None:
        """Tick immediately, then every minute, until stopped. Main thread only: periodiq uses SIGALRM."""
        self.schedule()
        while not self._stop.is_set():
            if self.alarm_q.get(block=True) and not self._stop.is_set():
                self.schedule()

    def wake(self) -> None:
        """Wake `run`, so that it checks `stop`."""
        self.alarm_q.put(True)
