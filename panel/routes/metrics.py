"""What Prometheus reads: the state of systems, what is owed, and dead letters."""

from __future__ import annotations

import hmac
from typing import Any

import sqlalchemy as sa
from flask import Blueprint, Response, abort, current_app, request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from conductor import Conductor
from models.base import utcnow
from models.ledger import Process, System
from panel.auth.permissions import allowed

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
def metrics() -> Response:
    """Prometheus text, for logged-in people and for scrapers that know METRICS_TOKEN."""
    if not (_has_token() or allowed("view")):
        abort(401)
    return Response(generate_latest(_collect(current_app.extensions["syncflow"])), content_type=CONTENT_TYPE_LATEST)


def _has_token() -> bool:
    token = current_app.config["METRICS_TOKEN"]
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    return bool(token) and hmac.compare_digest(token.encode(), given.encode())


def _collect(conductor: Conductor) -> CollectorRegistry:
    registry = CollectorRegistry()

    def gauge(name: str, words: str, *labels: str) -> Gauge:
        return Gauge(f"syncflow_{name}", words, labels, registry=registry)

    state = gauge("system_state", "1 for the state the system is in", "system", "state")
    owed = gauge("owed_records", "Records owed to the subscriber", "subscriber")
    oldest = gauge("oldest_owed_seconds", "How long the oldest owed record waits", "subscriber")
    dead = gauge("dead_letters", "Open dead letters", "subscriber")
    now = utcnow()
    for status in conductor.overview().systems:
        state.labels(status.name, status.state).set(1)
        for subscriber in status.subscribers:
            owed.labels(subscriber.name).set(subscriber.owed)
            dead.labels(subscriber.name).set(subscriber.dead)
            since = subscriber.oldest_owed_since
            oldest.labels(subscriber.name).set((now - since).total_seconds() if since else 0)
    _collect_ledger(conductor, gauge)
    return registry


def _collect_ledger(conductor: Conductor, gauge: Any) -> None:
    refused = gauge("webhooks_refused", "Webhooks refused for their signature", "system")
    seen = gauge("process_seen_seconds", "How long ago the process was heard of", "kind", "name")
    with conductor.database.read() as connection:
        for name, count in connection.execute(sa.select(System.name, System.webhooks_rejected)):
            refused.labels(name).set(count)
        for row in connection.execute(sa.select(Process.kind, Process.name, Process.last_seen_at)):
            seen.labels(row.kind, row.name).set((utcnow() - row.last_seen_at).total_seconds())
