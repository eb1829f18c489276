"""Systems: state, limits and options of each system; pause, resume, test, poll, backfill and reconcile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import sqlalchemy as sa
from flask import abort, redirect, url_for
from pydantic import BaseModel, SecretBytes, SecretStr
from werkzeug import Response

from conductor import DELETE_GUARD, DELETE_WINDOW_SECONDS, Overview, QueueReport, TaskRow
from i18n import gettext, gettext_noop
from models.base import utcnow
from models.ledger import CallSlot, Cursor, Schedule, System
from models.rows import CursorRow, SystemRow
from panel.views.base import PanelView, action, form_field, page, redirect_error, redirect_success
from panel.views.tasks import shown
from redaction import MASK, is_secret_setting
from subscribers.system import System as ExternalSystem


class Systems(PanelView):
    title, path, icon = gettext_noop("Systems"), "/systems", "systems"
    key = "s"

    @page("/")
    def index(self) -> Response:
        queues = self.conductor.reports.queues()
        tasks = [row for row in self.conductor.tasks.list(unfinished=True) if row.subscriber]
        tests = self.conductor.tasks.newest_by("check", "system")
        version, overview = self.current_overview()
        with self.conductor.database.read() as connection:
            left = connection.execute(sa.select(System.name, System.rate_remaining).order_by(System.name)).all()
        lost = {name: self.conductor.relinking.count(name) for name in self.conductor.systems}
        seen = (
            version,
            left,
            sorted(lost.items()),
            sorted(queues.queues.items()),
            queues.error,
            [tuple(row) for row in tasks],
            sorted(tuple(row) for row in tests.values()),
        )
        return self.live(
            "panel/systems.html", seen, lambda: {"tests": tests, "lost": lost, **self._values(overview, queues, tasks)}
        )

    def _values(self, overview: Overview, queues: QueueReport, tasks: list[TaskRow]) -> dict[str, Any]:
        with self.conductor.database.read() as connection:
            rows = {row.name: SystemRow._make(row) for row in connection.execute(sa.select(System.__table__))}
            cursors = {row.subscriber: CursorRow._make(row) for row in connection.execute(sa.select(Cursor.__table__))}
            jobs = connection.execute(sa.select(Schedule.job, Schedule.every_seconds))
            paces = {row.job.removeprefix("poll "): row.every_seconds for row in jobs}
            is_held = CallSlot.until > utcnow()
            held = sa.select(CallSlot.system, sa.func.count()).where(is_held).group_by(CallSlot.system)
            in_use = {name: count for name, count in connection.execute(held)}
        systems = self.conductor.systems
        return {
            "systems": overview.systems,
            "subscribers": self.conductor.subscribers,
            "rows": rows,
            "cursors": cursors,
            "limits": {name: _limits(s, rows.get(name), in_use.get(name, 0)) for name, s in systems.items()},
            "options": {name: masked(system.options) for name, system in systems.items()},
            "paces": paces,
            "guard": DELETE_GUARD,
            "queues": queues.queues,
            "broker_error": queues.error,
            "tasks": [shown(self.conductor.tasks, row) for row in tasks],
        }

    @action("/<system>/pause", needs="pause")
    def pause(self, system: str) -> Response:
        self._known(system)
        reason = form_field("reason")
        if not reason:
            return redirect_error(gettext("Enter a reason."), url_for("systems.index"))
        self.conductor.systems.pause(system, self.current_email, reason)
        return redirect_success(
            gettext("{system} is paused. Its changes wait until it is resumed.", system=system),
            url_for("systems.index"),
        )

    @action("/<system>/resume", needs="pause")
    def resume(self, system: str) -> Response:
        self._known(system)
        meant = form_field("deletes") == "yes"
        self.conductor.systems.resume(system, self.current_email, allow_deletes=meant)
        words = (
            gettext("{system} is resumed. Deletions are allowed for one hour.", system=system)
            if meant
            else gettext("{system} is resumed.", system=system)
        )
        return redirect_success(words, url_for("systems.index"))

    @action("/<system>/relink", needs="pause")
    def relink(self, system: str) -> Response:
        """Link the records again that the system had lost."""
        self._known(system)
        count = self.conductor.relinking.relink(system, self.current_email)
        words = gettext("{count} records are read again; those that are there are linked.", count=f"{count:,}")
        return redirect_success(words, url_for("systems.index"))

    @action("/<system>/account", needs="pause")
    def account(self, system: str) -> Response:
        """Take the account that the login leads to as the right one."""
        self._known(system)
        unlink = form_field("links") == "unlink"
        try:
            found = self.conductor.relinking.accept_account(system, self.current_email, unlink=unlink)
        except ValueError as error:
            return redirect_error(gettext("Not changed: {error}.", error=error), url_for("systems.index"))
        words = gettext("{account} is the right account of {system} now.", account=found, system=system)
        return redirect_success(words, url_for("systems.index"))

    @action("/<system>/check", needs="poll")
    def check(self, system: str) -> Response:
        """Start a connection test, or open the one that is running."""
        self._known(system)
        number = self.conductor.tasks.start("check", self.current_email, system=system)
        return redirect(url_for("tasks.one", number=number), code=303)

    @action("/poll/<subscriber>", needs="poll")
    def poll(self, subscriber: str) -> Response:
        if subscriber not in self.conductor.subscribers:
            abort(404)
        try:
            from_start = form_field("from_start") == "yes"
            self.conductor.systems.poll_now(subscriber, self.current_email, from_start=from_start)
        except ValueError as error:
            return redirect_error(gettext("Not started: {error}.", error=error), url_for("systems.index"))
        return redirect_success(
            gettext("{subscriber} will be polled shortly.", subscriber=subscriber), url_for("systems.index")
        )

    @action("/backfill/<subscriber>", needs="tasks")
    def backfill(self, subscriber: str) -> Response:
        return self._begin("backfill", subscriber)

    @action("/reconcile/<subscriber>", needs="tasks")
    def reconcile(self, subscriber: str) -> Response:
        repair = form_field("repair") == "yes"
        return self._begin("reconcile", subscriber, repair=repair)

    def _begin(self, kind: str, subscriber: str, **arguments: Any) -> Response:
        """Start a task and redirect to its page."""
        if subscriber not in self.conductor.subscribers:
            abort(404)
        try:
            number = self.conductor.tasks.start(kind, self.current_email, subscriber=subscriber, **arguments)
        except ValueError as error:
            return redirect_error(gettext("Not started: {error}.", error=error), url_for(".index"))
        return redirect_success(
            gettext("The task has started. You can leave this page."), url_for("tasks.one", number=number)
        )

    def _known(self, name: str) -> None:
        if name not in self.conductor.systems:
            abort(404)


def _limits(system: ExternalSystem, row: SystemRow | None, in_use: int) -> dict[str, Any]:
    """Return the system's limits and how much of them is used."""
    since = row.deletes_since if row is not None else None
    recent = since is not None and (utcnow() - since).total_seconds() < DELETE_WINDOW_SECONDS
    return {
        "rate": system.requests_per_second,
        "concurrency": system.concurrency,
        "in_use": in_use,
        "deletes": row.deletes if row is not None and recent else 0,
        "delete_limit": system.delete_limit,
    }


def masked(options: BaseModel) -> dict[str, str]:
    """Return a system's options by name, with secrets masked."""
    return {name: mask(name, getattr(options, name)) for name in type(options).model_fields}


def mask(name: str, value: Any) -> str:
    """Format one option, with secrets masked."""
    if value is None or value == "":
        return gettext("not set")
    if isinstance(value, SecretStr | SecretBytes) or is_secret_setting(name):
        return MASK
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {mask(str(key), inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(mask(name, inner) for inner in value)
    if isinstance(value, BaseModel):
        return mask(name, dict(value))
    return _without_login(str(value))


def _without_login(text: str) -> str:
    """Mask the user and password in a URL."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return text
    if not parts.scheme or "@" not in parts.netloc:
        return text
    return urlunsplit(parts._replace(netloc=f"{MASK}@{parts.netloc.rpartition('@')[2]}"))
