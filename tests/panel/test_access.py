"""Access control: every route, requested by a stranger and by each role."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient

from models.ledger import AuditEntry, DeadLetter, Inbox
from models.users import User
from panel.app import create_app
from panel.auth import accounts, login_throttle
from settings import Settings
from tests.support.panel import PASSWORD, ROLES, Panel, add_conflict, csrf, log_in, open_panel, post

#: The statuses for stranger, viewer, operator and admin. A stranger is redirected to the login.
VIEW = (303, 200, 200, 200)
ADMIN = (303, 403, 403, 200)
OPERATOR = (303, 403, 200, 200)
OPERATE = (303, 403, 303, 303)
ADMINISTER = (303, 403, 403, 303)
#: Runs immediately, and the response shows the result.
SHOWN = (303, 403, 200, 200)
GONE = (404, 404, 404, 404)
REFUSED = (400, 400, 400, 400)

#: (method, rule) -> a path that matches it, the form data, and the statuses.
ROUTES: dict[tuple[str, str], tuple[str, dict[str, Any], tuple[int, int, int, int]]] = {
    ("GET", "/static/<path:filename>"): ("/static/panel.css", {}, (200, 200, 200, 200)),
    ("GET", "/fs-static/<path:filename>"): ("/fs-static/js/webauthn.js", {}, GONE),
    ("GET", "/login"): ("/login", {}, (200, 302, 302, 302)),
    ("POST", "/login"): ("/login", {"email": "viewer@example.com", "password": PASSWORD}, (302, 302, 302, 302)),
    ("POST", "/logout"): ("/logout", {}, (303, 302, 302, 302)),
    ("GET", "/verify"): ("/verify", {}, VIEW),
    ("POST", "/verify"): ("/verify", {"password": "wrong"}, VIEW),
    ("GET", "/tf-setup"): ("/tf-setup", {}, VIEW),
    ("POST", "/tf-setup"): ("/tf-setup", {"setup": "authenticator"}, VIEW),
    ("POST", "/tf-setup/<token>"): ("/tf-setup/nonsense", {"code": "123456"}, (303, 302, 302, 302)),
    # No client is in the middle of a login here.
    ("GET", "/tf-validate"): ("/tf-validate", {}, (302, 302, 302, 302)),
    ("POST", "/tf-validate"): ("/tf-validate", {"code": "123456"}, (302, 302, 302, 302)),
    ("GET", "/tf-select"): ("/tf-select", {}, GONE),
    ("POST", "/tf-select"): ("/tf-select", {}, GONE),
    ("GET", "/tf-rescue"): ("/tf-rescue", {}, GONE),
    ("POST", "/tf-rescue"): ("/tf-rescue", {}, GONE),
    ("GET", "/mf-recovery"): ("/mf-recovery", {}, (302, 302, 302, 302)),
    ("POST", "/mf-recovery"): ("/mf-recovery", {"code": "x"}, (302, 302, 302, 302)),
    ("GET", "/mf-recovery-codes"): ("/mf-recovery-codes", {}, VIEW),
    ("POST", "/mf-recovery-codes"): ("/mf-recovery-codes", {}, VIEW),
    ("GET", "/login/oidc/"): ("/login/oidc/", {}, GONE),  # not configured; test_login.py tests it configured
    ("GET", "/login/oidc/return"): ("/login/oidc/return", {}, GONE),
    ("POST", "/login/oidc/backchannel-logout"): ("/login/oidc/backchannel-logout", {}, GONE),
    ("GET", "/account/"): ("/account/", {}, VIEW),
    ("POST", "/account/language"): ("/account/language", {"language": "en"}, (303, 303, 303, 303)),
    ("POST", "/account/sessions"): ("/account/sessions", {}, (303, 303, 303, 303)),
    ("POST", "/account/sessions/<small:number>"): ("/account/sessions/1", {}, (303, 303, 303, 303)),
    ("GET", "/change"): ("/change", {}, VIEW),
    ("POST", "/change"): ("/change", {"password": "wrong"}, VIEW),
    ("GET", "/healthz"): ("/healthz", {}, (200, 200, 200, 200)),
    ("GET", "/readyz"): ("/readyz", {}, (200, 200, 200, 200)),
    ("GET", "/metrics"): ("/metrics", {}, (401, 200, 200, 200)),
    ("POST", "/webhooks/<system>"): ("/webhooks/nobody", {}, REFUSED),
    ("POST", "/webhooks/<system>/<secret>"): ("/webhooks/nobody/secret", {}, REFUSED),
    ("GET", "/"): ("/", {}, VIEW),
    ("GET", "/systems/"): ("/systems/", {}, VIEW),
    ("POST", "/systems/<system>/pause"): ("/systems/shop/pause", {"reason": "a test"}, OPERATE),
    ("POST", "/systems/<system>/resume"): ("/systems/shop/resume", {}, OPERATE),
    ("POST", "/systems/<system>/relink"): ("/systems/shop/relink", {}, OPERATE),
    ("POST", "/systems/<system>/account"): ("/systems/shop/account", {}, OPERATE),
    ("POST", "/systems/<system>/check"): ("/systems/shop/check", {}, OPERATE),
    ("POST", "/systems/poll/<subscriber>"): ("/systems/poll/shop.customer", {}, OPERATE),
    ("POST", "/systems/backfill/<subscriber>"): ("/systems/backfill/crm.customer", {}, OPERATE),
    ("POST", "/systems/reconcile/<subscriber>"): ("/systems/reconcile/shop.customer", {}, OPERATE),
    ("GET", "/throughput.json"): ("/throughput.json?range=1h", {}, VIEW),
    ("GET", "/schedules/"): ("/schedules/", {}, VIEW),
    ("POST", "/schedules/run"): ("/schedules/run", {"job": "poll shop.customer"}, OPERATE),
    ("POST", "/schedules/pause"): ("/schedules/pause", {"job": "poll shop.customer"}, OPERATE),
    ("POST", "/schedules/resume"): ("/schedules/resume", {"job": "poll shop.customer"}, OPERATE),
    ("GET", "/queues/"): ("/queues/", {}, VIEW),
    ("GET", "/tasks/"): ("/tasks/", {}, VIEW),
    ("GET", "/tasks/<number:number>"): ("/tasks/{task}", {}, VIEW),
    ("POST", "/tasks/<number:number>/stop"): ("/tasks/{task}/stop", {}, OPERATE),
    ("POST", "/tasks/<number:number>/resume"): ("/tasks/{task}/resume", {}, OPERATE),
    ("GET", "/mappings/"): ("/mappings/", {}, VIEW),
    ("GET", "/mappings/<subscriber>"): ("/mappings/shop.customer", {}, VIEW),
    ("POST", "/mappings/<subscriber>"): (
        "/mappings/shop.customer",
        {"0.column": "name", "0.path": "name", "0.direction": "both", "0.conflict": "newest", "do": "save"},
        ADMINISTER,
    ),
    ("GET", "/mappings/<subscriber>/versions/<small:number>"): ("/mappings/crm.customer/versions/1", {}, VIEW),
    ("POST", "/mappings/<subscriber>/versions/<small:number>/revert"): (
        "/mappings/crm.customer/versions/1/revert",
        {"version": "1"},
        ADMINISTER,
    ),
    ("POST", "/mappings/<subscriber>/send"): ("/mappings/shop.customer/send", {}, ADMINISTER),
    ("POST", "/mappings/<subscriber>/default"): ("/mappings/shop.customer/default", {"version": "1"}, ADMINISTER),
    ("GET", "/unsubscriptions/"): ("/unsubscriptions/", {}, VIEW),
    ("GET", "/unsubscriptions/<small:number>"): ("/unsubscriptions/1", {}, VIEW),
    ("POST", "/unsubscriptions/"): ("/unsubscriptions/", {"target": "shop", "reason": "a test"}, OPERATE),
    ("POST", "/unsubscriptions/<small:number>/lift"): ("/unsubscriptions/{fresh}/lift", {}, OPERATE),
    ("GET", "/links/"): ("/links/", {}, VIEW),
    ("GET", "/links/<number:number>"): ("/links/1", {}, VIEW),
    ("GET", "/deliveries/"): ("/deliveries/", {}, VIEW),
    ("GET", "/deliveries/<number:number>"): ("/deliveries/1", {}, VIEW),
    ("GET", "/dead-letters/"): ("/dead-letters/", {}, VIEW),
    ("GET", "/dead-letters/<number:number>"): ("/dead-letters/1", {}, VIEW),
    ("POST", "/dead-letters/retry"): ("/dead-letters/retry", {"id": "1"}, OPERATE),
    ("POST", "/dead-letters/<number:number>/decide"): ("/dead-letters/1/decide", {"same": "yes"}, OPERATE),
    ("POST", "/dead-letters/discard"): ("/dead-letters/discard", {"id": "1", "reason": "a test"}, OPERATE),
    ("GET", "/conflicts/"): ("/conflicts/", {}, VIEW),
    ("POST", "/conflicts/resolve"): ("/conflicts/resolve", {"number": "{conflict}", "all": "ours"}, OPERATE),
    ("GET", "/conflicts/resolve-all"): (
        "/conflicts/resolve-all?subscriber=shop.customer&field=email&choice=ours",
        {},
        (303, 403, 200, 200),
    ),
    ("POST", "/conflicts/resolve-all"): (
        "/conflicts/resolve-all",
        {"subscriber": "shop.customer", "field": "email", "choice": "ours"},
        OPERATE,
    ),
    ("GET", "/changes/"): ("/changes/", {}, VIEW),
    ("GET", "/tasks/<number:number>/line"): ("/tasks/1/line", {}, VIEW),
    ("GET", "/inbox/"): ("/inbox/", {}, VIEW),
    ("GET", "/inbox/<number:number>"): ("/inbox/1", {}, VIEW),
    ("GET", "/record/"): ("/record/?q=a", {}, VIEW),
    ("GET", "/record/<catalogue>/<path:record_id>"): ("/record/customer/1", {}, VIEW),
    ("POST", "/record/<catalogue>/<path:record_id>/push"): ("/record/customer/1/push", {}, OPERATE),
    ("GET", "/record/<catalogue>/<path:record_id>/edit"): ("/record/customer/1/edit", {}, OPERATOR),
    ("POST", "/record/<catalogue>/<path:record_id>/edit"): (
        "/record/customer/1/edit", {"was.city": "London", "to.city": "Bath"}, OPERATE
    ),
    ("POST", "/dead-letters/try-one"): ("/dead-letters/try-one", {"all": "yes"}, OPERATE),
    ("GET", "/dead-letters/export.csv"): ("/dead-letters/export.csv", {}, OPERATOR),
    ("GET", "/links/export.csv"): ("/links/export.csv", {}, OPERATOR),
    ("GET", "/deliveries/export.csv"): ("/deliveries/export.csv", {}, OPERATOR),
    ("GET", "/changes/export.csv"): ("/changes/export.csv", {}, OPERATOR),
    ("GET", "/inbox/export.csv"): ("/inbox/export.csv", {}, OPERATOR),
    ("GET", "/audit/export.csv"): ("/audit/export.csv", {}, ADMIN),
    ("GET", "/inbox/refused"): ("/inbox/refused", {}, VIEW),
    ("POST", "/inbox/<number:number>/replay"): ("/inbox/{settled}/replay", {}, OPERATE),
    ("POST", "/inbox/<number:number>/discard"): ("/inbox/{waiting}/discard", {"reason": "a test"}, OPERATE),
    ("POST", "/inbox/<number:number>/body"): ("/inbox/1/body", {}, (303, 403, 403, 200)),
    ("POST", "/inbox/replay"): (
        "/inbox/replay", {"system": "shop", "since": "2001-01-01T00:00", "until": "2099-01-01T00:00"}, OPERATE
    ),
    ("GET", "/users/"): ("/users/", {}, ADMIN),
    ("POST", "/users/"): ("/users/", {"email": "new@example.com", "role": "viewer"}, ADMIN),
    ("POST", "/users/<small:number>/role"): ("/users/{viewer}/role", {"role": "viewer"}, ADMINISTER),
    ("POST", "/users/<small:number>/active"): ("/users/{viewer}/active", {"active": "yes"}, ADMINISTER),
    ("POST", "/users/<small:number>/password"): ("/users/{viewer}/password", {}, ADMIN),
    ("POST", "/users/<small:number>/two-factor"): ("/users/{viewer}/two-factor", {}, ADMINISTER),
    ("GET", "/audit/"): ("/audit/", {}, ADMIN),
}  # fmt: skip


def _path(panel: Panel, path: str) -> str:
    fresh = ""
    if "{fresh}" in path:
        fresh = str(panel.conductor.unsubscriptions.create("shop", "delete", None, None, "to be lifted", "a test"))
    viewer = panel.rows(sa.select(User.id).where(User.email == "viewer@example.com"))[0].id
    settled = str(_webhook(panel, "done")) if "{settled}" in path else ""
    conflict = str(add_conflict(panel)) if "{conflict}" in path else ""
    task = (
        str(panel.conductor.tasks.start("reconcile", "a test", subscriber="crm.customer")) if "{task}" in path else ""
    )
    if path.endswith("/resume") and task:
        panel.conductor.tasks.stop(int(task), "a test")
    waiting = str(_webhook(panel, "waiting")) if "{waiting}" in path else ""
    return path.format(fresh=fresh, viewer=viewer, conflict=conflict, task=task, settled=settled, waiting=waiting)


def _webhook(panel: Panel, state: str) -> int:
    number = panel.rows(sa.select(Inbox.id).limit(1))[0].id
    with panel.database.write() as connection:
        connection.execute(sa.update(Inbox).where(Inbox.id == number).values(state=state))
    return int(number)


#: Prefixes of the routes that depend on the session or change it: each request gets a client of its own.
OF_LOGIN = ("/login", "/logout", "/change", "/users", "/account", "/tf", "/mf")


def _ask(panel: Panel, who: str | None, method: str, rule: str, shared: FlaskClient) -> int:
    path, data, _answers = ROUTES[method, rule]
    # Most routes share one login: hashing a password is slow on purpose.
    client = panel.client(who) if rule.startswith(OF_LOGIN) else shared
    path = _path(panel, path)
    data = {name: _path(panel, value) if "{" in value else value for name, value in data.items()}
    with client.get(path) if method == "GET" else post(client, path, **data) as answer:
        return int(answer.status_code)


def test_every_route_is_in_the_table(sqlite_panel: Panel) -> None:
    there = {
        (method, rule.rule)
        for rule in sqlite_panel.app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert there == set(ROUTES)


@pytest.mark.parametrize("who", [None, *ROLES])
def test_every_route_answers_each_role_as_the_table_says(panel: Panel, who: str | None) -> None:
    column = [None, *ROLES].index(who)
    shared = panel.client(who)
    # Routes that end sessions come last.
    in_turn = sorted(ROUTES, key=lambda asked: asked[1].startswith(OF_LOGIN))
    answered = {asked: _ask(panel, who, *asked, shared) for asked in in_turn}
    expected = {asked: answers[column] for asked, (_path, _data, answers) in ROUTES.items()}
    assert answered == expected


def test_every_write_leaves_an_audit_row(panel: Panel) -> None:
    changing = {asked for asked, (_path, _data, answers) in ROUTES.items() if answers in (OPERATE, SHOWN, ADMINISTER)}
    writes = [asked for asked in ROUTES if asked in changing and asked[0] == "POST"]
    writes += [("POST", "/users/"), ("POST", "/users/<small:number>/password"), ("POST", "/account/sessions")]
    writes.append(("POST", "/account/language"))
    assert len(writes) > 10
    shared = panel.client("admin")
    for asked in sorted(writes, key=lambda asked: asked[1].startswith(OF_LOGIN)):
        _ask(panel, "admin", *asked, shared)
        newest = panel.rows(sa.select(AuditEntry.who, AuditEntry.action).order_by(AuditEntry.id.desc()).limit(1))
        # The newest row is the write's own, not that of the login before it.
        assert newest[0].who == "admin@example.com", asked
        assert newest[0].action != "login", asked


def test_a_post_without_its_token_is_refused(sqlite_panel: Panel) -> None:
    client = sqlite_panel.client("admin")
    for (method, rule), (path, data, answers) in ROUTES.items():
        if method == "POST" and answers in (OPERATE, SHOWN, ADMINISTER):
            assert client.post(_path(sqlite_panel, path), data=data).status_code == 400, rule


def test_a_stranger_is_led_back_to_the_page_after_login(sqlite_panel: Panel) -> None:
    client = sqlite_panel.client()
    answer = client.get("/links/?state=owed")
    assert answer.headers["Location"] == "/login?next=/links/?state%3Dowed"
    token = csrf(client)
    data = {"email": "viewer@example.com", "password": PASSWORD, "csrf_token": token}
    assert client.post(answer.headers["Location"], data=data).headers["Location"] == "/links/?state=owed"


def test_the_login_leads_to_no_other_host(sqlite_panel: Panel) -> None:
    for target in ("https://evil.example/", "//evil.example/", "/\\evil.example", "%09//evil.example"):
        client = sqlite_panel.client()
        data = {"email": "viewer@example.com", "password": PASSWORD, "csrf_token": csrf(client), "next": target}
        answer = client.post("/login", query_string={"next": target}, data=data)
        assert not answer.headers.get("Location", "/").startswith(("//", "/\\", "http"))


def test_an_action_returns_to_no_other_host(sqlite_panel: Panel) -> None:
    client = sqlite_panel.client("operator")
    for target in ("https://evil.example/", "//evil.example/", "/\\evil.example"):
        answer = post(client, "/dead-letters/retry", id="1", back=target)
        assert answer.headers["Location"] == "/dead-letters/"


def test_wrong_passwords_slow_down_and_leave_a_trail(panel: Panel) -> None:
    client = panel.client()
    for _ in range(5):
        answer = log_in(client, "admin@example.com", "not the password at all")
        assert answer.status_code == 200
        assert "Email or password is wrong." in answer.text
    answer = log_in(client, "admin@example.com")
    assert answer.status_code == 429
    assert login_throttle.TOO_MANY in answer.text
    assert log_in(panel.client(), "viewer@example.com").status_code == 302
    failed = panel.rows(sa.select(AuditEntry.who).where(AuditEntry.action == "login.failed"))
    assert [row.who for row in failed] == ["admin@example.com"] * 5


def test_a_login_with_an_unknown_email_gets_the_same_answer(sqlite_panel: Panel) -> None:
    known = log_in(sqlite_panel.client(), "admin@example.com", "not the password at all")
    unknown = log_in(sqlite_panel.client(), "nobody@example.com", "not the password at all")
    assert known.status_code == unknown.status_code == 200
    assert known.text.count("Email or password is wrong.") == unknown.text.count("Email or password is wrong.") == 1


def test_the_session_cookie(sqlite_url: str) -> None:
    with open_panel(sqlite_url, seeded=False, behind_proxy=True) as made:
        answer = made.app.test_client().get("/login", headers={"X-Forwarded-Proto": "https"})
    cookie = answer.headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Lax", "Secure"} <= {part.strip() for part in cookie.split(";")}
    assert "Strict-Transport-Security" in answer.headers


def test_pages_forbid_foreign_content(sqlite_panel: Panel) -> None:
    for path in ("/", "/login", "/no-such-page", "/healthz"):
        policy = sqlite_panel.client("viewer").get(path).headers["Content-Security-Policy"]
        assert "unsafe" not in policy
        assert policy.startswith("default-src 'none'")


def test_a_disabled_user_is_logged_out_immediately(panel: Panel) -> None:
    viewer, admin = panel.client("viewer"), panel.client("admin")
    number = panel.rows(sa.select(User.id).where(User.email == "viewer@example.com"))[0].id
    assert viewer.get("/").status_code == 200
    assert post(admin, f"/users/{number}/active", active="no").status_code == 303
    assert viewer.get("/").status_code == 303
    assert log_in(panel.client(), "viewer@example.com").status_code == 200


def test_an_admin_cannot_lock_himself_out(sqlite_panel: Panel) -> None:
    number = sqlite_panel.rows(sa.select(User.id).where(User.email == "admin@example.com"))[0].id
    admin = sqlite_panel.client("admin")
    assert post(admin, f"/users/{number}/role", role="viewer").status_code == 409
    assert post(admin, f"/users/{number}/active", active="no").status_code == 409


def test_changing_ones_password_ends_the_other_sessions(panel: Panel) -> None:
    here, elsewhere = panel.client("viewer"), panel.client("viewer")
    new = "another long password"
    answer = post(here, "/change", password=PASSWORD, new_password=new, new_password_confirm=new)
    assert answer.status_code == 302
    assert here.get("/").status_code == 200
    assert elsewhere.get("/").status_code == 303
    assert log_in(panel.client(), "viewer@example.com", new).status_code == 302
    assert panel.rows(sa.select(AuditEntry.who).where(AuditEntry.action == "password.change"))


def test_creating_people_needs_no_web_process(panel: Panel) -> None:
    accounts.create_user(panel.database, " Boss@Example.com ", PASSWORD, "admin")
    assert log_in(panel.client(), "boss@example.com").status_code == 302
    for email, password, role, words in (
        ("not an address", PASSWORD, "admin", "not a valid email address"),
        ("new@example.com", "short", "admin", "at least 12"),
        ("boss@example.com", PASSWORD, "admin", "already"),
        ("new@example.com", PASSWORD, "king", "does not exist"),
    ):
        with pytest.raises(ValueError, match=words):
            accounts.create_user(panel.database, email, password, role)


def test_a_second_app_can_be_created_in_the_same_process(sqlite_panel: Panel) -> None:
    create_app(sqlite_panel.conductor, Settings(secret_key="s" * 32))
    assert sqlite_panel.client("viewer").get("/").status_code == 200


def test_there_are_dead_letters_to_look_at(sqlite_panel: Panel) -> None:
    assert len(sqlite_panel.rows(sa.select(DeadLetter.id))) == 2
