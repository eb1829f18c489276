"""The panel for its tests: a real conductor over a real database, and two invented systems."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from pydantic import SecretStr

import models.users
from conductor import Conductor
from models import capture
from models.base import Base, utcnow
from models.catalogues import CATALOGUES, Customer
from models.ledger import Conflict, Cursor, Delivery, Link, Process
from models.session import Database
from panel.app import create_app
from panel.auth.accounts import create_user
from panel.http_server import threaded_server
from panel.overview_cache import OverviewCache
from settings import Settings
from subscribers.base import Subscriber
from subscribers.errors import BadSignature, BadWebhook, Reject
from subscribers.mapping import Field
from subscribers.records import External, Item
from subscribers.system import Options, System
from tests.support.fakes import RecordingPublisher

PASSWORD = "a long enough password"
ROLES = ("viewer", "operator", "admin")
TOKEN = "shop-token-nobody-may-see"
WEBHOOK_SECRET = "whsec-nobody-may-see"


class ShopOptions(Options):
    url: str = "https://user:url-password-nobody-may-see@shop.example/api"
    token: SecretStr = SecretStr(TOKEN)
    webhook_secret: str = WEBHOOK_SECRET
    region: str = "eu"


class Shop(System):
    Options = ShopOptions

    def verify(self, body: bytes, headers: Mapping[str, str]) -> str:
        if headers.get("x-shop-signature") != signature(body):
            raise BadSignature("x-shop-signature does not match the body")
        try:
            return str(json.loads(body)["id"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadWebhook(f"no JSON with an id: {error}") from None

    def page_url(self, resource: str, external_id: str) -> str | None:
        return f"https://shop.example/{resource}/{external_id}"


class ShopCustomer(Subscriber):
    """A subscriber that rejects customers from the city `Nowhere`, so that there are dead letters to see."""

    system, catalogue, system_class, resource = "shop", "customer", Shop, "customers"
    field_to_data = {"name": Field("name", required=True), "email": "email", "city": "address.city", "active": "active"}
    poll_seconds = 60

    def create(self, item: Item) -> External:
        if item.record["city"] == "Nowhere":
            raise Reject("address.city: Nowhere is no city", fields={"address.city": "Nowhere is no city"})
        return External(id=f"cus_{item.record_id}", data=item.data, at=utcnow(), request_id="req_1")

    def update(self, item: Item) -> External | None:
        return External(id=item.linked_id, data=item.data, at=utcnow())


class CrmCustomer(Subscriber):
    """A subscriber of a second system, without polls."""

    system, catalogue = "crm", "customer"
    field_to_data = {"name": "Name", "email": "Email"}

    def create(self, item: Item) -> External:
        return External(id=f"crm-{item.record_id}", data=item.data, at=utcnow())


def signature(body: bytes) -> str:
    return hmac.new(WEBHOOK_SECRET.encode(), body, hashlib.sha256).hexdigest()


#: (user's uniquifier, secret key) -> content of the cookie after a login. Each login hashes a password, which is slow.
_SESSIONS: dict[tuple[str, str], dict[str, Any]] = {}


@dataclass
class Panel:
    """The application, its conductor and its database."""

    database: Database
    conductor: Conductor
    publisher: RecordingPublisher
    app: Flask

    def rows(self, statement: Any) -> list[Any]:
        with self.database.read() as connection:
            return list(connection.execute(statement).all())

    def client(self, role: str | None = None) -> FlaskClient:
        """Return a separate client, logged in as a user with this role."""
        client = self.app.test_client()
        if role is None:
            return client
        email = f"{role}@example.com"
        user = self.rows(sa.select(models.users.User.__table__).where(models.users.User.email == email))[0]
        login = user.fs_uniquifier, str(self.app.secret_key)
        if login in _SESSIONS:
            self._begin_session(client, user.id, _SESSIONS[login])
        elif log_in(client, email).headers.get("Location") == "/":
            with client.session_transaction() as session:
                _SESSIONS[login] = dict(session)
        return client

    def _begin_session(self, client: FlaskClient, user_id: int, content: dict[str, Any]) -> None:
        token = secrets.token_urlsafe(32)
        with client.session_transaction() as session:
            session.update(content | {"session": token})
            session.permanent = True
        token_hash = hashlib.sha256(token.encode()).hexdigest()
        with self.database.write() as connection:
            row = {"token_hash": token_hash, "user_id": user_id}
            connection.execute(sa.insert(models.users.PanelSession).values(**row))

    def sync(self) -> None:
        """Relay and deliver everything, as the processes would."""
        self.conductor.relay()
        with self.database.read() as connection:
            ids = [str(i) for i in connection.scalars(sa.select(Customer.id))]
        for name in self.conductor.subscribers:
            self.conductor.deliver(name, ids)


@contextmanager
def open_panel(
    database_url: str,
    *,
    seeded: bool = True,
    shop: tuple[type[Shop], type[ShopCustomer]] = (Shop, ShopCustomer),
    **settings: Any,
) -> Iterator[Panel]:
    """Open a panel over an empty database; `shop` replaces the invented shop and its subscriber."""
    database = Database(database_url)
    Base.metadata.create_all(database.engine)
    with database.write() as connection:
        capture.install(connection, [CATALOGUES["customer"]])
    shop_class, customer_class = shop
    crm, publisher = System("crm", Options()), RecordingPublisher()
    subscribers: dict[str, Subscriber] = {
        "shop.customer": customer_class(shop_class("shop", ShopOptions())),
        "crm.customer": CrmCustomer(crm),
    }
    conductor = Conductor(database, subscribers, publisher)
    conductor.prepare()
    panel = panel_of(conductor, publisher, **settings)
    if seeded:
        seed(panel)
    try:
        yield panel
    finally:
        database.close()


def panel_of(conductor: Conductor, publisher: RecordingPublisher, **settings: Any) -> Panel:
    """Return the panel of a conductor, with a user of each role."""
    _create_users(conductor.database)
    chosen = {"secret_key": SecretStr("k" * 32), "totp_secret": SecretStr("t" * 32)} | settings
    app = create_app(conductor, Settings(**chosen))
    # The clock does not advance, so that no overview counts as expensive: every page is built again.
    app.extensions["syncflow_overview"] = OverviewCache(
        conductor.reports.overview_version, conductor.reports.overview, clock=lambda: 0.0
    )
    return Panel(conductor.database, conductor, publisher, app)


#: Table -> rows that `create_user` wrote. They are copied, because hashing a password is slow.
_USER_ROWS: dict[str, list[dict[str, Any]]] = {}


def _create_users(database: Database) -> None:
    """Create a viewer, an operator and an admin."""
    tables = [models.users.Role.__table__, models.users.User.__table__, models.users.roles_users]
    if _USER_ROWS:
        with database.write() as connection:
            for table in tables:
                connection.execute(sa.insert(table), _USER_ROWS[table.name])
        if not database.is_sqlite:
            _restart_keys(database)
        return
    for role in ROLES:
        create_user(database, f"{role}@example.com", PASSWORD, role)
    with database.read() as connection:
        for table in tables:
            _USER_ROWS[table.name] = [dict(row) for row in connection.execute(sa.select(table)).mappings()]


def _restart_keys(database: Database) -> None:
    # PostgreSQL's sequences ignore keys that an INSERT names.
    with database.write() as connection:
        for table in ("role", "user"):
            name = f"pg_get_serial_sequence('\"{table}\"', 'id')"
            connection.exec_driver_sql(f"SELECT setval({name}, 100)")


def seed(panel: Panel) -> None:
    """Add delivered and refused customers, a webhook, an unsubscription and a saved mapping."""
    people = [("Ada Lovelace", "London"), ("Grace Hopper", "New York"), ("Alan Turing", "Wilmslow")]
    people += [("Nobody One", "Nowhere"), ("Nobody Two", "Nowhere")]
    with panel.database.write() as connection:
        for name, city in people:
            email = f"{name.split()[0].lower()}.{name.split()[1].lower()}@example.com"
            connection.execute(sa.insert(Customer).values(name=name, email=email, city=city))
        now = utcnow()
        for kind in ("web", "relay", "worker", "scheduler"):
            connection.execute(sa.insert(Process).values(name=f"{kind}-1", kind=kind, started_at=now, last_seen_at=now))
        connection.execute(sa.insert(Cursor).values(subscriber="shop.customer", polled_at=now, result="2 records"))
    conductor = panel.conductor
    conductor.unsubscriptions.create("crm.customer", None, ["2"], None, "billing freeze", "operator@example.com")
    panel.sync()
    body = b'{"id": "evt_1", "type": "customer.updated", "data": {"id": "cus_1", "name": "Ada King"}}'
    conductor.store_webhook("shop", body, {"x-shop-signature": signature(body), "content-type": "application/json"})
    rows = conductor.mappings.latest("crm.customer")[0].rows()
    conductor.mappings.save("crm.customer", rows, "admin@example.com", 0)


def add_conflict(panel: Panel, path: str = "email") -> int:
    """Add a conflict about a field of the first customer and return its id."""
    with panel.database.write() as connection:
        linked = (Link.subscriber == "shop.customer", Link.record_id == "1")
        link = connection.execute(sa.select(Link.__table__).where(*linked)).one()
        known = sa.delete(Conflict).where(Conflict.link_id == link.id, Conflict.resolved_at.is_(None))
        connection.execute(known)
        connection.execute(sa.update(Link).where(Link.id == link.id).values(open_conflicts=1))
        versions = {"base": "ada@base.example", "ours": "ada@ours.example", "theirs": "ada@theirs.example"}
        row = {"link_id": link.id, "subscriber": "shop.customer", "record_id": "1", "path": path}
        insert = sa.insert(Conflict).values(**row, **versions).returning(Conflict.id)
        return int(connection.execute(insert).scalar_one())


def add_delivery(panel: Panel, at: datetime | None = None) -> None:
    """Add a delivery to the shop, now or at a given time."""
    row = {"subscriber": "shop.customer", "record_id": "1", "direction": "out", "operation": "update"}
    with panel.database.write() as connection:
        connection.execute(sa.insert(Delivery).values(**row, outcome="delivered", at=at or utcnow()))


def add_conflicts(panel: Panel) -> list[int]:
    """Add conflicts about the email of three customers and the city of the first; return their ids."""
    with panel.database.write() as connection:
        fields = [("1", "email"), ("2", "email"), ("3", "email"), ("1", "address.city")]
        rows = []
        for record_id, path in fields:
            of = (Link.subscriber == "shop.customer", Link.record_id == record_id)
            connection.execute(sa.update(Link).where(*of).values(open_conflicts=2))
            link = connection.execute(sa.select(Link.id).where(*of)).scalar_one()
            versions = {"base": f"base{record_id}", "ours": f"ours{record_id}", "theirs": f"theirs{record_id}"}
            rows.append(
                {"link_id": link, "subscriber": "shop.customer", "record_id": record_id, "path": path} | versions
            )
        made = connection.execute(sa.insert(Conflict).returning(Conflict.id, sort_by_parameter_order=True), rows)
        return list(made.scalars())


def csrf(client: FlaskClient) -> str:
    """Return the token of this client's session, read from a form."""
    page = client.get("/change", follow_redirects=True).text
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page)
    assert found, page
    return found[1]


def log_in(client: FlaskClient, email: str, password: str = PASSWORD) -> Any:
    return client.post("/login", data={"email": email, "password": password, "csrf_token": csrf(client)})


def post(client: FlaskClient, path: str, **data: Any) -> Any:
    return client.post(path, data={**data, "csrf_token": csrf(client)})


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """Serve the app on a free port, for a browser, and yield its URL."""
    server = threaded_server(app, "127.0.0.1", 0)
    # `shutdown` waits for one poll interval.
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


__all__ = ["PASSWORD", "ROLES", "Panel", "csrf", "log_in", "models", "open_panel", "post", "served", "signature"]
