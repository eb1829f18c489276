"""The second factor: codes of an authenticator app (TOTP, RFC 6238) and recovery codes, if TOTP_SECRET is set.

Flask-Security has the pages and the flow. This module adds: a code works once, wrong
codes are throttled, every change is audited, and the QR code needs no `data:` URL.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import qrcode  # type: ignore[import-untyped]
import qrcode.image.svg  # type: ignore[import-untyped]
from flask import Flask
from flask_security.forms import TwoFactorVerifyCodeForm
from flask_security.recovery_codes import MfRecoveryForm
from flask_security.signals import tf_disabled, tf_profile_changed
from flask_security.totp import Totp

from i18n import gettext, gettext_noop
from models.users import User
from panel.auth import login_throttle

#: How far a phone's clock may differ.
_CLOCK_SKEW = 30
_RECOVERY_CODES = 10


def settings(secret: str) -> dict[str, Any]:
    """Return the settings of Flask-Security for two-factor login."""
    return {
        "SECURITY_TWO_FACTOR": True,
        "SECURITY_TWO_FACTOR_ENABLED_METHODS": ["authenticator"],
        "SECURITY_TWO_FACTOR_RESCUE_EMAIL": False,
        "SECURITY_TWO_FACTOR_AUTHENTICATOR_VALIDITY": _CLOCK_SKEW,
        "SECURITY_TWO_FACTOR_POST_SETUP_VIEW": "/account/",
        "SECURITY_TOTP_SECRETS": {"1": secret},
        "SECURITY_TOTP_ISSUER": "Syncflow",
        "SECURITY_MULTI_FACTOR_RECOVERY_CODES": True,
        "SECURITY_MULTI_FACTOR_RECOVERY_CODES_N": _RECOVERY_CODES,
        "SECURITY_MULTI_FACTOR_RECOVERY_CODES_KEYS": [_fernet_key(secret)],
        "SECURITY_MSG_TWO_FACTOR_INVALID_TOKEN": (
            gettext_noop("The code is wrong or was already used. Wait for the next one."),
            "error",
        ),
        "SECURITY_MSG_TWO_FACTOR_CHANGE_METHOD_SUCCESSFUL": (
            gettext_noop("Two-factor login is on. Create recovery codes now in case you lose your phone."),
            "success",
        ),
        "SECURITY_MSG_TWO_FACTOR_DISABLED": (gettext_noop("Two-factor login is off."), "success"),
        "SECURITY_MSG_TWO_FACTOR_LOGIN_SUCCESSFUL": (gettext_noop("You are logged in."), "success"),
        "SECURITY_MSG_TWO_FACTOR_PERMISSION_DENIED": (gettext_noop("Log in with email and password first."), "info"),
        "SECURITY_MSG_INVALID_RECOVERY_CODE": (
            gettext_noop("The recovery code is wrong or was already used."),
            "error",
        ),
    }


def _fernet_key(secret: str) -> bytes:
    return base64.urlsafe_b64encode(hashlib.sha256(b"recovery codes " + secret.encode()).digest())


class OnceTotp(Totp):
    """Codes that work once, and a QR code as inline SVG."""

    def get_last_counter(self, user: Any) -> int | None:
        counter: int | None = user.tf_last_counter
        return counter

    def set_last_counter(self, user: Any, tmatch: Any) -> None:
        user.tf_last_counter = tmatch.counter

    def generate_qrcode(self, username: str, totp: str) -> str:
        address = self.get_totp_uri(username, totp)
        image = qrcode.make(address, image_factory=qrcode.image.svg.SvgPathImage, border=2)
        return str(image.to_string(encoding="unicode"))


class ThrottledCode(TwoFactorVerifyCodeForm):
    """The form for a code; at login it is throttled."""

    def validate(self, **kwargs: Any) -> bool:
        return super().validate(**kwargs) if self.is_setup else _throttled(self, super().validate, kwargs)


class ThrottledRecovery(MfRecoveryForm):
    """The throttled form for a recovery code."""

    def validate(self, **kwargs: Any) -> bool:
        return _throttled(self, super().validate, kwargs)


def _throttled(form: Any, validate: Any, kwargs: dict[str, Any]) -> bool:
    attempt = login_throttle.CODES.record_attempt(form.user.email)
    if attempt is None:
        form.form_errors = [*form.form_errors, gettext(login_throttle.TOO_MANY)]
        return False
    if not validate(**kwargs):
        return False
    login_throttle.record_success(attempt, "login.recovery_code" if isinstance(form, MfRecoveryForm) else "login")
    return True


def init(app: Flask, add_audit: Any) -> None:
    """Audit when a user turns two-factor login on or off."""

    def turned_on(_app: Any, user: User, **_rest: Any) -> None:
        add_audit(user.email, "two_factor.on", user.email)

    def turned_off(_app: Any, user: User, **_rest: Any) -> None:
        user.mf_recovery_codes = None
        add_audit(user.email, "two_factor.off", user.email)

    tf_profile_changed.connect(turned_on, app, weak=False)
    tf_disabled.connect(turned_off, app, weak=False)
