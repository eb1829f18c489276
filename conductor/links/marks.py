"""Marks: by which hub an external record was created, and for which of its records.

`Item.mark` is written to the record: `5@3f9c2a1b` is record 5 of hub 3f9c2a1b. Only a mark of this hub is believed. A
plain mark, `5`, was written by hand or by another program, or the field holds numbers only; something else has to
confirm it. A mark of another hub says nothing about our records.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from models.ledger import Hub

_WITH_HUB = re.compile(r"(.+)@([0-9a-f]{8})", re.DOTALL)


@dataclass(frozen=True)
class Mark:
    """The mark of an external record; `hub` is None in a plain one."""

    record_id: str
    hub: str | None

    def is_of_another(self, hub: str) -> bool:
        """Whether a hub other than this one wrote it."""
        return self.hub is not None and self.hub != hub

    def __str__(self) -> str:
        if self.hub is None:
            return f"it has the id of record {self.record_id} without the id of a hub, and nothing confirms it"
        return f"it is marked as record {self.record_id} of another hub, {self.hub}"


def parse(mark: Any) -> Mark | None:
    """Return the mark of an external record; None if it has none."""
    if mark in (None, ""):
        return None
    found = _WITH_HUB.fullmatch(str(mark))
    return Mark(found[1], found[2]) if found else Mark(str(mark), None)


def is_of(mark: Any, record_id: str, hub: str, is_confirmed: Callable[[], bool]) -> bool:
    """Whether a record that was found for ours may be it: it has no mark, or one that is believed."""
    found = parse(mark)
    if found is None:
        return True
    if found.record_id != record_id or found.is_of_another(hub):
        return False
    return found.hub is not None or is_confirmed()


def hub_id(connection: sa.Connection) -> str:
    """Return the id of this hub, which the first call gives it."""
    known = sa.select(Hub.hub_id)
    found: str | None = connection.execute(known).scalar()
    if found is None:
        with suppress(sa.exc.IntegrityError), connection.begin_nested():  # another process may be first
            connection.execute(sa.insert(Hub).values(id=1, hub_id=new_hub_id()))
        found = connection.execute(known).scalar_one()
    return found


def new_hub_id() -> str:
    """Return an id that no other hub has."""
    return secrets.token_hex(4)
