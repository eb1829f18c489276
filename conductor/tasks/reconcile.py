"""Reconcile: compare the linked records of a subscriber with the system, and report the differences per field.

Such drift comes from changes that bypassed the hub: a backup restored on either side, events that were lost.
With `repair` the system's values are merged as if it had reported them, and ours become pending.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
import sqlalchemy as sa

from conductor.internal.absence import last_captured
from conductor.inward.incoming import Postponed
from conductor.links import leases, state
from conductor.links.leases import LinkLeased
from conductor.links.relations import our_side
from conductor.links.state import Via
from conductor.systems.caller import SystemUnavailable
from conductor.tasks.runner import Step, TaskKind, TaskRow, counted
from conductor.tasks.throttle import PAUSE_SECONDS
from i18n import gettext, gettext_noop
from models.catalogues import Record
from models.ledger import Cursor, Link
from subscribers.base import Subscriber, normalize_incoming
from subscribers.calls import call_safely
from subscribers.errors import SyncError
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.values import Flat, same
from subscribers.records import External

logger = logging.getLogger(__name__)

#: Links compared in one step.
PAGE = 200

#: Seconds after which a step ends early.
STEP_SECONDS = 10.0

#: Differing values kept as examples; of the others only the count is.
EXAMPLES = 50

#: Used instead of a field's name if the whole record is missing on one side.
MISSING_THERE, MISSING_HERE = "(missing there)", "(deleted here)"
#: The same for a record that was deleted in the system and lives there again.
RESTORED_THERE = "(restored there)"
#: The same for a record that the system returns under another id, such as one that was merged.
OTHER_ID = "(other id there)"

#: The same for a record that the database does not show although no deletion was captured.
ABSENT_HERE = "(not visible here)"


@dataclass
class Drift:
    """The differences of one link: field -> (ours, theirs)."""

    record_id: str
    external_id: str
    fields: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    #: Only our side changed, so the system is not called for the repair.
    ours_only: bool = False


class Reconcile(TaskKind):
    """The argument is `{"repair": bool}`.

    The task's position keeps the report: `fields` (field -> number of records), `examples`
    (`[record id, external id, field, ours, theirs]`), `unread` (records that could not be read).
    """

    kind = "reconcile"
    succeeded = gettext_noop("agree")
    failed = gettext_noop("differ")

    def start(self, by: str, *, subscriber: str, repair: bool = False, afresh: bool = False) -> int:
        """Compare a subscriber's linked records with its system; return the task's id.

        An unfinished one with the same argument continues instead, or begins again with `afresh`.

        Raises:
          ValueError: there is no such subscriber.
        """
        return self.tasks.begin_or_resume(
            self.kind, by, subscriber=subscriber, argument={"repair": repair}, afresh=afresh
        )

    def step(self, task: TaskRow) -> Step:
        """Compare the next links."""
        return counted(self._step(task), task, lambda: self._count(self.subscriber_of(task)))

    def _count(self, subscriber: Subscriber) -> int:
        with self.context.database.read() as connection:
            return int(connection.execute(sa.select(sa.func.count(Link.id)).where(*_compared(subscriber))).scalar_one())

    def _step(self, task: TaskRow) -> Step:
        subscriber = self.subscriber_of(task)
        position = task.position or {"after": 0, "fields": {}, "examples": [], "unread": 0}
        with self.context.database.read() as connection:
            page = sa.select(Link.__table__).where(*_compared(subscriber), Link.id > position["after"])
            links = connection.execute(page.order_by(Link.id).limit(PAGE)).all()
        if not links:
            message = _words(position, task.failed, repaired=task.argument["repair"])
            name, began_at = subscriber.name(), task.created_at
            return Step(
                task.done,
                task.succeeded,
                task.failed,
                position,
                finished=True,
                message=message,
                effect=lambda connection: _close_gap(connection, name, began_at),
            )
        report = _Report(position)
        began = time.monotonic()
        looked = failed = 0
        waits: SystemUnavailable | None = None
        size = subscriber.bulk_size if subscriber.reads_many else 1
        try:
            while looked < len(links) and time.monotonic() - began < STEP_SECONDS:
                for link, drift in self._compare(subscriber, links[looked : looked + size]):
                    if drift and drift.fields and task.argument["repair"]:
                        self._repair(subscriber, link, drift)
                    failed += report.add(link, drift)
                    looked += 1
        except SystemUnavailable as error:
            waits = error
        done, failed = task.done + looked, task.failed + failed
        message = str(waits) if waits else _words(report.position(), failed, repaired=task.argument["repair"])
        pause = max(waits.after, PAUSE_SECONDS) if waits else 0.0
        return Step(done, done - failed, failed, report.position(), message=message, pause=pause)

    def _compare(self, subscriber: Subscriber, links: Sequence[Any]) -> list[tuple[Any, Drift | None]]:
        """Return each link with its differences, or None if its record could not be read."""
        ids = [link.external_id for link in links]
        try:
            found = self.services.caller.call(subscriber, lambda: _fetch(subscriber, ids))
        except SyncError as error:
            found = [error] * len(ids)
        with self.context.database.read() as connection:
            mapper = self.services.mappings.current(connection, subscriber.name())[0]
            # Read the links again: a delivery may have run during the call.
            again = sa.select(Link.__table__).where(Link.id.in_([link.id for link in links]))
            fresh = {link.id: link for link in connection.execute(again)}
            ids = [link.record_id for link in links]
            records, unreadable = subscriber.records.read_each(connection, ids)
            absent = [record_id for record_id in ids if record_id not in records]
            captured = last_captured(connection, subscriber.records, absent)
            deleted = {record_id for record_id, last in captured.items() if last == "deleted"}
            related = self.services.relations.load(connection, subscriber, mapper, records.values())
            flats = {key: our_side(subscriber, mapper, one, related)[0] for key, one in records.items()}
        drifts: list[tuple[Any, Drift | None]] = []
        now = self.context.clock()
        for before, external in zip(links, found, strict=True):
            link = fresh.get(before.id)
            drift: Drift | None = Drift(before.record_id, before.external_id)
            if (isinstance(external, SyncError) and not external.unlinks) or before.record_id in unreadable:
                drift = None
            elif link is not None and not _moves(before, link, now) and not _is_left(subscriber, link, records):
                drift = _drift(mapper, link, external, records.get(link.record_id), flats.get(link.record_id, {}))
                if MISSING_HERE in drift.fields and link.record_id not in deleted:
                    drift.fields = {ABSENT_HERE: drift.fields[MISSING_HERE]}
            drifts.append((before, drift))
        return drifts

    def _repair(self, subscriber: Subscriber, link: Any, drift: Drift) -> None:
        """Merge the system's values as if it had just reported them; make ours pending."""
        if not drift.ours_only:
            try:
                refetched = self.services.inbox.refetch(subscriber, link.external_id)
            except LinkLeased:
                return  # the delivery that runs repairs it
            except sa.exc.OperationalError:
                raise
            except Exception as error:  # of this record; the others continue
                logger.warning("%s %s cannot be repaired: %r", subscriber.name(), link.external_id, error)
                return
            if isinstance(refetched, Postponed):
                raise SystemUnavailable(refetched.reason, refetched.after_seconds)
        still = (Link.id == link.id, Link.external_id.is_not(None), Link.unlinked_at.is_(None))
        self.context.database.run_in_transaction(state.owe, still, self.context.clock(), Via.SWEEP)

    @staticmethod
    def label(task: TaskRow) -> str:
        if task.argument.get("repair"):
            return gettext("Repair the differences of {subscriber}", subscriber=task.subscriber)
        return gettext("Reconcile {subscriber}", subscriber=task.subscriber)


class _Report:
    """The differences found so far, as the task's position keeps them."""

    def __init__(self, position: dict[str, Any]) -> None:
        self.after: int = position["after"]
        self.fields = Counter(position["fields"])
        self.examples: list[list[Any]] = list(position["examples"])
        self.unread: int = position["unread"]

    def add(self, link: Any, drift: Drift | None) -> int:
        """Add a link's differences; return 1 if there are any."""
        self.after = link.id
        if drift is None:
            self.unread += 1
            return 0
        for path, (ours, theirs) in drift.fields.items():
            self.fields[path] += 1
            if len(self.examples) < EXAMPLES:
                self.examples.append([drift.record_id, drift.external_id, path, _kept(ours), _kept(theirs)])
        return int(bool(drift.fields))

    def position(self) -> dict[str, Any]:
        found = {"fields": dict(self.fields), "examples": self.examples, "unread": self.unread}
        return {"after": self.after, **found}


def _kept(value: Any) -> Any:
    """Return a value that the database can store: systems do send numbers of any length."""
    try:
        orjson.dumps(value, default=str)
    except TypeError:
        return str(value)
    return value


def _close_gap(connection: sa.Connection, name: str, started_at: datetime) -> None:
    """Forget what a poll could not read before the reconcile was started: the reconcile has read it."""
    known = (Cursor.subscriber == name, Cursor.gap_since <= started_at)
    connection.execute(sa.update(Cursor).where(*known).values(gap=None, gap_since=None))


def _compared(subscriber: Subscriber) -> tuple[Any, ...]:
    """The conditions for the links of a reconcile: also those of records that were deleted there and remain here."""
    is_linked: Any = Link.unlinked_at.is_(None)
    if subscriber.on_gone in ("unlink", "archive"):
        is_linked = sa.or_(is_linked, Link.deleted_remotely)
    return (Link.subscriber == subscriber.name(), Link.external_id.is_not(None), is_linked)


def _fetch(subscriber: Subscriber, ids: list[str]) -> list[External | SyncError]:
    """Return one outcome for each id; raise the error of a call that failed for all of them."""
    found = [call_safely(subscriber.fetch, ids[0])] if len(ids) == 1 else subscriber.bulk_fetch(ids)
    errors = [one for one in found if isinstance(one, SyncError)]
    if len(errors) == len(found) and all(one.may_be_outage for one in errors):
        raise errors[0]
    for one in errors:
        if one.pauses_system:
            raise one
    return [one if isinstance(one, SyncError) else call_safely(_whole, subscriber, one) for one in found]


def _whole(subscriber: Subscriber, external: External) -> External:
    return normalize_incoming(subscriber, external, complete=True)


def _moves(before: Any, link: Any, now: datetime) -> bool:
    """Return whether a delivery runs, is pending, or ran during the call: a difference is then no drift."""
    same_link = before.owed_change == link.owed_change and before.external_id == link.external_id
    return not same_link or link.owed_change > link.synced_change or leases.is_held(link, now)


def _is_left(subscriber: Subscriber, link: Any, records: Mapping[str, Record]) -> bool:
    """Return whether it is deleted in the database and kept in the system, as `on_delete` asks.

    An archived one has no base values.
    """
    stays = subscriber.on_delete == "ignore" or (subscriber.on_delete == "archive" and link.base is None)
    return stays and link.record_id not in records


def _drift(mapper: Mapper, link: Any, external: External | SyncError, record: Record | None, ours: Flat) -> Drift:
    drift = Drift(link.record_id, link.external_id)
    if link.unlinked_at is not None:
        if not isinstance(external, SyncError) and not external.deleted:
            drift.fields[RESTORED_THERE] = (None, link.external_id)
        return drift
    if isinstance(external, SyncError):
        drift.fields[MISSING_THERE] = (link.record_id, None)
        return drift
    if external.id != link.external_id:
        drift.fields[OTHER_ID] = (link.external_id, external.id)
        return drift
    if record is None:
        drift.fields[MISSING_HERE] = (None, link.external_id)
        drift.ours_only = True
        return drift
    base, remote_values = link.base or {}, link.remote_values or {}
    theirs = mapper.flatten(external.data)
    drift.ours_only = True
    for path, value in theirs.items():
        known = remote_values.get(path, base.get(path))
        is_there = path in base and same(value, known)
        is_here = path not in ours or (path in base and same(ours[path], base[path]))
        if (is_there and is_here) or (path in ours and same(value, ours[path])):
            continue
        drift.fields[path] = (ours.get(path), value)
        drift.ours_only = drift.ours_only and is_there
    return drift


def _words(position: dict[str, Any], failed: int, *, repaired: bool) -> str:
    unread = f"; {position['unread']} could not be read" if position["unread"] else ""
    if not failed:
        return "no drift" + unread
    fields = ", ".join(f"{path} {count}" for path, count in sorted(position["fields"].items()))
    done = ", being repaired" if repaired else ""
    return f"{failed} {'record differs' if failed == 1 else 'records differ'}{done}: {fields}{unread}"
