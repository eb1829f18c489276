"""The state of each system and subscriber, and a sentence that explains it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from conductor.links.status import system_state
from conductor.reports.capture_status import BrokenCapture
from conductor.reports.overview_counts import SubscriberCounts
from i18n import gettext, ngettext
from models.counting import DISPLAY_LIMIT
from models.rows import CursorRow, SystemRow


@dataclass(frozen=True)
class SubscriberStatus:
    """The counts of one subscriber; they stop at `DISPLAY_LIMIT`.

    `state` is ok, waiting, retrying, failing, down or paused.
    """

    name: str
    owed: int
    oldest_owed_since: datetime | None
    dead: int
    #: Why its polls fail, if they do, and since when.
    poll_error: str | None = None
    poll_failing_since: datetime | None = None
    #: Owed records whose last attempt failed and will be retried.
    failing: int = 0
    #: Fields that changed on both sides and need a decision.
    conflicts: int = 0
    oldest_dead: datetime | None = None
    #: What its polls could not read, until a reconcile, and since when that is known.
    gap: str | None = None
    gap_since: datetime | None = None
    #: Why writes to its catalogue may not be captured, and since when.
    uncaptured: str | None = None
    uncaptured_since: datetime | None = None
    state: str = "ok"


@dataclass(frozen=True)
class SystemStatus:
    """One system: `state` is ok, waiting, failing, down or paused; `summary` explains it in a sentence."""

    name: str
    state: str
    summary: str
    subscribers: list[SubscriberStatus] = field(default_factory=list)
    since: datetime | None = None

    @property
    def owed(self) -> int:
        """The records that all its subscribers are owed."""
        return sum(s.owed for s in self.subscribers)


def subscriber_status(
    found: SubscriberCounts, system: SystemRow | None, poll: CursorRow | None, broken: BrokenCapture | None
) -> SubscriberStatus:
    """Make the status of a subscriber of its counts, the rows of its system and its cursor, and a capture fault."""
    failing_since = poll.failing_since if poll is not None else None
    status = SubscriberStatus(
        found.name,
        found.owed,
        found.oldest_owed_since,
        found.dead,
        (poll.result or gettext("no message")) if poll is not None and failing_since is not None else None,
        failing_since,
        found.failing,
        found.conflicts,
        found.oldest_dead,
        poll.gap if poll is not None else None,
        poll.gap_since if poll is not None else None,
        broken.reason if broken is not None else None,
        broken.since if broken is not None else None,
    )
    return SubscriberStatus(**{**vars(status), "state": _subscriber_state(status, system)})


def _subscriber_state(status: SubscriberStatus, system: SystemRow | None) -> str:
    if (held := system_state(system)) is not None:
        return held
    if status.poll_error or status.dead or status.gap or status.uncaptured:
        return "failing"
    if status.failing:
        return "retrying"
    return "waiting" if status.owed else "ok"


def system_status(name: str, row: SystemRow | None, subscribers: list[SubscriberStatus]) -> SystemStatus:
    """Make the status of a system of its row and its subscribers."""
    owed = sum(s.owed for s in subscribers)
    dead = sum(s.dead for s in subscribers)
    held = system_state(row)
    if row is not None and held == "paused":
        why = f" ({row.pause_reason})" if row.pause_reason else ""
        words = gettext("paused by {who}", who=row.paused_by) + f"{why}; {pending_text(owed)}"
        return SystemStatus(name, "paused", words, subscribers, row.paused_at)
    if row is not None and held == "down":
        return SystemStatus(name, "down", f"{row.down_reason}; {pending_text(owed)}", subscribers, row.down_since)
    if failing := next((s for s in subscribers if s.poll_error), None):
        words = gettext("the poll of {name} fails: {error}", name=failing.name, error=failing.poll_error)
        words += f"; {pending_text(owed)}" if owed else ""
        return SystemStatus(name, "failing", words, subscribers, failing.poll_failing_since)
    if missed := next((s for s in subscribers if s.uncaptured), None):
        words = gettext("writes for {name} are not captured: {reason}", name=missed.name, reason=missed.uncaptured)
        return SystemStatus(name, "failing", words, subscribers, missed.uncaptured_since)
    if gap := next((s for s in subscribers if s.gap), None):
        words = f"{gap.name}: {gap.gap}; " + gettext("reconcile it")
        return SystemStatus(name, "failing", words, subscribers, gap.gap_since)
    if dead:
        words = counted(dead, "{count} dead letter needs an operator", "{count} dead letters need an operator")
        words += f"; {pending_text(owed)}" if owed else ""
        oldest = min((s.oldest_dead for s in subscribers if s.oldest_dead), default=None)
        return SystemStatus(name, "failing", words, subscribers, oldest)
    if owed:
        oldest = min((s.oldest_owed_since for s in subscribers if s.oldest_owed_since), default=None)
        return SystemStatus(name, "waiting", pending_text(owed), subscribers, oldest)
    return SystemStatus(name, "ok", gettext("everything is in sync"), subscribers)


def counted(count: int, one: str, many: str) -> str:
    """Return the singular or plural text with `{count}` filled in; a count that stopped at the limit is 10,000+."""
    return ngettext(one, many, count, count=f"{count:,}{'+' if count >= DISPLAY_LIMIT else ''}")


def pending_text(owed: int) -> str:
    """Return how many records are pending, for use in a sentence."""
    return (
        counted(owed, "{count} record is pending", "{count} records are pending")
        if owed
        else gettext("no record is pending")
    )
