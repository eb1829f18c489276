"""A calm page for whatever fails, with an id that is also in the log; never a traceback.

Webhook senders, probes and scrapers get the same as JSON.
"""

from __future__ import annotations

import logging
import secrets

import sqlalchemy as sa
from flask import Flask, current_app, g, jsonify, render_template, request
from flask_wtf.csrf import CSRFError  # type: ignore[import-untyped]
from werkzeug import Response
from werkzeug.exceptions import HTTPException

from i18n import gettext, gettext_noop

logger = logging.getLogger(__name__)

_TITLES = {
    401: gettext_noop("A login is needed"),
    400: gettext_noop("That request cannot be read"),
    403: gettext_noop("You may not do that"),
    404: gettext_noop("There is no such page"),
    405: gettext_noop("That is not done this way"),
    413: gettext_noop("That is too large"),
}
_WORDS = {
    401: gettext_noop("Log in, or send METRICS_TOKEN as a bearer token: Authorization: Bearer ..."),
    403: gettext_noop("Your role does not include this. An admin can change it under Users."),
    404: gettext_noop("It may have been removed, or the address has a typing error."),
}

#: Endpoints whose callers are programs.
_FOR_PROGRAMS = {"webhooks.receive", "health.healthz", "metrics.metrics"}

DATABASE_AWAY = gettext_noop("The database does not answer")


def init(app: Flask) -> None:
    """Register the handlers on an app."""
    app.register_error_handler(CSRFError, _stale_form)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(sa.exc.OperationalError, _database_away)
    app.register_error_handler(sa.exc.InterfaceError, _database_away)
    app.register_error_handler(sa.exc.TimeoutError, _database_away)
    app.register_error_handler(Exception, _unexpected)


def for_program() -> bool:
    """Whether it is a program that asks."""
    return request.endpoint in _FOR_PROGRAMS or request.path.startswith("/webhooks/")


def answer(status: int, title: str, words: str, error_id: str | None = None) -> tuple[Response | str, int]:
    """The error as a page or, for programs, as JSON."""
    if for_program():
        return jsonify(error=f"{title}. {words}".strip(), id=error_id), status
    page = render_template("panel/error.html", status=status, title=title, words=words, error_id=error_id)
    return page, status


def _stale_form(_error: CSRFError) -> tuple[Response | str, int]:
    return answer(400, gettext("The form was out of date"), gettext("Go back, reload the page and send it again."))


def _http(error: HTTPException) -> tuple[Response | str, int] | HTTPException:
    status = error.code or 500
    if status < 400 or error.response is not None:
        return error
    title = gettext(_TITLES.get(status, error.name))
    return answer(status, title, gettext(_WORDS.get(status, error.description or "")))


def _database_away(error: Exception) -> tuple[Response | str, int]:
    error_id = _logged(error)
    # Rendering asks who is logged in, and that would ask the database again.
    g._login_user = current_app.login_manager.anonymous_user()  # type: ignore[attr-defined]
    words = gettext(
        "Nothing is lost: what is owed is delivered when it is back. If Syncflow is new here, run ./syncflow migrate."
    )
    return answer(503, gettext(DATABASE_AWAY), words, error_id)


def _unexpected(error: Exception) -> tuple[Response | str, int]:
    title, words = gettext("Something went wrong here"), gettext("The log has the details under this id.")
    return answer(500, title, words, _logged(error))


def _logged(error: Exception) -> str:
    error_id = secrets.token_hex(4)
    logger.error("page failed, id %s: %s %s", error_id, request.method, _path(), exc_info=error)
    return error_id


def _path() -> str:
    """The path without the shared secret that a webhook's may end in."""
    secret = (request.view_args or {}).get("secret")
    return request.path.removesuffix(f"/{secret}") if secret else request.path
