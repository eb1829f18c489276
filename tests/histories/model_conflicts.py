"""Which side a field edited on both sides must end with, by its conflict policy, and what `ask` must keep.

Followed for histories with one system, from one agreement to the next. An edit is *seen* by a side once that side holds
it: who edits a field that holds the other side's edit replaces that edit on purpose, and there is no conflict.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from subscribers.mapping.values import same

if TYPE_CHECKING:
    from tests.support.model_hub import ModelHub

Key = tuple[str, str]  # record id, column


class Expected(NamedTuple):
    """The value that a field must have once the hub has settled, and the side that wrote it."""

    side: str
    value: Any


class Conflicts:
    """Follows the edits of both sides."""

    def __init__(self, hub: ModelHub) -> None:
        self.hub = hub
        self.expected: dict[Key, Expected] = {}
        #: With the policy `ask`: what each side wrote without having seen the other's value.
        self.last: dict[str, dict[Key, Any]] = {"hub": {}, "there": {}}
        self.is_blurred = False

    @property
    def policy(self) -> str:
        """The conflict policy of the only system."""
        return next(iter(self.hub.profiles.values())).conflict

    def blur(self) -> None:
        """Expect nothing until the next agreement: an edit may fall between the look and the write."""
        self.forget_all()
        self.is_blurred = True

    def begin(self) -> None:
        """Start again, at an agreement."""
        self.forget_all()
        self.is_blurred = False

    def forget_all(self) -> None:
        """Expect nothing of the edits so far."""
        self.expected.clear()
        for last in self.last.values():
            last.clear()

    def forget(self, record_id: str | None) -> None:
        """Expect nothing of a record that is deleted, restored or written in another way."""
        for facts in (self.expected, *self.last.values()):
            for key in [key for key in facts if key[0] == record_id]:
                del facts[key]

    def edited_here(self, record_id: str, column: str, before: Any, after: Any) -> None:
        """Note an edit in the database."""
        if self._is_followed(record_id, column):
            self._edited("hub", (record_id, column), before, after)

    def edited_there(self, record_id: str | None, column: str, before: Any, after: Any) -> None:
        """Note an edit in the system."""
        if record_id is not None and self._is_followed(record_id, column):
            self._edited("there", (record_id, column), before, after)

    def _is_followed(self, record_id: str, column: str) -> bool:
        hub = self.hub
        profile = next(iter(hub.profiles.values()))
        if len(hub.systems) > 1 or self.is_blurred or (column == "notes" and profile.direction == "out"):
            return False
        name = f"{next(iter(hub.systems))}.customer"
        return hub.looks(name) and hub.agreed(name, record_id) is not None

    def _edited(self, side: str, key: Key, before: Any, after: Any) -> None:
        expected, policy = self.expected.get(key), self.policy
        agreed = self.hub.agreed(f"{next(iter(self.hub.systems))}.customer", key[0]) or {}
        if self._same(after, agreed.get(key[1]), key):
            self.forget(key[0])  # back to the agreed value, which looks like no edit
            return
        winner = {"internal": "hub", "external": "there"}.get(policy)
        if policy == "newest":
            # The times are those of the records, not of their fields.
            self.forget(key[0])
            if not next(iter(self.hub.profiles.values())).seconds:
                self.expected[key] = Expected(side, after)
        elif policy == "ask":
            other = self.last["there" if side == "hub" else "hub"]
            if key in other and self._same(before, other[key], key):
                del other[key]
            self.last[side][key] = after
        elif side == winner:
            self.expected[key] = Expected(side, after)
        elif expected is not None and self._same(before, expected.value, key):
            del self.expected[key]

    def _same(self, one: Any, other: Any, key: Key) -> bool:
        system = next(iter(self.hub.systems.values()))
        return same(system.normal(key[1], one), system.normal(key[1], other))

    # --- what must hold -------------------------------------------------------------------------------

    def violations(self, records: dict[str, dict[str, Any]], asked: set[Key], but: Iterable[str]) -> list[str]:
        """Return what does not hold now, except for the records `but`; `asked`: the fields that wait for a decision."""
        left_out = set(but)
        wrong = [
            f"(i) {key[1]} of {key[0]} is {records[key[0]][key[1]]!r}, not {one.value!r} of {one.side}: {self.policy}"
            for key, one in self.expected.items()
            if key[0] in records and key[0] not in left_out and not self._same(one.value, records[key[0]][key[1]], key)
        ]
        here, there = self.last["hub"], self.last["there"]
        return wrong + [
            f"(i) {key[1]} of {key[0]} was set to {here[key]!r} here and {there[key]!r} there, without a conflict"
            for key in here.keys() & there.keys()
            if key[0] in records and key[0] not in left_out and key not in asked
            if not self._same(here[key], there[key], key)
        ]
