"""Hands: so many at once, and what was begun before what is new."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from conductor.hands import Hands
from tests.runtimes import until

pytestmark = pytest.mark.unit

#: Longer than any of this takes; only a failing test waits for it.
PATIENCE = 20.0


def start(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def waiting(hands: Hands) -> tuple[int, int]:
    """Who waits at this moment: begun, and new."""
    return len(hands._for_begun._waiters), len(hands._for_new._waiters)  # type: ignore[attr-defined]


def test_no_more_than_so_many_are_at_work_and_all_come_through() -> None:
    hands, lock = Hands(3), threading.Lock()
    working, most, done = 0, 0, 0

    def enter(by: int) -> None:
        nonlocal working, most
        with lock:
            working += by
            most = max(most, working)

    def one() -> None:
        nonlocal done
        for _ in range(50):
            with hands.taken():
                enter(+1)
                enter(-1)
                with hands.away():
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


def test_while_one_is_away_another_has_its_hand() -> None:
    hands = Hands(1)
    entered = threading.Event()

    def other() -> None:
        with hands.taken():
            entered.set()

    with hands.taken():
        thread = start(other)
        with hands.away():
            assert entered.wait(PATIENCE)
    thread.join(PATIENCE)


def test_what_comes_back_goes_before_what_is_new() -> None:
    hands = Hands(1)
    order: list[str] = []
    left, may_return, holding, may_go = (threading.Event() for _ in range(4))

    def begun() -> None:
        with hands.taken():
            with hands.away():
                left.set()
                may_return.wait(PATIENCE)
            order.append("begun")

    def holder() -> None:
        with hands.taken():
            holding.set()
            may_go.wait(PATIENCE)

    def new() -> None:
        with hands.taken():
            order.append("new")

    threads = [start(begun)]
    assert left.wait(PATIENCE)
    threads.append(start(holder))
    assert holding.wait(PATIENCE)
    threads.append(start(new))
    until(lambda: waiting(hands) == (0, 1))
    may_return.set()
    until(lambda: waiting(hands) == (1, 1))
    may_go.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert order == ["begun", "new"]


def test_a_hand_comes_back_from_what_failed() -> None:
    hands = Hands(1)
    with pytest.raises(ZeroDivisionError), hands.taken(), hands.away():
        raise ZeroDivisionError
    passed = threading.Event()

    def other() -> None:
        with hands.taken():
            passed.set()

    start(other)
    assert passed.wait(PATIENCE)
