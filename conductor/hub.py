"""What every part of the conductor works with: the database, the subscribers, the policy, the announcer."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

import sqlalchemy as sa

from models.base import utcnow
from models.ledger import AuditEntry
from models.session import Database
from settings import Settings
from subscribers.base import Subscriber
from subscribers.system import System


@dataclass(frozen=True)
class QueueState:
    """A queue of the broker: messages that wait, messages a worker has in hand, and who reads it.

    What the broker was not asked for or does not tell is None.
    """

    name: str
    ready: int
    in_hand: int | None = None
    consumers: int | None = None


@dataclass(frozen=True)
class QueueReport:
    """The queues as they were at one moment, or why they could not be read.

    `source` says who told: memory, broker (passive declares) or management (its HTTP API); `note` why it was not
    the management, although one is configured.
    """

    source: str
    at: datetime | None = None
    queues: dict[str, QueueState] = field(default_factory=dict)
    error: str | None = None
    note: str | None = None


class Announcer(Protocol):
    """Puts news into queues. It may lose any of it: the ledger's sweeps announce it again."""

    def changes(self, catalogue: str, record_ids: Sequence[str]) -> None:
        """Fan out to the queue of every subscriber bound to this catalogue."""

    def records(self, subscriber: str, record_ids: Sequence[str], *, later: bool = False) -> None:
        """These records of one subscriber want to be delivered; `later`: live changes go first."""

    def inbox(self, system: str, inbox_ids: Sequence[int]) -> None:
        """These inbox rows of a system want to be looked at."""

    def poll(self, subscriber: str, delay: float = 0.0) -> None:
        """This subscriber wants to be polled, `delay` seconds from now."""

    def inbox_depth(self, system: str) -> int | None:
        """Messages waiting in the queue of a system's webhooks and polls; None where that cannot be told now."""

    def depth(self, subscriber: str) -> int | None:
        """Messages waiting in a subscriber's queue; None where that cannot be told now."""

    def queues(self) -> QueueReport:
        """All queues, for people; never waits for long, so it may be some seconds old."""


#: Later than any time a system tells: of a write of ours whose time by their clock is not known.
UNKNOWN_TIME = datetime(9999, 1, 1, tzinfo=UTC)

#: A pause is doubled at most so often: beyond that it is over any limit, and then over what a float holds.
_DOUBLINGS = 60


@dataclass(frozen=True)
class Policy:
    """How patient the hub is, and how much it remembers. Durations in seconds where no other unit is named."""

    lease: float = 60.0
    stale: float = 30.0
    max_attempts: int = 8
    retry_first: float = 2.0
    retry_longest: float = 3600.0
    probe_first: float = 2.0
    probe_longest: float = 60.0
    history_days: int = 90
    audit_days: int = 730

    @classmethod
    def from_settings(cls, settings: Settings) -> Policy:
        """The policy the environment asks for."""
        return cls(
            lease=settings.lease_seconds,
            stale=settings.stale_seconds,
            max_attempts=settings.max_attempts,
            retry_first=settings.retry_first_seconds,
            retry_longest=settings.retry_longest_seconds,
            probe_first=settings.probe_first_seconds,
            probe_longest=settings.probe_longest_seconds,
            history_days=settings.history_days,
            audit_days=settings.audit_days,
        )

    def backoff(self, attempt: int) -> float:
        """Seconds to wait after the attempt of this number failed: doubling, with jitter, so that
        records that failed together do not come back together."""
        pause = min(self.retry_first * 2.0 ** min(attempt - 1, _DOUBLINGS), self.retry_longest)
        return pause * random.uniform(0.75, 1.25)

    def probe(self, failures: int) -> float:
        """Seconds a system that failed this many times in a row is left alone."""
        return min(self.probe_first * 2.0 ** min(max(failures - 1, 0), _DOUBLINGS), self.probe_longest)


@dataclass
class Hub:
    """The conductor's surroundings, shared by its parts."""

    database: Database
    subscribers: Mapping[str, Subscriber]
    announcer: Announcer
    policy: Policy = field(default_factory=Policy)
    clock: Callable[[], datetime] = utcnow
    #: Set when this process is asked to stop: what is in hand is finished, the rest handed back.
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def systems(self) -> dict[str, System]:
        """The connected systems by name."""
        return {s.system: s.client for s in self.subscribers.values()}

    def of_catalogue(self, catalogue: str) -> list[Subscriber]:
        """The subscribers that follow a catalogue."""
        return [s for s in self.subscribers.values() if s.catalogue == catalogue]

    def of_system(self, system: str) -> list[Subscriber]:
        """The subscribers of one system."""
        return [s for s in self.subscribers.values() if s.system == system]

    def later(self, seconds: float) -> datetime:
        """The instant this many seconds from now."""
        return self.clock() + timedelta(seconds=seconds)

    def audit(self, connection: sa.Connection, who: str, action: str, target: str, **details: object) -> None:
        """Write down what a person did, in the transaction that does it."""
        connection.execute(
            sa.insert(AuditEntry).values(
                at=self.clock(), who=who, action=action, target=target, details=details or None
            )
        )


def new_token() -> str:
    """A name nobody else has: of a lease, of an intent."""
    return uuid.uuid4().hex
