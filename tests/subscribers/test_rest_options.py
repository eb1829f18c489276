"""Options of a REST system: logins, addresses, pages, times; invalid options fail immediately."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from redaction import MASK
from settings import SettingsError
from subscribers.errors import Reject, Retry, SystemDown
from subscribers.records import Item
from subscribers.rest import RestSubscriber, RestSystem

SECRET = "s3cret-of-some-length"
NEWEST = "2026-11-22T12:00:00Z"


class Contact(RestSubscriber):
    system, catalogue, path = "shop", "customer", "/contacts"
    field_to_data = {"name": "name"}


@pytest.fixture
def make(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RestSubscriber]:
    """Return a function that creates a subscriber; upper-case names are settings of the system."""

    def make(kind: type[RestSubscriber] = Contact, **chosen: Any) -> RestSubscriber:
        settings = {
            "URL": httpserver.url_for("/api"),
            "TOKEN": SECRET,
            **{k: v for k, v in chosen.items() if k.isupper()},
        }
        for name, value in settings.items():
            monkeypatch.setenv(f"SHOP_{name}", value)
        of_system = {k: v for k, v in chosen.items() if k.islower() and hasattr(RestSystem, k)}
        own = {k: v for k, v in chosen.items() if k.islower() and k not in of_system}
        shop: type[RestSystem] = type("Shop", (RestSystem,), of_system)
        client = shop.from_environment("shop")
        assert client is not None
        chosen_kind: type[RestSubscriber] = type("Chosen", (kind,), own)
        return chosen_kind(client)

    return make


def item(external_id: str | None = None, **data: Any) -> Item:
    data = data or {"name": "Anna"}
    return Item("7", data, data, data, external_id, "key-7")


def record(id: int | str = 1, **more: Any) -> dict[str, Any]:
    return {"id": id, "updated_at": NEWEST, **more}


# --- logins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "header", "value"),
    [
        ({"auth": "none"}, "Authorization", None),
        ({"auth": "bearer"}, "Authorization", f"Bearer {SECRET}"),
        ({"auth": "header"}, "X-Api-Key", SECRET),
        (
            {"auth": "header", "auth_header": "Authorization", "auth_prefix": "Token "},
            "Authorization",
            f"Token {SECRET}",
        ),
        ({"auth": "basic", "USERNAME": "zoë", "PASSWORD": "p:w"}, "Authorization", "Basic em/DqzpwOnc="),
        ({"headers": {"Accept-Version": "2"}}, "Accept-Version", "2"),
    ],
)
def test_a_login_is_sent(make: Any, httpserver: HTTPServer, chosen: dict[str, Any], header: str, value: Any) -> None:
    httpserver.expect_request("/api/contacts/1").respond_with_json(record())
    make(**chosen).fetch("1")
    assert httpserver.log[0][0].headers.get(header) == value


@pytest.mark.parametrize("chosen", [{"auth": "header"}, {"auth": "basic", "USERNAME": "u", "PASSWORD": "p"}, {}])
def test_a_login_that_is_quoted_back_is_not_repeated(make: Any, httpserver: HTTPServer, chosen: dict[str, Any]) -> None:
    def answer(request: Request) -> Response:
        quoted = request.headers.get("X-Api-Key") or request.headers["Authorization"]
        return Response(json.dumps({"message": f"who is {quoted}?"}), 400)

    httpserver.expect_request("/api/contacts").respond_with_handler(answer)
    with pytest.raises(Reject, match=rf"who is .*{MASK}\?") as said:
        make(**chosen).create(item())
    assert SECRET not in str(said.value) and "dTpw" not in str(said.value)


def test_a_key_in_a_header_of_its_own_follows_no_redirect(make: Any, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/api/contacts/1").respond_with_data("", 302, {"Location": httpserver.url_for("/else")})
    with pytest.raises(Reject, match="302"):
        make(auth="header").fetch("1")
    assert len(httpserver.log) == 1


@pytest.mark.parametrize(
    ("chosen", "missing"),
    [
        ({"auth": "bearer", "TOKEN": ""}, "SHOP_TOKEN"),
        ({"auth": "basic", "USERNAME": "u"}, "SHOP_PASSWORD"),
        ({"auth": "oauth2", "CLIENT_ID": "hub"}, "SHOP_CLIENT_SECRET"),
        ({"signature": "standard", "WEBHOOK_SECRET": "not base64!"}, "SHOP_WEBHOOK_SECRET"),
    ],
)
def test_what_a_login_or_signature_needs_is_named(make: Any, chosen: dict[str, Any], missing: str) -> None:
    with pytest.raises(SettingsError, match=f"^{missing}: ") as said:
        make(**chosen)
    assert "not base64!" not in str(said.value)


# --- OAuth 2 --------------------------------------------------------------------------------------


class Tokens:
    """A token endpoint and an API that accepts only the newest token."""

    def __init__(self, server: HTTPServer) -> None:
        self.issued: list[Request] = []
        self.answer: dict[str, Any] = {"expires_in": 3600}
        self.status = 200
        server.expect_request("/api/oauth/token", method="POST").respond_with_handler(self.issue)
        server.expect_request("/api/contacts/1").respond_with_handler(self.serve)
        server.expect_request("/api/contacts", method="POST").respond_with_handler(self.serve)
        self.good = True
        self.calls: list[str] = []

    def issue(self, request: Request) -> Response:
        request.get_data()
        self.issued.append(request)
        return Response(json.dumps({"access_token": f"token{len(self.issued)}", **self.answer}), self.status)

    def serve(self, request: Request) -> Response:
        self.calls.append(request.headers["Authorization"])
        taken = self.good and self.calls[-1] == f"Bearer token{len(self.issued)}"
        return Response(json.dumps(record() if taken else {"error": f"no {self.calls[-1]}"}), 200 if taken else 401)


@pytest.fixture
def tokens(httpserver: HTTPServer) -> Tokens:
    return Tokens(httpserver)


@pytest.fixture
def oauth(make: Callable[..., RestSubscriber]) -> Callable[..., RestSubscriber]:
    def oauth(**chosen: Any) -> RestSubscriber:
        return make(auth="oauth2", CLIENT_ID="hub", CLIENT_SECRET=SECRET, **chosen)

    return oauth


def test_one_token_serves_many_calls(tokens: Tokens, oauth: Any) -> None:
    contact = oauth(token_parameters={"scope": "contacts"})
    for _ in range(3):
        contact.fetch("1")
    (asked,) = tokens.issued
    assert asked.form.to_dict() == {"grant_type": "client_credentials", "scope": "contacts"}
    assert asked.authorization is not None
    assert (asked.authorization.username, asked.authorization.password) == ("hub", SECRET)


def test_id_and_secret_may_go_in_the_body(tokens: Tokens, oauth: Any) -> None:
    oauth(token_login="body").fetch("1")
    assert tokens.issued[0].form["client_secret"] == SECRET and "Authorization" not in tokens.issued[0].headers


def test_a_token_is_renewed_before_it_expires(tokens: Tokens, oauth: Any) -> None:
    tokens.answer = {"expires_in": 100}
    contact = oauth()
    now = [1000.0]
    contact.client.http.session.auth._clock = lambda: now[0]
    contact.fetch("1")
    now[0] += 89
    contact.fetch("1")
    assert len(tokens.issued) == 1
    now[0] += 2
    contact.fetch("1")
    assert tokens.calls == ["Bearer token1", "Bearer token1", "Bearer token2"]


def test_a_refused_token_is_renewed_once_and_the_call_repeated(tokens: Tokens, oauth: Any) -> None:
    contact = oauth()
    contact.fetch("1")
    tokens.issued.append(tokens.issued[0])  # the first token is no longer valid
    assert contact.create(item()).id == "1", "a write too: a 401 says that nothing was done"
    assert tokens.calls == ["Bearer token1", "Bearer token1", "Bearer token3"]
    tokens.good = False
    with pytest.raises(SystemDown, match="login is refused") as said:
        contact.fetch("1")
    assert len(tokens.issued) == 4, "once, not for ever"
    assert "token4" not in str(said.value), "not even a token that is short-lived"


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (401, {"error": f"bad {SECRET}"}),
        (500, {}),
        (302, {}),
        (200, {"access_token": None}),
        (200, {"access_token": "ä"}),
    ],
)
def test_without_a_token_the_system_is_down(tokens: Tokens, oauth: Any, status: int, answer: dict[str, Any]) -> None:
    tokens.status, tokens.answer = status, answer
    with pytest.raises(SystemDown, match="no token") as said:
        oauth().create(item())
    assert SECRET not in str(said.value) and tokens.calls == []


# --- addresses and bodies ---------------------------------------------------------------------------


def test_each_verb_may_have_its_own_address(make: Any, httpserver: HTTPServer) -> None:
    contact = make(
        create_path="/contact/new",
        read_path="/contact?id={id}",
        update_path="/contact/{id}/change",
        delete_path="/contact/{id}/remove",
        list_path="/search",
        update_method="POST",
        body_field="contact",
        record_field="result[0]",
        list_field="result",
        idempotency_header="",
        since_parameter="",
        pagination="none",
    )
    httpserver.expect_request("").respond_with_json({"result": [record(5)]})
    contact.create(item())
    contact.fetch("a/b")
    contact.update(item("5"))
    contact.delete(item("5"))
    list(contact.changed_since({"since": NEWEST}))
    sent = [(r.method, r.full_path.removesuffix("?"), r.get_json(silent=True)) for r, _ in httpserver.log]
    assert sent == [
        ("POST", "/api/contact/new", {"contact": {"name": "Anna"}}),
        ("GET", "/api/contact?id=a%2Fb", None),
        ("POST", "/api/contact/5/change", {"contact": {"name": "Anna"}}),
        ("DELETE", "/api/contact/5/remove", None),
        ("GET", "/api/search?limit=100", None),
    ]
    assert "Idempotency-Key" not in httpserver.log[0][0].headers


# --- pages --------------------------------------------------------------------------------------------


def pages(server: HTTPServer, total: int, most: int = 2) -> None:
    """Serve a list that supports all kinds of paging, at most `most` records a page, without time filter."""

    def answer(request: Request) -> Response:
        given = request.args
        start = int(given.get("offset") or given.get("cursor") or (int(given.get("page", 1)) - 1) * most)
        end = min(start + min(int(given["limit"]), most), total)
        more = end < total
        at = f"/api/contacts?offset={end}&limit={given['limit']}"
        body: dict[str, Any] = {"items": [record(n) for n in range(start, end)], "next": at if more else None}
        body["meta"] = {"cursor": end if more else ""}
        headers = {"Link": f'<{at}>; rel="next"', "Next-Page": at} if more else {}
        return Response(json.dumps(body), headers=headers, content_type="application/json")

    server.expect_request("/api/contacts").respond_with_handler(answer)


@pytest.mark.parametrize("total", [0, 1, 4, 5])
@pytest.mark.parametrize(
    "chosen",
    [
        {"pagination": "next"},
        {"pagination": "cursor", "next_field": "meta.cursor"},
        {"pagination": "link"},
        {"pagination": "link", "next_header": "Next-Page"},
        {"pagination": "page"},
        {"pagination": "offset"},
        {"pagination": "page", "oldest_first": False},
        {"pagination": "offset", "page_limit": 50},
        {"pagination": "page", "page_limit": 50, "since_parameter": ""},
    ],
    ids=str,
)
def test_every_way_of_paging_sees_every_record_of_one_moment(
    make: Any, httpserver: HTTPServer, chosen: dict[str, Any], total: int
) -> None:
    pages(httpserver, total)
    contact = make(**{"page_limit": 2, **chosen})
    found = [one.id for page in contact.changed_since({"since": NEWEST}) for one in page.records]
    assert found == [str(n) for n in range(total)]


def test_a_list_that_knows_no_pages_is_not_read_for_ever(make: Any, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/api/contacts").respond_with_json({"items": [record(1), record(2)]})
    with pytest.raises(Retry, match="the same page again: is pagination = 'page' right"):
        list(make(pagination="page", page_limit=2).changed_since({"since": NEWEST}))


def test_a_list_that_does_not_select_is_not_taken_for_the_answer(make: Any, httpserver: HTTPServer) -> None:
    pages(httpserver, 5)
    contact = make(record_id_field="id", page_limit=2)
    found = contact.find(Item("4", {}, {}, {}, None, "key"))
    assert found is not None and found.id == "4", "on the third page"
    assert contact.find(Item("9", {}, {}, {}, None, "key")) is None
    httpserver.clear()
    pages(httpserver, 1000)
    with pytest.raises(Retry, match="is find_parameter right"):
        contact.find(Item("900", {}, {}, {}, None, "key"))
    assert len(httpserver.log) == 10


@pytest.mark.parametrize("chosen", [{}, {"oldest_first": False}, {"since_parameter": ""}])
def test_a_list_in_another_order_is_not_half_read_in_silence(make: Any, httpserver: HTTPServer, chosen: Any) -> None:
    old = "2026-11-22T11:00:00Z"
    newest_first = {"items": [record(1), record(2, updated_at=old)], "next": "?page=2"}
    httpserver.expect_request("/api/contacts", query_string="page=2").respond_with_json({"items": []})
    httpserver.expect_request("/api/contacts").respond_with_json(newest_first)
    if chosen:
        assert len(list(make(**chosen).changed_since(None))) == 2
    else:
        with pytest.raises(Retry, match=r"not in order of updated_at: .* oldest_first = false"):
            list(make().changed_since(None))


@pytest.mark.parametrize(
    ("chosen", "stamps", "since"),
    [
        ({"time_format": "seconds"}, [1795348800, 1795348801.5], "1795348801.5"),
        ({"time_format": "milliseconds"}, ["1795348800000", 1795348801000, "?"], "1795348801000"),
        ({}, ["2026-11-22 12:00:00.5Z", "2026-11-22 13:00:00+02:00", 5, None], "2026-11-22 12:00:00.5Z"),
    ],
)
def test_times_go_back_as_they_were_written(
    make: Any, httpserver: HTTPServer, chosen: Any, stamps: list[Any], since: str
) -> None:
    httpserver.expect_request("/api/contacts").respond_with_json(
        {"items": [{"id": n, "updated_at": stamp} for n, stamp in enumerate(stamps)]}
    )
    contact = make(since_parameter="filter", since_value='updated >= "{since}"', pagination="none", **chosen)
    (page,) = contact.changed_since(None)
    assert page.position == {"since": since}
    list(contact.changed_since(page.position))
    assert httpserver.log[-1][0].args["filter"] == f'updated >= "{since}"'


# --- invalid options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "chosen", "said"),
    [
        (RestSystem, {"auth": "digest"}, r"Wrong\.auth: "),
        (RestSystem, {"event_type_field": "a..b"}, r"Wrong\.event_type_field: is not a valid JMESPath expression"),
        (RestSubscriber, {"page_limit": 0}, r"Wrong\.page_limit: "),
        (RestSubscriber, {"read_path": "/contact"}, r"Wrong\.read_path: must contain \{id\}"),
        (RestSubscriber, {"on_gone": "forget", "match_on": "email"}, r"Wrong\.match_on: .*\nWrong\.on_gone: "),
    ],
)
def test_a_wrong_attribute_is_refused_where_the_class_is_made(base: type, chosen: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        type("Wrong", (base,), chosen)
