"""How much a benchmark does."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

T = TypeVar("T")


class Scale(Enum):
    """FULL is what docs/explanation/performance.md reports, SHORT the same in less time, QUICK a check that it runs."""

    FULL = "full"
    SHORT = "short"
    QUICK = "quick"

    def of(self, full: T, short: T, quick: T) -> T:
        """The one for this scale."""
        return {Scale.FULL: full, Scale.SHORT: short, Scale.QUICK: quick}[self]
