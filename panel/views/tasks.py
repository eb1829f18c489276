"""Tasks: long work, how far it is, and how it ended."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from flask import abort, url_for
from werkzeug import Response

from conductor import pages
from conductor.tasks.backfill import BACKFILL
from conductor.tasks.check_connection import CHECK
from conductor.tasks.discard_dead_letters import DISCARD
from conductor.tasks.reconcile import RECONCILE
from conductor.tasks.replay_webhooks import KIND as REPLAY
from conductor.tasks.resend_records import RESEND
from conductor.tasks.resolve_conflicts import SETTLE
from conductor.tasks.retry_dead_letters import RETRY
from conductor.tasks.runner import OPEN
from i18n import gettext, gettext_noop
from models.base import utcnow
from models.ledger import Task
from panel.views.base import PanelView, action, cursor_from_query, page, redirect_error, redirect_success


class Tasks(PanelView):
    title, path, icon = gettext_noop("Tasks"), "/tasks", "tasks"

    @page("/")
    def index(self) -> Response:
        with self.conductor.database.read() as connection:
            listing = pages.newest(connection, Task, before=cursor_from_query())
        version = ([tuple(row) for row in listing.rows], listing.older)
        values = {"listing": listing, "tasks": list(map(shown, listing.rows))}
        return self.live("panel/tasks.html", version, lambda: values)

    @page("/<number:number>")
    def one(self, number: int) -> Response:
        row = self.conductor.tasks.get(number)
        if row is None:
            abort(404)
        # The page one waits on: it says so where nobody is there to do the work.
        troubles = self.current_overview()[1].troubles if row.state in OPEN else []
        idle = next((one for one in troubles if (one.kind, one.name) == ("process", "scheduler")), None)
        values = {"task": shown(row), "idle": idle, "subscribers": self.conductor.subscribers}
        return self.live("panel/task.html", (tuple(row), idle), lambda: values)

    @page("/<number:number>/line")
    def line(self, number: int) -> str:
        """The line about it on other pages, which line.js asks for."""
        row = self.conductor.tasks.get(number)
        if row is None:
            abort(404)
        return self.render("panel/task_line.html", task=shown(row))

    @action("/<number:number>/stop", needs="tasks")
    def stop(self, number: int) -> Response:
        return self._change(
            self.conductor.tasks.stop,
            number,
            gettext_noop("Task #{number} stops after the step in hand; what is done stays done."),
        )

    @action("/<number:number>/resume", needs="tasks")
    def resume(self, number: int) -> Response:
        return self._change(
            self.conductor.tasks.resume, number, gettext_noop("Task #{number} goes on from where it was.")
        )

    def _change(self, work: Any, number: int, words: str) -> Response:
        if self.conductor.tasks.get(number) is None:
            abort(404)
        try:
            work(number, self.current_email)
        except ValueError as error:
            return redirect_error(gettext("Not done: {error}.", error=error), url_for(".index"))
        return redirect_success(gettext(words, number=number), url_for(".index"))


_STAYS = timedelta(minutes=10)

#: What the two counts of a task of a kind mean.
_COUNTS = {
    RETRY: (gettext_noop("are through"), gettext_noop("failed again")),
    BACKFILL: (gettext_noop("are there"), gettext_noop("could not be brought")),
    RECONCILE: (gettext_noop("agree"), gettext_noop("drifted apart")),
    CHECK: (gettext_noop("are well"), gettext_noop("need mending")),
    DISCARD: (gettext_noop("are discarded"), gettext_noop("could not be")),
    REPLAY: (gettext_noop("are applied again"), gettext_noop("were passed over")),
}

#: What is done to dead letters, of all subscribers and of one.
_LETTERS = {
    RETRY: (gettext_noop("Retry dead letters"), gettext_noop("Retry dead letters of {subscriber}")),
    DISCARD: (gettext_noop("Discard dead letters"), gettext_noop("Discard dead letters of {subscriber}")),
}


def shown(row: Any) -> dict[str, Any]:
    """A task as its templates take it. `percent` is None where nobody knows how much there is."""
    percent = min(100 * row.done / row.total, 100) if row.total else None
    succeeded, failed = _COUNTS.get(row.kind, (gettext_noop("went well"), gettext_noop("went badly")))
    return {
        "row": row,
        "what": words_of(row),
        "percent": 100 if row.state == "done" else percent,
        "succeeded": succeeded,
        "failed": failed,
        "report": row.position if row.kind == RECONCILE and row.position else None,
        "test": row.position if row.kind == CHECK and row.position else None,
        "of_system": row.argument["system"] if row.kind == CHECK else None,
    }


def is_current(row: Any) -> bool:
    """Whether a task is to be shown where it was begun: while it runs, and a while after."""
    return row.state in OPEN or (row.finished_at is not None and row.finished_at > utcnow() - _STAYS)


def words_of(task: Any) -> str:
    """What a task does, in words."""
    if task.kind == RECONCILE:
        if task.argument.get("repair"):
            return gettext("Repair what drifted in {subscriber}", subscriber=task.subscriber)
        return gettext("Reconcile {subscriber}", subscriber=task.subscriber)
    if task.kind == BACKFILL:
        where = task.argument.get("where") or {}
        if not where:
            return gettext("Backfill {subscriber}", subscriber=task.subscriber)
        conditions = gettext(" and ").join(
            gettext("{name} is {value}", name=name, value=value) for name, value in where.items()
        )
        return gettext("Backfill {subscriber} where {conditions}", subscriber=task.subscriber, conditions=conditions)
    if task.kind in (RETRY, DISCARD):
        wanted = dict(task.argument)
        wanted.pop("reason", None)  # said while it goes, and kept on each letter
        of_all, of_one = _LETTERS[task.kind]
        what = gettext(of_one, subscriber=wanted.pop("subscriber")) if "subscriber" in wanted else gettext(of_all)
        what += gettext(", of one kind") if wanted.pop("fingerprint", None) else ""
        chosen = [f"{name} {_short(value)}" for name, value in sorted(wanted.items())]
        return what + (": " + ", ".join(chosen) if chosen else "")
    if task.kind == REPLAY:
        since, until = (task.argument[end][:16].replace("T", " ") for end in ("since", "until"))
        system = task.argument["system"]
        return gettext("Replay webhooks of {system}, {since} to {until} UTC", system=system, since=since, until=until)
    if task.kind == CHECK:
        return gettext("Test the connection of {name}", name=task.argument["system"])
    if task.kind == RESEND:
        return gettext("Send again what the mapping of {subscriber} makes different", subscriber=task.subscriber)
    if task.kind == SETTLE:
        choice = task.argument["choice"]
        return gettext(
            "Settle the conflicts of {subscriber} about {path}: {choice}",
            subscriber=task.subscriber,
            path=task.argument["path"],
            choice=gettext(choice),
        )
    return f"{task.kind} {task.subscriber or ''}".strip()


def _short(value: Any) -> str:
    return gettext("{count:,} chosen", count=len(value)) if isinstance(value, list) else str(value)
