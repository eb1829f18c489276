"""Stripe, over its REST API with form bodies.

API reference: "Errors", "Idempotent requests", "Customers", "Events"; guide "Receive Stripe events
in your webhook endpoint".
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import quote

import requests
from pydantic import SecretStr

from subscribers import base
from subscribers.base import Event, External, Item, Page, Subscriber, System, register
from subscribers.errors import BadSignature, BadWebhook, Gone, Reject, Retry, SyncError, SystemDown
from subscribers.http import Http, Token, Url, retry_after, secrets_of, server_time, status_error
from subscribers.mapping import words

#: The shapes this module is written for; an account's own default may be older or newer.
API_VERSION = "2024-06-20"
#: The key under which an object's metadata carries our record's id.
RECORD_ID_KEY = "syncflow_id"
#: A webhook signed longer ago than this is refused, seconds: it may be a recorded one.
TOLERANCE = 300
#: Objects on a page: the most that Stripe gives.
PAGE_SIZE = 100
#: How many of the newest objects are searched for one that carries our id.
FIND_AMONG = 1000
#: Events are read in stretches of this many seconds, oldest first, so that a long outage fits in memory.
STRETCH = 3600
#: Events become visible in any order; this close to the present they are read again, seconds.
SETTLING = 60

_VERBS = ("created", "updated", "deleted")


class StripeOptions(base.Options):
    """STRIPE_API_KEY: a secret or a restricted key. STRIPE_WEBHOOK_SECRET: the endpoint's signing secret,
    several separated by blanks; while it is empty every webhook is refused. STRIPE_API_BASE: another
    address than Stripe's own, for tests.
    """

    api_key: Token
    api_base: Url = "https://api.stripe.com"
    webhook_secret: SecretStr = SecretStr("")


class Stripe(System):
    """One Stripe account."""

    Options = StripeOptions

    def __init__(self, name: str, options: StripeOptions) -> None:
        super().__init__(name, options)
        headers = {"Authorization": f"Bearer {options.api_key.get_secret_value()}", "Stripe-Version": API_VERSION}
        self.http = Http(options.api_base, headers=headers, classify=classify, request_id_header="request-id")

    def get(self, path: str, **parameters: Any) -> tuple[dict[str, Any], requests.Response]:
        """Read one object or a list (`data` holds its objects, newest first; `has_more`)."""
        return self._object(*self.http.json("GET", path, params=form(parameters)))

    def post(self, path: str, data: Mapping[str, Any], key: str | None = None) -> External:
        """Create or change an object; what it is then. `key` is the Idempotency-Key."""
        headers = {"Idempotency-Key": key} if key else {}
        body, response = self._object(*self.http.json("POST", path, data=form(data), headers=headers))
        return external(body, at=server_time(response), request_id=self.http.request_id(response))

    def delete(self, path: str) -> None:
        """Delete an object. Raises `Gone` where that has happened already."""
        self.http.call("DELETE", path)

    def verify(self, body: bytes, headers: Mapping[str, str]) -> str:
        """The event's id, once Stripe's own check accepts the signature with one of the secrets."""
        header = headers.get("stripe-signature", "")
        if not any([_signed(body, header, secret) for secret in secrets_of(self.options.webhook_secret)]):
            raise BadSignature(f"{self.name}: the signature does not fit, or is too old")
        return str(_event(body)["id"])

    def events(self, body: bytes) -> list[Event]:
        """The one object that was created, updated or deleted; nothing for any other type of event."""
        event = _event(body)
        resource, _, verb = event["type"].rpartition(".")
        return [Event(resource, of_event(event))] if verb in _VERBS and "id" in event["data"]["object"] else []

    def page_url(self, resource: str, external_id: str) -> str | None:
        """The object's page in the dashboard."""
        if self.options.api_base != StripeOptions.model_fields["api_base"].default:
            return None
        test = "test/" if "_test_" in self.options.api_key.get_secret_value()[:8] else ""
        return f"https://dashboard.stripe.com/{test}{resource}s/{quote(external_id, safe='')}"

    @staticmethod
    def _object(body: Any, response: requests.Response) -> tuple[dict[str, Any], requests.Response]:
        if not isinstance(body, dict) or "object" not in body:
            raise Retry("the answer is no Stripe object", maybe_done=response.request.method != "GET")
        return body, response


class StripeSubscriber(Subscriber):
    """Objects of one kind. `resource` is the prefix of their events' types, `path` the address of their list."""

    system = "stripe"
    system_class = Stripe
    path: ClassVar[str]
    #: Mapped fields by which the list can be filtered, tried first by `find`.
    find_by: ClassVar[Sequence[str]] = ()
    #: Webhooks bring changes at once; the poll finds those that got lost.
    poll_seconds = 300

    def create(self, item: Item) -> External:
        """Create the object. An idempotency key that Stripe has used up on a failure is replaced by a fresh one."""
        data = _with_record_id(_without_none(item.data), item)
        client: Stripe = self.client
        try:
            return client.post(self.path, data, item.key)
        except KeySpent as spent:
            # Stripe repeats its first answer for a day, a 500 as well, and refuses the key for other data. What
            # that first call did is seen by looking; only where it did nothing may another key be taken.
            if self.find(item) is not None:
                raise Retry(str(spent), maybe_done=True, request_id=spent.request_id) from spent
            return client.post(self.path, data, f"{item.key}-{uuid.uuid4().hex[:12]}")

    def update(self, item: Item) -> External:
        """Send what changed. Raises `Gone`."""
        found = self.client.post(self._address(item.linked_id), _with_record_id(item.changes, item))
        return _not_deleted(found)

    def delete(self, item: Item) -> None:
        """Delete the object, for good. Raises `Gone` where that has happened already."""
        self.client.delete(self._address(item.linked_id))

    def fetch(self, external_id: str) -> External:
        """The object now. Raises `Gone`; Stripe itself answers 200 for a deleted one."""
        body, response = self.client.get(self._address(external_id))
        return _not_deleted(external(body, at=server_time(response)))

    def find(self, item: Item) -> External | None:
        """The object whose metadata carries our id.

        Lists are read, although there is a search: that one shows an object only a while after its
        creation, and looked for is always one that was perhaps created a moment ago.
        """
        for name in self.find_by:
            if (value := item.data.get(name)) and (found := self._find_in_list(item.record_id, {name: value})):
                return found
        return self._find_in_list(item.record_id, {})

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
        """All objects first, then what happened, by Stripe's events.

        Position: `{"since": seconds of the epoch}`, and while the first reading goes on `after`, the
        id of the last object read. Stripe keeps events for 30 days.
        """
        position = dict(position or {})
        if "since" not in position or "after" in position:
            for page in self._everything(position):
                position = page.position
                yield page
        yield from self._happened(int(position["since"]))

    # --- how it is done -----------------------------------------------------------------------------

    def _address(self, external_id: str) -> str:
        return f"{self.path}/{quote(external_id, safe='')}"

    def _find_in_list(self, record_id: str, filters: Mapping[str, Any]) -> External | None:
        after: dict[str, Any] = {}
        for _ in range(FIND_AMONG // PAGE_SIZE):
            body, response = self.client.get(self.path, limit=PAGE_SIZE, **filters, **after)
            for one in body["data"]:
                if (found := external(one, at=server_time(response))).record_id == record_id:
                    return found
            if not body["has_more"]:
                break
            after = {"starting_after": body["data"][-1]["id"]}
        return None

    def _everything(self, position: dict[str, Any]) -> Iterator[Page]:
        """Newest first, as Stripe lists them; what changes meanwhile is among the events since the start."""
        while True:
            after = {"starting_after": position["after"]} if "after" in position else {}
            body, response = self.client.get(self.path, limit=PAGE_SIZE, **after)
            at = server_time(response) or datetime.now(UTC)
            since = position.get("since", int(at.timestamp()) - SETTLING)
            position = {"since": since}
            if body["has_more"]:
                position["after"] = body["data"][-1]["id"]
            yield Page([external(one, at=at) for one in body["data"]], position)
            if not body["has_more"]:
                return

    def _happened(self, since: int) -> Iterator[Page]:
        while True:
            end = since + STRETCH
            newest_by_id, now = self._stretch(since, end)
            settled = max(since, min(end, now - SETTLING))
            records = sorted(newest_by_id.values(), key=_seconds)
            for start in range(0, len(records), PAGE_SIZE):
                chunk = records[start : start + PAGE_SIZE]
                yield Page(chunk, {"since": min(settled, max(since, _seconds(chunk[-1])))})
            yield Page([], {"since": settled})
            if now < end:
                return
            since = end

    def _stretch(self, start: int, end: int) -> tuple[dict[str, External], int]:
        """The newest event of each object in this stretch of time, and Stripe's clock at the first call."""
        types = [f"{self.resource}.{verb}" for verb in _VERBS]
        newest: dict[str, External] = {}
        now = 0
        after: dict[str, Any] = {}
        while True:
            body, response = self.client.get(
                "/v1/events", types=types, created={"gte": start, "lt": end}, limit=PAGE_SIZE, **after
            )
            at = server_time(response) or datetime.now(UTC)
            now = now or int(at.timestamp())
            for event in body["data"]:  # newest first
                one = of_event(event)
                newest.setdefault(one.id, one)
            if not body["has_more"]:
                return newest, now
            after = {"starting_after": body["data"][-1]["id"]}


@register
class StripeCustomer(StripeSubscriber):
    """Customers as Stripe's customers. API reference: "Customers"."""

    catalogue = "customer"
    resource = "customer"
    path = "/v1/customers"
    match_on = ("email",)
    find_by = ("email",)
    field_to_data = {
        "name": "name",
        "email": "email",
        "phone": "phone",
        "street": "address.line1",
        "city": "address.city",
        "postal_code": "address.postal_code",
        "country": "address.country",
        "notes": "description",
    }

    #: Stripe's limits, in characters, where our own columns are wider.
    lengths = {"phone": 20, "description": 5000}

    def validate(self, data: Mapping[str, Any]) -> None:
        """Say what Stripe would refuse, all at once."""
        wrong = {
            name: f"longer than {n} characters" for name, n in self.lengths.items() if len(data.get(name) or "") > n
        }
        if wrong:
            raise Reject(words(wrong), fields=wrong)


class KeySpent(Retry):
    """An Idempotency-Key that Stripe answers for no new call any more."""


def classify(response: requests.Response, writes: bool) -> SyncError | None:
    """Stripe's table: (status, type, code) of an error body -> what to do next."""
    request_id = response.headers.get("request-id")
    try:
        error = response.json()["error"]
        kind, code, param = (str(error.get(name) or "") for name in ("type", "code", "param"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None if response.status_code != 404 else SystemDown("404 without Stripe's JSON: is the address right?")
    status = response.status_code
    text = f"{status}: {error.get('message') or code or kind}"
    if status in (401, 403):
        return SystemDown(f"the API key is refused ({text})", request_id=request_id)
    if code == "lock_timeout":
        return Retry(text, after=retry_after(response), request_id=request_id)
    if (kind == "idempotency_error" and status == 400) or (status >= 500 and "Idempotent-Replayed" in response.headers):
        return KeySpent(text, maybe_done=True, request_id=request_id)
    if status == 409:
        # Another call with our key is still under way there.
        return Retry(text, maybe_done=writes, request_id=request_id)
    if status == 404:
        return _missing(text, request_id)
    if status == 429 or status >= 500:
        return status_error(status, text, after=retry_after(response), writes=writes, request_id=request_id)
    return Reject(text, fields={_dotted(param): str(error.get("message", ""))} if param else {}, request_id=request_id)


def _missing(text: str, request_id: str | None) -> SyncError:
    if "similar object exists in" in text:
        # The object is well, in the other mode: the key is wrong, and nothing must be unlinked.
        return SystemDown(f"the API key is of the wrong mode ({text})", request_id=request_id)
    return Gone(text, request_id=request_id)


def form(data: Mapping[str, Any], parent: str = "") -> list[tuple[str, str]]:
    """Nested data as Stripe's form fields: {"address": {"city": "Rome"}} -> [("address[city]", "Rome")].

    None is an empty string, which unsets; an empty object or list too.
    """
    pairs: list[tuple[str, str]] = []
    for name, value in data.items():
        key = f"{parent}[{name}]" if parent else str(name)
        if isinstance(value, list | tuple):
            value = dict(enumerate(value))
        if isinstance(value, Mapping) and value:
            pairs += form(value, key)
        elif isinstance(value, bool):
            pairs.append((key, "true" if value else "false"))
        else:
            pairs.append((key, "" if value is None or isinstance(value, Mapping) else str(value)))
    return pairs


def external(
    body: Mapping[str, Any], *, at: datetime | None, deleted: bool = False, request_id: str | None = None
) -> External:
    """One of Stripe's objects as the hub knows it."""
    record_id = (body.get("metadata") or {}).get(RECORD_ID_KEY)
    gone = deleted or body.get("deleted") is True
    return External(str(body["id"]), body, at=at, deleted=gone, record_id=record_id, request_id=request_id)


def of_event(event: Mapping[str, Any]) -> External:
    """The object of an event, as it was then. Event times are whole seconds."""
    at = datetime.fromtimestamp(event["created"], UTC)
    return external(event["data"]["object"], at=at, deleted=event["type"].endswith(".deleted"))


def _seconds(one: External) -> int:
    return int(one.at.timestamp()) if one.at else 0


def _not_deleted(found: External) -> External:
    if found.deleted:
        raise Gone(f"{found.id} was deleted", request_id=found.request_id)
    return found


def _with_record_id(data: Mapping[str, Any], item: Item) -> dict[str, Any]:
    return {**data, "metadata": {**(data.get("metadata") or {}), RECORD_ID_KEY: item.record_id}}


def _without_none(data: Mapping[str, Any]) -> dict[str, Any]:
    """Left out what is empty: at a creation there is nothing to unset, and Stripe may refuse the attempt."""
    cut = {name: _without_none(value) if isinstance(value, Mapping) else value for name, value in data.items()}
    return {name: value for name, value in cut.items() if value not in (None, "", {})}


def _dotted(param: str) -> str:
    """Stripe's name of a parameter as a path: address[city] -> address.city."""
    return param.replace("[", ".").replace("]", "")


def _signed(body: bytes, header: str, secret: str) -> bool:
    # Imported here: the package takes a third of a second, and only who receives webhooks needs it.
    from stripe import SignatureVerificationError, WebhookSignature  # noqa: PLC0415

    try:
        return bool(WebhookSignature.verify_header(body, header, secret, TOLERANCE))
    except (SignatureVerificationError, ValueError, TypeError):
        # The last two: a body that is not UTF-8, a header that is not ASCII.
        return False


def _event(body: bytes) -> dict[str, Any]:
    try:
        event = json.loads(body)
        if event["object"] == "event" and event["id"] and event["data"]["object"] and event["type"]:
            int(event["created"])
            return dict(event)
    except (ValueError, KeyError, TypeError):
        raise BadWebhook("the body is not one of Stripe's events") from None
    raise BadWebhook("the body is not one of Stripe's events")
