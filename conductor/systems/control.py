"""What an operator does with a system: pause it, resume it, have it polled now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.systems.circuit_breaker import CircuitBreaker
from i18n import gettext
from models import ledger
from models.ledger import Inbox
from models.query_hints import no_index
from subscribers.system import System

#: How long the delete guard lets deletions pass after an operator has allowed them.
_DELETES_ALLOWED_SECONDS = 3600


class SystemControl(Mapping[str, System]):
    """The connected systems by name, and an operator's actions on them; each writes its audit row."""

    def __init__(self, context: Context, breaker: CircuitBreaker) -> None:
        self.context = context
        self.breaker = breaker

    def __getitem__(self, name: str) -> System:
        return self.context.systems[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.context.systems)

    def __len__(self) -> int:
        return len(self.context.systems)

    def pause(self, system: str, by: str, reason: str) -> None:
        """Stop deliveries to a system and polls of it until it is resumed. Pending records wait.

        Raises:
          ValueError: there is no such system.
        """
        self.require(system)
        with self.context.database.write() as connection:
            values = {"paused_at": self.context.clock(), "paused_by": by, "pause_reason": reason or None}
            self._update(connection, system, values)
            self.context.audit(connection, by, "system.pause", system, reason=reason)

    def resume(self, system: str, by: str, *, allow_deletes: bool = False) -> None:
        """Resume a system; the next sweep publishes what waited. A system that is down is probed immediately.

        `allow_deletes`: deletions pass the delete guard for the next hour.

        Raises:
          ValueError: there is no such system.
        """
        self.require(system)
        now = self.context.clock()
        values: dict[str, Any] = {
            "paused_at": None,
            "paused_by": None,
            "pause_reason": None,
            "up_since": now,
            "probe_at": now,
        }
        if allow_deletes:
            values |= {"deletes": 0, "deletes_allowed_until": self.context.later(_DELETES_ALLOWED_SECONDS)}
        with self.context.database.write() as connection:
            self._update(connection, system, values)
            # The literal matches the partial index over waiting rows; by the system, SQLite would read all its rows.
            waiting = (no_index(Inbox.system == system), Inbox.state == sa.literal_column("'waiting'"))
            connection.execute(sa.update(Inbox).where(*waiting).values(retry_at=now))
            self.context.audit(connection, by, "system.resume", system, allow_deletes=allow_deletes)

    def poll_now(
        self, subscriber: str, by: str, poll: Callable[[str], int] | None = None, *, from_start: bool = False
    ) -> int | None:
        """Poll a subscriber now, even while its system is down.

        A worker polls it, unless `poll` does so in this process; then return the number of records read.
        `from_start`: forget the cursor, and read everything again.

        Raises:
          KeyError: there is no such subscriber.
          ValueError: its polls cannot start over.
          SyncError: the poll in this process failed.
        """
        found = self.context.subscribers[subscriber]
        system = found.system
        if from_start and not found.starts_over:
            raise ValueError(gettext("{name} reads each file once: put it into its folder again", name=subscriber))
        with self.context.database.write() as connection:
            if from_start:
                # A poll that runs loses its turn with its next page, and so cannot write its position.
                forgotten = sa.update(ledger.Cursor).where(ledger.Cursor.subscriber == subscriber)
                connection.execute(forgotten.values(position=None, poller=None, polling_until=None))
            self.context.audit(connection, by, "subscriber.poll", subscriber, from_start=from_start)
        self.breaker.probe_now(system)
        if poll is not None:
            return poll(subscriber)
        self.context.publisher.poll(subscriber)
        return None

    def _update(self, connection: sa.Connection, system: str, values: dict[str, Any]) -> None:
        insert = self.context.database.insert(ledger.System).values(name=system, **values)
        connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=values))

    def require(self, system: str) -> None:
        """Check that there is such a system.

        Raises:
          ValueError: there is none.
        """
        if system not in self:
            known = ", ".join(sorted(self)) or gettext("none")
            raise ValueError(gettext("unknown system {name!r}; known systems: {known}", name=system, known=known))
