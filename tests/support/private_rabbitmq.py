"""A RabbitMQ node of one's own, whose alarms, limits and permissions may be changed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import requests

from settings import ROOT
from tests.support import services

_FOLDER = ROOT / "var" / "services" / "rabbitmq"
_RABBITMQCTL = Path("/usr/lib/rabbitmq/bin/rabbitmqctl")


class Node:
    """A running node of `scripts/services`, with its management plugin."""

    def __init__(self, name: str) -> None:
        self.folder = _FOLDER / name
        self.state = json.loads((self.folder / "state.json").read_text())
        self.host = f"127.0.0.1:{self.state['port']}"
        self.api = f"http://guest:guest@127.0.0.1:{self.state['management_port']}/api"

    def url(self, vhost: str = "/", *, login: str = "guest:guest", scheme: str = "amqp") -> str:
        return f"{scheme}://{login}@{self.host}/{quote(vhost, safe='')}"

    def put(self, path: str, **value: object) -> None:
        requests.put(f"{self.api}/{path}", json=value, timeout=30).raise_for_status()

    def delete(self, path: str) -> None:
        requests.delete(f"{self.api}/{path}", timeout=30).raise_for_status()

    @contextmanager
    def vhost(self) -> Iterator[str]:
        """Yield the name of a new vhost in which guest may do everything."""
        name = services.random_name()
        self.put(f"vhosts/{name}")
        self.put(f"permissions/{name}/guest", configure=".*", write=".*", read=".*")
        yield name
        self.delete(f"vhosts/{name}")

    @contextmanager
    def alarm(self, *resources: str) -> Iterator[None]:
        """Raise RabbitMQ's alarms for `memory` or `disk` during the block."""
        limits = [f"{{resource_limit, {name}, node()}}" for name in resources]
        self._evaluate(", ".join(f"rabbit_alarm:set_alarm({{{limit}, []}})" for limit in limits))
        try:
            yield
        finally:
            self._evaluate(", ".join(f"rabbit_alarm:clear_alarm({limit})" for limit in limits))

    def _evaluate(self, erlang: str) -> None:
        node = f"{self.folder.name}-{_hash(self.folder)}@localhost"
        subprocess.run(
            [_RABBITMQCTL, "--quiet", "-n", node, "eval", f"{erlang}."],
            env={**os.environ, "HOME": str(self.folder)},
            check=True,
            capture_output=True,
            timeout=60,
        )

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the node's process during the block: connections stay open, and nothing is answered."""
        os.kill(self.state["pid"], signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.state["pid"], signal.SIGCONT)


def _hash(folder: Path) -> str:
    import hashlib  # noqa: PLC0415

    return hashlib.sha256(str(folder).encode()).hexdigest()[:8]


@contextmanager
def private_rabbitmq(name: str) -> Iterator[Node]:
    """Yield a node. It is started, and stopped at the end, unless it runs already."""
    with services.private("rabbitmq", name):
        yield Node(name)
