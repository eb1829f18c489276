"""Slots for concurrent calls: limited across all processes, reused within a process, never lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from conductor.systems.concurrency import ConcurrencyLimiter, Stopping
from models.ledger import CallSlot
from models.session import Database
from tests.support.fakes import TestHub
from tests.support.records import rows
from tests.support.runtimes import until

#: Timeout in seconds; only a failing test reaches it.
PATIENCE = 20.0


@pytest.fixture
def hub(database: Database) -> TestHub:
    hub = TestHub(database, "crm")
    hub.systems["crm"].concurrency = 2
    hub.conductor.prepare()
    return hub


def start(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def owners(hub: TestHub) -> list[str]:
    with hub.conductor.context.database.read() as connection:
        held = sa.select(CallSlot.owner).where(CallSlot.owner.is_not(None)).order_by(CallSlot.number)
        return [str(owner) for owner in connection.scalars(held)]


def waiting(limiter: ConcurrencyLimiter) -> int:
    return len(limiter._lines["crm"])


def test_never_more_than_allowed_over_two_processes_and_all_come_through(hub: TestHub) -> None:
    processes = [ConcurrencyLimiter(hub.conductor.context) for _ in range(2)]
    lock, under_way, most, done = threading.Lock(), 0, 0, 0

    def call(by: int) -> None:
        nonlocal under_way, most
        with lock:
            under_way += by
            most = max(most, under_way)

    def work(limiter: ConcurrencyLimiter) -> None:
        nonlocal done
        for _ in range(15):
            with limiter.slot("crm") as slot:
                call(+1)
                call(-1)
                slot.release()  # no call is in progress
                slot.take()
                call(+1)
                call(-1)
        with lock:
            done += 1

    threads = [start(lambda limiter=limiter: work(limiter)) for limiter in processes for _ in range(4)]  # type: ignore[misc]
    for thread in threads:
        thread.join(PATIENCE)
    assert done == 8
    assert 1 <= most <= 2
    assert owners(hub) == []


def test_a_slot_is_handed_on_within_a_process(hub: TestHub) -> None:
    limiter, got = ConcurrencyLimiter(hub.conductor.context), list[list[str]]()

    def follow() -> None:
        with limiter.slot("crm"):
            got.append(owners(hub))

    with limiter.slot("crm"), limiter.slot("crm") as second:
        before = owners(hub)
        assert not limiter.is_waited_for("crm")
        threads = [start(follow) for _ in range(3)]
        until(lambda: waiting(limiter) == 3)
        assert second.is_sought
        second.release()
        for thread in threads:
            thread.join(PATIENCE)
        assert got == [before] * 3
        assert owners(hub) == before[:1]
    assert owners(hub) == []


def test_after_a_while_the_slot_is_released_for_another_process(hub: TestHub) -> None:
    here, elsewhere = ConcurrencyLimiter(hub.conductor.context), ConcurrencyLimiter(hub.conductor.context)
    with here.slot("crm"), here.slot("crm") as second:
        before = owners(hub)
        waits = start(lambda: here.enter("crm"))
        until(lambda: waiting(here) == 1)
        assert second._held is not None
        second._held.since -= 10.0  # passed on within this process for 10 s
        second.release()
        waits.join(PATIENCE)
        after = owners(hub)
        assert (after[0], len(after)) == (before[0], 2) and after != before  # taken from the database again
        assert elsewhere._take("crm", 1) == []


def test_waiting_for_a_slot_ends_when_the_process_stops(hub: TestHub) -> None:
    limiter, ended = ConcurrencyLimiter(hub.conductor.context), list[int]()

    def wait() -> None:
        with pytest.raises(Stopping), limiter.slot("crm"):
            pass
        ended.append(1)

    with limiter.slot("crm"), limiter.slot("crm"):
        threads = [start(wait) for _ in range(5)]
        until(lambda: waiting(limiter) == 5)
        hub.conductor.stop()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(ended) == 5
        assert waiting(limiter) == 0
    assert owners(hub) == []


def test_a_database_failure_leaves_no_waiting_thread(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter, failed = ConcurrencyLimiter(hub.conductor.context), list[BaseException]()
    asked = limiter._take

    def fails(name: str, count: int) -> list[str]:
        monkeypatch.setattr(limiter, "_take", asked)
        raise sa.exc.OperationalError("UPDATE call_slot", {}, Exception("it is away"))

    with pytest.raises(sa.exc.OperationalError):
        monkeypatch.setattr(limiter, "_take", fails)
        with limiter.slot("crm"):
            failed.append(AssertionError("it got one"))
    assert failed == [] and waiting(limiter) == 0
    began = time.monotonic()
    with limiter.slot("crm"):
        assert time.monotonic() - began < PATIENCE


def test_a_system_without_a_limit_has_none(hub: TestHub) -> None:
    hub.systems["crm"].concurrency = None
    with ConcurrencyLimiter(hub.conductor.context).slot("crm") as slot:
        assert not slot.is_limited and not slot.is_held and not slot.is_sought


def test_concurrent_calls_are_limited_over_all_processes_and_dead_workers_free_their_slots(database: Database) -> None:
    hub = TestHub(database, "crm")
    hub.systems["crm"].concurrency = 2
    hub.conductor.prepare()
    waits: list[float] = []

    def rest(_called: object, seconds: float | None) -> None:
        waits.append(seconds or 0.0)
        hub.clock.tick(61)  # the leases of the held slots expire

    limiter = ConcurrencyLimiter(hub.conductor.context, rest=rest)
    with limiter.slot("crm"), limiter.slot("crm"):
        assert len(rows(hub, CallSlot, CallSlot.owner.is_not(None))) == 2
        with limiter.slot("crm"):
            assert len(waits) == 1
    assert rows(hub, CallSlot, CallSlot.owner.is_not(None)) == []
