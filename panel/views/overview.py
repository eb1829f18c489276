"""Home: is everything in sync, what is not, since when, and what is being done about it."""

from __future__ import annotations

from typing import Any

from flask import Response as FlaskResponse
from flask import jsonify, request
from werkzeug import Response

from conductor import SPANS, Series, is_alive
from conductor import Overview as Standing
from models.ledger import Delivery
from panel import drawing, paging
from panel.views.base import PanelView, page

#: The newest deliveries shown at home.
_LATEST = 8

#: The span the chart shows unless the URL says otherwise, and that of the small lines.
_SPAN, _SMALL = "6h", "1h"


class Overview(PanelView):
    title, path, icon = "Overview", "/", "overview"

    @page("/")
    def index(self) -> Response:
        queues = self.conductor.queues()
        version, overview = self.situation()
        return self.live("panel/overview.html", (version, queues.error), lambda: self._values(overview, queues.error))

    @page("/throughput.json")
    def throughput(self) -> Response:
        """The chart's numbers: the instants, then per minute delivered, received, failed and dead."""
        series = self._series()
        answer: FlaskResponse = jsonify(
            [series.at, *(series.per_minute(name) for name in ("delivered", "received", "failed", "dead"))]
        )
        answer.add_etag()
        answer.make_conditional(request)
        return answer

    def _series(self) -> Series:
        with self.conductor.database.read() as connection:
            return self.conductor.throughput.series(connection, SPANS[_span()])

    def _values(self, overview: Standing, broker_error: str | None) -> dict[str, Any]:
        conductor = self.conductor
        with conductor.database.read() as connection:
            small = conductor.throughput.by_subscriber(connection, SPANS[_SMALL])
            series = conductor.throughput.series(connection, SPANS[_span()])
            deliveries = paging.newest(connection, Delivery).rows[:_LATEST]
        hour = {name: {column: sum(counts) for column, counts in s.counts.items()} for name, s in small.items()}
        return {
            "overview": overview,
            "hour": hour,
            "lately": {column: sum(counts[column] for counts in hour.values()) for column in series.counts},
            "sparks": {name: _spark(name, s) for name, s in small.items()},
            "spans": list(SPANS),
            "span": _span(),
            "series": series,
            "chart": drawing.chart(series, _words(series, _span())),
            "deliveries": deliveries,
            "processes": _by_kind(overview.processes, lambda row: is_alive(conductor.hub, row)),
            "broker_error": broker_error,
        }


def _span() -> str:
    asked = request.args.get("range", "")
    return asked if asked in SPANS else _SPAN


def _spark(name: str, series: Series) -> Any:
    delivered = series.counts["delivered"]
    return drawing.spark(delivered, f"{name}: {sum(delivered):,} delivered in the last hour")


def _words(series: Series, span: str) -> str:
    """The chart for whoever cannot see it."""
    totals = {name: sum(counts) for name, counts in series.counts.items()}
    most = max(series.per_minute("delivered"), default=0)
    return (
        f"In the last {span}: {totals['delivered']:,} delivered, at most {most:g} a minute; "
        f"{totals['received']:,} received, {totals['failed']:,} failed, {totals['dead']:,} dead."
    )


def _by_kind(rows: list[Any], alive: Any) -> list[dict[str, Any]]:
    """The processes of each kind: how many are alive, and when one was last heard of."""
    kinds: dict[str, list[Any]] = {}
    for row in rows:
        kinds.setdefault(row.kind, []).append(row)
    return [
        {
            "kind": kind,
            "alive": sum(map(alive, found)),
            "seen_at": max(row.seen_at for row in found),
            "rows": [(row, alive(row)) for row in found],
        }
        for kind, found in sorted(kinds.items())
    ]
