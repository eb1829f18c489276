"""Settings: read once from the environment and `.env`, and validated at start.

There are two kinds. The hub's own settings are the fields of :class:`Settings` (`DATABASE_URL`,
`PORT` ...). The settings of an external system share its prefix: those of `shop` are `SHOP_URL`,
`SHOP_TOKEN` ..., validated by the system's `Options` class. A new system changes nothing here.
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

import redaction

ROOT = Path(__file__).resolve().parent
#: The folder for local data (the SQLite database, generated secrets): SYNCFLOW_VAR, or var/ in this folder.
VAR = (ROOT / (os.environ.get("SYNCFLOW_VAR") or "var")).resolve()


_GENERATE = 'generate one: python3 -c "import secrets; print(secrets.token_hex(32))"'

#: A key with fewer different characters was not drawn at random.
_DIFFERENT_CHARACTERS = 8


class SettingsError(Exception):
    """A setting is missing or wrong. The message names the variable and the values it accepts, never its value."""


class Settings(BaseSettings):
    """The hub's own settings; each field is the environment variable of the same name in upper case.

    The text below a field is its description in docs/reference/settings.md.
    """

    model_config = SettingsConfigDict(
        env_file=ROOT / ".env", extra="ignore", env_ignore_empty=True, use_attribute_docstrings=True
    )

    database_url: str = Field(f"sqlite:///{VAR / 'syncflow.sqlite3'}", validate_default=True)
    """The database: `sqlite:///path` or `postgresql://user@host/database`."""

    database_direct_url: str = ""
    """Where `DATABASE_URL` leads to a connection pooler such as PgBouncer: the address of PostgreSQL itself. The relay
    waits there for changes."""

    database_timeout_seconds: float = Field(20.0, gt=0)
    """How long a statement on PostgreSQL may take. A connection without a response for as long is replaced."""

    broker_url: str = "memory://"
    """`memory://` runs everything as threads of one process. `amqp://user:password@host:port/vhost` uses RabbitMQ."""

    secret_key: SecretStr | None = None
    """Signs cookies, at least 32 characters. Standalone creates one in `var/`; separate processes need the same one for
    all."""

    session_seconds: float = Field(86400.0, gt=0)
    """How long a session in the panel lasts after the login."""

    session_idle_seconds: float = Field(43200.0, gt=0)
    """How long a session lasts after its last use. An open page that updates itself does not count."""

    host: str = "127.0.0.1"
    """The address on which the panel and the webhook routes listen."""

    port: int = Field(8000, ge=0, le=65535)
    """The port on which the panel and the webhook routes listen."""

    behind_proxy: bool = False
    """Set it behind an HTTPS proxy: cookies are sent over HTTPS only, and `X-Forwarded-*` headers are trusted."""

    log_format: str = Field("console", pattern="^(console|json)$")
    """`console`, or `json` for production."""

    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`."""

    metrics_token: SecretStr | None = None
    """A bearer token for `/metrics`, at least 16 characters. Without it only users with a login read the metrics."""

    syncflow_systems: Path | None = None
    """A TOML file that declares systems and their subscribers. A relative path starts in Syncflow's folder."""

    queue_type: str = Field("classic", pattern="^(classic|quorum)$")
    """The type of RabbitMQ's queues: `classic`, or `quorum` on a cluster."""

    broker_timeout_seconds: float = Field(5.0, gt=0)
    """How long RabbitMQ may take to answer a request before it counts as not responding."""

    rabbitmq_management_url: str = ""
    """The address of RabbitMQ's management plugin, such as `http://host:15672`. The panel links to it and reads the
    queues' figures there, with the login in this address or else that of `BROKER_URL`."""

    worker_threads: int = Field(8, ge=1)
    """Threads of a worker process for each system: how many calls to it may run at the same time."""

    lease_seconds: float = Field(60.0, gt=0)
    """How long a worker may hold a record before another one may take it over."""

    stale_seconds: float = Field(30.0, gt=0)
    """How old the last notification of a pending record must be before the sweep repeats it, if the queue is empty."""

    sweep_seconds: float = Field(1.0, gt=0)
    """How often the relay looks for due retries and stalled records."""

    max_attempts: int = Field(8, ge=1)
    """Attempts to deliver a change before it becomes a dead letter."""

    retry_min_seconds: float = Field(2.0, gt=0)
    """The pause after the first failed attempt. Each further pause is twice as long, with jitter."""

    retry_max_seconds: float = Field(3600.0, gt=0)
    """The longest pause between two attempts."""

    probe_min_seconds: float = Field(2.0, gt=0)
    """The pause before a system that is down is first probed. Each further pause is twice as long."""

    probe_max_seconds: float = Field(60.0, gt=0)
    """The longest pause between two probes."""

    grace_seconds: float = Field(20.0, gt=0)
    """How long a stopping process may take to finish its current work."""

    history_days: int = Field(90, ge=1)
    """How many days finished history is kept: changes, deliveries, events, closed dead letters, resolved conflicts and
    finished tasks. Open items are kept until they are closed."""

    audit_days: int = Field(730, ge=1)
    """How many days audit rows are kept."""

    totp_secret: SecretStr | None = None
    """Encrypts the secrets of two-factor login, at least 32 characters. Once set, the panel offers two-factor login.
    Keep it: with another secret no existing code works."""

    oidc_issuer: str = ""
    """The https address of an OpenID Connect provider. Its `/.well-known/openid-configuration` is read. Needs
    `OIDC_CLIENT_ID` and `OIDC_CLIENT_SECRET` as well."""

    oidc_client_id: str = ""
    """The provider's id for this client. The client's redirect address is `/login/oidc/return` on the panel."""

    oidc_client_secret: SecretStr | None = Field(None, validate_default=True)
    """The client's secret at the provider."""

    oidc_role_claim: str = ""
    """The claim of the ID token with a user's role, one name or a list. It decides the role at each login. Without it
    admins assign roles in the panel."""

    oidc_default_role: str = Field("viewer", pattern="^(viewer|operator|admin|none)$")
    """The role of users whose claim names no known role, and without a claim that of new users. `none` refuses them."""

    oidc_session_seconds: float = Field(28800.0, gt=0)
    """How long a session lasts after a login with OpenID Connect, at most `SESSION_SECONDS`: then the provider is asked
    again. It may end sessions earlier, at `/login/oidc/backchannel-logout`."""

    @field_validator("secret_key", "totp_secret", "metrics_token")
    @classmethod
    def _is_long_enough(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        least = 16 if info.field_name == "metrics_token" else 32
        if value is not None and len(value.get_secret_value()) < least:
            raise ValueError(f"is too short: use at least {least} random characters; {_GENERATE}")
        return value

    @field_validator("database_url")
    @classmethod
    def _database_url(cls, value: str) -> str:
        try:
            url = make_url(value)
        except (ArgumentError, ValueError):  # a ValueError's message quotes a part of the URL
            raise ValueError("is not a database URL; use sqlite:///path or postgresql://user@host/database") from None
        if url.get_backend_name() == "postgresql":
            return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
        if url.get_backend_name() != "sqlite":
            raise ValueError("is not a supported database; use sqlite:///path or postgresql://user@host/database")
        if url.database in (None, "", ":memory:"):
            raise ValueError("must name a file: an SQLite database in memory would lose pending work at a restart")
        return value

    @field_validator("database_direct_url")
    @classmethod
    def _database_direct_url(cls, value: str) -> str:
        try:
            url = make_url(value) if value else None
        except (ArgumentError, ValueError):
            raise ValueError("is not a database URL; use postgresql://user@host/database") from None
        if url is None:
            return value
        if url.get_backend_name() != "postgresql":
            raise ValueError("is for PostgreSQL only; use postgresql://user@host/database")
        return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)

    @field_validator("broker_url")
    @classmethod
    def _broker_url(cls, value: str) -> str:
        wrong = "use memory:// (standalone) or amqp://user:password@host:port/vhost (RabbitMQ)"
        if value == "memory://":
            return value
        try:
            parts = urlsplit(value)
            complete = bool(parts.hostname) and parts.port != 0
        except ValueError:  # its message quotes the text in the port's place
            raise ValueError(wrong) from None
        if parts.scheme not in ("amqp", "amqps") or not complete:
            raise ValueError(wrong)
        if parts.username is not None and parts.password is None:
            raise ValueError("has a user without a password; " + wrong)
        return value

    @field_validator("oidc_issuer")
    @classmethod
    def _oidc_issuer(cls, value: str) -> str:
        parts = urlsplit(value)
        on_this_machine = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
        if value and not (parts.scheme == "https" and parts.hostname) and not on_this_machine:
            raise ValueError("is not the https address of an OpenID Connect provider, such as https://id.example.com")
        return value.removesuffix("/")

    @field_validator("oidc_client_secret")
    @classmethod
    def _oidc_is_complete(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if {"oidc_issuer", "oidc_client_id"} <= set(info.data):
            given = [bool(info.data["oidc_issuer"]), bool(info.data["oidc_client_id"]), value is not None]
            if any(given) and not all(given):
                raise ValueError("set all of OIDC_ISSUER, OIDC_CLIENT_ID and OIDC_CLIENT_SECRET, or none")
        return value

    @field_validator("syncflow_systems")
    @classmethod
    def _syncflow_systems(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        path = ROOT / value  # relative to the folder of .env
        if not path.is_file():
            raise ValueError(f"there is no such file; a relative path starts at {ROOT}")
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

    def model_post_init(self, _context: Any) -> None:
        """Let no secret of these settings be shown or logged."""
        redaction.remember_values("settings", dict(self))

    @property
    def management_page(self) -> str:
        """Return RABBITMQ_MANAGEMENT_URL without the login it may hold."""
        parts = urlsplit(self.rabbitmq_management_url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    @property
    def management_login(self) -> tuple[str, str]:
        """Return user and password for the management plugin: those in its own address, else the broker's."""
        for parts in (urlsplit(self.rabbitmq_management_url), urlsplit(self.broker_url)):
            if parts.username is not None:
                return unquote(parts.username), unquote(parts.password or "")
        return "guest", "guest"

    @property
    def broker_vhost(self) -> str:
        """Return RabbitMQ's virtual host, from BROKER_URL."""
        return unquote(urlsplit(self.broker_url).path[1:]) or "/"

    @property
    def standalone(self) -> bool:
        """Whether all parts of the hub run as threads of one process, without RabbitMQ."""
        return self.broker_url == "memory://"

    def secret(self) -> str:
        """Return the key that signs sessions: SECRET_KEY, or a random one that the first start stores in var/.

        Raises:
          SettingsError: SECRET_KEY is missing or easy to guess, and several processes need the same.
        """
        if self.secret_key is not None:
            key = self.secret_key.get_secret_value()
            if not self.standalone and len(set(key)) < _DIFFERENT_CHARACTERS:
                raise SettingsError(f"SECRET_KEY: is easy to guess: use random characters; {_GENERATE}")
            return key
        if not self.standalone:
            raise SettingsError(f"SECRET_KEY: missing: with RabbitMQ all processes need the same secret; {_GENERATE}")
        path = VAR / "secret_key"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(secrets.token_hex(32))
        key = path.read_text().strip()
        redaction.remember("settings", key)
        return key


def describe(error: ValidationError, prefix: str = "") -> str:
    """Return one line for each wrong setting: the variable's name and the problem, never the value."""
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
    """Return the settings of this process, read once.

    Raises:
      SettingsError: a variable is missing or wrong; the message names each of them.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError(describe(error)) from None


def names_in_file() -> list[str]:
    """Return all names in `.env`, whether they are settings or not."""
    return list(dotenv_values(Settings.model_config.get("env_file") or ""))  # type: ignore[arg-type]


def system_options(name: str) -> dict[str, Any]:
    """Return the settings of the system `name`: for `shop`, SHOP_URL becomes {"url": ...}.

    The environment takes precedence over `.env`; empty values count as absent.
    """
    prefix = name.upper().replace("-", "_") + "_"
    merged = {**dotenv_values(Settings.model_config.get("env_file") or ""), **os.environ}  # type: ignore[arg-type]
    return {key[len(prefix) :].lower(): value for key, value in merged.items() if key.startswith(prefix) and value}
