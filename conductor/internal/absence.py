"""What it means that the database shows no record: only a captured deletion is one.

A row may be hidden from the hub's database user, or a deletion may have bypassed the triggers. Neither may delete the
record in a system.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from models.bulk import in_values
from models.catalogues import Catalogue, UnreadableRecord
from models.ledger import Change
from subscribers.errors import Reject


class Absent(Reject):
    """The database does not show a record, and no deletion of it was captured."""

    code = "absent"

    def __init__(self, catalogue: Catalogue, record_id: str) -> None:
        super().__init__(
            f"{catalogue.table.name} shows no record {record_id}, but no deletion of it was captured: it is hidden "
            "from Syncflow's database user, or it was deleted while the triggers were off"
        )


class Unreadable(Reject):
    """A value of a record cannot be read; `fields` names its column."""

    code = "unreadable"

    def __init__(self, error: UnreadableRecord) -> None:
        super().__init__(str(error), fields={error.column: error.value})


def last_captured(connection: sa.Connection, catalogue: Catalogue, record_ids: Iterable[str]) -> dict[str, str]:
    """Return created or deleted for each of these records: whichever was captured last; others are left out."""
    ids = list(record_ids)
    if not ids:
        return {}
    rows = connection.execute(
        sa.select(Change.record_id, Change.operation)
        .where(Change.catalogue == catalogue.name, in_values(connection, Change.record_id, ids))
        .where(Change.operation.in_(("created", "deleted")))
        .order_by(Change.id)
    )
    return {row.record_id: row.operation for row in rows}


def require_deletion(connection: sa.Connection, catalogue: Catalogue, record_id: str) -> None:
    """Check that a record which the database does not show was deleted.

    Raises:
      Absent: no deletion of it was captured.
    """
    if last_captured(connection, catalogue, [record_id]).get(record_id) != "deleted":
        raise Absent(catalogue, record_id)
