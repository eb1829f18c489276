"""`make bench-volume`: does work cost more because the ledger is large?

The same work runs in turn on an empty ledger, on one with a million links and ten million deliveries, and on one with
as many open rows but almost no history. The work is a sweep that finds nothing, a newly computed overview, and
delivering customers to a system that answers immediately, all in this process: written to the database (which
captures), routed, delivered; first new customers, then edits of them, and the edits once more. On the large ledger
the edited customers are spread over the whole table. `benchmarks.volume_processes` repeats fan-out, latency and
capture on these ledgers.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import sqlalchemy as sa

from benchmarks.hub import Workbench
from benchmarks.ledgers import KINDS, Shop, conduct, empty, left_as_it_was, seeded
from benchmarks.report import Goal, Result, interleaved, median, postgres_settings
from benchmarks.scale import Scale
from benchmarks.seeding import FULL, QUICK, SHORT, Size
from benchmarks.volume_processes import AIM_RATIO, Again, again
from conductor import Conductor
from models.catalogues import Customer
from models.ledger import Link
from models.session import Database

AIM_SWEEP_MS = 50

#: Customers delivered in one run and then edited; changes of one transaction; repetitions of sweep and overview.
_RECORDS = 4000
_SHORT_RECORDS = 1000
_QUICK_RECORDS = 200
_TRANSACTION_RECORDS = 20
_REPETITIONS = 10

_LEDGERS = ("empty", "open", "large")


@dataclass
class Ledger:
    """A ledger, a hub with all systems, and one with a single one, and which customers are edited."""

    database: Database
    everyone: Conductor
    single: Conductor
    news: list[tuple[str, list[str]]]
    #: Records that are linked and owed nothing, in no order; on a ledger that begins empty, those brought last.
    known: list[int] = field(default_factory=list)


def run(rounds: int, scale: Scale) -> Result:
    """Measure all ledgers of both databases in turn."""
    records, size = scale.of(_RECORDS, _SHORT_RECORDS, _QUICK_RECORDS), scale.of(FULL, SHORT, QUICK)
    with ExitStack() as stack:
        ledgers: dict[tuple[str, str], Ledger] = {}
        for kind in KINDS:
            ledgers[kind, "empty"] = _ledger(stack.enter_context(empty(kind)))
            ledgers[kind, "open"] = _ledger(stack.enter_context(seeded(kind, _without_past(size), keep=False)))
            large = stack.enter_context(seeded(kind, size, keep=scale is not Scale.QUICK))
            stack.enter_context(left_as_it_was(large))
            ledgers[kind, "large"] = _ledger(large)
            ledgers[kind, "large"].known = _scattered(large)
        candidates = {at: partial(_measure, ledger, records) for at, ledger in ledgers.items()}
        interleaved(candidates, 1)  # what a process does once
        seen = interleaved(candidates, rounds)
        with Workbench() as bench:
            filled = {kind: ledgers[kind, "large"].database for kind in KINDS}
            fleet = again(bench, filled, rounds, scale)
            settings: dict[str, object] = {**postgres_settings(bench.postgres_server)}
    settings |= {"links": size.links, "deliveries": size.deliveries, "records": records}
    return _result(seen, fleet, settings | {"rounds": len(next(iter(seen.values())))})


def _without_past(size: Size) -> Size:
    """As much that is open, over a tenth of the records, and nearly no history."""
    records, little = max(size.records // 10, QUICK.records), min(size.inbox, 10 * QUICK.inbox)
    return replace(
        size, records=records, links=records, deliveries=little, changes=little, inbox=little, audit=QUICK.audit,
        closed_letters=QUICK.closed_letters, closed_conflicts=QUICK.closed_conflicts,
    )  # fmt: skip


def _ledger(database: Database) -> Ledger:
    everyone, _ = conduct(database)
    single, heard = conduct(database, Shop)
    return Ledger(database, everyone, single, heard.news)


def _scattered(database: Database) -> list[int]:
    """Customers the shop has and is owed nothing of, in no order."""
    settled = (Link.subscriber == "shop.customer", Link.owed_change <= Link.synced_change, Link.open_conflicts == 0)
    with database.read() as connection:
        found = [int(record) for record in connection.scalars(sa.select(Link.record_id).where(*settled))]
    random.Random(1).shuffle(found)
    return found


def _measure(ledger: Ledger, records: int) -> dict[str, float]:
    """Do all of the work once; return milliseconds, of one query or per thousand records."""
    values = {
        "a sweep that finds nothing, ms": _look(ledger.everyone.sweep),
        "a newly computed overview, ms": _look(ledger.everyone.reports.overview),
        "the overview's version, ms": _look(ledger.everyone.reports.overview_version),
    }
    made: list[int] = []

    def create(connection: sa.Connection, numbers: Sequence[int]) -> None:
        rows = [{"name": f"New Customer {n}", "email": f"new{n}@example.com", "city": "Bath"} for n in numbers]
        made.extend(connection.execute(sa.insert(Customer).returning(Customer.id), rows).scalars())

    def edit(connection: sa.Connection, ids: Sequence[int]) -> None:
        city = f"York {time.monotonic_ns()}"
        connection.execute(sa.update(Customer).where(Customer.id.in_(ids)).values(city=city))

    values |= _deliver(ledger, "created", create, range(records))
    chosen, ledger.known = ledger.known[:records], ledger.known[records:]
    values |= _deliver(ledger, "edited", edit, chosen or made)
    # What is far apart may have to be read from the disk first. Now it has been.
    values |= _deliver(ledger, "edited again", edit, chosen or made)
    return values


def _look(work: Callable[[], object]) -> float:
    took = []
    for _ in range(_REPETITIONS):
        began = time.perf_counter()
        work()
        took.append((time.perf_counter() - began) * 1000)
    return median(took)


def _deliver(
    ledger: Ledger, what: str, write: Callable[[sa.Connection, Sequence[int]], None], numbers: Sequence[int]
) -> dict[str, float]:
    """Write, route and deliver these: milliseconds per thousand."""
    values: dict[str, float] = {}

    @contextmanager
    def clocked(part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        values[f"{what}, {part}, ms per thousand"] = (time.perf_counter() - began) * 1_000_000 / len(numbers)

    ledger.news.clear()
    with clocked("captured"):
        for start in range(0, len(numbers), _TRANSACTION_RECORDS):
            with ledger.database.write() as connection:
                write(connection, numbers[start : start + _TRANSACTION_RECORDS])
    with clocked("routed"):
        while ledger.single.relay():
            pass
    announced = [record for _catalogue, records in ledger.news for record in records]
    with clocked("delivered"):
        for _catalogue, records in ledger.news:
            ledger.single.deliver("shop.customer", records)
    if len(announced) != len(numbers):
        raise AssertionError(f"{len(announced)} records were announced, and {len(numbers)} were written")
    with ledger.database.read() as connection:
        ours = (Link.subscriber == "shop.customer", Link.record_id.in_(announced))
        owed = sa.select(sa.func.count(Link.id)).where(*ours, Link.owed_change > Link.synced_change)
        if left := connection.execute(owed).scalar_one():
            raise AssertionError(f"{left} of {len(announced)} records were not delivered")
    values[f"{what}, total, ms per thousand"] = sum(values.values())
    return values


def _result(seen: dict[tuple[str, str], list[dict[str, float]]], fleet: Again, settings: dict[str, object]) -> Result:
    names = list(next(iter(seen.values()))[0])
    figures = {
        kind: {
            name: {ledger: median([measured[name] for measured in seen[kind, ledger]]) for ledger in _LEDGERS}
            for name in names
        }
        for kind in KINDS
    }
    rows, goals = [], []
    for name in names:
        for kind in KINDS:
            found = figures[kind][name]
            found["ratio"] = round(found["large"] / found["empty"], 2)
            rows.append((name, kind, *(round(value, 2) for value in found.values())))
    for what in fleet.figures[KINDS[0]]:
        for kind in KINDS:
            found = fleet.figures[kind][what]
            rows.append((what, kind, round(found["empty"], 2), "", round(found["large"], 2), found["ratio"]))
            figures[kind][what] = found
    for kind in KINDS:
        sweep = figures[kind][names[0]]["large"]
        goals.append(Goal(f"a sweep that finds nothing, {kind}", f"< {AIM_SWEEP_MS} ms", f"{sweep:.1f} ms",
                          sweep < AIM_SWEEP_MS))  # fmt: skip
        for name in (names[0], names[1], *(name for name in names if "all of it" in name)):
            ratio = figures[kind][name]["ratio"]
            goals.append(Goal(f"{name.rpartition(',')[0]}, {kind}: large to empty", f"<= {AIM_RATIO}", f"{ratio:.2f}",
                              ratio <= AIM_RATIO))  # fmt: skip
        # What the overview counts is what is open, which the empty ledger has nothing of.
        made = figures[kind][names[1]]
        ratio = made["large"] / made["open"]
        goals.append(Goal(f"{names[1].rpartition(',')[0]}, {kind}: large to as much open", f"<= {AIM_RATIO}",
                          f"{ratio:.2f}", ratio <= AIM_RATIO))  # fmt: skip
    return Result(
        "volume",
        ("work", "database", *_LEDGERS, "large to empty"),
        rows,
        figures,
        settings,
        [*goals, *fleet.goals],
    )
