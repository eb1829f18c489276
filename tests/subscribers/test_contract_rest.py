"""The contract for the declarations in docs/howto/rest.md, run against real servers."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import shutil
import tempfile
import uuid
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from simulators.simulators import WEBHOOK_SECRET, Simulator
from subscribers.base import Subscriber
from subscribers.config_file import register_file
from subscribers.registry import REGISTRY
from tests.subscribers.contract import Contract
from tests.support import rest_servers
from tests.support.documents import marked
from tests.support.rest_servers import PATIENCE

#: Headers that the proxy sets again for each connection.
_OF_THE_LEG = {"host", "connection", "content-length", "transfer-encoding", "accept-encoding", "content-encoding"}


class RealServer(Simulator):
    """A third-party server behind a proxy that counts calls and can interrupt them."""

    def start(self) -> None:
        self.stack = ExitStack()
        folder = Path(tempfile.mkdtemp())
        self.stack.callback(shutil.rmtree, folder)
        self.server = self.stack.enter_context(self.running(folder))
        self.proxy = self.stack.enter_context(HTTPServer(host="127.0.0.1"))
        self.proxy.expect_request(re.compile(".*")).respond_with_handler(self.forward)
        self.reset()

    def stop(self) -> None:
        self.stack.close()

    @abstractmethod
    def running(self, folder: Path) -> Any:
        """Return a context manager that runs the server."""

    def reset(self) -> None:
        self.server.clear()
        self.calls: list[str] = []
        self.failing: list[int] = []
        self.dropping = 0

    @property
    def url(self) -> str:
        """Return the server's URL through the proxy."""
        return self.proxy.url_for(urlsplit(self.server.url).path)

    def forward(self, request: Request) -> Response:
        if request.method != "GET":
            self.calls.append(f"{request.method} {request.path}")
        if self.failing:
            return Response(status=self.failing.pop())
        there = urlsplit(self.server.url)._replace(path=request.path, query=request.query_string.decode()).geturl()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OF_THE_LEG}
        answer = requests.request(
            request.method, there, data=request.get_data(), headers=headers, timeout=PATIENCE, allow_redirects=False
        )
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in _OF_THE_LEG}
        if request.method != "GET" and self.dropping:
            self.dropping -= 1
            kept["Content-Length"] = "100000"  # more bytes than are sent
        return Response(answer.content, answer.status_code, kept)

    def ids(self) -> list[str]:
        return [one["id"] for one in self.server.all()]

    def add(self, data: Mapping[str, Any]) -> str:
        return str(self.server.add(**data))

    def edit(self, id: str, data: Mapping[str, Any]) -> None:
        self.server.edit(id, **data)

    def remove(self, id: str) -> None:
        self.server.remove(id)

    def writes(self) -> list[str]:
        return list(self.calls)

    def fail(self, status: int, times: int = 1) -> None:
        self.failing += [status] * times

    def drop(self, times: int = 1) -> None:
        self.dropping += times


class Kinto(RealServer):
    secrets = ("of-no-value",)

    def running(self, folder: Path) -> Any:
        return rest_servers.kinto(folder)

    def options(self) -> dict[str, Any]:
        return {"url": self.url, "username": "syncflow", "password": self.server.secret}


class PocketBase(RealServer):
    secrets = (WEBHOOK_SECRET,)

    def running(self, folder: Path) -> Any:
        return rest_servers.pocketbase(folder, {}, {})

    def options(self) -> dict[str, Any]:
        return {"url": self.url, "token": self.server.secret, "webhook_secret": WEBHOOK_SECRET}

    def webhook(self, id: str) -> tuple[bytes, dict[str, str]]:
        """Return the webhook that the hooks in docs/howto/rest.md send; test_rest_servers.py runs the hooks."""
        (now,) = [one for one in self.server.all() if one["id"] == id]
        event = {"id": uuid.uuid4().hex, "type": "customers.updated", "created_at": now["updated"], "data": now}
        body = json.dumps(event).encode()
        return body, {"X-Signature": hmac.new(WEBHOOK_SECRET.encode(), body, hashlib.sha256).hexdigest()}


def declared(name: str) -> type[Subscriber]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "systems.toml"
        file.write_text(marked(f"runs: {name}", "docs/howto/rest.md", "toml"))
        (kind,) = register_file(file)
    del REGISTRY[kind.name()]
    return kind


class Customers(Contract):
    record = {"name": "Ada", "email": "ada@x.example", "phone": "1"}
    edit = {"name": "Ada Lovelace", "phone": "2"}


class TestKinto(Customers):
    subscriber = declared("kinto")
    simulator = Kinto


class TestPocketBase(Customers):
    subscriber = declared("pocketbase")
    simulator = PocketBase
