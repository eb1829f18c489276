"""Compare two versions of a mapping, and merge two operators' edits of one version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Row = dict[str, Any]

#: The cells of a row, in the order in which they are shown.
CELLS = ("path", "direction", "transform", "link", "conflict", "default", "required")


@dataclass(frozen=True)
class RowDiff:
    """How one field differs. `cells` has the differing ones, name -> (before, after); of a new field all of them."""

    #: The internal column, of child rows as `lines.quantity`.
    column: str
    kind: Literal["added", "removed", "changed"]
    cells: dict[str, tuple[Any, Any]]


def diff(before: list[Row], after: list[Row]) -> list[RowDiff]:
    """Compare field by field, in the order of `after`, removed fields last. The order of rows does not count."""
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
class MergedRows:
    """Two edits of one version, merged."""

    rows: list[Row]
    #: Columns whose row comes from the other edit.
    taken: list[str]
    #: Columns that both edits changed; ours stays.
    clashes: list[str]


def merge_edits(base: list[Row], ours: list[Row], theirs: list[Row]) -> MergedRows:
    """Merge two edits row by row. A row that only the other edit changed is taken; any other stays ours."""
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
    return MergedRows(rows, taken, clashes)
