"""Send the webhooks of the demo systems, with retries at growing intervals and faults on demand."""

import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests

from simulators.faults import Faults

#: Seconds before the second attempt, the third ... About a minute in total: long enough for a receiver that
#: starts after the demo system, short enough to give up on one that has stopped.
BACKOFF = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
#: Seconds that a webhook delayed by `webhook_reorder` waits for another one to overtake it.
HOLD = 2.0
#: Timeouts in seconds, to connect and to wait for the reply.
TIMEOUT = (2.0, 10.0)

logger = logging.getLogger(__name__)


class Endpoint(NamedTuple):
    url: str
    secret: str


@dataclass(frozen=True)
class Attempt:
    """One attempt to deliver a webhook. `status` is None if there was no reply; `error` then has the reason."""

    time: float
    endpoint: str
    event: str
    number: int
    status: int | None
    error: str | None = None


@dataclass(order=True)
class _Letter:
    due: float
    n: int
    endpoint: str = field(compare=False)
    event: str = field(compare=False)
    body: bytes = field(compare=False)
    attempts: int = field(default=0, compare=False)


class WebhookSender:
    """A thread that delivers webhooks, in order as long as no delivery fails.

    `find` returns an endpoint's address by its name (None: it was removed, and its webhooks are dropped).
    `sign` returns the headers for the secret and the exact bytes; every attempt calls it again, since
    a receiver rejects an old signature. `taken` returns whether a reply means that no retry is needed.
    """

    def __init__(
        self,
        faults: Faults,
        find: Callable[[str], Endpoint | None],
        sign: Callable[[str, bytes], Mapping[str, str]],
        taken: Callable[[requests.Response], bool] = lambda reply: 200 <= reply.status_code < 300,
    ) -> None:
        self.attempts: deque[Attempt] = deque(maxlen=1000)
        #: The longest pause before another attempt, in seconds.
        self.longest_pause = BACKOFF[-1]
        self._faults, self._find, self._sign, self._taken = faults, find, sign, taken
        self._letters: list[_Letter] = []
        self._held: list[_Letter] = []
        self._under_way: _Letter | None = None
        self._count = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop after the current attempt; `pending()` returns what is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(sum(TIMEOUT))

    def send(self, endpoint: str, event: str, body: bytes) -> None:
        """Queue `body` for delivery; an armed fault may drop, delay, duplicate or reorder it."""
        if self._faults.take("webhook_drop", path=event):
            logger.info("webhook %s to %s dropped on demand", event, endpoint)
            return
        late = self._faults.take("webhook_delay", path=event)
        copies = 2 if self._faults.take("webhook_duplicate", path=event) else 1
        held = self._faults.take("webhook_reorder", path=event) is not None
        with self._changed:
            due = time.monotonic() + (late.seconds if late else 0.0)
            for _ in range(copies):
                self._add(due, endpoint, event, body, held)
            if not held:
                self._release()
            self._changed.notify_all()

    def pending(self) -> list[dict[str, Any]]:
        """Return the undelivered webhooks as JSON values, for `resume` after a restart."""
        with self._changed:
            letters = sorted([*self._letters, *self._held], key=lambda letter: letter.n)
            if self._under_way:
                letters.insert(0, self._under_way)
            return [{"endpoint": one.endpoint, "event": one.event, "body": one.body.decode()} for one in letters]

    def resume(self, pending: Iterable[Mapping[str, Any]]) -> None:
        with self._changed:
            for one in pending:
                self._add(time.monotonic(), one["endpoint"], one["event"], one["body"].encode(), held=False)
            self._changed.notify_all()

    def wait_idle(self, timeout: float = 5.0) -> None:
        """Wait until every webhook is delivered or given up; TimeoutError after `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: not (self._letters or self._held or self._under_way), timeout):
                raise TimeoutError(f"webhooks still waiting after {timeout} s")

    def _add(self, due: float, endpoint: str, event: str, body: bytes, held: bool) -> None:
        self._count += 1
        letter = _Letter(due + (HOLD if held else 0.0), self._count, endpoint, event, body)
        if held:
            self._held.append(letter)
        else:
            heapq.heappush(self._letters, letter)

    def _release(self) -> None:
        """Queue the held webhooks after the newest one."""
        newest = max((letter.due for letter in self._letters), default=0.0)
        for letter in self._held:
            self._count += 1
            letter.due, letter.n = newest, self._count
            heapq.heappush(self._letters, letter)
        self._held.clear()

    def _run(self) -> None:
        with requests.Session() as session:
            session.trust_env = False  # loopback traffic must not go through a proxy
            while letter := self._next():
                again = self._attempt(session, letter)
                with self._changed:
                    if again and not self._closed:
                        heapq.heappush(self._letters, letter)
                        self._under_way = None
                    elif not again:
                        self._under_way = None
                    self._changed.notify_all()

    def _next(self) -> _Letter | None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                if self._held and self._held[0].due <= now:
                    self._release()
                if self._letters and self._letters[0].due <= now:
                    self._under_way = heapq.heappop(self._letters)
                    return self._under_way
                coming = [one.due - now for one in (*self._letters[:1], *self._held[:1])]
                self._changed.wait(min(coming) if coming else None)
            return None

    def _attempt(self, session: requests.Session, letter: _Letter) -> bool:
        """Make one attempt; return True if a retry is needed."""
        endpoint = self._find(letter.endpoint)
        if endpoint is None:
            return False
        letter.attempts += 1
        reply, error = _post(session, endpoint.url, letter.body, self._sign(endpoint.secret, letter.body))
        status = None if reply is None else reply.status_code
        self.attempts.append(Attempt(time.time(), letter.endpoint, letter.event, letter.attempts, status, error))
        if reply is not None and self._taken(reply):
            return False
        if letter.attempts > len(BACKOFF):
            # Not the whole address, because it may contain a secret.
            host = urlsplit(endpoint.url).netloc
            logger.warning("webhook %s to %s given up: %s", letter.event, host, error or status)
            return False
        letter.due = time.monotonic() + min(BACKOFF[letter.attempts - 1], self.longest_pause)
        return True


def _post(
    session: requests.Session, url: str, body: bytes, signature: Mapping[str, str]
) -> tuple[requests.Response | None, str | None]:
    headers = {"Content-Type": "application/json; charset=utf-8", **signature}
    try:
        reply = session.post(url, data=body, headers=headers, timeout=TIMEOUT, allow_redirects=False)
    except requests.RequestException as error:
        return None, type(error).__name__
    return reply, None
