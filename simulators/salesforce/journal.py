"""The journal of requests: lets a test check which requests were made and which were not."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

#: The journal drops older entries, so that a demo can run for weeks.
KEPT = 100_000


@dataclass(frozen=True)
class Entry:
    """One request. `number` counts from 1; `status` is 0 if the connection was cut without a reply."""

    number: int
    method: str
    #: With the query string.
    path: str
    object: str
    ids: tuple[str, ...]
    status: int
    #: The org's time when the request arrived, and its duration in seconds.
    time: str
    seconds: float


class Journal:
    """The last `KEPT` requests, oldest first, without control calls and requests for web pages."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=KEPT)
        self._last = 0
        self._lock = threading.Lock()

    def add(self, **what: Any) -> None:
        with self._lock:
            self._last += 1
            self._entries.append(Entry(number=self._last, **what))

    def entries(self, since: int = 0) -> list[Entry]:
        """Return the requests after number `since`."""
        with self._lock:
            return [entry for entry in self._entries if entry.number > since]

    def calls(self, method: str = "", path: str = "") -> list[Entry]:
        """Return the requests with this method and this text in their path."""
        return [one for one in self.entries() if method in ("", one.method) and path in one.path]

    def clear(self) -> None:
        """Remove all entries; numbering continues."""
        with self._lock:
            self._entries.clear()

    def as_json(self, since: int = 0) -> list[dict[str, Any]]:
        return [asdict(entry) for entry in self.entries(since)]
