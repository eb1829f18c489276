"""The history row of an incoming record."""

from __future__ import annotations

import sqlalchemy as sa

from conductor.context import Context
from conductor.inward.incoming import Applied, Incoming
from conductor.links.row import LinkRow
from models.ledger import Delivery
from redaction import shorten


def write_delivery(
    context: Context,
    connection: sa.Connection,
    incoming: Incoming,
    link: LinkRow,
    outcome: str,
    message: str,
    *,
    operation: str = "update",
    owed: bool = False,
) -> Applied:
    """Write the history row of an incoming record and return what became of the record.

    `owed`: applying it made the link owed a change, in addition to what `link` says.
    """
    external, name = incoming.external, incoming.subscriber.name()
    connection.execute(
        sa.insert(Delivery).values(
            subscriber=name,
            record_id=link.record_id,
            external_id=external.id,
            direction="in",
            operation="delete" if external.deleted else operation,
            outcome=outcome,
            reason=message,
            payload=shorten(incoming.flat) or None,
            inbox_id=incoming.inbox_id,
            request_id=external.request_id,
            at=context.clock(),
        )
    )
    # Under a lease, releasing it publishes what is owed.
    was_owed = incoming.token is None and link.is_owed and link.dead_at is None
    return Applied(outcome, f"{name} {external.id}: {message}", (name, link.record_id) if owed or was_owed else None)
