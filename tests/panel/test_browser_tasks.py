"""The tasks of the panel, done in a browser as a user does them: one test per task, in both themes and widths."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from playwright.sync_api import Browser, Page, expect

from models.base import utcnow
from models.catalogues import Customer
from models.ledger import DeadLetter, Inbox, Process
from subscribers.errors import BadSignature, Reject, SystemDown
from subscribers.http.rate_limit_headers import Rate
from subscribers.records import Event, External, Item
from subscribers.records import Page as Records
from tests.support.panel import Panel, Shop, ShopCustomer, add_conflicts, open_panel, served
from tests.support.panel_visits import Visit, faults_of, launched, open_visit

pytestmark = pytest.mark.browser

Open = Callable[..., Visit]


class LiveShop(Shop):
    """A shop that stores what it receives, reports its remaining calls, can be down and sends webhooks with changes."""

    rate: Rate | None = None

    def __init__(self, name: str, options: Any) -> None:
        super().__init__(name, options)
        self.there: dict[str, dict[str, Any]] = {}
        self.is_down = False

    def answer(self) -> None:
        """Raises: SystemDown: `is_down` is set."""
        if self.is_down:
            raise SystemDown("503: the shop is being repaired")

    def events(self, body: bytes) -> list[Event]:
        data = dict(json.loads(body)["data"])
        return [Event("customers", External(id=data.pop("id"), data=data, at=utcnow()))]


class LiveCustomer(ShopCustomer):
    def create(self, item: Item) -> External:
        self.client.answer()
        try:
            external = super().create(item)
        except Reject as error:
            raise error.with_response('{"error": {"message": "no such city", "code": 17}}') from None
        self.client.there[external.id] = dict(external.data)
        return external

    def update(self, item: Item) -> External | None:
        self.client.answer()
        self.client.there[item.linked_id] = {**self.client.there[item.linked_id], **item.data}
        return super().update(item)

    def fetch(self, external_id: str) -> External:
        return External(id=external_id, data=self.client.there[external_id], at=utcnow())

    def changed_since(self, position: Mapping[str, Any] | None) -> Iterator[Records]:
        self.client.answer()
        yield Records([self.fetch(external_id) for external_id in sorted(self.client.there)], {"read": True})


@pytest.fixture(scope="module")
def browser(chromium_path: str) -> Iterator[Browser]:
    with launched(chromium_path) as browser:
        yield browser


@pytest.fixture
def panel(sqlite_url: str) -> Iterator[Panel]:
    with open_panel(sqlite_url, shop=(LiveShop, LiveCustomer)) as made:
        yield made


@pytest.fixture
def at(browser: Browser, panel: Panel) -> Iterator[Open]:
    """Return a function that logs in to the panel at a width and in a theme; at the end, require no complaints."""
    with ExitStack() as stack:
        base = stack.enter_context(served(panel.app))
        visits: list[Visit] = []

        def opened(width: int, theme: str, role: str = "admin") -> Visit:
            visit = open_visit(browser, base, width=width, theme=theme)
            stack.callback(visit.page.context.close)
            visits.append(visit)
            visit.log_in(role)
            return visit

        yield opened
        for visit in visits:
            assert faults_of(visit, visit.page.url) == []
            assert not visit.is_too_wide(), visit.page.url
            assert visit.complaints == []


def row_of(page: Page, *words: str) -> Any:
    """Return the first table row that contains all these words."""
    rows = page.get_by_role("main").locator("tr")
    for text in words:
        rows = rows.filter(has_text=text)
    return rows.first


def work_off(panel: Panel) -> None:
    """Do what relay, workers and scheduler do, until no task is left."""
    panel.sync()
    while panel.conductor.tasks.list(unfinished=True):
        panel.conductor.tasks.run_some()
        panel.sync()


def test_row_1_the_state_of_everything_at_a_glance(at: Open, panel: Panel) -> None:
    panel.conductor.systems.pause("crm", "ada@example.com", "their maintenance")
    with panel.database.write() as connection:
        connection.execute(sa.update(Customer).where(Customer.id == 1).values(name="Ada King"))
        connection.execute(
            sa.update(Process).where(Process.kind == "worker").values(last_seen_at=utcnow() - timedelta(hours=1))
        )
    panel.sync()
    visit = at(1400, "dark")
    page = visit.page
    expect(row_of(page, "crm.customer")).to_contain_text("paused")
    expect(row_of(page, "shop.customer").first).to_contain_text("2")
    names, values = (page.locator(f".tiles {part}").all_inner_texts() for part in ("dt", "dd"))
    tiles = dict(zip(names, values, strict=True))
    assert (tiles["Pending now"], tiles["Dead letters"], tiles["Retrying"]) == ("1", "2", "0")
    assert tiles["Oldest pending"].strip()[0].isdigit() and tiles["Delivered in the last hour"].isdigit()
    processes = page.get_by_role("region", name="Processes")
    expect(processes.get_by_role("row", name="worker")).to_contain_text("not responding")
    expect(processes.get_by_role("row", name="relay")).to_contain_text("running")
    expect(processes.get_by_role("row", name="scheduler")).to_contain_text("running")
    spans = page.get_by_role("navigation", name="Time range").get_by_role("link").all_inner_texts()
    assert spans[0] == "1h" and spans[-1] == "30d"
    for span in spans:
        visit.follow(span)
        page.wait_for_url(f"**/?range={span}")
        page.locator(".uplot canvas").wait_for()
    visit.press("Resume")
    expect(row_of(page, "crm.customer")).not_to_contain_text("paused")


def test_row_2_did_this_record_sync_and_why_not(at: Open, panel: Panel) -> None:
    with panel.database.write() as connection:
        connection.execute(sa.update(Customer).where(Customer.id == 1).values(city="Paris"))
    panel.sync()
    visit = at(390, "light")
    page = visit.page
    found = {}
    for typed in ("ada.lovelace@example.com", "Ada Lovelace", "cus_1", "crm-1"):
        visit.key("/")
        page.keyboard.type(typed)
        page.keyboard.press("Enter")
        visit.is_headed("Ada Lovelace")
        found[typed] = page.url
    assert set(found.values()) == {f"{visit.base}/record/customer/1"} and visit.clicks == 0
    visit.key("/")
    page.keyboard.type("1")  # an internal id
    page.keyboard.press("Enter")
    page.wait_for_url("**/record/customer/1")
    story = page.get_by_role("region", name="Timeline")
    sent = story.get_by_role("listitem").filter(has_text="address.city").filter(has_text="Paris").first
    expect(sent).to_contain_text("London")
    visit.click(sent.get_by_text("Payload"))
    expect(sent.get_by_role("row", name="address.city")).to_have_class("changed")
    created = story.get_by_role("listitem").filter(has_text="req_1").first
    visit.click(created.get_by_text("Payload"))
    expect(created).to_contain_text("req_1")
    # After typing, at most two clicks lead to the system's own error text and to the rule that skipped the record.
    visit.clicks = 0
    visit.key("/")
    page.keyboard.type("nobody.one@example.com")
    page.keyboard.press("Enter")
    stands = page.get_by_role("region", name="Status by system").get_by_role("listitem")
    expect(stands.filter(has_text="shop.customer")).to_contain_text("Nowhere is no city")
    refused = story.get_by_role("listitem").filter(has_text="Nowhere is no city").first
    refused.get_by_text("Payload and response").click()
    expect(refused.get_by_role("region", name="Response to delivery")).to_contain_text('"code": 17')
    visit.click(page.get_by_role("link", name="Dead letter of shop.customer"))
    expect(page.get_by_role("region", name="Payload")).to_contain_text("Nobody One")
    assert visit.clicks <= 2
    visit.clicks = 0
    visit.key("/")
    page.keyboard.type("grace.hopper@example.com")
    page.keyboard.press("Enter")
    expect(stands.filter(has_text="crm.customer")).to_contain_text("billing freeze")
    visit.follow("View unsubscription")
    visit.is_headed("Unsubscription #1")
    assert visit.clicks <= 2


def test_row_3_working_off_dead_letters(at: Open, panel: Panel) -> None:
    visit = at(1400, "light")
    page = visit.page
    visit.go("/dead-letters/")
    visit.click(page.locator(".kinds a").first)
    # Edit the record, then retry one dead letter.
    visit.follow("#2")
    visit.follow("Edit the record")
    city = page.get_by_label("city")
    expect(page.locator("label").filter(has=city)).to_contain_text("Nowhere is no city")
    assert faults_of(visit, "a record being edited") == []
    city.fill("Manchester")
    visit.press("Save")
    visit.go("/dead-letters/")
    visit.click(page.locator(".kinds a").first)
    visit.press("Retry one")
    visit.is_headed("Dead letter #2")
    work_off(panel)
    visit.key("r")
    expect(page.get_by_role("region", name="Reject")).to_contain_text("delivered")
    # Fix the other record outside the panel, then retry all until the task reports how many succeeded.
    with panel.database.write() as connection:
        connection.execute(sa.update(Customer).where(Customer.id == 4).values(city="Leeds"))
        connection.exec_driver_sql("DELETE FROM change WHERE relayed_at IS NULL")
    visit.go("/dead-letters/")
    visit.clicks = 0
    visit.click(page.locator(".kinds a").first)
    visit.press("Retry 1 that match")
    assert visit.clicks <= 2
    expect(page.get_by_role("progressbar")).to_have_count(1)
    visit.follow("Retry dead letters of shop.customer, of one kind")
    expect(page.get_by_role("main")).to_contain_text("0 of 1")
    assert faults_of(visit, "a task that runs") == []
    work_off(panel)
    visit.key("r")
    expect(page.get_by_role("main")).to_contain_text("1 of 1 succeeded, 0 failed again")
    visit.go("/dead-letters/")
    expect(page.get_by_role("main")).to_contain_text("No dead letters.")


def test_row_3_discarding_all_is_a_task(at: Open, panel: Panel) -> None:
    visit = at(390, "dark", "operator")
    page = visit.page
    visit.go("/dead-letters/?subscriber=shop.customer")
    visit.click(page.get_by_text("Discard…").first)
    page.get_by_label("Why are these 2 dead letters discarded?").fill("they moved away")
    visit.press("Discard all 2 that match")
    visit.is_told("2 dead letters will be discarded in the background.")
    work_off(panel)
    visit.key("r")
    expect(page.get_by_role("main")).to_contain_text("2 discarded: they moved away")
    page.get_by_label("State").select_option("closed")
    visit.press("Filter")
    expect(row_of(page, "#1")).to_contain_text("discarded by operator@example.com: they moved away")
    assert len(panel.rows(sa.select(DeadLetter.id).where(DeadLetter.closed_at.is_(None)))) == 0


def test_row_4_a_mapping_from_preview_to_the_codes_default(at: Open, panel: Panel) -> None:
    visit = at(1400, "dark")
    page = visit.page
    visit.go("/mappings/shop.customer")
    page.get_by_label("Transform of row 1").fill("upper")
    visit.click(page.get_by_role("button", name="Preview", exact=True).last)
    expect(page.locator("#review")).to_contain_text("5 records would change.")
    page.get_by_label("Preview with record").fill("alan.turing@example.com")
    visit.press("Preview record")
    expect(page.locator(".payload tr.differs").filter(has_text="Alan Turing")).to_contain_text("ALAN TURING")
    assert faults_of(visit, "a mapping that is tried") == []
    visit.press("Save and resend changed records")
    expect(page.get_by_role("status").filter(has_text="Resend records changed by the mapping")).to_be_visible()
    work_off(panel)
    assert panel.conductor.subscribers["shop.customer"].client.there["cus_3"]["name"] == "ALAN TURING"
    visit.go("/mappings/shop.customer")
    page.get_by_label("Transform of row 1").fill("lower")
    visit.press("Save as version 2")
    # Show a version and its changes, then restore it.
    visit.click(page.get_by_role("region", name="Versions").get_by_role("link", name="Version 1", exact=True))
    expect(page.get_by_role("region", name="Changes in this version", exact=True)).to_contain_text("upper")
    expect(page.get_by_role("region", name="Changes since this version", exact=True)).to_contain_text("lower")
    assert faults_of(visit, "an old version") == []
    visit.press("Restore as version 3")
    visit.is_told("Version 1 of shop.customer was restored as version 3.")
    visit.click(page.get_by_text("Reset to default…"))
    visit.press("Reset to the default mapping")
    visit.is_told("shop.customer was reset to the default mapping as version 4.")


def test_row_4_two_users_edit_a_mapping_concurrently(at: Open, panel: Panel) -> None:
    ann, ben = at(390, "light"), at(1400, "dark")
    for visit in (ann, ben):
        visit.go("/mappings/shop.customer")
    ben.page.get_by_label("Transform of row 2").fill("lower")
    ben.press("Save as version 1")
    ann.page.get_by_label("Transform of row 1").fill("upper")
    ann.press("Save as version 1")
    expect(ann.page.get_by_role("alert")).to_contain_text("saved version 1 while you were editing")
    expect(ann.page.get_by_label("Transform of row 2")).to_have_value("lower")
    expect(ann.page.get_by_label("Transform of row 1")).to_have_value("upper")
    ann.press("Save as version 2")
    ann.is_told("Version 2 of shop.customer is active.")
    # The browser logs the 409, which is expected.
    assert len(ann.complaints) == 1 and "409" in ann.complaints.pop()


def test_row_5_an_unsubscription_from_a_file_until_a_date(at: Open, panel: Panel, tmp_path: Path) -> None:
    visit = at(390, "dark")
    page = visit.page
    visit.go("/unsubscriptions/")
    visit.click(page.get_by_text("New unsubscription"))
    page.get_by_label("Target").first.select_option("shop")
    page.get_by_label("Stopped operations").select_option("update")
    page.get_by_label("only these:").check()
    (tmp_path / "list.csv").write_text("id\n3\n1\n")
    page.get_by_label("Add a CSV file").set_input_files(tmp_path / "list.csv")
    visit.press("Check the list")
    expect(page.locator(".checked")).to_contain_text("2 records: 2 found by id")
    page.get_by_label("Until (UTC").fill("2099-12-31T18:00")
    page.get_by_label("Reason", exact=True).fill("an audit of theirs")
    visit.press("Unsubscribe")
    expect(row_of(page, "an audit of theirs")).to_contain_text("2099")
    page.get_by_label("Is a record held back?").fill("ada.lovelace@example.com")
    visit.press("Check")
    held = page.locator("#held-back")
    expect(held).to_contain_text("an audit of theirs: update only, until")
    expect(held).to_contain_text("by admin@example.com")
    with panel.database.write() as connection:
        connection.execute(sa.update(Customer).where(Customer.id == 1).values(name="Ada King"))
    work_off(panel)
    visit.go("/record/customer/1")
    expect(page.get_by_role("region", name="Status by system")).to_contain_text("an audit of theirs")
    assert panel.conductor.subscribers["shop.customer"].client.there["cus_1"]["name"] == "Ada Lovelace"


def test_row_6_conflicts_side_by_side(at: Open, panel: Panel) -> None:
    add_conflicts(panel)
    there = panel.conductor.subscribers["shop.customer"].client.there
    for number in (1, 2, 3):
        there[f"cus_{number}"]["email"] = f"theirs{number}"
    visit = at(390, "light", "operator")
    page = visit.page
    visit.go("/conflicts/")
    ada = page.get_by_role("region", name="Ada Lovelace with shop.customer")
    for value in ("base1", "ours1", "theirs1"):
        expect(ada.get_by_role("row").filter(has_text="email")).to_contain_text(value)
    page.get_by_label("External value for email of Ada Lovelace").check()
    page.get_by_label("Internal value for address.city of Ada Lovelace").check()
    visit.press("Resolve Ada Lovelace as selected")
    expect(ada).to_have_count(0)
    visit.follow("Keep the internal value in all 2 conflicts of email…")
    expect(page.get_by_role("button", name="Keep internal in all 2")).to_be_visible()
    assert faults_of(visit, "all alike") == []
    visit.press("Keep internal in all 2")
    work_off(panel)
    visit.go("/conflicts/?state=resolved")
    expect(page.get_by_role("main")).to_contain_text("by operator@example.com")
    rows = panel.rows(sa.select(Customer.email).where(Customer.id.in_([1, 2])).order_by(Customer.id))
    assert [row.email for row in rows] == ["theirs1", "grace.hopper@example.com"]


def test_row_7_pausing_testing_and_polling_a_system(at: Open, panel: Panel) -> None:
    visit = at(390, "dark", "operator")
    page = visit.page
    visit.go("/systems/")
    shop = page.locator("#shop")
    for words in ("closed: calls are allowed", "Calls per second", "Concurrent calls"):
        expect(shop).to_contain_text(words)
    visit.clicks = 0
    visit.click(shop.get_by_text("Pause…"))
    shop.get_by_label("Reason").fill("their maintenance")
    visit.press("Pause shop")
    assert visit.clicks <= 2
    expect(shop).to_contain_text("no calls are made while the system is paused")
    visit.click(shop.get_by_role("button", name="Resume"))
    expect(shop).to_contain_text("closed: calls are allowed")
    # A failed call opens the breaker, and its response reports the remaining quota.
    client = panel.conductor.subscribers["shop.customer"].client
    client.is_down, client.rate = True, Rate(250, 1000)
    with panel.database.write() as connection:
        connection.execute(sa.update(Customer).where(Customer.id == 1).values(city="Paris"))
    panel.sync()
    visit.key("r")
    expect(shop).to_contain_text("250 of 1,000")
    expect(shop).to_contain_text("open, 1 attempt failed")
    # The system is up again, and the operator does not wait for the next probe.
    client.is_down = False
    visit.press("Poll shop.customer now")
    visit.is_told("shop.customer will be polled shortly.")
    assert panel.conductor.poll("shop.customer")
    panel.sync()
    visit.key("r")
    expect(shop).to_contain_text("closed: calls are allowed")
    assert client.there["cus_1"]["address"]["city"] == "Paris"
    visit.press("Test the connection of shop")
    page.wait_for_url("**/tasks/*")
    work_off(panel)
    visit.key("r")
    expect(page.get_by_role("main")).to_contain_text("the login works, and records can be read")


@pytest.mark.parametrize("what", ["Backfill", "Reconcile"])
def test_row_7_long_work_and_how_far_it_is(at: Open, panel: Panel, what: str) -> None:
    panel.conductor.subscribers["shop.customer"].client.there["cus_1"]["name"] = "Changed there"
    visit = at(1400, "dark", "operator")
    page = visit.page
    visit.go("/systems/")
    visit.click(page.get_by_label("Backfill or reconcile shop.customer"))
    visit.click(page.locator("#shop").get_by_role("button", name=what, exact=True))
    page.wait_for_url("**/tasks/*")
    far = page.get_by_role("region", name="Progress")
    expect(far.get_by_role("progressbar")).to_have_count(1)
    expect(far).to_contain_text("running")
    assert faults_of(visit, "a task that runs") == []
    work_off(panel)
    visit.key("r")
    expect(far).to_contain_text("done")
    if what == "Reconcile":
        expect(page.get_by_role("region", name="Differences")).to_contain_text("Changed there")
        visit.press("Repair differences")
        visit.is_headed("Repair the differences of shop.customer")
        work_off(panel)
        visit.key("r")
        expect(far).to_contain_text("done")
        assert panel.rows(sa.select(Customer.name).where(Customer.id == 1)) == [("Changed there",)]
        # A second run finds no differences.
        visit.go("/systems/")
        visit.click(page.get_by_label("Backfill or reconcile shop.customer"))
        visit.click(page.locator("#shop").get_by_role("button", name=what, exact=True))
        page.wait_for_url("**/tasks/*")
        work_off(panel)
        visit.key("r")
        expect(far).to_contain_text("done")
        expect(page.get_by_role("region", name="Differences")).to_have_count(0)


def test_row_8_webhooks_seen_and_replayed(at: Open, panel: Panel) -> None:
    with pytest.raises(BadSignature):
        panel.conductor.store_webhook("shop", b"{}", {"x-shop-signature": "forged"})
    panel.conductor.receive(1)
    visit = at(1400, "light", "operator")
    page = visit.page
    visit.go("/inbox/")
    visit.click(page.get_by_role("row").filter(has_text="evt_1").get_by_role("link").first)
    facts = page.get_by_role("region", name="Details")
    expect(facts).to_contain_text("verified")
    expect(page.get_by_role("main")).to_contain_text("application/json")
    expect(page.get_by_role("region", name="Body", exact=True)).to_contain_text("Ada King")
    expect(page.get_by_role("region", name="Resulting deliveries")).to_contain_text("shop.customer")
    visit.press("Replay")
    expect(facts).to_contain_text("waiting")
    panel.conductor.receive(1)
    visit.key("r")
    expect(facts).to_contain_text("done")
    visit.go("/inbox/")
    visit.follow("Refused")
    expect(page.get_by_role("main")).to_contain_text("does not match the body")
    visit.go("/inbox/")
    page.get_by_label("System").select_option("shop")
    page.get_by_label("From (UTC)").fill(f"{utcnow() - timedelta(hours=1):%Y-%m-%dT%H:%M}")
    page.get_by_label("Until (UTC)").fill(f"{utcnow() + timedelta(hours=1):%Y-%m-%dT%H:%M}")
    visit.press("Filter")
    visit.press("Replay 1")
    page.wait_for_url("**/tasks/*")
    assert panel.conductor.tasks.run_some()
    assert panel.rows(sa.select(Inbox.state)) == [("waiting",)]


@pytest.mark.parametrize(("width", "theme"), [(1400, "light"), (390, "dark")])
def test_row_9_schedules_in_plain_words(at: Open, panel: Panel, width: int, theme: str) -> None:
    visit = at(width, theme, "operator")
    page = visit.page
    visit.go("/schedules/")
    poll = row_of(page, "poll shop.customer")
    expect(poll).to_contain_text("every minute")
    visit.press("Run poll shop.customer now")
    visit.is_told("“poll shop.customer” will run within a minute.")
    visit.press("Pause poll shop.customer")
    expect(poll).to_contain_text("paused")
    visit.press("Resume poll shop.customer")
    expect(poll).not_to_contain_text("paused")


def test_row_10_who_did_what_and_who_may(at: Open, panel: Panel) -> None:
    viewer = at(1400, "dark", "viewer")
    for path in (
        "/",
        "/systems/",
        "/dead-letters/",
        "/dead-letters/1",
        "/schedules/",
        "/inbox/1",
        "/record/customer/4",
    ):
        viewer.go(path)
        writes = viewer.page.get_by_role("main").locator("form[method=post]")
        assert writes.count() == 0, f"a viewer is offered a write on {path}"
    operator = at(390, "light", "operator")
    operator.go("/schedules/")
    operator.press("Pause poll shop.customer")
    admin = at(1400, "light")
    admin.go("/audit/")
    admin.page.get_by_label("Who").fill("operator@example.com")
    admin.press("Filter")
    row = row_of(admin.page, "schedule.pause")
    expect(row).to_contain_text("operator@example.com")
    expect(row).to_contain_text("poll shop.customer")
