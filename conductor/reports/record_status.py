"""The status of records with each subscriber: the state of the link, and a sentence that explains it.

`conductor.links.status.state_of` returns the state; this module adds the explanation for operators.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.links.rules import Rule, in_force
from conductor.links.status import LinkStatus, State, covering_rule, state_of
from conductor.reports.timeline import _of, _rows
from i18n import gettext, ngettext
from models.history import newest_delivery, waiting_since
from models.ledger import DeadLetter, Link, System, Unsubscription

#: Marks the place of a time in a sentence; the panel shows the time in the reader's own zone.
_TIME = "\N{WATCH}"


@dataclass(frozen=True)
class RecordStatus:
    """The status of a record with one subscriber: a word, and a sentence made of texts and times."""

    subscriber: str
    system: str
    word: str
    sentence: list[str | datetime]
    link: Any = None
    #: The open dead letter, the unsubscription that holds it back, fields that wait for an operator.
    letter: Any = None
    rule: int | None = None
    conflicts: int = 0
    #: (catalogue, record) that must be delivered first.
    blocked_by: tuple[str, str] | None = None


def record_statuses(
    context: Context, connection: sa.Connection, catalogue: str, record_id: str, *, exists: bool
) -> list[RecordStatus]:
    """Return the status of a record with each subscriber of its catalogue, by name."""
    names = sorted(s.name() for s in context.of_catalogue(catalogue))
    links = {row.subscriber: row for row in _rows(connection, Link, Link.subscriber.in_(names), _of(Link, record_id))}
    systems = _systems(connection)
    captured = waiting_since(connection, catalogue, record_id)
    statuses = []
    for name in names:
        rules, link = _rules(context, connection, name, [record_id]), links.get(name)
        status = _status(context, connection, name, record_id, link, systems, rules, exists=exists)
        is_settled = link is None or (link.owed_change <= link.synced_change and link.dead_at is None)
        if captured is not None and is_settled:
            words = gettext("changed in the database at {time}; the relay has not processed the change yet", time=_TIME)
            status = replace(status, word="waiting", sentence=_timed(words, captured), rule=None)
        statuses.append(status)
    return statuses


def link_statuses(context: Context, connection: sa.Connection, links: Iterable[Any]) -> dict[int, RecordStatus]:
    """Return the status of each of these links, by its id."""
    by_subscriber: defaultdict[str, list[Any]] = defaultdict(list)
    for link in links:
        by_subscriber[link.subscriber].append(link)
    systems, found = _systems(connection), {}
    for name, its in by_subscriber.items():
        ids = [link.record_id for link in its]
        rules, existing = _rules(context, connection, name, ids), _existing(context, connection, name, ids)
        for link in its:
            exists = link.record_id in existing
            found[link.id] = _status(context, connection, name, link.record_id, link, systems, rules, exists=exists)
    return found


def _status(
    context: Context,
    connection: sa.Connection,
    name: str,
    record_id: str,
    link: Any,
    systems: dict[str, Any],
    rules: list[Rule],
    *,
    exists: bool,
) -> RecordStatus:
    system = name.partition(".")[0]
    rule = covering_rule(rules, link, record_id, exists=exists)
    status = state_of(link, systems.get(system), rule, context.clock())
    case = _Case(context, connection, name, record_id, link, systems.get(system), status, exists)
    return _EXPLAIN[status.state](case)


def _systems(connection: sa.Connection) -> dict[str, Any]:
    return {row.name: row for row in connection.execute(sa.select(System.__table__))}


def _rules(context: Context, connection: sa.Connection, name: str, record_ids: list[str]) -> list[Rule]:
    return in_force(connection, (name.partition(".")[0], name), record_ids, context.clock())


def _existing(context: Context, connection: sa.Connection, name: str, record_ids: list[str]) -> set[str]:
    subscriber = context.subscribers.get(name)
    if subscriber is None:
        return set(record_ids)  # The system is no longer configured.
    return set(subscriber.records.keep(connection, record_ids, ()))


@dataclass(frozen=True)
class _Case:
    """A link, and the data for the sentence about it."""

    context: Context
    connection: sa.Connection
    subscriber: str
    record_id: str
    link: Any
    system: Any
    status: LinkStatus
    exists: bool

    @property
    def title(self) -> str:
        """The system's name for use in a sentence."""
        return self.subscriber.partition(".")[0].capitalize()

    def says(self, *sentence: str | datetime, **more: Any) -> RecordStatus:
        """Return the status with this sentence."""
        conflicts = self.link.open_conflicts if self.link is not None else 0
        system = self.subscriber.partition(".")[0]
        word = self.status.word
        return RecordStatus(self.subscriber, system, word, list(sentence), self.link, conflicts=conflicts, **more)


def _dead(case: _Case) -> RecordStatus:
    is_open = (DeadLetter.link_id == case.link.id, DeadLetter.closed_at.is_(None))
    letter = case.connection.execute(sa.select(DeadLetter.__table__).where(*is_open)).one_or_none()
    words = f": {letter.message}" if letter is not None else ""
    return case.says(*_timed(gettext("not sent since {time}", time=_TIME), case.link.dead_at), words, letter=letter)


def _skipped(case: _Case) -> RecordStatus:
    if (rule := case.status.rule) is not None:
        return case.says(gettext("not sent: {why}", why=rule.reason), rule=rule.id)
    number = case.link.unsubscription_id
    words = gettext(
        "not sent: unsubscription #{number} covered it and has ended; the next change will be sent",
        number=number,
    )
    is_there = case.connection.execute(sa.select(Unsubscription.id).where(Unsubscription.id == number)).first()
    return case.says(words, rule=number if is_there else None)


def _paused(case: _Case) -> RecordStatus:
    row = case.system
    why = f" ({row.pause_reason})" if row.pause_reason else ""
    words = (
        gettext(
            "waiting: {system} has been paused by {who} since {time}", system=case.title, who=row.paused_by, time=_TIME
        )
        if row.paused_by
        else gettext("waiting: {system} has been paused since {time}", system=case.title, time=_TIME)
    )
    return case.says(*_timed(words, row.paused_at), why)


def _down(case: _Case) -> RecordStatus:
    row = case.system
    # While a system is down only probes are made, and none of them counts against its records.
    saved = (
        ngettext(", {n} failed attempt not counted", ", {n} failed attempts not counted", row.failures)
        if row.failures
        else ""
    )
    why = f": {row.down_reason}" if row.down_reason else ""
    words = gettext("waiting: {system} has been down since {time}", system=case.title, time=_TIME)
    return case.says(*_timed(words, row.down_since), f"{saved}{why}")


def _blocked(case: _Case) -> RecordStatus:
    parent = sa.select(Link.subscriber, Link.record_id).where(Link.id == case.link.blocked_by)
    row = case.connection.execute(parent).one_or_none()
    if row is None:
        return _pending(case)
    catalogue = row.subscriber.partition(".")[2]
    words = gettext(
        "waiting for {catalogue} {record_id}, which must be in {system} first",
        catalogue=catalogue,
        record_id=row.record_id,
        system=case.title,
    )
    return case.says(words, blocked_by=(catalogue, row.record_id))


def _sending(case: _Case) -> RecordStatus:
    return case.says(gettext("being sent now"))


def _retrying(case: _Case) -> RecordStatus:
    words = gettext(
        "attempt {number} of {most} failed, next at {time}",
        number=case.link.attempts,
        most=case.context.policy.max_attempts,
        time=_TIME,
    )
    last = newest_delivery(case.connection, case.record_id, case.subscriber, "failed")
    return case.says(*_timed(words, case.link.retry_at), f": {last.reason}" if last and last.reason else "")


def _pending(case: _Case) -> RecordStatus:
    if case.link.owed_since is None:
        return case.says(gettext("pending: waiting to be sent"))
    return case.says(*_timed(gettext("pending since {time}: waiting to be sent", time=_TIME), case.link.owed_since))


def _conflict(case: _Case) -> RecordStatus:
    words = ngettext(
        "1 field waits for a decision; all other fields are up to date",
        "{n} fields wait for a decision; all other fields are up to date",
        case.link.open_conflicts,
    )
    return case.says(words)


def _unlinked(case: _Case) -> RecordStatus:
    words = (
        gettext("deleted in {system} at {time}", system=case.title, time=_TIME)
        if case.link.deleted_remotely
        else gettext("deleted or unlinked by Syncflow at {time}", time=_TIME)
    )
    ended = gettext("; later changes are not sent") if case.exists else ""
    return case.says(*_timed(words, case.link.unlinked_at), ended)


def _synced(case: _Case) -> RecordStatus:
    since = _timed(gettext("up to date since {time}", time=_TIME), case.link.synced_at)
    if (rule := case.status.rule) is None:
        return case.says(*since)
    words = gettext("; later changes are not sent: {why}", why=rule.reason)
    return case.says(*since, words, rule=rule.id)


def _unsent(case: _Case) -> RecordStatus:
    # The newest skipped delivery has the reason, if there is one.
    skip = newest_delivery(case.connection, case.record_id, case.subscriber, "skipped")
    if skip is None or not skip.reason:
        return case.says(gettext("not sent yet: it will be sent with its next change"))
    return replace(case.says(gettext("not sent: {why}", why=skip.reason)), word="skipped")


#: State of a link -> the function that explains it.
_EXPLAIN: dict[State, Callable[[_Case], RecordStatus]] = {
    "dead": _dead,
    "skipped": _skipped,
    "paused": _paused,
    "down": _down,
    "blocked": _blocked,
    "sending": _sending,
    "retrying": _retrying,
    "pending": _pending,
    "conflict": _conflict,
    "unlinked": _unlinked,
    "synced": _synced,
    "unsent": _unsent,
}


def _timed(words: str, time: datetime) -> list[str | datetime]:
    """Return a text with the time in the place of `_TIME`."""
    before, _, after = words.partition(_TIME)
    return [before, time, after]
