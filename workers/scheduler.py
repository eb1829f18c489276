"""The scheduler: periodiq's loop with its one actor, the tick of every minute."""

from __future__ import annotations

import logging
import threading

import dramatiq
from periodiq import Scheduler

from broker import BrokerUnreachable

logger = logging.getLogger(__name__)


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
