"""The scale of a benchmark run."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

T = TypeVar("T")


class Scale(Enum):
    """FULL gives the figures of docs/explanation/performance.md, SHORT takes less time, QUICK checks that it runs."""

    FULL = "full"
    SHORT = "short"
    QUICK = "quick"

    def of(self, full: T, short: T, quick: T) -> T:
        """Return the value for this scale."""
        return {Scale.FULL: full, Scale.SHORT: short, Scale.QUICK: quick}[self]
