"""Deletions in a system, and restorations after them, applied to the internal record."""

from __future__ import annotations

import sqlalchemy as sa

from conductor.internal.absence import require_deletion
from conductor.links.row import LinkRow
from models.capture import sync_context
from subscribers.base import Subscriber


def remove_here(connection: sa.Connection, subscriber: Subscriber, record_id: str) -> None:
    """Delete, archive or keep the internal record, as `on_gone` says. The change counts as the system's own.

    Raises:
      Absent: the database does not show the record, and no deletion of it was captured.
    """
    catalogue = subscriber.records
    if subscriber.on_gone in ("delete", "archive") and record_id not in catalogue.keep(connection, [record_id], ()):
        require_deletion(connection, catalogue, record_id)
    with sync_context(connection, origin=subscriber.system):
        if subscriber.on_gone == "delete":
            catalogue.delete(connection, record_id)
        elif subscriber.on_gone == "archive":
            catalogue.update(connection, record_id, catalogue.archive)


def restore_here(connection: sa.Connection, subscriber: Subscriber, link: LinkRow) -> set[str]:
    """Undo the archiving of a record whose external one is restored; return the archived columns.

    A yes-or-no column is set back here. The former value of any other one is known only by the system, if at all.
    """
    catalogue = subscriber.records
    if not (link.deleted_remotely and subscriber.on_gone == "archive"):
        return set()
    record = catalogue.read(connection, [link.record_id])[link.record_id]
    archived = {name: value for name, value in catalogue.archive.items() if record.get(name) == value}
    flags = {name: not value for name, value in archived.items() if isinstance(value, bool)}
    if flags:
        with sync_context(connection, origin=subscriber.system):
            catalogue.update(connection, link.record_id, flags)
    return set(archived)
