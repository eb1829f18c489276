"""Records of Salesforce and Stripe that got stuck in the field: docs/explanation/field-faults.md, group B."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from conductor import Conductor, Policy
from models.catalogues import CATALOGUES, Customer
from models.ledger import AuditEntry, Cursor, DeadLetter, Inbox, Link, RefusedWebhook, System
from models.session import Database
from simulators.salesforce import SalesforceSimulator
from simulators.stripe import StripeLike
from subscribers.errors import BadWebhook, BatchTooLarge, Gone, Retry, SyncError, SystemDown
from subscribers.records import External, Item
from subscribers.rest import RestOptions, RestSubscriber, RestSystem
from subscribers.salesforce import bulk
from tests.support import records
from tests.support.fakes import FakeSubscriber, TestHub
from tests.support.salesforce_hub import SalesforceHub
from tests.support.stripe_hub import StripeHub


@pytest.fixture
def salesforce(sqlite_database: Database, org: SalesforceSimulator) -> SalesforceHub:
    return SalesforceHub(sqlite_database, org)


def add_customers(hub: TestHub, count: int) -> None:
    with hub.conductor.database.write() as connection:
        connection.execute(sa.insert(Customer), [{"name": f"N{n}", "email": f"{n}@x.example"} for n in range(count)])


def edit_customers(hub: TestHub, **values: Any) -> None:
    with hub.conductor.database.write() as connection:
        connection.execute(sa.update(Customer).values(**values))


# B23: an event that can never be applied


def inbox(hub: TestHub) -> Any:
    return records.one_row(hub, Inbox)


@pytest.mark.parametrize("thin", [False, True])
def test_b23_a_stripe_event_of_the_other_mode_is_refused_by_name(
    sqlite_database: Database, stripe: StripeLike, thin: bool
) -> None:
    hub = StripeHub(sqlite_database, stripe)
    event: dict[str, Any] = {"id": "evt_1", "livemode": True, "type": "customer.updated"}
    if thin:
        related = {"id": "cus_live", "type": "customer"}
        event |= {"object": "v2.core.event", "created": "2026-11-22T07:06:38.000Z", "related_object": related}
    else:
        live = {"id": "cus_live", "object": "customer", "livemode": True}
        event |= {"object": "event", "created": int(time.time()), "data": {"object": live}}
    with pytest.raises(BadWebhook, match="event evt_1 is of live mode, but STRIPE_API_KEY is of test mode"):
        hub.webhook(event)
    assert hub.inbox() == []
    (refused,) = records.rows(hub, RefusedWebhook)
    assert "live mode" in refused.reason
    assert hub.webhook(event | {"livemode": False})


def test_b23_a_stored_event_that_cannot_be_read_is_dead_at_once(sqlite_database: Database, stripe: StripeLike) -> None:
    hub = StripeHub(sqlite_database, stripe)
    live = {"id": "cus_live", "object": "customer"}
    event = {"id": "evt_1", "object": "event", "type": "customer.updated", "created": 1, "data": {"object": live}}
    hub.webhook(event)
    with hub.database.write() as connection:  # stored before the key was replaced by one of the other mode
        connection.execute(sa.update(Inbox).values(body=json.dumps(event | {"livemode": True})))
    hub.run()
    assert inbox(hub).state == "dead" and "live mode" in inbox(hub).result
    (letter,) = records.rows(hub, DeadLetter)
    assert letter.code == "event_invalid"
    assert records.one_row(hub, System).down_since is None


def only_this_one_fails(hub: TestHub, external_id: str, error: SyncError) -> None:
    """Let each call for one external record fail as if the whole system were down."""

    def call(kind: str, what: str) -> None:
        if what == external_id:
            raise error

    hub.systems["crm"].on_call = call


@pytest.mark.parametrize("error", [SystemDown("403: forbidden"), SystemDown("404 of the other mode"), Retry("500")])
def test_b23_an_event_whose_record_can_never_be_read_ends_and_the_system_is_up(
    database: Database, error: SyncError
) -> None:
    hub = TestHub(
        database, "crm", policy=Policy(max_attempts=3, probe_min_seconds=1, retry_min_seconds=1, retry_max_seconds=2)
    )
    one = records.add(hub)
    hub.run()
    hub.systems["crm"].add(name="Bea")
    only_this_one_fails(hub, "crm_2", error)
    records.webhook(hub, "crm", "e1", "crm_2")
    for number in range(12):
        hub.run()
        hub.clock.tick(100)
        records.edit(hub, one, phone=str(number))
        hub.conductor.sweep()
    hub.run()
    assert inbox(hub).state == "dead"
    assert records.one_row(hub, System).down_since is None
    assert hub.systems["crm"].store["crm_1"]["phone"] == "11"
    assert len(records.rows(hub, DeadLetter)) == 1


def test_b23_an_event_waits_through_an_outage_without_using_attempts(database: Database) -> None:
    hub = TestHub(database, "crm", policy=Policy(max_attempts=3, probe_min_seconds=1))
    hub.systems["crm"].add(name="Bea")
    hub.systems["crm"].fail(SystemDown("503"), times=20)
    records.webhook(hub, "crm", "e1", "crm_1")
    for _ in range(20):
        hub.run()
        hub.clock.tick(1000)
        hub.conductor.sweep()
    hub.systems["crm"].failures.clear()
    hub.clock.tick(1000)
    hub.conductor.sweep()
    hub.run()
    assert inbox(hub).state == "done" and records.record(hub).name == "Bea"


@pytest.mark.parametrize("state", ["waiting", "dead"])
def test_b23_the_operator_discards_an_event(database: Database, state: str) -> None:
    hub = TestHub(database, "crm", policy=Policy(max_attempts=1))
    hub.systems["crm"].add(name="Bea")
    hub.systems["crm"].fail(SystemDown("503", after=60) if state == "waiting" else Retry("500"))
    records.webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    assert inbox(hub).state == state
    hub.conductor.replay.discard(inbox(hub).id, "ann", "of a test account")
    records.retry_due(hub)
    assert (inbox(hub).state, inbox(hub).result) == ("done", "discarded by ann: of a test account")
    assert all(letter.closed_at is not None for letter in records.rows(hub, DeadLetter))
    assert [row.action for row in records.rows(hub, AuditEntry)] == ["inbox.discard"]
    with pytest.raises(ValueError, match="was already applied"):
        hub.conductor.replay.discard(inbox(hub).id, "ann", "again")


def test_b23_a_rest_event_that_names_no_record_is_dead_at_once(
    sqlite_database: Database, httpserver: HTTPServer
) -> None:
    hub = rest_hub(sqlite_database, httpserver)
    with hub.conductor.database.write() as connection:
        body = json.dumps({"id": "e1", "resource": "contacts", "data": {"name": "Ada"}})
        row = {"system": "shop", "event_id": "e1", "body": body, "received_at": hub.clock(), "retry_at": hub.clock()}
        connection.execute(sa.insert(Inbox).values(row))
    hub.conductor.receive(inbox(hub).id)
    assert inbox(hub).state == "dead" and "is not a record with 'id'" in inbox(hub).result


# B24: maintenance codes of the vendor


MAINTENANCE = "INSERT_UPDATE_DELETE_NOT_ALLOWED_DURING_MAINTENANCE"


@pytest.mark.parametrize("how", ["for each record", "as HTTP 400", "in a graph"])
def test_b24_maintenance_pauses_the_system_and_uses_no_attempts(salesforce: SalesforceHub, how: str) -> None:
    add_customers(salesforce, 3)
    if how == "for each record":
        salesforce.org.fail_items(count=3, code=MAINTENANCE, path="composite")
    else:
        salesforce.org.fail(status=400, code=MAINTENANCE, path="composite")
    salesforce.run()
    assert records.rows(salesforce, DeadLetter) == []
    assert MAINTENANCE in records.one_row(salesforce, System).down_reason
    assert {link.attempts for link in records.rows(salesforce, Link)} == {0}
    salesforce.org.faults.clear()
    salesforce.org.clock.advance(3600)
    salesforce.conductor.sweep()
    salesforce.run()
    assert salesforce.org.store.count("Account") == 3


# B25: a batch that is too large for the system


def batches(hub: SalesforceHub, method: str = "PATCH") -> list[int]:
    """Return the number of records that each call to write took effect for."""
    return [len(call.ids) for call in hub.org.journal.calls(method, "composite/sobjects")]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("CANNOT_INSERT_UPDATE_ACTIVATE_ENTITY", "AccountTrigger: System.LimitException: Apex CPU time limit exceeded"),
        ("CANNOT_EXECUTE_FLOW_TRIGGER", "The flow failed: Too many SOQL queries: 101"),
        ("CANNOT_INSERT_UPDATE_ACTIVATE_ENTITY", "AccountTrigger: System.LimitException: Apex heap size too large: 7"),
        ("LIMIT_EXCEEDED", "You have exceeded a limit"),
    ],
)
def test_b25_a_batch_is_halved_until_the_triggers_take_it(salesforce: SalesforceHub, code: str, message: str) -> None:
    salesforce.org.limit_triggers(60, code, message)
    add_customers(salesforce, 400)
    salesforce.run()
    assert salesforce.org.store.count("Account") == 400
    assert records.rows(salesforce, DeadLetter) == []
    salesforce.org.journal.clear()
    edit_customers(salesforce, phone="2")
    salesforce.run()
    assert {account["Phone"] for account in salesforce.org.store.all("Account")} == {"2"}
    assert batches(salesforce) == [50] * 8, "the size that works is remembered"


def test_b25_a_batch_is_halved_down_to_one_record(salesforce: SalesforceHub) -> None:
    salesforce.org.limit_triggers(1)
    add_customers(salesforce, 6)
    salesforce.run()
    assert salesforce.org.store.count("Account") == 6
    with salesforce.conductor.database.write() as connection:
        for number in range(1, 7):
            CATALOGUES["customer"].delete(connection, str(number))
    salesforce.run()
    assert salesforce.org.store.count("Account") == 0


def test_b25_a_file_of_many_records_is_continued_in_small_calls(
    sqlite_database: Database, org: SalesforceSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "FIRST_PAUSE_SECONDS", 0.001)
    hub = SalesforceHub(sqlite_database, org, bulk_threshold=250)
    org.limit_triggers(100)
    add_customers(hub, 450)
    hub.conductor.relay()
    hub.conductor.deliver("salesforce.customer", [str(number) for number in range(1, 451)])
    assert org.store.count("Account") == 450
    assert records.rows(hub, DeadLetter) == []


def test_b25_one_record_that_is_too_much_alone_is_retried_and_then_dead(salesforce: SalesforceHub) -> None:
    salesforce.org.limit_triggers(0)
    add_customers(salesforce, 1)
    for _ in range(salesforce.conductor.context.policy.max_attempts):
        salesforce.run()
        salesforce.org.clock.advance(100_000)
        salesforce.conductor.sweep()
    (letter,) = records.rows(salesforce, DeadLetter)
    assert "CPU time limit" in letter.message


class Narrow(FakeSubscriber):
    """A system that takes 50 records in one call, and whose own rules only `takes` of them."""

    bulk_size = 50
    takes = 7

    def bulk_create(self, items: Sequence[Item]) -> list[External | SyncError]:
        self.client.calls.append(("bulk", str(len(items))))
        if len(items) > self.takes:
            raise BatchTooLarge("too many")
        return super().bulk_create(items)


def test_b25_any_system_may_say_that_a_batch_is_too_large(database: Database) -> None:
    hub = TestHub(database, "crm", kinds=[Narrow])
    add_customers(hub, 40)
    hub.run()
    assert len(hub.systems["crm"].store) == 40
    assert {size for kind, size in hub.systems["crm"].calls if kind == "bulk"} == {"40", "20", "10", "5"}


# B26: a time range that is too old


def gap(hub: TestHub, name: str) -> str | None:
    """Return what the polls of a subscriber could not read, as the overview shows it."""
    (found,) = [s for system in hub.conductor.reports.overview().systems for s in system.subscribers if s.name == name]
    return found.gap


def reconcile(hub: TestHub, name: str) -> None:
    hub.conductor.tasks.start("reconcile", "tests", subscriber=name, repair=True)
    for _ in range(5):
        hub.conductor.tasks.run_some()
        hub.run()


@pytest.mark.parametrize(
    "message", ["startDate before org replication enabled date", "startDate cannot be more than 15 days ago"]
)
def test_b26_polls_continue_from_now_where_salesforce_refuses_the_time(salesforce: SalesforceHub, message: str) -> None:
    one = salesforce.add("customer", name="Ada")
    salesforce.run()
    salesforce.poll("customer")
    salesforce.org.clock.advance(7200)
    salesforce.org.fail(status=400, code="INVALID_REPLICATION_DATE", message=message, path="/deleted/")
    salesforce.poll("customer")
    cursor = records.one_row(salesforce, Cursor, Cursor.subscriber == "salesforce.customer")
    assert cursor.failing_since is None and "deletions between" in cursor.gap
    assert "deletions between" in (gap(salesforce, "salesforce.customer") or "")
    salesforce.org.clock.advance(7200)
    salesforce.poll("customer")
    assert len(salesforce.org.journal.calls("GET", "/deleted/")) == 2, "the next poll asks for what came after"
    assert gap(salesforce, "salesforce.customer") is not None, "it is said until a reconcile"
    salesforce.org.clock.advance(60)
    reconcile(salesforce, "salesforce.customer")
    assert gap(salesforce, "salesforce.customer") is None
    assert salesforce.link("customer", one).unlinked_at is None


def test_b26_a_hub_that_was_stopped_for_longer_than_deletions_are_kept_says_so(salesforce: SalesforceHub) -> None:
    salesforce.poll("customer")
    salesforce.org.clock.advance(20 * 86_400)
    salesforce.poll("customer")
    assert "may be missing" in (gap(salesforce, "salesforce.customer") or "")


def test_b26_nothing_is_said_where_nothing_is_missing(salesforce: SalesforceHub) -> None:
    salesforce.poll("customer")
    for _ in range(3):
        salesforce.org.clock.advance(10 * 86_400)
        salesforce.poll("customer")
    assert gap(salesforce, "salesforce.customer") is None


def test_b26_too_many_deletions_for_one_answer_are_read_in_parts(salesforce: SalesforceHub) -> None:
    salesforce.poll("customer")
    salesforce.org.clock.advance(7200)
    salesforce.org.fail(status=400, code="EXCEEDED_ID_LIMIT", message="more than 600,000", path="/deleted/")
    salesforce.poll("customer")
    first, second = salesforce.org.journal.calls("GET", "/deleted/")
    assert first.path.partition("&end=")[2] > second.path.partition("&end=")[2]
    assert gap(salesforce, "salesforce.customer") is None


def test_b26_a_position_older_than_stripes_events_says_what_may_be_missing(
    sqlite_database: Database, stripe: StripeLike
) -> None:
    hub = StripeHub(sqlite_database, stripe)
    stripe.create_customer(email="a@x.example", name="Ada")
    old = int(time.time()) - 40 * 86_400
    hub.forget_cursor("stripe.customer", {"since": old})
    hub.conductor.poll("stripe.customer")
    assert [row["name"] for row in hub.records("customer")] == ["Ada"]
    assert "Stripe keeps events 30 days" in (gap(hub, "stripe.customer") or "")


def test_b26_a_read_of_all_objects_goes_on_if_the_last_one_was_deleted(
    sqlite_database: Database, stripe: StripeLike
) -> None:
    hub = StripeHub(sqlite_database, stripe)
    stripe.create_customer(email="a@x.example", name="Ada")
    hub.forget_cursor("stripe.customer", {"since": int(time.time()), "after": "cus_deleted"})
    hub.conductor.poll("stripe.customer")
    assert [row["name"] for row in hub.records("customer")] == ["Ada"]


class ShopContact(RestSubscriber):
    system = "shop"
    catalogue = "customer"
    path = "/contacts"
    field_to_data = {"name": "name", "email": "email"}
    changes_kept_days = 90


def rest_hub(database: Database, server: HTTPServer, kind: type[RestSubscriber] = ShopContact) -> TestHub:
    """Return a hub whose only system is a REST system at this server."""
    hub = TestHub(database)
    client = RestSystem("shop", RestOptions(url=server.url_for(""), token=SecretStr("t")))
    hub.conductor = Conductor(database, {kind.name(): kind(client)}, hub.publisher, None, hub.clock)
    hub.conductor.breaker.ensure_rows()
    return hub


@pytest.mark.parametrize(("since", "status"), [("2026-11-20T00:00:00Z", 410), ("2020-01-01T00:00:00Z", 200)])
def test_b26_a_position_that_a_rest_system_has_forgotten_starts_from_the_beginning(
    sqlite_database: Database, httpserver: HTTPServer, since: str, status: int
) -> None:
    def answer(request: Request) -> Response:
        if "updated_since" in request.args:
            return Response(status=status, response=json.dumps({"items": []}))
        one = {"id": 1, "name": "Ada", "updated_at": "2026-11-21T00:00:00Z"}
        return Response(json.dumps({"items": [one]}), content_type="application/json")

    httpserver.expect_request("/contacts").respond_with_handler(answer)
    hub = rest_hub(sqlite_database, httpserver)
    with hub.conductor.database.write() as connection:
        connection.execute(sa.insert(Cursor).values(subscriber="shop.customer", position={"since": since}))
    hub.conductor.poll("shop.customer")
    assert records.record(hub).name == "Ada"
    assert f"deletions since {since} may be missing" in (gap(hub, "shop.customer") or "")


def test_b26_a_list_that_is_not_there_at_all_is_an_error(sqlite_database: Database, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/contacts").respond_with_data("gone", status=404)
    hub = rest_hub(sqlite_database, httpserver)
    with hub.conductor.database.write() as connection:
        position = {"since": "2026-11-20T00:00:00Z"}
        connection.execute(sa.insert(Cursor).values(subscriber="shop.customer", position=position))
    with pytest.raises(Gone):
        hub.conductor.poll("shop.customer")
    assert records.one_row(hub, Cursor).position == position


# B30: duplicate rules that only warn


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("blocks", [False, True])
def test_b30_a_duplicate_rule_that_only_warns_lets_records_pass_if_the_setting_allows_it(
    sqlite_database: Database, org: SalesforceSimulator, allowed: bool, blocks: bool
) -> None:
    hub = SalesforceHub(sqlite_database, org, allow_duplicates=allowed)
    org.add_duplicate_rule("Account", "Phone", blocks=blocks)
    one, other = (hub.add("customer", name=name, phone="1") for name in ("Ada", "Bea"))
    hub.run()
    passes = allowed and not blocks
    assert org.store.count("Account") == (2 if passes else 1)
    hub.edit("customer", one, phone="2")
    hub.run()
    hub.edit("customer", other, phone="2")
    hub.run()
    org.clock.advance(3600)  # a duplicate is tried once more: the value may have been given free
    hub.conductor.sweep()
    hub.run()
    letters = [letter.message for letter in records.rows(hub, DeadLetter) if letter.closed_at is None]
    assert letters == [] if passes else "DUPLICATES_DETECTED" in letters[0]


def test_b30_invoices_with_lines_pass_as_well(sqlite_database: Database, org: SalesforceSimulator) -> None:
    hub = SalesforceHub(sqlite_database, org, allow_duplicates=True)
    org.add_duplicate_rule("Invoice__c", "Status__c")
    customer = hub.add("customer", name="Ada")
    lines = [{"description": "Hours", "quantity": 1, "unit_price": 100}]
    for number in ("R-1", "R-2"):
        hub.add("invoice", customer_id=int(customer), number=number, lines=lines)
    hub.run()
    assert org.store.count("Invoice__c") == 2


def test_b30_many_records_go_in_calls_that_carry_the_header(
    sqlite_database: Database, org: SalesforceSimulator
) -> None:
    hub = SalesforceHub(sqlite_database, org, allow_duplicates=True, bulk_threshold=200)
    org.add_duplicate_rule("Account", "Active__c")
    add_customers(hub, 250)
    hub.run()
    assert org.store.count("Account") == 250
    assert org.journal.calls("POST", "jobs/ingest") == []
