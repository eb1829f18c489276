"""Periodic jobs run exactly once per slot with any number of schedulers; retention removes old rows."""

from __future__ import annotations

import queue
import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import dramatiq
import pytest
import sqlalchemy as sa

from broker import LocalFanout
from conductor import Conductor
from conductor.policy import Policy
from conductor.schedule import TIDY
from models.ledger import AuditEntry, Change, Conflict, DeadLetter, Delivery, Inbox, JobRun, Process, Schedule
from models.session import Database
from tests.support.fakes import Clock, FakeSubscriber, FakeSystem, RecordingPublisher
from workers.actors import register
from workers.scheduler import TickScheduler

JOB = "poll crm.customer"


def conduct(database: Database, clock: Clock, poll_seconds: int | None = 60) -> Conductor:
    class Crm(FakeSubscriber):
        system = "crm"

    Crm.poll_seconds = poll_seconds
    crm = Crm(FakeSystem("crm", clock))
    conductor = Conductor(database, {crm.name(): crm}, RecordingPublisher(), clock=clock)
    conductor.prepare()
    return conductor


def polls(conductor: Conductor) -> int:
    """Return how many polls were published since the last call."""
    published, conductor.context.publisher.published[:] = list(conductor.context.publisher.published), []  # type: ignore[attr-defined]
    return sum(what == JOB for what, _ in published)


def set_job(database: Database, job: str = JOB, **values: Any) -> None:
    with database.write() as c:
        c.execute(sa.update(Schedule).where(Schedule.job == job).values(**values))


def test_each_minute_is_polled_once_by_two_schedulers(database: Database) -> None:
    clock = Clock()
    schedulers = [conduct(database, clock) for _ in range(2)]
    for _ in range(5):
        for scheduler in schedulers:
            scheduler.schedule.tick()
            scheduler.schedule.tick()  # as a scheduler restarted within the minute
        assert sum(map(polls, schedulers)) == 1
        clock.tick(60)


def test_two_schedulers_at_the_same_moment(database: Database) -> None:
    clock = Clock()
    schedulers = [conduct(database, clock, poll_seconds=7) for _ in range(4)]
    failures: list[BaseException] = []
    claimed: list[Any] = []

    def tick(scheduler: Conductor) -> None:
        try:
            for due in scheduler.schedule.claim():
                claimed.append((due.job, due.delay))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=tick, args=(scheduler,)) for scheduler in schedulers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    slots = [delay for job, delay in claimed if job == JOB]
    assert len(slots) == len(set(slots)) >= 8


def test_intervals_below_a_minute_are_spread_over_it(database: Database) -> None:
    clock = Clock()
    conductor = conduct(database, clock, poll_seconds=10)
    delays = [due.delay for due in conductor.schedule.claim() if due.job == JOB]
    assert sorted(delays) == [0, 10, 20, 30, 40, 50]
    clock.tick(60.4)  # ticks are never exactly on time
    delays = [due.delay for due in conductor.schedule.claim() if due.job == JOB]
    assert [round(delay, 1) for delay in sorted(delays)] == [0, 9.6, 19.6, 29.6, 39.6, 49.6]


@pytest.mark.parametrize("every", [7, 45, 60, 90, 300, 3600])
def test_every_slot_of_an_hour_runs_once(database: Database, every: int) -> None:
    clock = Clock()
    conductor = conduct(database, clock, poll_seconds=every)
    for minute in range(60):
        conductor.schedule.tick()
        clock.tick(60.7 if minute % 2 else 59.3)
    with database.read() as c:
        slots = list(c.execute(sa.select(JobRun.slot).where(JobRun.job == JOB).order_by(JobRun.slot)).scalars())
    gaps = {(later - earlier).total_seconds() for earlier, later in pairwise(slots)}
    assert gaps <= {every} and polls(conductor) == len(slots) >= 3600 // every


def test_of_missed_ticks_one_is_made_up_for(database: Database) -> None:
    clock = Clock()
    conductor = conduct(database, clock, poll_seconds=300)
    conductor.schedule.tick()
    assert polls(conductor) == 1
    clock.tick(3 * 3600 + 17)  # no scheduler was running
    conductor.schedule.tick()
    assert polls(conductor) == 1
    conductor.schedule.tick()
    assert polls(conductor) == 0


def test_a_paused_job_waits_and_runs_once_after_its_resume(database: Database) -> None:
    clock = Clock()
    conductor = conduct(database, clock)
    set_job(database, paused_at=clock())
    for _ in range(3):
        conductor.schedule.tick()
        clock.tick(60)
    assert polls(conductor) == 0
    set_job(database, paused_at=None)
    conductor.schedule.tick()
    assert polls(conductor) == 1


def test_an_interval_set_by_an_operator_survives_a_restart(database: Database) -> None:
    clock = Clock()
    conduct(database, clock)
    set_job(database, every_seconds=600)
    conductor = conduct(database, clock)
    for _ in range(10):
        conductor.schedule.tick()
        clock.tick(60)
    assert polls(conductor) == 1


def test_a_job_rarer_than_a_day_is_not_run_again_by_tidying(database: Database) -> None:
    clock = Clock()
    conductor = conduct(database, clock, poll_seconds=7 * 24 * 3600)
    conductor.schedule.tick()
    for _ in range(24 * 3):
        clock.tick(3600)
        conductor.schedule.tick()
    with database.read() as c:
        slots = c.execute(sa.select(JobRun.slot).where(JobRun.job == JOB)).all()
    # The clock starts on a Sunday; weekly slots start on Thursdays.
    assert polls(conductor) == len(slots) == 1


def test_jobs_of_a_system_that_is_no_longer_configured_are_left_alone(database: Database) -> None:
    clock = Clock()
    conduct(database, clock)
    conductor = conduct(database, clock, poll_seconds=None)
    conductor.schedule.tick()
    assert polls(conductor) == 0


def test_tidying_does_not_hold_up_the_polls_of_its_tick(database: Database) -> None:
    """Tidying can take minutes, and its row can precede that of a system configured later."""
    clock = Clock()
    conduct(database, clock, poll_seconds=None)
    conductor = conduct(database, clock)
    order: list[str] = []
    conductor.context.publisher.poll = lambda subscriber, delay=0.0: order.append("poll")  # type: ignore[method-assign]
    conductor.schedule.retention.remove_old = lambda: order.append(TIDY)  # type: ignore[method-assign,assignment,return-value]
    conductor.schedule.tick()
    assert order == ["poll", TIDY]


def test_how_a_job_ended_is_written_down(database: Database) -> None:
    conductor = conduct(database, Clock())

    def result() -> str:
        with database.read() as c:
            return str(c.execute(sa.select(Schedule.result).where(Schedule.job == JOB)).scalar_one())

    conductor.schedule.run(JOB, lambda: "3 records")
    assert result() == "3 records"

    def fail() -> None:
        assert result() == "running"
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError):
        conductor.schedule.run(JOB, fail)
    assert result() == "RuntimeError: no luck"


# --- tidying ----------------------------------------------------------------------------------------------


def fill(database: Database, now: datetime, ids: list[int], ages: list[float], **fixed: Any) -> None:
    """Insert rows with these ids and ages (in days) into every table that is tidied."""
    with database.write() as c:
        for key, age in zip(ids, ages, strict=True):
            at = now - timedelta(days=age)
            c.execute(
                sa.insert(Delivery).values(
                    id=key,
                    subscriber="s",
                    record_id="1",
                    direction="out",
                    operation="update",
                    outcome="delivered",
                    at=at,
                )
            )
            change = {"catalogue": "c", "record_id": "1", "operation": "updated", "at": at}
            c.execute(sa.insert(Change).values(id=key, relayed_at=fixed.get("relayed_at", at), **change))
            inbox = {"system": "s", "event_id": str(key), "body": "", "received_at": at}
            c.execute(sa.insert(Inbox).values(id=key, state=fixed.get("state", "done"), **inbox))


def left(database: Database, table: Any) -> list[int]:
    with database.read() as c:
        return list(c.execute(sa.select(table.id).order_by(table.id)).scalars())


@pytest.mark.parametrize("old", range(7))
def test_retention_removes_only_old_rows(database: Database, old: int) -> None:
    clock = Clock()
    conductor = conduct(database, clock)
    ids = [1, 2, 5_000, 5_001, 40_000, 123_456]  # with gaps, as after rolled-back transactions
    ages = [Policy().history_days + 10 - i if i < old else 10.0 - i for i in range(6)]
    fill(database, clock(), ids, ages)
    assert conductor.schedule.retention.remove_old() == f"{3 * min(old, 6)} old rows removed"
    for table in (Delivery, Change, Inbox):
        assert left(database, table) == ids[old:]
    assert conductor.schedule.retention.remove_old() == "0 old rows removed"


def test_retention_keeps_open_rows(database: Database) -> None:
    clock = Clock()
    conductor = conduct(database, clock)
    fill(database, clock(), [1, 2], [200, 199], relayed_at=None, state="waiting")
    fill(database, clock(), [4], [197])
    conductor.schedule.retention.remove_old()
    assert (left(database, Delivery), left(database, Change), left(database, Inbox)) == ([], [1, 2], [1, 2])


def test_retention_removes_old_closed_rows_and_audit_rows(database: Database) -> None:
    clock = Clock()
    conductor = conduct(database, clock)
    letter = {"subscriber": "s", "error": "Reject", "fingerprint": "f", "message": "m"}
    conflict = {"link_id": 1, "subscriber": "s", "record_id": "1", "path": "email"}
    inbox = {"system": "s", "body": "", "state": "dead"}
    old, new = clock() - timedelta(days=91), clock() - timedelta(days=89)
    ancient = clock() - timedelta(days=731)
    with database.write() as c:
        for key, at, ended in ((1, old, old), (2, old, new), (3, old, None), (4, new, new)):
            c.execute(sa.insert(DeadLetter).values(id=key, inbox_id=key, at=at, closed_at=ended, **letter))
            c.execute(sa.insert(Conflict).values(id=key, at=at, resolved_at=ended, **(conflict | {"link_id": key})))
            c.execute(sa.insert(Inbox).values(id=key, event_id=str(key), received_at=at, **inbox))
            c.execute(
                sa.insert(AuditEntry).values(id=key, at=ancient if key == 1 else at, who="w", action="a", target="t")
            )
    conductor.schedule.retention.remove_old()
    assert (left(database, DeadLetter), left(database, Conflict)) == ([2, 3, 4], [2, 3, 4])
    assert left(database, Inbox) == [3, 4]  # row 3 can still be retried
    assert left(database, AuditEntry) == [2, 3, 4]


def test_tidy_removes_processes_that_died_and_slots_that_passed(database: Database) -> None:
    clock = Clock()
    conductor = conduct(database, clock)
    with database.write() as c:
        for name, hours in (("dead", 30), ("alive", 50)):
            seen = clock() + timedelta(hours=hours)
            c.execute(sa.insert(Process).values(name=name, kind="web", started_at=seen, last_seen_at=seen))
    for _ in range(3):
        conductor.schedule.tick()
        clock.tick(20 * 3600)
    conductor.schedule.retention.remove_old()
    with database.read() as c:
        assert c.execute(sa.select(Process.name)).scalars().all() == ["alive"]
        oldest = c.execute(sa.select(sa.func.min(JobRun.slot)).where(JobRun.job == JOB)).scalar_one()
    assert oldest > clock() - timedelta(days=2, hours=1)


# --- periodiq ---------------------------------------------------------------------------------------------


def test_the_periodiq_tick_sends_one_message_and_stops_on_request(database: Database) -> None:
    broker = LocalFanout()
    conductor = conduct(database, Clock())
    for name in ("crm.customer", "crm.customer.later", "crm.inbox", "syncflow.tick"):
        broker.declare_queue(name)
    register(broker, conductor)
    stop = threading.Event()
    ticker = TickScheduler(broker.get_actor("tick"), stop)
    now = datetime.now(UTC)
    ticker.send_actors([broker.get_actor("tick")], now)
    (message,) = _messages(broker, "syncflow.tick")
    assert message.actor_name == "tick" and message.kwargs == {}
    stop.set()
    ticker.wake()
    ticker.alarm_q.get(timeout=5)
    assert list(_messages(broker, "syncflow.tick")) == []


def _messages(broker: LocalFanout, name: str) -> list[dramatiq.Message[Any]]:
    found = []
    while True:
        try:
            found.append(dramatiq.Message.decode(broker.queues[name].get_nowait()))
        except queue.Empty:
            return found


def test_there_is_one_periodic_actor_and_it_is_the_tick(database: Database) -> None:
    """periodiq loses ticks if several schedules are registered, and can repeat a tick, so retries are off."""
    broker = LocalFanout()
    register(broker, conduct(database, Clock()))
    periodic = {name: actor for name, actor in broker.actors.items() if "periodic" in actor.options}
    assert set(periodic) == {"tick"} and periodic["tick"].options["max_retries"] == 0
    assert str(periodic["tick"].options["periodic"]) == "* * * * *"
