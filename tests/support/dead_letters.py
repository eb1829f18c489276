"""Helpers for dead letters: retry or discard every open one."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from conductor import Conductor
from models.ledger import DeadLetter
from tests.support.fakes import TestHub
from tests.support.records import rows


def open_ids(conductor: Conductor) -> list[int]:
    """Return the ids of the open dead letters."""
    with conductor.database.read() as connection:
        ids = sa.select(DeadLetter.id).where(DeadLetter.closed_at.is_(None)).order_by(DeadLetter.id)
        return list(connection.scalars(ids))


def retry_all(conductor: Conductor, by: str = "ann") -> int:
    """Retry every open dead letter and return how many there were."""
    return sum(conductor.dead_letters.retry(number, by) for number in open_ids(conductor))


def discard_all(conductor: Conductor, by: str = "ann", reason: str = "test data") -> int:
    """Discard every open dead letter and return how many there were."""
    return sum(conductor.dead_letters.discard(number, by, reason) for number in open_ids(conductor))


def open_letters(hub: TestHub) -> list[Any]:
    """Return the open dead letters."""
    return [*rows(hub, DeadLetter, DeadLetter.closed_at.is_(None))]
