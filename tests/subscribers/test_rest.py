"""Configured REST subscribers, tested against the demo shop and small test servers."""

import hashlib
import hmac
import json
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from models.catalogues import CATALOGUES
from settings import SettingsError
from simulators.rest import DEMO_TOKEN
from simulators.rest import RestSystem as ShopLike
from subscribers.errors import BadSignature, BadWebhook, Gone, Reject, Retry, SyncError, SystemDown
from subscribers.http.rate_limit_headers import Rate
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.paths import nest
from subscribers.records import External, Item
from subscribers.rest import RestOptions, RestSubscriber, RestSystem

ANNA = {"name": "Anna", "email": "anna@example.org", "phone": None, "notes": "ring twice"}
SECRETS = "new-secret old-secret"


class Shop(RestSystem):
    """The demo shop, which uses its own names for webhook fields."""

    event_type_field = "event"
    event_time_field = "occurred_at"


class ShopContact(RestSubscriber):
    system = "shop"
    catalogue = "customer"
    system_class = Shop
    resource = "contact"
    path = "/contacts"
    record_id_field = "external_ref"
    field_to_data = {"name": "name", "email": "email", "phone": "phone", "notes": "note"}


class Puts(ShopContact):
    update_method = "PUT"


class Clock:
    """The shop's clock: each call returns a time one second later."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 22, 12, tzinfo=UTC)
        self.step = timedelta(seconds=1)

    def __call__(self) -> datetime:
        self.now += self.step
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shop(clock: Clock) -> Iterator[ShopLike]:
    with ShopLike(clock=clock) as shop:
        yield shop


@pytest.fixture
def contacts(shop: ShopLike) -> ShopContact:
    return ShopContact(connect(shop.url))


def connect(url: str, token: str = DEMO_TOKEN, kind: type[RestSystem] = Shop) -> RestSystem:
    return kind("shop", RestOptions(url=url, token=SecretStr(token), webhook_secret=SecretStr(SECRETS)))


def item(record: dict[str, Any] = ANNA, id: str = "7", external_id: str | None = None, changes: Any = None) -> Item:
    data = nest(Mapper(CATALOGUES["customer"], ShopContact.field_to_data).outward(record))
    return Item(id, record, data, data if changes is None else changes, external_id, f"key-{id}")


def refused(call: Callable[[], Any]) -> SyncError:
    with pytest.raises(SyncError) as caught:
        call()
    return caught.value


# --- calls ----------------------------------------------------------------------------------------


def test_create_and_fetch(shop: ShopLike, contacts: ShopContact) -> None:
    made = contacts.create(item())
    seen = contacts.fetch(made.id)
    assert seen == made
    assert contacts.default_mapper.flatten(seen.data) == contacts.default_mapper.outward(ANNA)
    assert made.mark == "7" and made.at == datetime.fromisoformat(seen.data["updated_at"])
    (call,) = shop.journal.calls("POST")
    assert call.idempotency_key == "key-7"


def test_patch_sends_what_changed_and_put_all_of_it(shop: ShopLike, contacts: ShopContact) -> None:
    made = contacts.create(item())
    linked = item({**ANNA, "name": "Anne"}, external_id=made.id, changes={"name": "Anne"})
    assert contacts.update(linked).data["name"] == "Anne"
    Puts(connect(shop.url)).update(linked)
    patch, (refused, put) = shop.journal.calls("PATCH")[0], shop.journal.calls("PUT")
    assert refused.params.keys() - put.params.keys() == {"id", "created_at", "updated_at"}, (
        "the shop takes none of them"
    )
    assert patch.params == {"name": "Anne", "external_ref": "7"}
    assert put.params == {
        "external_ref": "7",
        "name": "Anne",
        "email": ANNA["email"],
        "phone": None,
        "note": "ring twice",
        "company": None,
    }


def test_a_deleted_contact_is_gone_for_every_call(shop: ShopLike, contacts: ShopContact) -> None:
    gone = item(external_id=contacts.create(item()).id)
    contacts.delete(gone)
    for call in (
        lambda: contacts.fetch(gone.linked_id),
        lambda: contacts.update(gone),
        lambda: contacts.delete(gone),
    ):
        assert isinstance(refused(call), Gone)


def test_an_id_cannot_lead_elsewhere(shop: ShopLike, contacts: ShopContact) -> None:
    assert isinstance(refused(lambda: contacts.fetch("../contacts?x=")), Gone)
    assert [call.path for call in shop.journal] == ["/contacts/..%2Fcontacts%3Fx%3D"]


def test_a_create_whose_answer_is_lost_may_be_done_and_is_found(shop: ShopLike, contacts: ShopContact) -> None:
    shop.faults.drop(method="POST")
    error = refused(lambda: contacts.create(item()))
    assert isinstance(error, Retry) and error.maybe_done
    found = contacts.find(item())
    assert found is not None and found.mark == "7"
    assert contacts.find(item(id="70")) is None


def test_a_refused_value_names_its_field(contacts: ShopContact) -> None:
    error = refused(lambda: contacts.create(item({**ANNA, "email": "nobody"})))
    assert isinstance(error, Reject) and error.fields == {"email": "is not an email address"}


@pytest.mark.parametrize(
    ("status", "expected", "maybe_done"),
    [
        (400, Reject, False),
        (403, SystemDown, False),
        (409, Reject, False),
        (429, SystemDown, False),
        (500, Retry, True),
        (503, SystemDown, False),
    ],
)
def test_error_table(
    shop: ShopLike, contacts: ShopContact, status: int, expected: type[SyncError], maybe_done: bool
) -> None:
    shop.faults.fail(status)
    error = refused(lambda: contacts.create(item()))
    assert type(error) is expected and error.maybe_done is maybe_done


def test_a_wrong_token_is_the_systems_trouble_and_not_shown(shop: ShopLike) -> None:
    system = connect(shop.url, "hush-token-1")
    error = refused(lambda: ShopContact(system).create(item()))
    assert isinstance(error, SystemDown)
    shown = "".join(traceback.format_exception(error)) + repr(system) + repr(system.options)
    assert "hush-token-1" not in shown and "new-secret" not in shown


# --- polling ------------------------------------------------------------------------------------------


class SmallPages(ShopContact):
    page_limit = 2


class Counted(SmallPages):
    pagination = "page"


def read(contacts: RestSubscriber, position: dict[str, Any] | None = None) -> tuple[list[External], dict[str, Any]]:
    pages = list(contacts.changed_since(position))
    return [one for page in pages for one in page.records], json.loads(json.dumps(pages[-1].position))


def add(shop: ShopLike, count: int) -> list[str]:
    return [str(shop.contacts.create({"email": f"{n}@example.org"})["id"]) for n in range(count)]


def test_an_empty_shop(contacts: ShopContact) -> None:
    assert read(contacts) == ([], {})


@pytest.mark.parametrize("kind", [ShopContact, SmallPages, Counted])
def test_polls_read_on_from_where_they_were(shop: ShopLike, kind: type[ShopContact]) -> None:
    contacts = kind(connect(shop.url))
    ids = add(shop, 5)
    found, position = read(contacts)
    assert list(dict.fromkeys(one.id for one in found)) == ids
    assert position == {"since": found[-1].data["updated_at"]}
    shop.contacts.update(int(ids[0]), {"name": "Anna"})
    # The last record is read again: another may have changed since at the same time.
    assert list(dict.fromkeys(one.id for one in read(contacts, position)[0])) == [ids[4], ids[0]]


@pytest.mark.parametrize("kind", [SmallPages, Counted])
def test_more_changes_at_one_moment_than_fit_on_a_page(shop: ShopLike, clock: Clock, kind: type[ShopContact]) -> None:
    clock.step = timedelta(0)
    ids = add(shop, 7)
    assert {one.id for one in read(kind(connect(shop.url)))[0]} == set(ids)


def test_a_record_that_changes_while_we_read_does_not_hide_another(shop: ShopLike) -> None:
    contacts = SmallPages(connect(shop.url))
    ids = add(shop, 6)
    seen = []
    for number, page in enumerate(contacts.changed_since(None)):
        seen += [one.id for one in page.records]
        if number == 0:  # the record moves to the end of the list, the others move up
            shop.contacts.update(int(ids[0]), {"name": "Anna"})
    assert set(seen) == set(ids) and seen.count(ids[0]) == 2


def test_each_page_can_be_continued_from(shop: ShopLike) -> None:
    contacts = SmallPages(connect(shop.url))
    ids = add(shop, 5)
    pages = list(contacts.changed_since(None))
    seen = {one.id for one in pages[0].records} | {one.id for one in read(contacts, pages[0].position)[0]}
    assert seen == set(ids)


class Unordered(ShopContact):
    oldest_first = False


class Bare(RestSubscriber):
    system, catalogue, path = "shop", "customer", "/things"
    id_field = "key"
    list_field = "@"
    pagination = "page"


def test_where_the_order_is_unknown_only_the_last_page_moves_the_position(httpserver: HTTPServer) -> None:
    newest, oldest = "2026-11-22T12:00:09Z", "2026-11-22T12:00:01Z"
    first = {"items": [{"id": 1, "updated_at": newest}], "next": "?page=2"}
    httpserver.expect_ordered_request("/contacts").respond_with_json(first)
    httpserver.expect_ordered_request("/contacts", query_string="page=2").respond_with_json(
        {"items": [{"id": 2, "updated_at": oldest}]}
    )
    pages = list(Unordered(connect(httpserver.url_for(""))).changed_since({"since": oldest}))
    assert [page.position for page in pages] == [{"since": oldest}, {"since": newest}]


def test_the_request_id_and_rate_limit_of_a_call_are_kept(httpserver: HTTPServer) -> None:
    response_headers = {"X-Request-Id": "req-9", "RateLimit-Remaining": "41"}
    contacts = ShopContact(connect(httpserver.url_for("")))
    httpserver.expect_request("/contacts", method="POST").respond_with_json({"id": "c 1"}, headers=response_headers)
    httpserver.expect_request("/contacts/c 1", method="PATCH").respond_with_data(
        "", status=204, headers=response_headers
    )
    made = contacts.create(item())
    changed = contacts.update(item(external_id=made.id))
    assert (made.id, changed.id, made.request_id, changed.request_id) == ("c 1", "c 1", "req-9", "req-9")
    assert contacts.client.rate == Rate(41)


def test_a_bare_list(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/things").respond_with_json([{"key": "a", "updated_at": "2026-11-22T12:00:00"}])
    found, _ = read(Bare(connect(httpserver.url_for(""))))
    assert [(one.id, one.at) for one in found] == [("a", datetime(2026, 11, 22, 12, tzinfo=UTC))]


def test_the_token_does_not_follow_a_page_to_another_host(httpserver: HTTPServer) -> None:
    hosts = []

    def answer(request: Request) -> Response:
        hosts.append(request.host)
        following = None if "page" in request.args else "http://elsewhere.example/contacts?page=2"
        return Response(json.dumps({"items": [], "next": following}), content_type="application/json")

    httpserver.expect_request("/contacts").respond_with_handler(answer)
    read(ShopContact(connect(httpserver.url_for(""))))
    assert len(hosts) == 2 and len(set(hosts)) == 1


@pytest.mark.parametrize("body", [{}, {"items": 1}, {"items": [1]}, {"items": [{"name": "no id"}]}, [], None])
def test_an_answer_that_is_no_list_is_tried_again(httpserver: HTTPServer, body: Any) -> None:
    httpserver.expect_request("/contacts").respond_with_json(body)
    contacts = ShopContact(connect(httpserver.url_for("")))
    assert isinstance(refused(lambda: read(contacts)), Retry)


@pytest.mark.parametrize(("status", "body"), [(201, ""), (201, "[]"), (201, "{}"), (204, "")])
def test_a_create_that_does_not_say_what_it_made_is_unclear(httpserver: HTTPServer, status: int, body: str) -> None:
    httpserver.expect_request("/contacts").respond_with_data(body, status=status)
    error = refused(lambda: ShopContact(connect(httpserver.url_for(""))).create(item()))
    assert isinstance(error, Retry) and error.maybe_done


def test_an_update_may_be_answered_with_nothing(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/contacts/9", method="PATCH").respond_with_data("", status=204)
    changed = ShopContact(connect(httpserver.url_for(""))).update(item(external_id="9"))
    assert (changed.id, changed.data) == ("9", {}) and changed.at is not None


# --- webhooks -----------------------------------------------------------------------------------------


def body_of(**changes: Any) -> bytes:
    event = {
        "id": "e1",
        "type": "contact.updated",
        "created_at": "2026-11-22T12:00:00.5Z",
        "resource": "contact",
        "data": {"id": 9, "name": "Anna", "external_ref": "7", "updated_at": "2026-11-22T11:00:00Z"},
    }
    return json.dumps(event | changes).encode()


def signature(body: bytes, secret: str = "new-secret") -> dict[str, str]:
    return {"x-signature": hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}


@pytest.fixture
def offline() -> RestSystem:
    system = connect("https://shop.example", kind=RestSystem)
    ShopContact(system)
    return system


@pytest.mark.parametrize("secret", SECRETS.split())
def test_a_webhook_with_either_secret_is_taken(offline: RestSystem, secret: str) -> None:
    assert offline.verify(body_of(), signature(body_of(), secret)) == "e1"
    (one,) = offline.events(body_of())
    assert (one.resource, one.external.id, one.external.mark) == ("contact", "9", "7")
    assert one.external.at == datetime(2026, 11, 22, 12, 0, 0, 500_000, tzinfo=UTC)
    assert not one.external.deleted


@pytest.mark.parametrize("changes", [{"deleted": True}, {"type": "contact.deleted"}])
def test_a_webhook_reports_deletions(offline: RestSystem, changes: dict[str, Any]) -> None:
    (one,) = offline.events(body_of(**changes))
    assert one.external.deleted


def test_an_event_without_a_subscriber_is_ignored(offline: RestSystem) -> None:
    assert offline.events(body_of(resource="order")) == []


@pytest.mark.parametrize(
    "headers",
    [{}, {"x-signature": ""}, {"x-signature": "ü"}, signature(body_of(), "other"), signature(body_of(id="e2"))],
    ids=["none", "empty", "not ascii", "other secret", "other body"],
)
def test_any_other_webhook_is_refused(offline: RestSystem, headers: dict[str, str]) -> None:
    with pytest.raises(BadSignature):
        offline.verify(body_of(), headers)


def test_without_a_secret_every_webhook_is_refused() -> None:
    system = RestSystem("shop", RestOptions(url="https://shop.example", token=SecretStr("t")))
    for secret in ("", " "):
        with pytest.raises(BadSignature):
            system.verify(body_of(), signature(body_of(), secret))


@pytest.mark.parametrize("body", [b"nothing", b"[]", b"{}", body_of(id=None), body_of(id="")])
def test_an_unreadable_signed_webhook_is_reported(offline: RestSystem, body: bytes) -> None:
    with pytest.raises(BadWebhook):
        offline.verify(body, signature(body))


@pytest.mark.parametrize("data", [None, [], {}, {"name": "no id"}])
def test_a_webhook_without_a_record_is_reported(offline: RestSystem, data: Any) -> None:
    with pytest.raises(BadWebhook):
        offline.events(body_of(data=data))


def test_the_shops_own_webhooks_are_understood(httpserver: HTTPServer) -> None:
    got: list[Request] = []

    def receive(request: Request) -> Response:
        request.get_data()
        got.append(request)
        return Response(status=204)

    httpserver.expect_request("/hook").respond_with_handler(receive)
    hook = httpserver.url_for("/hook")
    with ShopLike(webhook_url=hook, webhook_secret="old-secret") as shop:
        contacts = ShopContact(connect(shop.url))
        made = contacts.create(item())
        shop.contacts.delete(int(made.id))
        shop.webhooks.wait_idle()
    events = []
    for request in got:
        headers = {name.lower(): value for name, value in request.headers.items()}
        contacts.client.verify(request.get_data(), headers)
        events += contacts.client.events(request.get_data())
    assert [(one.external.id, one.external.mark, one.external.deleted) for one in events] == [
        (made.id, "7", False),
        (made.id, "7", True),
    ]


# --- settings -----------------------------------------------------------------------------------------


def test_settings_that_are_wrong_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_URL", "shop.example")
    monkeypatch.setenv("SHOP_TOKEN", "two words")
    with pytest.raises(SettingsError) as caught:
        Shop.from_environment("shop")
    assert "SHOP_URL" in str(caught.value) and "SHOP_TOKEN" in str(caught.value)
    assert "two words" not in str(caught.value)


def test_a_url_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "t")
    with pytest.raises(SettingsError, match="SHOP_URL: missing"):
        Shop.from_environment("shop")
