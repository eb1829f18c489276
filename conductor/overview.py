"""Is everything in sync? One state and one sentence per system and subscriber, and every trouble, from the ledger."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.hub import Hub
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
    ThroughputMark,
)

#: Counting stops here: "more than" says enough, and the page stays fast.
COUNT_LIMIT = 10_000

#: A process is taken for dead when its heartbeat has been missing for this long, seconds.
ALIVE_SECONDS = 20.0

#: What has to run, and what stands still without it.
_NEEDED = {
    "relay": "changes are captured and wait",
    "worker": "nothing is sent and nothing that came in is applied",
    "scheduler": "no system is polled",
}

#: Written out, so that SQLite sees that its index over the waiting rows will do.
_WAITING: Any = sa.literal_column("'waiting'")

#: The kind of a process that is all of them.
_ALL_IN_ONE = "standalone"

#: Kinds of trouble, the most urgent first; those that stand still by somebody's choice, or by need of one, come last.
_URGENCY = ("process", "down", "poll", "dead", "paused", "conflict")

#: A page that is asked for again is made anew after this many seconds, whatever its version says.
_FORGET_SECONDS = 30


@dataclass(frozen=True)
class SubscriberStatus:
    """What one subscriber is owed now. Counts stop at COUNT_LIMIT.

    `state` is ok, waiting, trying again, failing, down or paused.
    """

    name: str
    owed: int
    oldest_owed_since: datetime | None
    dead: int
    #: Why its polls fail now, if they do, and since when.
    poll_error: str | None = None
    poll_failing_since: datetime | None = None
    #: Of those owed: records whose last attempt failed and that are tried again.
    failing: int = 0
    #: Fields that changed on both sides and wait for a person.
    conflicts: int = 0
    oldest_dead: datetime | None = None
    state: str = "ok"


@dataclass(frozen=True)
class SystemStatus:
    """One system: `state` is ok, waiting, failing, down or paused; `words` say it to a person."""

    name: str
    state: str
    words: str
    subscribers: list[SubscriberStatus] = field(default_factory=list)
    since: datetime | None = None

    @property
    def owed(self) -> int:
        """What all its subscribers are owed."""
        return sum(s.owed for s in self.subscribers)


@dataclass(frozen=True)
class Waiting:
    """Work nobody is named for yet: changes the relay has not routed, inbox rows not applied."""

    changes: int
    inbox: int


@dataclass(frozen=True)
class Trouble:
    """One thing that is not as it should be: what, since when, and what is being done about it.

    `kind` is paused, down, poll, dead, conflict or process; `name` the system, subscriber or process meant.
    `next_at` is when the hub tries by itself; where it is none, a person has to act.
    """

    kind: str
    name: str
    what: str
    doing: str
    since: datetime | None = None
    next_at: datetime | None = None


@dataclass(frozen=True)
class Overview:
    """All of it at one moment."""

    systems: list[SystemStatus]
    waiting: Waiting
    processes: list[Any]
    troubles: list[Trouble]

    @property
    def subscribers(self) -> list[SubscriberStatus]:
        """Those of all systems."""
        return [subscriber for system in self.systems for subscriber in system.subscribers]

    @property
    def oldest(self) -> datetime | None:
        """Since when the longest waiting record waits."""
        return min((s.oldest_owed_since for s in self.subscribers if s.oldest_owed_since), default=None)

    @property
    def moving(self) -> int:
        """Records owed to systems that may be called."""
        return sum(system.owed for system in self.systems if system.state not in ("paused", "down"))

    @property
    def held(self) -> int:
        """Records owed to systems that are paused or down."""
        return sum(system.owed for system in self.systems if system.state in ("paused", "down"))

    @property
    def in_sync(self) -> bool:
        """Whether nothing is outstanding anywhere, whatever else may be the matter."""
        nothing_new = not (self.waiting.changes or self.waiting.inbox)
        return nothing_new and not any(self.total(name) for name in ("owed", "dead", "conflicts"))

    @property
    def tone(self) -> str:
        """good, busy or bad: how soon a person should look."""
        kinds = {trouble.kind for trouble in self.troubles}
        if kinds - {"paused", "conflict"}:
            return "bad"
        return "good" if self.in_sync and not kinds else "busy"

    @property
    def headline(self) -> str:
        """The answer to "is everything in sync?" in one sentence."""
        if not self.troubles:
            return "Everything is in sync." if self.in_sync else "Catching up."
        what = _join([words for words in map(self._named, _URGENCY) if words])
        return f"In sync so far, but {what}." if self.in_sync else f"Not everything is in sync: {what}."

    def _named(self, kind: str) -> str:
        names = [trouble.name for trouble in self.troubles if trouble.kind == kind]
        if not names:
            return ""
        one = len(names) == 1
        return {
            "process": f"no {_join(names, 'or')} is running",
            "down": f"{_join(names)} {'is' if one else 'are'} down",
            "paused": f"{_join(names)} {'is' if one else 'are'} paused",
            "poll": f"the {'poll' if one else 'polls'} of {_join(names)} {'fails' if one else 'fail'}",
            "dead": counted(self.total("dead"), "dead letter waits", "dead letters wait") + " for a person",
            "conflict": counted(self.total("conflicts"), "conflict waits", "conflicts wait") + " for a decision",
        }[kind]

    def total(self, name: str) -> int:
        """A count over all subscribers: owed, failing, dead or conflicts."""
        return sum(getattr(s, name) for s in self.subscribers)


def version(hub: Hub, connection: sa.Connection) -> str:
    """Another text whenever what an overview shows may be another; some look-ups by key, whatever the ledger's size."""
    newest = [
        sa.select(sa.func.max(table.id)).scalar_subquery()
        for table in (Change, Delivery, Inbox, DeadLetter, AuditEntry, Conflict)
    ]
    waiting = [
        sa.select(sa.func.min(Change.id)).where(Change.relayed_at.is_(None)).scalar_subquery(),
        sa.select(sa.func.min(Inbox.id)).where(Inbox.state == _WAITING).scalar_subquery(),
        sa.select(sa.func.max(ThroughputMark.counted_to)).scalar_subquery(),
    ]
    seen: list[Any] = [tuple(connection.execute(sa.select(*newest, *waiting)).one())]
    s = System
    columns = (s.name, s.paused_at, s.down_since, s.probe_at, s.failures, s.up_since, s.webhooks_rejected)
    seen += connection.execute(sa.select(*columns).order_by(s.name)).all()
    seen += connection.execute(sa.select(Cursor.subscriber, Cursor.polled_at, Cursor.failing_since)).all()
    jobs = sa.select(Schedule.job, Schedule.paused_at, Schedule.started_at, Schedule.finished_at, Schedule.result)
    seen += connection.execute(jobs.order_by(Schedule.job)).all()
    seen += [(row.name, is_alive(hub, row)) for row in _processes(connection)]
    seen.append(int(hub.clock().timestamp()) // _FORGET_SECONDS)
    return hashlib.sha256(repr([tuple(row) if not isinstance(row, int) else row for row in seen]).encode()).hexdigest()


def overview(hub: Hub, connection: sa.Connection) -> Overview:
    """How everything stands now."""
    rows = {row.name: row for row in connection.execute(sa.select(System.__table__))}
    found = [
        _status(name, rows.get(name), [_subscriber(connection, s.name(), rows.get(name)) for s in hub.of_system(name)])
        for name in sorted(hub.systems)
    ]
    processes = _processes(connection)
    troubles = [trouble for status in found for trouble in _of_system(status, rows.get(status.name))]
    troubles += _of_processes(hub, processes)
    troubles.sort(key=lambda trouble: _URGENCY.index(trouble.kind))
    return Overview(found, _waiting(connection), processes, troubles)


def _waiting(connection: sa.Connection) -> Waiting:
    changes = _count(connection, sa.select(Change.id).where(Change.relayed_at.is_(None)))
    return Waiting(changes, _count(connection, sa.select(Inbox.id).where(Inbox.state == _WAITING)))


def is_alive(hub: Hub, process: Any) -> bool:
    """Whether its heartbeat is recent."""
    return bool((hub.clock() - process.seen_at).total_seconds() < ALIVE_SECONDS)


def _processes(connection: sa.Connection) -> list[Any]:
    return list(connection.execute(sa.select(Process.__table__).order_by(Process.kind, Process.name)).all())


def _subscriber(connection: sa.Connection, name: str, system: Any) -> SubscriberStatus:
    owed = (Link.subscriber == name, Link.owed_change > Link.synced_change, Link.dead_at.is_(None))
    # Written out, not bound: SQLite does not see by a bound value that an index over some rows will do.
    failing = (Link.subscriber == name, Link.attempts > sa.literal_column("0"), Link.dead_at.is_(None))
    letters = (DeadLetter.subscriber == name, DeadLetter.closed_at.is_(None))
    first_dead = sa.select(DeadLetter.at).where(*letters).order_by(DeadLetter.id).limit(1)
    conflicts = (Conflict.subscriber == name, Conflict.settled_at.is_(None))
    poll = connection.execute(
        sa.select(Cursor.result, Cursor.failing_since).where(
            Cursor.subscriber == name, Cursor.failing_since.is_not(None)
        )
    ).one_or_none()
    status = SubscriberStatus(
        name,
        _count(connection, _of_links(owed)),
        connection.execute(sa.select(sa.func.min(Link.owed_since)).where(*owed)).scalar(),
        _count(connection, sa.select(DeadLetter.id).where(*letters)),
        poll.result or "no words" if poll else None,
        poll.failing_since if poll else None,
        _count(connection, _of_links(failing)),
        _count(connection, sa.select(Conflict.id).where(*conflicts)),
        connection.execute(first_dead).scalar(),
    )
    return SubscriberStatus(**{**vars(status), "state": _subscriber_state(status, system)})


def _subscriber_state(status: SubscriberStatus, system: Any) -> str:
    if system is not None and system.paused_at is not None:
        return "paused"
    if system is not None and system.down_since is not None:
        return "down"
    if status.poll_error or status.dead:
        return "failing"
    if status.failing:
        return "trying again"
    return "waiting" if status.owed else "ok"


def _of_links(conditions: Any) -> Any:
    # In the order of the index over just these: PostgreSQL takes them for many, and would rather read the whole table.
    return sa.select(Link.id).where(*conditions).order_by(Link.owed_since)


def _count(connection: sa.Connection, statement: Any) -> int:
    limited = statement.limit(COUNT_LIMIT).subquery()
    return int(connection.execute(sa.select(sa.func.count()).select_from(limited)).scalar_one())


def counted(count: int, one: str, many: str) -> str:
    """A number with its noun: 1 record, 12 records; where counting stopped, 10,000+ records."""
    return f"{count:,}{'+' if count >= COUNT_LIMIT else ''} {one if count == 1 else many}"


def _wait(owed: int) -> str:
    return counted(owed, "record waits", "records wait") if owed else "nothing waits for it"


def _status(name: str, row: Any, subscribers: list[SubscriberStatus]) -> SystemStatus:
    owed = sum(s.owed for s in subscribers)
    dead = sum(s.dead for s in subscribers)
    if row is not None and row.paused_at is not None:
        why = f" ({row.pause_reason})" if row.pause_reason else ""
        words = f"paused by {row.paused_by}{why}; {_wait(owed)}"
        return SystemStatus(name, "paused", words, subscribers, row.paused_at)
    if row is not None and row.down_since is not None:
        return SystemStatus(name, "down", f"{row.down_reason}; {_wait(owed)}", subscribers, row.down_since)
    if failing := next((s for s in subscribers if s.poll_error), None):
        words = f"the poll of {failing.name} fails: {failing.poll_error}" + (f"; {_wait(owed)}" if owed else "")
        return SystemStatus(name, "failing", words, subscribers, failing.poll_failing_since)
    if dead:
        words = counted(dead, "dead letter", "dead letters") + " to look at" + (f"; {_wait(owed)}" if owed else "")
        oldest = min((s.oldest_dead for s in subscribers if s.oldest_dead), default=None)
        return SystemStatus(name, "failing", words, subscribers, oldest)
    if owed:
        oldest = min((s.oldest_owed_since for s in subscribers if s.oldest_owed_since), default=None)
        return SystemStatus(name, "waiting", _wait(owed), subscribers, oldest)
    return SystemStatus(name, "ok", "everything is in sync", subscribers)


def _of_system(status: SystemStatus, row: Any) -> list[Trouble]:
    """What is wrong with one system and its subscribers: several things may be at once."""
    troubles = []
    if status.state == "paused":
        why = f": {row.pause_reason}" if row.pause_reason else ""
        what = f"{status.name} is paused by {row.paused_by}{why}."
        troubles.append(Trouble("paused", status.name, what, f"{_sentence(_wait(status.owed))}.", row.paused_at))
    if row is not None and row.down_since is not None:
        tries = "It is tried again when it is resumed." if row.paused_at else "It is tried again by itself."
        what = f"{status.name} is down: {row.down_reason}."
        next_at = None if row.paused_at else row.probe_at
        doing = f"{_sentence(_wait(status.owed))} and no attempt is used up. {tries}"
        troubles.append(Trouble("down", status.name, what, doing, row.down_since, next_at))
    for s in status.subscribers:
        if s.poll_error:
            what = f"The poll of {s.name} fails: {s.poll_error}."
            doing = "It goes on from the same place at its next turn; nothing is skipped."
            troubles.append(Trouble("poll", s.name, what, doing, s.poll_failing_since))
        if s.dead:
            what = f"{s.name}: {counted(s.dead, 'dead letter waits', 'dead letters wait')} for a person."
            doing = "Each goes again with the record's next change, or when somebody retries it."
            troubles.append(Trouble("dead", s.name, what, doing, s.oldest_dead))
        if s.conflicts:
            fields = counted(s.conflicts, "field was", "fields were")
            doing = "Neither side is overwritten until somebody decides."
            troubles.append(Trouble("conflict", s.name, f"{s.name}: {fields} changed on both sides.", doing))
    return troubles


def _of_processes(hub: Hub, processes: list[Any]) -> list[Trouble]:
    alive = {row.kind for row in processes if is_alive(hub, row)}
    if _ALL_IN_ONE in alive:
        return []
    troubles = []
    for kind, consequence in _NEEDED.items():
        if kind not in alive:
            since = max((row.seen_at for row in processes if row.kind in (kind, _ALL_IN_ONE)), default=None)
            doing = "Nothing is lost: it goes on where it stopped once one is started."
            troubles.append(Trouble("process", kind, f"No {kind} is running: {consequence}.", doing, since))
    return troubles


def _join(words: list[str], last: str = "and") -> str:
    """a, b and c."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]
