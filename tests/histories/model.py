"""A model of the whole hub: random histories over fake systems, run through the conductor's real code.

A history is a profile of each system and a list of steps. A step picks its target by number modulo the
number of candidates, so that any part of a history is also a valid history. This is what allows a failing
history to be shrunk. `tests.support.model_hub` defines the steps, and `tests.histories.model_properties` what
must hold after the hub has settled.

`make model` searches for failing histories for as long as requested, or among as many as requested (SECONDS or
HISTORIES, SEED, PROCESSES).
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import logging
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tests.histories.model_properties import check
from tests.histories.model_systems import Profile
from tests.support.model_hub import ModelHub, Step


@dataclass(frozen=True)
class History:
    """Profiles by system, and steps."""

    profiles: Mapping[str, Profile]
    steps: tuple[Step, ...]

    def words(self) -> str:
        """Return the history as Python source for a test."""
        plain = Profile()
        lines = ["History({"]
        for name, profile in self.profiles.items():
            odd = ", ".join(f"{k}={v!r}" for k, v in vars(profile).items() if v != getattr(plain, k))
            lines.append(f"    {name!r}: Profile({odd}),")
        lines.append("}, (")
        lines += [f"    {step!r}," for step in self.steps]
        return "\n".join([*lines, "))"])


# --- making histories -----------------------------------------------------------------------------------------------

_TICKS = (0.3, 1.0, 3.0, 12.0, 31.0, 61.0, 100.0)

#: Step -> weight, and the ranges of its arguments.
STEPS: dict[str, tuple[float, tuple[int, ...]]] = {
    "insert": (3, (8, 8, 16)),
    "edit": (6, (4, 4, 40, 16)),
    "edit_all": (0.7, (3, 40, 16)),
    "delete": (1.5, (4, 16)),
    "recreate": (1, (4, 8, 16)),
    "x_add": (1.5, (3, 32, 8)),
    "x_edit": (6, (3, 4, 4, 40)),
    "x_delete": (1, (3, 4)),
    "x_restore": (1, (3, 4)),
    "hook": (6, (3, 3, 3)),
    "hook_old": (1.5, (3, 40)),
    "hook_lost": (1, (3, 8)),
    "poll": (2, (3,)),
    "relay": (3, ()),
    "work": (9, (4, 8)),
    "run": (9, (8,)),
    "deliver": (1, (3,)),
    "sweep": (1.5, (4,)),
    "wipe": (0.3, ()),
    "stop": (0.5, ()),
    "fail": (3, (3, 7, 2, 3)),
    "outage": (0.7, (3, 6, 5)),
    "broker_away": (0.5, (3,)),
    "pause": (0.3, (3,)),
    "resume": (0.3, (3,)),
    "retry": (0.5, ()),
    "discard": (0.3, ()),
    "decide": (0.5, (3, 2)),
    "unsubscribe": (0.7, (3, 5, 6, 2)),
    "lift": (0.5, (3,)),
    "mapping": (0.5, (3, 4)),
    "push": (0.7, (4, 16)),
    "settle": (0.25, ()),
}
#: Step -> index of the argument that selects a field.
_COLUMN_AT = {"edit": 1, "edit_all": 0, "x_edit": 2}
#: Step -> index of the argument that selects a value, and the numbers of untidy values.
_VALUE_AT = {"edit": 2, "edit_all": 1, "x_edit": 3, "insert": 0, "x_add": 2}
_UNTIDY = (7, 15, 23)
_ALWAYS = {"insert", "run"}
#: The steps of histories about edits on both sides, while the hub is stopped or between its polls.
_CONFLICTS = {"edit", "x_edit", "hook", "poll", "relay", "work", "run", "fail", "outage", "decide", "settle"}
_NEVER_MEANWHILE = {"settle"}


def make_profile(rng: random.Random) -> Profile:
    """Return a random profile of a system."""
    plain = rng.random() < 0.3
    if plain:
        return Profile(seconds=rng.random() < 0.5)
    return Profile(
        seconds=rng.random() < 0.5,
        normalises=rng.random() < 0.35,
        thin=rng.random() < 0.3,
        marked=rng.random() < 0.85,
        match_on=("email",) if rng.random() < 0.2 else (),
        on_gone=rng.choice(("unlink", "unlink", "delete", "archive", "recreate")),
        on_delete=rng.choice(("delete", "delete", "delete", "archive", "unlink", "ignore")),
        conflict=rng.choice(("newest", "newest", "internal", "external", "ask")),
        direction=rng.choice(("both", "both", "both", "out")),
        eventful=rng.random() < 0.2,
        bulk=rng.choice((1, 1, 3)),
        answers=rng.random() < 0.8,
        omits=rng.random() < 0.2,
        repeats=rng.random() < 0.15,
        nameless=rng.random() < 0.1,
        reuses=rng.random() < 0.15,
        look=rng.choice(("auto", "poll", "fetch")),
        conditional=rng.random() < 0.2,
    )


def _without(kinds: list[str], weights: list[float], out: set[str]) -> tuple[list[str], list[float]]:
    kept = [(kind, weight) for kind, weight in zip(kinds, weights, strict=True) if kind not in out]
    return [kind for kind, _ in kept], [weight for _, weight in kept]


def make_history(seed: int) -> History:
    """Return the history of this seed. Each omits some kinds of steps, so that it exercises the others more."""
    rng = random.Random(seed)
    conflicts = rng.random() < 0.25
    names = ("crm", "shop", "erp")[: 1 if conflicts else rng.choice((1, 1, 1, 2, 2, 3))]
    profiles = {name: make_profile(rng) for name in names}
    keep = rng.choice((0.35, 0.6, 0.9))
    kinds = [kind for kind in STEPS if kind in _ALWAYS or rng.random() < keep]
    weights = [STEPS[kind][0] for kind in kinds]
    # In some histories all steps use a few fields of one record, so that sides conflict.
    fields = rng.sample(range(4), rng.choice((1, 2, 4)))
    if conflicts:
        kinds, weights = _without(kinds, weights, set(kinds) - _CONFLICTS)
    elif rng.random() < 0.4:
        kinds, weights = _without(kinds, weights, {"insert", "x_add"})
    untidy = 0.35 if any(profile.normalises for profile in profiles.values()) else 0.0
    crashes, meanwhiles, ticks = (rng.choice((0, 0, 0.05, 0.15)) for _ in range(3))
    ticks += 0.03

    def step_of(kind: str) -> Step:
        numbers = [rng.randrange(limit) for limit in STEPS[kind][1]]
        if kind in _COLUMN_AT:
            numbers[_COLUMN_AT[kind]] = rng.choice(fields)
        if kind in _VALUE_AT and rng.random() < untidy:
            numbers[_VALUE_AT[kind]] = rng.choice(_UNTIDY)
        return (kind, *numbers)

    def plain_step() -> Step:
        return step_of(rng.choices(kinds, weights)[0])

    def inner_step() -> Step:
        """Return a step for another process, usually about the record in progress."""
        dice = rng.random()
        if dice < 0.15:
            return ("tick", rng.choice(_TICKS))
        if dice < 0.4:
            return ("deliver", rng.choice((0, 1, 2, 3, 3, 3)))  # 3: the system of the call in progress
        if dice < 0.55:
            return ("then", step_of("edit"), ("relay",))
        if dice < 0.7:
            edit = step_of("x_edit")
            return ("then", edit, ("hook_now", edit[1]))
        step = plain_step()
        return step if step[0] not in _NEVER_MEANWHILE else ("relay",)

    def interruption(*what: object) -> Step:
        # At any boundary, or only at calls of systems.
        at_calls = rng.random() < 0.5
        return (*what[:1], int(at_calls), rng.randint(1, 4 if at_calls else 25), *what[1:])

    def step() -> Step:
        dice = rng.random()
        if dice < crashes:
            return interruption("crash")
        if dice < crashes + meanwhiles:
            return interruption("meanwhile", inner_step())
        if dice < crashes + meanwhiles + ticks:
            return ("tick", rng.choice(_TICKS))
        return plain_step()

    start: list[Step] = [("insert", rng.randrange(8), rng.randrange(8), 0)]
    if conflicts or rng.random() < 0.7:
        start.append(("run", 7))
    if conflicts or rng.random() < 0.5:
        start += [("poll", number) for number in range(len(names))]  # from now on, edits are looked for
    return History(profiles, (*start, *(step() for _ in range(rng.choice((5, 8, 12, 20))))))


# --- running them ---------------------------------------------------------------------------------------------------


def run(history: History, *, trace: bool = False) -> ModelHub:
    """Run a history; raises `Violation`, or any unexpected exception of the hub."""
    hub = ModelHub(history.profiles, check, trace=trace)
    try:
        hub.run(history.steps)
    except BaseException as error:
        error.hub = hub  # type: ignore[attr-defined]
        raise
    return hub


def fails(history: History) -> str | None:
    """Return why a history fails, or None."""
    try:
        run(history)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def shrink(history: History, still: Callable[[str], bool] = lambda words: True) -> History:
    """Return a minimal history that still fails: fewer steps and systems, simpler steps, smaller numbers."""

    def bad(candidate: History) -> bool:
        words = fails(candidate)
        return words is not None and still(words)

    while True:
        history = _fewer_steps(history, bad)
        plainer = next(filter(bad, _plainer(history)), None)
        if plainer is None:
            return history
        history = plainer


def _fewer_steps(history: History, bad: Callable[[History], bool]) -> History:
    size = max(len(history.steps) // 2, 1)
    while True:
        start = 0
        while start < len(history.steps):
            candidate = History(history.profiles, history.steps[:start] + history.steps[start + size :])
            if bad(candidate):
                history = candidate
            else:
                start += size
        if size == 1:
            return history
        size //= 2


def _plainer(history: History) -> Iterator[History]:
    """Yield histories that are simpler in one respect."""
    plain = Profile()
    for name, profile in history.profiles.items():
        rest = {other: p for other, p in history.profiles.items() if other != name}
        if rest:
            yield History(rest, history.steps)
        for key, mood in vars(profile).items():
            if mood != getattr(plain, key):
                plainer = Profile(**{**vars(profile), key: getattr(plain, key)})
                yield History({**history.profiles, name: plainer}, history.steps)
    for index, step in enumerate(history.steps):
        for simpler in _simpler(step):
            yield History(history.profiles, (*history.steps[:index], simpler, *history.steps[index + 1 :]))


def _simpler(step: Step) -> Iterator[Step]:
    if step[0] == "then":
        yield from step[1:]
    for index, inner in enumerate(step):
        if isinstance(inner, tuple):
            for simpler in _simpler(inner):
                yield (*step[:index], simpler, *step[index + 1 :])
    for index, number in enumerate(step):
        if isinstance(number, int) and number > 0:
            for smaller in {0, number // 2, number - 1}:
                yield (*step[:index], smaller, *step[index + 1 :])


def explain(history: History) -> str:
    """Describe a failing history: its source, its trace and its failure."""
    try:
        run(history, trace=True)
    except BaseException as error:
        hub = getattr(error, "hub", None)
        happened = "\n".join(hub.trace) if hub is not None and hub.trace else ""
        return f"{history.words()}\n\n{happened}\n\n{type(error).__name__}: {error}"
    return f"{history.words()}\n\nholds"


@dataclass
class Search:
    """The result of a search."""

    histories: int = 0
    failing: list[tuple[int, str]] = field(default_factory=list)


def _rarely_collect(number: int) -> None:
    """Collect garbage rarely: it takes a third of the time and finds little."""
    gc.disable()
    if number % 50 == 1:
        gc.collect()
        gc.freeze()


def search(seeds: Iterable[int], seconds: float | None = None, most: int = 1) -> Search:
    """Run the histories of these seeds until `most` of them fail or the time is over."""
    found = Search()
    end = time.monotonic() + seconds if seconds is not None else None
    for seed in seeds:
        if end is not None and time.monotonic() > end:
            break
        found.histories += 1
        _rarely_collect(found.histories)
        words = fails(make_history(seed))
        if words is not None:
            found.failing.append((seed, words))
            if len(found.failing) >= most:
                break
    return found


def _part(arguments: tuple[int, int, int, float | None, int | None, int]) -> Search:
    seed, part, parts, seconds, count, most = arguments
    logging.disable(logging.CRITICAL)
    numbers = itertools.count(seed + part, parts) if count is None else range(seed + part, seed + count, parts)
    return search(numbers, seconds, most)


def search_parallel(
    seed: int, *, seconds: float | None = None, count: int | None = None, most: int = 1, processes: int | None = None
) -> Search:
    """Run a search on all cores."""
    parts = processes or os.cpu_count() or 1
    with multiprocessing.get_context("spawn").Pool(parts) as pool:
        found = pool.map(_part, [(seed, part, parts, seconds, count, most) for part in range(parts)])
        pool.close()
        pool.join()  # the workers clean up
    return Search(sum(f.histories for f in found), sorted(pair for f in found for pair in f.failing))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Run random histories; print the first that fails, made small.")
    parser.add_argument("--seconds", type=float, default=os.environ.get("SECONDS") or None)
    parser.add_argument("--histories", type=int, default=os.environ.get("HISTORIES") or None)
    parser.add_argument("--processes", type=int, default=os.environ.get("PROCESSES") or None, help="one for each core")
    parser.add_argument(
        "--seed",
        type=int,
        default=os.environ.get("SEED") or None,
        help="of the first history; by default another each time",
    )
    parser.add_argument("--one", action="store_true", help="run only the history of --seed, and tell what happens")
    parser.add_argument("--most", type=int, default=1, help="stop a process after so many failures")
    parser.add_argument("--no-shrink", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    seed: int = options.seed if options.seed is not None else random.SystemRandom().randrange(10**9)
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    if options.one:
        words = fails(make_history(seed))
        found = Search(1, [(seed, words)] if words else [])
    else:
        seconds = options.seconds if options.seconds or options.histories else 60.0
        count, parts = options.histories, options.processes
        found = search_parallel(seed, seconds=seconds, count=count, most=options.most, processes=parts)
    rate = found.histories / (time.monotonic() - began)
    print(f"{found.histories} histories, {rate:.0f} a second, {len(found.failing)} failing", flush=True)
    for number, words in found.failing:
        print(f"\nseed {number}: {words}", flush=True)
    if found.failing and not options.no_shrink:
        number, words = found.failing[0]
        print(explain(shrink(make_history(number), lambda other: other[:20] == words[:20])))
    summary = {"seed": seed, "histories": found.histories, "failing": [number for number, _ in found.failing]}
    print(json.dumps(summary))
    return 1 if found.failing else 0
