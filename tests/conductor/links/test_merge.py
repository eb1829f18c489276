"""Properties of the three-way merge that hold for any combination of changes in hub and system."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from conductor.links.merge import Merge, merge, rebase
from subscribers.mapping.values import same

FIELDS = ("name", "email", "city", "active")
VALUES = st.sampled_from([None, "", "a", "b", "c", 0, 1, True, False, ["x"], {"k": 1}])
FLAT = st.dictionaries(st.sampled_from(FIELDS), VALUES)
FULL = st.fixed_dictionaries(dict.fromkeys(FIELDS, VALUES))
WINNERS = st.sampled_from(["internal", "external", "ask"])

Flat = Mapping[str, Any]


def together(
    agreed: Flat, theirs: Flat, ours: Flat, *, held: Flat | None = None, out: Any = (), who: Any = "internal"
) -> Merge:
    winner = who if callable(who) else (lambda path: who)
    return merge(
        base=agreed,
        remote_values=held or {},
        theirs=theirs,
        ours=ours,
        comes_in=lambda path: path not in out,
        winner=winner,
    )


def owed(agreed: Flat, ours: Flat) -> dict[str, Any]:
    """Return what outward delivery would send after the merge: our fields that differ from the base."""
    return {path: value for path, value in ours.items() if path not in agreed or not same(value, agreed[path])}


def written(ours: Flat, result: Merge) -> dict[str, Any]:
    """Return our fields after the taken values are written."""
    return {**ours, **result.take}


def is_echo(result: Merge) -> bool:
    """Return whether nothing differs from the agreed state."""
    return not (result.take or result.keep or result.agreed or result.ask or result.form)


def changed(base: Flat, now: Flat) -> set[str]:
    return {path for path in now if not same(base[path], now[path])}


@given(FULL, st.sets(st.sampled_from(FIELDS)), WINNERS)
def test_an_echo_of_the_agreed_values_changes_nothing(agreed: Flat, out: set[str], who: str) -> None:
    result = together(agreed, agreed, agreed, out=out, who=who)
    assert is_echo(result) and not result.conflicts


@given(FULL, FLAT, FULL, WINNERS)
def test_an_echo_is_nothing_also_while_we_are_ahead_and_where_they_store_it_otherwise(
    agreed: Flat, held: Flat, ours: Flat, who: str
) -> None:
    """The system returns its stored form of the last agreed state; our later changes do not matter."""
    assert is_echo(together(agreed, {**agreed, **held}, ours, held=held, who=who))


@given(FLAT, FLAT, FLAT, FULL, st.sets(st.sampled_from(FIELDS)), WINNERS)
def test_the_same_event_again_is_an_echo(
    agreed: Flat, held: Flat, theirs: Flat, ours: Flat, out: set[str], who: str
) -> None:
    result = together(agreed, theirs, ours, held=held, out=out, who=who)
    ours_now = written(ours, result)
    new_agreed, new_held = rebase(result, agreed, held, ours_now)
    again = together(new_agreed, theirs, ours_now, held=new_held, out=out, who=who)
    assume(not result.ask)  # a field in conflict has no new base yet, see below
    assert is_echo(again)
    assert rebase(again, new_agreed, new_held, ours_now) == (new_agreed, new_held)


@given(FULL, FULL, st.sets(st.sampled_from(FIELDS)))
def test_edits_of_different_fields_both_survive(agreed: Flat, edits: Flat, there: set[str]) -> None:
    theirs = {path: edits[path] if path in there else value for path, value in agreed.items()}
    ours = {path: edits[path] if path not in there else value for path, value in agreed.items()}
    result = together(agreed, theirs, ours)
    now = written(ours, result)
    for path in changed(agreed, theirs):
        assert same(now[path], theirs[path])
    for path in changed(agreed, ours):
        assert same(now[path], ours[path])
    assert not result.conflicts and set(result.take) == changed(agreed, theirs)
    # The hub owes the system exactly the fields that we changed.
    assert set(owed(rebase(result, agreed, {}, now)[0], now)) == changed(agreed, ours)


@given(FULL, FULL, FULL, WINNERS)
def test_only_a_field_both_changed_to_different_values_is_a_conflict(
    agreed: Flat, theirs: Flat, ours: Flat, who: str
) -> None:
    result = together(agreed, theirs, ours, who=who)
    both = changed(agreed, theirs) & changed(agreed, ours)
    assert set(result.conflicts) == {path for path in both if not same(theirs[path], ours[path])}
    assert set(result.agreed) == {path for path in both if same(theirs[path], ours[path])}
    assert set(result.conflicts.values()) <= {who}


@given(FULL, FULL, FULL, st.dictionaries(st.sampled_from(FIELDS), WINNERS))
def test_each_conflict_goes_the_way_of_its_field(agreed: Flat, theirs: Flat, ours: Flat, policy: Any) -> None:
    result = together(agreed, theirs, ours, who=lambda path: policy.get(path, "internal"))
    now = written(ours, result)
    base, held = rebase(result, agreed, {}, now)
    for path, who in result.conflicts.items():
        assert who == policy.get(path, "internal")
        assert same(now[path], theirs[path] if who == "external" else ours[path])
        if who == "external":
            assert path not in owed(base, now)
        elif who == "internal":
            assert path in owed(base, now)
        else:
            assert path in result.ask and same(held[path], theirs[path]), "both versions are kept"


@given(FULL, FULL, FULL, st.sets(st.sampled_from(FIELDS), min_size=1), WINNERS)
def test_an_outward_field_keeps_our_value_and_is_restored_in_the_system(
    agreed: Flat, theirs: Flat, ours: Flat, out: set[str], who: str
) -> None:
    result = together(agreed, theirs, ours, out=out, who=who)
    now = written(ours, result)
    base, _ = rebase(result, agreed, {}, now)
    for path in out:
        assert now[path] == ours[path] and path not in result.conflicts
        if path in changed(agreed, theirs):
            assert (path in owed(base, now)) == (not same(theirs[path], ours[path]))


@given(FLAT, FLAT, FLAT, FULL, st.sets(st.sampled_from(FIELDS)), st.sampled_from(["internal", "external"]))
def test_after_the_pending_delivery_both_sides_agree(
    agreed: Flat, held: Flat, theirs: Flat, ours: Flat, out: set[str], who: str
) -> None:
    """After one merge and one delivery, each field in the event has the same value on both sides."""
    result = together(agreed, theirs, ours, held=held, out=out, who=who)
    now = written(ours, result)
    base, base_held = rebase(result, agreed, held, now)
    there = {**{p: base_held.get(p, base.get(p)) for p in base}, **theirs}
    assert all(same(there[p], theirs[p]) for p in theirs)
    delivered = {**there, **owed(base, now)}
    for path in theirs:
        # If the system stores our value in its own, agreed form, it keeps that form.
        settled = path in base_held and path not in owed(base, now)
        assert settled or same(delivered[path], now[path])


@given(FULL, FULL, FULL)
def test_fields_missing_in_the_event_stay_unchanged(agreed: Flat, theirs: Flat, ours: Flat) -> None:
    some = {path: theirs[path] for path in FIELDS[:2]}
    result = together(agreed, some, ours)
    base, held = rebase(result, agreed, {}, written(ours, result))
    for path in FIELDS[2:]:
        assert base[path] == agreed[path] and path not in held
        assert written(ours, result)[path] == ours[path]


@given(FULL, FULL)
def test_a_lossy_transform_is_no_edit(agreed: Flat, theirs: Flat) -> None:
    """A changed field that the database stores differently (for example in upper case) is not an edit."""
    result = together(agreed, theirs, agreed)
    now = {path: "MAPPED" if path in result.take else value for path, value in agreed.items()}
    base, held = rebase(result, agreed, {}, now)
    assert owed(base, now) == {}
    assert is_echo(together(base, theirs, now, held=held))
    for path in result.take:
        assert same(held[path], theirs[path])


@given(FULL, FULL, FULL)
def test_the_question_stays_the_same_until_it_is_answered(agreed: Flat, theirs: Flat, ours: Flat) -> None:
    """While a conflict waits for an operator, the base of its field does not move, so no version is lost."""
    result = together(agreed, theirs, ours, who="ask")
    base, held = rebase(result, agreed, {}, written(ours, result))
    for path in result.ask:
        assert base[path] == agreed[path] and same(held[path], theirs[path])
        assert written(ours, result)[path] == ours[path]
    assert is_echo(together(base, theirs, written(ours, result), held=held, who="ask"))


@given(FULL, FULL)
def test_a_merge_changes_none_of_its_arguments(agreed: dict[str, Any], theirs: dict[str, Any]) -> None:
    held: dict[str, Any] = {}
    before = (dict(agreed), dict(theirs))
    rebase(together(agreed, theirs, agreed), agreed, held, theirs)
    assert (agreed, theirs) == before and held == {}
