"""Rules that stop calls to subscribers."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from models.ledger import Delivery
from models.session import Database
from tests.support.fakes import TestHub
from tests.support.records import CUSTOMER, add, edit, link, rows


def test_an_unsubscription_also_skips_queued_changes(hub: TestHub) -> None:
    one, two = add(hub, name="One"), add(hub, name="Two")
    hub.conductor.relay()
    rule = hub.conductor.unsubscriptions.create("crm", None, [one], None, "billing freeze", by="ann")
    hub.run()
    assert [s["name"] for s in hub.shown("crm")] == ["Two"]
    (skip,) = rows(hub, Delivery, Delivery.outcome == "skipped")
    assert skip.reason == f"unsubscription #{rule} (billing freeze) holds it back"
    assert link(hub, "crm", one).unsubscription_id == rule
    hub.conductor.unsubscriptions.lift(rule, by="ann")
    edit(hub, one, notes="flows again")
    hub.run()
    assert len(hub.shown("crm")) == 2 and two


def test_an_unsubscription_of_one_operation_allows_the_others(hub: TestHub) -> None:
    one = add(hub)
    hub.run()
    hub.conductor.unsubscriptions.create("crm.customer", "delete", None, None, "", by="ann")
    edit(hub, one, notes="x")
    hub.run()
    with hub.conductor.database.write() as c:
        c.execute(sa.delete(CUSTOMER))
    hub.run()
    assert hub.shown("crm")[0]["notes"] == "x" and hub.shown("shop") == []


def test_lifting_a_rule_can_deliver_the_missed_records(database: Database) -> None:
    hub = TestHub(database, "crm", "shop")
    rule = hub.conductor.unsubscriptions.create("crm", None, None, None, "freeze", by="ann")
    add(hub), add(hub)
    hub.run()
    assert hub.conductor.unsubscriptions.missed(rule) == 2
    assert hub.conductor.unsubscriptions.lift(rule, by="ann", deliver=True) == 2
    hub.conductor.sweep()
    hub.run()
    assert len(hub.shown("crm")) == 2


@pytest.mark.parametrize("bring", [True, False])
def test_a_rule_lifted_during_a_batch_no_longer_covers_it(database: Database, bring: bool) -> None:
    hub = TestHub(database, "crm", bulk_size=200)
    one, two = add(hub), add(hub)
    hub.run()
    rule = hub.conductor.unsubscriptions.create("crm", None, [two], None, "hold", by="ann")

    def lift(kind: str, what: str) -> None:
        hub.systems["crm"].on_call = lambda kind, what: None
        hub.conductor.unsubscriptions.lift(rule, by="ann", deliver=bring)

    hub.systems["crm"].on_call = lift
    edit(hub, one, notes="new")
    edit(hub, two, notes="new")
    hub.run()
    assert [shown["notes"] for shown in hub.shown("crm")] == ["new", "new"]
    assert link(hub, "crm", two).unsubscription_id is None
