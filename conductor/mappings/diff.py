"""Two versions of a mapping side by side, and two people's edits of one brought together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Row = dict[str, Any]

#: The cells of a row, in the order people read them.
CELLS = ("path", "direction", "transform", "link", "conflict", "default", "required")


@dataclass(frozen=True)
class RowDiff:
    """What became of one field: `cells` are those that differ, name -> (before, after); all of them for a new one."""

    #: The internal column; of child rows `lines.quantity`.
    column: str
    kind: Literal["added", "removed", "changed"]
    cells: dict[str, tuple[Any, Any]]


def diff(before: list[Row], after: list[Row]) -> list[RowDiff]:
    """Field by field, in the order of `after`, what is gone last. The order of the rows means nothing."""
    old, new = _flat(before), _flat(after)
    found = []
    for column, row in new.items():
        was = old.get(column)
        cells = {name: (was and was.get(name), row.get(name)) for name in CELLS}
        if was is None:
            found.append(RowDiff(column, "added", cells))
        elif differing := {name: pair for name, pair in cells.items() if pair[0] != pair[1]}:
            found.append(RowDiff(column, "changed", differing))
    for column in old.keys() - new.keys():
        found.append(RowDiff(column, "removed", {name: (old[column].get(name), None) for name in CELLS}))
    return found


def _flat(rows: list[Row]) -> dict[str, Row]:
    flat: dict[str, Row] = {}
    for row in rows:
        flat[row["column"]] = row
        flat |= {f"{row['column']}.{inner['column']}": inner for inner in row.get("rows") or []}
    return flat


@dataclass(frozen=True)
class Together:
    """Two edits of one version brought together: the rows, whose columns were taken from them, and
    those that both changed, where ours stands."""

    rows: list[Row]
    taken: list[str]
    clashes: list[str]


def bring_together(base: list[Row], ours: list[Row], theirs: list[Row]) -> Together:
    """Three ways, row by row: what only they changed is taken, what only we or both changed stays ours."""
    was, mine, other = ({row["column"]: row for row in rows} for rows in (base, ours, theirs))
    rows: list[Row] = []
    taken: list[str] = []
    clashes: list[str] = []
    for column in dict.fromkeys([*mine, *other]):
        ours_now, theirs_now, before = mine.get(column), other.get(column), was.get(column)
        chosen = ours_now
        if theirs_now not in (before, ours_now):
            if ours_now == before:
                chosen = theirs_now
                taken.append(column)
            else:
                clashes.append(column)
        if chosen is not None:
            rows.append(chosen)
    return Together(rows, taken, clashes)
