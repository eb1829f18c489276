"""TaskRunner: long tasks survive their process, run in one process at a time, and can be stopped and resumed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from conductor import DeadLetterFilter, Policy
from conductor.tasks.runner import Step, TaskKind, TaskRunner
from models.catalogues import Customer
from models.ledger import AuditEntry, DeadLetter, Inbox, Link, Task
from models.session import Database
from subscribers.errors import Reject
from tests.support.dead_letters import retry_all
from tests.support.fakes import TestHub
from workers.scheduler import run_tasks

CUSTOMER = Customer.__table__


@pytest.fixture
def hub(database: Database) -> TestHub:
    return TestHub(database, "crm", policy=Policy(lease_seconds=60))


class Stub(TaskKind):
    """A kind of task that calls a function for each step."""

    def __init__(self, work: Callable[[Any], Step]) -> None:
        self.work = work

    def step(self, task: Any) -> Step:
        return self.work(task)

    @staticmethod
    def label(task: Any) -> str:
        return str(task.kind)


def register(tasks: TaskRunner, kind: str, work: Callable[[Any], Step]) -> None:
    tasks.kinds[kind] = Stub(work)


def counting(hub: TestHub, to: int = 5) -> Callable[[Any], Step]:
    """Return a step function that inserts one customer per step, up to `to` customers."""

    def step(task: Any) -> Step:
        number = (task.position or {}).get("number", 0) + 1

        def effect(connection: sa.Connection) -> None:
            connection.execute(sa.insert(CUSTOMER).values(name=f"Ada {number}"))

        message = f"{number} written"
        return Step(number, number, position={"number": number}, finished=number == to, message=message, effect=effect)

    register(hub.conductor.tasks, "count", step)
    return step


def written(hub: TestHub) -> int:
    with hub.conductor.database.read() as c:
        return int(c.execute(sa.select(sa.func.count()).select_from(CUSTOMER)).scalar_one())


def audited(hub: TestHub) -> list[tuple[str, str, str]]:
    with hub.conductor.database.read() as c:
        rows = c.execute(sa.select(AuditEntry.who, AuditEntry.action, AuditEntry.target).order_by(AuditEntry.id))
        return [(row.who, row.action, row.target) for row in rows]


def test_a_task_runs_in_steps_and_reports_its_progress(hub: TestHub) -> None:
    counting(hub)
    tasks = hub.conductor.tasks
    one = tasks.begin("count", "ann", argument={"to": 5}, total=5)
    assert tasks.run_some()
    task = tasks.get(one)
    assert (task.state, task.done, task.total, task.message, task.by) == ("running", 1, 5, "1 written", "ann")
    while tasks.run_some():
        pass
    task = tasks.get(one)
    assert (task.state, task.done, task.succeeded, task.finished_at) == ("done", 5, 5, hub.clock())
    assert written(hub) == 5
    assert [t.id for t in tasks.list("count")] == [one] and tasks.list(unfinished=True) == []


def test_two_tasks_take_turns(hub: TestHub) -> None:
    counting(hub)
    tasks = hub.conductor.tasks
    one, two = tasks.begin("count", "ann"), tasks.begin("count", "bob")
    for _ in range(4):
        tasks.run_some()
        hub.clock.tick()
    assert [tasks.get(one).done, tasks.get(two).done] == [2, 2]


def test_a_resumed_task_continues_where_it_stopped(hub: TestHub) -> None:
    counting(hub)
    tasks = hub.conductor.tasks
    one = tasks.begin("count", "ann")
    tasks.run_some()
    tasks.stop(one, "bob")
    assert tasks.get(one).state == "stopped" and not tasks.run_some()
    tasks.resume(one, "cleo")
    while tasks.run_some():
        pass
    assert tasks.get(one).state == "done" and written(hub) == 5
    target = f"#{one} count"
    assert audited(hub) == [
        ("ann", "task.start", target),
        ("bob", "task.stop", target),
        ("cleo", "task.resume", target),
    ]


def test_a_task_stops_after_its_current_step(hub: TestHub) -> None:
    tasks = hub.conductor.tasks

    def step(task: Any) -> Step:
        tasks.stop(task.id, "bob")
        assert tasks.get(task.id).state == "stopping"
        return Step(task.done + 1)

    register(tasks, "slow", step)
    one = tasks.begin("slow", "ann")
    assert tasks.run_some() and not tasks.run_some()
    task = tasks.get(one)
    assert (task.state, task.done, task.finished_at) == ("stopped", 1, hub.clock())


def test_after_a_death_the_step_is_done_again_once_its_lease_has_run_out(hub: TestHub) -> None:
    counting(hub, to=2)
    tasks = hub.conductor.tasks
    one = tasks.begin("count", "ann")
    taken = tasks._take()  # the process dies here
    assert taken is not None and taken.id == one
    assert not tasks.run_some()
    hub.clock.tick(61)
    assert tasks.run_some() and tasks.run_some()
    assert tasks.get(one).state == "done" and written(hub) == 2


def test_a_stopping_task_of_a_dead_process_is_stopped(hub: TestHub) -> None:
    counting(hub)
    tasks = hub.conductor.tasks
    one = tasks.begin("count", "ann")
    tasks._take()
    tasks.stop(one, "bob")
    hub.clock.tick(61)
    assert tasks.run_some()
    assert tasks.get(one).state == "stopped" and written(hub) == 0


def test_a_step_that_outlived_its_lease_counts_for_nothing(hub: TestHub) -> None:
    tasks = hub.conductor.tasks
    other = TaskRunner(hub.conductor.context)
    step = counting(hub)
    register(other, "count", step)

    def slow(task: Any) -> Step:
        late = step(task)
        hub.clock.tick(61)
        assert other.run_some()  # another process takes over
        return late

    register(tasks, "count", slow)
    one = tasks.begin("count", "ann")
    tasks.run_some()
    assert tasks.get(one).done == 1 == written(hub)


def test_two_processes_never_do_one_step_twice(hub: TestHub) -> None:
    step = counting(hub, to=30)
    failures: list[BaseException] = []

    def work() -> None:
        tasks = TaskRunner(hub.conductor.context)
        register(tasks, "count", step)
        try:
            while tasks.list(unfinished=True):
                tasks.run_some()
        except BaseException as error:
            failures.append(error)

    one = hub.conductor.tasks.begin("count", "ann")
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with hub.conductor.database.read() as c:
        names = list(c.execute(sa.select(CUSTOMER.c.name).order_by(CUSTOMER.c.id)).scalars())
    assert failures == [] and names == [f"Ada {n}" for n in range(1, 31)]
    assert hub.conductor.tasks.get(one).state == "done"


def test_a_pause_is_kept_unless_it_is_to_stop(hub: TestHub) -> None:
    tasks = hub.conductor.tasks
    register(tasks, "wait", lambda task: Step(task.done + 1, pause=10))
    one = tasks.begin("wait", "ann")
    assert tasks.run_some() and not tasks.run_some()
    hub.clock.tick(10)
    assert tasks.run_some() and not tasks.run_some()
    tasks.stop(one, "bob")
    assert tasks.get(one).state == "stopped"


def test_a_failed_task_reports_its_error_and_can_be_resumed(hub: TestHub) -> None:
    tasks = hub.conductor.tasks

    def fail(task: Any) -> Step:
        raise RuntimeError("no luck")

    register(tasks, "fail", fail)
    one = tasks.begin("fail", "ann")
    assert tasks.run_some() and not tasks.run_some()
    assert (tasks.get(one).state, tasks.get(one).message) == ("failed", "RuntimeError: no luck")
    register(tasks, "fail", lambda task: Step(1, finished=True))
    tasks.resume(one, "ann")
    assert tasks.run_some() and tasks.get(one).state == "done"


def test_an_effect_that_fails_takes_the_counts_back_with_it(hub: TestHub) -> None:
    tasks = hub.conductor.tasks

    def effect(connection: sa.Connection) -> None:
        connection.execute(sa.insert(CUSTOMER).values(name="Ada"))
        raise RuntimeError("no luck")

    register(tasks, "fail", lambda task: Step(1, effect=effect))
    one = tasks.begin("fail", "ann")
    tasks.run_some()
    assert (tasks.get(one).state, tasks.get(one).done, written(hub)) == ("failed", 0, 0)


def test_bad_input_is_refused_with_a_message(hub: TestHub) -> None:
    tasks = hub.conductor.tasks
    with pytest.raises(ValueError, match="unknown kind of task 'dance'"):
        tasks.start("dance", "ann")
    with pytest.raises(ValueError, match=r"unknown subscriber 'crm\.nothing'; known subscribers: crm\.customer"):
        tasks.start("resend", "ann", subscriber="crm.nothing")
    with pytest.raises(ValueError, match="there is no task #7"):
        tasks.stop(7, "ann")
    one = tasks.start("retry", "ann", letters=DeadLetterFilter())
    with pytest.raises(ValueError, match="is running"):
        tasks.resume(one, "ann")
    assert audited(hub) == [("ann", "task.start", f"#{one} retry")]


def test_a_kind_of_another_version_is_left_alone(hub: TestHub) -> None:
    with hub.conductor.database.write() as c:
        c.execute(sa.insert(Task).values(kind="newer", state="running", by="ann", argument={}))
    assert not hub.conductor.tasks.run_some()


def test_the_loop_runs_tasks_and_stops_on_request(hub: TestHub) -> None:
    stop = threading.Event()
    step = counting(hub)

    def last(task: Any) -> Step:
        done = step(task)
        if done.finished:
            stop.set()
        return done

    register(hub.conductor.tasks, "count", last)
    one = hub.conductor.tasks.begin("count", "ann")
    run_tasks(hub.conductor, stop)
    assert hub.conductor.tasks.get(one).state == "done"


def test_old_tasks_are_tidied_away_and_open_ones_kept(hub: TestHub) -> None:
    counting(hub, to=1)
    tasks = hub.conductor.tasks
    tasks.begin("count", "ann")
    tasks.run_some()
    tasks.begin("count", "ann")
    hub.clock.tick(100 * 24 * 3600)
    hub.conductor.schedule.retention.remove_old()
    assert [t.state for t in tasks.list()] == ["running"]


# --- retry many dead letters ------------------------------------------------------------------------------


def kill(hub: TestHub, count: int) -> None:
    """Insert `count` customers whose delivery the system rejects permanently."""
    hub.systems["crm"].fail(Reject("no"), times=count)
    with hub.conductor.database.write() as c:
        c.execute(sa.insert(CUSTOMER), [{"name": f"Ada {n}"} for n in range(count)])
    hub.run()


def work(hub: TestHub, steps: int = 30) -> None:
    """Run the work of scheduler, relay and workers."""
    for _ in range(steps):
        hub.conductor.tasks.run_some()
        hub.conductor.sweep()
        hub.run()
        hub.clock.tick(2)


def test_all_dead_letters_are_retried_and_their_outcomes_counted(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conductor.tasks.retry_dead_letters.RETRY_BATCH", 3)
    kill(hub, 10)
    one = hub.conductor.tasks.start("retry", "ann", letters=DeadLetterFilter(error="Reject"))
    hub.clock.tick()
    kill(hub, 1)  # a later dead letter is not part of the task
    hub.systems["crm"].fail(Reject("still no"), times=2)
    work(hub)
    task = hub.conductor.tasks.get(one)
    assert (task.state, task.total, task.done, task.succeeded, task.failed) == ("done", 10, 10, 8, 2)
    assert task.message == "8 of 10 succeeded, 2 failed again"
    with hub.conductor.database.read() as c:
        assert c.execute(sa.select(sa.func.count()).where(DeadLetter.closed_at.is_(None))).scalar() == 3
        assert c.execute(sa.select(sa.func.count()).where(Link.dead_at.is_not(None))).scalar() == 3


def test_only_the_chosen_ones_and_no_flood(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conductor.tasks.retry_dead_letters.RETRY_BATCH", 2)
    monkeypatch.setattr("conductor.tasks.throttle.BACKLOG_LIMIT", 2)
    kill(hub, 6)
    one = hub.conductor.tasks.start("retry", "ann", letters=DeadLetterFilter(ids=[1, 2, 3, 4]))
    tasks = hub.conductor.tasks
    for _ in range(3):
        tasks.run_some()
        hub.clock.tick(2)
    assert (tasks.get(one).done, tasks.get(one).message) == (2, "waits: the systems have a backlog")
    work(hub)
    assert tasks.get(one).succeeded == 4 == len(hub.systems["crm"].store)


def test_discarded_in_between_and_letters_about_events(hub: TestHub) -> None:
    kill(hub, 2)
    with hub.conductor.database.write() as c:
        c.execute(sa.insert(Inbox).values(id=5, system="crm", event_id="e", body="e gone_1", state="dead"))
        letter = {"subscriber": "crm.customer", "inbox_id": 5, "error": "Retry", "message": "", "fingerprint": ""}
        c.execute(sa.insert(DeadLetter).values(**letter, at=hub.clock()))
    one = hub.conductor.tasks.start("retry", "ann", letters=DeadLetterFilter())
    tasks = hub.conductor.tasks
    tasks.run_some()
    hub.conductor.dead_letters.discard(1, "bob", "an old one")
    work(hub)
    task = tasks.get(one)
    assert (task.state, task.message) == ("done", "2 of 3 succeeded, 0 failed again, 1 discarded")


def test_unfinished_retries_are_counted_as_in_progress(hub: TestHub) -> None:
    kill(hub, 1)
    one = hub.conductor.tasks.start("retry", "ann", letters=DeadLetterFilter())
    for _ in range(3):  # no sweep and no delivery
        hub.conductor.tasks.run_some()
        hub.clock.tick(2)
    assert hub.conductor.tasks.get(one).state == "running"
    hub.clock.tick(3600)
    hub.conductor.tasks.run_some()
    task = hub.conductor.tasks.get(one)
    assert (task.state, task.message) == ("done", "0 of 1 succeeded, 0 failed again, 1 under way")


# --- discard many dead letters ----------------------------------------------------------------------------


def open_letters(hub: TestHub) -> int:
    with hub.conductor.database.read() as c:
        return int(c.execute(sa.select(sa.func.count()).where(DeadLetter.closed_at.is_(None))).scalar_one())


def test_all_that_match_are_discarded_with_the_reason_on_each(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conductor.tasks.discard_dead_letters.DISCARD_BATCH", 3)
    kill(hub, 7)
    one = hub.conductor.tasks.start("discard", "ann", letters=DeadLetterFilter(error="Reject"), reason=" test data ")
    hub.clock.tick()
    kill(hub, 1)  # a later dead letter is not part of the task
    work(hub)
    task = hub.conductor.tasks.get(one)
    assert (task.state, task.total, task.done, task.succeeded, task.failed) == ("done", 7, 7, 7, 0)
    assert task.message == "7 discarded: test data"
    with hub.conductor.database.read() as c:
        closed = c.execute(sa.select(DeadLetter.resolution).where(DeadLetter.closed_at.is_not(None))).scalars().all()
        assert closed == ["discarded by ann: test data"] * 7
        assert c.execute(sa.select(sa.func.count()).where(Link.owed_change > Link.synced_change)).scalar() == 1
        audit = sa.select(AuditEntry.details).where(AuditEntry.action == "dead_letter.discard")
        details = c.execute(audit.order_by(AuditEntry.id)).scalars().all()
    assert details == [{"count": n, "reason": "test data", "task": one} for n in (3, 3, 1)]
    assert open_letters(hub) == 1 and hub.systems["crm"].store == {}


def test_discarding_can_be_stopped_and_outlives_the_process(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conductor.tasks.discard_dead_letters.DISCARD_BATCH", 2)
    kill(hub, 5)
    tasks = hub.conductor.tasks
    one = hub.conductor.tasks.start("discard", "ann", letters=DeadLetterFilter(), reason="old")
    tasks.run_some()
    tasks.stop(one, "bob")
    assert not tasks.run_some() and open_letters(hub) == 3
    tasks.resume(one, "ann")
    tasks._take()  # the process dies here
    hub.clock.tick(61)
    other = TestHub(hub.conductor.database, "crm")
    other.clock.now = hub.clock.now
    while other.conductor.tasks.run_some():
        pass
    assert (tasks.get(one).state, tasks.get(one).done) == ("done", 5) and open_letters(hub) == 0


def test_a_record_that_failed_again_keeps_its_pending_change(hub: TestHub) -> None:
    kill(hub, 1)
    old = hub.conductor.database
    with old.read() as c:
        (row,) = c.execute(sa.select(DeadLetter.id, DeadLetter.link_id)).all()
    retry_all(hub.conductor, "bob")
    hub.conductor.sweep()
    hub.run()
    assert open_letters(hub) == 0
    hub.systems["crm"].fail(Reject("another no"))
    with old.write() as c:
        c.execute(sa.update(CUSTOMER).values(name="Grace"))
    hub.run()
    with old.write() as c:
        hub.conductor.letters.discard(c, [row], "ann", "read before")
    with old.read() as c:
        assert c.execute(sa.select(sa.func.count()).where(Link.dead_at.is_not(None))).scalar() == 1
    assert open_letters(hub) == 1


def test_discarding_many_needs_a_reason(hub: TestHub) -> None:
    with pytest.raises(ValueError, match="enter a reason for discarding"):
        hub.conductor.tasks.start("discard", "ann", letters=DeadLetterFilter(), reason=" ")
    assert hub.conductor.tasks.list() == []
