"""What a mapping would do before it is saved: on one record, and on how many of them.

Everything here only reads. A small catalogue is looked at whole; of a large one a sample is taken,
spread over the table, within a bounded time, and the answer says how sure it is.
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
from conductor.links.relations import Related, Relations, our_side
from conductor.mappings.store import MappingRefused, Mappings
from conductor.unsubscriptions import in_force
from i18n import gettext
from models.catalogues import Record
from models.ledger import Link
from subscribers.base import Subscriber
from subscribers.calls import call_safely
from subscribers.errors import SyncError
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.paths import MISSING, nest
from subscribers.mapping.validation import check_rows
from subscribers.mapping.values import Flat, same

#: A catalogue of up to this many records is looked at whole.
EXACT = 5000
#: A sample: so many places spread over the table, and records in a row at each.
_PLACES, _AT_EACH = 100, 20
_PAGE = 500
#: Seconds one count may take; what was looked at by then is the sample.
_BUDGET = 3.0
#: Tables are counted so far.
COUNTED = 1_000_000
#: Of a normal distribution: 95 % lie within.
_Z = 1.96


@dataclass(frozen=True)
class Preview:
    """One record through two mappings. `before` and `after` are flat payloads, or what refuses them."""

    record_id: str
    before: Flat | SyncError
    after: Flat | SyncError
    #: In words, what else matters: not linked yet, unwanted, unsubscribed.
    notes: list[str] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """All external fields of both."""
        flats = [side for side in (self.before, self.after) if isinstance(side, dict)]
        return list(dict.fromkeys(path for flat in flats for path in flat))

    def sides(self, path: str) -> tuple[Any, Any]:
        """The field before and after; MISSING where it is not sent."""
        return tuple(s.get(path, MISSING) if isinstance(s, dict) else MISSING for s in (self.before, self.after))  # type: ignore[return-value]

    def differs(self, path: str) -> bool:
        """Whether it would be sent with another value, or for the first or the last time."""
        one, other = self.sides(path)
        return (one is MISSING) is not (other is MISSING) or not same(one, other)


@dataclass(frozen=True)
class Effect:
    """On how many records a mapping would send something else than the one in force."""

    #: Records in the catalogue, counted up to `COUNTED`.
    total: int
    looked: int
    changing: int
    #: Whether all records were looked at; otherwise `low` and `high` bound the estimate with 95 % confidence.
    exact: bool
    estimate: int
    low: int
    high: int
    #: Records that go through today and would be refused, and the words for the first.
    refused: int
    refusal: str | None
    #: External field -> how many of those looked at differ in it.
    paths: dict[str, int]
    #: A record that would change, to look at.
    example: str | None


class Previews:
    """Tries mappings on records."""

    def __init__(self, context: Context, mappings: Mappings, relations: Relations) -> None:
        self.context = context
        self.mappings = mappings
        self.relations = relations

    def record(self, name: str, rows: list[dict[str, Any]], record_id: str) -> Preview | None:
        """One record through the mapping in force and through these rows; None if there is no such record.

        Raises:
          MappingRefused: something in the rows is wrong.
        """
        subscriber = self.context.subscribers[name]
        after = _mapper(subscriber, rows)
        with self.context.database.read() as connection:
            before = self._in_force(connection, subscriber)
            try:
                record = subscriber.records.read(connection, [record_id]).get(record_id)
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
        """How many records these rows would change, within some seconds.

        Raises:
          MappingRefused: something in the rows is wrong.
        """
        subscriber = self.context.subscribers[name]
        after = _mapper(subscriber, rows)
        tally = _Tally()
        deadline = time.monotonic() + _BUDGET
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
            notes.append(gettext("{name} does not want this record: nothing of it is sent.", name=name))
        elif link is None or link.external_id is None or link.unlinked_at is not None:
            words = gettext(
                "It is not in {system} so far: it would be created with all of this.", system=subscriber.system
            )
            notes.append(words)
        targets = (subscriber.system, name)
        for rule in in_force(connection, targets, [record_id], self.context.clock()):
            if rule.covers("update", record_id) or rule.covers("create", record_id):
                notes.append(f"{rule.words[0].upper()}{rule.words[1:]}.")
        return notes


class _Tally:
    """Counts records, and by place of a sample, so that neighbours that are alike do not feign certainty."""

    def __init__(self) -> None:
        self.looked = self.changing = self.refused = 0
        self.refusal: str | None = None
        self.example: str | None = None
        self.paths: Counter[str] = Counter()
        self.places: list[list[int]] = []

    def begin_place(self) -> None:
        self.places.append([0, 0])

    def add(
        self, subscriber: Subscriber, record_id: str, record: Record, before: Mapper, after: Mapper, related: Related
    ) -> None:
        self.looked += 1
        place = self.places[-1]
        place[0] += 1
        if call_safely(subscriber.wants, record) is not True:
            return
        old, new = (_sent(subscriber, mapper, record, related) for mapper in (before, after))
        if isinstance(new, SyncError):
            if not isinstance(old, SyncError):
                self.refused += 1
                self.refusal = self.refusal or f"{subscriber.records.name} {record_id}: {new}"
            return
        known = {} if isinstance(old, SyncError) else old
        # What is no longer mapped stays there as it is: only what is sent anew or differently counts.
        differing = [path for path, value in new.items() if path not in known or not same(value, known[path])]
        if differing:
            self.changing += 1
            place[1] += 1
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
            looked=self.looked,
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
        """The share of changing records, and how far it may be off: a ratio estimate over places as clusters
        (Cochran, Sampling Techniques, 9.5); where all or none of them change, the rule of three."""
        count = len(self.places)
        if not self.looked:
            return 0.0, 1.0
        share = self.changing / self.looked
        if share in (0.0, 1.0) or count < 2:
            return share, min(3 / count, 1.0)
        mean = self.looked / count
        spread = sum((hits - share * size) ** 2 for size, hits in self.places) / (count - 1)
        return share, _Z * math.sqrt(spread / count) / mean


def _mapper(subscriber: Subscriber, rows: list[dict[str, Any]]) -> Mapper:
    fields, problems = check_rows(rows, subscriber.records)
    if problems:
        raise MappingRefused(problems)
    return Mapper(subscriber.records, fields)


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
    """All records in key order, page by page."""
    key, after = subscriber.records.key, None
    while True:
        page = _page(connection, subscriber, [] if after is None else [key > after], _PAGE)
        if not page:
            return
        yield page
        after = subscriber.records.key_of(list(page)[-1])


def _places(connection: sa.Connection, subscriber: Subscriber) -> Iterator[dict[str, Record]]:
    """Records at places spread evenly over the keys, in random order; with a key of text, the first ones."""
    key = subscriber.records.key
    lowest, highest = connection.execute(sa.select(sa.func.min(key), sa.func.max(key))).one()
    if not isinstance(lowest, int):
        yield _page(connection, subscriber, [], _PLACES * _AT_EACH)
        return
    stride = max((highest - lowest + 1) // _PLACES, 1)
    # Chance decides where within its stretch a place lies, so that no rhythm of the keys is met.
    starts = [lowest + number * stride + random.randrange(stride) for number in range(_PLACES)]
    random.shuffle(starts)
    for start in starts:
        if page := _page(connection, subscriber, [key >= start], _AT_EACH):
            yield page


def _page(connection: sa.Connection, subscriber: Subscriber, where: list[Any], size: int) -> dict[str, Record]:
    key = subscriber.records.key
    found = connection.execute(sa.select(key).where(*where).order_by(key).limit(size)).scalars()
    return subscriber.records.read(connection, [str(value) for value in found])
