"""The watch over change capture: notices that writes are not captured, remembers since when, and has them compared.

The relay calls it. Catalogues whose triggers are missing, outdated or disabled count as broken since the last look that
found them intact. When they are intact again, or a trigger noted a write that it could not record, the records of that
catalogue are compared with each system and repaired, because it is unknown which of them were written.
"""

from __future__ import annotations

import logging
from datetime import datetime

import sqlalchemy as sa

from conductor.context import Context
from conductor.reports.capture_status import BrokenCapture
from conductor.tasks.runner import TaskRunner
from i18n import gettext
from models import capture_watch
from models.catalogues import CATALOGUES, Catalogue
from models.ledger import CaptureFault, CaptureState, Cursor

logger = logging.getLogger(__name__)

#: Who starts the tasks that follow a gap.
WATCH = "capture watch"


class CaptureWatch:
    """Looks after the capture triggers of all catalogues that have a subscriber."""

    def __init__(self, context: Context, tasks: TaskRunner) -> None:
        self.context = context
        self.tasks = tasks

    def look(self) -> list[BrokenCapture]:
        """Examine all catalogues, record what was found, and start the comparison of those that had a gap.

        Return those that are broken.
        """
        found = []
        for catalogue in self._watched():
            with self.context.database.write() as connection:
                broken, gap_since = self._examine(connection, catalogue)
            if broken is not None:
                found.append(broken)
            elif gap_since is not None:
                self._compare(catalogue)
                self._end_gap(catalogue, gap_since)
        return found

    def faults(self, connection: sa.Connection) -> dict[str, list[str]]:
        """Return for each catalogue with faults why its writes may not be captured, each with its remedy."""
        found = {one.name: capture_watch.faults(connection, one) for one in self._watched()}
        return {name: reasons for name, reasons in found.items() if reasons}

    def _watched(self) -> list[Catalogue]:
        return [one for name, one in CATALOGUES.items() if self.context.of_catalogue(name)]

    def _examine(self, connection: sa.Connection, catalogue: Catalogue) -> tuple[BrokenCapture | None, datetime | None]:
        """Return the fault of a catalogue, or since when its writes were not captured although they are now."""
        now = self.context.clock()
        before = connection.execute(
            sa.select(CaptureState.__table__).where(CaptureState.catalogue == catalogue.name)
        ).one_or_none()
        reasons = capture_watch.faults(connection, catalogue)
        lost_since = _take_losses(connection, catalogue)
        if reasons:
            since = before.broken_since or before.intact_at or now if before is not None else now
            since = min(since, lost_since or since)
            if before is None or before.broken_since is None:
                logger.error("writes to %s are not captured: %s", catalogue.name, "; ".join(reasons))
            fault = BrokenCapture(catalogue.name, since, "; ".join(reasons))
            self._store(connection, catalogue, {"broken_since": since, "reason": fault.reason})
            return fault, None
        gap_since = (before.broken_since if before is not None else None) or lost_since
        # It counts as broken until the comparison is begun: a process that dies before that leaves it to the next look.
        self._store(connection, catalogue, {"intact_at": now, "broken_since": gap_since, "reason": None})
        if gap_since is not None:
            logger.warning("writes to %s since %s may not have been captured", catalogue.name, gap_since)
            self._note_gap(connection, catalogue, gap_since)
        return None, gap_since

    def _end_gap(self, catalogue: Catalogue, since: datetime) -> None:
        mine = (CaptureState.catalogue == catalogue.name, CaptureState.broken_since == since)
        with self.context.database.write() as connection:
            connection.execute(sa.update(CaptureState).where(*mine).values(broken_since=None))

    def _store(self, connection: sa.Connection, catalogue: Catalogue, values: dict[str, object]) -> None:
        row = self.context.database.insert(CaptureState).values(catalogue=catalogue.name, **values)
        connection.execute(row.on_conflict_do_update(index_elements=["catalogue"], set_=values))

    def _note_gap(self, connection: sa.Connection, catalogue: Catalogue, since: datetime) -> None:
        """Note for each subscriber what may be missing; its next reconcile clears the note."""
        text = gettext("writes since {since} may not have been captured", since=f"{since:%Y-%m-%d %H:%M} UTC")
        for subscriber in self.context.of_catalogue(catalogue.name):
            values = {"gap": text, "gap_since": self.context.clock()}
            row = self.context.database.insert(Cursor).values(subscriber=subscriber.name(), **values)
            connection.execute(row.on_conflict_do_update(index_elements=["subscriber"], set_=values))

    def _compare(self, catalogue: Catalogue) -> None:
        # What an unfinished task has read already may be older than the writes that were not captured.
        for subscriber in self.context.of_catalogue(catalogue.name):
            self.tasks.start("reconcile", WATCH, subscriber=subscriber.name(), repair=True, afresh=True)
            try:
                self.tasks.start("backfill", WATCH, subscriber=subscriber.name(), afresh=True)
            except ValueError as error:
                logger.warning("records created meanwhile are not delivered to %s: %s", subscriber.name(), error)


def _take_losses(connection: sa.Connection, catalogue: Catalogue) -> datetime | None:
    """Forget what triggers noted; return the time of the first write that they lost.

    A note stays while a write that relies on it is not committed: comparing the records would not show that write.
    """
    free = sa.select(CaptureFault.id).where(CaptureFault.catalogue == catalogue.name)
    taken = sa.delete(CaptureFault).where(CaptureFault.id.in_(free.with_for_update(skip_locked=True)))
    rows = connection.execute(taken.returning(CaptureFault.at, CaptureFault.is_lost)).all()
    return min((row.at for row in rows if row.is_lost), default=None)
