"""Deletions in a system, applied to the internal record."""

from __future__ import annotations

import sqlalchemy as sa

from models.capture import sync_context
from subscribers.base import Subscriber


def remove_here(connection: sa.Connection, subscriber: Subscriber, record_id: str) -> None:
    """Delete, archive or keep the internal record, as `on_gone` says. The change counts as the system's own."""
    catalogue = subscriber.records
    with sync_context(connection, origin=subscriber.system):
        if subscriber.on_gone == "delete":
            catalogue.delete(connection, record_id)
        elif subscriber.on_gone == "archive":
            catalogue.update(connection, record_id, catalogue.archive)
