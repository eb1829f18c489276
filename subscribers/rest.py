"""Any system with a plain JSON REST API: configured by class attributes, not programmed.

What is expected of it: a list and an address a record (`/contacts`, `/contacts/7`), JSON objects,
a time of the last change in each of them, and usual HTTP statuses. What is different in yours is a
class attribute here; what no attribute covers is a method to override.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, ClassVar
from urllib.parse import quote, unquote, urljoin, urlsplit

import requests
from pydantic import SecretStr

from subscribers import base
from subscribers.base import Event, External, Item, Page, Subscriber, System
from subscribers.errors import BadSignature, BadWebhook, Retry
from subscribers.http import Http, Token, Url, iso_time, same_secret, secrets_of, server_time
from subscribers.paths import nest


class RestOptions(base.Options):
    """The settings of a REST system, by the example of one named `shop`.

    SHOP_URL: its address, http(s), up to where the paths of the subscribers start.
    SHOP_TOKEN: sent as `Authorization: Bearer`; none is sent where it is empty.
    SHOP_WEBHOOK_SECRET: what its webhooks are signed with, several separated by blanks; while it is
    empty every webhook is refused.
    SHOP_CA_BUNDLE: a file of certificates to trust instead of the usual ones.
    """

    url: Url
    token: Token = SecretStr("")
    webhook_secret: SecretStr = SecretStr("")
    ca_bundle: str = ""


class RestSystem(System):
    """One REST system.

    Its webhooks are JSON objects; the attributes name their fields. Who sent one is proven by the
    hex HMAC-SHA256 of the raw body in the header `signature_header`. A `type` such as
    `contact.updated` stands for the resource too where there is no field of its own for that.
    """

    Options = RestOptions

    signature_header: ClassVar[str] = "x-signature"
    event_id_field: ClassVar[str] = "id"
    event_type_field: ClassVar[str] = "type"
    event_time_field: ClassVar[str] = "created_at"
    event_resource_field: ClassVar[str] = "resource"
    event_data_field: ClassVar[str] = "data"

    def __init__(self, name: str, options: RestOptions) -> None:
        super().__init__(name, options)
        token = options.token.get_secret_value()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.http = Http(options.url, headers=headers, ca_bundle=options.ca_bundle or None)
        #: By resource: where a record's id stands is known to its subscriber.
        self.subscribers: dict[str, RestSubscriber] = {}

    def verify(self, body: bytes, headers: Mapping[str, str]) -> str:
        """The event's id, once the signature fits one of the secrets."""
        given = headers.get(self.signature_header, "").strip().lower()
        # All of them are tried, so that the time taken does not tell which one is in use.
        fits = [same_secret(given, _signature(one, body)) for one in secrets_of(self.options.webhook_secret)]
        if not any(fits):
            raise BadSignature(f"{self.name}: the signature does not fit")
        event = _json_object(body)
        event_id = event.get(self.event_id_field)
        if not isinstance(event_id, str | int) or event_id == "":
            raise BadWebhook(f"the event has no {self.event_id_field!r}")
        return str(event_id)

    def events(self, body: bytes) -> list[Event]:
        """The one record that the webhook is about; nothing where no subscriber follows its resource."""
        event = _json_object(body)
        kind = str(event.get(self.event_type_field) or "")
        resource = str(event.get(self.event_resource_field) or kind.rpartition(".")[0])
        subscriber = self.subscribers.get(resource)
        if subscriber is None:
            return []
        data = event.get(self.event_data_field)
        if not isinstance(data, dict) or data.get(subscriber.id_field) is None:
            raise BadWebhook(f"{self.event_data_field!r} is no record with {subscriber.id_field!r}")
        external = subscriber.external(
            data,
            at=iso_time(event.get(self.event_time_field)),
            deleted=event.get("deleted") is True or kind.endswith(".deleted"),
        )
        return [Event(resource, external)]


class RestSubscriber(Subscriber):
    """Records of one list of a REST system.

    Deletions can be told from webhooks only: a list of what changed does not show what is gone.
    """

    system_class = RestSystem

    #: The list's address below the system's URL; a record's own is that, a slash and its id.
    path: ClassVar[str]
    id_field: ClassVar[str] = "id"
    #: Where the records of a list stand; None: the body is the list itself.
    list_field: ClassVar[str | None] = "items"
    #: Where the address of the next page stands; None: pages are counted by `page_parameter`.
    next_field: ClassVar[str | None] = "next"
    page_parameter: ClassVar[str] = "page"
    limit_parameter: ClassVar[str] = "limit"
    page_limit: ClassVar[int] = 100
    #: When a record was last changed: ISO 8601.
    updated_field: ClassVar[str] = "updated_at"
    since_parameter: ClassVar[str] = "updated_since"
    #: Whether lists come in order of `updated_field`; else a poll that breaks off starts afresh.
    oldest_first: ClassVar[bool] = True
    #: PATCH sends what changed, PUT all that is mapped.
    update_method: ClassVar[str] = "PATCH"
    #: The top-level field in which a record there carries our id, and the list's parameter that selects by it.
    record_id_field: ClassVar[str | None] = None
    find_parameter: ClassVar[str | None] = None

    def __init__(self, client: System) -> None:
        super().__init__(client)
        self.client.subscribers[self.resource or self.path.strip("/")] = self

    # --- calls ------------------------------------------------------------------------------------

    def create(self, item: Item) -> External:
        """POST; the Idempotency-Key keeps a repeat from making a second record where the system heeds it."""
        headers = {"Idempotency-Key": item.key}
        return self._write("POST", self.path, self._with_record_id(item.data, item), headers=headers)

    def update(self, item: Item) -> External:
        """PATCH or PUT. Raises `Gone`.

        A PUT replaces the record: mapped fields that are not ours to change go back as they stand there now.
        """
        data = item.changes
        if self.update_method == "PUT":
            data = {**nest(self.mapper.theirs(self.fetch(item.linked_id).data)), **item.changes}
        return self._write(self.update_method, self._address(item.linked_id), self._with_record_id(data, item))

    def delete(self, item: Item) -> None:
        """DELETE. Raises `Gone` where that has happened already."""
        self.client.http.call("DELETE", self._address(item.linked_id))

    def fetch(self, external_id: str) -> External:
        """GET. Raises `Gone`."""
        body, response = self.client.http.json("GET", self._address(external_id))
        return self._answered(body, response)

    def find(self, item: Item) -> External | None:
        """The record that carries our id; None where there is none, or no field for it."""
        if self.record_id_field is None:
            return None
        parameter = self.find_parameter or self.record_id_field
        body, response = self.client.http.json("GET", self.path, params={parameter: item.record_id})
        for data in self._records(body, response):
            # A system that does not know the parameter answers with everything.
            if str(data.get(self.record_id_field)) == item.record_id:
                return self.external(data, at=iso_time(data.get(self.updated_field)))
        return None

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
        """Pages of what changed at or after `{"since": ISO 8601}`, and the newest time seen as their position."""
        since: str | None = (position or {}).get("since")
        step = _Step(self.path, self._list_parameters(since))
        newest = since
        while True:
            body, response = self.client.http.json("GET", step.url, params=step.parameters)
            records = self._records(body, response)
            newest = _newest([newest, *(one.get(self.updated_field) for one in records)])
            following = self._following(step, body, response, len(records))
            reached = newest if self.oldest_first or following is None else since
            externals = [self.external(one, at=iso_time(one.get(self.updated_field))) for one in records]
            yield Page(externals, {"since": reached} if reached else {})
            if following is None:
                return
            if self.oldest_first and newest != since:
                # Asking anew from here, not for the next page: a record that changes while we read moves
                # to the end of the list, and all behind it would move up over the edge of the page.
                since, following = newest, _Step(self.path, self._list_parameters(newest))
            step = following

    def external(self, data: Mapping[str, Any], *, at: datetime | None, deleted: bool = False) -> External:
        """A record of the system's as the hub knows it."""
        record_id = data.get(self.record_id_field) if self.record_id_field else None
        return External(
            id=str(data[self.id_field]),
            data=data,
            at=at,
            deleted=deleted,
            record_id=str(record_id) if record_id not in (None, "") else None,
        )

    # --- how it is done -----------------------------------------------------------------------------

    def _address(self, external_id: str) -> str:
        return f"{self.path}/{quote(external_id, safe='')}"

    def _with_record_id(self, data: Mapping[str, Any], item: Item) -> dict[str, Any]:
        return {**data, self.record_id_field: item.record_id} if self.record_id_field else dict(data)

    def _write(self, method: str, path: str, data: dict[str, Any], **options: Any) -> External:
        response = self.client.http.call(method, path, json=data, **options)
        if response.status_code == 204 and method != "POST":
            request_id = self.client.http.request_id(response)
            return External(unquote(path.rpartition("/")[2]), {}, at=server_time(response), request_id=request_id)
        try:
            return self._answered(response.json(), response)
        except ValueError:
            # Perhaps cut on its way: whether it took effect is unknown.
            raise Retry(f"{method} was answered without readable JSON", maybe_done=True) from None

    def _answered(self, body: Any, response: requests.Response) -> External:
        if not isinstance(body, dict) or body.get(self.id_field) is None:
            raise Retry(f"the answer is no record with {self.id_field!r}", maybe_done=True)
        external = self.external(body, at=iso_time(body.get(self.updated_field)) or server_time(response))
        return replace(external, request_id=self.client.http.request_id(response))

    def _records(self, body: Any, response: requests.Response) -> list[dict[str, Any]]:
        found = body if self.list_field is None else body.get(self.list_field) if isinstance(body, dict) else None
        if not isinstance(found, list) or not all(isinstance(one, dict) and self.id_field in one for one in found):
            raise Retry(f"the answer of {urlsplit(response.url).path} is no list of records")
        return found

    def _list_parameters(self, since: str | None) -> dict[str, Any]:
        start = {self.since_parameter: since} if since else {}
        return {self.limit_parameter: self.page_limit, **start}

    def _following(self, step: _Step, body: Any, response: requests.Response, count: int) -> _Step | None:
        if self.next_field is None:
            page = int(step.parameters.get(self.page_parameter, 1))
            parameters = {**step.parameters, self.page_parameter: page + 1}
            return _Step(step.url, parameters) if count >= self.page_limit else None
        following = body.get(self.next_field) if isinstance(body, dict) else None
        if not following:
            return None
        # Only its path and query count: our token goes to the configured host and to no other.
        own, there = urlsplit(self.client.http.base_url), urlsplit(urljoin(response.url, str(following)))
        return _Step(f"{own.scheme}://{own.netloc}{there.path}?{there.query}", {})


class _Step:
    """One call for a page: its address and its parameters."""

    def __init__(self, url: str, parameters: dict[str, Any]) -> None:
        self.url, self.parameters = url, parameters


def _newest(stamps: list[Any]) -> str | None:
    """The latest of these times, as the system wrote it."""
    times = {when: str(stamp) for stamp in stamps if (when := iso_time(stamp)) is not None}
    return times[max(times)] if times else None


def _signature(secret: str, body: bytes) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        raise BadWebhook("the body is not JSON") from None
    if not isinstance(value, dict):
        raise BadWebhook("the body is not a JSON object")
    return value


__all__ = ["RestOptions", "RestSubscriber", "RestSystem"]
