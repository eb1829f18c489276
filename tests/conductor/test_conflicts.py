"""A conflict keeps both versions until an operator decides."""

from __future__ import annotations

from typing import Any

import pytest

from models.ledger import Conflict
from models.session import Database
from subscribers.mapping.fields import Field
from tests.support.fakes import TestHub
from tests.support.records import (
    add,
    edit,
    link,
    record,
    rows,
    webhook,
)


def test_a_conflict_is_kept_with_both_versions_and_neither_side_is_written(conflicted: TestHub) -> None:
    (conflict,) = rows(conflicted, Conflict)
    assert (conflict.base, conflict.ours, conflict.theirs) == ("base", "ours", "theirs")
    assert record(conflicted).notes == "ours" and conflicted.shown("crm")[0]["notes"] == "theirs"
    assert conflicted.shown("shop")[0]["notes"] == "ours"
    # Other fields are still delivered, and a duplicate event opens no second conflict.
    edit(conflicted, "1", phone="7")
    webhook(conflicted, "crm", "e2", "crm_1")
    conflicted.run()
    assert conflicted.shown("crm")[0] == {"name": "Ada", "notes": "theirs", "phone": "7"}
    assert len(rows(conflicted, Conflict)) == 1


@pytest.mark.parametrize("choice", ["ours", "theirs"])
def test_a_resolved_conflict_has_the_same_value_everywhere(conflicted: TestHub, choice: Any) -> None:
    (conflict,) = rows(conflicted, Conflict)
    conflicted.conductor.conflicts.resolve(conflict.id, choice, by="ann")
    conflicted.conductor.sweep()
    conflicted.run()
    assert record(conflicted).notes == choice
    assert conflicted.shown("crm")[0]["notes"] == conflicted.shown("shop")[0]["notes"] == choice
    assert link(conflicted, "crm").open_conflicts == 0
    with pytest.raises(ValueError, match="no open conflict"):
        conflicted.conductor.conflicts.resolve(conflict.id, choice, by="ann")


def test_a_value_that_does_not_fit_is_reported_and_blocks_no_other_conflict(database: Database) -> None:
    hub = TestHub(database, "crm", field_to_data={"name": "name", "phone": Field("phone", conflict="ask")})
    ids = [add(hub, name=f"n{number}", phone="0") for number in range(3)]
    hub.run()
    hub.clock.tick()
    for number, (one, theirs) in enumerate(zip(ids, ("x" * 500, "5", "6"), strict=True)):
        edit(hub, one, phone="1")
        external_id = link(hub, "crm", one).external_id
        hub.systems["crm"].edit(external_id, phone=theirs)
        webhook(hub, "crm", f"e{number}", external_id)
    hub.run()
    long = next(row.id for row in rows(hub, Conflict) if len(row.theirs) == 500)
    with pytest.raises(ValueError, match="500 characters, but phone allows 40"):
        hub.conductor.conflicts.resolve(long, "theirs", by="ann")
    task = hub.conductor.tasks.start("resolve", "ann", subscriber="crm.customer", path="phone", choice="theirs")
    while hub.conductor.tasks.run_some():
        hub.clock.tick()
    done = hub.conductor.tasks.get(task)
    assert (done.state, done.succeeded, done.failed) == ("done", 2, 1)
    assert [row.id for row in rows(hub, Conflict, Conflict.resolved_at.is_(None))] == [long]
