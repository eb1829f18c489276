"""Tasks: long-running work, its progress and its result."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from flask import abort, url_for
from werkzeug import Response

from conductor import OPEN_TASK_STATES, TaskRow, TaskRunner, pages
from i18n import gettext, gettext_noop
from models.base import utcnow
from models.ledger import Task
from panel.views.base import PanelView, action, cursor_from_query, page, redirect_error, redirect_success


class Tasks(PanelView):
    title, path, icon = gettext_noop("Tasks"), "/tasks", "tasks"
    key = "t"

    @page("/")
    def index(self) -> Response:
        with self.conductor.database.read() as connection:
            listing = pages.newest(connection, Task, before=cursor_from_query())
        version = ([tuple(row) for row in listing.rows], listing.older)
        values = {"listing": listing, "tasks": [shown(self.conductor.tasks, TaskRow.of(row)) for row in listing.rows]}
        return self.live("panel/tasks.html", version, lambda: values)

    @page("/<number:number>")
    def one(self, number: int) -> Response:
        row = self._task(number)
        # Users wait on this page, so it reports when no scheduler runs the task.
        troubles = self.current_overview()[1].troubles if row.state in OPEN_TASK_STATES else []
        idle = next((one for one in troubles if (one.kind, one.name) == ("process", "scheduler")), None)
        values = {"task": shown(self.conductor.tasks, row), "idle": idle, "subscribers": self.conductor.subscribers}
        return self.live("panel/task.html", (tuple(row), idle), lambda: values)

    @page("/<number:number>/line")
    def line(self, number: int) -> str:
        """Render the task's line for other pages; line.js requests it."""
        row = self._task(number)
        return self.render("panel/task_line.html", task=shown(self.conductor.tasks, row))

    @action("/<number:number>/stop", needs="tasks")
    def stop(self, number: int) -> Response:
        return self._change(
            self.conductor.tasks.stop,
            number,
            gettext_noop("Task #{number} stops after its current step. Completed work is kept."),
        )

    @action("/<number:number>/resume", needs="tasks")
    def resume(self, number: int) -> Response:
        return self._change(
            self.conductor.tasks.resume, number, gettext_noop("Task #{number} continues where it stopped.")
        )

    def _task(self, number: int) -> TaskRow:
        try:
            return self.conductor.tasks.get(number)
        except LookupError:
            abort(404)

    def _change(self, work: Callable[[int, str], None], number: int, words: str) -> Response:
        self._task(number)
        try:
            work(number, self.current_email)
        except ValueError as error:
            return redirect_error(gettext("Not done: {error}.", error=error), url_for(".index"))
        return redirect_success(gettext(words, number=number), url_for(".index"))


_STAYS = timedelta(minutes=10)


def shown(tasks: TaskRunner, row: TaskRow) -> dict[str, Any]:
    """Return the values of a task's templates. `percent` is None while the total is unknown."""
    percent = min(100 * row.done / row.total, 100) if row.total else None
    succeeded, failed = tasks.counts(row)
    return {
        "row": row,
        "what": tasks.label(row),
        "percent": 100 if row.state == "done" else percent,
        "succeeded": succeeded,
        "failed": failed,
    }


def is_current(row: TaskRow) -> bool:
    """Return whether the page that started a task still shows it: while it runs, and for a while afterwards."""
    return row.state in OPEN_TASK_STATES or (row.finished_at is not None and row.finished_at > utcnow() - _STAYS)
