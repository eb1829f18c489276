"""The three-way merge, field by field: the one rule behind echo suppression, loop freedom and conflicts.

base = what hub and system last agreed, theirs = what came in, ours = the record now. All three are
flat external values (see `subscribers.mapping.mapper`), so a lossy transform never looks like an edit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from subscribers.mapping.values import is_empty, same

Winner = Literal["internal", "external", "ask"]


@dataclass
class Merge:
    """What to do about each field that came in, by path.

    `take`: their value goes into the record. `keep`: ours stays, and they are owed it.
    `settled`: both sides changed to the same value; only the base moves. `ask`: both changed, and a
    person decides.
    """

    take: dict[str, Any] = field(default_factory=dict)
    keep: dict[str, Any] = field(default_factory=dict)
    settled: dict[str, Any] = field(default_factory=dict)
    ask: dict[str, Any] = field(default_factory=dict)
    #: Their form of what we wrote, in a field that only goes out.
    form: dict[str, Any] = field(default_factory=dict)
    conflicts: dict[str, Winner] = field(default_factory=dict)

    @property
    def is_echo(self) -> bool:
        """Nothing came in that was not agreed already."""
        return not (self.take or self.keep or self.settled or self.ask or self.form)


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

    `base` and `remote_values` are the link's base: our form of it, and the system's where that differs.
    `comes_in` says whether a field's direction lets their change in; `winner` settles a conflict.
    `overridden_values`, where nothing was changed there since our own write: what they held in fields that only
    go out when ours was last sent over it. The same again is the system's form of ours; sent once
    more it would come back once more, for ever.
    """
    result = Merge()
    for path, value in theirs.items():
        known = remote_values.get(path, base.get(path))
        if path in base and same(value, known):
            continue
        if path in ours and same(value, ours[path]):
            result.settled[path] = value
        elif path not in base and is_empty(value) and not is_empty(ours.get(path)):
            result.keep[path] = value  # linked just now: what is missing there is filled, not erased here
        elif (
            not comes_in(path)
            and overridden_values
            and path in overridden_values
            and same(value, overridden_values[path])
        ):
            result.form[path] = value
        elif not comes_in(path):
            result.keep[path] = value
        elif path not in ours or (path in base and same(ours[path], base[path])):
            result.take[path] = value
        elif path not in base and is_empty(ours[path]):
            result.take[path] = value  # and what is missing here is filled, not erased there
        else:
            who = result.conflicts[path] = winner(path)
            {"external": result.take, "internal": result.keep, "ask": result.ask}[who][path] = value
    return result


def rebase(
    result: Merge, base: Mapping[str, Any], remote_values: Mapping[str, Any], ours_now: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The link's new (agreed, held) after a merge. `ours_now`: our fields once `take` is written.

    A kept field gets their value as base: our differing one is then owed to them, and the same
    event seen again changes nothing. Of a field that is asked about only what they hold is noted.
    """
    new_base, new_remote_values = dict(base), dict(remote_values)
    for path, value in result.keep.items():
        new_base[path] = value
        new_remote_values.pop(path, None)
    new_remote_values.update({**result.ask, **result.form})
    for path, value in {**result.take, **result.settled}.items():
        new_base[path] = ours_now.get(path, value)
        new_remote_values.pop(path, None)
        if not same(new_base[path], value):
            new_remote_values[path] = value
    return new_base, new_remote_values
