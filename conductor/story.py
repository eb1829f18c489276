"""One record over all systems: where it stands with each, in a sentence, and all that happened to it.

Everything is read from the ledger, by the record's id: nothing here scans, however long the history is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.history import newest_delivery, waiting_since
from conductor.hub import Hub
from conductor.unsubscriptions import Rule, in_force
from i18n import plural, say
from models.indexes import unindexed
from models.ledger import Change, Conflict, DeadLetter, Delivery, Link, System, Unsubscription
from subscribers.base import Subscriber
from subscribers.mapping.values import same

#: Lines of a timeline on one page, and how many deliveries before it are read for what was there before.
PAGE = 60
_BEFORE = 40

#: Stands in a sentence for a time, which is shown in the reader's own zone.
_TIME = "\N{WATCH}"

#: What happened without anything to tell.
_NOISE = {"echo", "unchanged"}


@dataclass(frozen=True)
class Standing:
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
    waits_for: tuple[str, str] | None = None


@dataclass(frozen=True)
class Difference:
    """One external field of a payload, beside what was there before as far as the history tells."""

    path: str
    value: Any
    before: Any = None
    #: Whether a value before it is known.
    known: bool = False

    @property
    def changed(self) -> bool:
        """Whether it is another value than before."""
        return not self.known or not same(self.value, self.before)


@dataclass
class Moment:
    """One line of a timeline. `kind` is change, out, in, conflict, settled or closed; `row` the ledger's row."""

    at: datetime
    kind: str
    row: Any
    fields: list[Difference] = field(default_factory=list)
    #: The same once more, newest first: attempts that failed alike.
    again: list[Moment] = field(default_factory=list)

    @property
    def is_noise(self) -> bool:
        """Whether it tells nothing new: an echo, a repeat, a delivery with nothing to send."""
        return self.kind in ("in", "out") and (
            self.row.outcome in _NOISE or (self.kind == "in" and self.row.outcome == "skipped")
        )


@dataclass(frozen=True)
class Timeline:
    """A page of moments, newest first; noise that follows on noise is one list. `older` begins the next page."""

    entries: list[Moment | list[Moment]]
    older: str | None = None


# --- where it stands ------------------------------------------------------------------------------------


def standings(hub: Hub, connection: sa.Connection, catalogue: str, record_id: str, *, exists: bool) -> list[Standing]:
    """One for each subscriber of the catalogue, by name."""
    subscribers = sorted(hub.of_catalogue(catalogue), key=lambda s: s.name())
    names = [s.name() for s in subscribers]
    links = {row.subscriber: row for row in _rows(connection, Link, Link.subscriber.in_(names), _of(Link, record_id))}
    systems = {row.name: row for row in connection.execute(sa.select(System.__table__))}
    waiting = waiting_since(connection, catalogue, record_id)
    return [
        _standing(hub, connection, s, record_id, links.get(s.name()), systems.get(s.system), waiting, exists)
        for s in subscribers
    ]


def _standing(
    hub: Hub,
    connection: sa.Connection,
    subscriber: Subscriber,
    record_id: str,
    link: Any,
    system: Any,
    captured: datetime | None,
    exists: bool,
) -> Standing:
    name, title = subscriber.name(), subscriber.system.capitalize()

    def stands(word: str, *sentence: str | datetime, **more: Any) -> Standing:
        conflicts = link.open_conflicts if link is not None else 0
        return Standing(name, subscriber.system, word, list(sentence), link, conflicts=conflicts, **more)

    rule = _rule(hub, connection, subscriber, record_id, link, exists)
    if link is not None and link.dead_at is not None:
        letter = _letter(connection, link)
        words = f": {letter.message}" if letter is not None else ""
        return stands(
            "dead letter", *_timed(say("not sent since {time}", time=_TIME), link.dead_at), words, letter=letter
        )
    if link is not None and link.owed_change > link.synced_change:
        if rule is not None:
            return stands("skipped", say("not sent: {why}", why=rule.words), rule=rule.id)
        return _owed(hub, connection, link, system, title, stands)
    if captured is not None:
        words = say("changed here at {time}; the relay has not looked at it yet", time=_TIME)
        return stands("waiting", *_timed(words, captured))
    if link is None:
        return _never(connection, subscriber, record_id, rule, stands)
    if link.open_conflicts:
        words = plural(
            "1 field waits for a person to decide; the rest is up to date",
            "{n} fields wait for a person to decide; the rest is up to date",
            link.open_conflicts,
        )
        return stands("conflict", words)
    if link.gone_at is not None:
        words = (
            say("deleted in {system} at {time}", system=title, time=_TIME)
            if link.gone_there
            else say("deleted or detached there by us at {time}", time=_TIME)
        )
        return stands("gone", *_timed(words, link.gone_at), say("; nothing is sent any more") if exists else "")
    if link.unsubscription_id is not None:
        if rule is not None:
            return stands("skipped", say("not sent: {why}", why=rule.words), rule=rule.id)
        words = say(
            "not sent: unsubscription #{number} covered it; that is over, and it flows with its next change",
            number=link.unsubscription_id,
        )
        there = _is_there(connection, link.unsubscription_id)
        return stands("skipped", words, rule=link.unsubscription_id if there else None)
    if link.synced_at is not None:
        since = _timed(say("up to date since {time}", time=_TIME), link.synced_at)
        if rule is not None:
            words = say("; what changes from now on is not sent: {why}", why=rule.words)
            return stands("up to date", *since, words, rule=rule.id)
        return stands("up to date", *since)
    return _never(connection, subscriber, record_id, rule, stands)


def _owed(hub: Hub, connection: sa.Connection, link: Any, system: Any, title: str, stands: Any) -> Standing:
    now = hub.clock()
    if system is not None and system.paused_at is not None:
        why = f" ({system.pause_reason})" if system.pause_reason else ""
        words = (
            say("waiting, {system} is paused by {who} since {time}", system=title, who=system.paused_by, time=_TIME)
            if system.paused_by
            else say("waiting, {system} is paused since {time}", system=title, time=_TIME)
        )
        return _stands(stands, "waiting", *_timed(words, system.paused_at), why)
    if system is not None and system.down_since is not None:
        # While a system is down only probes are made, and none of them counts against its records.
        saved = plural(", {n} attempt saved", ", {n} attempts saved", system.failures) if system.failures else ""
        why = f": {system.down_reason}" if system.down_reason else ""
        words = say("waiting, {system} is down since {time}", system=title, time=_TIME)
        return _stands(stands, "waiting", *_timed(words, system.down_since), f"{saved}{why}")
    if link.waits_for is not None:
        parent = connection.execute(
            sa.select(Link.subscriber, Link.record_id).where(Link.id == link.waits_for)
        ).one_or_none()
        if parent is not None:
            catalogue = parent.subscriber.partition(".")[2]
            return _stands(
                stands,
                "waiting",
                say(
                    "waiting for {catalogue} {record_id}, which has to be in {system} first",
                    catalogue=catalogue,
                    record_id=parent.record_id,
                    system=title,
                ),
                waits_for=(catalogue, parent.record_id),
            )
    if link.lease_until is not None and link.lease_until > now:
        return _stands(stands, "waiting", say("being sent at this moment"))
    if link.attempts and link.retry_at is not None:
        words = say(
            "attempt {number} of {most} failed, next at {time}",
            number=link.attempts,
            most=hub.policy.max_attempts,
            time=_TIME,
        )
        last = _last_words(connection, link)
        return _stands(stands, "trying again", *_timed(words, link.retry_at), f": {last}" if last else "")
    if link.owed_since is None:
        return _stands(stands, "waiting", say("owed; it waits for its turn"))
    words = say("owed since {time}; it waits for its turn", time=_TIME)
    return _stands(stands, "waiting", *_timed(words, link.owed_since))


def _stands(stands: Any, word: str, *sentence: str | datetime, **more: Any) -> Standing:
    standing: Standing = stands(word, *sentence, **more)
    return standing


def _timed(words: str, time: datetime) -> list[str | datetime]:
    """A text with the time put where `_TIME` stands in it."""
    before, _, after = words.partition(_TIME)
    return [before, time, after]


def _never(
    connection: sa.Connection, subscriber: Subscriber, record_id: str, rule: Rule | None, stands: Any
) -> Standing:
    """Nothing was ever sent: the newest skip tells why, if anything does."""
    if rule is not None:
        return _stands(stands, "skipped", say("not sent: {why}", why=rule.words), rule=rule.id)
    skip = newest_delivery(connection, record_id, subscriber.name(), "skipped")
    if skip is not None and skip.reason:
        return _stands(stands, "skipped", say("not sent: {why}", why=skip.reason))
    return _stands(stands, "never sent", say("nothing was owed to it yet: it is sent with its next change"))


def _rule(
    hub: Hub, connection: sa.Connection, subscriber: Subscriber, record_id: str, link: Any, exists: bool
) -> Rule | None:
    """The unsubscription that stops what would be sent next."""
    linked = link is not None and link.external_id is not None and link.gone_at is None
    operation = ("update" if linked else "create") if exists else "delete"
    rules = in_force(connection, (subscriber.system, subscriber.name()), [record_id], hub.clock())
    return next((rule for rule in rules if rule.covers(operation, record_id)), None)


def _letter(connection: sa.Connection, link: Any) -> Any:
    is_open = (DeadLetter.link_id == link.id, DeadLetter.closed_at.is_(None))
    return connection.execute(sa.select(DeadLetter.__table__).where(*is_open)).one_or_none()


def _is_there(connection: sa.Connection, rule: int) -> bool:
    return connection.execute(sa.select(Unsubscription.id).where(Unsubscription.id == rule)).first() is not None


def _last_words(connection: sa.Connection, link: Any) -> str | None:
    failed = newest_delivery(connection, link.record_id, link.subscriber, "failed")
    return failed.reason if failed is not None else None


# --- what happened --------------------------------------------------------------------------------------


def timeline(
    connection: sa.Connection, catalogue: str, names: Sequence[str], record_id: str, before: str | None = None
) -> Timeline:
    """What happened to a record, newest first. `before` is the `older` of the page before this one."""
    upto_change, upto_delivery = _position(before)
    changes = _rows(
        connection, Change, Change.catalogue == catalogue, _of(Change, record_id), upto=upto_change, limit=PAGE + 1
    )
    deliveries = _rows(
        connection,
        Delivery,
        _of(Delivery, record_id),
        unindexed(Delivery.subscriber.in_(names)),  # of one subscriber SQLite would read all there is
        upto=upto_delivery,
        limit=PAGE + 1 + _BEFORE,
    )
    differences = _differences(deliveries)
    moments = [Moment(row.at, "change", row) for row in changes]
    moments += [Moment(row.at, row.direction, row, differences.get(row.id, [])) for row in deliveries[: PAGE + 1]]
    # A change comes before what it led to, also in the same instant; within a kind the id tells.
    moments.sort(key=lambda moment: (moment.at, moment.kind != "change", moment.row.id), reverse=True)
    shown, older = moments[:PAGE], None
    if len(moments) > PAGE:
        older = "-".join(
            str(_next(shown, kinds, upto))
            for kinds, upto in ((("change",), upto_change), (("in", "out"), upto_delivery))
        )
    shown += _decisions(connection, names, record_id, shown, first=before is None, last=older is None)
    shown.sort(key=lambda moment: (moment.at, moment.kind != "change", moment.row.id), reverse=True)
    return Timeline(_folded(shown), older)


def _next(shown: list[Moment], kinds: tuple[str, ...], upto: int | None) -> int:
    """Where the rows of a kind go on: below the last one shown; 0 stands for the beginning of an untouched kind."""
    ids = [moment.row.id for moment in shown if moment.kind in kinds]
    return min(ids) if ids else upto or 0


def _position(before: str | None) -> tuple[int | None, int | None]:
    parts = (before or "").split("-")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
        return None, None
    change, delivery = (int(part) or None for part in parts)
    return change, delivery


def _decisions(
    connection: sa.Connection, names: Sequence[str], record_id: str, shown: list[Moment], *, first: bool, last: bool
) -> list[Moment]:
    """Conflicts and closed dead letters, as far as they belong to this page of the timeline."""
    links = sa.select(Link.id).where(Link.record_id == record_id, Link.subscriber.in_(names))
    found: list[Moment] = []
    for row in _rows(connection, Conflict, Conflict.link_id.in_(list(connection.scalars(links))), limit=PAGE):
        found.append(Moment(row.at, "conflict", row))
        if row.settled_at is not None:
            found.append(Moment(row.settled_at, "settled", row))
    letters = (_of(DeadLetter, record_id), DeadLetter.subscriber.in_(names), DeadLetter.closed_at.is_not(None))
    found += [Moment(row.closed_at, "closed", row) for row in _rows(connection, DeadLetter, *letters, limit=PAGE)]
    newest = None if first or not shown else shown[0].at
    oldest = None if last or not shown else shown[-1].at
    return [m for m in found if (newest is None or m.at <= newest) and (oldest is None or m.at > oldest)]


def _differences(deliveries: Sequence[Any]) -> dict[int, list[Difference]]:
    """Per delivery its payload's fields, each beside what that system was known to hold before."""
    known: dict[str, dict[str, Any]] = {}
    found: dict[int, list[Difference]] = {}
    for row in reversed(deliveries):
        there = known.setdefault(row.subscriber, {})
        payload = row.payload or {}
        found[row.id] = [Difference(path, value, there.get(path), path in there) for path, value in payload.items()]
        if row.outcome in ("delivered", "applied", "kept", "echo"):
            there.update(payload)
    return found


def _folded(moments: Iterable[Moment]) -> list[Moment | list[Moment]]:
    entries: list[Moment | list[Moment]] = []
    for moment in moments:
        last = entries[-1] if entries else None
        if moment.is_noise:
            if isinstance(last, list):
                last.append(moment)
            else:
                entries.append([moment])
        elif isinstance(last, Moment) and _is_alike(last, moment):
            last.again.append(moment)
        else:
            entries.append(moment)
    return entries


def _is_alike(one: Moment, other: Moment) -> bool:
    """Attempts that failed the same way."""
    if one.kind != "out" or other.kind != "out" or {one.row.outcome, other.row.outcome} != {"failed"}:
        return False
    return bool(one.row.subscriber == other.row.subscriber and one.row.reason == other.row.reason)


def _of(table: Any, record_id: str) -> Any:
    return table.record_id == record_id


def _rows(
    connection: sa.Connection, table: Any, *conditions: Any, upto: int | None = None, limit: int | None = None
) -> list[Any]:
    statement = sa.select(table.__table__).where(*conditions).order_by(table.id.desc()).limit(limit)
    if upto is not None:
        statement = statement.where(table.id < upto)
    return list(connection.execute(statement))
