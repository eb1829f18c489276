"""The retry and retention policy, from the settings."""

from __future__ import annotations

import random
from dataclasses import dataclass

from settings import Settings

#: Doublings of a pause: more would exceed any limit, and at last the range of a float.
_MAX_DOUBLINGS = 60


@dataclass(frozen=True)
class Policy:
    """How long work is held, waits and is kept."""

    lease_seconds: float = 60.0
    stale_seconds: float = 30.0
    max_attempts: int = 8
    retry_min_seconds: float = 2.0
    retry_max_seconds: float = 3600.0
    probe_min_seconds: float = 2.0
    probe_max_seconds: float = 60.0
    history_days: int = 90
    audit_days: int = 730

    @classmethod
    def from_settings(cls, settings: Settings) -> Policy:
        """Return the policy that the environment configures."""
        return cls(
            lease_seconds=settings.lease_seconds,
            stale_seconds=settings.stale_seconds,
            max_attempts=settings.max_attempts,
            retry_min_seconds=settings.retry_min_seconds,
            retry_max_seconds=settings.retry_max_seconds,
            probe_min_seconds=settings.probe_min_seconds,
            probe_max_seconds=settings.probe_max_seconds,
            history_days=settings.history_days,
            audit_days=settings.audit_days,
        )

    def backoff(self, attempt: int, asked: float | None = None) -> float:
        """Return the seconds between the failure of this attempt (from 1) and the next one.

        They double from `retry_min_seconds` to `retry_max_seconds`, with 25 % jitter inside these limits, so that
        records that failed together are not retried together. `asked` is the shortest pause that the system asked for.
        """
        pause = min(self.retry_min_seconds * 2.0 ** min(attempt - 1, _MAX_DOUBLINGS), self.retry_max_seconds)
        jittered = random.uniform(max(0.75 * pause, self.retry_min_seconds), min(1.25 * pause, self.retry_max_seconds))
        return max(jittered, asked or 0.0)

    def probe(self, failures: int) -> float:
        """Return the pause before the next probe of a system that failed this many times in a row."""
        return min(self.probe_min_seconds * 2.0 ** min(max(failures - 1, 0), _MAX_DOUBLINGS), self.probe_max_seconds)
