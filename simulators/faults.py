"""What every demo system shares: a journal of the calls it got, faults on demand, and their control calls.

Nothing here knows a web server: a system asks `Faults.take` at the right moments, notes each call with
`Journal.record`, and hands what comes in under `/_control/` to `Control.handle`.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

#: The journal forgets its oldest entries beyond this many, so that a long load test does not fill the memory.
JOURNAL_LIMIT = 200_000
#: A fault is always bounded: a forgotten one must not make a demo look broken for ever.
MAX_TIMES = 10_000
MAX_SECONDS = 60.0

#: kind of fault -> what it does to the call or the webhook it hits
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

    `time` is seconds since the epoch. `status` is what was answered, or with `fault == "drop"` would have
    been; `fault` names the fault that hit it; `replayed`: the reply was an earlier one, given again.
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
    """The calls a system got, oldest first, numbered from 1. Safe to use from any thread."""

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
        """The calls after number `since`; `path` may hold `*` (`/v1/customers/*`)."""
        with self._changed:
            return [call for call in self._calls if call.n > since and _matches(call, method, path)]

    def wait_for(
        self, method: str | None = None, path: str = "*", *, count: int = 1, timeout: float = 5.0
    ) -> list[Call]:
        """Wait until `count` such calls were made; TimeoutError after `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.calls(method, path)) >= count, timeout):
                raise TimeoutError(f"waited {timeout} s for {count} x {method} {path}; have {self.calls(method, path)}")
            return self.calls(method, path)

    def clear(self) -> None:
        """Forget all calls. Numbers go on, so that a reader's `since` stays right."""
        with self._changed:
            self._calls.clear()

    @property
    def last(self) -> int:
        """The number of the newest call, 0 before the first."""
        return self._last

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self.calls())


@dataclass
class Fault:
    """One trouble ordered: it hits the next `times` calls (or webhooks) that fit `method` and `path`."""

    kind: str
    times: int = 1
    method: str | None = None
    path: str = "*"
    status: int = 500
    retry_after: float | None = None
    seconds: float = 0.0
    code: str | None = None  #: the system's own name of the error, where the status alone would be ambiguous
    remember: bool = False  #: a failed call's reply is kept for its idempotency key, and replayed
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
    """The faults ordered for one system, the oldest fitting one used first. Safe to use from any thread."""

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
        """Answer the next `times` fitting calls with `status`, without carrying them out."""
        fault = Fault("fail", times, method, path, status, retry_after, code=code, remember=remember)
        return self.order(fault)

    def drop(self, times: int = 1, *, method: str | None = None, path: str = "*") -> Fault:
        """Carry the next `times` fitting calls out, and close the connection without an answer."""
        return self.order(Fault("drop", times, method, path))

    def delay(self, seconds: float, times: int = 1, *, method: str | None = None, path: str = "*") -> Fault:
        """Wait `seconds` before each of the next `times` fitting calls."""
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
        """The fault of this `kind` that hits this call, used up by one; None if there is none."""
        with self._lock:
            for fault in self._ordered:
                if fault.kind == kind and _hits(fault, method, path):
                    fault.times -= 1
                    self._ordered = [one for one in self._ordered if one.times > 0]
                    return fault
            return None

    def waiting(self) -> list[Fault]:
        """The faults not used up yet."""
        with self._lock:
            return list(self._ordered)

    def clear(self) -> None:
        with self._lock:
            self._ordered.clear()


class Control:
    """The calls under `/_control/`, the same for every system.

    | call | what it does |
    |---|---|
    | GET /_control/journal?since=N | `{"calls": [...], "last": M}`: the calls after number N |
    | DELETE /_control/journal | forget them |
    | GET /_control/faults | `{"faults": [...], "kinds": {...}}` |
    | POST /_control/faults | order one: `{"kind": "fail", "status": 429, "times": 2, "method": "POST"}` |
    | DELETE /_control/faults | cancel all |

    `extra` adds a system's own: `(method, path)` -> function from the JSON body to the JSON reply.
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
        """Answer one control call: (HTTP status, JSON value). Wrong input gives 400, an unknown call 404."""
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
    """Whether a browser's request comes from the system's own pages (or from no browser).

    Without this, any web page open in the same browser could change the demo's data.
    """
    return origin is None or (host is not None and origin.split("://", 1)[-1] == host)


def without_secrets(value: Any) -> Any:
    """The same value, with what a secret's name gives away replaced by `***`, at any depth."""
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
