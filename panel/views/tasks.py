"""Tasks: long work, how far it is, and how it ended."""

from __future__ import annotations

from typing import Any

from flask import abort, url_for
from werkzeug import Response

from conductor import words_of_task
from panel.views.base import PanelView, action, done, page, refused


class Tasks(PanelView):
    title, path, icon = "Tasks", "/tasks", "tasks"

    @page("/")
    def index(self) -> Response:
        rows = self.conductor.tasks.list()
        return self.live("panel/tasks.html", [tuple(row) for row in rows], lambda: {"tasks": list(map(shown, rows))})

    @page("/<number:number>")
    def one(self, number: int) -> Response:
        row = self.conductor.tasks.get(number)
        if row is None:
            abort(404)
        return self.live("panel/task.html", tuple(row), lambda: {"task": shown(row)})

    @action("/<number:number>/stop", needs="tasks")
    def stop(self, number: int) -> Response:
        return self._change(self.conductor.tasks.stop, number, "stops after the step in hand; what is done stays done")

    @action("/<number:number>/resume", needs="tasks")
    def resume(self, number: int) -> Response:
        return self._change(self.conductor.tasks.resume, number, "goes on from where it was")

    def _change(self, work: Any, number: int, words: str) -> Response:
        if self.conductor.tasks.get(number) is None:
            abort(404)
        try:
            work(number, self.who)
        except ValueError as error:
            return refused(f"Not done: {error}.", url_for(".index"))
        return done(f"Task #{number} {words}.", url_for(".index"))


def shown(row: Any) -> dict[str, Any]:
    """A task as its templates take it. `percent` is None where nobody knows how much there is."""
    percent = min(100 * row.done // row.total, 100) if row.total else None
    return {"row": row, "what": words_of_task(row), "percent": 100 if row.state == "done" else percent}
