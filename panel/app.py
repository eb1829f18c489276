"""Create the web application."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from flask import Flask, abort, current_app, flash, redirect, request, session, url_for
from flask_admin import Admin
from flask_admin.theme import Bootstrap4Theme
from flask_security import current_user
from flask_wtf.csrf import CSRFProtect  # type: ignore[import-untyped]
from werkzeug import Response
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import IntegerConverter, Map

from conductor import Conductor
from i18n import gettext
from panel import errors, views
from panel.auth import oidc, setup
from panel.auth.password_rules import LONGEST_PASSWORD, TOO_LONG
from panel.overview_cache import OverviewCache
from panel.rendering import filters, locale
from panel.routes import health, metrics, webhooks
from panel.views.base import LARGEST_ID, LARGEST_SMALL_ID
from redaction import hide_long
from settings import Settings

#: Endpoints without a login. All others require one.
PUBLIC = {
    "static", "webhooks.receive", "health.healthz", "health.readyz", "metrics.metrics", "security.login",
    # The second step of a login, and OpenID Connect: each checks its own state.
    "security.two_factor_token_validation", "security.mf_recovery", "oidc.begin", "oidc.back",
    "oidc.end",  # checks the provider's signature
}  # fmt: skip

#: Endpoints for users who must change their one-time password.
_WITH_ONE_TIME_PASSWORD = {"security.change_password", "security.logout"}

#: Endpoints for users with a password, not for those of a login provider.
_NEEDS_A_PASSWORD = {
    "security.change_password", "security.verify", "security.two_factor_setup",
    "security.two_factor_setup_validate", "security.mf_recovery_codes",
}  # fmt: skip

#: Routes of Flask-Security that the panel does not use.
_UNUSED = {"security.static", "security.two_factor_rescue", "security.tf_select"}

#: Allows scripts, styles, images, requests and forms of this server only, and nothing inline.
_CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

#: The types of bodies that pages read; empty: there is no body.
_FORMS = {"", "application/x-www-form-urlencoded", "multipart/form-data"}

#: The types of responses in which long secrets are masked.
_TEXTS = {"text/html", "text/plain", "text/csv", "text/xml", "application/json"}

#: Bytes of the largest form: an unsubscription with a list of records.
_LARGEST_FORM = 4 * 1024 * 1024


class Number(IntegerConverter):
    """Matches a 64 bit id in a URL."""

    def __init__(self, map: Map) -> None:
        super().__init__(map, max=LARGEST_ID)


class SmallNumber(IntegerConverter):
    """Matches a 32 bit id: PostgreSQL refuses to compare such a column with a larger number."""

    def __init__(self, map: Map) -> None:
        super().__init__(map, max=LARGEST_SMALL_ID)


def create_app(conductor: Conductor, settings: Settings) -> Flask:
    """Create the app with the panel, webhook, health and metrics routes of one conductor."""
    app = Flask("panel", root_path=str(Path(__file__).parent))
    app.extensions["syncflow"] = conductor
    app.extensions["syncflow_overview"] = OverviewCache(conductor.reports.overview_version, conductor.reports.overview)
    app.extensions["syncflow_readiness"] = health.Readiness(conductor.database)
    app.config.update(
        MAX_CONTENT_LENGTH=_LARGEST_FORM,
        MAX_FORM_MEMORY_SIZE=_LARGEST_FORM,
        SEND_FILE_MAX_AGE_DEFAULT=timedelta(days=30),
        METRICS_TOKEN=_metrics_token(settings),
        RABBITMQ_MANAGEMENT_URL=settings.management_page,
        RABBITMQ_VHOST=settings.broker_vhost,
        HTTPS=settings.behind_proxy,
    )
    if settings.behind_proxy:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1)  # type: ignore[method-assign]
    app.url_map.converters |= {"number": Number, "small": SmallNumber}
    locale.init(app, errors.for_program)
    # Before CSRFProtect, so that every request without a login leads to the login page.
    app.before_request(_ask_to_log_in)
    csrf = CSRFProtect(app)
    errors.init(app)
    setup.init(app, conductor.database, settings)
    locale.translate_login(app)
    oidc.init(app, settings, csrf)
    webhooks.init(csrf)
    app.register_blueprint(webhooks.blueprint)
    app.register_blueprint(health.blueprint)
    app.register_blueprint(metrics.blueprint)
    filters.init(app, _admin(app))
    app.after_request(_hide_secrets)
    app.after_request(_harden)
    return app


def _admin(app: Flask) -> Admin:
    index, *others = views.make()
    admin = Admin(
        app,
        name="Syncflow",
        theme=Bootstrap4Theme(base_template="panel/base.html"),
        index_view=index,
        # Any value here stops Flask-Admin from publishing its own assets, which no page uses.
        static_url_path="/unused",
    )
    admin.add_views(*others)
    return admin


def _metrics_token(settings: Settings) -> str:
    token = settings.metrics_token
    return token.get_secret_value() if token else ""


def _ask_to_log_in() -> Response | None:
    if request.endpoint in _UNUSED:
        abort(404)
    if request.endpoint != "webhooks.receive" and _has_nul():
        abort(400)
    if not errors.for_program():
        _refuse_other_than_forms()
    if request.endpoint == "security.two_factor_token_validation" and _has_no_code_to_give():
        return redirect("/")
    if request.endpoint is None or request.endpoint in PUBLIC:
        return None
    if current_user.is_authenticated:
        with_password = session.get("oidc_user") != current_user.fs_uniquifier
        if with_password and current_user.must_change_password and request.endpoint not in _WITH_ONE_TIME_PASSWORD:
            flash(gettext("Your one-time password is used up. Choose a new password."), "info")
            return redirect(url_for("security.change_password"), code=303)
        if current_user.password is None and request.endpoint in _NEEDS_A_PASSWORD:
            abort(404)
        return None
    if filters.updating():
        abort(401)  # Not a redirect: the login page must not appear inside another page.
    back = request.full_path.rstrip("?") if request.method == "GET" else None
    return redirect(url_for("security.login", next=back), code=303)


def _refuse_other_than_forms() -> None:
    """Refuse a body of another type, which Flask-Security would read, and a password that cannot be hashed."""
    if request.mimetype not in _FORMS:
        abort(415)
    passwords = [value for name, value in request.form.items() if "password" in name]
    if any(len(value) > LONGEST_PASSWORD for value in passwords):
        abort(400, gettext(TOO_LONG, length=LONGEST_PASSWORD))


def _has_no_code_to_give() -> bool:
    """Return whether a user is logged in and sets up no second factor: Flask-Security would log this user out."""
    return current_user.is_authenticated and session.get("tf_state") != "validating_profile"


def _has_nul() -> bool:
    """Return whether a text contains NUL, which PostgreSQL's text columns refuse."""
    texts = [request.path, *request.args.values(), *request.form.values()]
    return any("\0" in text for text in texts)


def _hide_secrets(response: Response) -> Response:
    """Mask long secrets in every answer, whatever page shows them: they are in no text of the panel."""
    if request.endpoint != "static" and not response.is_streamed and response.mimetype in _TEXTS:
        text = response.get_data(as_text=True)
        if (hidden := hide_long(text)) != text:
            response.set_data(hidden)
    return response


def _harden(response: Response) -> Response:
    response.headers.update(_HEADERS)
    if current_app.config["HTTPS"]:
        response.headers["Strict-Transport-Security"] = "max-age=31536000"
    if request.endpoint != "static":
        response.headers["Cache-Control"] = "no-store"
    return response
