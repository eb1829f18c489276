"""Whether a system may be called now: paused by a person, or down by itself and probed.

The state is a row all processes share, so one worker's failure spares the others theirs.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import sqlalchemy as sa

from conductor.hub import Hub
from models.ledger import System
from subscribers.errors import SystemDown
from subscribers.rates import Rate

logger = logging.getLogger(__name__)

#: A success is noted at most this often, seconds: it is for people, and costs a write.
_NOTE_SUCCESS_EVERY = 5.0

_MANY_CALLS = 2**31 - 1


@dataclass(frozen=True)
class Gate:
    """May the system be called? While it is down, one caller at a time may probe it with one record."""

    open: bool
    probing: bool = False
    reason: str = ""
    #: While closed: seconds until it is worth asking again.
    after: float = 0.0


class Health:
    """The circuit breaker of every system."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        #: What this process wrote down last of each system's limit.
        self._told: dict[str, Rate] = {}

    def ensure_rows(self) -> None:
        """Make sure each connected system has its row."""
        with self.hub.database.write() as connection:
            for name in self.hub.systems:
                statement = self.hub.database.insert(System).values(name=name)
                connection.execute(statement.on_conflict_do_nothing(index_elements=["name"]))

    def gate(self, name: str) -> Gate:
        """Ask before calling. An answer with `probing` has taken the one place of the prober."""
        with self.hub.database.read() as connection:
            row = connection.execute(sa.select(System.__table__).where(System.name == name)).one_or_none()
        if row is None:
            return Gate(open=True)
        if row.paused_at is not None:
            why = f"{name} is paused: {row.pause_reason or 'no reason given'}"
            return Gate(open=False, reason=why, after=self.hub.policy.stale)
        if row.down_since is None:
            return Gate(open=True)
        left = (row.probe_at - self.hub.clock()).total_seconds() if row.probe_at is not None else 0.0
        why = f"{name} is down since {row.down_since:%H:%M:%S}: {row.down_reason}"
        waiting = Gate(open=False, reason=why, after=max(left, self.hub.policy.probe_first))
        if row.probe_at is not None and row.probe_at > self.hub.clock():
            return waiting
        return Gate(open=True, probing=True) if self._take_probe(name, row.failures) else waiting

    def is_paused(self, name: str) -> bool:
        """Whether a person (or the guard) has stopped this system."""
        with self.hub.database.read() as connection:
            paused = sa.select(System.paused_at).where(System.name == name)
            return connection.execute(paused).scalar() is not None

    def _take_probe(self, name: str, failures: int) -> bool:
        # Conditional: of all workers that see the time has come, one goes.
        statement = (
            sa.update(System)
            .where(System.name == name, System.down_since.is_not(None))
            .where(sa.or_(System.probe_at.is_(None), System.probe_at <= self.hub.clock()))
            .values(probe_at=self.hub.later(self.hub.policy.probe(failures) + self.hub.policy.probe_first))
        )
        with self.hub.database.write() as connection:
            return connection.execute(statement).rowcount == 1

    def probe_again(self, name: str) -> None:
        """The prober had nothing to call about: the next one may go at once."""
        down = (System.name == name, System.down_since.is_not(None))
        with self.hub.database.write() as connection:
            connection.execute(sa.update(System).where(*down).values(probe_at=self.hub.clock()))

    def went_down(self, connection: sa.Connection, name: str, error: SystemDown) -> None:
        """Leave the system alone for a while; longer each time, or as long as it asked for."""
        self._note_rate(connection, name)
        row = connection.execute(
            sa.select(System.probe_at, System.failures).where(System.name == name).with_for_update()
        ).one_or_none()
        failures = row.failures if row else 0
        # Calls that were under way together failed together: that is one failure.
        if row is None or row.probe_at is None or row.probe_at <= self.hub.clock() or not failures:
            failures += 1
        pause = max(self.hub.policy.probe(failures), error.after or 0.0)
        logger.warning("%s is down, next try in %.0f s: %s", name, pause, error)
        connection.execute(
            sa.update(System)
            .where(System.name == name)
            .values(
                down_since=sa.func.coalesce(System.down_since, self.hub.clock()),
                down_reason=str(error),
                failures=failures,
                probe_at=self.hub.later(pause),
            )
        )

    def succeeded(self, connection: sa.Connection, name: str) -> None:
        """A call worked: the system is up, whatever was thought before."""
        self._note_rate(connection, name)
        now = self.hub.clock()
        came_back = connection.execute(
            sa.update(System)
            .where(System.name == name, System.down_since.is_not(None))
            .values(down_since=None, down_reason=None, failures=0, probe_at=None, up_since=now, last_success_at=now)
        )
        if came_back.rowcount:
            logger.info("%s is back", name)
            return
        connection.execute(
            sa.update(System)
            .where(System.name == name)
            .where(
                sa.or_(
                    System.last_success_at.is_(None),
                    System.last_success_at < self.hub.later(-_NOTE_SUCCESS_EVERY),
                )
            )
            .values(last_success_at=now)
        )

    def _note_rate(self, connection: sa.Connection, name: str) -> None:
        """Keep what the system's answers said of its limit, for people to see; the end of it at once."""
        rate = self.hub.systems[name].rate if name in self.hub.systems else None
        if rate is None or rate == self._told.get(name):
            return
        self._told[name] = rate
        stale = sa.or_(System.rate_seen_at.is_(None), System.rate_seen_at < self.hub.later(-_NOTE_SUCCESS_EVERY))
        connection.execute(
            sa.update(System)
            .where(System.name == name, sa.true() if rate.remaining == 0 else stale)
            .values(
                # A column holds 32 bits; who says more says "without limit".
                rate_remaining=min(rate.remaining, _MANY_CALLS),
                rate_limit=None if rate.limit is None else min(rate.limit, _MANY_CALLS),
                rate_reset_at=rate.reset,
                rate_seen_at=self.hub.clock(),
            )
        )
