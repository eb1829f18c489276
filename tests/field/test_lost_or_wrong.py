"""Data that was lost or wrong in the field: docs/explanation/field-faults.md, group A."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models.session import Database
from subscribers.records import External
from tests.support.fakes import TestHub
from tests.support.records import add, link, record

# A1: an edit there that was not seen before ours went out

# A2: a deletion that arrives late


@pytest.mark.parametrize("on_gone", ["delete", "archive", "unlink", "recreate"])
@pytest.mark.parametrize("repeated", [1, 2])
def test_a02_a_late_deletion_is_weighed_by_its_time(database: Database, on_gone: str, repeated: int) -> None:
    hub = TestHub(database, "crm", on_gone=on_gone)
    one, crm = add(hub), hub.systems["crm"]
    hub.run()
    told = External("crm_1", at=hub.clock.tick(), deleted=True)
    hub.clock.tick()
    hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], crm.edit("crm_1", name="Bea"))
    crm.calls.clear()
    for _ in range(repeated):
        hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], told)
    hub.run()
    assert (record(hub, one).name, record(hub, one).active) == ("Bea", True)
    assert link(hub, "crm").external_id == "crm_1" and link(hub, "crm").unlinked_at is None
    assert crm.calls == []


@pytest.mark.parametrize("told", ["tie", "untimed"])
def test_a02_a_deletion_in_doubt_is_fetched(database: Database, told: str) -> None:
    hub = TestHub(database, "crm", on_gone="delete")
    one, crm = add(hub), hub.systems["crm"]
    hub.run()
    event = External("crm_1", at=crm.changed["crm_1"] if told == "tie" else None, deleted=True)
    hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], event)
    assert record(hub, one) is not None
    crm.remove("crm_1")
    hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], event)
    assert record(hub, one) is None


def test_a02_a_late_deletion_in_a_poll_is_weighed_by_its_time(database: Database) -> None:
    hub = TestHub(database, "crm", on_gone="delete")
    one, crm = add(hub), hub.systems["crm"]
    hub.run()
    at = hub.clock.tick()
    hub.clock.tick()
    hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], crm.edit("crm_1", name="Bea"))
    kept = crm.store.pop("crm_1")
    crm.changed.clear()
    crm.deleted["crm_1"] = at  # as a list of deletions that does not know of the record's restoration
    hub.conductor.poll("crm.customer")
    crm.store["crm_1"] = kept
    hub.conductor.sweep()
    hub.run()
    assert record(hub, one).name == "Bea"


def test_a02_a_late_update_does_not_undo_a_deletion(database: Database) -> None:
    hub = TestHub(database, "crm", on_gone="archive")
    one, crm = add(hub), hub.systems["crm"]
    hub.run()
    hub.clock.tick()
    late = crm.edit("crm_1", name="Bea")
    hub.clock.tick()
    for event in (crm.remove("crm_1"), late, replace(late, at=None)):
        hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], event)
    assert not record(hub, one).active and link(hub, "crm").deleted_remotely


# A3: restored under the same id

# A4: parts of a nested object that are not mapped

# A5: a row that cannot be read

# A6: the system answers 404 for everything

# A7: a code that only may mean gone

# A8: a system that leaves empty fields out

# A9: unique values freed and taken again

# A10: REPLACE INTO displaces another row

# A11: edits that only bytes tell apart, padded keys, partitions

# A12: a row that is absent without a captured deletion

# A13: records listed late, or dated in the future

# A14: currencies whose minor units differ by vendor

# A15: column types without a JSON form

# A16: a system whose clock is wrong

# A17: match values written differently

# A18: two hubs on one account
