"""Backfill sends existing records to a new subscriber once, at a limited rate, and links those it already has."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from models.catalogues import Customer
from models.ledger import Change, DeadLetter, Link
from models.session import Database
from subscribers.base import Subscriber
from subscribers.errors import Reject, Retry, SystemDown
from subscribers.mapping.fields import Field
from subscribers.mapping.mapper import Mapper
from subscribers.records import Page
from tests.support.dead_letters import retry_all
from tests.support.fakes import TestHub
from tests.support.records import mark
from tests.support.runtimes import Hub, until
from workers.scheduler import run_tasks

CUSTOMER = Customer.__table__


@pytest.fixture
def hub(database: Database) -> TestHub:
    """Return a hub with six customers that existed before any subscriber followed them."""
    with database.write() as c:
        rows = [{"name": f"Ada {n}", "email": f"ada{n}@x.org", "country": "DE" if n % 2 else "FR"} for n in range(6)]
        c.execute(sa.insert(CUSTOMER), rows)
        c.execute(sa.update(Change).values(relayed_at=Change.at))
    return TestHub(database, "crm", match_on=("email",))


def work(hub: TestHub, steps: int = 40) -> None:
    """Run the work of scheduler, relay and workers."""
    for _ in range(steps):
        hub.conductor.tasks.run_some()
        hub.conductor.sweep()
        hub.run()
        hub.clock.tick(2)
        if not hub.conductor.tasks.list(unfinished=True):
            return


def held(hub: TestHub) -> list[str]:
    return sorted(data["name"] for data in hub.systems["crm"].store.values())


def bad_letters(hub: TestHub) -> list[tuple[str, str]]:
    with hub.conductor.database.read() as c:
        is_open = DeadLetter.closed_at.is_(None)
        found = sa.select(DeadLetter.record_id, DeadLetter.message).where(is_open).order_by(DeadLetter.record_id)
        return [(str(row.record_id), row.message) for row in c.execute(found)]


def test_a_backfill_delivers_every_record_once_in_pages(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conductor.tasks.backfill.PAGE", 2)
    one = hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer")
    work(hub)
    task = hub.conductor.tasks.get(one)
    assert (task.state, task.total, task.done, task.succeeded, task.failed) == ("done", 6, 6, 6, 0)
    assert task.message == "6 sent, 0 existed already"
    assert held(hub) == [f"Ada {n}" for n in range(6)]
    assert [kind for kind, _ in hub.systems["crm"].writes()] == ["create"] * 6
    two = hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer")
    work(hub)
    assert two != one and hub.conductor.tasks.get(two).message == "0 sent, 6 existed already"
    assert len(hub.systems["crm"].writes()) == 6


def test_existing_external_records_are_linked_and_not_created_again(hub: TestHub) -> None:
    crm = hub.systems["crm"]
    crm.add(name="Ada 1", email="ada1@x.org", phone="111")
    crm.add(name="Stranger", email="nobody@x.org")
    hub.clock.tick()
    one = hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer")
    work(hub)
    assert len(crm.store) == 7 and hub.conductor.tasks.get(one).message == "5 sent, 1 existed already"
    with hub.conductor.database.read() as c:
        (phone,) = c.execute(sa.select(CUSTOMER.c.phone).where(CUSTOMER.c.email == "ada1@x.org")).one()
        assert c.execute(sa.select(sa.func.count()).select_from(CUSTOMER)).scalar() == 6, "the stranger stays there"
    assert phone == "111", "the empty column took the external value"


def test_one_that_carries_our_id_is_linked_without_match_on(hub: TestHub) -> None:
    hub.conductor.subscribers["crm.customer"].__class__.match_on = ()
    hub.systems["crm"].add(name="Old name", hub_id=mark(hub, 3))
    hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer")
    work(hub)
    assert len(hub.systems["crm"].store) == 6 and "Old name" not in held(hub)


def test_a_filter_limits_the_records_of_both_sides(hub: TestHub) -> None:
    hub.systems["crm"].add(name="Not meant", email="ada0@x.org")
    one = hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer", where={"country": "DE"})
    work(hub)
    task = hub.conductor.tasks.get(one)
    assert (task.total, task.done) == (3, 3)
    assert held(hub) == ["Ada 1", "Ada 3", "Ada 5", "Not meant"]


def test_stopped_and_gone_on_with_by_another_process(
    hub: TestHub, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conductor.tasks.backfill.PAGE", 2)
    one = hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer")
    while hub.conductor.tasks.get(one).done < 2:
        work(hub, 1)
    hub.conductor.tasks.stop(one, "ann")
    work(hub, 5)
    assert held(hub) == ["Ada 0", "Ada 1"]
    other = TestHub(database, "crm", match_on=("email",))
    other.clock, other.systems = hub.clock, hub.systems
    other.conductor.context.clock = hub.clock
    other.conductor.subscribers["crm.customer"].client = hub.systems["crm"]
    assert other.conductor.tasks.start("backfill", "bob", subscriber="crm.customer") == one, (
        "the same arguments continue the task"
    )
    work(other)
    assert other.conductor.tasks.get(one).state == "done" and held(other) == [f"Ada {n}" for n in range(6)]
    assert [kind for kind, _ in hub.systems["crm"].writes()] == ["create"] * 6


def test_a_backfill_started_twice_runs_once(hub: TestHub) -> None:
    one = hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer")
    assert hub.conductor.tasks.start("backfill", "bob", subscriber="crm.customer") == one
    assert hub.conductor.tasks.start("backfill", "bob", subscriber="crm.customer", where={"country": "DE"}) != one


def test_a_backfill_is_throttled_and_yields_to_live_changes(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conductor.tasks.backfill.PAGE", 2)
    monkeypatch.setattr("conductor.tasks.throttle.BACKLOG_LIMIT", 2)
    one = hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer")
    for _ in range(6):  # no worker delivers
        hub.conductor.tasks.run_some()
        hub.clock.tick(2)
    task = hub.conductor.tasks.get(one)
    assert (task.done, task.message) == (2, "waits: crm has a backlog")
    monkeypatch.setattr(type(hub.conductor.subscribers["crm.customer"]), "batch_size", lambda self, waiting: 4)
    for _ in range(3):  # up to the batch size of one call
        hub.conductor.tasks.run_some()
        hub.clock.tick(2)
    assert hub.conductor.tasks.get(one).done == 4
    hub.conductor.sweep()
    assert hub.publisher.published_later == [("crm.customer", ["1", "2", "3", "4"])] == hub.publisher.published
    work(hub)
    assert hub.conductor.tasks.get(one).succeeded == 6


def test_ambiguous_matches_become_dead_letters(hub: TestHub) -> None:
    with hub.conductor.database.write() as c:
        c.execute(sa.update(CUSTOMER).where(CUSTOMER.c.id.in_([1, 2])).values(email="same@x.org"))
        c.execute(sa.update(Change).values(relayed_at=Change.at))
    crm = hub.systems["crm"]
    there = crm.add(name="Ada 0 or 1", email="same@x.org")
    one = hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer")
    work(hub)
    message = (
        f"several records in the database have the same email as {there.id} (retry to create it in the system anyway)"
    )
    assert bad_letters(hub) == [("1", message), ("2", message)] and len(crm.store) == 5
    task = hub.conductor.tasks.get(one)
    assert (task.state, task.succeeded, task.failed) == ("done", 4, 2) and "2 dead letters" in task.message
    retry_all(hub.conductor, "ann")
    work(hub, 3)
    assert bad_letters(hub) == [] and len(crm.store) == 7


def test_refused_records_are_counted(hub: TestHub) -> None:
    hub.systems["crm"].on_call = lambda kind, what: _refuse(kind, what, "4")
    one = hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer")
    work(hub)
    task = hub.conductor.tasks.get(one)
    assert (task.state, task.succeeded, task.failed) == ("done", 5, 1) and bad_letters(hub) == [("4", "no")]


def _refuse(kind: str, what: str, record_id: str) -> None:
    if (kind, what) == ("create", record_id):
        raise Reject("no")


@pytest.mark.parametrize("error", [SystemDown("503"), Retry("no response in time")])
def test_a_list_that_cannot_be_read_now_is_read_later(
    hub: TestHub, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscriber = hub.conductor.subscribers["crm.customer"]
    whole, failures = type(subscriber).changed_since, [error, error]

    def changed_since(self: Any, position: Any) -> Any:
        if failures:
            raise failures.pop()
        return whole(self, position)

    monkeypatch.setattr(type(subscriber), "changed_since", changed_since)
    hub.systems["crm"].add(name="Ada 1", email="ada1@x.org")
    one = hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer")
    hub.conductor.tasks.run_some()
    assert hub.conductor.tasks.get(one).message == str(error)
    work(hub)
    assert len(hub.systems["crm"].store) == 6 and hub.conductor.tasks.get(one).state == "done"


def test_a_paused_system_gets_nothing_and_the_task_reports_it(hub: TestHub) -> None:
    hub.conductor.systems.pause("crm", "ann", "lunch")
    one = hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer")
    work(hub, 5)
    assert hub.conductor.tasks.get(one).message == "crm is paused: lunch" and held(hub) == []


def test_bad_input_is_refused_with_a_message(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def backfill(name: str, where: dict[str, str] | None = None) -> None:
        hub.conductor.tasks.start("backfill", "ann", subscriber=name, where=where)

    with pytest.raises(ValueError, match=r"unknown subscriber 'crm\.thing'; known subscribers: crm\.customer"):
        backfill("crm.thing")
    with pytest.raises(ValueError, match="customer has no column 'land'; it has id, name"):
        backfill("crm.customer", {"land": "DE"})
    with pytest.raises(ValueError, match="'many' is not of type int, which id requires"):
        backfill("crm.customer", {"id": "many"})
    with pytest.raises(ValueError, match="'perhaps' is not of type bool"):
        backfill("crm.customer", {"active": "perhaps"})
    monkeypatch.setattr(type(hub.conductor.subscribers["crm.customer"]), "changed_since", Subscriber.changed_since)
    with pytest.raises(ValueError, match="would be created a second time"):
        backfill("crm.customer")
    assert hub.conductor.tasks.list() == []


@pytest.mark.parametrize(
    "where, count", [({"active": "no"}, 1), ({"phone": ""}, 5), ({"id": "2"}, 1), ({"phone": "1", "country": "FR"}, 0)]
)
def test_a_filter_compares_as_its_column_does(hub: TestHub, where: dict[str, str], count: int) -> None:
    with hub.conductor.database.write() as c:
        c.execute(sa.update(CUSTOMER).where(CUSTOMER.c.id == 2).values(active=False, phone="1"))
    one = hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer", where=where)
    assert hub.conductor.tasks.get(one).total is None  # the total is not counted when the task starts
    hub.conductor.tasks.run_some()
    assert hub.conductor.tasks.get(one).total == count


def test_a_record_edited_meanwhile_is_sent_as_it_is_now(hub: TestHub) -> None:
    hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer")
    for _ in range(3):
        hub.conductor.tasks.run_some()
    with hub.conductor.database.write() as c:
        c.execute(sa.update(CUSTOMER).where(CUSTOMER.c.id == 1).values(name="Ada Lovelace"))
    work(hub)
    assert "Ada Lovelace" in held(hub) and len(hub.systems["crm"].writes()) == 6
    with hub.conductor.database.read() as c:
        assert c.execute(sa.select(Link.id).where(Link.owed_change > Link.synced_change)).all() == []


def test_after_an_hour_the_rest_is_left_to_its_own_attempts(hub: TestHub) -> None:
    hub.systems["crm"].fail(SystemDown("503"), times=1000)
    one = hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer")
    hub.systems["crm"].calls.clear()
    work(hub, 10)
    assert hub.conductor.tasks.get(one).state == "running"
    hub.clock.now += timedelta(hours=1)
    work(hub, 1)
    task = hub.conductor.tasks.get(one)
    assert (task.state, task.message) == ("done", "6 sent, 0 existed already; 6 under way")


def test_with_scheduler_relay_and_workers_at_work(database: Database) -> None:
    with database.write() as c:
        c.execute(sa.insert(CUSTOMER), [{"name": f"Ada {n:03}"} for n in range(300)])
        c.execute(sa.update(Change).values(relayed_at=Change.at))
    hub, stop = Hub(database, "crm"), threading.Event()
    tasks = threading.Thread(target=run_tasks, args=(hub.conductor, stop))
    with hub.relaying(), hub.working():
        tasks.start()
        one = hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer")
        until(lambda: hub.conductor.tasks.get(one).state == "done", "the backfill does not end")
        stop.set()
        tasks.join()
    assert hub.held("crm") == [f"Ada {n:03}" for n in range(300)] and hub.outstanding() == 0
    assert hub.conductor.tasks.get(one).succeeded == 300


def test_a_page_whose_effects_were_lost_is_read_again_also_where_pages_share_a_position(
    database: Database, hub: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed_since(self: Any, position: Any) -> Any:  # several pages of records from the same second
        for key in list(self.client.store):
            yield Page([self.client.external(key)], {"since": "the same"})

    crm, subscriber = hub.systems["crm"], type(hub.conductor.subscribers["crm.customer"])
    monkeypatch.setattr(subscriber, "changed_since", changed_since)
    for n in range(3):
        crm.add(name=f"Ada {n}", email=f"ada{n}@x.org")
    hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer")
    hub.conductor.tasks.run_some()
    away = sa.exc.OperationalError("COMMIT", None, Exception("the database is away"))
    with monkeypatch.context() as patch, pytest.raises(sa.exc.OperationalError):
        patch.setattr(hub.conductor.tasks, "_commit", lambda *_: (_ for _ in ()).throw(away))
        hub.conductor.tasks.run_some()
    hub.clock.tick(100)
    work(hub)
    assert held(hub) == [f"Ada {n}" for n in range(6)]


def test_an_external_record_that_cannot_be_stored_does_not_stop_a_backfill(hub: TestHub, database: Database) -> None:
    subscriber = hub.conductor.subscribers["crm.customer"]
    fields: dict[str, Field | str] = {"name": "name", "email": "email", "notes": Field("notes", direction="out")}
    subscriber.mapper = subscriber.default_mapper = Mapper(subscriber.records, fields)
    hub.systems["crm"].add(name="Ada 0", email="ada0@x.org", notes=10**30)
    one = hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer")
    work(hub)
    assert hub.conductor.tasks.get(one).state == "done"
    assert [record_id for record_id, _ in bad_letters(hub)] == ["1"] and len(held(hub)) == 6
