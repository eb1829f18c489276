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
def receive(system: str) -> tuple[Response, int]:
    """Store what a system reports, then acknowledge it. The work is done later, by a worker.

    Systems send again what is not answered 2xx; one that we have already is acknowledged too.
    """
    request.max_content_length = LARGEST_BODY
    body = request.get_data(cache=False)
    headers = {name.lower(): value for name, value in request.headers}
    try:
        new = current_app.extensions["syncflow"].store_webhook(system, body, headers)
    except UnknownSystem:
        return jsonify(error="no such system is connected here"), 404
    except BadSignature as error:
        logger.warning("webhook for %s refused: %s", system, error)
        return jsonify(error=f"the signature does not fit: {error}"), 400
    except BadWebhook as error:
        logger.warning("webhook for %s cannot be read: %s", system, error)
        return jsonify(error=f"the body cannot be read: {error}"), 400
    return jsonify(status="stored" if new else "duplicate"), 202 if new else 200
