"""Outages: whether failed calls mean that a system is down, or that it cannot process one record.

A server that fails answers 502 as well as nothing at all, and so does a server that trips over one record. The records
tell them apart: an outage fails different records in a row, and a call about another record fails as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from models.ledger import Link, System
from subscribers.base import Subscriber
from subscribers.calls import OUTAGE_CALLS, call_safely
from subscribers.errors import SyncError, SystemDown

#: Records kept that failed before the system processed others: they fail for their own reasons.
_SUSPECTS = 50


class OutageDetector:
    """Infers outages from failures that say nothing about a record (`SyncError.may_be_outage`)."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def watch(self, subscriber: Subscriber, *, is_failing: bool) -> OutageWatch:
        """Watch the calls of one batch; `is_failing`: other records failed since the system last processed one."""
        return OutageWatch(self, subscriber, is_failing)

    def explain(self, subscriber: Subscriber, error: SyncError, external_id: str | None = None) -> SyncError:
        """Return the error of a call that reads; `SystemDown` if the system does not answer another call either.

        `external_id`: the record that could not be read, if the call was about one.
        """
        if error.may_be_outage and self.answers_another(subscriber, error, Link.external_id != external_id) is False:
            return as_down(error, "another call failed as well")
        return error

    def answers_another(self, subscriber: Subscriber, error: SyncError, *others: sa.ColumnElement[bool]) -> bool | None:
        """Return whether a call about another record, whose link meets `others`, is answered; None if that is unknown.

        Without another record, a list is read. A list may be answered where no call about a record is, so an answered
        one says nothing about an `error` without a response.
        """
        if not subscriber.can_fetch:
            return None
        linked = (Link.subscriber == subscriber.name(), Link.external_id.is_not(None), Link.unlinked_at.is_(None))
        with self.context.database.read_autocommit() as connection:
            known = connection.execute(sa.select(Link.external_id).where(*linked, *others).limit(1)).scalar()
        if known is None and not subscriber.can_list:
            return None
        subscriber.client.pace()
        answer = call_safely(lambda: subscriber.fetch(known) if known else next(iter(subscriber.list_all(None)), None))
        if isinstance(answer, SyncError) and (answer.may_be_outage or answer.pauses_system):
            return False
        return None if known is None and error.unanswered else True

    def note_failure(self, subscriber: Subscriber, record_id: str) -> int:
        """Note a record that failed; return how many have failed since the system last processed one."""
        name = f"{subscriber.name()}:{record_id}"

        def note(connection: sa.Connection) -> int:
            streak, suspects = self._failing(connection, subscriber.system)
            if name not in suspects and name not in streak:
                streak.append(name)
                self._write(connection, subscriber.system, streak[-OUTAGE_CALLS:], suspects)
            return len(streak)

        return self.context.database.run_in_transaction(note)

    def note_success(self, system: str) -> None:
        """Note that the system processed a record: those that failed before fail for their own reasons."""

        def note(connection: sa.Connection) -> None:
            streak, suspects = self._failing(connection, system)
            self._write(connection, system, [], [*suspects, *streak][-_SUSPECTS:])

        self.context.database.run_in_transaction(note)

    @staticmethod
    def _failing(connection: sa.Connection, system: str) -> tuple[list[str], list[str]]:
        row = sa.select(System.failing).where(System.name == system).with_for_update()
        failing = connection.execute(row).scalar() or {}
        return failing.get("streak", []), failing.get("suspects", [])

    @staticmethod
    def _write(connection: sa.Connection, system: str, streak: list[str], suspects: list[str]) -> None:
        values = {"failing": {"streak": streak, "suspects": suspects}}
        connection.execute(sa.update(System).where(System.name == system).values(**values))


@dataclass
class OutageWatch:
    """Follows the calls of one batch, in their order."""

    detector: OutageDetector
    subscriber: Subscriber
    #: Records of any batch have failed since the system last processed one.
    is_failing: bool
    #: The system answered a call, if only one that reads.
    answers: bool = False
    #: The records of this batch that failed since the system last processed one.
    failed: set[str] = field(default_factory=set)

    def judge(self, outcomes: Sequence[tuple[str, Any]], *, reads: bool = False) -> str | None:
        """Look at the outcomes of one call, each with its record. Return why the system is down; None if it is not.

        `reads`: nothing was written. That it succeeded proves nothing: a system that can be read may be unable to
        write, and a subscriber without `find` makes no call.
        """
        counted: set[int] = set()
        for record_id, outcome in outcomes:
            error = outcome if isinstance(outcome, SyncError) else None
            if error is None or not (error.may_be_outage or error.pauses_system):
                if not reads:
                    self._note_answer()
                continue
            if not error.may_be_outage:
                continue
            self.failed.add(record_id)
            if id(error) in counted:
                continue  # the call failed as a whole: one failure, however many records it carried
            counted.add(id(error))
            if (why := self._infer(record_id, error)) is not None:
                self.failed |= {other for other, its in outcomes if its is error}
                return why
        return None

    def _note_answer(self) -> None:
        self.answers = True
        self.failed.clear()
        if self.is_failing:
            self.detector.note_success(self.subscriber.system)
            self.is_failing = False

    def _infer(self, record_id: str, error: SyncError) -> str | None:
        self.is_failing = True
        failing = self.detector.note_failure(self.subscriber, record_id)
        if failing >= OUTAGE_CALLS:
            return f"{failing} different records failed in a row"
        if not self.answers:
            answers = self.detector.answers_another(self.subscriber, error, Link.record_id != record_id)
            self.answers = bool(answers)
            if answers is False:
                return "another call failed as well"
        return None


def as_down(error: SyncError, why: str) -> SystemDown:
    """Return the error of an outage for a call that failed without a response."""
    down = SystemDown(
        f"{error}; {why}", after=error.after, maybe_done=error.maybe_done, request_id=error.request_id
    ).with_response(error.response)
    down.unanswered, down.server_failed = error.unanswered, error.server_failed
    return down
