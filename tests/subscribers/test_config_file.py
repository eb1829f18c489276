"""The systems file: its declarations are registered, and errors are reported with their location."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from settings import Settings, SettingsError
from subscribers import rest
from subscribers.config_file import register_file
from subscribers.files import subscriber
from subscribers.files.subscriber import FileSubscriber
from subscribers.mapping.fields import Field
from subscribers.registry import REGISTRY, connect
from subscribers.rest import RestSubscriber, RestSystem
from tests.support.documents import marked, table
from workers.runtime import build

FINE = """
[systems.crm]
url = "https://crm.example"
auth = "none"
delete_limit = 3

[systems.crm.subscribers.customer]
path = "/contacts"
match_on = ["email"]
[systems.crm.subscribers.customer.field_to_data]
name = "name"
email = { path = "mail", transform = "lower", conflict = "external" }

[systems.crm.subscribers.invoice]
path = "/bills"
field_to_data = { number = "number", customer_id = { path = "contact", link = "customer" } }
"""


@pytest.fixture(autouse=True)
def registry_put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


@pytest.fixture
def declare(tmp_path: Path) -> Any:
    def declare(text: str) -> list[str]:
        file = tmp_path / "systems.toml"
        file.write_text(text)
        return [one.name() for one in register_file(file)]

    return declare


def complaints(declare: Any, text: str) -> list[str]:
    before = dict(REGISTRY)
    with pytest.raises(SettingsError) as said:
        declare(text)
    assert before == REGISTRY, "all or nothing"
    assert "s3cret" not in str(said.value)
    return [line.removeprefix("systems.toml: ") for line in str(said.value).split("\n")]


def test_what_is_declared_is_connected(declare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert declare(FINE) == ["crm.customer", "crm.invoice"]
    monkeypatch.setenv("CRM_CONCURRENCY", "2")
    connected = connect({name: REGISTRY[name] for name in ("crm.customer", "crm.invoice")})
    customer, invoice = connected["crm.customer"], connected["crm.invoice"]
    assert customer.client is invoice.client
    assert (customer.client.delete_limit, customer.client.concurrency) == (3, 2)
    assert customer.field_to_data["email"] == Field("mail", transform="lower", conflict="external")
    assert invoice.default_mapper.relations() == {"customer"}
    assert declare(FINE), "the same file may be read again"


def test_the_environment_wins_and_holds_the_secrets(declare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(FINE.replace('auth = "none"', 'auth = "basic"\nusername = "me"'))
    with pytest.raises(SettingsError, match=r"^CRM_PASSWORD: missing"):
        connect({"crm.customer": REGISTRY["crm.customer"]})
    monkeypatch.setenv("CRM_PASSWORD", "s3cret")
    monkeypatch.setenv("CRM_URL", "https://other.example")
    assert connect({"crm.customer": REGISTRY["crm.customer"]})["crm.customer"].client.options.url.endswith(
        "other.example"
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('auth = "none"', 'auth = "digest"', "systems.crm.auth: Input should be 'bearer'"),
        ('auth = "none"', 'token = "s3cret"', "systems.crm.token: is a secret; set CRM_TOKEN in the environment"),
        ('auth = "none"', 'aut = "none"', "systems.crm.aut: is an unknown key; did you mean auth?"),
        ('"https://crm.example"', '"crm.example"', "systems.crm.url: must start with http"),
        ("delete_limit = 3", "delete_limit = -3", "systems.crm.delete_limit: Input should be greater than or equal"),
        ('auth = "none"', 'kind = "soap"', "systems.crm.kind: must be one of rest"),
        ("systems.crm", "systems.CRM", "systems.CRM: a name must start with a letter"),
        ("systems.crm", "systems.stripe", "systems.stripe: a system in the code has this name"),
        ("[systems.crm]", "[system.x]\n[systems.crm]", "system: is unknown"),
        (
            "subscribers.invoice",
            "subscribers.bill",
            "systems.crm.subscribers.bill: unknown catalogue; known catalogues:",
        ),
        ('path = "/contacts"', "", "systems.crm.subscribers.customer.path: is missing"),
        ('path = "/contacts"', "path = 7", "systems.crm.subscribers.customer.path: Input should be a valid string"),
        ('["email"]', '["phone"]', "systems.crm.subscribers.customer.match_on: 'phone' is not in field_to_data"),
        ('"lower"', '"shout"', "systems.crm.subscribers.customer.field_to_data.email: unknown transform 'shout'"),
        (
            'name = "name"',
            'title = "t"',
            "systems.crm.subscribers.customer.field_to_data.title: customer has no",
        ),
        (
            'transform = "lower"',
            'transfrom = "lower"',
            "systems.crm.subscribers.customer.field_to_data.email: transfrom: is an unknown key",
        ),
        ("field_to_data = {", "fields = {", "systems.crm.subscribers.invoice.field_to_data: is missing"),
    ],
)
def test_an_error_names_its_place(declare: Any, old: str, new: str, said: str) -> None:
    assert any(line.startswith(said) for line in complaints(declare, FINE.replace(old, new)))


def test_an_error_in_a_mapping_is_reported_once(declare: Any) -> None:
    (said,) = complaints(declare, FINE.replace('"lower"', '"shout"'))
    assert said.startswith("systems.crm.subscribers.customer.field_to_data.email: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "systems: is empty; write [systems.NAME]"),
        ("systems = 3", "systems: is empty"),
        ("[systems]\ncrm = 3", "systems.crm: is not a table"),
        ('[systems.crm]\nurl = "https://crm.example"', "systems.crm.subscribers: is empty"),
        ("[systems.crm", "is not valid TOML: "),
    ],
)
def test_a_file_that_is_no_declaration(declare: Any, text: str, said: str) -> None:
    assert complaints(declare, text)[0].startswith(said)


def test_a_process_starts_with_what_is_declared(
    tmp_path: Path, migrated_sqlite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "systems.toml").write_text(FINE)
    monkeypatch.setenv("SYNCFLOW_SYSTEMS", str(tmp_path / "systems.toml"))
    shutil.copy(migrated_sqlite, tmp_path / "hub.db")
    runtime = build(Settings(_env_file=None, database_url=f"sqlite:///{tmp_path / 'hub.db'}"))
    try:
        assert {"crm.customer", "crm.invoice"} <= set(runtime.conductor.subscribers)
        assert {"crm.customer", "crm.invoice"} <= set(runtime.broker.get_declared_queues())
    finally:
        runtime.close()


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes("# Zoë".encode("latin-1"))
    with pytest.raises(SettingsError, match=r"latin\.toml: is not valid TOML"):
        register_file(tmp_path / "latin.toml")
    with pytest.raises(SettingsError, match=r"SYNCFLOW_SYSTEMS: .* cannot be read"):
        register_file(tmp_path)


# --- the pages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "block", "base", "names"),
    [
        ("docs/howto/rest.md", "checked: rest system", RestSystem, rest.SYSTEM_OPTIONS),
        ("docs/howto/rest.md", "checked: rest subscriber", RestSubscriber, rest.SUBSCRIBER_OPTIONS),
        ("docs/howto/files.md", "checked: files subscriber", FileSubscriber, subscriber.SUBSCRIBER_OPTIONS),
    ],
)
def test_the_tables_of_options_are_complete(page: str, block: str, base: type, names: tuple[str, ...]) -> None:
    def shown(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else "" if not value else str(value)

    rows = {row[0].strip("`"): row[1].strip("`") for row in table(block, page)}
    assert rows == {name: shown(getattr(base, name, None)) for name in names}


def test_the_page_of_files_declares_a_system(declare: Any, tmp_path: Path) -> None:
    (tmp_path / "customers").mkdir()
    declare(marked("runs: files", "docs/howto/files.md", "toml").replace("/srv/exchange/erp", str(tmp_path)))
    declared = connect({"erp.customer": REGISTRY.pop("erp.customer")})["erp.customer"]
    example = compile(marked("runs: files-code", "docs/howto/files.md"), "example", "exec", dont_inherit=True)
    exec(example, {"__name__": "x"})  # noqa: S102 - it is our own documentation
    code = REGISTRY["erp.customer"]
    assert {column: entry.path for column, entry in declared.default_mapper.fields.items()} == code.field_to_data
    assert {n: getattr(declared, n) for n in subscriber.SUBSCRIBER_OPTIONS if n not in ("match_on", "on_gone")} == {
        n: getattr(code, n) for n in subscriber.SUBSCRIBER_OPTIONS if n not in ("match_on", "on_gone")
    }
    assert list(declared.changed_since({"begun": ""})) == [] and (tmp_path / "customers" / "in").is_dir()


@pytest.mark.parametrize("block", ["runs: pocketbase", "runs: kinto", "runs: files"])
def test_a_declared_subscriber_takes_at_most_30_lines(block: str) -> None:
    page = "docs/howto/files.md" if block == "runs: files" else "docs/howto/rest.md"
    assert len(marked(block, page, "toml").strip().splitlines()) <= 30
