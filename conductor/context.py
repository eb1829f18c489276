"""What every part of the conductor works with: the database, the subscribers, the policy, the publisher."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from conductor.policy import Policy
from conductor.publisher import Publisher
from models.base import utcnow
from models.ledger import AuditEntry
from models.session import Database
from subscribers.base import Subscriber
from subscribers.system import System

#: Later than any time of a system: the time of a write of ours that is unknown by the system's clock.
UNKNOWN_TIME = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass
class Context:
    """What the parts of the conductor share."""

    database: Database
    subscribers: Mapping[str, Subscriber]
    publisher: Publisher
    policy: Policy = field(default_factory=Policy)
    clock: Callable[[], datetime] = utcnow
    #: Set when this process is asked to stop: it finishes what it has begun and gives back the rest.
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def systems(self) -> dict[str, System]:
        """The connected systems by name."""
        return {s.system: s.client for s in self.subscribers.values()}

    def of_catalogue(self, catalogue: str) -> list[Subscriber]:
        """Return the subscribers that follow a catalogue."""
        return [s for s in self.subscribers.values() if s.catalogue == catalogue]

    def of_system(self, system: str) -> list[Subscriber]:
        """Return the subscribers of one system."""
        return [s for s in self.subscribers.values() if s.system == system]

    def later(self, seconds: float) -> datetime:
        """Return the instant this many seconds from now."""
        return self.clock() + timedelta(seconds=seconds)

    def audit(self, connection: sa.Connection, who: str, action: str, target: str, **details: object) -> None:
        """Record an operator's action, in the transaction that does it."""
        connection.execute(
            sa.insert(AuditEntry).values(
                at=self.clock(), who=who, action=action, target=target, details=details or None
            )
        )


def new_token() -> str:
    """Return a unique name, for a lease or a create."""
    return uuid.uuid4().hex
