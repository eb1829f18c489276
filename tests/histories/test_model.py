"""The model test: whatever happens in between, all sides agree after the hub settles. See `tests.histories.model`.

`make model` runs it for as long as requested.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from subscribers.records import External, Item
from tests.histories import model
from tests.histories.model_properties import check
from tests.histories.model_systems import Profile, Violation
from tests.support.model_hub import ModelHub

#: Histories of the suite; always the same, so that a failing run fails again.
HISTORIES = 2000
SEED = 20_261_122

#: Seconds after which a slow machine may stop.
SECONDS = 40.0


def test_thousands_of_random_histories() -> None:
    found = model.search_parallel(SEED, count=HISTORIES, seconds=SECONDS)
    if found.failing:
        seed, words = found.failing[0]
        small = model.shrink(model.make_history(seed), lambda other: other[:20] == words[:20])
        raise AssertionError(f"seed {seed}, made small:\n{model.explain(small)}")
    assert found.histories > 50, "the machine is too slow for this test to say anything"


PROFILES = st.integers(0, 2**32).map(lambda seed: model.make_profile(random.Random(seed)))
STEPS = st.sampled_from(sorted(set(model.STEPS) - {"settle"})).flatmap(
    lambda kind: st.tuples(st.just(kind), *(st.integers(0, limit - 1) for limit in model.STEPS[kind][1]))
)


class Machine(RuleBasedStateMachine):
    """The same hub, with steps chosen by hypothesis."""

    @initialize(crm=PROFILES, shop=st.none() | PROFILES)
    def begin(self, crm: Profile, shop: Profile | None) -> None:
        self.hub = ModelHub({"crm": crm, **({"shop": shop} if shop else {})}, check)
        self.hub.do(("insert", 1, 1, 0))

    @rule(step=STEPS)
    def step(self, step: tuple[Any, ...]) -> None:
        self.hub.do(step)

    @rule()
    def keep_up(self) -> None:
        self.hub.do(("run", 7))

    @rule(step=STEPS, boundaries=st.integers(1, 20), at_calls=st.booleans())
    def meanwhile(self, step: tuple[Any, ...], boundaries: int, at_calls: bool) -> None:
        self.hub.do(("meanwhile", at_calls, boundaries, step))

    @rule(boundaries=st.integers(1, 20), at_calls=st.booleans())
    def crash(self, boundaries: int, at_calls: bool) -> None:
        self.hub.do(("crash", at_calls, boundaries))

    @rule(seconds=st.sampled_from((1.0, 31.0, 61.0)))
    def time_passes(self, seconds: float) -> None:
        self.hub.do(("tick", seconds))

    def teardown(self) -> None:
        if hasattr(self, "hub"):
            try:
                if self.hub.failure is None:
                    self.hub.do(("settle",))
            finally:
                self.hub.database.hub = None


def test_histories_that_hypothesis_chooses() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=20,
            derandomize=True,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.quiet,
        ),
    )


# --- the model itself -------------------------------------------------------------------------------------


def test_the_model_sees_a_lost_edit() -> None:
    """The model detects a system that confirms an update and loses it."""
    history = model.History({"crm": Profile()}, (("insert", 0, 0, 0), ("run", 7), ("edit", 0, 1, 3, 0), ("run", 7)))
    assert model.fails(history) is None
    hub = ModelHub(history.profiles, check)
    crm = hub.systems["crm"]

    def lose(item: Item) -> External:
        before = dict(crm.store[item.linked_id])
        confirmed = crm.edit(item.linked_id, **item.changes)
        crm.store[item.linked_id] = before
        return confirmed

    crm.updated = lose  # type: ignore[method-assign]
    with pytest.raises(Violation, match=r"\((a|e|i)\)"):
        hub.run(history.steps)


@pytest.mark.parametrize("conflict", ["external", "newest", "ask"])
def test_the_model_sees_a_policy_that_is_not_kept(conflict: str) -> None:
    """The hub overwrites an edit that no event has reported, because it does not look before it writes."""
    both = (("edit", 0, 1, 2, 0), ("x_edit", 0, 0, 1, 1))
    history = model.History(
        {"crm": Profile(conflict=conflict)}, (("insert", 0, 0, 0), ("run", 7), ("poll", 0), *both, ("run", 7))
    )
    assert model.fails(history) is None
    hub = ModelHub(history.profiles, check)
    for conductor in hub.processes:
        conductor.subscribers["crm.customer"].look_first = "never"  # type: ignore[misc]
    with pytest.raises(Violation, match=r"\(i\)"):
        hub.run(history.steps)


def test_the_model_sees_an_outage_that_uses_up_attempts() -> None:
    history = model.History(
        {"crm": Profile()},
        (*(("insert", n, n, 0) for n in range(3)), ("run", 7), ("edit", 0, 1, 3, 0), ("outage", 0, 0, 4), ("run", 7))
        + (("tick", 61.0), ("sweep", 3), ("run", 7)) * 3,
    )
    assert model.fails(history) is None
    hub = ModelHub(history.profiles, check)
    for conductor in hub.processes:
        conductor.outages.answers_another = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(Violation, match=r"\(j\)"):
        hub.run(history.steps)


def test_a_failing_history_is_made_small() -> None:
    steps = (("insert", 0, 0, 0), ("run", 7), ("x_edit", 0, 0, 3, 13), ("tick", 3.0), ("edit", 0, 3, 29, 0))
    failing = model.History({"crm": Profile(seconds=True), "shop": Profile()}, steps)
    # Any result of the history can serve as a failure; this one uses a rejected record.
    seen: list[model.History] = []

    def fails(history: model.History) -> str | None:
        seen.append(history)
        return "yes" if any(step[0] == "edit" for step in history.steps) else None

    original, model.fails = model.fails, fails
    try:
        small = model.shrink(failing)
    finally:
        model.fails = original
    assert small.steps == (("edit", 0, 0, 0, 0),) and list(small.profiles.values()) == [Profile()]
