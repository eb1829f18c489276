"""The overview: the state of all systems and subscribers, and all incidents, in one answer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from conductor.context import Context
from conductor.reports.capture_status import broken_captures
from conductor.reports.incidents import URGENCY, Incident, capture_incident, process_incidents, system_incidents
from conductor.reports.overview_counts import Waiting, subscriber_counts, waiting_counts
from conductor.reports.overview_version import OverviewVersion
from conductor.reports.system_status import SubscriberStatus, SystemStatus, counted, subscriber_status, system_status
from i18n import gettext, ngettext
from models.rows import ProcessRow


@dataclass(frozen=True)
class Overview:
    """The state of the hub at one moment."""

    systems: list[SystemStatus]
    waiting: Waiting
    processes: list[ProcessRow]
    troubles: list[Incident]

    @property
    def subscribers(self) -> list[SubscriberStatus]:
        """The subscribers of all systems."""
        return [subscriber for system in self.systems for subscriber in system.subscribers]

    @property
    def oldest(self) -> datetime | None:
        """When the oldest owed record started to wait."""
        return min((s.oldest_owed_since for s in self.subscribers if s.oldest_owed_since), default=None)

    @property
    def moving(self) -> int:
        """The number of records owed to systems that may be called."""
        return sum(system.owed for system in self.systems if system.state not in ("paused", "down"))

    @property
    def held(self) -> int:
        """The number of records owed to systems that are paused or down."""
        return sum(system.owed for system in self.systems if system.state in ("paused", "down"))

    @property
    def in_sync(self) -> bool:
        """Whether no change, event, dead letter or conflict is open, and no write or event may have been missed."""
        nothing_new = not (self.waiting.changes or self.waiting.inbox)
        if any(trouble.kind in ("capture", "gap") for trouble in self.troubles):
            return False
        return nothing_new and not any(self.total(name) for name in ("owed", "dead", "conflicts"))

    @property
    def severity(self) -> str:
        """How soon an operator should act: good, busy or bad."""
        kinds = {trouble.kind for trouble in self.troubles}
        if kinds - {"paused", "conflict"}:
            return "bad"
        return "good" if self.in_sync and not kinds else "busy"

    @property
    def headline(self) -> str:
        """The answer to "is everything in sync?" in one sentence."""
        if not self.troubles:
            return gettext("Everything is in sync.") if self.in_sync else gettext("Catching up.")
        what = _join([words for words in map(self._named, URGENCY) if words])
        return (
            gettext("In sync so far, but {what}.", what=what)
            if self.in_sync
            else gettext("Not everything is in sync: {what}.", what=what)
        )

    def _named(self, kind: str) -> str:
        names = [trouble.name for trouble in self.troubles if trouble.kind == kind]
        if not names:
            return ""
        count, all_names = len(names), _join(names)
        if kind == "process":
            return gettext("no {names} is running", names=_join(names, gettext(" or ")))
        if kind == "down":
            return ngettext("{names} is down", "{names} are down", count, names=all_names)
        if kind == "paused":
            return ngettext("{names} is paused", "{names} are paused", count, names=all_names)
        if kind == "poll":
            return ngettext("the poll of {names} fails", "the polls of {names} fail", count, names=all_names)
        if kind == "capture":
            return gettext("writes to {names} are not captured", names=all_names)
        if kind == "gap":
            return gettext("changes to {names} may be missing", names=all_names)
        if kind == "dead":
            return counted(
                self.total("dead"), "{count} dead letter needs an operator", "{count} dead letters need an operator"
            )
        return counted(
            self.total("conflicts"), "{count} conflict needs a decision", "{count} conflicts need a decision"
        )

    def total(self, name: str) -> int:
        """Return a count over all subscribers: owed, failing, dead or conflicts."""
        return sum(getattr(s, name) for s in self.subscribers)


def overview(context: Context, connection: sa.Connection, seen: OverviewVersion) -> Overview:
    """Return the current overview; `seen` holds the rows that were read for its version."""
    names = {system: [s.name() for s in context.of_system(system)] for system in sorted(context.systems)}
    counts = subscriber_counts(connection, [name for some in names.values() for name in some])
    broken = {one.catalogue: one for one in broken_captures(connection)}

    def status(system: str) -> SystemStatus:
        row = seen.systems.get(system)
        subscribers = [
            subscriber_status(counts[s.name()], row, seen.polls.get(s.name()), broken.get(s.catalogue))
            for s in context.of_system(system)
        ]
        return system_status(system, row, subscribers)

    found = [status(system) for system in names]
    troubles = [trouble for status in found for trouble in system_incidents(status, seen.systems.get(status.name))]
    troubles += [capture_incident(one) for one in broken.values()]
    troubles += process_incidents(context, seen.processes)
    troubles.sort(key=lambda trouble: URGENCY.index(trouble.kind))
    return Overview(found, waiting_counts(connection), seen.processes, troubles)


def _join(words: list[str], last: str = "") -> str:
    """Return "a, b and c"."""
    return (last or gettext(" and ")).join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
