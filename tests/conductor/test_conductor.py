"""Outward and inward sync through the real conductor, on both databases, with fake systems."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from conductor import DeadLetterFilter, Policy
from models.capture import sync_context
from models.catalogues import CATALOGUES, Customer
from models.ledger import Change, Cursor, DeadLetter, Delivery, Inbox, Link, System
from models.session import Database
from subscribers.errors import BadSignature, Gone, Reject, Retry, SystemDown
from subscribers.http.rate_limit_headers import Rate
from subscribers.mapping.fields import Field
from subscribers.records import External
from tests.support.fakes import World

CUSTOMER = Customer.__table__


@pytest.fixture
def world(database: Database) -> Iterator[World]:
    yield World(database, "crm", "shop", policy=Policy(lease=60, stale=30, max_attempts=3, retry_min=2))


def add(world: World, **values: Any) -> str:
    with world.conductor.database.write() as c:
        return str(c.execute(sa.insert(CUSTOMER).values(**{"name": "Ada", **values})).inserted_primary_key[0])


def edit(world: World, record_id: str, **values: Any) -> None:
    with world.conductor.database.write() as c:
        c.execute(sa.update(CUSTOMER).where(CUSTOMER.c.id == int(record_id)).values(**values))


def rows(world: World, table: Any, *conditions: Any) -> list[Any]:
    with world.conductor.database.read() as c:
        return list(c.execute(sa.select(table.__table__).where(*conditions).order_by(table.id)).all())


def link(world: World, name: str, record_id: str = "1") -> Any:
    (found,) = rows(world, Link, Link.subscriber == f"{name}.customer", Link.record_id == record_id)
    return found


def record(world: World, record_id: str = "1") -> Any:
    with world.conductor.database.read() as c:
        return c.execute(sa.select(CUSTOMER).where(CUSTOMER.c.id == int(record_id))).one_or_none()


def outcomes(world: World, **conditions: Any) -> list[tuple[str, str, str]]:
    chosen = [getattr(Delivery, k) == v for k, v in conditions.items()]
    return [(d.direction, d.operation, d.outcome) for d in rows(world, Delivery, *chosen)]


# --- outward --------------------------------------------------------------------------------------------


def test_a_new_record_is_created_in_every_system(world: World) -> None:
    add(world, name="Ada", email="ada@x.org", city="Rome")
    world.run()
    for name in ("crm", "shop"):
        assert world.shown(name) == [
            {"name": "Ada", "email": "ada@x.org", "phone": None, "address": {"city": "Rome"}, "notes": None}
        ]
        assert link(world, name).owed_change == link(world, name).synced_change > 0


def test_ten_edits_cost_one_call_and_a_repeated_message_none(world: World) -> None:
    one = add(world)
    for number in range(10):
        edit(world, one, notes=f"edit {number}")
    world.run()
    world.conductor.deliver("crm.customer", [one, one])
    assert world.systems["crm"].writes() == [("create", one)]
    assert world.shown("crm")[0]["notes"] == "edit 9"


def test_an_edit_sends_only_what_differs(world: World) -> None:
    one = add(world, phone="1")
    world.run()
    edit(world, one, phone="2")
    world.run()
    (delivery,) = rows(world, Delivery, Delivery.subscriber == "crm.customer", Delivery.operation == "update")
    assert delivery.payload == {"phone": "2"}


def test_an_edit_of_an_unmapped_column_calls_nobody(world: World) -> None:
    one = add(world)
    world.run()
    edit(world, one, currency="eur")
    world.run()
    assert world.systems["crm"].writes() == [("create", one)]


def test_a_deleted_record_is_deleted_there(world: World) -> None:
    one = add(world)
    world.run()
    with world.conductor.database.write() as c:
        c.execute(sa.delete(CUSTOMER))
    world.run()
    assert world.shown("crm") == world.shown("shop") == []
    assert link(world, "crm", one).unlinked_at is not None


@pytest.mark.parametrize("policy,left", [("unlink", 1), ("ignore", 1), ("archive", 1), ("delete", 0)])
def test_delete_follows_the_policy(database: Database, policy: str, left: int) -> None:
    world = World(database, "crm", on_delete=policy, archive_data={"notes": "archived"})
    add(world)
    world.run()
    with world.conductor.database.write() as c:
        c.execute(sa.delete(CUSTOMER))
    world.run()
    assert len(world.shown("crm")) == left
    if policy == "archive":
        assert world.shown("crm")[0]["notes"] == "archived"


def test_a_record_created_and_deleted_before_it_was_sent_calls_nobody(world: World) -> None:
    add(world)
    with world.conductor.database.write() as c:
        c.execute(sa.delete(CUSTOMER))
    world.run()
    assert world.systems["crm"].calls == []


def test_the_origin_and_the_writers_list_are_left_out(world: World) -> None:
    with world.conductor.database.write() as c, sync_context(c, origin="crm", unsubscribe=["shop.customer"]):
        c.execute(sa.insert(CUSTOMER).values(name="Ada"))
    world.run()
    assert world.shown("crm") == world.shown("shop") == []
    assert outcomes(world, subscriber="shop.customer") == [("out", "none", "skipped")]
    # ... for that change only: a later edit of the record flows again.
    edit(world, "1", notes="later")
    world.run()
    assert len(world.shown("crm")) == len(world.shown("shop")) == 1


def test_push_asks_directly_and_leaves_out_who_is_named(world: World) -> None:
    one = add(world)
    world.conductor.push("customer", one, unsubscribe=["shop"])
    with world.conductor.database.write() as c:
        c.execute(sa.delete(Change).where(Change.unsubscribe.is_(None)))
    world.run()
    assert (len(world.shown("crm")), len(world.shown("shop"))) == (1, 0)


# --- failures -------------------------------------------------------------------------------------------


def test_a_rejected_record_is_a_dead_letter_and_its_neighbours_go_through(world: World) -> None:
    bad = add(world, name="Bad")
    good = add(world, name="Good")
    world.systems["crm"].fail(Reject("422: email: is not valid", fields={"email": "is not valid"}))
    world.run()
    (letter,) = rows(world, DeadLetter)
    assert (letter.subscriber, letter.record_id, letter.fields) == ("crm.customer", bad, {"email": "is not valid"})
    assert link(world, "crm", good).synced_change == link(world, "crm", good).owed_change
    assert link(world, "crm", bad).dead_at is not None
    # A retry by a person sends it, and the letter closes by itself.
    assert world.conductor.retry(DeadLetterFilter(error="Reject"), by="ann@x.org") == 1
    world.conductor.sweep()
    world.run()
    assert rows(world, DeadLetter)[0].resolution == "delivered"
    assert len(world.shown("crm")) == 2


def test_an_edit_brings_a_dead_record_back(world: World) -> None:
    one = add(world)
    world.systems["crm"].fail(Reject("no"))
    world.run()
    edit(world, one, name="Better")
    world.run()
    assert world.shown("crm")[0]["name"] == "Better"
    assert rows(world, DeadLetter)[0].closed_at is not None


def test_a_discarded_letter_settles_what_was_owed(world: World) -> None:
    one = add(world)
    world.systems["crm"].fail(Reject("no"))
    world.run()
    with pytest.raises(ValueError, match="reason"):
        world.conductor.discard(DeadLetterFilter(), by="ann", reason=" ")
    assert world.conductor.discard(DeadLetterFilter(), by="ann", reason="test data") == 1
    world.conductor.sweep(everything=True)
    world.run()
    assert world.shown("crm") == []
    assert link(world, "crm", one).owed_change == link(world, "crm", one).synced_change


def test_retries_back_off_and_end_as_a_dead_letter(world: World) -> None:
    one = add(world)
    world.systems["crm"].fail(Retry("500: try later"), times=3)
    world.run()
    for _ in range(2):
        assert rows(world, DeadLetter) == []
        world.conductor.sweep()
        assert world.ears.heard == []  # not due yet
        calls = len(world.systems["crm"].calls)
        world.conductor.deliver("crm.customer", [one])  # an old message
        assert len(world.systems["crm"].calls) == calls
        world.clock.tick(10)
        world.conductor.sweep()
        world.run()
    (letter,) = rows(world, DeadLetter)
    assert letter.record_id == one
    assert [d.attempt for d in rows(world, Delivery, Delivery.subscriber == "crm.customer")] == [1, 2, 3]


def test_a_system_that_is_down_uses_up_no_attempts_and_is_probed(world: World) -> None:
    ids = [add(world, name=f"n{number}") for number in range(30)]
    crm = world.systems["crm"]
    crm.fail(SystemDown("503", after=5), times=2)
    world.run()
    assert len(crm.calls) == 1  # the others were not tried
    assert all(link(world, "crm", one).attempts == 0 for one in ids)
    world.clock.tick(1)
    world.conductor.sweep()
    world.run()
    world.conductor.deliver("crm.customer", ids)  # other news of them, from whoever
    assert len(crm.calls) == 1  # not before it is time
    world.clock.tick(5)
    world.conductor.sweep()
    world.run()
    assert len(crm.calls) == 2  # one probe
    world.clock.tick(60)
    for _ in range(3):
        world.conductor.sweep()
        world.run()
    assert len(world.shown("crm")) == len(ids)
    assert all(link(world, "crm", one).attempts == 0 for one in ids)
    assert rows(world, DeadLetter) == []


def test_a_paused_system_waits_and_catches_up(world: World) -> None:
    world.conductor.pause("crm", by="ann", reason="maintenance")
    add(world)
    world.run()
    assert world.systems["crm"].calls == [] and len(world.shown("shop")) == 1
    world.conductor.resume("crm", by="ann")
    world.clock.tick(1)
    world.conductor.sweep()
    world.run()
    assert len(world.shown("crm")) == 1


def test_a_bug_in_a_subscriber_is_kept_with_its_traceback(world: World) -> None:
    def bug(kind: str, what: str) -> None:
        raise KeyError("surprise")

    world.systems["crm"].on_call = bug
    add(world)
    for _ in range(3):
        world.run()
        world.clock.tick(100)
        world.conductor.sweep()
    (letter,) = rows(world, DeadLetter)
    assert "surprise" in letter.message and "Traceback" in letter.traceback


def test_an_unsubscription_skips_with_its_rule_also_what_is_queued(world: World) -> None:
    one, two = add(world, name="One"), add(world, name="Two")
    world.conductor.relay()
    rule = world.conductor.unsubscribe("crm", None, [one], None, "billing freeze", by="ann")
    world.run()
    assert [s["name"] for s in world.shown("crm")] == ["Two"]
    (skip,) = rows(world, Delivery, Delivery.outcome == "skipped")
    assert skip.reason == f"unsubscription #{rule} (billing freeze) covers it"
    assert link(world, "crm", one).unsubscription_id == rule
    world.conductor.lift(rule, by="ann")
    edit(world, one, notes="flows again")
    world.run()
    assert len(world.shown("crm")) == 2 and two


def test_an_unsubscription_of_one_operation_lets_the_others_through(world: World) -> None:
    one = add(world)
    world.run()
    world.conductor.unsubscribe("crm.customer", "delete", None, None, "", by="ann")
    edit(world, one, notes="x")
    world.run()
    with world.conductor.database.write() as c:
        c.execute(sa.delete(CUSTOMER))
    world.run()
    assert world.shown("crm")[0]["notes"] == "x" and world.shown("shop") == []


# --- creating exactly once -----------------------------------------------------------------------------------


def test_a_create_whose_answer_was_lost_is_looked_up_before_it_is_repeated(world: World) -> None:
    one = add(world)
    world.systems["crm"].fail(Retry("no answer in time", maybe_done=True), after=True)
    world.run()
    assert link(world, "crm", one).external_id is None and link(world, "crm", one).create_token
    edit(world, one, notes="edited meanwhile")
    world.run()
    assert len(world.shown("crm")) == 1
    assert world.shown("crm")[0]["notes"] == "edited meanwhile"
    assert [kind for kind, _ in world.systems["crm"].calls] == ["create", "find", "update"]


def test_a_worker_that_dies_after_the_call_creates_nothing_twice(world: World) -> None:
    one = add(world)
    world.conductor.relay()
    world.ears.heard.clear()

    def die(kind: str, what: str) -> None:
        raise KeyboardInterrupt  # as abrupt as it gets in one process

    crm = world.systems["crm"]
    crm.on_call = die
    with pytest.raises(KeyboardInterrupt):
        world.conductor.deliver("crm.customer", [one])
    crm.add(name="Ada", hub_id=one)  # the call had arrived
    crm.on_call = lambda kind, what: None
    world.conductor.deliver("crm.customer", [one])
    assert len(world.shown("crm")) == 1 and crm.calls[-1][0] == "create"  # the lease still holds
    world.clock.tick(61)
    world.conductor.sweep()
    world.run()
    assert len(world.shown("crm")) == 1
    assert link(world, "crm", one).external_id == "crm_1"


def test_a_record_deleted_while_its_create_is_in_doubt_is_deleted_there(world: World) -> None:
    add(world)
    world.systems["crm"].fail(Retry("no answer in time", maybe_done=True), after=True)
    world.run()
    with world.conductor.database.write() as c:
        c.execute(sa.delete(CUSTOMER))
    world.run()
    assert world.shown("crm") == []


def test_two_workers_never_hold_one_record(world: World) -> None:
    one = add(world)
    world.conductor.relay()
    world.ears.heard.clear()
    inner: list[int] = []

    def meanwhile(kind: str, what: str) -> None:
        if not inner:
            inner.append(1)
            world.conductor.deliver("crm.customer", [one])

    world.systems["crm"].on_call = meanwhile
    world.conductor.deliver("crm.customer", [one])
    assert world.systems["crm"].writes() == [("create", one)]


def test_an_edit_during_the_call_is_sent_at_once_after_it(world: World) -> None:
    one = add(world)
    world.conductor.relay()
    world.ears.heard.clear()
    done: list[int] = []

    def meanwhile(kind: str, what: str) -> None:
        if not done:
            done.append(1)
            edit(world, one, notes="edited during the call")
            world.conductor.relay()
            world.conductor.deliver("crm.customer", [one])  # its news comes while the lease is held

    world.systems["crm"].on_call = meanwhile
    world.conductor.deliver("crm.customer", [one])
    assert world.shown("crm")[0]["notes"] == "edited during the call"


# --- sweeps -------------------------------------------------------------------------------------------------


def test_news_that_was_lost_is_announced_again_but_not_while_the_queue_is_full(world: World) -> None:
    add(world)
    world.conductor.relay()
    world.ears.heard.clear()  # RabbitMQ's disk is gone
    world.conductor.sweep()
    assert world.ears.heard == []  # it may only be slow
    world.clock.tick(31)
    world.ears.depths = {"crm.customer": 5}
    world.conductor.sweep()
    assert [what for what, _ in world.ears.heard] == ["shop.customer"]
    world.ears.heard.clear()
    world.conductor.sweep()
    assert world.ears.heard == []  # announced a moment ago
    world.ears.depths = {}
    world.conductor.sweep()
    world.run()
    assert len(world.shown("crm")) == 1


def test_a_start_announces_what_is_owed_at_once(world: World) -> None:
    add(world)
    world.conductor.relay()
    world.ears.heard.clear()
    world.clock.tick(0.001)
    world.conductor.sweep(everything=True)
    world.run()
    assert len(world.shown("crm")) == len(world.shown("shop")) == 1


# --- inward -------------------------------------------------------------------------------------------------


def webhook(world: World, system: str, event: str, external_id: str) -> bool:
    return world.conductor.store_webhook(system, f"{event} {external_id}".encode(), {"X-Fake": "signed"})


def test_an_edit_there_arrives_here_and_in_the_others_and_not_back(world: World) -> None:
    one = add(world, email="ada@x.org")
    world.run()
    world.clock.tick()
    world.systems["crm"].edit("crm_1", email="new@x.org")
    calls = len(world.systems["crm"].calls)
    assert webhook(world, "crm", "e1", "crm_1")
    world.run()
    assert record(world, one).email == "new@x.org"
    assert world.shown("shop")[0]["email"] == "new@x.org"
    assert len(world.systems["crm"].calls) == calls
    # The same event again is answered, and not applied twice.
    assert not webhook(world, "crm", "e1", "crm_1")
    # An echo of our own write stops at once.
    webhook(world, "shop", "e1", "shop_1")
    world.run()
    assert outcomes(world, direction="in")[-1] == ("in", "update", "echo")
    assert len(rows(world, Change)) == 2


def test_a_webhook_with_a_bad_signature_leaves_only_a_count(world: World) -> None:
    with pytest.raises(BadSignature):
        world.conductor.store_webhook("crm", b"e1 crm_1", {})
    assert rows(world, Inbox) == []
    with world.conductor.database.read() as c:
        assert c.execute(sa.text("SELECT webhooks_rejected FROM system WHERE name = 'crm'")).scalar() == 1


def test_both_sides_changed_different_fields(world: World) -> None:
    one = add(world, email="a@x.org", phone="1")
    world.run()
    world.clock.tick()
    edit(world, one, phone="2")
    world.systems["crm"].edit("crm_1", email="b@x.org")
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    assert (record(world, one).email, record(world, one).phone) == ("b@x.org", "2")
    for name in ("crm", "shop"):
        assert (world.shown(name)[0]["email"], world.shown(name)[0]["phone"]) == ("b@x.org", "2")


@pytest.mark.parametrize("policy,wins", [("internal", "ours"), ("external", "theirs")])
def test_both_sides_changed_the_same_field(database: Database, policy: str, wins: str) -> None:
    mapping = {"name": "name", "notes": Field("notes", conflict=policy)}  # type: ignore[arg-type]
    world = World(database, "crm", "shop", field_to_data=mapping)
    one = add(world, notes="base")
    world.run()
    world.clock.tick()
    edit(world, one, notes="ours")
    world.systems["crm"].edit("crm_1", notes="theirs")
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    assert record(world, one).notes == wins
    assert world.shown("crm")[0]["notes"] == world.shown("shop")[0]["notes"] == wins


def test_a_field_that_only_goes_out_is_put_right(database: Database) -> None:
    world = World(database, "crm", field_to_data={"name": Field("name", direction="out"), "email": "email"})
    one = add(world, name="Ada")
    world.run()
    world.clock.tick()
    world.systems["crm"].edit("crm_1", name="Hacked", email="new@x.org")
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    assert (record(world, one).name, record(world, one).email) == ("Ada", "new@x.org")
    assert world.shown("crm") == [{"name": "Ada", "email": "new@x.org"}]


def test_a_late_event_never_regresses_a_record(world: World) -> None:
    one = add(world, email="1@x.org")
    world.run()
    crm, subscriber = world.systems["crm"], world.conductor.subscribers["crm.customer"]
    world.clock.tick()
    old = crm.edit("crm_1", email="2@x.org")
    world.clock.tick()
    new = crm.edit("crm_1", email="3@x.org")
    for event in (new, old, old, new):
        world.conductor.inward.take(subscriber, event)
    world.run()
    assert record(world, one).email == "3@x.org" == world.shown("shop")[0]["email"]


def test_an_event_of_the_same_second_as_our_write_is_fetched(world: World) -> None:
    one = add(world, email="1@x.org")
    world.run()
    crm, subscriber = world.systems["crm"], world.conductor.subscribers["crm.customer"]
    stale = crm.edit("crm_1", email="2@x.org")
    crm.edit("crm_1", email="3@x.org")
    world.conductor.inward.take(subscriber, stale)
    assert ("fetch", "crm_1") in crm.calls
    world.run()
    assert record(world, one).email == "3@x.org"


def test_a_record_created_there_is_created_here_and_in_the_others(world: World) -> None:
    world.systems["crm"].add(name="Bob", email="bob@x.org")
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    assert record(world).name == "Bob"
    assert world.shown("shop")[0]["name"] == "Bob"
    assert world.systems["crm"].writes() == []


def test_a_created_record_that_cannot_be_one_here_is_a_dead_letter(world: World) -> None:
    world.systems["crm"].add(email="noname@x.org")
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    (letter,) = rows(world, DeadLetter)
    assert "name would be empty" in letter.message and rows(world, Inbox)[0].state == "dead"
    # Mended there, and tried again from here.
    world.systems["crm"].edit("crm_1", name="Named")
    world.conductor.retry(DeadLetterFilter(), by="ann")
    world.conductor.sweep()
    world.run()
    assert record(world).name == "Named" and rows(world, DeadLetter)[0].closed_at is not None


def test_match_on_links_instead_of_creating(database: Database) -> None:
    world = World(database, "crm", match_on=("email",))
    with database.write() as c, sync_context(c, origin="crm"):
        c.execute(sa.insert(CUSTOMER).values(name="Ada", email="ada@x.org"))
    world.run()
    world.systems["crm"].add(name="Ada L.", email="ada@x.org")
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    with database.read() as c:
        assert c.execute(sa.select(sa.func.count()).select_from(CUSTOMER)).scalar() == 1
    assert link(world, "crm").external_id == "crm_1"


def test_our_own_create_seen_before_it_is_settled_makes_no_duplicate(world: World) -> None:
    one = add(world)
    world.conductor.relay()
    world.ears.heard.clear()
    crm = world.systems["crm"]
    results: list[bool] = []

    def meanwhile(kind: str, what: str) -> None:
        if kind == "create":
            crm.add(name="Ada", hub_id=one)
            results.append(webhook(world, "crm", "e1", "crm_1"))
            ((_, ids),) = world.ears.heard
            world.conductor.receive(ids[0])  # while the create is under way
            crm.store.clear()

    crm.on_call = meanwhile
    world.conductor.deliver("crm.customer", [one])
    with world.conductor.database.read() as c:
        assert c.execute(sa.select(sa.func.count()).select_from(CUSTOMER)).scalar() == 1
    assert rows(world, Inbox)[0].state == "waiting" and results == [True]


@pytest.mark.parametrize("policy", ["unlink", "delete", "archive", "recreate"])
def test_a_record_deleted_there_follows_the_policy(database: Database, policy: str) -> None:
    world = World(database, "crm", "shop", on_gone=policy)
    one = add(world)
    world.run()
    world.clock.tick()
    world.systems["crm"].remove("crm_1")
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    here = record(world, one)
    assert (here is None) == (policy == "delete")
    assert (here is not None and not here.active) == (policy == "archive")
    assert len(world.shown("crm")) == (1 if policy == "recreate" else 0)
    assert len(world.shown("shop")) == (0 if policy == "delete" else 1)
    if policy == "unlink":
        edit(world, one, notes="x")
        world.run()
        assert world.shown("crm") == [] and world.shown("shop")[0]["notes"] == "x"


def test_a_record_found_gone_when_it_is_updated_follows_the_policy(database: Database) -> None:
    world = World(database, "crm", on_gone="recreate")
    one = add(world)
    world.run()
    world.systems["crm"].remove("crm_1")
    edit(world, one, notes="x")
    world.run()
    assert world.shown("crm")[0]["notes"] == "x" and link(world, "crm").external_id == "crm_2"


def test_a_poll_takes_pages_and_its_cursor_together(world: World) -> None:
    one = add(world)
    world.run()
    crm = world.systems["crm"]
    world.clock.tick()
    crm.edit("crm_1", notes="polled")
    crm.add(name="New there")
    assert world.conductor.poll("crm.customer") == 2
    world.run()
    assert record(world, one).notes == "polled" and record(world, "2").name == "New there"
    assert len(world.shown("shop")) == 2
    before = len(rows(world, Delivery))
    world.conductor.poll("crm.customer")  # the overlap is read again, and changes nothing
    world.run()
    assert len(rows(world, Delivery)) == before
    assert rows(world, Cursor)[0].result == "2 records"


def test_a_bad_record_in_a_page_is_set_aside_and_the_cursor_moves_on(world: World) -> None:
    crm = world.systems["crm"]
    crm.add(email="noname@x.org")
    world.clock.tick()
    crm.add(name="Good")
    world.conductor.poll("crm.customer")
    assert record(world, "1").name == "Good"
    world.conductor.sweep()
    world.run()
    (letter,) = rows(world, DeadLetter)
    assert letter.inbox_id == rows(world, Inbox)[0].id


def test_a_poll_of_a_system_that_is_down_moves_no_cursor(world: World) -> None:
    class Broken(Exception):
        pass

    subscriber = world.conductor.subscribers["crm.customer"]
    subscriber.changed_since = lambda position: (_ for _ in ()).throw(SystemDown("503"))  # type: ignore[method-assign]
    with pytest.raises(SystemDown):
        world.conductor.poll("crm.customer")
    assert rows(world, Cursor)[0].position is None and world.conductor.poll("crm.customer") == 0


def test_gone_on_fetch_of_a_webhook_is_a_deletion(world: World) -> None:
    add(world)
    world.run()
    crm = world.systems["crm"]
    crm.fail(Gone("404"))
    stale = crm.external("crm_1")
    crm.store["crm_1"]["notes"] = "x"
    stale = crm.external("crm_1")
    world.conductor.inward.take(world.conductor.subscribers["crm.customer"], stale)
    assert link(world, "crm").deleted_remotely


# --- mappings -----------------------------------------------------------------------------------------------


def test_a_mapping_edited_in_the_panel_is_in_force_with_the_next_change(world: World) -> None:
    one = add(world, notes="n")
    world.run()
    mapper, version = world.conductor.mapping("crm.customer")
    kept = [row for row in mapper.rows() if row["column"] in ("name", "email")]
    kept.append({"column": "notes", "path": "remarks", "transform": "upper"})
    assert world.conductor.save_mapping("crm.customer", kept, "ann", version) == 1
    edit(world, one, phone="9")
    world.run()
    assert world.shown("crm")[0]["remarks"] == "N" and world.shown("crm")[0]["phone"] is None
    world.conductor.save_mapping("crm.customer", None, "ann", 1)
    edit(world, one, phone="10")
    world.run()
    assert world.shown("crm")[0]["phone"] == "10"


def test_a_thin_event_is_fetched(world: World) -> None:
    one = add(world, email="1@x.org")
    world.run()
    world.clock.tick()
    world.systems["crm"].edit("crm_1", email="2@x.org")
    subscriber = world.conductor.subscribers["crm.customer"]
    world.conductor.inward.take(subscriber, External("crm_1", {"id": "crm_1"}, at=world.clock()))
    assert record(world, one).email == "2@x.org"


def test_a_text_cut_there_is_not_cut_here(database: Database) -> None:
    cut = {"name": Field("name", transform="truncate:5"), "city": "city"}
    world = World(database, "crm", field_to_data=cut)
    with database.write() as c:
        key = CATALOGUES["customer"].insert(c, {"name": "Annabella", "city": "Rome"})
    world.run()
    (external_id,) = world.systems["crm"].store
    for edit, name in (({"city": "Paris"}, "Annabella"), ({"name": "Berta"}, "Berta")):
        world.clock.tick()
        world.systems["crm"].edit(external_id, **edit)
        world.conductor.poll("crm.customer")
        world.run()
        with database.read() as c:
            record = CATALOGUES["customer"].read(c, [key])[key]
        assert (record["name"], record["city"]) == (name, "Paris")
    assert [kind for kind, _ in world.systems["crm"].writes()] == ["create"], "nothing echoes"


def test_what_a_system_says_of_its_limit_is_kept_for_people(database: Database) -> None:
    world = World(database, "crm")
    reset = world.clock() + timedelta(minutes=1)

    def told() -> tuple[Any, ...]:
        world.run()
        with database.read() as c:
            row = c.execute(sa.select(System.__table__)).one()
        return row.rate_remaining, row.rate_limit, row.rate_reset_at

    def edit(rate: Rate | None) -> None:
        world.clock.tick()
        world.systems["crm"].http = SimpleNamespace(rate=rate)
        with database.write() as c:
            CATALOGUES["customer"].insert(c, {"name": "Anna"})

    edit(None)
    assert told() == (None, None, None)
    edit(Rate(50, 100, reset))
    assert told() == (50, 100, reset)
    edit(Rate(49, 100, reset))
    assert told() == (50, 100, reset), "not with every batch"
    edit(Rate(0, 100, reset))
    assert told() == (0, 100, reset), "but the end at once"
    world.clock.tick(60)
    edit(Rate(10**12))
    assert told() == (2**31 - 1, None, None)


def test_a_poll_that_a_person_asks_for_asks_a_system_that_is_down_too(world: World) -> None:
    conductor = world.conductor
    with conductor.database.write() as c:
        conductor.breaker.went_down(c, "crm", SystemDown("no folder"))
    conductor.poll("crm.customer")
    assert conductor.overview().systems[0].state == "down", "it is left alone for a while"
    conductor.poll_soon("crm.customer", "ann")
    conductor.poll("crm.customer")
    assert conductor.overview().systems[0].state == "ok"
