"""Counts that stop at a limit, so that a page stays fast however large a table is."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

#: Pages count this far; where a count reaches it, they show "10,000+".
DISPLAY_LIMIT = 10_000


def capped_count(statement: sa.Select[Any], limit: int = DISPLAY_LIMIT) -> sa.Select[int]:
    """Return a statement that counts the rows of another one, up to the limit."""
    return sa.select(sa.func.count()).select_from(statement.limit(limit).subquery())
