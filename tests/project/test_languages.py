"""The panel in the user's language: which language a user gets, and that no text is left in English."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from gettext import NullTranslations
from html.parser import HTMLParser
from pathlib import Path

import pytest
import sqlalchemy as sa

from i18n import ENGLISH, Language, current_locale, gettext, ngettext, set_locale
from models.ledger import AuditEntry
from models.users import User
from panel.rendering import filters, locale
from tests.support.panel import Panel, add_conflicts, csrf, open_panel, post

ROOT = Path(__file__).resolve().parents[2]

#: One page of each kind, with the ids of the fixture's data.
PAGES = (
    "/", "/dead-letters/", "/dead-letters/1", "/dead-letters/?state=closed", "/systems/", "/mappings/",
    "/mappings/shop.customer", "/mappings/crm.customer", "/mappings/crm.customer/versions/1", "/unsubscriptions/",
    "/unsubscriptions/?record=2", "/unsubscriptions/1", "/links/", "/links/1", "/conflicts/",
    "/conflicts/?state=resolved", "/conflicts/resolve-all?subscriber=shop.customer&field=email&choice=ours",
    "/deliveries/", "/deliveries/1", "/changes/", "/inbox/", "/inbox/1", "/inbox/refused",
    "/inbox/?system=shop&since=2026-01-01T00:00&until=2099-01-01T00:00", "/record/customer/1", "/record/customer/4",
    "/record/?q=nobody", "/record/?q=zzz", "/record/customer/4/edit", "/schedules/", "/queues/", "/tasks/", "/users/",
    "/audit/", "/change", "/account/", "/tf-setup", "/mf-recovery-codes",
)  # fmt: skip
GERMAN_PAGES = {
    "/": "Übersicht", "/dead-letters/": "Unzustellbar", "/conflicts/": "Konflikte", "/systems/": "Systeme",
    "/mappings/": "Zuordnungen", "/unsubscriptions/": "Abmeldungen", "/schedules/": "Zeitpläne", "/tasks/": "Aufgaben",
    "/links/": "Verknüpfungen", "/deliveries/": "Zustellungen", "/changes/": "Änderungen", "/inbox/": "Eingang",
    "/queues/": "Warteschlangen", "/account/": "Eigenes Konto", "/change": "Passwort ändern",
}  # fmt: skip
GERMAN = {"Accept-Language": "de-DE,de;q=0.9,en;q=0.5"}


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Panel]:
    with open_panel(f"sqlite:///{tmp_path_factory.mktemp('panel') / 'syncflow.db'}") as made:
        add_conflicts(made)
        yield made


@pytest.fixture(autouse=True)
def english_again() -> Iterator[None]:
    yield
    set_locale(ENGLISH)


# --- the catalogues ---------------------------------------------------------------------------------------


def test_every_text_is_in_every_catalogue() -> None:
    texts = runpy.run_path(str(ROOT / "scripts" / "texts"))
    sources = texts["in_sources"]()
    assert len(sources) > 500
    for file in locale.FOLDER.glob("*/LC_MESSAGES/messages.po"):
        wrong = list(texts["problems"](texts["read"](file), sources))
        assert wrong == [], "run `make texts`, then translate"


def test_what_the_scripts_say_is_in_the_page() -> None:
    scripts = "".join(file.read_text() for file in (ROOT / "panel" / "static").glob("*.js"))
    call = r"\b(?:translate|showState)\("
    said = set(re.findall(rf'{call}"([^"]+)"', scripts))
    said |= {text for pair in re.findall(rf'{call}[^?"]*\? "([^"]+)" : "([^"]+)"', scripts) for text in pair}
    assert said == set(filters.IN_SCRIPTS)


def test_a_text_is_said_in_the_language_chosen_and_in_english_without_one() -> None:
    assert (current_locale(), gettext("in {time}", time="3 s"), ngettext("{n} field", "{n} fields", 2)) == (
        ENGLISH,
        "in 3 s",
        "2 fields",
    )
    set_locale(locale.all_languages()["de"])
    assert (gettext("{time} ago", time="3 s"), ngettext("{n} field", "{n} fields", 1)) == ("vor 3 s", "1 Feld")
    assert gettext("what nobody translated, {as_it_is}") == "what nobody translated, {as_it_is}"


# --- choice of the language ---------------------------------------------------------------------------------


def test_the_login_page_speaks_as_the_browser_asks(panel: Panel) -> None:
    german = panel.client().get("/login", headers=GERMAN).text
    assert '<html lang="de"' in german and "<h1>Anmelden</h1>" in german
    for other in ({}, {"Accept-Language": "fr"}, {"Accept-Language": "en-US,de;q=0.5"}):
        assert '<html lang="en">' in panel.client().get("/login", headers=other).text


def test_the_choice_of_the_account_goes_before_the_browsers(panel: Panel) -> None:
    client = panel.client("operator")
    try:
        answer = post(client, "/account/language", language="de")
        assert answer.status_code == 303
        page = client.get("/account/", headers={"Accept-Language": "en"}).text
        assert '<html lang="de"' in page and "Die Sprache des Panels ist jetzt Deutsch." in page
        assert 'value="de" lang="de" selected' in page
        newest = sa.select(AuditEntry.action, AuditEntry.details).order_by(AuditEntry.id.desc()).limit(1)
        assert panel.rows(newest)[0] == ("user.language", {"language": "de"})
        # Other users keep their own language.
        assert '<html lang="en">' in panel.client("viewer").get("/").text
    finally:
        post(client, "/account/language", language="")
    assert '<html lang="en">' in client.get("/account/").text
    assert '<html lang="de"' in client.get("/account/", headers=GERMAN).text


def test_no_other_language_is_taken(panel: Panel) -> None:
    assert post(panel.client("viewer"), "/account/language", language="xx").status_code == 400
    assert panel.rows(sa.select(User.language).where(User.email == "viewer@example.com"))[0][0] is None


def test_a_language_that_is_gone_counts_as_none(panel: Panel) -> None:
    client = panel.client("viewer")
    with panel.database.write() as connection:
        connection.execute(sa.update(User).where(User.email == "viewer@example.com").values(language="xx"))
    try:
        assert '<html lang="de"' in client.get("/", headers=GERMAN).text
    finally:
        with panel.database.write() as connection:
            connection.execute(sa.update(User).values(language=None))


def test_programs_are_answered_in_english(panel: Panel) -> None:
    assert "Login required" in panel.client().get("/metrics", headers=GERMAN).text
    assert "Method not allowed" in panel.client().get("/webhooks/shop", headers=GERMAN).text


def test_the_next_request_of_a_thread_begins_anew(panel: Panel) -> None:
    panel.client().get("/login", headers=GERMAN)
    assert current_locale() is ENGLISH


def test_an_open_page_is_made_anew_in_another_language(panel: Panel) -> None:
    client = panel.client("viewer")
    etag = client.get("/tasks/").headers["ETag"]
    asked = {"HX-Request": "true", "If-None-Match": etag}
    assert client.get("/tasks/", headers=asked).status_code == 304
    assert client.get("/tasks/", headers=asked | GERMAN).status_code == 200


def test_the_login_library_speaks_the_same_language(panel: Panel) -> None:
    client = panel.client()
    ours = post(client, "/login", email="viewer@example.com", password="wrong")
    assert "Email or password is wrong." in ours.text
    data = {"email": "viewer@example.com", "password": "wrong", "csrf_token": csrf(client)}
    assert "E-Mail oder Passwort ist falsch." in client.post("/login", data=data, headers=GERMAN).text
    client = panel.client("viewer")
    data = {"password": "wrong", "new_password": "a long new password", "csrf_token": csrf(client)}
    theirs = client.post("/change", data=data | {"new_password_confirm": "another one"}, headers=GERMAN).text
    assert "Passwörter stimmen nicht überein" in theirs and "Passwort ändern" in theirs


# --- no text left in English ----------------------------------------------------------------------------------


class Marked(NullTranslations):
    """A language that returns each text of the sources unchanged, between brackets."""

    def __init__(self, known: set[str]) -> None:
        super().__init__()
        self.known = known

    def gettext(self, message: str) -> str:
        return f"⟦{message}⟧" if message in self.known else message

    def ngettext(self, one: str, many: str, n: int) -> str:
        return f"⟦{one if n == 1 else many}⟧"


class Page(HTMLParser):
    """The text of a page, with its readable attributes; without code, times and the contents of records."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.said = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        for name in ("aria-label", "title", "placeholder", "data-label"):
            self.said += f"\n{known.get(name) or ''}\n"
        if tag not in ("input", "meta", "link", "img", "br"):
            self.open.append((tag, known.get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        code = any(tag in ("code", "pre", "time", "script", "kbd") or "mono" in kind for tag, kind in self.open)
        self.said += "\n" + ("".join(re.findall("[⟦⟧]", data)) if code else data)


#: Text that no catalogue translates: names, text by users and programs, contents of the database.
DATA = re.compile(
    r"(shop|crm)(\.customer)?|customer|product|invoice|Shop|Crm|[a-z.]+@example\.com|Ada Lovelace"
    r"|Grace Hopper|Alan Turing|Nobody (One|Two)|(London|Nowhere)( is no city)?"
    r"|address\.city:|Reject|billing freeze:?|command line"
    r"|webhook|email|viewer|operator|admin|web|relay|worker|scheduler|English|Deutsch|CSV|Syncflow|RabbitMQ|true"
    r"|\d+ records|operation|records|reason|before|after|role|language|ms|UTC|\d\d? [A-Z][a-z][a-z] \d\d:\d\d"
    r"|mapping, login\.failed|stripe, #12|unsubscription #1 \(billing freeze\) holds it back"
)


def left_over(html: str) -> set[str]:
    """Return the lines of a page that went through no catalogue."""
    said, before = Page(html).said, ""
    while before != said:  # one text may contain another
        before, said = said, re.sub(r"⟦[^⟦⟧]*⟧", "\n", said)
    lines = (DATA.sub("", line).strip() for line in said.splitlines())
    return {line for line in lines if re.search(r"[A-Za-z]{2}", line)}


def test_every_page_says_all_it_says_through_the_catalogue(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = runpy.run_path(str(ROOT / "scripts" / "texts"))["in_sources"]()
    known = {text for message in sources for text in ([message.id] if isinstance(message.id, str) else message.id)}
    marked = {"en": ENGLISH, "de": Language("de", "Deutsch", Marked(known))}
    monkeypatch.setattr(locale, "all_languages", lambda: marked)
    client = panel.client("admin")
    found = {}
    for path in (*PAGES, "/mappings/shop.customer?from=default", "/nobody"):
        answer = client.get(path, headers=GERMAN)
        assert answer.status_code == (404 if path == "/nobody" else 200), path
        found[path] = left_over(answer.text)
    found["/login"] = left_over(panel.client().get("/login", headers=GERMAN).text)
    assert {path: texts for path, texts in found.items() if texts} == {}


def test_every_page_is_german_for_a_german(panel: Panel) -> None:
    client = panel.client("operator")
    pages = {path: client.get(path, headers=GERMAN).text for path in GERMAN_PAGES}
    headings = {path: re.findall(r"<h1>\s*(.*?)\s*</h1>", text, re.DOTALL) for path, text in pages.items()}
    assert headings == {path: [heading] for path, heading in GERMAN_PAGES.items()}
    record = client.get("/record/customer/4", headers=GERMAN).text
    for text in ("Stand je System", "nicht gesendet seit", "Zustellung an Shop gescheitert: unzustellbar"):
        assert text in record
    assert "unzustellbare Sendungen sind von Hand zu klären" in pages["/"]
