"""Reconcile: walks the links of a subscriber, looks at what the system holds, and says what drifted apart, per field.

Only the hub's own deliveries and merges move both sides together; what was changed past them (a
restored backup on either side, events that were lost for good) shows here. With `repair` what
drifted takes the usual ways: theirs is merged in as if it had been reported, ours is owed to them.
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

from conductor.context import Context
from conductor.inward.inbox import InboxProcessor
from conductor.inward.incoming import HeldByDeleteGuard, Postponed
from conductor.links import leases, state
from conductor.links.leases import LinkLeased
from conductor.links.relations import Relations, our_side
from conductor.links.state import Via
from conductor.mappings.store import Mappings
from conductor.systems.caller import SystemCaller, SystemUnavailable
from conductor.tasks.runner import Step, TaskRunner, counted
from models.catalogues import Record
from models.ledger import Link
from subscribers.base import Subscriber, normalize_incoming
from subscribers.calls import call_safely
from subscribers.errors import SyncError, SystemDown
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.values import Flat, same
from subscribers.records import External

logger = logging.getLogger(__name__)

#: The kind of these tasks.
RECONCILE = "reconcile"

#: Links looked at in one step, and the seconds after which a step ends all the same.
PAGE = 200
STEP_SECONDS = 10.0

#: Differing values that are kept to be shown; of more only the count is.
EXAMPLES = 50

#: What is said where a whole record is missing on one side, in place of a field's name.
MISSING_THERE, MISSING_HERE = "(missing there)", "(deleted here)"

_PAUSE = 1.0


@dataclass
class Drift:
    """What differs for one link: field -> (ours, theirs)."""

    record_id: str
    external_id: str
    fields: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    #: Ours is what has to move: nobody is to be asked there.
    ours_only: bool = False


class Reconcile:
    """Does the steps of `reconcile` tasks. The argument is `{"repair": bool}`.

    The task's position keeps the report: `fields` (field -> how many records), `examples`
    (`[record id, external id, field, ours, theirs]`), `unread` (records the system would not show).
    """

    def __init__(
        self,
        context: Context,
        mappings: Mappings,
        relations: Relations,
        inbox: InboxProcessor,
        asking: SystemCaller,
        tasks: TaskRunner,
    ) -> None:
        self.context = context
        self.mappings = mappings
        self.relations = relations
        self.inbox = inbox
        self.caller = asking
        self.tasks = tasks
        tasks.register(RECONCILE, self.step)

    def start(self, name: str, by: str, *, repair: bool = False) -> int:
        """Begin to compare; returns the task's id. One that was stopped before its end goes on instead.

        Raises:
          ValueError: there is no such subscriber.
        """
        argument = {"repair": repair}
        for task in self.tasks.list(RECONCILE):
            if task.subscriber == name and task.argument == argument and task.state != "done":
                if task.state in ("stopped", "failed"):
                    self.tasks.resume(task.id, by)
                return int(task.id)
        return self.tasks.start(RECONCILE, by, subscriber=name, argument=argument)

    def step(self, task: Any) -> Step:
        """Compare the next links."""
        return counted(self._step(task), task, lambda: self._count(task.subscriber))

    def _count(self, name: str) -> int:
        with self.context.database.read() as connection:
            return int(connection.execute(sa.select(sa.func.count(Link.id)).where(*_linked(name))).scalar_one())

    def _step(self, task: Any) -> Step:
        subscriber = self.context.subscribers.get(task.subscriber)
        if subscriber is None:
            raise ValueError(f"{task.subscriber} is not configured any more")
        position = task.position or {"after": 0, "fields": {}, "examples": [], "unread": 0}
        with self.context.database.read() as connection:
            page = sa.select(Link.__table__).where(*_linked(subscriber.name()), Link.id > position["after"])
            links = connection.execute(page.order_by(Link.id).limit(PAGE)).all()
        if not links:
            message = _words(position, task.failed, repaired=task.argument["repair"])
            return Step(task.done, task.succeeded, task.failed, position, finished=True, message=message)
        report = _Report(position)
        began = time.monotonic()
        looked = failed = 0
        waits: SystemUnavailable | None = None
        size = subscriber.bulk_size if type(subscriber).bulk_fetch is not Subscriber.bulk_fetch else 1
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
        pause = max(waits.after, _PAUSE) if waits else 0.0
        return Step(done, done - failed, failed, report.position(), message=message, pause=pause)

    def _compare(self, subscriber: Subscriber, links: Sequence[Any]) -> list[tuple[Any, Drift | None]]:
        """Look at these links; what drifted, and None where the system would not show the record."""
        ids = [link.external_id for link in links]
        found = self.caller.call(subscriber.system, lambda: _fetch(subscriber, ids))
        with self.context.database.read() as connection:
            mapper = self.mappings.current(connection, subscriber.name())[0]
            # The links again, since a delivery may have been under way while we asked.
            again = sa.select(Link.__table__).where(Link.id.in_([link.id for link in links]))
            fresh = {link.id: link for link in connection.execute(again)}
            records = subscriber.records.read(connection, [link.record_id for link in links])
            related = self.relations.load(connection, subscriber, mapper, records.values())
            flats = {key: our_side(subscriber, mapper, one, related)[0] for key, one in records.items()}
        drifts: list[tuple[Any, Drift | None]] = []
        now = self.context.clock()
        for before, external in zip(links, found, strict=True):
            link = fresh.get(before.id)
            drift: Drift | None = Drift(before.record_id, before.external_id)
            if isinstance(external, SyncError) and not external.unlinks:
                drift = None
            elif link is not None and not _moves(before, link, now) and not _is_left(subscriber, link, records):
                drift = _drift(mapper, link, external, records.get(link.record_id), flats.get(link.record_id, {}))
            drifts.append((before, drift))
        return drifts

    def _repair(self, subscriber: Subscriber, link: Any, drift: Drift) -> None:
        """Theirs by the merge, as if it had been reported just now; ours by owing it."""
        if not drift.ours_only:
            try:
                refetched = self.inbox.refetch(subscriber, link.external_id)
            except HeldByDeleteGuard:
                self.context.database.run_in_transaction(self.inbox.guard.pause, subscriber.system, "from")
                raise SystemUnavailable("held by the mass-delete guard", self.context.policy.stale) from None
            except LinkLeased:
                return  # it is being delivered, which brings it together as well
            except SystemDown as error:
                raise SystemUnavailable(str(error), error.after or self.context.policy.probe_min) from None
            except sa.exc.OperationalError:
                raise
            except Exception as error:  # this one's: the others go on
                logger.warning("%s %s cannot be repaired: %r", subscriber.name(), link.external_id, error)
                return
            if isinstance(refetched, Postponed):
                raise SystemUnavailable(refetched.reason, refetched.after_seconds)
        still = (Link.id == link.id, Link.external_id.is_not(None), Link.unlinked_at.is_(None))
        self.context.database.run_in_transaction(state.owe, still, self.context.clock(), Via.SWEEP)


class _Report:
    """What was found so far, as the task's position keeps it."""

    def __init__(self, position: dict[str, Any]) -> None:
        self.after: int = position["after"]
        self.fields = Counter(position["fields"])
        self.examples: list[list[Any]] = list(position["examples"])
        self.unread: int = position["unread"]

    def add(self, link: Any, drift: Drift | None) -> int:
        """Note what was found for a link; 1 if it has drifted."""
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
    """A value as the database keeps it: systems do send numbers of any length."""
    try:
        orjson.dumps(value, default=str)
    except TypeError:
        return str(value)
    return value


def _linked(name: str) -> tuple[Any, ...]:
    return (Link.subscriber == name, Link.external_id.is_not(None), Link.unlinked_at.is_(None))


def _fetch(subscriber: Subscriber, ids: list[str]) -> list[External | SyncError]:
    """One outcome an id; SystemDown is raised."""
    found = [call_safely(subscriber.fetch, ids[0])] if len(ids) == 1 else subscriber.bulk_fetch(ids)
    for one in found:
        if isinstance(one, SyncError) and one.pauses_system:
            raise one
    return [one if isinstance(one, SyncError) else call_safely(normalize_incoming, subscriber, one) for one in found]


def _moves(before: Any, link: Any, now: datetime) -> bool:
    """Something is on its way, or was while we asked: that is no drift."""
    same_link = before.owed_change == link.owed_change and before.external_id == link.external_id
    return not same_link or link.owed_change > link.synced_change or leases.is_held(link, now)


def _is_left(subscriber: Subscriber, link: Any, records: Mapping[str, Record]) -> bool:
    """It is deleted here, and stays there as `on_delete` says; an archived one has nothing agreed any more."""
    stays = subscriber.on_delete == "ignore" or (subscriber.on_delete == "archive" and link.base is None)
    return stays and link.record_id not in records


def _drift(mapper: Mapper, link: Any, external: External | SyncError, record: Record | None, ours: Flat) -> Drift:
    drift = Drift(link.record_id, link.external_id)
    if isinstance(external, SyncError):
        drift.fields[MISSING_THERE] = (link.record_id, None)
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
