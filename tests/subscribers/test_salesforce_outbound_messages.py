"""Events that the org pushes: outbound messages through the real webhook route, callouts, merges."""

import json
import logging
from typing import Any
from xml.etree import ElementTree

import pytest
from flask.testing import FlaskClient
from pydantic import SecretStr

from models.session import Database
from panel.app import create_app
from settings import Settings
from simulators.salesforce import SalesforceSimulator
from simulators.salesforce.messages import OutboundMessages
from simulators.salesforce.org import ORG_ID
from tests.support.panel import served
from tests.support.records import mark
from tests.support.salesforce_hub import SalesforceHub

ADDRESS = "/webhooks/salesforce/new"
IDS = ("001000000000001AAA", "001000000000002AAA")


@pytest.fixture
def hub(sqlite_database: Database, org: SalesforceSimulator) -> SalesforceHub:
    return SalesforceHub(sqlite_database, org, organization_id=ORG_ID[:15])


@pytest.fixture
def http(hub: SalesforceHub) -> FlaskClient:
    return create_app(hub.conductor, Settings(secret_key=SecretStr("k" * 32))).test_client()


def message(*ids: str, org: str = ORG_ID, stamp: str = "2026-11-22T07:06:38.000Z", kind: str = "Account") -> str:
    notifications = "".join(
        f'<Notification><Id>04l00000000000{n}AAA</Id><sObject xsi:type="sf:{kind}" '
        f'xmlns:sf="urn:sobject.enterprise.soap.sforce.com"><sf:Id>{one}</sf:Id>'
        f"<sf:SystemModstamp>{stamp}</sf:SystemModstamp><sf:Name>not taken</sf:Name></sObject></Notification>"
        for n, one in enumerate(ids)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<soapenv:Envelope '
        'xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsd="http://www.w3.org/2001/XMLSchema" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>'
        '<notifications xmlns="http://soap.sforce.com/2005/09/outbound">'
        f"<OrganizationId>{org}</OrganizationId><ActionId>04k000000000001AAA</ActionId>"
        f"<SessionId xsi:nil='true'/><EnterpriseUrl>https://x</EnterpriseUrl>{notifications}</notifications>"
        "</soapenv:Body></soapenv:Envelope>"
    )


def said(answer: Any) -> str | None:
    """Return the Ack of the SOAP reply that Salesforce expects, or None."""
    envelope = ElementTree.fromstring(answer.data)
    path = "{http://schemas.xmlsoap.org/soap/envelope/}Body/{http://soap.sforce.com/2005/09/outbound}"
    assert answer.content_type.startswith("text/xml")
    return envelope.findtext(f"{path}notificationsResponse/{{http://soap.sforce.com/2005/09/outbound}}Ack")


# --- outbound messages ------------------------------------------------------------------------------


def test_each_notification_of_a_message_is_an_event_of_its_own(hub: SalesforceHub, http: FlaskClient) -> None:
    answer = http.post(ADDRESS, data=message(*IDS))
    assert (answer.status_code, said(answer)) == (200, "true")
    rows = hub.inbox()
    assert [row.event_id for row in rows] == ["04l000000000000AAA", "04l000000000001AAA"]
    bodies = [json.loads(row.body) for row in rows]
    assert [(one["sobject"], one["record"]["Id"]) for one in bodies] == [("Account", id) for id in IDS]
    assert all("Name" not in one["record"] for one in bodies), "its values may be old: the record is fetched"
    # The message repeats with an additional record: it is acknowledged, and only the new record is stored.
    answer = http.post(ADDRESS, data=message(*IDS, "001000000000003AAA"))
    assert (answer.status_code, said(answer)) == (200, "true")
    assert len(hub.inbox()) == 3


def test_an_outbound_message_applies_the_orgs_change(hub: SalesforceHub) -> None:
    customer = hub.add("customer", name="Ada")
    hub.run()
    app = create_app(hub.conductor, Settings(secret_key=SecretStr("k" * 32)))
    store = hub.org.org.store
    with served(app) as url:
        messages = OutboundMessages(f"{url}{ADDRESS}")
        teller, store.on_change = store.on_change, messages.changed
        try:
            messages.sender.start()
            messages.faults.webhook_duplicate()
            hub.org.clock.advance(100)
            hub.org.edit("Account", hub.link("customer", customer).external_id, Phone="1")
            made = hub.org.add("Account", Name="Bob")
            messages.sender.wait_idle()
        finally:
            store.on_change = teller
            messages.sender.close()
    before = hub.writes()
    hub.run()
    here = hub.record("customer", customer)
    assert here is not None and here["phone"] == "1"
    assert hub.link("customer", "2").external_id == made
    assert hub.writes() == before, "and nothing goes back"
    assert len(messages.sender.attempts) == 3 and len(hub.inbox()) == 2


def test_an_unacknowledged_message_is_sent_again(hub: SalesforceHub, http: FlaskClient) -> None:
    answer = http.post("/webhooks/salesforce/wrong", data=message(*IDS))
    assert answer.status_code == 400 and hub.inbox() == []
    assert http.post(ADDRESS, data=message(*IDS)).status_code == 200


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
FILE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (message(*IDS, org="00D000000000009AAA"), "from another org"),
        (message(*IDS).replace("?>\n", f"?>{BOMB}").replace("https://x", "&b;"), "DTDForbidden"),
        (message(*IDS).replace("?>\n", f"?>{FILE}").replace("https://x", "&a;"), "DTDForbidden"),
        (message(*IDS)[:-20], "not XML that Syncflow can read"),
        (message(), "has no Notification"),
        ("<html/>", "has no notifications"),
        (message(IDS[0]).replace(IDS[0], ""), "lacks its type or Id"),
        (message(IDS[0]).replace(' xsi:type="sf:Account"', ""), "lacks its type or Id"),
        (message(IDS[0]).replace("<Id>04l000000000000AAA</Id>", ""), "lacks its Id"),
    ],
)
def test_any_other_message_is_refused(
    hub: SalesforceHub, http: FlaskClient, caplog: pytest.LogCaptureFixture, body: str, words: str
) -> None:
    answer = http.post(ADDRESS, data=body)
    assert answer.status_code == 400 and words in caplog.text
    assert hub.inbox() == []


def test_messages_need_the_org_to_be_named(
    sqlite_database: Database, org: SalesforceSimulator, caplog: pytest.LogCaptureFixture
) -> None:
    hub = SalesforceHub(sqlite_database, org)
    http = create_app(hub.conductor, Settings(secret_key=SecretStr("k" * 32))).test_client()
    answer = http.post(ADDRESS, data=message(*IDS))
    assert answer.status_code == 400 and "SALESFORCE_ORGANIZATION_ID" in caplog.text


def test_the_secret_in_the_address_is_in_no_log(
    hub: SalesforceHub, http: FlaskClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> bool:
        raise RuntimeError("a bug")

    with caplog.at_level(logging.DEBUG):
        http.post("/webhooks/salesforce/hush-1", data=message(*IDS))
        http.post(ADDRESS, data=message(*IDS))
        http.post("/webhooks/salesforce/hush-1/", data=message(*IDS))
        http.get("/webhooks/salesforce/hush-1")
        monkeypatch.setattr(hub.conductor.inward.webhooks, "store", fail)
        http.post("/webhooks/salesforce/hush-1", data=message(*IDS))
    assert "page failed" in caplog.text and "refused" in caplog.text
    assert "hush-1" not in caplog.text


def test_a_callout_may_have_the_secret_in_its_address_too(hub: SalesforceHub, http: FlaskClient) -> None:
    body = {"id": "e1", "sobject": "Account", "record": {"Id": IDS[0]}}
    answer = http.post(ADDRESS, json=body)
    assert (answer.status_code, answer.get_json()) == (202, {"status": "stored"})
    again = http.post("/webhooks/salesforce", json=body, headers={"X-Syncflow-Secret": "old"})
    assert (again.status_code, again.get_json()) == (200, {"status": "duplicate"})


# --- merges -----------------------------------------------------------------------------------------


def two_customers(hub: SalesforceHub) -> list[str]:
    for name in ("Ada", "Bob"):
        hub.add("customer", name=name, email=f"{name}@x.org")
    hub.run()
    return [hub.link("customer", one).external_id for one in ("1", "2")]


def test_a_customer_merged_into_an_unknown_account_is_linked_to_it(hub: SalesforceHub) -> None:
    hub.poll("customer")
    # All changes are in one second. The winning account is older, so a poll reads it first. It matches customer 1.
    hub.org.clock.freeze()
    master = hub.org.add("Account", Name="Ada Ltd", Email__c="Ada@x.org", Phone="1")
    first, second = two_customers(hub)
    hub.org.store.merge("Account", master, [first])
    hub.org.clock.thaw()
    hub.org.clock.advance(100)
    hub.poll("customer")
    assert hub.count("customer") == 2
    link = hub.link("customer", "1")
    assert (link.external_id, link.unlinked_at) == (master, None)
    here = hub.record("customer", "1")
    assert here is not None and (here["name"], here["phone"]) == ("Ada Ltd", "1")
    hub.edit("customer", "1", phone="2")
    hub.run()
    there = hub.org.store.get("Account", master)
    assert (there["Phone"], there["Syncflow_Id__c"]) == ("2", mark(hub, 1))
    assert hub.link("customer", "2").external_id == second


def merge_and_edit_the_first(hub: SalesforceHub) -> str:
    """Merge the first of two customers there into a new account, and edit it here; return the account's id."""
    first, _ = two_customers(hub)
    hub.poll("customer")
    hub.org.clock.advance(100)
    master = hub.org.add("Account", Name="Ada Ltd")
    hub.org.store.merge("Account", master, [first])
    hub.edit("customer", "1", phone="2")
    hub.run()
    return master


def test_an_edit_of_a_merged_customer_follows_it(hub: SalesforceHub) -> None:
    master = merge_and_edit_the_first(hub)
    there = hub.org.store.get("Account", master)
    assert (there["Phone"], there["Name"], hub.count("customer")) == ("2", "Ada Ltd", 2)
    assert hub.link("customer", "1").external_id == master


def test_an_edit_of_a_customer_merged_after_the_look_waits_for_the_news(
    hub: SalesforceHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.conductor.subscribers["salesforce.customer"], "look_first", "never")
    master = merge_and_edit_the_first(hub)
    (failed,) = hub.deliveries(outcome="failed")
    assert f"merged there into {master}" in failed.reason
    hub.poll("customer")
    hub.org.clock.advance(100)
    hub.conductor.deliver("salesforce.customer", ["1"])
    there = hub.org.store.get("Account", master)
    assert (there["Phone"], there["Name"], hub.count("customer")) == ("2", "Ada Ltd", 2)


def test_a_message_about_a_merged_account_follows_it(hub: SalesforceHub, http: FlaskClient) -> None:
    first, _ = two_customers(hub)
    master = hub.org.add("Account", Name="Ada Ltd")
    hub.org.store.merge("Account", master, [first])
    http.post(ADDRESS, data=message(first))
    hub.run()
    link = hub.link("customer", "1")
    assert (link.external_id, link.unlinked_at, hub.count("customer")) == (master, None, 2)


def test_a_customer_merged_into_a_linked_account_is_unlinked(hub: SalesforceHub) -> None:
    first, second = two_customers(hub)
    hub.poll("customer")
    hub.org.clock.advance(100)
    hub.org.store.merge("Account", second, [first])
    hub.poll("customer")
    assert hub.link("customer", "1").unlinked_at is not None
    assert hub.link("customer", "2").external_id == second
    assert hub.count("customer") == 2
    assert [one["Id"] for one in hub.org.store.all("Account")] == [second]
