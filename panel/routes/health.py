"""The health check for probes."""

from __future__ import annotations

import sqlalchemy as sa
from flask import Blueprint, Response, current_app, jsonify

from conductor import Conductor

blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
def healthz() -> tuple[Response, int]:
    """Report whether this process and its database respond. Needs no login."""
    conductor: Conductor = current_app.extensions["syncflow"]
    try:
        with conductor.database.read() as connection:
            connection.execute(sa.select(sa.literal(1)))
    except sa.exc.SQLAlchemyError:
        current_app.logger.warning("healthz: the database does not answer", exc_info=True)
        return jsonify(status="database unavailable"), 503
    return jsonify(status="ok"), 200
