"""Delivering a batch: load, claim, plan, send, record."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import conductor
from models.ledger import Delivery
from models.session import Database
from subscribers.records import Item
from tests.support.fakes import FakeSubscriber, TestHub
from tests.support.records import add, edit, link, record, rows

ENGINE = Path(conductor.__file__).parent


def test_a_new_record_is_created_in_every_system(hub: TestHub) -> None:
    add(hub, name="Ada", email="ada@x.org", city="Rome")
    hub.run()
    for name in ("crm", "shop"):
        assert hub.shown(name) == [
            {"name": "Ada", "email": "ada@x.org", "phone": None, "address": {"city": "Rome"}, "notes": None}
        ]
        assert link(hub, name).owed_change == link(hub, name).synced_change > 0


def test_an_edit_during_the_call_is_sent_right_after_it(hub: TestHub) -> None:
    one = add(hub)
    hub.conductor.relay()
    hub.publisher.published.clear()
    done: list[int] = []

    def meanwhile(kind: str, what: str) -> None:
        if not done:
            done.append(1)
            edit(hub, one, notes="edited during the call")
            hub.conductor.relay()
            hub.conductor.deliver("crm.customer", [one])  # its message arrives while the lease is held

    hub.systems["crm"].on_call = meanwhile
    hub.conductor.deliver("crm.customer", [one])
    assert hub.shown("crm")[0]["notes"] == "edited during the call"


class InterruptedSubscriber(FakeSubscriber):
    """Run each queued action once, while a record is being planned."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self.happens: list[Callable[[], object]] = []

    def wants(self, record: Any) -> bool:
        if self.happens:
            self.happens.pop()()
        return True


def test_a_link_that_changed_during_planning_is_planned_again(database: Database) -> None:
    """A link is claimed only if unchanged, so an incoming event is neither overwritten nor sent back."""
    hub = TestHub(database, "crm", kinds=(InterruptedSubscriber,))
    subscriber: Any = hub.conductor.subscribers["crm.customer"]
    one = add(hub, notes="0", city="Rome")
    hub.run()
    edit(hub, one, notes="ours")
    hub.clock.tick()
    theirs = hub.systems["crm"].edit("crm_1", address={"city": "Oslo"})
    subscriber.happens.append(lambda: hub.conductor.inward.inbox.apply_event(subscriber, theirs))
    hub.run()
    assert (hub.shown("crm")[0]["notes"], hub.shown("crm")[0]["address"]) == ("ours", {"city": "Oslo"})
    assert (record(hub, one).notes, record(hub, one).city) == ("ours", "Oslo")


def test_a_link_that_another_worker_delivered_during_planning_is_not_delivered_again(
    database: Database,
) -> None:
    hub = TestHub(database, "crm", kinds=(InterruptedSubscriber,))
    subscriber: Any = hub.conductor.subscribers["crm.customer"]
    one = add(hub)
    subscriber.happens.append(lambda: hub.conductor.deliver("crm.customer", [one]))
    hub.run()
    assert hub.systems["crm"].writes() == [("create", one)]
    assert [row.outcome for row in rows(hub, Delivery)] == ["delivered"]


def test_few_frames_lie_between_the_actor_and_the_subscriber(database: Database) -> None:
    """A traceback shows the path of a change: five conductor functions in sequence."""
    frames: list[str] = []

    class Traced(FakeSubscriber):
        def bulk_create(self, items: Sequence[Item]) -> list[Any]:
            stack = traceback.extract_stack()
            frames[:] = [frame.name for frame in stack if Path(frame.filename).is_relative_to(ENGINE)]
            return list(super().bulk_create(items))

    hub = TestHub(database, "crm", kinds=(Traced,))
    record_id = add(hub)
    hub.conductor.relay()
    hub.conductor.deliver("crm.customer", [record_id])
    assert frames == ["deliver", "deliver", "_deliver_chunk", "_deliver_batch", "send"]
