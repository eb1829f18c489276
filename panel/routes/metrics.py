"""Metrics for Prometheus: the state of systems, pending records and dead letters."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from flask import Blueprint, Response, abort, current_app, request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from conductor import Conductor
from models.base import utcnow
from models.ledger import CaptureState, Process, System
from panel.auth.permissions import allowed

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
def metrics() -> Response:
    """Return the metrics as text, to users with a login and to scrapers with METRICS_TOKEN."""
    if not (_has_token() or allowed("view")):
        abort(401)
    return Response(generate_latest(_collect(current_app.extensions["syncflow"])), content_type=CONTENT_TYPE_LATEST)


def _has_token() -> bool:
    token = current_app.config["METRICS_TOKEN"]
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    return bool(token) and hmac.compare_digest(token.encode(), given.encode())


@dataclass(frozen=True)
class Metric:
    """A gauge: its name without the prefix `syncflow_`, what it measures, and its labels."""

    name: str
    help: str
    labels: tuple[str, ...]


STATE = Metric("system_state", "1 for the system's present state, such as ok, waiting or down", ("system", "state"))
OWED = Metric("owed_records", "Records pending for the subscriber", ("subscriber",))
OLDEST = Metric("oldest_owed_seconds", "Age of the subscriber's oldest pending record", ("subscriber",))
DEAD = Metric("dead_letters", "Open dead letters of the subscriber", ("subscriber",))
REFUSED = Metric("webhooks_refused", "Webhooks refused because of their signature", ("system",))
SEEN = Metric("process_seen_seconds", "Time since the process last reported that it is alive", ("kind", "name"))

CAPTURED = Metric("capture_intact", "1 if all writes to the catalogue's tables are captured, else 0", ("catalogue",))

#: Every metric there is.
METRICS = (STATE, OWED, OLDEST, DEAD, REFUSED, SEEN, CAPTURED)


def _collect(conductor: Conductor) -> CollectorRegistry:
    registry = CollectorRegistry()
    gauges = {
        metric: Gauge(f"syncflow_{metric.name}", metric.help, metric.labels, registry=registry) for metric in METRICS
    }
    _set_states(gauges, conductor)
    _set_counts(gauges, conductor)
    return registry


def _set_states(gauges: Mapping[Metric, Gauge], conductor: Conductor) -> None:
    now = utcnow()
    for status in conductor.reports.overview().systems:
        gauges[STATE].labels(status.name, status.state).set(1)
        for subscriber in status.subscribers:
            gauges[OWED].labels(subscriber.name).set(subscriber.owed)
            gauges[DEAD].labels(subscriber.name).set(subscriber.dead)
            since = subscriber.oldest_owed_since
            gauges[OLDEST].labels(subscriber.name).set((now - since).total_seconds() if since else 0)


def _set_counts(gauges: Mapping[Metric, Gauge], conductor: Conductor) -> None:
    with conductor.database.read() as connection:
        for name, count in connection.execute(sa.select(System.name, System.webhooks_rejected)):
            gauges[REFUSED].labels(name).set(count)
        for row in connection.execute(sa.select(Process.kind, Process.name, Process.last_seen_at)):
            gauges[SEEN].labels(row.kind, row.name).set((utcnow() - row.last_seen_at).total_seconds())
        for name, since in connection.execute(sa.select(CaptureState.catalogue, CaptureState.broken_since)):
            gauges[CAPTURED].labels(name).set(since is None)
