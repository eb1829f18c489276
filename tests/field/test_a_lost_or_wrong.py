"""Data that was lost or wrong in the field: docs/explanation/field-faults.md, group A."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from models.base import utcnow
from models.catalogues import Customer
from models.ledger import Change, Cursor, DeadLetter, Link, System
from models.ledger import Conflict as ConflictRow
from models.match_keys import candidates
from models.session import Database
from simulators.salesforce import SalesforceSimulator
from simulators.stripe import StripeLike
from subscribers.errors import Retry
from subscribers.mapping.fields import Conflict, Field
from subscribers.mapping.match_forms import match_keys
from subscribers.records import External, Item, Page
from tests.support.awkward_rest import AwkwardRest, RestHub, answer, kind
from tests.support.dead_letters import open_letters, retry_all
from tests.support.fakes import FakeSubscriber, LowercasingSubscriber, TestHub
from tests.support.records import CUSTOMER, add, edit, link, mark, one_row, record, rows, settle, webhook
from tests.support.salesforce_hub import SalesforceHub
from tests.support.stripe_hub import StripeHub

# A1: an edit there that was not seen before ours went out

_WAYS = ["poll", "fetch"]


def _edited_on_both_sides(
    database: Database, way: str, policy: Conflict, *, ours_first: bool, kind: type[FakeSubscriber] = FakeSubscriber
) -> TestHub:
    """Return a hub that was stopped while name and phone of a customer were edited here, and its name there."""
    fields = {"name": Field("name", conflict=policy), "phone": "phone", "email": "email"}
    hub = TestHub(database, "crm", kinds=(kind,), field_to_data=fields, look_first=way)
    one = add(hub, email="ada@x.org")
    hub.run()
    hub.clock.tick()
    if way == "poll":
        hub.conductor.poll("crm.customer")
    for edits_here in (True, False) if ours_first else (False, True):
        hub.clock.tick(3)
        if edits_here:
            _edit_at(hub, one, name="ours", phone="+1")
        else:
            hub.systems["crm"].edit("crm_1", name="theirs")
    hub.clock.tick()
    return hub


def _edit_at(hub: TestHub, record_id: str, **values: Any) -> None:
    """Edit a record, with the time of the hub's clock."""
    edit(hub, record_id, **values)
    with hub.conductor.database.write() as connection:
        _set_times(hub, connection)


def _set_times(hub: TestHub, connection: sa.Connection) -> None:
    """Set the times of changes, which are the database's, to that of the hub's clock."""
    connection.execute(sa.update(Change).where(Change.at > hub.clock()).values(at=hub.clock()))


@pytest.mark.parametrize("kind", [FakeSubscriber, LowercasingSubscriber], ids=["single", "bulk"])
@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize(
    ("policy", "ours_first", "winner"),
    [
        ("newest", True, "theirs"),
        ("newest", False, "ours"),
        ("external", True, "theirs"),
        ("external", False, "theirs"),
        ("internal", True, "ours"),
    ],
)
def test_a01_an_unseen_edit_is_seen_before_ours_overwrites_it(
    database: Database, way: str, policy: Conflict, ours_first: bool, winner: str, kind: type[FakeSubscriber]
) -> None:
    hub = _edited_on_both_sides(database, way, policy, ours_first=ours_first, kind=kind)
    hub.run()
    assert record(hub).name == winner and hub.shown("crm")[0]["name"] == winner
    assert record(hub).phone == "+1" and hub.shown("crm")[0]["phone"] == "+1", "the other edit is delivered"


@pytest.mark.parametrize("way", _WAYS)
def test_a01_a_conflict_that_waits_for_an_operator_keeps_both_versions(database: Database, way: str) -> None:
    hub = _edited_on_both_sides(database, way, "ask", ours_first=True)
    hub.run()
    conflict = one_row(hub, ConflictRow)
    assert (conflict.path, conflict.base, conflict.ours, conflict.theirs) == ("name", "Ada", "ours", "theirs")
    assert record(hub).name == "ours" and hub.shown("crm")[0]["name"] == "theirs"
    assert hub.shown("crm")[0]["phone"] == "+1"


@pytest.mark.parametrize("way", _WAYS)
def test_a01_an_edit_of_another_field_there_survives(database: Database, way: str) -> None:
    hub = _edited_on_both_sides(database, way, "internal", ours_first=True)
    hub.systems["crm"].edit("crm_1", email="ada@new.org")
    hub.run()
    assert record(hub).email == "ada@new.org" and hub.shown("crm")[0]["email"] == "ada@new.org"


def test_a01_fields_that_ours_always_wins_need_no_look(database: Database) -> None:
    fields = {"name": Field("name", conflict="internal"), "phone": "phone"}
    hub = TestHub(database, "crm", field_to_data=fields, look_first="fetch")
    one = add(hub)
    hub.run()
    edit(hub, one, name="ours")
    hub.run()
    assert [kind for kind, _ in hub.systems["crm"].calls] == ["create", "update"]
    edit(hub, one, phone="+1")
    hub.run()
    assert [kind for kind, _ in hub.systems["crm"].calls][2:] == ["fetch", "update"]


def test_a01_a_batch_needs_one_poll(database: Database) -> None:
    class Counted(FakeSubscriber):
        def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
            self.client.call("list", "", lambda: None)
            yield from super().changed_since(position)

    hub = TestHub(database, "crm", kinds=(Counted,))
    ids = [add(hub, name=f"n{number}") for number in range(100)]
    hub.run()
    hub.clock.tick()
    hub.conductor.poll("crm.customer")
    hub.clock.tick()
    hub.systems["crm"].calls.clear()
    for number, one in enumerate(ids):
        edit(hub, one, phone=f"+{number}")
    hub.conductor.relay()
    hub.clock.tick()
    hub.run()
    calls = [kind for kind, _ in hub.systems["crm"].calls]
    assert calls.count("list") == 1 and calls.count("update") == 100 and len(calls) == 101


@pytest.mark.parametrize("on_gone", ["unlink", "archive", "delete", "recreate"])
@pytest.mark.parametrize("way", _WAYS)
def test_a01_a_record_deleted_there_is_treated_as_on_gone_says(database: Database, way: str, on_gone: str) -> None:
    hub = TestHub(database, "crm", on_gone=on_gone, look_first=way)
    one = add(hub)
    hub.run()
    hub.clock.tick()
    if way == "poll":
        hub.conductor.poll("crm.customer")
    hub.clock.tick()
    edit(hub, one, phone="+1")
    hub.clock.tick()
    hub.systems["crm"].remove("crm_1")
    hub.clock.tick()
    hub.run()
    again = on_gone in ("delete", "recreate")  # an edit that was not delivered outlives the deletion
    assert [data["phone"] for data in hub.shown("crm")] == (["+1"] if again else [])
    assert (record(hub, one) is None) is False
    assert (link(hub, "crm").unlinked_at is None) is again


@pytest.mark.parametrize("on_delete", ["delete", "archive"])
@pytest.mark.parametrize("way", _WAYS)
def test_a01_a_deletion_here_of_a_record_edited_there_asks(database: Database, way: str, on_delete: str) -> None:
    hub = TestHub(database, "crm", on_delete=on_delete, archive_data={"notes": "archived"}, look_first=way)
    one = add(hub)
    hub.run()
    hub.clock.tick()
    if way == "poll":
        hub.conductor.poll("crm.customer")
    with hub.conductor.database.write() as connection:
        hub.conductor.subscribers["crm.customer"].records.delete(connection, one)
        _set_times(hub, connection)
    hub.clock.tick()
    hub.systems["crm"].edit("crm_1", name="theirs")
    hub.run()
    (letter,) = rows(hub, DeadLetter)
    assert letter.code == "edited_there" and "name" in letter.message
    assert hub.shown("crm")[0]["name"] == "theirs"
    retry_all(hub.conductor, "ann")
    hub.conductor.sweep()
    hub.run()
    assert hub.shown("crm") == [] if on_delete == "delete" else hub.shown("crm")[0]["notes"] == "archived"


def test_a01_a_record_that_cannot_be_looked_at_is_not_overwritten(database: Database) -> None:
    hub = TestHub(database, "crm", look_first="fetch")
    one = add(hub)
    hub.run()
    edit(hub, one, name="ours")
    hub.systems["crm"].fail(Retry("423: locked"))
    hub.run()
    assert hub.shown("crm")[0]["name"] == "Ada" and link(hub, "crm").attempts == 1
    hub.clock.tick(60)
    hub.conductor.sweep()
    hub.run()
    assert hub.shown("crm")[0]["name"] == "ours"


def test_a01_an_edit_of_the_second_of_our_last_write_is_seen(database: Database) -> None:
    hub = TestHub(database, "crm")
    one = add(hub)
    hub.run()
    hub.conductor.poll("crm.customer")
    hub.systems["crm"].edit("crm_1", name="theirs")
    edit(hub, one, phone="+1")
    hub.run()
    assert record(hub, one).name == "theirs"
    assert hub.shown("crm")[0] == {**hub.shown("crm")[0], "name": "theirs", "phone": "+1"}


@pytest.mark.parametrize(("policy", "winner"), [("newest", "theirs"), ("external", "theirs"), ("internal", "ours")])
def test_a01_an_unseen_edit_in_stripe_is_seen(database: Database, policy: Conflict, winner: str) -> None:
    with StripeLike() as stripe:
        hub = StripeHub(database, stripe)
        one = hub.add("customer", name="Ada", email="ada@x.org")
        hub.settle()
        hub.conductor.poll("stripe.customer")
        hub.run()
        subscriber = hub.conductor.subscribers["stripe.customer"]
        subscriber.mapper.fields["name"] = Field("name", conflict=policy)
        subscriber.default_mapper.fields["name"] = Field("name", conflict=policy)
        with database.write() as connection:  # the edit here is older than the one there
            connection.execute(sa.update(Customer).where(Customer.id == one).values(name="ours", phone="+1"))
            connection.execute(sa.update(Change).values(at=utcnow() - timedelta(seconds=30)))
        (there,) = hub.all("customers")
        hub.client.post(f"/v1/customers/{there['id']}", {"name": "theirs"})
        reads = len(stripe.journal.calls("GET"))
        hub.run()
        assert len(stripe.journal.calls("GET")) - reads <= 3, "the look, the time of the edit, and the merge"
        (there,) = hub.all("customers")
        assert (there["name"], there["phone"]) == (winner, "+1")
        assert hub.record("customer", one)["name"] == winner


@pytest.mark.parametrize("ours_first", [True, False])
def test_a01_an_unseen_edit_in_salesforce_is_seen(database: Database, ours_first: bool) -> None:
    with SalesforceSimulator() as org:
        hub = SalesforceHub(database, org)
        one = hub.add("customer", name="Ada", email="ada@x.org")
        hub.run()
        account = hub.link("customer", one).external_id
        edited = org.clock.now() + timedelta(seconds=-30 if ours_first else 30)
        hub.edit("customer", one, name="ours", phone="+1")
        with database.write() as connection:
            connection.execute(sa.update(Change).values(at=edited))
        path, data = f"sobjects/Account/{account}", {"Name": "theirs"}
        hub.client.call(lambda client: client.restful(path, method="PATCH", json=data), writes=True)
        hub.run()
        winner = "theirs" if ours_first else "ours"
        held, _ = hub.client.call(lambda client: client.restful(path))
        assert isinstance(held, dict)
        assert (held["Name"], held["Phone"]) == (winner, "+1")
        record_here = hub.record("customer", one)
        assert record_here is not None and record_here["name"] == winner


# A2: a deletion that arrives late


@pytest.mark.parametrize("on_gone", ["delete", "archive", "unlink", "recreate"])
@pytest.mark.parametrize("repeated", [1, 2])
def test_a02_a_late_deletion_is_weighed_by_its_time(database: Database, on_gone: str, repeated: int) -> None:
    hub = TestHub(database, "crm", on_gone=on_gone)
    one, crm = add(hub), hub.systems["crm"]
    hub.run()
    late_deletion = External("crm_1", at=hub.clock.tick(), deleted=True)
    hub.clock.tick()
    hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], crm.edit("crm_1", name="Bea"))
    crm.calls.clear()
    for _ in range(repeated):
        hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], late_deletion)
    hub.run()
    assert (record(hub, one).name, record(hub, one).active) == ("Bea", True)
    assert link(hub, "crm").external_id == "crm_1" and link(hub, "crm").unlinked_at is None
    assert crm.calls == []


@pytest.mark.parametrize("doubt", ["tie", "untimed"])
def test_a02_a_deletion_in_doubt_is_fetched(database: Database, doubt: str) -> None:
    hub = TestHub(database, "crm", on_gone="delete")
    one, crm = add(hub), hub.systems["crm"]
    hub.run()
    event = External("crm_1", at=crm.changed["crm_1"] if doubt == "tie" else None, deleted=True)
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


def _deleted_there(database: Database, **attributes: Any) -> tuple[TestHub, str, dict[str, Any]]:
    """Return a hub whose only customer, linked as `crm_1`, was deleted in the system, and its data there."""
    hub = TestHub(database, "crm", **attributes)
    one, crm = add(hub, email="ada@x.example"), hub.systems["crm"]
    hub.run()
    hub.clock.tick()
    kept = dict(crm.store["crm_1"])
    crm.remove("crm_1")
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    hub.clock.tick()
    return hub, one, kept


def _restore(hub: TestHub, data: dict[str, Any], how: str) -> None:
    crm = hub.systems["crm"]
    crm.store["crm_1"] = data
    crm.changed["crm_1"] = hub.clock()
    crm.deleted.clear()
    if how == "webhook":
        webhook(hub, "crm", "e2", "crm_1")
    elif how == "poll":
        hub.conductor.poll("crm.customer")
    else:
        argument = {"repair": True} if how == "reconcile" else {}
        hub.conductor.tasks.start(how, "ann", subscriber="crm.customer", **argument)
        for _ in range(9):
            hub.conductor.tasks.run_some()
            settle(hub)
    settle(hub)


@pytest.mark.parametrize("how", ["webhook", "poll", "backfill", "reconcile"])
@pytest.mark.parametrize("on_gone", ["unlink", "archive"])
def test_a03_a_restored_record_is_linked_again(database: Database, on_gone: str, how: str) -> None:
    hub, one, kept = _deleted_there(database, on_gone=on_gone)
    edit(hub, one, phone="+39 06 1")
    hub.run()
    _restore(hub, {**kept, "name": "Bea"}, how)
    ours = record(hub, one)
    assert (ours.name, ours.phone, ours.active) == ("Bea", "+39 06 1", True)
    assert link(hub, "crm").unlinked_at is None and not link(hub, "crm").deleted_remotely
    (there,) = hub.shown("crm")
    assert (there["name"], there["phone"]) == ("Bea", "+39 06 1")
    edit(hub, one, notes="after")
    hub.run()
    assert hub.shown("crm")[0]["notes"] == "after"


@pytest.mark.parametrize("how", ["webhook", "poll"])
def test_a03_a_restored_record_comes_back_where_its_deletion_deleted_ours(database: Database, how: str) -> None:
    hub, one, kept = _deleted_there(database, on_gone="delete")
    assert record(hub, one) is None
    _restore(hub, kept, how)
    (ours,) = rows(hub, Customer)
    assert ours.email == "ada@x.example" and ours.id != int(one)
    assert len(hub.shown("crm")) == 1, "the restored record is not deleted again"


def test_a03_a_record_created_again_is_not_linked_to_the_restored_one(database: Database) -> None:
    hub, _, kept = _deleted_there(database, on_gone="recreate")
    _restore(hub, kept, "webhook")
    assert link(hub, "crm").external_id == "crm_2" and len(rows(hub, Customer)) == 1


@pytest.mark.parametrize("how", ["webhook", "poll"])
def test_a03_a_deletion_of_ours_that_is_undone_there_comes_back(database: Database, how: str) -> None:
    hub = TestHub(database, "crm")
    one, crm = add(hub), hub.systems["crm"]
    hub.run()
    kept = dict(crm.store["crm_1"])
    with hub.conductor.database.write() as connection:
        hub.conductor.subscribers["crm.customer"].records.delete(connection, one)
    hub.run()
    assert not crm.store
    hub.clock.tick()
    _restore(hub, kept, how)
    assert [row.name for row in rows(hub, Customer)] == ["Ada"] and len(crm.store) == 1


@pytest.mark.parametrize("on_delete", ["unlink", "ignore"])
def test_a03_a_record_that_our_deletion_left_there_does_not_come_back(database: Database, on_delete: str) -> None:
    hub = TestHub(database, "crm", on_delete=on_delete)
    one, crm = add(hub), hub.systems["crm"]
    hub.run()
    with hub.conductor.database.write() as connection:
        hub.conductor.subscribers["crm.customer"].records.delete(connection, one)
    hub.run()
    hub.clock.tick()
    crm.edit("crm_1", name="Bea")
    hub.conductor.poll("crm.customer")
    settle(hub)
    assert rows(hub, Customer) == [] and len(crm.store) == 1


def test_a03_a_restored_record_with_our_id_and_another_of_its_own_is_linked_again(database: Database) -> None:
    hub, one, kept = _deleted_there(database)
    crm = hub.systems["crm"]
    crm.add(**{**kept, "name": "Bea"})
    webhook(hub, "crm", "e2", "crm_2")
    settle(hub)
    assert link(hub, "crm").external_id == "crm_2" and record(hub, one).name == "Bea"
    assert len(rows(hub, Customer)) == 1


@pytest.mark.parametrize("by", ["them", "us"])
@pytest.mark.parametrize("response", ["arrives", "is lost", "is lost, and the record was edited"])
def test_a03_a_record_of_ours_gets_the_id_of_a_deleted_one(database: Database, by: str, response: str) -> None:
    """The outcome of its create could not be stored: the link of the deleted record had the id."""
    if by == "them":
        hub, one, _ = _deleted_there(database)
    else:
        hub = TestHub(database, "crm")
        one = add(hub, email="ada@x.example")
        hub.run()
        with hub.conductor.database.write() as connection:
            hub.conductor.subscribers["crm.customer"].records.delete(connection, one)
        hub.run()
        hub.clock.tick()
    crm = hub.systems["crm"]
    crm._ids = itertools.count(1)
    if response != "arrives":
        crm.fail(Retry("timeout", maybe_done=True), after=True)
    two = add(hub, name="Bea", email="bea@x.example")
    hub.run()
    if response.endswith("edited"):
        edit(hub, two, name="Bee")
    settle(hub)
    assert (link(hub, "crm", two).external_id, link(hub, "crm", one).external_id) == ("crm_1", None)
    assert rows(hub, DeadLetter) == [] and len(crm.store) == 1
    crm.edit("crm_1", notes="theirs")
    webhook(hub, "crm", "e9", "crm_1")
    settle(hub)
    assert record(hub, two).notes == "theirs"


@pytest.mark.parametrize("how", ["webhook", "poll"])
@pytest.mark.parametrize(
    ("there", "outcome"),
    [
        ({"hub_id": None}, "asked"),
        ({"hub_id": None, "email": "ada@x.example"}, "linked"),
        ({"hub_id": "1"}, "linked"),
        ({"hub_id": "999"}, "new"),
    ],
)
def test_a03_an_id_given_to_another_record_is_told_apart(
    database: Database, there: dict[str, Any], outcome: str, how: str
) -> None:
    hub, one, _ = _deleted_there(database, reuses_ids=True, match_on=("email",))
    if there["hub_id"]:
        there = {**there, "hub_id": mark(hub, there["hub_id"])}
    _restore(hub, {"name": "Bea", **there}, how)
    letters = [row.code for row in rows(hub, DeadLetter)]
    assert letters == (["reused_id"] if outcome == "asked" else [])
    assert record(hub, one).name == ("Bea" if outcome == "linked" else "Ada")
    assert len(rows(hub, Customer)) == (2 if outcome == "new" else 1)


# A4: parts of a nested object that are not mapped

# A5: a row that cannot be read

# A6: the system answers 404 for everything

# A7: a code that only may mean gone

# A8: a system that leaves empty fields out


def _emptied_there(database: Database, **attributes: Any) -> tuple[TestHub, str]:
    hub = TestHub(database, "crm", **attributes)
    one, crm = add(hub, email="ada@x.example", phone="1", city="Rome"), hub.systems["crm"]
    hub.run()
    hub.clock.tick()
    del crm.store["crm_1"]["phone"], crm.store["crm_1"]["address"]
    crm.changed["crm_1"] = hub.clock()
    return hub, one


@pytest.mark.parametrize("how", ["poll", "fetch", "reconcile"])
def test_a08_a_field_left_out_of_a_whole_record_is_empty_where_declared(database: Database, how: str) -> None:
    hub, one = _emptied_there(database, absent="empty")
    if how == "poll":
        hub.conductor.poll("crm.customer")
    elif how == "fetch":
        thin = External("crm_1", at=hub.clock())
        hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], thin)
    else:
        found = hub.conductor.tasks.start("reconcile", "ann", subscriber="crm.customer", repair=True)
        while hub.conductor.tasks.list(unfinished=True):
            hub.conductor.tasks.run_some()
            settle(hub)
        assert "phone 1" in hub.conductor.tasks.get(found).message
    settle(hub)
    ours = record(hub, one)
    assert (ours.phone, ours.city, ours.email) == (None, None, "ada@x.example")
    assert hub.systems["crm"].writes() == [("create", one)], "nothing is sent back"


def test_a08_the_record_of_an_event_that_leaves_fields_out_is_fetched(database: Database) -> None:
    hub, one = _emptied_there(database, absent="empty")
    partial = External("crm_1", {"email": "ada@x.example"}, at=hub.clock())
    hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], partial)
    ours = record(hub, one)
    assert (ours.phone, ours.city, ours.email) == (None, None, "ada@x.example")


def test_a08_a_partial_event_empties_nothing(database: Database) -> None:
    hub = TestHub(database, "crm", absent="empty")
    one = add(hub, name="Ada", email="ada@x.example", phone="1")
    settle(hub)
    hub.clock.tick()
    hub.systems["crm"].edit("crm_1", name="Bea")
    partial = External("crm_1", {"name": "Bea"}, at=hub.clock())
    hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], partial)
    ours = record(hub, one)
    assert (ours.name, ours.phone) == ("Bea", "1")


def test_a08_a_field_left_out_is_kept_by_default(database: Database) -> None:
    hub, one = _emptied_there(database)
    hub.conductor.poll("crm.customer")
    settle(hub)
    assert record(hub, one).phone == "1"


# A9: unique values freed and taken again


def emails(system: AwkwardRest) -> dict[str, str]:
    """Return the names in the system, by email."""
    return {record["email"]: record["name"] for record in system.store.values()}


@pytest.fixture(params=["mark", "match", "neither"])
def unique(request: pytest.FixtureRequest, database: Database, system: AwkwardRest) -> RestHub:
    """Return a hub over a system whose emails are unique, with three customers there."""
    system.unique = ("email",)
    options: dict[str, dict[str, Any]] = {"mark": {"record_id_field": "ref"}, "match": {"match_on": ("email",)}}
    hub = RestHub(database, system, kind(**options.get(request.param, {})))
    for name in "abc":
        add(hub, name=name, email=f"{name}@x.example")
    hub.run()
    system.calls.clear()
    return hub


@pytest.mark.parametrize("how", ["one batch", "creates first", "creates routed first", "changed keys"])
def test_a09_records_reloaded_under_new_ids_replace_those_there(unique: RestHub, system: AwkwardRest, how: str) -> None:
    new = [{"id": 11 + n, "name": name.upper(), "email": f"{name}@x.example"} for n, name in enumerate("abc")]
    with unique.conductor.database.write() as c:
        if how == "changed keys":
            c.execute(sa.update(CUSTOMER).values(id=CUSTOMER.c.id + 10, name=sa.func.upper(CUSTOMER.c.name)))
        else:
            c.execute(sa.delete(CUSTOMER))
            c.execute(sa.insert(CUSTOMER), new)
    if how == "creates first":
        unique.conductor.relay()
        unique.conductor.deliver("awkward.customer", ["11", "12", "13"])
    if how == "creates routed first":
        with unique.conductor.database.write() as c:
            deleted = sa.and_(Change.operation == "deleted", Change.relayed_at.is_(None))
            c.execute(sa.update(Change).where(deleted).values(relayed_at=utcnow()))
        unique.run()
        with unique.conductor.database.write() as c:
            c.execute(sa.update(Change).where(Change.record_id.in_(["1", "2", "3"])).values(relayed_at=None))
    unique.run()
    for _ in range(3):
        unique.wait(10)
    assert emails(system) == {"a@x.example": "A", "b@x.example": "B", "c@x.example": "C"}
    assert open_letters(unique) == []
    assert {link.record_id for link in rows(unique, Link, Link.unlinked_at.is_(None))} == {"11", "12", "13"}
    if how == "one batch":
        assert system.writes() == ["DELETE"] * 3 + ["POST"] * 3


def _reload(hub: RestHub) -> None:
    """Replace all customers by the same ones under new ids, with their names in capitals."""
    new = [{"id": 11 + n, "name": name.upper(), "email": f"{name}@x.example"} for n, name in enumerate("abc")]
    with hub.conductor.database.write() as connection:
        connection.execute(sa.delete(CUSTOMER))
        connection.execute(sa.insert(CUSTOMER), new)


@pytest.mark.parametrize("turn", range(2))
def test_a09_two_workers_reload_records_at_the_same_time(unique: RestHub, system: AwkwardRest, turn: int) -> None:
    _reload(unique)
    unique.conductor.relay()
    parts = [["11", "12", "13"], ["3", "2", "1"]] if turn else [["11", "2", "13"], ["1", "12", "3"]]
    begin = threading.Barrier(len(parts))

    def work(ids: list[str]) -> None:
        begin.wait()
        unique.conductor.deliver("awkward.customer", ids)

    with ThreadPoolExecutor(len(parts)) as workers:
        assert [*workers.map(work, parts)] == [None, None]
    for _ in range(4):
        unique.wait(10)
    assert emails(system) == {"a@x.example": "A", "b@x.example": "B", "c@x.example": "C"}
    assert open_letters(unique) == [] and len(system.store) == 3


def test_a09_a_backfill_of_reloaded_records_waits_for_their_deletions(unique: RestHub, system: AwkwardRest) -> None:
    _reload(unique)
    unique.conductor.tasks.start("backfill", "ann", subscriber="awkward.customer")
    for _ in range(4):  # the relay is late
        unique.conductor.tasks.run_some()
        unique.conductor.sweep()
        published, unique.publisher.published = unique.publisher.published, []
        for what, ids in published:
            unique._process(what, ids)
    assert ("POST", "/contacts") in system.calls, "the records were tried before their deletions were routed"
    unique.run()
    for _ in range(4):
        unique.wait(10)
    assert emails(system) == {"a@x.example": "A", "b@x.example": "B", "c@x.example": "C"}
    assert open_letters(unique) == []


@pytest.mark.parametrize("order", ["one batch", "taker first"])
def test_a09_a_unique_value_is_handed_from_one_record_to_another(
    unique: RestHub, system: AwkwardRest, order: str
) -> None:
    edit(unique, "1", email="b@x.example")
    edit(unique, "2", email="c@x.example")
    edit(unique, "3", email="d@x.example")
    if order == "taker first":
        unique.conductor.relay()
        for one in ("1", "2", "3"):
            unique.conductor.deliver("awkward.customer", [one])
    unique.run()
    for _ in range(4):
        unique.wait(10)
    assert emails(system) == {"b@x.example": "a", "c@x.example": "b", "d@x.example": "c"}
    assert open_letters(unique) == []


def test_a09_a_new_record_takes_the_value_that_an_edit_gives_free(unique: RestHub, system: AwkwardRest) -> None:
    new = add(unique, name="new", email="a@x.example")
    edit(unique, "1", email="z@x.example")
    unique.conductor.relay()
    unique.conductor.deliver("awkward.customer", [new])
    unique.run()
    unique.wait(10)
    assert emails(system)["a@x.example"] == "new" and emails(system)["z@x.example"] == "a"
    assert open_letters(unique) == []


@pytest.mark.parametrize("may_be_empty", [True, False])
def test_a09_an_exchange_of_values_goes_through_an_empty_one_or_is_one_dead_letter(
    database: Database, system: AwkwardRest, may_be_empty: bool
) -> None:
    system.unique = ("email",)
    system.refuses = lambda id, data: (
        None if may_be_empty or data.get("email") else answer({"message": "email is required"}, 422)
    )
    hub = RestHub(database, system, kind(match_on=("email",)))
    for name in "ab":
        add(hub, name=name, email=f"{name}@x.example")
    hub.run()
    with database.write() as c:
        other = sa.case((CUSTOMER.c.id == 1, "b@x.example"), else_="a@x.example")
        c.execute(sa.update(CUSTOMER).values(email=other))
    hub.run()
    for _ in range(5):
        hub.wait(10)
    if may_be_empty:
        assert emails(system) == {"b@x.example": "a", "a@x.example": "b"} and open_letters(hub) == []
        return
    assert any("exchanges a unique value" in letter.message for letter in open_letters(hub))
    assert emails(system) == {"a@x.example": "a", "b@x.example": "b"}


@pytest.mark.parametrize("on_delete", ["unlink", "ignore"])
def test_a09_a_record_that_is_kept_there_is_linked_to_the_new_one(
    database: Database, system: AwkwardRest, on_delete: str
) -> None:
    system.unique = ("email",)
    hub = RestHub(database, system, kind(match_on=("email",), on_delete=on_delete))
    old = add(hub, name="old", email="a@x.example")
    hub.run()
    hub.remove(old)
    new = add(hub, name="new", email="a@x.example")
    hub.run()
    for _ in range(3):
        hub.wait(60)
    assert emails(system) == {"a@x.example": "new"} and open_letters(hub) == []
    assert one_row(hub, Link, Link.record_id == new).external_id == "1"


def test_a09_a_value_that_another_record_keeps_is_a_dead_letter_that_names_it(
    unique: RestHub, system: AwkwardRest
) -> None:
    edit(unique, "1", email="b@x.example")
    unique.run()
    unique.wait(10)
    (letter,) = open_letters(unique)
    assert letter.record_id == "1" and "exists already" in letter.message


# A10: REPLACE INTO displaces another row

# A11: edits that only bytes tell apart, padded keys, partitions

# A12: a row that is absent without a captured deletion

# A13: records listed late, or dated in the future


def _poll_names(hub: RestHub) -> list[str]:
    hub.poll()
    hub.conductor.sweep()
    hub.run()
    return sorted(row.name for row in rows(hub, Customer))


def test_a13_a_record_that_is_listed_late_is_read(database: Database, httpserver: HTTPServer) -> None:
    system = AwkwardRest(httpserver)
    hub = RestHub(database, system)
    system.add(name="Ada")
    assert _poll_names(hub) == ["Ada"]
    late = system.add(name="Bea")
    system.store[late]["updated_at"] = (utcnow() - timedelta(minutes=2)).isoformat()
    assert _poll_names(hub) == ["Ada", "Bea"]


def test_a13_a_record_dated_in_the_future_does_not_move_the_cursor(database: Database, httpserver: HTTPServer) -> None:
    system = AwkwardRest(httpserver)
    hub = RestHub(database, system)
    future = system.add(name="Ada")
    system.store[future]["updated_at"] = "2099-01-01T00:00:00+00:00"
    assert _poll_names(hub) == ["Ada"]
    system.add(name="Bea")
    assert _poll_names(hub) == ["Ada", "Bea"]


@pytest.mark.parametrize("since", ["updated_since", ""])
def test_a13_a_record_that_moves_up_while_a_list_is_read_is_not_missed(
    database: Database, httpserver: HTTPServer, since: str
) -> None:
    names = [f"Ada {number}" for number in range(6)]
    stamp = "2026-11-22T12:00:00Z"
    listed = [{"id": str(number), "name": name, "updated_at": stamp} for number, name in enumerate(names)]

    def page(request: Request) -> Response:
        number = int(request.args.get("page", 1))
        if number == 2 and len(listed) == 6:
            del listed[0]
        return answer({"items": listed[2 * number - 2 : 2 * number]})

    chosen = {"pagination": "page", "page_limit": 2, "oldest_first": False, "since_parameter": since}
    system = AwkwardRest(httpserver)
    httpserver.clear()
    httpserver.expect_request("/contacts").respond_with_handler(page)
    hub = RestHub(database, system, kind(**chosen))
    assert _poll_names(hub) == names


def test_a13_a_poll_from_the_start_reads_everything_again(database: Database, httpserver: HTTPServer) -> None:
    system = AwkwardRest(httpserver)
    hub = RestHub(database, system)
    system.add(name="Ada")
    old = system.add(name="Bea")
    kept = system.store.pop(old)
    with hub.conductor.database.write() as connection:
        position = {"since": utcnow().isoformat()}
        connection.execute(sa.insert(Cursor).values(subscriber="awkward.customer", position=position))
    assert _poll_names(hub) == []
    system.store[old] = kept
    hub.conductor.systems.poll_now("awkward.customer", "ann", hub.conductor.poll, from_start=True)
    assert _poll_names(hub) == ["Ada", "Bea"]


# A14: currencies whose minor units differ by vendor

# A15: column types without a JSON form

# A16: a system whose clock is wrong


@pytest.mark.parametrize("minutes", [-10, 10])
@pytest.mark.parametrize("later", ["ours", "theirs"])
@pytest.mark.parametrize("how", ["poll", "event in another process"])
def test_a16_the_newest_edit_wins_whatever_the_systems_clock_says(
    database: Database, ahead: AwkwardRest, minutes: int, later: str, how: str
) -> None:
    system = ahead
    system.ahead = timedelta(minutes=minutes)
    hub = RestHub(database, system)
    one = add(hub, email="ada@x.example")
    hub.run()
    hub.poll()  # tells the clock
    edit(hub, one, name="ours")
    between = timedelta(minutes=3 if later == "ours" else -3)
    with hub.conductor.database.write() as connection:
        connection.execute(sa.update(Change).values(at=utcnow() + between))
    system.edit("1", name="theirs")
    if how == "poll":
        hub.conductor.poll("awkward.customer")
    else:
        hub.client.http.clock_offset = None
        data = dict(system.store["1"])
        event = External("1", data, at=datetime.fromisoformat(data["updated_at"]))
        hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["awkward.customer"], event)
    hub.run()
    assert record(hub, one).name == later == system.store["1"]["name"]
    assert abs(one_row(hub, System).clock_offset - minutes * 60) <= 2


def test_a16_a_wrong_clock_is_reported_by_the_connection_test(database: Database, ahead: AwkwardRest) -> None:
    system = ahead
    system.add(name="Ada")
    hub = RestHub(database, system)
    for minutes, words in ((-10, "600 s behind ours"), (10, "600 s ahead of ours"), (0, "")):
        system.ahead = timedelta(minutes=minutes)
        findings = hub.conductor.connection_check.check("awkward")["awkward.customer"]
        reported = [one.message for one in findings if "clock" in one.message]
        assert len(reported) == bool(words) and all(words in one for one in reported)


# A17: match values written differently

_ALIKE = [
    ("email", "Ada@X.example", "ada@x.example"),
    ("email", "ada@x.example", " ADA@x.Example "),
    ("phone", "+39 06 1234-5678", "(06) 12345678"),
    ("phone", "0039 06 12345678", "+390612345678"),
    ("phone", "06/12345678", "+39 06 12345678"),
    ("name", "\u00c9lodie BR\u00dbL\u00c9", "e\u0301lodie  bru\u0302le\u0301"),
    ("name", "ada  lovelace", "Ada Lovelace"),
    ("name", "Stra\u00dfe \u00d6l", "STRASSE \u00d6L"),
    ("name", "WEISS", "Wei\u00df"),
    ("phone", "tel:+39-06-12345678", "+390612345678"),
    ("email", "ada@b\u00fccher.example", "Ada@XN--bcher-kva.example"),
]


@pytest.mark.parametrize("how", ["webhook", "poll", "backfill"])
@pytest.mark.parametrize(("column", "ours", "theirs"), _ALIKE)
def test_a17_values_written_differently_match(
    database: Database, column: str, ours: str, theirs: str, how: str
) -> None:
    fields: dict[str, str | Field] = {"name": "name", "email": "email", "phone": "phone", "country": "country"}
    hub = TestHub(database, "crm", match_on=(column,), field_to_data=fields)
    one = add(hub, country="IT", **{column: ours})
    hub.conductor.relay()
    hub.publisher.published.clear()
    hub.systems["crm"].add(**{"name": "Ada", "country": "IT", column: theirs})
    if how == "backfill":
        hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer")
        hub.conductor.tasks.run_some()
    elif how == "poll":
        hub.conductor.poll("crm.customer")
    else:
        webhook(hub, "crm", "e1", "crm_1")
        hub.conductor.receive(1)
    settle(hub)
    assert len(rows(hub, Customer)) == 1 and link(hub, "crm", one).external_id == "crm_1"
    assert len(hub.systems["crm"].store) == 1


def test_a17_values_that_differ_do_not_match(database: Database) -> None:
    hub = TestHub(database, "crm", match_on=("email",))
    add(hub, email="ada@x.example")
    hub.systems["crm"].add(name="Ada", email="ad a@x.example")
    hub.conductor.poll("crm.customer")
    settle(hub)
    assert len(rows(hub, Customer)) == 2


def test_a17_a_value_changed_by_a_transform_matches(database: Database) -> None:
    fields: dict[str, str | Field] = {"name": "name", "email": Field("email", transform="lower")}
    hub = TestHub(database, "crm", match_on=("email",), field_to_data=fields)
    add(hub, email="Ada@X.example")
    hub.systems["crm"].add(name="Ada", email="ada@x.example")
    hub.conductor.poll("crm.customer")
    settle(hub)
    assert [row.email for row in rows(hub, Customer)] == ["Ada@X.example"]


def test_a17_two_records_of_ours_with_the_same_email_wait_for_an_operator(database: Database) -> None:
    hub = TestHub(database, "crm", match_on=("email",))
    for email in ("ada@x.example", "ADA@x.example"):
        add(hub, email=email)
    hub.publisher.published.clear()
    hub.systems["crm"].add(name="Ada", email="Ada@x.example")
    webhook(hub, "crm", "e1", "crm_1")
    hub.conductor.receive(1)
    assert [row.code for row in rows(hub, DeadLetter)] == ["ambiguous_match"]


@pytest.mark.parametrize("column", ["email", "phone", "name"])
def test_a17_a_match_reads_an_index(database: Database, column: str) -> None:
    hub = TestHub(database, "crm")
    catalogue = hub.conductor.subscribers["crm.customer"].records
    plans: list[str] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "lower(" in statement and not statement.startswith("EXPLAIN"):
            prefix = "EXPLAIN QUERY PLAN " if connection.dialect.name == "sqlite" else "EXPLAIN "
            plans.append(str(connection.exec_driver_sql(prefix + statement, parameters).all()))

    with database.write() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        sa.event.listen(connection, "before_cursor_execute", explain)
        candidates(connection, catalogue, {}, {column: match_keys(catalogue.match_as[column], "Ada")})
    assert f"match_of_customer_{column}" in plans[0]


@pytest.mark.parametrize("stored", ["Ada@X.example", "ada@x.example"])
def test_a17_a_record_is_found_there_however_its_value_is_written(
    database: Database, httpserver: HTTPServer, stored: str
) -> None:
    system = AwkwardRest(httpserver)
    hub = RestHub(database, system, kind(match_on=("email",)))
    system.add(name="Ada", email=stored)
    item = Item("1", {}, {"name": "Ada", "email": "ADA@x.example" if stored[0] == "a" else stored}, {}, None, "key")
    assert [one.id for one in hub.conductor.subscribers["awkward.customer"].find_matching(item)] == ["1"]


# A18: two hubs on one account
