"""Records that are gone or have another id there: docs/explanation/field-faults.md, rows A3, A6 and B20."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa

from conductor import Policy
from conductor.links import state
from conductor.links.row import link_row
from models.ledger import AuditEntry, Inbox, Link, LostRecord, System
from models.session import Database
from simulators.salesforce import SalesforceSimulator
from simulators.salesforce.identifiers import make_id
from simulators.stripe import StripeLike
from subscribers.records import Event, External, Item, Page
from subscribers.salesforce.identifiers import full_id
from tests.support.awkward_rest import AwkwardRest, RestHub, answer, kind
from tests.support.dead_letters import open_letters
from tests.support.fakes import FakeSubscriber, LowercasingSubscriber, TestHub
from tests.support.records import (
    CUSTOMER,
    add,
    edit,
    link,
    one_row,
    record,
    retry_due,
    rows,
    settle,
    webhook,
)
from tests.support.salesforce_hub import SalesforceHub
from tests.support.stripe_hub import StripeHub

# A6: the login of another account, where every record is gone

_RECORDS = 120


class Unseen(FakeSubscriber):
    """A system that is not looked at before a write."""

    look_first = "never"  # type: ignore[assignment]


class UnseenInBulk(LowercasingSubscriber):
    look_first = "never"  # type: ignore[assignment]
    bulk_size = 200


class Looked(LowercasingSubscriber):
    """A system whose records are fetched before they are written."""

    look_first = "fetch"  # type: ignore[assignment]


def _filled(database: Database, count: int = _RECORDS, kind: type[FakeSubscriber] = Unseen, **options: Any) -> TestHub:
    hub = TestHub(database, "crm", "shop", kinds=(kind,), **options)
    for number in range(count):
        add(hub, name=f"n{number}")
    hub.run()
    hub.clock.tick()
    return hub


def _to_other_account(hub: TestHub) -> dict[str, Any]:
    """Have the login lead to an account without records; return those of the right one."""
    right, hub.systems["crm"].store = hub.systems["crm"].store, {}
    return right


def _edit_all(hub: TestHub, **values: Any) -> None:
    with hub.conductor.database.write() as connection:
        connection.execute(sa.update(CUSTOMER).values(**values))
    hub.run()


def _system(hub: TestHub) -> Any:
    return next(row for row in rows(hub, System) if row.name != "shop")


def _unlinked(hub: TestHub) -> int:
    return len(rows(hub, Link, Link.subscriber.not_like("shop.%"), Link.unlinked_at.is_not(None)))


def _go_on(hub: TestHub) -> None:
    hub.clock.tick(1)
    hub.conductor.sweep()
    hub.run()


@pytest.mark.parametrize("policy", ["unlink", "archive", "delete", "recreate"])
@pytest.mark.parametrize("kind", [Unseen, UnseenInBulk, Looked], ids=["single", "bulk", "looked"])
def test_a06_a_system_that_has_none_of_its_records_is_paused_and_one_click_links_them_again(
    database: Database, kind: type[FakeSubscriber], policy: str
) -> None:
    hub = _filled(database, kind=kind, on_gone=policy)
    right = _to_other_account(hub)
    _edit_all(hub, phone="+1")
    system = _system(hub)
    assert system.paused_by == "delete guard" and "is this the right account?" in system.pause_reason
    held = [one for one in rows(hub, Link, Link.subscriber == "crm.customer") if one.unlinked_at is None]
    assert len(held) >= _RECORDS - 50 and sum(one.owed_change > one.synced_change for one in held) >= 70

    hub.systems["crm"].store = right
    assert hub.conductor.relinking.relink("crm", "ann") == hub.conductor.relinking.count("crm")
    _go_on(hub)
    assert _system(hub).paused_at is None
    assert [one["phone"] for one in hub.shown("crm")] == ["+1"] * _RECORDS
    assert len({link.external_id for link in rows(hub, Link, Link.subscriber == "crm.customer")} & set(right)) == 120
    assert _unlinked(hub) == 0 and hub.conductor.relinking.count("crm") == 0
    people = rows(hub, AuditEntry, AuditEntry.action == "system.relink")
    assert [(row.who, row.target) for row in people] == [("ann", "crm")]
    with database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).where(CUSTOMER.c.active)).scalar_one() == _RECORDS


def test_a06_one_call_whose_records_are_all_gone_unlinks_none_of_them(database: Database) -> None:
    hub = _filled(database, kind=UnseenInBulk)
    _to_other_account(hub)
    _edit_all(hub, phone="+1")
    assert _unlinked(hub) == 0 and rows(hub, LostRecord) == []
    assert all(one.owed_change > one.synced_change for one in rows(hub, Link, Link.subscriber == "crm.customer"))


def test_a06_records_that_are_meant_to_be_gone_follow_on_gone_once_that_is_allowed(database: Database) -> None:
    hub = _filled(database, kind=UnseenInBulk)
    _to_other_account(hub)
    _edit_all(hub, phone="+1")
    hub.conductor.systems.resume("crm", "ann", allow_deletes=True)
    _go_on(hub)
    assert _unlinked(hub) == _RECORDS and _system(hub).paused_at is None


@pytest.mark.parametrize("first", ["update", "webhook", "poll", "look", "reconcile"])
def test_a06_whatever_shows_that_a_record_is_gone_counts_in_one_guard(database: Database, first: str) -> None:
    hub = _filled(database, 6, Looked if first == "look" else Unseen)
    crm = hub.systems["crm"]
    crm.delete_limit = 3
    hub.conductor.poll("crm.customer")
    for number in (1, 2):
        crm.remove(f"crm_{number}")
    hub.clock.tick()
    if first in ("update", "look"):
        for one in ("1", "2"):
            edit(hub, one, phone="+1")
    elif first == "webhook":
        for number in (1, 2):
            webhook(hub, "crm", f"e{number}", f"crm_{number}")
    elif first == "poll":
        hub.conductor.poll("crm.customer")
    else:
        hub.conductor.tasks.start("reconcile", "ann", subscriber="crm.customer", repair=True)
        hub.conductor.tasks.run_some()
    hub.run()
    assert (_unlinked(hub), _system(hub).deletes, _system(hub).paused_at) == (2, 2, None)
    crm.remove("crm_3"), crm.remove("crm_4")
    edit(hub, "3", phone="+1")
    hub.run()
    edit(hub, "4", phone="+1")
    hub.run()
    assert _unlinked(hub) == 3 and _system(hub).paused_by == "delete guard"
    assert hub.conductor.relinking.count("crm") == 3


def test_a06_deletions_of_ours_that_found_nothing_are_sent_again(database: Database) -> None:
    hub = _filled(database, 4)
    right = _to_other_account(hub)
    with database.write() as connection:
        connection.execute(sa.delete(CUSTOMER).where(CUSTOMER.c.id <= 3))
    hub.run()
    hub.systems["crm"].store = right
    assert len(right) == 4, "the deletions reached the other account"
    assert hub.conductor.relinking.relink("crm", "ann") == 3
    _go_on(hub)
    assert [one["name"] for one in hub.shown("crm")] == ["n3"]
    assert hub.conductor.relinking.count("crm") == 0


def test_a06_records_that_are_really_gone_stay_unlinked(database: Database) -> None:
    hub = _filled(database, 4)
    right = _to_other_account(hub)
    _edit_all(hub, phone="+1")
    hub.systems["crm"].store = {key: data for key, data in right.items() if key != "crm_2"}
    hub.conductor.relinking.relink("crm", "ann")
    _go_on(hub)
    (left,) = rows(hub, Link, Link.unlinked_at.is_not(None))
    assert (left.record_id, _unlinked(hub), hub.conductor.relinking.count("crm")) == ("2", 1, 1)
    assert rows(hub, Inbox, Inbox.state != "done") == []


def test_a06_edits_made_there_meanwhile_are_merged_when_the_records_are_linked_again(database: Database) -> None:
    hub = _filled(database, 2)
    right = _to_other_account(hub)
    _edit_all(hub, phone="+1")
    assert _unlinked(hub) == 2
    hub.systems["crm"].store = right
    hub.systems["crm"].edit("crm_1", name="theirs")
    edit(hub, "2", notes="ours")
    hub.run()
    hub.conductor.relinking.relink("crm", "ann")
    _go_on(hub)
    first, second = sorted(hub.shown("crm"), key=lambda one: str(one["notes"] or ""))
    assert (first["name"], first["phone"]) == ("theirs", "+1") and (second["notes"], second["phone"]) == ("ours", "+1")
    with database.read() as connection:
        assert sorted(connection.scalars(sa.select(CUSTOMER.c.name))) == ["n1", "theirs"]


def test_a06_a_system_without_a_limit_is_not_paused(database: Database) -> None:
    hub = _filled(database, 4)
    hub.systems["crm"].delete_limit = None
    _to_other_account(hub)
    _edit_all(hub, phone="+1")
    assert _unlinked(hub) == 4 and _system(hub).paused_at is None


def test_a06_a_rest_system_that_has_none_of_its_records_is_paused(database: Database, system: AwkwardRest) -> None:
    hub = RestHub(database, system, policy=Policy())
    hub.client.delete_limit = 3
    for number in range(6):
        add(hub, name=f"n{number}")
    hub.run()
    right, system.store = system.store, {}
    for number in range(1, 7):
        edit(hub, str(number), phone="+1")
        hub.run()
    assert "is this the right account?" in _system(hub).pause_reason and _unlinked(hub) == 3
    system.store = right
    hub.conductor.relinking.relink("awkward", "ann")
    hub.wait(1)
    assert [one["phone"] for one in system.store.values()] == ["+1"] * 6 and _unlinked(hub) == 0


def test_a06_a_salesforce_org_that_has_none_of_its_records_is_paused(
    database: Database, org: SalesforceSimulator
) -> None:
    hub = SalesforceHub(database, org)
    hub.client.delete_limit = 3
    ids = [hub.add("customer", name=f"n{number}") for number in range(6)]
    hub.run()
    for account in org.store.all("Account"):
        org.store.delete("Account", account["Id"])
    for one in ids:
        hub.edit("customer", one, phone="+1")
    hub.run()
    assert "is this the right account?" in _system(hub).pause_reason
    assert len([one for one in ids if hub.link("customer", one).unlinked_at is None]) >= 3


def test_a06_a_stripe_account_that_has_none_of_its_records_is_paused(database: Database, stripe: StripeLike) -> None:
    hub = StripeHub(database, stripe)
    hub.client.delete_limit = 3
    for number in range(6):
        hub.add("customer", name=f"n{number}", email=f"n{number}@x.example")
    hub.settle()
    stripe.reset()
    for number in range(1, 7):
        hub.edit("customer", number, phone="+1")
    hub.run()
    assert "is this the right account?" in _system(hub).pause_reason and _unlinked(hub) <= 3


# A3: an id that the system gave to another record, or not


def _asked(database: Database, how: str, **options: Any) -> tuple[TestHub, str, int]:
    """Return a hub whose system has a record under the id of a deleted one, the record, and the letter that asks."""
    hub = TestHub(database, "crm", reuses_ids=True, **options)
    one, crm = add(hub, email="ada@x.example"), hub.systems["crm"]
    hub.run()
    hub.clock.tick()
    webhook(hub, "crm", "e1", crm.remove("crm_1").id)
    hub.run()
    hub.clock.tick()
    crm.store["crm_1"], crm.changed["crm_1"] = {"name": "Bea"}, hub.clock()
    crm.deleted.clear()
    if how == "webhook":
        webhook(hub, "crm", "e2", "crm_1")
    else:
        hub.conductor.poll("crm.customer")
    settle(hub)
    (letter,) = open_letters(hub)
    assert (letter.code, letter.subscriber, letter.record_id) == ("reused_id", "crm.customer", one)
    return hub, one, letter.id


@pytest.mark.parametrize("how", ["webhook", "poll"])
@pytest.mark.parametrize("on_gone", ["unlink", "archive"])
def test_a03_an_operator_says_that_it_is_the_same_record(database: Database, on_gone: str, how: str) -> None:
    hub, one, letter = _asked(database, how, on_gone=on_gone)
    edit(hub, one, phone="+1")
    hub.run()
    hub.conductor.relinking.decide(letter, "ann", same=True)
    retry_due(hub)
    ours = record(hub, one)
    assert (ours.name, ours.phone, ours.active) == ("Bea", "+1", True)
    assert (link(hub, "crm").external_id, link(hub, "crm").unlinked_at) == ("crm_1", None)
    assert hub.shown("crm")[0]["phone"] == "+1" and len(hub.shown("crm")) == 1
    assert open_letters(hub) == [] and rows(hub, Inbox, Inbox.state != "done") == []
    assert one_row(hub, AuditEntry, AuditEntry.action == "dead_letter.same_record").who == "ann"


@pytest.mark.parametrize("how", ["webhook", "poll"])
def test_a03_an_operator_says_that_it_is_another_record(database: Database, how: str) -> None:
    hub, one, letter = _asked(database, how)
    hub.conductor.relinking.decide(letter, "ann", same=False)
    retry_due(hub)
    assert record(hub, one).name == "Ada" and link(hub, "crm", one).external_id is None
    (other,) = rows(hub, Link, Link.external_id == "crm_1")
    assert other.record_id != one and record(hub, other.record_id).name == "Bea"
    assert open_letters(hub) == [] and len(hub.shown("crm")) == 1
    assert one_row(hub, AuditEntry, AuditEntry.action == "dead_letter.another_record").who == "ann"


@pytest.mark.parametrize("same", [True, False])
def test_a03_one_decision_answers_all_dead_letters_that_ask_the_same(database: Database, same: bool) -> None:
    hub, _, letter = _asked(database, "webhook")
    hub.clock.tick()
    hub.systems["crm"].edit("crm_1", name="Cara")
    webhook(hub, "crm", "e3", "crm_1")
    settle(hub)
    assert len(open_letters(hub)) == 2
    hub.conductor.relinking.decide(letter, "ann", same=same)
    retry_due(hub)
    assert open_letters(hub) == [] and rows(hub, Link, Link.external_id == "crm_1", Link.unlinked_at.is_(None))


def test_a03_only_a_dead_letter_that_asks_can_be_decided(database: Database) -> None:
    hub, _, letter = _asked(database, "webhook")
    for number in (letter + 1, letter):
        if number == letter:
            hub.conductor.dead_letters.discard(letter, "ann", "no matter")
        with pytest.raises(ValueError, match="does not ask"):
            hub.conductor.relinking.decide(number, "ann", same=True)


# B20: a record that is returned under another id


class Aliased(FakeSubscriber):
    """A system that returns a record under the id that it has now; `aliases` leads from other ids to it."""

    look_first = "never"  # type: ignore[assignment]
    aliases: ClassVar[dict[str, str]] = {}

    def fetch(self, external_id: str) -> External:
        return super().fetch(self.aliases.get(external_id, external_id))

    def update(self, item: Item) -> External | None:
        there = self.aliases.get(item.linked_id, item.linked_id)
        return super().update(replace(item, external_id=there))


def _aliased(database: Database, aliases: dict[str, str], count: int = 1, **options: Any) -> TestHub:
    hub = TestHub(database, "crm", kinds=(Aliased,), aliases=aliases, policy=Policy(max_attempts=3), **options)
    for number in range(count):
        add(hub, name=f"n{number}")
    hub.run()
    hub.clock.tick()
    return hub


def _rename(hub: TestHub, before: str, after: str, **values: Any) -> None:
    """Give a record another id there, and edit it."""
    crm = hub.systems["crm"]
    crm.store[after] = crm.store.pop(before) | values
    crm.changed[after] = crm.changed.pop(before)
    crm.changed[after] = hub.clock()


def _webhook_without_data(hub: TestHub, external_id: str) -> None:
    hub.systems["crm"].events = lambda body: [Event("thing", External(external_id))]  # type: ignore[method-assign]
    webhook(hub, "crm", "e1", external_id)


def _report(hub: TestHub, how: str, external_id: str) -> None:
    """Have the hub learn of a record under this id."""
    if how == "webhook":
        _webhook_without_data(hub, external_id)
    elif how == "poll":
        listed = [External(external_id, {"name": "listed"}, at=hub.clock())]
        crm_customer = hub.conductor.subscribers["crm.customer"]
        turn = hub.conductor.database.run_in_transaction(hub.conductor.inward.polling._take_turn, "crm.customer")
        assert turn is not None
        with hub.conductor.database.write() as connection:
            hub.conductor.inward.polling._apply_page(connection, crm_customer, Page(listed, {}), turn)
            hub.conductor.inward.polling._end_turn(connection, turn)
        hub.publisher.published.append(("inbox", [row for row in turn.postponed.values() if row is not None]))
    elif how == "event":
        hub.conductor.inward.inbox.apply_event(hub.conductor.subscribers["crm.customer"], External(external_id))
    elif how == "look":
        hub.conductor.inward.remote_edits._take(
            hub.conductor.subscribers["crm.customer"],
            hub.conductor.subscribers["crm.customer"].mapper,
            link_row(link(hub, "crm")),
            hub.conductor.subscribers["crm.customer"].fetch(external_id),
            is_delete=False,
        )
    else:
        hub.conductor.tasks.start("reconcile", "ann", subscriber="crm.customer", repair=True)
        hub.conductor.tasks.run_some()
    settle(hub)


@pytest.mark.parametrize("how", ["webhook", "event", "look", "reconcile"])
def test_b20_a_record_that_has_another_id_now_is_followed(database: Database, how: str) -> None:
    hub = _aliased(database, {"crm_1": "crm_9"})
    _rename(hub, "crm_1", "crm_9", name="theirs")
    _report(hub, how, "crm_1")
    assert (link(hub, "crm").external_id, link(hub, "crm").unlinked_at) == ("crm_9", None)
    assert record(hub).name == "theirs" and len(rows(hub, Link)) == 1
    assert rows(hub, Inbox, Inbox.state != "done") == [] and open_letters(hub) == []
    edit(hub, "1", phone="+1")
    hub.run()
    assert hub.shown("crm")[0]["phone"] == "+1" and len(hub.shown("crm")) == 1


@pytest.mark.parametrize("how", ["webhook", "event", "poll"])
def test_b20_an_event_under_a_former_id_reaches_the_record(database: Database, how: str) -> None:
    hub = _aliased(database, {"CRM_1": "crm_1"})
    hub.systems["crm"].edit("crm_1", name="theirs")
    _report(hub, how, "CRM_1")
    assert record(hub).name == "theirs" and len(rows(hub, Link)) == 1
    assert rows(hub, Inbox, Inbox.state != "done") == [] and open_letters(hub) == []
    assert len([call for call in hub.systems["crm"].calls if call[0] == "fetch"]) <= 2


@pytest.mark.parametrize(("known", "reported"), [("crm_1", "CRM_1"), ("007", "7"), ("7", "007"), ("AB", "ab")])
def test_b20_a_deletion_under_another_form_of_the_id_is_applied(database: Database, known: str, reported: str) -> None:
    hub = _aliased(database, {})
    _rename(hub, "crm_1", known)
    with database.write() as connection:
        state.write(connection, link(hub, "crm").id, {"external_id": known})
    hub.systems["crm"].remove(known)
    webhook(hub, "crm", "e1", reported)
    hub.run()
    assert link(hub, "crm").deleted_remotely and rows(hub, Inbox, Inbox.state != "done") == []


def test_b20_a_record_whose_id_only_looks_alike_is_another_record(database: Database) -> None:
    hub = _aliased(database, {})
    crm = hub.systems["crm"]
    crm.store["CRM_1"], crm.changed["CRM_1"] = {"name": "Bea"}, hub.clock()
    _report(hub, "poll", "CRM_1")
    assert [row.external_id for row in rows(hub, Link)] == ["crm_1", "CRM_1"]
    crm.remove("CRM_1")
    webhook(hub, "crm", "e2", "CRM_1")
    hub.run()
    assert link(hub, "crm").unlinked_at is None and link(hub, "crm", "2").deleted_remotely


@pytest.mark.parametrize("how", ["webhook", "event", "update"])
def test_b20_a_record_that_was_merged_into_another_linked_one_is_gone(database: Database, how: str) -> None:
    hub = _aliased(database, {"crm_1": "crm_2"}, count=2)
    del hub.systems["crm"].store["crm_1"]
    hub.systems["crm"].edit("crm_2", notes="both")
    if how == "update":
        edit(hub, "1", phone="+1")
        hub.run()
    else:
        _report(hub, how, "crm_1")
    first, second = link(hub, "crm", "1"), link(hub, "crm", "2")
    assert first.deleted_remotely and (second.external_id, second.unlinked_at) == ("crm_2", None)
    assert how == "update" or record(hub, "2").notes == "both"
    assert rows(hub, Inbox, Inbox.state != "done") == [] and open_letters(hub) == []
    assert _system(hub).deletes == 1


def test_b20_an_id_that_changes_with_each_fetch_ends_in_a_dead_letter(database: Database) -> None:
    hub = _aliased(database, {"crm_1": "a", "a": "b", "b": "c", "c": "a"})
    hub.systems["crm"].store |= {name: {"name": name} for name in "abc"}
    hub.systems["crm"].changed |= dict.fromkeys("abc", hub.clock())
    _webhook_without_data(hub, "crm_1")
    for _ in range(4):
        retry_due(hub)
    (letter,) = open_letters(hub)
    assert letter.code == "id_changes" and len(rows(hub, Link)) == 1
    fetches = len([call for call in hub.systems["crm"].calls if call[0] == "fetch"])
    hub.clock.tick(3600)
    retry_due(hub)
    assert len([call for call in hub.systems["crm"].calls if call[0] == "fetch"]) == fetches


@pytest.mark.parametrize("kind", ["webhook", "poll"])
def test_b20_an_event_that_waits_for_a_lease_without_end_is_a_dead_letter(database: Database, kind: str) -> None:
    hub = _aliased(database, {})
    hub.systems["crm"].edit("crm_1", name="theirs")
    with database.write() as connection:
        never = hub.clock() + timedelta(days=9)
        state.write(connection, link(hub, "crm").id, {"lease_owner": "another", "lease_until": never})
    if kind == "webhook":
        webhook(hub, "crm", "e1", "crm_1")
    else:
        hub.conductor.poll("crm.customer")
    for _ in range(20):  # a lease takes no longer than this, so nothing is used up
        hub.run()
        hub.clock.tick(2)
        hub.conductor.sweep()
    assert one_row(hub, Inbox).attempts == 0
    for _ in range(6):
        retry_due(hub)
    (letter,) = open_letters(hub)
    assert "being delivered" in letter.message and one_row(hub, Inbox).state == "dead"


def test_b20_the_forms_of_a_salesforce_id_are_one_id() -> None:
    for number in (1, 61, 123456789):
        full = make_id("001", number)
        assert full_id(full[:15]) == full_id(full.lower()) == full_id(full.upper()) == full_id(full) == full
    assert [full_id(one) for one in ("", "cus_1", "x" * 16)] == ["", "cus_1", "x" * 16]


@pytest.mark.parametrize("deleted", [False, True])
def test_b20_a_salesforce_event_with_the_short_id_reaches_its_record(
    database: Database, org: SalesforceSimulator, deleted: bool
) -> None:
    hub = SalesforceHub(database, org)
    one = hub.add("customer", name="Ada")
    hub.run()
    account = hub.link("customer", one).external_id
    org.clock.advance(100)
    if deleted:
        org.store.delete("Account", account)
    else:
        org.edit("Account", account, Name="theirs")
    event = {"id": "e1", "sobject": "Account", "record": {"Id": account[:15]}, "deleted": deleted}
    hub.conductor.store_webhook("salesforce", json.dumps(event).encode(), {"X-Syncflow-Secret": "new"})
    hub.run()
    ours = hub.record("customer", one)
    assert ours is not None and ours["name"] == ("Ada" if deleted else "theirs")
    assert (hub.link("customer", one).unlinked_at is not None) is deleted
    assert [row.state for row in hub.inbox()] == ["done"]


@pytest.mark.parametrize("reported", ["0001", 1])
def test_b20_a_rest_event_with_another_form_of_the_id_reaches_its_record(
    database: Database, system: AwkwardRest, reported: str | int
) -> None:
    hub = RestHub(database, system)
    add(hub)
    hub.run()
    system.edit("1", name="theirs")
    system.store["0001"] = system.store["1"]  # the same record, which shows its own id
    subscriber = hub.conductor.subscribers["awkward.customer"]
    hub.conductor.inward.inbox.apply_event(subscriber, External(str(reported), {"name": "theirs"}))
    assert record(hub).name == "theirs" and [row.external_id for row in rows(hub, Link)] == ["1"]


def test_b20_a_form_of_the_id_that_only_a_fetch_shows_is_taken_after_a_create(
    database: Database, system: AwkwardRest
) -> None:
    hub = RestHub(database, system, kind(read_back="always"))
    system.creates = lambda one: answer(None, 201, Location=f"/contacts/{one['id']}")
    system.reads = lambda one: {**one, "id": f"c-{one['id']}"}
    add(hub)
    hub.run()
    assert link(hub, "awkward").external_id == "c-1"
