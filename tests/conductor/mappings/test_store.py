"""Saved mappings: the newest version applies."""

from __future__ import annotations

import sqlalchemy as sa

from models.ledger import DeadLetter
from models.ledger import Mapping as SavedMapping
from models.session import Database
from subscribers.mapping.validation import check_rows
from tests.support.dead_letters import retry_all
from tests.support.fakes import TestHub
from tests.support.records import add, edit, rows


def test_a_mapping_edited_in_the_panel_is_in_force_with_the_next_change(hub: TestHub) -> None:
    one = add(hub, notes="n")
    hub.run()
    mapper, version = hub.conductor.mappings.latest("crm.customer")
    kept = [row for row in mapper.rows() if row["column"] in ("name", "email")]
    kept.append({"column": "notes", "path": "remarks", "transform": "upper"})
    assert hub.conductor.mappings.save("crm.customer", kept, "ann", version) == 1
    edit(hub, one, phone="9")
    hub.run()
    assert hub.shown("crm")[0]["remarks"] == "N" and hub.shown("crm")[0]["phone"] is None
    hub.conductor.mappings.save("crm.customer", None, "ann", 1)
    edit(hub, one, phone="10")
    hub.run()
    assert hub.shown("crm")[0]["phone"] == "10"


def test_a_mapping_that_no_longer_fits_can_be_replaced(database: Database) -> None:
    hub = TestHub(database, "crm")
    with database.write() as connection:
        fields = [{"column": "dropped", "path": "name"}]
        row = {"subscriber": "crm.customer", "version": 1, "fields": fields, "created_by": "ann"}
        connection.execute(sa.insert(SavedMapping).values(**row))
    one = add(hub)
    hub.run()
    (letter,) = rows(hub, DeadLetter)
    assert letter.record_id == one and "no longer fits" in letter.message
    assert hub.conductor.mappings.latest("crm.customer")[1] == 1
    hub.conductor.mappings.save("crm.customer", None, "ann", 1)
    retry_all(hub.conductor, "ann")
    hub.conductor.sweep()
    hub.run()
    assert len(hub.shown("crm")) == 1


def test_a_path_inside_another_path_is_refused(database: Database) -> None:
    hub = TestHub(database, "crm")
    typed = [{"column": "name", "path": "address"}, {"column": "city", "path": "address.city"}]
    _fields, problems = check_rows(typed, hub.conductor.subscribers["crm.customer"].records)
    assert problems and "row 2" in problems[0]
