"""Whether a system may be called now: paused by a person, or down by itself and probed.

The state is a row all processes share, so one worker's failure spares the others theirs.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from models.ledger import System
from subscribers.errors import SyncError
from subscribers.http.rate_limit_headers import Rate

logger = logging.getLogger(__name__)

#: A success is noted at most this often, seconds: it is for people, and costs a write.
_NOTE_SUCCESS_EVERY = 5.0

_MANY_CALLS = 2**31 - 1

#: Of the probes of a system whose calls take many records each, every so-manieth carries one.
_ALONE_EACH = 3

#: What has to be known of a system to tell whether it may be called.
BREAKER_COLUMNS = (
    System.paused_at,
    System.pause_reason,
    System.down_since,
    System.down_reason,
    System.probe_at,
    System.failures,
    System.last_success_at,
)


@dataclass(frozen=True)
class Permit:
    """May the system be called? While it is down, one caller at a time may probe it with one call."""

    open: bool
    probing: bool = False
    #: The probe is to carry one record, also where a call takes many: it may be one of many that is answered so.
    alone: bool = False
    reason: str = ""
    #: While closed: seconds until it is worth asking again.
    after: float = 0.0
    #: That its calls work was written down a moment ago: another success need not be.
    noted: bool = False


class CircuitBreaker:
    """The circuit breaker of every system."""

    def __init__(self, context: Context) -> None:
        self.context = context
        #: What this process wrote down last of each system's limit, and when.
        self._told: dict[str, tuple[Rate, datetime]] = {}

    def ensure_rows(self) -> None:
        """Make sure each connected system has its row."""
        with self.context.database.write() as connection:
            for name in self.context.systems:
                statement = self.context.database.insert(System).values(name=name)
                connection.execute(statement.on_conflict_do_nothing(index_elements=["name"]))

    def gate(self, name: str) -> Permit:
        """Ask before calling. An answer with `probing` has taken the one place of the prober."""
        with self.context.database.read_autocommit() as connection:
            row = connection.execute(sa.select(*BREAKER_COLUMNS).where(System.name == name)).one_or_none()
        return Permit(open=True) if row is None else self.judge(name, row)

    def judge(self, name: str, row: Any, *, probe: bool = True) -> Permit:
        """As `gate`, for a row with `BREAKER_COLUMNS`. Without `probe` a system that is down is not probed."""
        if row.paused_at is not None:
            why = f"{name} is paused: {row.pause_reason or 'no reason given'}"
            return Permit(open=False, reason=why, after=self.context.policy.stale)
        if row.down_since is None:
            since = row.last_success_at
            return Permit(open=True, noted=since is not None and since > self.context.later(-_NOTE_SUCCESS_EVERY))
        left = (row.probe_at - self.context.clock()).total_seconds() if row.probe_at is not None else 0.0
        why = f"{name} is down since {row.down_since:%H:%M:%S}: {row.down_reason}"
        waiting = Permit(open=False, reason=why, after=max(left, self.context.policy.probe_min))
        if not probe or (row.probe_at is not None and row.probe_at > self.context.clock()):
            return waiting
        if not self._take_probe(name, row.failures):
            return waiting
        return Permit(open=True, probing=True, alone=row.failures % _ALONE_EACH == 0)

    def is_paused(self, name: str) -> bool:
        """Whether a person (or the guard) has stopped this system."""
        with self.context.database.read_autocommit() as connection:
            paused = sa.select(System.paused_at).where(System.name == name)
            return connection.execute(paused).scalar() is not None

    def _take_probe(self, name: str, failures: int) -> bool:
        # Conditional: of all workers that see the time has come, one goes. It counts as a failure until it succeeds:
        # `went_down` takes it for one of several that failed together.
        statement = (
            sa.update(System)
            .where(System.name == name, System.down_since.is_not(None))
            .where(sa.or_(System.probe_at.is_(None), System.probe_at <= self.context.clock()))
            .values(
                failures=failures + 1,
                probe_at=self.context.later(self.context.policy.probe(failures + 1) + self.context.policy.probe_min),
            )
        )
        with self.context.database.write() as connection:
            return connection.execute(statement).rowcount == 1

    def probe_now(self, name: str) -> None:
        """The next prober may go at once: a person wants to know."""
        self._let_probe(name)

    def nothing_asked(self, name: str) -> None:
        """The prober had nothing to call about: the next one may go at once, and nothing has failed."""
        self._let_probe(name, failures=sa.case((System.failures > 1, System.failures - 1), else_=1))

    def _let_probe(self, name: str, **values: Any) -> None:
        down = (System.name == name, System.down_since.is_not(None))
        with self.context.database.write() as connection:
            connection.execute(sa.update(System).where(*down).values(probe_at=self.context.clock(), **values))

    def went_down(self, connection: sa.Connection, name: str, error: SyncError) -> None:
        """Leave the system alone for a while; longer each time, or as long as it asked for."""
        self._note_rate(connection, name)
        row = connection.execute(
            sa.select(System.probe_at, System.failures).where(System.name == name).with_for_update()
        ).one_or_none()
        failures = row.failures if row else 0
        # Calls that were under way together failed together: that is one failure.
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
        """A call worked: the system is up, whatever was thought before."""
        self._note_rate(connection, name)
        now = self.context.clock()
        was_down = System.down_since.is_not(None)
        noted = sa.or_(
            System.last_success_at.is_(None), System.last_success_at < self.context.later(-_NOTE_SUCCESS_EVERY)
        )
        # One statement that nearly always finds nothing to do: it goes along with every batch.
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

    def has_news(self, name: str) -> bool:
        """Whether the system's answers said something of its limit that is to be written down."""
        rate = self._rate(name)
        told, at = self._told.get(name, (None, None))
        if rate is None or rate == told:
            return False
        return rate.remaining == 0 or at is None or at < self.context.later(-_NOTE_SUCCESS_EVERY)

    def _rate(self, name: str) -> Rate | None:
        return self.context.systems[name].rate if name in self.context.systems else None

    def _note_rate(self, connection: sa.Connection, name: str) -> None:
        """Keep what the system's answers said of its limit, for people to see; the end of it at once."""
        rate = self._rate(name)
        if rate is None or not self.has_news(name):
            return
        self._told[name] = rate, self.context.clock()
        stale = sa.or_(System.rate_seen_at.is_(None), System.rate_seen_at < self.context.later(-_NOTE_SUCCESS_EVERY))
        connection.execute(
            sa.update(System)
            .where(System.name == name, sa.true() if rate.remaining == 0 else stale)
            .values(
                # A column holds 32 bits; who says more says "without limit".
                rate_remaining=min(rate.remaining, _MANY_CALLS),
                rate_limit=None if rate.limit is None else min(rate.limit, _MANY_CALLS),
                rate_reset_at=rate.reset,
                rate_seen_at=self.context.clock(),
            )
        )
