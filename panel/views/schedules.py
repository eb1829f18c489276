"""Schedules: the jobs that run at intervals, with their last and next run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from flask import abort, url_for
from werkzeug import Response

from i18n import gettext, gettext_noop
from models.ledger import Schedule
from models.rows import ScheduleRow
from panel.views.base import PanelView, action, form_field, page, redirect_error, redirect_success


class Schedules(PanelView):
    title, path, icon = gettext_noop("Schedules"), "/schedules", "schedules"
    key = "j"

    @page("/")
    def index(self) -> Response:
        jobs = self.conductor.schedule
        with self.conductor.database.read() as connection:
            found = connection.execute(sa.select(Schedule.__table__).order_by(Schedule.job))
            rows = [ScheduleRow._make(row) for row in found]
        known = jobs.intervals()
        shown = [self._shown(row, row.job in known) for row in rows]
        version = [(repr(job["row"]), job["state"], job["next_at"]) for job in shown]
        return self.live("panel/schedules.html", version, lambda: {"jobs": shown})

    def _shown(self, row: ScheduleRow, known: bool) -> dict[str, Any]:
        jobs = self.conductor.schedule
        state = self._state(row, known)
        return {
            "row": row,
            "words": jobs.describe(row.job),
            "state": state,
            "next_at": jobs.next_run(row),
            "known": known,
        }

    def _state(self, row: ScheduleRow, known: bool) -> str:
        if row.paused_at is not None:
            return "paused"
        if not known:
            return "not configured"
        if row.started_at is not None and row.finished_at is None:
            return "running"
        if row.failed:
            return "failing"
        if self.conductor.schedule.is_late(row):
            return "late"
        return "ok" if row.finished_at else "not run yet"

    @action("/pause", needs="schedules")
    def pause(self) -> Response:
        self._do(lambda job: self.conductor.schedule.pause(job, self.current_email))
        return redirect_success(gettext("“{job}” is paused.", job=form_field("job")), url_for(".index"))

    @action("/resume", needs="schedules")
    def resume(self) -> Response:
        self._do(lambda job: self.conductor.schedule.resume(job, self.current_email))
        return redirect_success(gettext("“{job}” is resumed.", job=form_field("job")), url_for(".index"))

    @action("/run", needs="schedules")
    def run(self) -> Response:
        try:
            self._do(lambda job: self.conductor.schedule.run_soon(job, self.current_email))
        except ValueError as error:
            return redirect_error(gettext("Not done: {error}.", error=error), url_for(".index"))
        return redirect_success(gettext("“{job}” will run within a minute.", job=form_field("job")), url_for(".index"))

    @staticmethod
    def _do(work: Callable[[str], object]) -> None:
        try:
            work(form_field("job"))
        except KeyError:
            abort(404)
