"""Testing the connection of a system, as a task: one subscriber after another, and none for longer than a minute.

A system that hangs holds up neither the web process nor the other tasks: a thread of its own asks, and the steps
only look whether it has an answer.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, wait
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.systems.connection_check import Checking, Finding
from conductor.tasks.runner import OPEN, Step, TaskRunner
from models.ledger import Task

#: The kind of these tasks.
CHECK = "check"

#: Seconds a subscriber's system may take to answer all that it is asked.
LONGEST = 60.0

#: Seconds a step waits for an answer, and until the next step looks again.
GRANT, PAUSE = 0.5, 0.5

#: What was found, and the seconds it took.
_Answer = tuple[list[Finding], float]


class Connection:
    """Does the steps of `check` tasks. The argument is `{"system": name}`.

    What was found stays in the task's position: `{"found": {subscriber: [[state, message], ...]}, "took": seconds}`.
    """

    def __init__(self, context: Context, checking: Checking, tasks: TaskRunner) -> None:
        self.context = context
        self.checking = checking
        self.tasks = tasks
        #: (task, subscriber) -> the answer to come, of what this process asks.
        self._asked: dict[tuple[int, str], Future[_Answer]] = {}
        tasks.register(CHECK, self.step)

    def start(self, system: str, by: str) -> int:
        """Begin to test a system; returns the task's id, that of the test under way if there is one.

        Raises:
          ValueError: there is no such system.
        """
        total = len(self.checking.subscribers(system))
        last = self.last().get(system)
        if last is not None and last.state in OPEN:
            return int(last.id)
        return self.tasks.start(CHECK, by, argument={"system": system}, total=total)

    def last(self) -> dict[str, Any]:
        """The newest test of each system, as a row of `task`."""
        newest = (
            sa.select(sa.func.max(Task.id))
            .where(Task.kind == CHECK)
            .group_by(Task.argument["system"].as_string())
        )  # fmt: skip
        with self.context.database.read() as connection:
            rows = connection.execute(sa.select(Task.__table__).where(Task.id.in_(newest))).all()
        return {row.argument["system"]: row for row in rows}

    def step(self, task: Any) -> Step:
        """Ask the next subscriber's system, or look whether it has answered."""
        position = task.position or {"found": {}, "took": 0.0}
        found = position["found"]
        waiting = [name for name in self.checking.subscribers(task.argument["system"]) if name not in found]
        if not waiting:
            return self._step(task, position, finished=True)
        name, now = waiting[0], self.context.clock()
        since = position.get("since") or now.isoformat()
        took = (now - datetime.fromisoformat(since)).total_seconds()
        answer = self._ask(task.id, name)
        wait([answer], GRANT)
        if answer.done():
            findings, took = answer.result()
        elif took < LONGEST:
            message = f"asks {name}" + (f", no answer for {took:.0f} s yet" if took >= 2 else "")
            asking = {**position, "since": since}
            return Step(task.done, task.succeeded, task.failed, asking, message=message, pause=PAUSE)
        else:
            findings = [Finding("wrong", f"no answer within {LONGEST:g} s")]
        del self._asked[task.id, name]
        found = {**found, name: [[finding.state, finding.words] for finding in findings]}
        position = {"found": found, "took": round(position["took"] + took, 3)}
        return self._step(task, position, finished=len(waiting) == 1)

    def _step(self, task: Any, position: dict[str, Any], *, finished: bool) -> Step:
        wrong = [sum(state == "wrong" for state, _words in findings) for findings in position["found"].values()]
        failed, things = sum(map(bool, wrong)), sum(wrong)
        if things:
            message = f"{things} {'thing needs' if things == 1 else 'things need'} to be mended"
        else:
            message = "all is well" if finished else "all is well so far"
        return Step(len(wrong), len(wrong) - failed, failed, position, finished=finished, message=message)

    def _ask(self, task_id: int, name: str) -> Future[_Answer]:
        # Of tests that were stopped, or that another process has brought to their end.
        self._asked = {key: one for key, one in self._asked.items() if key[0] == task_id or not one.done()}
        if (task_id, name) not in self._asked:
            self._asked[task_id, name] = answer = Future[_Answer]()
            # A daemon: a call that hangs does not keep the process from ending.
            thread = threading.Thread(target=self._answer, args=(name, answer), name=f"check {name}", daemon=True)
            thread.start()
        return self._asked[task_id, name]

    def _answer(self, name: str, answer: Future[_Answer]) -> None:
        began = time.monotonic()
        try:
            found = self.checking.subscriber(name)
        except Exception as error:
            answer.set_exception(error)
        else:
            answer.set_result((found, time.monotonic() - began))
