"""The retry and retention policy, from the settings."""

from __future__ import annotations

import random
from dataclasses import dataclass

from settings import Settings

#: A pause is doubled at most so often: beyond that it is over any limit, and then over what a float holds.
_DOUBLINGS = 60


@dataclass(frozen=True)
class Policy:
    """How patient the hub is, and how much it remembers. Durations in seconds where no other unit is named."""

    lease: float = 60.0
    stale: float = 30.0
    max_attempts: int = 8
    retry_min: float = 2.0
    retry_max: float = 3600.0
    probe_min: float = 2.0
    probe_max: float = 60.0
    history_days: int = 90
    audit_days: int = 730

    @classmethod
    def from_settings(cls, settings: Settings) -> Policy:
        """The policy the environment asks for."""
        return cls(
            lease=settings.lease_seconds,
            stale=settings.stale_seconds,
            max_attempts=settings.max_attempts,
            retry_min=settings.retry_min_seconds,
            retry_max=settings.retry_max_seconds,
            probe_min=settings.probe_min_seconds,
            probe_max=settings.probe_max_seconds,
            history_days=settings.history_days,
            audit_days=settings.audit_days,
        )

    def backoff(self, attempt: int) -> float:
        """Seconds to wait after the attempt of this number failed: doubling, with jitter, so that
        records that failed together do not come back together."""
        pause = min(self.retry_min * 2.0 ** min(attempt - 1, _DOUBLINGS), self.retry_max)
        return pause * random.uniform(0.75, 1.25)

    def probe(self, failures: int) -> float:
        """Seconds a system that failed this many times in a row is left alone."""
        return min(self.probe_min * 2.0 ** min(max(failures - 1, 0), _DOUBLINGS), self.probe_max)
