"""Tasks: long work, how far it is, and how it ended."""

from __future__ import annotations

from typing import Any

from flask import abort, url_for
from werkzeug import Response

from conductor.alike import SETTLE
from conductor.backfill import BACKFILL
from conductor.reconcile import RECONCILE
from conductor.replaying import KIND as REPLAY
from conductor.resending import RESEND
from conductor.retrying import RETRY
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
        return self.live(
            "panel/task.html", tuple(row), lambda: {"task": shown(row), "subscribers": self.conductor.subscribers}
        )

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


#: What the two counts of a task of a kind mean.
_COUNTS = {
    RETRY: ("are through", "failed again"),
    BACKFILL: ("are there", "could not be brought"),
    RECONCILE: ("agree", "drifted apart"),
    REPLAY: ("are applied again", "were passed over"),
}


def shown(row: Any) -> dict[str, Any]:
    """A task as its templates take it. `percent` is None where nobody knows how much there is."""
    percent = min(100 * row.done / row.total, 100) if row.total else None
    good, bad = _COUNTS.get(row.kind, ("went well", "went badly"))
    return {
        "row": row,
        "what": words_of(row),
        "percent": 100 if row.state == "done" else percent,
        "good": good,
        "bad": bad,
        "report": row.position if row.kind == RECONCILE and row.position else None,
    }


def words_of(task: Any) -> str:
    """What a task does, in words."""
    if task.kind == RECONCILE:
        return f"{'Repair what drifted in' if task.argument.get('repair') else 'Reconcile'} {task.subscriber}"
    if task.kind == BACKFILL:
        where = task.argument.get("where") or {}
        narrowed = " where " + " and ".join(f"{name} is {value}" for name, value in where.items()) if where else ""
        return f"Backfill {task.subscriber}{narrowed}"
    if task.kind == RETRY:
        wanted = dict(task.argument)
        of = f" of {wanted.pop('subscriber')}" if "subscriber" in wanted else ""
        of += ", of one kind" if wanted.pop("fingerprint", None) else ""
        chosen = [f"{name} {_short(value)}" for name, value in sorted(wanted.items())]
        return f"Retry dead letters{of}" + (": " + ", ".join(chosen) if chosen else "")
    if task.kind == REPLAY:
        since, until = (task.argument[end][:16].replace("T", " ") for end in ("since", "until"))
        return f"Replay webhooks of {task.argument['system']}, {since} to {until} UTC"
    if task.kind == RESEND:
        return f"Send again what the mapping of {task.subscriber} makes different"
    if task.kind == SETTLE:
        return f"Settle the conflicts of {task.subscriber} about {task.argument['path']}: {task.argument['choice']}"
    return f"{task.kind} {task.subscriber or ''}".strip()


def _short(value: Any) -> str:
    return f"{len(value):,} chosen" if isinstance(value, list) else str(value)
