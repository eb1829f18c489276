"""The web application: everything registered in one place."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from flask import Flask, abort, current_app, flash, redirect, request, session, url_for
from flask.sessions import SecureCookieSessionInterface, SessionMixin
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
from panel.overview_cache import OverviewCache
from panel.rendering import filters, locale
from panel.routes import health, metrics, webhooks
from panel.views.base import LARGEST_ID, LARGEST_SMALL_ID
from settings import Settings

#: What a stranger may ask for. Everything else needs a login, also what is added later.
PUBLIC = {
    "static", "webhooks.receive", "health.healthz", "metrics.metrics", "security.login",
    # The second step of a login, and the way over another provider: each knows who may go on there.
    "security.two_factor_token_validation", "security.mf_recovery", "oidc.begin", "oidc.back",
}  # fmt: skip

#: What a person may reach who has to choose a password first.
_WITH_ONE_TIME_PASSWORD = {"security.change_password", "security.logout"}

#: What makes no sense for a person who logs in over another provider.
_NEEDS_A_PASSWORD = {
    "security.change_password", "security.verify", "security.two_factor_setup",
    "security.two_factor_setup_validate", "security.mf_recovery_codes",
}  # fmt: skip

#: Routes Flask-Security brings along that this panel has no use for.
_UNUSED = {"security.static", "security.two_factor_rescue", "security.tf_select"}

#: Only what this server itself serves may run, load or be sent to; nothing inline.
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

#: The largest form, a list of records for an unsubscription; bytes.
_LARGEST_FORM = 4 * 1024 * 1024


class Number(IntegerConverter):
    """A row's id in a URL: a number that fits the column, or there is no such page."""

    def __init__(self, map: Map) -> None:
        super().__init__(map, max=LARGEST_ID)


class SmallNumber(IntegerConverter):
    """The same of a table whose ids are 32 bits wide: PostgreSQL refuses to compare them with more."""

    def __init__(self, map: Map) -> None:
        super().__init__(map, max=LARGEST_SMALL_ID)


class _Sessions(SecureCookieSessionInterface):
    """A page that updates itself is no sign of a person: it does not make a session longer."""

    def should_set_cookie(self, app: Flask, session: SessionMixin) -> bool:
        return session.modified or (not filters.updating() and super().should_set_cookie(app, session))


def create_app(conductor: Conductor, settings: Settings) -> Flask:
    """The panel, the webhook routes and the health pages over one conductor."""
    app = Flask("panel", root_path=str(Path(__file__).parent))
    app.extensions["syncflow"] = conductor
    app.extensions["syncflow_overview"] = OverviewCache(conductor.reports.overview_version, conductor.reports.overview)
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
    app.session_interface = _Sessions()
    locale.init(app, errors.for_program)
    # Before CSRFProtect, so that a stranger is asked to log in, whatever he sends.
    app.before_request(_ask_to_log_in)
    csrf = CSRFProtect(app)
    errors.init(app)
    setup.init(app, conductor.database, settings)
    locale.translate_login(app)
    oidc.init(app, settings)
    webhooks.init(csrf)
    app.register_blueprint(webhooks.blueprint)
    app.register_blueprint(health.blueprint)
    app.register_blueprint(metrics.blueprint)
    filters.init(app, _admin(app))
    app.after_request(_harden)
    return app


def _admin(app: Flask) -> Admin:
    index, *others = views.make()
    admin = Admin(
        app,
        name="Syncflow",
        theme=Bootstrap4Theme(base_template="panel/base.html"),
        index_view=index,
        # With any value here Flask-Admin does not publish its own assets: no page of ours uses them.
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
    if request.endpoint is None or request.endpoint in PUBLIC:
        return None
    if current_user.is_authenticated:
        if not session.permanent:
            session.permanent = True  # for SESSION_LIFETIME, counted from the last request a person made
        with_password = session.get("oidc_user") != current_user.fs_uniquifier
        if with_password and current_user.must_change_password and request.endpoint not in _WITH_ONE_TIME_PASSWORD:
            flash(gettext("Your password was good for one login. Choose your own."), "info")
            return redirect(url_for("security.change_password"), code=303)
        if current_user.password is None and request.endpoint in _NEEDS_A_PASSWORD:
            abort(404)
        return None
    if filters.updating():
        abort(401)  # a login page has no place in the middle of another page
    back = request.full_path.rstrip("?") if request.method == "GET" else None
    return redirect(url_for("security.login", next=back), code=303)


def _has_nul() -> bool:
    """Whether a text holds a character that PostgreSQL's text columns refuse."""
    texts = [request.path, *request.args.values(), *request.form.values()]
    return any("\0" in text for text in texts)


def _harden(response: Response) -> Response:
    response.headers.update(_HEADERS)
    if current_app.config["HTTPS"]:
        response.headers["Strict-Transport-Security"] = "max-age=31536000"
    if request.endpoint != "static":
        response.headers["Cache-Control"] = "no-store"
    return response
