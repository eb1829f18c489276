"""Operators pause, resume and poll systems."""

from __future__ import annotations

from subscribers.errors import SystemDown
from tests.support.fakes import TestHub
from tests.support.records import (
    add,
)


def test_a_paused_system_waits_and_catches_up(hub: TestHub) -> None:
    hub.conductor.systems.pause("crm", by="ann", reason="maintenance")
    add(hub)
    hub.run()
    assert hub.systems["crm"].calls == [] and len(hub.shown("shop")) == 1
    hub.conductor.systems.resume("crm", by="ann")
    hub.clock.tick(1)
    hub.conductor.sweep()
    hub.run()
    assert len(hub.shown("crm")) == 1


def test_a_poll_requested_by_an_operator_calls_a_system_that_is_down(hub: TestHub) -> None:
    conductor = hub.conductor
    with conductor.database.write() as c:
        conductor.breaker.went_down(c, "crm", SystemDown("no folder"))
    conductor.poll("crm.customer")
    assert conductor.reports.overview().systems[0].state == "down", "it is left alone for a while"
    conductor.systems.poll_now("crm.customer", "ann")
    conductor.poll("crm.customer")
    assert conductor.reports.overview().systems[0].state == "ok"
