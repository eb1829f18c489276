"""The simulated Salesforce org, called with simple-salesforce as a connector calls a real org."""

import hashlib
import hmac
import json
import os
import re
import signal
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jwt
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest_httpserver import HTTPServer
from requests.adapters import HTTPAdapter
from simple_salesforce.api import Salesforce
from simple_salesforce.exceptions import (
    SalesforceAuthenticationFailed,
    SalesforceExpiredSession,
    SalesforceGeneralError,
    SalesforceMalformedRequest,
    SalesforceMoreThanOneRecord,
    SalesforceRefusedRequest,
    SalesforceResourceNotFound,
)
from simple_salesforce.format import format_soql

import child_processes
from simulators.certificates import ensure_certificates
from simulators.salesforce import Credentials, SalesforceSimulator
from simulators.salesforce.database import _like
from simulators.salesforce.errors import SalesforceError
from simulators.salesforce.identifiers import make_id, suffix, to_18
from simulators.salesforce.queries import run
from simulators.salesforce.schema import OBJECTS
from simulators.salesforce.soql import parse
from simulators.salesforce.soql import quote as soql_quote
from simulators.salesforce.store import API_USER, PERSON, Store

ROOT = Path(__file__).parents[2]
SMALL_PAGE = 3


class Loopback(HTTPAdapter):
    """Send every call to the simulator, whatever its host, with a timeout of 5 s."""

    def __init__(self, url: str = "") -> None:
        super().__init__()
        self._url = url

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        if self._url and request.url:
            request.url = self._url + re.sub(r"^https://[^/]+", "", request.url)
        return super().send(request, **{**kwargs, "timeout": 5})


def http_session(simulator: SalesforceSimulator, reroute: bool = False) -> requests.Session:
    session = requests.Session()
    # The environment may set another CA bundle, which requests would prefer to `verify`.
    session.trust_env = False
    session.verify = simulator.ca_file
    session.mount("https://", Loopback(simulator.url if reroute else ""))
    return session


#: simple-salesforce resolves objects by attribute access, which its type hints do not cover.
Client = Any


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    ensure_certificates(folder)
    return folder


@pytest.fixture
def org(certs: Path) -> Iterator[SalesforceSimulator]:
    with SalesforceSimulator(certs=certs) as simulator:
        yield simulator


@pytest.fixture
def http(org: SalesforceSimulator) -> Iterator[requests.Session]:
    with http_session(org) as session:
        yield session


@pytest.fixture
def sf(org: SalesforceSimulator, http: requests.Session) -> Client:
    return Salesforce(session_id=org.session(), instance_url=org.url, session=http)


def code_of(error: pytest.ExceptionInfo[Any]) -> str:
    return str(error.value.content[0]["errorCode"])


# --- logging in ---------------------------------------------------------------------


def login(org: SalesforceSimulator, **how: Any) -> Client:
    return Salesforce(session=http_session(org, reroute=True), **how)


def test_soap_login_gives_a_session_that_works(org: SalesforceSimulator) -> None:
    known = org.credentials
    sf = login(org, username=known.username, password=known.password, security_token=known.security_token)
    assert sf.sf_instance == org.url.removeprefix("https://")
    assert sf.query("SELECT COUNT() FROM Account")["totalSize"] == 0
    sf.session.close()


def test_a_wrong_password_is_refused_in_soap_and_oauth(org: SalesforceSimulator) -> None:
    known = org.credentials
    with pytest.raises(SalesforceAuthenticationFailed, match="INVALID_LOGIN"):
        login(org, username=known.username, password="<no&>", security_token="")
    with pytest.raises(SalesforceAuthenticationFailed, match="invalid_grant"):
        login(
            org,
            username=known.username,
            password="no",
            consumer_key=known.client_id,
            consumer_secret=known.client_secret,
        )


def test_oauth_password_and_client_credentials(org: SalesforceSimulator) -> None:
    known = org.credentials
    keys = {"consumer_key": known.client_id, "consumer_secret": known.client_secret}
    for how in (
        {"username": known.username, "password": known.password, **keys},
        {"domain": "acme.my", **keys},
    ):
        sf = login(org, **how)
        assert sf.limits()["DailyApiRequests"]["Max"] == org.org.daily_limit
        sf.session.close()
    with pytest.raises(SalesforceAuthenticationFailed, match="invalid_client"):
        login(org, domain="acme.my", consumer_key=known.client_id, consumer_secret="no")


def test_jwt_bearer_login_checks_the_signature(certs: Path) -> None:
    key, other = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    with SalesforceSimulator(certs=certs, credentials=Credentials(jwt_public_key=public.decode())) as org:
        how = {"username": org.credentials.username, "consumer_key": org.credentials.client_id}
        sf = login(org, privatekey=_pem(key), **how)
        assert (sf.describe() or {})["maxBatchSize"] == 200
        sf.session.close()
        with pytest.raises(SalesforceAuthenticationFailed, match="invalid assertion"):
            login(org, privatekey=_pem(other), **how)
        late = jwt.encode(
            {"iss": how["consumer_key"], "sub": how["username"], "exp": int(time.time()) - 60},
            _pem(key),
            algorithm="RS256",
        )
        grant = "urn:ietf:params:oauth:grant-type:jwt-bearer"
        with http_session(org) as http:
            reply = http.post(f"{org.url}/services/oauth2/token", {"grant_type": grant, "assertion": late})
        assert (reply.status_code, reply.json()["error"]) == (400, "invalid_grant")


def _pem(key: rsa.RSAPrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


# --- single records ---------------------------------------------------------------------


def test_a_record_is_created_read_changed_and_deleted(org: SalesforceSimulator, sf: Client) -> None:
    made = sf.Account.create({"Name": "  Ada ", "Active__c": False, "Phone": ""})
    record = sf.Account.get(made["id"])
    assert record["attributes"]["url"] == f"/services/data/v59.0/sobjects/Account/{made['id']}"
    # Outer whitespace is stripped, empty text becomes null, and times have whole seconds.
    assert (record["Name"], record["Active__c"], record["Phone"]) == ("Ada", False, None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.000\+0000", record["SystemModstamp"])
    assert sf.Account.update(made["id"][:15], {"Name": "Bea"}) == 204
    assert org.store.get("Account", made["id"])["Name"] == "Bea"
    assert sf.Account.delete(made["id"]) == 204
    for call in (sf.Account.get, sf.Account.delete):
        with pytest.raises(SalesforceResourceNotFound) as gone:
            call(made["id"])
        assert code_of(gone) == "ENTITY_IS_DELETED"
    assert sf.query(f"SELECT Id FROM Account WHERE Id = '{made['id']}'")["totalSize"] == 0
    found = sf.query_all(f"SELECT Id, IsDeleted FROM Account WHERE Id = '{made['id']}'", include_deleted=True)
    assert [row["IsDeleted"] for row in found["records"]] == [True]


def test_upsert_creates_then_updates_and_says_which(sf: Client, org: SalesforceSimulator) -> None:
    key = "a b/c?é+"  # all characters with a meaning in a URL
    address = f"Syncflow_Id__c/{quote(key, safe='')}"
    first = sf.Account.upsert(address, {"Name": "One"}, raw_response=True)
    again = sf.Account.upsert(address, {"Name": "Two"}, raw_response=True)
    assert (first.status_code, first.json()["created"]) == (201, True)
    assert (again.status_code, again.json()["created"]) == (200, False)
    assert org.store.find("Account", "Syncflow_Id__c", key.upper())[0]["Name"] == "Two"
    assert sf.Account.get(address)["Id"] == first.json()["id"]
    with pytest.raises(SalesforceMalformedRequest, match="should not be specified"):
        sf.Account.upsert(address, {"Name": "x", "Syncflow_Id__c": key})


def test_an_external_id_of_several_records_answers_300(sf: Client) -> None:
    ids = [sf.Contact.create({"LastName": "X", "Email": "a@b.example"})["id"] for _ in range(2)]
    with pytest.raises(SalesforceMoreThanOneRecord) as several:
        sf.Contact.get_by_custom_id("Email", "a@b.example")
    found: Any = several.value.content
    assert found == [f"/services/data/v59.0/sobjects/Contact/{one}" for one in ids]
    with pytest.raises(SalesforceMoreThanOneRecord):
        sf.Contact.upsert("Email/a@b.example", {"LastName": "Y"})


@pytest.mark.parametrize(
    ("data", "code", "fields"),
    [
        ({}, "REQUIRED_FIELD_MISSING", ["Name"]),
        ({"Name": "x", "Nope": 1}, "INVALID_FIELD", None),
        ({"Name": "x" * 256}, "STRING_TOO_LONG", ["Name"]),
        ({"Name": "x", "Phone": "😀" * 21}, "STRING_TOO_LONG", ["Phone"]),
        ({"Name": "x", "Email__c": "no"}, "INVALID_EMAIL_ADDRESS", ["Email__c"]),
        ({"Name": "x", "CurrencyIsoCode": "XXX"}, "INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST", ["CurrencyIsoCode"]),
        ({"Name": "x", "Active__c": "maybe"}, "JSON_PARSER_ERROR", None),
        ({"Name": "x", "CreatedDate": "2026-01-01"}, "INVALID_FIELD_FOR_INSERT_UPDATE", ["CreatedDate"]),
        ({"Name": "x", "Syncflow_Id__c": "TAKEN"}, "DUPLICATE_VALUE", []),
    ],
)  # fmt: skip
def test_bad_data_is_refused_with_the_code_and_the_field(
    sf: Client, data: dict[str, Any], code: str, fields: list[str] | None
) -> None:
    sf.Account.create({"Name": "first", "Syncflow_Id__c": "taken"})
    with pytest.raises(SalesforceMalformedRequest) as refused:
        sf.Account.create(data)
    assert code_of(refused) == code
    content: Any = refused.value.content
    assert content[0].get("fields") == fields
    assert sf.query("SELECT COUNT() FROM Account")["totalSize"] == 1


def test_ids_that_are_wrong_or_unknown(sf: Client) -> None:
    unknown = make_id("001", 999)
    with pytest.raises(SalesforceResourceNotFound) as missing:
        sf.Account.get(unknown)
    assert code_of(missing) == "NOT_FOUND"
    for wrong in (make_id("003", 1), unknown[:-1] + "Z", "short"):
        with pytest.raises(SalesforceMalformedRequest) as malformed:
            sf.Account.get(wrong)
        assert code_of(malformed) == "MALFORMED_ID"
    for parent, code in (
        (unknown, "INVALID_CROSS_REFERENCE_KEY"),
        (make_id("01t", 1), "FIELD_INTEGRITY_EXCEPTION"),
    ):
        with pytest.raises(SalesforceMalformedRequest) as bad_parent:
            sf.Contact.create({"LastName": "X", "AccountId": parent})
        assert code_of(bad_parent) == code


def test_a_parent_may_be_named_by_its_external_id(sf: Client, org: SalesforceSimulator) -> None:
    account = sf.Account.create({"Name": "A", "Syncflow_Id__c": "7"})["id"]
    invoice = sf.Invoice__c.create({"Customer__r": {"Syncflow_Id__c": "7"}, "Total__c": 12.5})["id"]
    record = org.store.get("Invoice__c", invoice)
    assert (record["Customer__c"], record["Total__c"], record["Name"]) == (account, 12.5, invoice)
    with pytest.raises(SalesforceMalformedRequest, match="Foreign key external ID"):
        sf.Invoice__c.create({"Customer__r": {"Syncflow_Id__c": "8"}})


def test_if_unmodified_since(sf: Client, org: SalesforceSimulator, http: requests.Session) -> None:
    account = org.add("Account", Name="A")
    org.clock.advance(60)
    seen = http.get(f"{sf.base_url}sobjects/Account/{account}", headers=sf.headers).headers["Last-Modified"]
    sf.Account.update(account, {"Name": "B"}, headers={"If-Unmodified-Since": seen})
    with pytest.raises(SalesforceGeneralError) as stale:
        sf.Account.update(account, {"Name": "C"}, headers={"If-Unmodified-Since": seen})
    assert stale.value.status == 412
    assert org.store.get("Account", account)["Name"] == "B"


# --- queries ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def animals() -> Iterator[Store]:
    store = Store()
    store.clock.freeze()  # "today" stays the same day, even if the test runs across midnight
    for name, city, active, email in (
        ("Ant", "Oslo", True, "a@x.example"),
        ("Bee", "Oslo", False, None),
        ("cat", None, True, "c@x.example"),
        ("50% off_\\", "Rome", False, None),
        ("O'Hara", "Élan", True, None),
    ):
        store.create("Account", {"Name": name, "BillingCity": city, "Active__c": active, "Email__c": email})
    store.clock.advance(-3 * 86400)
    store.create("Account", {"Name": "old"})
    store.clock.advance(3 * 86400)
    yield store
    store.close()


def names(store: Store, rest: str) -> list[str]:
    _, result, _ = run(store, f"SELECT Name FROM Account {rest}")
    return [row["Name"] for row in result.rows]


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ("Name = 'ANT'", ["Ant"]),
        ("Name = 'O\\'Hara'", ["O'Hara"]),
        ("BillingCity = 'éLAN'", ["O'Hara"]),
        ("Name LIKE '%A%' AND Active__c = TRUE", ["Ant", "cat", "O'Hara"]),
        ("Name LIKE '50\\% off\\_%'", ["50% off_\\"]),
        ("Name LIKE '%\\\\'", ["50% off_\\"]),
        ("Name LIKE '_e_'", ["Bee"]),
        ("BillingCity != 'Oslo'", ["cat", "50% off_\\", "O'Hara", "old"]),
        ("BillingCity = null AND Name > 'ba'", ["cat", "old"]),
        ("NOT BillingCity = 'Oslo'", ["cat", "50% off_\\", "O'Hara", "old"]),
        ("NOT (BillingCity > 'A')", ["cat", "old"]),
        ("Name IN ('ant', 'BEE', 'x') AND BillingCity IN ('Oslo')", ["Ant", "Bee"]),
        ("BillingCity IN (null, 'Rome')", ["cat", "50% off_\\", "old"]),
        ("BillingCity NOT IN ('Oslo', 'Rome')", ["cat", "O'Hara", "old"]),
        ("(Name = 'ant' OR Name = 'bee') AND Active__c = false", ["Bee"]),
        ("CreatedDate = TODAY AND Email__c != null", ["Ant", "cat"]),
        ("CreatedDate < LAST_N_DAYS:2", ["old"]),
        ("CreatedDate = N_DAYS_AGO:3", ["old"]),
        ("CreatedDate >= 2000-01-01T00:00:00Z AND CreatedDate <= 2000-01-01T00:00:00+02:00", []),
        ("Id = null", []),
    ],
)  # fmt: skip
def test_conditions(animals: Store, condition: str, found: list[str]) -> None:
    assert names(animals, f"WHERE {condition}") == found


def test_order_limit_offset_and_nulls(animals: Store) -> None:
    assert names(animals, "ORDER BY BillingCity, Name")[:3] == ["cat", "old", "Ant"]
    assert names(animals, "ORDER BY BillingCity DESC NULLS LAST, Name LIMIT 1") == ["O'Hara"]
    assert names(animals, "ORDER BY Name LIMIT 2 OFFSET 1") == ["Ant", "Bee"]
    assert run(animals, "SELECT COUNT() FROM Account WHERE Active__c = true")[2] == 4
    _, everything, _ = run(animals, "SELECT FIELDS(ALL) FROM Account LIMIT 1")
    assert everything.fields == list(OBJECTS["Account"].fields)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("SELECT Name FROM Account WHERE Name = 'a' AND Name = 'b' OR Name = 'c'", "MALFORMED_QUERY"),
        ("SELECT Name FROM Account WHERE Name = 'it's'", "MALFORMED_QUERY"),
        ("SELECT Name FROM Account WHERE Name = 'a\\x'", "MALFORMED_QUERY"),
        ('SELECT Name FROM Account WHERE Name = "a"', "MALFORMED_QUERY"),
        ("SELECT * FROM Account", "MALFORMED_QUERY"),
        ("SELECT Name, name FROM Account", "MALFORMED_QUERY"),
        ("SELECT FIELDS(ALL) FROM Account", "MALFORMED_QUERY"),
        ("SELECT Nope FROM Account", "INVALID_FIELD"),
        ("SELECT Name FROM Account WHERE Description = 'x'", "INVALID_FIELD"),
        ("SELECT Name FROM Account WHERE Active__c = 'true'", "INVALID_FIELD"),
        ("SELECT Name FROM Account WHERE CreatedDate > '2026-01-01'", "INVALID_FIELD"),
        ("SELECT Name FROM Account WHERE Id = 'x'", "INVALID_QUERY_FILTER_OPERATOR"),
        ("SELECT Name FROM Nope", "INVALID_TYPE"),
        ("SELECT Name FROM Account LIMIT 1 OFFSET 2001", "NUMBER_OUTSIDE_VALID_RANGE"),
        ("SELECT Name FROM Account WHERE " + "(" * 3000, "QUERY_TOO_COMPLICATED"),
    ],
)  # fmt: skip
def test_bad_queries_are_refused(animals: Store, query: str, code: str) -> None:
    with pytest.raises(SalesforceError) as refused:
        run(animals, query)
    assert refused.value.code == code


#: Text that a text field stores unchanged.
plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=40)


@given(plain_text)
def test_every_text_survives_quoting(text: str) -> None:
    parsed = parse(f"SELECT Id FROM Account WHERE Name = {soql_quote(text)}")
    assert parsed.where.values[0].text == text  # type: ignore[union-attr]
    # simple-salesforce quotes differently; the parser accepts that too.
    theirs = parse(format_soql("SELECT Id FROM Account WHERE Name = {}", text))
    assert theirs.where.values[0].text == text  # type: ignore[union-attr]


@given(plain_text, plain_text)
def test_like_takes_escaped_text_literally(text: str, other: str) -> None:
    query = parse(format_soql("SELECT Id FROM Account WHERE Name LIKE '{:like}'", text))
    pattern = query.where.values[0].text  # type: ignore[union-attr]
    assert _like(pattern, text)
    assert _like(pattern, other) == (text.casefold() == other.casefold())


@hypothesis_settings(max_examples=40)
@given(name=plain_text.filter(lambda text: text.strip()))
def test_a_name_is_found_by_itself(name: str) -> None:
    store = Store()
    record_id = store.create("Account", {"Name": name})
    kept = store.get("Account", record_id)["Name"]
    assert [row["Id"] for row in run(store, f"SELECT Id FROM Account WHERE Name = {soql_quote(kept)}")[1].rows] == [
        record_id
    ]
    store.close()


@given(st.text(string.ascii_letters + string.digits, min_size=15, max_size=15))
def test_the_suffix_restores_the_case_of_an_id(id15: str) -> None:
    full = id15 + suffix(id15)
    assert to_18(id15) == to_18(full) == to_18(full.lower()) == to_18(full.upper()) == full


def test_a_known_id_has_its_known_suffix() -> None:
    assert suffix("001A0000006Vm9r") == "IAC"  # from the documentation of the ID type
    assert to_18("not an id") is None


def test_large_results_come_in_pages(sf: Client, org: SalesforceSimulator) -> None:
    org.org.page_size = SMALL_PAGE
    made = [org.add("Account", Name=f"n{number}") for number in range(2 * SMALL_PAGE + 1)]
    first = sf.query("SELECT Id FROM Account")
    assert (first["totalSize"], first["done"], len(first["records"])) == (7, False, SMALL_PAGE)
    # The result is a snapshot from the time of the query.
    org.add("Account", Name="late")
    assert [row["Id"] for row in sf.query_all_iter("SELECT Id FROM Account WHERE Name != 'late'")] == made
    second = sf.query_more(first["nextRecordsUrl"], identifier_is_url=True)
    last = sf.query_more(second["nextRecordsUrl"], identifier_is_url=True)
    assert last["done"]
    assert [row["Id"] for page in (first, second, last) for row in page["records"]] == made
    with pytest.raises(SalesforceMalformedRequest, match="INVALID_QUERY_LOCATOR"):
        sf.query_more("0r8nothing-2000")


# --- updated and deleted records ----------------------------------------------------------


def test_updated_and_deleted_cover_whole_minutes(sf: Client, org: SalesforceSimulator) -> None:
    org.clock.freeze()
    org.clock.advance(30 - org.clock.now().second)  # the middle of a minute
    start = org.clock.now()
    kept, gone = org.add("Account", Name="kept"), org.add("Account", Name="gone")
    org.remove("Account", gone)
    # A range within one minute is empty, because seconds are ignored.
    with pytest.raises(SalesforceMalformedRequest, match="INVALID_REPLICATION_DATE"):
        sf.Account.updated(start, start + timedelta(seconds=20))
    org.clock.advance(60)
    changes = sf.Account.updated(start, org.clock.now())
    assert changes["ids"] == [kept]
    assert changes["latestDateCovered"].endswith(":00.000+0000")
    removed = sf.Account.deleted(start, org.clock.now())
    assert [row["id"] for row in removed["deletedRecords"]] == [gone]
    # The window is half-open: the next call starts where this one ended.
    after = datetime.fromisoformat(changes["latestDateCovered"])
    assert sf.Account.updated(after, after + timedelta(minutes=5))["ids"] == []
    with pytest.raises(SalesforceMalformedRequest, match="INVALID_REPLICATION_DATE"):
        sf.Account.updated(datetime.now(UTC) - timedelta(days=40), datetime.now(UTC))


def test_latest_date_covered_may_lag(sf: Client, org: SalesforceSimulator) -> None:
    start = org.clock.now()
    made = org.add("Account", Name="A")
    org.clock.advance(180)
    org.lag(300)
    early = sf.Account.updated(start, org.clock.now())
    assert early["ids"] == []
    assert datetime.fromisoformat(early["latestDateCovered"]) < org.clock.now() - timedelta(seconds=160)
    assert sf.Account.updated(start, org.clock.now())["ids"] == [made]


def test_a_merge_leaves_a_deleted_record_that_points_to_the_winner(sf: Client, org: SalesforceSimulator) -> None:
    master, loser = org.add("Account", Name="master"), org.add("Account", Name="loser")
    contact = org.add("Contact", LastName="L", FirstName="F", AccountId=loser)
    org.store.merge("Account", master, [loser])
    found = sf.query_all(
        f"SELECT Id, IsDeleted, MasterRecordId FROM Account WHERE MasterRecordId = '{master}'",
        include_deleted=True,
    )
    assert [(row["Id"], row["IsDeleted"]) for row in found["records"]] == [(loser, True)]
    record = sf.Contact.get(contact)
    assert (record["AccountId"], record["Name"]) == (master, "F L")


def test_deleting_a_parent_takes_or_frees_its_children(sf: Client, org: SalesforceSimulator) -> None:
    account = org.add("Account", Name="A")
    contact = org.add("Contact", LastName="L", AccountId=account)
    invoice = org.add("Invoice__c", Customer__c=account)
    sf.Account.delete(account)
    assert org.store.get("Contact", contact, deleted_too=True)["IsDeleted"]
    assert org.store.get("Invoice__c", invoice)["Customer__c"] is None


# --- collections and bulk -------------------------------------------------------------------


def of(kind: str, **fields: Any) -> dict[str, Any]:
    return {"attributes": {"type": kind}, **fields}


def test_a_collection_answers_for_each_record_in_order(sf: Client, org: SalesforceSimulator) -> None:
    records = [of("Account", Name="A"), of("Account"), of("Contact", LastName="C")]
    made = sf.restful("composite/sobjects", method="POST", json={"records": records})
    assert [one["success"] for one in made] == [True, False, True]
    assert made[1]["errors"][0]["statusCode"] == "REQUIRED_FIELD_MISSING"
    ids = [made[0]["id"], made[2]["id"]]
    changed = sf.restful(
        "composite/sobjects",
        method="PATCH",
        json={
            "records": [
                of("Account", id=ids[0], Name="B"),
                of("Contact", id=make_id("003", 99), LastName="x"),
            ]
        },
    )
    assert [one["success"] for one in changed] == [True, False]
    read = sf.restful("composite/sobjects/Account", params={"ids": f"{ids[0]},{make_id('001', 99)}", "fields": "Name"})
    assert (read[0]["Name"], read[1]) == ("B", None)
    posted = sf.restful("composite/sobjects/Account", method="POST", json={"ids": [ids[0]], "fields": ["Name"]})
    assert posted[0]["Name"] == "B"
    deleted = sf.restful("composite/sobjects", method="DELETE", params={"ids": ",".join([*ids, ids[0]])})
    assert [one["success"] for one in deleted] == [True, True, False]
    assert deleted[2]["errors"][0]["statusCode"] == "ENTITY_IS_DELETED"


def test_a_collection_is_upserted_by_external_id(sf: Client, org: SalesforceSimulator) -> None:
    org.fail_items(1)
    records = [of("Account", Name=f"n{key}", Syncflow_Id__c=key) for key in ("1", "2", "2")]

    def send() -> Any:
        return sf.restful("composite/sobjects/Account/Syncflow_Id__c", method="PATCH", json={"records": records})

    first, again = send(), send()
    assert [one.get("created") for one in first] == [None, True, None]
    assert [one["errors"][0]["statusCode"] for one in (first[0], first[2])] == [
        "UNABLE_TO_LOCK_ROW",
        "DUPLICATE_VALUE",
    ]
    assert [one.get("created") for one in again] == [True, False, None]
    assert org.store.count("Account") == 2
    with pytest.raises(SalesforceMalformedRequest, match="EXCEEDED_ID_LIMIT"):
        sf.restful("composite/sobjects", method="POST", json={"records": records * 67})


def test_all_or_none_undoes_everything(sf: Client, org: SalesforceSimulator) -> None:
    body = {"allOrNone": True, "records": [of("Account", Name="A"), of("Account")]}
    results = sf.restful("composite/sobjects", method="POST", json=body)
    codes = [one["errors"][0]["statusCode"] for one in results]
    assert codes == ["ALL_OR_NONE_OPERATION_ROLLED_BACK", "REQUIRED_FIELD_MISSING"]
    assert org.store.count("Account") == 0


def test_each_graph_is_written_as_a_whole_or_not_at_all(sf: Client, org: SalesforceSimulator) -> None:
    def graph(name: str, line: dict[str, Any]) -> dict[str, Any]:
        base = "/services/data/v59.0/sobjects"
        parent = {"method": "PATCH", "url": f"{base}/Invoice__c/Syncflow_Id__c/{name}", "body": {"Name": name}}
        child = {"method": "POST", "url": f"{base}/Invoice_Line__c", "body": {"Invoice__c": "@{parent.id}", **line}}
        return {"graphId": name, "compositeRequest": [parent | {"referenceId": "parent"}, child | {"referenceId": "l"}]}

    body = {"graphs": [graph("good", {"Quantity__c": 1}), graph("bad", {"Nothing__c": 1})]}
    good, bad = sf.restful("composite/graph", method="POST", json=body)["graphs"]
    (invoice,), (line,) = org.store.all("Invoice__c"), org.store.all("Invoice_Line__c")
    assert (good["isSuccessful"], invoice["Name"], line["Invoice__c"]) == (True, "good", invoice["Id"])
    answers = bad["graphResponse"]["compositeResponse"]
    codes = [(one["httpStatusCode"], one["body"][0]["errorCode"]) for one in answers]
    assert (bad["isSuccessful"], codes) == (False, [(400, "PROCESSING_HALTED"), (400, "INVALID_FIELD")])
    with pytest.raises(SalesforceMalformedRequest) as refused:
        sf.restful("composite/graph", method="POST", json={"graphs": [graph("x", {})] * 76})
    assert code_of(refused) == "LIMIT_EXCEEDED"


def test_bulk_ingest_of_every_kind(sf: Client, org: SalesforceSimulator) -> None:
    bulk = sf.bulk2.Account
    rows = [{"Name": 'A, "quoted"\nline', "Syncflow_Id__c": "1"}, {"Name": "", "Syncflow_Id__c": "2"}]
    [job] = bulk.insert(records=rows, wait=0)
    assert (job["numberRecordsProcessed"], job["numberRecordsFailed"]) == (2, 1)
    [made] = org.store.all("Account")
    assert made["Name"] == rows[0]["Name"]
    results = bulk.get_all_ingest_records(job["job_id"])
    assert results["successfulRecords"][0]["sf__Id"] == made["Id"]
    assert results["failedRecords"][0]["sf__Error"].startswith("REQUIRED_FIELD_MISSING:")
    assert results["unprocessedRecords"] == []
    more = [{"Name": "A2", "Syncflow_Id__c": "1"}, {"Name": "B", "Syncflow_Id__c": "2"}]
    bulk.upsert(records=more, external_id_field="Syncflow_Id__c", wait=0)
    bulk.update(records=[{"Id": made["Id"], "Name": "A3", "Phone": "#N/A"}], wait=0)
    assert [one["Name"] for one in org.store.all("Account")] == ["A3", "B"]
    [gone] = bulk.delete(records=[{"Id": made["Id"]}], wait=0)
    assert (gone["numberRecordsFailed"], org.store.count("Account")) == (0, 1)


def test_bulk_query_gives_pages_of_csv(sf: Client, org: SalesforceSimulator) -> None:
    for number in range(5):
        org.add("Account", Name=f"n{number}", Active__c=number > 0)
    query = "SELECT Name, Active__c, Phone FROM Account ORDER BY Name"
    pages = list(sf.bulk2.Account.query(query, max_records=2, wait=0))
    assert len(pages) == 3
    assert pages[0].splitlines() == ['"Name","Active__c","Phone"', '"n0","false",""', '"n1","true",""']


def test_describe_tells_what_a_connector_needs(sf: Client) -> None:
    assert {one["name"] for one in sf.describe()["sobjects"]} == set(OBJECTS)
    fields = {one["name"]: one for one in sf.Invoice__c.describe()["fields"]}
    assert fields["Syncflow_Id__c"]["externalId"] and fields["Syncflow_Id__c"]["unique"]
    assert fields["Customer__c"]["referenceTo"] == ["Account", "Contact"]
    assert [one["value"] for one in fields["Status__c"]["picklistValues"]][:2] == ["draft", "open"]
    assert not sf.Account.describe()["fields"][0]["createable"]


# --- faults and limits -----------------------------------------------------------------------


def test_sessions_expire_in_the_middle(sf: Client, org: SalesforceSimulator) -> None:
    sf.limits()
    org.expire_sessions()
    with pytest.raises(SalesforceExpiredSession) as expired:
        sf.query("SELECT Id FROM Account")
    assert code_of(expired) == "INVALID_SESSION_ID"


def test_a_client_that_knows_its_password_logs_in_again(org: SalesforceSimulator) -> None:
    known = org.credentials
    sf = login(org, username=known.username, password=known.password, security_token=known.security_token)
    org.expire_sessions()
    assert sf.Account.create({"Name": "A"})["success"]
    assert len(org.journal.calls("POST", "/services/Soap/")) == 2
    org.reject_login()
    org.expire_sessions()
    with pytest.raises(SalesforceAuthenticationFailed):
        sf.Account.create({"Name": "B"})
    sf.session.close()


def test_a_call_can_fail_a_number_of_times(sf: Client, org: SalesforceSimulator) -> None:
    org.fail(1, 503, html=True)
    org.fail(1, 429, "REQUEST_LIMIT_EXCEEDED", retry_after="7")
    org.fail(1, 403, "REQUEST_LIMIT_EXCEEDED", path="/query")
    with pytest.raises(SalesforceGeneralError, match="<h1>") as down:
        sf.Account.create({"Name": "A"})
    with pytest.raises(SalesforceGeneralError) as busy:
        sf.Account.create({"Name": "A"})
    assert (down.value.status, busy.value.status) == (503, 429)
    sf.Account.create({"Name": "A"})
    with pytest.raises(SalesforceRefusedRequest, match="REQUEST_LIMIT_EXCEEDED"):
        sf.query("SELECT Id FROM Account")
    assert [entry.status for entry in org.journal.entries()] == [503, 429, 201, 403]
    assert org.store.count("Account") == 1


def test_a_locked_row_is_refused_once(sf: Client, org: SalesforceSimulator) -> None:
    account = org.add("Account", Name="A")
    org.fail_items(1)
    with pytest.raises(SalesforceMalformedRequest, match="UNABLE_TO_LOCK_ROW"):
        sf.Account.update(account, {"Name": "B"})
    sf.Account.update(account, {"Name": "B"})
    assert org.store.get("Account", account)["Name"] == "B"


@pytest.mark.parametrize(("when", "written"), [("before", 0), ("after", 1)])
def test_the_connection_is_cut(sf: Client, org: SalesforceSimulator, when: str, written: int) -> None:
    org.drop(1, when=when)
    with pytest.raises(requests.ConnectionError):
        sf.Account.upsert("Syncflow_Id__c/1", {"Name": "A"})
    assert org.store.count("Account") == written
    assert org.journal.entries()[-1].status == 0
    sf.Account.upsert("Syncflow_Id__c/1", {"Name": "A"})
    assert org.store.count("Account") == 1


def test_a_reply_cut_inside_its_headers_looks_like_an_empty_success(
    org: SalesforceSimulator, http: requests.Session
) -> None:
    org.drop(1, when="inside")
    url = f"{org.url}/services/data/v59.0/sobjects/Account/"
    reply = http.post(url, json={"Name": "A"}, headers={"Authorization": f"Bearer {org.session()}"})
    assert (reply.status_code, reply.content) == (201, b"")
    assert org.store.count("Account") == 1


def test_delay_and_the_daily_limit(sf: Client, org: SalesforceSimulator) -> None:
    org.delay(0.15)
    began = time.monotonic()
    sf.limits()
    assert time.monotonic() - began >= 0.15
    org.org.daily_limit = org.org.calls_used + 1
    sf.limits()
    assert sf.api_usage["api-usage"] == (2, 2)
    with pytest.raises(SalesforceRefusedRequest, match="TotalRequests Limit exceeded"):
        sf.limits()


def test_calls_are_quick_on_one_connection(sf: Client) -> None:
    began = time.monotonic()
    for number in range(40):
        sf.Account.upsert(f"Syncflow_Id__c/{number}", {"Name": "A"})
    # Without TCP_NODELAY these 40 calls take 40 ms each.
    assert time.monotonic() - began < 1.0


# --- from outside: control calls, pages, the process -----------------------------------------------


def test_everything_can_be_switched_by_control_calls(
    sf: Client, org: SalesforceSimulator, http: requests.Session
) -> None:
    control = f"{org.url}/_control"
    http.post(f"{control}/faults", json={"kind": "fail", "status": 500, "code": "UNKNOWN_EXCEPTION"})
    assert http.post(f"{control}/faults", json={"kind": "nonsense"}).status_code == 400
    with pytest.raises(SalesforceGeneralError, match="UNKNOWN_EXCEPTION"):
        sf.limits()
    assert http.get(f"{control}/faults").json() == []
    made = http.post(f"{control}/edit", json={"object": "Account", "fields": {"Name": "A"}}).json()["id"]
    loser = http.post(f"{control}/edit", json={"object": "Account", "fields": {"Name": "B"}}).json()["id"]
    http.post(f"{control}/merge", json={"object": "Account", "master": made, "losers": [loser]})
    http.post(f"{control}/restore", json={"object": "Account", "id": loser})
    http.post(f"{control}/delete", json={"object": "Account", "id": made})
    assert [one["Id"] for one in http.get(f"{control}/records/Account").json()] == [loser]
    sf.Account.get(loser)
    journal = http.get(f"{control}/journal", params={"since": 1}).json()
    assert [(one["method"], one["object"], one["ids"], one["status"]) for one in journal] == [
        ("GET", "Account", [loser], 200)
    ]
    http.delete(f"{control}/journal")
    http.post(f"{control}/expire_sessions")
    http.post(f"{control}/settings", json={"page_size": 5})
    assert http.post(f"{control}/settings", json={"store": 5}).status_code == 400
    assert org.org.page_size == 5
    assert http.get(f"{control}/journal").json() == []
    with pytest.raises(SalesforceExpiredSession):
        sf.limits()
    assert http.post(f"{control}/reset", json={}).status_code == 200
    assert org.store.all("Account", deleted_too=True) == []


def test_a_person_edits_a_record_in_the_browser(org: SalesforceSimulator, http: requests.Session) -> None:
    url = org.url.replace("https", "http")  # a browser does not trust our CA
    account = org.store.create("Account", {"Name": "<b>Ada</b>", "Syncflow_Id__c": "1"})
    assert org.store.get("Account", account)["LastModifiedById"] == API_USER
    org.clock.advance(5)
    assert "&lt;b&gt;Ada" in http.get(f"{url}/").text
    assert http.get(f"{url}/ui/Account/{account}").status_code == 200
    saved = http.post(f"{url}/ui/Account/{account}", {"Name": "Bea", "Active__c": "false"}, allow_redirects=False)
    assert saved.status_code == 303
    record = org.store.get("Account", account)
    assert (record["Name"], record["Active__c"], record["LastModifiedById"]) == ("Bea", False, PERSON)
    assert record["SystemModstamp"] > record["CreatedDate"]
    assert "Required fields" in http.post(f"{url}/ui/Account/{account}", {"Name": ""}).text
    http.post(f"{url}/ui/Account/new", {"Name": "New"}, allow_redirects=False)
    http.post(f"{url}/ui/Account/{account}/delete", allow_redirects=False)
    assert [one["Name"] for one in org.store.all("Account")] == ["New"]
    assert org.journal.entries() == []


def test_every_committed_change_can_be_told_to_somebody(certs: Path, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/hook", method="POST").respond_with_data("")
    with SalesforceSimulator(certs=certs, notify_url=httpserver.url_for("/hook"), notify_secret="s") as org:
        account = org.add("Account", Name="A", Syncflow_Id__c="1")
        with pytest.raises(SalesforceError):
            org.add("Account", Name="B", Syncflow_Id__c="1")
        org.edit("Account", account, Name="C")
        org.store.delete("Account", account)
        assert org.callouts is not None
        org.callouts.sender.wait_idle()
    received = [(request, request.get_data()) for request, _ in httpserver.log]
    for request, body in received:
        assert request.headers["X-Syncflow-Secret"] == "s"
        assert request.headers["X-Signature"] == hmac.new(b"s", body, hashlib.sha256).hexdigest()
    events = [json.loads(body) for _, body in received]
    assert [(one["operation"], one["by"]) for one in events] == [
        ("created", PERSON),
        ("updated", PERSON),
        ("deleted", API_USER),
    ]
    assert {(one["sobject"], one["record"]["Id"]) for one in events} == {("Account", account)}
    assert [one["deleted"] for one in events] == [False, False, True]


def test_many_clients_create_one_record(org: SalesforceSimulator) -> None:
    url = f"{org.url}/services/data/v59.0/sobjects/Account/Syncflow_Id__c/1"
    headers = {"Authorization": f"Bearer {org.session()}"}

    def send(number: int) -> int:
        with http_session(org) as http:
            return http.patch(url, json={"Name": str(number)}, headers=headers).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(send, range(16)))
    assert statuses == [200] * 15 + [201]
    assert org.store.count("Account") == 1


def test_other_web_sites_and_plain_http_are_kept_out(org: SalesforceSimulator, http: requests.Session) -> None:
    url = org.url.replace("https", "http")
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        assert http.post(f"{url}/_control/reset", json={}, headers=headers).status_code == 403
    plain = http.get(f"{url}/services/data/v59.0/limits", headers={"Authorization": f"Bearer {org.session()}"})
    assert (plain.status_code, plain.json()[0]["message"]) == (403, "HTTPS Required")
    with requests.Session() as stranger, pytest.raises(requests.exceptions.SSLError):
        stranger.trust_env = False
        stranger.get(org.url, timeout=5)


def test_unknown_addresses_methods_and_long_ones(org: SalesforceSimulator, http: requests.Session) -> None:
    headers = {"Authorization": f"Bearer {org.session()}"}
    base = f"{org.url}/services/data/v59.0"
    assert http.get(f"{base}/nope", headers=headers).status_code == 404
    assert http.put(f"{base}/limits", headers=headers).status_code == 405
    assert http.get(f"{base}/query?q={'x' * 17000}", headers=headers).status_code == 414
    broken = http.post(f"{base}/sobjects/Account", data="{", headers=headers)
    assert (broken.status_code, broken.json()[0]["errorCode"]) == (400, "JSON_PARSER_ERROR")
    assert http.get(f"{org.url}/services/data").json()[-1]["version"] > "59.0"


def test_a_body_may_come_in_chunks(org: SalesforceSimulator, http: requests.Session) -> None:
    headers = {"Authorization": f"Bearer {org.session()}"}
    chunks = iter([b'{"Na', b'me": "A"}'])
    made = http.post(f"{org.url}/services/data/v59.0/sobjects/Account", data=chunks, headers=headers)
    assert made.status_code == 201
    assert [one["Name"] for one in org.store.all("Account")] == ["A"]


def test_certificates_are_kept_private_and_renewed(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path)
    assert {path.stat().st_mode & 0o777 for path in (files.server_key, tmp_path / "ca.key")} == {0o600}
    before = files.server.read_bytes()
    assert ensure_certificates(tmp_path).server.read_bytes() == before
    files.server.write_bytes(before[:100])
    assert ensure_certificates(tmp_path).server.read_bytes() != before
    certificate = x509.load_pem_x509_certificate(files.server.read_bytes())
    assert certificate.not_valid_after_utc - datetime.now(UTC) > timedelta(days=820)


def test_the_process_keeps_its_data_and_ends_cleanly(tmp_path: Path, certs: Path) -> None:
    data = tmp_path / "data" / "salesforce.sqlite3"
    command = [
        sys.executable,
        "-m",
        "simulators.salesforce",
        "--port",
        "0",
        "--data",
        str(data),
        "--certs",
        str(certs),
    ]
    seen: list[list[str]] = []
    for number, ending in enumerate((signal.SIGTERM, signal.SIGINT)):
        with child_processes.start(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            with requests.Session() as http:
                http.trust_env, http.verify = False, str(certs / "ca.pem")
                http.post(
                    f"{url}/_control/edit",
                    json={"object": "Account", "fields": {"Name": str(number)}},
                    timeout=5,
                )
                records = http.get(f"{url}/_control/records/Account", timeout=5).json()
                seen.append([one["Name"] for one in records])
                process.send_signal(ending)
                assert process.wait(timeout=5) == 0
    assert seen == [["0"], ["0", "1"]]
