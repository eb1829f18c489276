"""What is asked of a large ledger is found by the index made for it, on both databases, whatever else there is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from conductor.reports import pages
from conductor.tasks.throttle import below_backlog_limit
from models.base import utcnow
from models.catalogues import Customer
from models.history import first_since, newest_delivery, waiting_since
from models.ledger import AuditEntry, Change, Conflict, DeadLetter, Delivery, Inbox, Link
from models.query_hints import no_index
from models.session import Database
from tests.support.fakes import TestHub
from tests.support.panel import Panel, open_panel

SHOP = "shop.customer"
MANY = 9999
OPEN = 400


@pytest.fixture
def ledger(database: Database) -> Database:
    """Much that is settled, and a little that is open: the oldest links of the shop, and its newest dead letters."""
    now = utcnow()
    letter = {"error": "Reject", "fingerprint": "x", "message": "x", "at": now}
    # Mixed, as they come: what lies together on the disk is not of one subscriber.
    names = [(SHOP, "crm.customer", "desk.customer")[n % 3] for n in range(MANY)]
    with database.write() as connection:
        links: list[dict[str, Any]] = []
        letters: list[dict[str, Any]] = []
        for n, name in enumerate(names):
            owed, is_open = (name == SHOP and place < 3 * OPEN for place in (n, MANY - 1 - n))
            links.append({"subscriber": name, "record_id": str(n), "owed_change": 5, "synced_change": 5 - owed})
            letters.append({**letter, "subscriber": name, "closed_at": None if is_open else now})
        connection.execute(sa.insert(Link), links)
        connection.execute(sa.insert(DeadLetter), letters)
        inbox = [{"system": "shop", "event_id": str(n), "body": "{}", "state": "done"} for n in range(MANY)]
        connection.execute(sa.insert(Inbox), inbox)
        if not database.is_sqlite:
            connection.execute(sa.text("ANALYZE"))
    return database


@contextmanager
def plans(database: Database, kinds: tuple[str, ...] = ("SELECT",)) -> Iterator[list[str]]:
    """Afterwards: how the database finds the rows of each statement of these kinds made inside."""
    asked: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if statement.startswith(kinds):
            asked.append((statement, parameters))

    found: list[str] = []
    sa.event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        sa.event.remove(database.engine, "before_cursor_execute", note)
    with database.read() as connection:
        for statement, parameters in asked:
            explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
            rows = connection.exec_driver_sql(f"{explain} {statement}", parameters)
            found.append("\n".join(str(row[-1]) for row in rows))


def test_pending_links_are_listed_by_an_index(ledger: Database) -> None:
    owed = [Link.owed_change > Link.synced_change, Link.dead_at.is_(None)]
    with plans(ledger) as found, ledger.read() as connection:
        listing = pages.newest(connection, Link, owed, within=(Link.subscriber, SHOP))
    assert [int(row.record_id) for row in listing.rows] == [3 * n for n in range(OPEN - 1, OPEN - 1 - pages.PAGE, -1)]
    assert all("ix_link_owed" in plan for plan in found), found


def test_a_task_and_a_sweep_find_pending_links_by_an_index(ledger: Database) -> None:
    hub = TestHub(ledger, "shop")
    with plans(ledger) as found, ledger.read() as connection:
        assert below_backlog_limit(hub.conductor.context, connection, [SHOP])
        assert hub.conductor.sweep() == OPEN
    of_links = [plan for plan in found if "link" in plan and "ix_link_retry" not in plan]
    assert len(of_links) == 2
    assert all("ix_link_owed" in plan for plan in of_links), found


def test_the_overview_reads_no_synced_links(ledger: Database) -> None:
    hub = TestHub(ledger, "shop")
    seen = hub.conductor.reports.overview_version()
    with plans(ledger) as found:
        overview = hub.conductor.reports.overview(seen)
    assert (overview.total("owed"), overview.total("dead")) == (OPEN, OPEN)
    text = "\n".join(found)
    for wrong in ("pk_dead_letter", "pk_link", "pk_change", "Seq Scan on link", "SCAN link", "SCAN dead_letter"):
        assert wrong not in text, text


@pytest.fixture
def panel(ledger: Database) -> Iterator[Panel]:
    """A panel over it, for one subscriber."""
    url = ledger.engine.url.render_as_string(hide_password=False)
    with open_panel(url, seeded=False) as made:
        subscribers: Any = made.conductor.context.subscribers
        del subscribers["crm.customer"]
        yield made


def fill(panel: Panel, table: Any, rows: list[dict[str, Any]]) -> None:
    with panel.database.write() as connection:
        connection.execute(sa.insert(table), rows)
        if not panel.database.is_sqlite:
            connection.execute(sa.text("ANALYZE"))


def test_the_record_of_a_subscriber_is_found_by_its_own_index(panel: Panel) -> None:
    fill(panel, Delivery, [{"subscriber": SHOP, "record_id": str(n), "direction": "out", "operation": "update",
                             "outcome": "delivered", "at": utcnow()} for n in range(MANY)])  # fmt: skip
    client = panel.client("admin")
    with plans(panel.database) as found:
        assert client.get("/record/customer/7").status_code == 200
        assert client.get(f"/deliveries/?record=7&subscriber={SHOP}").status_code == 200
        assert client.get(f"/deliveries/export.csv?record=7&subscriber={SHOP}").status_code == 200
    of_deliveries = [plan for plan in found if "delivery" in plan]
    assert len(of_deliveries) > 2 and not any("ix_delivery_subscriber" in plan for plan in of_deliveries), found


def test_resuming_a_system_does_not_read_its_whole_inbox(ledger: Database) -> None:
    hub = TestHub(ledger, "shop")
    with plans(ledger, ("UPDATE inbox",)) as found:
        hub.conductor.systems.resume("shop", "ann")
    (plan,) = found
    assert "ix_inbox_waiting" in plan, plan


def test_open_conflicts_are_listed_by_their_index(panel: Panel) -> None:
    row = {"subscriber": SHOP, "path": "name", "at": utcnow()}
    fill(panel, Conflict, [{**row, "link_id": n, "record_id": str(n), "resolved_at": utcnow()} for n in range(MANY)])
    fill(panel, Conflict, [{**row, "link_id": n, "record_id": str(n), "resolved_at": None} for n in range(3)])
    client = panel.client("admin")
    with plans(panel.database) as found:
        page = client.get("/conflicts/").text
    in_param = [plan for plan in found if "conflict" in plan]
    assert all(f"/record/customer/{n}" in page for n in range(3)) and "/record/customer/3" not in page
    assert in_param and all("ix_conflict_open" in plan for plan in in_param), found


def test_a_catalogues_changes_are_downloaded_a_stretch_at_a_time(panel: Panel) -> None:
    change = {"catalogue": "customer", "operation": "updated", "at": utcnow(), "relayed_at": utcnow()}
    fill(panel, Change, [{**change, "record_id": str(n)} for n in range(MANY)])
    client = panel.client("admin")
    with plans(panel.database) as found:
        assert client.get("/changes/export.csv?catalogue=customer").text.count("\n") == MANY + 1
    stretches = [plan for plan in found if "change" in plan]
    assert stretches and not any("ix_change_record" in plan for plan in stretches), found


def test_a_delivery_reads_by_key_even_on_new_tables(migrated_url: str) -> None:
    """A plan stays: one that reads a whole table, because it is small, made each delivery take longer than the last."""
    database = Database(migrated_url, by_key=True)
    hub = TestHub(database, "shop")
    with database.write() as connection:
        connection.execute(sa.insert(Customer), [{"name": f"customer {number}"} for number in range(30)])
    hub.run()
    with database.write() as connection:
        connection.execute(sa.update(Customer).where(Customer.id == 7).values(name="another"))
    with plans(database, ("SELECT", "UPDATE", "WITH")) as found:
        hub.run()
    assert "another" in [record["name"] for record in hub.systems["shop"].store.values()]
    text = "\n\n".join(found)
    assert "link" in text and "customer" in text and "change" in text
    for table in ("link", "customer", "change"):
        assert f"Seq Scan on {table}" not in text, text
        assert f"SCAN {table}" not in text.replace(f"SCAN {table} USING INDEX", ""), text
    assert "uq_link_external_id_subscriber" not in text, text
    database.close()


def test_what_no_index_serves_is_checked_row_by_row(ledger: Database) -> None:
    with plans(ledger) as found, ledger.read() as connection:
        listing = pages.newest(connection, Inbox, scanned=[Inbox.system == "shop"])
    assert len(listing.rows) == pages.PAGE
    assert not any("autoindex" in plan or "uq_inbox" in plan for plan in found), found


@pytest.mark.parametrize(
    ("condition", "count"),
    [
        (AuditEntry.who == "ada", 2),
        (AuditEntry.who.in_(["ada", "grace"]), 3),
        (AuditEntry.target.contains("%", autoescape=True), 1),
        (AuditEntry.at >= utcnow() + timedelta(days=1), 0),
        (AuditEntry.details.is_not(None), 1),
    ],
)
def test_unindexed_means_the_same(database: Database, condition: Any, count: int) -> None:
    entry = {"action": "x", "details": None}
    with database.write() as connection:
        connection.execute(sa.insert(AuditEntry).values(who="ada", target="100 %", **entry | {"details": {"a": 1}}))
        connection.execute(sa.insert(AuditEntry).values(who="ada", target="b", **entry))
        connection.execute(sa.insert(AuditEntry).values(who="grace", target="c", **entry))
        found = sa.select(sa.func.count(AuditEntry.id)).where(no_index(condition))
        assert connection.execute(found).scalar_one() == count


def test_a_time_is_found_in_a_history_with_gaps(database: Database) -> None:
    dice, start = random.Random(7), utcnow()
    ids = sorted(dice.sample(range(1, 5000), 300))
    times = {number: start + timedelta(seconds=number // 3) for number in ids}
    rows = [{"id": n, "system": "shop", "event_id": str(n), "body": "{}", "received_at": times[n]} for n in ids]
    with database.write() as connection:
        assert first_since(connection, Inbox, Inbox.received_at, start) == 0
        connection.execute(sa.insert(Inbox), rows)
        for second in [*range(0, 1700, 13), *(n // 3 for n in ids[:50])]:
            since = start + timedelta(seconds=second)
            found = first_since(connection, Inbox, Inbox.received_at, since)
            assert [n for n in ids if n >= found] == [n for n in ids if times[n] >= since]


def test_the_newest_of_a_record_is_the_records_own(database: Database) -> None:
    delivery = {"direction": "out", "operation": "update"}
    with database.write() as connection:
        for subscriber, record, outcome, reason in [
            (SHOP, "1", "failed", "old"),
            (SHOP, "1", "failed", "new"),
            ("crm.customer", "1", "failed", "another system"),
            (SHOP, "1", "delivered", None),
            (SHOP, "2", "failed", "another record"),
        ]:
            values = {"subscriber": subscriber, "record_id": record, "outcome": outcome, "reason": reason}
            connection.execute(sa.insert(Delivery).values(**delivery, **values))
        newest = newest_delivery(connection, "1", SHOP, "failed")
        assert newest is not None and newest.reason == "new"
        assert newest_delivery(connection, "1", SHOP, "skipped") is None


def test_since_when_a_record_waits_for_the_relay(database: Database) -> None:
    start = utcnow()
    change = {"catalogue": "customer", "operation": "updated"}
    with database.write() as connection:
        for second, record, origin, relayed in [
            (0, "1", None, True),
            (1, "1", "shop", False),
            (2, "1", None, False),
            (3, "1", None, False),
            (4, "2", None, True),
        ]:
            at = start + timedelta(seconds=second)
            values = {"record_id": record, "origin": origin, "at": at, "relayed_at": at if relayed else None}
            connection.execute(sa.insert(Change).values(**change, **values))
        assert waiting_since(connection, "customer", ["1", "2"], "crm") == {"1": start + timedelta(seconds=1)}
        assert waiting_since(connection, "customer", ["1", "2"], "shop") == {"1": start + timedelta(seconds=2)}
        assert waiting_since(connection, "product", ["1"], "crm") == {}
