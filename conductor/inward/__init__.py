"""Inward: the way of an event, from a webhook or a poll into the internal database.

In reading order: `webhooks` and `polling` receive events, `inbox` applies stored ones, `applying` decides what an event
means, `matching` finds the record it belongs to, and `merging` writes the merge. `incoming` has the values they share.
"""

from __future__ import annotations

from conductor.context import Context
from conductor.dead_letters.store import DeadLetterStore
from conductor.inward.applying import InboundApplier
from conductor.inward.inbox import InboxProcessor
from conductor.inward.polling import Polling
from conductor.inward.remote_edits import RemoteEdits
from conductor.inward.webhooks import Webhooks
from conductor.links.relations import Relations
from conductor.mappings.store import Mappings
from conductor.systems.circuit_breaker import CircuitBreaker
from conductor.systems.concurrency import ConcurrencyLimiter
from conductor.systems.delete_guard import DeleteGuard
from conductor.systems.outages import OutageDetector


class Inward:
    """The parts of this folder, put together."""

    def __init__(
        self,
        context: Context,
        breaker: CircuitBreaker,
        mappings: Mappings,
        letters: DeadLetterStore,
        relations: Relations,
        guard: DeleteGuard,
        concurrency: ConcurrencyLimiter,
        outages: OutageDetector,
    ) -> None:
        self.webhooks = Webhooks(context)
        self.applying = InboundApplier(context, relations, guard)
        self.polling = Polling(context, breaker, mappings, self.applying, guard, concurrency, outages)
        self.inbox = InboxProcessor(context, breaker, mappings, letters, self.applying, guard, concurrency, outages)
        self.remote_edits = RemoteEdits(context, breaker, mappings, self.polling, self.inbox, concurrency, outages)
