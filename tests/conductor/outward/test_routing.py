"""Captured changes become pending work for the subscribers that follow the record."""

from __future__ import annotations

import sqlalchemy as sa

from models.capture import sync_context
from models.ledger import Change, DeadLetter
from models.session import Database
from subscribers.errors import Reject
from tests.support.fakes import TestHub
from tests.support.records import CUSTOMER, add, edit, outcomes, rows


def test_ten_edits_cost_one_call_and_a_repeated_message_costs_none(hub: TestHub) -> None:
    one = add(hub)
    for number in range(10):
        edit(hub, one, notes=f"edit {number}")
    hub.run()
    hub.conductor.deliver("crm.customer", [one, one])
    assert hub.systems["crm"].writes() == [("create", one)]
    assert hub.shown("crm")[0]["notes"] == "edit 9"


def test_the_origin_and_the_unsubscribe_list_of_a_change_are_skipped(hub: TestHub) -> None:
    with hub.conductor.database.write() as c, sync_context(c, origin="crm", unsubscribe=["shop.customer"]):
        c.execute(sa.insert(CUSTOMER).values(name="Ada"))
    hub.run()
    assert hub.shown("crm") == hub.shown("shop") == []
    assert outcomes(hub, subscriber="shop.customer") == [("out", "none", "skipped")]
    # Only that change is skipped: a later edit of the record is delivered.
    edit(hub, "1", notes="later")
    hub.run()
    assert len(hub.shown("crm")) == len(hub.shown("shop")) == 1


def test_an_edit_revives_a_dead_record(hub: TestHub) -> None:
    one = add(hub)
    hub.systems["crm"].fail(Reject("no"))
    hub.run()
    edit(hub, one, name="Better")
    hub.run()
    assert hub.shown("crm")[0]["name"] == "Better"
    assert rows(hub, DeadLetter)[0].closed_at is not None


def test_a_change_that_commits_after_one_with_a_greater_id_is_not_lost(database: Database) -> None:
    # Two transactions can allocate change ids in one order and commit in the other.
    hub = TestHub(database, "crm")
    one = add(hub)
    hub.run()

    def edit_with_id(number: int, notes: str) -> None:
        edit(hub, one, notes=notes)
        with database.write() as c:
            c.execute(sa.update(Change).where(Change.relayed_at.is_(None)).values(id=number))
        hub.conductor.relay()

    def meanwhile(kind: str, what: str) -> None:
        hub.systems["crm"].on_call = lambda kind, what: None
        edit_with_id(500, "committed later, with the smaller id")

    edit_with_id(600, "the greater id")
    hub.systems["crm"].on_call = meanwhile
    hub.conductor.deliver("crm.customer", [one])
    hub.run()
    assert hub.shown("crm")[0]["notes"] == "committed later, with the smaller id"
