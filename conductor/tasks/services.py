"""What the kinds of tasks work with."""

from __future__ import annotations

from dataclasses import dataclass

from conductor.conflicts import ConflictResolution
from conductor.context import Context
from conductor.dead_letters.store import DeadLetterStore
from conductor.inward.applying import InboundApplier
from conductor.inward.inbox import InboxProcessor
from conductor.inward.replay import InboxReplay
from conductor.links.relations import Relations
from conductor.mappings.store import Mappings
from conductor.systems.caller import SystemCaller
from conductor.systems.connection_check import ConnectionCheck


@dataclass(frozen=True)
class Services:
    """The conductor's parts that a task may call."""

    context: Context
    mappings: Mappings
    relations: Relations
    letters: DeadLetterStore
    conflicts: ConflictResolution
    applier: InboundApplier
    inbox: InboxProcessor
    replay: InboxReplay
    caller: SystemCaller
    connection_check: ConnectionCheck
