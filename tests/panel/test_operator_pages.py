"""Dead letters, unsubscriptions, conflicts and the audit trail, as operators work with them."""

from __future__ import annotations

import csv
import html
import io
import re
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from conductor.reports.dead_letter_groups import GROUPS
from models.base import utcnow
from models.catalogues import Customer
from models.counting import capped_count
from models.ledger import AuditEntry, Conflict, DeadLetter, Link, Unsubscription, UnsubscriptionRecord
from panel.forms.record_list import from_csv, split
from panel.rendering.csv_export import cell
from tests.support.panel import Panel, add_conflicts, post

# --- dead letters ------------------------------------------------------------------------------------


@pytest.fixture
def noisy(panel: Panel) -> Panel:
    """Return a panel with more kinds of crm dead letters than a page shows, each larger than the shop's one kind."""
    kinds = [f"kind{number}" for number in range(GROUPS + 5) for _letter in range(3)]
    letter = {"subscriber": "crm.customer", "error": "Unexpected", "at": utcnow()}
    with panel.database.write() as connection:
        connection.execute(sa.insert(DeadLetter), [letter | {"fingerprint": kind, "message": kind} for kind in kinds])
    return panel


def test_letters_of_one_subscriber_are_found_however_noisy_another_is(noisy: Panel) -> None:
    client = noisy.client("operator")
    (kind,) = noisy.rows(sa.select(DeadLetter.fingerprint).distinct().where(DeadLetter.error == "Reject"))
    for query in ("subscriber=shop.customer", "error=Reject", "subscriber=shop.customer&error=Reject"):
        page = client.get(f"/dead-letters/?{query}").text
        assert "1 kind of error, 2 dead letters" in page and "Discard all 2 that match" in page, query
        assert page.count("Retry dead letter") == 2 and "No matching dead letters" not in page, query
        assert "/dead-letters/1" in page and "/dead-letters/2" in page and "/dead-letters/3" not in page, query
        assert 'value="Unexpected"' in page, "another error can be chosen"
    for query in (f"fingerprint={kind.fingerprint}", f"subscriber=shop.customer&fingerprint={kind.fingerprint}"):
        page = client.get(f"/dead-letters/?{query}").text
        assert "Retry all 2 that match" in page and page.count("Retry dead letter") == 2, query
    assert 'value="Reject"' in client.get("/dead-letters/").text
    for query in ("subscriber=shop.customer&error=Unexpected", "fingerprint=none", "subscriber=nobody"):
        assert "No matching dead letters" in client.get(f"/dead-letters/?{query}").text, query


def test_the_buttons_count_all_that_they_mean(noisy: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    client, crm = noisy.client("operator"), 3 * (GROUPS + 5)
    page = client.get("/dead-letters/").text
    assert f"Retry all {crm + 2}<" in page and f"Discard all {crm + 2}<" in page
    assert f"At least {GROUPS} kinds of error, {crm + 2} dead letters" in page
    for query in ("subscriber=crm.customer", "error=Unexpected"):
        page = client.get(f"/dead-letters/?{query}").text
        assert f"Discard all {crm} that match" in page, query
    post(client, "/dead-letters/discard", all="yes", reason="they left")
    (task,) = noisy.conductor.tasks.list("discard")
    assert task.total == crm + 2
    monkeypatch.setattr("panel.rendering.filters.DISPLAY_LIMIT", 500)
    monkeypatch.setattr("conductor.reports.dead_letter_groups.capped_count", lambda some: capped_count(some, 500))
    assert "Discard all 500+<" in client.get("/dead-letters/").text


def test_all_letters_are_listed_also_of_kinds_not_shown(noisy: Panel) -> None:
    client, found, path = noisy.client("operator"), [], "/dead-letters/"
    while path:
        page = client.get(path).text
        found += re.findall(r"Retry dead letter (\d+)", page)
        path = html.unescape(page.partition('rel="next" href="')[2].partition('"')[0])
    assert [int(number) for number in found] == list(range(3 * (GROUPS + 5) + 2, 0, -1))


# --- unsubscriptions ---------------------------------------------------------------------------------


def test_unsubscribing_some_records_and_lifting_it(panel: Panel) -> None:
    client = panel.client("operator")
    form = {"target": "shop.customer", "operation": "update", "scope": "records", "records": "1, 2;3\n3 4"}
    answer = post(client, "/unsubscriptions/", **form, until="2099-01-02T03:04", reason="an audit")
    assert answer.status_code == 303
    rule = panel.rows(sa.select(Unsubscription.__table__).order_by(Unsubscription.id.desc()).limit(1))[0]
    assert (rule.operation, rule.listed_only, rule.reason) == ("update", True, "an audit")
    assert rule.until == datetime(2099, 1, 2, 3, 4, tzinfo=UTC)
    records = panel.rows(
        sa.select(UnsubscriptionRecord.record_id).where(UnsubscriptionRecord.unsubscription_id == rule.id)
    )
    assert {row.record_id for row in records} == {"1", "2", "3", "4"}
    post(client, f"/unsubscriptions/{rule.id}/lift")
    assert not panel.rows(sa.select(Unsubscription.id).where(Unsubscription.id == rule.id))
    assert post(client, f"/unsubscriptions/{rule.id}/lift").status_code == 404


def test_lifting_a_rule_delivers_the_held_back_changes(panel: Panel) -> None:
    post(panel.client("operator"), "/unsubscriptions/1/lift", deliver="yes")
    link = sa.select(Link.__table__).where(Link.subscriber == "crm.customer", Link.record_id == "2")
    row = panel.rows(link)[0]
    assert row.owed_change > row.synced_change and row.unsubscription_id is None
    panel.sync()
    assert panel.rows(link)[0].external_id == "crm-2"


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"target": "nobody"}, "Choose a system"),
        ({"operation": "rename"}, "Choose the operations to stop"),
        ({"scope": "records", "records": " ,"}, "List at least one record"),
        ({"until": "tomorrow"}, "not a date and time"),
        ({"until": "2001-01-01T00:00"}, "is in the past"),
        ({"reason": ""}, "Enter a reason"),
    ],
)
def test_an_invalid_unsubscription_is_refused_and_its_input_kept(
    sqlite_panel: Panel, form: dict[str, str], words: str
) -> None:
    good = {"target": "shop", "operation": "", "scope": "all", "records": "", "reason": "kept words"}
    answer = post(sqlite_panel.client("operator"), "/unsubscriptions/", **(good | form))
    assert answer.status_code == 422
    assert words in answer.text
    assert form.get("reason", "kept words") in answer.text


def _rule(panel: Panel) -> tuple[Any, set[str]]:
    rule = panel.rows(sa.select(Unsubscription.__table__).order_by(Unsubscription.id.desc()).limit(1))[0]
    records = sa.select(UnsubscriptionRecord.record_id).where(UnsubscriptionRecord.unsubscription_id == rule.id)
    return rule, {row.record_id for row in panel.rows(records)}


LIST = {"target": "shop.customer", "operation": "", "scope": "records", "reason": "an audit"}


def test_a_list_is_checked_before_and_who_is_unknown_is_pointed_out(panel: Panel) -> None:
    client = panel.client("operator")
    file = io.BytesIO("name;email\nAda;ADA.Lovelace@example.com\nX;nobody@example.com\n".encode("utf-8-sig"))
    form = LIST | {"records": "3 3 99 007", "do": "preview"}
    page = post(client, "/unsubscriptions/", **form, file=(file, "list.csv")).text
    assert "<strong>5 records</strong>: 1 found by id, 1 by email, 1 listed more than once" in page
    assert "3 not found" in page
    for entry in ("99", "007", "nobody@example.com"):
        assert f'<li class="mono">{entry}</li>' in page
    assert len(panel.rows(sa.select(Unsubscription.id))) == 1, "nothing is created by looking"
    given = LIST | {"records": "3 ada.lovelace@example.com 99"}
    refused = post(client, "/unsubscriptions/", **given)
    assert refused.status_code == 422 and "were not found" in refused.text
    assert post(client, "/unsubscriptions/", **given, unknown="yes").status_code == 303
    assert _rule(panel)[1] == {"1", "3", "99"}


def test_a_list_together_with_all_records_is_refused(sqlite_panel: Panel) -> None:
    client = sqlite_panel.client("operator")
    answer = post(client, "/unsubscriptions/", **(LIST | {"scope": "all", "records": "1"}))
    assert answer.status_code == 422 and "chose all records" in answer.text
    file = (io.BytesIO(b"1"), "x.csv")
    assert post(client, "/unsubscriptions/", **(LIST | {"scope": "all"}), file=file).status_code == 422
    picture = (io.BytesIO(b"\x89PNG\x00"), "x.png")
    assert "could not be read" in post(client, "/unsubscriptions/", **LIST, file=picture).text


def test_a_record_is_added_by_name(sqlite_panel: Panel) -> None:
    client = sqlite_panel.client("operator")
    page = post(client, "/unsubscriptions/", **LIST, records="2", do="find", find="Ada Lovelace").text
    assert ">2\n1</textarea>" in page
    assert "No record found" in post(client, "/unsubscriptions/", **LIST, do="find", find="Nobody At All").text


def test_why_a_record_is_held_back_and_by_whom(panel: Panel) -> None:
    client = panel.client("viewer")
    for text in ("2", "grace.hopper@example.com", "Grace Hopper"):
        page = client.get("/unsubscriptions/", query_string={"record": text}).text
        for words in ("billing freeze", "operator@example.com", "held back", "a change is held back"):
            assert words in page, (text, words)
    assert "no unsubscription applies" in client.get("/unsubscriptions/?record=1").text
    assert "Nothing found" in client.get("/unsubscriptions/?record=zzz").text
    for text in ("9" * 40, "%", "'", "-1"):
        assert client.get("/unsubscriptions/", query_string={"record": text}).status_code == 200


def test_lifting_asks_for_confirmation_with_the_held_back_count(panel: Panel) -> None:
    client = panel.client("operator")
    listed = client.get("/unsubscriptions/").text
    assert "/unsubscriptions/1#lift" in listed and "/unsubscriptions/1/lift" not in listed
    assert "Lift and deliver 1" in client.get("/unsubscriptions/1").text
    assert "Lift this unsubscription" not in panel.client("viewer").get("/unsubscriptions/1").text


def test_lists_from_csv_and_text() -> None:
    assert split("1, 2;3\n\n3\t4") == ["1", "2", "3", "3", "4"] and split("") == []
    assert from_csv(b"") == []
    assert from_csv(b"1\n2\n\n") == ["1", "2"]
    assert from_csv(b'name,ID\r\n"Last, First",7\r\nx\r\n') == ["7"]
    assert from_csv(b"record_id\temail\n5\ta@b.c\n") == ["5"]
    for wrong in (b"\xff\xfe1", b"1\x002"):
        with pytest.raises(ValueError, match="text"):
            from_csv(wrong)


# --- conflicts ---------------------------------------------------------------------------------------


def _people(panel: Panel) -> dict[int, tuple[str | None, str | None]]:
    return {row.id: (row.email, row.city) for row in panel.rows(sa.select(Customer.id, Customer.email, Customer.city))}


def test_the_conflicts_of_a_record_are_resolved_by_field(panel: Panel) -> None:
    email, _two, _three, city = add_conflicts(panel)
    client = panel.client("operator")
    page = client.get("/conflicts/").text
    for value in ("base1", "ours1", "theirs1", "Ada Lovelace", "Grace Hopper"):
        assert value in page
    assert "Resolve as selected" not in panel.client("viewer").get("/conflicts/").text
    form = {"number": [str(email), str(city)], f"choice.{email}": "theirs", f"choice.{city}": "ours"}
    assert post(client, "/conflicts/resolve", **form).status_code == 303
    assert _people(panel)[1] == ("theirs1", "London")
    choices = {row.id: row.choice for row in panel.rows(sa.select(Conflict.id, Conflict.choice))}
    assert (choices[email], choices[city]) == ("theirs", "ours")
    assert "operator@example.com" in client.get("/conflicts/?state=resolved").text
    again = post(client, "/conflicts/resolve", **form, back="/conflicts/")
    assert "no open conflict" in client.get(again.headers["Location"]).text


def test_settling_needs_a_choice_that_is_one(sqlite_panel: Panel) -> None:
    (email, *_others) = add_conflicts(sqlite_panel)
    client = sqlite_panel.client("operator")
    assert post(client, "/conflicts/resolve", number=str(email), all="neither").status_code == 400
    assert post(client, "/conflicts/resolve", number="99999", all="ours").status_code == 404
    assert post(client, "/conflicts/resolve", number="x").status_code == 303
    assert client.get("/conflicts/resolve-all?subscriber=nobody&field=x&choice=ours").status_code == 404
    assert client.get("/conflicts/resolve-all?subscriber=shop.customer&field=x&choice=both").status_code == 400
    assert not sqlite_panel.rows(sa.select(Conflict.id).where(Conflict.resolved_at.is_not(None)))


def test_all_conflicts_of_a_field_are_resolved_except_those_of_busy_records(panel: Panel) -> None:
    _one, two, _three, city = add_conflicts(panel)
    client = panel.client("operator")
    form = {"subscriber": "shop.customer", "field": "email", "choice": "theirs"}
    asked = client.get("/conflicts/resolve-all", query_string=form).text
    assert "Take external in all 3" in asked and "theirs3" in asked and "address.city" not in asked
    with panel.database.write() as connection:
        of = (Link.subscriber == "shop.customer", Link.record_id == "2")
        connection.execute(sa.update(Link).where(*of).values(lease_until=datetime(2099, 1, 1, tzinfo=UTC)))
    assert post(client, "/conflicts/resolve-all", **form).status_code == 303
    while panel.conductor.tasks.run_some():
        pass
    people = _people(panel)
    assert [people[n][0] for n in (1, 2, 3)] == ["theirs1", "grace.hopper@example.com", "theirs3"]
    left = {row.id for row in panel.rows(sa.select(Conflict.id).where(Conflict.resolved_at.is_(None)))}
    assert left == {two, city}
    (task,) = panel.conductor.tasks.list("resolve")
    assert (task.state, task.succeeded, task.failed) == ("done", 2, 1)
    assert f'href="/tasks/{task.id}"' in client.get("/conflicts/").text
    trail = panel.rows(sa.select(AuditEntry.who).where(AuditEntry.action == "conflict.resolve"))
    assert [row.who for row in trail] == ["operator@example.com"] * 2


# --- the audit trail ---------------------------------------------------------------------------------


def test_the_trail_is_filtered_and_exported_safely(panel: Panel) -> None:
    with panel.database.write() as connection:
        row = {"who": "eve@example.com", "action": "test.formula", "target": "=cmd|' /C calc'!A0", "details": {"a": 1}}
        old = row | {"at": datetime(2020, 1, 1, 12, tzinfo=UTC), "target": "+1"}
        for values in (old, row | {"at": utcnow()}):
            connection.execute(sa.insert(AuditEntry).values(**values))
    client = panel.client("admin")
    page = client.get("/audit/?action=test.&who=EVE@example.com&what=cmd").text
    assert page.count("test.formula") >= 1 and "mapping.save" not in page
    assert "test.formula" not in client.get("/audit/?until=2019-12-31").text
    answer = client.get("/audit/export.csv?action=test.&since=2020-01-01&until=2020-01-01")
    assert (
        answer.headers["Content-Type"].startswith("text/csv") and "attachment" in answer.headers["Content-Disposition"]
    )
    headings, only = csv.reader(io.StringIO(answer.text))
    assert headings[2] == "who" and only[2:5] == ["eve@example.com", "test.formula", "'+1"]
    everything = list(csv.reader(io.StringIO(client.get("/audit/export.csv").text)))
    assert len(everything) == 1 + len(panel.rows(sa.select(AuditEntry.id)))
    for wrong in ("yesterday", "0001-01-01", "9999-12-31"):
        assert client.get(f"/audit/?since={wrong}").status_code == 400


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_is_a_formula(text: str) -> None:
    assert cell(text) == f"'{text}"
