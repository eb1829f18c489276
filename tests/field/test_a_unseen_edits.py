"""Edits made in a system that nothing has reported before ours goes out: docs/explanation/field-faults.md, row A1.

The looks by a poll or a fetch have their first tests in `test_lost_or_wrong.py`.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from werkzeug import Response

from conductor.links import leases
from models.base import utcnow
from models.catalogues import Customer
from models.ledger import Change, DeadLetter, Link
from models.ledger import Conflict as ConflictRow
from models.session import Database
from simulators.rest import RestSystem as Shop
from simulators.salesforce import SalesforceSimulator
from simulators.stripe import StripeLike
from subscribers.files.subscriber import FileSubscriber
from subscribers.files.system import FileOptions, FileSystem
from subscribers.mapping.fields import Conflict, Field
from tests.support.awkward_rest import AwkwardRest, RestHub, answer, kind
from tests.support.dead_letters import open_letters, retry_all
from tests.support.records import add, edit, link, one_row, record, rows
from tests.support.salesforce_hub import SalesforceHub
from tests.support.stripe_hub import StripeHub

#: Where a version is, and how it is named, by the way of `AwkwardRest.versions`.
CONDITIONS: dict[str, dict[str, Any]] = {
    "etag": {"version_header": "ETag"},
    "field": {"version_field": "version", "version_sent": "body", "version_refusals": [409]},
    "query": {"version_field": "version", "version_sent": "query", "version_refusals": [409]},
}
FIELDS = {"email": "email", "phone": "phone", "notes": "note", "name": "name"}


def conditional(
    database: Database, system: AwkwardRest, versions: str, policy: Conflict = "newest", **options: Any
) -> tuple[RestHub, str]:
    """Return a hub over a system with conditional writes, and a customer that it has delivered."""
    system.versions = versions
    fields = {**FIELDS, "name": Field("name", conflict=policy)}
    hub = RestHub(
        database, system, kind(**{"look_first": "auto", "field_to_data": fields, **CONDITIONS[versions], **options})
    )
    one = add(hub, email="ada@x.example")
    hub.run()
    system.calls.clear()
    return hub, one


def edit_here(hub: RestHub, record_id: str, seconds: float, **values: Any) -> None:
    """Edit a customer this many seconds from now."""
    edit(hub, record_id, **values)
    with hub.conductor.database.write() as connection:
        waiting = sa.update(Change).where(Change.relayed_at.is_(None))
        connection.execute(waiting.values(at=utcnow() + timedelta(seconds=seconds)))


# Conditional writes


@pytest.mark.parametrize("versions", CONDITIONS)
@pytest.mark.parametrize(
    ("policy", "ours_first", "winner"),
    [("newest", True, "theirs"), ("newest", False, "ours"), ("external", False, "theirs"), ("internal", True, "ours")],
)
def test_a01_a_conditional_write_overwrites_no_unseen_edit(
    database: Database, system: AwkwardRest, versions: str, policy: Conflict, ours_first: bool, winner: str
) -> None:
    hub, one = conditional(database, system, versions, policy)
    edit_here(hub, one, -30 if ours_first else 30, name="ours", phone="+1")
    system.edit("1", name="theirs", note="theirs")
    hub.run()
    there = system.store["1"]
    assert (record(hub).name, record(hub).phone, record(hub).notes) == (winner, "+1", "theirs")
    assert (there["name"], there["phone"], there["note"]) == (winner, "+1", "theirs")
    assert system.methods()[0] == "PATCH", "nothing is read before, where the version is known"


@pytest.mark.parametrize("versions", CONDITIONS)
def test_a01_a_conditional_write_asks_an_operator(database: Database, system: AwkwardRest, versions: str) -> None:
    hub, one = conditional(database, system, versions, "ask")
    edit(hub, one, name="ours", phone="+1")
    system.edit("1", name="theirs")
    hub.run()
    conflict = one_row(hub, ConflictRow)
    assert (conflict.path, conflict.base, conflict.ours, conflict.theirs) == ("name", "Ada", "ours", "theirs")
    assert (system.store["1"]["name"], system.store["1"]["phone"]) == ("theirs", "+1")


@pytest.mark.parametrize("versions", CONDITIONS)
def test_a01_a_conditional_write_of_an_unedited_record_is_one_call(
    database: Database, system: AwkwardRest, versions: str
) -> None:
    hub, one = conditional(database, system, versions)
    for number in range(3):
        edit(hub, one, name=f"ours {number}")
        hub.run()
    hub.remove(one)
    hub.run()
    assert system.methods() == ["PATCH", "PATCH", "PATCH", "DELETE"] and not system.store


@pytest.mark.parametrize("versions", CONDITIONS)
def test_a01_a_conditional_write_leaves_no_window_between_look_and_write(
    database: Database, system: AwkwardRest, versions: str
) -> None:
    hub, one = conditional(database, system, versions, "external")
    system.edit("1", note="first")
    edits = iter(["second", "third"])

    def edit_there(id: str) -> None:
        if (name := next(edits, None)) is not None:
            system.edit(id, name=name)

    system.before_write = edit_there  # after each look, before the write arrives
    edit(hub, one, name="ours", phone="+1")
    hub.run()
    hub.wait()
    assert (record(hub).name, system.store["1"]["name"]) == ("third", "third")
    assert (record(hub).phone, system.store["1"]["phone"]) == ("+1", "+1")


@pytest.mark.parametrize("versions", CONDITIONS)
def test_a01_a_version_that_is_always_refused_ends_as_a_dead_letter(
    database: Database, system: AwkwardRest, versions: str
) -> None:
    hub, one = conditional(database, system, versions)
    system.before_write = lambda id: system.edit(id, note="again")
    edit(hub, one, name="ours")
    hub.run()
    for _ in range(5):
        hub.wait()
    (letter,) = open_letters(hub)
    assert letter.code == "outdated" and system.methods().count("PATCH") == 3
    assert system.store["1"]["name"] == "Ada"


@pytest.mark.parametrize("versions", CONDITIONS)
@pytest.mark.parametrize("on_delete", ["delete", "archive"])
def test_a01_a_conditional_deletion_of_a_record_edited_there_asks(
    database: Database, system: AwkwardRest, versions: str, on_delete: str
) -> None:
    hub, one = conditional(database, system, versions, on_delete=on_delete, archive_data={"note": "archived"})
    hub.remove(one)
    system.edit("1", name="theirs")
    hub.run()
    (letter,) = open_letters(hub)
    assert letter.code == "edited_there" and system.store["1"]["name"] == "theirs"
    retry_all(hub.conductor)
    hub.wait()
    assert not system.store if on_delete == "delete" else system.store["1"]["note"] == "archived"
    assert not open_letters(hub)


def test_a01_a_duplicate_is_not_taken_for_an_old_version(database: Database, system: AwkwardRest) -> None:
    hub, one = conditional(database, system, "field")
    system.unique = ("email",)
    system.add(email="bea@x.example", name="Bea")
    edit(hub, one, email="bea@x.example")
    hub.run()
    hub.wait()
    (letter,) = open_letters(hub)
    assert letter.code in ("conflict", "duplicate") and "exists already" in letter.message


def test_a01_an_edit_of_a_field_that_is_not_mapped_only_costs_a_second_try(
    database: Database, system: AwkwardRest
) -> None:
    hub, one = conditional(database, system, "etag")
    system.edit("1", colour="red")
    edit(hub, one, name="ours")
    hub.run()
    assert (system.store["1"]["name"], system.store["1"]["colour"]) == ("ours", "red")
    assert system.methods() == ["PATCH", "GET", "PATCH"]


@pytest.mark.parametrize(
    ("versions", "calls"), [("etag", ["GET", "PATCH"]), ("field", ["PATCH"])], ids=["unlisted", "listed"]
)
def test_a01_a_polled_edit_brings_its_version_where_the_list_has_it(
    database: Database, system: AwkwardRest, versions: str, calls: list[str]
) -> None:
    hub, one = conditional(database, system, versions)
    system.edit("1", note="theirs")
    hub.poll()
    edit(hub, one, name="ours")
    hub.run()
    assert record(hub, one).notes == "theirs" and system.store["1"]["name"] == "ours"
    assert system.methods() == calls


@pytest.mark.parametrize("versions", CONDITIONS)
def test_a01_a_poll_of_our_own_write_keeps_its_version(database: Database, system: AwkwardRest, versions: str) -> None:
    hub, one = conditional(database, system, versions)
    edit(hub, one, name="ours")
    hub.run()
    hub.poll()
    edit(hub, one, name="ours again")
    hub.run()
    assert system.methods() == ["PATCH", "PATCH"]


@pytest.mark.parametrize("versions", CONDITIONS)
def test_a01_an_edit_after_a_conditional_write_without_answer_survives(
    database: Database, system: AwkwardRest, versions: str
) -> None:
    hub, one = conditional(database, system, versions, "external")
    system.updates = lambda stored: answer({"message": "oops"}, 500)
    edit(hub, one, name="ours", phone="+1")
    hub.run()
    assert system.store["1"]["name"] == "ours"
    system.updates = answer
    system.edit("1", name="theirs")
    hub.wait()
    assert (record(hub).name, system.store["1"]["name"]) == ("theirs", "theirs")
    assert (record(hub).phone, system.store["1"]["phone"]) == ("+1", "+1")
    edit(hub, one, phone="+2")
    system.edit("1", name="theirs again")
    hub.run()
    assert (record(hub).name, system.store["1"]["phone"]) == ("theirs again", "+2")


@pytest.mark.parametrize("versions", CONDITIONS)
def test_a01_an_answer_that_shows_an_unseen_edit_gives_no_version(
    database: Database, system: AwkwardRest, versions: str
) -> None:
    hub, one = conditional(database, system, versions, "internal", look_first="never")
    with hub.conductor.database.write() as connection:
        connection.execute(Link.__table__.update().values(remote_version=None))  # as of a link made without one
    system.edit("1", note="theirs")
    edit(hub, one, name="ours")
    hub.run()  # our field always wins, so that it is sent without a condition
    assert link(hub, "awkward").remote_version is None
    edit(hub, one, name="ours again")
    hub.run()
    hub.poll()
    hub.wait()
    assert record(hub, one).notes == "theirs" and system.store["1"]["note"] == "theirs"


@pytest.mark.parametrize("versions", CONDITIONS)
@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_a01_a_conditional_write_of_a_nested_object_keeps_its_other_parts(
    database: Database, system: AwkwardRest, versions: str, method: str
) -> None:
    fields = {"name": "name", "email": "email", "city": "address.city", "postal_code": "address.zip"}
    hub, one = conditional(database, system, versions, field_to_data=fields, update_method=method)
    system.edit("1", address={**system.store["1"]["address"], "floor": 1})
    edits = iter([{"floor": 2, "zip": "1"}])

    def edit_there(id: str) -> None:
        system.edit(id, address={**system.store[id]["address"], **parts}) if (parts := next(edits, None)) else None

    system.before_write = edit_there  # between the fetch of the object and its write
    edit(hub, one, city="Rome")
    hub.run()
    hub.wait()
    assert system.store["1"]["address"] == {"city": "Rome", "zip": "1", "floor": 2}
    assert record(hub, one).postal_code == "1" and not open_letters(hub)


def test_a01_a_write_answered_without_the_record_takes_the_version_that_is_read(
    database: Database, system: AwkwardRest
) -> None:
    hub, one = conditional(database, system, "etag")
    system.updates = lambda stored: Response(status=204)
    edit(hub, one, name="ours")
    hub.run()
    edit(hub, one, name="ours again")
    hub.run()
    assert system.store["1"]["name"] == "ours again" and link(hub, "awkward").remote_version == '"3"'
    system.edit("1", name="theirs")
    edit(hub, one, phone="+1")
    hub.run()
    assert (record(hub).name, system.store["1"]["name"]) == ("theirs", "theirs")


# Reading many records in one call


@pytest.mark.parametrize("policy", ["newest", "external"])
def test_a01_a_batch_is_read_by_its_ids_in_one_call(database: Database, system: AwkwardRest, policy: Conflict) -> None:
    fields = {**FIELDS, "name": Field("name", conflict=policy)}
    hub = RestHub(database, system, kind(look_first="auto", ids_parameter="ids", field_to_data=fields))
    ids = [add(hub, name=f"n{number}") for number in range(8)]
    hub.run()
    for one in ids:
        edit(hub, one, name="ours", phone="+1")
    system.edit("3", name="theirs")
    system.calls.clear()
    hub.conductor.relay()
    hub.run()
    # A slow machine sends smaller batches; only the edited record is read by itself.
    assert 1 <= system.calls.count(("GET", "/contacts")) < 8 and system.methods().count("GET") == 1
    assert system.store["3"]["name"] == "theirs" and record(hub, "3").name == "theirs"
    assert [system.store[str(number)]["phone"] for number in range(1, 9)] == ["+1"] * 8


def test_a01_a_record_that_the_list_by_ids_lacks_is_read_by_itself(database: Database, system: AwkwardRest) -> None:
    hub = RestHub(database, system, kind(look_first="auto", ids_parameter="ids", on_gone="archive"))
    ids = [add(hub, name=f"n{number}") for number in range(3)]
    hub.run()
    for one in ids:
        edit(hub, one, name="ours")
    del system.store["2"]
    hub.run()
    assert [record(hub, one).active for one in ids] == [True, False, True]
    assert sorted(one["name"] for one in system.store.values()) == ["ours", "ours"]


# At a start


def _stopped(database: Database, system: AwkwardRest, **options: Any) -> tuple[RestHub, str]:
    """Return a hub that has just polled its system and was stopped then, and a delivered customer."""
    fields = {**FIELDS, "name": Field("name", conflict="external")}
    hub = RestHub(database, system, kind(**{"field_to_data": fields, "match_on": ("email",), **options}))
    one = add(hub, email="ada@x.example")
    hub.run()
    hub.poll()
    return hub, one


def test_a01_a_system_is_polled_at_a_start_before_what_it_is_owed_goes_out(
    database: Database, system: AwkwardRest
) -> None:
    hub, one = _stopped(database, system)
    edit(hub, one, name="ours", phone="+1")
    hub.conductor.relay()
    hub.conductor.poll("awkward.customer")  # as late as that, and still
    system.edit("1", name="theirs")
    system.calls.clear()
    hub.publisher.published.clear()
    hub.conductor.sweep(everything=True)
    hub.run()
    assert (record(hub, one).name, system.store["1"]["name"]) == ("theirs", "theirs")
    assert system.calls[0] == ("GET", "/contacts")


def test_a01_a_record_created_on_both_sides_while_the_hub_was_stopped_is_one(
    database: Database, system: AwkwardRest
) -> None:
    hub, _ = _stopped(database, system)
    two = add(hub, email="bea@x.example", phone="+1", name="ours")
    system.add(email="bea@x.example", name="theirs")
    hub.conductor.sweep(everything=True)
    hub.run()
    assert len(system.store) == len(rows(hub, Customer)) == 2
    assert record(hub, two).name == system.store["2"]["name"] == "theirs" and system.store["2"]["phone"] == "+1"
    system.calls.clear()
    add(hub, email="cem@x.example")
    hub.run()
    assert system.calls == [("POST", "/contacts")], "only the first batch after a start polls"


def test_a01_records_to_create_wait_while_another_process_polls_first(
    database: Database, system: AwkwardRest, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, _ = _stopped(database, system)
    monkeypatch.setattr("conductor.inward.remote_edits._MOST_POLL_SECONDS", 0.0)
    hub.conductor.sweep(everything=True)
    turn = hub.conductor.database.run_in_transaction(hub.conductor.inward.polling._take_turn, "awkward.customer")
    assert turn is not None
    system.calls.clear()
    add(hub, email="bea@x.example")
    hub.run()
    assert system.calls == [] and link(hub, "awkward", "2").attempts == 0
    hub.conductor.database.run_in_transaction(hub.conductor.inward.polling._end_turn, turn)
    hub.wait(60)
    assert [method for method, _ in system.calls] == ["GET", "POST"]


def test_a01_batches_of_several_threads_need_one_poll(database: Database, system: AwkwardRest) -> None:
    hub, _ = _stopped(database, system)
    ids = [add(hub, name=f"n{number}") for number in range(8)]
    hub.run()
    for one in ids:
        edit(hub, one, phone="+1")
    system.edit("3", name="theirs")
    hub.conductor.relay()
    system.calls.clear()
    waits = hub.conductor.context.stopping = Waits()
    system.before_list = waits.began.wait  # the poll ends when another thread waits for it
    with ThreadPoolExecutor(2) as threads:
        halves = [threads.submit(hub.conductor.deliver, "awkward.customer", half) for half in (ids[:4], ids[4:])]
    assert [half.result() for half in halves] == [None, None]
    assert system.calls.count(("GET", "/contacts")) == 1 and system.methods() == ["PATCH"] * 8
    assert record(hub, "3").name == "theirs" == system.store["3"]["name"]


class Waits(threading.Event):
    """The event of a stop, which notes that a thread waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.began = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.began.set()
        return super().wait(timeout)


def test_a01_a_poll_that_fails_at_a_start_holds_nothing_up(database: Database, system: AwkwardRest) -> None:
    hub, _ = _stopped(database, system)
    system.lists = False
    hub.conductor.sweep(everything=True)
    add(hub, email="bea@x.example")
    hub.run()
    assert len(system.store) == 2


@pytest.mark.parametrize(("edited", "reads"), [(1, ["/contacts/1"]), (3, ["/contacts"])])
def test_a01_one_record_is_read_by_itself_and_several_by_one_poll(
    database: Database, system: AwkwardRest, edited: int, reads: list[str]
) -> None:
    hub = RestHub(database, system, kind(look_first="auto"))
    ids = [add(hub, name=f"n{number}") for number in range(3)]
    hub.run()
    hub.poll()
    for one in ids[:edited]:
        edit(hub, one, phone="+1")
    system.calls.clear()
    hub.run()
    assert [path for method, path in system.calls if method == "GET"] == reads
    assert len(system.writes()) == edited


def test_a01_an_edit_that_a_poll_reads_and_cannot_apply_is_not_overwritten(
    database: Database, system: AwkwardRest
) -> None:
    fields = {**FIELDS, "name": Field("name", conflict="external")}
    hub = RestHub(database, system, kind(field_to_data=fields))
    one = add(hub)
    hub.run()
    hub.poll()
    edit(hub, one, name="ours", phone="+1")
    system.store["1"]["name"] = "theirs"  # in the second of our write, so that the poll has the record fetched
    unreadable = iter([True])
    system.reads = lambda record: {} if system.calls[-1][1] == "/contacts/1" and next(unreadable, False) else record
    hub.run()
    hub.wait()
    assert (record(hub).name, system.store["1"]["name"]) == ("theirs", "theirs")
    assert (record(hub).phone, system.store["1"]["phone"]) == ("+1", "+1")
    assert next(unreadable, None) is None


@pytest.mark.parametrize("how", ["poll", "auto"])
def test_a01_an_edit_that_a_former_poll_left_to_the_inbox_is_not_overwritten(
    database: Database, system: AwkwardRest, how: str
) -> None:
    fields = {**FIELDS, "name": Field("name", conflict="external")}
    hub = RestHub(database, system, kind(look_first=how, field_to_data=fields))
    one = add(hub)
    hub.run()
    hub.poll()
    edit(hub, one, name="ours", phone="+1")
    hub.conductor.relay()
    system.store["1"]["name"] = "theirs"  # in the second of our write, so that the poll leaves it to the inbox
    hub.conductor.poll("awkward.customer")
    hub.run()
    hub.wait()
    assert (record(hub).name, system.store["1"]["name"], system.store["1"]["phone"]) == ("theirs", "theirs", "+1")


def test_a01_a_poll_that_lost_its_turn_has_shown_nothing(database: Database, system: AwkwardRest) -> None:
    fields = {**FIELDS, "name": Field("name", conflict="external")}
    hub = RestHub(database, system, kind(field_to_data=fields))
    one = add(hub)
    hub.run()
    hub.poll()
    edit(hub, one, name="ours", phone="+1")
    system.edit("1", name="theirs")

    def take_turn() -> None:
        hub.ahead += timedelta(seconds=61)
        turn = hub.conductor.database.run_in_transaction(hub.conductor.inward.polling._take_turn, "awkward.customer")
        assert turn is not None
        system.before_list = lambda: None

    system.before_list = take_turn
    hub.run()
    hub.wait()
    assert (record(hub).name, system.store["1"]["name"]) == ("theirs", "theirs")


def test_a01_an_edit_is_not_overwritten_where_another_process_held_the_record_during_the_look(
    database: Database, system: AwkwardRest
) -> None:
    fields = {**FIELDS, "name": Field("name", conflict="external")}
    hub = RestHub(database, system, kind(look_first="fetch", field_to_data=fields))
    for number in range(2):
        add(hub, name=f"n{number}")
    hub.run()
    for one in ("1", "2"):
        edit(hub, one, phone="+1", name="ours")
        system.edit(one, name="theirs")
    run, held = hub.conductor.database.run_in_transaction, link(hub, "awkward")

    def hold_and_release(record: Any) -> Any:
        if system.calls.count(("GET", "/contacts/2")) == 1 and system.calls[-1][1] == "/contacts/2":
            until = hub.conductor.context.later(60)
            run(leases.take, "awkward.customer", held.external_id, "other", hub.conductor.context.clock(), until)
        elif system.calls[-1][1] == "/contacts/2":
            run(leases.release, held.id, "other")
        return record

    system.calls.clear()
    system.reads = hold_and_release
    hub.run()
    assert record(hub, "2").name == "theirs" and link(hub, "awkward").attempts == 0
    hub.wait(60)
    assert (record(hub, "1").name, system.store["1"]["name"], system.store["1"]["phone"]) == ("theirs", "theirs", "+1")


# A system that is never polled


def test_a01_a_system_that_is_never_polled_is_fetched_before_small_batches(
    database: Database, system: AwkwardRest
) -> None:
    hub = RestHub(database, system, kind(look_first="auto", look_limit=3))
    ids = [add(hub, name=f"n{number}") for number in range(5)]
    hub.run()
    for one in ids[:3]:
        edit(hub, one, phone="+1")
    system.edit("2", name="theirs")
    system.calls.clear()
    hub.run()
    assert record(hub, "2").name == "theirs" and system.store["2"]["phone"] == "+1"
    assert system.methods() == ["GET"] * 4 + ["PATCH"] * 3, "the edited one is read again under its lease"
    system.calls.clear()
    for one in ids:
        edit(hub, one, phone="+2")
    hub.run()
    assert system.methods() == ["PATCH"] * 5, "more are pending than look_limit"


def test_a01_fields_that_ours_always_wins_are_not_fetched(database: Database, system: AwkwardRest) -> None:
    fields = {"name": Field("name", conflict="internal"), "email": Field("email", direction="out")}
    hub = RestHub(database, system, kind(look_first="auto", field_to_data=fields))
    one = add(hub, email="ada@x.example")
    hub.run()
    edit(hub, one, name="ours", email="bea@x.example")
    hub.run()
    assert system.methods() == ["POST", "PATCH"] and not rows(hub, DeadLetter)


def test_a01_a_field_emptied_there_is_seen_where_the_system_leaves_it_out(
    database: Database, system: AwkwardRest
) -> None:
    hub = RestHub(database, system, kind(look_first="auto", absent="empty"))
    one = add(hub, phone="+1", notes="n")
    hub.run()
    del system.store["1"]["phone"]
    edit(hub, one, notes="ours")
    hub.run()
    assert record(hub, one).phone is None and system.store["1"]["note"] == "ours"


# Other systems


@pytest.mark.parametrize(
    "options",
    [
        {"version_header": "ETag"},
        {"version_header": "Last-Modified", "version_sent": "if_unmodified_since"},
        {"version_field": "updated_at", "version_sent": "if_unmodified_since"},
        {"ids_parameter": "ids"},
        {"poll_seconds": 60},
        {},
    ],
    ids=["etag", "last-modified", "time", "ids", "poll", "fetch"],
)
@pytest.mark.parametrize("policy", ["external", "newest", "ask"])
def test_a01_an_unseen_edit_in_the_shop_is_seen(
    sqlite_database: Database, policy: Conflict, options: dict[str, Any]
) -> None:
    with Shop(clock=lambda: utcnow() + moved[0]) as shop:
        moved = [timedelta(seconds=-60)]
        fields = {**FIELDS, "name": Field("name", conflict=policy)}
        hub = RestHub(sqlite_database, shop, kind(look_first="auto", field_to_data=fields, **options), token=shop.token)
        ids = [add(hub, email=f"n{number}@x.example") for number in range(3)]
        hub.run()
        if "poll_seconds" in options:
            hub.poll()
        moved[0] = timedelta()
        for one in ids:
            edit_here(hub, one, -30, name="ours", phone="+1")
        shop.contacts.update(2, {"name": "theirs"})
        hub.run()
        hub.wait()
        assert [shop.contacts.get(number)["name"] for number in (1, 2, 3)] == ["ours", "theirs", "ours"]
        assert [shop.contacts.get(number)["phone"] for number in (1, 2, 3)] == ["+1"] * 3
        assert [record(hub, one).name for one in ids] == ["ours", "ours" if policy == "ask" else "theirs", "ours"]
        assert len(rows(hub, ConflictRow)) == (policy == "ask")
        moved[0] = timedelta(seconds=60)  # some versions are whole seconds
        for one in ids:
            hub.remove(one)
        shop.contacts.update(3, {"name": "theirs"})
        hub.run()
        hub.wait()
        assert [one["id"] for one in shop.contacts.newest(9)[0]] == [3]
        assert [letter.code for letter in open_letters(hub)] == ["edited_there"]


@pytest.mark.parametrize("on_delete", ["delete", "archive"])
def test_a01_a_row_of_a_file_edited_there_is_seen(sqlite_database: Database, tmp_path: Path, on_delete: str) -> None:
    fields = {"name": Field("name", conflict="external"), "email": "mail", "phone": "phone"}
    options = {"system": "erp", "catalogue": "customer", "path": "customers", "quiet_seconds": 0, "key_field": "number"}
    options |= {"field_to_data": fields, "on_delete": on_delete, "archive_data": {"phone": "archived"}}
    hub = RestHub(
        sqlite_database,
        FileSystem("erp", FileOptions(folder=str(tmp_path))),
        type("Rows", (FileSubscriber,), options),
    )
    ids = [add(hub, email=f"n{number}@x.example") for number in range(2)]
    hub.conductor.poll("erp.customer")  # as it was when the hub was stopped
    hub.run()
    exported, incoming = tmp_path / "customers" / "out", tmp_path / "customers" / "in"
    (file,) = exported.iterdir()
    keys = [line.split(",")[0] for line in file.read_text().splitlines()[1:]]
    file.unlink()
    incoming.mkdir(exist_ok=True)
    edit(hub, ids[0], name="ours", phone="+1")
    hub.ahead += timedelta(seconds=1)
    (incoming / "edits.csv").write_text(f"number,name\n{keys[0]},theirs\n")
    hub.run()
    (file,) = exported.iterdir()
    assert "theirs" in file.read_text() and "+1" in file.read_text() and record(hub, ids[0]).name == "theirs"
    hub.remove(ids[1])
    (incoming / "more.csv").write_text(f"number,name\n{keys[1]},theirs\n")
    hub.run()
    hub.wait()
    assert [letter.code for letter in open_letters(hub)] == ["edited_there"]


@pytest.mark.parametrize("policy", ["newest", "external", "ask"])
def test_a01_a_customer_edited_in_stripe_is_not_deleted(
    sqlite_database: Database, stripe: StripeLike, policy: Conflict
) -> None:
    hub = StripeHub(sqlite_database, stripe)
    for mapper in {id(m): m for m in map_of(hub.conductor.subscribers["stripe.customer"])}.values():
        mapper.fields["name"] = Field("name", conflict=policy)
    one = hub.add("customer", name="Ada", email="ada@x.org")
    hub.settle()
    (there,) = hub.all("customers")
    hub.remove("customer", one)
    with sqlite_database.write() as connection:
        connection.execute(sa.update(Change).values(at=utcnow() - timedelta(seconds=30)))
    hub.client.post(f"/v1/customers/{there['id']}", {"name": "theirs"})
    hub.run()
    assert [customer["name"] for customer in hub.all("customers")] == ["theirs"]
    assert "edited in stripe before our deletion: name" in hub.letters()[0]


@pytest.mark.parametrize("policy", ["newest", "external", "ask"])
def test_a01_an_account_edited_in_salesforce_is_not_deleted(sqlite_database: Database, policy: Conflict) -> None:
    with SalesforceSimulator() as org:
        hub = SalesforceHub(sqlite_database, org)
        for mapper in {id(m): m for m in map_of(hub.conductor.subscribers["salesforce.customer"])}.values():
            mapper.fields["name"] = Field("Name", conflict=policy, required=True)
        one = hub.add("customer", name="Ada", email="ada@x.org")
        hub.run()
        account = hub.link("customer", one).external_id
        with sqlite_database.write() as connection:
            hub.conductor.subscribers["salesforce.customer"].records.delete(connection, one)
            connection.execute(sa.update(Change).values(at=org.clock.now() - timedelta(seconds=30)))
        path, data = f"sobjects/Account/{account}", {"Name": "theirs"}
        hub.client.call(lambda client: client.restful(path, method="PATCH", json=data), writes=True)
        hub.run()
        held, _ = hub.client.call(lambda client: client.restful(path))
        assert isinstance(held, dict) and held["Name"] == "theirs"
        assert [letter.code for letter in open_letters(hub)] == ["edited_there"]


@pytest.mark.parametrize(("left", "sent"), [(900, True), (500, False)])
def test_a01_a_look_in_salesforce_keeps_the_daily_reserve(sqlite_database: Database, left: int, sent: bool) -> None:
    with SalesforceSimulator() as org:
        hub = SalesforceHub(sqlite_database, org)
        one = hub.add("customer", name="Ada", email="ada@x.org")
        hub.run()
        account = hub.link("customer", one).external_id
        path, data = f"sobjects/Account/{account}", {"Phone": "theirs"}
        hub.client.call(lambda client: client.restful(path, method="PATCH", json=data), writes=True)
        org.org.calls_used = org.org.daily_limit - left - 1
        hub.client.call(lambda client: client.limits())
        org.journal.clear()
        hub.edit("customer", one, name="ours")
        hub.run()
        assert [entry.method for entry in org.journal.calls()] == (["GET", "GET", "PATCH"] if sent else [])
        here = hub.record("customer", one)
        assert here is not None and (here["phone"] == "theirs") == sent
        assert hub.link("customer", one).attempts == 0, "at the reserve, look and write wait together"


def map_of(subscriber: Any) -> list[Any]:
    """Return the mappings of a subscriber."""
    return [subscriber.mapper, subscriber.default_mapper]


# The time of a deletion's rival, by our clock


@pytest.mark.parametrize("minutes", [-10, 10])
@pytest.mark.parametrize("later", ["ours", "theirs"])
@pytest.mark.parametrize("how", ["known", "in another process"])
def test_a16_a_deletion_is_weighed_by_the_systems_clock(
    database: Database, ahead: AwkwardRest, minutes: int, later: str, how: str
) -> None:
    ahead.ahead = timedelta(minutes=minutes)
    fields = {**FIELDS, "name": Field("name", conflict="newest")}
    hub = RestHub(database, ahead, kind(look_first="fetch", field_to_data=fields))
    one = add(hub)
    hub.run()
    hub.poll()  # stores the difference between the clocks
    if how == "in another process":
        hub.client.http.clock_offset = None
    ahead.edit("1", name="theirs")
    hub.remove(one)
    with hub.conductor.database.write() as connection:
        waiting = sa.update(Change).where(Change.relayed_at.is_(None))
        connection.execute(waiting.values(at=utcnow() + timedelta(minutes=3 if later == "ours" else -3)))
    hub.run()
    assert (ahead.store == {}) is (later == "ours")
    assert [letter.code for letter in open_letters(hub)] == ([] if later == "ours" else ["edited_there"])
