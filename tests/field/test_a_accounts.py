"""The account that a login leads to: docs/explanation/field-faults.md, row A6."""

from __future__ import annotations

import pytest
from pytest_httpserver import HTTPServer

from conductor import Conductor
from models.ledger import AuditEntry, Cursor, Link, System
from models.session import Database
from simulators.salesforce import SalesforceSimulator
from simulators.stripe import StripeLike
from subscribers.errors import Reject, Retry, SyncError, SystemDown
from subscribers.rest import RestSystem
from tests.support.awkward_rest import AwkwardRest, RestHub
from tests.support.fakes import FakeSubscriber, FakeSystem, TestHub
from tests.support.records import add, edit, link, one_row, rows, webhook
from tests.support.salesforce_hub import SalesforceHub, connect
from tests.support.stripe_hub import StripeHub


class Told(FakeSystem):
    """A system that tells its account; `asked` counts how often it did."""

    own: str = "acct_1"
    asked = 0
    failure: SyncError | None = None

    def account(self) -> str | None:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return self.own


class ToldHub(TestHub):
    """A hub over one such system, which can be started again."""

    client: Told

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.client = Told("crm", self.clock)
        self.start()

    def start(self, account: str = "acct_1") -> None:
        """Start another process of the hub, whose login leads to this account."""
        before, self.client = self.client, Told("crm", self.clock)
        self.client.store, self.client.changed, self.client.deleted = before.store, before.changed, before.deleted
        self.client.own = account
        self.systems["crm"] = self.client
        kind = type("CrmCustomer", (FakeSubscriber,), {"system": "crm"})
        subscribers = {"crm.customer": kind(self.client)}
        self.conductor = Conductor(self.conductor.database, subscribers, self.publisher, None, self.clock)
        self.conductor.breaker.ensure_rows()

    def go_on(self) -> None:
        self.clock.tick()
        self.conductor.sweep()
        self.run()

    @property
    def row(self) -> System:
        found: System = one_row(self, System)
        return found


def _in_other_account(database: Database) -> ToldHub:
    """Return a hub that was paused because its login leads to another account, with an edit that waits."""
    hub = ToldHub(database)
    for name in ("n1", "n2"):
        add(hub, name=name)
    hub.run()
    hub.start("acct_2")
    edit(hub, "1", phone="+1")
    hub.run()
    assert hub.row.paused_at is not None
    return hub


@pytest.mark.parametrize("how", ["deliver", "poll", "event", "task"])
def test_a06_a_login_that_leads_to_another_account_is_not_used(database: Database, how: str) -> None:
    hub = ToldHub(database)
    add(hub)
    hub.run()
    edit(hub, "1", phone="+1")
    hub.run()
    assert (hub.row.account, hub.client.asked) == ("acct_1", 1), "it is asked once for each process and login"
    hub.start("acct_2")
    if how == "deliver":
        edit(hub, "1", phone="+2")
        hub.run()
    elif how == "poll":
        hub.conductor.poll("crm.customer")
    elif how == "event":
        webhook(hub, "crm", "e1", "crm_1")
        hub.conductor.inward.inbox.refetch(hub.conductor.subscribers["crm.customer"], "crm_1")
    else:
        hub.conductor.tasks.start("reconcile", "ann", subscriber="crm.customer")
        hub.conductor.tasks.run_some()
    row = hub.row
    assert hub.client.calls == [] and hub.client.asked == 1
    assert (row.account, row.other_account, row.paused_by) == ("acct_1", "acct_2", "account check")
    assert "leads to the account acct_2, but the records are linked in acct_1" in str(row.pause_reason)


def test_a06_a_system_goes_on_when_its_login_is_corrected(database: Database) -> None:
    hub = _in_other_account(database)
    hub.conductor.systems.resume("crm", "ann")
    hub.go_on()
    assert hub.row.paused_by == "account check", "resuming alone does not help"
    hub.start("acct_1")
    hub.conductor.systems.resume("crm", "ann")
    hub.go_on()
    assert (hub.row.paused_at, hub.row.other_account) == (None, None)
    assert hub.client.store["crm_1"]["phone"] == "+1"


def test_a06_an_account_that_is_right_now_may_keep_the_links(database: Database) -> None:
    hub = _in_other_account(database)
    assert hub.conductor.relinking.accept_account("crm", "ann", unlink=False) == "acct_2"
    hub.go_on()
    assert (hub.row.account, hub.row.paused_at, hub.row.other_account) == ("acct_2", None, None)
    assert hub.client.store["crm_1"]["phone"] == "+1" and len(hub.client.store) == 2
    audit = one_row(hub, AuditEntry, AuditEntry.action == "system.account")
    assert (audit.who, audit.details) == ("ann", {"before": "acct_1", "account": "acct_2", "unlink": False})


def test_a06_an_account_that_is_right_now_may_lose_the_links(database: Database) -> None:
    hub = ToldHub(database)
    for name in ("n1", "n2"):
        add(hub, name=name)
    hub.run()
    hub.clock.tick()
    hub.conductor.poll("crm.customer")
    assert one_row(hub, Cursor).position is not None
    hub.start("acct_2")
    for place in (hub.client.store, hub.client.changed):
        place.clear()
    edit(hub, "1", phone="+1")
    hub.run()
    hub.conductor.relinking.accept_account("crm", "ann", unlink=True)
    hub.go_on()
    assert [data["name"] for data in hub.client.store.values()] == ["n1"], "what was edited is created there"
    assert one_row(hub, Cursor).position is None
    hub.conductor.tasks.start("backfill", "ann", subscriber="crm.customer")
    for _ in range(9):
        hub.conductor.tasks.run_some()
        hub.go_on()
    assert sorted(data["name"] for data in hub.client.store.values()) == ["n1", "n2"]
    assert hub.row.paused_at is None and all(one.external_id in hub.client.store for one in rows(hub, Link))


def test_a06_records_lost_in_the_former_account_are_not_linked_in_the_new_one(database: Database) -> None:
    hub = ToldHub(database)
    add(hub, name="n1")
    hub.run()
    hub.client.remove("crm_1")
    edit(hub, "1", phone="+1")
    hub.run()
    assert hub.conductor.relinking.count("crm") == 1
    hub.start("acct_2")
    for place in (hub.client.store, hub.client.changed):
        place.clear()
    edit(hub, "1", phone="+2")
    hub.run()
    hub.conductor.relinking.accept_account("crm", "ann", unlink=True)
    assert hub.conductor.relinking.count("crm") == 0 and hub.conductor.relinking.relink("crm", "ann") == 0


def test_a06_only_another_account_can_be_accepted(database: Database) -> None:
    hub = ToldHub(database)
    add(hub)
    hub.run()
    with pytest.raises(ValueError, match="leads to no other account"):
        hub.conductor.relinking.accept_account("crm", "ann", unlink=True)
    assert link(hub, "crm").external_id == "crm_1"


@pytest.mark.parametrize("failure", [Reject("403: not permitted"), SystemDown("503"), Retry("500")])
def test_a06_a_system_that_does_not_tell_its_account_is_used(database: Database, failure: SyncError) -> None:
    hub = ToldHub(database)
    hub.client.failure = failure
    add(hub), add(hub)
    hub.run()
    assert len(hub.client.store) == 2 and hub.client.asked == 1 and hub.row.account is None


def test_a06_a_connection_test_names_the_account(database: Database) -> None:
    hub = _in_other_account(database)

    def messages(state: str) -> list[str]:
        found = hub.conductor.connection_check.subscriber("crm.customer")
        return [one.message for one in found if one.state == state]

    assert messages("wrong") == ["the login leads to the account acct_2, but the records are linked in acct_1"]
    hub.client.own = "acct_1"
    assert "the login leads to the account acct_1" in messages("ok")
    hub.client.failure = Reject("403: not permitted")
    assert [one for one in messages("note") if "cannot be read" in one]


def test_a06_the_key_of_another_stripe_account_is_not_used(database: Database, stripe: StripeLike) -> None:
    hub = StripeHub(database, stripe)
    one = hub.add("customer", name="Ada", email="ada@x.example")
    hub.settle()
    assert one_row(hub, System).account == "acct_simulated (test mode)"
    hub = StripeHub(database, stripe)
    stripe.account = "acct_other"
    try:
        hub.edit("customer", one, phone="+1")
        hub.run()
    finally:
        stripe.account = "acct_simulated"
    assert one_row(hub, System).paused_by == "account check" and stripe.customers()[0]["phone"] is None


def test_a06_a_sandbox_that_is_refreshed_while_the_hub_runs_is_not_used(
    database: Database, org: SalesforceSimulator
) -> None:
    hub = SalesforceHub(database, org)
    one = hub.add("customer", name="Ada")
    hub.run()
    assert one_row(hub, System).account == "00D5g0000000001EAA"
    writes = hub.writes()
    org.org.organization_id = "00D5g0000000002EAA"
    org.org.expire_sessions()
    hub.edit("customer", one, phone="+1")
    hub.run()
    org.clock.advance(3600)
    hub.conductor.sweep()
    hub.run()
    row = one_row(hub, System)
    assert row.paused_by == "account check" and "00D5g0000000002EAA" in row.pause_reason
    assert len([call for call in hub.writes() if call not in writes]) <= 1, "the session was expired"
    assert org.store.all("Account")[0]["Phone"] is None
    hub.conductor.relinking.accept_account("salesforce", "ann", unlink=False)
    hub.conductor.sweep()
    hub.run()
    assert org.store.all("Account")[0]["Phone"] == "+1" and one_row(hub, System).paused_at is None


def test_a06_a_session_that_is_renewed_in_another_organisation_makes_no_call(org: SalesforceSimulator) -> None:
    client = connect(org)
    client.call(lambda one: one.limits())
    org.org.organization_id = "00D5g0000000002EAA"
    org.org.expire_sessions()
    with pytest.raises(SystemDown, match="leads to the organisation 00D5g0000000002EAA now"):
        client.call(lambda one: one.limits())
    assert client.account() == "00D5g0000000002EAA"


@pytest.mark.parametrize("login", ["client_credentials", "password"])
def test_a06_each_login_of_salesforce_tells_the_organisation(org: SalesforceSimulator, login: str) -> None:
    client = connect(org, login)
    assert (client.account(), client.logins) == ("00D5g0000000001EAA", 1)


def test_a06_a_rest_system_tells_its_account_where_that_is_declared(
    sqlite_database: Database, system: AwkwardRest, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/me").respond_with_json({"company": {"id": 7}})
    hub = RestHub(sqlite_database, system)
    declared = type("Declared", (RestSystem,), {"account_path": "/me", "account_field": "company.id"})
    client = declared("awkward", hub.client.options)
    assert (hub.client.account(), client.account()) == (None, "7")
    httpserver.clear()
    httpserver.expect_request("/me").respond_with_json({})
    with pytest.raises(Retry, match=r"no 'company\.id'"):
        client.account()
