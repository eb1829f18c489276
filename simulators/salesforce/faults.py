"""Faults on demand. Each expires after a number of calls, so that no test breaks the org permanently."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .errors import SalesforceError
from .wire import Request, Response, to_json

#: The HTML page that a proxy in front of the real system returns instead of JSON.
HTML_BODY = "<html><body><h1>Service Unavailable</h1>We are down for maintenance.</body></html>"

Kind = Literal["fail", "fail_item", "drop", "delay", "lag", "reject_login"]

#: What a trigger reports that reaches a limit of its transaction.
CPU_LIMIT = "AccountTrigger: System.LimitException: Apex CPU time limit exceeded"
When = Literal["before", "after", "inside"]


@dataclass
class Fault:
    """One armed fault; it affects the next `count` calls (or records) that match `method` and `path`."""

    kind: Kind
    count: int = 1
    #: For `fail`: the HTTP status. For `fail` and `fail_item`: the errorCode and the message.
    status: int = 503
    code: str = "SERVER_UNAVAILABLE"
    message: str = "simulated fault"
    #: For `fail`: reply with an HTML page instead of JSON.
    html: bool = False
    #: For `fail`: the Retry-After header in seconds; empty for no header.
    retry_after: str = ""
    #: For `drop`: cut the connection before the work, after it (without a reply) or in the middle of the reply.
    when: When = "after"
    #: For `delay`: how long to hold back the reply. For `lag`: how far latestDateCovered lags behind.
    seconds: float = 0.0
    #: Match only calls with this method, and with this text in their path; empty matches all.
    method: str = ""
    path: str = ""

    def fits(self, request: Request) -> bool:
        return self.method in ("", request.method) and self.path in request.target


class Faults:
    """The armed faults, oldest first."""

    def __init__(self) -> None:
        self._armed: list[Fault] = []
        #: The most records that a trigger processes in one transaction; None for any number.
        self.trigger_limit: int | None = None
        self.trigger_error = SalesforceError("CANNOT_INSERT_UPDATE_ACTIVATE_ENTITY", CPU_LIMIT)
        self._lock = threading.Lock()

    def arm(self, fault: Fault) -> None:
        with self._lock:
            self._armed.append(fault)

    def arm_from(self, data: Mapping[str, Any]) -> Fault:
        """Arm the fault that a control call describes in JSON, with the fields of `Fault`. Raises ValueError."""
        try:
            fault = Fault(**data)
        except TypeError as error:
            raise ValueError(str(error)) from None
        if fault.kind not in ("fail", "fail_item", "drop", "delay", "lag", "reject_login"):
            raise ValueError(f"unknown kind {fault.kind!r}")
        self.arm(fault)
        return fault

    def armed(self) -> list[dict[str, Any]]:
        with self._lock:
            return [asdict(fault) for fault in self._armed]

    def clear(self) -> None:
        with self._lock:
            self._armed.clear()
            self.trigger_limit = None

    def check_triggers(self, records: int) -> None:
        """Raise what a trigger reports that has to process too many records in one transaction."""
        if self.trigger_limit is not None and records > self.trigger_limit:
            raise self.trigger_error

    def take(self, kind: Kind, request: Request) -> Fault | None:
        """Return the oldest fault of this kind that matches the request, and count it as used; None without one."""
        with self._lock:
            for fault in self._armed:
                if fault.kind == kind and fault.fits(request):
                    fault.count -= 1
                    if fault.count <= 0:
                        self._armed.remove(fault)
                    return fault
        return None

    def fail_item(self, request: Request) -> None:
        """Raise the error armed for the next record. Called once for every record about to be written."""
        fault = self.take("fail_item", request)
        if fault is not None:
            raise SalesforceError(fault.code, fault.message, fields=[])


def failure(fault: Fault) -> Response:
    """Return the reply of a `fail` fault."""
    headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
    if fault.html:
        return Response(fault.status, HTML_BODY.encode(), "text/html;charset=UTF-8", headers)
    body = [{"message": fault.message, "errorCode": fault.code}]
    return Response(fault.status, to_json(body), headers=headers)
