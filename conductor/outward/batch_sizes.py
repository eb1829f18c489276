"""How many records a call may have: fewer after the system refused a call as too large.

A system may accept 200 records in one call, and its own triggers only some of them: they run in one transaction, which
has limits. The records of such a call are sent again in smaller calls, down to one record each. The size that works is
remembered for each subscriber as long as the process runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from conductor.outward.planning import Plan
from subscribers.base import Subscriber
from subscribers.records import Item

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """One call of a subscriber's method, for some records of a batch."""

    method: Callable[[list[Item]], list[Any]]
    plans: list[Plan]

    @property
    def items(self) -> list[Item]:
        """The records as the method receives them."""
        return [plan.item for plan in self.plans if plan.item is not None]

    def parts(self, size: int) -> Iterator[Call]:
        """Yield the same as calls of at most `size` records."""
        for start in range(0, len(self.plans), size):
            yield Call(self.method, self.plans[start : start + size])


class BatchSizes:
    """The largest call of each subscriber that may work."""

    def __init__(self) -> None:
        self._limits: dict[str, int] = {}

    def limit(self, subscriber: Subscriber) -> int | None:
        """Return the most records for a call of this subscriber; None if no call was too large."""
        return self._limits.get(subscriber.name())

    def smaller(self, subscriber: Subscriber, call: Call) -> list[Call]:
        """Return the calls that replace one that was too large, for the records that failed because of that.

        A call of one record cannot be divided: its error stays.
        """
        refused = [plan for plan in call.plans if plan.error is not None and plan.error.splits_batch]
        if not refused or len(call.plans) == 1:
            return []
        # A file of thousands is divided by the system itself, into parts of the size of a usual call.
        size = max(min(len(call.plans), max(subscriber.bulk_size, 1)) // 2, 1)
        known = self.limit(subscriber)
        self._limits[subscriber.name()] = size if known is None else min(size, known)
        logger.warning(
            "%s: %d records in one call are too many, continuing with %d: %s",
            subscriber.name(),
            len(call.plans),
            size,
            refused[0].error,
        )
        for plan in refused:
            plan.error = None
        return list(Call(call.method, refused).parts(size))
