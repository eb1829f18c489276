"""The overview reports correct sync state in mixed situations, and its numbers are exact and cheap to compute."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from conductor import Conductor, OverviewVersion
from conductor.reports.overview import overview
from conductor.reports.overview_version import ALIVE_SECONDS, overview_version
from conductor.reports.throughput import THROUGHPUT_SPANS
from conductor.throughput_counter import MINUTE, MINUTE_DAYS
from models.ledger import (
    Change,
    Conflict,
    Cursor,
    DeadLetter,
    Delivery,
    Link,
    Process,
    Schedule,
    System,
    Throughput,
)
from models.session import Database
from panel.overview_cache import OverviewCache
from subscribers.base import Subscriber
from tests.support.fakes import Clock, FakeSubscriber, FakeSystem, RecordingPublisher

DELIVERY = {"subscriber": "crm.customer", "record_id": "1", "direction": "out", "operation": "update"}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hub(database: Database, clock: Clock) -> Conductor:
    """Return a conductor with two healthy systems and one process of each kind."""
    subscribers: dict[str, Subscriber] = {}
    for name in ("crm", "shop"):
        kind: type[FakeSubscriber] = type(name.title(), (FakeSubscriber,), {"system": name})
        made = kind(FakeSystem(name, clock))
        subscribers[made.name()] = made
    conductor = Conductor(database, subscribers, RecordingPublisher(), clock=clock)
    conductor.prepare()
    for process in ("relay", "worker", "scheduler"):
        put(database, Process, name=process, kind=process, started_at=clock(), last_seen_at=clock())
    return conductor


def put(database: Database, table: Any, **values: Any) -> None:
    with database.write() as connection:
        connection.execute(sa.insert(table).values(**values))


def change(database: Database, table: Any, condition: Any, **values: Any) -> None:
    with database.write() as connection:
        assert connection.execute(sa.update(table).where(condition).values(**values)).rowcount


def owe(database: Database, subscriber: str, record: str, since: datetime, **values: Any) -> None:
    put(database, Link, subscriber=subscriber, record_id=record, owed_change=1, owed_since=since, **values)


# --- the answer in one sentence --------------------------------------------------------------------------


def test_a_hub_in_sync_has_no_problems(hub: Conductor) -> None:
    overview = hub.reports.overview()
    assert (overview.severity, overview.headline, overview.troubles) == ("good", "Everything is in sync.", [])


def test_pending_records_are_no_problem(hub: Conductor, database: Database, clock: Clock) -> None:
    owe(database, "crm.customer", "1", clock() - timedelta(seconds=3))
    overview = hub.reports.overview()
    assert (overview.severity, overview.headline, overview.moving) == ("busy", "Catching up.", 1)


def test_a_paused_system_with_nothing_pending_is_reported_as_paused(hub: Conductor) -> None:
    hub.systems.pause("crm", "ada@example.com", "their maintenance")
    overview = hub.reports.overview()
    assert (overview.severity, overview.headline) == ("busy", "In sync so far, but crm is paused.")
    assert "ada@example.com: their maintenance" in overview.troubles[0].what


def test_several_problems_at_once_are_all_reported(hub: Conductor, database: Database, clock: Clock) -> None:
    old, now = clock() - timedelta(minutes=9), clock()
    probe = now + timedelta(seconds=30)
    change(database, System, System.name == "crm", down_since=old, down_reason="refused", failures=3, probe_at=probe)
    owe(database, "crm.customer", "1", old)
    owe(database, "shop.customer", "2", now, attempts=2)
    put(database, DeadLetter, subscriber="crm.customer", error="Reject", fingerprint="f", message="m", at=old)
    link = {"link_id": 1, "subscriber": "shop.customer", "record_id": "2", "path": "email"}
    put(database, Conflict, **link)
    put(database, Cursor, subscriber="shop.customer", failing_since=old, result="401 Unauthorized")
    change(database, Process, Process.kind == "relay", last_seen_at=now - timedelta(seconds=ALIVE_SECONDS))
    overview = hub.reports.overview()
    assert overview.severity == "bad"
    assert overview.headline == (
        "Not everything is in sync: no relay is running, crm is down, the poll of shop.customer fails, "
        "1 dead letter needs an operator and 1 conflict needs a decision."
    )
    assert [(t.kind, t.since) for t in overview.troubles] == [
        ("process", now - timedelta(seconds=ALIVE_SECONDS)),
        ("down", old),
        ("poll", old),
        ("dead", old),
        ("conflict", None),
    ]
    assert overview.troubles[1].next_at == probe
    assert (overview.held, overview.moving, overview.oldest) == (1, 1, old)
    assert {s.name: s.state for s in overview.subscribers} == {"crm.customer": "down", "shop.customer": "failing"}
    assert overview.total("failing") == 1


def test_the_oldest_pending_record_is_found_in_any_subscriber(hub: Conductor, database: Database, clock: Clock) -> None:
    owe(database, "crm.customer", "1", clock())
    owe(database, "crm.customer", "2", clock() - timedelta(days=2))
    assert hub.reports.overview().oldest == clock() - timedelta(days=2)


def test_a_standalone_process_counts_as_every_kind(hub: Conductor, database: Database, clock: Clock) -> None:
    with database.write() as connection:
        connection.execute(sa.delete(Process))
    assert "no relay, worker or scheduler is running" in hub.reports.overview().headline
    put(database, Process, name="one", kind="standalone", started_at=clock(), last_seen_at=clock())
    assert hub.reports.overview().troubles == []


@pytest.mark.parametrize("what", ["change", "delivery", "dead letter", "pause", "poll", "process", "job", "count"])
def test_the_version_changes_with_what_is_shown(hub: Conductor, database: Database, clock: Clock, what: str) -> None:
    put(database, Change, catalogue="customer", record_id="1", operation="created", at=clock())
    put(database, Cursor, subscriber="crm.customer")
    put(database, Delivery, **DELIVERY, outcome="delivered", at=clock())
    before = hub.reports.overview_version().version
    assert hub.reports.overview_version().version == before
    if what == "change":
        change(database, Change, sa.true(), relayed_at=clock())
    elif what == "delivery":
        put(database, Delivery, **DELIVERY, outcome="failed", at=clock())
    elif what == "dead letter":
        put(database, DeadLetter, subscriber="crm.customer", error="Reject", fingerprint="f", message="m", at=clock())
    elif what == "pause":
        hub.systems.pause("crm", "ada@example.com", "maintenance")
    elif what == "poll":
        change(database, Cursor, sa.true(), failing_since=clock())
    elif what == "process":
        change(database, Process, Process.kind == "relay", last_seen_at=clock() - timedelta(hours=1))
    elif what == "job":
        change(database, Schedule, sa.true(), finished_at=clock())
    else:
        hub.throughput.count()
    assert hub.reports.overview_version().version != before


# --- deliveries per minute -------------------------------------------------------------------------------


def counted(database: Database, seconds: int = MINUTE) -> dict[str, int]:
    """Return the sum of each counter."""
    columns = ("delivered", "received", "failed", "dead")
    sums = [sa.func.coalesce(sa.func.sum(getattr(Throughput, name)), 0) for name in columns]
    with database.read() as connection:
        row = connection.execute(sa.select(*sums).where(Throughput.seconds == seconds)).one()
    return {name: int(value) for name, value in zip(columns, row, strict=True) if value}


def test_each_delivery_is_counted_once_in_its_minute_and_hour(hub: Conductor, database: Database, clock: Clock) -> None:
    begun = clock()
    for outcome in ("delivered", "delivered", "unchanged", "skipped", "failed", "dead"):
        put(database, Delivery, **DELIVERY, outcome=outcome, at=clock())
        clock.tick(20)
    put(database, Delivery, **DELIVERY | {"direction": "in"}, outcome="applied", at=clock())
    assert hub.throughput.count() == 7
    assert hub.throughput.count() == 0
    expected = {"delivered": 2, "received": 1, "failed": 1, "dead": 1}
    assert counted(database) == counted(database, 3600) == expected
    put(database, Delivery, **DELIVERY, outcome="delivered", at=clock())
    hub.throughput.count()
    assert counted(database) == expected | {"delivered": 3}
    clock.tick(60)
    with database.read() as connection:
        series = hub.reports.throughput.series(connection, THROUGHPUT_SPANS["1h"], "crm.customer")
        assert hub.reports.throughput.by_subscriber(connection, THROUGHPUT_SPANS["1h"])["crm.customer"] == series
        week = hub.reports.throughput.series(connection, THROUGHPUT_SPANS["7d"])
        assert sum(week.counts["delivered"]) == 0  # the current hour is not complete
    minute = series.at.index(int(begun.timestamp()))
    assert series.counts["delivered"][minute : minute + 3] == [2, 0, 1]
    assert series.counts["failed"][minute : minute + 3] == [0, 1, 0]


@pytest.mark.parametrize("migrated_url", [pytest.param("postgresql", marks=pytest.mark.services)], indirect=True)
def test_a_row_that_appears_late_is_counted(hub: Conductor, database: Database, clock: Clock) -> None:
    """A transaction allocates its id first and commits last, while another transaction is still open."""
    row = sa.insert(Delivery).values(**DELIVERY, outcome="delivered", at=clock())
    with database.engine.connect() as slow, database.engine.connect() as another:
        slow.execute(row)
        put(database, Delivery, **DELIVERY, outcome="delivered", at=clock())
        assert [hub.throughput.count() for _ in range(3)] == [0, 0, 0]
        another.execute(row)
        slow.commit()
        assert hub.throughput.count() == 2
        another.commit()
    assert hub.throughput.count() == 1
    assert counted(database) == {"delivered": 3}


def test_old_minutes_are_removed_and_their_hours_are_kept(hub: Conductor, database: Database, clock: Clock) -> None:
    put(database, Delivery, **DELIVERY, outcome="delivered", at=clock())
    hub.throughput.count()
    clock.tick((MINUTE_DAYS * 24 + 1) * 3600)
    hub.schedule.retention.remove_old()
    assert (counted(database), counted(database, 3600)) == ({}, {"delivered": 1})


def test_a_series_has_a_point_for_every_interval(hub: Conductor, database: Database) -> None:
    with database.read() as connection:
        for span in THROUGHPUT_SPANS.values():
            series = hub.reports.throughput.series(connection, span)
            assert len(series.at) == len(series.counts["dead"]) == span.length // span.step <= 360
            assert all(datetime.fromtimestamp(at, UTC) < hub.context.clock() for at in series.at)


# --- schedules --------------------------------------------------------------------------------------------


def test_a_job_is_run_paused_and_resumed_by_an_operator(hub: Conductor, database: Database, clock: Clock) -> None:
    assert [due.job for due in hub.schedule.claim()] == ["tidy"]
    assert hub.schedule.claim() == []
    hub.schedule.run_soon("tidy", "ada@example.com")
    assert [due.job for due in hub.schedule.claim()] == ["tidy"]
    hub.schedule.pause("tidy", "ada@example.com")
    with pytest.raises(ValueError, match="resume it first"):
        hub.schedule.run_soon("tidy", "ada@example.com")
    clock.tick(24 * 3600)
    assert hub.schedule.claim() == []
    hub.schedule.resume("tidy", "ada@example.com")
    assert [due.job for due in hub.schedule.claim()] == ["tidy"]
    for work in (hub.schedule.pause, hub.schedule.run_soon):
        with pytest.raises(KeyError):
            work("no such job", "ada@example.com")


# --- what an open page costs ------------------------------------------------------------------------------


def test_an_expensive_overview_is_computed_rarely_for_open_pages_and_immediately_on_request(hub: Conductor) -> None:
    now, made, versions = [0.0], [], iter(range(100))

    def make(seen: OverviewVersion) -> Any:
        now[0] += 0.5
        made.append(now[0])
        return hub.reports.overview(seen)

    overview_cache = OverviewCache(
        lambda: replace(hub.reports.overview_version(), version=str(next(versions))), make, clock=lambda: now[0]
    )
    version, overview = overview_cache.get(fresh=True)
    now[0] += 40
    assert overview_cache.get(fresh=False) == (version, overview) and len(made) == 1
    assert overview_cache.get(fresh=True)[0] != version and len(made) == 2
    now[0] += 60  # computing took 0.5 s, which is 1 % of 50 s
    overview_cache.get(fresh=False)
    assert len(made) == 3


def test_an_overview_is_computed_once_for_each_version(hub: Conductor) -> None:
    made = []

    def make(seen: OverviewVersion) -> Any:
        made.append(seen.version)
        return hub.reports.overview(seen)

    overview_cache = OverviewCache(lambda: replace(hub.reports.overview_version(), version="same"), make)
    assert overview_cache.get(fresh=True) == overview_cache.get(fresh=False) == overview_cache.get(fresh=True)
    assert made == ["same"]


def test_counting_reads_only_the_rows_it_counts(hub: Conductor, database: Database) -> None:
    if not database.is_sqlite:
        return
    plans: list[str] = []
    with database.read() as connection:

        def explain(_connection: Any, cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
            if statement.startswith("SELECT"):
                raw: Any = connection.connection.driver_connection
                plans.extend(row[3] for row in raw.execute("EXPLAIN QUERY PLAN " + statement, parameters))

        sa.event.listen(connection, "before_cursor_execute", explain)
        overview(hub.context, connection, overview_version(hub.context, connection))
    small = ("system", "capture_state", "process", "schedule", "cursor", "throughput_watermark")
    read_whole = [
        p for p in plans if p.startswith("SCAN") and not p.split()[1].startswith(("(", "anon_")) and "INDEX" not in p
    ]
    assert plans and not [p for p in read_whole if p.split()[1] not in (*small, "CONSTANT")]
