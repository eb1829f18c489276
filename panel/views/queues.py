"""Queues: waiting messages and consumers in RabbitMQ."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from flask import current_app
from werkzeug import Response

from conductor import QueueReport, QueueState
from i18n import gettext, gettext_noop
from panel.views.base import PanelView, page


class Queues(PanelView):
    title, path, icon, group = gettext_noop("Queues"), "/queues", "queues", gettext_noop("History")
    key = "q"

    @page("/")
    def index(self) -> Response:
        report = self.conductor.reports.queues()
        version = (report.source, report.error, report.note, sorted(report.queues.items()))
        return self.live("panel/queues.html", version, lambda: self._values(report))

    def _values(self, report: QueueReport) -> dict[str, Any]:
        rows = [self._row(name, report) for name in sorted(report.queues)]
        return {"report": report, "rows": rows, "unread": [row for row in rows if row["state"] == "no worker"]}

    def _row(self, name: str, report: QueueReport) -> dict[str, Any]:
        queue = report.queues[name]
        base, _, last = name.rpartition(".")
        subscribers, systems = self.conductor.subscribers, self.conductor.systems
        if name in subscribers:
            what = gettext("Live changes")
        elif base in subscribers:
            what = gettext("Retries and repeated notifications (low priority)")
        elif last == "inbox" and base in systems:
            what = gettext("Webhooks and polls")
        else:
            what = gettext("Schedule ticks")
        subscriber = name if name in subscribers else base if base in subscribers else None
        return {"queue": queue, "what": what, "subscriber": subscriber, "state": _state(queue), "page": _page_of(name)}


def _page_of(name: str) -> str | None:
    """Return the URL of the queue in RabbitMQ management, if configured."""
    base, vhost = (current_app.config[key] for key in ("RABBITMQ_MANAGEMENT_URL", "RABBITMQ_VHOST"))
    return f"{base.rstrip('/')}/#/queues/{quote(vhost, safe='')}/{quote(name, safe='')}" if base else None


def _state(queue: QueueState) -> str:
    if queue.consumers == 0:
        return "no worker"
    return "waiting" if queue.ready else "ok"
