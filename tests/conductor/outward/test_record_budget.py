"""The record budget limits the records in progress; started batches go before new ones."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from conductor.outward.record_budget import RecordBudget
from tests.support.runtimes import until

pytestmark = pytest.mark.unit

#: Timeout in seconds; only a failing test reaches it.
PATIENCE = 20.0


def start(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def waiting(budget: RecordBudget) -> tuple[int, int]:
    """Return how many started and how many new batches wait."""
    return len(budget._begun), len(budget._new)


def test_the_budget_limits_the_records_at_work_and_all_batches_finish() -> None:
    budget, lock = RecordBudget(6), threading.Lock()
    working, most, done = 0, 0, 0

    def enter(by: int) -> None:
        nonlocal working, most
        with lock:
            working += by
            most = max(most, working)

    def one() -> None:
        nonlocal done
        for _ in range(50):
            with budget.taken(2) as away:
                enter(+1)
                enter(-1)
                with away():
                    pass
                enter(+1)
                enter(-1)
        with lock:
            done += 1

    threads = [start(one) for _ in range(12)]
    for thread in threads:
        thread.join(PATIENCE)
    assert done == 12
    assert 1 <= most <= 3


def test_small_batches_run_at_the_same_time() -> None:
    budget, together = RecordBudget(6), threading.Barrier(3)

    def small() -> None:
        with budget.taken(2):
            together.wait(PATIENCE)

    for thread in [start(small) for _ in range(3)]:
        thread.join(PATIENCE)
    assert not together.broken


def test_a_small_batch_counts_as_the_least_share() -> None:
    budget = RecordBudget(6, least=3)

    def take() -> None:
        budget.taken(1).__enter__()

    with budget.taken(1), budget.taken(1):
        third = start(take)
        until(lambda: waiting(budget) == (0, 1))
    third.join(PATIENCE)
    assert not third.is_alive()


def test_a_very_large_batch_waits_its_turn_and_leaves_a_share() -> None:
    budget = RecordBudget(6)
    order: list[str] = []
    at_work, beside = threading.Event(), threading.Event()

    def large() -> None:
        with budget.taken(1_000_000):
            order.append("large")
            at_work.set()
            assert beside.wait(PATIENCE)

    def small() -> None:
        with budget.taken(1):
            order.append("small")
            beside.set()

    with budget.taken(3):
        with budget.taken(1):
            threads = [start(large)]
            until(lambda: waiting(budget) == (0, 1))
            threads.append(start(small))  # the budget has room for it
            until(lambda: waiting(budget) == (0, 2))
            assert not order
        assert at_work.wait(PATIENCE)
        assert order == ["large"]
    for thread in threads:
        thread.join(PATIENCE)
    assert order == ["large", "small"]


def test_a_yielded_share_admits_another_batch() -> None:
    budget = RecordBudget(1)
    entered = threading.Event()

    def other() -> None:
        with budget.taken(1):
            entered.set()

    with budget.taken(1) as away:
        thread = start(other)
        with away():
            assert entered.wait(PATIENCE)
    thread.join(PATIENCE)


def test_a_returning_batch_goes_before_a_new_one() -> None:
    budget = RecordBudget(1)
    order: list[str] = []
    left, may_return, holding, may_go = (threading.Event() for _ in range(4))

    def begun() -> None:
        with budget.taken(1) as away:
            with away():
                left.set()
                may_return.wait(PATIENCE)
            order.append("begun")

    def holder() -> None:
        with budget.taken(1):
            holding.set()
            may_go.wait(PATIENCE)

    def new() -> None:
        with budget.taken(1):
            order.append("new")

    threads = [start(begun)]
    assert left.wait(PATIENCE)
    threads.append(start(holder))
    assert holding.wait(PATIENCE)
    threads.append(start(new))
    until(lambda: waiting(budget) == (0, 1))
    may_return.set()
    until(lambda: waiting(budget) == (1, 1))
    may_go.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert order == ["begun", "new"]


def test_a_failed_batch_gives_its_share_back() -> None:
    budget = RecordBudget(1)
    with pytest.raises(ZeroDivisionError), budget.taken(1) as away, away():
        raise ZeroDivisionError
    passed = threading.Event()

    def other() -> None:
        with budget.taken(1):
            passed.set()

    start(other)
    assert passed.wait(PATIENCE)
