"""The panel in a real browser: every page, light and dark, wide and narrow, and the main tasks by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa
from axe_playwright_python.sync_playwright import Axe
from passlib.totp import TOTP  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Page, sync_playwright

from models.catalogues import Customer
from models.ledger import DeadLetter, System, Task
from tests.panel_world import PASSWORD, World, add_conflicts, served, world

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

PAGES = [
    "/", "/dead-letters/", "/dead-letters/1", "/dead-letters/?state=closed", "/systems/", "/mappings/",
    "/mappings/shop.customer", "/mappings/crm.customer", "/mappings/crm.customer/versions/1", "/unsubscriptions/",
    "/unsubscriptions/?record=2", "/unsubscriptions/1", "/links/", "/links/1",
    "/conflicts/alike?subscriber=shop.customer&field=email&choice=ours", "/conflicts/", "/conflicts/?state=settled",
    "/deliveries/", "/deliveries/1", "/changes/", "/inbox/", "/inbox/1", "/record/customer/1", "/record/customer/4",
    "/record/?q=nobody", "/record/?q=zzz",
    "/record/customer/4/edit", "/inbox/refused", "/inbox/?system=shop&since=2026-01-01T00:00&until=2099-01-01T00:00",
    "/schedules/", "/queues/", "/tasks/", "/tasks/1", "/?range=30d", "/users/",
    "/audit/", "/change", "/account/", "/tf-setup", "/mf-recovery-codes",
]  # fmt: skip

_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]


@dataclass
class Visit:
    """A page with everything the browser complained about."""

    page: Page
    base: str
    complaints: list[str] = field(default_factory=list)

    def go(self, path: str) -> None:
        self.page.goto(self.base + path)

    def log_in(self, role: str = "admin") -> None:
        self.go("/login")
        self.page.get_by_label("Email").fill(f"{role}@example.com")
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_role("button", name="Log in").click()

    def said(self) -> str:
        return self.page.get_by_role("status").inner_text()


@pytest.fixture(scope="module")
def browser(chromium_path: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def w(sqlite_url: str) -> Iterator[World]:
    with world(sqlite_url) as made:
        made.conductor.comparing.start("crm.customer", "operator@example.com")
        made.announcer.depths.update({"shop.customer": 7, "shop.customer.later": 1, "shop.inbox": 0})
        yield made


def _visit(browser: Browser, base: str, *, width: int = 1400, theme: str = "light", script: bool = True) -> Visit:
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if theme == "dark" else "light",
        java_script_enabled=script,
        reduced_motion="reduce",
    )
    visit = Visit(context.new_page(), base)
    # A page that breaks the content policy says so on the console too.
    visit.page.on("console", lambda m: visit.complaints.append(m.text) if m.type in ("error", "warning") else None)
    visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    visit.page.on("request", lambda r: None if r.url.startswith(base) else visit.complaints.append(f"asked {r.url}"))
    return visit


@pytest.fixture
def visit(browser: Browser, w: World) -> Iterator[Visit]:
    with served(w.app) as base:
        visit = _visit(browser, base)
        visit.log_in()
        yield visit
        visit.page.context.close()
    assert visit.complaints == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_every_page_is_accessible_and_quiet(browser: Browser, w: World, theme: str, width: int, tmp_path: Path) -> None:
    with served(w.app) as base:
        visit = _visit(browser, base, width=width, theme=theme)
        visit.go("/login")
        faults = _faults(visit, "/login")
        visit.log_in()
        for path in PAGES:
            visit.go(path)
            faults += _faults(visit, path)
            too_wide = visit.page.evaluate("document.documentElement.scrollWidth > innerWidth")
            faults += [f"{path} is wider than the window"] if too_wide else []
            # Again with everything open that can be.
            visit.page.evaluate("document.querySelectorAll('main details').forEach((d) => (d.open = true))")
            faults += _faults(visit, f"{path} opened")
        visit.page.context.close()
    assert faults == []
    assert visit.complaints == []


def _faults(visit: Visit, where: str) -> list[str]:
    found = Axe().run(visit.page).response["violations"]
    return [f"{where}: {fault['id']}: {node['html'][:160]}" for fault in found for node in fault["nodes"]]


def test_finding_out_why_a_record_did_not_sync(visit: Visit) -> None:
    visit.page.wait_for_url(visit.base + "/")
    visit.page.keyboard.press("/")
    visit.page.keyboard.type("nobody.one@example.com")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_url("**/record/customer/4")
    assert visit.page.get_by_role("heading", level=1).inner_text() == "Nobody One"
    stands = visit.page.get_by_role("region", name="In every system").get_by_role("listitem")
    assert "Nowhere is no city" in stands.filter(has_text="shop.customer").inner_text()


def test_retrying_all_that_match_takes_two_clicks(visit: Visit, w: World) -> None:
    visit.go("/dead-letters/")
    visit.page.locator(".kinds a").first.click()
    visit.page.get_by_role("button", name="Retry all 2 that match").click()
    assert visit.said() == "2 dead letters are tried again, in the background."
    task = w.rows(sa.select(Task.id).where(Task.kind == "retry"))[0].id
    while not w.rows(sa.select(Task.id).where(Task.id == task, Task.done == 2)):
        assert w.conductor.tasks.run_some()
    visit.page.reload()
    assert visit.page.get_by_text("trying again", exact=True).count() == 2
    visit.page.get_by_role("button", name=f"Stop task {task}").click()
    assert w.rows(sa.select(Task.state).where(Task.id == task)) == [("stopped",)]


def test_discarding_with_a_reason(visit: Visit, w: World) -> None:
    visit.go("/dead-letters/1")
    visit.page.get_by_text("Discard…").click()
    visit.page.get_by_label("Why need it not be sent?").fill("moved away")
    visit.page.get_by_role("button", name="Discard", exact=True).click()
    closed = w.rows(sa.select(DeadLetter.resolution).where(DeadLetter.closed_at.is_not(None)))
    assert [row.resolution for row in closed] == ["discarded by admin@example.com: moved away"]


def test_pausing_a_system_takes_two_clicks(visit: Visit, w: World) -> None:
    visit.go("/systems/")
    visit.page.locator("#shop").get_by_text("Pause…").click()
    visit.page.locator("#shop").get_by_label("Why is it paused?").fill("their maintenance")
    visit.page.get_by_role("button", name="Pause shop").click()
    assert w.rows(sa.select(System.pause_reason).where(System.name == "shop"))[0].pause_reason == "their maintenance"
    visit.page.locator("#shop").get_by_role("button", name="Resume").click()
    assert visit.said() == "shop is resumed."


@pytest.mark.parametrize("script", [True, False])
def test_editing_a_mapping_with_and_without_javascript(browser: Browser, w: World, script: bool) -> None:
    with served(w.app) as base:
        visit = _visit(browser, base, script=script)
        page = visit.page
        visit.log_in()
        visit.go("/mappings/shop.customer")
        page.get_by_role("button", name="Add a row").click()
        page.get_by_label("Internal column of row 5").fill("phone")
        page.get_by_label("External field of row 5").fill("contact.phone")
        page.get_by_role("button", name="Remove row 2").click()
        page.get_by_label("External field of row 3").fill("is_active")
        page.get_by_role("button", name="Try it").last.click()
        assert "5 records would change" in page.locator("#review").inner_text()
        page.get_by_label("On which record?").fill("Grace Hopper")
        page.get_by_role("button", name="Try on it").click()
        assert (
            "2" in page.get_by_label("On which record?").input_value()
            or "Grace" in page.locator("#review").inner_text()
        )
        assert page.locator(".payload tr.differs").count() >= 3
        page.get_by_role("button", name="Save as version 1").click()
        assert visit.said() == "Version 1 of shop.customer is in force."
        page.context.close()
    assert visit.complaints == []
    fields = w.conductor.mapping("shop.customer")[0].fields
    assert {name: entry.path for name, entry in fields.items()} == {
        "name": "name",
        "city": "address.city",
        "active": "is_active",
        "phone": "contact.phone",
    }
    assert fields["name"].required


def test_a_wrong_mapping_is_marked_where_it_is_wrong(browser: Browser, w: World) -> None:
    with served(w.app) as base:
        visit = _visit(browser, base, width=390, theme="dark")
        visit.log_in()
        visit.go("/mappings/shop.customer")
        visit.page.get_by_label("External field of row 2").fill("not a path")
        visit.page.get_by_label("Transform of row 2").fill("uper")
        visit.page.get_by_role("button", name="Try it").last.click()
        assert "no transform 'uper'" in visit.page.locator("#why-1").inner_text()
        assert _faults(visit, "a wrong mapping") == []
        visit.page.context.close()


def test_holding_records_back_and_lifting_it(visit: Visit, w: World, tmp_path: Path) -> None:
    page = visit.page
    visit.go("/unsubscriptions/")
    page.get_by_text("New unsubscription").click()
    page.get_by_label("To whom").first.select_option("crm.customer")
    page.get_by_label("only these:").check()
    (tmp_path / "list.csv").write_text("email\nada.lovelace@example.com\nnobody@example.com\n")
    page.get_by_label("Add a CSV file").set_input_files(tmp_path / "list.csv")
    page.get_by_role("button", name="Check the list").click()
    assert "nobody@example.com" in page.locator(".checked").inner_text()
    assert _faults(visit, "a checked list") == []
    page.get_by_label("Keep them in the list").check()
    page.get_by_label("Why", exact=True).fill("an audit")
    page.get_by_role("button", name="Unsubscribe", exact=True).click()
    assert visit.said() == "Unsubscription #2 is in force."
    page.get_by_label("Is a record held back?").fill("Grace Hopper")
    page.get_by_role("button", name="Look").click()
    page.locator("#held-back").get_by_role("link", name="#1").click()
    page.get_by_role("button", name="Lift and bring 1 over").click()
    assert visit.said() == "Unsubscription #1 is lifted; 1 records are on their way."


def test_settling_conflicts_field_by_field_and_all_alike(visit: Visit, w: World) -> None:
    page = visit.page
    add_conflicts(w)
    visit.go("/conflicts/")
    assert _faults(visit, "conflicts") == []
    page.get_by_label("Theirs for email of Ada Lovelace").check()
    page.get_by_label("Ours for address.city of Ada Lovelace").check()
    page.get_by_role("button", name="Settle Ada Lovelace as picked").click()
    assert visit.said().startswith("Settled: ")
    page.get_by_role("link", name="Take theirs in all 2 of email").click()
    page.get_by_role("button", name="Take theirs in all 2").click()
    while w.conductor.tasks.run_some():
        pass
    visit.go("/conflicts/")
    assert page.get_by_text("No conflicts.").is_visible()
    emails = [row.email for row in w.rows(sa.select(Customer.email).order_by(Customer.id).limit(3))]
    assert emails == ["theirs1", "theirs2", "theirs3"]


def test_a_second_factor_from_the_account_page_to_the_next_login(visit: Visit, w: World) -> None:
    page = visit.page
    page.get_by_label("Your account").click()
    page.get_by_role("link", name="Your account").click()
    page.get_by_role("link", name="Set up").click()
    page.get_by_role("button", name="Set up").click()
    assert page.get_by_role("img", name="QR code").locator("path").count() == 1
    assert _faults(visit, "the QR code") == []
    phone = TOTP(key=page.locator("code.key").inner_text().replace("-", ""), format="base32")
    page.get_by_label("Type the code").fill(str(phone.generate().token))
    page.get_by_role("button", name="Turn on").click()
    page.get_by_role("link", name="Make them").click()
    page.get_by_role("button", name="Make new codes").click()
    code = page.locator(".codes code").first.inner_text()
    page.get_by_label("Your account").click()
    page.get_by_role("button", name="Log out").click()
    visit.log_in()
    assert _faults(visit, "the code") == []
    page.get_by_role("link", name="Use a recovery code").click()
    assert _faults(visit, "a recovery code") == []
    page.get_by_label("One of the codes you kept").fill(code)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(visit.base + "/")


def test_a_new_user_is_told_a_password_for_one_login(visit: Visit, w: World) -> None:
    page = visit.page
    visit.go("/users/")
    page.get_by_text("New user").click()
    page.get_by_role("textbox", name="Email").fill("new@example.com")
    page.get_by_role("button", name="Create user").click()
    assert _faults(visit, "a password for one login") == []
    password = page.locator("#password").inner_text()
    page.get_by_label("Your account").click()
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Email").fill("new@example.com")
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    assert page.get_by_role("heading", level=1).inner_text() == "Change password"


def test_the_theme_is_remembered(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Switch between light and dark").click()
    visit.go("/links/")
    assert visit.page.evaluate("getComputedStyle(document.body.parentElement).colorScheme") == "dark"


def test_the_menu_on_a_phone(browser: Browser, w: World) -> None:
    with served(w.app) as base:
        visit = _visit(browser, base, width=390)
        visit.log_in("viewer")
        visit.page.get_by_role("link", name="Open the menu").click()
        visit.page.get_by_role("link", name="Deliveries").click()
        assert visit.page.get_by_role("heading", level=1).inner_text() == "Deliveries"
        visit.page.context.close()
    assert visit.complaints == []


def test_a_page_updates_itself_and_leaves_alone_what_is_in_hand(visit: Visit, w: World) -> None:
    visit.go("/systems/")
    shop, page = visit.page.locator("#shop"), visit.page
    shop.get_by_text("Options").click()
    with page.expect_response(lambda r: r.status == 304):
        page.keyboard.press("r")
    w.conductor.pause("shop", "ada@example.com", "their maintenance")
    page.keyboard.press("r")
    shop.get_by_text("ada@example.com").wait_for()
    assert shop.get_by_text("SHOP_REGION").is_visible()  # what was open stays open
    # Somebody types: nothing is taken from under his hands.
    crm = page.locator("#crm")
    crm.get_by_text("Pause…").click()
    crm.get_by_label("Why is it paused?").fill("half a sen")
    w.conductor.resume("shop", "ada@example.com")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.evaluate("document.querySelector('#live').dispatchEvent(new Event('live'))")
    page.wait_for_load_state("networkidle")
    assert crm.get_by_label("Why is it paused?").input_value() == "half a sen"
    page.get_by_label("How often this page is updated").select_option("off")
    assert page.get_by_text("Not live").is_visible()
    page.reload()
    assert page.get_by_label("How often this page is updated").input_value() == "0"


def test_the_chart_is_drawn_and_a_click_changes_its_span(visit: Visit) -> None:
    visit.go("/")
    visit.page.locator(".uplot canvas").wait_for()
    assert visit.page.locator("svg.chart").count() == 0
    visit.page.get_by_role("link", name="24h").click()
    visit.page.wait_for_url("**/?range=24h")
    visit.page.locator(".uplot canvas").wait_for()
    with visit.page.expect_response(lambda r: "throughput.json" in r.url and r.status == 304):
        visit.page.keyboard.press("r")
    assert visit.page.locator(".uplot canvas").count() == 1


def test_keys_lead_everywhere(visit: Visit) -> None:
    page = visit.page
    visit.go("/")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keyboard")
    assert dialog.is_visible() and _faults(visit, "the help") == []
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    page.keyboard.press("g")
    page.keyboard.press("j")
    page.wait_for_url("**/schedules/")
    page.keyboard.press("/")
    page.keyboard.type("g?")
    assert page.get_by_role("searchbox").input_value() == "g?" and not dialog.is_visible()


def test_an_id_is_copied(visit: Visit) -> None:
    visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.go("/links/1")
    copied = visit.page.locator("[data-copy]").first.inner_text()
    visit.page.get_by_role("button", name=f"Copy {copied}").first.click()
    visit.page.locator(".copy.done").wait_for()
    assert copied and visit.page.evaluate("navigator.clipboard.readText()") == copied


def test_times_are_the_readers_own(browser: Browser, w: World) -> None:
    with served(w.app) as base:
        context = browser.new_context(timezone_id="Asia/Tokyo", locale="en-GB")
        visit = Visit(context.new_page(), base)
        visit.log_in()
        visit.go("/audit/")
        time = visit.page.locator("time").first
        told = visit.page.evaluate(
            "t => new Date(t).toLocaleString("
            "'en-GB', {dateStyle: 'medium', timeStyle: 'medium', timeZone: 'Asia/Tokyo'})",
            time.get_attribute("datetime"),
        )
        assert time.inner_text() == told
        assert (time.get_attribute("title") or "").endswith("UTC")
        context.close()
