"""Show an error page with an id that is also in the log, and never a traceback.

Webhook senders, probes and metric scrapers get the same error as JSON.
"""

from __future__ import annotations

import logging
import secrets

import sqlalchemy as sa
from flask import Flask, current_app, g, jsonify, render_template, request
from flask_wtf.csrf import CSRFError  # type: ignore[import-untyped]
from werkzeug import Response
from werkzeug.exceptions import HTTPException

from conductor import QueuesUnavailable
from i18n import gettext, gettext_noop

logger = logging.getLogger(__name__)

_TITLES = {
    401: gettext_noop("Login required"),
    400: gettext_noop("Invalid request"),
    403: gettext_noop("Permission denied"),
    404: gettext_noop("Page not found"),
    405: gettext_noop("Method not allowed"),
    413: gettext_noop("Request too large"),
    415: gettext_noop("Unsupported type of data"),
}
_WORDS = {
    401: gettext_noop("Log in, or send METRICS_TOKEN as a bearer token: Authorization: Bearer ..."),
    403: gettext_noop("Your role does not have this permission. An admin can change your role under Users."),
    415: gettext_noop("Pages take the data of forms only."),
    404: gettext_noop("The page may have been removed, or the address may contain a typing error."),
}

#: Endpoints whose callers are programs.
_FOR_PROGRAMS = {"webhooks.receive", "oidc.end", "health.healthz", "health.readyz", "metrics.metrics"}

DATABASE_AWAY = gettext_noop("The database is not responding")


def init(app: Flask) -> None:
    """Register the error handlers."""
    app.register_error_handler(CSRFError, _stale_form)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(sa.exc.OperationalError, _database_away)
    app.register_error_handler(sa.exc.InterfaceError, _database_away)
    app.register_error_handler(sa.exc.TimeoutError, _database_away)
    app.register_error_handler(QueuesUnavailable, _queues_away)
    app.register_error_handler(Exception, _unexpected)


def for_program() -> bool:
    """Return whether the client is a program, not a browser."""
    return request.endpoint in _FOR_PROGRAMS or request.path.startswith("/webhooks/")


def answer(status: int, title: str, words: str, error_id: str | None = None) -> tuple[Response | str, int]:
    """Return the error as a page, or as JSON for programs."""
    if for_program():
        return jsonify(error=f"{title}. {words}".strip(), id=error_id), status
    page = render_template("panel/error.html", status=status, title=title, words=words, error_id=error_id)
    return page, status


def _stale_form(_error: CSRFError) -> tuple[Response | str, int]:
    return answer(400, gettext("The form has expired"), gettext("Go back, reload the page and submit the form again."))


def _http(error: HTTPException) -> tuple[Response | str, int] | HTTPException:
    status = error.code or 500
    if status < 400 or error.response is not None:
        return error
    title = gettext(_TITLES.get(status, error.name))
    return answer(status, title, gettext(_WORDS.get(status, error.description or "")))


def _database_away(error: Exception) -> tuple[Response | str, int]:
    error_id = _logged(error)
    # Rendering the page loads the current user, which would query the database again.
    g._login_user = current_app.login_manager.anonymous_user()  # type: ignore[attr-defined]
    words = gettext(
        "No data is lost: pending changes are delivered when the database responds again. "
        "If this is a new installation, run ./syncflow migrate."
    )
    return answer(503, gettext(DATABASE_AWAY), words, error_id)


def _queues_away(error: QueuesUnavailable) -> tuple[Response | str, int]:
    title, words = gettext("RabbitMQ does not accept messages"), gettext("Nothing was started. Try again later.")
    return answer(503, title, f"{error}. {words}")


def _unexpected(error: Exception) -> tuple[Response | str, int]:
    title, words = gettext("Something went wrong"), gettext("The log contains the details under this error id.")
    return answer(500, title, words, _logged(error))


def _logged(error: Exception) -> str:
    error_id = secrets.token_hex(4)
    logger.error("page failed, id %s: %s %s", error_id, request.method, _path(), exc_info=error)
    return error_id


def _path() -> str:
    """Return the path without the shared secret at its end."""
    secret = (request.view_args or {}).get("secret")
    return request.path.removesuffix(f"/{secret}") if secret else request.path
