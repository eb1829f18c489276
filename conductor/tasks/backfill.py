"""Backfill: deliver existing records to a subscriber that was registered after they were made.

First the system's list is read, and the records that exist there are linked (by our id, or `match_on`), so that
none is created twice. Then the catalogue is read in keyset pages: each record without a link becomes pending, a page
at a time and only while few are pending; live changes are delivered first. At last the outcomes are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa

from conductor.inward.incoming import Incoming
from conductor.inward.matching import candidates
from conductor.links import state
from conductor.links.leases import LinkLeased
from conductor.links.relations import Unlinked
from conductor.links.status import PENDING_LINKS
from conductor.systems.caller import SystemUnavailable
from conductor.tasks.runner import Step, TaskKind, TaskRow, TaskRunner, counted
from conductor.tasks.services import Services
from conductor.tasks.throttle import PAUSE_SECONDS, below_backlog_limit
from i18n import gettext, gettext_noop
from models.catalogues import Catalogue
from models.ledger import DeadLetter, Link
from subscribers.base import Subscriber, normalize_incoming
from subscribers.calls import call_safely
from subscribers.errors import Reject, Retry, SyncError
from subscribers.mapping.column_values import python_type
from subscribers.mapping.values import is_empty
from subscribers.records import External, Page

#: Records that become pending in one step.
PAGE = 500

#: Records with the same `match_on` values that get a dead letter each.
_MOST_AMBIGUOUS = 20

#: Seconds after which the counts are final, even if some records still have attempts left.
_LONGEST_WATCH_SECONDS = 3600

#: The phases, as the task's position names them.
_LINK_EXISTING, _FEED, _WATCH = "link_existing", "feed", "watch"


class Backfill(TaskKind):
    """The argument is `{"where": {column: value}}`."""

    kind = "backfill"
    succeeded = gettext_noop("are delivered")
    failed = gettext_noop("failed")

    def __init__(self, services: Services, tasks: TaskRunner) -> None:
        super().__init__(services, tasks)
        #: Task -> the position of its reading and the pages after it: several pages may share one position.
        self._readings: dict[int, tuple[Any, Iterator[Page]]] = {}
        self._phases = {_LINK_EXISTING: self._link_existing, _FEED: self._feed, _WATCH: self._watch}

    def start(self, by: str, *, subscriber: str, where: Mapping[str, str] | None = None, afresh: bool = False) -> int:
        """Deliver the records with these column values, or all, to a subscriber; return the task's id.

        An unfinished one with the same argument continues instead, or begins again with `afresh`.

        Raises:
          ValueError: there is no such subscriber or column, or existing external records could not be recognized.
        """
        found = self.context.subscribers.get(subscriber)
        if found is None:
            known = ", ".join(sorted(self.context.subscribers)) or gettext("none")
            raise ValueError(
                gettext("unknown subscriber {name!r}; known subscribers: {known}", name=subscriber, known=known)
            )
        if found.match_on and not _lists(found):
            raise ValueError(
                gettext(
                    "{name} has match_on but no changed_since: its existing records cannot be read, and would be "
                    "created a second time",
                    name=subscriber,
                )
            )
        where = dict(where or {})
        conditions(found.records, where)  # raises for a wrong one
        return self.tasks.begin_or_resume(
            self.kind, by, subscriber=subscriber, argument={"where": where}, afresh=afresh
        )

    def step(self, task: TaskRow) -> Step:
        """Link a page of the system's records, or make a page of ours pending, or count the outcomes."""
        return counted(self._step(task), task, lambda: self._count(task))

    def _count(self, task: TaskRow) -> int:
        records = self.subscriber_of(task).records
        chosen = conditions(records, task.argument["where"])
        with self.context.database.read() as connection:
            count = sa.select(sa.func.count()).select_from(records.table).where(*chosen)
            return int(connection.execute(count).scalar_one())

    def _step(self, task: TaskRow) -> Step:
        subscriber = self.subscriber_of(task)
        position = task.position or {"phase": _LINK_EXISTING if _lists(subscriber) else _FEED}
        try:
            return self._phases[position["phase"]](task, subscriber, position)
        except SystemUnavailable as error:
            return _wait(task, position, str(error), max(error.after, PAUSE_SECONDS))

    # --- records that exist in the system ------------------------------------------------------------------------

    def _link_existing(self, task: TaskRow, subscriber: Subscriber, position: dict[str, Any]) -> Step:
        try:
            page = self.services.caller.call(subscriber, lambda: self._next_page(task, subscriber, position))
        except Retry as error:
            return _wait(task, position, str(error), error.after or self.context.policy.retry_min_seconds)
        read = position.get("read", 0) + (len(page.records) if page else 0)
        if page is None:
            return self._on(task, {"phase": _FEED, "found": position.get("found", 0)})
        found: list[str] = []
        # Stored again with the page's effects: if those are lost, this page is read again.
        reading = self._readings.pop(task.id)

        def effect(connection: sa.Connection) -> None:
            found[:] = self._adopt(connection, task, subscriber, page.records)
            state.leave_to_sweep(connection, subscriber.name(), found)
            self._readings[task.id] = reading

        reached = {**position, "at": page.position, "read": read}
        return self._on(task, reached, effect, message=f"{read} existing records read")

    def _next_page(self, task: TaskRow, subscriber: Subscriber, position: dict[str, Any]) -> Page | None:
        reached, reading = self._readings.pop(task.id, (None, None))
        if reading is None or reached != position.get("at"):
            reading = iter(subscriber.list_all(position.get("at")))
        page = next(reading, None)
        if page is not None:
            self._readings[task.id] = (page.position, reading)
        return page

    def _adopt(
        self, connection: sa.Connection, task: TaskRow, subscriber: Subscriber, externals: list[External]
    ) -> list[str]:
        """Link the external records that match a record; return the ids of those."""
        mapper = self.services.mappings.current(connection, subscriber.name())[0]
        where = conditions(subscriber.records, task.argument["where"])
        found = []
        for external in externals:
            made = call_safely(lambda one: normalize_incoming(subscriber, one, complete=True), external)
            if isinstance(made, SyncError):
                self._report_ambiguous(connection, subscriber, Incoming(subscriber, external, mapper), made, where)
                continue
            incoming = Incoming(subscriber, made, mapper)
            try:
                with connection.begin_nested():
                    record_id = self.services.applier.adopt(connection, incoming, where)
            except LinkLeased:
                continue  # it is being delivered, so it has just been changed
            except SyncError as error:
                self._report_ambiguous(connection, subscriber, incoming, error, where)
                continue
            except sa.exc.OperationalError:
                raise
            except Exception as error:  # one bad record must not block the others
                unwritten = Reject(
                    f"{incoming.external.id} cannot be linked: {type(error).__name__}", code="unstorable"
                )
                self._report_ambiguous(connection, subscriber, incoming, unwritten, where)
                continue
            if record_id is not None:
                found.append(record_id)
        return found

    def _report_ambiguous(
        self, connection: sa.Connection, subscriber: Subscriber, incoming: Incoming, error: SyncError, where: list[Any]
    ) -> None:
        """Write a dead letter for each record it may belong to: an operator decides before anything is sent."""
        remedy = "retry to create it in the system anyway"
        if isinstance(error, Unlinked):
            remedy = f"backfill {error.related.subscriber} first, and then {subscriber.name()} again"
        message = f"{error} ({remedy})"
        for record_id in candidates(connection, incoming, _MOST_AMBIGUOUS, where):
            if self._is_known(connection, subscriber, record_id):
                continue
            link_id = state.bury_unsent(connection, subscriber.name(), record_id, self.context.clock())
            letter = self.services.letters.write(
                connection,
                subscriber.name(),
                Reject(message, code=error.code),
                record_id=record_id,
                link_id=link_id,
            )
            state.set_letter(connection, link_id, letter)

    @staticmethod
    def _is_known(connection: sa.Connection, subscriber: Subscriber, record_id: str) -> bool:
        known = (Link.external_id.is_not(None), Link.owed_change > Link.synced_change)
        statement = sa.select(Link.id).where(Link.subscriber == subscriber.name(), Link.record_id == record_id)
        return connection.execute(statement.where(sa.or_(*known))).first() is not None

    # --- records of the catalogue ---------------------------------------------------------------------------------

    def _feed(self, task: TaskRow, subscriber: Subscriber, position: dict[str, Any]) -> Step:
        name, catalogue = subscriber.name(), subscriber.records
        where = conditions(catalogue, task.argument["where"])
        if "after" in position:
            where.append(catalogue.key > catalogue.key_of(position["after"]))
        with self.context.database.read() as connection:
            if not below_backlog_limit(self.context, connection, [name]):
                return _wait(task, position, f"waits: {subscriber.system} has a backlog", PAUSE_SECONDS)
            ids = catalogue.ids(connection, *where, limit=PAGE)
            known = self._known(connection, name, ids)
        if not ids:
            return self._on(task, {"phase": _WATCH, **_kept(position), "fed_at": self.context.clock().isoformat()})
        missing = [record_id for record_id in ids if record_id not in known]

        def effect(connection: sa.Connection) -> None:
            state.owe_missing(connection, name, missing, self.context.clock())

        sent = position.get("sent", 0) + len(missing)
        reached = {**position, "after": ids[-1], "sent": sent}
        message = f"{sent} to be sent, {task.done + len(ids) - sent} exist already"
        return self._on(task, reached, effect, done=task.done + len(ids), message=message)

    @staticmethod
    def _known(connection: sa.Connection, name: str, ids: list[str]) -> set[str]:
        """Return the records that are linked or pending."""
        known = sa.or_(Link.external_id.is_not(None), Link.owed_change > Link.synced_change)
        statement = sa.select(Link.record_id).where(Link.subscriber == name, Link.record_id.in_(ids), known)
        return set(connection.execute(statement).scalars())

    # --- outcomes --------------------------------------------------------------------------

    def _watch(self, task: TaskRow, subscriber: Subscriber, position: dict[str, Any]) -> Step:
        fed_at = datetime.fromisoformat(position["fed_at"])
        name = subscriber.name()
        under_way = (Link.subscriber == name, *PENDING_LINKS)
        letters = (DeadLetter.subscriber == name, DeadLetter.closed_at.is_(None), DeadLetter.at >= task.created_at)
        with self.context.database.read() as connection:
            # A record pending since later is not of this task.
            waits = sa.select(sa.func.count(Link.id)).where(*under_way, Link.owed_since <= fed_at)
            left = connection.execute(waits).scalar_one()
            failed = connection.execute(sa.select(sa.func.count(DeadLetter.id)).where(*letters)).scalar_one()
        finished = left == 0 or (self.context.clock() - fed_at).total_seconds() > _LONGEST_WATCH_SECONDS
        succeeded = max(task.done - failed - left, 0)
        sent = position.get("sent", 0)
        message = f"{sent} sent, {task.done - sent} existed already"
        message += f"; {failed} dead letters" if failed else ""
        message += f"; {left} under way" if left else ""
        return Step(
            task.done,
            succeeded,
            failed,
            position,
            finished=finished,
            message=message,
            pause=0.0 if finished else PAUSE_SECONDS,
        )

    @staticmethod
    def _on(
        task: TaskRow, position: dict[str, Any], effect: Any = None, *, done: int | None = None, message: str = ""
    ) -> Step:
        done = task.done if done is None else done
        return Step(done, task.succeeded, task.failed, position, effect=effect, message=message or task.message)

    @staticmethod
    def label(task: TaskRow) -> str:
        where = task.argument.get("where") or {}
        if not where:
            return gettext("Backfill {subscriber}", subscriber=task.subscriber)
        matching = gettext(" and ").join(
            gettext("{name} is {value}", name=name, value=value) for name, value in where.items()
        )
        return gettext("Backfill {subscriber} where {conditions}", subscriber=task.subscriber, conditions=matching)


def conditions(catalogue: Catalogue, where: Mapping[str, str]) -> list[Any]:
    """Return the conditions for records with these column values, given as text; empty text means NULL.

    Raises:
      ValueError: there is no such column, or the text is not a value of it.
    """
    found: list[Any] = []
    for name, text in where.items():
        if name not in catalogue.table.c:
            known = ", ".join(column.name for column in catalogue.table.c)
            raise ValueError(f"{catalogue.name} has no column {name!r}; it has {known}")
        column = catalogue.table.c[name]
        found.append(column.is_(None) if is_empty(text) else column == _value(column, text))
    return found


def _value(column: sa.Column[Any], text: str) -> Any:
    expected = python_type(column.type)
    try:
        if expected is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        if expected in (date, datetime):
            return expected.fromisoformat(text)
        return expected(text)
    except (ValueError, KeyError, ArithmeticError):
        raise ValueError(f"{text!r} is not of type {expected.__name__}, which {column.name} requires") from None


def _lists(subscriber: Subscriber) -> bool:
    kind = type(subscriber)
    return kind.changed_since is not Subscriber.changed_since or kind.list_all is not Subscriber.list_all


def _kept(position: dict[str, Any]) -> dict[str, Any]:
    return {name: position[name] for name in ("sent",) if name in position}


def _wait(task: TaskRow, position: dict[str, Any], message: str, seconds: float) -> Step:
    return Step(task.done, task.succeeded, task.failed, position, message=message, pause=seconds)
