"""A record waits since the oldest change that was not delivered, also when it changes during a call."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from conductor.links import state
from models.session import Database
from subscribers.errors import SystemDown
from tests.support.fakes import FakeSubscriber, TestHub
from tests.support.records import add, edit, edit_now, link

HOUR = 3600.0


@pytest.fixture
def hub(database: Database) -> TestHub:
    """Return a hub with one delivered customer."""
    hub = TestHub(database, "crm")
    add(hub)
    hub.run()
    hub.clock.tick(HOUR)
    return hub


class BulkSubscriber(FakeSubscriber):
    """A subscriber of a system that accepts many records in one call."""

    bulk_size = 50


def during_next_call(hub: TestHub, work: Callable[[], None]) -> None:
    def once(_kind: str, _what: str) -> None:
        hub.systems["crm"].on_call = lambda kind, what: None
        work()

    hub.systems["crm"].on_call = once


@pytest.mark.parametrize("kind", [FakeSubscriber, BulkSubscriber])
@pytest.mark.parametrize("is_linked", [False, True], ids=["create", "update"])
@pytest.mark.parametrize("relay_seconds", [0, HOUR])
def test_an_edit_during_a_call_waits_since_it_was_captured(
    database: Database, kind: type[FakeSubscriber], is_linked: bool, relay_seconds: float
) -> None:
    hub = TestHub(database, "crm", kinds=[kind])
    add(hub)
    if is_linked:
        hub.run()
        edit(hub, "1", name="Bea")
    hub.clock.tick(HOUR)
    edited_at = hub.clock() + timedelta(seconds=10)

    def edit_and_pause() -> None:
        hub.clock.tick(10)
        edit_now(hub, "1", phone="2")
        hub.clock.tick(relay_seconds)
        hub.conductor.relay()
        hub.conductor.systems.pause("crm", "ann", "moving")  # so that it is not delivered immediately
        hub.clock.tick(20)

    during_next_call(hub, edit_and_pause)
    hub.run()
    assert [data.get("phone") for data in hub.shown("crm")] == [None], "only the first change was delivered"
    assert link(hub, "crm").owed_since == edited_at


def test_a_sync_during_a_call_waits_since_the_action(hub: TestHub) -> None:
    synced_at = hub.clock() + timedelta(seconds=10)

    def sync_and_pause() -> None:
        hub.clock.tick(10)
        hub.conductor.push("customer", "1")
        hub.conductor.relay()
        hub.conductor.systems.pause("crm", "ann", "moving")
        hub.clock.tick(20)

    edit_now(hub, "1", phone="1")
    during_next_call(hub, sync_and_pause)
    hub.run()
    assert link(hub, "crm").owed_since == synced_at


def test_after_a_failed_call_a_record_waits_since_the_change_that_failed(hub: TestHub) -> None:
    changed_at = hub.clock()

    def edit_meanwhile() -> None:
        hub.clock.tick(HOUR)
        edit_now(hub, "1", phone="2")
        hub.conductor.relay()

    edit_now(hub, "1", phone="1")
    hub.systems["crm"].fail(SystemDown("503"))
    during_next_call(hub, edit_meanwhile)
    hub.run()
    assert link(hub, "crm").owed_since == changed_at


def test_what_came_during_a_failed_call_is_delivered_with_the_next(hub: TestHub) -> None:
    """The first call fails after an edit; the second delivers both, and only what comes during it still waits."""
    crm, edited_at = hub.systems["crm"], list[datetime]()

    def edit_meanwhile(_kind: str, _what: str) -> None:
        hub.clock.tick(60)
        edit_now(hub, "1", phone=f"{len(edited_at) + 2}")
        edited_at.append(hub.clock())
        hub.conductor.relay()
        if len(edited_at) == 2:
            hub.conductor.systems.pause("crm", "ann", "moving")
            crm.on_call = lambda kind, what: None

    edit_now(hub, "1", phone="1")
    crm.fail(SystemDown("503"))
    crm.on_call = edit_meanwhile
    hub.run()
    hub.clock.tick(HOUR)
    hub.conductor.sweep()
    hub.run()
    assert hub.shown("crm")[0]["phone"] == "2"
    assert link(hub, "crm").owed_since == edited_at[1]


def test_a_dead_letter_without_a_call_keeps_the_age_of_what_waits_already(hub: TestHub) -> None:
    changed_at = hub.clock()
    edit_now(hub, "1", phone="1")
    hub.conductor.relay()
    hub.clock.tick(HOUR)
    with hub.conductor.database.write() as connection:
        state.bury_unsent(connection, "crm.customer", "1", hub.clock())
    assert link(hub, "crm").owed_since == changed_at
