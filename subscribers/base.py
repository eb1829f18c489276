"""What a subscriber is: one class for one catalogue in one system.

An author writes `field_to_data` and the few methods that are particular to the system; the
conductor decides when they are called. Nothing here knows a broker or Flask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic import Field as Field_

from models.catalogues import CATALOGUES, Catalogue, Record
from settings import SettingsError, describe, system_options
from subscribers.errors import Retry, Skip, SyncError, SystemDown, clean
from subscribers.mapping import Field, Mapper, check_rows, entry_row, link_to, rows
from subscribers.rates import Rate
from subscribers.rules import Rules, check


@dataclass(frozen=True)
class External:
    """One record as an external system has it.

    `data` is nested as in the system's own JSON. `at` is when it was last changed, by the system's
    own clock (for the answer to a write of ours: the time of that write). `record_id` is our id
    where the record carries it. `merged_into`, of a deleted one, is the id of the record there that it
    lives on in.
    """

    id: str
    data: Mapping[str, Any] = field(default_factory=dict)
    at: datetime | None = None
    deleted: bool = False
    record_id: str | None = None
    request_id: str | None = None
    merged_into: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", clean(self.id))
        if self.request_id is not None:
            object.__setattr__(self, "request_id", clean(self.request_id)[:128])
        if len(self.id) > 255:
            raise Retry(f"an id of {len(self.id)} characters cannot be kept", maybe_done=True)


@dataclass(frozen=True)
class Item:
    """One record on its way to a system.

    `data` is all that the system shall hold, `changes` what differs from what it is known to hold
    (whole top-level objects, so that partial updates of nested ones are well defined); both nested.
    `key` is an idempotency key: the same for each try of the same creation.
    """

    record_id: str
    record: Record
    data: dict[str, Any]
    changes: dict[str, Any]
    external_id: str | None
    key: str

    @property
    def linked_id(self) -> str:
        """The external id, where there must be one."""
        if self.external_id is None:
            raise AssertionError(f"record {self.record_id} is not linked")
        return self.external_id


@dataclass(frozen=True)
class Page:
    """A page of a poll: records, and the position to continue from once their effects are stored.

    `current`: the records are as they are now. A list of past events is not.
    """

    records: list[External]
    position: dict[str, Any]
    current: bool = True


@dataclass(frozen=True)
class Event:
    """A webhook's content: what happened to which record of which resource (`customer`, `Account`)."""

    resource: str
    external: External


@dataclass(frozen=True)
class ExternalField:
    """A field as a system describes it, or as one of its records shows it.

    `kind` is text, number, boolean, date, datetime, list or object; empty where it cannot be told.
    `length` is in characters. `required`: a record cannot be created without it.
    """

    kind: str = ""
    length: int | None = None
    writable: bool = True
    required: bool = False


def kind_of(value: Any) -> str:
    """The kind of a JSON value, in the words of `ExternalField`; empty for none."""
    kinds = {bool: "boolean", int: "number", float: "number", str: "text", list: "list", dict: "object"}
    return kinds.get(type(value), "")


def fields_of(data: Mapping[str, Any], parent: str = "") -> dict[str, ExternalField]:
    """The fields that one record shows, by dotted path, objects and what is in them."""
    found: dict[str, ExternalField] = {}
    for name, value in data.items():
        path = f"{parent}{name}"
        found[path] = ExternalField(kind_of(value))
        if isinstance(value, Mapping):
            found |= fields_of(value, f"{path}.")
    return found


class Options(BaseModel):
    """What a system needs to be told by the environment: the field `url` of `shop` is `SHOP_URL`.

    Every system takes the limits its owner allows, over all worker processes together:
    `SHOP_REQUESTS_PER_SECOND`, `SHOP_CONCURRENCY` (calls at once), and `SHOP_DELETE_LIMIT`: more
    deletes to or from it within ten minutes pause it until a person says they are meant.
    """

    model_config = ConfigDict(extra="ignore")

    requests_per_second: float | None = Field_(None, gt=0)
    concurrency: int | None = Field_(None, ge=1)
    delete_limit: int | None = Field_(None, ge=0)


class System:
    """One external system: its credentials and its client, shared by its subscribers."""

    Options: ClassVar[type[BaseModel]] = Options
    #: Options that stand where the environment names others; a system that has some is always connected.
    defaults: ClassVar[Mapping[str, Any]] = {}

    #: The limits where the environment names none; None for no limit.
    requests_per_second: float | None = None
    concurrency: int | None = None
    delete_limit: int | None = 50

    #: The `http.Http` of a system that is spoken to by it.
    http: Any = None

    def __init__(self, name: str, options: BaseModel) -> None:
        self.name = name
        self.options: Any = options
        for limit in ("requests_per_second", "concurrency", "delete_limit"):
            if (value := getattr(options, limit, None)) is not None:
                setattr(self, limit, value)

    @property
    def rate(self) -> Rate | None:
        """What its answers said last of the calls that are left; None where they say nothing."""
        rate: Rate | None = self.http.rate if self.http is not None else None
        return rate

    def pace(self) -> None:
        """Wait until a call may begin. The conductor replaces it where there is a rate limit."""

    def wait_reason(self) -> str | None:
        """Why what can wait (a poll, a backfill) leaves the system alone now, in words; None: it need not."""
        return None

    @classmethod
    def from_environment(cls, name: str) -> System | None:
        """The system as the environment configures it; None where it says nothing of it.

        Raises:
          SettingsError: it says something, but not enough, or something wrong.
        """
        values = {**cls.defaults, **system_options(name)}
        if not values:
            return None
        try:
            return cls(name, cls.Options(**values))
        except ValidationError as error:
            raise SettingsError(describe(error, prefix=f"{name}_")) from None

    def verify(self, body: bytes, headers: Mapping[str, str]) -> str:
        """The id of the event this webhook carries, after checking who sent it. Header names are lower case.

        Raises:
          BadSignature: it is not from this system.
          BadWebhook: it is, but it cannot be read.
        """
        raise NotImplementedError(f"{self.name} sends no webhooks that this hub knows how to check")

    def unpack(self, body: bytes, headers: Mapping[str, str]) -> list[tuple[str, bytes]]:
        """(id, body) of each event in a webhook request, after checking who sent it; for systems that send several.

        Raises as `verify` does.
        """
        return [(self.verify(body, headers), body)]

    def events(self, body: bytes) -> list[Event]:
        """What a verified webhook says happened."""
        raise NotImplementedError

    def acknowledgement(self, body: bytes) -> tuple[str, str] | None:
        """(body, content type) with which this webhook request has to be answered; None where a 2xx is enough."""
        return None

    def page_url(self, resource: str, external_id: str) -> str | None:
        """Where a person sees this record in the system itself."""
        return None


class Subscriber:
    """Base class. `register` it and it is in the fan-out.

    Class attributes an author sets: `system`, `catalogue`, `field_to_data`, and where wanted
    `match_on` (columns that identify a record on both sides before it is linked), `on_delete`
    (what happens there when the internal record is deleted), `on_gone` (what happens here when the
    external record is deleted), `rules` (what the system takes, see `rules`) and `poll_seconds`.
    """

    system: ClassVar[str]
    catalogue: ClassVar[str]
    system_class: ClassVar[type[System]] = System
    #: What the system calls this kind of record, as its webhooks name it.
    resource: ClassVar[str] = ""
    field_to_data: ClassVar[Mapping[str, Field | str]] = {}
    match_on: ClassVar[Sequence[str]] = ()
    on_delete: ClassVar[Literal["delete", "archive", "unlink", "ignore"]] = "delete"
    on_gone: ClassVar[Literal["delete", "archive", "unlink", "recreate"]] = "unlink"
    #: By path of what is sent: see `subscribers.rules`.
    rules: ClassVar[Rules] = {}
    #: What is sent there, by path, where `on_delete` is `archive`.
    archive_data: ClassVar[Mapping[str, Any]] = {}
    #: How many records one call of `bulk_*` takes; 1 for a system without bulk calls.
    bulk_size: ClassVar[int] = 1
    #: How often changes are polled; None for never.
    poll_seconds: ClassVar[int | None] = None

    def __init__(self, client: System) -> None:
        self.client: Any = client
        #: The mapping in force; the conductor puts a newer version here when a person saved one.
        self.mapper: Mapper = self.default_mapper

    @classmethod
    def connected(cls, client: Any) -> Subscriber | None:
        """The subscriber at work for this client; None where the system's settings leave it out."""
        return cls(client)

    @classmethod
    def name(cls) -> str:
        """`system.catalogue`: the subscriber's name and the name of its queue."""
        return f"{cls.system}.{cls.catalogue}"

    @cached_property
    def records(self) -> Catalogue:
        """The catalogue this subscriber follows."""
        return CATALOGUES[self.catalogue]

    @cached_property
    def default_mapper(self) -> Mapper:
        """The mapping as the code has it."""
        return Mapper(self.records, self.field_to_data)

    # --- decisions about a record ---------------------------------------------------------------

    def wants(self, record: Record) -> bool:
        """Whether this record belongs in the system at all."""
        return True

    def validate(self, data: Mapping[str, Any]) -> None:
        """Raise `Reject(fields={...})` where the system would refuse `data` (nested) anyway: by `rules`."""
        check(self.rules, data)

    # --- what the mapping cannot say -----------------------------------------------------------------

    def before_send(self, data: dict[str, Any], record: Record) -> dict[str, Any]:
        """The data (nested) that shall be sent of this record, made from what the mapping says.

        Called whenever our side is looked at, not only before a call, so it must come out the same for
        the same record. What it adds beside the mapped fields goes along with each call, but is not
        compared: a change of that alone is none.
        """
        return data

    def after_receive(self, external: External) -> External:
        """The record as it shall be taken, made from what the system said; `dataclasses.replace` makes one.

        Called for every record with data that comes in: webhooks, polls, fetches and answers to writes.
        """
        return external

    # --- calls ------------------------------------------------------------------------------------

    def create(self, item: Item) -> External:
        """Create the record there and return it with its id."""
        raise NotImplementedError

    def update(self, item: Item) -> External | None:
        """Bring the linked record there up to date; return what the system now holds, if it says."""
        raise NotImplementedError

    def delete(self, item: Item) -> None:
        """Delete the linked record there; one that is gone already is fine (or raise `Gone`)."""
        raise NotImplementedError

    def fetch(self, external_id: str) -> External:
        """The record as it is there now. Raises `Gone`."""
        raise NotImplementedError

    def everything(self, position: dict[str, Any] | None) -> Iterator[Page]:
        """Pages of all records there, after a page's position; it changes nothing, here or there.

        As a poll reads from the beginning. Override where that has effects of its own.
        """
        return self.changed_since(position)

    def bulk_fetch(self, external_ids: Sequence[str]) -> list[External | SyncError]:
        """One outcome an id, in order. Override where the system shows many in one call."""
        return one_by_one(self.fetch, external_ids, self.client.pace)

    def find(self, item: Item) -> External | None:
        """Look for the record there by our id (or another sure mark) before it is created (again)."""
        return None

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
        """Pages of records changed since a position (None: from the beginning), oldest first.

        Records that changed exactly at the position are read again: ties must not be lost.
        """
        raise NotImplementedError

    # --- what `./syncflow check` asks ---------------------------------------------------------------

    def describe(self) -> Mapping[str, ExternalField] | None:
        """The fields records have there, by dotted path; None where nothing can be told.

        As one record shows them, unless the system can describe itself: then override it.
        """
        for page in self.everything(None):
            for external in page.records:
                if not external.deleted and external.data:
                    return fields_of(external.data)
            break
        return None

    def lacking(self) -> list[str]:
        """What the login lacks, one sentence each; as far as can be seen without doing it."""
        return []

    # --- bulk calls: what the conductor really calls -------------------------------------------------

    def lot_size(self, waiting: int) -> int:
        """How many of so many waiting records one call of `bulk_*` is given."""
        return self.bulk_size

    def bulk_create(self, items: Sequence[Item]) -> list[External | SyncError]:
        """One outcome an item, in order. Override where the system takes many in one call."""
        return one_by_one(self.create, items, self.client.pace)

    def bulk_update(self, items: Sequence[Item]) -> list[External | SyncError | None]:
        """One outcome an item, in order."""
        return one_by_one(self.update, items, self.client.pace)

    def bulk_delete(self, items: Sequence[Item]) -> list[SyncError | None]:
        """One outcome an item, in order."""
        return one_by_one(self.delete, items, self.client.pace)


def one_by_one(call: Callable[[Any], Any], items: Sequence[Any], pace: Callable[[], None] = lambda: None) -> list[Any]:
    """The outcome of `call` for each item. When the system is down the rest is not tried."""
    outcomes: list[Any] = []
    for item in items:
        pace()
        outcome = attempt(call, item)
        outcomes.append(outcome)
        if isinstance(outcome, SystemDown):
            untried = SystemDown(str(outcome), after=outcome.after)
            outcomes += [untried] * (len(items) - len(outcomes))
            break
    return outcomes


def attempt(call: Callable[..., Any], *arguments: Any) -> Any:
    """What `call` returned, or the SyncError it raised; any other error as a `Retry` that keeps its traceback."""
    try:
        return call(*arguments)
    except SyncError as error:
        return error
    except Exception as error:  # an author's bug must not take the batch's neighbours down with it
        wrapped = Retry(f"{type(error).__name__}: {error}", maybe_done=True)
        wrapped.__cause__ = error
        return wrapped


_renew: ContextVar[Callable[[], object]] = ContextVar("renew", default=lambda: None)


def still_working() -> None:
    """To be called now and then inside a call of `bulk_*` that takes long: what holds its records is renewed."""
    _renew.get()()


@contextmanager
def renewed_by(renew: Callable[[], object]) -> Iterator[None]:
    """Have `still_working` call this meanwhile."""
    token = _renew.set(renew)
    try:
        yield
    finally:
        _renew.reset(token)


def received(subscriber: Subscriber, external: External) -> External:
    """What came in, as the subscriber's `after_receive` has it; without data there is nothing to change."""
    if not external.data:
        return external
    made = subscriber.after_receive(external)
    if not isinstance(made, External):
        raise TypeError(f"after_receive of {subscriber.name()} returned a {type(made).__name__}, not an External")
    return made


#: Every subscriber class by name: the one table that answers "who is in the fan-out".
REGISTRY: dict[str, type[Subscriber]] = {}


def register(subscriber: type[Subscriber]) -> type[Subscriber]:
    """Class decorator: put a subscriber into the fan-out.

    Raises:
      ValueError: the class is not complete, or its name is taken; said at import, not at the first record.
    """
    for attribute in ("system", "catalogue"):
        if not getattr(subscriber, attribute, None):
            raise ValueError(f"{subscriber.__name__}: set the class attribute {attribute!r}")
    if subscriber.catalogue not in CATALOGUES:
        raise ValueError(
            f"{subscriber.__name__}: no catalogue {subscriber.catalogue!r}; there are {', '.join(CATALOGUES)}"
        )
    if problems := _mapping_problems(subscriber):
        raise ValueError(f"{subscriber.__name__}: field_to_data: {'; '.join(problems)}")
    taken = REGISTRY.get(subscriber.name())
    if taken is not None and taken.__qualname__ != subscriber.__qualname__:
        raise ValueError(f"{subscriber.name()} is registered twice: {taken.__name__} and {subscriber.__name__}")
    REGISTRY[subscriber.name()] = subscriber
    return subscriber


def _mapping_problems(subscriber: type[Subscriber]) -> list[str]:
    catalogue = CATALOGUES[subscriber.catalogue]
    entries = {column: Field(e) if isinstance(e, str) else e for column, e in subscriber.field_to_data.items()}
    _, problems = check_rows([entry_row(column, entry) for column, entry in entries.items()], catalogue)
    unknown = [column for column in subscriber.match_on if column not in catalogue.table.c]
    return problems + [f"match_on: {catalogue.name} has no column {column!r}" for column in unknown]


def connect(registry: Mapping[str, type[Subscriber]] | None = None) -> dict[str, Subscriber]:
    """The subscribers whose systems the environment configures, one client a system.

    Raises:
      SettingsError: a system is configured only in part.
    """
    systems: dict[str, System | None] = {}
    subscribers = {}
    for name, subscriber in (REGISTRY if registry is None else registry).items():
        if subscriber.system not in systems:
            systems[subscriber.system] = subscriber.system_class.from_environment(subscriber.system)
        client = systems[subscriber.system]
        at_work = subscriber.connected(client) if client is not None else None
        if at_work is not None:
            subscribers[name] = at_work
    return subscribers


__all__ = [
    "REGISTRY",
    "Event",
    "External",
    "ExternalField",
    "Field",
    "Item",
    "Options",
    "Page",
    "Skip",
    "Subscriber",
    "System",
    "connect",
    "link_to",
    "register",
    "rows",
    "still_working",
]
