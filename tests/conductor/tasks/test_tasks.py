"""TaskRunner: long work that outlives its process, is done by one at a time, and can be stopped and resumed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from conductor import DeadLetterFilter, Policy
from conductor.tasks.runner import Step, TaskRunner
from models.catalogues import Customer
from models.ledger import AuditEntry, DeadLetter, Inbox, Link, Task
from models.session import Database
from subscribers.errors import Reject
from tests.support.fakes import World
from workers.scheduler import run_tasks

CUSTOMER = Customer.__table__


@pytest.fixture
def world(database: Database) -> World:
    return World(database, "crm", policy=Policy(lease=60))


def counting(world: World, to: int = 5) -> Callable[[Any], Step]:
    """A kind of work: each step writes one customer, up to a number."""

    def step(task: Any) -> Step:
        number = (task.position or {}).get("number", 0) + 1

        def effect(connection: sa.Connection) -> None:
            connection.execute(sa.insert(CUSTOMER).values(name=f"Ada {number}"))

        message = f"{number} written"
        return Step(number, number, position={"number": number}, finished=number == to, message=message, effect=effect)

    world.conductor.tasks.register("count", step)
    return step


def written(world: World) -> int:
    with world.conductor.database.read() as c:
        return int(c.execute(sa.select(sa.func.count()).select_from(CUSTOMER)).scalar_one())


def audited(world: World) -> list[tuple[str, str, str]]:
    with world.conductor.database.read() as c:
        rows = c.execute(sa.select(AuditEntry.who, AuditEntry.action, AuditEntry.target).order_by(AuditEntry.id))
        return [tuple(row) for row in rows]


def test_a_task_is_done_step_by_step_and_says_how_far_it_is(world: World) -> None:
    counting(world)
    tasks = world.conductor.tasks
    one = tasks.start("count", "ann", argument={"to": 5}, total=5)
    assert tasks.run_some()
    task = tasks.get(one)
    assert (task.state, task.done, task.total, task.message, task.by) == ("running", 1, 5, "1 written", "ann")
    while tasks.run_some():
        pass
    task = tasks.get(one)
    assert (task.state, task.done, task.succeeded, task.finished_at) == ("done", 5, 5, world.clock())
    assert written(world) == 5
    assert [t.id for t in tasks.list("count")] == [one] and tasks.list(unfinished=True) == []


def test_two_tasks_take_turns(world: World) -> None:
    counting(world)
    tasks = world.conductor.tasks
    one, two = tasks.start("count", "ann"), tasks.start("count", "bob")
    for _ in range(4):
        tasks.run_some()
        world.clock.tick()
    assert [tasks.get(one).done, tasks.get(two).done] == [2, 2]


def test_stopped_and_resumed_it_goes_on_where_it_was(world: World) -> None:
    counting(world)
    tasks = world.conductor.tasks
    one = tasks.start("count", "ann")
    tasks.run_some()
    tasks.stop(one, "bob")
    assert tasks.get(one).state == "stopped" and not tasks.run_some()
    tasks.resume(one, "cleo")
    while tasks.run_some():
        pass
    assert tasks.get(one).state == "done" and written(world) == 5
    target = f"#{one} count"
    assert audited(world) == [
        ("ann", "task.start", target),
        ("bob", "task.stop", target),
        ("cleo", "task.resume", target),
    ]


def test_asked_to_stop_during_a_step_it_stops_after_it(world: World) -> None:
    tasks = world.conductor.tasks

    def step(task: Any) -> Step:
        tasks.stop(task.id, "bob")
        assert tasks.get(task.id).state == "stopping"
        return Step(task.done + 1)

    tasks.register("slow", step)
    one = tasks.start("slow", "ann")
    assert tasks.run_some() and not tasks.run_some()
    task = tasks.get(one)
    assert (task.state, task.done, task.finished_at) == ("stopped", 1, world.clock())


def test_after_a_death_the_step_is_done_again_once_its_lease_has_run_out(world: World) -> None:
    counting(world, to=2)
    tasks = world.conductor.tasks
    one = tasks.start("count", "ann")
    assert tasks._take().id == one  # and then the process died
    assert not tasks.run_some()
    world.clock.tick(61)
    assert tasks.run_some() and tasks.run_some()
    assert tasks.get(one).state == "done" and written(world) == 2


def test_one_asked_to_stop_whose_process_died_is_stopped(world: World) -> None:
    counting(world)
    tasks = world.conductor.tasks
    one = tasks.start("count", "ann")
    tasks._take()
    tasks.stop(one, "bob")
    world.clock.tick(61)
    assert tasks.run_some()
    assert tasks.get(one).state == "stopped" and written(world) == 0


def test_a_step_that_outlived_its_lease_counts_for_nothing(world: World) -> None:
    tasks = world.conductor.tasks
    other = TaskRunner(world.conductor.context)
    step = counting(world)
    other.register("count", step)

    def slow(task: Any) -> Step:
        late = step(task)
        world.clock.tick(61)
        assert other.run_some()  # somebody else took over
        return late

    tasks.register("count", slow)
    one = tasks.start("count", "ann")
    tasks.run_some()
    assert tasks.get(one).done == 1 == written(world)


def test_two_processes_never_do_one_step_twice(world: World) -> None:
    step = counting(world, to=30)
    failures: list[BaseException] = []

    def work() -> None:
        tasks = TaskRunner(world.conductor.context)
        tasks.register("count", step)
        try:
            while tasks.list(unfinished=True):
                tasks.run_some()
        except BaseException as error:
            failures.append(error)

    one = world.conductor.tasks.start("count", "ann")
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with world.conductor.database.read() as c:
        names = list(c.execute(sa.select(CUSTOMER.c.name).order_by(CUSTOMER.c.id)).scalars())
    assert failures == [] and names == [f"Ada {n}" for n in range(1, 31)]
    assert world.conductor.tasks.get(one).state == "done"


def test_a_pause_is_kept_unless_it_is_to_stop(world: World) -> None:
    tasks = world.conductor.tasks
    tasks.register("wait", lambda task: Step(task.done + 1, pause=10))
    one = tasks.start("wait", "ann")
    assert tasks.run_some() and not tasks.run_some()
    world.clock.tick(10)
    assert tasks.run_some() and not tasks.run_some()
    tasks.stop(one, "bob")
    assert tasks.get(one).state == "stopped"


def test_what_goes_wrong_is_said_and_can_be_tried_again(world: World) -> None:
    tasks = world.conductor.tasks

    def fail(task: Any) -> Step:
        raise RuntimeError("no luck")

    tasks.register("fail", fail)
    one = tasks.start("fail", "ann")
    assert tasks.run_some() and not tasks.run_some()
    assert (tasks.get(one).state, tasks.get(one).message) == ("failed", "RuntimeError: no luck")
    tasks.register("fail", lambda task: Step(1, finished=True))
    tasks.resume(one, "ann")
    assert tasks.run_some() and tasks.get(one).state == "done"


def test_an_effect_that_fails_takes_the_counts_back_with_it(world: World) -> None:
    tasks = world.conductor.tasks

    def effect(connection: sa.Connection) -> None:
        connection.execute(sa.insert(CUSTOMER).values(name="Ada"))
        raise RuntimeError("no luck")

    tasks.register("fail", lambda task: Step(1, effect=effect))
    one = tasks.start("fail", "ann")
    tasks.run_some()
    assert (tasks.get(one).state, tasks.get(one).done, written(world)) == ("failed", 0, 0)


def test_bad_input_is_refused_in_words(world: World) -> None:
    tasks = world.conductor.tasks
    with pytest.raises(ValueError, match="no kind of task 'dance'"):
        tasks.start("dance", "ann")
    with pytest.raises(ValueError, match=r"no subscriber 'crm\.nothing'; there are: crm\.customer"):
        tasks.start("retry", "ann", subscriber="crm.nothing")
    with pytest.raises(ValueError, match="there is no task #7"):
        tasks.stop(7, "ann")
    one = tasks.start("retry", "ann")
    with pytest.raises(ValueError, match="is running"):
        tasks.resume(one, "ann")
    assert audited(world) == [("ann", "task.start", f"#{one} retry")]


def test_a_kind_of_another_version_is_left_alone(world: World) -> None:
    with world.conductor.database.write() as c:
        c.execute(sa.insert(Task).values(kind="newer", state="running", by="ann", argument={}))
    assert not world.conductor.tasks.run_some()


def test_the_loop_works_tasks_off_and_ends_when_asked(world: World) -> None:
    stop = threading.Event()
    step = counting(world)

    def last(task: Any) -> Step:
        done = step(task)
        if done.finished:
            stop.set()
        return done

    world.conductor.tasks.register("count", last)
    one = world.conductor.tasks.start("count", "ann")
    run_tasks(world.conductor, stop)
    assert world.conductor.tasks.get(one).state == "done"


def test_old_tasks_are_tidied_away_and_open_ones_kept(world: World) -> None:
    counting(world, to=1)
    tasks = world.conductor.tasks
    tasks.start("count", "ann")
    tasks.run_some()
    tasks.start("count", "ann")
    world.clock.tick(100 * 24 * 3600)
    world.conductor.schedule.tidy()
    assert [t.state for t in tasks.list()] == ["running"]


# --- many dead letters again ------------------------------------------------------------------------------


def kill(world: World, count: int) -> None:
    """So many customers whose delivery a system refuses for good."""
    world.systems["crm"].fail(Reject("no"), times=count)
    with world.conductor.database.write() as c:
        c.execute(sa.insert(CUSTOMER), [{"name": f"Ada {n}"} for n in range(count)])
    world.run()


def work(world: World, steps: int = 30) -> None:
    """What scheduler, relay and workers do."""
    for _ in range(steps):
        world.conductor.tasks.run_some()
        world.conductor.sweep()
        world.run()
        world.clock.tick(2)


def test_all_dead_letters_are_tried_again_and_the_count_says_how_it_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conductor.tasks.retry_dead_letters.RETRY_BATCH", 3)
    kill(world, 10)
    one = world.conductor.retry_many(DeadLetterFilter(error="Reject"), "ann")
    world.clock.tick()
    kill(world, 1)  # a later one is not meant
    world.systems["crm"].fail(Reject("still no"), times=2)
    work(world)
    task = world.conductor.tasks.get(one)
    assert (task.state, task.total, task.done, task.succeeded, task.failed) == ("done", 10, 10, 8, 2)
    assert task.message == "8 of 10 succeeded, 2 failed again"
    with world.conductor.database.read() as c:
        assert c.execute(sa.select(sa.func.count()).where(DeadLetter.closed_at.is_(None))).scalar() == 3
        assert c.execute(sa.select(sa.func.count()).where(Link.dead_at.is_not(None))).scalar() == 3


def test_only_the_chosen_ones_and_no_flood(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conductor.tasks.retry_dead_letters.RETRY_BATCH", 2)
    monkeypatch.setattr("conductor.tasks.throttle.BACKLOG_LIMIT", 2)
    kill(world, 6)
    one = world.conductor.retry_many(DeadLetterFilter(ids=[1, 2, 3, 4]), "ann")
    tasks = world.conductor.tasks
    for _ in range(3):
        tasks.run_some()
        world.clock.tick(2)
    assert (tasks.get(one).done, tasks.get(one).message) == (2, "waits: their systems have plenty to do")
    work(world)
    assert tasks.get(one).succeeded == 4 == len(world.systems["crm"].store)


def test_discarded_in_between_and_letters_about_events(world: World) -> None:
    kill(world, 2)
    with world.conductor.database.write() as c:
        c.execute(sa.insert(Inbox).values(id=5, system="crm", event_id="e", body="e gone_1", state="dead"))
        letter = {"subscriber": "crm.customer", "inbox_id": 5, "error": "Retry", "message": "", "fingerprint": ""}
        c.execute(sa.insert(DeadLetter).values(**letter, at=world.clock()))
    one = world.conductor.retry_many(DeadLetterFilter(), "ann")
    tasks = world.conductor.tasks
    tasks.run_some()
    world.conductor.discard(DeadLetterFilter(ids=[1]), "bob", "an old one")
    work(world)
    task = tasks.get(one)
    assert (task.state, task.message) == ("done", "2 of 3 succeeded, 0 failed again, 1 discarded")


def test_what_does_not_come_to_an_end_is_counted_as_under_way(world: World) -> None:
    kill(world, 1)
    one = world.conductor.retry_many(DeadLetterFilter(), "ann")
    for _ in range(3):  # nobody sweeps or delivers
        world.conductor.tasks.run_some()
        world.clock.tick(2)
    assert world.conductor.tasks.get(one).state == "running"
    world.clock.tick(3600)
    world.conductor.tasks.run_some()
    task = world.conductor.tasks.get(one)
    assert (task.state, task.message) == ("done", "0 of 1 succeeded, 0 failed again, 1 under way")


# --- many dead letters discarded ----------------------------------------------------------------------------


def open_letters(world: World) -> int:
    with world.conductor.database.read() as c:
        return int(c.execute(sa.select(sa.func.count()).where(DeadLetter.closed_at.is_(None))).scalar_one())


def test_all_that_match_are_discarded_with_the_reason_on_each(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conductor.tasks.discard_dead_letters.DISCARD_BATCH", 3)
    kill(world, 7)
    one = world.conductor.discard_many(DeadLetterFilter(error="Reject"), "ann", " test data ")
    world.clock.tick()
    kill(world, 1)  # a later one is not meant
    work(world)
    task = world.conductor.tasks.get(one)
    assert (task.state, task.total, task.done, task.succeeded, task.failed) == ("done", 7, 7, 7, 0)
    assert task.message == "7 discarded: test data"
    with world.conductor.database.read() as c:
        closed = c.execute(sa.select(DeadLetter.resolution).where(DeadLetter.closed_at.is_not(None))).scalars().all()
        assert closed == ["discarded by ann: test data"] * 7
        assert c.execute(sa.select(sa.func.count()).where(Link.owed_change > Link.synced_change)).scalar() == 1
        audit = sa.select(AuditEntry.details).where(AuditEntry.action == "dead_letter.discard")
        details = c.execute(audit.order_by(AuditEntry.id)).scalars().all()
    assert details == [{"count": n, "reason": "test data", "task": one} for n in (3, 3, 1)]
    assert open_letters(world) == 1 and world.systems["crm"].store == {}


def test_discarding_can_be_stopped_and_outlives_the_process(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conductor.tasks.discard_dead_letters.DISCARD_BATCH", 2)
    kill(world, 5)
    tasks = world.conductor.tasks
    one = world.conductor.discard_many(DeadLetterFilter(), "ann", "old")
    tasks.run_some()
    tasks.stop(one, "bob")
    assert not tasks.run_some() and open_letters(world) == 3
    tasks.resume(one, "ann")
    tasks._take()  # and then the process died
    world.clock.tick(61)
    other = World(world.conductor.database, "crm")
    other.clock.now = world.clock.now
    while other.conductor.tasks.run_some():
        pass
    assert (tasks.get(one).state, tasks.get(one).done) == ("done", 5) and open_letters(world) == 0


def test_a_record_that_died_anew_meanwhile_keeps_what_it_is_owed(world: World) -> None:
    kill(world, 1)
    old = world.conductor.database
    with old.read() as c:
        (row,) = c.execute(sa.select(DeadLetter.id, DeadLetter.link_id)).all()
    world.conductor.retry(DeadLetterFilter(), "bob")
    world.conductor.sweep()
    world.run()
    assert open_letters(world) == 0
    world.systems["crm"].fail(Reject("another no"))
    with old.write() as c:
        c.execute(sa.update(CUSTOMER).values(name="Grace"))
    world.run()
    with old.write() as c:
        world.conductor.letters.discard(c, [row], "ann", "read before")
    with old.read() as c:
        assert c.execute(sa.select(sa.func.count()).where(Link.dead_at.is_not(None))).scalar() == 1
    assert open_letters(world) == 1


def test_discarding_many_needs_a_reason(world: World) -> None:
    with pytest.raises(ValueError, match="say why"):
        world.conductor.discard_many(DeadLetterFilter(), "ann", " ")
    assert world.conductor.tasks.list() == []
