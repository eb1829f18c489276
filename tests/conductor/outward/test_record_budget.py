"""Room: for so many records at once, and what was begun goes before what is new."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from conductor.outward.record_budget import RecordBudget
from tests.support.runtimes import until

pytestmark = pytest.mark.unit

#: Longer than any of this takes; only a failing test waits for it.
PATIENCE = 20.0


def start(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def waiting(room: RecordBudget) -> tuple[int, int]:
    """Who waits at this moment: begun, and new."""
    return len(room._begun), len(room._new)


def test_no_more_than_so_many_are_at_work_and_all_come_through() -> None:
    room, lock = RecordBudget(6), threading.Lock()
    working, most, done = 0, 0, 0

    def enter(by: int) -> None:
        nonlocal working, most
        with lock:
            working += by
            most = max(most, working)

    def one() -> None:
        nonlocal done
        for _ in range(50):
            with room.taken(2) as away:
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


def test_small_ones_go_side_by_side() -> None:
    room, together = RecordBudget(6), threading.Barrier(3)

    def small() -> None:
        with room.taken(2):
            together.wait(PATIENCE)

    for thread in [start(small) for _ in range(3)]:
        thread.join(PATIENCE)
    assert not together.broken


def test_no_more_small_ones_than_the_room_they_take_at_least() -> None:
    room = RecordBudget(6, least=3)
    with room.taken(1), room.taken(1):
        third = start(lambda: room.taken(1).__enter__())
        until(lambda: waiting(room) == (0, 1))
    third.join(PATIENCE)
    assert not third.is_alive()


def test_a_very_large_one_takes_its_turn_and_leaves_room_beside_it() -> None:
    room = RecordBudget(6)
    order: list[str] = []
    at_work, beside = threading.Event(), threading.Event()

    def large() -> None:
        with room.taken(1_000_000):
            order.append("large")
            at_work.set()
            assert beside.wait(PATIENCE)

    def small() -> None:
        with room.taken(1):
            order.append("small")
            beside.set()

    with room.taken(3):
        with room.taken(1):
            threads = [start(large)]
            until(lambda: waiting(room) == (0, 1))
            threads.append(start(small))  # there would be room for it
            until(lambda: waiting(room) == (0, 2))
            assert not order
        assert at_work.wait(PATIENCE)
        assert order == ["large"]
    for thread in threads:
        thread.join(PATIENCE)
    assert order == ["large", "small"]


def test_while_one_is_away_another_has_its_room() -> None:
    room = RecordBudget(1)
    entered = threading.Event()

    def other() -> None:
        with room.taken(1):
            entered.set()

    with room.taken(1) as away:
        thread = start(other)
        with away():
            assert entered.wait(PATIENCE)
    thread.join(PATIENCE)


def test_what_comes_back_goes_before_what_is_new() -> None:
    room = RecordBudget(1)
    order: list[str] = []
    left, may_return, holding, may_go = (threading.Event() for _ in range(4))

    def begun() -> None:
        with room.taken(1) as away:
            with away():
                left.set()
                may_return.wait(PATIENCE)
            order.append("begun")

    def holder() -> None:
        with room.taken(1):
            holding.set()
            may_go.wait(PATIENCE)

    def new() -> None:
        with room.taken(1):
            order.append("new")

    threads = [start(begun)]
    assert left.wait(PATIENCE)
    threads.append(start(holder))
    assert holding.wait(PATIENCE)
    threads.append(start(new))
    until(lambda: waiting(room) == (0, 1))
    may_return.set()
    until(lambda: waiting(room) == (1, 1))
    may_go.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert order == ["begun", "new"]


def test_what_failed_gives_its_room_back() -> None:
    room = RecordBudget(1)
    with pytest.raises(ZeroDivisionError), room.taken(1) as away, away():
        raise ZeroDivisionError
    passed = threading.Event()

    def other() -> None:
        with room.taken(1):
            passed.set()

    start(other)
    assert passed.wait(PATIENCE)
