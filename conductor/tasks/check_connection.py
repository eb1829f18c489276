"""Testing the connection of a system, one subscriber after another.

A thread makes the calls and the steps poll its response, so that a system that hangs blocks no other task.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, wait
from datetime import datetime
from typing import Any

from conductor.systems.connection_check import Finding
from conductor.tasks.runner import OPEN_TASK_STATES, Step, TaskKind, TaskRow, TaskRunner
from conductor.tasks.services import Services
from i18n import gettext, gettext_noop
from redaction import hide

#: Seconds within which a subscriber's system has to answer all calls.
LONGEST_CHECK_SECONDS = 60.0

#: Seconds that a step waits for a response, and until the next step.
ANSWER_WAIT_SECONDS = 0.5
ANSWER_PAUSE_SECONDS = 0.5

#: The findings, and the seconds they took.
_Answer = tuple[list[Finding], float]


class CheckConnection(TaskKind):
    """The argument is `{"system": name}`.

    The task's position keeps the findings: `{"found": {subscriber: [[state, message], ...]}, "took": seconds}`.
    """

    kind = "check"
    succeeded = gettext_noop("work")
    failed = gettext_noop("need fixing")

    def __init__(self, services: Services, tasks: TaskRunner) -> None:
        super().__init__(services, tasks)
        #: (task, subscriber) -> the response that a thread of this process waits for.
        self._asked: dict[tuple[int, str], Future[_Answer]] = {}

    def start(self, by: str, *, system: str) -> int:
        """Test a system's connection; return the task's id, that of the running test if there is one.

        Raises:
          ValueError: there is no such system.
        """
        total = len(self.services.connection_check.subscribers(system))
        last = self.tasks.newest_by(self.kind, "system").get(system)
        if last is not None and last.state in OPEN_TASK_STATES:
            return int(last.id)
        return self.tasks.begin(self.kind, by, argument={"system": system}, total=total)

    def step(self, task: TaskRow) -> Step:
        """Call the system for the next subscriber, or wait for its response."""
        position = task.position or {"found": {}, "took": 0.0}
        found = position["found"]
        waiting = [
            name for name in self.services.connection_check.subscribers(task.argument["system"]) if name not in found
        ]
        if not waiting:
            return self._step(task, position, finished=True)
        name, now = waiting[0], self.context.clock()
        since = position.get("since") or now.isoformat()
        took = (now - datetime.fromisoformat(since)).total_seconds()
        answer = self._ask(task.id, name)
        wait([answer], ANSWER_WAIT_SECONDS)
        if answer.done():
            findings, took = answer.result()
        elif took < LONGEST_CHECK_SECONDS:
            message = f"calling {name}" + (f", no response after {took:.0f} s" if took >= 2 else "")
            asking = {**position, "since": since}
            return Step(task.done, task.succeeded, task.failed, asking, message=message, pause=ANSWER_PAUSE_SECONDS)
        else:
            findings = [Finding("wrong", f"no response within {LONGEST_CHECK_SECONDS:g} s")]
        del self._asked[task.id, name]
        found = {**found, name: [[finding.state, hide(finding.message)] for finding in findings]}
        position = {"found": found, "took": round(position["took"] + took, 3)}
        return self._step(task, position, finished=len(waiting) == 1)

    def _step(self, task: TaskRow, position: dict[str, Any], *, finished: bool) -> Step:
        wrong = [sum(state == "wrong" for state, _message in findings) for findings in position["found"].values()]
        failed, things = sum(map(bool, wrong)), sum(wrong)
        if things:
            message = f"{things} {'thing needs' if things == 1 else 'things need'} fixing"
        else:
            message = "everything works" if finished else "everything works so far"
        return Step(len(wrong), len(wrong) - failed, failed, position, finished=finished, message=message)

    def _ask(self, task_id: int, name: str) -> Future[_Answer]:
        # Forget the responses of tests that were stopped or finished by another process.
        self._asked = {key: one for key, one in self._asked.items() if key[0] == task_id or not one.done()}
        if (task_id, name) not in self._asked:
            self._asked[task_id, name] = answer = Future[_Answer]()
            # A daemon thread, so that a call that hangs does not keep the process alive.
            thread = threading.Thread(target=self._answer, args=(name, answer), name=f"check {name}", daemon=True)
            thread.start()
        return self._asked[task_id, name]

    def _answer(self, name: str, answer: Future[_Answer]) -> None:
        began = time.monotonic()
        try:
            found = self.services.connection_check.subscriber(name)
        except Exception as error:
            answer.set_exception(error)
        else:
            answer.set_result((found, time.monotonic() - began))

    @staticmethod
    def label(task: TaskRow) -> str:
        return gettext("Test the connection of {name}", name=task.argument["system"])
