"""Set up login, sessions and roles with Flask-Security-Too."""

from __future__ import annotations

from typing import Any

from flask import Flask
from flask_security.core import Security
from flask_security.signals import password_changed
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from models.session import Database
from models.users import Role, User
from panel.auth import sessions, two_factor
from panel.auth.accounts import Datastore, add_audit
from panel.auth.forms import ThrottledChange, ThrottledLogin, ThrottledVerify
from panel.auth.password_rules import Rules
from panel.auth.settings import flask_security_settings
from settings import Settings


def init(app: Flask, database: Database, settings: Settings) -> scoped_session[Session]:
    """Set up login, sessions and roles on an app; return the database session that reads users."""
    app.extensions["syncflow_database"] = database
    app.config.update(flask_security_settings(settings.secret(), settings.behind_proxy))
    if settings.totp_secret is not None:
        app.config.update(two_factor.settings(settings.totp_secret.get_secret_value()))
    session = scoped_session(sessionmaker(database.engine, expire_on_commit=False))
    security = Security(
        app,
        Datastore(session, User, Role),
        login_form=ThrottledLogin,
        verify_form=ThrottledVerify,
        change_password_form=ThrottledChange,
        two_factor_verify_code_form=two_factor.ThrottledCode,
        mf_recovery_form=two_factor.ThrottledRecovery,
        totp_cls=two_factor.OnceTotp,
        password_util_cls=Rules,
    )
    security.want_json(lambda _request: False)
    # Only sessions log in. The token loader would read the request body before the route does.
    security.login_manager.request_loader(None)
    sessions.init(app, settings)
    password_changed.connect(_password_changed, app)
    two_factor.init(app, add_audit)
    app.teardown_appcontext(lambda _error: session.remove())
    return session


def _password_changed(_app: Any, user: User, **_rest: Any) -> None:
    user.must_change_password = False
    sessions.end_others(user)
    add_audit(user.email, "password.change", user.email)
