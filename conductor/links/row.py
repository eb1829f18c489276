"""A row of table `link` on its way through the engine."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from conductor.links.overwrites import WriteWindows
from models.ledger import Link
from subscribers.mapping.values import Flat


class LinkRow(NamedTuple):
    """The columns of one link as they were read, in the order of the table; `models.ledger.Link` explains them.

    A named tuple, because a batch makes one for each record: it takes 3 µs to make, a frozen dataclass 30 µs.
    """

    id: int
    subscriber: str
    record_id: str
    external_id: str | None
    owed_change: int
    synced_change: int
    owed_since: datetime | None
    next_owed_since: datetime | None
    published_at: datetime | None
    synced_at: datetime | None
    base: Flat | None
    remote_values: Flat | None
    overridden_values: Flat | None
    last_seen_at: datetime | None
    last_write_at: datetime | None
    remote_version: str | None
    unlinked_at: datetime | None
    deleted_remotely: bool
    create_token: str | None
    created_without_id: bool
    unconfirmed_write: Flat | None
    write_windows: WriteWindows | None
    attempts: int
    retry_at: datetime | None
    lease_owner: str | None
    lease_until: datetime | None
    dead_at: datetime | None
    dead_letter_id: int | None
    unsubscription_id: int | None
    blocked_by: int | None
    open_conflicts: int

    @property
    def is_linked(self) -> bool:
        """Whether there is a live external record."""
        return self.external_id is not None and self.unlinked_at is None

    @property
    def goes_first(self) -> bool:
        """Whether it waits for itself: it is sent without references to unknown records. See `cycles`."""
        return self.blocked_by == self.id

    @property
    def is_owed(self) -> bool:
        """Whether the subscriber has not received the newest change."""
        return self.owed_change > self.synced_change


_COLUMNS = len(LinkRow._fields)

if LinkRow._fields != tuple(column.name for column in Link.__table__.c):
    raise TypeError("LinkRow must list the columns of table `link` in their order")


def link_row(row: Sequence[Any]) -> LinkRow:
    """Make a link of a row that begins with all columns of the table."""
    return LinkRow._make(row[:_COLUMNS])
