"""Preview a mapping before it is saved: its effect on one record, and on how many records.

Everything here only reads. A small catalogue is examined whole. Of a large one a sample is taken, spread over the
table and bounded in time, and the result says how certain it is.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.internal.absence import Unreadable
from conductor.links.relations import Related, Relations, our_side
from conductor.links.rules import in_force
from conductor.mappings.store import MappingRefused, Mappings, mapper_of
from i18n import gettext
from models.catalogues import Record, UnreadableRecord
from models.ledger import Link
from subscribers.base import Subscriber
from subscribers.calls import call_safely
from subscribers.errors import SyncError
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.paths import MISSING, nest
from subscribers.mapping.values import Flat, same

#: A catalogue of up to this many records is examined whole.
EXACT = 5000

#: A sample has this many places, spread over the table, and this many consecutive records at each.
_PLACES = 100
_RECORDS_PER_PLACE = 20

_PAGE = 500

#: The time for one count. The records examined until then are the sample.
_BUDGET_SECONDS = 3.0

#: Records of a table are counted up to this number.
COUNTED = 1_000_000

#: 95 % of a normal distribution lie within this many standard deviations.
_Z = 1.96


@dataclass(frozen=True)
class Preview:
    """One record through two mappings. `before` and `after` are flat payloads, or the error that refuses them."""

    record_id: str
    before: Flat | SyncError
    after: Flat | SyncError
    #: Sentences about what else matters: the record is not linked yet, not wanted or unsubscribed.
    notes: list[str] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """Return the external fields of both payloads."""
        flats = [side for side in (self.before, self.after) if isinstance(side, dict)]
        return list(dict.fromkeys(path for flat in flats for path in flat))

    def sides(self, path: str) -> tuple[Any, Any]:
        """Return the field before and after; MISSING where it is not sent."""
        return _field(self.before, path), _field(self.after, path)

    def differs(self, path: str) -> bool:
        """Whether the field would be sent with another value, or on one side only."""
        one, other = self.sides(path)
        return (one is MISSING) is not (other is MISSING) or not same(one, other)


@dataclass(frozen=True)
class Effect:
    """On how many records a mapping would send something else than the mapping in force."""

    #: Records in the catalogue, counted up to `COUNTED`.
    total: int
    examined: int
    changing: int
    #: Whether all records were examined; otherwise `low` and `high` bound the estimate with 95 % confidence.
    exact: bool
    estimate: int
    low: int
    high: int
    #: Records that can be sent today and would be refused, and the error of the first one.
    refused: int
    refusal: str | None
    #: External field -> the number of examined records that differ in it.
    paths: dict[str, int]
    #: The id of a record that would change.
    example: str | None


class Previews:
    """Tries mappings on records."""

    def __init__(self, context: Context, mappings: Mappings, relations: Relations) -> None:
        self.context = context
        self.mappings = mappings
        self.relations = relations

    def record(self, name: str, rows: list[dict[str, Any]], record_id: str) -> Preview | None:
        """Map one record by the mapping in force and by these rows. Return None if there is no such record.

        Raises:
          MappingRefused: a row is invalid.
        """
        subscriber = self.context.subscribers[name]
        after = mapper_of(subscriber, rows)
        with self.context.database.read() as connection:
            before = self._in_force(connection, subscriber)
            try:
                record = subscriber.records.read(connection, [record_id]).get(record_id)
            except UnreadableRecord as error:
                return Preview(record_id, Unreadable(error), Unreadable(error))
            except (ValueError, ArithmeticError, sa.exc.DBAPIError):
                return None
            if record is None:
                return None
            related = self._related(connection, subscriber, (before, after), [record])
            notes = self._notes(connection, subscriber, record, record_id)
        if isinstance(waits := call_safely(self.relations.check, after, record, related), SyncError):
            notes.append(gettext("Before it is sent, {waits}.", waits=waits))
        return Preview(
            record_id, _sent(subscriber, before, record, related), _sent(subscriber, after, record, related), notes
        )

    def effect(self, name: str, rows: list[dict[str, Any]]) -> Effect:
        """Count the records that these rows would change, or estimate their number.

        Raises:
          MappingRefused: a row is invalid.
        """
        subscriber = self.context.subscribers[name]
        after = mapper_of(subscriber, rows)
        tally = _Tally()
        deadline = time.monotonic() + _BUDGET_SECONDS
        with self.context.database.read() as connection:
            before = self._in_force(connection, subscriber)
            total = _count(connection, subscriber)
            whole = total <= EXACT
            for page in _pages(connection, subscriber) if whole else _places(connection, subscriber):
                related = self._related(connection, subscriber, (before, after), list(page.values()))
                tally.begin_place()
                for record_id, record in page.items():
                    tally.add(subscriber, record_id, record, before, after, related)
                if time.monotonic() > deadline:
                    whole = False
                    break
        return tally.effect(total, exact=whole)

    def _in_force(self, connection: sa.Connection, subscriber: Subscriber) -> Mapper:
        try:
            return self.mappings.current(connection, subscriber.name())[0]
        except MappingRefused:
            return subscriber.default_mapper

    def _related(
        self, connection: sa.Connection, subscriber: Subscriber, mappers: tuple[Mapper, Mapper], records: list[Record]
    ) -> Related:
        related = Related()
        for mapper in mappers:
            related.ids |= self.relations.load(connection, subscriber, mapper, records).ids
        return related

    def _notes(self, connection: sa.Connection, subscriber: Subscriber, record: Record, record_id: str) -> list[str]:
        notes = []
        name = subscriber.name()
        linked = sa.select(Link.external_id, Link.unlinked_at).where(
            Link.subscriber == name, Link.record_id == record_id
        )
        link = connection.execute(linked).one_or_none()
        if call_safely(subscriber.wants, record) is not True:
            notes.append(gettext("{name} filters this record out, so it is not sent.", name=name))
        elif link is None or link.external_id is None or link.unlinked_at is not None:
            notes.append(
                gettext(
                    "It is not in {system} yet: it would be created with all of this data.", system=subscriber.system
                )
            )
        targets = (subscriber.system, name)
        for rule in in_force(connection, targets, [record_id], self.context.clock()):
            if rule.covers("update", record_id) or rule.covers("create", record_id):
                notes.append(f"{rule.reason[0].upper()}{rule.reason[1:]}.")
        return notes


@dataclass
class _Place:
    examined: int = 0
    changing: int = 0


class _Tally:
    """Counts records, also by place of a sample: similar neighbours must not make the estimate look certain."""

    def __init__(self) -> None:
        self.examined = self.changing = self.refused = 0
        self.refusal: str | None = None
        self.example: str | None = None
        self.paths: Counter[str] = Counter()
        self.places: list[_Place] = []

    def begin_place(self) -> None:
        self.places.append(_Place())

    def add(
        self, subscriber: Subscriber, record_id: str, record: Record, before: Mapper, after: Mapper, related: Related
    ) -> None:
        self.examined += 1
        place = self.places[-1]
        place.examined += 1
        if call_safely(subscriber.wants, record) is not True:
            return
        old, new = (_sent(subscriber, mapper, record, related) for mapper in (before, after))
        if isinstance(new, SyncError):
            if not isinstance(old, SyncError):
                self.refused += 1
                self.refusal = self.refusal or f"{subscriber.records.name} {record_id}: {new}"
            return
        known = {} if isinstance(old, SyncError) else old
        # A field that is no longer mapped keeps its value in the system: only new and differing values count.
        differing = [path for path, value in new.items() if path not in known or not same(value, known[path])]
        if differing:
            self.changing += 1
            place.changing += 1
            self.paths.update(differing)
            self.example = self.example or record_id

    def effect(self, total: int, *, exact: bool) -> Effect:
        estimate, low, high = self.changing, self.changing, self.changing
        if not exact:
            share, error = self._share()
            estimate = round(share * total)
            low = max(math.floor((share - error) * total), self.changing)
            high = min(math.ceil((share + error) * total), total)
        return Effect(
            total=total,
            examined=self.examined,
            changing=self.changing,
            exact=exact,
            estimate=estimate,
            low=low,
            high=high,
            refused=self.refused,
            refusal=self.refusal,
            paths=dict(self.paths.most_common()),
            example=self.example,
        )

    def _share(self) -> tuple[float, float]:
        """Return the share of changing records and its margin of error.

        A ratio estimate with the places as clusters (Cochran, Sampling Techniques, 9.5). Where all records change or
        none does, the rule of three.
        """
        count = len(self.places)
        if not self.examined:
            return 0.0, 1.0
        share = self.changing / self.examined
        if share in (0.0, 1.0) or count < 2:
            return share, min(3 / count, 1.0)
        mean = self.examined / count
        spread = sum((place.changing - share * place.examined) ** 2 for place in self.places) / (count - 1)
        return share, _Z * math.sqrt(spread / count) / mean


def _field(side: Flat | SyncError, path: str) -> Any:
    return side.get(path, MISSING) if isinstance(side, dict) else MISSING


def _sent(subscriber: Subscriber, mapper: Mapper, record: Record, related: Related) -> Flat | SyncError:
    ours: Any = call_safely(lambda: our_side(subscriber, mapper, record, related, strict=True))
    if isinstance(ours, SyncError):
        return ours
    flat, data = ours
    refused = call_safely(subscriber.validate, nest(flat, onto=data))
    return refused if isinstance(refused, SyncError) else flat


def _count(connection: sa.Connection, subscriber: Subscriber) -> int:
    some = sa.select(sa.literal(1)).select_from(subscriber.records.table).limit(COUNTED).subquery()
    return int(connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one())


def _pages(connection: sa.Connection, subscriber: Subscriber) -> Iterator[dict[str, Record]]:
    """Yield all records in key order, page by page."""
    key, after = subscriber.records.key, None
    while True:
        page = _page(connection, subscriber, [] if after is None else [key > after], _PAGE)
        if not page:
            return
        yield page
        after = subscriber.records.key_of(list(page)[-1])


def _places(connection: sa.Connection, subscriber: Subscriber) -> Iterator[dict[str, Record]]:
    """Yield records at places spread evenly over the keys, in random order; with text keys the first records."""
    key = subscriber.records.key
    lowest, highest = connection.execute(sa.select(sa.func.min(key), sa.func.max(key))).one()
    if not isinstance(lowest, int):
        yield _page(connection, subscriber, [], _PLACES * _RECORDS_PER_PLACE)
        return
    stride = max((highest - lowest + 1) // _PLACES, 1)
    # Each place lies at random within its stretch, so that the sample does not follow a pattern in the keys.
    starts = [lowest + number * stride + random.randrange(stride) for number in range(_PLACES)]
    random.shuffle(starts)
    for start in starts:
        if page := _page(connection, subscriber, [key >= start], _RECORDS_PER_PLACE):
            yield page


def _page(connection: sa.Connection, subscriber: Subscriber, where: list[Any], size: int) -> dict[str, Record]:
    ids = subscriber.records.ids(connection, *where, limit=size)
    return subscriber.records.read_each(connection, ids)[0]  # what cannot be read has a dead letter of its own
