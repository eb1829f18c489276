"""The intended edits: every edit made on any side, with the value its author saw before it.

That value orders edits of different sides without trusting clocks: an author who saw another's value and
replaced it did so on purpose. Two edits whose authors did not see each other's value are a conflict, and
either may win.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: The side of the internal database; the others are named after their systems.
HUB = "hub"


@dataclass(frozen=True)
class Edit:
    """One field of one record set to a value on one side. Every value except None is used only once."""

    number: int
    at: float
    side: str
    column: str
    value: str | None
    saw: str | None


@dataclass
class RecordHistory:
    """Every edit of one customer, identified by the email address on every side."""

    email: str
    created_by: str
    edits: list[Edit] = field(default_factory=list)
    #: Side -> when the customer was deleted on it.
    deleted: dict[str, float] = field(default_factory=dict)
    #: It was deleted on a side once, and restored there.
    restored: bool = False
    #: Columns that were given values some system rejects.
    poisoned: set[str] = field(default_factory=set)

    def possible(self, column: str) -> set[str | None]:
        """Return the values the field may have when all is quiet; empty if it was never set."""
        edits = [one for one in self.edits if one.column == column]
        replaced = {old.number for new in edits for old in _replaced_by(new, edits) if not self._unnoticed(new, edits)}
        return {one.value for one in edits if one.number not in replaced}

    def _unnoticed(self, edit: Edit, edits: list[Edit]) -> bool:
        """Return whether the record was deleted on the side of the edit before another side could see the edit."""
        if edit.side == HUB or edit.side not in self.deleted:
            return False
        since = {one.value for one in edits if one.side == edit.side and one.number >= edit.number}
        return not any(one.side != edit.side and one.saw in since for one in edits if one.saw is not None)


def _replaced_by(edit: Edit, edits: list[Edit]) -> list[Edit]:
    """Return the edits that an edit replaced: the one its author saw, and the earlier ones on its own side."""
    return [
        one
        for one in edits
        if one.number != edit.number
        and ((one.value is not None and one.value == edit.saw) or (one.side == edit.side and one.number < edit.number))
    ]


class EventLog:
    """The histories of all customers. Thread-safe."""

    def __init__(self) -> None:
        self.histories: dict[str, RecordHistory] = {}
        self.counts: defaultdict[str, int] = defaultdict(int)
        self._number = 0
        self._lock = threading.Lock()

    def unique(self) -> int:
        """Return a number that is used only once, to make values and addresses unique."""
        with self._lock:
            self._number += 1
            return self._number

    def created(self, side: str, email: str, values: Mapping[str, Any]) -> None:
        """Record that a customer was created on a side with these values."""
        with self._lock:
            self.histories[email] = RecordHistory(email, side)
            self.counts[f"{side} creations"] += 1
            self._add(side, email, values, {})

    def edited(self, side: str, email: str, values: Mapping[str, Any], saw: Mapping[str, Any]) -> None:
        """Record that these columns were set on a side, by an author who saw those values before."""
        with self._lock:
            self.counts[f"{side} edits"] += 1
            self._add(side, email, values, saw)

    def deleted(self, side: str, email: str) -> None:
        """Record that a customer was deleted on a side."""
        with self._lock:
            self.counts[f"{side} deletions"] += 1
            self.histories[email].deleted[side] = time.time()

    def restored(self, side: str, email: str) -> None:
        """Record that a customer that was deleted on a side was restored there."""
        with self._lock:
            self.counts[f"{side} restorations"] += 1
            del self.histories[email].deleted[side]
            self.histories[email].restored = True

    def poisoned(self, email: str, columns: Iterable[str]) -> None:
        """Record that these columns got values that a system rejects."""
        with self._lock:
            self.histories[email].poisoned |= set(columns)

    @property
    def changes(self) -> int:
        """Return the total number of edits."""
        return sum(self.counts.values())

    def _add(self, side: str, email: str, values: Mapping[str, Any], saw: Mapping[str, Any]) -> None:
        for column, value in values.items():
            self._number += 1
            self.histories[email].edits.append(
                Edit(self._number, time.time(), side, column, value or None, saw.get(column) or None)
            )
