"""Histories on which the model test failed once, and one for each mechanism."""

from __future__ import annotations

import pytest

from tests.histories import model
from tests.histories.model_systems import Profile

HISTORIES = [
    model.History(
        {"shop": Profile(on_gone="delete")},
        (("insert", 0, 0, 0), ("run", 0), ("x_delete", 0, 0), ("x_add", 0, 1, 0)),
    ),
    model.History(
        {"crm": Profile(), "shop": Profile(on_delete="unlink")},
        (("insert", 0, 0, 0), ("run", 0), ("x_add", 0, 1, 0), ("delete", 0, 0)),
    ),
    model.History({"shop": Profile(direction="out")}, (("x_add", 0, 1, 0), ("x_edit", 0, 0, 3, 0))),
    # Deleted in the database and in the external system, then created again: it was considered unlinked for ever.
    model.History(
        {"crm": Profile(on_gone="delete")},
        (("insert", 0, 0, 0), ("run", 0), ("x_delete", 0, 0), ("poll", 0), ("recreate", 0, 0, 0)),
    ),
    # A lease taken for a fetch was never recovered.
    model.History(
        {"crm": Profile()},
        (
            *(("insert", 0, 0, 0), ("run", 0), ("edit", 0, 0, 1, 0), ("run", 0)),
            *(("hook", 0, 0, 0), ("crash", 1, 1), ("hook", 0, 0, 0), ("run", 0)),
        ),
    ),
    model.History(
        {"shop": Profile(thin=True)},
        (
            *(("insert", 0, 0, 0), ("run", 0), ("x_delete", 0, 0), ("hook", 0, 0, 0)),
            *(("crash", 0, 8), ("work", 0, 0)),
        ),
    ),
    # A record deleted while the outcome of its creation was unknown, and that matches another record.
    model.History(
        {"crm": Profile(match_on=("email",))},
        (
            ("meanwhile", 0, 9, ("work", 0, 0)),
            ("crash", 1, 2),
            ("insert", 0, 0, 0),
            ("insert", 0, 1, 0),
            ("run", 0),
            ("delete", 0, 6),
            ("poll", 0),
        ),
    ),
    # Fetched repeatedly: an incoming event for a deleted record needs no fetch.
    model.History({"crm": Profile(on_delete="archive")}, (("insert", 0, 0, 0), ("run", 0), ("delete", 0, 0))),
    # A create with an unknown outcome had succeeded, and became an update, which is unsubscribed.
    model.History(
        {"crm": Profile()},
        (("insert", 0, 0, 0), ("crash", 0, 11), ("unsubscribe", 0, 3, 0, 0), ("run", 0), ("edit", 0, 0, 1, 0)),
    ),
    # A restored record of a record that has another one in the system by now is left alone.
    model.History(
        {"crm": Profile()},
        (
            *(("insert", 0, 0, 0), ("run", 0), ("delete", 0, 0), ("run", 0)),
            *(("recreate", 0, 0, 0), ("x_restore", 0, 0)),
        ),
    ),
    model.History(
        {"crm": Profile(on_gone="recreate")},
        (
            *(("insert", 0, 0, 0), ("run", 0), ("x_delete", 0, 0), ("edit", 0, 0, 1, 0), ("run", 0)),
            *(("x_restore", 0, 0), ("x_delete", 0, 1)),
        ),
    ),
    # Restored after the hub has applied the deletion.
    model.History(
        {"crm": Profile()}, (("insert", 0, 0, 0), ("run", 0), ("x_delete", 0, 0), ("settle",), ("x_restore", 0, 0))
    ),
    # Deleted by a writer that left the system out: its conflict could not be decided any more.
    model.History(
        {"crm": Profile(conflict="ask")},
        (
            *(("insert", 0, 0, 0), ("run", 0), ("poll", 0), ("edit", 0, 0, 1, 0)),
            *(("x_edit", 0, 0, 0, 2), ("run", 0), ("delete", 0, 6)),
        ),
    ),
    # Created under the id of a deleted record.
    model.History(
        {"crm": Profile(normalises=True, reuses=True), "shop": Profile()},
        (("x_add", 1, 1, 7), ("insert", 0, 0, 0), ("run", 0), ("delete", 0, 0)),
    ),
    model.History({"crm": Profile(omits=True)}, (("insert", 0, 0, 0), ("run", 0), ("x_edit", 0, 0, 1, 6))),
]


GUARDS = {
    "a lease keeps other workers out": model.History(
        {"crm": Profile()},
        (("insert", 0, 0, 0), ("relay",), ("meanwhile", True, 1, ("deliver", 3)), ("run", 0)),
    ),
    "a system's own form of a value is no edit": model.History(
        {"crm": Profile(normalises=True)},
        (("insert", 7, 0, 0), ("run", 0), ("tick", 3.0), ("x_edit", 0, 0, 2, 3)),
    ),
    "what comes in waits for the delivery under way": model.History(
        {"crm": Profile()},
        (
            *(("insert", 0, 0, 0), ("run", 0), ("edit", 0, 1, 3, 0), ("relay",), ("tick", 3.0)),
            ("meanwhile", True, 1, ("then", ("x_edit", 0, 0, 1, 4), ("tick", 1.0), ("hook_now", 0))),
            ("run", 0),
        ),
    ),
    "an edit during the call stays owed": model.History(
        {"crm": Profile()},
        (
            *(("insert", 0, 0, 0), ("run", 0), ("edit", 0, 1, 3, 0), ("relay",)),
            ("meanwhile", True, 1, ("then", ("edit", 0, 1, 4, 0), ("relay",))),
            ("run", 0),
        ),
    ),
    "what was fetched is old news once somebody else applied something newer": model.History(
        {"crm": Profile()},
        (
            *(("x_add", 0, 1, 0), ("tick", 3.0)),
            (
                *("meanwhile", True, 2),
                ("then", ("x_edit", 0, 0, 1, 4), ("hook_now", 0), ("tick", 3.0), ("x_add", 0, 2, 1), ("poll", 0)),
            ),
            *(("hook", 0, 0, 0), ("run", 7)),
        ),
    ),
    "an edit made while the hub was stopped is merged before ours is sent": model.History(
        {"crm": Profile(conflict="external")},
        (("insert", 0, 0, 0), ("run", 7), ("poll", 0), ("edit", 0, 1, 2, 0), ("x_edit", 0, 0, 1, 1), ("run", 7)),
    ),
    "an outage uses up no attempts": model.History(
        {"crm": Profile()},
        (
            *(("insert", 0, 0, 0), ("insert", 1, 1, 0), ("run", 7), ("edit", 0, 1, 3, 0), ("outage", 0, 2, 4)),
            *(("run", 7), ("tick", 61.0), ("sweep", 3), ("run", 7), ("tick", 61.0), ("sweep", 3), ("run", 7)),
        ),
    ),
    "same-second events are fetched": model.History(
        {"crm": Profile(seconds=True)},
        (
            ("insert", 0, 0, 0),
            ("run", 0),
            ("x_edit", 0, 0, 1, 1),
            ("x_edit", 0, 0, 1, 2),
            ("hook", 0, 1, 0),
            ("run", 7),
        ),
    ),
}


@pytest.mark.parametrize("history", HISTORIES, ids=lambda history: history.steps[-1][0])
def test_a_history_that_failed_once_passes(history: model.History) -> None:
    assert model.fails(history) is None, model.explain(history)


@pytest.mark.parametrize("what", GUARDS)
def test_a_mechanism_holds(what: str) -> None:
    assert model.fails(GUARDS[what]) is None, model.explain(GUARDS[what])
