"""Only the holder of a lease writes a link."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from conductor.links.leases import LinkLeased
from models.ledger import DeadLetter, Delivery, Link
from models.session import Database
from subscribers.errors import Reject
from subscribers.records import External
from tests.support.fakes import TestHub
from tests.support.records import add, edit, link, one_row, record, retry_due, rows, settle


def test_two_workers_never_hold_one_record(hub: TestHub) -> None:
    one = add(hub)
    hub.conductor.relay()
    hub.publisher.published.clear()
    inner: list[int] = []

    def meanwhile(kind: str, what: str) -> None:
        if not inner:
            inner.append(1)
            hub.conductor.deliver("crm.customer", [one])

    hub.systems["crm"].on_call = meanwhile
    hub.conductor.deliver("crm.customer", [one])
    assert hub.systems["crm"].writes() == [("create", one)]


def test_a_call_that_outlived_its_lease_writes_no_dead_letter(database: Database) -> None:
    hub = TestHub(database, "crm")
    one = add(hub, notes="0")
    hub.run()
    edit(hub, one, notes="1")
    crm = hub.systems["crm"]

    def slow(kind: str, what: str) -> None:
        crm.on_call = lambda kind, what: None
        hub.clock.tick(100)
        with database.write() as c:  # another worker holds the lease
            c.execute(sa.update(Link).values(lease_owner="another", lease_until=hub.clock.now))

    crm.on_call = slow
    crm.fail(Reject("no"), times=2)
    hub.run()
    assert not rows(hub, DeadLetter) and rows(hub, Delivery)[-1].outcome == "failed"
    retry_due(hub)
    (letter,) = rows(hub, DeadLetter)
    assert link(hub, "crm").dead_letter_id == letter.id and link(hub, "crm").dead_at is not None


def test_a_call_that_outlived_its_lease_leaves_the_link_alone(database: Database) -> None:
    hub = TestHub(database, "crm")
    one = add(hub, notes="0")
    hub.run()
    edit(hub, one, notes="1")
    crm, until = hub.systems["crm"], hub.clock.now + timedelta(seconds=200)

    def slow(kind: str, what: str) -> None:
        crm.on_call = lambda kind, what: None
        hub.clock.tick(100)
        with database.write() as c:  # another worker holds the lease
            c.execute(sa.update(Link).values(lease_owner="another", lease_until=until))

    crm.on_call = slow
    hub.run()
    found = link(hub, "crm")
    assert (found.lease_owner, found.lease_until) == ("another", until) and found.owed_change > found.synced_change
    assert [row.outcome for row in rows(hub, Delivery)] == ["delivered", "delivered"], "it was called all the same"


def test_a_fetch_under_an_expired_lease_is_not_treated_as_the_newest(nested_hub: TestHub) -> None:
    one = add(nested_hub)
    nested_hub.run()
    crm, subscriber = nested_hub.systems["crm"], nested_hub.conductor.subscribers["crm.customer"]
    nested_hub.clock.tick()
    crm.edit("crm_1", name="Bea")
    fetch = subscriber.fetch

    def slow(external_id: str) -> External:
        found = fetch(external_id)
        subscriber.fetch = fetch  # type: ignore[method-assign]
        nested_hub.clock.tick(61)
        crm.edit("crm_1", name="Bella")
        nested_hub.conductor.poll("crm.customer")
        nested_hub.run()
        return found

    subscriber.fetch = slow  # type: ignore[method-assign]
    with pytest.raises(LinkLeased):
        nested_hub.conductor.inward.inbox.refetch(subscriber, "crm_1")
    assert record(nested_hub, one).name == "Bella" == nested_hub.shown("shop")[0]["name"]


def test_a_remote_deletion_survives_a_call_with_an_expired_lease(nested_hub: TestHub) -> None:
    one = add(nested_hub)
    nested_hub.run()
    crm = nested_hub.systems["crm"]
    edit(nested_hub, one, name="Bea")

    def slow(kind: str, what: str) -> None:
        crm.on_call = lambda kind, what: None
        nested_hub.clock.tick(61)
        kept = crm.store["crm_1"]
        gone = crm.remove("crm_1")
        nested_hub.conductor.inward.inbox.apply_event(nested_hub.conductor.subscribers["crm.customer"], gone)
        crm.store["crm_1"] = kept  # the call was under way

    crm.on_call = slow
    nested_hub.run()
    settle(nested_hub)
    assert one_row(nested_hub, Link, Link.subscriber == "crm.customer").unlinked_at is not None
