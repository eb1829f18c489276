"""Receive webhooks from external systems. Needs no login: the signature authenticates the sender."""

from __future__ import annotations

import logging

from flask import Blueprint, Response, current_app, jsonify, request
from flask_wtf.csrf import CSRFProtect  # type: ignore[import-untyped]

from conductor import UnknownSystem
from subscribers.errors import BadSignature, BadWebhook

logger = logging.getLogger(__name__)

#: Bytes of the largest event accepted.
LARGEST_BODY = 1024 * 1024

blueprint = Blueprint("webhooks", __name__, url_prefix="/webhooks")


def init(csrf: CSRFProtect) -> None:
    """Exempt webhooks from CSRF protection: their senders have no session but sign their requests."""
    csrf.exempt(blueprint)


@blueprint.post("/<system>")
@blueprint.post("/<system>/<secret>")
def receive(system: str, secret: str = "") -> tuple[Response, int]:
    """Store an event, then acknowledge it. A worker applies it later.

    Systems send an event again unless the answer is 2xx, so a duplicate is acknowledged as well. A sender
    that cannot set a header puts the shared secret at the end of the URL.
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
        logger.warning("webhook refused: no system %r is connected", system[:80])
        return _refused()
    except BadSignature as error:
        logger.warning("webhook for %s refused: %s", system, error)
        return _refused()
    except BadWebhook as error:
        logger.warning("webhook for %s cannot be read: %s", system, error)
        return jsonify(error=f"the body cannot be read: {error}"), 400
    if acknowledgement := conductor.acknowledgement(system, body):
        text, content_type = acknowledgement
        return Response(text, content_type=content_type), 200
    return jsonify(status="stored" if new else "duplicate"), 202 if new else 200


def _refused() -> tuple[Response, int]:
    """Return the same response for an unknown name and a wrong signature, so that strangers learn no names."""
    return jsonify(error="refused: the system's name in the address, or the signature, is wrong"), 400
