"""Calls: how many requests Stripe and Salesforce get for 1,000 changes, counted by the demo's systems."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa

from benchmarks.hub import Hub, Workbench
from benchmarks.records import customer
from benchmarks.report import Goal, Result, median
from benchmarks.scale import Scale
from models.catalogues import Customer
from models.ledger import Change, Link
from simulators.simulators import SalesforceSimulator, StripeSimulator
from subscribers.salesforce.subscriber import COLLECTION_SIZE

#: Records that change; and those that are edited several times each while the system is down.
COUNTS = (1_000, 100, 10)
QUICK_COUNTS = (20, 5, 3)

#: No scheduler: its polls read every minute, whether anything has changed or not.
PROCESSES = ("relay", "worker", "worker")

#: The hub's patience, shortened: how long it waits between two calls is not counted here.
PATIENCE = {"SWEEP_SECONDS": "0.5", "PROBE_MIN_SECONDS": "0.5", "PROBE_MAX_SECONDS": "1"}

#: Seconds between two reads of the ledger, and until waiting times out.
_PAUSE_SECONDS = 0.05
_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Calls:
    """Requests without logins: those that write, those that read, those that a system that was down refused."""

    writes: int
    reads: int
    refused: int


@dataclass(frozen=True)
class Counted:
    """One of the demo's systems. `requests` returns the methods and statuses of the calls since `forget`."""

    name: str
    options: dict[str, Any]
    requests: Callable[[], Sequence[tuple[str, int]]]
    forget: Callable[[], None]
    go_down: Callable[[], object]
    come_back: Callable[[], None]

    def environment(self) -> dict[str, str]:
        """The settings with which the hub connects to it."""
        return {f"{self.name.upper()}_{option.upper()}": str(value) for option, value in self.options.items()}

    def calls(self) -> Calls:
        """How many it got since `forget`."""
        done = [method == "GET" for method, status in self.requests() if status != 503]
        return Calls(done.count(False), done.count(True), len(self.requests()) - len(done))


@dataclass(frozen=True)
class Case:
    """Something that a program does. `most` are the write calls that each system should need at most, by its name."""

    key: str
    what: str
    work: Callable[[], None]
    most: dict[str, int]


def run(rounds: int, scale: Scale) -> Result:
    """Count what each kind of change costs."""
    records, often, edits = scale.of(COUNTS, COUNTS, QUICK_COUNTS)
    cases: dict[str, Case] = {}
    seen: dict[tuple[str, str], list[Calls]] = {}
    with Workbench() as bench, ExitStack() as stack:
        systems = [stack.enter_context(_salesforce()), stack.enter_context(_stripe())]
        values = dict(pair for one in systems for pair in one.environment().items())
        for _ in range(rounds):
            with bench.hub(systems=(), processes=PROCESSES, environment=PATIENCE | values) as hub:
                for case in _cases(hub, systems, records, often, edits):
                    cases[case.key] = case
                    settle(hub)
                    for one in systems:
                        one.forget()
                    case.work()
                    settle(hub)
                    for one in systems:
                        seen.setdefault((case.key, one.name), []).append(one.calls())
    settings = {"records": records, "edited_often": often, "edits_each": edits, "rounds": rounds, **PATIENCE}
    return _result(cases, seen, settings)


def _result(cases: dict[str, Case], seen: dict[tuple[str, str], list[Calls]], settings: dict[str, Any]) -> Result:
    rows, figures, goals = [], {}, []
    for (key, system), found in seen.items():
        case = cases[key]
        writes, reads, refused = (round(median([getattr(c, k) for c in found])) for k in vars(found[0]))
        rows.append((case.what, system, writes, reads, refused))
        figures[f"{system}_{key}"] = {"writes": writes, "reads": reads, "refused": refused}
        if system in case.most:
            aim, reached = f"<= {case.most[system]:,} write calls", writes <= case.most[system]
            goals.append(Goal(f"{system}: {case.what}", aim, f"{writes:,}", reached))
    columns = ("what", "system", "write calls", "read calls", "refused")
    return Result("calls", columns, rows, figures, settings, goals)


# --- what changes -----------------------------------------------------------------------------------


def _cases(hub: Hub, systems: Sequence[Counted], records: int, often: int, edits: int) -> Iterator[Case]:
    def create() -> None:
        with hub.database.write() as connection:
            connection.execute(sa.insert(Customer), [customer(number) for number in range(records)])

    def edit(*where: sa.ColumnElement[bool], **values: str) -> None:
        with hub.database.write() as connection:
            connection.execute(sa.update(Customer).where(*where).values(**values))

    def edit_each() -> None:
        for number in range(1, records + 1):
            edit(Customer.id == number, phone=f"+49 30 7{number:06d}")

    def edit_while_down() -> None:
        for one in systems:
            one.go_down()
        edit(Customer.id == 1, notes="The first edit")
        for one in systems:
            hub.wait_until(partial(_was_refused, one), f"{one.name} was not called", _TIMEOUT_SECONDS, _PAUSE_SECONDS)
        for turn in range(edits):
            for number in range(1, often + 1):
                edit(Customer.id == number, notes=f"Edit {turn} of {number}")
        for one in systems:
            one.come_back()

    in_lots = {"salesforce": -(-records // COLLECTION_SIZE), "stripe": records}
    yield Case("created", f"{records:,} records created in one transaction", create, in_lots)
    yield Case("updated_together", f"one UPDATE of {records:,} records", lambda: edit(city="Potsdam"), in_lots)
    yield Case("updated_each", f"{records:,} records updated, a commit each", edit_each, {"stripe": records})
    what = f"{edits} edits of each of {often} records while the system is down"
    yield Case("edited_while_down", what, edit_while_down, {"salesforce": 1, "stripe": often})


def _was_refused(system: Counted) -> bool:
    return system.calls().refused > 0


def settle(hub: Hub) -> None:
    """Wait until nothing is owed."""
    waiting = sa.select(sa.func.count()).select_from(Change).where(Change.relayed_at.is_(None))
    owed = sa.select(sa.func.count()).select_from(Link).where(Link.owed_change > Link.synced_change)

    def settled() -> bool:
        with hub.database.read() as connection:
            return not (connection.execute(waiting).scalar_one() or connection.execute(owed).scalar_one())

    hub.wait_until(settled, "some changes are still owed", _TIMEOUT_SECONDS, _PAUSE_SECONDS)


# --- the systems ------------------------------------------------------------------------------------


@contextmanager
def _salesforce() -> Iterator[Counted]:
    with SalesforceSimulator() as simulator:
        org = simulator.org
        yield Counted(
            "salesforce",
            simulator.options(),
            lambda: [(one.method, one.status) for one in org.journal.entries() if "/oauth2/" not in one.path],
            org.journal.clear,
            lambda: org.fail(1_000_000, path="/services/data/"),
            org.faults.clear,
        )


@contextmanager
def _stripe() -> Iterator[Counted]:
    with StripeSimulator() as simulator:
        stripe = simulator.stripe
        yield Counted(
            "stripe",
            simulator.options(),
            lambda: [(one.method, one.status) for one in stripe.journal],
            stripe.journal.clear,
            lambda: stripe.faults.fail(503, 10_000),
            stripe.faults.clear,
        )
