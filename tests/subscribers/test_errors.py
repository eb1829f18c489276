"""Error classes define how the engine handles them."""

from __future__ import annotations

import pytest

from conductor.links.relations import WaitsFor
from subscribers.errors import Gone, Reject, Retry, Skip, SyncError, SystemDown


@pytest.mark.parametrize(
    ("error", "counts_attempt", "is_terminal", "pauses_system"),
    [
        (Retry("x"), True, False, False),
        (Reject("x"), True, True, False),
        (SystemDown("x"), False, False, True),
        (Gone("x"), True, True, False),
        (Skip("x"), False, True, False),
        (WaitsFor("customer", "1"), False, False, False),
    ],
)
def test_each_class_has_its_policy(
    error: SyncError, counts_attempt: bool, is_terminal: bool, pauses_system: bool
) -> None:
    policy = (error.counts_attempt, error.is_terminal, error.pauses_system)
    assert policy == (counts_attempt, is_terminal, pauses_system)
    assert error.code


def test_an_error_names_its_cause_by_a_code() -> None:
    assert Reject("x").code == "rejected"
    assert Reject("x", code="too_long").code == "too_long"
    assert Retry("x", code="no_answer").code == "no_answer"
    assert Reject("x").code == "rejected"  # the code of one instance does not affect another


def test_a_new_class_inherits_the_policy_of_the_one_it_refines() -> None:
    class RowLocked(Retry):
        code = "row_locked"

    error = RowLocked("x", after=3)
    assert (error.counts_attempt, error.is_terminal, error.code, error.after) == (True, False, "row_locked", 3.0)
