"""How many calls the hub makes to Salesforce: collections, bulk jobs, the daily reserve."""

import json
import time

import pytest
import sqlalchemy as sa

from models.catalogues import Customer
from models.ledger import Cursor, System
from models.session import Database
from simulators.salesforce import SalesforceSimulator
from subscribers.errors import Gone, Reject, Retry, SyncError, SystemDown
from subscribers.records import External, Item
from subscribers.salesforce import SalesforceAccount, bulk
from subscribers.salesforce.failures import LIMIT_PAUSE_SECONDS
from tests.support.salesforce_hub import SalesforceHub, connect

JOB_SIZE = "jobs/ingest"


@pytest.fixture
def hub(sqlite_database: Database, org: SalesforceSimulator) -> SalesforceHub:
    return SalesforceHub(sqlite_database, org, bulk_threshold=250)


@pytest.fixture
def accounts(org: SalesforceSimulator) -> SalesforceAccount:
    return SalesforceAccount(connect(org))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the pauses between checks of a bulk job."""
    monkeypatch.setattr(bulk, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(bulk, "LONGEST_PAUSE_SECONDS", 0.001)


def many(hub: SalesforceHub, count: int) -> None:
    with hub.conductor.database.write() as c:
        c.execute(sa.insert(Customer), [{"name": f"N{n}", "email": f"{n}@x.org"} for n in range(count)])


def edit_all(hub: SalesforceHub, **values: str) -> None:
    with hub.conductor.database.write() as c:
        c.execute(sa.update(Customer).values(**values))


def phones(org: SalesforceSimulator) -> set[str | None]:
    return {one["Phone"] for one in org.store.all("Account")}


def item(number: int, name: str | None = "Anna", external_id: str | None = None, **changes: str | None) -> Item:
    data = {"Name": name, "Phone": None, "Description": 'a "b", c\nd', "Active__c": True}
    return Item(str(number), {}, data, changes or data, external_id, f"key-{number}")


# --- collections ------------------------------------------------------------------------------------


def test_1000_changed_records_are_5_write_calls(hub: SalesforceHub) -> None:
    many(hub, 1000)
    hub.run()
    assert hub.org.store.count("Account") == 1000
    assert len(hub.writes()) == 5
    assert len({one.request_id for one in hub.deliveries()} - {None}) == 5
    hub.org.journal.clear()
    edit_all(hub, phone="1")
    hub.run()
    assert phones(hub.org) == {"1"}
    assert hub.writes() == [("PATCH", "composite/sobjects")] * 5


def test_10_edits_while_the_system_was_down_are_1_call(hub: SalesforceHub) -> None:
    many(hub, 1)
    hub.run()
    hub.org.journal.clear()
    with hub.conductor.database.write() as c:
        hub.conductor.breaker.went_down(c, "salesforce", SystemDown("maintenance"))
    for number in range(10):
        edit_all(hub, phone=str(number))
        hub.run()
    assert hub.writes() == []
    hub.org.clock.advance(100)
    hub.conductor.deliver("salesforce.customer", ["1"])
    assert hub.writes() == [("PATCH", "composite/sobjects")]
    assert phones(hub.org) == {"9"}


# --- bulk jobs --------------------------------------------------------------------------------------


def test_a_backlog_above_the_threshold_is_one_job(hub: SalesforceHub) -> None:
    many(hub, 600)
    hub.conductor.relay()
    hub.publisher.published.clear()  # messages lost; the sweep publishes the records again
    everybody = [str(n + 1) for n in range(600)]
    hub.conductor.sweep(everything=True)
    hub.run()
    assert hub.org.store.count("Account") == 600
    assert [path.split("/")[0] for _, path in hub.writes()] == ["jobs"] * 3
    hub.org.journal.clear()
    edit_all(hub, phone="1", notes="")
    hub.conductor.relay()
    hub.org.org.bulk_waits = 2
    hub.conductor.deliver("salesforce.customer", everybody)
    assert phones(hub.org) == {"1"}
    looks = [one for one in hub.org.journal.calls() if "/queryAll" in one.path]
    assert len(looks) == 3  # of 200 records each, for edits made there
    assert len(hub.writes()) == 3 and len(hub.org.journal.calls()) == 3 + 3 + 3 + 3
    hub.conductor.deliver("salesforce.customer", everybody)
    assert len(hub.writes()) == 3, "nothing is owed from then on"


def test_each_record_of_a_job_has_its_own_outcome(org: SalesforceSimulator, accounts: SalesforceAccount) -> None:
    items = [item(n, None if n == 7 else "x" * 256 if n == 8 else f"N{n}") for n in range(250)]
    outcomes = accounts.bulk_create(items)
    missing, long = outcomes[7], outcomes[8]
    assert isinstance(missing, Reject) and list(missing.fields) == ["Name"] and "REQUIRED" in str(missing)
    assert isinstance(long, Reject) and list(long.fields) == ["Name"] and "STRING_TOO_LONG" in str(long)
    made = [one for one in outcomes if isinstance(one, External)]
    assert len(made) == 248 and all(one.at is not None for one in made)
    there = org.store.get("Account", made[0].id)
    assert (there["Description"], there["Active__c"], there["Phone"]) == ('a "b", c\nd', True, None)
    assert there["Syncflow_Id__c"] == made[0].mark == "0"
    org.edit("Account", made[0].id, Phone="1", BillingCity="Bonn")
    org.remove("Account", made[1].id)
    changes = [item(int(one.mark or 0), external_id=one.id, Phone=None) for one in made]
    updated = accounts.bulk_update(changes)
    gone = updated[1]
    assert isinstance(gone, Gone) and "ENTITY_IS_DELETED" in json.loads(gone.response or "")["sf__Error"]
    assert sum(isinstance(one, External) for one in updated) == 247
    there = org.store.get("Account", made[0].id)
    assert (there["Phone"], there["BillingCity"]) == (None, "Bonn"), "what did not change is left as it is"


def test_records_that_a_broken_job_did_not_process_are_retried(
    org: SalesforceSimulator, accounts: SalesforceAccount
) -> None:
    org.org.bulk_stops_after = 100
    outcomes = accounts.bulk_create([item(n) for n in range(250)])
    assert all(isinstance(one, External) for one in outcomes[:100])
    for one in outcomes[100:]:
        assert isinstance(one, Retry) and not one.maybe_done and "before it came to this record" in str(one)


@pytest.mark.parametrize(
    ("path", "method", "maybe_done"),
    [(JOB_SIZE, "POST", False), ("/batches", "PUT", False), (JOB_SIZE, "PATCH", True)],
)
def test_a_job_that_is_cut_before_its_end(
    org: SalesforceSimulator, accounts: SalesforceAccount, path: str, method: str, maybe_done: bool
) -> None:
    accounts.find(item(0))
    org.drop(path=path, method=method)
    for one in accounts.bulk_create([item(n) for n in range(250)]):
        assert isinstance(one, SyncError) and one.maybe_done is maybe_done


def test_a_failed_job_status_request_is_retried(org: SalesforceSimulator, accounts: SalesforceAccount) -> None:
    org.fail(3, status=503, method="GET", path=JOB_SIZE)
    org.drop(method="GET", path="failedResults")
    assert all(isinstance(one, External) for one in accounts.bulk_create([item(n) for n in range(250)]))


def test_a_text_that_a_file_cannot_carry_goes_by_collections(
    org: SalesforceSimulator, accounts: SalesforceAccount
) -> None:
    outcomes = accounts.bulk_create([item(n, bulk.NULL if n == 3 else "Anna") for n in range(250)])
    assert all(isinstance(one, External) for one in outcomes)
    assert org.store.count("Account") == 250 and not org.journal.calls(path=JOB_SIZE)
    assert org.store.by_external_id("Account", "Syncflow_Id__c", "3")["Name"] == bulk.NULL  # type: ignore[index]


def test_a_file_that_is_too_large_is_cut_in_two(
    org: SalesforceSimulator, accounts: SalesforceAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "MAX_FILE_BYTES", 10_000)
    outcomes = accounts.bulk_create([item(n) for n in range(250)])
    assert [one.mark for one in outcomes if isinstance(one, External)] == [str(n) for n in range(250)]
    assert len(org.journal.calls("POST", JOB_SIZE)) == 2


def test_a_long_job_keeps_its_records(hub: SalesforceHub, monkeypatch: pytest.MonkeyPatch) -> None:
    many(hub, 300)
    hub.conductor.relay()
    hub.org.org.bulk_waits = 5
    monkeypatch.setattr(time, "sleep", lambda seconds: hub.org.clock.advance(50))
    hub.conductor.deliver("salesforce.customer", [str(n + 1) for n in range(300)])
    assert {one.outcome for one in hub.deliveries()} == {"delivered"} and len(hub.deliveries()) == 300


# --- the daily calls --------------------------------------------------------------------------------


def used(hub: SalesforceHub, left: int) -> None:
    """Leave `left` of the day's calls, as the next response reports."""
    hub.org.org.calls_used = hub.org.org.daily_limit - left - 1
    hub.client.usage = None
    hub.client.call(lambda org: org.limits())


def system(hub: SalesforceHub) -> System:
    with hub.conductor.database.read() as c:
        return c.execute(sa.select(System.__table__).where(System.name == "salesforce")).one()  # type: ignore[return-value]


def test_polls_stop_first_then_changes_wait(hub: SalesforceHub, monkeypatch: pytest.MonkeyPatch) -> None:
    many(hub, 1)
    hub.run()
    used(hub, 900)
    hub.org.journal.clear()
    assert hub.conductor.poll("salesforce.customer") == 0
    with hub.conductor.database.read() as c:
        said = str(c.execute(sa.select(Cursor.result).where(Cursor.subscriber == "salesforce.customer")).scalar_one())
    assert "900 of the org's 100000 daily API calls are left" in said and "SALESFORCE_API_RESERVE" in said
    edit_all(hub, phone="1")
    hub.run()
    assert phones(hub.org) == {"1"}
    assert [one.method for one in hub.org.journal.calls()] == ["GET", "PATCH"]  # the look before the write, and that
    hub.org.clock.advance(10)
    used(hub, 500)
    edit_all(hub, phone="2")
    hub.org.journal.clear()
    hub.run()
    assert hub.org.journal.calls() == []
    row = system(hub)
    assert (row.rate_remaining, row.rate_limit) == (500, 100_000)
    assert row.down_since is not None and "500 of the org's 100000 daily API calls are left" in str(row.down_reason)
    # After the pause the hub makes one call and then waits again, until calls are available.
    later = time.monotonic() + LIMIT_PAUSE_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    hub.org.clock.advance(LIMIT_PAUSE_SECONDS + 10)
    hub.conductor.deliver("salesforce.customer", ["1"])
    assert [one.path.rstrip("/")[-7:] for one in hub.org.journal.calls()] == ["/limits"]
    hub.org.org.calls_used = 0
    later += LIMIT_PAUSE_SECONDS
    hub.org.clock.advance(LIMIT_PAUSE_SECONDS + 10)
    hub.conductor.deliver("salesforce.customer", ["1"])
    assert phones(hub.org) == {"2"} and system(hub).down_since is None


def test_without_a_reserve_the_last_call_is_used(sqlite_database: Database, org: SalesforceSimulator) -> None:
    hub = SalesforceHub(sqlite_database, org, api_reserve=0)
    used(hub, 1)
    many(hub, 1)
    hub.run()
    assert org.store.count("Account") == 1
    edit_all(hub, phone="1")
    hub.run()
    assert system(hub).down_since is not None
