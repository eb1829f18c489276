"""Logging in: one-time passwords, the second factor and OpenID Connect; and how sessions end."""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import sqlalchemy as sa
import time_machine
from flask.testing import FlaskClient
from passlib.totp import TOTP  # type: ignore[import-untyped]
from pydantic import SecretStr
from pytest_httpserver import HTTPServer

from models.ledger import AuditEntry
from models.users import Role, User, roles_users
from panel.auth import login_throttle
from tests.support import oidc_provider
from tests.support.oidc_provider import Provider
from tests.support.panel import PASSWORD, Panel, csrf, log_in, open_panel, post


@pytest.fixture
def seeded() -> bool:
    return False


def _user(panel: Panel, role: str = "viewer") -> Any:
    return panel.rows(sa.select(User.__table__).where(User.email == f"{role}@example.com"))[0]


def _actions(panel: Panel, who: str) -> list[str]:
    rows = panel.rows(sa.select(AuditEntry.action).where(AuditEntry.who == who).order_by(AuditEntry.id))
    return [row.action for row in rows]


# --- one-time passwords ------------------------------------------------------------------------------


def test_a_new_user_chooses_a_password_before_anything_else(panel: Panel) -> None:
    page = post(panel.client("admin"), "/users/", email="New@Example.com", role="operator")
    given = re.search(r'id="password"[^>]*>([^<]+)<', page.text)
    assert given and "no-store" in page.headers["Cache-Control"]
    client = panel.client()
    assert log_in(client, "new@example.com", given[1]).status_code == 302
    for path in ("/", "/dead-letters/", "/account/"):
        assert client.get(path).headers["Location"] == "/change"
    assert post(client, "/dead-letters/retry", all="yes").headers["Location"] == "/change"
    own = "a password of my own"
    post(client, "/change", password=given[1], new_password=own, new_password_confirm=own)
    assert client.get("/dead-letters/").status_code == 200
    assert log_in(panel.client(), "new@example.com", given[1]).status_code == 200


def test_a_password_reset_ends_all_sessions_and_shows_the_password_once(panel: Panel) -> None:
    viewer, admin = panel.client("viewer"), panel.client("admin")
    page = post(admin, f"/users/{_user(panel).id}/password").text
    given = re.search(r'id="password"[^>]*>([^<]+)<', page)
    assert given and given[1] not in admin.get("/users/").text
    assert given[1] not in str(panel.rows(sa.select(AuditEntry.details)))
    assert viewer.get("/").status_code == 303
    assert log_in(panel.client(), "viewer@example.com").status_code == 200
    assert log_in(panel.client(), "viewer@example.com", given[1]).status_code == 302


def test_ending_all_other_sessions_keeps_this_one(panel: Panel) -> None:
    here, elsewhere = panel.client("viewer"), panel.client("viewer")
    post(here, "/account/sessions")
    assert here.get("/").status_code == 200
    assert elsewhere.get("/").status_code == 303


def test_a_new_role_ends_the_sessions_of_the_old_one(sqlite_panel: Panel) -> None:
    operator = sqlite_panel.client("operator")
    post(sqlite_panel.client("admin"), f"/users/{_user(sqlite_panel, 'operator').id}/role", role="viewer")
    assert operator.get("/").status_code == 303


def _at_verify(client: FlaskClient, password: str) -> Any:
    return post(client, "/verify", password=password)


def _at_change(client: FlaskClient, password: str) -> Any:
    own = "a password of my own"
    return post(client, "/change", password=password, new_password=own, new_password_confirm=own)


@pytest.mark.parametrize("ask", [_at_verify, _at_change])
def test_wrong_passwords_in_a_session_are_slowed_as_at_the_login(panel: Panel, ask: Any) -> None:
    client, before = panel.client("viewer"), _user(panel).password
    for _ in range(5):
        assert ask(client, "not the password at all").status_code == 200
    assert _actions(panel, "viewer@example.com").count("login.failed") == 5
    answer = ask(client, PASSWORD)
    assert answer.status_code == 429 and login_throttle.TOO_MANY in answer.text and answer.headers["Retry-After"]
    assert _user(panel).password == before
    assert log_in(panel.client(), "viewer@example.com").status_code == 429, "one brake for all"
    assert ask(panel.client("operator"), PASSWORD).status_code == 302
    with time_machine.travel(time.time() + 16 * 60, tick=True):
        assert ask(client, PASSWORD).status_code == 302


def test_what_is_wrong_with_a_new_password_is_no_guess(sqlite_panel: Panel) -> None:
    client = sqlite_panel.client("viewer")
    for new, again in [("short", "short"), ("a password of my own", "another password")] * 3:
        answer = post(client, "/change", password=PASSWORD, new_password=new, new_password_confirm=again)
        assert answer.status_code == 200
    assert "login.failed" not in _actions(sqlite_panel, "viewer@example.com")
    post(client, "/change", password="not the password", new_password=new, new_password_confirm=again)
    assert _actions(sqlite_panel, "viewer@example.com").count("login.failed") == 1, "a guess all the same"
    assert _at_change(client, PASSWORD).status_code == 302
    assert _actions(sqlite_panel, "viewer@example.com")[-2:] == ["password.verify", "password.change"]


# --- the second factor -------------------------------------------------------------------------------


class Phone:
    """An authenticator app: it gets a key and generates the code for a given time."""

    def __init__(self, key: str) -> None:
        self._totp = TOTP(key=key.replace("-", "").replace(" ", ""), format="base32")

    def code(self, later: float = 0) -> str:
        return str(self._totp.generate(time=int(time.time() + later)).token)


def _set_up(client: FlaskClient) -> Phone:
    page = post(client, "/tf-setup", setup="authenticator").text
    assert "<svg" in page and "data:" not in page and "style=" not in page
    key = re.search(r'<code class="key">([^<]+)<', page)
    token = re.search(r'action="(/tf-setup/[^"]+)"', page)
    assert key and token
    phone = Phone(key[1])
    assert post(client, token[1], code=phone.code()).headers["Location"] == "/account/"
    return phone


def _password_first(panel: Panel) -> FlaskClient:
    client = panel.client()
    assert log_in(client, "viewer@example.com").headers["Location"].startswith("/tf-validate")
    assert client.get("/").status_code == 303, "half a login opens nothing"
    return client


def _code(client: FlaskClient, code: str) -> Any:
    page = client.get("/tf-validate").text
    token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page)
    assert token
    return client.post("/tf-validate", data={"code": code, "csrf_token": token[1]})


def test_a_password_alone_opens_nothing_once_there_is_a_second_factor(panel: Panel) -> None:
    phone = _set_up(panel.client("viewer"))
    client = _password_first(panel)
    assert _code(client, "000000" if phone.code(30) != "000000" else "111111").status_code == 200
    assert client.get("/").status_code == 303
    # The set-up used its code: the next code logs in, and only once.
    fresh = phone.code(30)
    assert _code(client, fresh).status_code == 302
    assert client.get("/").status_code == 200
    assert _code(_password_first(panel), fresh).status_code == 200, "a code works once"
    trail = _actions(panel, "viewer@example.com")
    assert trail.count("two_factor.on") == 1 and "login.password" in trail and "two_factor.failed" in trail
    stored = _user(panel).tf_totp_secret
    assert phone._totp.base32_key not in stored, "kept encrypted"


def test_wrong_codes_are_slowed(sqlite_panel: Panel) -> None:
    phone = _set_up(sqlite_panel.client("viewer"))
    client = _password_first(sqlite_panel)
    for _ in range(5):
        assert _code(client, "abcdef").status_code == 200
    answer = _code(client, phone.code(30))
    assert answer.status_code == 429 and login_throttle.TOO_MANY in answer.text
    with time_machine.travel(time.time() + 16 * 60, tick=True):
        assert _code(_password_first(sqlite_panel), phone.code()).status_code == 302


def test_a_recovery_code_opens_once(panel: Panel) -> None:
    owner = panel.client("viewer")
    _set_up(owner)
    codes = re.findall(r"<li><code>([^<]+)<", post(owner, "/mf-recovery-codes", generate_new_codes="yes").text)
    assert len(codes) == 10 and codes[0] not in str(_user(panel).mf_recovery_codes)
    for status in (302, 200):
        client = _password_first(panel)
        page = client.get("/mf-recovery").text
        token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page)
        assert token
        answer = client.post("/mf-recovery", data={"code": codes[0], "csrf_token": token[1]})
        assert answer.status_code == status
    assert len(_user(panel).mf_recovery_codes) == 9
    assert "login.recovery_code" in _actions(panel, "viewer@example.com")


def test_new_recovery_codes_leave_a_trail(panel: Panel) -> None:
    owner = panel.client("viewer")
    _set_up(owner)
    for times in (1, 2):
        before = _user(panel).mf_recovery_codes
        post(owner, "/mf-recovery-codes", generate_new_codes="yes")
        assert _user(panel).mf_recovery_codes != before
        rows = panel.rows(sa.select(AuditEntry.__table__).where(AuditEntry.action == "two_factor.recovery_codes"))
        assert [(row.who, row.target) for row in rows] == [("viewer@example.com", "viewer@example.com")] * times
    owner.get("/mf-recovery-codes?show_codes=yes")
    assert _actions(panel, "viewer@example.com").count("two_factor.recovery_codes") == 2, "looking replaces nothing"


def test_who_lost_the_phone_is_let_in_by_an_admin(panel: Panel) -> None:
    owner = panel.client("viewer")
    _set_up(owner)
    post(owner, "/mf-recovery-codes", generate_new_codes="yes")
    post(panel.client("admin"), f"/users/{_user(panel).id}/two-factor")
    assert owner.get("/").status_code == 303
    assert log_in(panel.client(), "viewer@example.com").headers["Location"] == "/"
    assert _user(panel).mf_recovery_codes is None


def test_turning_it_off_asks_for_the_password_again_after_a_while(sqlite_panel: Panel) -> None:
    client = sqlite_panel.client("viewer")
    _set_up(client)
    with time_machine.travel(time.time() + 45 * 60, tick=True):
        answer = post(client, "/tf-setup", setup="disable")
        assert answer.status_code == 302 and answer.headers["Location"].startswith("/verify")
        assert _user(sqlite_panel).tf_primary_method
        assert post(client, answer.headers["Location"], password=PASSWORD).status_code == 302
        post(client, "/tf-setup", setup="disable")
    assert _user(sqlite_panel).tf_primary_method is None
    assert "two_factor.off" in _actions(sqlite_panel, "viewer@example.com")


def test_without_a_secret_there_is_no_second_factor(sqlite_url: str) -> None:
    with open_panel(sqlite_url, seeded=False, totp_secret=None) as made:
        client = made.client("viewer")
        assert "Two-factor" not in client.get("/account/").text
        assert client.get("/tf-setup").status_code == 404


# --- OpenID Connect ----------------------------------------------------------------------------------

ADA = {"sub": "ada-1", "email": "Ada@Example.com", "email_verified": True}


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with oidc_provider.provider() as made:
        yield made


@pytest.fixture
def o(sqlite_url: str, provider: Provider) -> Iterator[Panel]:
    provider.person, provider.lies = dict(ADA), {}
    with _with_oidc(sqlite_url, provider, oidc_role_claim="groups") as made:
        yield made


def _with_oidc(url: str, provider: Provider, **settings: Any) -> Any:
    return open_panel(
        url,
        seeded=False,
        oidc_issuer=provider.issuer,
        oidc_client_id=oidc_provider.CLIENT_ID,
        oidc_client_secret=SecretStr(oidc_provider.CLIENT_SECRET),
        **settings,
    )


def _come_in(panel: Panel, provider: Provider, path: str = "/login/oidc/") -> tuple[FlaskClient, Any]:
    """Log in as a browser does: go to the provider and return with its response."""
    client = panel.app.test_client()
    away = client.get(path).headers["Location"]
    assert away.startswith(provider.issuer + "/authorize?")
    back = requests.get(away, allow_redirects=False, timeout=5).headers["Location"]
    return client, client.get(back.removeprefix("http://localhost"))


def _words(client: FlaskClient, answer: Any) -> str:
    assert answer.headers["Location"] == "/login"
    return str(client.get("/login").text)


def test_a_newcomer_over_the_provider_is_a_viewer(o: Panel, provider: Provider) -> None:
    assert "/login/oidc/" in o.client().get("/login").text
    client, answer = _come_in(o, provider, "/login/oidc/?next=/links/")
    assert answer.headers["Location"] == "/links/"
    assert client.get("/links/").status_code == 200
    assert client.get("/users/").status_code == 403
    row = o.rows(sa.select(User.__table__).where(User.email == "ada@example.com"))[0]
    assert row.password is None and row.oidc_subject == f"{provider.issuer} ada-1"
    assert {"login"} <= set(_actions(o, "ada@example.com"))
    assert "user.create" in _actions(o, "OpenID Connect")
    # From now on the subject identifies the user: another email address is still the same user.
    provider.person = {**ADA, "email": "countess@example.com"}
    client, answer = _come_in(o, provider)
    assert "ada@example.com" in client.get("/account/").text
    assert "Change password" not in client.get("/account/").text
    assert client.get("/change").status_code == 404
    assert log_in(o.client(), "ada@example.com", "").status_code == 200


@pytest.mark.parametrize(
    ("groups", "role"),
    [("operator", "operator"), (["staff", "viewer", "admin"], "admin"), (["staff"], "viewer"), (None, "viewer")],
)
def test_the_claim_gives_the_role(o: Panel, provider: Provider, groups: Any, role: str) -> None:
    provider.person = {**ADA, "groups": groups}
    client, _answer = _come_in(o, provider)
    assert f"<dd>{role}</dd>" in client.get("/account/").text


def test_the_role_follows_the_claim(o: Panel, provider: Provider) -> None:
    provider.person = {**ADA, "groups": ["admin"]}
    _come_in(o, provider)
    provider.person = {**ADA, "groups": ["viewer"]}
    client, _answer = _come_in(o, provider)
    assert client.get("/users/").status_code == 403
    assert "user.role" in _actions(o, "OpenID Connect")


#: What a provider may send in the claim for a user without a role here.
NO_ROLE = [{}, {"groups": None}, {"groups": []}, {"groups": ["staff", "Admin"]}, {"groups": "staff"}, {"groups": ""},
           {"groups": {"admin": True}}, {"groups": [["admin"]]}, {"groups": [{"name": "admin"}]}, {"groups": 7},
           {"groups": "viewer admin"}, {"roles": ["admin"]}]  # fmt: skip


def _roles(panel: Panel, email: str) -> list[str]:
    of = sa.select(Role.name).join(roles_users).join(User).where(User.email == email)
    return [row.name for row in panel.rows(of)]


@pytest.mark.parametrize("claim", NO_ROLE, ids=str)
def test_w01_an_admin_without_a_group_gets_the_default_role(o: Panel, provider: Provider, claim: Any) -> None:
    provider.person = {**ADA, "groups": ["admin"]}
    admin, _answer = _come_in(o, provider)
    assert admin.get("/users/").status_code == 200
    provider.person = {**ADA, **claim}
    client, _answer = _come_in(o, provider)
    assert _roles(o, "ada@example.com") == ["viewer"]
    assert client.get("/").status_code == 200 and client.get("/users/").status_code == 403
    assert admin.get("/users/").status_code == 303, "the session of the admin has ended"


@pytest.mark.parametrize("claim", NO_ROLE, ids=str)
def test_w01_without_a_default_role_who_has_no_group_is_refused(
    sqlite_url: str, provider: Provider, claim: Any
) -> None:
    provider.person, provider.lies = {**ADA, "groups": ["admin"]}, {}
    with _with_oidc(sqlite_url, provider, oidc_role_claim="groups", oidc_default_role="none") as made:
        admin, _answer = _come_in(made, provider)
        provider.person = {**ADA, **claim}
        client, answer = _come_in(made, provider)
        assert "no role" in _words(client, answer)
        assert _roles(made, "ada@example.com") == []
        assert admin.get("/users/").status_code == client.get("/users/").status_code == 303
        provider.person = {**ADA, "groups": "operator"}
        assert _come_in(made, provider)[0].get("/").status_code == 200
        assert _roles(made, "ada@example.com") == ["operator"]


def test_w01_a_refused_user_is_not_joined_to_an_account(sqlite_url: str, provider: Provider) -> None:
    provider.person, provider.lies = {**ADA, "email": "admin@example.com"}, {}
    with _with_oidc(sqlite_url, provider, oidc_role_claim="groups", oidc_default_role="none") as made:
        client, answer = _come_in(made, provider)
        assert "no role" in _words(client, answer)
        assert _user(made, "admin").oidc_subject is None and _roles(made, "admin@example.com") == ["admin"]


def test_without_a_claim_admins_give_the_roles(sqlite_url: str, provider: Provider) -> None:
    provider.person, provider.lies = {**ADA, "email": "admin@example.com", "groups": []}, {}
    with _with_oidc(sqlite_url, provider, oidc_default_role="none") as made:
        for _login in range(2):
            assert _come_in(made, provider)[0].get("/users/").status_code == 200


def test_an_account_is_joined_by_a_checked_address_only(o: Panel, provider: Provider) -> None:
    provider.person = {"sub": "x", "email": "admin@example.com", "email_verified": False, "groups": "admin"}
    client, answer = _come_in(o, provider)
    assert "has not verified" in _words(client, answer)
    provider.person["email_verified"] = True
    client, answer = _come_in(o, provider)
    assert client.get("/users/").status_code == 200
    provider.person["sub"] = "another"
    client, answer = _come_in(o, provider)
    assert "another account" in _words(client, answer)


def test_a_user_of_the_login_provider_need_not_change_a_password(o: Panel, provider: Provider) -> None:
    provider.person = {"sub": "v", "email": "viewer@example.com", "email_verified": True}
    with o.database.write() as connection:
        connection.execute(sa.update(User).values(must_change_password=True))
    client, _answer = _come_in(o, provider)
    assert client.get("/links/").status_code == 200
    by_password = o.client()
    log_in(by_password, "viewer@example.com")
    assert by_password.get("/links/").headers["Location"] == "/change"


def test_a_disabled_user_cannot_log_in(o: Panel, provider: Provider) -> None:
    _come_in(o, provider)
    with o.database.write() as connection:
        connection.execute(sa.update(User).where(User.email == "ada@example.com").values(active=False))
    client, answer = _come_in(o, provider)
    assert "disabled" in _words(client, answer)


def test_who_has_no_role_may_be_refused(sqlite_url: str, provider: Provider) -> None:
    provider.person, provider.lies = dict(ADA), {}
    with _with_oidc(sqlite_url, provider, oidc_default_role="none") as made:
        client, answer = _come_in(made, provider)
        assert "no role" in _words(client, answer)


@pytest.mark.parametrize(
    "lie", [{"nonce": "another"}, {"iss": "https://evil.example"}, {"aud": "another"}, {"exp": 1000}]
)
def test_a_forged_token_is_refused(o: Panel, provider: Provider, lie: dict[str, Any]) -> None:
    provider.lies = lie
    client, answer = _come_in(o, provider)
    assert "could not be verified" in _words(client, answer)
    assert not o.rows(sa.select(User.id).where(User.email == "ada@example.com"))


def test_a_token_of_another_key_a_foreign_state_and_a_refusal(o: Panel, provider: Provider) -> None:
    right = provider.key
    provider.sign_with_another_key()
    client, answer = _come_in(o, provider)
    provider.key = right
    assert "could not be verified" in _words(client, answer)
    client = o.client()
    assert "could not be verified" in _words(client, client.get("/login/oidc/return?code=x&state=y"))
    assert "rejected the login: access_denied" in _words(client, client.get("/login/oidc/return?error=access_denied"))


def test_an_unreachable_login_provider_is_reported(sqlite_url: str) -> None:
    gone = Provider()
    gone.issuer = "http://127.0.0.1:9"
    with _with_oidc(sqlite_url, gone) as made:
        client = made.client()
        assert "does not answer" in _words(client, client.get("/login/oidc/"))
        csrf(client)
        assert log_in(client, "viewer@example.com").status_code == 302


def test_s04_a_large_answer_of_the_provider_is_not_read(sqlite_url: str, httpserver: HTTPServer) -> None:
    large = Provider()
    large.issuer = httpserver.url_for("").rstrip("/")
    content = gzip.compress(b" " * 20_000_000)
    httpserver.expect_request("/.well-known/openid-configuration").respond_with_data(
        content, headers={"Content-Encoding": "gzip"}
    )
    with _with_oidc(sqlite_url, large) as made:
        client = made.client()
        assert "does not answer" in _words(client, client.get("/login/oidc/"))
    assert httpserver.log


def test_the_redirect_after_login_stays_on_this_host(o: Panel, provider: Provider) -> None:
    for target in ("https://evil.example/", "//evil.example/", "/\\evil.example"):
        _client, answer = _come_in(o, provider, f"/login/oidc/?next={target}")
        assert answer.headers["Location"] == "/"
