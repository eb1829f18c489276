"""The decisions: routing and unsubscriptions, outward delivery, inward merge, retry and health policy.

Knows no broker and no Flask; everything here can be tried with a fake subscriber.
"""

from conductor.conductor import Conductor
from conductor.desk import LetterFilter
from conductor.guard import GUARD
from conductor.hub import Announcer, Policy
from conductor.inward import UnknownSystem
from conductor.mappings import MappingConflict, MappingRefused
from conductor.overview import SubscriberStatus, SystemStatus, Waiting
from conductor.previews import Effect, Preview
from subscribers.errors import BadSignature, BadWebhook

__all__ = [
    "GUARD",
    "Announcer",
    "BadSignature",
    "BadWebhook",
    "Conductor",
    "Effect",
    "LetterFilter",
    "MappingConflict",
    "MappingRefused",
    "Policy",
    "Preview",
    "SubscriberStatus",
    "SystemStatus",
    "UnknownSystem",
    "Waiting",
]
