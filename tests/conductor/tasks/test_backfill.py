"""Backfill: a new subscriber gets the records there are, once, without a flood, and what it has already is linked."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from conductor import DeadLetterFilter
from models.catalogues import Customer
from models.ledger import Change, DeadLetter, Link
from models.session import Database
from subscribers.base import Subscriber
from subscribers.errors import Reject, Retry, SystemDown
from subscribers.mapping.fields import Field
from subscribers.mapping.mapper import Mapper
from subscribers.records import Page
from tests.support.fakes import World
from tests.support.runtimes import Hub, until
from workers.scheduler import run_tasks

CUSTOMER = Customer.__table__


@pytest.fixture
def world(database: Database) -> World:
    """Six customers that were there before anybody followed them."""
    with database.write() as c:
        rows = [{"name": f"Ada {n}", "email": f"ada{n}@x.org", "country": "DE" if n % 2 else "FR"} for n in range(6)]
        c.execute(sa.insert(CUSTOMER), rows)
        c.execute(sa.update(Change).values(relayed_at=Change.at))
    return World(database, "crm", match_on=("email",))


def work(world: World, steps: int = 40) -> None:
    """What scheduler, relay and workers do."""
    for _ in range(steps):
        world.conductor.tasks.run_some()
        world.conductor.sweep()
        world.run()
        world.clock.tick(2)
        if not world.conductor.tasks.list(unfinished=True):
            return


def held(world: World) -> list[str]:
    return sorted(data["name"] for data in world.systems["crm"].store.values())


def bad_letters(world: World) -> list[tuple[str, str]]:
    with world.conductor.database.read() as c:
        is_open = DeadLetter.closed_at.is_(None)
        found = sa.select(DeadLetter.record_id, DeadLetter.message).where(is_open).order_by(DeadLetter.record_id)
        return [tuple(row) for row in c.execute(found)]


def test_all_there_are_are_brought_once_in_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conductor.tasks.backfill.PAGE", 2)
    one = world.conductor.backfill("crm.customer", "ann")
    work(world)
    task = world.conductor.tasks.get(one)
    assert (task.state, task.total, task.done, task.succeeded, task.failed) == ("done", 6, 6, 6, 0)
    assert task.message == "6 sent, 0 were there already"
    assert held(world) == [f"Ada {n}" for n in range(6)]
    assert [kind for kind, _ in world.systems["crm"].writes()] == ["create"] * 6
    two = world.conductor.backfill("crm.customer", "ann")
    work(world)
    assert two != one and world.conductor.tasks.get(two).message == "0 sent, 6 were there already"
    assert len(world.systems["crm"].writes()) == 6


def test_what_is_there_already_is_linked_and_not_created_again(world: World) -> None:
    crm = world.systems["crm"]
    crm.add(name="Ada 1", email="ada1@x.org", phone="111")
    crm.add(name="Stranger", email="nobody@x.org")
    world.clock.tick()
    one = world.conductor.backfill("crm.customer", "ann")
    work(world)
    assert len(crm.store) == 7 and world.conductor.tasks.get(one).message == "5 sent, 1 were there already"
    with world.conductor.database.read() as c:
        (phone,) = c.execute(sa.select(CUSTOMER.c.phone).where(CUSTOMER.c.email == "ada1@x.org")).one()
        assert c.execute(sa.select(sa.func.count()).select_from(CUSTOMER)).scalar() == 6, "the stranger stays there"
    assert phone == "111", "what was empty here came in"


def test_one_that_carries_our_id_is_linked_without_match_on(world: World) -> None:
    world.conductor.subscribers["crm.customer"].__class__.match_on = ()
    world.systems["crm"].add(name="Old name", hub_id="3")
    world.conductor.backfill("crm.customer", "ann")
    work(world)
    assert len(world.systems["crm"].store) == 6 and "Old name" not in held(world)


def test_a_filter_keeps_to_its_records_on_both_sides(world: World) -> None:
    world.systems["crm"].add(name="Not meant", email="ada0@x.org")
    one = world.conductor.backfill("crm.customer", "ann", {"country": "DE"})
    work(world)
    task = world.conductor.tasks.get(one)
    assert (task.total, task.done) == (3, 3)
    assert held(world) == ["Ada 1", "Ada 3", "Ada 5", "Not meant"]


def test_stopped_and_gone_on_with_by_another_process(
    world: World, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conductor.tasks.backfill.PAGE", 2)
    one = world.conductor.backfill("crm.customer", "ann")
    while world.conductor.tasks.get(one).done < 2:
        work(world, 1)
    world.conductor.tasks.stop(one, "ann")
    work(world, 5)
    assert held(world) == ["Ada 0", "Ada 1"]
    other = World(database, "crm", match_on=("email",))
    other.clock, other.systems = world.clock, world.systems
    other.conductor.context.clock = world.clock
    other.conductor.subscribers["crm.customer"].client = world.systems["crm"]
    assert other.conductor.backfill("crm.customer", "bob") == one, "asked for in the same words, it goes on"
    work(other)
    assert other.conductor.tasks.get(one).state == "done" and held(other) == [f"Ada {n}" for n in range(6)]
    assert [kind for kind, _ in world.systems["crm"].writes()] == ["create"] * 6


def test_asked_for_twice_it_runs_once(world: World) -> None:
    one = world.conductor.backfill("crm.customer", "ann")
    assert world.conductor.backfill("crm.customer", "bob") == one
    assert world.conductor.backfill("crm.customer", "bob", {"country": "DE"}) != one


def test_it_feeds_only_while_few_are_owed_and_goes_after_live_changes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conductor.tasks.backfill.PAGE", 2)
    monkeypatch.setattr("conductor.tasks.throttle.BACKLOG_LIMIT", 2)
    one = world.conductor.backfill("crm.customer", "ann")
    for _ in range(6):  # nobody delivers
        world.conductor.tasks.run_some()
        world.clock.tick(2)
    task = world.conductor.tasks.get(one)
    assert (task.done, task.message) == (2, "waits: crm has plenty to do")
    monkeypatch.setattr(type(world.conductor.subscribers["crm.customer"]), "batch_size", lambda self, waiting: 4)
    for _ in range(3):  # as many as one call takes
        world.conductor.tasks.run_some()
        world.clock.tick(2)
    assert world.conductor.tasks.get(one).done == 4
    world.conductor.sweep()
    assert world.ears.later == [("crm.customer", ["1", "2", "3", "4"])] == world.ears.heard
    work(world)
    assert world.conductor.tasks.get(one).succeeded == 6


def test_records_that_cannot_be_told_apart_wait_for_a_person(world: World) -> None:
    with world.conductor.database.write() as c:
        c.execute(sa.update(CUSTOMER).where(CUSTOMER.c.id.in_([1, 2])).values(email="same@x.org"))
        c.execute(sa.update(Change).values(relayed_at=Change.at))
    crm = world.systems["crm"]
    there = crm.add(name="Ada 0 or 1", email="same@x.org")
    one = world.conductor.backfill("crm.customer", "ann")
    work(world)
    message = (
        f"several records here have the same email as {there.id}: which is it? (retry to create it there all the same)"
    )
    assert bad_letters(world) == [("1", message), ("2", message)] and len(crm.store) == 5
    task = world.conductor.tasks.get(one)
    assert (task.state, task.succeeded, task.failed) == ("done", 4, 2) and "2 dead letters to look at" in task.message
    world.conductor.retry(DeadLetterFilter(), "ann")
    work(world, 3)
    assert bad_letters(world) == [] and len(crm.store) == 7


def test_what_the_system_refuses_is_counted(world: World) -> None:
    world.systems["crm"].on_call = lambda kind, what: _refuse(kind, what, "4")
    one = world.conductor.backfill("crm.customer", "ann")
    work(world)
    task = world.conductor.tasks.get(one)
    assert (task.state, task.succeeded, task.failed) == ("done", 5, 1) and bad_letters(world) == [("4", "no")]


def _refuse(kind: str, what: str, record_id: str) -> None:
    if (kind, what) == ("create", record_id):
        raise Reject("no")


@pytest.mark.parametrize("error", [SystemDown("503"), Retry("no answer in time")])
def test_a_list_that_cannot_be_read_now_is_read_later(
    world: World, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscriber = world.conductor.subscribers["crm.customer"]
    whole, failures = type(subscriber).changed_since, [error, error]

    def changed_since(self: Any, position: Any) -> Any:
        if failures:
            raise failures.pop()
        return whole(self, position)

    monkeypatch.setattr(type(subscriber), "changed_since", changed_since)
    world.systems["crm"].add(name="Ada 1", email="ada1@x.org")
    one = world.conductor.backfill("crm.customer", "ann")
    world.conductor.tasks.run_some()
    assert world.conductor.tasks.get(one).message == str(error)
    work(world)
    assert len(world.systems["crm"].store) == 6 and world.conductor.tasks.get(one).state == "done"


def test_a_paused_system_gets_nothing_and_the_task_says_why(world: World) -> None:
    world.conductor.pause("crm", "ann", "lunch")
    one = world.conductor.backfill("crm.customer", "ann")
    work(world, 5)
    assert world.conductor.tasks.get(one).message == "crm is paused: lunch" and held(world) == []


def test_bad_input_is_refused_in_words(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    backfill = world.conductor.backfill
    with pytest.raises(ValueError, match=r"no subscriber 'crm\.thing'; there are: crm\.customer"):
        backfill("crm.thing", "ann")
    with pytest.raises(ValueError, match="customer has no column 'land'; it has id, name"):
        backfill("crm.customer", "ann", {"land": "DE"})
    with pytest.raises(ValueError, match="'many' is no int, as id needs"):
        backfill("crm.customer", "ann", {"id": "many"})
    with pytest.raises(ValueError, match="'perhaps' is no bool"):
        backfill("crm.customer", "ann", {"active": "perhaps"})
    monkeypatch.setattr(type(world.conductor.subscribers["crm.customer"]), "changed_since", Subscriber.changed_since)
    with pytest.raises(ValueError, match="would be created a second time"):
        backfill("crm.customer", "ann")
    assert world.conductor.tasks.list() == []


@pytest.mark.parametrize(
    "where, count", [({"active": "no"}, 1), ({"phone": ""}, 5), ({"id": "2"}, 1), ({"phone": "1", "country": "FR"}, 0)]
)
def test_a_filter_compares_as_its_column_does(world: World, where: dict[str, str], count: int) -> None:
    with world.conductor.database.write() as c:
        c.execute(sa.update(CUSTOMER).where(CUSTOMER.c.id == 2).values(active=False, phone="1"))
    one = world.conductor.backfill("crm.customer", "ann", where)
    assert world.conductor.tasks.get(one).total is None  # a click counts no table
    world.conductor.tasks.run_some()
    assert world.conductor.tasks.get(one).total == count


def test_a_record_edited_meanwhile_is_sent_as_it_is_now(world: World) -> None:
    world.conductor.backfill("crm.customer", "ann")
    for _ in range(3):
        world.conductor.tasks.run_some()
    with world.conductor.database.write() as c:
        c.execute(sa.update(CUSTOMER).where(CUSTOMER.c.id == 1).values(name="Ada Lovelace"))
    work(world)
    assert "Ada Lovelace" in held(world) and len(world.systems["crm"].writes()) == 6
    with world.conductor.database.read() as c:
        assert c.execute(sa.select(Link.id).where(Link.owed_change > Link.synced_change)).all() == []


def test_after_an_hour_the_rest_is_left_to_its_own_attempts(world: World) -> None:
    world.systems["crm"].fail(SystemDown("503"), times=1000)
    one = world.conductor.backfill("crm.customer", "ann")
    world.systems["crm"].calls.clear()
    work(world, 10)
    assert world.conductor.tasks.get(one).state == "running"
    world.clock.now += timedelta(hours=1)
    work(world, 1)
    task = world.conductor.tasks.get(one)
    assert (task.state, task.message) == ("done", "6 sent, 0 were there already; 6 under way")


def test_with_scheduler_relay_and_workers_at_work(database: Database) -> None:
    with database.write() as c:
        c.execute(sa.insert(CUSTOMER), [{"name": f"Ada {n:03}"} for n in range(300)])
        c.execute(sa.update(Change).values(relayed_at=Change.at))
    hub, stop = Hub(database, "crm"), threading.Event()
    tasks = threading.Thread(target=run_tasks, args=(hub.conductor, stop))
    with hub.relaying(), hub.working():
        tasks.start()
        one = hub.conductor.backfill("crm.customer", "ann")
        until(lambda: hub.conductor.tasks.get(one).state == "done", "the backfill does not end")
        stop.set()
        tasks.join()
    assert hub.held("crm") == [f"Ada {n:03}" for n in range(300)] and hub.outstanding() == 0
    assert hub.conductor.tasks.get(one).succeeded == 300


def test_a_page_whose_effects_were_lost_is_read_again_also_where_pages_share_a_position(
    database: Database, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed_since(self: Any, position: Any) -> Any:  # records of one second, several pages of them
        for key in list(self.client.store):
            yield Page([self.client.external(key)], {"since": "the same"})

    crm, subscriber = world.systems["crm"], type(world.conductor.subscribers["crm.customer"])
    monkeypatch.setattr(subscriber, "changed_since", changed_since)
    for n in range(3):
        crm.add(name=f"Ada {n}", email=f"ada{n}@x.org")
    world.conductor.backfill("crm.customer", "ann")
    world.conductor.tasks.run_some()
    away = sa.exc.OperationalError("COMMIT", None, Exception("the database is away"))
    with monkeypatch.context() as patch, pytest.raises(sa.exc.OperationalError):
        patch.setattr(world.conductor.tasks, "_commit", lambda *_: (_ for _ in ()).throw(away))
        world.conductor.tasks.run_some()
    world.clock.tick(100)
    work(world)
    assert held(world) == [f"Ada {n}" for n in range(6)]


def test_a_record_there_that_cannot_be_written_down_ends_no_backfill(world: World, database: Database) -> None:
    subscriber = world.conductor.subscribers["crm.customer"]
    fields = {"name": "name", "email": "email", "notes": Field("notes", direction="out")}
    subscriber.mapper = subscriber.default_mapper = Mapper(subscriber.records, fields)
    world.systems["crm"].add(name="Ada 0", email="ada0@x.org", notes=10**30)
    one = world.conductor.backfill("crm.customer", "ann")
    work(world)
    assert world.conductor.tasks.get(one).state == "done"
    assert [record_id for record_id, _ in bad_letters(world)] == ["1"] and len(held(world)) == 6
