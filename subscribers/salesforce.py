"""Salesforce, with simple-salesforce: collections of up to 200 records a call, SOQL for what changed.

REST API developer guide: "sObject Collections", "Query", "sObject Get Deleted", "Status Codes and
Error Responses". Records find their way back by an External ID field that carries our record's id.
"""

from __future__ import annotations

import json
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar
from urllib.parse import quote
from xml.parsers.expat import ExpatError

import jwt
import requests
from pydantic import SecretStr, model_validator
from simple_salesforce.api import Salesforce as Client
from simple_salesforce.exceptions import SalesforceAuthenticationFailed, SalesforceError
from simple_salesforce.format import format_external_id, format_soql
from simple_salesforce.login import SalesforceLogin, token_login

from subscribers import base
from subscribers.base import Event, External, Item, Page, Subscriber, System, register
from subscribers.errors import BadSignature, BadWebhook, Gone, Reject, Retry, SyncError, SystemDown
from subscribers.http import (
    Url,
    iso_time,
    network_error,
    new_session,
    retry_after,
    same_secret,
    secrets_of,
    server_time,
    status_error,
)
from subscribers.mapping import words

T = TypeVar("T")
Errors = Sequence[Mapping[str, Any]]

#: Records may become visible later than their SystemModstamp says; this close to the present they are
#: read again, seconds.
SETTLING = 60
#: Salesforce tells of deletions no longer ago than 15 days.
DELETED_REACH = timedelta(days=14, hours=23)
#: Pauses, seconds: after a refused login (many tries in a row lock the user), and when the calls are used up.
LOGIN_PAUSE, LIMIT_PAUSE, BUSY_PAUSE = 300.0, 900.0, 10.0


class SalesforceOptions(base.Options):
    """One complete login is needed:

    - SALESFORCE_CONSUMER_KEY and _CONSUMER_SECRET (client credentials), with _DOMAIN = your My Domain
      (`acme.my`) or _INSTANCE_URL;
    - SALESFORCE_USERNAME, _CONSUMER_KEY and _PRIVATEKEY_FILE (JWT bearer);
    - SALESFORCE_USERNAME, _PASSWORD, and _SECURITY_TOKEN unless the address is trusted; _DOMAIN is
      `login`, or `test` for a sandbox.

    _EXTERNAL_ID_FIELD is the field that carries our record's id, unique and marked External ID.
    _WEBHOOK_SECRET is what callouts send in X-Syncflow-Secret, several separated by blanks; while it
    is empty every webhook is refused.
    """

    username: str = ""
    password: SecretStr = SecretStr("")
    security_token: SecretStr = SecretStr("")
    consumer_key: str = ""
    consumer_secret: SecretStr = SecretStr("")
    privatekey_file: str = ""
    domain: str = "login"
    instance_url: Url | None = None
    ca_bundle: str = ""
    external_id_field: str = "Syncflow_Id__c"
    webhook_secret: SecretStr = SecretStr("")
    api_version: str = "59.0"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        missing = [name for name in LOGINS[self.login_kind()] if not _is_set(getattr(self, name))]
        if missing:
            names = ", ".join(f"SALESFORCE_{name.upper()}" for name in missing)
            raise ValueError(f"the login is not complete, set {names}")
        if self.login_kind() == "client_credentials" and not self.instance_url and self.domain in ("login", "test"):
            raise ValueError("client credentials need SALESFORCE_INSTANCE_URL, or your My Domain as SALESFORCE_DOMAIN")
        if self.privatekey_file and not Path(self.privatekey_file).is_file():
            raise ValueError("SALESFORCE_PRIVATEKEY_FILE is no file")
        return self

    def login_kind(self) -> str:
        """Which login is meant: client_credentials, jwt or password."""
        if self.privatekey_file:
            return "jwt"
        return "client_credentials" if _is_set(self.consumer_secret) else "password"


LOGINS: Mapping[str, Sequence[str]] = {
    "password": ("username", "password"),
    "client_credentials": ("consumer_key", "consumer_secret"),
    "jwt": ("username", "consumer_key", "privatekey_file"),
}


def _is_set(value: str | SecretStr) -> bool:
    return bool(value.get_secret_value() if isinstance(value, SecretStr) else value)


class Salesforce(System):
    """One Salesforce org.

    The login is shared by all threads; each has its own simple-salesforce client, since sessions are
    not safe to share. The clients are given a session id and so never log in by themselves: that
    library's own second login does not end while the org goes on refusing.
    """

    Options = SalesforceOptions

    def __init__(self, name: str, options: SalesforceOptions) -> None:
        super().__init__(name, options)
        self._login_lock = threading.Lock()
        self._login: tuple[str, str] | None = None
        self._local = threading.local()

    def call(self, action: Callable[[Client], T], *, writes: bool = False) -> tuple[T, datetime]:
        """The result of `action` with a client that is logged in, and the org's time of the answer.

        Raises:
          SyncError: by the table of error codes. An expired session is renewed once.
        """
        login = self._logged_in(None)
        try:
            return self._attempt(action, login, writes)
        except _Expired:
            login = self._logged_in(login)
        try:
            return self._attempt(action, login, writes)
        except _Expired:
            raise SystemDown("the login is refused: a fresh session is not valid", after=LOGIN_PAUSE) from None

    def verify(self, body: bytes, headers: Mapping[str, str]) -> str:
        """The event's id, once the shared secret fits."""
        given = headers.get("x-syncflow-secret", "")
        if not any([same_secret(given, secret) for secret in secrets_of(self.options.webhook_secret)]):
            raise BadSignature(f"{self.name}: the shared secret does not fit")
        return str(_callout(body)["id"])

    def events(self, body: bytes) -> list[Event]:
        """The one record that the callout is about: `{"id", "sobject", "record": {...}, "deleted"}`."""
        event = _callout(body)
        return [Event(event["sobject"], self.external(event["record"], deleted=event.get("deleted") is True))]

    def external(self, record: Mapping[str, Any], *, deleted: bool = False) -> External:
        """A record of the org's as the hub knows it."""
        data = {name: value for name, value in record.items() if name != "attributes"}
        return External(
            id=str(record["Id"]),
            data=data,
            at=iso_time(record.get("SystemModstamp")),
            deleted=deleted or record.get("IsDeleted") is True,
            record_id=record.get(self.options.external_id_field) or None,
        )

    def page_url(self, resource: str, external_id: str) -> str | None:
        """The record's page in Lightning."""
        host = f"https://{self._login[1]}" if self._login else self.options.instance_url
        return f"{host}/lightning/r/{resource}/{quote(external_id, safe='')}/view" if host else None

    # --- the session --------------------------------------------------------------------------------

    def _attempt(self, action: Callable[[Client], T], login: tuple[str, str], writes: bool) -> tuple[T, datetime]:
        client = self._client(login)
        self._local.response = None
        try:
            result = action(client)
        except SalesforceError as error:
            raise _refusal(error, self._local.response, writes) from None
        except ValueError:
            raise Retry("the answer is no readable JSON", maybe_done=writes) from None
        except requests.RequestException as error:
            raise network_error(error, writes=writes) from error
        at = server_time(self._local.response) if self._local.response is not None else None
        return result, at or datetime.now(UTC)

    def _client(self, login: tuple[str, str]) -> Client:
        if getattr(self._local, "login", None) != login:
            session = new_session(self.options.ca_bundle or None)
            # Its methods return the parsed body alone; the headers, with the org's clock, are kept here.
            session.hooks["response"].append(self._keep)
            self._local.client = Client(
                session_id=login[0],
                instance_url=f"https://{login[1]}",
                version=self.options.api_version,
                session=session,
            )
            self._local.login = login
        client: Client = self._local.client
        return client

    def _keep(self, response: requests.Response, **_: Any) -> None:
        self._local.response = response

    def _logged_in(self, expired: tuple[str, str] | None) -> tuple[str, str]:
        """A login that is not the `expired` one: of several threads that find it expired, one renews it."""
        with self._login_lock:
            if self._login is None or self._login == expired:
                self._login = None
                self._login = self._log_in()
            return self._login

    def _log_in(self) -> tuple[str, str]:
        """(session id, host) of a fresh session."""
        answers: list[requests.Response] = []
        try:
            with new_session(self.options.ca_bundle or None) as session:
                session.hooks["response"].append(lambda response, **_: answers.append(response))
                token, host = LOGIN_CALLS[self.options.login_kind()](self.options, session)
        except SalesforceAuthenticationFailed as error:
            _raise_trouble(answers, in_words=isinstance(error.code, str))
            text = _one_line(f"{error.code}: {error.auth_message}", self.options)
            raise SystemDown(f"the login is refused ({text})", after=LOGIN_PAUSE) from None
        except requests.RequestException as error:
            raise SystemDown(f"cannot log in: {network_error(error, writes=False)}") from None
        except (AttributeError, ValueError, ExpatError, OSError) as error:
            # The library reads the answer without looking: a page of a proxy ends in any of these.
            _raise_trouble(answers, in_words=False)
            raise SystemDown(f"cannot log in: {type(error).__name__}", after=LOGIN_PAUSE) from None
        return token, host.rstrip("/")


def _raise_trouble(answers: Sequence[requests.Response], *, in_words: bool) -> None:
    """Say so where the login was not refused but met a passing trouble: it may be tried again soon.

    A refusal is in Salesforce's own words. Its status does not tell: SOAP says with a 500 that a password is
    wrong, and an answer cut in its headers has a status and no body.
    """
    status = answers[-1].status_code if answers else 0
    if answers and (not in_words or status == 429 or status > 500):
        raise SystemDown(f"cannot log in: {status} without a login", after=retry_after(answers[-1])) from None


def _password_login(options: SalesforceOptions, session: requests.Session) -> tuple[str, str]:
    return SalesforceLogin(
        username=options.username,
        password=options.password.get_secret_value(),
        security_token=options.security_token.get_secret_value(),
        domain=options.domain,
        scratch_url=options.instance_url,
        sf_version=options.api_version,
        session=session,
    )


def _client_credentials_login(options: SalesforceOptions, session: requests.Session) -> tuple[str, str]:
    pair = f"{options.consumer_key}:{options.consumer_secret.get_secret_value()}"
    headers = {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}
    return _token(options, {"grant_type": "client_credentials"}, headers, session)


def _jwt_login(options: SalesforceOptions, session: requests.Session) -> tuple[str, str]:
    audience = "test" if options.domain == "test" else "login"
    claims = {
        "iss": options.consumer_key,
        "sub": options.username,
        "aud": f"https://{audience}.salesforce.com",
        "exp": int(time.time()) + 180,
    }
    assertion = jwt.encode(claims, Path(options.privatekey_file).read_bytes(), algorithm="RS256")
    grant = "urn:ietf:params:oauth:grant-type:jwt-bearer"
    return _token(options, {"grant_type": grant, "assertion": assertion}, None, session)


def _token(
    options: SalesforceOptions, data: dict[str, str], headers: dict[str, str] | None, session: requests.Session
) -> tuple[str, str]:
    host = options.instance_url or f"https://{options.domain}.salesforce.com"
    url = f"{host}/services/oauth2/token"
    return token_login(url, data, options.domain, options.consumer_key, headers, None, session)


LOGIN_CALLS: Mapping[str, Callable[[SalesforceOptions, requests.Session], tuple[str, str]]] = {
    "password": _password_login,
    "client_credentials": _client_credentials_login,
    "jwt": _jwt_login,
}


class SalesforceSubscriber(Subscriber):
    """Records of one object, `sobject`.

    Written 200 a call, each with its own outcome. Only the fields of the mapping in force are read.
    """

    system = "salesforce"
    system_class = Salesforce
    sobject: ClassVar[str]
    bulk_size = 200
    poll_seconds = 60

    # --- calls ------------------------------------------------------------------------------------

    def bulk_create(self, items: Sequence[Item]) -> list[External | SyncError]:
        """Upsert by the External ID, so that repeating it cannot create a second record."""
        records = [self._record(item.data, item) for item in items]
        path = f"composite/sobjects/{self.sobject}/{self.external_id_field}"
        outcomes = self._collection("PATCH", path, items, json={"allOrNone": False, "records": records})
        # There is no record yet that could be gone: a name in the address is unknown there.
        return [Reject(f"{path}: {one}") if isinstance(one, Gone) else one for one in outcomes]

    def bulk_update(self, items: Sequence[Item]) -> list[External | SyncError | None]:
        """Send what changed, by Salesforce's own ids."""
        records = [self._record(item.changes, item) | {"id": item.linked_id} for item in items]
        body = {"allOrNone": False, "records": records}
        return [*self._collection("PATCH", "composite/sobjects", items, json=body)]

    def bulk_delete(self, items: Sequence[Item]) -> list[SyncError | None]:
        """Delete, into the recycle bin."""
        ids = ",".join(item.linked_id for item in items)
        outcomes = self._collection("DELETE", "composite/sobjects", items, params={"ids": ids, "allOrNone": "false"})
        return [one if isinstance(one, SyncError) else None for one in outcomes]

    def fetch(self, external_id: str) -> External:
        """The record now. Raises `Gone`."""
        return self._read(f"sobjects/{self.sobject}/{quote(external_id, safe='')}")

    def find(self, item: Item) -> External | None:
        """The record whose External ID is ours."""
        by_id = format_external_id(self.external_id_field, item.record_id)
        try:
            return self._read(f"sobjects/{self.sobject}/{by_id}")
        except Gone:
            return None

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
        """Changed and deleted records by SystemModstamp, then what left the recycle bin as well.

        Position: `{"modstamp": time, "deleted": time}`, as Salesforce writes times.
        """
        position = dict(position or {})
        since = position.get("modstamp")
        found, now = self.client.call(lambda org: org.query(self._query(since), include_deleted=bool(since)))
        position.setdefault("deleted", _wire(now))
        while True:
            records = found["records"]
            if records:
                position["modstamp"] = _not_before(since, records[-1]["SystemModstamp"], now)
            yield Page([self.client.external(one) for one in records], dict(position))
            if found["done"]:
                break
            more = found["nextRecordsUrl"]
            found, _ = self.client.call(lambda org, more=more: org.query_more(more, identifier_is_url=True))
        yield from self._deleted(position, now)

    # --- how it is done -----------------------------------------------------------------------------

    @property
    def external_id_field(self) -> str:
        """The field that carries our record's id."""
        return str(self.client.options.external_id_field)

    def fields(self) -> list[str]:
        """What is read of each record; without repetition, which SOQL refuses."""
        mapped = self.mapper.paths()
        return [*dict.fromkeys(["Id", "SystemModstamp", "IsDeleted", self.external_id_field, *mapped])]

    def _record(self, data: Mapping[str, Any], item: Item) -> dict[str, Any]:
        return {**data, "attributes": {"type": self.sobject}, self.external_id_field: item.record_id}

    def _read(self, path: str) -> External:
        parameters = {"fields": ",".join(self.fields())}
        record, _ = self.client.call(lambda org: org.restful(path, params=parameters))
        if not isinstance(record, Mapping) or "Id" not in record:
            raise Retry("the answer is no record")
        return self.client.external(record)  # type: ignore[no-any-return]

    def _collection(self, method: str, path: str, items: Sequence[Item], **body: Any) -> list[External | SyncError]:
        """One outcome an item, of a call for all of them; the same for each where the call itself failed."""
        try:
            results, at = self.client.call(lambda org: org.restful(path, method=method, **body), writes=True)
            if not isinstance(results, list) or len(results) != len(items):
                raise Retry("the answer does not say what became of each record", maybe_done=True)
        except SyncError as error:
            return [error] * len(items)
        return [
            External(str(result["id"]), item.data, at=at, record_id=item.record_id)
            if result.get("success")
            else by_code(result.get("errors") or [])
            for item, result in zip(items, results, strict=True)
        ]

    def _query(self, since: str | None) -> str:
        at = iso_time(since)
        # Records changed exactly then are read again: the times are whole seconds, and several share one.
        where = format_soql(" WHERE SystemModstamp >= {}", at) if at else ""
        return f"SELECT {', '.join(self.fields())} FROM {self.sobject}{where} ORDER BY SystemModstamp, Id"

    def _deleted(self, position: dict[str, Any], now: datetime) -> Iterator[Page]:
        """A window of deletions; Salesforce looks at whole minutes only, so it needs one at least."""
        start = max(iso_time(position["deleted"]) or now, now - DELETED_REACH).replace(second=0)
        end = now.replace(second=0)
        if start >= end:
            return
        window = {"start": start.isoformat(), "end": end.isoformat()}
        path = f"sobjects/{self.sobject}/deleted/"
        found, _ = self.client.call(lambda org: org.restful(path, params=window))
        gone = [
            External(one["id"], {}, at=iso_time(one["deletedDate"]), deleted=True) for one in found["deletedRecords"]
        ]
        yield Page(gone, {**position, "deleted": found["latestDateCovered"]})


@register
class SalesforceAccount(SalesforceSubscriber):
    """Customers as accounts. Object reference: "Account"; Email__c and Active__c are fields of your own."""

    catalogue = "customer"
    sobject = resource = "Account"
    match_on = ("email",)
    field_to_data = {
        "name": "Name",
        "email": "Email__c",
        "phone": "Phone",
        "street": "BillingStreet",
        "city": "BillingCity",
        "postal_code": "BillingPostalCode",
        "country": "BillingCountry",
        "notes": "Description",
        "active": "Active__c",
    }
    #: The object's limits, in characters, where our own columns are wider.
    lengths = {"Email__c": 80, "BillingCity": 40, "Description": 32_000}

    def validate(self, data: Mapping[str, Any]) -> None:
        """Say what Salesforce would refuse, all at once."""
        wrong = {
            name: f"longer than {most} characters"
            for name, most in self.lengths.items()
            if len(data.get(name) or "") > most
        }
        if not data.get("Name"):
            wrong["Name"] = "is required"
        if wrong:
            raise Reject(words(wrong), fields=wrong)


class _Expired(Exception):
    """The session is not valid any more."""


def _refusal(error: SalesforceError, response: requests.Response | None, writes: bool) -> Exception:
    """What a refused call means; the library's own words would repeat the address and the query."""
    after = None if response is None else retry_after(response)
    errors: Any = error.content
    if isinstance(errors, list) and errors and isinstance(errors[0], dict):
        if errors[0].get("errorCode") == "INVALID_SESSION_ID":
            return _Expired()
        return by_code(errors, status=error.status, after=after, writes=writes)
    if error.status == 300:
        return Reject("several records there carry this External ID", fields={})
    if error.status == 503 or error.status < 500:
        # A page instead of JSON comes from something in front of Salesforce, and says nothing of the record.
        return SystemDown(f"{error.status} without Salesforce's JSON", after=after)
    return Retry(f"{error.status} without Salesforce's JSON", after=after, maybe_done=writes)


#: errorCode -> what to do next, where it is not the data that is wrong. The code decides, not the status:
#: a 403 may be a limit that passes, or a right that somebody has to give.
DOWN = {
    "SERVER_UNAVAILABLE",
    "API_CURRENTLY_DISABLED",
    "API_DISABLED_FOR_ORG",
    "FUNCTIONALITY_NOT_ENABLED",
    "INSUFFICIENT_ACCESS",
    "ORG_LOCKED",
    "PASSWORD_LOCKOUT",
    "STORAGE_LIMIT_EXCEEDED",
}
LATER = {
    "UNABLE_TO_LOCK_ROW",
    "INVALID_QUERY_LOCATOR",
    "QUERY_TIMEOUT",
    "REQUEST_RUNNING_TOO_LONG",
    "PRECONDITION_FAILED",
    "ALL_OR_NONE_OPERATION_ROLLED_BACK",
}
UNCLEAR = {"UNKNOWN_EXCEPTION", "INTERNAL_ERROR", "GACK"}
GONE = {"ENTITY_IS_DELETED", "NOT_FOUND"}


def by_code(errors: Errors, *, status: int | None = None, after: float | None = None, writes: bool = True) -> SyncError:
    """What the errors of one record, or of a whole call with its HTTP `status`, mean."""
    first = errors[0] if errors else {}
    code = str(first.get("errorCode") or first.get("statusCode") or "UNKNOWN_EXCEPTION")
    text = "; ".join(f"{one.get('errorCode') or one.get('statusCode')}: {one.get('message')}" for one in errors) or code
    names = [str(name) for one in errors for name in one.get("fields") or ()]
    if code == "REQUEST_LIMIT_EXCEEDED":
        pause = BUSY_PAUSE if "concurrent" in text.lower() else LIMIT_PAUSE
        return SystemDown(text, after=after or pause)
    if code in DOWN:
        return SystemDown(text, after=after)
    if code in LATER:
        return Retry(text, after=after)
    if code in GONE or (code == "INVALID_CROSS_REFERENCE_KEY" and set(names) <= {"Id", "id"}):
        return Gone(text)
    if status in (401, 403) and not code.startswith("INSUFFICIENT_ACCESS"):
        return SystemDown(text, after=after)  # a right that the login lacks, or a code of tomorrow
    if code in UNCLEAR or (status is not None and status >= 429):
        return status_error(status or 500, text, after=after, writes=writes)
    return Reject(
        text, fields={str(name): str(one.get("message")) for one in errors for name in one.get("fields") or ()}
    )


def _not_before(since: str | None, newest: str, now: datetime) -> str:
    """The newest time read, but not so close to the present that a latecomer would be missed."""
    settled = now - timedelta(seconds=SETTLING)
    reached = newest if (iso_time(newest) or settled) <= settled else _wire(settled)
    behind = iso_time(since)
    return since if since and behind and behind > (iso_time(reached) or settled) else reached


def _wire(at: datetime) -> str:
    """A time as Salesforce writes it."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.000+0000"


def _one_line(text: str, options: SalesforceOptions) -> str:
    """A message of the login's, without what it may quote of it."""
    for secret in (options.password, options.security_token, options.consumer_secret):
        if _is_set(secret):
            text = text.replace(secret.get_secret_value(), "***")
    return " ".join(text.split())[:300]


def _callout(body: bytes) -> dict[str, Any]:
    try:
        event = json.loads(body)
        if event["id"] and isinstance(event["sobject"], str) and event["record"]["Id"]:
            return dict(event)
    except (ValueError, KeyError, TypeError):
        raise BadWebhook("the body is no callout with id, sobject and record") from None
    raise BadWebhook("the body is no callout with id, sobject and record")
