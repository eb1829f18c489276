"""Whether a system may be called now: an operator can pause it, and one that is down is only probed.

All processes share the state in a row, so after one worker's failure the others do not call.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from conductor.context import Context
from conductor.systems.accounts import Accounts
from models.ledger import System
from subscribers.errors import SyncError
from subscribers.http.rate_limit_headers import Rate

logger = logging.getLogger(__name__)

#: A system's clock offset is recorded again when it has changed by more than this many seconds.
_CLOCK_CHANGE_SECONDS = 2.0
#: Seconds between two writes of the last success or of the rate limit. Only the panel shows them.
_NOTE_EVERY_SECONDS = 5.0

#: The largest number that a 32-bit column holds.
_MOST_CALLS = 2**31 - 1

#: If a system's calls carry many records, every Nth probe carries only one.
_PROBES_PER_SINGLE_RECORD = 3


class BreakerState(NamedTuple):
    """What decides whether a system may be called."""

    paused_at: datetime | None
    pause_reason: str | None
    down_since: datetime | None
    down_reason: str | None
    probe_at: datetime | None
    failures: int
    last_success_at: datetime | None
    failing: dict[str, Any] | None

    @classmethod
    def of(cls, row: sa.Row[Any]) -> BreakerState:
        """Take it from a row with `BREAKER_COLUMNS`, among others."""
        return cls._make(getattr(row, name) for name in cls._fields)


BREAKER_COLUMNS = tuple(getattr(System, name) for name in BreakerState._fields)


@dataclass(frozen=True)
class Permit:
    """Whether the system may be called. While it is down, one caller at a time may probe it with one call."""

    allowed: bool
    probing: bool = False
    #: The probe carries one record even if a call takes many: a single record may be the reason for the failure.
    alone: bool = False
    reason: str = ""
    #: Seconds until the next attempt is worthwhile, if it may not be called.
    after: float = 0.0
    #: A success was recorded a moment ago, so another one is not recorded.
    noted: bool = False
    #: Records have failed without a response since the system last processed one, see `outages`.
    failing: bool = False


class CircuitBreaker:
    """The circuit breaker of every system."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.accounts = Accounts(context)
        #: The rate limit that this process recorded last for each system, and when.
        self._last_noted: dict[str, tuple[Rate, datetime]] = {}
        #: The clock offset that this process recorded last for each system.
        self._noted_offsets: dict[str, float] = {}

    def ensure_rows(self) -> None:
        """Make sure that each connected system has its row."""
        with self.context.database.write() as connection:
            for name in self.context.systems:
                statement = self.context.database.insert(System).values(name=name)
                connection.execute(statement.on_conflict_do_nothing(index_elements=["name"]))

    def permit(self, name: str, *, overdue: float = 0.0) -> Permit:
        """Return whether the system may be called. A permit with `probing` reserves the only probe.

        `overdue`: a probe is taken only if nothing else took it for this many seconds.
        """
        with self.context.database.read_autocommit() as connection:
            row = connection.execute(sa.select(*BREAKER_COLUMNS).where(System.name == name)).one_or_none()
        permit = Permit(allowed=True) if row is None else self.permit_for(name, BreakerState.of(row), overdue=overdue)
        return self.in_account(name, permit)

    def in_account(self, name: str, permit: Permit) -> Permit:
        """Return this permit, closed if the login leads to another account than before."""
        if not permit.allowed or (refusal := self.accounts.refusal(name)) is None:
            return permit
        return Permit(allowed=False, reason=refusal, after=self.context.policy.stale_seconds)

    def permit_for(self, name: str, state: BreakerState, *, probe: bool = True, overdue: float = 0.0) -> Permit:
        """Return the permit for a state that was read already.

        Without `probe`, a system that is down is not probed.
        """
        if state.paused_at is not None:
            why = f"{name} is paused: {state.pause_reason or 'no reason given'}"
            return Permit(allowed=False, reason=why, after=self.context.policy.stale_seconds)
        is_failing = bool(state.failing and state.failing["streak"])
        if state.down_since is None:
            since = state.last_success_at
            noted = since is not None and since > self.context.later(-_NOTE_EVERY_SECONDS)
            return Permit(allowed=True, noted=noted, failing=is_failing)
        left = (state.probe_at - self.context.clock()).total_seconds() if state.probe_at is not None else 0.0
        why = f"{name} is down since {state.down_since:%H:%M:%S}: {state.down_reason}"
        waiting = Permit(allowed=False, reason=why, after=max(left, self.context.policy.probe_min_seconds))
        if not probe or (state.probe_at is not None and state.probe_at > self.context.later(-overdue)):
            return waiting
        if not self._take_probe(name, state.failures):
            return waiting
        alone = state.failures % _PROBES_PER_SINGLE_RECORD == 0
        return Permit(allowed=True, probing=True, alone=alone, failing=is_failing)

    def is_paused(self, name: str) -> bool:
        """Return whether an operator or the delete guard has paused this system."""
        with self.context.database.read_autocommit() as connection:
            paused = sa.select(System.paused_at).where(System.name == name)
            return connection.execute(paused).scalar() is not None

    def _take_probe(self, name: str, failures: int) -> bool:
        # The condition lets one worker probe, of all that see the time has come. The probe counts as a failure until it
        # succeeds; `went_down` does not count it again.
        statement = (
            sa.update(System)
            .where(System.name == name, System.down_since.is_not(None))
            .where(sa.or_(System.probe_at.is_(None), System.probe_at <= self.context.clock()))
            .values(
                failures=failures + 1,
                probe_at=self.context.later(
                    self.context.policy.probe(failures + 1) + self.context.policy.probe_min_seconds
                ),
            )
        )
        with self.context.database.write() as connection:
            return connection.execute(statement).rowcount == 1

    def probe_now(self, name: str) -> None:
        """Let the next call probe the system immediately, because an operator asks."""
        self._let_probe(name)

    def release_probe(self, name: str) -> None:
        """Give back a probe that made no call: the next caller may probe immediately, and no failure is counted."""
        self._let_probe(name, failures=sa.case((System.failures > 1, System.failures - 1), else_=1))

    def _let_probe(self, name: str, **values: Any) -> None:
        down = (System.name == name, System.down_since.is_not(None))
        with self.context.database.write() as connection:
            connection.execute(sa.update(System).where(*down).values(probe_at=self.context.clock(), **values))

    def went_down(self, connection: sa.Connection, name: str, error: SyncError) -> None:
        """Stop calls for a while: longer after each failure, or as long as the system asked for."""
        self._note_rate(connection, name)
        row = connection.execute(
            sa.select(System.probe_at, System.failures).where(System.name == name).with_for_update()
        ).one_or_none()
        failures = row.failures if row else 0
        # Calls that ran at the same time failed for the same reason: they count as one failure.
        if row is None or row.probe_at is None or row.probe_at <= self.context.clock() or not failures:
            failures += 1
        pause = max(self.context.policy.probe(failures), error.after or 0.0)
        logger.warning("%s is down, next try in %.0f s: %s", name, pause, error)
        connection.execute(
            sa.update(System)
            .where(System.name == name)
            .values(
                down_since=sa.func.coalesce(System.down_since, self.context.clock()),
                down_reason=str(error),
                failures=failures,
                probe_at=self.context.later(pause),
            )
        )

    def succeeded(self, connection: sa.Connection, name: str) -> None:
        """Record a call that worked: the system is up."""
        self._note_rate(connection, name)
        self._note_clock(connection, name)
        now = self.context.clock()
        was_down = System.down_since.is_not(None)
        noted = sa.or_(
            System.last_success_at.is_(None), System.last_success_at < self.context.later(-_NOTE_EVERY_SECONDS)
        )
        # One statement, which is part of every batch and rarely changes anything.
        up_since = connection.execute(
            sa.update(System)
            .where(System.name == name, sa.or_(was_down, noted))
            .values(
                down_since=None,
                down_reason=None,
                failures=0,
                probe_at=None,
                up_since=sa.case((was_down, now), else_=System.up_since),
                last_success_at=now,
            )
            .returning(System.up_since)
        ).scalar()
        if up_since == now:
            logger.info("%s is back", name)

    def has_new_rate(self, name: str) -> bool:
        """Return whether the system has reported a rate limit that should be recorded."""
        rate = self._rate(name)
        noted, at = self._last_noted.get(name, (None, None))
        if rate is None or rate == noted:
            return False
        return rate.remaining == 0 or at is None or at < self.context.later(-_NOTE_EVERY_SECONDS)

    def _rate(self, name: str) -> Rate | None:
        return self.context.systems[name].rate if name in self.context.systems else None

    def _note_clock(self, connection: sa.Connection, name: str) -> None:
        """Record how far the system's clock is ahead of ours, where that has changed."""
        offset = self.context.systems[name].clock_offset if name in self.context.systems else None
        known = self._noted_offsets.get(name)
        if offset is None or (known is not None and abs(offset - known) <= _CLOCK_CHANGE_SECONDS):
            return
        self._noted_offsets[name] = offset
        connection.execute(sa.update(System).where(System.name == name).values(clock_offset=round(offset)))

    def _note_rate(self, connection: sa.Connection, name: str) -> None:
        """Record the rate limit that the system reported, for the panel; immediately if no calls are left."""
        rate = self._rate(name)
        if rate is None or not self.has_new_rate(name):
            return
        self._last_noted[name] = rate, self.context.clock()
        stale = sa.or_(System.rate_seen_at.is_(None), System.rate_seen_at < self.context.later(-_NOTE_EVERY_SECONDS))
        connection.execute(
            sa.update(System)
            .where(System.name == name, sa.true() if rate.remaining == 0 else stale)
            .values(
                # A larger number than the column holds means "no limit".
                rate_remaining=min(rate.remaining, _MOST_CALLS),
                rate_limit=None if rate.limit is None else min(rate.limit, _MOST_CALLS),
                rate_reset_at=rate.reset,
                rate_seen_at=self.context.clock(),
            )
        )
