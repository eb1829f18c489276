"""Related records are delivered before the records that reference them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from models.ledger import DeadLetter, Delivery
from models.session import Database
from subscribers.errors import Reject
from subscribers.mapping.fields import Field
from tests.support.fakes import FakeInvoice, FakeSubscriber, TestHub
from tests.support.records import (
    CUSTOMER,
    INVOICE,
    add,
    add_invoice,
    bills,
    edit,
    invoice_link,
    link,
    rows,
)


@pytest.fixture
def billing(database: Database) -> Iterator[TestHub]:
    yield TestHub(database, "crm", kinds=(FakeSubscriber, FakeInvoice))


def test_a_related_record_goes_first_and_its_dependent_uses_no_attempt(billing: TestHub) -> None:
    customer = add(billing)
    add_invoice(billing, customer)
    billing.conductor.relay()
    billing.publisher.published.clear()
    billing.conductor.deliver("crm.invoice", ["1"])  # its message arrives before the customer's
    assert billing.systems["crm"].calls == []
    assert invoice_link(billing).attempts == 0
    billing.run()
    assert bills(billing) == [{"number": "R-1", "status": "draft", "customer": link(billing, "crm").external_id}]
    assert invoice_link(billing).attempts == 0 and invoice_link(billing).blocked_by is None


def test_a_related_record_delivered_during_the_check_does_not_block(
    billing: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer = add(billing)
    add_invoice(billing, customer)
    billing.conductor.relay()
    sender = billing.conductor.outward.sender
    send = sender.send

    def slow(subscriber: Any, *arguments: Any) -> None:
        if subscriber.name() == "crm.invoice":
            billing.conductor.deliver("crm.customer", [customer])  # another worker delivers it first
        send(subscriber, *arguments)

    monkeypatch.setattr(sender, "send", slow)
    billing.conductor.deliver("crm.invoice", ["1"])
    monkeypatch.undo()
    billing.run()  # without advancing the clock
    assert len(bills(billing)) == 1


def test_a_related_record_without_a_pending_change_is_delivered_for_its_dependent(billing: TestHub) -> None:
    customer = add(billing)
    with billing.conductor.database.write() as c:
        c.execute(sa.text("DELETE FROM change"))  # the record is older than the hub
    add_invoice(billing, customer)
    billing.run()
    assert len(bills(billing)) == 1


def test_a_dead_parent_is_reported_and_its_dependents_follow_when_it_is_fixed(billing: TestHub) -> None:
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
    assert len(billing.systems["crm"].calls) == calls  # a dead letter causes no further calls
    edit(billing, customer, country="IT")
    billing.run()
    assert len(bills(billing)) == 1
    assert all(letter.closed_at is not None for letter in rows(billing, DeadLetter))


def test_records_that_block_one_another_are_reported(database: Database) -> None:
    class Cycle(FakeInvoice):
        field_to_data = {"number": "number", "customer_id": Field("next", link="invoice", required=True)}

    hub = TestHub(database, "crm", kinds=(Cycle,))
    with database.write() as c:
        c.execute(sa.insert(CUSTOMER), [{"id": number, "name": "x"} for number in (1, 2)])
        c.execute(
            sa.insert(INVOICE), [{"id": 1, "number": "A", "customer_id": 2}, {"id": 2, "number": "B", "customer_id": 1}]
        )
    hub.run()
    assert {"wait for one another" in letter.message for letter in rows(hub, DeadLetter)} >= {True}
    hub.clock.tick(1000)
    hub.conductor.sweep()
    hub.run()
    assert hub.systems["crm"].writes() == []


def test_a_dependent_of_an_unsubscribed_record_is_skipped_and_follows_it(billing: TestHub) -> None:
    customer = add(billing)
    rule = billing.conductor.unsubscriptions.create("crm.customer", None, [customer], None, "freeze", by="ann")
    billing.run()
    add_invoice(billing, customer)
    billing.run()
    skip = rows(billing, Delivery, Delivery.subscriber == "crm.invoice", Delivery.outcome == "skipped")[-1]
    assert f"unsubscription #{rule}" in skip.reason
    assert billing.conductor.unsubscriptions.missed(rule) == 2
    assert billing.conductor.unsubscriptions.lift(rule, by="ann", deliver=True) == 2
    billing.conductor.sweep()
    billing.run()
    assert len(bills(billing)) == 1


def test_an_incoming_relation_is_stored_as_our_own_key(billing: TestHub) -> None:
    one, two = add(billing, name="One"), add(billing, name="Two")
    add_invoice(billing, one)
    billing.run()
    billing.clock.tick()
    other = link(billing, "crm", two).external_id
    event = billing.systems["crm"].edit(invoice_link(billing).external_id, customer=other)
    billing.conductor.inward.inbox.apply_event(billing.conductor.subscribers["crm.invoice"], event)
    with billing.conductor.database.read() as c:
        assert str(c.execute(sa.select(INVOICE.c.customer_id)).scalar()) == two
