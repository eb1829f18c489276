"""The panel's endpoints for machines: webhooks, health, metrics."""

from __future__ import annotations

import gzip

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from models.ledger import Inbox, Process
from panel.app import create_app
from settings import Settings
from tests.support.panel import Panel, open_panel, signature


@pytest.fixture
def seeded() -> bool:
    return False


def _send(panel: Panel, body: bytes, system: str = "shop", sign: str | None = None) -> tuple[int, dict[str, str]]:
    headers = {"X-Shop-Signature": signature(body) if sign is None else sign, "Content-Type": "application/json"}
    answer = panel.app.test_client().post(f"/webhooks/{system}", data=body, headers=headers)
    assert answer.is_json
    return answer.status_code, answer.get_json()


def test_a_webhook_is_stored_then_acknowledged_and_a_second_one_is_known(panel: Panel) -> None:
    body = b'{"id": "evt_9",  "type": "customer.updated"}'
    assert _send(panel, body) == (202, {"status": "stored"})
    assert _send(panel, body) == (200, {"status": "duplicate"})
    stored = panel.rows(sa.select(Inbox.event_id, Inbox.body))
    assert [(row.event_id, row.body) for row in stored] == [("evt_9", body.decode())]


def test_a_bad_signature_stores_nothing(panel: Panel) -> None:
    status, said = _send(panel, b'{"id": "evt_9"}', sign="forged")
    assert status == 400 and "signature" in said["error"]
    assert not panel.rows(sa.select(Inbox.id))


def test_an_unreadable_body_is_refused_with_a_message(panel: Panel) -> None:
    status, said = _send(panel, b"not json")
    assert status == 400 and "cannot be read" in said["error"]


def test_an_unknown_system(panel: Panel, caplog: pytest.LogCaptureFixture) -> None:
    assert _send(panel, b"{}", system="nobody")[0] == 400
    assert "no system 'nobody' is connected" in caplog.text


def test_a_body_that_is_too_large(panel: Panel) -> None:
    status, said = _send(panel, b" " * (1024 * 1024 + 1))
    assert status == 413 and "too large" in said["error"]


def test_s04_a_compressed_webhook_is_never_unpacked(panel: Panel) -> None:
    status, said = _send(panel, gzip.compress(b'{"id": "evt_9"}' + b" " * 5_000_000))
    assert status == 400 and "cannot be read" in said["error"]
    assert not panel.rows(sa.select(Inbox.id))


def test_a_webhook_needs_no_session_and_sets_no_cookie(panel: Panel) -> None:
    answer = panel.app.test_client().post("/webhooks/shop", data=b"{}")
    assert "Set-Cookie" not in answer.headers


def test_healthz_says_that_the_process_lives_and_nothing_secret(panel: Panel) -> None:
    answer = panel.app.test_client().get("/healthz")
    assert answer.get_json() == {"status": "ok", "broker": "ok"}
    assert "Set-Cookie" not in answer.headers


def test_readyz_needs_no_login_and_leaves_nothing_behind(panel: Panel) -> None:
    before = panel.rows(sa.select(Process.name))
    answer = panel.app.test_client().get("/readyz")
    assert (answer.status_code, answer.get_json()) == (200, {"status": "ready", "broker": "ok", "capture": "intact"})
    assert "Set-Cookie" not in answer.headers
    assert panel.rows(sa.select(Process.name)) == before


def test_metrics_report_the_counts_of_the_ledger(sqlite_url: str) -> None:
    with open_panel(sqlite_url) as made:
        text = made.client("viewer").get("/metrics").text
    assert 'syncflow_dead_letters{subscriber="shop.customer"} 2.0' in text
    assert 'syncflow_owed_records{subscriber="crm.customer"} 0.0' in text
    assert 'syncflow_system_state{state="failing",system="shop"} 1.0' in text
    assert "syncflow_process_seen_seconds" in text


def test_a_scraper_shows_its_token(sqlite_url: str) -> None:
    class WithToken(Settings):
        metrics_token: SecretStr | None = SecretStr("a token to scrape with")

    with open_panel(sqlite_url, seeded=False) as made:
        client = create_app(made.conductor, WithToken(secret_key=SecretStr("k" * 32))).test_client()
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/metrics", headers={"Authorization": "Bearer a token to scrape with"}).status_code == 200
