"""Reconcile finds differences that the hub did not capture, per field, and repairs them on request."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from conductor.tasks.reconcile import MISSING_HERE, MISSING_THERE
from models.catalogues import Customer
from models.ledger import Change, Link, System
from models.session import Database
from subscribers.errors import Retry, SystemDown
from subscribers.mapping.fields import Field
from tests.support.fakes import TestHub
from tests.support.records import rows

CUSTOMER = Customer.__table__


@pytest.fixture
def hub(database: Database) -> TestHub:
    """Return a hub with five customers, all present in the external system."""
    hub = TestHub(database, "crm")
    for n in range(1, 6):  # one at a time, so that crm_3 belongs to record 3
        with database.write() as c:
            c.execute(sa.insert(CUSTOMER).values(name=f"Ada {n}", phone=str(n)))
        hub.run()
    hub.clock.tick(60)
    return hub


def edit_unseen(hub: TestHub, record_id: int, **values: Any) -> None:
    """Edit a record without a captured change, as restoring a backup does."""
    with hub.conductor.database.write() as c:
        c.execute(sa.update(CUSTOMER).where(CUSTOMER.c.id == record_id).values(**values))
        c.execute(sa.delete(Change).where(Change.relayed_at.is_(None)))


def work(hub: TestHub, task_id: int) -> Any:
    for _ in range(30):
        hub.conductor.tasks.run_some()
        hub.conductor.sweep()
        hub.run()
        hub.clock.tick(2)
        if (task := hub.conductor.tasks.get(task_id)).state != "running":
            return task
    return task


def names(hub: TestHub) -> list[str]:
    with hub.conductor.database.read() as c:
        return list(c.execute(sa.select(CUSTOMER.c.name).order_by(CUSTOMER.c.id)).scalars())


def drift_apart(hub: TestHub) -> None:
    """Change one field in the system and two in the database, and delete one record on each side."""
    crm = hub.systems["crm"]
    crm.edit("crm_1", name="Theirs")
    edit_unseen(hub, 2, phone="22", name="Ours")
    crm.remove("crm_3")
    with hub.conductor.database.write() as c:
        c.execute(sa.delete(CUSTOMER).where(CUSTOMER.c.id == 4))
        c.execute(
            sa.update(Change).where(Change.relayed_at.is_(None)).values(relayed_at=hub.clock.now)
        )  # owed by no link
    crm.calls.clear()


def test_two_sides_that_agree_have_no_drift(hub: TestHub) -> None:
    task = work(hub, hub.conductor.tasks.start("reconcile", "ann", subscriber="crm.customer"))
    assert (task.state, task.total, task.done, task.succeeded, task.failed) == ("done", 5, 5, 5, 0)
    assert task.message == "no drift" and hub.systems["crm"].calls[5:] == [("fetch", f"crm_{n}") for n in range(1, 6)]


def test_differences_are_reported_by_field_and_not_changed(hub: TestHub) -> None:
    drift_apart(hub)
    task = work(hub, hub.conductor.tasks.start("reconcile", "ann", subscriber="crm.customer"))
    assert (task.done, task.succeeded, task.failed) == (5, 1, 4)
    assert task.position["fields"] == {"name": 2, "phone": 1, MISSING_THERE: 1, MISSING_HERE: 1}
    assert ["1", "crm_1", "name", "Ada 1", "Theirs"] in task.position["examples"]
    assert ["2", "crm_2", "phone", "22", "2"] in task.position["examples"]
    assert task.message == "4 records differ: (deleted here) 1, (missing there) 1, name 2, phone 1"
    assert hub.systems["crm"].writes() == [] and names(hub) == ["Ada 1", "Ours", "Ada 3", "Ada 5"]


def test_after_a_repair_both_sides_agree(hub: TestHub) -> None:
    drift_apart(hub)
    task = work(hub, hub.conductor.tasks.start("reconcile", "ann", subscriber="crm.customer", repair=True))
    assert task.failed == 4 and "being repaired" in task.message
    for _ in range(3):
        hub.conductor.sweep()
        hub.run()
    assert names(hub) == ["Theirs", "Ours", "Ada 3", "Ada 5"]
    assert sorted((d["name"], d["phone"]) for d in hub.shown("crm")) == [
        ("Ada 5", "5"), ("Ours", "22"), ("Theirs", "1"),
    ]  # fmt: skip
    again = work(hub, hub.conductor.tasks.start("reconcile", "ann", subscriber="crm.customer"))
    assert (again.message, again.total) == ("no drift", 4), "the one that was deleted there is looked up, too"


def test_pending_changes_are_not_differences(hub: TestHub) -> None:
    with hub.conductor.database.write() as c:
        c.execute(sa.update(CUSTOMER).where(CUSTOMER.c.id == 2).values(name="New"))
    hub.conductor.relay()
    hub.publisher.published.clear()
    one = hub.conductor.tasks.start("reconcile", "ann", subscriber="crm.customer")
    hub.conductor.tasks.run_some()
    assert hub.conductor.tasks.get(one).failed == 0


def test_a_lease_that_ran_out_hides_no_drift(hub: TestHub) -> None:
    drift_apart(hub)
    with hub.conductor.database.write() as c:  # as left by a worker that died during a fetch
        left = {"lease_owner": "died", "lease_until": hub.clock.now}
        c.execute(sa.update(Link).where(Link.record_id == "1").values(**left))
    task = work(hub, hub.conductor.tasks.start("reconcile", "ann", subscriber="crm.customer"))
    assert task.failed == 4


def test_a_normalized_value_and_an_inward_field_are_not_differences(database: Database) -> None:
    hub = TestHub(database, "crm", field_to_data={"name": "name", "phone": Field("phone", direction="in")})
    with database.write() as c:
        c.execute(sa.insert(CUSTOMER).values(name="Ada", phone="1"))
    hub.run()
    with database.write() as c:
        c.execute(sa.update(Link).values(remote_values={"name": "ADA"}))
    hub.systems["crm"].edit("crm_1", name="ADA", phone=None)
    task = work(hub, hub.conductor.tasks.start("reconcile", "ann", subscriber="crm.customer"))
    assert task.message == "1 record differs: phone 1"  # the hub has not received the system's phone yet


def test_a_reconcile_waits_while_the_system_is_down_and_counts_unreadable_records(hub: TestHub) -> None:
    crm = hub.systems["crm"]
    crm.fail(SystemDown("503"))
    one = hub.conductor.tasks.start("reconcile", "ann", subscriber="crm.customer")
    hub.conductor.tasks.run_some()
    assert (hub.conductor.tasks.get(one).message, hub.conductor.tasks.get(one).done) == ("503", 0)
    crm.fail(Retry("a lock"))
    task = work(hub, one)
    assert (task.done, task.message) == (5, "no drift; 1 could not be read")


def test_a_system_that_fails_during_a_repair_counts_as_down(hub: TestHub) -> None:
    drift_apart(hub)
    crm = hub.systems["crm"]

    def fail_second_fetch(kind: str, what: str) -> None:
        if crm.calls.count(("fetch", "crm_1")) == 2:
            crm.fail(SystemDown("503", after=30))

    crm.on_call = fail_second_fetch
    one = hub.conductor.tasks.start("reconcile", "ann", subscriber="crm.customer", repair=True)
    hub.conductor.tasks.run_some()
    crm.on_call = lambda kind, what: None
    assert (hub.conductor.tasks.get(one).message, hub.conductor.tasks.get(one).done) == ("503", 0)
    assert rows(hub, System, System.name == "crm")[0].down_since is not None
    hub.clock.tick(60)
    assert work(hub, one).failed == 4 and names(hub)[0] == "Theirs"


def test_many_external_deletions_are_not_repaired_without_confirmation(hub: TestHub) -> None:
    crm = hub.systems["crm"]
    crm.delete_limit = 2
    type(hub.conductor.subscribers["crm.customer"]).on_gone = "delete"
    for number in range(1, 6):
        crm.remove(f"crm_{number}")
    one = hub.conductor.tasks.start("reconcile", "ann", subscriber="crm.customer", repair=True)
    work(hub, one)
    assert len(names(hub)) == 3 and "paused" in hub.conductor.tasks.get(one).message


def test_many_pages_stopped_and_gone_on_with(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conductor.tasks.reconcile.PAGE", 2)
    drift_apart(hub)
    one = hub.conductor.tasks.start("reconcile", "ann", subscriber="crm.customer")
    hub.conductor.tasks.run_some()
    hub.conductor.tasks.stop(one, "ann")
    assert hub.conductor.tasks.get(one).done == 2
    assert hub.conductor.tasks.start("reconcile", "bob", subscriber="crm.customer") == one
    task = work(hub, one)
    assert (task.done, task.failed) == (5, 4)
    assert len(task.position["examples"]) == 5


def test_an_unknown_subscriber_is_refused(hub: TestHub) -> None:
    with pytest.raises(ValueError, match=r"unknown subscriber 'crm\.thing'"):
        hub.conductor.tasks.start("reconcile", "ann", subscriber="crm.thing")


@pytest.mark.parametrize("policy", ["archive", "ignore"])
def test_a_deleted_record_that_the_system_keeps_by_policy_is_not_a_difference(database: Database, policy: str) -> None:
    hub = TestHub(database, "crm", on_delete=policy, archive_data={"notes": "archived"})
    with database.write() as c:
        c.execute(sa.insert(CUSTOMER).values(name="Ada"))
    hub.run()
    with database.write() as c:
        c.execute(sa.delete(CUSTOMER))
    hub.run()
    hub.clock.tick(60)
    writes = len(hub.systems["crm"].writes())
    task = work(hub, hub.conductor.tasks.start("reconcile", "ann", subscriber="crm.customer", repair=True))
    assert (task.message, len(hub.systems["crm"].writes())) == ("no drift", writes)


@pytest.mark.parametrize("repair", [False, True])
def test_a_number_that_no_column_can_store_is_reported_as_a_difference(hub: TestHub, repair: bool) -> None:
    hub.systems["crm"].edit("crm_1", phone=10**30)
    task = work(hub, hub.conductor.tasks.start("reconcile", "ann", subscriber="crm.customer", repair=repair))
    assert (task.state, task.done, task.failed) == ("done", 5, 1)
