"""Every page and command gives the same state and counts for one link, in every situation."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from conductor import Policy
from models.catalogues import Record
from models.ledger import Link
from models.session import Database
from subscribers.errors import Reject, Retry, SystemDown
from subscribers.mapping.fields import Field
from tests.support.dead_letters import discard_all, retry_all
from tests.support.fakes import FakeSubscriber, TestHub
from tests.support.records import add, edit, insert, webhook
from tests.support.surfaces import Surfaces

HOUR = 3600.0

Situation = Callable[[TestHub], object]


class Choosy(FakeSubscriber):
    """A subscriber that does not want customers from Nowhere."""

    def wants(self, record: Record) -> bool:
        return bool(record["city"] != "Nowhere")


@pytest.fixture
def hub(database: Database) -> TestHub:
    """Return a hub with one system and one delivered customer."""
    fields = {"name": "name", "notes": Field("notes", conflict="ask"), "phone": "phone"}
    policy = Policy(max_attempts=3, retry_min_seconds=60)
    hub = TestHub(database, "crm", policy=policy, kinds=[Choosy], field_to_data=fields)
    add(hub, notes="base")
    hub.run()
    hub.clock.tick(HOUR)
    return hub


def change(hub: TestHub, table: Any, **values: Any) -> None:
    with hub.conductor.database.write() as connection:
        connection.execute(sa.update(table).values(**values))


def owe(hub: TestHub, **values: Any) -> None:
    """Edit the customer, and have the relay route the change."""
    edit(hub, "1", **(values or {"phone": "1"}))
    hub.conductor.relay()


def deliver(hub: TestHub, **values: Any) -> None:
    edit(hub, "1", **(values or {"phone": "1"}))
    hub.run()


def remove(hub: TestHub) -> None:
    with hub.conductor.database.write() as connection:
        connection.execute(sa.text("DELETE FROM customer"))


def rule(hub: TestHub, **values: Any) -> int:
    defaults: dict[str, Any] = {"operation": None, "record_ids": None, "until": None}
    return hub.conductor.unsubscriptions.create("crm", **{**defaults, **values}, reason="freeze", by="ann")


# --- situations -----------------------------------------------------------------------------------------------


def captured(hub: TestHub) -> None:
    edit(hub, "1", phone="1")


def leased(hub: TestHub) -> None:
    owe(hub)
    change(hub, Link, lease_owner="a worker", lease_until=hub.clock() + timedelta(minutes=1))


def failed(hub: TestHub) -> None:
    hub.systems["crm"].fail(Retry("a lock"))
    deliver(hub)


def tried_again(hub: TestHub) -> None:
    failed(hub)
    hub.clock.tick(HOUR)
    hub.conductor.sweep()


def tried_again_under_a_lease(hub: TestHub) -> None:
    tried_again(hub)
    change(hub, Link, lease_owner="a worker", lease_until=hub.clock() + timedelta(minutes=1))


def paused(hub: TestHub) -> None:
    owe(hub)
    hub.conductor.systems.pause("crm", "ann", "moving")


def down(hub: TestHub) -> None:
    hub.systems["crm"].fail(SystemDown("cannot connect"))
    deliver(hub)


def blocked(hub: TestHub) -> None:
    owe(hub)
    parent = insert(hub, Link.__table__, {"subscriber": "crm.product", "record_id": "7"})
    with hub.conductor.database.write() as connection:
        of = (Link.subscriber == "crm.customer", Link.record_id == "1")
        connection.execute(sa.update(Link).where(*of).values(blocked_by=int(parent)))


def dead(hub: TestHub) -> None:
    hub.systems["crm"].fail(Reject("no"))
    deliver(hub)


def retried(hub: TestHub) -> None:
    dead(hub)
    retry_all(hub.conductor)


def discarded(hub: TestHub) -> None:
    dead(hub)
    discard_all(hub.conductor)


def covered(hub: TestHub) -> None:
    rule(hub)
    owe(hub)


def covered_while_paused(hub: TestHub) -> None:
    rule(hub)
    paused(hub)


def skipped(hub: TestHub) -> None:
    rule(hub)
    deliver(hub)


def listed(hub: TestHub) -> None:
    rule(hub, record_ids=["1"], operation="update")
    deliver(hub)


def only_later_changes_covered(hub: TestHub) -> None:
    rule(hub)


def lifted(hub: TestHub) -> None:
    number = rule(hub)
    deliver(hub)
    hub.conductor.unsubscriptions.lift(number, "ann")


def lifted_and_delivered(hub: TestHub) -> None:
    number = rule(hub)
    deliver(hub)
    hub.conductor.unsubscriptions.lift(number, "ann", deliver=True)


def expired(hub: TestHub) -> None:
    rule(hub, until=hub.clock() + timedelta(hours=1))
    deliver(hub, phone="0")
    hub.clock.tick(2 * HOUR)


def expired_and_paused(hub: TestHub) -> None:
    expired(hub)
    paused(hub)


def unwanted(hub: TestHub) -> None:
    hub.clock.tick(HOUR)
    deliver(hub, city="Nowhere")


def left_out_by_the_writer(hub: TestHub) -> None:
    hub.clock.tick(HOUR)
    hub.conductor.push("customer", "1", unsubscribe=["crm"])
    hub.run()


def conflict(hub: TestHub) -> None:
    edit(hub, "1", notes="ours")
    hub.systems["crm"].edit("crm_1", notes="theirs")
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()


def conflict_and_a_change(hub: TestHub) -> None:
    conflict(hub)
    owe(hub)


def deleted_there(hub: TestHub) -> None:
    hub.systems["crm"].remove("crm_1")
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()


def deleted_here(hub: TestHub) -> None:
    remove(hub)
    hub.run()


def deletion_waits(hub: TestHub) -> None:
    remove(hub)
    hub.conductor.relay()
    hub.conductor.systems.pause("crm", "ann", "moving")


def late_event(hub: TestHub) -> None:
    """An event older than what is known is dropped, which does not make the record unsent."""
    hub.clock.tick(HOUR)
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()


#: Situation -> the state, a part of its explanation, the counts of pending records and dead letters, and the state of
#: the subscriber.
SITUATIONS: list[tuple[Situation, str, str, tuple[int, int], str]] = [
    (lambda hub: None, "up to date", "up to date since", (0, 0), "ok"),
    (captured, "pending", "the relay has not processed the change yet", (0, 0), "ok"),
    (owe, "pending", "pending since", (1, 0), "waiting"),
    (leased, "sending", "being sent now", (1, 0), "waiting"),
    (failed, "retrying", "attempt 1 of 3 failed, next at", (1, 0), "retrying"),
    (tried_again, "retrying", "attempt 1 of 3 failed; it is being tried again", (1, 0), "retrying"),
    (tried_again_under_a_lease, "retrying", "attempt 1 of 3 failed; it is being tried again", (1, 0), "retrying"),
    (paused, "waiting", "Crm has been paused by ann since", (1, 0), "paused"),
    (down, "waiting", "Crm has been down since", (1, 0), "down"),
    (blocked, "waiting", "waiting for product 7", (1, 0), "waiting"),
    (dead, "dead letter", "not sent since", (0, 1), "failing"),
    (retried, "pending", "pending since", (1, 1), "failing"),
    (discarded, "up to date", "up to date since", (0, 0), "ok"),
    (covered, "pending", "; it will not be sent: unsubscription #1 (freeze)", (1, 0), "waiting"),
    (covered_while_paused, "waiting", "; it will not be sent: unsubscription #1 (freeze)", (1, 0), "paused"),
    (skipped, "skipped", "not sent: unsubscription #1 (freeze) holds it back", (0, 0), "ok"),
    (listed, "skipped", "not sent: unsubscription #1 (freeze) holds it back", (0, 0), "ok"),
    (only_later_changes_covered, "up to date", "later changes are not sent: unsubscription #1", (0, 0), "ok"),
    (lifted, "skipped", "the last change was not sent: unsubscription #1", (0, 0), "ok"),
    (lifted_and_delivered, "pending", "pending since", (1, 0), "waiting"),
    (expired, "skipped", "unsubscription #1 covered it and has ended; the next change will be sent", (0, 0), "ok"),
    (expired_and_paused, "waiting", "Crm has been paused by ann since", (1, 0), "paused"),
    (unwanted, "skipped", "the last change was not sent: crm.customer filters this record out", (0, 0), "ok"),
    (left_out_by_the_writer, "skipped", "the last change was not sent: the writer's unsubscribe list", (0, 0), "ok"),
    (conflict, "conflict", "1 field waits for a decision", (0, 0), "ok"),
    (conflict_and_a_change, "pending", "pending since", (1, 0), "waiting"),
    (deleted_there, "unlinked", "deleted in Crm at", (0, 0), "ok"),
    (deleted_here, "unlinked", "deleted or unlinked by Syncflow at", (0, 0), "ok"),
    (deletion_waits, "waiting", "Crm has been paused by ann since", (1, 0), "paused"),
    (late_event, "up to date", "up to date since", (0, 0), "ok"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("situation", "word", "words", "counts", "health"),
    [pytest.param(*row, id=getattr(row[0], "__name__", "")) for row in SITUATIONS],
)
def test_a_link_has_one_state_wherever_it_is_shown(
    hub: TestHub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    situation: Situation,
    word: str,
    words: str,
    counts: tuple[int, int],
    health: str,
) -> None:
    situation(hub)
    surfaces = Surfaces(hub, monkeypatch, capsys)
    assert surfaces.words() == dict.fromkeys(("links page", "link page", "record page"), word)
    for name, text in surfaces.states().items():
        assert words in text or (name, text) == ("links page", "up to date"), name
    assert surfaces.counts() == dict.fromkeys(surfaces.counts(), counts)
    assert surfaces.health() == dict.fromkeys(surfaces.health(), health)
