"""Find the real services behind the fixtures, and provide each test with a fresh database or vhost."""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NoReturn
from urllib.parse import urlsplit

import pika
import psycopg
import pytest
import requests
from pika.exceptions import AMQPError
from psycopg import sql

from settings import ROOT

PREFIX = "syncflow_test_"
#: Seconds after which leftovers of a killed run count as abandoned.
ABANDONED_AFTER = 24 * 3600
ENV_FILE = ROOT / "var" / "services" / "env"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def _known() -> dict[str, str]:
    """Return the settings of the services that `make services` found or started; the environment takes precedence."""
    lines = ENV_FILE.read_text().splitlines() if ENV_FILE.exists() else []
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    return found | {key: value for key, value in os.environ.items() if key.startswith("TEST_")}


def missing(what: str) -> NoReturn:
    """Handle a missing service: raise an error where it is required, skip the test elsewhere."""
    if os.environ.get("CI") or os.environ.get("SYNCFLOW_REQUIRE_SERVICES"):
        raise RuntimeError(what)
    pytest.skip(what)


@contextmanager
def private(service: str, name: str) -> Iterator[str]:
    """Yield what `scripts/services` prints last of a server of one's own; it stops at the end unless it ran before."""
    command = [sys.executable, str(ROOT / "scripts" / "services"), service]
    running = subprocess.run([*command, "status", "--name", name], capture_output=True, check=False).returncode == 0
    started = subprocess.run([*command, "start", "--name", name], capture_output=True, text=True, check=False)
    if started.returncode:
        missing(f"no private {service}: {started.stderr.strip()}")
    try:
        yield started.stdout.split()[-1]
    finally:
        if not running:
            subprocess.run([*command, "stop", "--name", name], capture_output=True, check=True)


def random_name() -> str:
    """Return a name that contains its creation time, so that leftovers can be distinguished from names in use."""
    return f"{PREFIX}{int(time.time()):08x}{secrets.token_hex(4)}"


def is_abandoned(name: str) -> bool:
    if not name.startswith(PREFIX):
        return False
    try:
        born = int(name.removeprefix(PREFIX)[:8], 16)
    except ValueError:
        return False
    return time.time() - born > ABANDONED_AFTER


# --- PostgreSQL -----------------------------------------------------------------


def postgres_server() -> str:
    """Return the psycopg URL of a server on which tests may create databases."""
    url = _known().get("TEST_DATABASE_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
    url = url.replace("postgresql+psycopg://", "postgresql://")
    try:
        with psycopg.connect(url, connect_timeout=5, autocommit=True) as server:
            names = [row[0] for row in server.execute("SELECT datname FROM pg_database")]
            for name in filter(is_abandoned, names):
                _drop(server, name)
    except psycopg.Error as error:
        missing(f"no PostgreSQL for the tests ({str(error).strip()}); `make services` starts one")
    return url


#: Drops databases in the background: each drop takes the server a tenth of a second, and there are hundreds.
_dropper = ThreadPoolExecutor(1, thread_name_prefix="dropper")


@contextmanager
def fresh_database(server_url: str, template: str = "template1", *, wait: bool = True) -> Iterator[str]:
    """Yield the SQLAlchemy URL of a new database (a copy of the template), and drop it at the end.

    Without `wait`, the drop runs in the background and completes before the process ends.
    """
    name = random_name()
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
    try:
        yield urlsplit(server_url)._replace(scheme="postgresql+psycopg", path=f"/{name}").geturl()
    finally:
        dropped = drop_later(server_url, name)
        if wait:
            dropped.result()


def drop_later(server_url: str, name: str) -> Future[None]:
    """Drop a database in the background; the process does not end before."""
    return _dropper.submit(_connect_and_drop, server_url, name)


def _connect_and_drop(server_url: str, name: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as server:
        _drop(server, name)


def _drop(server: psycopg.Connection, name: str) -> None:
    server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


# --- RabbitMQ -------------------------------------------------------------------


def rabbitmq_server() -> str:
    """Return the URL of a node on its default vhost."""
    url = _known().get("TEST_BROKER_URL", "amqp://guest:guest@127.0.0.1:5672/%2F")
    try:
        pika.BlockingConnection(pika.URLParameters(url)).close()
    except (AMQPError, OSError) as error:
        missing(f"no RabbitMQ for the tests ({error!r}); `make services` starts one")
    return url


@contextmanager
def fresh_vhost(server_url: str) -> Iterator[str]:
    """Yield a new vhost and delete it at the end, or yield the default one if none can be created.

    Tests that may share the default vhost put a unique prefix before their names.
    """
    admins = (ManagementApi(server_url), Rabbitmqctl(server_url))
    admin = next((admin for admin in admins if admin.reachable), None)
    if admin is None:
        yield server_url
        return
    for name in filter(is_abandoned, admin.vhosts()):
        admin.delete(name)
    name = random_name()
    admin.create(name)
    try:
        yield urlsplit(server_url)._replace(path=f"/{name}").geturl()
    finally:
        admin.delete(name)


class ManagementApi:
    """RabbitMQ's management plugin: fast, but not enabled everywhere."""

    def __init__(self, server_url: str) -> None:
        self.url = _known().get("TEST_BROKER_API", "")
        self.user = urlsplit(server_url).username

    @property
    def reachable(self) -> bool:
        if not self.url:
            return False
        try:
            return requests.get(f"{self.url}/api/vhosts", timeout=10).ok
        except requests.RequestException:
            return False

    def vhosts(self) -> list[str]:
        return [vhost["name"] for vhost in self._call("GET", "vhosts").json()]

    def create(self, name: str) -> None:
        self._call("PUT", f"vhosts/{name}")
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self._call("PUT", f"permissions/{name}/{self.user}", json=everything)

    def delete(self, name: str) -> None:
        self._call("DELETE", f"vhosts/{name}")

    def _call(self, method: str, path: str, json: dict[str, str] | None = None) -> requests.Response:
        answer = requests.request(method, f"{self.url}/api/{path}", json=json, timeout=30)
        answer.raise_for_status()
        return answer


class Rabbitmqctl:
    """RabbitMQ's command line: works for root when the packaged service uses its usual port."""

    def __init__(self, server_url: str) -> None:
        parts = urlsplit(server_url)
        self.user = parts.username
        self.is_packaged_service = parts.hostname in ("127.0.0.1", "localhost") and parts.port in (None, 5672)

    @property
    def reachable(self) -> bool:
        if os.geteuid() != 0 or not self.is_packaged_service or not shutil.which("rabbitmqctl"):
            return False
        return self._run("list_vhosts", check=False).returncode == 0

    def vhosts(self) -> list[str]:
        return self._run("list_vhosts", "name", "--no-table-headers").stdout.split()

    def create(self, name: str) -> None:
        self._run("add_vhost", name)
        self._run("set_permissions", "-p", name, self.user or "guest", ".*", ".*", ".*")

    def delete(self, name: str) -> None:
        self._run("delete_vhost", name)

    def _run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["rabbitmqctl", "--quiet", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=check, timeout=60)


# --- the browser ----------------------------------------------------------------


def chromium() -> str:
    """Return the path of a Chromium for playwright's `executable_path`."""
    path = os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)
    return path or missing("no chromium for the browser tests; `make chromium` installs one")
