"""Records that got stuck or were sent in an endless loop: docs/explanation/field-faults.md, group B."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from pytest_httpserver import HTTPServer
from werkzeug import Response

from conductor import Conductor, Policy
from models.base import utcnow
from models.catalogues import Catalogue, Customer
from models.ledger import Change, DeadLetter, Delivery, Inbox, Link, System
from models.session import Database
from simulators.salesforce import SalesforceSimulator
from subscribers.errors import Reject, Retry, SyncError, SystemDown
from subscribers.mapping.fields import Field, link_to
from subscribers.records import External, Item, Page
from subscribers.rest import RestOptions, RestSubscriber, RestSystem
from tests.support.awkward_rest import AwkwardRest, RestHub, answer, kind
from tests.support.dead_letters import open_letters, retry_all
from tests.support.fakes import FakeSubscriber, LowercasingSubscriber, TestHub
from tests.support.own_tables import owned, table
from tests.support.records import add, edit, link, lose_answer, mark, one_row, record, retry_due, rows, settle, webhook
from tests.support.salesforce_hub import SalesforceHub


class Bulky(FakeSubscriber):
    """A subscriber of a system that accepts many records in one call."""

    bulk_size = 50


class Listed(FakeSubscriber):
    """A subscriber whose list is a call like any other."""

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
        self.client.call("list", "", lambda: None)
        yield from super().changed_since(position)


# B19: an outage answered with 502

#: What a system answers during an outage, or that it does not.
OUTAGES = {
    "500": Response("oops", 500),
    "502": Response("<html>Bad Gateway</html>", 502, content_type="text/html"),
    "504": Response("", 504),
    "a page instead of JSON": Response("<html>Back soon</html>", 200, content_type="text/html"),
    "a page with a comment": Response("<!-- x --><html>Back soon</html>", 200, content_type="text/html"),
}


class _Failing:
    """Makes every call to a fake system fail, except those in which `passes`."""

    def __init__(self, hub: TestHub, error: Retry, passes: Callable[[str, str], bool] = lambda kind, what: False):
        self.calls = 0
        self.system, self.error, self.passes = hub.systems["crm"], error, passes

    def __enter__(self) -> _Failing:
        self.system.on_call = self._call
        return self

    def __exit__(self, *_: object) -> None:
        self.system.on_call = lambda kind, what: None

    def _call(self, kind: str, what: str) -> None:
        self.calls += 1
        if not self.passes(kind, what):
            raise self.error


def _bad_gateway() -> Retry:
    return Retry("502: Bad Gateway", maybe_done=True, server_failed=True)


def _cut() -> Retry:
    return Retry("no response in time", maybe_done=True, unanswered=True)


def _turns(hub: TestHub, count: int, seconds: float = 30.0) -> None:
    for _ in range(count):
        hub.run()
        hub.clock.tick(seconds)
        hub.conductor.sweep()
    hub.run()


@pytest.mark.parametrize("error", [_bad_gateway(), _cut()], ids=["502", "hung"])
@pytest.mark.parametrize("kind", [FakeSubscriber, LowercasingSubscriber], ids=["single", "bulk"])
@pytest.mark.parametrize("linked", [0, 1], ids=["nothing linked", "linked"])
def test_b19_an_outage_uses_no_attempts_and_a_probe_finds_its_end(
    database: Database, error: Retry, kind: type[FakeSubscriber], linked: int
) -> None:
    hub = TestHub(database, "crm", kinds=(kind,), policy=Policy(max_attempts=3, retry_min_seconds=2))
    for number in range(linked):
        add(hub, name=f"before {number}", email=f"before{number}@x.org")
    hub.run()
    added = [add(hub, name=f"n{number}", email=f"n{number}@x.org") for number in range(100)]
    with _Failing(hub, error) as outage:
        _turns(hub, 20)
        (system,) = rows(hub, System, System.name == "crm")
        assert system.down_since is not None and str(error) in system.down_reason
        assert outage.calls < 150, "each probe is a few calls"
    assert rows(hub, DeadLetter) == []
    assert all(link(hub, "crm", one).attempts <= 1 for one in added)
    _turns(hub, 5, 120)
    assert len(hub.shown("crm")) == 100 + linked
    assert rows(hub, System, System.name == "crm")[0].down_since is None


def test_b19_records_of_one_batch_use_no_attempt_when_their_system_fails(database: Database) -> None:
    hub = TestHub(database, "crm", policy=Policy(max_attempts=3))
    added = [add(hub, name=f"n{number}") for number in range(20)]
    with _Failing(hub, _bad_gateway()) as outage:
        hub.run()
    assert outage.calls == 3
    assert {link(hub, "crm", one).attempts for one in added} == {0}


@pytest.mark.parametrize("others", [0, 5])
def test_b19_one_record_that_alone_answers_500_becomes_a_dead_letter(database: Database, others: int) -> None:
    hub = TestHub(database, "crm", policy=Policy(max_attempts=3, retry_min_seconds=2))
    for number in range(others):
        add(hub, name=f"good {number}")
    bad = add(hub, name="bad")
    with _Failing(hub, _bad_gateway(), passes=lambda kind, what: what != bad):
        _turns(hub, 6)
    (letter,) = rows(hub, DeadLetter)
    assert letter.record_id == bad and "502" in letter.message
    assert rows(hub, System, System.name == "crm")[0].down_since is None
    assert len(hub.shown("crm")) == others


def test_b19_several_records_that_each_answer_500_become_dead_letters(database: Database) -> None:
    hub = TestHub(database, "crm", policy=Policy(max_attempts=3, retry_min_seconds=2))
    good = [add(hub, name=f"good {number}") for number in range(5)]
    bad = {add(hub, name=f"bad {number}") for number in range(4)}
    with _Failing(hub, _bad_gateway(), passes=lambda kind, what: what not in bad):
        for number in range(12):
            _turns(hub, 1, 60)
            edit(hub, good[0], notes=f"{number}")  # the system processes other records
            hub.clock.tick(60)
        _turns(hub, 12, 120)
    assert {letter.record_id for letter in rows(hub, DeadLetter)} == bad
    assert len(hub.shown("crm")) == 5


def test_b19_a_system_that_can_be_read_but_not_written_is_down(database: Database) -> None:
    hub = TestHub(database, "crm", policy=Policy(max_attempts=3, retry_min_seconds=2))
    ids = [add(hub, name=f"n{number}") for number in range(10)]
    hub.run()
    with _Failing(hub, _bad_gateway(), passes=lambda kind, what: kind in ("fetch", "find")):
        for number, one in enumerate(ids):  # one by one, as they are edited
            edit(hub, one, notes=f"{number}")
            hub.run()
        assert rows(hub, System, System.name == "crm")[0].down_since is not None
        _turns(hub, 20)
        hub.conductor.poll("crm.customer")
        _turns(hub, 5)
    assert rows(hub, DeadLetter) == []
    _turns(hub, 4, 120)
    assert sorted(one["notes"] for one in hub.shown("crm")) == [str(number) for number in range(10)]


@pytest.mark.parametrize("error", [_bad_gateway(), _cut()], ids=["502", "hung"])
def test_b19_events_wait_while_their_records_cannot_be_fetched(database: Database, error: Retry) -> None:
    hub = TestHub(database, "crm", policy=Policy(max_attempts=3, retry_min_seconds=2))
    for number in range(5):
        add(hub, name=f"n{number}")
    hub.run()
    for number in range(1, 6):
        hub.systems["crm"].edit(f"crm_{number}", phone=f"+{number}")
    with _Failing(hub, error) as outage:
        for number in range(1, 6):  # events of the same second as our write: their records are fetched
            webhook(hub, "crm", f"e{number}", f"crm_{number}")
        _turns(hub, 20)
        assert outage.calls < 60
        assert rows(hub, System, System.name == "crm")[0].down_since is not None
    assert rows(hub, DeadLetter) == []
    # The event that found the outage used one attempt, however long the outage lasted.
    assert sorted(row.attempts for row in rows(hub, Inbox)) == [0, 0, 0, 0, 1]
    _turns(hub, 4, 120)
    assert {row.state for row in rows(hub, Inbox)} == {"done"}
    assert record(hub, "5").phone == "+5"


@pytest.mark.parametrize("error", [_bad_gateway(), _cut()], ids=["502", "hung"])
def test_b19_the_first_events_of_a_system_wait_for_the_end_of_an_outage(database: Database, error: Retry) -> None:
    """No record is linked that could be fetched instead: a list that is not answered either tells the outage."""
    hub = TestHub(database, "crm", kinds=(Listed,), policy=Policy(max_attempts=3, retry_min_seconds=2))
    for number in range(1, 4):
        hub.systems["crm"].add(name=f"n{number}")
    with _Failing(hub, error):
        for number in range(1, 4):
            webhook(hub, "crm", f"e{number}", f"crm_{number}")
        _turns(hub, 20)
        assert rows(hub, System, System.name == "crm")[0].down_since is not None
    assert rows(hub, DeadLetter) == []
    _turns(hub, 4, 120)
    assert {row.state for row in rows(hub, Inbox)} == {"done"}
    assert sorted(row.name for row in rows(hub, Customer)) == ["n1", "n2", "n3"]


@pytest.mark.parametrize("error", [_bad_gateway(), _cut()], ids=["502", "hung"])
def test_b19_a_list_tells_no_outage_where_it_is_answered(database: Database, error: Retry) -> None:
    """A list that is answered says that a failing server works, and nothing of one that does not answer."""
    hub = TestHub(database, "crm", kinds=(Listed,), policy=Policy(max_attempts=3, retry_min_seconds=2))
    hub.systems["crm"].add(name="Ada")
    with _Failing(hub, error, passes=lambda kind, what: kind == "list"):
        webhook(hub, "crm", "e1", "crm_1")
        _turns(hub, 20)
    assert rows(hub, System, System.name == "crm")[0].down_since is None
    assert len(rows(hub, DeadLetter)) == 1


@pytest.mark.parametrize("task", ["backfill", "reconcile"])
def test_b19_tasks_wait_for_the_end_of_an_outage(database: Database, task: str) -> None:
    hub = TestHub(database, "crm", kinds=(Listed,), policy=Policy(max_attempts=3))
    for number in range(5):
        add(hub, name=f"n{number}")
    hub.run()
    tasks = hub.conductor.tasks
    task_id = tasks.kinds[task].start("ann", subscriber="crm.customer")
    with _Failing(hub, _bad_gateway()):
        for _ in range(5):
            tasks.run_some()
            hub.clock.tick(5)
        assert rows(hub, System, System.name == "crm")[0].down_since is not None
    for _ in range(10):
        hub.clock.tick(120)
        tasks.run_some()
    done = tasks.get(task_id)
    assert done.state == "done" and "not be read" not in (done.message or "")


def test_b19_a_poll_that_fails_with_everything_else_opens_the_breaker(database: Database) -> None:
    hub = TestHub(database, "crm", kinds=(Listed,))
    add(hub)
    hub.run()
    with _Failing(hub, _bad_gateway()), pytest.raises(SystemDown):
        hub.conductor.poll("crm.customer")
    assert rows(hub, System, System.name == "crm")[0].down_since is not None
    hub.clock.tick(120)
    assert hub.conductor.poll("crm.customer") == 1
    assert rows(hub, System, System.name == "crm")[0].down_since is None
    # A list that fails alone is no outage.
    with _Failing(hub, _bad_gateway(), passes=lambda kind, what: kind != "list"), pytest.raises(Retry):
        hub.conductor.poll("crm.customer")
    assert rows(hub, System, System.name == "crm")[0].down_since is None


@pytest.mark.parametrize("outage", OUTAGES)
def test_b19_every_answer_of_a_failing_server_counts(
    database: Database, httpserver: HTTPServer, outage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Contacts(RestSubscriber):
        system = "shop"
        catalogue = "customer"
        path = "/contacts"
        field_to_data = {"name": "name"}

    httpserver.expect_request(re.compile(".*")).respond_with_response(OUTAGES[outage])
    client = RestSystem("shop", RestOptions(url=httpserver.url_for(""), token=SecretStr("x")))
    hub = TestHub(database, policy=Policy(max_attempts=3))
    hub.conductor = Conductor(database, {"shop.customer": Contacts(client)}, hub.publisher, None, hub.clock)
    hub.conductor.breaker.ensure_rows()
    for number in range(20):
        add(hub, name=f"n{number}")
    _turns(hub, 4)
    assert rows(hub, DeadLetter) == []
    assert {one.attempts for one in rows(hub, Link)} == {0}
    assert rows(hub, System, System.name == "shop")[0].down_since is not None
    assert len(httpserver.log) < 20


# B20: a fetch that answers with another id

# B21: an answer without the record

WITHOUT_RECORD: dict[str, Callable[[dict[str, Any]], Response]] = {
    "success": lambda record: answer({"success": True}),
    "id": lambda record: answer({"id": record["id"], "ok": True}),
    "empty": lambda record: Response(status=200),
    "no content": lambda record: Response(status=204),
    "text": lambda record: Response("OK", content_type="text/plain"),
    "list": lambda record: answer([]),
    "no id": lambda record: answer({"id": "", "name": record["name"]}),
    "job": lambda record: answer({"id": "job-77", "status": "queued"}, 202),
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
    assert system.methods() == ["POST", "PATCH", "GET"] and one_row(hub, Link).external_id == "1"
    assert system.store["1"]["name"] == "Bea" and system.store["1"]["phone"] is None
    assert open_letters(hub) == []


@pytest.mark.parametrize("form", ["success", "no content", "text", "no id"])
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


@pytest.mark.parametrize("form", [{"id": 0}, {"id": "job-77", "status": "queued"}])
@pytest.mark.parametrize("options", [{"record_id_field": "ref"}, {"match_on": ("email",)}])
def test_b21_a_create_that_is_answered_with_the_id_of_something_else_is_found(
    database: Database, system: AwkwardRest, form: dict[str, Any], options: dict[str, Any]
) -> None:
    system.creates = lambda record: answer(form, 202)
    hub = RestHub(database, system, kind(**options))
    add(hub, email="a@x.example")
    hub.run()
    assert one_row(hub, Link).external_id == "1" and system.writes() == ["POST"] and open_letters(hub) == []


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


@pytest.mark.parametrize(
    "body", [{"success": False, "message": "the name is forbidden"}, {"error": "the name is forbidden"}]
)
def test_b21_a_refusal_with_a_status_of_success_is_a_dead_letter(
    database: Database, system: AwkwardRest, body: dict[str, Any]
) -> None:
    system.refuses = lambda id, record: answer(body)
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
        assert [(found[id]["hub_id"], found[id]["name"]) for id in ids] == [
            (mark(hub, id), record(hub, id).name) for id in ids
        ]
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


@dataclass
class Staff:
    """Employees, whose manager is an employee, and teams, whose lead is one; an employee may be in a team."""

    database: Database
    kind: type[FakeSubscriber] = FakeSubscriber
    hub: TestHub = field(init=False)

    def connect(self, *systems: str, **required: bool) -> TestHub:
        """Return a hub over these systems; `required` names references that may not be empty."""
        wants = {name: required.get(name, False) for name in ("manager", "team", "lead")}
        manager = link_to("employee", "manager", required=wants["manager"])
        team = link_to("team", "team", required=wants["team"])
        lead = link_to("employee", "lead", required=wants["lead"])
        employees = {"name": "name", "manager_id": manager, "team_id": team}
        of_employees = type("Employees", (self.kind,), {"catalogue": "employee", "field_to_data": employees})
        of_teams = type(
            "Teams",
            (self.kind,),
            {"catalogue": "team", "resource": "group", "field_to_data": {"name": "name", "lead_id": lead}},
        )
        self.hub = TestHub(self.database, *(systems or ("crm",)), kinds=(of_employees, of_teams))
        return self.hub

    def reconnect(self, **required: bool) -> TestHub:
        """Return a hub with another mapping over the same systems."""
        former, hub = self.hub, self.connect(*self.hub.systems, **required)
        hub.clock.now = former.clock.now
        for name, system in hub.systems.items():
            known = former.systems[name]
            system.store, system.changed, system._ids = known.store, known.changed, known._ids
        return hub

    def employ(self, *people: dict[str, Any]) -> None:
        with self.database.write() as connection:
            connection.execute(sa.insert(EMPLOYEE), [{"manager_id": None, "team_id": None, **one} for one in people])

    def form(self, *teams: dict[str, Any]) -> None:
        with self.database.write() as connection:
            connection.execute(sa.insert(TEAM), list(teams))

    def edit(self, number: int, **values: Any) -> None:
        with self.database.write() as connection:
            connection.execute(sa.update(EMPLOYEE).where(EMPLOYEE.c.id == number).values(**values))

    def managers(self) -> list[int | None]:
        with self.database.read() as connection:
            return list(connection.execute(sa.select(EMPLOYEE.c.manager_id).order_by(EMPLOYEE.c.id)).scalars())

    def shown(self, path: str, system: str = "crm") -> dict[str, str | None]:
        """Return name -> the name of the record that it refers to, as the system has them."""
        store = self.hub.systems[system].store
        names = {None: None} | {id: data["name"] for id, data in store.items()}
        return {data["name"]: names[data.get(path)] for data in store.values() if path in data}


EMPLOYEE = table(
    "employee",
    None,
    sa.Column("name", sa.Text()),
    sa.Column("manager_id", sa.Integer()),
    sa.Column("team_id", sa.Integer()),
)
TEAM = table("team", None, sa.Column("name", sa.Text()), sa.Column("lead_id", sa.Integer()))


@pytest.fixture(params=[FakeSubscriber, Bulky], ids=["single", "bulk"])
def staff(request: pytest.FixtureRequest, database: Database) -> Iterator[Staff]:
    with owned(database, Catalogue("employee", EMPLOYEE)), owned(database, Catalogue("team", TEAM)):
        yield Staff(database, request.param)


@pytest.fixture
def one_by_one(database: Database) -> Iterator[Staff]:
    with owned(database, Catalogue("employee", EMPLOYEE)), owned(database, Catalogue("team", TEAM)):
        yield Staff(database)


def _letters(hub: TestHub) -> dict[str, str]:
    return {f"{row.subscriber.partition('.')[2]} {row.record_id}": row.message for row in open_letters(hub)}


def _is_settled(hub: TestHub) -> bool:
    return open_letters(hub) == [] and rows(hub, Link, Link.owed_change > Link.synced_change) == []


def test_b27_a_chain_of_any_length_is_delivered_from_its_end(staff: Staff) -> None:
    hub, length = staff.connect("crm", "shop"), 30
    staff.employ(*({"id": n, "name": f"e{n}", "manager_id": n + 1} for n in range(1, length)))
    staff.employ({"id": length, "name": f"e{length}"})
    hub.conductor.relay()
    hub.publisher.published.clear()
    for number in range(length - 1, 0, -1):  # the calls are slow, so that each waits for one that waits itself
        for system in hub.systems:
            hub.conductor.deliver(f"{system}.employee", [str(number)])
    hub.run(rounds=2 * length)
    expected = {f"e{n}": f"e{n + 1}" for n in range(1, length)} | {f"e{length}": None}
    for system in ("crm", "shop"):
        assert staff.shown("manager", system) == expected
        assert [kind for kind, _ in hub.systems[system].writes()] == ["create"] * length
    assert _is_settled(hub) and rows(hub, DeadLetter) == []
    assert {row.attempts for row in rows(hub, Link)} == {0}


def test_b27_a_chain_leads_through_several_catalogues(staff: Staff) -> None:
    hub = staff.connect(lead=True)
    staff.employ(*({"id": n, "name": f"e{n}", "team_id": n} for n in range(1, 15)), {"id": 15, "name": "e15"})
    staff.form(*({"id": n, "name": f"t{n}", "lead_id": n + 1} for n in range(1, 15)))
    hub.conductor.relay()
    for number in range(14, 0, -1):
        hub.conductor.deliver("crm.team", [str(number)])
        hub.conductor.deliver("crm.employee", [str(number)])
    hub.run(rounds=100)
    assert staff.shown("team") == {f"e{n}": f"t{n}" for n in range(1, 15)} | {"e15": None}
    assert staff.shown("lead") == {f"t{n}": f"e{n + 1}" for n in range(1, 15)}
    assert _is_settled(hub) and rows(hub, DeadLetter) == []


@pytest.mark.parametrize("size", [1, 2, 3, 25])
def test_b27_a_cycle_is_broken_by_a_second_update(staff: Staff, size: int) -> None:
    systems = ("crm", "shop") if size == 2 else ("crm",)
    hub = staff.connect(*systems)
    staff.employ(*({"id": n, "name": f"e{n}", "manager_id": n % size + 1} for n in range(1, size + 1)))
    staff.employ({"id": 90, "name": "outside", "manager_id": 1})  # waits for the cycle, and is not in it
    hub.run(rounds=100)
    expected = {f"e{n}": f"e{n % size + 1}" for n in range(1, size + 1)} | {"outside": "e1"}
    for system in systems:
        assert staff.shown("manager", system) == expected
        assert sorted(kind for kind, _ in hub.systems[system].writes()) == ["create"] * (size + 1) + ["update"]
    assert _is_settled(hub) and rows(hub, DeadLetter) == []
    assert staff.managers() == [n % size + 1 for n in range(1, size + 1)] + [1]


@pytest.mark.parametrize("required", [{"lead": True}, {"team": True}], ids=["lead", "team"])
@pytest.mark.parametrize("size", [1, 2])
def test_b27_the_record_with_an_optional_reference_goes_first(
    staff: Staff, required: dict[str, bool], size: int
) -> None:
    hub = staff.connect(**required)
    staff.employ(*({"id": n, "name": f"e{n}", "team_id": n} for n in range(1, size + 1)))
    staff.form(*({"id": n, "name": f"t{n}", "lead_id": n % size + 1} for n in range(1, size + 1)))
    hub.run(rounds=100)
    assert staff.shown("team") == {f"e{n}": f"t{n}" for n in range(1, size + 1)}
    assert staff.shown("lead") == {f"t{n}": f"e{n % size + 1}" for n in range(1, size + 1)}
    (path,) = required
    never_empty = {data["name"] for data in hub.systems["crm"].store.values() if path in data}
    (updated,) = [what for kind, what in hub.systems["crm"].writes() if kind == "update"]
    assert hub.systems["crm"].store[updated]["name"] not in never_empty
    assert _is_settled(hub) and rows(hub, DeadLetter) == []


@pytest.mark.parametrize("size", [1, 2, 3])
def test_b27_a_cycle_of_required_references_is_a_dead_letter_with_the_reason(staff: Staff, size: int) -> None:
    hub = staff.connect(manager=True)
    staff.employ(*({"id": n, "name": f"e{n}", "manager_id": n % size + 1} for n in range(1, size + 1)))
    hub.run()
    reasons = {1: "it refers to itself", 2: "it and employee {} wait for one another"}
    reason = reasons.get(size, "it, employee {} and employee {} wait for one another")
    for _ in range(3):
        hub.clock.tick(1000)
        hub.conductor.sweep()
        hub.run()
    assert _letters(hub) == {
        f"employee {n}": reason.format(*((n + i) % size + 1 for i in range(size)))
        + ", and every one of these references is required"
        for n in range(1, size + 1)
    }
    assert len(rows(hub, DeadLetter)) == size and hub.systems["crm"].calls == []


def test_b27_a_cycle_is_delivered_once_a_reference_is_optional(one_by_one: Staff) -> None:
    staff, hub = one_by_one, one_by_one.connect(manager=True)
    staff.employ(*({"id": n, "name": f"e{n}", "manager_id": n % 3 + 1} for n in (1, 2, 3)))
    hub.run()
    assert len(open_letters(hub)) == 3
    hub = staff.reconnect()
    hub.conductor.dead_letters.retry(open_letters(hub)[1].id, "ann")  # one is enough
    retry_due(hub)
    assert staff.shown("manager") == {"e1": "e2", "e2": "e3", "e3": "e1"}
    assert _is_settled(hub)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_b27_a_cycle_of_required_references_is_opened_by_an_edit(one_by_one: Staff, number: int) -> None:
    staff, hub = one_by_one, one_by_one.connect()
    staff.employ({"id": 9, "name": "e9"})
    hub.run()
    hub = staff.reconnect(manager=True)
    staff.employ(*({"id": n, "name": f"e{n}", "manager_id": n % 3 + 1} for n in (1, 2, 3)))
    hub.run()
    assert len(open_letters(hub)) == 3
    staff.edit(number, manager_id=9)
    hub.run()
    expected = {f"e{n}": f"e{n % 3 + 1}" for n in (1, 2, 3)} | {f"e{number}": "e9", "e9": None}
    assert staff.shown("manager") == expected and _is_settled(hub)


def test_b27_a_cycle_made_by_edits_of_linked_records_is_sent_as_updates(staff: Staff) -> None:
    hub = staff.connect(manager=False)
    staff.employ(*({"id": n, "name": f"e{n}"} for n in (1, 2, 3)))
    hub.run()
    for number in (1, 2, 3):
        staff.edit(number, manager_id=number % 3 + 1)
    staff.employ({"id": 4, "name": "e4", "manager_id": 5}, {"id": 5, "name": "e5", "manager_id": 1})
    staff.edit(1, manager_id=4)  # a linked one waits for two new ones, of which one refers to it
    hub.run()
    expected = {"e1": "e4", "e2": "e3", "e3": "e1", "e4": "e5", "e5": "e1"}
    assert staff.shown("manager") == expected and rows(hub, DeadLetter) == []
    kinds = [kind for kind, _ in hub.systems["crm"].writes()]
    assert (kinds.count("create"), kinds.count("update")) == (5, 3) and _is_settled(hub)


def test_b27_a_reference_that_was_edited_away_makes_no_cycle(one_by_one: Staff) -> None:
    staff, hub = one_by_one, one_by_one.connect()
    staff.employ(*({"id": n, "name": f"e{n}", "manager_id": 3 - n} for n in (1, 2)))
    hub.conductor.relay()
    hub.conductor.deliver("crm.employee", ["1"])  # it waits for 2
    staff.edit(1, manager_id=None)
    hub.conductor.relay()
    hub.conductor.deliver("crm.employee", ["2"])
    hub.run()
    assert staff.shown("manager") == {"e1": None, "e2": "e1"} and _is_settled(hub)
    assert [kind for kind, _ in hub.systems["crm"].writes()] == ["create", "create"]


def test_b27_a_reference_that_is_sent_later_waits_as_long_as_its_record(one_by_one: Staff) -> None:
    staff, hub = one_by_one, one_by_one.connect()
    staff.employ({"id": 1, "name": "e1", "manager_id": 1})
    hub.conductor.relay()
    (waits,) = rows(hub, Link)

    def pause(_kind: str, _what: str) -> None:
        hub.clock.tick(60)
        hub.conductor.systems.pause("crm", "ann", "before the reference is sent")

    hub.systems["crm"].on_call = pause
    hub.run()
    (link,) = rows(hub, Link)
    assert staff.shown("manager") == {"e1": None} and link.owed_change > link.synced_change
    assert link.owed_since == waits.owed_since


@pytest.mark.parametrize("after", [True, False], ids=["answer lost", "request lost"])
def test_b27_a_create_that_goes_first_is_not_repeated(one_by_one: Staff, after: bool) -> None:
    staff, hub = one_by_one, one_by_one.connect()
    lose_answer(hub, after=after)
    staff.employ(*({"id": n, "name": f"e{n}", "manager_id": 3 - n} for n in (1, 2)))
    hub.run()
    retry_due(hub)
    assert staff.shown("manager") == {"e1": "e2", "e2": "e1"}
    assert staff.managers() == [2, 1] and _is_settled(hub)


def test_b27_the_empty_reference_of_the_one_that_goes_first_is_no_edit(one_by_one: Staff) -> None:
    staff, hub = one_by_one, one_by_one.connect()
    staff.employ(*({"id": n, "name": f"e{n}", "manager_id": 3 - n} for n in (1, 2)))
    system, created = hub.systems["crm"], []

    def fails_later(kind: str, what: str) -> None:
        created.extend([what] if kind == "create" else [])
        if len(created) > 1 and kind != "fetch":
            raise Retry("500: try again")

    system.on_call = fails_later
    hub.run()
    (external_id,) = system.store
    hub.clock.tick()
    system.edit(external_id, name="theirs")
    webhook(hub, "crm", "event_1", external_id)
    for row in rows(hub, Inbox):
        hub.conductor.receive(row.id)
    system.on_call = lambda kind, what: None
    hub.conductor.poll("crm.employee")
    retry_due(hub)
    assert sorted(staff.managers(), key=str) == [1, 2]
    assert len(set(staff.shown("manager").values())) == 2 and "theirs" in staff.shown("manager")
    assert _is_settled(hub)


def test_b27_a_chain_behind_a_dead_letter_names_the_reason(one_by_one: Staff) -> None:
    staff, hub = one_by_one, one_by_one.connect()
    hub.systems["crm"].fail(Reject("422: no such name"))
    staff.employ(*({"id": n, "name": f"e{n}", "manager_id": n - 1 or None} for n in range(1, 21)))
    hub.run(rounds=100)
    assert _letters(hub) == {
        "employee 1": "422: no such name",
        "employee 2": "its employee 1 is a dead letter: 422: no such name",
        **{
            f"employee {n}": f"its employee {n - 1} waits for employee 1, which is a dead letter: 422: no such name"
            for n in range(3, 21)
        },
    }
    staff.edit(1, name="Ada")
    hub.run(rounds=100)
    assert len(hub.systems["crm"].store) == 20 and _is_settled(hub)


# B28: a create that meets an existing record

REFUSALS: dict[str, Callable[[dict[str, Any]], Response]] = {
    "409": lambda other: answer({"message": "exists already"}, 409),
    "409 without text": lambda other: Response(status=409),
    "422": lambda other: answer({"errors": {"email": ["has already been taken"]}}, 422),
    "400": lambda other: answer({"message": "duplicate key value violates unique constraint"}, 400),
    "400 with a code": lambda other: answer({"error": {"code": "contact_exists"}}, 400),
    "422 with a list": lambda other: answer({"errors": [{"code": "taken", "field": "email"}]}, 422),
    "412": lambda other: answer({"message": "a contact like this exists"}, 412),
    "303": lambda other: Response(status=303, headers={"Location": f"/contacts/{other['id']}"}),
    "200": lambda other: answer({"success": False, "message": "already registered"}),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_b28_a_create_that_is_refused_as_a_duplicate_is_linked_and_updated(
    database: Database, system: AwkwardRest, refusal: str
) -> None:
    # The list cannot be filtered, and the email is written differently there.
    system.unique, system.taken, system.filters = ("name",), REFUSALS[refusal], False
    fields = {"name": "name", "email": "email", "phone": Field("phone", conflict="external"), "notes": "note"}
    hub = RestHub(database, system, kind(field_to_data=fields, match_on=("email",)))
    system.add(name="Ada", email="Ada@x.example", phone="theirs", note="only there")
    one = add(hub, name="Ada", email="ada@x.example", phone="ours")
    hub.run()
    assert one_row(hub, Link).external_id == "1" and system.writes() == ["POST", "PATCH"]
    assert {k: v for k, v in system.store["1"].items() if k in ("email", "phone", "note")} == {
        "email": "ada@x.example",
        "phone": "theirs",
        "note": "only there",
    }
    assert (record(hub, one).phone, record(hub, one).notes) == ("theirs", "only there")
    assert rows(hub, DeadLetter) == [] and len(system.store) == 1


@pytest.mark.parametrize("others", ["none", "two", "of another hub record"])
def test_b28_a_duplicate_that_cannot_be_told_is_a_dead_letter(
    database: Database, system: AwkwardRest, others: str
) -> None:
    system.refuses = lambda id, data: answer({"message": "exists already"}, 409) if system.store else None
    hub = RestHub(database, system, kind(match_on=("email",)))
    if others == "of another hub record":
        add(hub, email="a@x.example")
        hub.run()
    for _ in range({"none": 0, "two": 2}.get(others, 0)):
        system.add(name="Ada", email="a@x.example")
    system.add(name="Bea", email="b@x.example")
    add(hub, email="a@x.example")
    hub.run()
    hub.wait()
    (letter,) = open_letters(hub)
    assert "exists already" in letter.message
    assert ("customer 1 is linked" in letter.message) is (others == "of another hub record")


def test_b28_a_merge_that_fails_is_tried_again_before_anything_is_sent(database: Database, system: AwkwardRest) -> None:
    system.unique = ("email",)
    fields = {"name": Field("name", conflict="external"), "email": "email"}
    hub = RestHub(database, system, kind(field_to_data=fields, match_on=("email",)))
    system.add(name="theirs", email="a@x.example")
    merge, hub.conductor.outward.merge = hub.conductor.outward.merge, lambda *_: (_ for _ in ()).throw(Retry("later"))
    one = add(hub, name="ours", email="a@x.example")
    hub.run()
    assert system.writes() == ["POST"] and one_row(hub, Link).external_id == "1"
    hub.conductor.outward.merge = merge
    hub.wait()
    assert record(hub, one).name == system.store["1"]["name"] == "theirs" and open_letters(hub) == []


def test_b28_a_poll_that_links_a_dead_record_has_it_delivered_and_its_letter_closed(
    database: Database, system: AwkwardRest
) -> None:
    system.refuses = lambda id, data: None if id else answer({"message": "the name is forbidden"}, 422)
    hub = RestHub(database, system, kind(match_on=("email",)))
    add(hub, email="a@x.example", phone="ours")
    hub.run()
    assert len(open_letters(hub)) == 1
    system.add(name="Ada", email="a@x.example")
    hub.poll()
    assert system.store["1"]["phone"] == "ours" and open_letters(hub) == []


@pytest.mark.parametrize("end", ["same value there", "deleted there"])
def test_b28_a_dead_letter_that_an_event_overtakes_is_closed(database: Database, end: str) -> None:
    hub = TestHub(database, "crm")
    one = add(hub)
    hub.run()
    hub.systems["crm"].fail(Reject("422: the name is forbidden"))
    edit(hub, one, name="Bea")
    hub.run()
    assert len(open_letters(hub)) == 1
    hub.clock.tick()
    if end == "deleted there":
        hub.systems["crm"].remove("crm_1")
    else:
        hub.systems["crm"].edit("crm_1", name="Bea")
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    hub.clock.tick(100)
    hub.conductor.sweep()
    hub.run()
    assert open_letters(hub) == [] and rows(hub, Link, Link.dead_at.is_not(None)) == []


def test_b28_records_of_a_bulk_call_are_linked_one_by_one(database: Database) -> None:
    class Unique(FakeSubscriber):
        bulk_size = 10
        match_on = ("email",)

        def create(self, item: Item) -> External:
            if self.find_matching(item):
                raise Reject("DUPLICATE_VALUE: duplicate value found", code="duplicate")
            return super().create(item)

        def find_matching(self, item: Item) -> list[External]:
            wanted = self.match_values(item.data)
            return [self.client.external(id) for id, data in self.client.store.items() if self.is_match(data, wanted)]

    hub = TestHub(database, "crm", kinds=(Unique,))
    hub.systems["crm"].add(name="", email="a@x.example")
    for name in ("a", "b"):
        add(hub, name=name, email=f"{name}@x.example")
    hub.run()
    assert [(data["name"], data["email"]) for data in hub.shown("crm")] == [
        ("a", "a@x.example"),
        ("b", "b@x.example"),
    ]
    assert open_letters(hub) == []


@pytest.mark.parametrize("code", ["DUPLICATE_VALUE", "DUPLICATES_DETECTED"])
@pytest.mark.parametrize("named", [True, False])
def test_b28_a_duplicate_in_salesforce_is_linked_and_updated(
    database: Database, org: SalesforceSimulator, code: str, named: bool
) -> None:
    hub = SalesforceHub(database, org)
    there = org.add("Account", Name="Ada", Email__c="a@x.example")
    message = "use one of these records" + (f"; duplicates value on record with id: {there}" if named else "")
    org.fail_items(code=code, message=message, path="composite")
    one = hub.add("customer", name="Ada", email="a@x.example", phone="1")
    hub.run()
    assert hub.link("customer", one).external_id == there
    assert hub.conductor.subscribers["salesforce.customer"].fetch(there).data["Phone"] == "1"
    assert open_letters(hub) == []


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
