"""Concurrent calls, over all processes."""

from __future__ import annotations

from conductor.systems.concurrency import Limits
from models.ledger import CallSlot
from models.session import Database
from tests.support.fakes import TestHub
from tests.support.records import (
    rows,
)


def test_concurrent_calls_are_limited_over_all_processes_and_dead_workers_free_their_slots(database: Database) -> None:
    hub = TestHub(database, "crm")
    hub.systems["crm"].concurrency = 2
    hub.conductor.prepare()
    waits: list[float] = []

    def rest(_called: object, seconds: float | None) -> None:
        waits.append(seconds or 0.0)
        hub.clock.tick(61)  # the lease of those who hold the slots runs out

    limits = Limits(hub.conductor.context, rest=rest)
    with limits.slot("crm"), limits.slot("crm"):
        assert len(rows(hub, CallSlot, CallSlot.owner.is_not(None))) == 2
        with limits.slot("crm"):
            assert len(waits) == 1
    assert rows(hub, CallSlot, CallSlot.owner.is_not(None)) == []
