"""The overview as open pages are shown it: made anew when it may have changed, and never at more than a small cost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from conductor import Overview, OverviewVersion
from i18n import current_locale

#: What making it may take of one core, however many pages are open and however large the ledger is.
_SHARE = 0.01

#: Seconds; below this it is made whenever it has changed, since pages ask no more often than every few seconds.
_CHEAP = 0.05


class OverviewCache:
    """Remembers the newest overview of this process and its version."""

    def __init__(
        self,
        overview_version: Callable[[], OverviewVersion],
        overview: Callable[[OverviewVersion], Overview],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._glance = overview_version
        self._overview = overview
        self._clock = clock
        self._lock = threading.Lock()
        #: Language -> version and overview, with its sentences; and until when it will do for an open page.
        self._known: dict[str, tuple[str, Overview]] = {}
        self._rest_until: dict[str, float] = {}

    def get(self, *, fresh: bool) -> tuple[str, Overview]:
        """The version and the overview; without `fresh`, for a page that updates itself, perhaps somewhat old ones."""
        with self._lock:
            tag = current_locale().tag
            known = self._known.get(tag)
            if known is not None and not fresh and self._clock() < self._rest_until[tag]:
                return known
            seen = self._glance()
            if known is not None and known[0] == seen.version:
                return known
            began = self._clock()
            made = self._known[tag] = seen.version, self._overview(seen)
            took = self._clock() - began
            self._rest_until[tag] = self._clock() + (took / self._share() if took > _CHEAP else 0.0)
            return made

    def _share(self) -> float:
        # One language leaves the other its part, so that all of them together cost no more.
        return _SHARE / len(self._known)
