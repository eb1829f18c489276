"""The limit of calls per second applies across all processes."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from conductor.systems.rate_limits import RateLimiter
from models.catalogues import CATALOGUES
from models.ledger import System
from models.session import Database
from subscribers.http.rate_limit_headers import Rate
from tests.support.fakes import TestHub
from tests.support.records import add


def test_calls_per_second_are_limited_over_all_processes(database: Database) -> None:
    hub = TestHub(database, "crm")
    hub.systems["crm"].requests_per_second = 4
    slept: list[float] = []
    processes = [RateLimiter(hub.conductor.context, sleep=slept.append) for _ in range(3)]
    for turn in range(12):
        processes[turn % 3].wait("crm", 4)
    # The clock is frozen: the twelfth call starts 11/4 seconds after the first, in whichever process.
    assert max(slept) == pytest.approx(11 / 4)
    assert sorted(slept) == pytest.approx([turn / 4 for turn in range(1, 12)])


def test_a_rate_paces_every_call_of_a_delivery(database: Database) -> None:
    hub = TestHub(database, "crm")
    hub.systems["crm"].requests_per_second = 2
    slept: list[float] = []
    hub.conductor.rate_limits.sleep = slept.append
    hub.conductor.prepare()
    for _ in range(4):
        add(hub)
    hub.run()
    assert len(slept) == 3 and max(slept) == pytest.approx(1.5)


def test_the_rate_limit_a_system_reports_is_stored(database: Database) -> None:
    hub = TestHub(database, "crm")
    reset = hub.clock() + timedelta(minutes=1)

    def noted_rate() -> tuple[Any, ...]:
        hub.run()
        with database.read() as c:
            row = c.execute(sa.select(System.__table__)).one()
        return row.rate_remaining, row.rate_limit, row.rate_reset_at

    def edit(rate: Rate | None) -> None:
        hub.clock.tick()
        hub.systems["crm"].http = SimpleNamespace(rate=rate)
        with database.write() as c:
            CATALOGUES["customer"].insert(c, {"name": "Anna"})

    edit(None)
    assert noted_rate() == (None, None, None)
    edit(Rate(50, 100, reset))
    assert noted_rate() == (50, 100, reset)
    edit(Rate(49, 100, reset))
    assert noted_rate() == (50, 100, reset), "not with every batch"
    edit(Rate(0, 100, reset))
    assert noted_rate() == (0, 100, reset), "but an exhausted limit is written immediately"
    hub.clock.tick(60)
    edit(Rate(10**12))
    assert noted_rate() == (2**31 - 1, None, None)
