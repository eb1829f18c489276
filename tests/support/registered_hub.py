"""A hub over subscribers from the registry, for tests of the documented examples."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from conductor import Conductor
from models.session import Database
from subscribers.registry import REGISTRY, connect
from tests.support.fakes import RecordingPublisher, TestHub
from tests.support.records import CUSTOMER


class RegisteredHub(TestHub):
    """A hub over real subscribers, driven step by step."""

    def __init__(self, database: Database, names: set[str]) -> None:
        self.publisher = RecordingPublisher()
        self.conductor = Conductor(database, connect({name: REGISTRY[name] for name in names}), self.publisher)
        self.conductor.prepare()

    def execute(self, statement: Any) -> Any:
        with self.conductor.database.write() as connection:
            return connection.execute(statement)

    def add(self, **values: Any) -> int:
        (key,) = self.execute(sa.insert(CUSTOMER).values(**values)).inserted_primary_key
        return int(key)

    def customer(self, key: int) -> Any:
        with self.conductor.database.read() as connection:
            return connection.execute(sa.select(CUSTOMER).where(CUSTOMER.c.id == key)).one()

    def poll(self, name: str) -> None:
        self.conductor.poll(name)
        self.run()
