"""Every route that needs no login, asked with whatever a stranger may send: no error of ours, no traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from models.ledger import AuditEntry, Inbox, RefusedWebhook
from models.users import User
from panel.app import PUBLIC
from panel.auth.password_rules import own_characters
from tests.support.panel import PASSWORD, Panel, csrf, log_in, open_panel, post, signature

DEEP = b'{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"

#: Bodies that some parser may not expect.
BODIES = [
    b"", b"\x00", b"\xff\xfe", b"null", b"[]", b"7", b'"text"', b"{}", b'{"email": 7, "password": []}', DEEP,
    b"[" * 100_000,
    b'{"email": "a@example.com", "password": "p", "csrf_token": {"a": 1}}', b'{"id": "\\u0000"}', b'{"id": "\\ud800"}',
    b"email=a%40example.com&password=" + b"p" * 5000, b"email=" + b"a" * 70_000 + b"@example.com&password=p",
    b"email=%00&password=%00", b"email=%ed%a0%80&password=%ed%a0%80", b"logout_token=%00", b"logout_token=a.b.c",
    b"code=%00", b"code=" + b"9" * 5000,
    b"--x\r\nContent-Disposition: form-data; name=\"email\"\r\n\r\n\xff\r\n--x--\r\n",
]  # fmt: skip
TYPES = [
    "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "multipart/form-data", "application/json",
    "application/json; charset=utf-16", "text/plain", "application/vnd.api+json", "nonsense", "",
]  # fmt: skip
NAMES = ["shop", "crm", "nobody", "\x00", "é", "a" * 300, "%ed%a0%80", "..", "shop/secret"]


@pytest.fixture
def seeded() -> bool:
    return False


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Panel]:
    url = f"sqlite:///{tmp_path_factory.mktemp('public')}/panel.sqlite3"
    with open_panel(
        url,
        seeded=False,
        metrics_token=SecretStr("a token of sixteen characters"),
        oidc_issuer="http://127.0.0.1:9",
        oidc_client_id="panel",
        oidc_client_secret=SecretStr("secret"),
    ) as made:
        yield made


def _paths(panel: Panel) -> list[tuple[str, str]]:
    """Return the method and path of each public route; a path has `{}` in the place of a name."""
    found = []
    for rule in panel.app.url_map.iter_rules():
        if rule.endpoint in PUBLIC:
            path = rule.rule
            for argument in rule.arguments:
                path = path.replace(f"<path:{argument}>", "{}").replace(f"<{argument}>", "{}")
            found += [(method, path) for method in sorted(rule.methods or set())]
    return sorted(found)


@given(data=st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_w09_no_public_route_fails(configured: Panel, caplog: pytest.LogCaptureFixture, data: st.DataObject) -> None:
    caplog.clear()
    method, path = data.draw(st.sampled_from(_paths(configured)))
    body = data.draw(st.sampled_from(BODIES) | st.binary(max_size=200))
    client = configured.app.test_client()
    headers = {"Content-Type": data.draw(st.sampled_from(TYPES)), "X-Shop-Signature": signature(body)}
    if data.draw(st.booleans()) and body.startswith((b"email", b"code")):
        body += b"&csrf_token=" + csrf(client).encode()
    for name in ("Authorization", "Cookie", "X-Shop-Signature", "Accept-Language", "Host"):
        if data.draw(st.integers(0, 9)) == 0:
            headers[name] = data.draw(st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=50))
    query = data.draw(
        st.sampled_from(["", "next=//evil.example", "next=%00", "code=a&state=b", "error=%ed%a0%80", "f=%ff"])
    )
    address = f"192.0.2.{data.draw(st.integers(1, 254))}"
    answer = client.open(
        path.format(*[data.draw(st.sampled_from(NAMES))] * path.count("{}")),
        method=method,
        data=body,
        headers=headers,
        query_string=query,
        environ_base={"REMOTE_ADDR": address},
    )
    assert answer.status_code < 500 or (path.startswith("/login/oidc") and answer.status_code == 503)
    ours = [record for record in caplog.records if record.name.startswith(("panel", "conductor"))]
    assert len(ours) <= 1 and not any(record.exc_info for record in ours)


PAGES_WITH_FORMS = ["/login", "/tf-validate", "/mf-recovery", "/change", "/verify", "/logout", "/users/", "/"]


@pytest.mark.parametrize("path", PAGES_WITH_FORMS)
@pytest.mark.parametrize("who", [None, "admin"])
def test_w09_pages_take_no_json(sqlite_panel: Panel, path: str, who: str | None) -> None:
    for method in ("GET", "POST"):
        answer = sqlite_panel.client(who).open(path, method=method, json={"email": "a@example.com", "password": "p"})
        assert answer.status_code in (415, 405), method


def test_w09_a_password_that_cannot_be_hashed(panel: Panel) -> None:
    for length, status in ((1001, 400), (5000, 400), (1000, 200)):
        assert log_in(panel.client(), "viewer@example.com", "p" * length).status_code == status
    viewer = panel.client("viewer")
    for names in ({"password"}, {"new_password", "new_password_confirm"}):
        form = {"password": PASSWORD, "new_password": "n", "new_password_confirm": "n"} | dict.fromkeys(
            names, "p" * 5000
        )
        assert post(viewer, "/change", **form).status_code == 400
    assert post(viewer, "/verify", password="p" * 5000).status_code == 400


# --- webhooks -----------------------------------------------------------------------------------------

UNUSABLE = [
    DEEP, b"[" * 100_000, b'{"id": "\\u0000"}', b'{"id": "evt\\u0000"}', b'{"id": "\\ud800"}', b'{"id": "\\udfff x"}',
    b'{"id": "a", "b": "\x00"}', b"\x00", b"\xff", b'{"id": "\xed\xa0\x80"}', b"", b"[]", b"null", b"{}",
]  # fmt: skip


@pytest.mark.parametrize("body", UNUSABLE, ids=lambda body: repr(body[:20]))
@pytest.mark.parametrize("signed", [True, False])
def test_w09_a_webhook_that_cannot_be_stored(
    panel: Panel, caplog: pytest.LogCaptureFixture, body: bytes, signed: bool
) -> None:
    caplog.clear()
    headers = {"X-Shop-Signature": signature(body) if signed else "\x80forged"}
    answer = panel.app.test_client().post("/webhooks/shop", data=body, headers=headers)
    assert answer.status_code == 400 and answer.get_json()["error"]
    assert [record.exc_info for record in caplog.records] == [None]
    assert not panel.rows(sa.select(Inbox.id)) and len(panel.rows(sa.select(RefusedWebhook.slot))) == 1


@given(value=st.recursive(st.none() | st.booleans() | st.integers() | st.text(st.characters(codec=None)), st.lists))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_w09_any_signed_id(sqlite_panel: Panel, value: Any) -> None:
    body = json.dumps({"id": value}).encode()
    answer = sqlite_panel.app.test_client().post(
        "/webhooks/shop", data=body, headers={"X-Shop-Signature": signature(body)}
    )
    assert answer.status_code in (200, 202, 400)


@pytest.mark.parametrize("body", [b"{}", b"", b"\x00", DEEP, b'{"id": "evt_1"}'], ids=lambda body: repr(body[:20]))
def test_w10_strangers_learn_no_names_of_systems(panel: Panel, body: bytes) -> None:
    for suffix in ("", "/secret"):
        for method in ("GET", "POST"):
            answers = [
                panel.app.test_client().open(f"/webhooks/{name}{suffix}", method=method, data=body)
                for name in ("shop", "crm", "nobody")
            ]
            assert len({(answer.status_code, answer.data) for answer in answers}) == 1, method


# --- W10: passwords and logins ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "password",
    ["password1234", "Password1234!", "P4ssw0rd1234", "passwort2026!", "qwertyuiop12", "aaaaaaaaaaaa", "123456789012",
     "abcabcabcabc", "syncflow-2026", "viewer-2026!!", "letmeinletmein",
     "Sommer2026!!", "adminadmin12", "ababababababab", "p@$$w0rd!!!!!"],
)  # fmt: skip
def test_w10_a_password_that_is_easy_to_guess(panel: Panel, password: str) -> None:
    viewer, before = panel.client("viewer"), panel.rows(sa.select(User.password))
    answer = post(viewer, "/change", password=PASSWORD, new_password=password, new_password_confirm=password)
    assert answer.status_code == 200 and "too easy to guess" in answer.text
    assert panel.rows(sa.select(User.password)) == before


@pytest.mark.parametrize("password", ["correct horse battery staple", "kmpv-x3tq-9bnd-s7ra", "ein eigener Satz hier"])
def test_a_password_that_is_not_easy_to_guess(password: str) -> None:
    assert own_characters(password, "viewer@example.com") >= 6


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)"]
)
def test_w10_a_right_password_is_no_failure_because_of_where_it_leads(panel: Panel, target: str) -> None:
    client = panel.client()
    form = {"email": "viewer@example.com", "password": PASSWORD, "csrf_token": csrf(client), "next": target}
    answer = client.post("/login", query_string={"next": target}, data=form)
    assert answer.status_code == 302 and _stays_here(answer.headers["Location"])
    actions = panel.rows(sa.select(AuditEntry.action).where(AuditEntry.who == "viewer@example.com"))
    assert [row.action for row in actions] == ["login"]
    answer = client.post("/verify", query_string={"next": target}, data={**form, "csrf_token": csrf(client)})
    assert answer.status_code == 302 and _stays_here(answer.headers["Location"])


def _stays_here(location: str) -> bool:
    return location.startswith("/") and not location.startswith(("//", "/\\"))


@pytest.mark.parametrize("path", ["/tf-validate", "/mf-recovery", "/login", "/login/oidc/", "/logout", "/tf-select"])
def test_w10_no_link_logs_a_user_out(panel: Panel, path: str) -> None:
    client = panel.client("viewer")
    for method in ("get", "head"):
        getattr(client, method)(path)
    assert client.get("/").status_code == 200
