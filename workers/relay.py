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

#: How often a waiting loop checks whether it must stop.
_STOP_CHECK_SECONDS = 0.5


class Relay:
    """Two loops: one routes changes, the other sweeps, so that a change never waits for a sweep.

    Several relays may run at the same time: each routes changes that no other relay has locked.
    """

    def __init__(self, conductor: Conductor, sweep_seconds: float) -> None:
        self.conductor = conductor
        self.sweep_seconds = sweep_seconds
        self._listener: Listener | None = None
        #: Whether to publish all pending work: messages may have been lost with a process or the broker.
        self._catch_up = True
        self._next_sweep = 0.0
        self._next_count = 0.0

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
                self._listener = self.conductor.database.listener()
            if self.conductor.relay() < RELAY_BATCH:  # no more are waiting
                self._listener.wait(_STOP_CHECK_SECONDS)
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
