"""Any system with a plain JSON REST API, by configuration.

The API must have a list and a URL for each record (`/contacts`, `/contacts/7`), JSON objects with the
time of their last change, and the usual HTTP statuses. Differences are set by class attributes, or by
keys of the same names in the file SYNCFLOW_SYSTEMS. Override a method for what no attribute covers.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import quote, urljoin, urlsplit

import requests
from pydantic import AfterValidator, Field, SecretStr
from requests.auth import AuthBase

from settings import SettingsError
from subscribers.base import Subscriber
from subscribers.errors import BadSignature, BadWebhook, Gone, Outdated, Reject, Retry, SyncError, Unidentified
from subscribers.http.answers import id_in, is_refusal, location_of, readable
from subscribers.http.auth import ClientCredentials, HeaderAuth
from subscribers.http.client import Http, Token, Url, iso_time, server_time
from subscribers.http.failures import describe_error, duplicate_code
from subscribers.http.signatures import Scheme, Signature
from subscribers.mapping.values import Flat
from subscribers.options import COMMON_OPTIONS, JmesPath, check_options, own_options, search_json
from subscribers.records import Event, External, Item, Page
from subscribers.system import Options as SystemOptions
from subscribers.system import System

#: Pages of a list that are searched for one record.
_MAX_FIND_PAGES = 10
#: Readings of a list by counted pages that changes each time.
_MOST_READINGS = 5


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


#: `auth` -> the settings it requires.
_NEEDS = {
    "none": (),
    "bearer": ("token",),
    "header": ("token",),
    "basic": ("username", "password"),
    "oauth2": ("client_id", "client_secret"),
}


class RestSystem(System):
    """One REST system.

    Its webhooks are JSON objects; attributes name the places of their values. Without a field for the
    resource, it is the first part of the type, such as `contact` in `contact.updated`.
    """

    Options = RestOptions

    auth: ClassVar[Literal["bearer", "header", "basic", "oauth2", "none"]] = "bearer"
    #: For `header`: the header with the token, and the text before the token (`Token `).
    auth_header: ClassVar[Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")]] = "X-Api-Key"
    auth_prefix: ClassVar[str] = ""
    #: For `oauth2`: a path below the system's URL, or a full URL; further parameters; and whether id and secret
    #: are sent as Basic authentication or in the body.
    token_url: ClassVar[str] = "/oauth/token"
    token_parameters: ClassVar[Mapping[str, str]] = {}
    token_login: ClassVar[Literal["basic", "body"]] = "basic"
    #: A path below the system's URL whose response holds the id of the login's own account, and the place of the id
    #: there. Without a path the account is unknown.
    account_path: ClassVar[str] = ""
    account_field: ClassVar[JmesPath] = "id"
    #: Headers of every call, such as a version of the API. Not for secrets.
    headers: ClassVar[Mapping[str, str]] = {}
    #: The place of the messages per field in an error response.
    errors_field: ClassVar[JmesPath] = "errors"

    signature: ClassVar[Scheme] = "hmac"
    #: For `hmac`: the header with the digest of the body, the text before the digest (`sha256=`), and its encoding.
    signature_header: ClassVar[str] = "X-Signature"
    signature_prefix: ClassVar[str] = ""
    signature_encoding: ClassVar[Literal["hex", "base64"]] = "hex"
    signature_digest: ClassVar[Literal["sha1", "sha256", "sha512"]] = "sha256"
    #: The header with the event's id, unless the webhook is a Standard Webhook; empty: it is in `event_id_field`.
    event_id_header: ClassVar[str] = ""
    event_id_field: ClassVar[JmesPath] = "id"
    event_type_field: ClassVar[JmesPath] = "type"
    event_time_field: ClassVar[JmesPath] = "created_at"
    event_resource_field: ClassVar[JmesPath] = "resource"
    event_data_field: ClassVar[JmesPath] = "data"
    #: The last part of the type of a deletion.
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
            describe=self.describe,
            max_response_bytes=self.max_response_bytes,
        )
        #: Resource -> subscriber, which knows the place of a record's id.
        self.subscribers: dict[str, RestSubscriber] = {}

    def describe(self, response: requests.Response) -> tuple[str, dict[str, str]]:
        """Return (message, field -> message) of an error response."""
        return describe_error(response, lambda body: search_json(self.errors_field, body))

    def login(self) -> AuthBase:
        """Return the authentication of every call."""
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

    def account(self) -> str | None:
        """Return the id of the account at `account_path`; None without a path."""
        if not self.account_path:
            return None
        self.pace()
        body, _ = self.http.json("GET", self.account_path)
        found = search_json(self.account_field, body)
        if not isinstance(found, str | int) or found == "":
            raise Retry(f"the response of {self.account_path} has no {self.account_field!r}")
        return str(found)

    def verify(self, body: bytes, headers: Mapping[str, str]) -> str:
        """Verify the signature with each of the secrets, and return the event's id."""
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
        """Return the record of the webhook; nothing if no subscriber has its resource."""
        event = _json_object(body)
        kind = str(search_json(self.event_type_field, event) or "")
        resource = str(search_json(self.event_resource_field, event) or kind.rpartition(".")[0])
        subscriber = self.subscribers.get(resource)
        if subscriber is None:
            return []
        data = search_json(self.event_data_field, event)
        if not isinstance(data, dict) or search_json(subscriber.id_field, data) in (None, ""):
            raise BadWebhook(f"{self.event_data_field!r} is not a record with {subscriber.id_field!r}")
        external = subscriber.external(
            data,
            at=subscriber.time(search_json(self.event_time_field, event)),
            deleted=event.get("deleted") is True or kind.rpartition(".")[2] == self.event_deleted,
        )
        return [Event(resource, external)]


def _with_id(template: str) -> str:
    if template and "{id}" not in template:
        raise ValueError("must contain {id}, the place of the record's id")
    return template


#: A path below the system's URL that contains `{id}`, the place of the record's id.
RecordPath = Annotated[str, AfterValidator(_with_id)]


def _with_version(template: str) -> str:
    if "{version}" not in template:
        raise ValueError("must contain {version}, the place of the record's version")
    return template


#: What a write names, with `{version}`.
VersionTemplate = Annotated[str, AfterValidator(_with_version)]

#: `version_sent` -> the header with the version.
_CONDITIONS = {"if_match": "If-Match", "if_unmodified_since": "If-Unmodified-Since"}


class RestSubscriber(Subscriber):
    """Records of one list of a REST system.

    If its lists do not include deleted records (`deleted_field`), only webhooks report deletions.
    """

    system_class = RestSystem

    #: The path of the list below the system's URL; records are created there too.
    path: ClassVar[str]
    #: The path of a record; empty: `path`, a slash and the id.
    record_path: ClassVar[RecordPath] = ""
    #: Other paths for single operations.
    list_path: ClassVar[str] = ""
    create_path: ClassVar[str] = ""
    read_path: ClassVar[RecordPath] = ""
    update_path: ClassVar[RecordPath] = ""
    delete_path: ClassVar[RecordPath] = ""
    #: PATCH and POST send the changes. PUT reads the record, changes it and writes all of it back.
    update_method: ClassVar[Literal["PATCH", "PUT", "POST"]] = "PATCH"
    #: Top-level fields that the system refuses in a PUT.
    read_only_fields: ClassVar[Sequence[str]] = ()
    #: The field of the body with the record; empty: the body is the record.
    body_field: ClassVar[str] = ""
    #: The place of the record in a response, and of the id in a record.
    record_field: ClassVar[JmesPath] = "@"
    id_field: ClassVar[JmesPath] = "id"
    #: The place of the list in a response, and in each record that of the time of its last change, with its format.
    list_field: ClassVar[JmesPath] = "items"
    updated_field: ClassVar[JmesPath] = "updated_at"
    time_format: ClassVar[Literal["iso", "seconds", "milliseconds"]] = "iso"
    #: The place of the mark of a deleted record in a list.
    deleted_field: ClassVar[JmesPath] = ""
    #: Parameters of every call for a list, such as an order or a filter.
    list_parameters: ClassVar[Mapping[str, str | int]] = {}
    #: The parameter for changes since a time. Its value contains `{since}`, the time as the system writes it.
    #: Without a parameter each poll reads the whole list. `since_first` is the time of the first poll.
    since_parameter: ClassVar[str] = "updated_since"
    since_value: ClassVar[str] = "{since}"
    since_first: ClassVar[str] = ""
    #: How many days the system reports changes for. After a longer pause everything is read.
    changes_kept_days: ClassVar[Annotated[int, Field(ge=1)] | None] = None
    #: Whether lists are sorted by `updated_field`; else a poll that fails starts from the beginning.
    oldest_first: ClassVar[bool] = True
    #: The way to the next page: `next`: `next_field` has its URL; `cursor`: `next_field` has the value for
    #: `cursor_parameter`; `link`: the header `next_header` has its URL; `page` and `offset`: a counted parameter.
    pagination: ClassVar[Literal["next", "cursor", "link", "page", "offset", "none"]] = "next"
    next_field: ClassVar[JmesPath] = "next"
    cursor_parameter: ClassVar[str] = "cursor"
    #: `Link` (RFC 8288, rel=next), or a header that contains only the URL.
    next_header: ClassVar[str] = "Link"
    page_parameter: ClassVar[str] = "page"
    first_page: ClassVar[int] = 1
    offset_parameter: ClassVar[str] = "offset"
    limit_parameter: ClassVar[str] = "limit"
    page_limit: ClassVar[Annotated[int, Field(ge=1)]] = 100
    #: The top-level external field with `Item.mark`, by which a record is known as ours, and the parameter and value,
    #: with `{id}` for the mark, that filter a list by it.
    record_id_field: ClassVar[str] = ""
    #: Whether that field can hold no more than our record's id, such as a number. Then the match values, or what was
    #: sent, must confirm that a record is ours.
    plain_mark: ClassVar[bool] = False
    find_parameter: ClassVar[str] = ""
    find_value: ClassVar[RecordPath] = "{id}"
    #: The parameters that filter a list by the match values: parameter -> value with `{field}` for the value of an
    #: external field. Without them each match field is a parameter with its value.
    match_parameters: ClassVar[Mapping[str, str]] = {}
    #: The parameter that filters a list by ids, so that one call reads many records; empty: there is none. Its value is
    #: `ids_value` for each id, joined by `ids_separator`. With POST it is a field of the body, a list of the ids.
    ids_parameter: ClassVar[str] = ""
    ids_value: ClassVar[RecordPath] = "{id}"
    ids_separator: ClassVar[str] = ","
    ids_limit: ClassVar[Annotated[int, Field(ge=1)]] = 100
    ids_path: ClassVar[str] = ""
    ids_method: ClassVar[Literal["GET", "POST"]] = "GET"
    #: Where a record's version is: a header of responses for one record (`ETag`, `Last-Modified`), or a place in the
    #: record. Writes name it, so that the system refuses them if the record was edited since.
    version_header: ClassVar[Annotated[str, Field(pattern=r"^[A-Za-z0-9-]*$")]] = ""
    version_field: ClassVar[JmesPath] = ""
    #: How writes name it: in the header `If-Match` or `If-Unmodified-Since`, or as `version_parameter` in a header, the
    #: body or the query. A deletion has no body, and names it in the query.
    version_sent: ClassVar[Literal["if_match", "if_unmodified_since", "header", "body", "query"]] = "if_match"
    version_parameter: ClassVar[str] = "version"
    version_value: ClassVar[VersionTemplate] = "{version}"
    #: The statuses by which the system refuses a write for its version.
    version_refusals: ClassVar[Sequence[int]] = (412,)
    read_back: ClassVar[Literal["auto", "always", "never"]] = "auto"
    reuses_ids: ClassVar[bool] = True
    absent: ClassVar[Literal["kept", "empty"]] = "kept"
    #: The header for the idempotency key of a create; empty: none is sent.
    idempotency_header: ClassVar[str] = "Idempotency-Key"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        check_options(cls, RestSubscriber, SUBSCRIBER_OPTIONS)

    def __init__(self, client: System) -> None:
        super().__init__(client)
        #: Unmapped fields that the system refused in a PUT.
        self._refused_fields: set[str] = set()
        self.client.subscribers[self.resource or self.path.strip("/")] = self

    # --- calls ------------------------------------------------------------------------------------

    def create(self, item: Item) -> External:
        """Create the record by POST."""
        headers = {self.idempotency_header: item.key} if self.idempotency_header else {}
        return self._write("POST", self.create_path or self.path, item.data, item, headers=headers)

    def update(self, item: Item) -> External:
        """Update the record by PATCH, POST or PUT. Raises `Gone`.

        A PUT replaces the record, so it sends the whole record as it is, with our changes.
        """
        address = self._address(self.update_path, item.linked_id)
        if self.update_method != "PUT":
            return self._write(self.update_method, address, item.changes, item)
        present = item.present
        if present is None:
            found = self.fetch(item.linked_id)
            present, item = found.data, replace(item, version=item.version or found.version)
        data = {**present, **self.merge(present, item.changes)}
        try:
            return self._write("PUT", address, self._writable(data), item)
        except Reject as error:
            refused = error.fields.keys() & self._writable(data).keys() - item.changes.keys()
            if not refused:
                raise
            # The system names fields that it shows and does not take, such as the time of the last change.
            self._refused_fields |= refused
        self.client.pace()
        return self._write("PUT", address, self._writable(data), item)

    def _writable(self, data: Mapping[str, Any]) -> dict[str, Any]:
        left_out = {*self.read_only_fields, *self._refused_fields}
        return {name: value for name, value in data.items() if name not in left_out}

    def delete(self, item: Item) -> None:
        """Delete the record by DELETE. Raises `Gone` if it is deleted already."""
        condition = self._condition(item, "query" if self.version_sent == "body" else self.version_sent)
        self.client.http.call("DELETE", self._address(self.delete_path, item.linked_id), **condition)

    def fetch(self, external_id: str) -> External:
        """Read the record by GET. Raises `Gone`."""
        body, response = self.client.http.json("GET", self._address(self.read_path, external_id))
        return self._answered(body, response)

    def bulk_fetch(self, external_ids: Sequence[str]) -> list[External | SyncError]:
        """Read records by their ids, `ids_limit` in a call; one that the response lacks is read by its own address."""
        found: dict[str, External | SyncError] = {}
        if self.reads_many:
            for start in range(0, len(external_ids), self.ids_limit):
                if start:
                    self.client.pace()
                found |= {one.id: one for one in self._read_some(external_ids[start : start + self.ids_limit])}
        alone = [one for one in external_ids if one not in found]
        found |= zip(alone, super().bulk_fetch(alone), strict=True)
        return [found[one] for one in external_ids]

    def _read_some(self, external_ids: Sequence[str]) -> Iterator[External]:
        """Yield the living records that a list by these ids has."""
        path = self.ids_path or self.list_path or self.path
        if self.ids_method == "GET":
            value = self.ids_separator.join(self.ids_value.replace("{id}", one) for one in external_ids)
            yield from self._search({self.ids_parameter: value}, "ids_parameter", path)
            return
        body, response = self.client.http.json("POST", path, json={self.ids_parameter: [*external_ids]})
        yield from self._living(body, response)

    @property
    def reads_many(self) -> bool:
        """Whether the list can be filtered by ids, and its records have their versions where writes need these."""
        return bool(self.ids_parameter) and not (self.version_header and not self.version_field)

    @property
    def is_conditional(self) -> bool:
        """Whether records have a version that writes name."""
        return bool(self.version_header or self.version_field)

    def find(self, item: Item) -> External | None:
        """Return the record with our mark; None if there is none, or no field for it."""
        if not self.record_id_field:
            return None
        mark = self._mark(item)
        asked = {self.find_parameter or self.record_id_field: self.find_value.replace("{id}", mark)}
        found = (one for one in self._search(asked, "find_parameter") if one.mark == mark)
        if not self.plain_mark:
            return next(found, None)
        wanted, several = self.match_values(item.data), list(found)
        alike = [one for one in several if wanted and self.is_match(one.data, wanted)] or several
        return alike[0] if len(alike) == 1 else None

    def find_matching(self, item: Item) -> list[External]:
        """Return the records with the same match values: the list is filtered by `match_parameters`."""
        wanted = self.match_values(item.data)
        if not wanted:
            return []
        # The system may compare by characters, and may have stored the normal form.
        ways = [wanted, self.match_forms(wanted)]
        for values in ways if ways[0] != ways[1] else ways[:1]:
            asked = self._match_query(values)
            if found := [one for one in self._search(asked, "match_parameters") if self.is_match(one.data, wanted)]:
                return found
        return []

    def _match_query(self, values: Flat) -> dict[str, str]:
        return {
            parameter: re.sub(r"\{([^{}]+)\}", lambda named: str(values.get(named[1], named[0])), value)
            for parameter, value in (self.match_parameters or {path: f"{{{path}}}" for path in values}).items()
        }

    @property
    def mark_path(self) -> str:
        """The field with our mark."""
        return "" if self.plain_mark else self.record_id_field

    @property
    def can_identify(self) -> bool:
        """Whether a record whose create had no response can be found: by our mark, or by its match values."""
        return bool(self.record_id_field or self.match_on)

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
        """Yield pages of the records that changed since a position, `{"since": a time as the system writes it}`."""
        since: str | None = (position or {}).get("since")
        gap = self._expired(since) if since else ""
        if not gap:
            try:
                yield from self._read(position, since)
                return
            except Gone:
                if since is None:
                    raise
                gap = _gap(since)
        for page in self._read(position, None):
            yield replace(page, gap=gap)

    def _read(self, position: dict[str, Any] | None, since: str | None) -> Iterator[Page]:
        """Read the list from a time, or from the beginning, in the way that its pages need."""
        if self.pagination not in ("page", "offset") or (self.oldest_first and self.since_parameter):
            yield from self._read_list(since)
        elif position is not None and not self.since_parameter:
            yield from self._read_list(since)  # the next poll reads the whole list again
        else:
            yield from self._read_moving_list(since)

    def _read_moving_list(self, since: str | None) -> Iterator[Page]:
        """Read a list by counted pages until no record is new.

        If a record is deleted meanwhile, all after it move up, and one of them to a page that was read already.
        """
        known: set[str] = set()
        for _ in range(_MOST_READINGS):
            pages = fresh = 0
            for page in self._read_list(since):
                new = [one for one in page.records if one.id not in known]
                known.update(one.id for one in new)
                pages, fresh, reached = pages + 1, fresh + len(new), page.position
                yield Page(new, {"since": since} if since else {})
            if pages == 1 or not fresh:
                break
        yield Page([], reached)

    def _read_list(self, since: str | None) -> Iterator[Page]:
        start = settled = since
        step = self._first(since)
        newest, before = since, None
        while True:
            body, response = self.client.http.json("GET", step.url, params=step.parameters)
            records = self._records(body, response)
            if records and records == before:
                raise Retry(f"the list returned the same page again: is pagination = {self.pagination!r} right?")
            stamps = [search_json(self.updated_field, one) for one in records]
            newest = self._newest([newest, *stamps])
            settled = self._newest([settled, *self._settled(stamps, response)])
            following = self._following(step, body, response, len(records), newest != since)
            if following is not None and self.oldest_first:
                self._check_order(stamps)
            reached = settled if self.oldest_first or following is None else start
            pairs = zip(records, stamps, strict=True)
            externals = [self.external(one, at=self.time(stamp), deleted=self._deleted(one)) for one, stamp in pairs]
            yield Page(externals, {"since": reached} if reached else {})
            if following is None:
                return
            before = records
            if self.oldest_first and self.since_parameter and newest != since:
                # Start again from this time instead of the next page: a record that changes in the meantime moves
                # to the end of the list, and the records after it would move to a page that was read already.
                since, following, before = newest, self._first(newest), None
            step = following

    def _expired(self, since: str) -> str:
        """Return what may be missing if the system no longer reports all changes since a time; empty if it does."""
        when = self.time(since)
        if self.changes_kept_days is None or when is None:
            return ""
        return _gap(since) if when < datetime.now(UTC) - timedelta(days=self.changes_kept_days) else ""

    def external(self, data: Mapping[str, Any], *, at: datetime | None, deleted: bool = False) -> External:
        """Return a record of the system as an `External`."""
        mark = data.get(self.record_id_field) if self.record_id_field else None
        return External(
            id=str(search_json(self.id_field, data)),
            data=data,
            at=at,
            deleted=deleted,
            mark=str(mark) if mark not in (None, "") else None,
            version=self._version_in(data),
        )

    def time(self, value: Any) -> datetime | None:
        """Return a time in the system's format; None if it is not one."""
        if self.time_format == "iso":
            return iso_time(value)
        try:
            return datetime.fromtimestamp(float(value) / (1000 if self.time_format == "milliseconds" else 1), UTC)
        except (TypeError, ValueError, OverflowError, OSError):
            return None

    def _mark(self, item: Item) -> str:
        return item.record_id if self.plain_mark else item.mark

    # --- requests and pages -----------------------------------------------------------------------------

    def _address(self, template: str, external_id: str) -> str:
        return self._record_template(template).replace("{id}", quote(external_id, safe=""))

    def _record_template(self, template: str) -> str:
        return template or self.record_path or f"{self.path}/{{id}}"

    def _search(self, asked: Mapping[str, str], option: str, path: str = "") -> Iterator[External]:
        """Yield the living records that a filtered list has; a system that ignores the filter lists all of them."""
        limit = {self.limit_parameter: self.page_limit} if self.limit_parameter else {}
        path = path or self.list_path or self.path
        step = _Step(path, {**limit, **asked})
        for _ in range(_MAX_FIND_PAGES):
            body, response = self.client.http.json("GET", step.url, params=step.parameters)
            yield from self._living(body, response)
            following = self._following(step, body, response, len(self._records(body, response)), moved=True)
            if following is None:
                return
            step = following
        raise Retry(f"asked by {option}, {path} lists {_MAX_FIND_PAGES} pages and more: is {option} right?")

    def _living(self, body: Any, response: requests.Response) -> Iterator[External]:
        for data in self._records(body, response):
            if not self._deleted(data):
                yield self.external(data, at=self.time(search_json(self.updated_field, data)))

    def _write(self, method: str, path: str, data: Mapping[str, Any], item: Item, **options: Any) -> External:
        data = {**data, self.record_id_field: self._mark(item)} if self.record_id_field else dict(data)
        options |= self._condition(item, self.version_sent)
        data |= options.pop("fields", {})
        body = {self.body_field: data} if self.body_field else data
        response = self.client.http.call(method, path, json=body, **options)
        answer = readable(response)
        if self._is_record(answer, item):
            return self._answered(answer, response)
        request_id = self.client.http.request_id(response)
        if is_refusal(answer):
            message, fields = self.client.describe(response)
            text = f"{response.status_code}, but refused: {message}"
            raise Reject(text, fields=fields, request_id=request_id, code=duplicate_code(message))
        external_id = item.external_id or id_in(location_of(response) or "", self._record_template(self.read_path))
        if external_id is not None:
            version = self._version_of(response)
            return External(external_id, {}, at=server_time(response), request_id=request_id, version=version)
        return self._created_at(response)

    def _condition(self, item: Item, sent: str) -> dict[str, Any]:
        """Return the options of a call that name the version of the record; `fields` belong into the body."""
        if item.version is None or not self.is_conditional:
            return {}
        value = self.version_value.replace("{version}", item.version)
        options: dict[str, Any] = {"statuses": dict.fromkeys(self.version_refusals, Outdated)}
        if sent == "body":
            return options | {"fields": {self.version_parameter: int(value) if value.isdecimal() else value}}
        if sent == "query":
            return options | {"params": {self.version_parameter: value}}
        return options | {"headers": {_CONDITIONS.get(sent, self.version_parameter): value}}

    def _version_in(self, record: Mapping[str, Any]) -> str | None:
        """Return the version that a record contains."""
        value = search_json(self.version_field, record)
        if self.version_sent == "if_unmodified_since" and value is not None:
            when = self.time(value)
            return None if when is None else format_datetime(when.astimezone(UTC), usegmt=True)
        return str(value) if isinstance(value, str | int | float) else None

    def _version_of(self, response: requests.Response) -> str | None:
        """Return the version in the header of a response for one record."""
        return response.headers.get(self.version_header) if self.version_header else None

    def _created_at(self, response: requests.Response) -> External:
        """Return the record that a create made, from the address in its response. Raises `Unidentified`."""
        address = location_of(response)
        message = f"created, but the response has no {self.id_field!r}"
        message += f", only Location {address}" if address else ""
        try:
            if (step := self._at(address, response)) is not None:
                return self._answered(*self.client.http.json("GET", step.url))
        except SyncError as error:
            message += f" ({error})"
        raise Unidentified(message, request_id=self.client.http.request_id(response))

    def _record_in(self, body: Any) -> Mapping[str, Any] | None:
        """Return the record in a response for one record; None if it has none with an id."""
        record = search_json(self.record_field, body)
        found = isinstance(record, dict) and search_json(self.id_field, record) not in (None, "")
        return record if found else None

    def _is_record(self, answer: Any, item: Item) -> bool:
        """Whether the response to a write has the record: that to an update may have the id of a job alone."""
        record = self._record_in(answer)
        if record is None:
            return False
        is_known = item.external_id in (None, str(search_json(self.id_field, record)))
        return is_known or bool(self.mapper.flatten(record))

    def _answered(self, body: Any, response: requests.Response) -> External:
        record = self._record_in(body)
        if record is None:
            raise Retry(f"the response is not a record with {self.id_field!r}", maybe_done=True)
        at = self.time(search_json(self.updated_field, record))
        external = self.external(record, at=at or server_time(response))
        return replace(
            external,
            is_exact=at is not None,
            request_id=self.client.http.request_id(response),
            version=external.version or self._version_of(response),
        )

    def _records(self, body: Any, response: requests.Response) -> list[dict[str, Any]]:
        found = search_json(self.list_field, body)
        if not isinstance(found, list) or not all(
            isinstance(one, dict) and search_json(self.id_field, one) not in (None, "") for one in found
        ):
            raise Retry(f"the response of {urlsplit(response.url).path} is not a list of records")
        return found

    def _deleted(self, record: Mapping[str, Any]) -> bool:
        return bool(search_json(self.deleted_field, record))

    def _check_order(self, stamps: list[Any]) -> None:
        """Raise `Retry` if a page is not sorted by time: older records on a later page would never be read."""
        times = [when for stamp in stamps if (when := self.time(stamp)) is not None]
        if self.since_parameter and times != sorted(times):
            raise Retry(
                f"the list is not in order of {self.updated_field}: ask for it by list_parameters, "
                "or say oldest_first = false"
            )

    def _newest(self, stamps: list[Any]) -> str | None:
        times = {when: str(stamp) for stamp in stamps if (when := self.time(stamp)) is not None}
        return times[max(times)] if times else None

    def _settled(self, stamps: list[Any], response: requests.Response) -> list[Any]:
        """Return the times before the overlap with the next poll.

        A record may be listed later than its time says, and no poll may start from a time in the future.
        """
        end = (server_time(response) or datetime.now(UTC)) - timedelta(seconds=self.client.overlap_seconds)
        return [stamp for stamp in stamps if (when := self.time(stamp)) is not None and when <= end]

    def _first(self, since: str | None) -> _Step:
        parameters: dict[str, Any] = dict(self.list_parameters)
        if self.limit_parameter:
            parameters[self.limit_parameter] = self.page_limit
        if self.since_parameter and (start := since or self.since_first):
            parameters[self.since_parameter] = self.since_value.replace("{since}", start)
        return _Step(self.list_path or self.path, parameters)

    def _following(self, step: _Step, body: Any, response: requests.Response, count: int, moved: bool) -> _Step | None:
        if self.pagination in ("page", "offset"):
            # A short page is the last one, or the system returns fewer records than requested. In the second case
            # the next poll reads the rest from the new position, so only a poll without a new position continues.
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
        # Only path and query are used: the token must not be sent to another host.
        own, there = urlsplit(self.client.http.base_url), urlsplit(urljoin(response.url, str(address)))
        return _Step(f"{own.scheme}://{own.netloc}{there.path}?{there.query}", {})


class _Step:
    """One request for a page: URL and parameters."""

    def __init__(self, url: str, parameters: dict[str, Any]) -> None:
        self.url, self.parameters = url, parameters

    def with_(self, name: str, value: Any) -> _Step:
        return _Step(self.url, {**self.parameters, name: value})

    def further(self, name: str, first: int, by: int) -> _Step:
        return self.with_(name, self.parameters.get(name, first) + by)


def _gap(since: str) -> str:
    return f"deletions since {since} may be missing: the system no longer reports changes since then"


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        raise BadWebhook("the body is not JSON") from None
    if not isinstance(value, dict):
        raise BadWebhook("the body is not a JSON object")
    return value


#: The options of a system and of a subscriber, in code and in a file: the annotated attributes.
SYSTEM_OPTIONS = own_options(RestSystem)
SUBSCRIBER_OPTIONS = (*COMMON_OPTIONS, *own_options(RestSubscriber))

__all__ = ["SUBSCRIBER_OPTIONS", "SYSTEM_OPTIONS", "RestOptions", "RestSubscriber", "RestSystem"]
