"""Control calls under `/_control/`, for tests in another process. The real org has no such calls.

Each takes and returns JSON, and does what a method does for tests in the same process.
"""

from __future__ import annotations

from typing import Any

from .errors import SalesforceError
from .org import Org
from .store import PERSON
from .wire import Request, Response, reply


def faults(org: Org, request: Request) -> Response:
    """GET lists the armed faults, POST arms one (see `faults.Fault` for the names), DELETE removes all."""
    if request.method == "POST":
        try:
            org.faults.arm_from(request.json_object())
        except ValueError as error:
            raise SalesforceError("INVALID_FAULT", str(error)) from None
    elif request.method == "DELETE":
        org.faults.clear()
    return reply(org.faults.armed())


def journal(org: Org, request: Request) -> Response:
    """GET returns the requests after number `since`, DELETE clears the journal."""
    if request.method == "DELETE":
        org.journal.clear()
    since = request.parameter("since", "0")
    return reply(org.journal.as_json(int(since) if since.isdigit() else 0))


def expire_sessions(org: Org, request: Request) -> Response:
    org.expire_sessions()
    return reply({})


def clock(org: Org, request: Request) -> Response:
    """POST `{"advance": seconds}`, `{"freeze": true}` or `{"freeze": false}`."""
    data = request.json_object()
    org.clock.advance(_number(data.get("advance", 0)))
    if "freeze" in data:
        (org.clock.freeze if data["freeze"] else org.clock.thaw)()
    return reply({"now": org.clock.now().isoformat()})


_SETTINGS = ("page_size", "daily_limit", "calls_used", "bulk_waits", "bulk_stops_after", "minute_resolution")


def settings(org: Org, request: Request) -> Response:
    """POST any of page_size, daily_limit, calls_used, bulk_waits, bulk_stops_after and minute_resolution."""
    for name, value in request.json_object().items():
        if name not in _SETTINGS:
            raise SalesforceError("INVALID_FIELD", f"there is no setting {name}")
        setattr(org, name, bool(value) if name == "minute_resolution" else int(_number(value)))
    return reply({})


def edit(org: Org, request: Request) -> Response:
    """POST `{"object", "id", "fields"}`: save a record as a user of the org; without `id`, create one."""
    data = request.json_object()
    name, fields = _text(data, "object"), dict(data.get("fields") or {})
    if not data.get("id"):
        return reply({"id": org.store.create(name, fields, by=PERSON)}, 201)
    org.store.update(name, _text(data, "id"), fields, by=PERSON)
    return reply({"id": data["id"]})


def remove(org: Org, request: Request) -> Response:
    """POST `{"object", "id"}`: delete a record as a user of the org."""
    data = request.json_object()
    org.store.delete(_text(data, "object"), _text(data, "id"), by=PERSON)
    return reply({})


def restore(org: Org, request: Request) -> Response:
    """POST `{"object", "id"}`: restore a record from the recycle bin as a user of the org."""
    data = request.json_object()
    org.store.undelete(_text(data, "object"), _text(data, "id"))
    return reply({})


def merge(org: Org, request: Request) -> Response:
    """POST `{"object", "master", "losers": [...]}`: merge records as a user of the org."""
    data = request.json_object()
    losers = [str(one) for one in data.get("losers") or ()]
    org.store.merge(_text(data, "object"), _text(data, "master"), losers)
    return reply({})


def records(org: Org, request: Request, name: str) -> Response:
    """GET returns every record of an object; `?deleted=true` includes deleted ones, `?id=` selects one."""
    if wanted := request.parameter("id"):
        return reply([org.store.get(name, wanted, deleted_too=request.parameter("deleted") == "true")])
    return reply(org.store.all(name, deleted_too=request.parameter("deleted") == "true"))


def reset(org: Org, request: Request) -> Response:
    """POST clears records, faults and journal."""
    org.reset()
    return reply({})


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise SalesforceError("INVALID_FIELD", f"{value!r} is not a number")
    return float(value)


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str):
        raise SalesforceError("MISSING_ARGUMENT", f"{name} is required")
    return value
