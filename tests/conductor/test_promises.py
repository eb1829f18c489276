"""Relations, conflicts, limits, the mass-delete guard: each mechanism has a test that fails without it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from conductor import Policy
from conductor.systems.concurrency import Limits
from models.capture import sync_context
from models.catalogues import Customer, Invoice
from models.ledger import CallSlot, Change, Conflict, Cursor, DeadLetter, Delivery, Inbox, Link, SyncContext, System
from models.session import Database
from subscribers.calls import still_working
from subscribers.errors import Reject, Retry, SystemDown
from subscribers.mapping.fields import Field
from subscribers.records import External, Item
from tests.conductor.test_conductor import add, edit, link, record, rows, webhook
from tests.support.fakes import FakeInvoice, FakeSubscriber, World

INVOICE = Invoice.__table__
CUSTOMER = Customer.__table__


@pytest.fixture
def billing(database: Database) -> Iterator[World]:
    yield World(database, "crm", kinds=(FakeSubscriber, FakeInvoice))


@pytest.fixture
def sqlite_world(migrated_sqlite: Path, tmp_path: Path) -> Iterator[World]:
    shutil.copy(migrated_sqlite, tmp_path / "syncflow.db")
    database = Database(f"sqlite:///{tmp_path / 'syncflow.db'}")
    yield World(database, "crm")
    database.close()


def add_invoice(world: World, customer: str, number: str = "R-1") -> str:
    with world.conductor.database.write() as c:
        statement = sa.insert(INVOICE).values(customer_id=int(customer), number=number)
        return str(c.execute(statement).inserted_primary_key[0])


def bills(world: World) -> list[dict[str, Any]]:
    return [data for data in world.shown("crm") if "number" in data]


def invoice_link(world: World, record_id: str = "1") -> Any:
    (found,) = rows(world, Link, Link.subscriber == "crm.invoice", Link.record_id == record_id)
    return found


# --- relations ------------------------------------------------------------------------------------------


def test_a_related_record_goes_first_and_the_dependent_uses_up_no_attempt(billing: World) -> None:
    customer = add(billing)
    add_invoice(billing, customer)
    billing.conductor.relay()
    billing.ears.heard.clear()
    billing.conductor.deliver("crm.invoice", ["1"])  # its news come first
    assert billing.systems["crm"].calls == []
    assert invoice_link(billing).attempts == 0
    billing.run()
    assert bills(billing) == [{"number": "R-1", "status": "draft", "customer": link(billing, "crm").external_id}]
    assert invoice_link(billing).attempts == 0 and invoice_link(billing).blocked_by is None


def test_a_related_record_that_came_while_it_was_looked_for_is_not_waited_for(
    billing: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer = add(billing)
    add_invoice(billing, customer)
    billing.conductor.relay()
    outward = billing.conductor.outward
    call = outward._call

    def slow(subscriber: Any, *arguments: Any) -> None:
        if subscriber.name() == "crm.invoice":
            billing.conductor.deliver("crm.customer", [customer])  # another worker was quicker
        call(subscriber, *arguments)

    monkeypatch.setattr(outward, "_call", slow)
    billing.conductor.deliver("crm.invoice", ["1"])
    monkeypatch.undo()
    billing.run()  # and no time goes by
    assert len(bills(billing)) == 1


def test_a_related_record_nobody_was_owed_is_brought_over_for_the_dependent(billing: World) -> None:
    customer = add(billing)
    with billing.conductor.database.write() as c:
        c.execute(sa.text("DELETE FROM change"))  # it is older than the hub
    add_invoice(billing, customer)
    billing.run()
    assert len(bills(billing)) == 1


def test_a_dead_parent_is_told_and_brings_its_dependents_with_it_when_mended(billing: World) -> None:
    customer = add(billing)
    billing.systems["crm"].fail(Reject("422: no such country"))
    add_invoice(billing, customer)
    billing.run()
    letters = {letter.subscriber: letter.message for letter in rows(billing, DeadLetter)}
    assert letters["crm.invoice"] == f"its customer {customer} is a dead letter: 422: no such country"
    calls = len(billing.systems["crm"].calls)
    billing.clock.tick(1000)
    billing.conductor.sweep()
    billing.run()
    assert len(billing.systems["crm"].calls) == calls  # told, not looped
    edit(billing, customer, country="IT")
    billing.run()
    assert len(bills(billing)) == 1
    assert all(letter.closed_at is not None for letter in rows(billing, DeadLetter))


def test_records_that_wait_for_one_another_are_told(database: Database) -> None:
    class Circle(FakeInvoice):
        field_to_data = {"number": "number", "customer_id": Field("next", link="invoice")}

    world = World(database, "crm", kinds=(Circle,))
    with database.write() as c:
        c.execute(sa.insert(CUSTOMER), [{"id": number, "name": "x"} for number in (1, 2)])
        c.execute(
            sa.insert(INVOICE), [{"id": 1, "number": "A", "customer_id": 2}, {"id": 2, "number": "B", "customer_id": 1}]
        )
    world.run()
    assert {"wait for one another" in letter.message for letter in rows(world, DeadLetter)} >= {True}
    world.clock.tick(1000)
    world.conductor.sweep()
    world.run()
    assert world.systems["crm"].writes() == []


def test_a_dependent_of_an_unsubscribed_record_is_skipped_with_its_rule_and_comes_with_it(billing: World) -> None:
    customer = add(billing)
    rule = billing.conductor.unsubscribe("crm.customer", None, [customer], None, "freeze", by="ann")
    billing.run()
    add_invoice(billing, customer)
    billing.run()
    skip = rows(billing, Delivery, Delivery.subscriber == "crm.invoice", Delivery.outcome == "skipped")[-1]
    assert f"unsubscription #{rule}" in skip.reason
    assert billing.conductor.missed(rule) == 2
    assert billing.conductor.lift(rule, by="ann", bring=True) == 2
    billing.conductor.sweep()
    billing.run()
    assert len(bills(billing)) == 1


def test_a_relation_that_comes_in_is_our_own_key(billing: World) -> None:
    one, two = add(billing, name="One"), add(billing, name="Two")
    add_invoice(billing, one)
    billing.run()
    billing.clock.tick()
    other = link(billing, "crm", two).external_id
    event = billing.systems["crm"].edit(invoice_link(billing).external_id, customer=other)
    billing.conductor.inward.take(billing.conductor.subscribers["crm.invoice"], event)
    with billing.conductor.database.read() as c:
        assert str(c.execute(sa.select(INVOICE.c.customer_id)).scalar()) == two


# --- conflicts ------------------------------------------------------------------------------------------


@pytest.fixture
def asking(database: Database) -> Iterator[World]:
    mapping = {"name": "name", "notes": Field("notes", conflict="ask"), "phone": "phone"}
    world = World(database, "crm", "shop", field_to_data=mapping)
    one = add(world, notes="base")
    world.run()
    world.clock.tick()
    edit(world, one, notes="ours")
    world.systems["crm"].edit("crm_1", notes="theirs")
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    yield world


def test_a_conflict_is_kept_with_both_versions_and_neither_side_is_written(asking: World) -> None:
    (conflict,) = rows(asking, Conflict)
    assert (conflict.base, conflict.ours, conflict.theirs) == ("base", "ours", "theirs")
    assert record(asking).notes == "ours" and asking.shown("crm")[0]["notes"] == "theirs"
    assert asking.shown("shop")[0]["notes"] == "ours"
    # Other fields of the record flow meanwhile, and the same event again asks nothing new.
    edit(asking, "1", phone="7")
    webhook(asking, "crm", "e2", "crm_1")
    asking.run()
    assert asking.shown("crm")[0] == {"name": "Ada", "notes": "theirs", "phone": "7"}
    assert len(rows(asking, Conflict)) == 1


@pytest.mark.parametrize("choice", ["ours", "theirs"])
def test_a_settled_conflict_is_the_same_everywhere(asking: World, choice: Any) -> None:
    (conflict,) = rows(asking, Conflict)
    asking.conductor.settle_conflict(conflict.id, choice, by="ann")
    asking.conductor.sweep()
    asking.run()
    assert record(asking).notes == choice
    assert asking.shown("crm")[0]["notes"] == asking.shown("shop")[0]["notes"] == choice
    assert link(asking, "crm").open_conflicts == 0
    with pytest.raises(ValueError, match="no open conflict"):
        asking.conductor.settle_conflict(conflict.id, choice, by="ann")


def test_a_conflict_settles_itself_when_ours_is_edited_to_theirs(asking: World) -> None:
    edit(asking, "1", notes="theirs")
    asking.run()
    (conflict,) = rows(asking, Conflict)
    assert conflict.choice == "agreed" and link(asking, "crm").open_conflicts == 0
    assert asking.shown("shop")[0]["notes"] == "theirs"


def test_a_conflict_ends_with_its_record_deleted_here(asking: World) -> None:
    (conflict,) = rows(asking, Conflict)
    with asking.conductor.database.write() as c:
        c.execute(sa.delete(CUSTOMER))
    with pytest.raises(ValueError, match="does not exist any more"):
        asking.conductor.settle_conflict(conflict.id, "ours", by="ann")
    asking.run()
    (conflict,) = rows(asking, Conflict)
    assert (conflict.choice, link(asking, "crm").open_conflicts) == ("gone", 0) and asking.shown("crm") == []


@pytest.mark.parametrize("on_gone", ["delete", "unlink"])
def test_a_conflict_ends_with_its_record_deleted_there(asking: World, on_gone: str) -> None:
    asking.conductor.subscribers["crm.customer"].on_gone = on_gone  # type: ignore[misc, assignment]
    asking.systems["crm"].remove("crm_1")
    webhook(asking, "crm", "e2", "crm_1")
    asking.run()
    (conflict,) = rows(asking, Conflict)
    assert (conflict.choice, link(asking, "crm").open_conflicts) == ("gone", 0)


def test_a_value_that_does_not_fit_here_is_said_and_holds_up_no_other_conflict(database: Database) -> None:
    world = World(database, "crm", field_to_data={"name": "name", "phone": Field("phone", conflict="ask")})
    ids = [add(world, name=f"n{number}", phone="0") for number in range(3)]
    world.run()
    world.clock.tick()
    for number, (one, theirs) in enumerate(zip(ids, ("x" * 500, "5", "6"), strict=True)):
        edit(world, one, phone="1")
        external_id = link(world, "crm", one).external_id
        world.systems["crm"].edit(external_id, phone=theirs)
        webhook(world, "crm", f"e{number}", external_id)
    world.run()
    long = next(row.id for row in rows(world, Conflict) if len(row.theirs) == 500)
    with pytest.raises(ValueError, match="500 characters, but phone holds 40"):
        world.conductor.settle_conflict(long, "theirs", by="ann")
    task = world.conductor.settle_alike("crm.customer", "phone", "theirs", "ann")
    while world.conductor.tasks.run_some():
        world.clock.tick()
    done = world.conductor.tasks.get(task)
    assert (done.state, done.succeeded, done.failed) == ("done", 2, 1)
    assert [row.id for row in rows(world, Conflict, Conflict.resolved_at.is_(None))] == [long]


# --- the mass-delete guard ------------------------------------------------------------------------------


def guarded(database: Database, **attributes: Any) -> World:
    world = World(database, "crm", "shop", **attributes)
    world.systems["crm"].delete_limit = 3
    for number in range(6):
        add(world, name=f"n{number}")
    world.run()
    return world


def test_unusually_many_deletes_here_pause_the_system_and_ask(database: Database) -> None:
    world = guarded(database)
    with database.write() as c:
        c.execute(sa.delete(CUSTOMER))
    world.run()
    assert len(world.shown("crm")) == 6 and world.shown("shop") == []
    (system,) = rows(world, System, System.name == "crm")
    assert system.paused_by == "mass-delete guard" and "more than 3 deletes to crm" in system.pause_reason
    world.conductor.resume("crm", by="ann")  # without saying that they are meant
    world.conductor.sweep()
    world.run()
    assert len(world.shown("crm")) == 6
    world.conductor.resume("crm", by="ann", allow_deletes=True)
    world.conductor.sweep()
    world.run()
    assert world.shown("crm") == []


def test_unusually_many_deletes_there_pause_the_system_and_nothing_is_deleted_here(database: Database) -> None:
    world = guarded(database, on_gone="delete")
    world.clock.tick()
    for external_id in list(world.systems["crm"].store):
        world.systems["crm"].remove(external_id)
        webhook(world, "crm", f"e{external_id}", external_id)
    world.run()
    left = world.shown("shop")
    assert len(left) == 3
    world.clock.tick(1000)
    world.conductor.sweep()
    world.run()
    assert len(world.shown("shop")) == 3 and rows(world, Inbox, Inbox.state == "waiting")
    world.conductor.resume("crm", by="ann", allow_deletes=True)
    world.conductor.sweep()
    world.run()
    assert world.shown("shop") == [] and rows(world, Inbox, Inbox.state == "waiting") == []


def test_a_poll_full_of_deletes_moves_no_cursor_until_they_are_meant(database: Database) -> None:
    world = guarded(database, on_gone="delete")
    world.clock.tick()
    for external_id in list(world.systems["crm"].store):
        world.systems["crm"].remove(external_id)
    world.conductor.poll("crm.customer")
    world.run()
    assert len(world.shown("shop")) == 6
    world.conductor.resume("crm", by="ann", allow_deletes=True)
    world.conductor.poll("crm.customer")
    world.run()
    assert world.shown("shop") == []


# --- the ledger -----------------------------------------------------------------------------------------


def test_a_change_that_commits_after_one_with_a_greater_id_is_not_lost(database: Database) -> None:
    # Two transactions may take their change ids in one order and commit in the other.
    world = World(database, "crm")
    one = add(world)
    world.run()

    def edit_with_id(number: int, notes: str) -> None:
        edit(world, one, notes=notes)
        with database.write() as c:
            c.execute(sa.update(Change).where(Change.relayed_at.is_(None)).values(id=number))
        world.conductor.relay()

    def meanwhile(kind: str, what: str) -> None:
        world.systems["crm"].on_call = lambda kind, what: None
        edit_with_id(500, "committed later, with the smaller id")

    edit_with_id(600, "the greater id")
    world.systems["crm"].on_call = meanwhile
    world.conductor.deliver("crm.customer", [one])
    world.run()
    assert world.shown("crm")[0]["notes"] == "committed later, with the smaller id"


# --- unsubscriptions ------------------------------------------------------------------------------------


def test_lifting_a_rule_can_bring_the_missed_records_over(database: Database) -> None:
    world = World(database, "crm", "shop")
    rule = world.conductor.unsubscribe("crm", None, None, None, "freeze", by="ann")
    add(world), add(world)
    world.run()
    assert world.conductor.missed(rule) == 2
    assert world.conductor.lift(rule, by="ann", bring=True) == 2
    world.conductor.sweep()
    world.run()
    assert len(world.shown("crm")) == 2


@pytest.mark.parametrize("bring", [True, False])
def test_a_rule_lifted_while_a_batch_is_under_way_covers_nothing_of_it_any_more(
    database: Database, bring: bool
) -> None:
    world = World(database, "crm", bulk_size=200)
    one, two = add(world), add(world)
    world.run()
    rule = world.conductor.unsubscribe("crm", None, [two], None, "hold", by="ann")

    def lift(kind: str, what: str) -> None:
        world.systems["crm"].on_call = lambda kind, what: None
        world.conductor.lift(rule, by="ann", bring=bring)

    world.systems["crm"].on_call = lift
    edit(world, one, notes="new")
    edit(world, two, notes="new")
    world.run()
    assert [shown["notes"] for shown in world.shown("crm")] == ["new", "new"]
    assert link(world, "crm", two).unsubscription_id is None


# --- limits ---------------------------------------------------------------------------------------------


def test_calls_per_second_hold_over_all_processes(database: Database) -> None:
    world = World(database, "crm")
    world.systems["crm"].requests_per_second = 4
    slept: list[float] = []
    processes = [Limits(world.conductor.context, sleep=slept.append) for _ in range(3)]
    for turn in range(12):
        processes[turn % 3].wait("crm", 4)
    # The clock stands still: the twelfth call, whoever makes it, begins 11/4 seconds after the first.
    assert max(slept) == pytest.approx(11 / 4)
    assert sorted(slept) == pytest.approx([turn / 4 for turn in range(1, 12)])


def test_a_rate_paces_every_call_of_a_delivery(database: Database) -> None:
    world = World(database, "crm")
    world.systems["crm"].requests_per_second = 2
    slept: list[float] = []
    world.conductor.limits.sleep = slept.append
    world.conductor.prepare()
    for _ in range(4):
        add(world)
    world.run()
    assert len(slept) == 3 and max(slept) == pytest.approx(1.5)


def test_calls_at_once_hold_over_all_processes_and_a_dead_workers_slot_is_free_again(database: Database) -> None:
    world = World(database, "crm")
    world.systems["crm"].concurrency = 2
    world.conductor.prepare()
    waits: list[float] = []

    def rest(_called: object, seconds: float | None) -> None:
        waits.append(seconds or 0.0)
        world.clock.tick(61)  # the lease of those who hold the slots runs out

    limits = Limits(world.conductor.context, rest=rest)
    with limits.slot("crm"), limits.slot("crm"):
        assert len(rows(world, CallSlot, CallSlot.owner.is_not(None))) == 2
        with limits.slot("crm"):
            assert len(waits) == 1
    assert rows(world, CallSlot, CallSlot.owner.is_not(None)) == []


def test_live_changes_go_before_retries(database: Database) -> None:
    world = World(database, "crm")
    add(world)
    world.conductor.relay()
    world.ears.heard.clear()
    world.clock.tick(31)
    world.conductor.sweep()
    assert world.ears.later == [("crm.customer", ["1"])]


# --- the merge ------------------------------------------------------------------------------------------


def test_their_old_value_is_no_edit_even_where_they_always_win(database: Database) -> None:
    wins = {name: Field(name, conflict="external") for name in ("name", "email", "phone")}
    world = World(database, "crm", field_to_data=wins)
    one = add(world, email="a@x.org", phone="1")
    world.run()
    world.clock.tick()
    edit(world, one, phone="2")
    world.systems["crm"].edit("crm_1", email="b@x.org")
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    assert (record(world, one).email, record(world, one).phone) == ("b@x.org", "2")


class Meanwhile(FakeSubscriber):
    """Something else happens while a record is planned for, once each."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self.happens: list[Callable[[], object]] = []

    def wants(self, record: Any) -> bool:
        if self.happens:
            self.happens.pop()()
        return True


def test_a_link_that_somebody_touched_while_it_was_planned_for_is_planned_for_anew(database: Database) -> None:
    """Links are claimed as they were read: what came in meanwhile is neither overwritten nor sent back."""
    world = World(database, "crm", kinds=(Meanwhile,))
    subscriber: Any = world.conductor.subscribers["crm.customer"]
    one = add(world, notes="0", city="Rome")
    world.run()
    edit(world, one, notes="ours")
    world.clock.tick()
    theirs = world.systems["crm"].edit("crm_1", address={"city": "Oslo"})
    subscriber.happens.append(lambda: world.conductor.inward.take(subscriber, theirs))
    world.run()
    assert (world.shown("crm")[0]["notes"], world.shown("crm")[0]["address"]) == ("ours", {"city": "Oslo"})
    assert (record(world, one).notes, record(world, one).city) == ("ours", "Oslo")


def test_a_link_that_another_worker_delivered_while_it_was_planned_for_is_not_delivered_again(
    database: Database,
) -> None:
    world = World(database, "crm", kinds=(Meanwhile,))
    subscriber: Any = world.conductor.subscribers["crm.customer"]
    one = add(world)
    subscriber.happens.append(lambda: world.conductor.deliver("crm.customer", [one]))
    world.run()
    assert world.systems["crm"].writes() == [("create", one)]
    assert [row.outcome for row in rows(world, Delivery)] == ["delivered"]


class Tidy(FakeSubscriber):
    """A system that keeps emails in lower case, and takes many records in one call."""

    bulk_size = 50

    def create(self, item: Item) -> External:
        item.data["email"] = (item.data.get("email") or "").lower()
        return super().create(item)

    def bulk_create(self, items: Sequence[Item]) -> list[Any]:
        self.client.calls.append(("bulk", str(len(items))))
        return super().bulk_create(items)


def test_the_form_a_system_keeps_a_value_in_is_neither_edit_nor_difference(database: Database) -> None:
    world = World(database, "crm", kinds=(Tidy,))
    one = add(world, email="ADA@X.org")
    world.run()
    world.clock.tick()
    world.systems["crm"].edit("crm_1", phone="9")
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    assert (record(world, one).email, record(world, one).phone) == ("ADA@X.org", "9")
    edit(world, one, notes="n")
    world.run()
    assert world.shown("crm")[0]["email"] == "ada@x.org"
    (update,) = rows(world, Delivery, Delivery.operation == "update", Delivery.direction == "out")
    assert update.payload == {"notes": "n"}


def test_a_system_that_was_down_is_probed_with_one_call_and_each_third_time_with_one_record(database: Database) -> None:
    world = World(database, "crm", kinds=(Tidy,))
    ids = [add(world) for _ in range(10)]

    def calls_until_it_is_back(failures: int) -> list[int]:
        world.systems["crm"].calls.clear()
        for number in range(failures):
            world.systems["crm"].fail(SystemDown("503"))
            world.run() if number == 0 else world.conductor.deliver("crm.customer", ids)
            world.clock.tick(61)
        world.conductor.deliver("crm.customer", ids)
        return [int(what) for kind, what in world.systems["crm"].calls if kind == "bulk"]

    assert calls_until_it_is_back(1) == [10, 10]
    ids = [add(world) for _ in range(10)]
    assert calls_until_it_is_back(3) == [10, 10, 10, 1, 9]


def test_a_context_that_its_writer_left_behind_does_not_swallow_later_changes(sqlite_world: World) -> None:
    world = sqlite_world
    with world.conductor.database.write() as c:
        c.execute(sa.insert(SyncContext).values(id=1, origin="crm"))  # and no DELETE before the commit
    world.conductor.sweep()
    add(world)
    world.run()
    assert len(world.shown("crm")) == 1


def test_a_poll_that_takes_longer_than_its_interval_is_the_only_one(database: Database) -> None:
    world = World(database, "crm")
    add(world)
    world.run()
    subscriber, seen = world.conductor.subscribers["crm.customer"], []
    read = subscriber.changed_since

    def long(position: Any) -> Iterator[Any]:
        for page in read(position):
            seen.append(page)
            for _ in range(3):  # each renews the turn for those that come
                world.clock.tick(world.conductor.context.policy.lease - 1)
                still_working()
            assert world.conductor.poll("crm.customer") == 0
            yield page

    subscriber.changed_since = long  # type: ignore[method-assign]
    assert world.conductor.poll("crm.customer") == 1 and len(seen) == 1
    assert world.conductor.poll("crm.customer") == 1 and len(seen) == 2  # its turn was given back


def test_a_poll_whose_turn_ran_out_applies_nothing_more(database: Database) -> None:
    world = World(database, "crm")
    one = add(world)
    world.run()
    world.clock.tick()
    world.systems["crm"].edit("crm_1", notes="read long ago")
    subscriber = world.conductor.subscribers["crm.customer"]
    read = subscriber.changed_since

    def slow(position: Any) -> Iterator[Any]:
        subscriber.changed_since = read  # type: ignore[method-assign]
        (page,) = read(position)
        world.clock.tick(world.conductor.context.policy.lease + 1)
        world.systems["crm"].edit("crm_1", notes="newest")
        assert world.conductor.poll("crm.customer") == 1
        yield page

    subscriber.changed_since = slow  # type: ignore[method-assign]
    newest = world.clock.now + timedelta(seconds=world.conductor.context.policy.lease + 1)
    assert world.conductor.poll("crm.customer") == 0
    assert rows(world, Cursor)[0].position == {"since": newest.isoformat()}
    world.run()
    assert record(world, one).notes == "newest"


def test_a_poll_that_died_is_made_up_for(database: Database) -> None:
    world = World(database, "crm", poll_seconds=24 * 3600)
    world.conductor.prepare()
    world.conductor.schedule.tick()
    world.ears.heard.clear()
    subscriber = world.conductor.subscribers["crm.customer"]
    pages = subscriber.changed_since

    class Killed(BaseException):
        pass

    def dies(position: Any) -> Iterator[Any]:
        raise Killed

    subscriber.changed_since = dies  # type: ignore[method-assign]
    inward = world.conductor.inward
    inward._end_turn = lambda *_: None  # type: ignore[method-assign] # nobody is left to do it
    with pytest.raises(Killed):
        world.conductor.poll("crm.customer")
    subscriber.changed_since = pages  # type: ignore[method-assign]
    del inward._end_turn
    world.conductor.schedule.tick()
    assert world.ears.heard == [] and world.conductor.poll("crm.customer") == 0
    world.clock.tick(world.conductor.context.policy.lease)
    world.conductor.schedule.tick()
    assert world.ears.heard == [("poll crm.customer", [])]
    world.conductor.poll("crm.customer")
    world.ears.heard.clear()
    world.conductor.schedule.tick()
    assert world.ears.heard == []


def test_a_poll_that_could_not_be_queued_is_claimed_again(database: Database) -> None:
    world = World(database, "crm", poll_seconds=3600)
    world.conductor.prepare()
    heard = world.ears.poll

    def away(subscriber: str, delay: float = 0.0) -> None:
        raise ConnectionError("the broker is away")

    world.ears.poll = away  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        world.conductor.schedule.tick()
    world.ears.poll = heard  # type: ignore[method-assign]
    world.conductor.schedule.tick()
    assert ("poll crm.customer", []) in world.ears.heard
    world.ears.heard.clear()
    world.conductor.schedule.tick()
    assert world.ears.heard == []


def test_a_network_that_is_cut_for_long_costs_no_dead_letters_but_a_silent_record_does(database: Database) -> None:
    world = World(database, "crm", policy=Policy(max_attempts=3))
    one = add(world)
    crm = world.systems["crm"]

    def turn() -> None:
        world.run()
        world.clock.tick(1000)
        world.conductor.sweep()

    crm.fail(Retry("the connection was cut", maybe_done=True, unanswered=True), times=8)
    for _ in range(5):
        turn()
    assert rows(world, DeadLetter) == [] and link(world, "crm", one).attempts == 2
    crm.failures.clear()

    # The system answers others, but never for this record.
    def silent(kind: str, what: str) -> None:
        if what == one:
            raise Retry("the connection was cut", maybe_done=True, unanswered=True)

    crm.on_call = silent
    add(world)
    turn()
    add(world)
    turn()
    turn()
    assert [letter.record_id for letter in rows(world, DeadLetter)] == [one]


@pytest.mark.parametrize("mark", ["not-a-number", "99999999999999999999999", "12345"])
def test_a_mark_that_is_no_id_of_ours_makes_a_record_of_its_own(database: Database, mark: str) -> None:
    world = World(database, "crm")
    world.systems["crm"].add(name="Copied from elsewhere", hub_id=mark)
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    assert record(world).name == "Copied from elsewhere"


# --- an update whose outcome is not known ---------------------------------------------------------------


def cut(world: World, *, after: bool) -> None:
    """The next call's answer is lost: after it took effect, or before."""
    world.systems["crm"].fail(Retry("the connection was cut", maybe_done=True), after=after)


def again(world: World) -> None:
    world.clock.tick(100)
    world.conductor.sweep()
    world.run()


@pytest.mark.parametrize("arrived", [True, False])
def test_an_update_in_doubt_is_looked_up_before_it_is_sent_again(database: Database, arrived: bool) -> None:
    world = World(database, "crm")
    one = add(world, notes="0")
    world.run()
    edit(world, one, notes="1")
    cut(world, after=arrived)
    world.run()
    again(world)
    assert world.shown("crm")[0]["notes"] == "1"
    assert [kind for kind, _ in world.systems["crm"].calls if kind == "update"] == ["update"] * (1 if arrived else 2)
    assert link(world, "crm").unconfirmed_write is None and link(world, "crm").base["notes"] == "1"


def test_an_edit_over_an_update_whose_answer_was_lost_survives(database: Database) -> None:
    world = World(database, "crm", "shop")
    one = add(world, notes="0", phone="0")
    world.run()
    edit(world, one, notes="1", phone="1")
    cut(world, after=True)
    world.run()
    world.clock.tick()
    world.systems["crm"].edit("crm_1", notes="2, by who saw the 1")
    again(world)
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    assert (record(world, one).notes, record(world, one).phone) == ("2, by who saw the 1", "1")
    assert world.shown("crm")[0]["notes"] == world.shown("shop")[0]["notes"] == "2, by who saw the 1"


def test_an_edit_over_an_update_whose_worker_died_survives(database: Database) -> None:
    world = World(database, "crm")
    one = add(world, notes="0")
    world.run()
    edit(world, one, notes="1")
    world.conductor.relay()
    world.ears.heard.clear()
    crm = world.systems["crm"]

    def die(kind: str, what: str) -> None:
        crm.edit("crm_1", notes="1")  # it arrived
        raise KeyboardInterrupt

    crm.on_call = die
    with pytest.raises(KeyboardInterrupt):
        world.conductor.deliver("crm.customer", [one])
    crm.on_call = lambda kind, what: None
    world.clock.tick()
    crm.edit("crm_1", notes="2, by who saw the 1")
    again(world)
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    assert record(world, one).notes == crm.store["crm_1"]["notes"] == "2, by who saw the 1"


def test_an_edit_here_after_a_worker_died_is_not_taken_for_what_it_sent(database: Database) -> None:
    world = World(database, "crm")
    one = add(world, notes="0")
    world.run()
    edit(world, one, notes="1")
    world.conductor.relay()
    world.ears.heard.clear()
    crm = world.systems["crm"]

    def die(kind: str, what: str) -> None:
        crm.edit("crm_1", notes="1")
        raise KeyboardInterrupt

    crm.on_call = die
    with pytest.raises(KeyboardInterrupt):
        world.conductor.deliver("crm.customer", [one])
    crm.on_call = lambda kind, what: None
    edit(world, one, notes="2")  # captured, and not routed yet
    world.clock.tick(100)
    world.conductor.deliver("crm.customer", [one])
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    again(world)
    assert record(world, one).notes == crm.store["crm_1"]["notes"] == "2"


def test_an_edit_over_a_create_whose_worker_died_survives(database: Database) -> None:
    world = World(database, "crm")
    one = add(world, notes="1")
    world.conductor.relay()
    world.ears.heard.clear()
    crm = world.systems["crm"]

    def die(kind: str, what: str) -> None:
        crm.add(name="Ada", notes="1", hub_id=one)
        raise KeyboardInterrupt

    crm.on_call = die
    with pytest.raises(KeyboardInterrupt):
        world.conductor.deliver("crm.customer", [one])
    crm.on_call = lambda kind, what: None
    world.clock.tick()
    crm.edit("crm_1", notes="2, by who saw the 1")
    again(world)
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    assert record(world, one).notes == crm.store["crm_1"]["notes"] == "2, by who saw the 1"
    assert len(crm.store) == 1


def test_a_silent_tidy_system_and_a_field_that_only_goes_out_come_to_rest(database: Database) -> None:
    class SilentTidy(FakeSubscriber):
        field_to_data = {"name": Field("name", direction="out")}

        def create(self, item: Item) -> External:
            item.data["name"] = item.data["name"].lower()
            return External(super().create(item).id, at=self.client.clock())

        def update(self, item: Item) -> External:
            item.changes["name"] = item.changes["name"].lower()
            return External(super().update(item).id, at=self.client.clock())

    world = World(database, "crm", kinds=(SilentTidy,))
    one = add(world, name="ADA")
    world.run()
    edit(world, one, name="ADA LOVELACE")
    for _ in range(4):
        world.run()
        world.clock.tick(100)
        world.conductor.poll("crm.customer")
        world.conductor.sweep()
        world.run()
    assert len(world.systems["crm"].writes()) == 3  # it is put right once, to see
    # A person's edit of it is put right all the same.
    world.systems["crm"].edit("crm_1", name="hacked")
    world.conductor.poll("crm.customer")
    world.run()
    assert world.shown("crm") == [{"name": "ada lovelace"}]


def test_an_edit_its_writer_left_the_system_out_of_is_not_taken_for_what_a_dead_worker_sent(
    database: Database,
) -> None:
    world = World(database, "crm")
    one = add(world)
    world.conductor.relay()
    world.ears.heard.clear()
    crm = world.systems["crm"]

    def die(kind: str, what: str) -> None:
        crm.add(name="Ada", hub_id=one)
        raise KeyboardInterrupt

    crm.on_call = die
    with pytest.raises(KeyboardInterrupt):
        world.conductor.deliver("crm.customer", [one])
    crm.on_call = lambda kind, what: None
    with database.write() as c, sync_context(c, unsubscribe=["crm"]):
        c.execute(sa.update(CUSTOMER).values(notes="not for them, this time"))
    again(world)
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    assert record(world, one).notes == "not for them, this time"


def test_a_look_up_that_fails_says_nothing_of_what_the_create_before_it_sent(database: Database) -> None:
    world = World(database, "crm")
    one = add(world, phone="4")
    cut(world, after=True)
    world.run()
    edit(world, one, phone=None)
    cut(world, after=True)  # the look-up
    world.run()
    again(world)
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    assert record(world, one).phone is None and world.shown("crm")[0]["phone"] is None


def test_an_edit_over_an_update_in_doubt_that_comes_in_first_is_taken(database: Database) -> None:
    world = World(database, "crm")
    one = add(world, notes="0")
    world.run()
    edit(world, one, notes="1")
    cut(world, after=True)
    world.run()
    world.clock.tick()
    world.systems["crm"].edit("crm_1", notes="2, by who saw the 1")
    edit(world, one, phone="another field, later")  # makes ours the newer record
    webhook(world, "crm", "e1", "crm_1")
    ((_, ids),) = [news for news in world.ears.heard if news[0] == "inbox"]
    world.ears.heard.clear()
    world.conductor.receive(ids[0])
    again(world)
    assert record(world, one).notes == world.shown("crm")[0]["notes"] == "2, by who saw the 1"


def test_what_went_along_with_an_update_in_doubt_is_not_taken_for_ours(database: Database) -> None:
    world = World(database, "crm", field_to_data={"name": "name", "street": "address.line1", "city": "address.city"})
    one = add(world, street="0", city="0")
    world.run()
    world.systems["crm"].edit("crm_1", address={"line1": "0", "city": "theirs, not seen here yet"})
    edit(world, one, street="1")
    world.systems["crm"].fail(Retry("cut", maybe_done=True), after=True)
    real = world.systems["crm"].failures.pop()

    def on_update(kind: str, what: str) -> None:
        if kind == "update" and real not in world.systems["crm"].failures and not done:
            done.append(1)
            world.systems["crm"].failures.append(real)

    done: list[int] = []
    world.systems["crm"].on_call = on_update
    world.run()
    again(world)
    world.conductor.poll("crm.customer")
    again(world)
    assert (record(world, one).street, record(world, one).city) == ("1", "theirs, not seen here yet")
    assert world.shown("crm")[0]["address"] == {"line1": "1", "city": "theirs, not seen here yet"}


def test_an_edit_beside_ours_that_our_own_write_undid_is_told_by_its_event(database: Database) -> None:
    world = World(database, "crm", field_to_data={"name": "name", "street": "address.line1", "city": "address.city"})
    one = add(world, street="0", city="0")
    world.run()
    crm, edits = world.systems["crm"], []

    def on_call(kind: str, what: str) -> None:
        if kind == "update" and not edits:  # the object was read, and is about to be written whole
            edits.append(crm.edit("crm_1", address={"line1": "0", "city": "theirs"}))
            world.clock.tick()

    crm.on_call = on_call
    world.clock.tick()
    edit(world, one, street="1")
    world.run()
    assert crm.store["crm_1"]["address"] == {"line1": "1", "city": "0"}
    world.conductor.poll("crm.customer")  # what our write left is known before the event of the edit comes
    world.conductor.inward.take(world.conductor.subscribers["crm.customer"], edits[0])
    world.run()
    assert (record(world, one).street, record(world, one).city) == ("1", "theirs")
    assert crm.store["crm_1"]["address"] == {"line1": "1", "city": "theirs"}
    # The same event once more is old news.
    world.clock.tick()
    crm.edit("crm_1", address={"line1": "1", "city": "later"})
    world.conductor.poll("crm.customer")
    world.conductor.inward.take(world.conductor.subscribers["crm.customer"], edits[0])
    world.run()
    assert record(world, one).city == crm.store["crm_1"]["address"]["city"] == "later"


def test_an_event_from_before_a_write_in_doubt_is_not_taken_for_an_edit_over_it(database: Database) -> None:
    world = World(database, "crm")
    one = add(world, notes="0")
    world.run()
    crm, edits = world.systems["crm"], []

    def on_call(kind: str, what: str) -> None:
        if kind == "update" and not edits:
            edits.append(crm.edit("crm_1", notes="theirs, a moment before ours arrives"))

    crm.on_call = on_call
    world.clock.tick()
    edit(world, one, notes="1")
    cut(world, after=True)
    world.run()
    world.conductor.inward.take(world.conductor.subscribers["crm.customer"], edits[0])
    again(world)
    assert record(world, one).notes == crm.store["crm_1"]["notes"] == "1"


def test_what_looking_up_a_create_in_doubt_showed_is_known_after_the_next_lost_answer(database: Database) -> None:
    world = World(database, "crm")
    one = add(world, name="0", phone="0")
    cut(world, after=True)
    world.run()
    world.systems["crm"].edit("crm_1", phone="theirs, not seen here yet")
    edit(world, one, name="1")
    crm = world.systems["crm"]

    def on_call(kind: str, what: str) -> None:
        if kind == "update" and len([call for call in crm.calls if call[0] == "update"]) == 1:
            crm.failures.append((Retry("cut", maybe_done=True), True))

    crm.on_call = on_call
    again(world)
    again(world)
    world.conductor.poll("crm.customer")
    again(world)
    assert (record(world, one).name, record(world, one).phone) == ("1", "theirs, not seen here yet")
    assert (crm.store["crm_1"]["name"], crm.store["crm_1"]["phone"]) == ("1", "theirs, not seen here yet")


def test_an_edit_taken_back_while_it_was_in_doubt_is_taken_back_there(database: Database) -> None:
    world = World(database, "crm")
    one = add(world, notes="0")
    world.run()
    edit(world, one, notes="1")
    cut(world, after=True)
    world.run()
    edit(world, one, notes="0")  # what was agreed before, and is not what they hold
    again(world)
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    assert record(world, one).notes == world.shown("crm")[0]["notes"] == "0"


def test_what_is_in_doubt_stays_so_while_its_record_is_skipped(database: Database) -> None:
    world = World(database, "crm")
    one = add(world, notes="0")
    world.run()
    edit(world, one, notes="1")
    cut(world, after=True)
    world.run()
    rule = world.conductor.unsubscribe("crm", None, [one], None, "freeze", by="ann")
    again(world)
    assert link(world, "crm").unconfirmed_write == {"notes": "1"}
    edit(world, one, notes="0")
    world.run()
    world.conductor.lift(rule, by="ann", bring=True)
    again(world)
    assert record(world, one).notes == world.shown("crm")[0]["notes"] == "0"
    assert link(world, "crm").unconfirmed_write is None


def test_a_record_that_cannot_be_written_down_before_its_call_leaves_its_neighbours_alone(database: Database) -> None:
    fields = {"name": "name", "phone": Field("phone", transform="text_number")}
    world = World(database, "crm", field_to_data=fields)
    bad = add(world, name="more than 64 bits", phone="9" * 20)
    add(world, name="succeeded", phone="4")
    world.run()
    assert [data["name"] for data in world.shown("crm")] == ["succeeded"]
    assert "cannot be written down" in rows(world, DeadLetter, DeadLetter.record_id == bad)[0].message
    assert link(world, "crm", bad).dead_at is not None and link(world, "crm", bad).lease_owner is None


def test_a_create_whose_answer_cannot_be_written_down_is_not_done_twice(database: Database) -> None:
    class Huge(FakeSubscriber):
        def create(self, item: Item) -> External:
            made = super().create(item)
            return External(made.id, {**made.data, "notes": 10**30}, at=made.at)

    world = World(database, "crm", kinds=(Huge,))
    one = add(world, notes="1")
    world.run()
    assert link(world, "crm").dead_at is not None
    edit(world, one, notes="2")
    again(world)
    assert [data["notes"] for data in world.shown("crm")] == ["2"]


def test_a_call_that_outlived_its_lease_writes_no_dead_letter_of_its_own(database: Database) -> None:
    world = World(database, "crm")
    one = add(world, notes="0")
    world.run()
    edit(world, one, notes="1")
    crm = world.systems["crm"]

    def slow(kind: str, what: str) -> None:
        crm.on_call = lambda kind, what: None
        world.clock.tick(100)
        with database.write() as c:  # another worker has it
            c.execute(sa.update(Link).values(lease_owner="another", lease_until=world.clock.now))

    crm.on_call = slow
    crm.fail(Reject("no"), times=2)
    world.run()
    assert not rows(world, DeadLetter) and rows(world, Delivery)[-1].outcome == "failed"
    again(world)
    (letter,) = rows(world, DeadLetter)
    assert link(world, "crm").dead_letter_id == letter.id and link(world, "crm").dead_at is not None


def test_a_call_that_outlived_its_lease_settles_nothing(database: Database) -> None:
    world = World(database, "crm")
    one = add(world, notes="0")
    world.run()
    edit(world, one, notes="1")
    crm, until = world.systems["crm"], world.clock.now + timedelta(seconds=200)

    def slow(kind: str, what: str) -> None:
        crm.on_call = lambda kind, what: None
        world.clock.tick(100)
        with database.write() as c:  # another worker has it
            c.execute(sa.update(Link).values(lease_owner="another", lease_until=until))

    crm.on_call = slow
    world.run()
    found = link(world, "crm")
    assert (found.lease_owner, found.lease_until) == ("another", until) and found.owed_change > found.synced_change
    assert [row.outcome for row in rows(world, Delivery)] == ["delivered", "delivered"], "it was called all the same"


@pytest.mark.parametrize("silent", [False, True])
def test_an_edit_after_our_write_was_not_undone_by_it_however_often_it_is_told(
    database: Database, silent: bool
) -> None:
    class Maybe(FakeSubscriber):
        def update(self, item: Item) -> External | None:  # type: ignore[override]
            made = super().update(item)
            return None if silent else made

    fields = {"name": "name", "street": "address.line1", "city": "address.city"}
    world = World(database, "crm", kinds=(Maybe,), field_to_data=fields)
    one = add(world, street="0", city="0")
    world.run()
    crm, subscriber = world.systems["crm"], world.conductor.subscribers["crm.customer"]
    world.clock.tick()
    edit(world, one, street="1")  # the city goes along
    world.run()
    told = []
    for city in ("theirs", "0"):  # and is edited there, and put back
        world.clock.tick()
        told.append(crm.edit("crm_1", address={"line1": "1", "city": city}))
        world.conductor.inward.take(subscriber, told[-1])
        world.run()
    world.clock.tick()
    edit(world, one, name="without the address")
    world.run()
    world.conductor.inward.take(subscriber, told[0])  # a poll reads overlapping stretches
    world.run()
    assert record(world, one).city == crm.store["crm_1"]["address"]["city"] == "0"


def test_what_a_record_waits_for_is_known_also_where_its_batch_is_written_one_by_one(database: Database) -> None:
    class Huge(FakeInvoice):
        def create(self, item: Item) -> External:
            made = super().create(item)
            return External(made.id, {**made.data, "number": 10**30}, at=made.at)

    world = World(database, "crm", kinds=(FakeSubscriber, Huge))
    kept, sent = add(world), add(world)
    rule = world.conductor.unsubscribe("crm.customer", None, [kept], None, "freeze", by="ann")
    world.run()
    add_invoice(world, kept, "R-1")
    add_invoice(world, sent, "R-2")
    world.run()
    assert invoice_link(world, "2").dead_at is not None  # its answer cannot be written down
    assert invoice_link(world, "1").unsubscription_id == rule


def test_a_field_never_agreed_did_not_arrive_unless_it_is_there(database: Database) -> None:
    world = World(database, "crm", field_to_data={"name": "name"})
    one = add(world, notes="1")
    world.run()
    crm = world.systems["crm"]
    crm.edit("crm_1", notes=None)  # a field of theirs, which is mapped from now on
    mapped = [{"column": name, "path": name} for name in ("name", "notes")]
    world.conductor.save_mapping("crm.customer", mapped, "ann", 0)
    edit(world, one, name="new")
    cut(world, after=False)
    world.run()
    again(world)
    world.conductor.poll("crm.customer")
    again(world)
    assert record(world, one).notes == crm.store["crm_1"]["notes"] == "1"


def test_a_polled_record_that_was_set_aside_is_what_after_receive_makes_of_it(database: Database) -> None:
    class Shouting(FakeSubscriber):
        def after_receive(self, external: External) -> External:
            address = external.data.get("address") or {}
            quiet = {name: value and value.lower() for name, value in address.items()}
            return External(external.id, {**external.data, "address": quiet}, at=external.at)

    fields = {"name": "name", "street": "address.line1", "city": "address.city"}
    world = World(database, "crm", kinds=(Shouting,), field_to_data=fields)
    one = add(world, street="a", city="rome")
    world.run()
    crm = world.systems["crm"]
    crm.store["crm_1"]["address"]["city"] = "ROME"  # as they keep it
    world.clock.tick()
    edit(world, one, street="b")  # the city goes along
    world.run()
    crm.store["crm_1"]["address"]["city"] = "ROME"
    with database.write() as c:
        c.execute(sa.update(Link).values(lease_owner="another", lease_until=world.clock.now + timedelta(seconds=9)))
    world.conductor.poll("crm.customer")
    assert [row.kind for row in rows(world, Inbox)] == ["poll"]
    again(world)
    assert record(world, one).city == "rome"


def test_an_old_event_of_an_unknown_record_leads_to_what_the_record_is_now(database: Database) -> None:
    world = World(database, "crm")
    crm = world.systems["crm"]
    told = crm.add(name="as it was")
    world.clock.tick()
    crm.edit("crm_1", name="as it is")
    world.conductor.inward.take(world.conductor.subscribers["crm.customer"], told)
    assert [row.name for row in rows(world, Customer)] == ["as it is"]
    gone = crm.add(name="gone since")
    crm.remove("crm_2")
    world.conductor.inward.take(world.conductor.subscribers["crm.customer"], gone)
    assert [row.name for row in rows(world, Customer)] == ["as it is"]


def test_the_event_of_our_own_creation_links_it_when_the_answer_was_lost(database: Database) -> None:
    world = World(database, "crm")
    one = add(world)
    cut(world, after=True)
    world.run()
    assert link(world, "crm").external_id is None
    crm = world.systems["crm"]
    world.clock.tick()
    edited = crm.edit("crm_1", phone="theirs, over what we had created")
    world.conductor.inward.take(world.conductor.subscribers["crm.customer"], edited)
    assert [row.id for row in rows(world, Customer)] == [int(one)] and link(world, "crm").external_id == "crm_1"
    again(world)
    assert record(world, one).phone == crm.store["crm_1"]["phone"] == "theirs, over what we had created"


def test_an_edit_told_after_the_deletion_that_followed_it_changes_nothing(database: Database) -> None:
    world = World(database, "crm", on_gone="archive")
    one = add(world)
    world.run()
    world.clock.tick()
    crm, follows = world.systems["crm"], world.conductor.subscribers["crm.customer"]
    world.conductor.inward.take(follows, crm.remove("crm_1"))
    assert record(world, one).active is False
    edit(world, one, active=True)  # a person wants it all the same
    world.conductor.inward.take(follows, External("crm_1"))
    assert record(world, one).active is True and link(world, "crm").unlinked_at is not None
