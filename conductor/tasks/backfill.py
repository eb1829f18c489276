"""Backfill: brings the records there are to a subscriber that was registered after they were made.

First the system's own list is read, and what is there already is linked (by our id, or `match_on`), so
that nothing is created twice. Then the catalogue is walked in keyset pages: each record that is not
there is marked as owed in the ledger, a page at a time, and only while few are owed. From there it
takes the way of every delivery, in the queue that live changes go before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.dead_letters.store import DeadLetterStore
from conductor.inward.applying import InboundApplier
from conductor.inward.incoming import Incoming
from conductor.inward.matching import candidates
from conductor.links import state
from conductor.links.leases import LinkLeased
from conductor.links.status import PENDING
from conductor.mappings.store import Mappings
from conductor.systems.caller import SystemCaller, SystemUnavailable
from conductor.tasks.runner import Step, TaskRunner, counted
from conductor.tasks.throttle import below_backlog_limit
from i18n import gettext
from models.catalogues import Catalogue
from models.ledger import DeadLetter, Link
from subscribers.base import Subscriber, normalize_incoming
from subscribers.calls import call_safely
from subscribers.errors import Reject, Retry, SyncError
from subscribers.mapping.values import is_empty
from subscribers.records import External, Page

#: The kind of these tasks.
BACKFILL = "backfill"

#: Records marked in one step.
PAGE = 500

#: Records here with the same `match_on` values that are named by a dead letter each.
_UNCLEAR = 20

#: Seconds until it is looked again whether there is room, or how those under way fare.
_PAUSE = 1.0

#: Seconds after which what is still under way is left to its own attempts.
_LONGEST = 3600


class Backfill:
    """Does the steps of `backfill` tasks. The argument is `{"where": {column: value}}`."""

    def __init__(
        self,
        context: Context,
        mappings: Mappings,
        letters: DeadLetterStore,
        applying: InboundApplier,
        asking: SystemCaller,
        tasks: TaskRunner,
    ) -> None:
        self.context = context
        self.mappings = mappings
        self.letters = letters
        self.applying = applying
        self.caller = asking
        self.tasks = tasks
        #: Task -> the position its reading has reached, and how it goes on: a list may share one position over pages.
        self._readings: dict[int, tuple[Any, Iterator[Page]]] = {}
        tasks.register(BACKFILL, self.step)

    def start(self, name: str, by: str, where: Mapping[str, str] | None = None) -> int:
        """Begin to bring records to a subscriber, those with these column values or all; returns the task's id.

        One that was asked for in the same words and is not finished goes on instead.

        Raises:
          ValueError: no such subscriber or column, or what exists there could not be recognised.
        """
        subscriber = self.context.subscribers.get(name)
        if subscriber is None:
            known = ", ".join(sorted(self.context.subscribers)) or gettext("none is configured")
            raise ValueError(gettext("no subscriber {name!r}; there are: {known}", name=name, known=known))
        if subscriber.match_on and not _lists(subscriber):
            raise ValueError(
                gettext(
                    "{name} has match_on but no changed_since: what it holds already cannot be read, and would be "
                    "created a second time",
                    name=name,
                )
            )
        where = dict(where or {})
        conditions(subscriber.records, where)  # refuses a wrong one
        argument = {"where": where}
        for task in self.tasks.list(BACKFILL):
            if task.subscriber == name and task.argument == argument and task.state != "done":
                if task.state in ("stopped", "failed"):
                    self.tasks.resume(task.id, by)
                return int(task.id)
        return self.tasks.start(BACKFILL, by, subscriber=name, argument=argument)

    def step(self, task: Any) -> Step:
        """Read a page of what the system has, or mark a page of what is here, or see how those under way fare."""
        return counted(self._step(task), task, lambda: self._count(task))

    def _count(self, task: Any) -> int:
        records = self.context.subscribers[task.subscriber].records
        chosen = conditions(records, task.argument["where"])
        with self.context.database.read() as connection:
            count = sa.select(sa.func.count()).select_from(records.table).where(*chosen)
            return int(connection.execute(count).scalar_one())

    def _step(self, task: Any) -> Step:
        subscriber = self.context.subscribers.get(task.subscriber)
        if subscriber is None:
            raise ValueError(f"{task.subscriber} is not configured any more")
        position = task.position or {"phase": "look" if _lists(subscriber) else "bring"}
        try:
            return getattr(self, f"_{position['phase']}")(task, subscriber, position)  # type: ignore[no-any-return]
        except SystemUnavailable as error:
            return _wait(task, position, str(error), max(error.after, _PAUSE))

    # --- what is there already ------------------------------------------------------------------------

    def _look(self, task: Any, subscriber: Subscriber, position: dict[str, Any]) -> Step:
        try:
            page = self.caller.call(subscriber.system, lambda: self._next_page(task, subscriber, position))
        except Retry as error:
            return _wait(task, position, str(error), error.after or self.context.policy.retry_min)
        read = position.get("read", 0) + (len(page.records) if page else 0)
        if page is None:
            return self._on(task, {"phase": "bring", "found": position.get("found", 0)})
        found: list[str] = []
        # Put back with the page's effects: where those are lost, it is read again, also if the next has its position.
        reading = self._readings.pop(task.id)

        def effect(connection: sa.Connection) -> None:
            found[:] = self._adopt(connection, task, subscriber, page.records)
            state.leave_to_sweep(connection, subscriber.name(), found)
            self._readings[task.id] = reading

        reached = {**position, "at": page.position, "read": read}
        return self._on(task, reached, effect, message=f"{read} records read there, to find those that are here too")

    def _next_page(self, task: Any, subscriber: Subscriber, position: dict[str, Any]) -> Page | None:
        reached, reading = self._readings.pop(task.id, (None, None))
        if reading is None or reached != position.get("at"):
            reading = iter(subscriber.list_all(position.get("at")))
        page = next(reading, None)
        if page is not None:
            self._readings[task.id] = (page.position, reading)
        return page

    def _adopt(
        self, connection: sa.Connection, task: Any, subscriber: Subscriber, externals: list[External]
    ) -> list[str]:
        """Link those that are of a record here; returns the records'."""
        mapper = self.mappings.current(connection, subscriber.name())[0]
        where = conditions(subscriber.records, task.argument["where"])
        found = []
        for external in externals:
            made = call_safely(normalize_incoming, subscriber, external)
            if isinstance(made, SyncError):
                self._doubt(connection, subscriber, Incoming(subscriber, external, mapper), made, where)
                continue
            incoming = Incoming(subscriber, made, mapper)
            try:
                with connection.begin_nested():
                    record_id = self.applying.adopt(connection, incoming, where)
            except LinkLeased:
                continue  # it is being delivered, so somebody changed it just now
            except SyncError as error:
                self._doubt(connection, subscriber, incoming, error, where)
                continue
            except sa.exc.OperationalError:
                raise
            except Exception as error:  # it must not hold up those after it for ever
                unwritten = Reject(f"{incoming.external.id} cannot be taken: {type(error).__name__}")
                self._doubt(connection, subscriber, incoming, unwritten, where)
                continue
            if record_id is not None:
                found.append(record_id)
        return found

    def _doubt(
        self, connection: sa.Connection, subscriber: Subscriber, incoming: Incoming, error: SyncError, where: list[Any]
    ) -> None:
        """It is of a record here that cannot be told, or cannot be merged: a person has to, and nothing is sent."""
        message = f"{error} (retry to create it there all the same)"
        for record_id in candidates(connection, incoming, _UNCLEAR, where):
            if self._is_known(connection, subscriber, record_id):
                continue
            link_id = state.bury_unsent(connection, subscriber.name(), record_id, self.context.clock())
            letter = self.letters.write(
                connection, subscriber.name(), Reject(message), record_id=record_id, link_id=link_id
            )
            state.set_letter(connection, link_id, letter)

    @staticmethod
    def _is_known(connection: sa.Connection, subscriber: Subscriber, record_id: str) -> bool:
        known = (Link.external_id.is_not(None), Link.owed_change > Link.synced_change)
        statement = sa.select(Link.id).where(Link.subscriber == subscriber.name(), Link.record_id == record_id)
        return connection.execute(statement.where(sa.or_(*known))).first() is not None

    # --- what is here ---------------------------------------------------------------------------------

    def _bring(self, task: Any, subscriber: Subscriber, position: dict[str, Any]) -> Step:
        name, catalogue = subscriber.name(), subscriber.records
        where = conditions(catalogue, task.argument["where"])
        if "after" in position:
            where.append(catalogue.key > catalogue.key_of(position["after"]))
        with self.context.database.read() as connection:
            if not below_backlog_limit(self.context, connection, [name]):
                return _wait(task, position, f"waits: {subscriber.system} has plenty to do", _PAUSE)
            page = sa.select(catalogue.key).where(*where).order_by(catalogue.key).limit(PAGE)
            ids = [str(key) for key in connection.execute(page).scalars()]
            known = self._known(connection, name, ids)
        if not ids:
            return self._on(task, {"phase": "watch", **_kept(position), "fed_at": self.context.clock().isoformat()})
        missing = [record_id for record_id in ids if record_id not in known]

        def effect(connection: sa.Connection) -> None:
            state.owe_missing(connection, name, missing, self.context.clock())

        sent = position.get("sent", 0) + len(missing)
        reached = {**position, "after": ids[-1], "sent": sent}
        message = f"{sent} marked to be sent, {task.done + len(ids) - sent} are there already"
        return self._on(task, reached, effect, done=task.done + len(ids), message=message)

    @staticmethod
    def _known(connection: sa.Connection, name: str, ids: list[str]) -> set[str]:
        """Those that are there, or on their way."""
        known = sa.or_(Link.external_id.is_not(None), Link.owed_change > Link.synced_change)
        statement = sa.select(Link.record_id).where(Link.subscriber == name, Link.record_id.in_(ids), known)
        return set(connection.execute(statement).scalars())

    # --- what became of them --------------------------------------------------------------------------

    def _watch(self, task: Any, subscriber: Subscriber, position: dict[str, Any]) -> Step:
        fed_at = datetime.fromisoformat(position["fed_at"])
        name = subscriber.name()
        under_way = (Link.subscriber == name, *PENDING)
        letters = (DeadLetter.subscriber == name, DeadLetter.closed_at.is_(None), DeadLetter.at >= task.created_at)
        with self.context.database.read() as connection:
            # What is owed since later is not this task's.
            waits = sa.select(sa.func.count(Link.id)).where(*under_way, Link.owed_since <= fed_at)
            left = connection.execute(waits).scalar_one()
            failed = connection.execute(sa.select(sa.func.count(DeadLetter.id)).where(*letters)).scalar_one()
        finished = left == 0 or (self.context.clock() - fed_at).total_seconds() > _LONGEST
        succeeded = max(task.done - failed - left, 0)
        sent = position.get("sent", 0)
        message = f"{sent} sent, {task.done - sent} were there already"
        message += f"; {failed} dead letters to look at" if failed else ""
        message += f"; {left} under way" if left else ""
        return Step(
            task.done,
            succeeded,
            failed,
            position,
            finished=finished,
            message=message,
            pause=0.0 if finished else _PAUSE,
        )

    @staticmethod
    def _on(
        task: Any, position: dict[str, Any], effect: Any = None, *, done: int | None = None, message: str = ""
    ) -> Step:
        done = task.done if done is None else done
        return Step(done, task.succeeded, task.failed, position, effect=effect, message=message or task.message or "")


def conditions(catalogue: Catalogue, where: Mapping[str, str]) -> list[Any]:
    """Conditions for records whose columns have these values, given as text; empty text is no value.

    Raises:
      ValueError: there is no such column, or the text is no value of it.
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
    expected = column.type.python_type
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


def _wait(task: Any, position: dict[str, Any], message: str, seconds: float) -> Step:
    return Step(task.done, task.succeeded, task.failed, position, message=message, pause=seconds)
