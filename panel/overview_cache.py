"""Cache the overview for open pages: rebuild it when it changes, within a small share of CPU time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from conductor import Overview, OverviewVersion
from i18n import current_locale

#: Share of one core that rebuilding may take, however many pages are open.
_SHARE = 0.01

#: Below this many seconds, it is rebuilt on every change.
_CHEAP = 0.05


class OverviewCache:
    """Holds the newest overview of this process and its version."""

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
        #: Language -> version and overview in that language; and until when open pages may get it unchanged.
        self._known: dict[str, tuple[str, Overview]] = {}
        self._rest_until: dict[str, float] = {}

    def get(self, *, fresh: bool) -> tuple[str, Overview]:
        """Return the version and the overview; without `fresh` they may be slightly out of date."""
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
        # All languages together stay within the share.
        return _SHARE / len(self._known)
