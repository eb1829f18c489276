"""Third-party REST servers, each started as its own process on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

import child_processes
from tests.acceptance.processes import free_port

SCRIPTS = Path(sys.executable).parent
#: Seconds a server may take to answer, on a busy machine.
PATIENCE = 40.0

_LOGIN = {"identity": "hub@example.org", "password": "of-no-value-1"}

_COLLECTION: dict[str, Any] = {
    "name": "customers",
    "type": "base",
    "fields": [
        *({"name": name, "type": "text"} for name in ("name", "phone", "syncflow_id")),
        {"name": "mail", "type": "email"},
        {"name": "updated", "type": "autodate", "onCreate": True, "onUpdate": True},
    ],
}

_KINTO = """
[server:main]
use = egg:waitress#main
host = 127.0.0.1
port = {port}
[app:main]
use = egg:kinto
kinto.storage_backend = kinto.core.storage.memory
kinto.cache_backend = kinto.core.cache.memory
kinto.permission_backend = kinto.core.permission.memory
kinto.userid_hmac_secret = of-no-value
multiauth.policies = basicauth
kinto.bucket_create_principals = system.Authenticated
[loggers]
keys = root
[handlers]
keys =
[formatters]
keys =
[logger_root]
level = WARNING
handlers =
"""


class Server:
    """A running server, used through its own API as a user would. `records` is the URL of the list."""

    def __init__(self, url: str, secret: str, records: str, wrapped: str = "", **login: Any) -> None:
        self.url, self.secret, self.records, self.wrapped = url, secret, url + records, wrapped
        self.session = requests.Session()
        self.session.headers.update(login.get("headers", {}))
        self.session.auth = login.get("auth")

    def call(self, method: str, url: str, data: Mapping[str, Any] | None = None) -> Any:
        body = {self.wrapped: data} if self.wrapped else data
        answer = self.session.request(method, url, json=None if data is None else body, timeout=PATIENCE)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def all(self) -> list[dict[str, Any]]:
        body = self.call("GET", self.records)
        return list(body[self.wrapped or "items"])

    def add(self, **values: Any) -> str:
        made = self.call("POST", self.records, values)
        return str((made[self.wrapped] if self.wrapped else made)["id"])

    def edit(self, id: str, **values: Any) -> None:
        self.call("PATCH", f"{self.records}/{id}", values)

    def remove(self, id: str) -> None:
        self.call("DELETE", f"{self.records}/{id}")

    def clear(self) -> None:
        for one in self.all():
            self.remove(one["id"])


@contextmanager
def pocketbase(folder: Path, hooks: Mapping[str, str], environment: Mapping[str, str]) -> Iterator[Server]:
    """Yield PocketBase with a collection of customers and these files in pb_hooks."""
    (folder / "hooks").mkdir()
    for name, text in hooks.items():
        (folder / "hooks" / name).write_text(text)
    command, port = [_program("pocketbase")], free_port()
    where = ["--dir", str(folder / "data"), "--hooksDir", str(folder / "hooks")]
    upsert = [*command, "superuser", "upsert", *_LOGIN.values(), *where]
    subprocess.run(upsert, check=True, capture_output=True, timeout=PATIENCE)
    serve = [*command, "serve", "--http", f"127.0.0.1:{port}", *where]
    url = f"http://127.0.0.1:{port}/api"
    with _running(serve, f"{url}/health", folder / "log", environment):
        login = requests.post(f"{url}/collections/_superusers/auth-with-password", json=_LOGIN, timeout=PATIENCE)
        token = login.json()["token"]
        server = Server(url, token, "/collections/customers/records", headers={"Authorization": token})
        server.call("POST", f"{url}/collections", _COLLECTION)
        yield server


@contextmanager
def kinto(folder: Path) -> Iterator[Server]:
    """Yield Kinto, in memory, with a bucket and a collection of contacts."""
    port = free_port()
    settings = folder / "kinto.ini"
    settings.write_text(_KINTO.format(port=port))
    url = f"http://127.0.0.1:{port}/v1"
    with _running([_program("kinto"), "start", "--ini", str(settings)], f"{url}/__heartbeat__", folder / "log", {}):
        bucket = f"{url}/buckets/crm"
        server = Server(
            bucket, "of-no-value", "/collections/contacts/records", "data", auth=("syncflow", "of-no-value")
        )
        server.call("PUT", bucket, {})
        server.call("PUT", f"{bucket}/collections/contacts", {})
        yield server


def _program(name: str) -> str:
    path = SCRIPTS / name
    if not path.exists():
        raise RuntimeError(f"{path} is missing; `make setup-dev` installs it")
    return str(path)


@contextmanager
def _running(command: list[str], health: str, log: Path, environment: Mapping[str, str]) -> Iterator[None]:
    with log.open("wb") as out:
        process = child_processes.start(command, stdout=out, stderr=out, env={**os.environ, **environment})
    try:
        _await(process, health, log)
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _await(process: subprocess.Popen[bytes], health: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if requests.get(health, timeout=PATIENCE).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} does not answer at {health}:\n{log.read_text(errors='replace')}")
