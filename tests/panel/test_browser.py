"""The panel in a real browser: every page, light and dark, wide and narrow, and the main tasks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from passlib.totp import TOTP  # type: ignore[import-untyped]
from playwright.sync_api import Browser, expect

from models.base import utcnow
from models.catalogues import Customer, Invoice, Product
from models.ledger import DeadLetter, System, Task
from tests.support.panel import PASSWORD, Panel, add_conflicts, add_delivery, open_panel, served
from tests.support.panel_visits import Visit, faults_of, in_theme, launched, open_visit

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

PAGES = [
    "/", "/dead-letters/", "/dead-letters/1", "/dead-letters/?state=closed", "/systems/", "/mappings/",
    "/mappings/shop.customer", "/mappings/crm.customer", "/mappings/crm.customer/versions/1", "/unsubscriptions/",
    "/unsubscriptions/?record=2", "/unsubscriptions/1", "/links/", "/links/1",
    "/conflicts/resolve-all?subscriber=shop.customer&field=email&choice=ours", "/conflicts/",
    "/conflicts/?state=resolved", "/deliveries/", "/deliveries/1", "/changes/", "/inbox/", "/inbox/1",
    "/record/customer/1", "/record/customer/4",
    "/record/?q=nobody", "/record/?q=zzz",
    "/record/customer/4/edit", "/inbox/refused", "/inbox/?system=shop&since=2026-01-01T00:00&until=2099-01-01T00:00",
    "/schedules/", "/queues/", "/tasks/", "/tasks/1", "/?range=30d", "/users/",
    "/audit/", "/change", "/account/", "/tf-setup", "/mf-recovery-codes",
    "/record/product/1", "/record/invoice/1", "/record/product/1/edit", "/mappings/crm.customer?from=0",
]  # fmt: skip

#: Open all closed details elements and return their number.
OPEN = """() => {
  const closed = document.querySelectorAll("main details:not([open])");
  closed.forEach((details) => (details.open = true));
  return closed.length;
}"""


@pytest.fixture(scope="module")
def browser(chromium_path: str) -> Iterator[Browser]:
    with launched(chromium_path) as browser:
        yield browser


@pytest.fixture
def panel(sqlite_url: str) -> Iterator[Panel]:
    with open_panel(sqlite_url) as made:
        made.conductor.tasks.start("reconcile", "operator@example.com", subscriber="crm.customer")
        made.publisher.depths.update({"shop.customer": 7, "shop.customer.later": 1, "shop.inbox": 0})
        yield made


@pytest.fixture
def visit(browser: Browser, panel: Panel) -> Iterator[Visit]:
    with served(panel.app) as base:
        visit = open_visit(browser, base)
        visit.log_in()
        yield visit
        visit.page.context.close()
    assert visit.complaints == []


@pytest.mark.parametrize(("width", "themes"), [(1400, ("light", "dark")), (390, ("dark",))])
def test_every_page_is_accessible_and_quiet(
    browser: Browser, panel: Panel, width: int, themes: tuple[str, ...]
) -> None:
    """Load each page in one theme, and check the colours again after a switch to the other."""
    with panel.database.write() as connection:
        connection.execute(sa.insert(Product).values(sku="engine", name="Analytical engine", price=100))
        connection.execute(sa.insert(Invoice).values(customer_id=1, number="I-1"))
    faults = []
    with served(panel.app) as base:
        visit = open_visit(browser, base, width=width)

        def look(path: str) -> None:
            for theme in themes:
                in_theme(visit, theme)
                only = "color-contrast" if theme != themes[0] else None
                faults.extend(faults_of(visit, f"{path}, {width} wide, {theme}", only=only))
                faults.extend([f"{path} is wider than {width}"] if visit.is_too_wide() else [])

        in_theme(visit, themes[0])
        visit.go("/login")
        look("/login")
        visit.log_in()
        for path in PAGES:
            in_theme(visit, themes[0])
            visit.go(path)
            look(path)
            # Repeat with all details elements open, if the page has any.
            if visit.page.evaluate(OPEN):
                look(f"{path} opened")
        visit.page.context.close()
    assert faults == []
    assert visit.complaints == []


def test_a_browser_that_asks_for_german_gets_it_and_it_fits(browser: Browser, panel: Panel) -> None:
    """German words are longer, which shows on the narrow screen of a phone."""
    with served(panel.app) as base:
        visit = open_visit(browser, base, width=390, locale="de-DE")
        visit.go("/login")
        visit.page.get_by_label("E-Mail").fill("admin@example.com")
        visit.page.get_by_label("Passwort").fill(PASSWORD)
        visit.page.get_by_role("button", name="Anmelden").click()
        visit.page.wait_for_url(f"{visit.base}/")
        faults = []
        for path in ("/", "/record/customer/4", "/dead-letters/", "/mappings/crm.customer", "/systems/", "/account/"):
            visit.go(path)
            faults += faults_of(visit, path)
            faults += [f"{path} is wider than the window"] if visit.is_too_wide() else []
        assert visit.page.evaluate("document.documentElement.lang") == "de"
        # Text written by scripts is German, too.
        visit.go("/links/")
        expect(visit.page.locator("time[data-ago]").first).to_have_text(re.compile("^vor "))
        visit.go("/dead-letters/")
        expect(visit.page.get_by_text("Live", exact=True)).to_be_visible()
        visit.page.locator("[data-live-choice] select").select_option("0")
        expect(visit.page.get_by_text("Nicht live", exact=True)).to_be_visible()
        visit.page.context.close()
    assert faults == []
    assert visit.complaints == []


def test_finding_out_why_a_record_did_not_sync(visit: Visit) -> None:
    visit.page.wait_for_url(visit.base + "/")
    visit.key("/")
    visit.page.keyboard.type("nobody.one@example.com")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_url("**/record/customer/4")
    visit.is_headed("Nobody One")
    stands = visit.page.get_by_role("region", name="Status by system").get_by_role("listitem")
    expect(stands.filter(has_text="shop.customer")).to_contain_text("Nowhere is no city")


def test_retrying_all_that_match_takes_two_clicks(visit: Visit, panel: Panel) -> None:
    visit.go("/dead-letters/")
    visit.page.locator(".kinds a").first.click()
    visit.page.get_by_role("button", name="Retry all 2 that match").click()
    visit.is_told("2 dead letters will be retried in the background.")
    task = panel.rows(sa.select(Task.id).where(Task.kind == "retry"))[0].id
    while not panel.rows(sa.select(Task.id).where(Task.id == task, Task.done == 2)):
        assert panel.conductor.tasks.run_some()
    visit.page.reload()
    expect(visit.page.get_by_text("retrying", exact=True)).to_have_count(2)
    visit.page.get_by_role("button", name=f"Stop task {task}").click()
    assert panel.rows(sa.select(Task.state).where(Task.id == task)) == [("stopped",)]


def test_discarding_with_a_reason(visit: Visit, panel: Panel) -> None:
    visit.go("/dead-letters/1")
    visit.page.get_by_text("Discard…").click()
    visit.page.get_by_label("Why is this dead letter discarded?").fill("moved away")
    visit.page.get_by_role("button", name="Discard", exact=True).click()
    visit.is_told("1 dead letter was discarded.")
    closed = panel.rows(sa.select(DeadLetter.resolution).where(DeadLetter.closed_at.is_not(None)))
    assert [row.resolution for row in closed] == ["discarded by admin@example.com: moved away"]


def test_pausing_a_system_takes_two_clicks(visit: Visit, panel: Panel) -> None:
    visit.go("/systems/")
    visit.page.locator("#shop").get_by_text("Pause…").click()
    visit.page.locator("#shop").get_by_label("Reason").fill("their maintenance")
    visit.page.get_by_role("button", name="Pause shop").click()
    visit.is_told("shop is paused. Its changes wait until it is resumed.")
    assert (
        panel.rows(sa.select(System.pause_reason).where(System.name == "shop"))[0].pause_reason == "their maintenance"
    )
    visit.page.locator("#shop").get_by_role("button", name="Resume").click()
    visit.is_told("shop is resumed.")


@pytest.mark.parametrize("script", [True, False])
def test_editing_a_mapping_with_and_without_javascript(browser: Browser, panel: Panel, script: bool) -> None:
    with served(panel.app) as base:
        visit = open_visit(browser, base, script=script)
        page = visit.page
        visit.log_in()
        visit.go("/mappings/shop.customer")
        page.get_by_role("button", name="Add a row").click()
        page.get_by_label("Internal column of row 5").fill("phone")
        page.get_by_label("External field of row 5").fill("contact.phone")
        page.get_by_role("button", name="Remove row 2").click()
        page.get_by_label("External field of row 3").fill("is_active")
        page.get_by_role("button", name="Preview", exact=True).last.click()
        expect(page.locator("#review")).to_contain_text("5 records would change")
        page.get_by_label("Preview with record").fill("Grace Hopper")
        page.get_by_role("button", name="Preview record").click()
        expect(page.locator("#review")).to_contain_text("Grace")
        page.locator(".payload tr.differs").nth(2).wait_for()
        page.get_by_role("button", name="Save as version 1").click()
        visit.is_told("Version 1 of shop.customer is active.")
        page.context.close()
    assert visit.complaints == []
    fields = panel.conductor.mappings.latest("shop.customer")[0].fields
    assert {name: entry.path for name, entry in fields.items()} == {
        "name": "name",
        "city": "address.city",
        "active": "is_active",
        "phone": "contact.phone",
    }
    assert fields["name"].required


def test_a_wrong_mapping_is_marked_where_it_is_wrong(browser: Browser, panel: Panel) -> None:
    with served(panel.app) as base:
        visit = open_visit(browser, base, width=390, theme="dark")
        visit.log_in()
        visit.go("/mappings/shop.customer")
        visit.page.get_by_label("External field of row 2").fill("not a path")
        visit.page.get_by_label("Transform of row 2").fill("uper")
        visit.page.get_by_role("button", name="Preview", exact=True).last.click()
        expect(visit.page.locator("#why-1")).to_contain_text("unknown transform 'uper'")
        assert faults_of(visit, "a wrong mapping") == []
        visit.page.context.close()


def test_holding_records_back_and_lifting_it(visit: Visit, panel: Panel, tmp_path: Path) -> None:
    page = visit.page
    visit.go("/unsubscriptions/")
    page.get_by_text("New unsubscription").click()
    page.get_by_label("Target").first.select_option("crm.customer")
    page.get_by_label("only these:").check()
    (tmp_path / "list.csv").write_text("email\nada.lovelace@example.com\nnobody@example.com\n")
    page.get_by_label("Add a CSV file").set_input_files(tmp_path / "list.csv")
    page.get_by_role("button", name="Check the list").click()
    expect(page.locator(".checked")).to_contain_text("nobody@example.com")
    assert faults_of(visit, "a checked list") == []
    page.get_by_label("Keep them in the list").check()
    page.get_by_label("Reason", exact=True).fill("an audit")
    page.get_by_role("button", name="Unsubscribe", exact=True).click()
    visit.is_told("Unsubscription #2 is active.")
    page.get_by_label("Is a record held back?").fill("Grace Hopper")
    page.get_by_role("button", name="Check").click()
    page.locator("#held-back").get_by_role("link", name="#1").click()
    page.get_by_role("button", name="Lift and deliver 1").click()
    visit.is_told("Unsubscription #1 is lifted. 1 record will be delivered.")


def test_conflicts_are_resolved_one_by_one_or_all_of_a_field(visit: Visit, panel: Panel) -> None:
    page = visit.page
    add_conflicts(panel)
    visit.go("/conflicts/")
    assert faults_of(visit, "conflicts") == []
    page.get_by_label("External value for email of Ada Lovelace").check()
    page.get_by_label("Internal value for address.city of Ada Lovelace").check()
    page.get_by_role("button", name="Resolve Ada Lovelace as selected").click()
    visit.is_told(re.compile("^Resolved: "))
    page.get_by_role("link", name="Take the external value in all 2 conflicts of email").click()
    page.get_by_role("button", name="Take external in all 2").click()
    while panel.conductor.tasks.run_some():
        pass
    visit.go("/conflicts/")
    expect(page.get_by_text("No conflicts.")).to_be_visible()
    emails = [row.email for row in panel.rows(sa.select(Customer.email).order_by(Customer.id).limit(3))]
    assert emails == ["theirs1", "theirs2", "theirs3"]


def test_a_second_factor_from_the_account_page_to_the_next_login(visit: Visit, panel: Panel) -> None:
    page = visit.page
    page.get_by_label("Your account").click()
    page.get_by_role("link", name="Your account").click()
    page.get_by_role("link", name="Set up").click()
    page.get_by_role("button", name="Set up").click()
    expect(page.get_by_role("img", name="QR code").locator("path")).to_have_count(1)
    assert faults_of(visit, "the QR code") == []
    phone = TOTP(key=page.locator("code.key").inner_text().replace("-", ""), format="base32")
    page.get_by_label("Enter the code").fill(str(phone.generate().token))
    page.get_by_role("button", name="Turn on").click()
    page.get_by_role("link", name="Create codes").click()
    page.get_by_role("button", name="Create new codes").click()
    code = page.locator(".codes code").first.inner_text()
    page.get_by_label("Your account").click()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Email")).to_be_visible()
    visit.log_in()
    assert faults_of(visit, "the code") == []
    page.get_by_role("link", name="Use a recovery code").click()
    expect(page.get_by_label("One of your recovery codes")).to_be_visible()
    assert faults_of(visit, "a recovery code") == []
    page.get_by_label("One of your recovery codes").fill(code)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(visit.base + "/")


def test_a_new_user_gets_a_one_time_password(visit: Visit, panel: Panel) -> None:
    page = visit.page
    visit.go("/users/")
    page.get_by_text("New user").click()
    page.get_by_role("textbox", name="Email").fill("new@example.com")
    page.get_by_role("button", name="Create user").click()
    expect(page.locator("#password")).to_be_visible()
    assert faults_of(visit, "a password for one login") == []
    password = page.locator("#password").inner_text()
    page.get_by_label("Your account").click()
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Email").fill("new@example.com")
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    visit.is_headed("Change password")


def test_the_theme_is_remembered(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Switch between light and dark").click()
    visit.go("/links/")
    assert visit.page.evaluate("getComputedStyle(document.body.parentElement).colorScheme") == "dark"


def test_the_menu_on_a_phone(browser: Browser, panel: Panel) -> None:
    with served(panel.app) as base:
        visit = open_visit(browser, base, width=390)
        visit.log_in("viewer")
        visit.page.get_by_role("link", name="Open the menu").click()
        visit.page.get_by_role("link", name="Deliveries").click()
        visit.is_headed("Deliveries")
        visit.page.context.close()
    assert visit.complaints == []


def test_a_live_page_updates_but_keeps_open_input(visit: Visit, panel: Panel) -> None:
    visit.go("/systems/")
    shop, page = visit.page.locator("#shop"), visit.page
    shop.get_by_text("Options").click()
    with page.expect_response(lambda r: r.status == 304):
        visit.key("r")
    panel.conductor.systems.pause("shop", "ada@example.com", "their maintenance")
    visit.key("r")
    shop.get_by_text("ada@example.com").wait_for()
    expect(shop.get_by_text("SHOP_REGION")).to_be_visible()  # an open section stays open
    # The user is typing: an update leaves the form alone.
    crm = page.locator("#crm")
    crm.get_by_text("Pause…").click()
    crm.get_by_label("Reason").fill("half a sen")
    panel.conductor.systems.resume("shop", "ada@example.com")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.evaluate("document.querySelector('#live').dispatchEvent(new Event('live'))")
    page.wait_for_load_state("networkidle")
    assert crm.get_by_label("Reason").input_value() == "half a sen"
    page.get_by_label("Refresh interval").select_option("off")
    expect(page.get_by_text("Not live")).to_be_visible()
    page.reload()
    expect(page.get_by_label("Refresh interval")).to_have_value("0")


def test_the_buttons_of_a_dead_letter_go_once_it_is_closed(visit: Visit, panel: Panel) -> None:
    page = visit.page
    visit.go("/dead-letters/1")
    page.get_by_text("Discard…").click()
    page.get_by_label("Why is this dead letter discarded?").fill("half a rea")
    with panel.database.write() as connection:
        closed = {"closed_at": utcnow(), "resolution": "discarded by ann@example.com: moved away"}
        connection.execute(sa.update(DeadLetter).where(DeadLetter.id == 1).values(closed))
    # The user is typing next to the heading: an update leaves that form alone as well.
    page.evaluate("document.querySelector('#live').dispatchEvent(new Event('live'))")
    page.wait_for_load_state("networkidle")
    expect(page.get_by_label("Why is this dead letter discarded?")).to_have_value("half a rea")
    page.keyboard.press("Escape")
    page.get_by_text("Discard…").focus()
    visit.key("r")
    page.get_by_text("moved away").wait_for()
    expect(page.locator("#actions")).to_be_empty()
    expect(page.get_by_role("button", name="Retry")).to_have_count(0)
    expect(page.get_by_label("Refresh interval")).to_be_visible()


def test_the_task_line_updates_while_a_form_is_being_edited(visit: Visit, panel: Panel) -> None:
    number = panel.conductor.tasks.start("resend", "ann", subscriber="shop.customer")
    visit.go("/mappings/shop.customer")
    visit.page.get_by_label("External field of row 1").fill("half a na")
    while panel.conductor.tasks.get(number).state == "running":
        panel.conductor.tasks.run_some()
    line = visit.page.get_by_role("status").filter(has_text="differ and are sent again")
    line.wait_for()
    assert line.get_attribute("data-line") is None
    assert visit.page.get_by_label("External field of row 1").input_value() == "half a na"
    line.get_by_role("link").click()
    visit.page.wait_for_url(f"**/tasks/{number}")


def test_the_chart_is_drawn_and_a_click_changes_its_span(visit: Visit, panel: Panel) -> None:
    visit.go("/")
    visit.page.locator(".uplot canvas").wait_for()
    expect(visit.page.locator("svg.chart")).to_have_count(0)
    # The legend shows the newest numbers while the mouse is elsewhere.
    values = visit.page.locator(".u-legend .u-value")
    expect(values).to_have_text([re.compile(r"\d\d:\d\d"), *[re.compile(r"^[\d.]+$")] * 4])
    visit.page.get_by_role("link", name="24h").click()
    visit.page.wait_for_url("**/?range=24h")
    visit.page.locator(".uplot canvas").wait_for()
    # When the page has changed, its numbers are requested and drawn into the existing chart.
    add_delivery(panel)
    with visit.page.expect_response(lambda r: "throughput.json" in r.url and r.status == 304):
        visit.key("r")
    # A delivery is shown once its time step is over.
    add_delivery(panel, at=utcnow() - timedelta(hours=2))
    panel.conductor.throughput.count()
    with visit.page.expect_response(lambda r: "throughput.json" in r.url and r.status == 200):
        visit.key("r")
    expect(visit.page.locator(".uplot canvas")).to_have_count(1)
    expect(visit.page.locator("svg.chart")).to_have_count(0)


def test_keys_lead_everywhere(visit: Visit) -> None:
    page = visit.page
    visit.go("/")
    visit.key("?")
    dialog = page.get_by_role("dialog", name="Keyboard")
    expect(dialog).to_be_visible()
    assert faults_of(visit, "the help") == []
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    visit.key("g")
    page.keyboard.press("j")
    page.wait_for_url("**/schedules/")
    visit.key("/")
    page.keyboard.type("g?")
    expect(page.get_by_role("searchbox")).to_have_value("g?")
    expect(dialog).to_be_hidden()


def test_an_id_is_copied(visit: Visit) -> None:
    visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.go("/links/1")
    copied = visit.page.locator("[data-copy]").first.inner_text()
    visit.page.get_by_role("button", name=f"Copy {copied}").first.click()
    visit.page.locator(".copy.done").wait_for()
    assert copied and visit.page.evaluate("navigator.clipboard.readText()") == copied


def test_times_are_the_readers_own(browser: Browser, panel: Panel) -> None:
    with served(panel.app) as base:
        context = browser.new_context(timezone_id="Asia/Tokyo", locale="en-GB")
        visit = Visit(context.new_page(), base)
        visit.log_in()
        visit.go("/audit/")
        time = visit.page.locator("time").first
        expected = visit.page.evaluate(
            "t => new Date(t).toLocaleString("
            "'en-GB', {dateStyle: 'medium', timeStyle: 'medium', timeZone: 'Asia/Tokyo'})",
            time.get_attribute("datetime"),
        )
        expect(time).to_have_text(expected)
        expect(time).to_have_attribute("title", re.compile("UTC$"))
        context.close()
