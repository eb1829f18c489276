"""The status of records with each subscriber: the state of the link, and a sentence that explains it.

`conductor.links.status.state_of` returns the state; this module adds the explanation for operators.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.links.row import LinkRow, link_row
from conductor.links.rules import Rule, in_force
from conductor.links.status import WORDS, LinkStatus, State, covering_rule, state_of
from i18n import gettext, ngettext
from models.history import newest_delivery, waiting_since
from models.ledger import DeadLetter, Link, System, Unsubscription
from models.rows import DeadLetterRow, SystemRow

#: Marks the place of a time in a sentence; the panel shows the time in the reader's own zone.
_TIME = "\N{WATCH}"


@dataclass(frozen=True)
class RecordStatus:
    """The status of a record with one subscriber: a word, and a sentence made of texts and times."""

    subscriber: str
    system: str
    word: str
    sentence: list[str | datetime]
    link: LinkRow | None = None
    #: The open dead letter, the unsubscription that holds it back, fields that wait for an operator.
    letter: DeadLetterRow | None = None
    rule: int | None = None
    conflicts: int = 0
    #: (catalogue, record) that must be delivered first.
    blocked_by: tuple[str, str] | None = None


def record_statuses(
    context: Context, connection: sa.Connection, catalogue: str, record_id: str, *, exists: bool
) -> list[RecordStatus]:
    """Return the status of a record with each subscriber of its catalogue, by name."""
    names = sorted(s.name() for s in context.of_catalogue(catalogue))
    its_links = sa.select(Link.__table__).where(Link.record_id == record_id, Link.subscriber.in_(names))
    links = {row.subscriber: link_row(row) for row in connection.execute(its_links)}
    systems = _systems(connection)
    existing = {record_id} if exists else set[str]()
    return [_explain(context, connection, name, [(record_id, links.get(name))], systems, existing)[0] for name in names]


def link_statuses(context: Context, connection: sa.Connection, links: Iterable[LinkRow]) -> dict[int, RecordStatus]:
    """Return the status of each of these links, by its id."""
    by_subscriber: defaultdict[str, list[LinkRow]] = defaultdict(list)
    for link in links:
        by_subscriber[link.subscriber].append(link)
    systems, found = _systems(connection), dict[int, RecordStatus]()
    for name, its in by_subscriber.items():
        existing = _existing(context, connection, name, [link.record_id for link in its])
        explained = _explain(context, connection, name, [(link.record_id, link) for link in its], systems, existing)
        found |= {link.id: status for link, status in zip(its, explained, strict=True)}
    return found


def _explain(
    context: Context,
    connection: sa.Connection,
    name: str,
    links: Sequence[tuple[str, LinkRow | None]],
    systems: Mapping[str, SystemRow],
    existing: Container[str],
) -> list[RecordStatus]:
    """Return the status of these records with one subscriber, each with its link."""
    system, _, catalogue = name.partition(".")
    ids, now = [record_id for record_id, _ in links], context.clock()
    rules = in_force(connection, (system, name), ids, now)
    captured = waiting_since(connection, catalogue, ids, system)
    found = []
    for record_id, link in links:
        exists = record_id in existing
        rule = covering_rule(rules, link, record_id, exists=exists)
        status = state_of(link, systems.get(system), rule, now)
        case = _Case(context, connection, name, record_id, link, systems.get(system), status, exists)
        is_captured = record_id in captured and not status.is_owed
        found.append(_captured(case, captured[record_id]) if is_captured else _explained(case))
    return found


def _explained(case: _Case) -> RecordStatus:
    rule, link = case.status.rule, case.link
    if link is None:
        return _ruled(case, rule) if rule is not None else _unsent(case)
    status = _EXPLAIN[case.status.state](case, link)
    if rule is None or not case.status.is_owed:
        return status
    words = gettext("; it will not be sent: {why}", why=rule.reason)
    return replace(status, sentence=[*status.sentence, words], rule=rule.id)


def _captured(case: _Case, since: datetime) -> RecordStatus:
    words = gettext("changed in the database at {time}; the relay has not processed the change yet", time=_TIME)
    return replace(case.says(*_timed(words, since)), word=WORDS["pending"])


def _systems(connection: sa.Connection) -> dict[str, SystemRow]:
    return {row.name: SystemRow._make(row) for row in connection.execute(sa.select(System.__table__))}


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
    link: LinkRow | None
    system: SystemRow | None
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


def _dead(case: _Case, link: LinkRow) -> RecordStatus:
    is_open = (DeadLetter.link_id == link.id, DeadLetter.closed_at.is_(None))
    row = case.connection.execute(sa.select(DeadLetter.__table__).where(*is_open)).one_or_none()
    letter = DeadLetterRow._make(row) if row is not None else None
    words = f": {letter.message}" if letter is not None else ""
    return case.says(*_timed(gettext("not sent since {time}", time=_TIME), link.dead_at), words, letter=letter)


def _skipped(case: _Case, link: LinkRow) -> RecordStatus:
    if case.status.rule is not None:
        return _ruled(case, case.status.rule)
    number = link.unsubscription_id
    words = gettext(
        "not sent: unsubscription #{number} covered it and has ended; the next change will be sent",
        number=number,
    )
    is_there = case.connection.execute(sa.select(Unsubscription.id).where(Unsubscription.id == number)).first()
    return case.says(words, rule=number if is_there else None)


def _ruled(case: _Case, rule: Rule) -> RecordStatus:
    return case.says(gettext("not sent: {why}", why=rule.reason), rule=rule.id)


def _paused(case: _Case, link: LinkRow) -> RecordStatus:
    if (row := case.system) is None:
        return _pending(case, link)
    why = f" ({row.pause_reason})" if row.pause_reason else ""
    words = (
        gettext(
            "waiting: {system} has been paused by {who} since {time}", system=case.title, who=row.paused_by, time=_TIME
        )
        if row.paused_by
        else gettext("waiting: {system} has been paused since {time}", system=case.title, time=_TIME)
    )
    return case.says(*_timed(words, row.paused_at), why)


def _down(case: _Case, link: LinkRow) -> RecordStatus:
    if (row := case.system) is None:
        return _pending(case, link)
    # While a system is down only probes are made, and none of them counts against its records.
    saved = (
        ngettext(", {n} failed attempt not counted", ", {n} failed attempts not counted", row.failures)
        if row.failures
        else ""
    )
    why = f": {row.down_reason}" if row.down_reason else ""
    words = gettext("waiting: {system} has been down since {time}", system=case.title, time=_TIME)
    return case.says(*_timed(words, row.down_since), f"{saved}{why}")


def _blocked(case: _Case, link: LinkRow) -> RecordStatus:
    parent = sa.select(Link.subscriber, Link.record_id).where(Link.id == link.blocked_by)
    row = case.connection.execute(parent).one_or_none()
    if row is None:
        return _pending(case, link)
    catalogue = row.subscriber.partition(".")[2]
    words = gettext(
        "waiting for {catalogue} {record_id}, which must be in {system} first",
        catalogue=catalogue,
        record_id=row.record_id,
        system=case.title,
    )
    return case.says(words, blocked_by=(catalogue, row.record_id))


def _sending(case: _Case, link: LinkRow) -> RecordStatus:
    return case.says(gettext("being sent now"))


def _retrying(case: _Case, link: LinkRow) -> RecordStatus:
    if link.retry_at is None:
        most = case.context.policy.max_attempts
        words = gettext("attempt {number} of {most} failed; it is being tried again", number=link.attempts, most=most)
        return case.says(words)
    words = gettext(
        "attempt {number} of {most} failed, next at {time}",
        number=link.attempts,
        most=case.context.policy.max_attempts,
        time=_TIME,
    )
    last = newest_delivery(case.connection, case.record_id, case.subscriber, "failed")
    return case.says(*_timed(words, link.retry_at), f": {last.reason}" if last and last.reason else "")


def _pending(case: _Case, link: LinkRow) -> RecordStatus:
    if link.owed_since is None:
        return case.says(gettext("pending: waiting to be sent"))
    return case.says(*_timed(gettext("pending since {time}: waiting to be sent", time=_TIME), link.owed_since))


def _conflict(case: _Case, link: LinkRow) -> RecordStatus:
    words = ngettext(
        "1 field waits for a decision; all other fields are up to date",
        "{n} fields wait for a decision; all other fields are up to date",
        link.open_conflicts,
    )
    return case.says(words)


def _unlinked(case: _Case, link: LinkRow) -> RecordStatus:
    words = (
        gettext("deleted in {system} at {time}", system=case.title, time=_TIME)
        if link.deleted_remotely
        else gettext("deleted or unlinked by Syncflow at {time}", time=_TIME)
    )
    ended = gettext("; later changes are not sent") if case.exists else ""
    return case.says(*_timed(words, link.unlinked_at), ended)


def _synced(case: _Case, link: LinkRow) -> RecordStatus:
    # The newest delivery may have sent nothing: an unwanted record, or the writer's own unsubscribe list.
    skip = newest_delivery(case.connection, case.record_id, case.subscriber, "skipped")
    if skip is not None and link.synced_at is not None and skip.at > link.synced_at and case.status.rule is None:
        words = gettext("the last change was not sent: {why}", why=skip.reason or "")
        return replace(case.says(words), word=WORDS["skipped"])
    since = _timed(gettext("up to date since {time}", time=_TIME), link.synced_at)
    if (rule := case.status.rule) is None:
        return case.says(*since)
    words = gettext("; later changes are not sent: {why}", why=rule.reason)
    return case.says(*since, words, rule=rule.id)


def _unsent(case: _Case, _link: LinkRow | None = None) -> RecordStatus:
    # The newest skipped delivery has the reason, if there is one.
    skip = newest_delivery(case.connection, case.record_id, case.subscriber, "skipped")
    if skip is None or not skip.reason:
        return case.says(gettext("not sent yet: it will be sent with its next change"))
    return replace(case.says(gettext("not sent: {why}", why=skip.reason)), word=WORDS["skipped"])


#: State of a link -> the function that explains it.
_EXPLAIN: dict[State, Callable[[_Case, LinkRow], RecordStatus]] = {
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


def _timed(words: str, time: datetime | None) -> list[str | datetime]:
    """Return a text with the time in the place of `_TIME`."""
    before, _, after = words.partition(_TIME)
    return [before, time, after] if time is not None else [before, after]
