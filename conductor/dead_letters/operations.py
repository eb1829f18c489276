"""TODO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from models.ledger import (
    DeadLetter,
)

#: Dead letters handled in one transaction.
_BATCH = 1000


@dataclass(frozen=True)
class DeadLetterFilter:
    """Which open dead letters are meant; what is None does not matter. All of it None means all."""

    ids: list[int] | None = None
    subscriber: str | None = None
    fingerprint: str | None = None
    error: str | None = None

    def conditions(self) -> list[Any]:
        """As conditions on the open letters."""
        conditions: list[Any] = [DeadLetter.closed_at.is_(None)]
        if self.ids is not None:
            conditions.append(DeadLetter.id.in_(self.ids))
        for name in ("subscriber", "fingerprint", "error"):
            if (value := getattr(self, name)) is not None:
                conditions.append(getattr(DeadLetter, name) == value)
        return conditions

    def chosen(self) -> dict[str, Any]:
        """What matters, by name: the argument of a task about these letters."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def words(self) -> str:
        """For the audit."""
        return ", ".join(f"{name} {value}" for name, value in self.chosen().items()) or "all"
