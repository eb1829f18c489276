"""Settings: read once from the environment and `.env`, typed, failing at start with the variable's name.

Two kinds of names are understood. The hub's own settings are the fields of :class:`Settings`
(`DATABASE_URL`, `PORT` ...). Everything an external system needs is read by prefix: the options of
the system `shop` are `SHOP_URL`, `SHOP_TOKEN` ..., checked by that system's own `Options` class, so
adding a system changes nothing here.
"""

from __future__ import annotations

import os
import secrets
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

ROOT = Path(__file__).resolve().parent
#: Where this machine's data goes that nobody gave another place: SYNCFLOW_VAR, or var/ here.
VAR = (ROOT / (os.environ.get("SYNCFLOW_VAR") or "var")).resolve()


class SettingsError(Exception):
    """A setting is missing or wrong; the message names the variable and says what it takes."""


class Settings(BaseSettings):
    """The hub's own settings; every field is an environment variable of the same name, upper case."""

    model_config = SettingsConfigDict(env_file=ROOT / ".env", extra="ignore", env_ignore_empty=True)

    database_url: str = Field(f"sqlite:///{VAR / 'syncflow.sqlite3'}", validate_default=True)
    #: `memory://` (threads of one process) or an amqp(s):// URL.
    broker_url: str = "memory://"
    secret_key: SecretStr | None = None
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)

    #: RabbitMQ queue type: `classic` (any broker) or `quorum` (a cluster).
    queue_type: str = Field("classic", pattern="^(classic|quorum)$")
    #: Address of RabbitMQ's management plugin, http://host:15672: linked from the panel, and read for the queues'
    #: numbers with the login of BROKER_URL, or with the one in the address itself.
    rabbitmq_management_url: str = ""
    #: Threads of a worker process for each system: how many of its calls may run at once.
    worker_threads: int = Field(8, ge=1)

    #: How long one worker may hold a record before another may take it over, seconds.
    lease_seconds: float = Field(60.0, gt=0)
    #: Owed work whose news is older than this, and whose queue is empty, is announced again, seconds.
    stale_seconds: float = Field(30.0, gt=0)
    #: How often relay looks for due retries and stalled work, seconds.
    sweep_seconds: float = Field(1.0, gt=0)
    #: Attempts for one change of one record before it becomes a dead letter.
    max_attempts: int = Field(8, ge=1)
    #: First and longest pause between two attempts, seconds (doubled each time, with jitter).
    retry_min_seconds: float = Field(2.0, gt=0)
    retry_max_seconds: float = Field(3600.0, gt=0)
    #: How long a system that is down is left alone before it is probed, seconds: first and longest.
    probe_min_seconds: float = Field(2.0, gt=0)
    probe_max_seconds: float = Field(60.0, gt=0)
    #: Seconds a stopping process has for what is in hand.
    grace_seconds: float = Field(20.0, gt=0)

    #: A file that declares systems and their subscribers (TOML); empty: those in the code only.
    syncflow_systems: Path | None = None
    #: How long settled history (changes, deliveries, events, closed dead letters) and audit rows are kept, days.
    history_days: int = Field(90, ge=1)
    audit_days: int = Field(730, ge=1)

    #: A bearer token with which a monitoring system may read /metrics; empty: people with a login only.
    metrics_token: SecretStr | None = None

    #: Encrypts what two-factor login needs; set: the panel offers it.
    totp_secret: SecretStr | None = Field(None, min_length=32)
    #: Log in with OpenID Connect: the provider's address, and what it calls this client. All three or none.
    oidc_issuer: str = ""
    oidc_client_id: str = ""
    oidc_client_secret: SecretStr | None = Field(None, validate_default=True)
    #: The claim that names a person's role (a name or a list of them), and the role of whom it names none for.
    oidc_role_claim: str = ""
    oidc_default_role: str = Field("viewer", pattern="^(viewer|operator|admin|none)$")

    log_format: str = Field("console", pattern="^(console|json)$")
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    #: Behind an HTTPS proxy: cookies are sent over HTTPS only and X-Forwarded-* is trusted.
    behind_proxy: bool = False

    @field_validator("database_url")
    @classmethod
    def _database_url(cls, value: str) -> str:
        try:
            url = make_url(value)
        except (ArgumentError, ValueError):  # the latter's words quote a part of the URL
            raise ValueError("not a database URL; use sqlite:///path or postgresql://user@host/database") from None
        if url.get_backend_name() == "postgresql":
            return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
        if url.get_backend_name() != "sqlite":
            raise ValueError("only sqlite:// and postgresql:// databases are supported")
        if url.database in (None, "", ":memory:"):
            raise ValueError("an SQLite database must be a file, so that what is owed survives a restart")
        return value

    @field_validator("broker_url")
    @classmethod
    def _broker_url(cls, value: str) -> str:
        wrong = "use memory:// (standalone) or amqp://user:password@host:port/vhost (RabbitMQ)"
        if value == "memory://":
            return value
        try:
            parts = urlsplit(value)
            complete = bool(parts.hostname) and parts.port != 0
        except ValueError:  # its words would quote what stands where the port should be
            raise ValueError(wrong) from None
        if parts.scheme not in ("amqp", "amqps") or not complete:
            raise ValueError(wrong)
        if parts.username is not None and parts.password is None:
            raise ValueError("a user without a password; " + wrong)
        return value

    @field_validator("oidc_issuer")
    @classmethod
    def _oidc_issuer(cls, value: str) -> str:
        parts = urlsplit(value)
        on_this_machine = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
        if value and not (parts.scheme == "https" and parts.hostname) and not on_this_machine:
            raise ValueError("not the https address of an OpenID Connect provider, such as https://id.example.com")
        return value.removesuffix("/")

    @field_validator("oidc_client_secret")
    @classmethod
    def _oidc_is_complete(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if {"oidc_issuer", "oidc_client_id"} <= set(info.data):
            given = [bool(info.data["oidc_issuer"]), bool(info.data["oidc_client_id"]), value is not None]
            if any(given) and not all(given):
                raise ValueError("OpenID Connect needs OIDC_ISSUER, OIDC_CLIENT_ID and OIDC_CLIENT_SECRET: all or none")
        return value

    @field_validator("syncflow_systems")
    @classmethod
    def _syncflow_systems(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        path = ROOT / value  # what stands in .env means a file beside it
        if not path.is_file():
            raise ValueError(f"there is no such file; a path that does not begin with / is taken from {ROOT}")
        return path

    @field_validator("rabbitmq_management_url")
    @classmethod
    def _management_url(cls, value: str) -> str:
        wrong = "use the address of RabbitMQ's management plugin, for example http://rabbitmq.example:15672"
        try:
            parts = urlsplit(value)
            complete = bool(parts.hostname) and parts.port != 0
        except ValueError:
            raise ValueError(wrong) from None
        if value and (parts.scheme not in ("http", "https") or not complete):
            raise ValueError(wrong)
        return value.rstrip("/")

    @property
    def management_page(self) -> str:
        """RABBITMQ_MANAGEMENT_URL as people may see it: without a login."""
        parts = urlsplit(self.rabbitmq_management_url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    @property
    def management_login(self) -> tuple[str, str]:
        """User and password for the management plugin: its own, else the broker's."""
        for parts in (urlsplit(self.rabbitmq_management_url), urlsplit(self.broker_url)):
            if parts.username is not None:
                return unquote(parts.username), unquote(parts.password or "")
        return "guest", "guest"

    @property
    def broker_vhost(self) -> str:
        """RabbitMQ's virtual host, from BROKER_URL."""
        return unquote(urlsplit(self.broker_url).path[1:]) or "/"

    @property
    def standalone(self) -> bool:
        """True when everything runs as threads of one process (no RabbitMQ)."""
        return self.broker_url == "memory://"

    def secret(self) -> str:
        """The key that signs sessions: SECRET_KEY, or on this machine's first start a random one kept in var/."""
        if self.secret_key is not None:
            return self.secret_key.get_secret_value()
        if not self.standalone:
            raise SettingsError(
                "SECRET_KEY: a fleet needs one secret for all its web processes; "
                'make one with: python3 -c "import secrets; print(secrets.token_hex(32))"'
            )
        path = VAR / "secret_key"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(secrets.token_hex(32))
        return path.read_text().strip()


def describe(error: ValidationError, prefix: str = "") -> str:
    """One line per wrong setting: the variable's name, then what is wrong with it. Never its value."""
    lines = []
    for item in error.errors(include_input=False, include_url=False):
        name = (prefix + "_".join(str(part) for part in item["loc"])).upper().replace("-", "_")
        what = (
            "missing: set it in the environment or .env"
            if item["type"] == "missing"
            else item["msg"].removeprefix("Value error, ")
        )
        lines.append(f"{name}: {what}")
    return "\n".join(lines)


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read once.

    Raises:
      SettingsError: naming each variable that is missing or wrong.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError(describe(error)) from None


def names_in_file() -> list[str]:
    """All names that stand in `.env`, settings or not."""
    return list(dotenv_values(Settings.model_config.get("env_file") or ""))  # type: ignore[arg-type]


def system_options(name: str) -> dict[str, Any]:
    """What the environment says about the system `name`: SHOP_URL -> {"url": ...} for `shop`.

    The environment wins over `.env`; empty values count as absent.
    """
    prefix = name.upper().replace("-", "_") + "_"
    merged = {**dotenv_values(Settings.model_config.get("env_file") or ""), **os.environ}  # type: ignore[arg-type]
    return {key[len(prefix) :].lower(): value for key, value in merged.items() if key.startswith(prefix) and value}
