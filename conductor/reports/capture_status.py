"""Whether the writes to each catalogue are captured, as the capture watch last found it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from models.ledger import CaptureState


@dataclass(frozen=True)
class BrokenCapture:
    """A catalogue whose writes may not be captured: since when, and why, with the remedy."""

    catalogue: str
    since: datetime
    reason: str


_BROKEN = (
    sa.select(CaptureState.catalogue, CaptureState.broken_since, CaptureState.reason)
    .where(CaptureState.broken_since.is_not(None))
    .order_by(CaptureState.catalogue)
)


def broken_captures(connection: sa.Connection) -> list[BrokenCapture]:
    """Return the catalogues whose writes may not be captured."""
    return [
        BrokenCapture(row.catalogue, row.broken_since, row.reason or "")
        for row in connection.execute(_BROKEN)
        if row.broken_since is not None
    ]
