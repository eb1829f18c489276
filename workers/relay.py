"""The relay: publishes captured changes, woken by commits, and sweeps for pending work."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import sqlalchemy as sa

from broker import BrokerUnreachable
from conductor import RELAY_BATCH, Conductor
from models.session import Listener

logger = logging.getLogger(__name__)

#: The pause after an error, such as a database or broker that does not answer.
_ERROR_PAUSE_SECONDS = 1.0

#: Seconds between two updates of the throughput figures.
_COUNT_INTERVAL_SECONDS = 5.0

#: Seconds between two examinations of the capture triggers.
_WATCH_INTERVAL_SECONDS = 60.0

#: How often a waiting loop checks whether it must stop.
_STOP_CHECK_SECONDS = 0.5


#: A relay that routes so many changes within the time looks for more by itself, and spares writers the notification.
_BUSY_CHANGES = 25
_BUSY_WINDOW_SECONDS = 0.1
_STAY_BUSY_SECONDS = 0.5

#: The pause between two looks: the shortest, its growth while nothing is found, and the longest without notifications.
_LOOK_PAUSE_SECONDS = 0.003
_PAUSE_GROWTH = 1.5
_UNNOTIFIED_PAUSE_SECONDS = 0.05


class Pace:
    """How long to wait until the next look for changes, by how many the last ones found.

    A transaction that wrote while the relay was busy sends no notification when it commits later. The pauses grow step
    by step, so it waits at most half as long as it took itself.
    """

    def __init__(self) -> None:
        self._window_began = 0.0
        self._in_window = 0
        self._busy_until = 0.0
        self._pause = _STOP_CHECK_SECONDS

    def is_busy(self, now: float) -> bool:
        """Return whether the relay looks by itself, often enough that writers need not notify it."""
        return now < self._busy_until

    def after(self, routed: int, now: float, *, is_notified: bool) -> float:
        """Return the seconds to wait after a look at `now` (monotonic seconds) that routed so many changes."""
        if now - self._window_began > _BUSY_WINDOW_SECONDS:
            self._window_began, self._in_window = now, 0
        self._in_window += routed
        if self._in_window >= _BUSY_CHANGES:
            self._busy_until = now + _STAY_BUSY_SECONDS
        if routed:
            self._pause = _LOOK_PAUSE_SECONDS
            if is_notified and not self.is_busy(now):
                self._pause = _STOP_CHECK_SECONDS
        else:
            longest = _STOP_CHECK_SECONDS if is_notified else _UNNOTIFIED_PAUSE_SECONDS
            self._pause = min(self._pause * _PAUSE_GROWTH, longest)
        return self._pause


class Relay:
    """Two loops: one routes changes, the other sweeps, so that a change never waits for a sweep.

    Several relays may run at the same time: each routes changes that no other relay has locked.
    """

    def __init__(self, conductor: Conductor, sweep_seconds: float) -> None:
        self.conductor = conductor
        self.sweep_seconds = sweep_seconds
        self._listener: Listener | None = None
        self._pace = Pace()
        #: Whether to publish all pending work: messages may have been lost with a process or the broker.
        self._catch_up = True
        self._next_sweep = 0.0
        self._next_count = 0.0
        self._next_watch = 0.0

    def run(self, stop: threading.Event) -> None:
        """Run until `stop` is set; errors of database and broker are retried."""
        sweeper = threading.Thread(target=self._repeat, args=(self._sweep, stop), name="sweeper", daemon=True)
        sweeper.start()
        try:
            self._repeat(self._route, stop)
        finally:
            self._close_listener()
        sweeper.join()

    def _repeat(self, step: Callable[[threading.Event], None], stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                step(stop)
            except BrokerUnreachable as error:
                self._catch_up = True
                self._pause_after(error, stop)
            except sa.exc.SQLAlchemyError as error:
                self._pause_after(error, stop)
            except Exception as error:
                # A relay that ends would stop all deliveries.
                logger.exception("unexpected error in the relay")
                self._catch_up = True
                self._pause_after(error, stop)

    def _route(self, _stop: threading.Event) -> None:
        try:
            if self._listener is None:
                self._listener, self._pace = self.conductor.database.listener(), Pace()
            routed, now = self.conductor.relay(), time.monotonic()
            pause = self._pace.after(routed, now, is_notified=self._listener.is_notified)
            self._listener.stay_awake(self._pace.is_busy(now))
            if routed < RELAY_BATCH:  # no more are waiting
                self._listener.wait(pause)
        except BrokerUnreachable:
            raise
        except Exception:
            self._close_listener()  # it may be broken too
            raise

    def _sweep(self, stop: threading.Event) -> None:
        now = time.monotonic()
        if self._catch_up or now >= self._next_sweep:
            everything, self._catch_up = self._catch_up, False
            self._next_sweep = now + self.sweep_seconds
            try:
                self.conductor.sweep(everything=everything)
            except Exception:
                self._catch_up = self._catch_up or everything
                raise
        if now >= self._next_watch:
            self._next_watch = now + _WATCH_INTERVAL_SECONDS
            self.conductor.capture.look()
        if now >= self._next_count:
            self.conductor.throughput.count()
            self._next_count = now + _COUNT_INTERVAL_SECONDS
        stop.wait(min(max(self._next_sweep - time.monotonic(), 0.0), _STOP_CHECK_SECONDS))

    def _pause_after(self, error: Exception, stop: threading.Event) -> None:
        logger.warning("the relay pauses: %s", str(error).split("\n", 1)[0])
        stop.wait(_ERROR_PAUSE_SECONDS)

    def _close_listener(self) -> None:
        if self._listener is not None:
            try:
                self._listener.close()
            except Exception as error:
                logger.debug("cannot close the listener: %s", error)
            self._listener = None
