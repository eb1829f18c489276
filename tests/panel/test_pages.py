"""The pages: process dead letters, pause, unsubscribe, map; they stay fast and show no secrets."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from conductor.links import lost
from conductor.links.row import link_row
from conductor.reports.pages import PAGE, STRETCH
from models.base import utcnow
from models.ledger import (
    AuditEntry,
    Change,
    DeadLetter,
    Delivery,
    Inbox,
    Link,
    System,
)
from panel.views.systems import mask
from redaction import MASK, safe_headers
from tests.support.panel import TOKEN, WEBHOOK_SECRET, Panel, open_panel, post


def _letters(**values: Any) -> dict[str, Any]:
    return {
        "subscriber": "shop.customer",
        "error": "Retry",
        "fingerprint": "f",
        "message": "m",
        "at": utcnow(),
    } | values


# --- dead letters ------------------------------------------------------------------------------------


def test_retry_all_that_match_leaves_the_others_alone(panel: Panel) -> None:
    with panel.database.write() as connection:
        connection.execute(sa.insert(DeadLetter).values(**_letters(subscriber="crm.customer")))
    answer = post(panel.client("operator"), "/dead-letters/retry", subscriber="shop.customer")
    assert answer.status_code == 303
    entry = panel.rows(sa.select(AuditEntry.__table__).where(AuditEntry.action == "task.start"))[0]
    assert entry.who == "operator@example.com"
    assert entry.details["argument"] == {"subscriber": "shop.customer"} and entry.details["total"] == 2


def test_retrying_everything_has_to_be_meant(panel: Panel) -> None:
    client = panel.client("operator")
    assert post(client, "/dead-letters/retry").status_code == 400
    assert post(client, "/dead-letters/retry", all="yes").status_code == 303


def test_a_discard_needs_a_reason(panel: Panel) -> None:
    client = panel.client("operator")
    post(client, "/dead-letters/discard", all="yes", reason=" ")
    assert panel.rows(sa.select(DeadLetter.id).where(DeadLetter.closed_at.is_(None)))
    # Discarding all must be explicit.
    assert post(client, "/dead-letters/discard", reason="they left").status_code == 400
    assert not panel.conductor.tasks.list()
    post(client, "/dead-letters/discard", all="yes", reason="they left")
    assert "Discard dead letters" in client.get("/dead-letters/").text
    while panel.conductor.tasks.run_some():
        pass
    assert "discarded: they left" in client.get("/dead-letters/").text
    assert not panel.rows(sa.select(DeadLetter.id).where(DeadLetter.closed_at.is_(None)))
    assert "they left" in client.get("/dead-letters/?state=closed").text


def test_letters_are_grouped_by_kind_with_counts(panel: Panel) -> None:
    rows = [_letters(fingerprint=kind, message=f"kind {kind}") for kind in ("a", "a", "a", "b")]
    with panel.database.write() as connection:
        connection.execute(sa.insert(DeadLetter), rows)
    page = panel.client("viewer").get("/dead-letters/?subscriber=shop.customer&fingerprint=a").text
    assert page.count("kind a") == 1 + 3
    assert page.count("kind b") == 0
    assert "Retry all" not in page
    everything = panel.client("operator").get("/dead-letters/").text
    assert "3 kinds of error, 6 dead letters" in everything and "Retry all 3" in everything
    # With only one kind, one button is enough.
    one_kind = panel.client("operator").get("/dead-letters/?error=Reject").text
    assert "1 kind of error, 2 dead letters" in one_kind
    assert one_kind.count(">Retry all 2 that match<") == 1 and ">Retry all 2<" not in one_kind


# --- systems -----------------------------------------------------------------------------------------


def test_pause_needs_a_reason_and_resume_follows(panel: Panel) -> None:
    client = panel.client("operator")
    post(client, "/systems/shop/pause", reason="")
    assert panel.rows(sa.select(System.paused_at).where(System.name == "shop"))[0].paused_at is None
    post(client, "/systems/shop/pause", reason="their maintenance")
    row = panel.rows(sa.select(System.__table__).where(System.name == "shop"))[0]
    assert (row.paused_by, row.pause_reason) == ("operator@example.com", "their maintenance")
    assert "their maintenance" in client.get("/").text
    post(client, "/systems/shop/resume")
    assert panel.rows(sa.select(System.paused_at).where(System.name == "shop"))[0].paused_at is None
    assert post(client, "/systems/nobody/pause", reason="x").status_code == 404


def test_the_calls_that_are_left_are_shown(panel: Panel) -> None:
    rate = {"rate_remaining": 12, "rate_limit": 1000, "rate_seen_at": datetime(2026, 11, 22, 12, tzinfo=UTC)}
    with panel.database.write() as c:
        c.execute(sa.update(System).where(System.name == "shop").values(**rate))
    assert "12 of 1,000" in panel.client("viewer").get("/systems/").text
    with panel.database.write() as c:
        c.execute(sa.update(System).where(System.name == "shop").values(dict.fromkeys(rate)))


def test_poll_now(panel: Panel) -> None:
    post(panel.client("operator"), "/systems/poll/shop.customer")
    assert ("poll shop.customer", []) in panel.publisher.published


# --- search and histories ----------------------------------------------------------------------------


def test_a_record_is_found_by_its_ids_its_email_and_how_its_name_begins(panel: Panel) -> None:
    client = panel.client("viewer")
    for text in ("1", "cus_1", "ada.lovelace@example.com", "ADA.lovelace", "ada love"):
        answer = client.get("/record/", query_string={"q": text})
        assert answer.headers.get("Location") == "/record/customer/1", text


def test_a_search_for_nonsense_finds_nothing(panel: Panel) -> None:
    client = panel.client("viewer")
    for text in ("", "zzz", "%", "_", "9" * 40, "1\N{DEVANAGARI DIGIT ONE}", "'; drop table", "\N{GRINNING FACE}"):
        assert "/record/customer" not in client.get("/record/", query_string={"q": text}).text, text


def test_a_missing_row_answers_404(panel: Panel) -> None:
    client = panel.client("viewer")
    for page in ("links", "deliveries", "dead-letters", "inbox", "unsubscriptions"):
        for number in ("999", str(2**31), str(2**63), "9" * 30, "-1", "x", "²", "%00"):
            assert client.get(f"/{page}/{number}").status_code in (400, 404), (page, number)
    for version in ("999", str(2**31), "9" * 30, "-1", "²"):
        for path in ("?from={}", "/versions/{}"):
            assert client.get(f"/mappings/crm.customer{path.format(version)}").status_code == 404, (path, version)


def test_invalid_numbers_in_a_form_are_refused(panel: Panel) -> None:
    client = panel.client("admin")
    for number in (str(2**31), str(2**63), "9" * 20, "²", "-1"):
        assert post(client, f"/users/{number}/role", role="viewer").status_code == 404, number
        for path, form in (("/dead-letters/retry", "id"), ("/conflicts/resolve", "number")):
            answer = post(client, path, all="ours", **{form: number})
            assert answer.status_code in (303, 400, 404), (path, number)
    assert panel.rows(sa.select(DeadLetter.id).where(DeadLetter.closed_at.is_not(None))) == []


def test_older_tasks_are_on_pages_too(panel: Panel) -> None:
    for _ in range(PAGE + 1):
        panel.conductor.tasks.start("check", "ann", system="shop")
        panel.conductor.tasks.stop(panel.conductor.tasks.list(limit=1)[0].id, "ann")
    client = panel.client("viewer")
    first = client.get("/tasks/").text
    assert 'href="/tasks/1"' not in first and 'rel="next"' in first
    older = first.partition('rel="next" href="')[2].partition('"')[0]
    assert 'href="/tasks/1"' in client.get(older).text


def test_invalid_page_parameters_of_a_history(panel: Panel) -> None:
    client = panel.client("viewer")
    for before in ("0", "-5", str(2**31), str(2**70), "²", "x", "", "1"):
        for page in (
            "links",
            "deliveries",
            "changes",
            "inbox",
            "dead-letters",
            "unsubscriptions",
            "tasks",
            "conflicts",
        ):
            assert client.get(f"/{page}/", query_string={"before": before}).status_code == 200, (page, before)
    assert client.get("/deliveries/?record=a%00b").status_code == 400


def test_a_record_page_shows_the_history(panel: Panel) -> None:
    page = panel.client("viewer").get("/record/customer/4").text
    for words in ("Nobody One", "Created in the database", "Nowhere is no city", "dead letter", "up to date"):
        assert words in page
    skipped = panel.client("viewer").get("/record/customer/2").text
    assert "unsubscription #1" in skipped
    assert panel.client("viewer").get("/record/customer/999").status_code == 404
    assert panel.client("viewer").get("/record/nothing/1").status_code == 404


def _many_deliveries(panel: Panel, count: int) -> None:
    row = {"subscriber": "shop.customer", "record_id": "1", "direction": "out", "operation": "update", "attempt": 1}
    rows = [row | {"outcome": "delivered", "at": utcnow()} for _ in range(count)]
    with panel.database.write() as connection:
        connection.execute(sa.insert(Delivery), rows)


def test_a_history_is_paged_by_key_and_shows_each_row_once(panel: Panel) -> None:
    _many_deliveries(panel, 2 * PAGE)
    client, seen, path = panel.client("viewer"), [], "/deliveries/"
    while path:
        page = client.get(path).text
        seen += [int(part.partition('"')[0]) for part in page.split('<th scope="row"><a href="/deliveries/')[1:]]
        _, found, rest = page.partition('rel="next" href="')
        path = rest.partition('"')[0].replace("&amp;", "&") if found else ""
    everything = [row.id for row in panel.rows(sa.select(Delivery.id))]
    assert seen == sorted(everything, reverse=True)


def test_a_rare_value_is_searched_in_a_limited_range(sqlite_panel: Panel) -> None:
    with sqlite_panel.database.write() as connection:
        connection.execute(sa.update(Delivery).values(outcome="failed"))
    _many_deliveries(sqlite_panel, 1)
    with sqlite_panel.database.write() as connection:
        last = connection.execute(sa.select(sa.func.max(Delivery.id))).scalar_one()
        connection.execute(sa.update(Delivery).where(Delivery.id == last).values(id=last + STRETCH))
    client = sqlite_panel.client("viewer")
    page = client.get("/deliveries/?outcome=failed").text
    assert "newest 50,000 rows" in page and "No delivery found" in page
    older = page.partition('rel="next" href="')[2].partition('"')[0].replace("&amp;", "&")
    assert "No delivery found" not in client.get(older).text


def test_no_page_counts_or_skips_through_a_history(panel: Panel) -> None:
    statements: list[tuple[str, Any]] = []
    sa.event.listen(panel.database.engine, "before_cursor_execute", lambda *a: statements.append((a[2].lower(), a[3])))
    client = panel.client("viewer")
    for page in (
        "",
        "links/",
        "links/?state=owed",
        "deliveries/?outcome=failed",
        "changes/?catalogue=customer",
        "inbox/?system=shop",
    ):
        client.get(f"/{page}")
    for statement, values in statements:
        # For SQLite, every LIMIT is written with an OFFSET: each must be 0.
        before = statement.split(" offset ")[:-1]
        places = [" offset ".join(before[: n + 1]).count("?") for n in range(len(before))]
        assert all(values[place] == 0 for place in places), statement
        if "count(" in statement and "audit_entry" not in statement:
            assert "limit" in statement or "dead_letter.closed_at is null" in statement, statement


# --- secrets, failures -------------------------------------------------------------------------------


def test_no_page_shows_a_secret(panel: Panel) -> None:
    with panel.database.write() as connection:
        headers = {"authorization": "Bearer header-nobody-may-see", "content-type": "application/json"}
        connection.execute(sa.update(Inbox).values(headers=headers))
    client = panel.client("admin")
    for path in ("/", "/systems/", "/mappings/", "/inbox/1", "/audit/", "/users/", "/metrics"):
        page = client.get(path).text
        assert "nobody-may-see" not in page, path
        assert "argon2" not in page, path
    assert MASK in client.get("/systems/").text


def test_masking() -> None:
    assert mask("token", TOKEN) == mask("webhook_secret", WEBHOOK_SECRET) == MASK
    assert mask("token", "") == "not set"
    assert mask("url", "https://me:pw@host/x") == f"https://{MASK}@host/x"
    assert mask("paths", {"password": "x", "region": "eu"}) == f"password: {MASK}, region: eu"
    assert safe_headers({"X-Signature": "abc", "Cookie": "c", "Accept": "*/*"}) == {
        "X-Signature": MASK,
        "Cookie": MASK,
        "Accept": "*/*",
    }


def test_html_in_received_values_stays_text(panel: Panel) -> None:
    nasty = "<script>alert(1)</script>"
    values = _letters(message=nasty, payload={nasty: nasty}, fields={nasty: nasty}, traceback=nasty)
    with panel.database.write() as connection:
        number = connection.execute(sa.insert(DeadLetter).values(**values).returning(DeadLetter.id)).scalar_one()
        connection.execute(sa.update(Inbox).values(body=nasty, result=nasty))
        connection.execute(
            sa.insert(Change).values(catalogue="customer", record_id=nasty, operation="updated", at=utcnow())
        )
    client = panel.client("admin")
    for path in (
        f"/dead-letters/{number}",
        "/dead-letters/",
        "/inbox/",
        "/inbox/1",
        "/changes/",
        f"/record/?q={nasty}",
    ):
        page = client.get(path)
        assert page.status_code == 200
        assert "<script>alert" not in page.text


def test_a_failing_page_is_calm_and_its_id_is_in_the_log(
    sqlite_panel: Panel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = sqlite_panel.client("viewer")

    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError(f"with a secret: {TOKEN}")

    monkeypatch.setattr(sqlite_panel.conductor.reports, "queues", broken)
    with caplog.at_level(logging.ERROR):
        answer = client.get("/queues/")
    assert answer.status_code == 500
    assert TOKEN not in answer.text and "Traceback" not in answer.text
    error_id = answer.text.partition("<code>")[2].partition("</code>")[0]
    assert error_id and error_id in caplog.text


def test_without_a_database_pages_say_so(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path / 'here' / 'x.db'}"
    (tmp_path / "here").mkdir()
    with open_panel(url) as made:
        client = made.client("admin")
        made.database.close()
        (tmp_path / "here").rename(tmp_path / "gone")
        for path in ("/", "/links/", "/users/"):
            answer = client.get(path)
            assert answer.status_code == 503
            assert "The database is not responding" in answer.text and "Traceback" not in answer.text
        probe = made.app.test_client()
        assert (probe.get("/healthz").status_code, probe.get("/readyz").status_code) == (200, 503)
        answer = client.post("/webhooks/shop", data=b"{}")
        assert answer.status_code == 503 and answer.is_json


def test_pages_stay_fast_with_a_long_history(sqlite_panel: Panel) -> None:
    _many_deliveries(sqlite_panel, 60_000)
    links = [
        {"subscriber": "shop.customer", "record_id": f"r{n}", "owed_change": 1, "synced_change": 1}
        for n in range(40_000)
    ]
    with sqlite_panel.database.write() as connection:
        connection.execute(sa.insert(Link), links)
    client = sqlite_panel.client("admin")
    slow = {}
    for path in (
        "/",
        "/links/",
        "/links/?state=owed",
        "/deliveries/",
        "/deliveries/?outcome=failed",
        "/record/customer/1",
    ):
        client.get(path)
        began = time.perf_counter()
        client.get(path)
        slow[path] = time.perf_counter() - began
    # Far above the usual time (about 10 ms), far below that of a full scan of a large history.
    assert {path: taken for path, taken in slow.items() if taken > 0.5} == {}


def test_a_system_offers_to_link_what_it_has_lost(panel: Panel) -> None:
    client = panel.client("operator")
    assert "Link 1 lost record again" not in client.get("/systems/").text
    (link,) = panel.rows(sa.select(Link.__table__).where(Link.subscriber == "shop.customer").limit(1))
    with panel.database.write() as connection:
        lost.remember(connection, "shop", link_row(link), utcnow())
        panel.conductor.guard.pause(connection, "shop", "from")
    assert "Link 1 lost record again" in client.get("/systems/").text
    assert "is this the right account?" in client.get("/systems/").text
    post(client, "/systems/shop/relink")
    assert panel.rows(sa.select(System.paused_at).where(System.name == "shop")) == [(None,)]
    (audit,) = panel.rows(sa.select(AuditEntry.who, AuditEntry.target).where(AuditEntry.action == "system.relink"))
    assert audit == ("operator@example.com", "shop")


def test_another_account_is_accepted_with_or_without_the_links(panel: Panel) -> None:
    shop = System.name == "shop"
    client = panel.client("operator")
    assert "This is the right account now" not in client.get("/systems/").text
    for links, known in (("", True), ("unlink", False)):
        with panel.database.write() as connection:
            connection.execute(sa.update(System).where(shop).values(account="a", other_account="b", paused_at=utcnow()))
        assert "The login leads to b." in client.get("/systems/").text
        post(client, "/systems/shop/account", links=links)
        assert panel.rows(sa.select(System.account, System.other_account, System.paused_at).where(shop)) == [
            ("b", None, None)
        ]
        linked = sa.select(Link.id).where(Link.subscriber == "shop.customer", Link.external_id.is_not(None))
        assert bool(panel.rows(linked)) is known


def test_a_dead_letter_about_an_id_has_two_answers(panel: Panel) -> None:
    (link,) = panel.rows(sa.select(Link.__table__).where(Link.subscriber == "shop.customer").limit(1))
    asks = _letters(code="reused_id", subscriber=link.subscriber, record_id=link.record_id, link_id=None)
    with panel.database.write() as connection:
        number = connection.execute(sa.insert(DeadLetter).values(**asks).returning(DeadLetter.id)).scalar_one()
    client = panel.client("operator")
    page = client.get(f"/dead-letters/{number}").text
    assert "Same record" in page and "Another record" in page
    post(client, f"/dead-letters/{number}/decide", same="yes")
    page = client.get(f"/dead-letters/{number}").text
    assert "the same record, says operator@example.com" in page and "Another record" not in page


def test_a_system_the_guard_paused_asks_whether_the_deletes_are_meant(panel: Panel) -> None:
    with panel.database.write() as connection:
        panel.conductor.guard.pause(connection, "shop", "to")
    client = panel.client("operator")
    assert "Resume and allow deletions" in client.get("/systems/").text
    post(client, "/systems/shop/resume", deletes="yes")
    (row,) = panel.rows(sa.select(System.paused_at, System.deletes_allowed_until).where(System.name == "shop"))
    assert row.paused_at is None and row.deletes_allowed_until > utcnow()
    assert "Resume and allow deletions" not in client.get("/systems/").text
