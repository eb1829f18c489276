"""Shared by all demo systems: a journal of the received calls, faults on demand, and their control calls.

This module does not depend on a web server: a system asks `Faults.take` for faults, records each call with
`Journal.record`, and passes requests under `/_control/` to `Control.handle`.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

#: The most entries in the journal, so that a long load test does not fill the memory; the oldest are dropped.
JOURNAL_LIMIT = 200_000
#: The most calls a fault may affect: a forgotten fault must not break a demo permanently.
MAX_TIMES = 10_000
MAX_SECONDS = 60.0

#: kind of fault -> its effect on the call or the webhook
KINDS: Mapping[str, str] = {
    "fail": "answer with `status` (and Retry-After when `retry_after` is set) and do nothing",
    "drop": "carry the call out, then close the connection instead of answering",
    "delay": "wait `seconds` before the call is carried out",
    "webhook_duplicate": "send the webhook twice",
    "webhook_reorder": "hold the webhook back until the next one has gone",
    "webhook_drop": "never send the webhook",
    "webhook_delay": "send the webhook `seconds` later",
}

_SECRET_WORDS = ("password", "secret", "token", "assertion", "api_key", "authorization", "card")


@dataclass(frozen=True)
class Call:
    """One API request that a demo system answered.

    `time` is seconds since the epoch. `status` is the status of the reply; with `fault == "drop"`, of the reply
    that was not sent. `fault` names the fault that affected the call. `replayed`: the reply repeated an earlier one.
    """

    n: int
    time: float
    method: str
    path: str
    params: dict[str, Any]
    status: int
    idempotency_key: str | None = None
    fault: str | None = None
    replayed: bool = False


class Journal:
    """The calls a system received, oldest first, numbered from 1. Thread-safe."""

    def __init__(self) -> None:
        self._calls: deque[Call] = deque(maxlen=JOURNAL_LIMIT)
        self._last = 0
        self._changed = threading.Condition()

    def record(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any],
        status: int,
        *,
        idempotency_key: str | None = None,
        fault: str | None = None,
        replayed: bool = False,
    ) -> None:
        with self._changed:
            self._last += 1
            clean = without_secrets(params)
            self._calls.append(
                Call(self._last, time.time(), method, path, clean, status, idempotency_key, fault, replayed)
            )
            self._changed.notify_all()

    def calls(self, method: str | None = None, path: str = "*", *, since: int = 0) -> list[Call]:
        """Return the calls after number `since`; `path` may contain `*` (`/v1/customers/*`)."""
        with self._changed:
            return [call for call in self._calls if call.n > since and _matches(call, method, path)]

    def wait_for(
        self, method: str | None = None, path: str = "*", *, count: int = 1, timeout: float = 5.0
    ) -> list[Call]:
        """Wait until there are `count` such calls; TimeoutError after `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.calls(method, path)) >= count, timeout):
                raise TimeoutError(f"waited {timeout} s for {count} x {method} {path}; have {self.calls(method, path)}")
            return self.calls(method, path)

    def clear(self) -> None:
        """Remove all calls. Numbering continues, so that a reader's `since` stays valid."""
        with self._changed:
            self._calls.clear()

    @property
    def last(self) -> int:
        """Return the number of the newest call, 0 before the first."""
        return self._last

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self.calls())


@dataclass
class Fault:
    """One armed fault; it affects the next `times` calls (or webhooks) that match `method` and `path`.

    The path of a webhook is the type of its event: `customer.deleted`.
    """

    kind: str
    times: int = 1
    method: str | None = None
    path: str = "*"
    status: int = 500
    retry_after: float | None = None
    seconds: float = 0.0
    code: str | None = None  #: the system's own name of the error, if the status alone is ambiguous
    remember: bool = False  #: keep a failed call's reply for its idempotency key, and replay it
    id: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}")
        if not 1 <= self.times <= MAX_TIMES:
            raise ValueError(f"times must be from 1 to {MAX_TIMES}")
        if not 0 <= self.seconds <= MAX_SECONDS:
            raise ValueError(f"seconds must be from 0 to {MAX_SECONDS}")
        if not 300 <= self.status <= 599:
            raise ValueError("status must be from 300 to 599")


class Faults:
    """The armed faults of one system; the oldest matching fault takes effect first. Thread-safe."""

    def __init__(self) -> None:
        self._ordered: list[Fault] = []
        self._count = 0
        self._lock = threading.Lock()

    def fail(
        self,
        status: int = 500,
        times: int = 1,
        *,
        method: str | None = None,
        path: str = "*",
        retry_after: float | None = None,
        code: str | None = None,
        remember: bool = False,
    ) -> Fault:
        """Answer the next `times` matching calls with `status`, without processing them."""
        fault = Fault("fail", times, method, path, status, retry_after, code=code, remember=remember)
        return self.order(fault)

    def drop(self, times: int = 1, *, method: str | None = None, path: str = "*") -> Fault:
        """Process the next `times` matching calls, but close the connection without a reply."""
        return self.order(Fault("drop", times, method, path))

    def delay(self, seconds: float, times: int = 1, *, method: str | None = None, path: str = "*") -> Fault:
        """Wait `seconds` before each of the next `times` matching calls."""
        return self.order(Fault("delay", times, method, path, seconds=seconds))

    def webhook_duplicate(self, times: int = 1) -> Fault:
        return self.order(Fault("webhook_duplicate", times))

    def webhook_reorder(self, times: int = 1) -> Fault:
        return self.order(Fault("webhook_reorder", times))

    def webhook_drop(self, times: int = 1) -> Fault:
        return self.order(Fault("webhook_drop", times))

    def webhook_delay(self, seconds: float, times: int = 1) -> Fault:
        return self.order(Fault("webhook_delay", times, seconds=seconds))

    def order(self, fault: Fault) -> Fault:
        with self._lock:
            self._count += 1
            fault.id = self._count
            self._ordered.append(fault)
            return fault

    def take(self, kind: str, method: str | None = None, path: str = "") -> Fault | None:
        """Return the fault of this `kind` that matches this call, and count it as used; None without one."""
        with self._lock:
            for fault in self._ordered:
                if fault.kind == kind and _hits(fault, method, path):
                    fault.times -= 1
                    self._ordered = [one for one in self._ordered if one.times > 0]
                    return fault
            return None

    def waiting(self) -> list[Fault]:
        """Return the faults that are not used up yet."""
        with self._lock:
            return list(self._ordered)

    def clear(self) -> None:
        with self._lock:
            self._ordered.clear()


class Control:
    """The calls under `/_control/`, which all systems have in common.

    | call | effect |
    |---|---|
    | GET /_control/journal?since=N | `{"calls": [...], "last": M}`: the calls after number N |
    | DELETE /_control/journal | remove all calls |
    | GET /_control/faults | `{"faults": [...], "kinds": {...}}` |
    | POST /_control/faults | arm one: `{"kind": "fail", "status": 429, "times": 2, "method": "POST"}` |
    | DELETE /_control/faults | remove all faults |

    `extra` adds calls of one system: `(method, path)` -> function from the JSON body to the JSON reply.
    """

    def __init__(
        self,
        journal: Journal,
        faults: Faults,
        extra: Mapping[tuple[str, str], Callable[[dict[str, Any]], Any]] | None = None,
    ) -> None:
        self._faults = faults
        self._journal = journal
        self._table: dict[tuple[str, str], Callable[[dict[str, Any]], Any]] = {
            ("GET", "/_control/journal"): self._calls,
            ("DELETE", "/_control/journal"): lambda _: journal.clear(),
            ("GET", "/_control/faults"): lambda _: {"faults": self._waiting(), "kinds": dict(KINDS)},
            ("POST", "/_control/faults"): self._order,
            ("DELETE", "/_control/faults"): lambda _: faults.clear(),
            **(extra or {}),
        }

    def handle(self, method: str, path: str, query: Mapping[str, str], body: Any) -> tuple[int, Any]:
        """Answer one control call with (HTTP status, JSON value): 400 for invalid input, 404 for an unknown call."""
        action = self._table.get((method, path))
        if action is None:
            return 404, {
                "error": "no such control call",
                "calls": [f"{verb} {where}" for verb, where in self._table],
            }
        if body is not None and not isinstance(body, dict):
            return 400, {"error": "the body must be a JSON object"}
        try:
            return 200, action({**query, **(body or {})})
        except (TypeError, ValueError) as error:
            return 400, {"error": str(error)}

    def _calls(self, wanted: dict[str, Any]) -> dict[str, Any]:
        calls = self._journal.calls(since=int(wanted.get("since", 0)))
        return {"calls": [asdict(call) for call in calls], "last": self._journal.last}

    def _order(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if "id" in wanted:
            raise ValueError("id is given by the system")
        return asdict(self._faults.order(Fault(**wanted)))

    def _waiting(self) -> list[dict[str, Any]]:
        return [asdict(fault) for fault in self._faults.waiting()]


def own_origin(host: str | None, origin: str | None) -> bool:
    """Return whether a request comes from the system's own pages, or not from a browser.

    Without this check, any web page open in the same browser could change the demo's data.
    """
    return origin is None or (host is not None and origin.split("://", 1)[-1] == host)


def without_secrets(value: Any) -> Any:
    """Return the value with everything under the name of a secret replaced by `***`, at any depth."""
    if isinstance(value, Mapping):
        return {key: "***" if _is_secret(str(key)) else without_secrets(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(one) for one in value]
    return value


def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in _SECRET_WORDS)


def _matches(call: Call, method: str | None, path: str) -> bool:
    return method in (None, call.method) and fnmatchcase(call.path, path)


def _hits(fault: Fault, method: str | None, path: str) -> bool:
    return fault.method in (None, method) and fnmatchcase(path, fault.path)
