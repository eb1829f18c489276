"""The record page, dead letters, webhooks and downloads: what an operator sees and does to fix a record."""

from __future__ import annotations

import csv
import json
import re
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from conductor.dead_letters.store import fingerprint
from conductor.inward.webhooks import KEPT_REFUSED
from conductor.reports import pages, record_status, timeline
from models import search
from models.base import utcnow
from models.catalogues import CATALOGUES, Customer
from models.ledger import AuditEntry, DeadLetter, Delivery, Inbox, Link, RefusedWebhook, System, Task
from panel.rendering.csv_export import cell
from redaction import LONGEST_RESPONSE, MASK, hide_in, remember_values, response_text, safe_headers
from subscribers.errors import BadSignature, Reject
from tests.support.panel import TOKEN, WEBHOOK_SECRET, Panel, ShopOptions, post, signature


def change(panel: Panel, table: Any, where: Any, **values: Any) -> None:
    with panel.database.write() as connection:
        connection.execute(sa.update(table).where(where).values(**values))


def page(panel: Panel, path: str, role: str = "operator") -> str:
    """Return the text of a page, without its tags."""
    answer = panel.client(role).get(path)
    assert answer.status_code == 200, path
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", answer.text))


def work_off(panel: Panel) -> None:
    """Do what the scheduler and the workers do, until no task is running or stopping."""
    for _ in range(50):
        panel.conductor.tasks.run_some()
        with panel.database.write() as connection:
            connection.execute(sa.update(Task).values(lease_until=None))
        panel.conductor.sweep()
        panel.sync()
        for row in panel.rows(sa.select(Inbox.id).where(Inbox.state == "waiting")):
            panel.conductor.receive(row.id)
        if not panel.rows(sa.select(Task.id).where(Task.state.in_(("running", "stopping")))):
            return
    raise AssertionError("a task does not end")


# --- the status of a record ---------------------------------------------------------------------------


def status_of(panel: Panel, record_id: str, subscriber: str) -> tuple[str, str]:
    with panel.database.read() as connection:
        found = record_status.record_statuses(panel.conductor.context, connection, "customer", record_id, exists=True)
    one = next(status for status in found if status.subscriber == subscriber)
    return one.word, "".join(part if isinstance(part, str) else "TIME" for part in one.sentence)


def test_each_record_status_has_a_sentence(panel: Panel) -> None:
    shop, crm = "shop.customer", "crm.customer"
    of = sa.and_(Link.record_id == "1", Link.subscriber == shop)
    assert status_of(panel, "1", shop) == ("up to date", "up to date since TIME")
    assert status_of(panel, "4", shop) == ("dead letter", "not sent since TIME: address.city: Nowhere is no city")
    assert status_of(panel, "2", crm) == ("skipped", "not sent: unsubscription #1 (billing freeze) holds it back")
    assert status_of(panel, "999", crm)[0] == "never sent"
    change(panel, Link, of, owed_change=Link.owed_change + 1, owed_since=utcnow())
    assert status_of(panel, "1", shop) == ("pending", "pending since TIME: waiting to be sent")
    retry = {"attempts": 2, "retry_at": utcnow()}
    change(panel, Link, of, **retry)
    assert status_of(panel, "1", shop)[1].startswith("attempt 2 of 8 failed, next at TIME")
    change(panel, System, System.name == "shop", down_since=utcnow(), down_reason="cannot connect", failures=3)
    assert status_of(panel, "1", shop) == (
        "waiting",
        "waiting: Shop has been down since TIME, 3 failed attempts not counted: cannot connect",
    )
    change(panel, System, System.name == "shop", paused_at=utcnow(), paused_by="me", pause_reason="moving")
    assert status_of(panel, "1", shop) == ("waiting", "waiting: Shop has been paused by me since TIME (moving)")
    other = panel.rows(sa.select(Link.id).where(Link.record_id == "3", Link.subscriber == shop))[0].id
    change(panel, System, System.name == "shop", paused_at=None, down_since=None)
    change(panel, Link, of, attempts=0, retry_at=None, blocked_by=other)
    assert status_of(panel, "1", shop)[1] == "waiting for customer 3, which must be in Shop first"
    change(panel, Link, of, blocked_by=None, synced_change=Link.owed_change, open_conflicts=2)
    assert status_of(panel, "1", shop) == ("conflict", "2 fields wait for a decision; all other fields are up to date")
    change(panel, Link, of, open_conflicts=0, unlinked_at=utcnow(), deleted_remotely=True)
    assert status_of(panel, "1", shop) == ("unlinked", "deleted in Shop at TIME; later changes are not sent")
    panel.conductor.unsubscriptions.lift(1, "me")
    panel.conductor.push("customer", "3")
    assert (
        status_of(panel, "3", crm)[1] == "changed in the database at TIME; the relay has not processed the change yet"
    )


def test_after_a_lifted_rule_the_status_promises_the_next_change(panel: Panel) -> None:
    change(panel, Link, sa.and_(Link.record_id == "1", Link.subscriber == "crm.customer"), unsubscription_id=77)
    words = "not sent: unsubscription #77 covered it and has ended; the next change will be sent"
    assert status_of(panel, "1", "crm.customer") == ("skipped", words)


# --- the history of a record --------------------------------------------------------------------------


def test_a_timeline_shows_the_payload_the_response_and_the_values_before(panel: Panel) -> None:
    change(panel, Customer, Customer.id == 1, city="Bath")
    panel.sync()
    text = page(panel, "/record/customer/1")
    for words in ("Created in the database", "Created in Shop", "Updated in the database", "Sent to Shop"):
        assert words in text
    assert "address.city London &rarr; Bath" in text or "address.city London → Bath" in text
    sent = panel.rows(
        sa.select(Delivery.response).where(Delivery.subscriber == "shop.customer", Delivery.record_id == "1")
    )
    assert json.loads(sent[-1].response)["address"] == {"city": "Bath"}
    assert "Nothing to send" not in text or "1 routine event: nothing to send" in text


def test_routine_events_are_folded_and_equal_failures_share_a_line(panel: Panel) -> None:
    row: dict[str, Any] = {"subscriber": "shop.customer", "record_id": "1", "operation": "update"}
    row["at"] = utcnow() + timedelta(1)
    failed = row | {"direction": "out", "outcome": "failed", "reason": "no response in time", "error": "Retry"}
    with panel.database.write() as connection:
        connection.execute(sa.insert(Delivery), [row | {"direction": "in", "outcome": "echo"}] * 3)
        connection.execute(sa.insert(Delivery), [failed | {"at": row["at"] + timedelta(1)}] * 4)
    text = page(panel, "/record/customer/1")
    assert "3 routine events: echo from Shop (3)" in text
    assert text.count("Attempt to send to Shop failed") == 1 and "4 times since" in text


def test_every_row_of_a_long_timeline_is_on_exactly_one_page(panel: Panel) -> None:
    rows = [
        {
            "subscriber": f"{('shop', 'crm')[n % 2]}.customer",
            "record_id": "3",
            "direction": "out",
            "operation": "update",
        }
        | {"outcome": "delivered", "reason": f"row {n}", "at": utcnow() + timedelta(seconds=n)}
        for n in range(150)
    ]
    with panel.database.write() as connection:
        connection.execute(sa.insert(Delivery), rows)
    seen: list[int] = []
    before: str | None = None
    for _ in range(10):
        with panel.database.read() as connection:
            found = timeline.timeline(connection, "customer", ["shop.customer", "crm.customer"], "3", before)
        moments = [m for e in found.entries for m in (e if isinstance(e, list) else [e, *e.again])]
        seen += [moment.row.id for moment in moments if moment.kind == "out"]
        before = found.older
        if before is None:
            break
    of = sa.select(Delivery.id).where(Delivery.record_id == "3", Delivery.direction == "out")
    assert sorted(seen) == sorted(row.id for row in panel.rows(of))
    for odd in ("x", "1-x", "0-0", "-", "9" * 40 + "-1"):
        assert panel.client("viewer").get("/record/customer/3", query_string={"before": odd}).status_code == 200


def test_finding_by_any_word(panel: Panel) -> None:
    client = panel.client("viewer")
    # Without its index, the search matches only beginnings.
    assert client.get("/record/?q=love").headers.get("Location") is None
    with panel.database.write() as connection:
        search.install(connection, [CATALOGUES["customer"]])
    for text in ("love", "LOVELACE", "ada lov", "lovelace@example.com ada"):
        assert client.get("/record/", query_string={"q": text}).headers.get("Location") == "/record/customer/1", text


# --- editing and syncing ------------------------------------------------------------------------------


def test_an_edit_is_delivered_closes_the_dead_letter_and_is_audited(panel: Panel) -> None:
    client = panel.client("operator")
    form = client.get("/record/customer/4/edit").text
    assert "Shop: Nowhere is no city" in form
    post(
        client, "/record/customer/4/edit", **{"was.city": "Nowhere", "to.city": "Bath", "was.name": "x", "to.name": "x"}
    )
    entry = panel.rows(sa.select(AuditEntry.__table__).where(AuditEntry.action == "record.edit"))[0]
    assert (entry.who, entry.details) == (
        "operator@example.com",
        {"before": {"city": "Nowhere"}, "after": {"city": "Bath"}},
    )
    panel.sync()
    assert status_of(panel, "4", "shop.customer")[0] == "up to date"
    assert panel.rows(sa.select(DeadLetter.resolution).where(DeadLetter.record_id == "4"))[0].resolution == "delivered"


def test_a_wrong_or_outdated_edit_saves_nothing(panel: Panel) -> None:
    client = panel.client("operator")
    answer = post(client, "/record/customer/1/edit", **{"was.city": "London", "to.city": "x" * 101, "to.email": "new"})
    assert answer.status_code == 422 and "101 characters, but city allows 100" in answer.text and "new" in answer.text
    post(client, "/record/customer/1/edit", **{"was.name": "Ada Lovelace", "to.name": "", "to.id": "7"})
    assert panel.rows(sa.select(Customer.name, Customer.city).where(Customer.id == 1)) == [("Ada Lovelace", "London")]
    assert client.get("/record/customer/77/edit").status_code == 404


def test_an_edit_of_a_record_changed_in_the_meantime_keeps_the_input(panel: Panel) -> None:
    client, path = panel.client("operator"), "/record/customer/1/edit"
    seen = {"was.city": "London", "was.notes": ""}
    post(client, path, **seen, **{"to.city": "Paris", "to.notes": ""})
    answer = post(client, path, **seen, **{"to.city": "Bath", "to.notes": "a long story"})
    assert answer.status_code == 409 and "city changed in the meantime" in answer.text
    assert "changed in the meantime to: Paris" in answer.text
    form = dict(re.findall(r'name="((?:was|to)\.city)" value="([^"]*)"', answer.text))
    assert form == {"was.city": "Paris", "to.city": "Bath"} and ">a long story</textarea>" in answer.text
    now = sa.select(Customer.city, Customer.notes).where(Customer.id == 1)
    assert panel.rows(now) == [("Paris", None)]
    # The user has now seen the other change: saving again overwrites it on purpose.
    post(client, path, **{"was.notes": "", "to.notes": "a long story"}, **form)
    assert panel.rows(now) == [("Bath", "a long story")]


def test_sync_now_is_as_if_the_record_had_changed(panel: Panel) -> None:
    change(panel, Link, sa.and_(Link.record_id == "2", Link.subscriber == "crm.customer"), unsubscription_id=None)
    panel.conductor.unsubscriptions.lift(1, "me")
    post(panel.client("operator"), "/record/customer/2/push")
    panel.sync()
    assert status_of(panel, "2", "crm.customer")[0] == "up to date"


# --- dead letters -------------------------------------------------------------------------------------


def test_all_matching_dead_letters_are_retried_by_a_task_with_counts(panel: Panel) -> None:
    change(panel, Customer, Customer.id == 4, notes="so that the trigger does not fix it")
    panel.sync()
    client = panel.client("operator")
    group = panel.rows(sa.select(DeadLetter.fingerprint).where(DeadLetter.record_id == "4"))[0].fingerprint
    answer = post(client, "/dead-letters/retry", subscriber="shop.customer", fingerprint=group, back="/dead-letters/")
    assert "2 dead letters will be retried in the background." in client.get(answer.headers["Location"]).text
    with panel.database.write() as connection:  # as after fixing a mapping: no change is captured
        connection.exec_driver_sql("DELETE FROM change WHERE relayed_at IS NULL")
    work_off(panel)
    task = panel.rows(sa.select(Task.__table__))[0]
    assert (task.state, task.total, task.done, task.succeeded, task.failed) == ("done", 2, 2, 0, 2)
    assert "0 of 2 succeeded, 2 failed again" in page(panel, "/dead-letters/")


def test_one_is_tried_and_its_page_shown(panel: Panel) -> None:
    answer = post(panel.client("operator"), "/dead-letters/try-one", subscriber="shop.customer")
    newest = panel.rows(sa.select(DeadLetter.id, DeadLetter.record_id).order_by(DeadLetter.id.desc()))[0]
    assert answer.headers["Location"] == f"/dead-letters/{newest.id}"
    retried = panel.rows(sa.select(Link.record_id).where(Link.dead_letter_id.is_not(None), Link.dead_at.is_(None)))
    assert [row.record_id for row in retried] == [newest.record_id]


def test_errors_that_differ_in_values_only_have_one_fingerprint() -> None:
    def of(text: str, **payload: Any) -> str:
        return fingerprint(Reject(text), payload)

    assert of("no such city: Atlantis", city="Atlantis") == of("no such city: El Dorado", city="El Dorado")
    assert of("'a' is wrong in 17") == of("“b” is wrong in 4711x") == of("`c` is wrong in cus_9Q")
    assert of("email ada@x.example is taken") == of("email bob@y.example is taken")
    assert of("phone is wrong") != of("email is wrong")
    assert of("phone is wrong", name="on") == of("phone is wrong")


def send(panel: Panel, number: int, name: str) -> int:
    body = json.dumps({"id": f"evt_{number}", "type": "customer.updated", "name": name}).encode()
    panel.conductor.store_webhook("shop", body, {"x-shop-signature": signature(body), "x-request-id": "r1"})
    return int(panel.rows(sa.select(sa.func.max(Inbox.id)))[0][0])


def test_a_webhook_shows_its_headers_without_what_is_secret(panel: Panel) -> None:
    text = page(panel, f"/inbox/{send(panel, 2, 'Ada')}")
    assert "verified" in text and "x-request-idr1" in text and MASK in text
    assert WEBHOOK_SECRET not in text and signature(b"") not in text


def test_refused_webhooks_leave_a_bounded_trace_without_secrets(panel: Panel) -> None:
    body = json.dumps({"id": "evt_x", "api_key": "sk_nobody", "note": f"token {TOKEN}", "data": "y" * 5000}).encode()
    for number in range(KEPT_REFUSED + 3):
        with pytest.raises(BadSignature):
            panel.conductor.store_webhook("shop", body, {"X-Shop-Signature": f"bad{number}", "Cookie": "c=1"})
    rows = panel.rows(sa.select(RefusedWebhook.__table__))
    assert len(rows) == KEPT_REFUSED
    assert all(len(row.body) <= 500 and "sk_nobody" not in row.body and TOKEN not in row.body for row in rows)
    text = page(panel, "/inbox/refused", "viewer")
    assert "does not match the body" in text and "bad1" not in text and "c=1" not in text
    assert panel.rows(sa.select(System.webhooks_rejected).where(System.name == "shop"))[0][0] == KEPT_REFUSED + 3


def test_one_event_or_a_period_is_replayed(panel: Panel) -> None:
    number = send(panel, 2, "Ada")
    panel.conductor.receive(number)
    client = panel.client("operator")
    post(client, f"/inbox/{number}/replay")
    assert panel.rows(sa.select(Inbox.state).where(Inbox.id == number))[0].state == "waiting"
    again = post(client, f"/inbox/{number}/replay")
    assert "is already waiting" in client.get(again.headers["Location"]).text
    numbers = [send(panel, n, "Bob") for n in range(3, 6)]
    change(panel, Inbox, sa.true(), state="done")
    for offset, one in enumerate([number, *numbers]):
        change(panel, Inbox, Inbox.id == one, received_at=utcnow() + timedelta(hours=offset))
    window = {"system": "shop", "since": f"{utcnow() + timedelta(minutes=30):%Y-%m-%dT%H:%M}"}
    window |= {"until": f"{utcnow() + timedelta(minutes=150):%Y-%m-%dT%H:%M}"}
    listed = client.get("/inbox/", query_string=window).text
    assert "Replay all 2" in listed
    assert post(client, "/inbox/replay", **window).headers["Location"].startswith("/tasks/")
    assert panel.conductor.tasks.run_some()
    waiting = panel.rows(sa.select(Inbox.id).where(Inbox.state == "waiting").order_by(Inbox.id))
    assert [row.id for row in waiting] == numbers[:2]
    work_off(panel)
    assert panel.rows(sa.select(Task.state, Task.done))[0] == ("done", 2)
    empty = post(client, "/inbox/replay", system="shop", since="2001-01-01T00:00", until="2001-01-02T00:00")
    assert "sent nothing in this period" in client.get(empty.headers["Location"]).text


# --- which responses are kept -------------------------------------------------------------------------


def test_redaction() -> None:
    answer = {"id": "1", "client_secret": "x", "deep": {"password": "y", "ok": [1]}, "note": f"uses {TOKEN}"}
    remember_values("shop", dict(ShopOptions()))
    text = response_text(answer)
    assert json.loads(text) == {
        "id": "1",
        "client_secret": MASK,
        "deep": {"password": MASK, "ok": [1]},
        "note": f"uses {MASK}",
    }
    assert json.loads(response_text('{"api_key": "x"}')) == {"api_key": MASK}
    assert response_text(f"<html>{TOKEN}") == f"<html>{MASK}"
    assert len(response_text({"x": "y" * 9999})) == LONGEST_RESPONSE
    deep: Any = "end"
    for _ in range(5000):
        deep = {"a": deep}
    assert "end" not in response_text(deep)
    assert hide_in({"token": ""}) == {"token": ""}
    assert len(safe_headers({f"h{n}": "v" * 999 for n in range(99)})) == 40


# --- lists: downloads, and how they are read ------------------------------------------------------------


def test_a_download_holds_all_that_match_and_runs_no_formula(panel: Panel) -> None:
    change(panel, Delivery, Delivery.record_id == "1", reason="=cmd|'/c calc'!A0")
    client = panel.client("operator")
    rows = list(csv.DictReader(client.get("/deliveries/export.csv?subscriber=shop.customer").text.splitlines()))
    there = panel.rows(
        sa.select(Delivery.id).where(Delivery.subscriber == "shop.customer").order_by(Delivery.id.desc())
    )
    assert [int(row["id"]) for row in rows] == [row.id for row in there]
    assert {row["reason"] for row in rows if row["record_id"] == "1"} == {"'=cmd|'/c calc'!A0"}
    entry = panel.rows(sa.select(AuditEntry.__table__).where(AuditEntry.action == "export"))[0]
    assert (entry.target, entry.details) == ("delivery", {"filters": {"subscriber": "shop.customer"}})
    assert [cell(v) for v in ("@x", "+1", "-1", "\t=", -1, None, "a=b")] == [
        "'@x",
        "'+1",
        "'-1",
        "'\t=",
        -1,
        None,
        "a=b",
    ]


LISTS = [
    "/deliveries/", "/deliveries/?record=1", "/deliveries/?subscriber=shop.customer",
    "/deliveries/?outcome=failed&subscriber=shop.customer", "/links/", "/links/?record=1", "/links/?external=cus_1",
    "/links/?state=owed", "/links/?subscriber=shop.customer", "/changes/", "/changes/?record=1",
    "/changes/?catalogue=customer", "/changes/?state=waiting", "/inbox/", "/inbox/?system=shop", "/inbox/?event=evt_1",
    "/inbox/?state=waiting", "/inbox/?since=2026-01-01T00:00&until=2099-01-01T00:00", "/inbox/1", "/dead-letters/",
    "/dead-letters/?subscriber=shop.customer", "/dead-letters/?state=closed", "/audit/", "/audit/?who=x",
    "/record/?q=cus_1", "/record/?q=nobody.one@example.com", "/record/customer/1", "/record/customer/4",
]  # fmt: skip

#: Tables that grow without limit.
LARGE = ("delivery", "change", "link", "inbox", "dead_letter", "audit_entry")


def test_no_list_reads_a_whole_table(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Explain each statement of each list: on large tables it must use an index, or read the newest stretch by key."""
    monkeypatch.setattr(pages, "STRETCH", 200)
    with panel.database.write() as connection:
        search.install(connection, [CATALOGUES["customer"]])
    client = panel.client("admin")
    statements: dict[str, Any] = {}
    asked: list[str] = [""]

    def note(_c: Any, _cursor: Any, statement: str, values: Any, *_rest: Any) -> None:
        if statement.lstrip().upper().startswith("SELECT"):
            statements.setdefault(statement, (asked[0], values))

    sa.event.listen(panel.database.engine, "before_cursor_execute", note)
    for path in LISTS:
        asked[0] = path
        assert client.get(path).status_code in (200, 302), path
    sa.event.remove(panel.database.engine, "before_cursor_execute", note)
    assert len(statements) > 40
    whole = [found for s, (path, values) in statements.items() if (found := _whole(panel, path, s, values))]
    assert whole == []


def _whole(panel: Panel, path: str, statement: str, values: Any) -> str | None:
    """Return the path, plan step and statement if the statement reads a whole large table."""
    with panel.database.read() as connection:
        if not panel.database.is_sqlite:
            connection.exec_driver_sql("SET enable_seqscan = off")  # small tables would be scanned anyway
        explain = "EXPLAIN QUERY PLAN " if panel.database.is_sqlite else "EXPLAIN "
        plan = [str(row[-1]) for row in connection.exec_driver_sql(explain + statement, values)]
    for step in plan:
        scans = re.search(r"^SCAN (\w+)$" if panel.database.is_sqlite else r"Seq Scan on \"?(\w+)", step.strip())
        if scans is None or scans[1] not in LARGE:
            continue
        # It reads by key from the end and stops when the page is full: it has no condition that skips rows.
        if panel.database.is_sqlite and " WHERE " not in statement.replace("\n", " ") and " LIMIT " in statement:
            continue
        return f"{path}: {step}: {statement}"
    return None
