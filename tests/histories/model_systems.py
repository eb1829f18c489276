"""The systems of the model, which normalise, fail, are interrupted, and report each change; and the database."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import requests
import sqlalchemy as sa

from models.base import Base
from models.schema import migrate
from models.session import Database
from subscribers.errors import Gone, Outdated, Reject, Retry, SyncError
from subscribers.http.failures import network_error, status_error
from subscribers.mapping.fields import Field
from subscribers.records import Event, External, Item, Page
from tests.support.fakes import FakeSubscriber, FakeSystem

if TYPE_CHECKING:
    from tests.support.model_hub import ModelHub

FIELDS = ("name", "email", "phone", "notes")


class Violation(AssertionError):
    """A property that does not hold."""


class Crash(BaseException):
    """The process is killed, as by SIGKILL: none of its code runs from then on."""


class BrokerAway(Exception):
    """The broker cannot be reached."""


class Surprise(Exception):
    """A bug in a subscriber: an exception outside the hub's error classes."""


@dataclass(frozen=True)
class Profile:
    """The characteristics of a system."""

    #: Its clock has a resolution of whole seconds.
    seconds: bool = False
    #: It stores emails in lower case, and text without surrounding blanks.
    normalises: bool = False
    #: Its webhooks report that a record changed, but not how.
    thin: bool = False
    #: Its records carry the hub's id, so that `find` finds them.
    marked: bool = True
    match_on: tuple[str, ...] = ()
    on_gone: str = "unlink"
    on_delete: str = "delete"
    conflict: str = "newest"
    #: Direction of the field `notes`.
    direction: str = "both"
    #: Its poll lists past events instead of current records.
    eventful: bool = False
    bulk: int = 1
    #: Its answer to a write contains the record as it is now.
    answers: bool = True
    #: Its answer to a write repeats what was sent, not what it stored.
    repeats: bool = False
    #: Its answer to a create does not even name the new record.
    nameless: bool = False
    #: It leaves empty fields out of its records and events.
    omits: bool = False
    #: It gives the id of a deleted record to the next new one.
    reuses: bool = False
    #: How edits made there are seen before ours overwrite them.
    look: str = "auto"
    #: It refuses a write that names another version of the record than it has.
    conditional: bool = False


# --- the database -----------------------------------------------------------------------------------------


class ModelDatabase(Database):
    """A database with interruptible transactions, in memory-backed files, emptied between histories."""

    def __init__(self, url: str) -> None:
        self.hub: ModelHub | None = None
        super().__init__(url)
        sa.event.listen(self.engine, "connect", self._connected)
        self._tables = [table.name for table in reversed(Base.metadata.sorted_tables) if table.name != "change"]

    def _connected(self, connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")  # the machine does not crash in these tests
        # The capture triggers use the hub's clock.
        connection.create_function("strftime", 2, lambda _format, _when: self._stamp())

    def _stamp(self) -> str:
        now = self.hub.clock() if self.hub else datetime.now(UTC)
        return f"{now:%Y-%m-%d %H:%M:%S.%f}"

    def empty(self) -> None:
        """Delete all rows."""
        with self.plain_write() as connection:
            raw: Any = connection.connection.driver_connection
            for table in self._tables:
                raw.execute(f'DELETE FROM "{table}"')
            raw.execute("DELETE FROM change")
            raw.execute("DELETE FROM sqlite_sequence") if self._has_sequences(raw) else None

    @staticmethod
    def _has_sequences(raw: Any) -> bool:
        return bool(raw.execute("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence'").fetchone())

    def plain_write(self) -> Any:
        """Open a transaction of another program, which is not interrupted."""
        return super().write()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        if self.hub is not None:
            self.hub.boundary("read")
        with super().read() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        hub = self.hub
        if hub is None:
            with super().write() as connection:
                yield connection
            return
        hub.boundary("begin")
        with super().write() as connection:
            hub.inside += 1
            try:
                yield connection
                hub.boundary("commit")
            finally:
                hub.inside -= 1
        hub.boundary("committed")


@cache
def shared_database() -> ModelDatabase:
    """Return the database of this process: reusing its compiled statements makes histories fast."""
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="syncflow-model-", dir=memory if os.access(memory, os.W_OK) else None)
    Finalize(None, shutil.rmtree, (folder,), {"ignore_errors": True}, exitpriority=1)  # in the processes of a pool too
    url = f"sqlite:///{folder}/model.db"
    levels = logging.getLogger("alembic").level
    migrate(url)
    logging.getLogger("alembic").setLevel(levels)
    return ModelDatabase(url)


# --- the systems ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outage:
    """How a system fails all calls: the error of a call that writes or not, as the HTTP layer raises it."""

    error: Callable[[bool], SyncError]
    #: Writes take effect, and their answers are lost.
    does: bool = False
    #: Seconds until the hub gives up waiting for the answer.
    seconds: float = 0.0


#: What the errors of an outage say; no other error of the model says it.
OUTAGE_WORDS = ("Bad Gateway", "no response in time", "the connection was cut before the response")

OUTAGES = (
    Outage(lambda writes: status_error(502, "Bad Gateway", writes=writes)),
    Outage(lambda writes: status_error(502, "Bad Gateway", writes=writes), does=True),
    Outage(lambda writes: network_error(requests.ReadTimeout(), writes=writes), seconds=10.0),
    Outage(lambda writes: network_error(requests.ReadTimeout(), writes=writes), does=True, seconds=10.0),
    Outage(lambda writes: network_error(requests.ConnectionError(), writes=writes)),
    Outage(lambda writes: network_error(requests.ConnectionError(), writes=writes), does=True),
)

WRITES = ("create", "update", "delete")


class ModelSystem(FakeSystem):
    """A fake system that normalises, fails, is interrupted, and reports each change."""

    def __init__(self, name: str, hub: ModelHub, profile: Profile) -> None:
        super().__init__(name, self._now)
        self.hub = hub
        self.profile = profile
        #: All changes so far, and the indexes of those not yet reported to the hub.
        self.log: list[External] = []
        self.untold: list[int] = []
        #: External id -> (record id, incarnation) of the records that the hub created.
        self.ours: dict[str, tuple[str, int]] = {}
        self.by_people = 0
        #: The deleted records that a user may restore.
        self.trash: dict[str, dict[str, Any]] = {}
        self.restored: set[str] = set()
        #: External id -> how often the record was changed.
        self.versions: Counter[str] = Counter()
        #: Ids that belong to another record than they did before.
        self.reused: set[str] = set()
        #: Records whose last write the hub has not read yet, although the answer did not show what was stored.
        self.unread: set[str] = set()
        #: Until when the system fails every call, and how: an index of `OUTAGES`.
        self.out_until: datetime | None = None
        self.outage = 0
        #: Number of events at the last poll at rest.
        self.polled = -1

    def _now(self) -> datetime:
        now = self.hub.clock()
        return now.replace(microsecond=0) if self.profile.seconds else now

    def call(self, kind: str, what: str, effect: Callable[[], Any]) -> Any:
        self.calls.append((kind, what))
        hub = self.hub
        hub.note(f"{self.name}: {kind} {what}")
        hub.calling.append(0.0)
        try:
            hub.boundary(f"{self.name} {kind} asked")
            # Without the hub's id on the record, the hub cannot recover from a lost answer to a create.
            fragile = kind == "create" and not self.profile.marked
            failure = self._failure(writes=kind in WRITES)
            if failure is not None and kind == "update" and getattr(failure[0], "maybe_done", True):
                for record in what.split(","):
                    hub.conflicts.forget(record)  # what it holds then may be from before or after this write
            if failure is not None and (not failure[1] or fragile):
                hub.note(f"{self.name}: fails with {failure[0]!r}")
                raise failure[0]
            result = effect()
            if fragile:
                hub.fragile |= {(f"{self.name}.customer", record) for record in what.split(",")}
            else:
                hub.boundary(f"{self.name} {kind} done")
            if failure is not None:
                hub.unanswered.add(self.name)
                hub.note(f"{self.name}: did it and fails with {failure[0]!r}")
                raise failure[0]
            return result
        finally:
            hub.calling.pop()

    def _failure(self, *, writes: bool) -> tuple[SyncError, bool] | None:
        """Return how this call fails, and whether it takes effect all the same; None if it works."""
        if not self.is_out:
            return self.failures.pop(0) if self.failures else None
        what = OUTAGES[self.outage % len(OUTAGES)]
        if what.seconds:
            self.hub.do_tick(what.seconds)
        return what.error(writes), what.does and writes

    @property
    def is_out(self) -> bool:
        """Whether the system fails every call now."""
        return self.out_until is not None and self.clock() < self.out_until

    def normal(self, path: str, value: Any) -> Any:
        """Return a value as this system stores it."""
        if not self.profile.normalises or not isinstance(value, str):
            return value
        return value.strip().lower() if path == "email" else value.strip()

    def _normal(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {path: self.normal(path, value) for path, value in values.items()}

    def tell(self, external: External) -> External:
        """Append the change to the log of events."""
        self.log.append(external)
        self.untold.append(len(self.log) - 1)
        return external

    def edit(self, external_id: str, **values: Any) -> External:
        self.versions[external_id] += 1
        return self.tell(super().edit(external_id, **self._normal(values)))

    def add(self, **values: Any) -> External:
        if not self.profile.marked:
            values.pop("hub_id", None)
        return self.tell(super().add(**self._normal(values)))

    def new_id(self) -> str:
        free = sorted(key for key in self.deleted if self.hub.has_left(self.name, key)) if self.profile.reuses else []
        if not free:
            return super().new_id()
        external_id = free[0]
        self.hub.reused(self, external_id)
        del self.deleted[external_id]
        self.versions[external_id] += 1
        self.trash.pop(external_id, None)
        self.restored.discard(external_id)
        self.ours.pop(external_id, None)
        self.reused.add(external_id)
        return external_id

    def remove(self, external_id: str) -> External:
        self.trash[external_id] = self.store[external_id]
        return self.tell(super().remove(external_id))

    def restore(self, external_id: str) -> External:
        """Restore a deleted record under its id, as from a recycle bin."""
        self.store[external_id] = self.trash.pop(external_id)
        self.changed[external_id] = self.clock()
        del self.deleted[external_id]
        self.restored.add(external_id)
        self.versions[external_id] += 1
        return self.tell(self.external(external_id))

    def external(self, external_id: str) -> External:
        external = super().external(external_id)
        external = replace(external, version=str(self.versions[external_id]))
        return replace(external, data=_without_empty(external.data)) if self.profile.omits else external

    def verify(self, body: bytes, headers: Mapping[str, str]) -> str:
        return body.decode()

    def events(self, body: bytes) -> list[Event]:
        external = self.log[int(body.decode().removeprefix("e"))]
        if self.profile.thin:
            external = External(external.id, {}, at=external.at, deleted=external.deleted)
        return [Event("thing", external)]

    # --- what the hub's calls do ---------------------------------------------------------------------------

    def check(self, item: Item) -> None:
        """Fail for invalid data, and for data that makes this system fail on every attempt."""
        if item.data.get("notes") == "reject":
            raise Reject("422: notes are not valid", fields={"notes": "not valid"})
        if item.data.get("notes") == "stumble":
            raise Retry("500: stumbled")

    def created(self, item: Item) -> External | None:
        """Create a record and return the answer; raise a violation if its internal record already has a live one."""
        self.check(item)
        owner = (item.record_id, self.hub.incarnations.setdefault(item.record_id, 1))
        living = self.store.keys() - self.restored
        twins = [other for other, of in self.ours.items() if of == owner and other in living]
        external = self.add(**item.data, hub_id=item.mark)
        self.ours[external.id] = owner
        self.hub.note(f"{self.name}: created {external.id} for record {item.record_id}")
        if twins:
            raise self.hub.violated(f"(b) {self.name}: {external.id} created for {owner}, which has {twins} already")
        return None if self.profile.nameless and self.profile.marked else self._answer(external, item.data)

    def updated(self, item: Item) -> External | None:
        """Update a record."""
        self.check(item)
        if item.linked_id not in self.store:
            raise Gone("404: no such record")
        self._check_version(item)
        external = self.edit(item.linked_id, **item.changes)
        answer = self._answer(external, item.changes)
        return answer if self.profile.answers else None

    def _answer(self, external: External, sent: Mapping[str, Any]) -> External:
        if self.profile.repeats or not self.profile.answers:
            self.unread.add(external.id)
        if not self.profile.answers:
            return replace(external, data={}, version=None)
        return replace(external, data={**external.data, **sent}) if self.profile.repeats else external

    def removed(self, item: Item) -> None:
        """Delete a record."""
        if item.linked_id not in self.store:
            raise Gone("404: no such record")
        self._check_version(item)
        self.remove(item.linked_id)

    def _check_version(self, item: Item) -> None:
        known = item.version if self.profile.conditional else None
        if known is not None and known != str(self.versions[item.linked_id]):
            raise Outdated("412: the record has another version")


class ModelSubscriber(FakeSubscriber):
    """The subscriber of a ModelSystem."""

    client: ModelSystem

    def create(self, item: Item) -> External:
        (made,) = self._each("create", [item], self.client.created)
        return cast(External, made)

    def update(self, item: Item) -> External | None:
        (made,) = self._each("update", [item], self.client.updated)
        return cast("External | None", made)

    def delete(self, item: Item) -> None:
        self._each("delete", [item], self.client.removed)

    def _each(self, kind: str, items: Sequence[Item], effect: Callable[[Item], Any]) -> list[Any]:
        with self.client.hub.writing(self, kind, items):
            if len(items) == 1 and self.bulk_size == 1:
                return [self.client.call(kind, items[0].record_id, lambda: effect(items[0]))]
            what = ",".join(item.record_id for item in items)
            outcomes: list[Any] = self.client.call(kind, what, lambda: [_outcome(effect, item) for item in items])
            return outcomes

    def bulk_create(self, items: Sequence[Item]) -> list[Any]:
        return super().bulk_create(items) if self.bulk_size == 1 else self._each("create", items, self.client.created)

    def bulk_update(self, items: Sequence[Item]) -> list[Any]:
        return super().bulk_update(items) if self.bulk_size == 1 else self._each("update", items, self.client.updated)

    def bulk_delete(self, items: Sequence[Item]) -> list[Any]:
        return super().bulk_delete(items) if self.bulk_size == 1 else self._each("delete", items, self.client.removed)

    @property
    def is_conditional(self) -> bool:
        return self.client.profile.conditional

    def fetch(self, external_id: str) -> External:
        fetched = super().fetch(external_id)
        self.client.unread.discard(external_id)
        return fetched

    def find(self, item: Item) -> External | None:
        return super().find(item) if self.client.profile.marked else None

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
        yield from self._events(position) if self.client.profile.eventful else self._records(position)

    def _events(self, position: dict[str, Any] | None) -> Iterator[Page]:
        start = position["event"] if position else 0
        found = self.client.call("list", f"events from {start}", lambda: list(self.client.log[start:]))
        for number in range(0, len(found), 2):
            page = found[number : number + 2]
            yield Page(page, {"event": start + number + len(page)}, current=False)

    def _records(self, position: dict[str, Any] | None) -> Iterator[Page]:
        system = self.client
        since = datetime.fromisoformat(position["since"]) if position else datetime.min.replace(tzinfo=UTC)

        def listed() -> list[tuple[str, datetime]]:
            stamps = {**system.changed, **system.deleted}
            return sorted((pair for pair in stamps.items() if pair[1] >= since), key=lambda pair: pair[1])

        def shown(key: str) -> External:
            return system.external(key) if key in system.store else External(key, at=system.deleted[key], deleted=True)

        found = system.call("list", f"records since {since:%H:%M:%S.%f}", listed)
        for number in range(0, len(found), 2):
            page = found[number : number + 2]
            if number:
                system.calls.append(("list", "next page"))
            yield Page([shown(key) for key, _ in page], {"since": page[-1][1].isoformat()})


def _without_empty(data: Mapping[str, Any]) -> dict[str, Any]:
    filled = {key: value for key, value in data.items() if value is not None}
    return {key: _without_empty(value) if isinstance(value, Mapping) else value for key, value in filled.items()}


def _outcome(effect: Callable[[Item], Any], item: Item) -> Any:
    try:
        return effect(item)
    except SyncError as error:
        return error


@cache
def subscriber_class(name: str, profile: Profile) -> type[ModelSubscriber]:
    """Return the subscriber class for a system with this profile."""
    mapping = {column: Field(column, conflict=profile.conflict) for column in FIELDS}  # type: ignore[arg-type]
    mapping["notes"] = Field("notes", conflict=profile.conflict, direction=profile.direction)  # type: ignore[arg-type]
    mapping["city"] = Field("address.city", conflict=profile.conflict)  # type: ignore[arg-type]
    attributes = {
        "system": name,
        "field_to_data": mapping,
        "match_on": profile.match_on,
        "on_gone": profile.on_gone,
        "on_delete": profile.on_delete,
        "archive_data": {"phone": "archived"},
        "bulk_size": profile.bulk,
        "absent": "empty" if profile.omits else "kept",
        "read_back": "always" if profile.repeats else "auto",
        "reuses_ids": profile.reuses,
        "look_first": profile.look,
    }
    return type(f"{name.title()}Customer", (ModelSubscriber,), attributes)
