"""Fakes at the seam: an external system in memory and a publisher that only records."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from conductor import Conductor, Policy, QueueReport, QueueState
from models.base import utcnow
from models.session import Database
from subscribers.base import Subscriber
from subscribers.errors import BadSignature, Gone, SyncError
from subscribers.mapping import link_to
from subscribers.mapping.paths import nest, pick
from subscribers.records import Event, External, Item, Page
from subscribers.system import Options, System

_Result = TypeVar("_Result")


class Clock:
    """A clock that moves only by `tick`, shared by hub and systems."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def tick(self, seconds: float = 1.0) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now


class FakeSystem(System):
    """Keep records in a dict by external id, record every call, and fail as planned with `fail`."""

    def __init__(self, name: str, clock: Callable[[], datetime]) -> None:
        super().__init__(name, Options())
        self.clock = clock
        self.store: dict[str, dict[str, Any]] = {}
        self.changed: dict[str, datetime] = {}
        self.deleted: dict[str, datetime] = {}
        self.calls: list[tuple[str, str]] = []
        #: Exceptions for the next calls, one each; those with `after=True` are raised after the call took effect.
        self.failures: list[tuple[SyncError, bool]] = []
        self._ids = itertools.count(1)
        self.on_call: Callable[[str, str], None] = lambda kind, what: None

    def fail(self, error: SyncError, *, times: int = 1, after: bool = False) -> None:
        self.failures += [(error, after)] * times

    def call(self, kind: str, what: str, effect: Callable[[], _Result]) -> _Result:
        self.calls.append((kind, what))
        self.on_call(kind, what)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None and not failure[1]:
            raise failure[0]
        result = effect()
        if failure is not None:
            raise failure[0]
        return result

    def edit(self, external_id: str, **values: Any) -> External:
        """Edit a record in the system."""
        self.store[external_id].update(values)
        self.changed[external_id] = self.clock()
        return self.external(external_id)

    def add(self, **values: Any) -> External:
        """Create a record in the system."""
        external_id = self.new_id()
        self.store[external_id] = values
        self.changed[external_id] = self.clock()
        return self.external(external_id)

    def new_id(self) -> str:
        """Return an id for a new record."""
        return f"{self.name}_{next(self._ids)}"

    def remove(self, external_id: str) -> External:
        """Delete a record in the system."""
        del self.store[external_id]
        self.deleted[external_id] = self.clock()
        return External(external_id, at=self.clock(), deleted=True)

    def external(self, external_id: str) -> External:
        data = self.store[external_id]
        mark = data.get("hub_id")
        return External(external_id, dict(data), at=self.changed[external_id], mark=mark)

    def verify(self, body: bytes, headers: Mapping[str, str]) -> str:
        if headers.get("x-fake") != "signed":
            raise BadSignature
        return body.decode().split(" ")[0]

    def events(self, body: bytes) -> list[Event]:
        external_id = body.decode().split(" ")[1]
        if external_id in self.store:
            return [Event("thing", self.external(external_id))]
        return [Event("thing", External(external_id, at=self.clock(), deleted=True))]

    def writes(self) -> list[tuple[str, str]]:
        return [call for call in self.calls if call[0] in ("create", "update", "delete")]


class FakeSubscriber(Subscriber):
    """A subscriber of a FakeSystem, as an author would write one."""

    catalogue = "customer"
    resource = "thing"
    system_class = FakeSystem
    client: FakeSystem
    look_first = "poll"  # a system that is not polled is not looked at, except in the tests of looks
    field_to_data = {"name": "name", "email": "email", "phone": "phone", "city": "address.city", "notes": "notes"}

    def create(self, item: Item) -> External:
        def effect() -> External:
            return self.client.add(**item.data, hub_id=item.mark)

        return self.client.call("create", item.record_id, effect)

    def update(self, item: Item) -> External | None:
        def effect() -> External:
            if item.linked_id not in self.client.store:
                raise Gone("no such record")
            return self.client.edit(item.linked_id, **item.changes)

        return self.client.call("update", item.linked_id, effect)

    def delete(self, item: Item) -> None:
        def effect() -> None:
            if item.linked_id not in self.client.store:
                raise Gone("no such record")
            self.client.remove(item.linked_id)

        self.client.call("delete", item.linked_id, effect)

    def fetch(self, external_id: str) -> External:
        def effect() -> External:
            if external_id not in self.client.store:
                raise Gone("no such record")
            return self.client.external(external_id)

        return self.client.call("fetch", external_id, effect)

    def find(self, item: Item) -> External | None:
        def effect() -> External | None:
            for external_id, data in self.client.store.items():
                if data.get("hub_id") == item.mark:
                    return self.client.external(external_id)
            return None

        return self.client.call("find", item.record_id, effect)

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
        since = datetime.fromisoformat(position["since"]) if position else datetime.min.replace(tzinfo=UTC)
        stamps = {**self.client.changed, **self.client.deleted}
        records = [
            self.client.external(key) if key in self.client.store else External(key, at=at, deleted=True)
            for key, at in sorted(stamps.items(), key=lambda pair: pair[1])
            if at >= since
        ]
        if records:
            yield Page(records, {"since": max(r.at for r in records if r.at).isoformat()})


class FakeInvoice(FakeSubscriber):
    """Invoices, which point to their customer."""

    catalogue = "invoice"
    resource = "bill"
    field_to_data = {"number": "number", "status": "status", "customer_id": link_to("customer", "customer")}


class LowercasingSubscriber(FakeSubscriber):
    """A subscriber of a system that stores emails in lower case and accepts many records in one call."""

    bulk_size = 50

    def create(self, item: Item) -> External:
        item.data["email"] = (item.data.get("email") or "").lower()
        return super().create(item)

    def bulk_create(self, items: Sequence[Item]) -> list[Any]:
        self.client.calls.append(("bulk", str(len(items))))
        return super().bulk_create(items)


@dataclass
class RecordingPublisher:
    """A publisher that keeps its notifications instead of sending them."""

    published: list[tuple[str, Sequence[Any]]] = field(default_factory=list)
    depths: dict[str, int] = field(default_factory=dict)
    #: Notifications published with a lower priority than live changes.
    published_later: list[tuple[str, list[str]]] = field(default_factory=list)
    #: The error of a broker that does not answer, if any.
    broker_error: str | None = None

    def changes(self, catalogue: str, record_ids: Sequence[str]) -> None:
        self.published.append((f"changes {catalogue}", list(record_ids)))

    def records(self, subscriber: str, record_ids: Sequence[str], *, later: bool = False) -> None:
        if later:
            self.published_later.append((subscriber, list(record_ids)))
        self.published.append((subscriber, list(record_ids)))

    def inbox(self, system: str, inbox_ids: Sequence[int]) -> None:
        self.published.append(("inbox", list(inbox_ids)))

    def inbox_soon(self, system: str, inbox_ids: Sequence[int]) -> None:
        self.inbox(system, inbox_ids)

    def poll(self, subscriber: str, delay: float = 0.0) -> None:
        self.published.append((f"poll {subscriber}", []))

    def inbox_depth(self, system: str) -> int | None:
        return self.depths.get(f"{system}.inbox", 0)

    def depth(self, subscriber: str) -> int | None:
        return self.depths.get(subscriber, 0)

    def queues(self) -> QueueReport:
        if self.broker_error is not None:
            return QueueReport("broker", error=self.broker_error)
        states = {name: QueueState(name, depth, 0, 1) for name, depth in self.depths.items()}
        return QueueReport("broker", utcnow(), states)


class TestHub:
    """A hub over one database with fake systems, driven step by step."""

    __test__ = False  # not a class of tests

    def __init__(
        self,
        database: Database,
        *names: str,
        policy: Policy | None = None,
        kinds: Sequence[type[FakeSubscriber]] = (FakeSubscriber,),
        **attributes: Any,
    ) -> None:
        self.clock = Clock()
        self.publisher = RecordingPublisher()
        self.systems = {name: FakeSystem(name, self.clock) for name in names}
        subscribers: dict[str, Subscriber] = {}
        for name, system in self.systems.items():
            for kind in kinds:
                cls: type[FakeSubscriber] = type(
                    f"{name.title()}{kind.catalogue.title()}", (kind,), {"system": name, **attributes}
                )
                subscribers[cls.name()] = cls(system)
        self.conductor = Conductor(database, subscribers, self.publisher, policy, self.clock)
        self.conductor.breaker.ensure_rows()

    def run(self, rounds: int = 20) -> None:
        """Relay and process all notifications until there are none."""
        for _ in range(rounds):
            self.conductor.relay()
            published, self.publisher.published = self.publisher.published, []
            if not published:
                return
            for what, ids in published:
                self._process(what, ids)
        raise AssertionError("the hub does not come to rest: an echo?")

    def _process(self, what: str, ids: Sequence[Any]) -> None:
        kind, _, rest = what.partition(" ")
        if kind == "changes":
            for subscriber in self.conductor.context.of_catalogue(rest):
                self.conductor.deliver(subscriber.name(), ids)
        elif kind == "inbox":
            for inbox_id in ids:
                self.conductor.receive(inbox_id)
        elif kind == "poll":
            self.conductor.poll(rest)
        else:
            self.conductor.deliver(what, ids)

    def shown(self, name: str) -> list[dict[str, Any]]:
        """Return the records of a system, without the hub's id."""
        return [{k: v for k, v in data.items() if k != "hub_id"} for data in self.systems[name].store.values()]


__all__ = ["Clock", "FakeSubscriber", "FakeSystem", "RecordingPublisher", "TestHub", "nest", "pick"]
