"""How much a benchmark does."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

T = TypeVar("T")


class Scale(Enum):
    """FULL is what docs/performance.md tells of, SHORT the same in less time, QUICK only sees that it runs."""

    FULL = "full"
    SHORT = "short"
    QUICK = "quick"

    def of(self, full: T, short: T, quick: T) -> T:
        """The one for this scale."""
        return {Scale.FULL: full, Scale.SHORT: short, Scale.QUICK: quick}[self]
