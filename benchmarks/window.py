"""Window: how long a record is open to an edit that ours overwrites, from the look to the write, and what looks cost.

A shop with a JSON REST API is looked at in each way that a subscriber may declare. The shop's journal has the times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from benchmarks.calls import settle
from benchmarks.hub import Hub, Workbench
from benchmarks.records import customer
from benchmarks.report import Result, median, percentile
from benchmarks.scale import Scale
from models.base import utcnow
from models.catalogues import Customer
from models.ledger import Cursor
from simulators.faults import MAX_TIMES, Call
from simulators.rest import RestSystem

#: Records of one transaction, and records that are edited one after the other.
COUNTS = (100, 20)
QUICK_COUNTS = (5, 2)

#: Seconds that each call to the shop takes.
CALL_SECONDS = 0.02

PROCESSES = ("relay", "worker")

_DECLARATION = """
[systems.shop]

[systems.shop.subscribers.customer]
path = "/contacts"
look_limit = 1000
{options}

[systems.shop.subscribers.customer.field_to_data]
name = "name"
email = "email"
phone = "phone"
"""


@dataclass(frozen=True)
class Way:
    """A way to see edits. `shows(call, id)`: whether this read shows this record; None: the write itself compares."""

    what: str
    options: str
    shows: Callable[[Call, str], bool] | None
    is_polled: bool = False


def _shows_list(call: Call, id: str) -> bool:
    return call.path == "/contacts" and ("ids" not in call.params or id in call.params["ids"].split(","))


def _shows_one(call: Call, id: str) -> bool:
    return call.path == f"/contacts/{id}"


WAYS = (
    Way("poll", "poll_seconds = 60", _shows_list, is_polled=True),
    Way("list by ids", 'ids_parameter = "ids"', _shows_list),
    Way("fetch of each record", "", _shows_one),
    Way("conditional write", 'version_header = "ETag"', None),
)


@dataclass(frozen=True)
class Seen:
    """What one way needed for the same edits: milliseconds from look to write, and calls."""

    windows: list[float]
    reads: int
    writes: int


def run(rounds: int, scale: Scale) -> Result:
    """Measure each way with a batch and with single edits."""
    together, single = scale.of(COUNTS, COUNTS, QUICK_COUNTS)
    seen: dict[tuple[str, str], list[Seen]] = {}
    with Workbench() as bench:
        for _ in range(rounds):
            for way in WAYS:
                for kind, one in _measure(bench, way, together, single).items():
                    seen.setdefault((way.what, kind), []).append(one)
    settings = {"batch": together, "single": single, "call_ms": CALL_SECONDS * 1000, "rounds": rounds}
    return _result(seen, settings)


def _result(seen: dict[tuple[str, str], list[Seen]], settings: dict[str, Any]) -> Result:
    rows, figures = [], {}
    for (what, kind), found in seen.items():
        windows = [window for one in found for window in one.windows]
        middle, most = (round(value, 1) for value in (median(windows), percentile(windows, 1.0)))
        reads, writes = (round(median([getattr(one, name) for one in found])) for name in ("reads", "writes"))
        rows.append((what, kind, middle, most, reads, writes))
        name = f"{what}_{kind}".replace(" ", "_")
        figures[name] = {"median_ms": middle, "longest_ms": most, "reads": reads, "writes": writes}
    return Result(
        "window", ("look by", "edits", "median, ms", "longest, ms", "reads", "writes"), rows, figures, settings
    )


def _measure(bench: Workbench, way: Way, together: int, single: int) -> dict[str, Seen]:
    with ExitStack() as stack:
        shop = stack.enter_context(RestSystem())
        file = bench.folder / "systems.toml"
        file.write_text(_DECLARATION.format(options=way.options))
        environment = {"SYNCFLOW_SYSTEMS": str(file), "SHOP_URL": shop.url, "SHOP_TOKEN": shop.token}
        hub = stack.enter_context(bench.hub(systems=(), processes=PROCESSES, environment=environment))
        with hub.database.write() as connection:
            connection.execute(sa.insert(Customer), [customer(number) for number in range(together)])
        settle(hub)
        if way.is_polled:  # as after its first poll
            with hub.database.write() as connection:
                position = {"since": utcnow().isoformat()}
                connection.execute(sa.insert(Cursor).values(subscriber="shop.customer", position=position))
        shop.faults.delay(CALL_SECONDS, MAX_TIMES)
        found = {}
        for kind, batches in (
            ("together", [[*range(1, together + 1)]]),
            ("single", [[n] for n in range(1, single + 1)]),
        ):
            began = shop.journal.last
            for batch in batches:
                _edit(hub, batch, kind)
            found[kind] = _seen(way, shop.journal.calls(since=began))
        return found


def _edit(hub: Hub, ids: Sequence[int], text: str) -> None:
    with hub.database.write() as connection:
        connection.execute(sa.update(Customer).where(Customer.id.in_(ids)).values(phone=f"+49 30 {text}"))
    settle(hub)


def _seen(way: Way, calls: Sequence[Call]) -> Seen:
    reads = [call for call in calls if call.method == "GET"]
    writes = [call for call in calls if call.method == "PATCH"]
    windows = [_window(way, reads, write) for write in writes]
    return Seen(windows, len(reads), len(writes))


def _window(way: Way, reads: Sequence[Call], write: Call) -> float:
    """Return the milliseconds between a write and the last look at its record."""
    if way.shows is None:
        return 0.0  # the system compares the version in the same step as it writes
    id = write.path.rpartition("/")[2]
    look = max(read.time for read in reads if read.n < write.n and way.shows(read, id))
    return (write.time - look) * 1000
