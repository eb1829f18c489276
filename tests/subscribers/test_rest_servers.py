"""Two-way sync of customers with third-party servers, configured only by a declaration file."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from models.catalogues import Customer
from models.ledger import DeadLetter
from models.session import Database
from subscribers.config_file import register_file
from subscribers.errors import Gone
from subscribers.mapping.paths import pick
from subscribers.records import Item
from subscribers.registry import REGISTRY
from tests.support import rest_servers
from tests.support.documents import marked
from tests.support.records import mark
from tests.support.registered_hub import RegisteredHub
from tests.support.rest_servers import Server
from tests.support.runtimes import until

CUSTOMER = Customer.__table__
SECRET = "a-long-random-text"
PAGE = "docs/howto/rest.md"
#: A customer's email as each server stores it, according to its declaration.
EMAIL: dict[str, Callable[[str], dict[str, Any]]] = {
    "pocketbase": lambda email: {"mail": email},
    "kinto": lambda email: {"contact": {"email": email}},
}


@dataclass
class Receiver:
    """Receive webhooks in place of the hub's panel."""

    url: str
    got: list[tuple[bytes, dict[str, str]]] = field(default_factory=list)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with HTTPServer(host="127.0.0.1") as server:
        receiver = Receiver(server.url_for("/webhooks/pocketbase"))

        def receive(request: Request) -> Response:
            receiver.got.append((request.get_data(), dict(request.headers)))
            return Response(status=202)

        server.expect_request("/webhooks/pocketbase").respond_with_handler(receive)
        yield receiver


@pytest.fixture(scope="module")
def pocketbase(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Server]:
    hooks = {
        "syncflow.js": marked("runs: pocketbase-module", PAGE, "js"),
        "syncflow.pb.js": marked("runs: pocketbase-hooks", PAGE, "js"),
    }
    environment = {"SYNCFLOW_WEBHOOK": receiver.url, "SYNCFLOW_WEBHOOK_SECRET": SECRET}
    with rest_servers.pocketbase(tmp_path_factory.mktemp("pocketbase"), hooks, environment) as server:
        yield server


@pytest.fixture(scope="module")
def kinto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with rest_servers.kinto(tmp_path_factory.mktemp("kinto")) as server:
        yield server


@pytest.fixture
def declare(
    tmp_path: Path, migrated_sqlite: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, Server, str], RegisteredHub]]:
    """Start a hub from a block in docs/howto/rest.md, optionally with another `poll_seconds` line."""
    before, path = dict(REGISTRY), tmp_path / "syncflow.db"
    shutil.copy(migrated_sqlite, path)
    database = Database(f"sqlite:///{path}")

    def declare(name: str, server: Server, more: str = "poll_seconds = 60") -> RegisteredHub:
        server.clear()
        file = tmp_path / "systems.toml"
        file.write_text(marked(f"runs: {name}", PAGE, "toml").replace("poll_seconds = 60", more))
        monkeypatch.setenv(f"{name.upper()}_URL", server.url)
        monkeypatch.setenv(f"{name.upper()}_{'PASSWORD' if name == 'kinto' else 'TOKEN'}", server.secret)
        monkeypatch.setenv(f"{name.upper()}_WEBHOOK_SECRET", SECRET)
        return RegisteredHub(database, {subscriber.name() for subscriber in register_file(file)})

    yield declare
    database.close()
    REGISTRY.clear()
    REGISTRY.update(before)


both = pytest.mark.parametrize("name", EMAIL)


@both
def test_internal_changes_are_delivered(name: str, declare: Any, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(name)
    hub = declare(name, server)
    key = hub.add(name="Ada", email="Ada@X.example", phone="1")
    hub.run()
    (there,) = server.all()
    assert (there["name"], there["syncflow_id"]) == ("Ada", mark(hub, key))
    assert pick(there, "contact.email" if name == "kinto" else "mail") == "ada@x.example"

    hub.execute(sa.update(CUSTOMER).values(name="Ada Lovelace"))
    hub.run()
    assert [one["name"] for one in server.all()] == ["Ada Lovelace"]
    stamp = server.all()[0]
    hub.poll(f"{name}.customer")
    assert server.all() == [stamp] and hub.customer(key).name == "Ada Lovelace", "our own write is an echo"

    hub.execute(sa.delete(CUSTOMER))
    hub.run()
    assert server.all() == []


@both
def test_external_changes_are_applied(name: str, declare: Any, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(name)
    hub = declare(name, server, "page_limit = 2")
    known = hub.add(name="Grace", email="grace@x.example")
    ids = [server.add(name=f"N{n}", **EMAIL[name](f"n{n}@x.example")) for n in range(5)]
    same = server.add(name="Grace Hopper", **EMAIL[name]("Grace@x.example"))
    hub.poll(f"{name}.customer")
    assert names(hub) == ["Grace Hopper", "N0", "N1", "N2", "N3", "N4"], "all pages, and one matched by its email"
    assert hub.customer(known).name == "Grace Hopper"

    server.edit(ids[3], name="N3 anew")
    hub.poll(f"{name}.customer")
    assert "N3 anew" in names(hub) and len(names(hub)) == 6
    hub.execute(sa.update(CUSTOMER).where(CUSTOMER.c.id == known).values(phone="7"))
    hub.run()
    assert next(one for one in server.all() if one["id"] == same)["syncflow_id"] == mark(hub, known), "marked as ours"


@both
def test_a01_an_edit_there_is_seen_before_ours_overwrites_it(
    name: str, declare: Any, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue(name)
    hub = declare(name, server, more(name))  # without polls
    keys = [hub.add(name=f"N{n}", email=f"n{n}@x.example") for n in range(3)]
    hub.run()
    ids = {one["syncflow_id"]: one["id"] for one in server.all()}
    hub.execute(sa.update(CUSTOMER).values(name="ours", phone="7"))
    server.edit(ids[mark(hub, keys[1])], name="theirs")
    hub.run()
    assert [(hub.customer(key).name, hub.customer(key).phone) for key in keys] == [
        ("ours", "7"),
        ("theirs", "7"),
        ("ours", "7"),
    ]
    assert sorted(one["name"] for one in server.all()) == ["ours", "ours", "theirs"]
    hub.execute(sa.delete(CUSTOMER).where(CUSTOMER.c.id != keys[0]))
    server.edit(ids[mark(hub, keys[2])], name="theirs")
    hub.run()
    assert sorted(one["name"] for one in server.all()) == ["ours", "theirs"], "an edited record is not deleted"


def test_a_list_by_ids_reads_many_records_of_a_real_server(
    declare: Any, kinto: Server, pocketbase: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, server in (("kinto", kinto), ("pocketbase", pocketbase)):
        subscriber = declare(name, server, more(name)).conductor.subscribers[f"{name}.customer"]
        ids = [server.add(name=f"N{n}", **EMAIL[name](f"n{n}@x.example")) for n in range(3)]
        paths: list[str] = []
        call = subscriber.client.http.call
        monkeypatch.setattr(
            subscriber.client.http,
            "call",
            lambda m, path, call=call, p=paths, **o: (p.append(path), call(m, path, **o))[1],
        )
        found = subscriber.bulk_fetch([*reversed(ids), "missing"])
        assert [one.data["name"] for one in found[:3]] == ["N2", "N1", "N0"] and isinstance(found[3], Gone)
        assert len(paths) == 2, "one for all, and one for the missing one"


@both
def test_a_create_whose_answer_was_lost_is_found(name: str, declare: Any, request: pytest.FixtureRequest) -> None:
    subscriber = declare(name, request.getfixturevalue(name)).conductor.subscribers[f"{name}.customer"]
    sent = Item("17", {}, {"name": "Ada"}, {"name": "Ada"}, None, "key")
    made = subscriber.create(sent)
    found = subscriber.find(sent)
    assert found is not None and (found.id, found.mark) == (made.id, "17")
    assert subscriber.find(replace(sent, record_id="1")) is None


def test_kinto_lists_report_deletions(declare: Any, kinto: Server) -> None:
    hub = declare("kinto", kinto)
    key = hub.add(name="Ada", email="ada@x.example")
    hub.run()
    kinto.remove(kinto.all()[0]["id"])  # before the first poll
    hub.poll("kinto.customer")
    assert hub.customer(key).active is False


def test_pocketbase_hooks_report_changes_immediately(declare: Any, pocketbase: Server, receiver: Receiver) -> None:
    hub = declare("pocketbase", pocketbase)
    key = hub.add(name="Ada", email="ada@x.example")
    hub.run()
    id = pocketbase.all()[0]["id"]
    receiver.got.clear()
    pocketbase.edit(id, name="Ada Lovelace")
    hear(hub, receiver)
    assert hub.customer(key).name == "Ada Lovelace"
    pocketbase.remove(id)
    hear(hub, receiver)
    assert hub.customer(key).active is False


def test_a_dead_letter_has_pocketbases_message(declare: Any, pocketbase: Server) -> None:
    hub = declare("pocketbase", pocketbase)
    hub.add(name="Nobody", email="nobody")
    hub.run()
    with hub.conductor.database.read() as connection:
        letter = connection.execute(sa.select(DeadLetter.__table__)).one()
    assert (letter.error, letter.fields) == ("Reject", {"mail": "Must be a valid email address."})


def more(name: str) -> str:
    """Return what the page adds to the declaration of a server."""
    return marked("runs: kinto-versions", PAGE, "toml") if name == "kinto" else ""


def names(hub: RegisteredHub) -> list[str]:
    with hub.conductor.database.read() as connection:
        return list(connection.execute(sa.select(CUSTOMER.c.name).order_by(CUSTOMER.c.name)).scalars())


def hear(hub: RegisteredHub, receiver: Receiver) -> None:
    """Wait for one webhook, store it and apply it."""
    body, headers = until(lambda: receiver.got.pop(0) if receiver.got else None)
    assert hub.conductor.store_webhook("pocketbase", body, headers)
    hub.run()
