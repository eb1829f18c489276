"""The links page, link page and record page show the same state of a link: all of them call `state_of`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from models.base import utcnow
from models.ledger import Link, System, Unsubscription
from tests.support.panel import Panel

OF = sa.and_(Link.record_id == "2", Link.subscriber == "crm.customer")


def change(panel: Panel, table: Any, where: Any, **values: Any) -> None:
    with panel.database.write() as connection:
        connection.execute(sa.update(table).where(where).values(**values))


def badges(panel: Panel, path: str) -> list[str]:
    answer = panel.client("operator").get(path)
    assert answer.status_code == 200, path
    return re.findall(r'<span class="badge \w*">([^<]*)</span>', answer.text)


def test_an_expired_unsubscription_and_a_pause_read_the_same_on_each_page(panel: Panel) -> None:
    change(panel, Unsubscription, Unsubscription.id == 1, until=utcnow() - timedelta(hours=1))
    change(panel, Link, OF, owed_change=Link.owed_change + 1, owed_since=utcnow(), retry_at=None)
    change(panel, System, System.name == "crm", paused_at=utcnow(), paused_by="me", pause_reason="moving")
    link_id = panel.rows(sa.select(Link.id).where(OF))[0].id
    assert badges(panel, "/links/?record=2&subscriber=crm.customer") == ["waiting"]
    assert badges(panel, f"/links/{link_id}")[0] == "waiting"
    for path in ("/links/?record=2&subscriber=crm.customer", f"/links/{link_id}", "/record/customer/2"):
        assert "waiting: Crm has been paused by me since" in panel.client("operator").get(path).text


def test_a_link_says_which_unsubscription_holds_it_back(panel: Panel) -> None:
    text = panel.client("operator").get("/links/?record=2&subscriber=crm.customer").text
    assert "not sent: unsubscription #1 (billing freeze) holds it back" in text


def test_the_links_of_a_deleted_record_are_listed(panel: Panel) -> None:
    change(panel, Link, OF, record_id="9999")
    assert badges(panel, "/links/?record=9999&subscriber=crm.customer") == ["skipped"]
