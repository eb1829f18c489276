"""What the pages do: work off letters, pause, unsubscribe, map; stay fast; say nothing secret."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from models.base import utcnow
from models.catalogues import CATALOGUES, Customer
from models.ledger import (
    AuditEntry,
    Change,
    DeadLetter,
    Delivery,
    Inbox,
    Link,
    System,
    Unsubscription,
    UnsubscriptionRecord,
)
from panel.paging import PAGE, STRETCH
from panel.views.inbox import safe_headers
from panel.views.mappings import parse_default, parsed_row, show_default, shown_row
from panel.views.systems import MASK, mask
from panel.views.unsubscriptions import record_list
from subscribers.mapping import Field, Mapper, check_rows, rows
from tests.panel_world import TOKEN, WEBHOOK_SECRET, World, add_conflict, post, world


@pytest.fixture
def w(database_url: str) -> Iterator[World]:
    with world(database_url) as made:
        yield made


@pytest.fixture
def sqlite(sqlite_url: str) -> Iterator[World]:
    with world(sqlite_url) as made:
        yield made


def _letters(**values: Any) -> dict[str, Any]:
    return {
        "subscriber": "shop.customer",
        "error": "Retry",
        "fingerprint": "f",
        "message": "m",
        "at": utcnow(),
    } | values


# --- dead letters ------------------------------------------------------------------------------------


def test_retry_all_that_match_leaves_the_others_alone(w: World) -> None:
    with w.database.write() as connection:
        connection.execute(sa.insert(DeadLetter).values(**_letters(subscriber="crm.customer")))
    answer = post(w.client("operator"), "/dead-letters/retry", subscriber="shop.customer")
    assert answer.status_code == 303
    entry = w.rows(sa.select(AuditEntry.__table__).where(AuditEntry.action == "dead_letter.retry"))[0]
    assert entry.who == "operator@example.com"
    assert entry.details["count"] == 2


def test_retrying_everything_has_to_be_meant(w: World) -> None:
    client = w.client("operator")
    assert post(client, "/dead-letters/retry").status_code == 400
    assert post(client, "/dead-letters/retry", all="yes").status_code == 303


def test_a_discard_needs_a_reason(w: World) -> None:
    client = w.client("operator")
    post(client, "/dead-letters/discard", all="yes", reason=" ")
    assert w.rows(sa.select(DeadLetter.id).where(DeadLetter.closed_at.is_(None)))
    post(client, "/dead-letters/discard", all="yes", reason="they left")
    assert not w.rows(sa.select(DeadLetter.id).where(DeadLetter.closed_at.is_(None)))
    assert "they left" in client.get("/dead-letters/?state=closed").text


def test_letters_are_grouped_by_kind_with_counts(w: World) -> None:
    rows = [_letters(fingerprint=kind, message=f"kind {kind}") for kind in ("a", "a", "a", "b")]
    with w.database.write() as connection:
        connection.execute(sa.insert(DeadLetter), rows)
    page = w.client("viewer").get("/dead-letters/?subscriber=shop.customer&fingerprint=a").text
    assert page.count("kind a") == 1 + 3
    assert page.count("kind b") == 1
    assert "Retry all" not in page


# --- systems, unsubscriptions, mappings --------------------------------------------------------------


def test_pause_needs_a_reason_and_resume_follows(w: World) -> None:
    client = w.client("operator")
    post(client, "/systems/shop/pause", reason="")
    assert w.rows(sa.select(System.paused_at).where(System.name == "shop"))[0].paused_at is None
    post(client, "/systems/shop/pause", reason="their maintenance")
    row = w.rows(sa.select(System.__table__).where(System.name == "shop"))[0]
    assert (row.paused_by, row.pause_reason) == ("operator@example.com", "their maintenance")
    assert "their maintenance" in client.get("/").text
    post(client, "/systems/shop/resume")
    assert w.rows(sa.select(System.paused_at).where(System.name == "shop"))[0].paused_at is None
    assert post(client, "/systems/nobody/pause", reason="x").status_code == 404


def test_the_calls_that_are_left_are_shown(w: World) -> None:
    told = {"rate_remaining": 12, "rate_limit": 1000, "rate_seen_at": datetime(2026, 11, 22, 12, tzinfo=UTC)}
    with w.database.write() as c:
        c.execute(sa.update(System).where(System.name == "shop").values(**told))
    assert "12 of 1,000" in w.client("viewer").get("/systems/").text
    with w.database.write() as c:
        c.execute(sa.update(System).where(System.name == "shop").values(dict.fromkeys(told)))


def test_poll_now(w: World) -> None:
    post(w.client("operator"), "/systems/poll/shop.customer")
    assert ("poll shop.customer", []) in w.announcer.heard


def test_unsubscribing_some_records_and_lifting_it(w: World) -> None:
    client = w.client("operator")
    form = {"target": "shop.customer", "operation": "update", "scope": "records", "records": "1, 2;3\n3 4"}
    answer = post(client, "/unsubscriptions/", **form, until="2099-01-02T03:04", reason="an audit")
    assert answer.status_code == 303
    rule = w.rows(sa.select(Unsubscription.__table__).order_by(Unsubscription.id.desc()).limit(1))[0]
    assert (rule.operation, rule.listed_only, rule.reason) == ("update", True, "an audit")
    assert rule.until == datetime(2099, 1, 2, 3, 4, tzinfo=UTC)
    records = w.rows(sa.select(UnsubscriptionRecord.record_id).where(UnsubscriptionRecord.unsubscription_id == rule.id))
    assert {row.record_id for row in records} == {"1", "2", "3", "4"}
    post(client, f"/unsubscriptions/{rule.id}/lift")
    assert not w.rows(sa.select(Unsubscription.id).where(Unsubscription.id == rule.id))
    assert post(client, f"/unsubscriptions/{rule.id}/lift").status_code == 404


def test_lifting_brings_over_what_was_kept_back(w: World) -> None:
    post(w.client("operator"), "/unsubscriptions/1/lift", bring="yes")
    link = sa.select(Link.__table__).where(Link.subscriber == "crm.customer", Link.record_id == "2")
    row = w.rows(link)[0]
    assert row.owed_change > row.synced_change and row.unsubscription_id is None
    w.sync()
    assert w.rows(link)[0].external_id == "crm-2"


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"target": "nobody"}, "Choose a system"),
        ({"operation": "rename"}, "Choose what does not flow"),
        ({"scope": "records", "records": " ,"}, "List at least one record"),
        ({"until": "tomorrow"}, "no date and time"),
        ({"until": "2001-01-01T00:00"}, "lies in the past"),
        ({"reason": ""}, "Say why"),
    ],
)
def test_a_wrong_unsubscription_is_refused_and_what_was_typed_kept(
    sqlite: World, form: dict[str, str], words: str
) -> None:
    good = {"target": "shop", "operation": "", "scope": "all", "records": "77", "reason": "kept words"}
    answer = post(sqlite.client("operator"), "/unsubscriptions/", **(good | form))
    assert answer.status_code == 422
    assert words in answer.text
    assert form.get("reason", "kept words") in answer.text


def _mapping_form(*rows: tuple[str, str], version: int = 0, **more: str) -> dict[str, str]:
    form = {"version": str(version), "do": "save"} | more
    for number, (column, path) in enumerate(rows):
        form |= {f"{number}.column": column, f"{number}.path": path}
        form |= {f"{number}.direction": "both", f"{number}.conflict": "newest"}
    return form


def test_a_saved_mapping_is_in_force_at_once_and_goes_back(w: World) -> None:
    client = w.client("admin")
    assert post(client, "/mappings/shop.customer", **_mapping_form(("name", "title"))).status_code == 303
    assert [e.path for e in w.conductor.mapping("shop.customer")[0].fields.values()] == ["title"]
    post(client, "/mappings/shop.customer/default", version="1")
    assert set(w.conductor.mapping("shop.customer")[0].fields) == {"name", "email", "city", "active"}
    page = client.get("/mappings/shop.customer").text
    assert "Version 1: 1 field" in page and "Version 2: the code's default" in page


def test_the_form_carries_child_rows_along() -> None:
    field = {"description": "text", "unit_price": Field("each", "minor_units")}
    mapper = Mapper(CATALOGUES["invoice"], {"number": "n", "lines": rows("items", field, direction="out")})
    assert [parsed_row(shown_row(row)) for row in mapper.rows()] == mapper.rows()
    _, problems = check_rows([parsed_row({**shown_row(mapper.rows()[1]), "rows": "{no json"})], CATALOGUES["invoice"])
    assert "row 1: rows: Input should be a valid list" in problems[0]


def test_a_wrong_mapping_is_refused_with_its_problems(w: World) -> None:
    rows = [("name", "a"), ("nonsense", "b"), ("email", "not a path"), ("name", "a")]
    answer = post(w.client("admin"), "/mappings/shop.customer", **_mapping_form(*rows))
    assert answer.status_code == 422
    for words in ("row 2", "no column", "row 3", "no field name", "row 4", "mapped twice"):
        assert words in answer.text
    assert 'value="not a path"' in answer.text
    assert w.conductor.mapping("shop.customer")[1] == 0


def test_two_people_do_not_overwrite_each_other(w: World) -> None:
    one, other = w.client("admin"), w.client("admin")
    post(one, "/mappings/shop.customer", **_mapping_form(("name", "title")))
    answer = post(other, "/mappings/shop.customer", **_mapping_form(("name", "label")))
    assert answer.status_code == 409
    assert "Somebody saved another version" in answer.text and 'value="label"' in answer.text
    assert w.conductor.mapping("shop.customer")[1] == 1


@pytest.mark.parametrize("value", [None, "plain", "12", "true", 12, 1.5, True, False, '"quoted"', "[1]", "null"])
def test_defaults_survive_the_form(value: Any) -> None:
    assert parse_default(show_default(value)) == value


# --- finding and histories ---------------------------------------------------------------------------


def test_a_record_is_found_by_its_ids_its_email_and_how_its_name_begins(w: World) -> None:
    client = w.client("viewer")
    for text in ("1", "cus_1", "ada.lovelace@example.com", "ADA.lovelace", "ada love"):
        answer = client.get("/record/", query_string={"q": text})
        assert answer.headers.get("Location") == "/record/customer/1", text


def test_a_search_for_nonsense_finds_nothing(w: World) -> None:
    client = w.client("viewer")
    for text in ("", "zzz", "%", "_", "9" * 40, "1\N{DEVANAGARI DIGIT ONE}", "'; drop table", "\N{GRINNING FACE}"):
        assert "/record/customer" not in client.get("/record/", query_string={"q": text}).text, text


def test_what_is_not_there_is_a_calm_404(w: World) -> None:
    client = w.client("viewer")
    for page in ("links", "deliveries", "dead-letters", "inbox", "unsubscriptions"):
        for number in ("999", str(2**63), "9" * 30, "-1", "x", "%00"):
            assert client.get(f"/{page}/{number}").status_code in (400, 404), (page, number)


def test_odd_pages_of_a_history(w: World) -> None:
    client = w.client("viewer")
    for before in ("0", "-5", str(2**70), "x", "", "1"):
        for page in ("links", "deliveries", "changes", "inbox", "dead-letters", "unsubscriptions"):
            assert client.get(f"/{page}/", query_string={"before": before}).status_code == 200, (page, before)
    assert client.get("/deliveries/?record=a%00b").status_code == 400


def test_a_record_tells_its_story(w: World) -> None:
    page = w.client("viewer").get("/record/customer/4").text
    for words in ("Nobody One", "created here", "Nowhere is no city", "dead letter", "up to date"):
        assert words in page
    skipped = w.client("viewer").get("/record/customer/2").text
    assert "unsubscription #1" in skipped
    assert w.client("viewer").get("/record/customer/999").status_code == 404
    assert w.client("viewer").get("/record/nothing/1").status_code == 404


def _many_deliveries(w: World, count: int) -> None:
    row = {"subscriber": "shop.customer", "record_id": "1", "direction": "out", "operation": "update", "attempt": 1}
    rows = [row | {"outcome": "delivered", "at": utcnow()} for _ in range(count)]
    with w.database.write() as connection:
        connection.execute(sa.insert(Delivery), rows)


def test_a_history_is_paged_by_key_and_shows_each_row_once(w: World) -> None:
    _many_deliveries(w, 2 * PAGE)
    client, seen, path = w.client("viewer"), [], "/deliveries/"
    while path:
        page = client.get(path).text
        seen += [int(part.partition('"')[0]) for part in page.split('<th scope="row"><a href="/deliveries/')[1:]]
        _, found, rest = page.partition('rel="next" href="')
        path = rest.partition('"')[0].replace("&amp;", "&") if found else ""
    everything = [row.id for row in w.rows(sa.select(Delivery.id))]
    assert seen == sorted(everything, reverse=True)


def test_a_rare_value_is_looked_for_in_a_stretch_only(sqlite: World) -> None:
    with sqlite.database.write() as connection:
        connection.execute(sa.update(Delivery).values(outcome="failed"))
    _many_deliveries(sqlite, 1)
    with sqlite.database.write() as connection:
        last = connection.execute(sa.select(sa.func.max(Delivery.id))).scalar_one()
        connection.execute(sa.update(Delivery).where(Delivery.id == last).values(id=last + STRETCH))
    client = sqlite.client("viewer")
    page = client.get("/deliveries/?outcome=failed").text
    assert "newest 50,000 rows" in page and "No delivery found" in page
    older = page.partition('rel="next" href="')[2].partition('"')[0].replace("&amp;", "&")
    assert "No delivery found" not in client.get(older).text


def test_no_page_counts_or_skips_through_a_history(w: World) -> None:
    statements: list[tuple[str, Any]] = []
    sa.event.listen(w.database.engine, "before_cursor_execute", lambda *a: statements.append((a[2].lower(), a[3])))
    client = w.client("viewer")
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
        # SQLite's LIMIT is always written with an OFFSET: it is 0.
        assert " offset " not in statement or values[-1] == 0, statement
        if "count(" in statement and "audit_entry" not in statement:
            assert "limit" in statement or "dead_letter.closed_at is null" in statement, statement


# --- secrets, failures -------------------------------------------------------------------------------


def test_no_page_shows_a_secret(w: World) -> None:
    with w.database.write() as connection:
        headers = {"authorization": "Bearer header-nobody-may-see", "content-type": "application/json"}
        connection.execute(sa.update(Inbox).values(headers=headers))
    client = w.client("admin")
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


def test_html_in_what_came_in_stays_text(w: World) -> None:
    nasty = "<script>alert(1)</script>"
    values = _letters(message=nasty, payload={nasty: nasty}, fields={nasty: nasty}, traceback=nasty)
    with w.database.write() as connection:
        number = connection.execute(sa.insert(DeadLetter).values(**values).returning(DeadLetter.id)).scalar_one()
        connection.execute(sa.update(Inbox).values(body=nasty, result=nasty))
        connection.execute(
            sa.insert(Change).values(catalogue="customer", record_id=nasty, operation="updated", at=utcnow())
        )
    client = w.client("admin")
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
    sqlite: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = sqlite.client("viewer")

    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError(f"with a secret: {TOKEN}")

    monkeypatch.setattr(sqlite.conductor.throughput, "by_subscriber", broken)
    with caplog.at_level(logging.ERROR):
        answer = client.get("/")
    assert answer.status_code == 500
    assert TOKEN not in answer.text and "Traceback" not in answer.text
    error_id = answer.text.partition("<code>")[2].partition("</code>")[0]
    assert error_id and error_id in caplog.text


def test_without_a_database_pages_say_so(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path / 'here' / 'x.db'}"
    (tmp_path / "here").mkdir()
    with world(url) as made:
        client = made.client("admin")
        made.database.close()
        (tmp_path / "here").rename(tmp_path / "gone")
        for path in ("/", "/links/", "/users/"):
            answer = client.get(path)
            assert answer.status_code == 503
            assert "The database does not answer" in answer.text and "Traceback" not in answer.text
        assert client.get("/healthz").status_code == 503
        answer = client.post("/webhooks/shop", data=b"{}")
        assert answer.status_code == 503 and answer.is_json


def test_pages_stay_fast_with_a_long_history(sqlite: World) -> None:
    _many_deliveries(sqlite, 60_000)
    links = [
        {"subscriber": "shop.customer", "record_id": f"r{n}", "owed_change": 1, "synced_change": 1}
        for n in range(40_000)
    ]
    with sqlite.database.write() as connection:
        connection.execute(sa.insert(Link), links)
    client = sqlite.client("admin")
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
    # Far above what it takes (some 10 ms), far below what a scan of all would on a large history.
    assert {path: taken for path, taken in slow.items() if taken > 0.5} == {}


def test_record_lists() -> None:
    assert record_list("1, 2;3\n\n3\t4") == ["1", "2", "3", "4"]
    assert json.dumps(record_list("")) == "[]"


def test_a_conflict_is_shown_side_by_side_and_settled(w: World) -> None:
    number = add_conflict(w)
    client = w.client("operator")
    text = client.get("/conflicts/").text
    for value in ("ada@base.example", "ada@ours.example", "ada@theirs.example"):
        assert value in text
    assert "Take theirs" not in w.client("viewer").get("/conflicts/").text
    post(client, f"/conflicts/{number}/settle", choice="theirs")
    (row,) = w.rows(sa.select(Customer.email).where(Customer.id == 1))
    assert row.email == "ada@theirs.example"
    assert "No conflicts." in client.get("/conflicts/").text
    assert "operator@example.com" in client.get("/conflicts/?state=settled").text
    again = post(client, f"/conflicts/{number}/settle", choice="theirs", back="/conflicts/")
    assert "no open conflict" in client.get(again.headers["Location"]).text
    assert post(client, f"/conflicts/{number}/settle", choice="neither").status_code == 400
    assert post(client, "/conflicts/99999/settle", choice="ours").status_code == 404


def test_a_system_the_guard_paused_asks_whether_the_deletes_are_meant(w: World) -> None:
    with w.database.write() as connection:
        w.conductor.guard.trip(connection, "shop", "to")
    client = w.client("operator")
    assert "the deletes are meant" in client.get("/systems/").text
    post(client, "/systems/shop/resume", deletes="yes")
    (row,) = w.rows(sa.select(System.paused_at, System.deletes_allowed_until).where(System.name == "shop"))
    assert row.paused_at is None and row.deletes_allowed_until > utcnow()
    assert "the deletes are meant" not in client.get("/systems/").text
