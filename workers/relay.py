"""The relay: routes what was captured and announces it, woken by the database's commits."""

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

#: Seconds to wait before trying again when database or broker do not answer.
_TROUBLE_PAUSE = 1.0

#: Seconds between two counts of what was delivered.
_COUNT_PAUSE = 5.0

#: Seconds after which a loop that waits looks whether it is asked to stop.
_LONGEST_WAIT = 0.5


class Relay:
    """Two loops: one routes, the other sweeps, so that a change never waits for a sweep.

    Several relays may run side by side: each takes changes nobody else holds.
    """

    def __init__(self, conductor: Conductor, sweep_seconds: float) -> None:
        self.conductor = conductor
        self.sweep_seconds = sweep_seconds
        self._listener: Listener | None = None
        #: News may have been lost with an earlier process or a broker that was away.
        self._catch_up = True
        self._next_sweep = 0.0
        self._next_count = 0.0

    def run(self, stop: threading.Event) -> None:
        """Work until asked to stop. Trouble with database or broker is waited out."""
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
                self._trouble(stop, error)
            except sa.exc.SQLAlchemyError as error:
                self._trouble(stop, error)
            except Exception as error:
                # A relay that is gone is noticed by nobody: it says so and goes on.
                logger.exception("the relay stumbled")
                self._catch_up = True
                self._trouble(stop, error)

    def _route(self, _stop: threading.Event) -> None:
        try:
            if self._listener is None:
                self._listener = self.conductor.database.listener()
            if self.conductor.relay() < RELAY_BATCH:  # all there was
                self._listener.wait(_LONGEST_WAIT)
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
            self._next_count = now + _COUNT_PAUSE
        stop.wait(min(max(self._next_sweep - time.monotonic(), 0.0), _LONGEST_WAIT))

    def _trouble(self, stop: threading.Event, error: Exception) -> None:
        logger.warning("relay waits: %s", str(error).split("\n", 1)[0])
        stop.wait(_TROUBLE_PAUSE)

    def _close_listener(self) -> None:
        if self._listener is not None:
            try:
                self._listener.close()
            except Exception as error:
                logger.debug("closing a broken listener: %s", error)
            self._listener = None
