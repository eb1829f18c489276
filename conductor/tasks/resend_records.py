"""Sending again what a changed mapping makes different: the records a system has, compared with what they would be now.

Only what differs is marked as owed, a page at a time, and only while few are owed. From there it takes
the way of every delivery, in the queue that live changes go before.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.links import state
from conductor.links.relations import Relations, our_side
from conductor.mappings.store import Mappings
from conductor.tasks.runner import Step, TaskRunner, counted
from conductor.tasks.throttle import below_backlog_limit
from models.ledger import Link
from subscribers.base import Subscriber
from subscribers.calls import call_safely
from subscribers.mapping.values import same

#: The kind of these tasks.
RESEND = "resend"

#: Links looked at in one step.
PAGE = 500

#: Seconds until it is looked again whether there is room.
_PAUSE = 1.0


class Resending:
    """Does the steps of `resend` tasks; they take no argument but the subscriber."""

    def __init__(self, context: Context, mappings: Mappings, relations: Relations, tasks: TaskRunner) -> None:
        self.context = context
        self.mappings = mappings
        self.relations = relations
        self.tasks = tasks
        tasks.register(RESEND, self.step)

    def start(self, name: str, by: str) -> int:
        """Begin to bring a subscriber's records to what the mapping in force says; returns the task's id.

        One that runs already begins anew: the mapping may be another one now.

        Raises:
          ValueError: no such subscriber.
        """
        for task in self.tasks.list(RESEND, unfinished=True):
            if task.subscriber == name and task.state == "running":
                self.tasks.stop(task.id, by)
        return self.tasks.start(RESEND, by, subscriber=name)

    def step(self, task: Any) -> Step:
        """Look at the next records there, and owe those that would be sent differently."""
        return counted(self._step(task), task, lambda: self._count(task.subscriber))

    def _count(self, name: str) -> int:
        with self.context.database.read() as connection:
            return int(connection.execute(sa.select(sa.func.count(Link.id)).where(*_there(name))).scalar_one())

    def _step(self, task: Any) -> Step:
        subscriber = self.context.subscribers.get(task.subscriber)
        if subscriber is None:
            raise ValueError(f"{task.subscriber} is not configured any more")
        name, after = subscriber.name(), (task.position or {}).get("after", 0)
        with self.context.database.read() as connection:
            if not below_backlog_limit(self.context, connection, [name]):
                message = f"waits: {subscriber.system} has plenty to do"
                return Step(task.done, task.succeeded, task.failed, task.position, message=message, pause=_PAUSE)
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
        mapper = self.mappings.current(connection, subscriber.name())[0]
        records = subscriber.records.read(connection, [link.record_id for link in links])
        related = self.relations.load(connection, subscriber, mapper, records.values())
        found = []
        for link in links:
            record = records.get(link.record_id)
            if record is None or call_safely(subscriber.wants, record) is not True:
                continue
            ours: Any = call_safely(lambda record=record: our_side(subscriber, mapper, record, related, strict=True))
            base = link.base or {}
            # What is refused becomes a dead letter by being tried: somebody has to see it.
            if not isinstance(ours, tuple) or any(p not in base or not same(v, base[p]) for p, v in ours[0].items()):
                found.append(link.id)
        return found


def _there(name: str) -> tuple[Any, ...]:
    return Link.subscriber == name, Link.external_id.is_not(None), Link.unlinked_at.is_(None)
