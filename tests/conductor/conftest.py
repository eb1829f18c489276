"""Hubs with fake systems for the conductor tests."""

from __future__ import annotations

import pytest

from conductor import Policy
from models.session import Database
from subscribers.mapping.fields import Field
from tests.support.fakes import TestHub
from tests.support.records import add, edit, webhook


@pytest.fixture
def hub(database: Database) -> TestHub:
    """Return a hub with two systems, `crm` and `shop`, that follow customers."""
    return TestHub(
        database, "crm", "shop", policy=Policy(lease_seconds=60, stale_seconds=30, max_attempts=3, retry_min_seconds=2)
    )


@pytest.fixture
def nested_hub(database: Database) -> TestHub:
    """Return a hub with two systems that store a customer's address as one nested object."""
    fields = {"name": "name", "email": "email", "city": "address.city", "street": "address.line1"}
    policy = Policy(lease_seconds=60, stale_seconds=30, max_attempts=3, retry_min_seconds=2, probe_min_seconds=2)
    return TestHub(database, "crm", "shop", policy=policy, field_to_data=fields)


@pytest.fixture
def sqlite_hub(sqlite_database: Database) -> TestHub:
    """Return a hub with one system, on SQLite only."""
    return TestHub(sqlite_database, "crm")


@pytest.fixture
def conflicted(database: Database) -> TestHub:
    """Return a hub with two systems and one conflict: the notes of the only customer, with `crm`."""
    fields = {"name": "name", "notes": Field("notes", conflict="ask"), "phone": "phone"}
    hub = TestHub(database, "crm", "shop", field_to_data=fields)
    customer = add(hub, notes="base")
    hub.run()
    hub.clock.tick()
    edit(hub, customer, notes="ours")
    hub.systems["crm"].edit("crm_1", notes="theirs")
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    return hub
