"""What systems, clocks and people get wrong: none of it may lose an edit or stop a queue."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from conductor import DeadLetterFilter, Policy
from models.catalogues import Customer, Invoice
from models.ledger import DeadLetter, Inbox, Link, System
from models.ledger import Mapping as SavedMapping
from models.session import Database
from subscribers.errors import Reject, Retry, SystemDown
from subscribers.mapping.fields import Field
from subscribers.mapping.validation import check_rows
from subscribers.records import External, Item
from tests.conductor.test_conductor import add, edit, link, record, rows, webhook
from tests.support.fakes import FakeInvoice, FakeSubscriber, World


def test_two_polled_edits_of_one_second_both_arrive(database: Database) -> None:
    world = World(database, "crm")
    one = add(world)
    world.run()
    for notes in ("first", "second"):  # both in the second of our own write, so both are set aside and fetched
        world.systems["crm"].edit("crm_1", notes=notes)
        world.conductor.poll("crm.customer")
        world.conductor.sweep()
        world.run()
        assert record(world, one).notes == notes


def test_discarding_a_letter_keeps_an_edit_made_after_it(database: Database) -> None:
    world = World(database, "crm")
    one = add(world)
    world.systems["crm"].fail(Reject("no"))
    world.run()
    world.conductor.pause("crm", "ann", "")
    edit(world, one, name="Mended")
    world.run()
    world.conductor.discard(DeadLetterFilter(), "ann", "old news")
    world.conductor.resume("crm", "ann")
    world.clock.tick()
    world.conductor.sweep()
    world.run()
    assert world.shown("crm")[0]["name"] == "Mended"


def test_a_write_without_a_time_of_theirs_makes_no_event_newer(database: Database) -> None:
    class Silent(FakeSubscriber):
        def update(self, item: Item) -> None:
            super().update(item)

    world = World(database, "crm", kinds=(Silent,))
    one = add(world, notes="0")
    world.run()
    crm = world.systems["crm"]
    world.clock.tick(5)  # their clock is ahead of the hub's by this
    late = crm.edit("crm_1", notes="theirs")
    world.clock.tick(-5)
    edit(world, one, notes="ours, later")
    world.run()
    world.conductor.inward.take(world.conductor.subscribers["crm.customer"], late)
    world.run()
    assert record(world, one).notes == "ours, later"


def test_a_paused_systems_inbox_hides_nobody_elses(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conductor.outward.routing.SWEEP_BATCH", 3)
    world = World(database, "crm", "shop")
    for number in range(5):
        webhook(world, "crm", f"e{number}", "crm_1")
    webhook(world, "shop", "e", "shop_1")
    world.ears.heard.clear()
    world.conductor.pause("crm", "ann", "")
    world.clock.tick(1000)
    world.conductor.sweep()
    assert [ids for what, ids in world.ears.heard if what == "inbox"] == [[6]]


@pytest.mark.parametrize("text", ["cut \ud83d emoji", "a \x00 NUL"])
def test_text_that_no_database_takes_stops_neither_poll_nor_batch(database: Database, text: str) -> None:
    world = World(database, "crm", policy=Policy(max_attempts=2))
    crm = world.systems["crm"]
    crm.add(name=text)
    world.clock.tick()
    crm.add(name="Good")
    world.conductor.poll("crm.customer")
    world.run()
    assert record(world, "2").name == "Good"
    bad, good = add(world, name="Bad"), add(world, name="Fine")
    crm.fail(Reject(text, fields={"name": text}, request_id=text * 50))
    world.run()
    (letter,) = rows(world, DeadLetter)
    other = link(world, "crm", good if letter.record_id == bad else bad)
    assert other.synced_change == other.owed_change


def test_a_batch_that_cannot_be_written_down_loses_only_the_guilty_one(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(database, "crm")
    add(world, name="Guilty")
    add(world, name="Neighbour")
    settling = world.conductor.outward.results
    real = settling._bases

    def bases(plan: Any, mapper: Any) -> dict[str, Any]:
        if plan.flat.get("name") == "Guilty":
            raise ValueError("cannot be written down")
        return real(plan, mapper)

    monkeypatch.setattr(settling, "_bases", bases)
    world.run()
    (letter,) = rows(world, DeadLetter)
    assert letter.record_id == "1" and "written down" in letter.message
    assert link(world, "crm", "2").external_id is not None


def test_a_system_that_asks_to_be_left_alone_for_ever_is_asked_tomorrow(database: Database) -> None:
    world = World(database, "crm")
    add(world)
    world.systems["crm"].fail(SystemDown("429", after=1e14))
    world.run()
    world.clock.tick(86_401)
    world.conductor.sweep()
    world.run()
    assert len(world.shown("crm")) == 1


def test_a_system_that_stays_down_is_probed_less_and_less(database: Database) -> None:
    world = World(database, "crm")
    one = add(world)
    pauses = []
    for _ in range(7):
        world.systems["crm"].fail(SystemDown("503"))
        world.run() if not pauses else world.conductor.deliver("crm.customer", [one])
        (system,) = rows(world, System, System.name == "crm")
        pauses.append((system.probe_at - world.clock()).total_seconds())
        world.clock.tick(pauses[-1])
    assert pauses == [2, 4, 8, 16, 32, 60, 60]
    world.conductor.deliver("crm.customer", [one])
    (system,) = rows(world, System, System.name == "crm")
    assert (system.down_since, system.failures) == (None, 0)


def test_the_probe_is_another_record_each_time(database: Database) -> None:
    world = World(database, "crm")
    bad = add(world, name="Refused with a 403")
    for number in range(3):
        add(world, name=f"n{number}")

    def refuse(kind: str, what: str) -> None:
        if what == bad:
            raise SystemDown("403")

    world.systems["crm"].on_call = refuse
    for _ in range(20):
        world.run()
        world.clock.tick(61)
        world.conductor.sweep()
    assert len(world.shown("crm")) == 3


def test_a_probe_with_nothing_to_ask_gives_its_place_to_the_next(database: Database) -> None:
    world = World(database, "crm")
    ids = [add(world, name=f"n{number}") for number in range(15)]
    world.run()
    world.systems["crm"].fail(SystemDown("503"))
    edit(world, ids[-1], name="edited")
    world.run()
    for one in ids[:-1]:
        edit(world, one, currency="eur")  # owed, and nothing to send
    world.conductor.relay()
    world.ears.heard.clear()
    world.clock.tick(61)
    world.conductor.sweep()
    world.run()
    assert rows(world, System, System.name == "crm")[0].down_since is None


def test_what_waits_for_another_record_keeps_no_system_down(database: Database) -> None:
    world = World(database, "crm", kinds=(FakeSubscriber, FakeInvoice))
    world.systems["crm"].fail(SystemDown("503"))
    one = add(world)
    world.run()
    with database.write() as connection:
        connection.execute(sa.insert(Invoice).values(number="R-1", customer_id=int(one), currency="eur"))
    world.conductor.relay()
    # The system is back. The invoice's message comes first, and nobody is asked about it.
    world.clock.tick(61)
    world.conductor.deliver("crm.invoice", ["1"])
    world.conductor.deliver("crm.customer", [one])
    assert rows(world, System, System.name == "crm")[0].down_since is None


def test_a_poll_that_asks_nobody_keeps_no_system_down(database: Database) -> None:
    world = World(database, "crm")
    one = add(world)
    world.systems["crm"].fail(SystemDown("503"))
    world.run()
    world.clock.tick(61)
    world.systems["crm"].defer_reason = lambda: "the day's calls are nearly used up"  # type: ignore[method-assign]
    world.conductor.poll("crm.customer")
    world.conductor.deliver("crm.customer", [one])
    assert rows(world, System, System.name == "crm")[0].down_since is None


def test_silence_is_no_success(database: Database) -> None:
    world = World(database, "crm")
    add(world)
    world.systems["crm"].fail(SystemDown("503"))
    world.run()
    world.clock.tick(61)
    world.systems["crm"].fail(Retry("no answer in time", maybe_done=True, unanswered=True))
    world.conductor.sweep()
    world.run()
    assert rows(world, System, System.name == "crm")[0].down_since is not None


def test_calls_that_failed_together_are_one_failure(database: Database) -> None:
    world = World(database, "crm")
    for _ in range(8):
        with database.write() as connection:
            world.conductor.breaker.went_down(connection, "crm", SystemDown("503"))
    assert rows(world, System, System.name == "crm")[0].failures == 1


def test_the_guard_counts_a_deletion_once_however_often_it_is_tried(database: Database) -> None:
    world = World(database, "crm", policy=Policy(max_attempts=20))
    world.systems["crm"].delete_limit = 3
    add(world), add(world)
    world.run()
    world.systems["crm"].fail(Retry("500"), times=10)
    with database.write() as connection:
        connection.execute(sa.text("DELETE FROM customer"))
    for _ in range(10):
        world.run()
        world.clock.tick(60)
        world.conductor.sweep()
    assert rows(world, System, System.name == "crm")[0].paused_at is None and world.shown("crm") == []


def test_the_guard_does_not_count_a_deletion_at_each_probe_of_an_outage(database: Database) -> None:
    world = World(database, "crm", bulk_size=200)
    crm = world.systems["crm"]
    crm.delete_limit = 3
    add(world), add(world)
    world.run()
    crm.fail(SystemDown("503"), times=10)
    with database.write() as connection:
        connection.execute(sa.text("DELETE FROM customer"))
    world.run()
    for _ in range(8):
        world.clock.tick(61)
        world.conductor.sweep()
        world.run()
    system = rows(world, System, System.name == "crm")[0]
    assert (system.paused_at, system.deletes) == (None, 0) and system.down_since is not None
    crm.failures.clear()
    world.clock.tick(61)
    world.conductor.sweep()
    world.run()
    assert world.shown("crm") == [] and rows(world, System, System.name == "crm")[0].deletes == 2


def test_a_letter_closes_when_its_record_is_skipped(database: Database) -> None:
    world = World(database, "crm")
    add(world)
    world.systems["crm"].fail(Reject("no"))
    world.run()
    world.conductor.unsubscribe("crm", None, None, None, "freeze", "ann")
    world.conductor.retry(DeadLetterFilter(), "ann")
    world.conductor.sweep()
    world.run()
    assert rows(world, DeadLetter, DeadLetter.closed_at.is_(None)) == []


def test_a_mapping_that_does_not_fit_any_more_can_be_mended(database: Database) -> None:
    world = World(database, "crm")
    with database.write() as connection:
        fields = [{"column": "dropped", "path": "name"}]
        row = {"subscriber": "crm.customer", "version": 1, "fields": fields, "created_by": "ann"}
        connection.execute(sa.insert(SavedMapping).values(**row))
    one = add(world)
    world.run()
    (letter,) = rows(world, DeadLetter)
    assert letter.record_id == one and "does not fit" in letter.message
    assert world.conductor.mapping("crm.customer")[1] == 1
    world.conductor.save_mapping("crm.customer", None, "ann", 1)
    world.conductor.retry(DeadLetterFilter(), "ann")
    world.conductor.sweep()
    world.run()
    assert len(world.shown("crm")) == 1


def test_a_path_inside_another_one_is_refused(database: Database) -> None:
    world = World(database, "crm")
    typed = [{"column": "name", "path": "address"}, {"column": "city", "path": "address.city"}]
    _fields, problems = check_rows(typed, world.conductor.subscribers["crm.customer"].records)
    assert problems and "row 2" in problems[0]


def test_a_number_that_fits_no_column_is_said_and_set_aside(database: Database) -> None:
    world = World(database, "crm", field_to_data={"name": "name", "id": "number"})
    world.systems["crm"].add(name="x", number=10**30)
    world.clock.tick()
    world.systems["crm"].add(name="Good", number=5)
    world.conductor.poll("crm.customer")
    assert record(world, "5").name == "Good"


def test_an_events_id_of_any_length_is_kept(database: Database) -> None:
    world = World(database, "crm")
    assert world.conductor.store_webhook("crm", b"e" * 5000 + b" crm_1", {"x-fake": "signed"})
    assert not world.conductor.store_webhook("crm", b"e" * 5000 + b" crm_1", {"x-fake": "signed"})
    assert len(rows(world, Inbox)[0].event_id) == 64


def test_a_create_that_names_no_id_is_looked_up(database: Database) -> None:
    class Mute(FakeSubscriber):
        def create(self, item: Item) -> External:
            super().create(item)
            return None  # type: ignore[return-value]

    world = World(database, "crm", kinds=(Mute,))
    one = add(world)
    world.run()
    world.clock.tick(10)
    world.conductor.sweep()
    world.run()
    assert len(world.shown("crm")) == 1 and rows(world, Link, Link.record_id == one)[0].external_id == "crm_1"


def test_linking_fills_what_is_empty_there_and_erases_nothing_here(database: Database) -> None:
    wins = {"name": "name", "email": "email", "notes": Field("notes", conflict="external")}
    world = World(database, "crm", match_on=("email",), field_to_data=wins)
    world.conductor.unsubscribe("crm", None, None, None, "not yet", "ann")
    one = add(world, email="ada@x.org", notes="written here")
    world.run()
    world.systems["crm"].add(name="Ada", email="ada@x.org", notes=None)
    world.conductor.poll("crm.customer")
    world.run()
    assert record(world, one).notes == "written here" and link(world, "crm").external_id == "crm_1"


@pytest.mark.parametrize("way", ["poll", "backfill"])
def test_what_was_left_over_of_a_deleted_record_is_no_other_one(database: Database, way: str) -> None:
    world = World(database, "crm", match_on=("email",))
    one = add(world, email="ada@x.org", phone="1")
    world.systems["crm"].fail(Retry("no answer", maybe_done=True), after=True)
    world.run()
    two = add(world, email="ada@x.org", phone="2")
    with database.write() as connection:
        connection.execute(sa.delete(Customer).where(Customer.id == int(one)))
    if way == "poll":
        world.conductor.poll("crm.customer")
    else:
        world.conductor.backfill("crm.customer", "ann")
        world.conductor.tasks.run_some()
    for _ in range(3):
        world.run()
        world.clock.tick(61)
        world.conductor.sweep()
    assert record(world, two).phone == "2" and [shown["phone"] for shown in world.shown("crm")] == ["2"]
