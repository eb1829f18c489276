"""The incidents of the overview: what is wrong, since when, and what follows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from conductor.context import Context
from conductor.reports.capture_status import BrokenCapture
from conductor.reports.overview_version import is_alive
from conductor.reports.system_status import SystemStatus, counted, pending_text
from i18n import gettext, gettext_noop
from models.rows import ProcessRow, SystemRow

#: The processes that have to run, and the consequence if one does not.
_NEEDED = {
    "relay": gettext_noop("changes are captured and wait"),
    "worker": gettext_noop("nothing is sent, and received events are not applied"),
    "scheduler": gettext_noop("no system is polled, and tasks do not progress"),
}

#: The kind of process that does the work of all others.
_ALL_IN_ONE = "standalone"

#: The kinds of incidents, the most urgent first. Those that an operator chose or has to decide come last.
URGENCY = ("process", "capture", "down", "poll", "gap", "dead", "paused", "conflict")


@dataclass(frozen=True)
class Incident:
    """A problem: what it is, since when, and what the hub does about it.

    `kind` is capture, paused, down, poll, gap, dead, conflict or process; `name` is the system, subscriber or process.
    `next_at` is the time of the hub's next attempt; if there is none, an operator has to act.
    """

    kind: str
    name: str
    what: str
    doing: str
    since: datetime | None = None
    next_at: datetime | None = None


def system_incidents(status: SystemStatus, row: SystemRow | None) -> list[Incident]:
    """Return the incidents of one system and its subscribers."""
    found = []
    if row is not None and row.paused_at is not None:
        why = f": {row.pause_reason}" if row.pause_reason else ""
        what = gettext("{name} is paused by {who}", name=status.name, who=row.paused_by) + f"{why}."
        found.append(Incident("paused", status.name, what, f"{_sentence(pending_text(status.owed))}.", row.paused_at))
    if row is not None and row.down_since is not None:
        tries = (
            gettext("It is probed when it is resumed.")
            if row.paused_at
            else gettext("Syncflow probes it automatically.")
        )
        what = gettext("{name} is down: {reason}.", name=status.name, reason=row.down_reason)
        next_at = None if row.paused_at else row.probe_at
        doing = (
            gettext("{pending}; this does not count as an attempt.", pending=_sentence(pending_text(status.owed)))
            + f" {tries}"
        )
        found.append(Incident("down", status.name, what, doing, row.down_since, next_at))
    for s in status.subscribers:
        if s.poll_error:
            what = gettext("The poll of {name} fails: {error}.", name=s.name, error=s.poll_error)
            doing = gettext("The next poll continues from the same position; nothing is skipped.")
            found.append(Incident("poll", s.name, what, doing, s.poll_failing_since))
        if s.gap:
            doing = gettext("Polls continue. Reconcile {name} to find what is missing.", name=s.name)
            found.append(Incident("gap", s.name, f"{s.name}: {s.gap}.", doing, s.gap_since))
        if s.dead:
            letters = counted(s.dead, "{count} dead letter needs an operator", "{count} dead letters need an operator")
            what = f"{s.name}: {letters}."
            doing = gettext("Each is retried with the record's next change, or when an operator retries it.")
            found.append(Incident("dead", s.name, what, doing, s.oldest_dead))
        if s.conflicts:
            fields = counted(
                s.conflicts, "{count} field was changed on both sides", "{count} fields were changed on both sides"
            )
            doing = gettext("Neither side is overwritten until an operator decides.")
            found.append(Incident("conflict", s.name, f"{s.name}: {fields}.", doing))
    return found


def capture_incident(broken: BrokenCapture) -> Incident:
    """Return the incident of a catalogue whose writes are not captured."""
    what = gettext("Writes to {name} are not captured: {reason}.", name=broken.catalogue, reason=broken.reason)
    doing = gettext(
        "When this is corrected, Syncflow compares all records of {name} with each system.", name=broken.catalogue
    )
    return Incident("capture", broken.catalogue, what, doing, broken.since)


def process_incidents(context: Context, processes: list[ProcessRow]) -> list[Incident]:
    """Return an incident for each kind of process that has to run and does not."""
    alive = {row.kind for row in processes if is_alive(context, row)}
    if _ALL_IN_ONE in alive:
        return []
    found = []
    for kind, consequence in _NEEDED.items():
        if kind not in alive:
            since = max((row.last_seen_at for row in processes if row.kind in (kind, _ALL_IN_ONE)), default=None)
            doing = gettext("Nothing is lost: start one, and it continues where the last one stopped.")
            what = gettext("No {kind} is running: {consequence}.", kind=kind, consequence=gettext(consequence))
            found.append(Incident("process", kind, what, doing, since))
    return found


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]
