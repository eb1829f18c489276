"""Records that got stuck or were sent in an endless loop: docs/explanation/field-faults.md, group B."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Response

from models.base import utcnow
from models.ledger import Change, DeadLetter, Delivery, Link
from models.session import Database
from subscribers.errors import SyncError
from subscribers.mapping.fields import Field
from subscribers.records import External, Page
from tests.support.awkward_rest import AwkwardRest, RestHub, answer, kind
from tests.support.dead_letters import retry_all
from tests.support.fakes import FakeSubscriber, TestHub
from tests.support.records import add, edit, one_row, record, rows, settle, webhook


@pytest.fixture
def system(httpserver: HTTPServer) -> AwkwardRest:
    """Return a REST system whose ways a test chooses."""
    return AwkwardRest(httpserver)


def open_letters(hub: TestHub) -> list[Any]:
    """Return the open dead letters."""
    return [*rows(hub, DeadLetter, DeadLetter.closed_at.is_(None))]


# B19: an outage answered with 502

# B20: a fetch that answers with another id

# B21: an answer without the record

WITHOUT_RECORD: dict[str, Callable[[dict[str, Any]], Response]] = {
    "success": lambda record: answer({"success": True}),
    "id": lambda record: answer({"id": record["id"], "ok": True}),
    "empty": lambda record: Response(status=200),
    "no content": lambda record: Response(status=204),
    "text": lambda record: Response("OK", content_type="text/plain"),
    "list": lambda record: answer([]),
}


@pytest.mark.parametrize("form", WITHOUT_RECORD)
def test_b21_an_update_that_is_answered_without_the_record_is_read_once(
    database: Database, system: AwkwardRest, form: str
) -> None:
    system.updates = WITHOUT_RECORD[form]
    system.reads = lambda record: {name: value for name, value in record.items() if value is not None}
    hub = RestHub(database, system)
    one = add(hub, email="a@x.example", phone="1")
    hub.run()
    edit(hub, one, name="Bea", phone=None)
    hub.run()
    hub.wait()
    assert system.methods() == ["POST", "PATCH", "GET"]
    assert system.store["1"]["name"] == "Bea" and system.store["1"]["phone"] is None
    assert open_letters(hub) == []


@pytest.mark.parametrize("form", ["success", "no content", "text"])
@pytest.mark.parametrize("way", ["location", "mark", "match"])
def test_b21_a_create_that_is_answered_without_an_id_is_found(
    database: Database, system: AwkwardRest, form: str, way: str
) -> None:
    def created(record: dict[str, Any]) -> Response:
        said = WITHOUT_RECORD[form](record)
        if way == "location":
            said.headers["Location"] = f"/contacts/{record['id']}"
        return said

    system.creates = created
    options: dict[str, dict[str, Any]] = {"mark": {"record_id_field": "ref"}, "match": {"match_on": ("email",)}}
    hub = RestHub(database, system, kind(**options.get(way, {})))
    system.add(name="Someone else", email="b@x.example")
    add(hub, email="a@x.example")
    hub.run()
    hub.wait()
    assert one_row(hub, Link).external_id == "2" and system.writes() == ["POST"] and open_letters(hub) == []


def test_b21_a_location_of_another_form_is_read_for_the_id(database: Database, system: AwkwardRest) -> None:
    system.creates = lambda record: Response(status=201, headers={"Location": f"/contacts/{record['id']}"})
    hub = RestHub(database, system, kind(read_path="/contacts/{id}?expand=all"))
    add(hub)
    hub.run()
    assert one_row(hub, Link).external_id == "1" and system.methods() == ["POST", "GET"]


def test_b21_a_location_that_leads_nowhere_is_named_in_the_dead_letter(database: Database, system: AwkwardRest) -> None:
    system.creates = lambda record: Response(status=201, headers={"Location": f"/of/{record['id']}"})
    hub = RestHub(database, system)
    add(hub)
    hub.run()
    assert system.writes() == ["POST"] and "Location /of/1" in open_letters(hub)[0].message


def test_b21_a_create_without_id_mark_match_and_location_is_one_dead_letter_and_one_record(
    database: Database, system: AwkwardRest
) -> None:
    system.creates = lambda record: answer({"success": True})
    hub = RestHub(database, system)
    one = add(hub, email="a@x.example")
    hub.run()
    for name in ("Bea", "Cleo"):
        edit(hub, one, name=name)
        hub.run()
        retry_all(hub.conductor, "ann")
        hub.wait()
    assert system.writes() == ["POST"]
    (letter,) = open_letters(hub)
    assert letter.code == "created_without_id" and "match_on" in letter.message
    hub.remove(one)
    hub.run()
    assert len(open_letters(hub)) == 1 and len(system.store) == 1


def test_b21_a_record_created_without_id_is_linked_by_the_values_that_were_sent(
    database: Database, system: AwkwardRest
) -> None:
    system.creates = lambda record: answer({"success": True})
    hub = RestHub(database, system)
    add(hub, name="Bea", email="a@x.example")
    system.add(name="Cleo", email="a@x.example")
    hub.run()
    hub.poll()
    assert {link.external_id for link in rows(hub, Link)} == {"1", "2"}
    assert one_row(hub, Link, Link.record_id == "1").external_id == "2"


def test_b21_a_refusal_with_a_status_of_success_is_a_dead_letter(database: Database, system: AwkwardRest) -> None:
    system.refuses = lambda id, record: answer({"success": False, "message": "the name is forbidden"})
    hub = RestHub(database, system)
    add(hub)
    hub.run()
    assert system.writes() == ["POST"] and "the name is forbidden" in open_letters(hub)[0].message


def test_b21_a_write_that_is_accepted_and_not_stored_does_not_count_as_delivered(
    database: Database, system: AwkwardRest
) -> None:
    system.updates = WITHOUT_RECORD["no content"]
    hub = RestHub(database, system)
    one = add(hub, name="Ada", phone="1")
    hub.run()
    system.stores = lambda record: {}
    edit(hub, one, name="Bea")
    hub.run()
    for _ in range(3):
        hub.wait()
    assert "still has the former name" in open_letters(hub)[0].message


@pytest.mark.parametrize("shape", ["shorter", "other order", "empty"])
def test_b21_outcomes_of_a_bulk_call_go_to_the_records_that_they_name(database: Database, shape: str) -> None:
    class Bulk(FakeSubscriber):
        bulk_size = 10

        def bulk_create(self, items: Any) -> list[External | SyncError]:
            return list(self.answered(super().bulk_create(items)))

        def bulk_update(self, items: Any) -> list[External | SyncError | None]:
            return list(self.answered(super().bulk_update(items)))

        def answered(self, made: Any) -> Any:
            return {"shorter": made[1:], "other order": made[::-1], "empty": []}[shape]

    hub = TestHub(database, "crm", kinds=(Bulk,))
    ids = [add(hub, name=name) for name in ("Ada", "Bea", "Cleo")]
    for round in range(2):
        hub.run()
        for _ in range(2):
            hub.clock.tick(100)
            hub.conductor.sweep()
            hub.run()
        found = {link.record_id: hub.systems["crm"].store[link.external_id] for link in rows(hub, Link)}
        assert [(found[id]["hub_id"], found[id]["name"]) for id in ids] == [(id, record(hub, id).name) for id in ids]
        assert len(hub.systems["crm"].store) == 3 and open_letters(hub) == []
        for id in ids:
            edit(hub, id, name=f"{record(hub, id).name} {round}")


# B22: a system that normalises and answers 204

#: A value that is sent -> what the system stores: in lower case, trimmed, shortened, reformatted, rounded, a day only.
FORMS = {
    "Ada Lovelace": "ada lovelace",
    "ADA LOVELACE": "ada lovelace",
    "Bea ": "Bea",
    "Bea  ": "Bea",
    "Annabella": "Annab",
    "Annabelle": "Annab",
    "212": "+1 212",
    "213": "+1 213",
    "10.4": "10",
    "10.3": "10",
    "2026-11-22T10:00": "2026-11-22",
    "2026-11-22T11:00": "2026-11-22",
}


@pytest.mark.parametrize("form", ["no content", "success", "id", "old state", "record"])
def test_b22_the_form_in_which_a_system_stores_a_value_is_read_once_and_kept(
    database: Database, system: AwkwardRest, form: str
) -> None:
    before: dict[str, dict[str, Any]] = {}
    system.stores = lambda record: {name: FORMS.get(value, value) for name, value in record.items()}

    def answered(sent: dict[str, Any]) -> Response:
        old = before.get(sent["id"], sent)
        before[sent["id"]] = dict(sent)
        return {"record": answer(sent), "old state": answer(old)}.get(form) or WITHOUT_RECORD[form](sent)

    system.creates = system.updates = answered
    fields = {"name": "name", "phone": Field("phone", direction="out"), "email": "email"}
    hub = RestHub(database, system, kind(field_to_data=fields, match_on=("email",)))
    values = [*zip([*FORMS][::2], [*FORMS][1::2], strict=True)]
    ids = [add(hub, name=first, phone=first, email=f"{first}@x.example") for first, _ in values]
    hub.run()
    hub.poll()
    for id, (_, second) in zip(ids, values, strict=True):
        edit(hub, id, name=second, phone=second)
    for _ in range(3):
        hub.run()
        hub.poll()
        hub.wait()
    hub.reconcile()
    assert system.writes() == ["POST"] * len(ids) + ["PATCH"] * len(ids)
    assert [record(hub, id).name for id in ids] == [second for _, second in values]
    assert [record(hub, id).phone for id in ids] == [second for _, second in values]
    assert open_letters(hub) == [] and rows(hub, Link, Link.owed_change > Link.synced_change) == []


def test_b22_an_edit_made_after_our_write_is_no_form_of_it(database: Database, system: AwkwardRest) -> None:
    def updated(record: dict[str, Any]) -> Response:
        later = (utcnow() + timedelta(seconds=5)).isoformat()
        system.store[record["id"]] |= {"name": "theirs", "updated_at": later}
        return Response(status=204)

    hub = RestHub(database, system)
    one = add(hub)
    hub.run()
    system.updates = updated
    edit(hub, one, name="ours")
    hub.run()
    hub.poll()
    assert record(hub, one).name == "theirs" == system.store["1"]["name"]


@pytest.mark.parametrize("reads", ["never", "always"])
def test_b22_whether_a_record_is_read_after_a_write_can_be_set(
    database: Database, system: AwkwardRest, reads: str
) -> None:
    system.updates = WITHOUT_RECORD["no content"] if reads == "never" else answer
    hub = RestHub(database, system, kind(read_back=reads))
    one = add(hub)
    hub.run()
    edit(hub, one, name="Bea")
    hub.run()
    assert system.methods() == {"never": ["POST", "PATCH"], "always": ["POST", "GET", "PATCH", "GET"]}[reads]


# B23: an event that can never be applied

# B24: maintenance codes of the vendor

# B25: a batch that is too large for the system

# B26: a time range that is too old

# B27: a long chain of references

# B28: a create that meets an existing record

# B29: a full poll of unchanged records


class _Untimed(FakeSubscriber):
    """A system that lists all its records in each poll, without the time of their last change."""

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
        listed = [replace(self.client.external(key), at=None) for key in self.client.store]
        yield Page(listed, {"since": self.client.clock().isoformat()})


@pytest.mark.parametrize("kind", [FakeSubscriber, _Untimed])
def test_b29_what_is_as_it_was_writes_no_history(database: Database, kind: type[FakeSubscriber]) -> None:
    hub = TestHub(database, "crm", kinds=(kind,), match_on=("email",))
    crm = hub.systems["crm"]
    add(hub, email="ada@x.example")
    crm.add(name="Bea", email="bea@x.example")
    hub.run()
    hub.conductor.poll("crm.customer")
    webhook(hub, "crm", "e1", "crm_1")
    settle(hub)
    before = [row for table in (Delivery, Change, DeadLetter) for row in rows(hub, table)]
    links = rows(hub, Link)
    for number in range(3):
        hub.clock.tick()
        hub.conductor.poll("crm.customer")
        hub.conductor.replay.one(1, "ann")
        webhook(hub, "crm", f"again {number}", "crm_1")
        settle(hub)
    for task, argument in (("reconcile", {"repair": True}), ("backfill", {})):
        hub.conductor.tasks.start(task, "ann", subscriber="crm.customer", **argument)
        while hub.conductor.tasks.list(unfinished=True):
            hub.conductor.tasks.run_some()
            settle(hub)
    assert [row for table in (Delivery, Change, DeadLetter) for row in rows(hub, table)] == before
    assert rows(hub, Link) == links and crm.writes() == [("create", "1")]


def test_b29_a_kept_record_listed_in_each_poll_writes_no_history(database: Database) -> None:
    hub = TestHub(database, "crm", kinds=(_Untimed,), on_delete="unlink")
    one = add(hub)
    hub.run()
    with hub.conductor.database.write() as connection:
        hub.conductor.subscribers["crm.customer"].records.delete(connection, one)
    hub.run()
    before = rows(hub, Delivery)
    for _ in range(3):
        hub.conductor.poll("crm.customer")
        settle(hub)
    assert rows(hub, Delivery) == before


def test_b29_a_conflict_that_waits_writes_no_history(database: Database) -> None:
    fields = {"name": "name", "email": "email", "notes": Field("notes", conflict="ask")}
    hub = TestHub(database, "crm", kinds=(_Untimed,), match_on=("email",), field_to_data=fields)
    add(hub, email="ada@x.example", notes="ours")
    hub.publisher.published.clear()
    hub.systems["crm"].add(name="Ada", email="ada@x.example", notes="theirs")
    hub.conductor.poll("crm.customer")
    settle(hub)
    before = rows(hub, Delivery)
    for _ in range(3):
        hub.conductor.poll("crm.customer")
        settle(hub)
    assert rows(hub, Delivery) == before


# B30: duplicate rules that only warn
