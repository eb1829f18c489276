"""Recording the outcome of a call: link, delivery, dead letter."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from conductor import Policy
from conductor.outward import outcomes
from models.ledger import DeadLetter, Delivery
from models.session import Database
from subscribers.errors import Reject, Retry
from subscribers.records import External, Item
from tests.support.dead_letters import retry_all
from tests.support.fakes import FakeInvoice, FakeSubscriber, TestHub
from tests.support.records import add, add_invoice, edit, invoice_link, link, record, rows, settle


def test_a_rejected_record_becomes_a_dead_letter_and_the_rest_is_delivered(hub: TestHub) -> None:
    bad = add(hub, name="Bad")
    good = add(hub, name="Good")
    hub.systems["crm"].fail(Reject("422: email: is not valid", fields={"email": "is not valid"}))
    hub.run()
    (letter,) = rows(hub, DeadLetter)
    assert (letter.subscriber, letter.record_id, letter.fields) == ("crm.customer", bad, {"email": "is not valid"})
    assert link(hub, "crm", good).synced_change == link(hub, "crm", good).owed_change
    assert link(hub, "crm", bad).dead_at is not None
    # An operator's retry delivers the record, and the dead letter closes automatically.
    assert retry_all(hub.conductor, "ann@x.org") == 1
    hub.conductor.sweep()
    hub.run()
    assert rows(hub, DeadLetter)[0].resolution == "delivered"
    assert len(hub.shown("crm")) == 2


@pytest.mark.parametrize("is_lost", [False, True])
def test_the_id_of_a_deleted_record_may_belong_to_a_new_one(hub: TestHub, is_lost: bool) -> None:
    one, crm = add(hub, name="Ada"), hub.systems["crm"]
    hub.run()
    with hub.conductor.database.write() as connection:
        hub.conductor.subscribers["crm.customer"].records.delete(connection, one)
    hub.run()
    crm._ids = itertools.count(1)
    if is_lost:  # it is found later
        crm.fail(Retry("timeout", maybe_done=True), after=True)
    two = add(hub, name="Bea")
    hub.run()
    edit(hub, two, name="Bee")
    settle(hub)
    assert rows(hub, DeadLetter) == []
    assert (link(hub, "crm", one).external_id, link(hub, "crm", two).external_id) == (None, "crm_1")


def test_retries_back_off_and_end_as_a_dead_letter(hub: TestHub) -> None:
    one = add(hub)
    hub.systems["crm"].fail(Retry("500: try later"), times=3)
    hub.run()
    for _ in range(2):
        assert rows(hub, DeadLetter) == []
        hub.conductor.sweep()
        assert hub.publisher.published == []  # not due yet
        calls = len(hub.systems["crm"].calls)
        hub.conductor.deliver("crm.customer", [one])  # a stale message
        assert len(hub.systems["crm"].calls) == calls
        hub.clock.tick(10)
        hub.conductor.sweep()
        hub.run()
    (letter,) = rows(hub, DeadLetter)
    assert letter.record_id == one
    assert [d.attempt for d in rows(hub, Delivery, Delivery.subscriber == "crm.customer")] == [1, 2, 3]


def test_a_bug_in_a_subscriber_is_kept_with_its_traceback(hub: TestHub) -> None:
    def bug(kind: str, what: str) -> None:
        raise KeyError("surprise")

    hub.systems["crm"].on_call = bug
    add(hub)
    for _ in range(3):
        hub.run()
        hub.clock.tick(100)
        hub.conductor.sweep()
    (letter,) = rows(hub, DeadLetter)
    assert "surprise" in letter.message and "Traceback" in letter.traceback


def test_a_long_network_outage_makes_no_dead_letter_but_a_record_without_answers_does(database: Database) -> None:
    hub = TestHub(database, "crm", policy=Policy(max_attempts=3))
    one = add(hub)
    crm = hub.systems["crm"]

    def turn() -> None:
        hub.run()
        hub.clock.tick(1000)
        hub.conductor.sweep()

    crm.fail(Retry("the connection was cut", maybe_done=True, unanswered=True), times=8)
    for _ in range(5):
        turn()
    assert rows(hub, DeadLetter) == [] and link(hub, "crm", one).attempts == 2
    crm.failures.clear()

    # The system answers for other records, but never for this one.
    def silent(kind: str, what: str) -> None:
        if what == one:
            raise Retry("the connection was cut", maybe_done=True, unanswered=True)

    crm.on_call = silent
    add(hub)
    turn()
    add(hub)
    turn()
    turn()
    assert [letter.record_id for letter in rows(hub, DeadLetter)] == [one]


def test_a_batch_that_cannot_be_stored_fails_only_the_faulty_record(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = TestHub(database, "crm")
    add(hub, name="Guilty")
    add(hub, name="Neighbour")
    real = outcomes._agreed_base

    def bases(plan: Any, mapper: Any) -> dict[str, Any]:
        if plan.flat.get("name") == "Guilty":
            raise ValueError("cannot be stored")
        return real(plan, mapper)

    monkeypatch.setattr(outcomes, "_agreed_base", bases)
    hub.run()
    (letter,) = rows(hub, DeadLetter)
    assert letter.record_id == "1" and "cannot be stored" in letter.message
    assert link(hub, "crm", "2").external_id is not None


@pytest.mark.parametrize("text", ["cut \ud83d emoji", "a \x00 NUL"])
def test_text_that_no_database_accepts_stops_neither_poll_nor_batch(database: Database, text: str) -> None:
    hub = TestHub(database, "crm", policy=Policy(max_attempts=2))
    crm = hub.systems["crm"]
    crm.add(name=text)
    hub.clock.tick()
    crm.add(name="Good")
    hub.conductor.poll("crm.customer")
    hub.run()
    assert record(hub, "2").name == "Good"
    bad, good = add(hub, name="Bad"), add(hub, name="Fine")
    crm.fail(Reject(text, fields={"name": text}, request_id=text * 50))
    hub.run()
    (letter,) = rows(hub, DeadLetter)
    other = link(hub, "crm", good if letter.record_id == bad else bad)
    assert other.synced_change == other.owed_change


def test_blocked_by_is_stored_when_a_batch_is_recorded_one_by_one(database: Database) -> None:
    class Huge(FakeInvoice):
        def create(self, item: Item) -> External:
            made = super().create(item)
            return External(made.id, {**made.data, "number": 10**30}, at=made.at)

    hub = TestHub(database, "crm", kinds=(FakeSubscriber, Huge))
    kept, sent = add(hub), add(hub)
    rule = hub.conductor.unsubscriptions.create("crm.customer", None, [kept], None, "freeze", by="ann")
    hub.run()
    add_invoice(hub, kept, "R-1")
    add_invoice(hub, sent, "R-2")
    hub.run()
    assert invoice_link(hub, "2").dead_at is not None  # its answer cannot be stored
    assert invoice_link(hub, "1").unsubscription_id == rule


def test_a_dead_letter_closes_when_its_record_is_skipped(database: Database) -> None:
    hub = TestHub(database, "crm")
    add(hub)
    hub.systems["crm"].fail(Reject("no"))
    hub.run()
    hub.conductor.unsubscriptions.create("crm", None, None, None, "freeze", "ann")
    retry_all(hub.conductor, "ann")
    hub.conductor.sweep()
    hub.run()
    assert rows(hub, DeadLetter, DeadLetter.closed_at.is_(None)) == []
