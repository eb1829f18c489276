"""The decisions: routing and unsubscriptions, outward delivery, inward merge, retry and health policy.

Knows no broker and no Flask; everything here can be tried with a fake subscriber.
"""

from conductor.conductor import Conductor
from conductor.dead_letters.store import DeadLetterFilter
from conductor.inward.webhooks import UnknownSystem
from conductor.links.rules import in_force
from conductor.mappings.preview import Effect, Preview
from conductor.mappings.store import MappingConflict, MappingRefused
from conductor.outward.routing import RELAY_BATCH
from conductor.policy import Policy
from conductor.publisher import Publisher, QueueReport, QueueState
from conductor.reports.overview import (
    Incident,
    Overview,
    OverviewVersion,
    SubscriberStatus,
    SystemStatus,
    Waiting,
    is_alive,
)
from conductor.reports.throughput import SPANS, Series
from conductor.systems.delete_guard import GUARD
from subscribers.errors import BadSignature, BadWebhook

__all__ = [
    "GUARD",
    "RELAY_BATCH",
    "SPANS",
    "BadSignature",
    "BadWebhook",
    "Conductor",
    "DeadLetterFilter",
    "Effect",
    "Incident",
    "MappingConflict",
    "MappingRefused",
    "Overview",
    "OverviewVersion",
    "Policy",
    "Preview",
    "Publisher",
    "QueueReport",
    "QueueState",
    "Series",
    "SubscriberStatus",
    "SystemStatus",
    "UnknownSystem",
    "Waiting",
    "in_force",
    "is_alive",
]
