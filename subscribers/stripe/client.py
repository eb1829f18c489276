"""One Stripe account: its settings, its calls, its webhooks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import requests
from pydantic import Field, SecretStr

from subscribers.errors import BadSignature, BadWebhook, Retry
from subscribers.http.client import Http, Token, Url, iso_time, secrets_of
from subscribers.records import Event, External
from subscribers.stripe.failures import classify
from subscribers.system import Options as SystemOptions
from subscribers.system import System

#: The API version that this package is written for; an account's default may be older or newer.
API_VERSION = "2024-06-20"
#: The key in an object's metadata that holds `Item.mark`, by which it is known as ours.
RECORD_ID_KEY = "syncflow_id"
#: A webhook with a signature older than this many seconds is refused: it may be a replay.
SIGNATURE_TOLERANCE_SECONDS = 300
#: Objects on a page: Stripe's maximum.
PAGE_SIZE = 100

VERBS = ("created", "updated", "deleted")
#: Objects whose events lack some mapped fields (a price's amount, lines after the tenth, and all of them
#: in other versions of the API), so that their current state is always fetched.
_THIN = ("product", "invoice")
#: Stripe's name for events that contain the id of an object without its data.
_THIN_EVENT = "v2.core.event"


class StripeOptions(SystemOptions):
    """STRIPE_API_KEY: a secret or a restricted key. STRIPE_WEBHOOK_SECRET: the endpoint's signing secret;
    several are separated by blanks. While it is empty, every webhook is refused. STRIPE_DAYS_UNTIL_DUE:
    the time to pay an invoice that has no due date. STRIPE_API_BASE: another address than Stripe's
    own, for tests.
    """

    api_key: Token
    api_base: Url = "https://api.stripe.com"
    webhook_secret: SecretStr = SecretStr("")
    days_until_due: int = Field(30, ge=0, le=3650)


class Stripe(System):
    """One Stripe account."""

    Options = StripeOptions

    def __init__(self, name: str, options: StripeOptions) -> None:
        super().__init__(name, options)
        headers = {"Authorization": f"Bearer {options.api_key.get_secret_value()}", "Stripe-Version": API_VERSION}
        self.http = Http(
            options.api_base,
            headers=headers,
            classify=classify,
            request_id_header="request-id",
            max_response_bytes=self.max_response_bytes,
        )

    def get(self, path: str, **parameters: Any) -> tuple[dict[str, Any], requests.Response]:
        """Read one object or a list (`data` holds its objects, newest first; `has_more`)."""
        return self._object(*self.http.json("GET", path, params=form(parameters)))

    def walk(self, path: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Yield all objects of a list, newest first. Paced, as it is never the first call for a record."""
        after: dict[str, Any] = {}
        while True:
            self.pace()
            body, _ = self.get(path, limit=PAGE_SIZE, **parameters, **after)
            yield from body["data"]
            if not body["has_more"]:
                return
            after = {"starting_after": body["data"][-1]["id"]}

    def post(
        self, path: str, data: Mapping[str, Any], key: str | None = None
    ) -> tuple[dict[str, Any], requests.Response]:
        """Create or change an object, and return its new state. `key` is the Idempotency-Key."""
        headers = {"Idempotency-Key": key} if key else {}
        return self._object(*self.http.json("POST", path, data=form(data), headers=headers))

    def delete(self, path: str) -> None:
        """Delete an object. Raises `Gone` if it is already deleted."""
        self.http.call("DELETE", path)

    def account(self) -> str | None:
        """Return the id of the account, with the mode of the key: each mode has its own objects."""
        self.pace()
        body, _ = self.get("/v1/account")
        mode = " (test mode)" if _is_live(self.options.api_key.get_secret_value()) is False else ""
        return f"{body['id']}{mode}"

    def verify(self, body: bytes, headers: Mapping[str, str]) -> str:
        """Return the event's id if the signature matches one of the secrets, by Stripe's own check."""
        header = headers.get("stripe-signature", "")
        if not any([_signed(body, header, secret) for secret in secrets_of(self.options.webhook_secret)]):
            raise BadSignature(f"{self.name}: the signature is wrong or too old")
        return str(self._own_event(body)["id"])

    def events(self, body: bytes) -> list[Event]:
        """Return the record that an event is about; none for an event of any other kind."""
        event = event_record(self._own_event(body))
        return [event] if event else []

    def _own_event(self, body: bytes) -> dict[str, Any]:
        """Return an event of the key's mode: an object of the other mode cannot be read with this key."""
        event = _event(body)
        live, key_live = event.get("livemode"), _is_live(self.options.api_key.get_secret_value())
        if isinstance(live, bool) and key_live is not None and live is not key_live:
            modes = {True: "live mode", False: "test mode"}
            raise BadWebhook(
                f"event {event['id']} is of {modes[live]}, but STRIPE_API_KEY is of {modes[key_live]}: "
                "send this endpoint the events of one mode only"
            )
        return event

    def page_url(self, resource: str, external_id: str) -> str | None:
        """Return the URL of the object's page in the dashboard."""
        if self.options.api_base != StripeOptions.model_fields["api_base"].default:
            return None
        test = "test/" if _is_live(self.options.api_key.get_secret_value()) is False else ""
        return f"https://dashboard.stripe.com/{test}{resource}s/{quote(external_id, safe='')}"

    @staticmethod
    def _object(body: Any, response: requests.Response) -> tuple[dict[str, Any], requests.Response]:
        if not isinstance(body, dict) or "object" not in body:
            raise Retry("the response is not a Stripe object", maybe_done=response.request.method != "GET")
        return body, response


def form(data: Mapping[str, Any], parent: str = "") -> list[tuple[str, str]]:
    """Return nested data as Stripe's form fields: {"address": {"city": "Rome"}} -> [("address[city]", "Rome")].

    None and an empty object or list become an empty string, which unsets the field.
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
    """Return a Stripe object as an `External`."""
    mark = (body.get("metadata") or {}).get(RECORD_ID_KEY)
    gone = deleted or body.get("deleted") is True
    return External(str(body["id"]), body, at=at, deleted=gone, mark=mark, request_id=request_id)


def event_record(event: Mapping[str, Any]) -> Event | None:
    """Return the record of an event in its state at that time; without data if the event lacks some of it.

    Event times are whole seconds. Every event of an invoice (finalized, paid, voided ...) and of its
    items means that the invoice may have changed.
    """
    if event["object"] == _THIN_EVENT:
        named = event.get("related_object") or {}
        if not (named.get("id") and named.get("type")):
            return None
        deleted = event["type"].endswith(".deleted")
        return Event(str(named["type"]), External(str(named["id"]), at=iso_time(event["created"]), deleted=deleted))
    at = datetime.fromtimestamp(event["created"], UTC)
    body = event["data"]["object"]
    resource, _, verb = event["type"].rpartition(".")
    if resource == "invoiceitem":
        return Event("invoice", External(body["invoice"], at=at)) if body.get("invoice") else None
    if "id" not in body or (verb not in VERBS and resource != "invoice"):
        return None
    whole = external(body, at=at, deleted=verb == "deleted")
    if resource in _THIN:
        whole = External(whole.id, at=at, deleted=whole.deleted, mark=whole.mark)
    return Event(resource, whole)


def _is_live(key: str) -> bool | None:
    """Return whether a key is of live mode; None if it does not say."""
    mode = key.split("_")[1:2]
    return {"live": True, "test": False}.get(mode[0]) if mode else None


def _signed(body: bytes, header: str, secret: str) -> bool:
    # Imported here: the package takes a third of a second to load, and only receivers of webhooks need it.
    from stripe import SignatureVerificationError, WebhookSignature  # noqa: PLC0415

    try:
        return bool(WebhookSignature.verify_header(body, header, secret, SIGNATURE_TOLERANCE_SECONDS))
    except (SignatureVerificationError, ValueError, TypeError):
        # The last two: a body that is not UTF-8, a header that is not ASCII.
        return False


def _event(body: bytes) -> dict[str, Any]:
    try:
        event = json.loads(body)
        if event["object"] == _THIN_EVENT and event["id"] and event["type"] and iso_time(event["created"]):
            return dict(event)
        if event["object"] == "event" and event["id"] and event["data"]["object"] and event["type"]:
            int(event["created"])
            return dict(event)
    except (ValueError, KeyError, TypeError):
        raise BadWebhook("the body is not one of Stripe's events") from None
    raise BadWebhook("the body is not one of Stripe's events")
