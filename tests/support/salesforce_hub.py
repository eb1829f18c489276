"""The real conductor and subscribers over one database and a simulated Salesforce org."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from conductor import Conductor, Policy
from models.catalogues import CATALOGUES
from models.ledger import Delivery, Inbox, Link
from models.session import Database
from simulators.salesforce import SalesforceSimulator
from subscribers.base import Subscriber
from subscribers.registry import REGISTRY
from subscribers.salesforce import Salesforce, SalesforceOptions
from tests.support.fakes import RecordingPublisher, TestHub

LOGINS = {
    "client_credentials": {"consumer_key": "demo-client-id", "consumer_secret": "demo-client-secret"},
    "password": {
        "username": "integration@syncflow.example",
        "password": "demo-password",
        "security_token": "demo-token",
    },
}


def connect(org: SalesforceSimulator, login: str = "client_credentials", **more: Any) -> Salesforce:
    settings = {"instance_url": org.url, "ca_bundle": org.ca_file, "webhook_secret": "new old", **LOGINS.get(login, {})}
    return Salesforce("salesforce", SalesforceOptions(**{**settings, **more}))


def at_work(client: Salesforce) -> dict[str, Subscriber]:
    """Return the subscribers that the client's settings enable, by name."""
    found = {name: one.connected(client) for name, one in REGISTRY.items() if one.system == "salesforce"}
    return {name: one for name, one in found.items() if one is not None}


class SalesforceHub(TestHub):
    """A hub and an org that share the org's clock."""

    def __init__(self, database: Database, org: SalesforceSimulator, **settings: Any) -> None:
        self.org = org
        self.publisher = RecordingPublisher()
        self.client = connect(org, **settings)
        self.conductor = Conductor(database, at_work(self.client), self.publisher, Policy(), org.clock.now)
        self.conductor.breaker.ensure_rows()

    def add(self, catalogue: str, **values: Any) -> str:
        """Insert a record into the database, as another program would, and return its id."""
        with self.conductor.database.write() as c:
            return CATALOGUES[catalogue].insert(c, values)

    def edit(self, catalogue: str, record_id: str, **values: Any) -> None:
        with self.conductor.database.write() as c:
            CATALOGUES[catalogue].update(c, record_id, values)

    def record(self, catalogue: str, record_id: str) -> dict[str, Any] | None:
        with self.conductor.database.read() as c:
            return CATALOGUES[catalogue].read(c, [record_id]).get(record_id)

    def count(self, catalogue: str) -> int:
        with self.conductor.database.read() as c:
            return int(c.execute(sa.select(sa.func.count()).select_from(CATALOGUES[catalogue].table)).scalar_one())

    def link(self, catalogue: str, record_id: str) -> Any:
        same = (Link.subscriber == f"salesforce.{catalogue}", Link.record_id == record_id)
        with self.conductor.database.read() as c:
            return c.execute(sa.select(Link.__table__).where(*same)).one()

    def deliveries(self, **values: Any) -> list[Any]:
        chosen = [getattr(Delivery, name) == value for name, value in values.items()]
        with self.conductor.database.read() as c:
            return list(c.execute(sa.select(Delivery.__table__).where(*chosen).order_by(Delivery.id)))

    def inbox(self) -> list[Any]:
        with self.conductor.database.read() as c:
            return list(c.execute(sa.select(Inbox.__table__).order_by(Inbox.id)))

    def poll(self, catalogue: str) -> int:
        """Poll, and process everything that follows, including deferred work."""
        count = self.conductor.poll(f"salesforce.{catalogue}")
        waiting = [row.id for row in self.inbox() if row.state == "waiting"]
        for inbox_id in waiting:
            self.conductor.receive(inbox_id)
        self.run()
        return count

    def writes(self) -> list[tuple[str, str]]:
        """Return the calls that write, without the API version in their path."""
        found = [one for one in self.org.journal.entries() if one.method != "GET" and "/oauth2/" not in one.path]
        return [(one.method, one.path.split("/v59.0/")[-1].split("?")[0]) for one in found]
