"""Where external systems report changes. Public on purpose: the signature says who is asking."""

from __future__ import annotations

import logging

from flask import Blueprint, Response, current_app, jsonify, request
from flask_wtf.csrf import CSRFProtect  # type: ignore[import-untyped]

from conductor import UnknownSystem
from subscribers.errors import BadSignature, BadWebhook

logger = logging.getLogger(__name__)

#: No system sends events larger than this; bytes.
LARGEST_BODY = 1024 * 1024

blueprint = Blueprint("webhooks", __name__, url_prefix="/webhooks")


def init(csrf: CSRFProtect) -> None:
    """A system has no session to protect: its requests carry a signature instead."""
    csrf.exempt(blueprint)


@blueprint.post("/<system>")
@blueprint.post("/<system>/<secret>")
def receive(system: str, secret: str = "") -> tuple[Response, int]:
    """Store what a system reports, then acknowledge it. The work is done later, by a worker.

    Systems send again what is not answered 2xx; one that we have already is acknowledged too. A sender
    that cannot set a header has the shared secret at the end of the address.
    """
    request.max_content_length = LARGEST_BODY
    body = request.get_data(cache=False)
    headers = {name.lower(): value for name, value in request.headers}
    if secret:
        headers["x-syncflow-secret"] = secret
    conductor = current_app.extensions["syncflow"]
    try:
        new = conductor.store_webhook(system, body, headers)
    except UnknownSystem:
        return jsonify(error="no such system is connected here"), 404
    except BadSignature as error:
        logger.warning("webhook for %s refused: %s", system, error)
        return jsonify(error=f"the signature does not fit: {error}"), 400
    except BadWebhook as error:
        logger.warning("webhook for %s cannot be read: %s", system, error)
        return jsonify(error=f"the body cannot be read: {error}"), 400
    if acknowledgement := conductor.acknowledgement(system, body):
        text, content_type = acknowledgement
        return Response(text, content_type=content_type), 200
    return jsonify(status="stored" if new else "duplicate"), 202 if new else 200
