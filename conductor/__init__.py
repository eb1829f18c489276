"""The decisions: routing and unsubscriptions, outward delivery, inward merge, retry and health policy.

Knows no broker and no Flask; everything here can be tried with a fake subscriber.
"""

from conductor.conductor import Conductor
from conductor.dead_letters.operations import LetterFilter
from conductor.inward.inbox import UnknownSystem
from conductor.mappings.preview import Effect, Preview
from conductor.mappings.store import MappingConflict, MappingRefused
from conductor.outward.routing import RELAY_BATCH
from conductor.policy import Policy
from conductor.publisher import Announcer, QueueReport, QueueState
from conductor.reports.overview import Glance, Overview, SubscriberStatus, SystemStatus, Trouble, Waiting, is_alive
from conductor.reports.throughput import SPANS, Series
from conductor.systems.delete_guard import GUARD
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
