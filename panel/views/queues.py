"""Queues: what waits in RabbitMQ, and who reads it."""

from __future__ import annotations

from typing import Any

from werkzeug import Response

from conductor import QueueReport, QueueState
from panel.views.base import PanelView, page


class Queues(PanelView):
    title, path, icon, group = "Queues", "/queues", "queues", "History"

    @page("/")
    def index(self) -> Response:
        report = self.conductor.queues()
        version = (report.source, report.error, sorted(report.queues.items()))
        return self.live("panel/queues.html", version, lambda: self._values(report))

    def _values(self, report: QueueReport) -> dict[str, Any]:
        rows = [self._row(name, report) for name in sorted(report.queues)]
        return {"report": report, "rows": rows, "unread": [row for row in rows if row["state"] == "nobody reads it"]}

    def _row(self, name: str, report: QueueReport) -> dict[str, Any]:
        queue = report.queues[name]
        base, _, last = name.rpartition(".")
        subscribers, systems = self.conductor.subscribers, self.conductor.systems
        if name in subscribers:
            what = "Live changes"
        elif base in subscribers:
            what = "Retries and repeated news, after live changes"
        elif last == "inbox" and base in systems:
            what = "Webhooks and polls"
        else:
            what = "The tick of the schedules"
        subscriber = name if name in subscribers else base if base in subscribers else None
        return {"queue": queue, "what": what, "subscriber": subscriber, "state": _state(queue)}


def _state(queue: QueueState) -> str:
    if queue.consumers == 0:
        return "nobody reads it"
    return "waiting" if queue.ready else "ok"
