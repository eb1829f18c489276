"""Sending again what a changed mapping makes different.

Each linked record is mapped again and compared with the last values sent. A record that differs becomes pending,
a page at a time and only while few are pending; live changes are delivered first.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from conductor.links import state
from conductor.links.relations import our_side
from conductor.tasks.runner import Step, TaskKind, TaskRow, counted
from conductor.tasks.throttle import PAUSE_SECONDS, below_backlog_limit
from i18n import gettext, gettext_noop
from models.ledger import Link
from subscribers.base import Subscriber
from subscribers.calls import call_safely
from subscribers.mapping.values import same

#: Links compared in one step.
PAGE = 500


class ResendRecords(TaskKind):
    """The only argument is the subscriber."""

    kind = "resend"
    succeeded = gettext_noop("differ and are sent again")
    failed = gettext_noop("failed")

    def start(self, by: str, *, subscriber: str) -> int:
        """Send what the current mapping makes different; return the task's id.

        A running one is stopped: the mapping may have changed since it started.

        Raises:
          ValueError: there is no such subscriber.
        """
        for task in self.tasks.list(self.kind, unfinished=True):
            if task.subscriber == subscriber and task.state == "running":
                self.tasks.stop(task.id, by)
        return self.tasks.begin(self.kind, by, subscriber=subscriber)

    def step(self, task: TaskRow) -> Step:
        """Compare the next linked records; those that differ become pending."""
        return counted(self._step(task), task, lambda: self._count(task.subscriber))

    def _count(self, name: str | None) -> int:
        with self.context.database.read() as connection:
            return int(connection.execute(sa.select(sa.func.count(Link.id)).where(*_there(name))).scalar_one())

    def _step(self, task: TaskRow) -> Step:
        subscriber = self.subscriber_of(task)
        name, after = subscriber.name(), task.position.get("after", 0)
        with self.context.database.read() as connection:
            if not below_backlog_limit(self.context, connection, [name]):
                message = f"waits: {subscriber.system} has a backlog"
                return Step(task.done, task.succeeded, task.failed, task.position, message=message, pause=PAUSE_SECONDS)
            page = sa.select(Link.id, Link.record_id, Link.base).where(*_there(name), Link.id > after)
            links = connection.execute(page.order_by(Link.id).limit(PAGE)).all()
            differing = self._differing(connection, subscriber, links)
        succeeded = task.succeeded + len(differing)
        message = f"{succeeded} differ and are sent again"
        if not links:
            return Step(task.done, task.succeeded, task.failed, task.position, finished=True, message=message)
        position = {"after": links[-1].id}

        def effect(connection: sa.Connection) -> None:
            state.owe_settled(connection, differing, self.context.clock())

        return Step(task.done + len(links), succeeded, task.failed, position, message=message, effect=effect)

    def _differing(self, connection: sa.Connection, subscriber: Subscriber, links: Any) -> list[int]:
        mapper = self.services.mappings.current(connection, subscriber.name())[0]
        records, unreadable = subscriber.records.read_each(connection, [link.record_id for link in links])
        related = self.services.relations.load(connection, subscriber, mapper, records.values())
        found = []
        for link in links:
            record = records.get(link.record_id)
            if link.record_id in unreadable:
                found.append(link.id)
                continue
            if record is None or call_safely(subscriber.wants, record) is not True:
                continue
            ours: Any = call_safely(lambda record=record: our_side(subscriber, mapper, record, related, strict=True))
            base = link.base or {}
            # A record that cannot be mapped is tried too, so that it becomes a dead letter.
            if not isinstance(ours, tuple) or any(p not in base or not same(v, base[p]) for p, v in ours[0].items()):
                found.append(link.id)
        return found

    @staticmethod
    def label(task: TaskRow) -> str:
        return gettext("Resend records changed by the mapping of {subscriber}", subscriber=task.subscriber)


def _there(name: str | None) -> tuple[Any, ...]:
    return Link.subscriber == name, Link.external_id.is_not(None), Link.unlinked_at.is_(None)
