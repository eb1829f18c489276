"""Monitor the ledger: how long recovery from each fault takes, and when everything is quiet."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass
from datetime import datetime

import psycopg
import requests

from tests.chaos.faults import Outage
from tests.chaos.fleet import Fleet

#: Seconds without any change before the run counts as quiet.
STILL = 1.5

#: Seconds after which a run that does not become quiet is abandoned.
DEADLINE = 240.0

_OUTSTANDING = """
    SELECT 'changes waiting for the relay', count(*), min(at) FROM change WHERE relayed_at IS NULL
    UNION ALL
    SELECT 'links owed', count(*), min(owed_since) FROM link WHERE owed_change > synced_change AND dead_at IS NULL
    UNION ALL
    SELECT 'inbox rows waiting', count(*), min(received_at) FROM inbox WHERE state = 'waiting'
"""


@dataclass(frozen=True)
class Outstanding:
    """Captured or received work that is not settled: description, count, and time of the oldest (epoch)."""

    words: str
    count: int
    oldest: float | None


def outstanding(database_url: str) -> Outstanding:
    """Return the outstanding work. Raises psycopg.OperationalError while the database is unavailable."""
    with psycopg.connect(database_url, connect_timeout=3) as connection:
        rows = connection.execute(_OUTSTANDING).fetchall()
    times = [at.timestamp() for _, _, at in rows if isinstance(at, datetime)]
    words = ", ".join(f"{count} {what}" for what, count, _ in rows if count)
    return Outstanding(words or "nothing", sum(count for _, count, _ in rows), min(times, default=None))


class Recovery:
    """For each fault, the seconds from its end until all work outstanding at that time was settled."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.seconds: list[tuple[float, str]] = []
        self._open: list[Outage] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recovery", daemon=True)

    def start(self) -> None:
        """Start monitoring."""
        self._thread.start()

    def stop(self) -> None:
        """Stop monitoring."""
        self._stop.set()
        self._thread.join(10)

    def ended(self, outage: Outage) -> None:
        """Start to measure the recovery from a fault that has ended."""
        with self._lock:
            self._open.append(outage)

    @property
    def unfinished(self) -> list[Outage]:
        """Return the faults without a recovery."""
        with self._lock:
            return list(self._open)

    def words(self) -> str:
        """Return the median and the longest recovery as text."""
        if not self.seconds:
            return "no fault"
        longest, what = max(self.seconds)
        return f"median {statistics.median(s for s, _ in self.seconds):.1f} s, longest {longest:.1f} s ({what})"

    def _run(self) -> None:
        while not self._stop.wait(0.25):
            try:
                oldest = outstanding(self.fleet.database_url).oldest
            except psycopg.Error:
                continue
            now = time.time()
            with self._lock:
                done = [one for one in self._open if oldest is None or oldest > one.ended]
                self._open = [one for one in self._open if one not in done]
                self.seconds += [(now - one.ended, one.what) for one in done]


def wait_until_quiet(fleet: Fleet, deadline: float = DEADLINE, still: float = STILL) -> str | None:
    """Wait until nothing is outstanding, for `still` seconds; return None, or the outstanding work."""
    until = time.monotonic() + deadline
    still_since = None
    words = "the database does not answer"
    while time.monotonic() < until:
        try:
            left = outstanding(fleet.database_url)
            pending = _webhooks_pending(fleet)
        except (psycopg.Error, requests.RequestException):
            still_since = None
        else:
            words = f"{left.words}; {pending} webhooks to be sent"
            quiet = left.count == 0 and pending == 0 and fleet.running()
            still_since = (still_since or time.monotonic()) if quiet else None
            if still_since and time.monotonic() - still_since >= still:
                return None
        time.sleep(0.25)
    return words


def _webhooks_pending(fleet: Fleet) -> int:
    url = f"{fleet.urls['stripe']}/_control/webhooks"
    reply = requests.get(url, timeout=10, proxies={"http": "", "https": ""})
    return int(reply.json()["pending"])
