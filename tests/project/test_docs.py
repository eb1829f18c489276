"""The documentation: the names in it exist, its tables are correct, and its code runs."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import BaseModel, SecretStr

import subscribers as shipped
from benchmarks.__main__ import BENCHES
from cli.new_subscriber import write
from models import capture
from models.capture import sync_context
from models.catalogues import CATALOGUES, Customer, Invoice, InvoiceLine
from models.ledger import Change, DeadLetter
from models.schema import migrate
from models.session import Database
from settings import VAR, Settings
from simulators.rest import DEMO_TOKEN
from simulators.rest import RestSystem as ShopLike
from subscribers.mapping.paths import nest
from subscribers.registry import REGISTRY
from tests.support.documents import ROOT, marked
from tests.support.records import mark
from tests.support.registered_hub import RegisteredHub

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"(?m)^([a-z-]+):", MAKEFILE)) | {f"bench-{name}" for name in ("", *BENCHES)}

#: Files that the documentation asks the reader to create.
READERS_OWN = {"subscribers/shop.py", "tests/subscribers/test_shop.py"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def code_of(page: Path) -> list[str]:
    """Return every piece of inline code and every line of the code blocks."""
    text = page.read_text()
    blocks = re.findall(r"(?ms)^ *```\w*\n(.*?)^ *```", text)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^ *```.*?^ *```", "", text))
    return [line for block in blocks for line in block.splitlines()] + inline


def slug(heading: str) -> str:
    return re.sub(r"[^\w\s-]", "", heading.strip().lower()).replace(" ", "-")


# --- names ----------------------------------------------------------------------------------------------


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|srcset)=\"([^\"]+)\"", text)
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"(?m)^#+ (.+)$", found.read_text())
            assert anchor in map(slug, headings), target


def test_every_picture_is_shown_and_every_page_is_pictured() -> None:
    said = "".join(page.read_text() for page in PAGES)
    kept = {path.name for path in (ROOT / "docs" / "images").iterdir()}
    assert [name for name in sorted(kept) if f"images/{name}" not in said] == []
    taken = re.findall(r'(?m)^    "([a-z-]+)": "/', (ROOT / "scripts" / "screenshots").read_text())
    assert {f"{name}-{scheme}.png" for name in taken for scheme in ("light", "dark")} <= kept


@each_page
def test_files_that_are_named_exist(page: Path) -> None:
    tops = {path.name for path in ROOT.iterdir()} - {"var"}
    for code in code_of(page):
        top = code.partition("/")[0]
        is_path = re.fullmatch(r"[\w.-]+/[\w./-]*", code) and top in tops
        is_file = re.fullmatch(r"[\w-]+\.(py|txt|md|toml)", code)
        if (is_path or is_file) and code not in READERS_OWN:
            assert (ROOT / code).exists(), code


@each_page
def test_make_targets_that_are_named_exist(page: Path) -> None:
    for code in code_of(page):
        for target in re.findall(r"(?:^|\s)make ((?:[a-z-]+ ?)+)", code.split("#")[0]):
            assert set(target.split()) <= TARGETS, code


@each_page
def test_commands_that_are_named_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cli import parser  # noqa: PLC0415 - it imports Flask

    for code in code_of(page):
        line = code.split("#")[0]
        if not line.startswith("./syncflow "):
            continue
        try:
            parser().parse_args(shlex.split(line)[1:])
        except SystemExit as end:
            assert end.code == 0, f"{code}: {capsys.readouterr().err}"


def test_the_words_are_explained_once_and_in_order() -> None:
    words = re.findall(r"(?m)^\| (.+?) \|", (ROOT / "docs/glossary.md").read_text())[1:]
    asked = {
        "catalogue", "record", "system", "subscriber", "`field_to_data`", "change", "link", "delivery",
        "dead letter", "unsubscription", "inbox", "cursor", "conductor", "task",
    }  # fmt: skip
    assert asked <= set(words)
    assert words == sorted(set(words), key=lambda word: word.strip("`").lower())


# --- settings -------------------------------------------------------------------------------------------


def default_of(model: type[BaseModel], name: str) -> str:
    """Return a default as the docs show it: empty for None and secrets, `var` in place of the path of VAR."""
    default = model.model_fields[name].get_default()
    if default is None or isinstance(default, SecretStr) or model.model_fields[name].is_required():
        return ""
    return str(default).replace(str(VAR), "var")


def shipped_options() -> dict[str, tuple[type[BaseModel], str]]:
    """Return every variable of the shipped systems -> (its options class, its field)."""
    systems = {s.system: s.system_class.Options for s in REGISTRY.values() if s.__module__.startswith(shipped.__name__)}
    return {
        f"{name}_{field}".upper(): (options, field)
        for name, options in systems.items()
        for field in options.model_fields
    }


def test_every_setting_has_a_description() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_example_environment_names_every_setting_and_holds_no_secret() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    found = dict(line[1:].split("=", 1) for line in lines if re.match(r"#[A-Z][A-Z_]+=", line))
    known = {name.upper(): (Settings, name) for name in Settings.model_fields} | shipped_options()
    assert found == {name: default_of(*where) for name, where in known.items()}
    assert all(line == "" or line.startswith("#") for line in lines), "copied as it is it must change nothing"


def test_the_systems_pages_name_their_settings() -> None:
    everywhere = {"requests_per_second", "concurrency", "delete_limit", "max_response_bytes"}
    for variable, (_, field) in shipped_options().items():
        page = ROOT / "docs" / "howto" / f"{variable.partition('_')[0].lower()}.md"
        assert field in everywhere or variable in page.read_text(), f"{page.name} does not say what {variable} is"


# --- generated files ------------------------------------------------------------------------------------


def script(*command: str) -> None:
    """Run one of the project's scripts and require that it succeeds."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_reference_is_what_the_code_says() -> None:
    script("scripts/reference", "--check")


def test_the_site_has_every_page_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    script("-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path))
    for page in (ROOT / "docs").rglob("*.md"):
        name = "index.html" if page.name in ("index.md", "README.md") else f"{page.stem}.html"
        assert (tmp_path / page.relative_to(ROOT / "docs")).with_name(name).exists(), page
    loaded = re.compile(
        r"""<(?:script|img|iframe)[^>]+src="(https?:[^"]+)|<link[^>]+rel="stylesheet"[^>]+href="(https?:[^"]+)"""
    )
    assert [found for path in tmp_path.rglob("*.html") for found in loaded.findall(path.read_text())] == []
    assert [path.name for path in tmp_path.rglob("*.css") if re.search(r"url\(.?https?:", path.read_text())] == []


# --- quoted code ----------------------------------------------------------------------------------------


def test_the_quoted_declaration_is_in_the_code() -> None:
    quoted = marked("excerpt: models/catalogues.py", "docs/howto/add-a-catalogue.md")
    assert quoted.strip() in (ROOT / "models/catalogues.py").read_text()


def test_the_quoted_mappings_are_the_shipped_ones() -> None:
    for page, names in (
        ("docs/howto/stripe.md", ("stripe.customer", "stripe.product", "stripe.invoice")),
        ("docs/howto/salesforce.md", ("salesforce.customer",)),
    ):
        section = (ROOT / page).read_text().split("## What is mapped")[1].split("##")[0]
        tables = [re.findall(r"(?m)^\| `(\w+)` \| `([\w.]+)`", part) for part in section.split("|---|---|")[1:]]
        for mapped, name in zip(tables, names, strict=True):
            fields = REGISTRY[name].field_to_data.items()
            assert dict(mapped) == {column: f if isinstance(f, str) else f.path for column, f in fields}


# --- examples that run ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def tables_put_back() -> Iterator[None]:
    """After each test, remove what its example registered or declared."""
    tables: tuple[dict[str, Any], ...] = (REGISTRY, CATALOGUES)
    before = [(kept, dict(kept)) for kept in tables]
    yield
    for kept, was in before:
        kept.clear()
        kept.update(was)


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[ShopLike]:
    with ShopLike() as shop:
        monkeypatch.setenv("SHOP_URL", shop.url)
        monkeypatch.setenv("SHOP_TOKEN", DEMO_TOKEN)
        monkeypatch.setenv("SHOP_WEBHOOK_SECRET", "a-long-random-text")
        yield shop


@pytest.fixture
def start(sqlite_url: str) -> Iterator[Callable[[str], RegisteredHub]]:
    """Return a function that runs an example's code and starts a hub with the subscribers it registered."""
    migrate(sqlite_url)
    database = Database(sqlite_url)

    def start(code: str) -> RegisteredHub:
        known = set(REGISTRY)
        exec(compile(code, "example", "exec", dont_inherit=True), {"__name__": "example"})  # noqa: S102 - it is our own documentation
        return RegisteredHub(database, set(REGISTRY) - known)

    yield start
    database.close()


def test_the_readmes_example_is_short() -> None:
    code = marked("runs: readme-shop", "README.md")
    assert len(code.strip().splitlines()) <= 15


SHOPS = [
    ("README.md", "runs: readme-shop"),
    ("docs/howto/add-a-subscriber.md", "runs: configured"),
    ("docs/howto/add-a-subscriber.md", "runs: own-class"),
]


@pytest.mark.parametrize("page, name", SHOPS)
def test_an_example_subscriber_keeps_customers_in_sync(
    page: str, name: str, shop: ShopLike, start: Callable[[str], RegisteredHub]
) -> None:
    hub = start(marked(name, page))
    key = hub.add(name="Ada", email="ada@x.example", phone="1", notes="first")
    hub.run()
    (contact,) = shop.contacts.newest(9)[0]
    assert (contact["name"], contact["external_ref"], contact["note"]) == ("Ada", mark(hub, key), "first")

    shop.contacts.update(contact["id"], {"name": "Ada Lovelace"})
    hub.poll("shop.customer")
    assert hub.customer(key).name == "Ada Lovelace"
    assert not shop.journal.calls("PATCH"), "what came from the shop must not go back to it"

    hub.execute(sa.update(Customer).values(phone="2"))
    hub.run()
    assert shop.contacts.get(contact["id"])["phone"] == "2"
    assert len(shop.journal.calls("PATCH")) == 1

    with hub.conductor.database.write() as connection, sync_context(connection, unsubscribe=["shop"]):
        connection.execute(sa.insert(Customer).values(name="Grace", email="grace@x.example"))
    shop.contacts.create({"name": "Grace Hopper", "email": "grace@x.example"})
    hub.poll("shop.customer")
    with hub.conductor.database.read() as connection:
        names = connection.execute(sa.select(Customer.name).order_by(Customer.id)).scalars().all()
    assert len(names) == 2, "matched by its email, not created again"


def test_the_configured_example_takes_webhooks(shop: ShopLike, start: Callable[[str], RegisteredHub]) -> None:
    hub = start(marked("runs: configured", "docs/howto/add-a-subscriber.md"))
    key = hub.add(name="Ada", email="ada@x.example")
    hub.run()
    (contact,) = shop.contacts.newest(9)[0]
    shop.contacts.update(contact["id"], {"name": "Ada Lovelace"})
    now = shop.contacts.get(contact["id"])
    event = {"id": "evt_1", "event": "contact.updated", "occurred_at": now["updated_at"], "data": now}
    body = json.dumps(event).encode()
    signature = hmac.new(b"a-long-random-text", body, hashlib.sha256).hexdigest()
    assert hub.conductor.store_webhook("shop", body, {"X-Signature": signature})
    hub.run()
    assert hub.customer(key).name == "Ada Lovelace"


def test_the_example_class_does_what_the_page_says(shop: ShopLike, start: Callable[[str], RegisteredHub]) -> None:
    hub = start(marked("runs: own-class", "docs/howto/add-a-subscriber.md"))
    key, other = hub.add(name="Ada", email="Ada@X.example"), hub.add(name="Nobody")
    hub.run()
    (contact,) = shop.contacts.newest(9)[0]
    assert (contact["email"], contact["note"]) == ("ada@x.example", "none"), "the transform and the default"
    with hub.conductor.database.read() as connection:
        letter = connection.execute(sa.select(DeadLetter.__table__)).one()
    assert (letter.record_id, letter.error, letter.fields) == (str(other), "Reject", {"email": "is required"})

    hub.execute(sa.delete(Customer).where(Customer.id == key))
    hub.run()
    assert shop.contacts.get(contact["id"])["note"] == "closed", "archived there"

    third = hub.add(name="Emmy", email="emmy@x.example")
    hub.run()
    shop.contacts.delete(shop.contacts.newest(1)[0][0]["id"])
    hub.execute(sa.update(Customer).where(Customer.id == third).values(phone="3"))
    hub.run()
    assert hub.customer(third).active is False, "gone there, archived here"


def test_the_invoice_example_sends_lines(
    monkeypatch: pytest.MonkeyPatch, start: Callable[[str], RegisteredHub]
) -> None:
    monkeypatch.setenv("BOOKS_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("BOOKS_TOKEN", "t")
    hub = start(marked("runs: invoice", "docs/howto/add-a-catalogue.md"))
    customer = hub.add(name="Ada")
    invoice = {"customer_id": customer, "number": "2026-1", "due_date": sa.func.date("2026-12-24")}
    (key,) = hub.execute(sa.insert(Invoice).values(**invoice)).inserted_primary_key
    hub.conductor.relay()
    hub.execute(sa.insert(InvoiceLine).values(invoice_id=key, description="Tea", quantity=2, unit_price=450))
    with hub.conductor.database.read() as connection:
        waiting = connection.execute(sa.select(Change.__table__).where(Change.relayed_at.is_(None))).one()
        subscriber = hub.conductor.subscribers["books.invoice"]
        record = subscriber.records.read(connection, [waiting.record_id])[str(key)]
    assert (waiting.catalogue, waiting.record_id, waiting.operation) == ("invoice", str(key), "updated")
    assert nest(subscriber.default_mapper.outward(record)) == {
        "number": "2026-1",
        "status": "draft",
        "due_on": "2026-12-24",
        "lines": [{"text": "Tea", "quantity": 2, "price": "4.50"}],
    }


def test_the_pages_first_file_is_what_the_command_writes(tmp_path: Path) -> None:
    for folder in ("subscribers", "tests/subscribers"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "subscribers/__init__.py", tmp_path / "subscribers")
    source, test = write(tmp_path, "shop.customer")
    assert source.read_text() == marked("runs: configured", "docs/howto/add-a-subscriber.md")
    assert test.read_text() == marked("runs: configured-test", "docs/howto/add-a-subscriber.md")
    assert "\nimport subscribers.shop\n" in (tmp_path / "subscribers/__init__.py").read_text()


@pytest.mark.parametrize("name, most", [("runs: configured", 30), ("runs: own-class", 100)])
def test_a_subscriber_is_short(name: str, most: int) -> None:
    assert len(marked(name, "docs/howto/add-a-subscriber.md").strip().splitlines()) <= most


def test_the_simulators_example_runs() -> None:
    exec(marked("runs: simulator", "docs/howto/add-a-subscriber.md"), {})  # noqa: S102


def test_the_rows_of_another_application_are_brought_over_and_kept_the_same(
    shop: ShopLike, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shop.contacts, "_needs_email", False)
    migrate(sqlite_url)
    database = Database(sqlite_url)

    def theirs(statement: str) -> None:
        with database.engine.connect() as connection, connection.begin():
            connection.exec_driver_sql(statement)

    theirs(
        "CREATE TABLE shop_article (article_no varchar(32) PRIMARY KEY, title varchar(200) NOT NULL, price_cents int)"
    )
    theirs("INSERT INTO shop_article VALUES ('A-1', 'Teapot', 1250), ('A-2', 'Cup', 300), ('A-3', 'Spoon', NULL)")
    exec(marked("runs: existing-table", "docs/howto/add-a-catalogue.md"), {})  # noqa: S102
    with database.write() as connection:
        capture.install(connection)
    exec(marked("runs: existing-subscriber", "docs/howto/add-a-catalogue.md"), {"__name__": "example"})  # noqa: S102
    shop.contacts.create({"name": "Cup", "company": "A-2"})
    hub = RegisteredHub(database, {"shop.article"})
    hub.conductor.tasks.start("backfill", "ann", subscriber="shop.article")
    while hub.conductor.tasks.list(unfinished=True):
        hub.conductor.tasks.run_some()
        hub.conductor.sweep()
        hub.run()
    found = {one["company"]: (one["name"], one["note"]) for one in shop.contacts.newest(9)[0]}
    assert found == {"A-1": ("Teapot", "12.50"), "A-2": ("Cup", "3.00"), "A-3": ("Spoon", None)}
    theirs("UPDATE shop_article SET title = 'Big teapot' WHERE article_no = 'A-1'")
    hub.run()
    (contact,) = [one for one in shop.contacts.newest(9)[0] if one["company"] == "A-1"]
    assert contact["name"] == "Big teapot"
    shop.contacts.update(contact["id"], {"note": "13.00"})
    hub.poll("shop.article")
    with database.read() as connection:
        row = connection.exec_driver_sql("SELECT price_cents FROM shop_article WHERE article_no = 'A-1'").one()
    database.close()
    assert row == (1300,)


def test_a_new_catalogue_is_captured_after_the_pages_steps(tmp_path: Path) -> None:
    page, hub = "docs/howto/add-a-catalogue.md", tmp_path / "hub"
    copied = {
        "broker.py",
        "messaging",
        "cli",
        "conductor",
        "migrations",
        "models",
        "panel",
        "subscribers",
        "workers",
        "syncflow",
    }
    shutil.copytree(
        ROOT, hub, ignore=lambda folder, names: {n for n in names if Path(folder) == ROOT and not is_ours(n, copied)}
    )
    with (hub / "models" / "catalogues.py").open("a") as file:
        file.write("\n\n" + marked("runs: new-catalogue", page))

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=hub,
            env={**os.environ, "DATABASE_URL": f"sqlite:///{tmp_path}/hub.sqlite3"},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    written = run(*shlex.split(marked("runs: new-catalogue-migration", page, "sh")))
    assert re.search(r"versions/\d{4}_credit_notes\.py", written)
    run(*shlex.split(marked("runs: new-catalogue-migrate", page, "sh")))
    database = Database(f"sqlite:///{tmp_path}/hub.sqlite3")
    with database.write() as connection:
        connection.exec_driver_sql("INSERT INTO credit_note (number, amount) VALUES ('C-1', 100)")
        changes = connection.execute(sa.select(Change.catalogue, Change.operation)).all()
    database.close()
    assert [tuple(change) for change in changes] == [("credit_note", "created")]


def is_ours(name: str, folders: set[str]) -> bool:
    return name in folders or name.endswith(".py")


def test_the_existing_table_of_another_application_is_captured(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE shop_article (article_no varchar(32) PRIMARY KEY, title varchar(200) NOT NULL,"
            " price_cents integer, shelf varchar(9))"
        )
    exec(marked("runs: existing-table", "docs/howto/add-a-catalogue.md"), {})  # noqa: S102
    with database.write() as connection:
        names = capture.install(connection)
    assert any("shop_article" in name for name in names)
    with database.engine.connect() as connection, connection.begin():  # as the other application would
        connection.exec_driver_sql("INSERT INTO shop_article VALUES ('A-1', 'Teapot', 1250, 'left')")
        connection.exec_driver_sql("UPDATE shop_article SET shelf = 'right'")
        connection.exec_driver_sql("UPDATE shop_article SET price_cents = 1300")
    with database.read() as connection:
        changes = connection.execute(sa.select(Change.__table__).order_by(Change.id)).all()
        record = CATALOGUES["article"].read(connection, ["A-1"])["A-1"]
    assert [(c.catalogue, c.record_id, c.operation) for c in changes] == [
        ("article", "A-1", "created"),
        ("article", "A-1", "updated"),
    ]
    assert record == {"article_no": "A-1", "title": "Teapot", "price_cents": 1300}
