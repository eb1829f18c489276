"""The settings of Flask-Security, shared by the web application and the command line."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from i18n import gettext_noop
from models.base import utcnow

PASSWORD_LENGTH = 12

#: Changing login settings requires the password again if it was entered longer ago than this.
FRESH = timedelta(minutes=30)


def flask_security_settings(secret: str, https: bool) -> dict[str, Any]:
    return {
        "SECRET_KEY": secret,
        # Without a pepper, so that the secret key can change and commands need no key: argon2
        # salts each password itself.
        "SECURITY_PASSWORD_HASH": "argon2",
        "SECURITY_PASSWORD_SINGLE_HASH": {"argon2"},
        "SECURITY_PASSWORD_LENGTH_MIN": PASSWORD_LENGTH,
        "SECURITY_EMAIL_VALIDATOR_ARGS": {"check_deliverability": False, "globally_deliverable": False},
        "SECURITY_REGISTERABLE": False,
        "SECURITY_RECOVERABLE": False,
        "SECURITY_CHANGEABLE": True,
        "SECURITY_TRACKABLE": True,
        "SECURITY_SEND_PASSWORD_CHANGE_EMAIL": False,
        "SECURITY_RETURN_GENERIC_RESPONSES": True,
        "SECURITY_DATETIME_FACTORY": utcnow,
        "SECURITY_API_ENABLED_METHODS": ["session"],
        "SECURITY_POST_LOGIN_VIEW": "/",
        "SECURITY_POST_LOGOUT_VIEW": "/login",
        "SECURITY_POST_CHANGE_VIEW": "/",
        "SECURITY_MSG_UNAUTHENTICATED": (gettext_noop("Log in to see this page."), "info"),
        "SECURITY_MSG_GENERIC_AUTHN_FAILED": (gettext_noop("Email or password is wrong."), "error"),
        "SECURITY_FRESHNESS": FRESH,
        "SECURITY_FRESHNESS_GRACE_PERIOD": timedelta(minutes=10),
        "SECURITY_MSG_REAUTHENTICATION_REQUIRED": (
            gettext_noop("Enter your password again to change your login settings."),
            "info",
        ),
        "SECURITY_MSG_REAUTHENTICATION_SUCCESSFUL": (gettext_noop("Password confirmed."), "success"),
        "SECURITY_MSG_PASSWORD_CHANGE": (
            gettext_noop("Your password was changed. All your other sessions have ended."),
            "success",
        ),
        "SESSION_COOKIE_NAME": "syncflow",
        "SESSION_COOKIE_HTTPONLY": True,
        "SESSION_COOKIE_SAMESITE": "Lax",
        "SESSION_COOKIE_SECURE": https,
        # A row of the database says how long a session lasts, see panel/auth/sessions.py.
        "SESSION_REFRESH_EACH_REQUEST": False,
        # A token is valid as long as the session, so that a page left open still works.
        "WTF_CSRF_TIME_LIMIT": None,
    }
