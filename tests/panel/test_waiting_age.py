"""A record waits since its oldest change that was not delivered, whatever an operator does, and every page says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from models.ledger import Change, Conflict
from models.session import Database
from subscribers.errors import Reject
from subscribers.mapping.fields import Field
from tests.support.dead_letters import discard_all, retry_all
from tests.support.fakes import TestHub
from tests.support.records import add, edit, edit_now, link, rows, webhook
from tests.support.surfaces import Surfaces

HOUR = 3600.0

#: What an operator does. It returns since when the record waits afterwards: "change" for the change that waited before,
#: "action" for the time of the action, None if nothing waits.
Action = Callable[[TestHub], str | None]


@pytest.fixture
def hub(database: Database) -> TestHub:
    """Return a hub with one delivered customer."""
    fields = {"name": "name", "notes": Field("notes", conflict="ask"), "phone": "phone"}
    hub = TestHub(database, "crm", field_to_data=fields)
    add(hub, notes="base")
    hub.run()
    hub.clock.tick(HOUR)
    return hub


@pytest.fixture
def surfaces(hub: TestHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Surfaces:
    return Surfaces(hub, monkeypatch, capsys)


def conflict(hub: TestHub) -> int:
    """Open a conflict about the customer's notes; return its id."""
    edit_now(hub, "1", notes="ours")
    hub.systems["crm"].edit("crm_1", notes="theirs")
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    (found,) = rows(hub, Conflict)
    return int(found.id)


def unsubscribe(hub: TestHub) -> int:
    return hub.conductor.unsubscriptions.create("crm", None, None, None, "freeze", "ann")


# --- the situations before, each with a change that waits or was held back, and the action ---------------------


def retry(hub: TestHub) -> str:
    die(hub)
    retry_all(hub.conductor)
    return "change"


def discard(hub: TestHub) -> None:
    die(hub)
    discard_all(hub.conductor)


def die(hub: TestHub) -> None:
    hub.systems["crm"].fail(Reject("no"))
    edit_now(hub, "1", phone="1")
    hub.run()
    hub.clock.tick(HOUR)


def discard_an_edited_record(hub: TestHub) -> str:
    die(hub)
    edit(hub, "1", phone="2")
    hub.conductor.relay()
    discard_all(hub.conductor)
    return "change"


def pause(hub: TestHub) -> str:
    edit_now(hub, "1", phone="1")
    hub.conductor.relay()
    hub.clock.tick(HOUR)
    hub.conductor.systems.pause("crm", "ann", "moving")
    return "change"


def pause_and_resume(hub: TestHub) -> str:
    pause(hub)
    hub.clock.tick(HOUR)
    hub.conductor.systems.resume("crm", "ann")
    return "change"


def resolve_for_ours(hub: TestHub) -> str:
    number = conflict(hub)
    hub.clock.tick(HOUR)
    hub.conductor.conflicts.resolve(number, "ours", "ann")
    return "action"


def resolve_for_theirs(hub: TestHub) -> None:
    number = conflict(hub)
    hub.clock.tick(HOUR)
    hub.conductor.conflicts.resolve(number, "theirs", "ann")
    hub.conductor.relay()


def resolve_while_a_change_waits(hub: TestHub) -> str:
    number = conflict(hub)
    wait(hub)
    hub.conductor.conflicts.resolve(number, "ours", "ann")
    return "change"


def wait(hub: TestHub) -> None:
    edit_now(hub, "1", phone="1")
    hub.conductor.relay()
    hub.clock.tick(HOUR)


def lift(hub: TestHub) -> None:
    rule = hold_back(hub)
    hub.conductor.unsubscriptions.lift(rule, "ann")


def lift_and_deliver(hub: TestHub) -> str:
    rule = hold_back(hub)
    hub.conductor.unsubscriptions.lift(rule, "ann", deliver=True)
    return "action"


def hold_back(hub: TestHub) -> int:
    rule = unsubscribe(hub)
    edit_now(hub, "1", phone="1")
    hub.run()
    hub.clock.tick(HOUR)
    return rule


def lift_while_a_change_waits(hub: TestHub) -> str:
    rule = unsubscribe(hub)
    wait(hub)
    hub.conductor.unsubscriptions.lift(rule, "ann", deliver=True)
    return "change"


def save_mapping(hub: TestHub) -> None:
    mapping = hub.conductor.mappings.latest("crm.customer")[0].rows()
    hub.conductor.mappings.save("crm.customer", [row for row in mapping if row["column"] != "phone"], "ann", 0)


def save_mapping_while_a_change_waits(hub: TestHub) -> str:
    wait(hub)
    save_mapping(hub)
    return "change"


def resend_after_a_mapping(hub: TestHub) -> str:
    mapping = hub.conductor.mappings.latest("crm.customer")[0].rows()
    added = {**mapping[0], "column": "email", "path": "email"}
    hub.conductor.mappings.save("crm.customer", [*mapping, added], "ann", 0)
    edit(hub, "1", email="ada@example.com")
    with hub.conductor.database.write() as connection:
        connection.execute(sa.update(Change).values(relayed_at=hub.clock()))
    hub.conductor.tasks.start("resend", "ann", subscriber="crm.customer")
    hub.conductor.tasks.run_some()
    return "action"


def sync(hub: TestHub) -> str:
    hub.conductor.push("customer", "1")
    hub.conductor.relay()
    return "action"


def sync_while_a_change_waits(hub: TestHub) -> str:
    wait(hub)
    sync(hub)
    return "change"


@pytest.mark.parametrize(
    "action",
    [
        retry, discard, discard_an_edited_record, pause, pause_and_resume, resolve_for_ours, resolve_for_theirs,
        resolve_while_a_change_waits, lift, lift_and_deliver, lift_while_a_change_waits, save_mapping,
        save_mapping_while_a_change_waits, resend_after_a_mapping, sync, sync_while_a_change_waits,
    ],
    ids=lambda action: action.__name__,
)  # fmt: skip
def test_after_an_action_every_page_shows_the_same_age(hub: TestHub, surfaces: Surfaces, action: Action) -> None:
    changed_at = hub.clock()
    waits_since = {"change": changed_at, None: None}
    since = action(hub)
    expected = hub.clock() if since == "action" else waits_since[since]
    assert set(surfaces.ages().items()) == {(name, expected) for name in surfaces.ages()}
    if expected is not None:
        assert link(hub, "crm").owed_change > link(hub, "crm").synced_change
