"""Faults on demand, each used up after a number of calls, so that no test leaves the org broken for ever."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .errors import SalesforceError
from .wire import Request, Response, to_json

#: What a proxy in front of the real system answers with, instead of JSON.
HTML_BODY = "<html><body><h1>Service Unavailable</h1>We are down for maintenance.</body></html>"

Kind = Literal["fail", "fail_item", "drop", "delay", "lag", "reject_login"]
When = Literal["before", "after", "inside"]


@dataclass
class Fault:
    """One armed fault; it hits the next `count` calls (or records) that fit `method` and `path`."""

    kind: Kind
    count: int = 1
    #: For `fail`: the HTTP status. For `fail` and `fail_item`: the errorCode and the message.
    status: int = 503
    code: str = "SERVER_UNAVAILABLE"
    message: str = "simulated fault"
    #: For `fail`: answer with an HTML page instead of JSON.
    html: bool = False
    #: For `fail`: what the Retry-After header says, in seconds; empty for none.
    retry_after: str = ""
    #: For `drop`: cut the connection before the work, after it (nothing is answered) or inside the reply.
    when: When = "after"
    #: For `delay`: how long the reply is held back. For `lag`: how far latestDateCovered stays behind.
    seconds: float = 0.0
    #: Only calls with this method, and with this text in their path; empty for all.
    method: str = ""
    path: str = ""

    def fits(self, request: Request) -> bool:
        return self.method in ("", request.method) and self.path in request.target


class Faults:
    """The armed faults, oldest first."""

    def __init__(self) -> None:
        self._armed: list[Fault] = []
        self._lock = threading.Lock()

    def arm(self, fault: Fault) -> None:
        with self._lock:
            self._armed.append(fault)

    def arm_from(self, data: Mapping[str, Any]) -> Fault:
        """Arm what a control call describes: a JSON object with the names of `Fault`. Raises ValueError."""
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

    def take(self, kind: Kind, request: Request) -> Fault | None:
        """Use up one call of the oldest fault of this kind that fits the request."""
        with self._lock:
            for fault in self._armed:
                if fault.kind == kind and fault.fits(request):
                    fault.count -= 1
                    if fault.count <= 0:
                        self._armed.remove(fault)
                    return fault
        return None

    def fail_item(self, request: Request) -> None:
        """Raise what is armed for the next record; called once for every record about to be written."""
        fault = self.take("fail_item", request)
        if fault is not None:
            raise SalesforceError(fault.code, fault.message, fields=[])


def failure(fault: Fault) -> Response:
    """The reply of a `fail` fault."""
    headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
    if fault.html:
        return Response(fault.status, HTML_BODY.encode(), "text/html;charset=UTF-8", headers)
    body = [{"message": fault.message, "errorCode": fault.code}]
    return Response(fault.status, to_json(body), headers=headers)
