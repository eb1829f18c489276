"""Settings: read once and typed; errors at start name the variable and never show its value."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

import settings as module
from settings import Settings, SettingsError, get_settings, system_options
from subscribers.base import Subscriber
from subscribers.registry import REGISTRY, connect
from subscribers.system import Options, System


@pytest.fixture(autouse=True)
def env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the path of the test's own `.env`, with none of our variables in the environment."""
    path = tmp_path / ".env"
    monkeypatch.setitem(Settings.model_config, "env_file", path)
    monkeypatch.setattr(module, "VAR", tmp_path / "var")
    systems = {subscriber.system.upper() for subscriber in REGISTRY.values()}
    for name in list(os.environ):
        if name.lower() in Settings.model_fields or name.split("_")[0] in systems | {"SHOP"}:
            monkeypatch.delenv(name)
    get_settings.cache_clear()
    yield path
    get_settings.cache_clear()


def refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> str:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as said:
        get_settings()
    return str(said.value)


WRONG = {
    "DATABASE_URL": [
        "s3cret",
        "mysql://u:s3cret@h/d",
        "sqlite://",
        "sqlite:///:memory:",
        # An unescaped @ in a password: part of the password ends up in place of the port.
        "postgresql://user:pa@ss:s3cret@host:5432/db",
    ],
    "BROKER_URL": [
        "redis://:s3cret@h",
        "s3cret",
        "amqp://",
        "amqp://u:p@host:s3cret/",
        "amqp://host:s3cret/",
        "amqp://s3cret@host/",
    ],
    "RABBITMQ_MANAGEMENT_URL": ["s3cret", "amqp://u:s3cret@h", "http://", "http://u:s3cret@h:port"],
    "PORT": ["s3cret", "-1", "65536", "80.5"],
    "QUEUE_TYPE": ["s3cret"],
    "HISTORY_DAYS": ["0", "s3cret"],
    "AUDIT_DAYS": ["0", "s3cret"],
    "WORKER_THREADS": ["0", "s3cret"],
    "BROKER_TIMEOUT_SECONDS": ["0", "s3cret"],
    "DATABASE_TIMEOUT_SECONDS": ["0", "s3cret"],
    "DATABASE_DIRECT_URL": ["s3cret", "sqlite:///s3cret.db"],
    "LEASE_SECONDS": ["0", "s3cret"],
    "STALE_SECONDS": ["-1"],
    "SWEEP_SECONDS": ["0"],
    "MAX_ATTEMPTS": ["0", "s3cret"],
    "RETRY_MIN_SECONDS": ["0"],
    "RETRY_MAX_SECONDS": ["0"],
    "PROBE_MIN_SECONDS": ["0"],
    "PROBE_MAX_SECONDS": ["0"],
    "GRACE_SECONDS": ["0"],
    "SYNCFLOW_SYSTEMS": ["s3cret", "/"],
    "LOG_FORMAT": ["s3cret"],
    "LOG_LEVEL": ["s3cret"],
    "BEHIND_PROXY": ["s3cret"],
    "TOTP_SECRET": ["s3cret, and too short"],
    "SECRET_KEY": ["s", "s3cret, and too short"],
    "METRICS_TOKEN": ["s", "s3cret"],
    "OIDC_ISSUER": ["s3cret", "http://s3cret.example", "https://"],
    "OIDC_CLIENT_SECRET": ["s3cret"],  # without the other OIDC settings
    "OIDC_DEFAULT_ROLE": ["s3cret"],
    "OIDC_SESSION_SECONDS": ["0"],
    "SESSION_SECONDS": ["0", "s3cret"],
    "SESSION_IDLE_SECONDS": ["0"],
}


@pytest.mark.parametrize("name,value", [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_variable_is_named_and_its_value_never_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    said = refused(monkeypatch, name, value)
    assert said.startswith(f"{name}: ") and "\n" not in said
    assert "s3cret" not in said and "pa@ss" not in said


def test_every_setting_that_can_be_wrong_is_tried() -> None:
    free_text = {"HOST", "OIDC_CLIENT_ID", "OIDC_ROLE_CLAIM"}
    assert {name.upper() for name in Settings.model_fields} - set(WRONG) == free_text


def test_all_wrong_settings_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "x")
    lines = refused(monkeypatch, "QUEUE_TYPE", "x").split("\n")
    assert [line.split(":")[0] for line in lines] == ["PORT", "QUEUE_TYPE"]


def test_nothing_needs_to_be_set() -> None:
    settings = get_settings()
    assert settings.standalone and settings.database_url.startswith("sqlite:///") and settings.port == 8000


def test_env_is_read_and_the_environment_wins(env_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env_file.write_text("PORT=1111\nHOST=10.0.0.1\nSHOP_URL=from-file\nSHOP_TOKEN='quoted # kept'\n")
    monkeypatch.setenv("PORT", "2222")
    monkeypatch.setenv("HOST", "")  # empty counts as not set
    monkeypatch.setenv("SHOP_URL", "from-environment")
    settings = get_settings()
    assert (settings.port, settings.host) == (2222, "10.0.0.1")
    assert system_options("shop") == {"url": "from-environment", "token": "quoted # kept"}
    monkeypatch.setenv("PORT", "3333")
    assert get_settings() is settings, "read once"


def test_a_wrong_value_in_env_is_named_like_one_of_the_environment(env_file: Path) -> None:
    env_file.write_text("MAX_ATTEMPTS=s3cret\n")
    with pytest.raises(SettingsError, match=r"^MAX_ATTEMPTS: ") as said:
        get_settings()
    assert "s3cret" not in str(said.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg", "postgresql+psycopg2"])
def test_postgresql_always_means_our_driver(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("DATABASE_URL", f"{scheme}://u:p%40ss@h:5433/d?sslmode=require")
    assert get_settings().database_url == "postgresql+psycopg://u:p%40ss@h:5433/d?sslmode=require"


@pytest.mark.parametrize("url", ["amqp://host", "amqp://u:p@host:5672/%2F", "amqps://u:p@host/vhost?heartbeat=30"])
def test_broker_urls_that_are_right(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("BROKER_URL", url)
    assert get_settings().broker_url == url and not get_settings().standalone


# --- the secret key ---------------------------------------------------------------------------------------


def test_standalone_keeps_a_key_that_only_we_can_read(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        key = get_settings().secret()
    finally:
        os.umask(umask)
    file = tmp_path / "var" / "secret_key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(key) == 64 and file.read_text() == key == get_settings().secret()


def test_a_fleet_without_a_secret_key_is_refused_with_instructions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BROKER_URL", "amqp://u:p@host/")
    with pytest.raises(SettingsError, match=r"^SECRET_KEY: .*secrets\.token_hex\(32\)"):
        get_settings().secret()
    assert not (tmp_path / "var").exists()
    get_settings.cache_clear()
    key = "s3cret" + "0123456789" * 3
    monkeypatch.setenv("SECRET_KEY", key)
    assert get_settings().secret() == key
    assert "s3cret" not in repr(get_settings())


def test_w10_a_fleet_refuses_a_key_that_is_easy_to_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "ab" * 32)
    assert get_settings().secret() == "ab" * 32, "standalone"
    get_settings.cache_clear()
    monkeypatch.setenv("BROKER_URL", "amqp://u:p@host/")
    with pytest.raises(SettingsError, match=r"^SECRET_KEY: .*secrets\.token_hex\(32\)"):
        get_settings().secret()


# --- the systems ------------------------------------------------------------------------------------------


def test_an_unconfigured_system_is_not_connected() -> None:
    assert connect() == {}


@pytest.mark.parametrize("name,system", [("STRIPE_API_BASE", "STRIPE"), ("SALESFORCE_USERNAME", "SALESFORCE")])
def test_a_system_configured_in_part_is_an_error_naming_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, system: str
) -> None:
    monkeypatch.setenv(name, "https://s3cret.example")
    with pytest.raises(SettingsError) as said:
        connect()
    assert f"{system}_" in str(said.value) and "s3cret" not in str(said.value)


class ShopOptions(Options):
    url: str
    token: SecretStr
    page_size: int = 100


class Shop(System):
    Options = ShopOptions


class ShopCustomer(Subscriber):
    system, catalogue, system_class = "my-shop", "customer", Shop
    field_to_data = {"name": "name"}


@pytest.mark.parametrize(
    "values,wrong",
    [
        ({"URL": "u"}, "MY_SHOP_TOKEN: missing: set it in the environment or .env"),
        ({"URL": "u", "TOKEN": "", "PAGE_SIZE": ""}, "MY_SHOP_TOKEN: missing"),
        ({"URL": "u", "TOKEN": "s3cret", "PAGE_SIZE": "s3cret"}, "MY_SHOP_PAGE_SIZE: "),
    ],
)
def test_options_of_an_authors_own_system(monkeypatch: pytest.MonkeyPatch, values: Any, wrong: str) -> None:
    registry: dict[str, type[Subscriber]] = {ShopCustomer.name(): ShopCustomer}
    assert connect(registry) == {}
    for name, value in values.items():
        monkeypatch.setenv(f"MY_SHOP_{name}", value)
    with pytest.raises(SettingsError) as said:
        connect(registry)
    assert wrong in str(said.value), "the name of the variable, as it has to be written"
    assert "s3cret" not in str(said.value)
    for name in ("TOKEN", "PAGE_SIZE"):
        monkeypatch.setenv(f"MY_SHOP_{name}", "5")
    assert connect(registry)["my-shop.customer"].client.options.page_size == 5
