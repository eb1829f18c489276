"""Overview: whether everything is in sync, problems, throughput, systems and processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from flask import Response as FlaskResponse
from flask import jsonify, request
from werkzeug import Response

from conductor import THROUGHPUT_COLUMNS, THROUGHPUT_SPANS, Series
from conductor import Overview as RecordStatus
from i18n import gettext, gettext_noop
from models.ledger import Delivery
from models.rows import ProcessRow
from panel.rendering import charts
from panel.rendering.filters import updating
from panel.views.base import PanelView, page

#: The newest deliveries on the page.
_LATEST = 8
_NEWEST = (
    sa.select(Delivery.id, Delivery.at, Delivery.subscriber, Delivery.record_id, Delivery.outcome)
    .order_by(Delivery.id.desc())
    .limit(_LATEST)
)

#: The default span of the chart, and the span of the sparklines.
_SPAN, _SMALL = "6h", "1h"


class Overview(PanelView):
    title, path, icon = gettext_noop("Overview"), "/", "overview"
    key = "o"

    @page("/")
    def index(self) -> Response:
        queues = self.conductor.reports.queues()
        version, overview = self.current_overview()
        return self.live("panel/overview.html", (version, queues.error), lambda: self._values(overview, queues.error))

    @page("/throughput.json")
    def throughput(self) -> Response:
        """Return the chart's data: the times, then delivered, received, failed and dead per minute."""
        counting, span = self.conductor.reports.throughput, _span()
        with self.conductor.database.read_autocommit() as connection:
            tag = hashlib.sha256(
                repr((span, counting.version(connection, THROUGHPUT_SPANS[span]))).encode()
            ).hexdigest()[:32]
            if request.if_none_match.contains(tag):
                answer = FlaskResponse(status=304)
            else:
                series = counting.series(connection, THROUGHPUT_SPANS[span])
                answer = jsonify([series.at, *map(series.per_minute, ("delivered", "received", "failed", "dead"))])
        answer.set_etag(tag)
        return answer

    def _values(self, overview: RecordStatus, broker_error: str | None) -> dict[str, Any]:
        conductor, span = self.conductor, _span()
        with conductor.database.read_autocommit() as connection:
            small = conductor.reports.throughput.by_subscriber(connection, THROUGHPUT_SPANS[_SMALL])
            # An open page keeps its chart and updates it from throughput.json.
            series = None if updating() else conductor.reports.throughput.series(connection, THROUGHPUT_SPANS[span])
            deliveries = connection.execute(_NEWEST).all()
        hour = {name: {column: sum(counts) for column, counts in s.counts.items()} for name, s in small.items()}
        return {
            "overview": overview,
            "hour": hour,
            "lately": {column: sum(counts[column] for counts in hour.values()) for column in THROUGHPUT_COLUMNS},
            "sparks": {name: _spark(name, s) for name, s in small.items()},
            "spans": list(THROUGHPUT_SPANS),
            "span": span,
            "chart": charts.chart(series, _words(series, span)) if series else "",
            "deliveries": deliveries,
            "processes": _by_kind(overview.processes, conductor.reports.is_alive),
            "broker_error": broker_error,
        }


def _span() -> str:
    asked = request.args.get("range", "")
    return asked if asked in THROUGHPUT_SPANS else _SPAN


def _spark(name: str, series: Series) -> Any:
    delivered = series.counts["delivered"]
    return charts.spark(
        delivered, gettext("{name}: {count:,} delivered in the last hour", name=name, count=sum(delivered))
    )


def _words(series: Series, span: str) -> str:
    """Describe the chart for screen readers."""
    totals = {name: sum(counts) for name, counts in series.counts.items()}
    most = max(series.per_minute("delivered"), default=0)
    return gettext(
        "In the last {span}: {delivered:,} delivered, at most {most:g} a minute; "
        "{received:,} received, {failed:,} failed, {dead:,} dead.",
        span=span,
        most=most,
        **totals,
    )


def _by_kind(rows: list[ProcessRow], alive: Callable[[ProcessRow], bool]) -> list[dict[str, Any]]:
    """Group the processes by kind, with how many are alive and when one was last seen."""
    kinds: dict[str, list[ProcessRow]] = {}
    for row in rows:
        kinds.setdefault(row.kind, []).append(row)
    return [
        {
            "kind": kind,
            "alive": sum(map(alive, found)),
            "last_seen_at": max(row.last_seen_at for row in found),
            "rows": [(row, alive(row)) for row in found],
        }
        for kind, found in sorted(kinds.items())
    ]
