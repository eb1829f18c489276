"""The relay: routes what was captured and announces it, woken by the database's commits."""

from __future__ import annotations

import logging
import threading
import time

import sqlalchemy as sa

from broker import BrokerUnreachable
from conductor import Conductor
from models.session import Listener

logger = logging.getLogger(__name__)

#: Seconds to wait before trying again when database or broker do not answer.
_TROUBLE_PAUSE = 1.0

#: Seconds between two counts of what was delivered.
_COUNT_PAUSE = 5.0

#: Seconds after which a relay that waits looks whether it is asked to stop.
_LONGEST_WAIT = 0.5


class Relay:
    """One loop. Several may run side by side: each takes changes nobody else holds."""

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
        try:
            while not stop.is_set():
                try:
                    self._step()
                except BrokerUnreachable as error:
                    self._catch_up = True
                    self._trouble(stop, error)
                except sa.exc.SQLAlchemyError as error:
                    self._close_listener()
                    self._trouble(stop, error)
                except Exception as error:
                    # A relay that is gone is noticed by nobody: it says so and goes on.
                    logger.exception("the relay stumbled")
                    self._catch_up = True
                    self._close_listener()
                    self._trouble(stop, error)
        finally:
            self._close_listener()

    def _step(self) -> None:
        if self._listener is None:
            self._listener = self.conductor.database.listener()
        routed = self.conductor.relay()
        if self._catch_up or time.monotonic() >= self._next_sweep:
            self.conductor.sweep(everything=self._catch_up)
            self._catch_up = False
            self._next_sweep = time.monotonic() + self.sweep_seconds
        if time.monotonic() >= self._next_count:
            self.conductor.throughput.count()
            self._next_count = time.monotonic() + _COUNT_PAUSE
        if not routed:
            self._listener.wait(min(max(self._next_sweep - time.monotonic(), 0.0), _LONGEST_WAIT))

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
