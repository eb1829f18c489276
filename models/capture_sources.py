"""What the capture triggers of a catalogue watch: its own table and those of its child rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from models.catalogues import Catalogue

PREFIX = "syncflow_"

#: PostgreSQL cuts longer names, and then two triggers could have the same one.
_LONGEST_NAME = 63


@dataclass(frozen=True)
class Source:
    """A table whose writes are changes of a catalogue's records.

    `key` is the column with the record's key: the table's own, or that of the record which a child row belongs to.
    A write that alters none of `columns` is no change.
    """

    catalogue: str
    table: sa.Table
    key: sa.Column[Any]
    columns: tuple[str, ...]
    is_child: bool = False

    @property
    def primary_key(self) -> list[sa.Column[Any]]:
        """The columns that identify a row."""
        return list(self.table.primary_key)

    def name(self, event: str) -> str:
        """Return the name of the trigger of an event, such as `insert`."""
        name = f"{PREFIX}{self.catalogue}_{self.table.name}_{event}"
        if len(name.encode()) <= _LONGEST_NAME:
            return name
        return f"{PREFIX}{hashlib.sha256(name.encode()).hexdigest()[:24]}_{event}"


def sources_of(catalogue: Catalogue) -> Iterator[Source]:
    """Yield the sources of a catalogue, its own table first."""
    synced = tuple(column.name for column in catalogue.table.c if column.name not in catalogue.ignore)
    yield Source(catalogue.name, catalogue.table, catalogue.key, synced)
    for child in catalogue.children:
        yield Source(catalogue.name, child.table, child.parent, tuple(child.table.c.keys()), is_child=True)
