"""The overview: a state and a sentence for each system, the counts of each subscriber, and all incidents."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.links.status import PENDING, system_state
from i18n import gettext, gettext_noop, ngettext
from models.counting import DISPLAY_LIMIT, capped_count
from models.ledger import (
    AuditEntry,
    Change,
    Conflict,
    Cursor,
    DeadLetter,
    Delivery,
    Inbox,
    Link,
    Process,
    Schedule,
    System,
    ThroughputWatermark,
)
from models.query_hints import range_equals

#: Subscribers that one statement counts. For more of them PostgreSQL expects so high a cost that it compiles the
#: statement to machine code ("Just-in-Time Compilation"), which takes far longer than counting.
_SUBSCRIBERS_PER_STATEMENT = 20

#: A process without a heartbeat for this many seconds counts as dead.
ALIVE_SECONDS = 20.0

#: The processes that have to run, and the consequence if one does not.
_NEEDED = {
    "relay": gettext_noop("changes are captured and wait"),
    "worker": gettext_noop("nothing is sent and nothing that came in is applied"),
    "scheduler": gettext_noop("no system is polled and no task goes on"),
}

#: A literal, so that SQLite uses the partial index over waiting rows.
_WAITING: Any = sa.literal_column("'waiting'")

#: The kind of process that does the work of all others.
_ALL_IN_ONE = "standalone"

#: The kinds of incidents, the most urgent first. Those that an operator chose or has to decide come last.
_URGENCY = ("process", "down", "poll", "dead", "paused", "conflict")

#: An overview is rebuilt after this time, even if its version has not changed.
_LONGEST_AGE_SECONDS = 30


@dataclass(frozen=True)
class SubscriberStatus:
    """The counts of one subscriber; they stop at `DISPLAY_LIMIT`.

    `state` is ok, waiting, trying again, failing, down or paused.
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
    #: Fields that changed on both sides and wait for an operator.
    conflicts: int = 0
    oldest_dead: datetime | None = None
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


@dataclass(frozen=True)
class Waiting:
    """Work without a subscriber yet: changes the relay has not routed, inbox rows not applied."""

    changes: int
    inbox: int


@dataclass(frozen=True)
class Incident:
    """A problem: what it is, since when, and what the hub does about it.

    `kind` is paused, down, poll, dead, conflict or process; `name` is the system, subscriber or process.
    `next_at` is the time of the hub's next attempt; if there is none, an operator has to act.
    """

    kind: str
    name: str
    what: str
    doing: str
    since: datetime | None = None
    next_at: datetime | None = None


@dataclass(frozen=True)
class Overview:
    """The state of the hub at one moment."""

    systems: list[SystemStatus]
    waiting: Waiting
    processes: list[Any]
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
        """Whether no change, event, dead letter or conflict is open, whatever incidents there are."""
        nothing_new = not (self.waiting.changes or self.waiting.inbox)
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
        what = _join([words for words in map(self._named, _URGENCY) if words])
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
        if kind == "dead":
            return counted(
                self.total("dead"), "{count} dead letter waits for a person", "{count} dead letters wait for a person"
            )
        return counted(
            self.total("conflicts"), "{count} conflict waits for a decision", "{count} conflicts wait for a decision"
        )

    def total(self, name: str) -> int:
        """Return a count over all subscribers: owed, failing, dead or conflicts."""
        return sum(getattr(s, name) for s in self.subscribers)


@dataclass(frozen=True)
class OverviewVersion:
    """The few rows that both an overview and its version need. The read time does not depend on the size of the ledger.

    `version` changes whenever the overview may have changed.
    """

    version: str
    systems: dict[str, Any]
    polls: dict[str, Any]
    processes: list[Any]


# Statements are built once: building one takes as long as running a small one.
_NEWEST = sa.select(
    *(
        sa.select(sa.func.max(table.id)).scalar_subquery()
        for table in (Change, Delivery, Inbox, DeadLetter, AuditEntry, Conflict)
    ),
    sa.select(sa.func.min(Change.id)).where(Change.relayed_at.is_(None)).scalar_subquery(),
    sa.select(sa.func.min(Inbox.id)).where(Inbox.state == _WAITING).scalar_subquery(),
    sa.select(sa.func.max(ThroughputWatermark.counted_to)).scalar_subquery(),
)
_SYSTEMS = sa.select(System.__table__).order_by(System.name)
_POLLS = sa.select(Cursor.__table__).order_by(Cursor.subscriber)
_PROCESSES = sa.select(Process.__table__).order_by(Process.kind, Process.name)
_JOBS = sa.select(
    Schedule.job, Schedule.paused_at, Schedule.started_at, Schedule.finished_at, Schedule.result
).order_by(Schedule.job)


def overview_version(context: Context, connection: sa.Connection) -> OverviewVersion:
    """Return the values from which the version is made: some values by key, and tables of a few rows."""
    newest, jobs = connection.execute(_NEWEST).one(), connection.execute(_JOBS).all()
    systems, polls = connection.execute(_SYSTEMS).all(), connection.execute(_POLLS).all()
    processes = list(connection.execute(_PROCESSES).all())
    seen = (
        tuple(newest),
        [tuple(row) for row in jobs],
        # Without the columns that change with every call.
        [(s.name, s.paused_at, s.down_since, s.probe_at, s.failures, s.up_since, s.webhooks_rejected) for s in systems],
        [(row.subscriber, row.polled_at, row.failing_since) for row in polls],
        [(row.name, is_alive(context, row)) for row in processes],
        int(context.clock().timestamp()) // _LONGEST_AGE_SECONDS,
    )
    version = hashlib.sha256(repr(seen).encode()).hexdigest()
    return OverviewVersion(
        version, {row.name: row for row in systems}, {row.subscriber: row for row in polls}, processes
    )


def overview(context: Context, connection: sa.Connection, seen: OverviewVersion) -> Overview:
    """Return the current overview; `seen` holds the rows that were read for its version."""
    names = {system: [s.name() for s in context.of_system(system)] for system in sorted(context.systems)}
    counts = _counts(connection, [name for some in names.values() for name in some])

    def status(system: str) -> SystemStatus:
        row = seen.systems.get(system)
        return _status(system, row, [_subscriber(counts[each], row, seen.polls.get(each)) for each in names[system]])

    found = [status(system) for system in names]
    troubles = [trouble for status in found for trouble in _of_system(status, seen.systems.get(status.name))]
    troubles += _of_processes(context, seen.processes)
    troubles.sort(key=lambda trouble: _URGENCY.index(trouble.kind))
    waiting = Waiting(*connection.execute(_WAITING_COUNTS).one())
    return Overview(found, waiting, seen.processes, troubles)


def is_alive(context: Context, process: Any) -> bool:
    """Return whether a process has sent a heartbeat recently."""
    return bool((context.clock() - process.last_seen_at).total_seconds() < ALIVE_SECONDS)


def _counts(connection: sa.Connection, names: list[str]) -> dict[str, Any]:
    """Return the counts of each of these subscribers, by name."""
    found: dict[str, Any] = {}
    for start in range(0, len(names), _SUBSCRIBERS_PER_STATEMENT):
        some = names[start : start + _SUBSCRIBERS_PER_STATEMENT]
        parameters = {f"name{place}": name for place, name in enumerate(some)}
        found |= {row.name: row for row in connection.execute(_counting(len(some)), parameters)}
    return found


@cache
def _counting(number: int) -> sa.Select[Any]:
    """Return the statement that counts this many subscribers, `name0` and so on, in one round trip."""
    asked = sa.union_all(
        *(sa.select(sa.bindparam(f"name{place}", type_=Link.subscriber.type).label("name")) for place in range(number))
    ).subquery()
    owed = (Link.subscriber == asked.c.name, *PENDING)
    # A literal: with a bound value SQLite does not use the partial index.
    failing = (Link.subscriber == asked.c.name, Link.attempts > sa.literal_column("0"), Link.dead_at.is_(None))
    letters = (DeadLetter.subscriber == asked.c.name, DeadLetter.closed_at.is_(None))
    oldest = (range_equals(DeadLetter.subscriber, asked.c.name), DeadLetter.closed_at.is_(None))
    first_dead = sa.select(DeadLetter.at).where(*oldest).order_by(DeadLetter.subscriber, DeadLetter.id).limit(1)
    conflicts = (Conflict.subscriber == asked.c.name, Conflict.resolved_at.is_(None))
    return sa.select(
        asked.c.name,
        _count(_of_links(owed).correlate(asked)).label("owed"),
        sa.select(sa.func.min(Link.owed_since)).where(*owed).scalar_subquery().label("oldest_owed_since"),
        _count(sa.select(DeadLetter.id).where(*letters).correlate(asked)).label("dead"),
        _count(_of_links(failing).correlate(asked)).label("failing"),
        _count(sa.select(Conflict.id).where(*conflicts).correlate(asked)).label("conflicts"),
        first_dead.scalar_subquery().label("oldest_dead"),
    )


def _subscriber(found: Any, system: Any, poll: Any) -> SubscriberStatus:
    fails = poll is not None and poll.failing_since is not None
    status = SubscriberStatus(
        found.name,
        found.owed,
        found.oldest_owed_since,
        found.dead,
        poll.result or gettext("no words") if fails else None,
        poll.failing_since if fails else None,
        found.failing,
        found.conflicts,
        found.oldest_dead,
    )
    return SubscriberStatus(**{**vars(status), "state": _subscriber_state(status, system)})


def _subscriber_state(status: SubscriberStatus, system: Any) -> str:
    if (held := system_state(system)) is not None:
        return held
    if status.poll_error or status.dead:
        return "failing"
    if status.failing:
        return "trying again"
    return "waiting" if status.owed else "ok"


def _of_links(conditions: Any) -> Any:
    # In the order of the partial index: otherwise PostgreSQL may expect many rows, and read the whole table.
    return sa.select(Link.id).where(*conditions).order_by(Link.owed_since)


def _count(statement: Any) -> Any:
    return capped_count(statement).scalar_subquery()


# In the order of the partial indexes, for the same reason as in `_of_links`.
_WAITING_COUNTS = sa.select(
    _count(sa.select(Change.id).where(Change.relayed_at.is_(None)).order_by(Change.id)),
    _count(sa.select(Inbox.id).where(Inbox.state == _WAITING).order_by(Inbox.id)),
)


def counted(count: int, one: str, many: str) -> str:
    """Return the singular or plural text with `{count}` filled in; a count that stopped at the limit is 10,000+."""
    return ngettext(one, many, count, count=f"{count:,}{'+' if count >= DISPLAY_LIMIT else ''}")


def _wait(owed: int) -> str:
    return counted(owed, "{count} record waits", "{count} records wait") if owed else gettext("nothing waits for it")


def _status(name: str, row: Any, subscribers: list[SubscriberStatus]) -> SystemStatus:
    owed = sum(s.owed for s in subscribers)
    dead = sum(s.dead for s in subscribers)
    if (held := system_state(row)) == "paused":
        why = f" ({row.pause_reason})" if row.pause_reason else ""
        words = gettext("paused by {who}", who=row.paused_by) + f"{why}; {_wait(owed)}"
        return SystemStatus(name, "paused", words, subscribers, row.paused_at)
    if held == "down":
        return SystemStatus(name, "down", f"{row.down_reason}; {_wait(owed)}", subscribers, row.down_since)
    if failing := next((s for s in subscribers if s.poll_error), None):
        words = gettext("the poll of {name} fails: {error}", name=failing.name, error=failing.poll_error)
        words += f"; {_wait(owed)}" if owed else ""
        return SystemStatus(name, "failing", words, subscribers, failing.poll_failing_since)
    if dead:
        words = counted(dead, "{count} dead letter to look at", "{count} dead letters to look at")
        words += f"; {_wait(owed)}" if owed else ""
        oldest = min((s.oldest_dead for s in subscribers if s.oldest_dead), default=None)
        return SystemStatus(name, "failing", words, subscribers, oldest)
    if owed:
        oldest = min((s.oldest_owed_since for s in subscribers if s.oldest_owed_since), default=None)
        return SystemStatus(name, "waiting", _wait(owed), subscribers, oldest)
    return SystemStatus(name, "ok", gettext("everything is in sync"), subscribers)


def _of_system(status: SystemStatus, row: Any) -> list[Incident]:
    """Return the incidents of one system and its subscribers."""
    troubles = []
    if status.state == "paused":
        why = f": {row.pause_reason}" if row.pause_reason else ""
        what = gettext("{name} is paused by {who}", name=status.name, who=row.paused_by) + f"{why}."
        troubles.append(Incident("paused", status.name, what, f"{_sentence(_wait(status.owed))}.", row.paused_at))
    if row is not None and row.down_since is not None:
        tries = (
            gettext("It is tried again when it is resumed.")
            if row.paused_at
            else gettext("It is tried again by itself.")
        )
        what = gettext("{name} is down: {reason}.", name=status.name, reason=row.down_reason)
        next_at = None if row.paused_at else row.probe_at
        doing = gettext("{wait} and no attempt is used up.", wait=_sentence(_wait(status.owed))) + f" {tries}"
        troubles.append(Incident("down", status.name, what, doing, row.down_since, next_at))
    for s in status.subscribers:
        if s.poll_error:
            what = gettext("The poll of {name} fails: {error}.", name=s.name, error=s.poll_error)
            doing = gettext("It goes on from the same place at its next turn; nothing is skipped.")
            troubles.append(Incident("poll", s.name, what, doing, s.poll_failing_since))
        if s.dead:
            letters = counted(
                s.dead, "{count} dead letter waits for a person", "{count} dead letters wait for a person"
            )
            what = f"{s.name}: {letters}."
            doing = gettext("Each goes again with the record's next change, or when somebody retries it.")
            troubles.append(Incident("dead", s.name, what, doing, s.oldest_dead))
        if s.conflicts:
            fields = counted(
                s.conflicts, "{count} field was changed on both sides", "{count} fields were changed on both sides"
            )
            doing = gettext("Neither side is overwritten until somebody decides.")
            troubles.append(Incident("conflict", s.name, f"{s.name}: {fields}.", doing))
    return troubles


def _of_processes(context: Context, processes: list[Any]) -> list[Incident]:
    alive = {row.kind for row in processes if is_alive(context, row)}
    if _ALL_IN_ONE in alive:
        return []
    troubles = []
    for kind, consequence in _NEEDED.items():
        if kind not in alive:
            since = max((row.last_seen_at for row in processes if row.kind in (kind, _ALL_IN_ONE)), default=None)
            doing = gettext("Nothing is lost: it goes on where it stopped once one is started.")
            what = gettext("No {kind} is running: {consequence}.", kind=kind, consequence=gettext(consequence))
            troubles.append(Incident("process", kind, what, doing, since))
    return troubles


def _join(words: list[str], last: str = "") -> str:
    """Return "a, b and c"."""
    return (last or gettext(" and ")).join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]
