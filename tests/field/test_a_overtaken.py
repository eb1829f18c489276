"""Events that arrive before the response to the create of their record."""

from __future__ import annotations

from typing import Any

import pytest

from models.catalogues import Customer
from models.ledger import Inbox, Link
from models.session import Database
from subscribers.base import Subscriber
from subscribers.records import External, Item
from tests.support.dead_letters import open_letters
from tests.support.fakes import FakeSubscriber, TestHub
from tests.support.records import add, lose_answer, one_row, rows, settle, webhook


class Unmarked(FakeSubscriber):
    """Records of a system that keeps no mark of ours."""

    find = Subscriber.find
    field_to_data = {"name": "name", "email": "email"}
    bulk_size = 50

    def create(self, item: Item) -> External:
        """Create a record without a mark; the system stores emails in lower case."""
        data = {**item.data, "email": item.data["email"].lower()}
        return self.client.call("create", item.record_id, lambda: self.client.add(**data))


def _when_created(hub: TestHub, event: str, how: str) -> None:
    """Have the next created record reported, and deleted if `event` says so, before the response to its create."""
    crm = hub.systems["crm"]
    add_there = crm.add

    def created(**values: Any) -> External:
        crm.add = add_there  # type: ignore[method-assign]
        made = add_there(**values)
        hub.clock.tick()
        if event == "deleted":
            crm.remove(made.id)
        if how == "poll":
            hub.conductor.poll("crm.customer")
        else:
            webhook(hub, "crm", "e1", made.id)
            hub.conductor.receive(1)
        return made

    crm.add = created  # type: ignore[method-assign]


@pytest.mark.parametrize("how", ["webhook", "poll"])
def test_a18_an_event_that_overtakes_the_response_to_a_create_makes_no_second_record(
    database: Database, how: str
) -> None:
    hub = TestHub(database, "crm", kinds=(Unmarked,))
    _when_created(hub, "created", how)
    add(hub, email="Ada@x.example")
    hub.run()
    settle(hub)
    assert [row.email for row in rows(hub, Customer)] == ["Ada@x.example"] and len(hub.systems["crm"].store) == 1
    assert one_row(hub, Link).external_id == "crm_1" and open_letters(hub) == []
    assert {row.state for row in rows(hub, Inbox)} <= {"done"}


@pytest.mark.parametrize("kind", [FakeSubscriber, Unmarked])
@pytest.mark.parametrize("on_gone", ["unlink", "delete"])
def test_a02_a_deletion_that_overtakes_the_response_to_a_create_is_applied(
    database: Database, kind: type[FakeSubscriber], on_gone: str
) -> None:
    hub = TestHub(database, "crm", kinds=(kind,), on_gone=on_gone)
    _when_created(hub, "deleted", "webhook")
    add(hub, email="ada@x.example")
    hub.run()
    settle(hub)
    assert one_row(hub, Link).unlinked_at is not None
    assert len(rows(hub, Customer)) == (on_gone == "unlink") and open_letters(hub) == []


def test_a02_a_deletion_of_a_strange_record_waits_for_creates_no_longer_than_a_lease(database: Database) -> None:
    hub = TestHub(database, "crm")
    states: list[str] = []

    def strange(kind: str, what: str) -> None:
        if kind == "create":
            webhook(hub, "crm", "e1", "crm_99")
            hub.publisher.published.clear()
            hub.conductor.receive(1)
            states.append(one_row(hub, Inbox).state)

    hub.systems["crm"].on_call = strange
    for _ in range(2):
        add(hub, email="ada@x.example")
        hub.run()
        hub.clock.tick(hub.conductor.context.policy.lease_seconds + 1)
    assert states == ["waiting", "done"]


def test_a18_an_event_tells_the_record_of_a_create_whose_response_was_lost(database: Database) -> None:
    hub = TestHub(database, "crm", kinds=(Unmarked,))
    add(hub, email="ada@x.example")
    lose_answer(hub, after=True)
    hub.run()
    webhook(hub, "crm", "e1", "crm_1")
    hub.conductor.receive(1)
    settle(hub)
    hub.clock.tick(100)
    settle(hub)
    assert len(rows(hub, Customer)) == 1 and len(hub.systems["crm"].store) == 1
    assert one_row(hub, Link).external_id == "crm_1" and open_letters(hub) == []
