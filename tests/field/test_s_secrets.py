"""A system that quotes our secrets in all that it says: docs/explanation/field-faults.md, rows S2 and S3.

The canaries are strange and long, so that they can be found again in any of their forms.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import hmac
import html
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import sqlalchemy as sa
from flask import Flask
from pydantic import SecretStr
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

import cli
import models.users  # noqa: F401 - its tables
from conductor import Conductor, Policy
from models.base import Base, utcnow
from models.bulk import insert_many, update_many
from models.ledger import AuditEntry, DeadLetter, Delivery, Inbox, RefusedWebhook
from models.session import Database
from panel.app import create_app
from panel.auth.accounts import create_user
from redaction import MASK, body_text, hide, hide_in, remember, response_text
from settings import Settings, SettingsError
from subscribers.errors import Reject
from subscribers.rest import RestOptions, RestSubscriber, RestSystem
from tests.support.awkward_rest import AwkwardRest, RestHub, answer
from tests.support.fakes import RecordingPublisher
from tests.support.panel import PASSWORD, csrf, log_in
from tests.support.records import add, edit
from workers.runtime import configure_logging

#: What each canary contains; with it every form but base64 is found.
MARK = "Cnry7qZx"

PASS = f"{MARK}pw ö\"w/+'&<x>%\\"
HOOK = f"whsec{MARK}hook0123456789"
OLD_HOOK = f"whsec{MARK}old0123456789"
TOKEN = f"{MARK}.access-token_0123456789"
CLIENT = f"{MARK}client+secret/0123456789"
HUB: dict[str, Any] = {
    "secret_key": SecretStr(f"{MARK}session-key-0123456789-0123456789"),
    "metrics_token": SecretStr(f"{MARK}metrics-0123456789-0123456789-012345"),
    "totp_secret": SecretStr(f"{MARK}totp-secret-0123456789-0123456789"),
    "oidc_client_secret": SecretStr(f"{MARK}oidc-0123456789-0123456789-0123456789"),
    "oidc_client_id": "hub",
    "oidc_issuer": "https://id.example.com",
    "database_url": f"postgresql://hub:{MARK}database%40pw@db.example/hub",
    "database_direct_url": f"postgresql://hub:{MARK}direct%40pw@db.example/hub",
    "broker_url": f"amqp://hub:{MARK}broker%2Fpw@mq.example/vhost",
    "rabbitmq_management_url": f"http://hub:{MARK}management@mq.example:15672",
}
OF_THE_HUB = [
    *(value.get_secret_value() for value in HUB.values() if isinstance(value, SecretStr)),
    f"{MARK}database@pw",
    f"{MARK}direct@pw",
    f"{MARK}broker/pw",
    f"{MARK}management",
]
SECRETS = [PASS, HOOK, OLD_HOOK, TOKEN, CLIENT, *OF_THE_HUB]


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


FORMS: dict[str, Callable[[str], str]] = {
    "raw": str,
    "in a sentence": lambda secret: f"the login {secret} is wrong",
    "base64": b64,
    "base64 without padding": lambda secret: b64(secret).rstrip("="),
    "base64 for URLs": lambda secret: base64.urlsafe_b64encode(secret.encode()).decode(),
    "Basic": lambda secret: "Basic " + b64(f"hub:{secret}"),
    "Basic of another user": lambda secret: "Basic " + b64(f"someone else:{secret}"),
    "in base64 of JSON": lambda secret: b64(json.dumps({"a": secret})),
    "URL": quote,
    "URL, all of it": lambda secret: quote(secret, safe=""),
    "URL, lower case": lambda secret: re.sub("%..", lambda m: m[0].lower(), quote(secret, safe="")),
    "form": quote_plus,
    "URL twice": lambda secret: quote(quote(secret, safe=""), safe=""),
    "parameter": lambda secret: f"https://shop.example/?key={quote_plus(secret)}&page=2",
    "login of a URL": lambda secret: f"https://hub:{quote(secret, safe='')}@shop.example/",
    "JSON": json.dumps,
    "JSON with slashes": lambda secret: json.dumps(secret).replace("/", "\\/"),
    "JSON in JSON": lambda secret: json.dumps(json.dumps(secret)),
    "JSON without escapes": lambda secret: json.dumps(secret, ensure_ascii=False),
    "HTML": html.escape,
    "HTML by number": lambda secret: "".join(c if c.isalnum() and c.isascii() else f"&#{ord(c)};" for c in secret),
    "HTML by hex": lambda secret: "".join(c if c.isalnum() and c.isascii() else f"&#x{ord(c):X};" for c in secret),
    "HTML twice": lambda secret: html.escape(html.escape(secret)),
    "repr": repr,
    "repr of bytes": lambda secret: repr(secret.encode()),
    "CSV": lambda secret: '"' + secret.replace('"', '""') + '"',
    "hex": lambda secret: secret.encode().hex(),
}
HAS_MARK = {name for name in FORMS if "ase64" not in name and "Basic" not in name and name != "hex"}


def leaks(text: str) -> list[str]:
    """Return the pieces of canaries in a text: their common mark, and each in base64 wherever it begins."""
    found = [MARK] if MARK in text or MARK.encode().hex() in text.lower() else []
    for before in range(3):
        encoded = b64("x" * before + MARK)
        core = encoded[(0, 2, 3)[before] : -4].replace("+", "[+-]")
        if re.search(core, text):
            found.append(f"base64 {before}")
    return found


@pytest.fixture(scope="module", autouse=True)
def known() -> None:
    remember("canaries", *SECRETS, users=["hub"])


# --- each form ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("secret", SECRETS)
def test_s02_each_form_of_each_secret_is_masked(form: str, secret: str) -> None:
    text = f"before {FORMS[form](secret)} after"
    hidden = hide(text)
    assert leaks(text), "the test must see it"
    assert not leaks(hidden) and MASK in hidden
    assert hidden.startswith("before ") and hidden.endswith(" after")
    assert leaks(str(hide_in({f"field {FORMS[form](secret)}": [text]}))) == []


def test_s02_other_text_stays_as_it_is() -> None:
    remember("words", "monday7", "guest", "abc")
    for text in ("the mondays7 are", "guests", "abc", "no secret: a token of user 7 is wrong", "monday77", "xmonday7"):
        assert hide(text) == text
    for text in ("monday7", "hub:monday7@host", "hub%3Amonday7%40host", '"\\nmonday7"', "pw=monday7&x", "a_monday7"):
        assert hide(text) == text.replace("monday7", MASK)


def test_s02_a_secret_at_the_cut_of_a_text_leaves_no_beginning() -> None:
    for place in range(480, 520):
        error = Reject("x" * (3500 + place) + PASS, fields={"f": PASS}).with_response("y" * (1500 + place) + TOKEN)
        assert leaks(str(error) + str(error.response) + str(error.fields)) == []
        assert leaks(response_text("z" * (1500 + place) + HOOK)) == []


def test_s02_fields_of_a_secret_name_are_masked_in_any_notation() -> None:
    for text in (
        '{"api_key": "k-1", "name": "Ada"}',
        '{"list": [{"password": "k-1"}], "name": "Ada", "cut": "',
        "name=Ada&access_token=k-1&x=2",
        "<name>Ada</name><wsse:Password>k-1</wsse:Password>",
    ):
        for masked in (body_text(text), response_text(text)):
            assert "k-1" not in masked and "Ada" in masked and MASK in masked
    assert str(Reject("password: is too short", fields={"password": "is too short"})) == "password: is too short"


# --- a hub over a system that quotes them ---------------------------------------------------------------


def quotes(secrets: list[str] = SECRETS) -> str:
    """Return all forms of all secrets."""
    return " | ".join(form(secret) for secret in secrets for form in FORMS.values())


class Basic(RestSystem):
    auth = "basic"


class OAuth(RestSystem):
    auth = "oauth2"


class Contact(RestSubscriber):
    system, catalogue, path = "awkward", "customer", "/contacts"
    idempotency_header = ""
    field_to_data = {"name": "name", "email": "email", "phone": "phone", "notes": "note"}


@pytest.fixture(params=[Basic, OAuth])
def hub(request: pytest.FixtureRequest, database: Database, system: AwkwardRest, httpserver: HTTPServer) -> RestHub:
    httpserver.expect_request("/oauth/token").respond_with_handler(
        lambda _: answer({"access_token": TOKEN, "expires_in": 3600})
    )
    made = RestHub(database, system)
    made.client = request.param(
        "awkward",
        RestOptions(
            url=system.url,
            username="hub",
            password=SecretStr(PASS),
            client_id="hub",
            client_secret=SecretStr(CLIENT),
            webhook_secret=SecretStr(f"{HOOK} {OLD_HOOK}"),
        ),
    )
    made.conductor = Conductor(
        database,
        {Contact.name(): Contact(made.client)},
        RecordingPublisher(),
        Policy(lease_seconds=60, stale_seconds=30, max_attempts=2, retry_min_seconds=2),
        lambda: utcnow() + made.ahead,
    )
    made.publisher = made.conductor.context.publisher  # type: ignore[assignment]
    made.conductor.prepare()
    Settings(_env_file=None, **HUB)
    return made


def _header(text: str) -> str:
    return text.encode("latin-1", "replace").decode("latin-1").replace("\n", " ")


ANSWERS: dict[str, Callable[[], Response]] = {
    "message": lambda: answer({"message": quotes()}, 422),
    "fields": lambda: answer({"errors": {quotes()[:1500]: "no", "name": quotes()}}, 422),
    "text": lambda: Response(quotes(), 400, content_type="text/plain"),
    "page": lambda: Response(f"<!doctype html><p>{html.escape(quotes())}</p>", 200, content_type="text/html"),
    "status": lambda: Response(
        "{}", f"400 {_header(PASS + ' ' + b64(f'hub:{PASS}'))}", content_type="application/json"
    ),
    "header": lambda: answer({"message": "no"}, 422, **{"X-Request-Id": _header(f"{TOKEN} {b64(f'hub:{PASS}')}")}),
    "server": lambda: Response(quotes(), 500, content_type="text/plain"),
    "down": lambda: answer({"error": quotes()}, 503),
    "login": lambda: answer({"detail": quotes()}, 401),
    "data": lambda: answer({"id": "77", "name": "Ada", "note": quotes(), quotes()[:500]: quotes()}, 201),
    "cut": lambda: answer({"password": PASS, "long": "x" * 1900 + quotes()}, 422),
}


def _signed(body: bytes) -> dict[str, str]:
    return {
        "X-Signature": hmac.new(HOOK.encode(), body, hashlib.sha256).hexdigest(),
        "X-Other": _header(quotes()[:250]),
    }


def converse(hub: RestHub, system: AwkwardRest, place: str) -> None:
    """Let the system quote all secrets: in the answer to a write, in webhooks, in a poll, a check and a task."""
    refuse = ANSWERS[place]
    system.refuses = lambda id, record: refuse()
    one = add(hub, name="Ada", email="ada@example.org")
    hub.run()
    hub.wait()
    hub.wait()
    system.refuses = lambda id, record: None
    edit(hub, one, phone="1")
    hub.wait()
    id = system.add(name="Eve", email="eve@example.org", note=quotes(), **{f"x {PASS}": quotes()})
    hub.poll()
    for number in range(2):
        event = {"id": f"evt {number} {quotes()[:300]}", "type": "contacts.updated", "data": {**system.store[id]}}
        body = json.dumps(event).encode()
        hub.conductor.store_webhook("awkward", body, _signed(body))
    for body in (quotes().encode(), b'{"id": "1", "broken": "' + quotes().encode()):
        with pytest.raises(Exception, match="signature"):
            hub.conductor.store_webhook("awkward", body, {"X-Signature": quotes()[:200], "Authorization": PASS})
    hub.run()
    system.reads = lambda record: {**record, "note": quotes(), quotes()[:300]: 1}
    hub.conductor.tasks.start("check", "ann", system="awkward")
    hub.conductor.tasks.start("reconcile", "ann", subscriber="awkward.customer", repair=False)
    for _ in range(8):
        hub.conductor.tasks.run_some()
        hub.wait(2)


def database_texts(database: Database) -> list[str]:
    """Return all values of the database, each with its place."""
    with database.read() as connection:
        return [
            f"{table.name}.{name}: {value}"
            for table in Base.metadata.sorted_tables
            for row in connection.execute(sa.text(f'SELECT * FROM "{table.name}"')).mappings()
            for name, value in row.items()
        ]


def _around(text: str) -> str:
    """Return the place of a stored text, and what stands around the leak."""
    place = max(text.find(MARK), 0)
    return f"{text[:40]} ... {text[max(place - 60, 0) : place + 60]}"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Configure the log as processes do, and collect it."""
    root, written = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    configure_logging(Settings(_env_file=None, log_level="DEBUG"))
    assert isinstance(root.handlers[0], logging.StreamHandler)
    root.handlers[0].setStream(written)
    yield written
    root.handlers[:] = handlers
    root.setLevel(level)


def app_of(hub: RestHub) -> Flask:
    for role in ("viewer", "operator", "admin"):
        create_user(hub.conductor.database, f"{role}@example.com", PASSWORD, role)
    return create_app(hub.conductor, Settings(_env_file=None, secret_key=HUB["secret_key"]))


def pages(hub: RestHub) -> list[str]:
    """Return the addresses of all pages and downloads, and of each row's own page."""
    with hub.conductor.database.read() as connection:
        ids = {
            name: connection.scalars(sa.text(f"SELECT id FROM {name}")).all()
            for name in ("delivery", "dead_letter", "inbox", "link", "task", "customer")
        }
    lists = ["", "systems", "schedules", "queues", "tasks", "mappings", "unsubscriptions", "links", "deliveries",
             "dead-letters", "conflicts", "changes", "inbox", "audit", "users"]  # fmt: skip
    return [
        *(f"/{name}/" if name else "/" for name in lists),
        *(f"/{name}/export.csv" for name in ("links", "deliveries", "dead-letters", "changes", "inbox", "audit")),
        "/inbox/refused", "/mappings/awkward.customer", "/metrics", "/healthz", "/readyz", "/throughput.json?range=1h",
        "/dead-letters/?state=closed",
        *(f"/deliveries/{id}" for id in ids["delivery"]), *(f"/dead-letters/{id}" for id in ids["dead_letter"]),
        *(f"/inbox/{id}" for id in ids["inbox"]), *(f"/links/{id}" for id in ids["link"]),
        *(f"/tasks/{id}" for id in ids["task"]), *(f"/record/customer/{id}" for id in ids["customer"]),
        *(f"/record/customer/{id}/edit" for id in ids["customer"]), "/record/?q=Ada",
    ]  # fmt: skip


@pytest.mark.parametrize("place", ANSWERS)
def test_s02_what_a_system_quotes_stands_nowhere(
    hub: RestHub, system: AwkwardRest, log: io.StringIO, place: str
) -> None:
    converse(hub, system, place)
    stored = database_texts(hub.conductor.database)
    assert len(stored) > 100 and [_around(text) for text in stored if leaks(text)] == []
    assert log.getvalue() and leaks(log.getvalue()) == []


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_s02_the_log_masks_what_any_program_writes(log: io.StringIO, log_format: str) -> None:
    configure_logging(Settings(_env_file=None, log_format=log_format))
    handler = logging.getLogger().handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(log)
    try:
        raise ValueError(quotes())
    except ValueError:
        logging.getLogger("another.package").exception("it says %s", quotes(), extra={"answer": quotes()})
    written = log.getvalue()
    assert "it says" in written and "ValueError" in written and leaks(written) == []


def test_s02_columns_for_operators_hold_no_secret_whatever_writes_them(database: Database) -> None:
    deliveries: Any = Delivery.__table__
    values = {"subscriber": "s", "record_id": "1", "direction": "out", "operation": "update", "outcome": "failed"}
    texts = {"reason": quotes(), "payload": {quotes(): [quotes(), {"a": quotes()}]}, "response": quotes()}
    with database.write() as connection:
        Base.metadata.create_all(connection)
        connection.execute(sa.insert(Delivery).values(**values, **texts, request_id=quotes()))
        insert_many(connection, deliveries, [{**values, **texts, "attempt": 1, "at": utcnow()}])
        connection.execute(sa.update(Delivery).where(Delivery.id == 1).values(**texts))
        update_many(connection, deliveries, [{"id": 2, **texts}])
        rows = connection.execute(sa.select(deliveries)).all()
    assert len(rows) == 2 and all(MASK in row.reason and MASK in str(row.payload) for row in rows)
    assert [text for text in database_texts(database) if leaks(text)] == []


def test_s02_no_page_and_no_download_quotes_a_secret(hub: RestHub, system: AwkwardRest, log: io.StringIO) -> None:
    for place in ("fields", "server", "data"):
        converse(hub, system, place)
    app = app_of(hub)
    for role in ("viewer", "operator", "admin"):
        client = app.test_client()
        log_in(client, f"{role}@example.com")
        seen = {path: client.get(path) for path in pages(hub)}
        assert {path for path, found in seen.items() if found.status_code >= 500} == set()
        assert {path: leaks(found.text) for path, found in seen.items() if leaks(found.text)} == {}
        assert sum(MASK in found.text for found in seen.values()) > 5  # the texts around them are shown
    assert leaks(log.getvalue()) == []


def test_s02_no_command_quotes_a_secret(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def say(_arguments: object) -> int:
        print("the system says", quotes(), {"a": PASS})
        logging.getLogger("hub").warning(quotes())
        raise SettingsError(quotes())

    monkeypatch.setitem(cli.COMMANDS, "status", cli.Command("say", say))
    assert cli.main(["status"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("the system says") and err and leaks(out + err) == []


def test_s02_a_new_token_is_masked_from_its_first_answer_on(
    database: Database, system: AwkwardRest, httpserver: HTTPServer
) -> None:
    fresh = f"{MARK}.second-token_0123456789"

    def token(_request: Request) -> Response:
        return answer({"access_token": fresh, "expires_in": 3600})

    httpserver.expect_request("/oauth/token").respond_with_handler(token)
    client = OAuth("awkward", RestOptions(url=system.url, client_id="hub", client_secret=SecretStr(CLIENT)))
    system.refuses = lambda id, record: answer({"message": f"Bearer {fresh} may not do this"}, 422)
    with pytest.raises(Reject) as caught:
        client.http.json("POST", "/contacts", json={})
    assert str(caught.value) == f"422: Bearer {MASK} may not do this"


# --- the body of a webhook ------------------------------------------------------------------------------


def test_s03_a_webhook_is_masked_and_its_body_as_received_is_for_admins_and_audited(
    hub: RestHub, system: AwkwardRest
) -> None:
    body = json.dumps({"id": "e1", "type": "x", "data": {"card_token": "tok-of-theirs", "name": "Ada"}}).encode()
    hub.conductor.store_webhook("awkward", body, _signed(body))
    app = app_of(hub)
    with hub.conductor.database.read() as connection:
        number = connection.scalar(sa.select(Inbox.id))
    for role in ("viewer", "operator", "admin"):
        client = app.test_client()
        log_in(client, f"{role}@example.com")
        page = client.get(f"/inbox/{number}").text
        assert "tok-of-theirs" not in page and MASK in page and "Ada" in page
        assert ("Show as received" in page) is (role == "admin")
        shown = client.post(f"/inbox/{number}/body", data={"csrf_token": csrf(client)})
        assert shown.status_code == (200 if role == "admin" else 403)
        assert ("tok-of-theirs" in shown.text) is (role == "admin")
        assert client.get(f"/inbox/{number}/body").status_code in (404, 405)
    with hub.conductor.database.read() as connection:
        audited = connection.execute(sa.select(AuditEntry.who).where(AuditEntry.action == "inbox.body")).scalars().all()
    assert audited == ["admin@example.com"]


def test_s02_the_texts_around_a_secret_stay_readable(hub: RestHub, system: AwkwardRest) -> None:
    system.refuses = lambda id, record: answer({"message": f"the name Ada is too short (login {PASS})"}, 422)
    add(hub, name="Ada")
    hub.run()
    with hub.conductor.database.read() as connection:
        letter = connection.execute(sa.select(DeadLetter.message, DeadLetter.payload)).one()
        delivery = connection.execute(sa.select(Delivery.reason, Delivery.response)).one()
        refused = connection.scalar(sa.select(sa.func.count(RefusedWebhook.id)))
    assert letter.message == delivery.reason == f"422: the name Ada is too short (login {MASK})"
    assert json.loads(delivery.response) == {"message": f"the name Ada is too short (login {MASK})"}
    assert letter.payload["name"] == "Ada" and refused == 0


def test_s02_a_csv_file_masks_what_was_stored_before_the_secret_was_known(hub: RestHub) -> None:
    late = f"{MARK}late-0123456789"
    with hub.conductor.database.write() as connection:
        values = {"subscriber": "awkward.customer", "record_id": "1", "direction": "out", "operation": "update"}
        connection.execute(sa.insert(Delivery).values(**values, outcome="failed", reason=f"login {late}"))
    remember("late", late)
    client = app_of(hub).test_client()
    log_in(client, "operator@example.com")
    rows = list(csv.DictReader(client.get("/deliveries/export.csv").text.splitlines()))
    assert [row["reason"] for row in rows] == [f"login {MASK}"]
