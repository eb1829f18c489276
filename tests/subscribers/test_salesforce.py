"""The Salesforce subscriber against the simulated org: every call and every row of its error table."""

import json
import threading
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import SecretStr, ValidationError

from models.catalogues import CATALOGUES
from redaction import MASK
from settings import SettingsError
from simulators.salesforce import Credentials, SalesforceSimulator
from subscribers.errors import BadSignature, BadWebhook, Gone, Reject, Retry, SyncError, SystemDown
from subscribers.mapping.fields import Field
from subscribers.mapping.mapper import Mapper
from subscribers.records import External, Item
from subscribers.registry import REGISTRY
from subscribers.salesforce import Salesforce, SalesforceAccount, SalesforceOptions
from subscribers.salesforce.login import audience as audience_of
from tests.support.salesforce_hub import LOGINS, connect

ANNA = {
    "name": "Anna",
    "email": "anna@example.org",
    "phone": None,
    "street": "Way 1",
    "city": "Rome",
    "postal_code": "00100",
    "country": "IT",
    "notes": "ring twice",
    "active": True,
}


@pytest.fixture(scope="session")
def certificates(salesforce_org: SalesforceSimulator) -> Path:
    return Path(salesforce_org.ca_file).parent


@pytest.fixture
def system(org: SalesforceSimulator) -> Salesforce:
    return connect(org)


@pytest.fixture
def accounts(system: Salesforce) -> SalesforceAccount:
    return SalesforceAccount(system)


def item(record: dict[str, Any], id: str = "7", external_id: str | None = None, changes: Any = None) -> Item:
    data = Mapper(CATALOGUES["customer"], SalesforceAccount.field_to_data).outward(record)
    return Item(id, record, data, data if changes is None else changes, external_id, f"key-{id}")


def made(outcome: Any) -> External:
    assert isinstance(outcome, External), outcome
    return outcome


def refused(call: Callable[[], Any]) -> SyncError:
    with pytest.raises(SyncError) as caught:
        call()
    return caught.value


def writes(org: SalesforceSimulator) -> list[tuple[str, str]]:
    return [(one.method, one.path) for one in org.journal.calls(path="composite/")]


# --- calls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("login", LOGINS)
def test_create_and_fetch(org: SalesforceSimulator, login: str) -> None:
    accounts = SalesforceAccount(connect(org, login))
    one = made(accounts.bulk_create([item(ANNA)])[0])
    assert one.mark == "7" and one.at is not None
    seen = accounts.fetch(one.id)
    assert accounts.default_mapper.flatten(seen.data) == accounts.default_mapper.outward(ANNA)
    assert seen.mark == "7" and seen.at is not None and seen.at <= one.at
    assert "attributes" not in seen.data


def test_a_login_by_certificate(certificates: Path, tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem, encoding = tmp_path / "key.pem", serialization.Encoding.PEM
    pem.write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    public = key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    with SalesforceSimulator(certs=certificates, credentials=Credentials(jwt_public_key=public)) as org:
        who = {"username": "integration@syncflow.example", "consumer_key": "demo-client-id"}
        accounts = SalesforceAccount(connect(org, "jwt", **who, privatekey_file=str(pem)))
        made(accounts.bulk_create([item(ANNA)])[0])


@pytest.mark.parametrize(
    ("where", "audience"),
    [
        ({}, "login"),
        ({"domain": "acme.my"}, "login"),
        ({"domain": "test"}, "test"),
        ({"domain": "acme--dev.sandbox.my"}, "test"),
        ({"instance_url": "https://acme--dev.sandbox.my.salesforce.com"}, "test"),
    ],
)
def test_a_certificate_is_shown_to_the_right_login(where: dict[str, Any], audience: str) -> None:
    options = SalesforceOptions(username="u", password=SecretStr("p"), **where)
    assert audience_of(options) == f"https://{audience}.salesforce.com"


def test_200_records_are_one_call_each_with_its_own_outcome(
    org: SalesforceSimulator, accounts: SalesforceAccount
) -> None:
    items = [item({**ANNA, "name": None if n == 50 else f"N{n}"}, str(n)) for n in range(200)]
    outcomes = accounts.bulk_create(items)
    assert isinstance(outcomes[50], Reject) and "Name" in outcomes[50].fields
    assert sum(isinstance(one, External) for one in outcomes) == 199
    assert writes(org) == [("PATCH", "/services/data/v59.0/composite/sobjects/Account/Syncflow_Id__c")]
    changed = [item(ANNA, str(one.mark), one.id, {"Phone": "1"}) for one in outcomes if isinstance(one, External)]
    assert all(isinstance(one, External) for one in accounts.bulk_update(changed))
    assert {one["Phone"] for one in org.store.all("Account")} == {"1"}
    assert accounts.bulk_delete(changed) == [None] * 199
    assert org.store.count("Account") == 0
    assert len(writes(org)) == 3


def test_an_update_sends_what_changed_and_empties_what_is_empty(
    org: SalesforceSimulator, accounts: SalesforceAccount
) -> None:
    id = org.add("Account", Name="Theirs", Phone="1", BillingCity="Bonn")
    made(accounts.bulk_update([item(ANNA, "7", id, {"Phone": None, "Name": "Köln's & Co"})])[0])
    record = org.store.get("Account", id)
    assert (record["Phone"], record["Name"], record["BillingCity"]) == (None, "Köln's & Co", "Bonn")
    assert record["Syncflow_Id__c"] == "7"


def test_a_deleted_account_is_gone_for_every_call(org: SalesforceSimulator, accounts: SalesforceAccount) -> None:
    id = org.add("Account", Name="Anna")
    org.remove("Account", id)
    gone = item(ANNA, external_id=id)
    assert isinstance(accounts.bulk_update([gone])[0], Gone)
    assert isinstance(accounts.bulk_delete([gone])[0], Gone)
    assert isinstance(refused(lambda: accounts.fetch(id)), Gone)


# --- exactly once -----------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["after", "inside"])
def test_a_create_whose_answer_is_lost_may_be_done_and_is_found(
    org: SalesforceSimulator, accounts: SalesforceAccount, when: str
) -> None:
    accounts.find(item(ANNA))  # logs in, so that the create is the call that is cut
    org.drop(when=when)
    (error,) = accounts.bulk_create([item(ANNA)])
    assert isinstance(error, Retry) and error.maybe_done
    found = accounts.find(item(ANNA))
    assert found is not None and found.mark == "7"
    assert made(accounts.bulk_create([item(ANNA)])[0]).id == found.id
    assert org.store.count("Account") == 1


@pytest.mark.parametrize("id", ["7", "a b/c?d&e", "ü+%"])
def test_any_id_is_found(accounts: SalesforceAccount, id: str) -> None:
    assert accounts.find(item(ANNA, id)) is None
    one = made(accounts.bulk_create([item(ANNA, id)])[0])
    found = accounts.find(item(ANNA, id))
    assert found is not None and (found.id, found.mark) == (one.id, id)


# --- errors -----------------------------------------------------------------------------------------

CALL_TABLE = [
    (403, "REQUEST_LIMIT_EXCEEDED", SystemDown, False),
    (403, "API_DISABLED_FOR_ORG", SystemDown, False),
    (503, "SERVER_UNAVAILABLE", SystemDown, False),
    (500, "UNKNOWN_EXCEPTION", Retry, True),
    (400, "UNABLE_TO_LOCK_ROW", Retry, False),
    (400, "INVALID_FIELD", Reject, False),
    (400, "JSON_PARSER_ERROR", Reject, False),
    (403, "INSUFFICIENT_ACCESS_OR_READONLY", Reject, False),
    (403, "SOMETHING_NEW", SystemDown, False),
    (401, "SOMETHING_NEW", SystemDown, False),
    (404, "NOT_FOUND", Reject, False),
]


@pytest.mark.parametrize(("status", "code", "expected", "maybe_done"), CALL_TABLE)
def test_a_call_that_fails_fails_for_each_of_its_records(
    org: SalesforceSimulator,
    accounts: SalesforceAccount,
    status: int,
    code: str,
    expected: type[SyncError],
    maybe_done: bool,
) -> None:
    org.fail(status=status, code=code, message="words", path="composite")
    outcomes = accounts.bulk_create([item(ANNA, "7"), item(ANNA, "8")])
    assert len(outcomes) == 2
    for error in outcomes:
        assert type(error) is expected and error.maybe_done is maybe_done
        assert code in str(error) and "words" in str(error)
        assert error.response is not None and json.loads(error.response)[0]["errorCode"] == code


def test_an_answer_that_quotes_our_session_is_kept_without_it(
    org: SalesforceSimulator, accounts: SalesforceAccount
) -> None:
    accounts.bulk_create([item(ANNA, "7")])
    assert accounts.client._login is not None
    token = accounts.client._login[0]
    org.fail(status=400, code="INVALID_FIELD", message=f"no {token}", path="composite")
    (error,) = accounts.bulk_create([item(ANNA, "8")])
    assert isinstance(error, Reject) and error.response is not None
    assert f"no {MASK}" in error.response and token not in error.response


def test_an_address_that_the_org_lacks_is_no_record_that_is_gone(
    org: SalesforceSimulator, accounts: SalesforceAccount
) -> None:
    org.fail(status=404, code="NOT_FOUND", message="The requested resource does not exist", path="composite")
    outcomes = accounts.bulk_update([item(ANNA, "7", org.add("Account", Name="Anna"), {"Phone": "1"})])
    assert isinstance(outcomes[0], Reject) and "composite/sobjects" in str(outcomes[0])


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("UNABLE_TO_LOCK_ROW", Retry),
        ("DUPLICATE_VALUE", Reject),
        ("DUPLICATES_DETECTED", Reject),
        ("REQUIRED_FIELD_MISSING", Reject),
        ("STRING_TOO_LONG", Reject),
        ("FIELD_CUSTOM_VALIDATION_EXCEPTION", Reject),
        ("INVALID_FIELD", Reject),
        ("MALFORMED_ID", Reject),
        ("SOMETHING_NEW", Reject),
        ("ENTITY_IS_DELETED", Gone),
        ("INVALID_CROSS_REFERENCE_KEY", Gone),
        ("UNKNOWN_EXCEPTION", Retry),
        ("STORAGE_LIMIT_EXCEEDED", SystemDown),
    ],
)
def test_a_record_that_fails_does_not_hold_up_its_neighbour(
    org: SalesforceSimulator, accounts: SalesforceAccount, code: str, expected: type[SyncError]
) -> None:
    items = [item(ANNA, str(n), org.add("Account", Name=f"N{n}"), {"Phone": "1"}) for n in range(2)]
    org.fail_items(code=code, path="composite")
    outcomes = accounts.bulk_update(items)
    assert type(outcomes[0]) is expected
    assert json.loads(outcomes[0].response or "")["errors"][0]["statusCode"] == code, "its own part of the answer"
    assert isinstance(outcomes[1], External)


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"Name": None}, "Name"), ({"BillingCity": "x" * 41}, "BillingCity"), ({"Email__c": "nobody"}, "Email__c")],
)
def test_a_refused_value_names_its_field(
    org: SalesforceSimulator, accounts: SalesforceAccount, changes: dict[str, Any], field: str
) -> None:
    (error,) = accounts.bulk_update([item(ANNA, "7", org.add("Account", Name="Anna"), changes)])
    assert isinstance(error, Reject) and list(error.fields) == [field]


def test_values_that_salesforce_would_refuse_are_rejected_before_the_call(accounts: SalesforceAccount) -> None:
    error = refused(lambda: accounts.validate({"Name": "", "Email__c": "x" * 81, "BillingCity": None}))
    assert isinstance(error, Reject) and set(error.fields) == {"Name", "Email__c"}


@pytest.mark.parametrize(
    ("status", "expected"), [(503, SystemDown), (500, Retry), (502, Retry), (404, SystemDown), (403, SystemDown)]
)
def test_an_html_answer_is_no_verdict_on_the_record(
    org: SalesforceSimulator, accounts: SalesforceAccount, status: int, expected: type[SyncError]
) -> None:
    org.fail(status=status, html=True, path="sobjects")
    error = refused(lambda: accounts.fetch("001000000000001AAA"))
    assert type(error) is expected and "<" not in str(error)


def test_limits_say_how_long(org: SalesforceSimulator, accounts: SalesforceAccount) -> None:
    org.fail(status=503, retry_after="7", path="sobjects")
    error = refused(lambda: accounts.fetch("001000000000001AAA"))
    assert isinstance(error, SystemDown) and error.after == 7
    for message, pause in (("TotalRequests Limit exceeded.", 900), ("ConcurrentRequests Limit exceeded.", 10)):
        org.fail(status=403, code="REQUEST_LIMIT_EXCEEDED", message=message, path="sobjects")
        error = refused(lambda: accounts.fetch("001000000000001AAA"))
        assert isinstance(error, SystemDown) and error.after == pause


# --- the session --------------------------------------------------------------------------------------


def logins(org: SalesforceSimulator) -> int:
    return len(org.journal.calls("POST", "/services/oauth2/token"))


def test_an_expired_session_is_renewed_once(org: SalesforceSimulator, accounts: SalesforceAccount) -> None:
    accounts.find(item(ANNA))
    org.expire_sessions()
    assert accounts.find(item(ANNA)) is None
    assert logins(org) == 2


def test_a_session_that_is_never_valid_is_not_tried_for_ever(
    org: SalesforceSimulator, accounts: SalesforceAccount
) -> None:
    org.fail(status=401, code="INVALID_SESSION_ID", count=50, path="sobjects")
    error = refused(lambda: accounts.fetch("001000000000001AAA"))
    assert isinstance(error, SystemDown) and "login is refused" in str(error)
    assert logins(org) == 2 and len(org.journal.calls("GET", "sobjects")) == 2


def test_threads_that_find_the_session_expired_log_in_once(
    org: SalesforceSimulator, accounts: SalesforceAccount
) -> None:
    accounts.find(item(ANNA))
    org.expire_sessions()
    found: list[Any] = []
    together = threading.Barrier(5)

    def look() -> None:
        together.wait(5)
        found.append(accounts.find(item(ANNA)))

    threads = [threading.Thread(target=look) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [None] * 5
    assert logins(org) == 2


@pytest.mark.parametrize("login", LOGINS)
def test_a_refused_login_is_the_systems_trouble_and_shows_no_secret(org: SalesforceSimulator, login: str) -> None:
    wrong = {"consumer_secret": "hush-1"} if login == "client_credentials" else {"password": "hush-1"}
    system = connect(org, login, **wrong)
    error = refused(lambda: SalesforceAccount(system).fetch("001000000000001AAA"))
    assert isinstance(error, SystemDown) and "login is refused" in str(error) and error.after == 300
    shown = "".join(traceback.format_exception(error)) + repr(system) + repr(system.options)
    for secret in ("hush-1", "demo-password", "demo-token", "demo-client-secret", "new old"):
        assert secret not in shown


def test_an_org_that_cannot_be_reached_is_down(certificates: Path) -> None:
    simulator = SalesforceSimulator(certs=certificates)
    simulator.start()
    accounts = SalesforceAccount(connect(simulator))
    accounts.find(item(ANNA))
    simulator.stop()
    (error,) = accounts.bulk_create([item(ANNA)])
    assert isinstance(error, SystemDown | Retry)
    assert isinstance(accounts.bulk_create([item(ANNA)])[0], SystemDown)
    fresh = SalesforceAccount(connect(simulator, ca_bundle=str(certificates / "ca.pem")))
    assert isinstance(refused(lambda: fresh.find(item(ANNA))), SystemDown)


def test_a_certificate_that_is_not_trusted(org: SalesforceSimulator) -> None:
    error = refused(lambda: SalesforceAccount(connect(org, ca_bundle="")).find(item(ANNA)))
    assert isinstance(error, SystemDown) and "certificate" in str(error)


# --- polling ------------------------------------------------------------------------------------------


def read(accounts: SalesforceAccount, position: dict[str, Any] | None) -> tuple[list[External], dict[str, Any]]:
    pages = list(accounts.changed_since(position))
    return [one for page in pages for one in page.records], json.loads(json.dumps(pages[-1].position))


def test_polls_read_on_from_where_they_were(org: SalesforceSimulator, accounts: SalesforceAccount) -> None:
    first = org.add("Account", Name="First", Syncflow_Id__c="7")
    org.clock.advance(600)
    found, position = read(accounts, None)
    assert [(one.id, one.mark, one.data["Name"]) for one in found] == [(first, "7", "First")]
    org.clock.advance(600)
    second = org.add("Account", Name="Second")
    org.clock.advance(600)
    # The record at the position is read again: another may have changed since in the same second.
    found, position = read(accounts, position)
    assert [one.id for one in found] == [first, second]
    assert [one.id for one in read(accounts, position)[0]] == [second]


def test_ties_at_the_position_are_not_lost(org: SalesforceSimulator, accounts: SalesforceAccount) -> None:
    org.clock.freeze()
    early = org.add("Account", Name="Early")
    _, position = read(accounts, None)
    late = org.add("Account", Name="Late")
    assert [one.id for one in read(accounts, position)[0]] == [early, late]


def test_what_becomes_visible_late_is_not_lost(org: SalesforceSimulator, accounts: SalesforceAccount) -> None:
    org.add("Account", Name="Now")
    _, position = read(accounts, None)
    stamp = datetime.fromisoformat(position["modstamp"])
    assert stamp <= org.clock.now() - timedelta(seconds=59)


def test_a_poll_of_many_pages(certificates: Path) -> None:
    with SalesforceSimulator(certs=certificates, page_size=2) as org:
        accounts = SalesforceAccount(connect(org))
        ids = []
        for number in range(5):
            ids.append(org.add("Account", Name=f"N{number}"))
            org.clock.advance(400)
        pages = list(accounts.changed_since(None))
        assert [[one.id for one in page.records] for page in pages] == [ids[:2], ids[2:4], ids[4:]]
        for page in pages:
            newest = page.records[-1].at
            assert newest is not None and datetime.fromisoformat(page.position["modstamp"]) == newest


def test_deletions_are_received_by_callout_and_by_the_deleted_list(
    org: SalesforceSimulator, accounts: SalesforceAccount
) -> None:
    id = org.add("Account", Name="Anna")
    _, position = read(accounts, None)
    org.clock.advance(120)
    org.remove("Account", id)
    found, after = read(accounts, position)
    assert [(one.id, one.deleted) for one in found] == [(id, True)]
    org.clock.advance(1000)
    # As with an emptied recycle bin: the query no longer returns the record.
    later = {"modstamp": org.clock.now().isoformat(), "deleted": after["deleted"]}
    found, last = read(accounts, later)
    assert [(one.id, one.deleted) for one in found] == [(id, True)]
    assert datetime.fromisoformat(last["deleted"]) > datetime.fromisoformat(after["deleted"])


def test_deletions_are_requested_from_the_end_of_the_last_answer(
    org: SalesforceSimulator, accounts: SalesforceAccount
) -> None:
    _, position = read(accounts, None)
    org.clock.advance(1000)
    org.lag(300)
    _, position = read(accounts, position)
    assert org.clock.now() - datetime.fromisoformat(position["deleted"]) >= timedelta(seconds=300)


def test_a_position_older_than_salesforce_remembers_is_no_failure(
    org: SalesforceSimulator, accounts: SalesforceAccount
) -> None:
    read(accounts, {"modstamp": "2020-01-01T00:00:00.000+0000", "deleted": "2020-01-01T00:00:00.000+0000"})


def test_what_the_panel_maps_is_read(org: SalesforceSimulator, accounts: SalesforceAccount) -> None:
    org.add("Account", Name="Anna", Website="https://example.org")
    accounts.mapper = Mapper(accounts.records, {"name": Field("Name"), "notes": Field("Website")})
    found, _ = read(accounts, None)
    assert found[0].data["Website"] == "https://example.org"


# --- webhooks -----------------------------------------------------------------------------------------


def callout(**changes: Any) -> bytes:
    record = {"Id": "001000000000001AAA", "Name": "Anna", "SystemModstamp": "2026-11-22T07:06:38.000+0000"}
    return json.dumps(
        {"id": "e1", "sobject": "Account", "record": {**record, "Syncflow_Id__c": "7"}} | changes
    ).encode()


@pytest.fixture
def offline() -> Salesforce:
    settings = {"instance_url": "https://acme.my.salesforce.com", "webhook_secret": "new old"}
    return Salesforce("salesforce", SalesforceOptions(**settings, **LOGINS["client_credentials"]))


@pytest.mark.parametrize("secret", ["new", "old"])
def test_a_callout_with_either_secret_is_taken(offline: Salesforce, secret: str) -> None:
    assert offline.unpack(callout(), {"x-syncflow-secret": secret}) == [("e1", callout())]
    (one,) = offline.events(callout())
    assert (one.resource, one.external.mark, one.external.deleted) == ("Account", "7", False)
    assert one.external.at == datetime(2026, 11, 22, 7, 6, 38, tzinfo=UTC)
    (gone,) = offline.events(callout(deleted=True))
    assert gone.external.deleted


@pytest.mark.parametrize(
    "headers", [{}, {"x-syncflow-secret": ""}, {"x-syncflow-secret": "new old"}, {"x-syncflow-secret": "ü"}]
)
def test_any_other_callout_is_refused(offline: Salesforce, headers: dict[str, str]) -> None:
    with pytest.raises(BadSignature):
        offline.unpack(callout(), headers)


def test_without_a_secret_every_callout_is_refused(offline: Salesforce) -> None:
    offline.options.webhook_secret = SecretStr("")
    for secret in ("", " ", "new"):
        with pytest.raises(BadSignature):
            offline.unpack(callout(), {"x-syncflow-secret": secret})


@pytest.mark.parametrize("body", [b"nothing", b"[]", b"{}", callout(record={}), callout(sobject=1), callout(id="")])
def test_an_unreadable_callout_is_reported(offline: Salesforce, body: bytes) -> None:
    with pytest.raises(BadWebhook):
        offline.unpack(body, {"x-syncflow-secret": "new"})


def test_it_is_in_the_fan_out() -> None:
    assert REGISTRY["salesforce.customer"] is SalesforceAccount


def test_the_page_in_lightning(offline: Salesforce) -> None:
    page = "https://acme.my.salesforce.com/lightning/r/Account/001/view"
    assert offline.page_url("Account", "001") == page


# --- settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"ca_bundle": "x"}, "SALESFORCE_USERNAME, SALESFORCE_PASSWORD"),
        ({"username": "u"}, "SALESFORCE_PASSWORD"),
        ({"password": "hush-1"}, "SALESFORCE_USERNAME"),
        ({"consumer_secret": "hush-1"}, "SALESFORCE_CONSUMER_KEY"),
        ({"consumer_secret": "hush-1", "consumer_key": "k"}, "SALESFORCE_INSTANCE_URL"),
        (
            {"username": "u", "password": "p", "objects": "Account Lead"},
            "SALESFORCE_OBJECTS: Lead is not one of Account",
        ),
        (
            {"username": "u", "password": "p", "objects": "Account Contact"},
            "SALESFORCE_OBJECTS: customers can be synced as",
        ),
        (
            {"username": "u", "password": "p", "objects": "Account,Invoice__c"},
            "SALESFORCE_OBJECTS: Invoice__c also needs",
        ),
        ({"username": "u", "password": "p", "organization_id": "acme"}, "SALESFORCE_ORGANIZATION_ID"),
        ({"privatekey_file": "/no/such/file"}, "SALESFORCE_USERNAME, SALESFORCE_CONSUMER_KEY"),
        ({"privatekey_file": "/no/such/file", "username": "u", "consumer_key": "k"}, "SALESFORCE_PRIVATEKEY_FILE"),
    ],
)
def test_an_incomplete_login_names_the_missing_settings(
    given: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"SALESFORCE_{name.upper()}", value)
    with pytest.raises(SettingsError) as caught:
        Salesforce.from_environment("salesforce")
    assert named in str(caught.value) and "hush-1" not in str(caught.value)


def test_a_complete_login_is_taken() -> None:
    SalesforceOptions(username="u", password=SecretStr("p"))
    SalesforceOptions(consumer_key="k", consumer_secret=SecretStr("s"), domain="acme.my")
    with pytest.raises(ValidationError):
        SalesforceOptions(consumer_key="k", consumer_secret=SecretStr("s"), domain="test")
