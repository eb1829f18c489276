"""The panel in a real browser: actions of a user, and the errors that the browser reports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.support.panel import PASSWORD

_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]

_AXE = Axe().axe_script


@dataclass
class Visit:
    """A page, everything the browser complained about, and the number of clicks so far."""

    page: Page
    base: str
    complaints: list[str] = field(default_factory=list)
    clicks: int = 0

    def go(self, path: str) -> None:
        self.page.goto(self.base + path)

    def log_in(self, role: str = "admin") -> None:
        self.go("/login")
        self.page.get_by_label("Email").fill(f"{role}@example.com")
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_role("button", name="Log in").click()
        self.page.wait_for_url(lambda url: url != f"{self.base}/login")

    def key(self, name: str) -> None:
        """Press a key after the page has loaded, so that its scripts listen."""
        self.page.wait_for_load_state()
        self.page.keyboard.press(name)

    def is_told(self, words: str | re.Pattern[str]) -> None:
        """Wait until the status line shows these words (a click returns when its response begins)."""
        expect(self.page.get_by_role("status").first).to_have_text(words)

    def is_headed(self, words: str) -> None:
        """Wait until the page has this heading."""
        expect(self.page.get_by_role("heading", level=1)).to_have_text(words)

    def click(self, what: Locator) -> None:
        """Click and count the click."""
        what.click()
        self.clicks += 1

    def press(self, name: str) -> None:
        """Click the button of this name."""
        self.click(self.page.get_by_role("button", name=name, exact=True))

    def follow(self, name: str) -> None:
        """Click the link of this name."""
        self.click(self.page.get_by_role("link", name=name, exact=True))

    def is_too_wide(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth"))


@contextmanager
def launched(chromium_path: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=_ARGUMENTS)
        yield browser
        browser.close()


def open_visit(
    browser: Browser, base: str, *, width: int = 1400, theme: str = "light", script: bool = True, locale: str = "en-US"
) -> Visit:
    context = browser.new_context(
        locale=locale,
        viewport={"width": width, "height": 900},
        color_scheme="dark" if theme == "dark" else "light",
        java_script_enabled=script,
        reduced_motion="reduce",
    )
    visit = Visit(context.new_page(), base)
    # The console also reports violations of the content policy.
    visit.page.on("console", lambda m: visit.complaints.append(m.text) if m.type in ("error", "warning") else None)
    visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    visit.page.on("request", lambda r: None if r.url.startswith(base) else visit.complaints.append(f"asked {r.url}"))
    return visit


def in_theme(visit: Visit, theme: str) -> None:
    """Show this and later pages as for a user whose system is light or dark."""
    visit.page.emulate_media(color_scheme="dark" if theme == "dark" else "light")


def faults_of(visit: Visit, where: str, *, only: str | None = None) -> list[str]:
    """Return what axe finds on the page after it has loaded (a click returns when its response begins).

    `only` names the one rule to check.
    """
    visit.page.wait_for_load_state()
    if not visit.page.evaluate("'axe' in window"):  # the script is long: load it once per page
        visit.page.evaluate(_AXE)
    options: dict[str, object] = {"resultTypes": ["violations"], **({"runOnly": [only]} if only else {})}
    found = visit.page.evaluate("(options) => axe.run(options).then((found) => found.violations)", options)
    return [f"{where}: {fault['id']}: {node['html'][:160]}" for fault in found for node in fault["nodes"]]
