"""The decisions: routing and unsubscriptions, outward delivery, inward merge, retry and health policy.

Knows no broker and no Flask; everything here can be tried with a fake subscriber.
"""

from conductor.conductor import Conductor
from conductor.desk import LetterFilter
from conductor.guard import GUARD
from conductor.hub import Announcer, Policy, QueueReport, QueueState
from conductor.inward import UnknownSystem
from conductor.mappings import MappingConflict, MappingRefused
from conductor.overview import Glance, Overview, SubscriberStatus, SystemStatus, Trouble, Waiting, is_alive
from conductor.previews import Effect, Preview
from conductor.routing import RELAY_BATCH
from conductor.throughput import SPANS, Series
from subscribers.errors import BadSignature, BadWebhook

__all__ = [
    "GUARD",
    "RELAY_BATCH",
    "SPANS",
    "Announcer",
    "BadSignature",
    "BadWebhook",
    "Conductor",
    "Effect",
    "Glance",
    "LetterFilter",
    "MappingConflict",
    "MappingRefused",
    "Overview",
    "Policy",
    "Preview",
    "QueueReport",
    "QueueState",
    "Series",
    "SubscriberStatus",
    "SystemStatus",
    "Trouble",
    "UnknownSystem",
    "Waiting",
    "is_alive",
]
