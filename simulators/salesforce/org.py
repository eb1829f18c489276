"""The org: its records, sessions and limits, and the armed faults. Every function that answers a request gets it."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass
from pathlib import Path

from .errors import SalesforceError, invalid_session
from .faults import Faults
from .jobs import Job
from .journal import Journal
from .queries import Cursors
from .store import Store
from .times import Clock

ORG_ID = "00D5g0000000001EAA"
#: Records on a page of query results; a client may request fewer with Sforce-Query-Options, but at least 200.
PAGE_SIZE = 2000
SMALLEST_PAGE = 200


@dataclass(frozen=True)
class Credentials:
    """What the org accepts at login. `jwt_public_key` is PEM text; without it no JWT is accepted."""

    username: str = "integration@syncflow.example"
    password: str = "demo-password"
    security_token: str = "demo-token"
    client_id: str = "demo-client-id"
    client_secret: str = "demo-client-secret"
    jwt_public_key: str = ""


class Org:
    """A simulated org. It rejects API calls after `daily_limit` of them."""

    def __init__(
        self,
        data: str | Path | None = None,
        credentials: Credentials | None = None,
        daily_limit: int = 100_000,
        page_size: int = PAGE_SIZE,
        minute_resolution: bool = True,
    ) -> None:
        self.url = ""
        self.organization_id = ORG_ID
        self.clock = Clock()
        self.store = Store(data, self.clock)
        self.credentials = credentials or Credentials()
        self.faults = Faults()
        self.journal = Journal()
        self.cursors = Cursors()
        self.daily_limit = daily_limit
        #: The largest page; a test sets it low to get many pages from few records.
        self.page_size = page_size
        #: The real "updated" and "deleted" calls ignore the seconds of `start` and `end`.
        self.minute_resolution = minute_resolution
        self.calls_used = 0
        self._sessions: set[str] = set()
        self._lock = threading.Lock()
        self.jobs: dict[str, Job] = {}
        #: How many status requests report InProgress before a new bulk job is complete.
        self.bulk_waits = 0
        #: The number of rows after which a bulk job ends as Failed; None for never.
        self.bulk_stops_after: int | None = None

    def close(self) -> None:
        self.store.close()

    def new_session(self) -> str:
        """Return a new access token."""
        token = f"{ORG_ID[:15]}!{secrets.token_urlsafe(48)}"
        self.accept_session(token)
        return token

    def accept_session(self, token: str) -> None:
        with self._lock:
            self._sessions.add(token)

    def end_session(self, token: str) -> bool:
        with self._lock:
            known = token in self._sessions
            self._sessions.discard(token)
        return known

    def expire_sessions(self) -> None:
        """Reject every existing token from now on, so that clients have to log in again."""
        with self._lock:
            self._sessions.clear()

    def authorize(self, header: str) -> None:
        """Check an Authorization header. Raises INVALID_SESSION_ID (401)."""
        scheme, _, token = header.partition(" ")
        with self._lock:
            if scheme not in ("Bearer", "OAuth") or token not in self._sessions:
                raise invalid_session()

    def count_call(self) -> None:
        """Count one API call. Raises REQUEST_LIMIT_EXCEEDED (403) once the day's calls are used up."""
        with self._lock:
            if self.calls_used >= self.daily_limit:
                raise SalesforceError("REQUEST_LIMIT_EXCEEDED", "TotalRequests Limit exceeded.", status=403)
            self.calls_used += 1

    @property
    def limit_info(self) -> str:
        """Return the value of the Sforce-Limit-Info header."""
        return f"api-usage={self.calls_used}/{self.daily_limit}"

    def reset(self) -> None:
        """Empty the org; sessions stay valid."""
        self.organization_id = ORG_ID
        self.store.clear()
        self.store.duplicate_rules.clear()
        self.faults.clear()
        self.journal.clear()
        self.cursors.clear()
        self.jobs.clear()
        self.calls_used = 0
        self.bulk_stops_after = None
