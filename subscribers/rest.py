"""Any system with a plain JSON REST API: configured, not programmed.

What is expected of it: a list and an address a record (`/contacts`, `/contacts/7`), JSON objects,
a time of the last change in each of them, and usual HTTP statuses. What is different in yours is a
class attribute here, or the line of the same name in the file that SYNCFLOW_SYSTEMS names; what no
attribute covers is a method to override.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import quote, urljoin, urlsplit

import requests
from pydantic import AfterValidator, Field, SecretStr
from requests.auth import AuthBase

from settings import SettingsError
from subscribers.base import Subscriber
from subscribers.errors import BadSignature, BadWebhook, Retry
from subscribers.http.auth import ClientCredentials, HeaderAuth
from subscribers.http.client import Http, Token, Url, iso_time, server_time
from subscribers.http.failures import describe_error
from subscribers.http.signatures import Scheme, Signature
from subscribers.mapping.paths import nest
from subscribers.options import COMMON_OPTIONS, JmesPath, check_options, own_options, search_json
from subscribers.records import Event, External, Item, Page
from subscribers.system import Options as SystemOptions
from subscribers.system import System

#: Pages of a list that are looked through for one record.
_FIND_PAGES = 10


class RestOptions(SystemOptions):
    """The settings of a REST system, by the example of one named `shop`.

    SHOP_URL: its address, http(s), up to where the paths of the subscribers start.
    SHOP_TOKEN: for `auth` `bearer` and `header`. SHOP_USERNAME and SHOP_PASSWORD: for `basic`.
    SHOP_CLIENT_ID and SHOP_CLIENT_SECRET: for `oauth2`.
    SHOP_WEBHOOK_SECRET: what its webhooks are signed with, several separated by blanks; while it is
    empty every webhook is refused.
    SHOP_CA_BUNDLE: a file of certificates to trust instead of the usual ones.
    """

    url: Url
    token: Token = SecretStr("")
    username: str = ""
    password: SecretStr = SecretStr("")
    client_id: str = ""
    client_secret: SecretStr = SecretStr("")
    webhook_secret: SecretStr = SecretStr("")
    ca_bundle: str = ""


#: `auth` -> the settings it cannot do without.
_NEEDS = {
    "none": (),
    "bearer": ("token",),
    "header": ("token",),
    "basic": ("username", "password"),
    "oauth2": ("client_id", "client_secret"),
}


class RestSystem(System):
    """One REST system.

    Its webhooks are JSON objects; the attributes name where in them things stand. A `type` such as
    `contact.updated` stands for the resource too where there is no field of its own for that.
    """

    Options = RestOptions

    auth: ClassVar[Literal["bearer", "header", "basic", "oauth2", "none"]] = "bearer"
    #: For `header`: what carries the token, and what stands before it there (`Token `).
    auth_header: ClassVar[Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")]] = "X-Api-Key"
    auth_prefix: ClassVar[str] = ""
    #: For `oauth2`: a path below the system's URL, or an address; what is sent there besides; and where id
    #: and secret go.
    token_url: ClassVar[str] = "/oauth/token"
    token_parameters: ClassVar[Mapping[str, str]] = {}
    token_login: ClassVar[Literal["basic", "body"]] = "basic"
    #: Sent with every call (a version of the API, say). Nothing secret.
    headers: ClassVar[Mapping[str, str]] = {}
    #: Where a refusal has the words per field.
    errors_field: ClassVar[JmesPath] = "errors"

    signature: ClassVar[Scheme] = "hmac"
    #: For `hmac`: where the digest of the body stands, what stands before it there (`sha256=`), and how it is written.
    signature_header: ClassVar[str] = "X-Signature"
    signature_prefix: ClassVar[str] = ""
    signature_encoding: ClassVar[Literal["hex", "base64"]] = "hex"
    signature_digest: ClassVar[Literal["sha1", "sha256", "sha512"]] = "sha256"
    #: The header with the event's id (Standard Webhooks have their own); without one `event_id_field` has it.
    event_id_header: ClassVar[str] = ""
    event_id_field: ClassVar[JmesPath] = "id"
    event_type_field: ClassVar[JmesPath] = "type"
    event_time_field: ClassVar[JmesPath] = "created_at"
    event_resource_field: ClassVar[JmesPath] = "resource"
    event_data_field: ClassVar[JmesPath] = "data"
    #: How the type of a deletion ends.
    event_deleted: ClassVar[str] = "deleted"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        check_options(cls, RestSystem, SYSTEM_OPTIONS)

    def __init__(self, name: str, options: RestOptions) -> None:
        super().__init__(name, options)
        prefix = name.upper().replace("-", "_")
        for needed in _NEEDS[self.auth]:
            value = getattr(options, needed)
            if not (value.get_secret_value() if isinstance(value, SecretStr) else value):
                raise SettingsError(
                    f"{prefix}_{needed.upper()}: missing: auth is {self.auth!r}; set it in the environment or .env"
                )
        try:
            self.proof = Signature(
                self.signature,
                options.webhook_secret,
                self.signature_header,
                self.signature_prefix,
                self.signature_encoding,
                self.signature_digest,
            )
        except ValueError as error:
            raise SettingsError(f"{prefix}_WEBHOOK_SECRET: {error}") from None
        self.http = Http(
            options.url,
            headers=self.headers,
            auth=self.login(),
            secret_headers=[self.auth_header if self.auth == "header" else "Authorization"],
            ca_bundle=options.ca_bundle or None,
            describe=lambda response: describe_error(response, lambda body: search_json(self.errors_field, body)),
        )
        #: By resource: where a record's id stands is known to its subscriber.
        self.subscribers: dict[str, RestSubscriber] = {}

    def login(self) -> AuthBase:
        """What puts the login on each call."""
        options, token = self.options, self.options.token.get_secret_value()
        if self.auth == "oauth2":
            return ClientCredentials(
                self.token_url if "://" in self.token_url else options.url + self.token_url,
                options.client_id,
                options.client_secret,
                parameters=self.token_parameters,
                in_body=self.token_login == "body",
                ca_bundle=options.ca_bundle or None,
            )
        if self.auth == "basic":
            pair = f"{options.username}:{options.password.get_secret_value()}".encode()
            return HeaderAuth("Authorization", f"Basic {b64encode(pair).decode()}")
        if self.auth == "header":
            return HeaderAuth(self.auth_header, self.auth_prefix + token)
        return HeaderAuth("Authorization", f"Bearer {token}") if self.auth == "bearer" else HeaderAuth()

    def verify(self, body: bytes, headers: Mapping[str, str]) -> str:
        """The event's id, once the signature fits one of the secrets."""
        try:
            self.proof.verify(body, headers)
        except BadSignature as error:
            raise BadSignature(f"{self.name}: {error}") from None
        event = _json_object(body)
        header = "webhook-id" if self.signature == "standard" else self.event_id_header.lower()
        event_id = headers.get(header) if header else search_json(self.event_id_field, event)
        if not isinstance(event_id, str | int) or event_id == "":
            raise BadWebhook(f"the event has no {header or self.event_id_field!r}")
        return str(event_id)

    def events(self, body: bytes) -> list[Event]:
        """The one record that the webhook is about; nothing where no subscriber follows its resource."""
        event = _json_object(body)
        kind = str(search_json(self.event_type_field, event) or "")
        resource = str(search_json(self.event_resource_field, event) or kind.rpartition(".")[0])
        subscriber = self.subscribers.get(resource)
        if subscriber is None:
            return []
        data = search_json(self.event_data_field, event)
        if not isinstance(data, dict) or search_json(subscriber.id_field, data) is None:
            raise BadWebhook(f"{self.event_data_field!r} is no record with {subscriber.id_field!r}")
        external = subscriber.external(
            data,
            at=subscriber.time(search_json(self.event_time_field, event)),
            deleted=event.get("deleted") is True or kind.rpartition(".")[2] == self.event_deleted,
        )
        return [Event(resource, external)]


def _with_id(template: str) -> str:
    if template and "{id}" not in template:
        raise ValueError("needs {id}, where the record's id goes")
    return template


#: An address below the system's URL in which `{id}` stands for the record's id.
RecordPath = Annotated[str, AfterValidator(_with_id)]


class RestSubscriber(Subscriber):
    """Records of one list of a REST system.

    Where its lists do not show what is gone (`deleted_field`), deletions are told from webhooks only.
    """

    system_class = RestSystem

    #: The list's address below the system's URL; records are made there too.
    path: ClassVar[str]
    #: A record's own; where it is empty: `path`, a slash and the id.
    record_path: ClassVar[RecordPath] = ""
    #: Where one verb goes elsewhere.
    list_path: ClassVar[str] = ""
    create_path: ClassVar[str] = ""
    read_path: ClassVar[RecordPath] = ""
    update_path: ClassVar[RecordPath] = ""
    delete_path: ClassVar[RecordPath] = ""
    #: PATCH (or POST) sends what changed, PUT all that is mapped.
    update_method: ClassVar[Literal["PATCH", "PUT", "POST"]] = "PATCH"
    #: The name under which a record is sent; empty: it is the body itself.
    body_field: ClassVar[str] = ""
    #: Where an answer has the record, and a record its id.
    record_field: ClassVar[JmesPath] = "@"
    id_field: ClassVar[JmesPath] = "id"
    #: Where an answer has the list, and each record in it the time of its last change, as text or in numbers.
    list_field: ClassVar[JmesPath] = "items"
    updated_field: ClassVar[JmesPath] = "updated_at"
    time_format: ClassVar[Literal["iso", "seconds", "milliseconds"]] = "iso"
    #: Where a listed record says that it was deleted.
    deleted_field: ClassVar[JmesPath] = ""
    #: Sent with every call for a list: an order, a filter.
    list_parameters: ClassVar[Mapping[str, str | int]] = {}
    #: What asks for changes since a time: its value holds `{since}`, the time as the system wrote it. Without
    #: a parameter everything is read each time. `since_first` stands for the time until there is one.
    since_parameter: ClassVar[str] = "updated_since"
    since_value: ClassVar[str] = "{since}"
    since_first: ClassVar[str] = ""
    #: Whether lists come in order of `updated_field`; else a poll that breaks off starts afresh.
    oldest_first: ClassVar[bool] = True
    #: How the next page is found: `next`: its address stands in `next_field`; `cursor`: what stands there is sent
    #: as `cursor_parameter`; `link`: its address is in the header `next_header`; or counted by `page`, by `offset`.
    pagination: ClassVar[Literal["next", "cursor", "link", "page", "offset", "none"]] = "next"
    next_field: ClassVar[JmesPath] = "next"
    cursor_parameter: ClassVar[str] = "cursor"
    #: `Link` (RFC 8288, rel=next), or one that holds nothing but the address.
    next_header: ClassVar[str] = "Link"
    page_parameter: ClassVar[str] = "page"
    first_page: ClassVar[int] = 1
    offset_parameter: ClassVar[str] = "offset"
    limit_parameter: ClassVar[str] = "limit"
    page_limit: ClassVar[Annotated[int, Field(ge=1)]] = 100
    #: The top-level field in which a record there carries our id, and what asks the list for it: `{id}`.
    record_id_field: ClassVar[str] = ""
    find_parameter: ClassVar[str] = ""
    find_value: ClassVar[RecordPath] = "{id}"
    #: Keeps a repeated create from making a second record where the system heeds it; empty: none is sent.
    idempotency_header: ClassVar[str] = "Idempotency-Key"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        check_options(cls, RestSubscriber, SUBSCRIBER_OPTIONS)

    def __init__(self, client: System) -> None:
        super().__init__(client)
        self.client.subscribers[self.resource or self.path.strip("/")] = self

    # --- calls ------------------------------------------------------------------------------------

    def create(self, item: Item) -> External:
        """POST."""
        headers = {self.idempotency_header: item.key} if self.idempotency_header else {}
        return self._write("POST", self.create_path or self.path, item.data, item, headers=headers)

    def update(self, item: Item) -> External:
        """PATCH or PUT. Raises `Gone`.

        A PUT replaces the record: mapped fields that are not ours to change go back as they stand there now.
        """
        data = item.changes
        if self.update_method == "PUT":
            data = {**nest(self.mapper.flatten(self.fetch(item.linked_id).data)), **item.changes}
        return self._write(self.update_method, self._address(self.update_path, item.linked_id), data, item)

    def delete(self, item: Item) -> None:
        """DELETE. Raises `Gone` where that has happened already."""
        self.client.http.call("DELETE", self._address(self.delete_path, item.linked_id))

    def fetch(self, external_id: str) -> External:
        """GET. Raises `Gone`."""
        body, response = self.client.http.json("GET", self._address(self.read_path, external_id))
        return self._answered(body, response)

    def find(self, item: Item) -> External | None:
        """The record that carries our id; None where there is none, or no field for it."""
        if not self.record_id_field:
            return None
        limit = {self.limit_parameter: self.page_limit} if self.limit_parameter else {}
        asked = {self.find_parameter or self.record_id_field: self.find_value.replace("{id}", item.record_id)}
        step = _Step(self.list_path or self.path, {**limit, **asked})
        for _ in range(_FIND_PAGES):
            body, response = self.client.http.json("GET", step.url, params=step.parameters)
            records = self._records(body, response)
            for data in records:
                # A system that does not know the parameter answers with everything.
                if str(data.get(self.record_id_field)) == item.record_id and not self._deleted(data):
                    return self.external(data, at=self.time(search_json(self.updated_field, data)))
            following = self._following(step, body, response, len(records), moved=True)
            if following is None:
                return None
            step = following
        raise Retry(f"asked for one record, {self.path} lists {_FIND_PAGES} pages without it: is find_parameter right?")

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
        """Pages of what changed at or after `{"since": a time as the system writes it}`, and the newest one seen."""
        since: str | None = (position or {}).get("since")
        step = self._first(since)
        newest, before = since, None
        while True:
            body, response = self.client.http.json("GET", step.url, params=step.parameters)
            records = self._records(body, response)
            if records and records == before:
                raise Retry(f"the list gives the same page again: is pagination = {self.pagination!r} right?")
            stamps = [search_json(self.updated_field, one) for one in records]
            newest = self._newest([newest, *stamps])
            following = self._following(step, body, response, len(records), newest != since)
            if following is not None and self.oldest_first:
                self._check_order(stamps)
            reached = newest if self.oldest_first or following is None else since
            pairs = zip(records, stamps, strict=True)
            externals = [self.external(one, at=self.time(stamp), deleted=self._deleted(one)) for one, stamp in pairs]
            yield Page(externals, {"since": reached} if reached else {})
            if following is None:
                return
            before = records
            if self.oldest_first and self.since_parameter and newest != since:
                # Asking anew from here, not for the next page: a record that changes while we read moves
                # to the end of the list, and all behind it would move up over the edge of the page.
                since, following, before = newest, self._first(newest), None
            step = following

    def external(self, data: Mapping[str, Any], *, at: datetime | None, deleted: bool = False) -> External:
        """A record of the system's as the hub knows it."""
        record_id = data.get(self.record_id_field) if self.record_id_field else None
        return External(
            id=str(search_json(self.id_field, data)),
            data=data,
            at=at,
            deleted=deleted,
            record_id=str(record_id) if record_id not in (None, "") else None,
        )

    def time(self, value: Any) -> datetime | None:
        """A time as this system writes it; None where it is none."""
        if self.time_format == "iso":
            return iso_time(value)
        try:
            return datetime.fromtimestamp(float(value) / (1000 if self.time_format == "milliseconds" else 1), UTC)
        except (TypeError, ValueError, OverflowError, OSError):
            return None

    # --- how it is done -----------------------------------------------------------------------------

    def _address(self, template: str, external_id: str) -> str:
        return (template or self.record_path or f"{self.path}/{{id}}").replace("{id}", quote(external_id, safe=""))

    def _write(self, method: str, path: str, data: Mapping[str, Any], item: Item, **options: Any) -> External:
        data = {**data, self.record_id_field: item.record_id} if self.record_id_field else dict(data)
        body = {self.body_field: data} if self.body_field else data
        response = self.client.http.call(method, path, json=body, **options)
        if response.status_code == 204 and item.external_id is not None:
            request_id = self.client.http.request_id(response)
            return External(item.external_id, {}, at=server_time(response), request_id=request_id)
        try:
            return self._answered(response.json(), response)
        except ValueError:
            # Perhaps cut on its way: whether it took effect is unknown.
            raise Retry(f"{method} was answered without readable JSON", maybe_done=True) from None

    def _answered(self, body: Any, response: requests.Response) -> External:
        record = search_json(self.record_field, body)
        if not isinstance(record, dict) or search_json(self.id_field, record) is None:
            raise Retry(f"the answer is no record with {self.id_field!r}", maybe_done=True)
        external = self.external(record, at=self.time(search_json(self.updated_field, record)) or server_time(response))
        return replace(external, request_id=self.client.http.request_id(response))

    def _records(self, body: Any, response: requests.Response) -> list[dict[str, Any]]:
        found = search_json(self.list_field, body)
        if not isinstance(found, list) or not all(
            isinstance(one, dict) and search_json(self.id_field, one) is not None for one in found
        ):
            raise Retry(f"the answer of {urlsplit(response.url).path} is no list of records")
        return found

    def _deleted(self, record: Mapping[str, Any]) -> bool:
        return bool(search_json(self.deleted_field, record))

    def _check_order(self, stamps: list[Any]) -> None:
        """What stands on a later page, but is older than what was read, would never be asked for again."""
        times = [when for stamp in stamps if (when := self.time(stamp)) is not None]
        if self.since_parameter and times != sorted(times):
            raise Retry(
                f"the list is not in order of {self.updated_field}: ask for it by list_parameters, "
                "or say oldest_first = false"
            )

    def _newest(self, stamps: list[Any]) -> str | None:
        times = {when: str(stamp) for stamp in stamps if (when := self.time(stamp)) is not None}
        return times[max(times)] if times else None

    def _first(self, since: str | None) -> _Step:
        parameters: dict[str, Any] = dict(self.list_parameters)
        if self.limit_parameter:
            parameters[self.limit_parameter] = self.page_limit
        if self.since_parameter and (start := since or self.since_first):
            parameters[self.since_parameter] = self.since_value.replace("{since}", start)
        return _Step(self.list_path or self.path, parameters)

    def _following(self, step: _Step, body: Any, response: requests.Response, count: int, moved: bool) -> _Step | None:
        if self.pagination in ("page", "offset"):
            # A short page is the last one, or the system gives fewer than it was asked for: then a poll that
            # moved on comes to the rest by its position. One that did not has to look.
            last = count < self.page_limit and self.oldest_first and (moved or count == 1)
            if count == 0 or last:
                return None
            if self.pagination == "page":
                return step.further(self.page_parameter, self.first_page, 1)
            return step.further(self.offset_parameter, 0, count)
        if self.pagination == "link":
            linked = response.links.get("next", {}).get("url")
            return self._at(linked if self.next_header == "Link" else response.headers.get(self.next_header), response)
        if self.pagination == "none":
            return None
        following = search_json(self.next_field, body)
        if self.pagination == "next":
            return self._at(following, response)
        return None if following in (None, "", False) else step.with_(self.cursor_parameter, following)

    def _at(self, address: Any, response: requests.Response) -> _Step | None:
        if not address:
            return None
        # Only its path and query count: our token goes to the configured host and to no other.
        own, there = urlsplit(self.client.http.base_url), urlsplit(urljoin(response.url, str(address)))
        return _Step(f"{own.scheme}://{own.netloc}{there.path}?{there.query}", {})


class _Step:
    """One call for a page: its address and its parameters."""

    def __init__(self, url: str, parameters: dict[str, Any]) -> None:
        self.url, self.parameters = url, parameters

    def with_(self, name: str, value: Any) -> _Step:
        return _Step(self.url, {**self.parameters, name: value})

    def further(self, name: str, first: int, by: int) -> _Step:
        return self.with_(name, self.parameters.get(name, first) + by)


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        raise BadWebhook("the body is not JSON") from None
    if not isinstance(value, dict):
        raise BadWebhook("the body is not a JSON object")
    return value


#: What may be chosen for a system and for a subscriber, in code and in a file: the annotated attributes.
SYSTEM_OPTIONS = own_options(RestSystem)
SUBSCRIBER_OPTIONS = (*COMMON_OPTIONS, *own_options(RestSubscriber))

__all__ = ["SUBSCRIBER_OPTIONS", "SYSTEM_OPTIONS", "RestOptions", "RestSubscriber", "RestSystem"]
