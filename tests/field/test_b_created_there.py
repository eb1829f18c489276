"""Chains and cycles of records that were created in a system: docs/explanation/field-faults.md, row B27."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from conductor.inward.inbox import store_polled
from models.capture import sync_context
from models.catalogues import Catalogue
from models.ledger import DeadLetter, Delivery, Inbox, Link
from models.session import Database
from subscribers.errors import Reject, SystemDown
from subscribers.mapping import link_to
from subscribers.records import Page
from tests.support.dead_letters import open_letters
from tests.support.fakes import FakeSubscriber, TestHub
from tests.support.own_tables import owned, table
from tests.support.records import rows, webhook

EMPLOYEE = table("employee", None, sa.Column("name", sa.Text()), sa.Column("manager_id", sa.Integer()))
BADGE = table("badge", None, sa.Column("name", sa.Text()), sa.Column("employee_id", sa.Integer(), nullable=False))


class Org:
    """Employees, whose manager is an employee, and badges, each of an employee; both as a system has them."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def connect(self, *systems: str, required: bool = False, on_gone: str = "unlink") -> TestHub:
        manager = link_to("employee", "manager", required=required)
        employees = {"catalogue": "employee", "field_to_data": {"name": "name", "manager_id": manager}}
        holder = link_to("employee", "holder")
        badges = {
            "catalogue": "badge",
            "resource": "pass",
            "look_first": "fetch",
            "field_to_data": {"name": "code", "employee_id": holder},
        }
        kinds = [type("Employees", (FakeSubscriber,), employees), type("Badges", (_OfBadges,), badges)]
        self.hub = TestHub(self.database, *(systems or ("crm",)), kinds=kinds, on_gone=on_gone)
        return self.hub

    def hire(self, *managers: int | None) -> list[str]:
        """Create employees there, the n-th with the manager of this number; return their ids."""
        crm = self.hub.systems["crm"]
        ids = [crm.add(name=f"e{number}").id for number in range(1, len(managers) + 1)]
        for external_id, manager in zip(ids, managers, strict=True):
            crm.edit(external_id, manager=None if manager is None else f"crm_{manager}")
        return ids

    def arrive(self, how: str, ids: list[str]) -> None:
        """Have the hub see these records, in this order."""
        if how == "webhook":
            for number, external_id in enumerate(ids):
                webhook(self.hub, "crm", f"e{number}-{external_id}", external_id)
            self.hub.run(rounds=200)
        else:
            for external_id in ids:
                self.hub.clock.tick()
                self.hub.systems["crm"].edit(external_id)
            self.hub.conductor.poll("crm.employee")

    def settle(self, times: int = 8) -> None:
        for _ in range(times):
            self.hub.clock.tick(5)
            self.hub.conductor.sweep()
            self.hub.run(rounds=200)

    def here(self) -> dict[str, str | None]:
        """Return name -> name of the manager, as the database has them."""
        with self.database.read() as connection:
            found = connection.execute(sa.select(EMPLOYEE)).all()
        names = {None: None} | {row.id: row.name for row in found}
        return {row.name: names[row.manager_id] for row in found}

    def there(self, system: str) -> dict[str, str | None]:
        store = self.hub.systems[system].store
        names = {None: None} | {key: data["name"] for key, data in store.items()}
        return {data["name"]: names[data.get("manager")] for data in store.values()}


@pytest.fixture
def org(database: Database) -> Iterator[Org]:
    with owned(database, Catalogue("employee", EMPLOYEE)), owned(database, Catalogue("badge", BADGE)):
        yield Org(database)


class _OfBadges(FakeSubscriber):
    """Badges, which are not polled: the system has them in one list with its employees."""

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Any]:
        return iter(())

    def list_all(self, position: dict[str, Any] | None) -> Iterator[Page]:
        yield Page([self.client.external(key) for key, data in self.client.store.items() if "code" in data], {})


def _is_settled(hub: TestHub) -> bool:
    waiting = rows(hub, Inbox, Inbox.state == "waiting")
    return open_letters(hub) == [] and rows(hub, Link, Link.owed_change > Link.synced_change) == [] and waiting == []


@pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])
@pytest.mark.parametrize("how", ["webhook", "poll"])
def test_b27_a_chain_created_there_arrives_in_the_worst_order(org: Org, how: str, required: bool) -> None:
    # One system with a required reference: the last of the chain has none, so another system would refuse it.
    hub = org.connect(*(("crm",) if required else ("crm", "shop")), required=required)
    ids = org.hire(*range(2, 31), None)
    org.arrive(how, ids)
    org.settle(times=40)
    expected = {f"e{n}": f"e{n + 1}" for n in range(1, 30)} | {"e30": None}
    assert org.here() == expected and all(org.there(system) == expected for system in hub.systems)
    assert hub.systems["crm"].writes() == [], "nothing that was left out goes back as an edit"
    assert rows(hub, DeadLetter) == [] and _is_settled(hub)


@pytest.mark.parametrize("size", [1, 2, 3, 30])
@pytest.mark.parametrize("how", ["webhook", "poll"])
def test_b27_a_cycle_created_there_is_completed_by_a_second_write(org: Org, how: str, size: int) -> None:
    hub = org.connect("crm", "shop")
    ids = org.hire(*(number % size + 1 for number in range(1, size + 1)))
    org.arrive(how, ids)
    org.settle()
    expected = {f"e{n}": f"e{n % size + 1}" for n in range(1, size + 1)}
    assert org.here() == expected and org.there("shop") == expected and org.there("crm") == expected
    assert hub.systems["crm"].writes() == [] and rows(hub, DeadLetter) == [] and _is_settled(hub)


@pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])
def test_b27_only_the_newest_record_of_a_chain_is_reported(org: Org, required: bool) -> None:
    org.connect(required=required)
    ids = org.hire(2, 3, 4, None)
    org.arrive("webhook", ids[:1])  # the events of the others were lost
    org.settle()
    assert org.here() == {"e1": "e2", "e2": "e3", "e3": "e4", "e4": None} and _is_settled(org.hub)


def _tell(org: Org, external_id: str) -> None:
    """Store a badge as a poll that could not apply it does, and process it."""
    hub = org.hub
    with org.database.write() as connection:
        external = hub.systems["crm"].external(external_id)
        store_polled(hub.conductor.context, connection, hub.conductor.subscribers["crm.badge"], external)
    org.settle()


def _badges(org: Org) -> list[str]:
    with org.database.read() as connection:
        return list(connection.execute(sa.select(BADGE.c.name)).scalars())


def test_b27_a_required_reference_waits_for_the_related_record_not_for_attempts(org: Org) -> None:
    hub = org.connect()
    crm = hub.systems["crm"]
    org.hire(None)
    badge = crm.add(code="b1", holder="crm_1").id

    def is_down(kind: str, what: str) -> None:
        if what != badge:
            raise SystemDown("maintenance")

    crm.on_call = is_down
    _tell(org, badge)
    crm.on_call = _down
    for _ in range(3 * hub.conductor.context.policy.max_attempts):
        hub.clock.tick(4000)
        org.settle(times=1)
    assert _badges(org) == [] and rows(hub, DeadLetter) == []
    crm.on_call = lambda kind, what: None
    hub.clock.tick(4000)
    org.settle()
    assert _badges(org) == ["b1"] and org.here() == {"e1": None} and _is_settled(hub)


def test_b27_a_related_record_that_does_not_exist_ends_the_waiting(org: Org) -> None:
    hub = org.connect()
    badge = hub.systems["crm"].add(code="b1", holder="crm_9").id
    _tell(org, badge)
    (letter,) = open_letters(hub)
    assert (
        letter.code == "relation_missing" and "its employee crm_9 is not here: deleted in the system" in letter.message
    )
    crm = hub.systems["crm"]
    crm.store["crm_9"], crm.changed["crm_9"] = {"name": "late"}, hub.clock()
    webhook(hub, "crm", "e9", "crm_9")
    org.settle()
    assert _badges(org) == ["b1"] and _is_settled(hub), "it arrived after all"


def test_b27_a_related_record_that_cannot_be_applied_is_named(org: Org) -> None:
    hub = org.connect()
    crm = hub.systems["crm"]
    org.hire(None)
    badge = crm.add(code="b1", holder="crm_1").id
    crm.on_call = lambda kind, what: _refuse(what == "crm_1")
    _tell(org, badge)
    letters = {letter.subscriber: letter for letter in open_letters(hub)}
    assert "its employee crm_1 cannot be applied here: hidden" in letters["crm.badge"].message
    crm.on_call = lambda kind, what: None
    hub.conductor.dead_letters.retry(letters["crm.employee"].id, "ann")
    org.settle()
    assert _badges(org) == ["b1"] and _is_settled(hub), "the one that waited follows"


def _down(kind: str, what: str) -> None:
    raise SystemDown("maintenance")


def _refuse(refused: bool) -> None:
    if refused:
        raise Reject("hidden")


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("how", ["webhook", "poll"])
def test_b27_a_cycle_of_required_references_created_there_ends_in_dead_letters(org: Org, how: str, size: int) -> None:
    hub = org.connect(required=True)
    org.arrive(how, org.hire(*(number % size + 1 for number in range(1, size + 1))))
    org.settle(times=20)
    codes = {letter.code for letter in open_letters(hub)}
    assert "relation_cycle" in codes and codes <= {"relation_cycle", "relation_dead"}
    assert org.here() == {} and rows(hub, Inbox, Inbox.state == "waiting") == []


@pytest.mark.parametrize("how", ["webhook", "poll"])
def test_b27_an_optional_reference_to_a_record_that_never_comes_is_left_out(org: Org, how: str) -> None:
    hub = org.connect("crm", "shop")
    (one,) = org.hire(None)
    hub.systems["crm"].edit(one, manager="crm_9")
    org.arrive(how, [one])
    org.settle()
    assert org.here() == {"e1": None} and org.there("shop") == {"e1": None} and _is_settled(hub)
    (created,) = rows(hub, Delivery, Delivery.direction == "in", Delivery.operation == "create")
    assert "without its employee crm_9, which is not linked yet" in created.reason
    calls = len(hub.systems["crm"].calls)
    hub.conductor.poll("crm.employee")
    org.settle()
    assert len(hub.systems["crm"].calls) == calls, "and is not looked for again and again"
    crm = hub.systems["crm"]
    hub.clock.tick()
    crm.store["crm_9"], crm.changed["crm_9"] = {"name": "late"}, hub.clock()
    webhook(hub, "crm", "e9", "crm_9")
    org.settle()
    assert org.here() == {"e1": "late", "late": None} and org.there("shop") == org.here()


def test_b27_an_edit_here_while_a_reference_is_left_out_sends_no_empty_one(org: Org) -> None:
    hub = org.connect()
    crm = hub.systems["crm"]
    (one,) = org.hire(None)
    crm.edit(one, manager="crm_9")
    org.arrive("webhook", [one])
    org.settle()
    with org.database.write() as connection:
        connection.execute(sa.update(EMPLOYEE).values(name="ours"))
    org.settle()
    assert crm.store[one]["name"] == "ours" and crm.store[one]["manager"] == "crm_9"


@pytest.mark.parametrize("how", ["webhook", "poll"])
def test_b27_a_linked_record_keeps_its_reference_until_the_new_one_is_linked(org: Org, how: str) -> None:
    hub = org.connect("crm", "shop")
    crm = hub.systems["crm"]
    ids = org.hire(2, None)
    org.arrive("webhook", ids)
    org.settle()
    crm.store["crm_3"], crm.changed["crm_3"] = {"name": "e3"}, hub.clock()
    hub.clock.tick(3)
    crm.edit(ids[0], manager="crm_3", name="edited")
    calls = len(crm.writes())
    if how == "poll":
        hub.conductor.poll("crm.employee")
    else:
        webhook(hub, "crm", "later", ids[0])
        hub.run()
        assert org.here()["edited"] == "e2"
    org.settle()
    assert org.here() == {"edited": "e3", "e2": None, "e3": None} and org.there("shop") == org.here()
    assert len(crm.writes()) == calls and _is_settled(hub)


def test_b27_a_backfill_completes_references_too(org: Org) -> None:
    hub = org.connect()
    org.hire(2, 1)
    with org.database.write() as connection:
        connection.execute(sa.insert(EMPLOYEE), [{"name": "e1"}, {"name": "e2"}])
    hub.conductor.subscribers["crm.employee"].__class__.match_on = ("name",)
    hub.conductor.tasks.start("backfill", "ann", subscriber="crm.employee")
    for _ in range(9):
        hub.conductor.tasks.run_some()
        org.settle()
    assert org.here() == {"e1": "e2", "e2": "e1"} and hub.systems["crm"].writes() == []


def test_b27_a_discarded_event_stays_discarded(org: Org) -> None:
    hub = org.connect()
    badge = hub.systems["crm"].add(code="b1", holder="crm_9").id
    _tell(org, badge)
    (row,) = rows(hub, Inbox, Inbox.state == "dead")
    hub.conductor.replay.discard(row.id, "ann", "not ours")
    crm = hub.systems["crm"]
    crm.store["crm_9"], crm.changed["crm_9"] = {"name": "late"}, hub.clock()
    webhook(hub, "crm", "e9", "crm_9")
    org.settle()
    assert _badges(org) == []


def test_b27_a_look_before_our_write_has_the_related_record_read(org: Org) -> None:
    hub = org.connect()
    crm = hub.systems["crm"]
    org.hire(None)
    badge = crm.add(code="b1", holder="crm_1").id
    _tell(org, badge)
    crm.store["crm_9"], crm.changed["crm_9"] = {"name": "e9"}, hub.clock()
    hub.clock.tick()
    crm.edit(badge, holder="crm_9")
    with org.database.write() as connection:
        connection.execute(sa.update(BADGE).values(name="ours"))
    org.settle()
    assert crm.store[badge] == {"code": "ours", "holder": "crm_9"} and org.here() == {"e1": None, "e9": None}
    assert rows(hub, DeadLetter) == [] and _is_settled(hub)


def test_b27_a_backfill_names_the_one_that_has_to_come_first(org: Org) -> None:
    hub = org.connect()
    crm = hub.systems["crm"]
    org.hire(None)
    crm.add(code="b1", holder="crm_1")
    with org.database.write() as connection, sync_context(connection, origin="crm"):
        connection.execute(sa.insert(EMPLOYEE), [{"name": "e1"}])
        connection.execute(sa.insert(BADGE), [{"name": "b1", "employee_id": 1}])
    for subscriber, key in (("crm.employee", "name"), ("crm.badge", "name")):
        hub.conductor.subscribers[subscriber].__class__.match_on = (key,)
    _backfill(org, "crm.badge")
    (letter,) = open_letters(hub)
    assert (
        "its employee crm_1 is not linked yet (backfill crm.employee first, and then crm.badge again)" in letter.message
    )
    assert crm.writes() == [], "no second badge"
    _backfill(org, "crm.employee")
    _backfill(org, "crm.badge")
    assert open_letters(hub) == [] and crm.writes() == []
    with org.database.read() as connection:
        assert connection.execute(sa.select(BADGE.c.name, BADGE.c.employee_id)).all() == [("b1", 1)]


def _backfill(org: Org, subscriber: str) -> None:
    org.hub.conductor.tasks.start("backfill", "ann", subscriber=subscriber)
    for _ in range(9):
        org.hub.conductor.tasks.run_some()
        org.settle()


@pytest.mark.parametrize("on_gone", ["unlink", "recreate", "delete"])
def test_b27_lost_records_that_refer_to_one_another_are_linked_again(org: Org, on_gone: str) -> None:
    hub = org.connect(on_gone=on_gone)
    crm = hub.systems["crm"]
    ids = org.hire(2, 3, None)
    org.arrive("webhook", ids)
    org.settle()
    before = org.here()
    right, crm.store = crm.store, {}
    hub.clock.tick(3)
    for number, external_id in enumerate(ids):
        webhook(hub, "crm", f"gone{number}", external_id)
        hub.conductor.receive(rows(hub, Inbox)[-1].id)
    assert hub.conductor.relinking.count("crm") == 3
    with org.database.write() as connection, sync_context(connection, origin="crm"):
        connection.execute(sa.insert(EMPLOYEE), [{"id": 100, "name": "x"}])  # or SQLite gives the old ids again
    crm.store = right | {"crm_4": {"name": "e4", "manager": None}}
    crm.changed["crm_4"] = hub.clock()
    crm.edit(ids[1], manager="crm_4")
    hub.conductor.relinking.relink("crm", "ann")
    org.settle()
    assert org.there("crm") == before | {"e2": "e4", "e4": None}
    assert org.here() == org.there("crm") | {"x": None}
    assert crm.writes() == [] and _is_settled(hub)
    fetches = [what for kind, what in crm.calls if kind == "fetch" and what == "crm_3"]
    assert len(fetches) <= 5, "a reference that is as it was is not pulled"
