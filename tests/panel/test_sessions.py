"""Sessions: rows that end at logout, by their limits, by other changes of the account, and by the login provider."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import sqlalchemy as sa
import time_machine
from flask.testing import FlaskClient
from joserfc import jwt
from joserfc.jwk import OctKey
from pydantic import SecretStr

from models.ledger import AuditEntry
from models.users import PanelSession, User
from tests.support import oidc_provider
from tests.support.oidc_provider import Provider
from tests.support.panel import PASSWORD, Panel, log_in, open_panel, post

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


@pytest.fixture
def seeded() -> bool:
    return False


def _copy(panel: Panel, client: FlaskClient) -> FlaskClient:
    """Return another browser with a copy of the cookie."""
    copy, cookie = panel.app.test_client(), client.get_cookie("syncflow")
    assert cookie is not None
    copy.set_cookie("syncflow", cookie.value)
    return copy


def _is_in(client: FlaskClient) -> bool:
    return client.get("/").status_code == 200


def _rows(panel: Panel, email: str = "viewer@example.com") -> list[Any]:
    mine = sa.select(PanelSession.__table__).join(User).where(User.email == email).order_by(PanelSession.id)
    return panel.rows(mine)


def _viewer_id(panel: Panel) -> int:
    return int(panel.rows(sa.select(User.id).where(User.email == "viewer@example.com"))[0].id)


# --- W6: a copied cookie ---------------------------------------------------------------------------


def _log_out(panel: Panel, client: FlaskClient) -> None:
    assert post(client, "/logout").status_code == 302


def _change_password(panel: Panel, client: FlaskClient) -> None:
    new = "another long password"
    assert post(client, "/change", password=PASSWORD, new_password=new, new_password_confirm=new).status_code == 302


def _by_admin(path: str, **form: str) -> Callable[[Panel, FlaskClient], None]:
    def act(panel: Panel, _client: FlaskClient) -> None:
        answer = post(panel.client("admin"), f"/users/{_viewer_id(panel)}/{path}", **form)
        assert answer.status_code in (200, 303)

    return act


def _disable_and_enable(panel: Panel, client: FlaskClient) -> None:
    for active in ("no", "yes"):
        _by_admin("active", active=active)(panel, client)


ENDS = {
    "logout": _log_out,
    "password change": _change_password,
    "role": _by_admin("role", role="operator"),
    "password reset": _by_admin("password"),
    "disabled": _by_admin("active", active="no"),
    "disabled and enabled": _disable_and_enable,
    "two-factor reset": _by_admin("two-factor"),
}


@pytest.mark.parametrize("act", ENDS.values(), ids=ENDS)
def test_w06_a_copied_cookie_ends_with_its_session(panel: Panel, act: Callable[[Panel, FlaskClient], None]) -> None:
    client = panel.client("viewer")
    copy = _copy(panel, client)
    assert _is_in(copy)
    act(panel, client)
    assert not _is_in(copy)
    assert copy.get("/metrics").status_code == 401
    assert len(_rows(panel)) == (1 if act is _change_password else 0), "no row is left behind"


def test_w06_a_cookie_signed_with_our_key_is_no_session(panel: Panel) -> None:
    client = panel.client("viewer")
    with client.session_transaction() as session:
        content = dict(session)
    for token in ("", "guess", None, 7):
        forged = panel.app.test_client()
        with forged.session_transaction() as session:
            session.update({**content, "session": token})
        assert not _is_in(forged)
    # The token of another user's session opens nothing either.
    other = panel.client("admin")
    with other.session_transaction() as session:
        session["_user_id"] = content["_user_id"]
    assert not _is_in(other)


def test_w06_the_database_holds_no_token(panel: Panel) -> None:
    client = panel.client()
    log_in(client, "viewer@example.com")
    with client.session_transaction() as session:
        token = session["session"]
    assert token not in str(_rows(panel))


def test_w06_a_login_in_the_same_browser_replaces_its_session(panel: Panel) -> None:
    client = panel.client()
    log_in(client, "viewer@example.com")
    copy = _copy(panel, client)
    client.set_cookie("other", "cookie")
    _change_password(panel, client)
    assert _is_in(client) and not _is_in(copy) and len(_rows(panel)) == 1


# --- W6: limits ------------------------------------------------------------------------------------


def test_w06_a_session_ends_a_day_after_its_login_however_much_it_is_used(panel: Panel) -> None:
    client, start = panel.client("viewer"), time.time()
    for hours in (6, 12, 18, 23):
        with time_machine.travel(start + hours * 3600, tick=True):
            assert _is_in(client)
    with time_machine.travel(start + 25 * 3600, tick=True):
        assert not _is_in(client)
        log_in(panel.client(), "viewer@example.com")
        assert len(_rows(panel)) == 1, "rows of the past go with the next login"


def test_w06_an_unused_session_ends(panel: Panel) -> None:
    client = panel.client("viewer")
    with time_machine.travel(time.time() + 13 * 3600, tick=True):
        assert not _is_in(client)


@pytest.mark.parametrize("setting", ["session_seconds", "session_idle_seconds"])
def test_w06_the_limits_are_settings(sqlite_url: str, setting: str) -> None:
    short: Any = {setting: 600.0}
    with open_panel(sqlite_url, seeded=False, **short) as made:
        client = made.client("viewer")
        assert _is_in(client) and "10 min" in client.get("/account/").text
        with time_machine.travel(time.time() + 601, tick=True):
            assert not _is_in(client)


# --- W6: the list ----------------------------------------------------------------------------------


def test_w06_the_account_lists_ones_own_sessions(panel: Panel) -> None:
    here, there = panel.client(), panel.client()
    there.environ_base = {**there.environ_base, "HTTP_USER_AGENT": FIREFOX, "REMOTE_ADDR": "192.0.2.7"}
    for client in (there, here):
        assert log_in(client, "viewer@example.com").status_code == 302
    page = here.get("/account/").text
    assert "Firefox, Linux" in page and "from 192.0.2.7" in page and page.count("this session") == 1
    number = _rows(panel)[0].id
    assert post(here, f"/account/sessions/{number}").status_code == 303
    assert _is_in(here) and not _is_in(there) and len(_rows(panel)) == 1
    actions = panel.rows(sa.select(AuditEntry.action).where(AuditEntry.who == "viewer@example.com"))
    assert actions[-1].action == "session.end"


def test_w06_nobody_ends_the_session_of_another_user(panel: Panel) -> None:
    admin, viewer = panel.client("admin"), panel.client("viewer")
    post(admin, f"/account/sessions/{_rows(panel)[-1].id}")
    post(admin, "/account/sessions")
    assert _is_in(viewer)


# --- W1: sessions over the login provider ----------------------------------------------------------

ADA = {"sub": "ada-1", "email": "ada@example.com", "email_verified": True, "groups": ["admin"], "sid": "s-1"}


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with oidc_provider.provider() as made:
        yield made


@pytest.fixture
def o(sqlite_url: str, provider: Provider) -> Iterator[Panel]:
    provider.person = dict(ADA)
    with open_panel(
        sqlite_url,
        seeded=False,
        oidc_issuer=provider.issuer,
        oidc_client_id=oidc_provider.CLIENT_ID,
        oidc_client_secret=SecretStr(oidc_provider.CLIENT_SECRET),
        oidc_role_claim="groups",
    ) as made:
        yield made


def _come_in(panel: Panel, provider: Provider, **claims: Any) -> FlaskClient:
    provider.person = {**ADA, **claims}
    client = panel.app.test_client()
    away = client.get("/login/oidc/").headers["Location"]
    back = requests.get(away, allow_redirects=False, timeout=5).headers["Location"]
    assert client.get(back.removeprefix("http://localhost")).headers["Location"] == "/"
    return client


def _tell(panel: Panel, token: str) -> Any:
    return panel.app.test_client().post("/login/oidc/backchannel-logout", data={"logout_token": token})


def test_w01_the_provider_ends_all_sessions_of_a_user(o: Panel, provider: Provider) -> None:
    clients = [_come_in(o, provider, sid=sid) for sid in ("s-1", "s-2", None)]
    other = _come_in(o, provider, sub="eve-1", email="eve@example.com")
    answer = _tell(o, provider.logout_token(sub="ada-1"))
    assert answer.status_code == 200 and "no-store" in answer.headers["Cache-Control"]
    assert not any(map(_is_in, clients)) and _is_in(other)
    trail = o.rows(sa.select(AuditEntry.target).where(AuditEntry.action == "sessions.end"))
    assert [row.target for row in trail] == ["ada@example.com"]


@pytest.mark.parametrize("sub", [{}, {"sub": "ada-1"}], ids=["sid", "sid and sub"])
def test_w01_the_provider_ends_one_session(o: Panel, provider: Provider, sub: dict[str, str]) -> None:
    ended, kept = (_come_in(o, provider, sid=sid) for sid in ("s-1", "s-2"))
    assert _tell(o, provider.logout_token(sid="s-1", **sub)).status_code == 200
    assert not _is_in(ended) and _is_in(kept)


def test_w01_the_provider_does_not_end_a_login_with_a_password(o: Panel, provider: Provider) -> None:
    over_provider = _come_in(o, provider, email="viewer@example.com")
    by_password = o.client()
    log_in(by_password, "viewer@example.com")
    _tell(o, provider.logout_token(sub="ada-1"))
    assert not _is_in(over_provider) and _is_in(by_password)


def test_w01_a_session_over_the_provider_lasts_for_a_set_time(o: Panel, provider: Provider) -> None:
    over_provider, by_password = _come_in(o, provider), o.client("viewer")
    with time_machine.travel(time.time() + 9 * 3600, tick=True):
        assert not _is_in(over_provider) and _is_in(by_password)


NO_LOGOUT_TOKENS: list[dict[str, Any]] = [
    {"iss": "https://evil.example"}, {"aud": "another"}, {"aud": None}, {"iss": None}, {"iat": None}, {"jti": None},
    {"exp": int(time.time()) - 1000}, {"iat": int(time.time()) - 1000, "exp": None}, {"iat": "now"},
    {"iat": int(time.time()) + 1000}, {"nonce": "n"}, {"events": None}, {"events": {}}, {"events": ["x"]},
    {"events": {"http://schemas.openid.net/event/backchannel-logout": None}}, {"sub": None}, {"sub": 7}, {"sub": ""},
    {"sub": ["ada-1"]}, {"sid": {"a": 1}},
]  # fmt: skip


@pytest.mark.parametrize("lie", NO_LOGOUT_TOKENS, ids=str)
def test_w01_a_token_that_ends_no_session(o: Panel, provider: Provider, lie: dict[str, Any]) -> None:
    client = _come_in(o, provider)
    answer = _tell(o, provider.logout_token(**{"sub": "ada-1", **lie}))
    assert answer.status_code == 400 and answer.get_json()["error"] == "invalid_request"
    assert _is_in(client)


def test_w01_a_token_that_the_provider_did_not_sign(o: Panel, provider: Provider) -> None:
    client, right = _come_in(o, provider), provider.key
    token = provider.logout_token(sub="ada-1")
    head, payload, _signature = token.split(".")
    with_secret = jwt.encode(
        {"alg": "HS256"},
        {"iss": provider.issuer, "aud": oidc_provider.CLIENT_ID},
        OctKey.import_key(oidc_provider.CLIENT_SECRET),
    )
    none = "eyJhbGciOiJub25lIn0"
    try:
        provider.sign_with_another_key()
        forged = provider.logout_token(sub="ada-1")
    finally:
        provider.key = right
    for wrong in (
        "",
        "x",
        "a.b.c",
        f"{head}.{payload}.",
        f"{none}.{payload}.",
        with_secret,
        forged,
        "é." * 3,
    ):
        assert _tell(o, wrong).status_code == 400, wrong
    assert _is_in(client)


def test_w01_keys_that_cannot_be_read(sqlite_url: str) -> None:
    gone = Provider()
    gone.issuer = "http://127.0.0.1:9"
    with open_panel(
        sqlite_url,
        seeded=False,
        oidc_issuer=gone.issuer,
        oidc_client_id=oidc_provider.CLIENT_ID,
        oidc_client_secret=SecretStr(oidc_provider.CLIENT_SECRET),
    ) as made:
        assert _tell(made, gone.logout_token(sub="ada-1")).status_code == 503
