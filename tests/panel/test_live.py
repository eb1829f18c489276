"""Pages that update themselves, and the pages about the hub's own machinery: schedules, queues, tasks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
import sqlalchemy as sa
import time_machine
from pydantic import SecretStr

from conductor.throughput_counter import MINUTE
from models.base import utcnow
from models.ledger import Process, Schedule, Task, Throughput
from subscribers.errors import SystemDown
from tests.support.panel import Panel, add_delivery, open_panel, post

LIVE = ["/", "/systems/", "/schedules/", "/queues/", "/tasks/", "/tasks/1"]


@pytest.fixture
def panel(sqlite_url: str) -> Iterator[Panel]:
    with open_panel(sqlite_url) as made:
        made.conductor.tasks.start("reconcile", "operator@example.com", subscriber="crm.customer")
        yield made


def update(client: Any, path: str, etag: str = "") -> Any:
    """Send the request that htmx sends."""
    return client.get(path, headers={"HX-Request": "true", "If-None-Match": etag})


def stand_still(panel: Panel) -> None:
    """Stop the clock: pages change by themselves with each new minute or half minute."""
    now = utcnow()
    panel.conductor.context.clock = lambda: now


def change(panel: Panel, table: Any, condition: Any, **values: Any) -> None:
    with panel.database.write() as connection:
        assert connection.execute(sa.update(table).where(condition).values(**values)).rowcount


@contextmanager
def statements(panel: Panel) -> Iterator[list[str]]:
    """Collect the SQL statements that run in the block."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(statement)

    sa.event.listen(panel.database.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(panel.database.engine, "before_cursor_execute", note)


@pytest.mark.parametrize("path", LIVE)
def test_an_unchanged_page_is_not_made_again(panel: Panel, path: str) -> None:
    stand_still(panel)
    client = panel.client("operator")
    whole = client.get(path)
    assert f"data-etag='{whole.headers['ETag']}'" in unescape(whole.text)
    again = update(client, path, whole.headers["ETag"])
    assert (again.status_code, again.data) == (304, b"")
    part = update(client, path)
    assert part.status_code == 200 and "<html" not in part.text and part.text.strip()
    # Another user may see a different page.
    assert update(panel.client("viewer"), path, whole.headers["ETag"]).status_code == 200


def test_an_unchanged_overview_costs_some_look_ups(panel: Panel) -> None:
    stand_still(panel)
    client = panel.client("viewer")
    etag = client.get("/").headers["ETag"]
    with statements(panel) as seen:
        assert update(client, "/", etag).status_code == 304
    assert len(seen) <= 10  # four of them check the login and its session
    assert not [statement for statement in seen if "count(" in statement.lower()]


def test_a_changed_overview_is_made_again(panel: Panel) -> None:
    client = panel.client("viewer")
    etag = client.get("/").headers["ETag"]
    panel.conductor.systems.pause("shop", "ada@example.com", "their maintenance")
    page = update(client, "/", etag)
    assert page.status_code == 200 and "shop is paused" in page.text
    panel.publisher.broker_error = "RabbitMQ does not answer"
    assert "RabbitMQ does not answer" in update(client, "/", page.headers["ETag"]).text


def test_the_polls_of_an_open_page_do_not_extend_the_session(panel: Panel) -> None:
    used, open_page = panel.client("viewer"), panel.client("operator")
    for hours in (0, 8, 16):
        with time_machine.travel(time.time() + hours * 3600, tick=True):
            assert used.get("/").status_code == 200
            assert update(open_page, "/").status_code == (200 if hours < 12 else 401)
    answer = update(panel.client(), "/")
    assert answer.status_code == 401 and "Log in" in answer.text


def test_the_chart_has_the_span_that_is_asked_for(panel: Panel) -> None:
    add_delivery(panel)
    panel.conductor.throughput.count()
    stand_still(panel)
    client = panel.client("viewer")
    answer = client.get("/throughput.json?range=1h")
    assert [len(series) for series in answer.get_json()] == [60] * 5
    assert client.get("/throughput.json?range=1h", headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304
    assert len(client.get("/throughput.json?range=nonsense").get_json()[0]) == 360
    page = client.get("/?range=7d").text
    assert 'aria-current="true">7d</a>' in page and "<svg" in page


def test_the_chart_is_another_when_its_counts_are(panel: Panel) -> None:
    stand_still(panel)
    client, url = panel.client("viewer"), "/throughput.json?range=24h"
    first = client.get(url)
    same = {"If-None-Match": first.headers["ETag"]}
    add_delivery(panel, at=utcnow() - timedelta(hours=2))
    assert client.get(url, headers=same).status_code == 304  # the delivery is not counted yet
    panel.conductor.throughput.count()
    second = client.get(url, headers=same)
    assert second.status_code == 200 and sum(second.get_json()[1]) > sum(first.get_json()[1])
    assert client.get(url, headers={"If-None-Match": second.headers["ETag"]}).status_code == 304
    with panel.database.write() as connection:
        oldest = sa.select(sa.func.min(Throughput.at)).where(Throughput.seconds == MINUTE).scalar_subquery()
        connection.execute(sa.delete(Throughput).where(Throughput.seconds == MINUTE, Throughput.at == oldest))
    assert client.get(url, headers={"If-None-Match": second.headers["ETag"]}).status_code == 200


def test_an_update_brings_no_second_drawing_of_the_chart(panel: Panel) -> None:
    client = panel.client("viewer")
    assert 'class="chart"' in client.get("/").text
    page = update(client, "/").text
    assert 'class="chart"' not in page and "hx-preserve" in page


def test_schedules_are_run_paused_and_resumed(panel: Panel) -> None:
    client = panel.client("operator")
    assert "every minute" in client.get("/schedules/").text
    post(client, "/schedules/run", job="poll shop.customer")
    assert ("poll shop.customer", []) in panel.publisher.published
    post(client, "/schedules/pause", job="tidy")
    assert "paused" in client.get("/schedules/").text
    post(client, "/schedules/run", job="tidy")
    assert "resume it first" in client.get("/schedules/").text
    post(client, "/schedules/resume", job="tidy")
    assert panel.rows(sa.select(Schedule.paused_at).where(Schedule.job == "tidy"))[0].paused_at is None
    assert post(client, "/schedules/run", job="nothing").status_code == 404
    change(panel, Schedule, Schedule.job == "tidy", finished_at=utcnow(), result="OSError: disk full", failed=True)
    page = client.get("/schedules/").text
    assert "failing" in page and "disk full" in page


def test_each_queue_leads_to_its_own_page_in_rabbitmq(sqlite_url: str) -> None:
    settings: dict[str, Any] = {
        "broker_url": "amqp://h/my%2Fhost",
        "secret_key": SecretStr(secrets.token_hex(32)),
        "rabbitmq_management_url": "http://rabbit.example:15672",
    }
    with open_panel(sqlite_url, **settings) as made:
        made.publisher.depths["shop.customer"] = 7
        page = made.client("viewer").get("/queues/").text
    assert 'href="http://rabbit.example:15672/#/queues/my%2Fhost/shop.customer"' in page


def test_an_unreachable_broker_is_shown_and_breaks_no_page(panel: Panel) -> None:
    client = panel.client("operator")
    panel.publisher.depths.update({"shop.customer": 7, "shop.inbox": 2})
    assert "Retries" not in client.get("/queues/").text
    assert "7 waiting" in client.get("/systems/").text
    panel.publisher.broker_error = "RabbitMQ does not answer"
    for path in LIVE:
        assert client.get(path).status_code == 200
    assert "No data is lost" in client.get("/queues/").text


def test_the_link_to_rabbitmq_shows_no_login(sqlite_url: str) -> None:
    with open_panel(sqlite_url, rabbitmq_management_url="http://me:s3cret@rabbit.example:15672") as made:
        for path in ("/", "/queues/"):
            page = made.client("viewer").get(path).text
            assert 'href="http://rabbit.example:15672"' in page and "s3cret" not in page


def test_a_task_is_stopped_and_resumed_and_shows_how_far_it_is(panel: Panel) -> None:
    client = panel.client("operator")
    change(panel, Task, Task.id == 1, total=400, done=100, succeeded=98, failed=2)
    page = client.get("/tasks/").text
    assert "Reconcile crm.customer" in page and 'value="25.0"' in page and "2 differ" in page
    post(client, "/tasks/1/stop", back="/tasks/1")
    assert panel.conductor.tasks.get(1).state == "stopped"
    post(client, "/tasks/1/resume")
    assert panel.conductor.tasks.get(1).state == "running"
    assert client.get("/tasks/77").status_code == 404


def test_a_reconcile_shows_differences_and_repairs_them(panel: Panel) -> None:
    client = panel.client("operator")
    position = {"after": 9, "fields": {"email": 1}, "examples": [["1", "crm-1", "email", "a@b", "c@d"]], "unread": 0}
    change(panel, Task, Task.id == 1, state="done", done=4, failed=1, position=position)
    page = client.get("/tasks/1").text
    assert "Differences" in page and "c@d" in page
    answer = post(client, "/systems/reconcile/crm.customer", repair="yes")
    assert answer.headers["Location"] == "/tasks/2"
    assert panel.conductor.tasks.get(2).argument == {"repair": True}
    assert "Repair the differences of crm.customer" in client.get("/tasks/2").text


def test_backfilling_what_could_be_created_twice_is_refused(panel: Panel) -> None:
    client = panel.client("operator")
    panel.conductor.subscribers["crm.customer"].match_on = ("email",)  # type: ignore[misc]
    post(client, "/systems/backfill/crm.customer")
    assert "Not started: crm.customer has match_on" in client.get("/systems/").text
    assert post(client, "/systems/backfill/nobody.customer").status_code == 404


def test_a_connection_is_tested_as_a_task(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    client = panel.client("operator")

    def tested() -> str:
        where = post(client, "/systems/shop/check").headers["Location"]
        assert "Test the connection of shop" in client.get(where).text
        while panel.conductor.tasks.get(int(where.rpartition("/")[2])).state == "running":
            panel.conductor.tasks.run_some()
        return client.get(where).text

    assert "Nothing was changed in the system" in tested()
    assert "Last connection test" in client.get("/systems/").text

    def describe() -> None:
        raise SystemDown("401 Unauthorized")

    monkeypatch.setattr(panel.conductor.subscribers["shop.customer"], "describe", describe)
    page = tested()
    assert "1 thing needs fixing." in page and "the login does not work: 401 Unauthorized" in page
    assert "1 thing needs fixing" in panel.client("viewer").get("/systems/").text
    assert post(client, "/systems/nobody/check").status_code == 404


def test_a_task_without_a_scheduler_shows_a_warning(panel: Panel) -> None:
    client = panel.client("operator")
    change(panel, Process, Process.kind == "scheduler", last_seen_at=utcnow().replace(year=2025))
    where = post(client, "/systems/shop/check").headers["Location"]
    assert "No scheduler is running: no system is polled, and tasks do not progress." in client.get(where).text


def test_a_process_that_went_silent_is_trouble(panel: Panel) -> None:
    change(panel, Process, Process.kind == "worker", last_seen_at=utcnow().replace(year=2025))
    page = panel.client("viewer").get("/").text
    assert "no worker is running" in page and "not responding" in page
