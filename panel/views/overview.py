"""Home: is everything in sync, and if not, what is not and since when."""

from __future__ import annotations

import sqlalchemy as sa

from models.ledger import Delivery, Process, Schedule
from panel import paging
from panel.views.base import PanelView, page

#: The newest deliveries shown at home.
_LATEST = 8


class Overview(PanelView):
    title, path, icon = "Overview", "/", "overview"

    @page("/")
    def index(self) -> str:
        systems = self.conductor.overview()
        subscribers = [subscriber for system in systems for subscriber in system.subscribers]
        since = [s.oldest_owed_since for s in subscribers if s.oldest_owed_since]
        with self.conductor.database.read() as connection:
            deliveries = paging.newest(connection, Delivery).rows[:_LATEST]
            processes = connection.execute(sa.select(Process.__table__).order_by(Process.name)).all()
            schedules = connection.execute(sa.select(Schedule.__table__).order_by(Schedule.job)).all()
        return self.render(
            "panel/overview.html",
            systems=systems,
            troubled=[system for system in systems if system.state in ("down", "paused")],
            waiting=self.conductor.waiting(),
            owed=sum(s.owed for s in subscribers),
            dead=sum(s.dead for s in subscribers),
            oldest=min(since, default=None),
            deliveries=deliveries,
            processes=processes,
            schedules=schedules,
        )
