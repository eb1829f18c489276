"""A REST system that answers, stores and refuses in ways that real ones do, and a hub over it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from email.utils import format_datetime
from typing import Any, Protocol

import sqlalchemy as sa
from pydantic import SecretStr
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from conductor import Conductor, Policy
from models.base import utcnow
from models.session import Database
from subscribers.base import Subscriber
from subscribers.rest import RestOptions, RestSubscriber, RestSystem
from subscribers.system import System
from tests.support.fakes import RecordingPublisher, TestHub
from tests.support.records import CUSTOMER

Record = dict[str, Any]


class AwkwardRest:
    """Contacts below /contacts, one call after another.

    `creates` and `updates` make the answer of a call from the record; `stores` changes a record before it is stored;
    `unique` are fields without duplicates; `filters`: the list can be filtered by a field's value.
    """

    def __init__(self, httpserver: HTTPServer) -> None:
        self.url: str = httpserver.url_for("")
        self.store: dict[str, Record] = {}
        self.calls: list[tuple[str, str]] = []
        self.creates: Callable[[Record], Response] = lambda record: answer(record, 201)
        self.updates: Callable[[Record], Response] = answer
        self.stores: Callable[[Record], Record] = lambda record: record
        self.refuses: Callable[[str, Record], Response | None] = lambda id, record: None
        self.reads: Callable[[Record], Record] = lambda record: record
        self.unique: Iterable[str] = ()
        #: What a 409 reports about the record that already has the unique value.
        self.taken: Callable[[Record], Response] = lambda record: answer({"message": "exists already"}, 409)
        self.filters = True
        #: Called before each answer with the list.
        self.before_list: Callable[[], object] = lambda: None
        #: Whether its list can be read now.
        self.lists = True
        self._ids = 0
        self._now = utcnow()
        #: How far its clock is ahead.
        self.ahead = timedelta()
        #: Where the version of a record is, and is named: `etag`, `field` (in the body) or `query`; empty: it has none.
        self.versions = ""
        #: Called before each write of a record that exists.
        self.before_write: Callable[[str], object] = lambda id: None
        httpserver.expect_request("/contacts").respond_with_handler(self._list_or_create)
        httpserver.expect_request(re.compile(r"^/contacts/[^/]+$")).respond_with_handler(self._one)

    def now(self) -> str:
        """Return a time later than all before."""
        self._now = max(self._now + timedelta(microseconds=1), utcnow())
        return (self._now + self.ahead).isoformat()

    def add(self, **values: Any) -> str:
        """Create a record as a user of the system does, and return its id."""
        self._ids += 1
        record = {**values, "id": str(self._ids), "updated_at": self.now()}
        if self.versions:
            record["version"] = 1
        self.store[record["id"]] = record
        return str(record["id"])

    def edit(self, id: str, **values: Any) -> None:
        """Edit a record as a user of the system does."""
        self.store[id] |= {**values, "updated_at": self.now()}
        if self.versions:
            self.store[id]["version"] += 1

    def methods(self) -> list[str]:
        """Return the methods of the calls so far, without those for a list."""
        return [method for method, path in self.calls if (method, path) != ("GET", "/contacts")]

    def writes(self) -> list[str]:
        """Return the methods of the calls that write."""
        return [method for method, _ in self.calls if method != "GET"]

    def date(self) -> str:
        """Return the time by its clock, as in the header `Date`."""
        return format_datetime(utcnow() + self.ahead, usegmt=True)

    def _list_or_create(self, request: Request) -> Response:
        self.calls.append((request.method, request.path))
        if request.method == "POST":
            return self._create(request.get_json())
        self.before_list()
        if not self.lists:
            return answer({"message": "no list now"}, 423)
        filters = {k: v for k, v in request.args.items() if k not in ("limit", "updated_since", "ids")}
        ids = request.args["ids"].split(",") if "ids" in request.args else self.store
        found = [
            self.reads(record)
            for record in sorted(self.store.values(), key=lambda one: one["updated_at"])
            if record["id"] in ids
            and record["updated_at"] >= request.args.get("updated_since", "")
            and (not self.filters or all(str(record.get(name)) == value for name, value in filters.items()))
        ]
        return answer({"items": found, "next": None})

    def _create(self, data: Record) -> Response:
        if (refused := self.refuses("", data) or self._refuse_taken("", data)) is not None:
            return refused
        record = self.store[self.add(**self.stores(data))]
        return self._tagged(self.creates(record), record["id"])

    def _one(self, request: Request) -> Response:
        self.calls.append((request.method, request.path))
        id = request.path.rpartition("/")[2]
        if id not in self.store:
            return answer({"message": "no such record"}, 404)
        if request.method != "GET":
            self.before_write(id)
            named = self._named_version(request)
            if named not in (None, str(self.store[id].get("version"))):
                return answer({"message": "edited meanwhile"}, 412 if self.versions == "etag" else 409)
        if request.method == "DELETE":
            del self.store[id]
            return Response(status=204)
        if request.method != "GET":
            changed = {**self.store[id], **request.get_json()}
            if (refused := self.refuses(id, changed) or self._refuse_taken(id, changed)) is not None:
                return refused
            fields = {k: v for k, v in request.get_json().items() if k not in ("id", "updated_at", "version")}
            self.edit(id, **self.stores(fields))
            return self._tagged(self.updates(self.store[id]), id)
        return self._tagged(answer(self.reads(self.store[id])), id)

    def _named_version(self, request: Request) -> str | None:
        """Return the version that a write names; None if it names none."""
        if self.versions == "etag":
            return request.headers.get("If-Match", "").strip('"') or None
        body = {} if request.method == "DELETE" else request.get_json()
        named = body.get("version") if self.versions == "field" and body else request.args.get("version")
        return None if named is None else str(named)

    def _tagged(self, response: Response, id: str) -> Response:
        if self.versions == "etag":
            response.headers["ETag"] = f'"{self.store[id].get("version")}"'
        return response

    def _refuse_taken(self, id: str, record: Record) -> Response | None:
        for other in self.store.values():
            if other["id"] != id and any(record.get(n) and other.get(n) == record.get(n) for n in self.unique):
                return self.taken(other)
        return None


def answer(body: Any, status: int = 200, **headers: str) -> Response:
    """Return a JSON answer."""
    return Response(json.dumps(body), status, headers, content_type="application/json")


class Contact(RestSubscriber):
    """Customers in the awkward system."""

    system, catalogue, path = "awkward", "customer", "/contacts"
    idempotency_header = ""
    look_first = "poll"  # a system that is not polled is not looked at, except in the tests of looks
    field_to_data = {"name": "name", "email": "email", "phone": "phone", "notes": "note"}


class HasUrl(Protocol):
    """A REST system that runs at an address."""

    @property
    def url(self) -> str: ...


class RestHub(TestHub):
    """A hub over one REST subscriber, driven step by step; its clock is ahead by what it waited."""

    def __init__(
        self,
        database: Database,
        system: HasUrl | System,
        *kinds: type[Subscriber],
        policy: Policy | None = None,
        token: str = "of-no-value",
    ) -> None:
        """`system` is one with a URL, called with `token`, or any system that is connected already."""
        self.ahead = timedelta()
        self.publisher = RecordingPublisher()
        self.client: Any = system
        if not isinstance(system, System):
            self.client = RestSystem("awkward", RestOptions(url=system.url, token=SecretStr(token)))
        subscribers = {kind.name(): kind(self.client) for kind in kinds or (Contact,)}
        chosen = policy or Policy(lease_seconds=60, stale_seconds=30, max_attempts=3, retry_min_seconds=2)
        self.conductor = Conductor(database, subscribers, self.publisher, chosen, lambda: utcnow() + self.ahead)
        self.conductor.prepare()

    def wait(self, seconds: float = 1000) -> None:
        """Let retries become due, and process them."""
        self.ahead += timedelta(seconds=seconds)
        self.conductor.sweep()
        self.run()

    def poll(self) -> None:
        self.conductor.poll("awkward.customer")
        self.run()

    def reconcile(self) -> None:
        """Compare all records with the system and repair what differs."""
        task = self.conductor.tasks.start("reconcile", "ann", subscriber="awkward.customer", repair=True)
        while self.conductor.tasks.get(task).state == "running":
            self.conductor.tasks.run_some()
            self.wait(2)

    def remove(self, record_id: str) -> None:
        """Delete a customer."""
        with self.conductor.database.write() as connection:
            connection.execute(sa.delete(CUSTOMER).where(CUSTOMER.c.id == int(record_id)))


def kind(**options: Any) -> type[RestSubscriber]:
    """Return a subscriber with these options."""
    return type("Contact", (Contact,), options)
