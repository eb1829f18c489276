"""The three-way merge, field by field: the one rule behind echo suppression, loop freedom and conflicts.

base = what hub and system last agreed on, theirs = the incoming record, ours = our record now. All three are flat
external values (see `subscribers.mapping.mapper`), so that a lossy transform never counts as an edit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from subscribers.mapping.values import is_empty, same

Winner = Literal["internal", "external", "ask"]


@dataclass
class Merge:
    """What to do about each incoming field, by path.

    `take`: their value is written to our record. `keep`: ours stays, and is owed to the system. `agreed`: both sides
    changed to the same value; only the base moves. `ask`: both changed, and an operator decides.
    """

    take: dict[str, Any] = field(default_factory=dict)
    keep: dict[str, Any] = field(default_factory=dict)
    agreed: dict[str, Any] = field(default_factory=dict)
    ask: dict[str, Any] = field(default_factory=dict)
    #: The system's form of what we wrote, in a field that is only sent.
    form: dict[str, Any] = field(default_factory=dict)
    conflicts: dict[str, Winner] = field(default_factory=dict)


def merge(
    *,
    base: Mapping[str, Any],
    remote_values: Mapping[str, Any],
    theirs: Mapping[str, Any],
    ours: Mapping[str, Any],
    comes_in: Callable[[str], bool],
    winner: Callable[[str], Winner],
    overridden_values: Mapping[str, Any] | None = None,
) -> Merge:
    """Decide for every field in `theirs`.

    `base` and `remote_values` are the link's base: our form of it, and the system's where that differs. `comes_in` says
    whether a field's direction allows incoming changes; `winner` decides a conflict. `overridden_values`, where nothing
    was changed there since our own write: the system's values of fields that are only sent, when ours was last sent
    over them. The same value again is the system's form of ours; sending ours again would never end.
    """
    result, overridden = Merge(), overridden_values or {}
    for path, value in theirs.items():
        known = remote_values.get(path, base.get(path))
        if path in base and same(value, known):
            continue
        if path in ours and same(value, ours[path]):
            result.agreed[path] = value
        elif path not in base and is_empty(value) and not is_empty(ours.get(path)):
            result.keep[path] = value  # linked just now: a value missing there is filled, not erased here
        elif not comes_in(path):
            is_form = path in overridden and same(value, overridden[path])
            (result.form if is_form else result.keep)[path] = value
        elif path not in ours or (path in base and same(ours[path], base[path])):
            result.take[path] = value
        elif path not in base and is_empty(ours[path]):
            result.take[path] = value  # a value missing here is filled, not erased there
        else:
            who = result.conflicts[path] = winner(path)
            {"external": result.take, "internal": result.keep, "ask": result.ask}[who][path] = value
    return result


def unseen_edits(
    base: Mapping[str, Any] | None, remote_values: Mapping[str, Any] | None, theirs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields in which a record of the system differs from what the link knows of it."""
    known = {**(base or {}), **(remote_values or {})}
    return {p: v for p, v in theirs.items() if not (same(v, known[p]) if p in known else is_empty(v))}


def rebase(
    result: Merge, base: Mapping[str, Any], remote_values: Mapping[str, Any], ours_now: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the link's base and remote values after a merge; `ours_now` are our fields once `take` is written.

    A kept field gets the system's value as its base: ours differs from it and is owed, and the same event received
    again changes nothing. Of a field in conflict only the system's value is stored.
    """
    new_base, new_remote_values = dict(base), dict(remote_values)
    for path, value in result.keep.items():
        new_base[path] = value
        new_remote_values.pop(path, None)
    new_remote_values.update({**result.ask, **result.form})
    for path, value in {**result.take, **result.agreed}.items():
        new_base[path] = ours_now.get(path, value)
        new_remote_values.pop(path, None)
        if not same(new_base[path], value):
            new_remote_values[path] = value
    return new_base, new_remote_values
