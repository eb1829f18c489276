"""Each state change of a link sets all columns that belong to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from conductor.links import state
from conductor.links.row import link_row
from conductor.links.state import Via
from models.ledger import Link
from models.session import Database
from tests.support.fakes import TestHub
from tests.support.records import add, edit


@pytest.fixture
def hub(database: Database) -> Iterator[TestHub]:
    yield TestHub(database, "crm")


def _add_link(hub: TestHub, **values: object) -> int:
    row = {"subscriber": "crm.customer", "record_id": "1", **values}
    with hub.conductor.database.write() as connection:
        return int(connection.execute(sa.insert(Link).values(**row).returning(Link.id)).scalar_one())


def _link(hub: TestHub) -> state.Values:
    with hub.conductor.database.read() as connection:
        return link_row(connection.execute(sa.select(Link.__table__)).one())._asdict()


@pytest.mark.parametrize("via", Via)
def test_owing_again_keeps_the_age_of_the_oldest_change(hub: TestHub, via: Via) -> None:
    since = hub.clock() - timedelta(hours=3)
    link_id = _add_link(hub, owed_change=5, synced_change=4, owed_since=since)
    with hub.conductor.database.write() as connection:
        state.owe(connection, [Link.id == link_id], hub.clock(), via)
    assert (_link(hub)["owed_change"], _link(hub)["owed_since"]) == (6, since)


@pytest.mark.parametrize(
    "operation",
    [
        lambda hub, rule: hub.conductor.unsubscriptions.lift(rule, "me", deliver=True),
        lambda hub, rule: hub.conductor.unsubscriptions.lift(rule, "me"),
        lambda hub, rule: (
            hub.conductor.systems.pause("crm", "me", "moving"),
            hub.conductor.systems.resume("crm", "me"),
        ),
        lambda hub, rule: hub.conductor.push("customer", "1"),
        lambda hub, rule: run_task(hub, "backfill"),
        lambda hub, rule: run_task(hub, "resend"),
        lambda hub, rule: run_task(hub, "reconcile", repair=True),
        lambda hub, rule: edit_and_relay(hub),
        lambda hub, rule: hub.conductor.sweep(),
    ],
    ids=["lift and deliver", "lift", "pause and resume", "push", "backfill", "resend", "repair", "edit", "sweep"],
)
def test_no_operation_restarts_the_waiting_age_of_a_record(
    hub: TestHub, operation: Callable[[TestHub, int], object]
) -> None:
    add(hub)
    hub.run()
    edit(hub, "1", name="Ada B")
    rule = hub.conductor.unsubscriptions.create("crm", "delete", None, None, "freeze", "me")
    hub.conductor.relay()
    since = _link(hub)["owed_since"]
    assert since is not None
    with hub.conductor.database.write() as connection:
        state.write(connection, _link(hub)["id"], {"unsubscription_id": rule})
    hub.clock.tick(3 * 3600)
    operation(hub, rule)
    assert _link(hub)["owed_since"] == since
    assert _link(hub)["owed_change"] > _link(hub)["synced_change"]


def edit_and_relay(hub: TestHub) -> None:
    edit(hub, "1", name="Bea")
    hub.conductor.relay()


def run_task(hub: TestHub, kind: str, **arguments: Any) -> None:
    task = hub.conductor.tasks.start(kind, "me", subscriber="crm.customer", **arguments)
    for _ in range(4):
        hub.conductor.tasks.run_some()
        hub.clock.tick(2)
    assert hub.conductor.tasks.get(task).state != "failed"


def test_lifting_an_unsubscription_keeps_the_waiting_time(hub: TestHub) -> None:
    since = hub.clock() - timedelta(hours=3)
    rule = hub.conductor.unsubscriptions.create("crm", None, None, None, "freeze", "me")
    _add_link(hub, owed_change=5, synced_change=4, owed_since=since, unsubscription_id=rule)
    assert hub.conductor.unsubscriptions.lift(rule, "me", deliver=True) == 1
    link = _link(hub)
    assert (link["owed_change"], link["owed_since"], link["unsubscription_id"]) == (6, since, None)
    assert link["retry_at"] == hub.clock()


def test_repairing_owes_a_record_without_restarting_its_age(hub: TestHub) -> None:
    since = hub.clock() - timedelta(hours=3)
    _add_link(hub, record_id="1", owed_change=2, owed_since=since)
    with hub.conductor.database.write() as connection:
        state.owe_missing(connection, "crm.customer", ["1"], hub.clock())
    assert _link(hub)["owed_since"] == since, "it was owed already"


def test_a_missing_record_is_owed_without_its_former_failures(hub: TestHub) -> None:
    _add_link(hub, owed_change=2, synced_change=2, attempts=3)
    with hub.conductor.database.write() as connection:
        state.owe_missing(connection, "crm.customer", ["1"], hub.clock())
    link = _link(hub)
    assert (link["owed_change"], link["owed_since"], link["attempts"]) == (3, hub.clock(), 0)
