"""Retrying and discarding dead letters."""

from __future__ import annotations

import pytest

from models.session import Database
from subscribers.errors import Reject
from tests.support.dead_letters import discard_all
from tests.support.fakes import TestHub
from tests.support.records import add, edit, link


def test_discarding_a_dead_letter_marks_its_change_as_synced(hub: TestHub) -> None:
    one = add(hub)
    hub.systems["crm"].fail(Reject("no"))
    hub.run()
    with pytest.raises(ValueError, match="reason"):
        discard_all(hub.conductor, "ann", " ")
    assert discard_all(hub.conductor, "ann", "test data") == 1
    hub.conductor.sweep(everything=True)
    hub.run()
    assert hub.shown("crm") == []
    assert link(hub, "crm", one).owed_change == link(hub, "crm", one).synced_change


def test_discarding_a_dead_letter_keeps_a_later_edit(database: Database) -> None:
    hub = TestHub(database, "crm")
    one = add(hub)
    hub.systems["crm"].fail(Reject("no"))
    hub.run()
    hub.conductor.systems.pause("crm", "ann", "")
    edit(hub, one, name="Corrected")
    hub.run()
    discard_all(hub.conductor, "ann", "old news")
    hub.conductor.systems.resume("crm", "ann")
    hub.clock.tick()
    hub.conductor.sweep()
    hub.run()
    assert hub.shown("crm")[0]["name"] == "Corrected"
