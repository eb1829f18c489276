"""The overview as open pages are shown it: made anew when it may have changed, and never at more than a small cost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from conductor import Overview

#: What making it may take of one core, however many pages are open and however large the ledger is.
_SHARE = 0.01

#: Seconds; below this it is made whenever it has changed, since pages ask no more often than every few seconds.
_CHEAP = 0.05


class Situation:
    """Remembers the newest overview of this process and its version."""

    def __init__(
        self,
        version: Callable[[], str],
        overview: Callable[[], Overview],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._version = version
        self._overview = overview
        self._clock = clock
        self._lock = threading.Lock()
        self._known: tuple[str, Overview] | None = None
        self._rest_until = 0.0

    def now(self, *, fresh: bool) -> tuple[str, Overview]:
        """The version and the overview; without `fresh`, for a page that updates itself, perhaps somewhat old ones."""
        with self._lock:
            known = self._known
            if known is not None and not fresh and self._clock() < self._rest_until:
                return known
            version = self._version()
            if known is not None and known[0] == version:
                return known
            began = self._clock()
            self._known = version, self._overview()
            took = self._clock() - began
            self._rest_until = self._clock() + (took / _SHARE if took > _CHEAP else 0.0)
            return self._known
