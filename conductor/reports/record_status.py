"""TODO."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.reports.timeline import _of, _rows
from conductor.unsubscriptions import Rule, in_force
from i18n import gettext, ngettext
from models.history import newest_delivery, waiting_since
from models.ledger import DeadLetter, Link, System, Unsubscription
from subscribers.base import Subscriber

#: Stands in a sentence for a time, which is shown in the reader's own zone.
_TIME = "\N{WATCH}"


@dataclass(frozen=True)
class RecordStatus:
    """Where a record stands with one subscriber: a word of state, and a sentence of texts and times."""

    subscriber: str
    system: str
    word: str
    sentence: list[str | datetime]
    link: Any = None
    #: The open dead letter, the unsubscription that covers it, fields that wait for a person.
    letter: Any = None
    rule: int | None = None
    conflicts: int = 0
    #: (catalogue, record) that has to be there first.
    blocked_by: tuple[str, str] | None = None


def record_statuses(
    context: Context, connection: sa.Connection, catalogue: str, record_id: str, *, exists: bool
) -> list[RecordStatus]:
    """One for each subscriber of the catalogue, by name."""
    subscribers = sorted(context.of_catalogue(catalogue), key=lambda s: s.name())
    names = [s.name() for s in subscribers]
    links = {row.subscriber: row for row in _rows(connection, Link, Link.subscriber.in_(names), _of(Link, record_id))}
    systems = {row.name: row for row in connection.execute(sa.select(System.__table__))}
    waiting = waiting_since(connection, catalogue, record_id)
    return [
        _standing(context, connection, s, record_id, links.get(s.name()), systems.get(s.system), waiting, exists)
        for s in subscribers
    ]


def _standing(
    context: Context,
    connection: sa.Connection,
    subscriber: Subscriber,
    record_id: str,
    link: Any,
    system: Any,
    captured: datetime | None,
    exists: bool,
) -> RecordStatus:
    name, title = subscriber.name(), subscriber.system.capitalize()

    def stands(word: str, *sentence: str | datetime, **more: Any) -> RecordStatus:
        conflicts = link.open_conflicts if link is not None else 0
        return RecordStatus(name, subscriber.system, word, list(sentence), link, conflicts=conflicts, **more)

    rule = _rule(context, connection, subscriber, record_id, link, exists)
    if link is not None and link.dead_at is not None:
        letter = _letter(connection, link)
        words = f": {letter.message}" if letter is not None else ""
        return stands(
            "dead letter", *_timed(gettext("not sent since {time}", time=_TIME), link.dead_at), words, letter=letter
        )
    if link is not None and link.owed_change > link.synced_change:
        if rule is not None:
            return stands("skipped", gettext("not sent: {why}", why=rule.words), rule=rule.id)
        return _owed(context, connection, link, system, title, stands)
    if captured is not None:
        words = gettext("changed here at {time}; the relay has not looked at it yet", time=_TIME)
        return stands("waiting", *_timed(words, captured))
    if link is None:
        return _never(connection, subscriber, record_id, rule, stands)
    if link.open_conflicts:
        words = ngettext(
            "1 field waits for a person to decide; the rest is up to date",
            "{n} fields wait for a person to decide; the rest is up to date",
            link.open_conflicts,
        )
        return stands("conflict", words)
    if link.unlinked_at is not None:
        words = (
            gettext("deleted in {system} at {time}", system=title, time=_TIME)
            if link.deleted_remotely
            else gettext("deleted or detached there by us at {time}", time=_TIME)
        )
        return stands("gone", *_timed(words, link.unlinked_at), gettext("; nothing is sent any more") if exists else "")
    if link.unsubscription_id is not None:
        if rule is not None:
            return stands("skipped", gettext("not sent: {why}", why=rule.words), rule=rule.id)
        words = gettext(
            "not sent: unsubscription #{number} covered it; that is over, and it flows with its next change",
            number=link.unsubscription_id,
        )
        there = _is_there(connection, link.unsubscription_id)
        return stands("skipped", words, rule=link.unsubscription_id if there else None)
    if link.synced_at is not None:
        since = _timed(gettext("up to date since {time}", time=_TIME), link.synced_at)
        if rule is not None:
            words = gettext("; what changes from now on is not sent: {why}", why=rule.words)
            return stands("up to date", *since, words, rule=rule.id)
        return stands("up to date", *since)
    return _never(connection, subscriber, record_id, rule, stands)


def _owed(context: Context, connection: sa.Connection, link: Any, system: Any, title: str, stands: Any) -> RecordStatus:
    now = context.clock()
    if system is not None and system.paused_at is not None:
        why = f" ({system.pause_reason})" if system.pause_reason else ""
        words = (
            gettext("waiting, {system} is paused by {who} since {time}", system=title, who=system.paused_by, time=_TIME)
            if system.paused_by
            else gettext("waiting, {system} is paused since {time}", system=title, time=_TIME)
        )
        return _stands(stands, "waiting", *_timed(words, system.paused_at), why)
    if system is not None and system.down_since is not None:
        # While a system is down only probes are made, and none of them counts against its records.
        saved = ngettext(", {n} attempt saved", ", {n} attempts saved", system.failures) if system.failures else ""
        why = f": {system.down_reason}" if system.down_reason else ""
        words = gettext("waiting, {system} is down since {time}", system=title, time=_TIME)
        return _stands(stands, "waiting", *_timed(words, system.down_since), f"{saved}{why}")
    if link.blocked_by is not None:
        parent = connection.execute(
            sa.select(Link.subscriber, Link.record_id).where(Link.id == link.blocked_by)
        ).one_or_none()
        if parent is not None:
            catalogue = parent.subscriber.partition(".")[2]
            return _stands(
                stands,
                "waiting",
                gettext(
                    "waiting for {catalogue} {record_id}, which has to be in {system} first",
                    catalogue=catalogue,
                    record_id=parent.record_id,
                    system=title,
                ),
                blocked_by=(catalogue, parent.record_id),
            )
    if link.lease_until is not None and link.lease_until > now:
        return _stands(stands, "waiting", gettext("being sent at this moment"))
    if link.attempts and link.retry_at is not None:
        words = gettext(
            "attempt {number} of {most} failed, next at {time}",
            number=link.attempts,
            most=context.policy.max_attempts,
            time=_TIME,
        )
        last = _last_words(connection, link)
        return _stands(stands, "trying again", *_timed(words, link.retry_at), f": {last}" if last else "")
    if link.owed_since is None:
        return _stands(stands, "waiting", gettext("owed; it waits for its turn"))
    words = gettext("owed since {time}; it waits for its turn", time=_TIME)
    return _stands(stands, "waiting", *_timed(words, link.owed_since))


def _stands(stands: Any, word: str, *sentence: str | datetime, **more: Any) -> RecordStatus:
    standing: RecordStatus = stands(word, *sentence, **more)
    return standing


def _timed(words: str, time: datetime) -> list[str | datetime]:
    """A text with the time put where `_TIME` stands in it."""
    before, _, after = words.partition(_TIME)
    return [before, time, after]


def _never(
    connection: sa.Connection, subscriber: Subscriber, record_id: str, rule: Rule | None, stands: Any
) -> RecordStatus:
    """Nothing was ever sent: the newest skip tells why, if anything does."""
    if rule is not None:
        return _stands(stands, "skipped", gettext("not sent: {why}", why=rule.words), rule=rule.id)
    skip = newest_delivery(connection, record_id, subscriber.name(), "skipped")
    if skip is not None and skip.reason:
        return _stands(stands, "skipped", gettext("not sent: {why}", why=skip.reason))
    return _stands(stands, "never sent", gettext("nothing was owed to it yet: it is sent with its next change"))


def _rule(
    context: Context, connection: sa.Connection, subscriber: Subscriber, record_id: str, link: Any, exists: bool
) -> Rule | None:
    """The unsubscription that stops what would be sent next."""
    linked = link is not None and link.external_id is not None and link.unlinked_at is None
    operation = ("update" if linked else "create") if exists else "delete"
    rules = in_force(connection, (subscriber.system, subscriber.name()), [record_id], context.clock())
    return next((rule for rule in rules if rule.covers(operation, record_id)), None)


def _letter(connection: sa.Connection, link: Any) -> Any:
    is_open = (DeadLetter.link_id == link.id, DeadLetter.closed_at.is_(None))
    return connection.execute(sa.select(DeadLetter.__table__).where(*is_open)).one_or_none()


def _is_there(connection: sa.Connection, rule: int) -> bool:
    return connection.execute(sa.select(Unsubscription.id).where(Unsubscription.id == rule)).first() is not None


def _last_words(connection: sa.Connection, link: Any) -> str | None:
    failed = newest_delivery(connection, link.record_id, link.subscriber, "failed")
    return failed.reason if failed is not None else None
