"""Login and password forms that count failed attempts."""

from __future__ import annotations

from typing import Any

from flask import current_app
from flask_security import current_user
from flask_security.forms import ChangePasswordForm, LoginForm, VerifyForm
from flask_security.utils import validate_redirect_url, verify_password
from wtforms.validators import StopValidation

from i18n import gettext
from panel.auth import login_throttle


class _OwnPagesOnly:
    """A form that leads on to `next`, but ignores a page of another host: that is no reason to refuse a password."""

    next: Any

    def leave_out_other_hosts(self) -> None:
        if self.next.data and not validate_redirect_url(self.next.data):
            self.next.data = ""


class ThrottledLogin(_OwnPagesOnly, LoginForm):
    """The login form; after too many wrong passwords it does not check another one."""

    remember = None  # type: ignore[assignment]

    def validate(self, **kwargs: Any) -> bool:
        self.leave_out_other_hosts()
        attempt = login_throttle.PASSWORDS.record_attempt(self.email.data or "")
        if attempt is None:
            self.form_errors.append(gettext(login_throttle.TOO_MANY))
            return False
        if not super().validate(**kwargs):
            return False
        second = offers_two_factor() and self.user is not None and self.user.tf_primary_method
        login_throttle.record_success(attempt, "login.password" if second else "login")
        return True


class _CurrentPasswordForm:
    """A form that requires the current password; wrong ones are throttled as at the login."""

    def validate_password(self, field: Any) -> None:
        attempt = login_throttle.PASSWORDS.record_attempt(current_user.email)
        if attempt is None:
            raise StopValidation(gettext(login_throttle.TOO_MANY))
        # The form rejects a wrong password itself. It is also checked here because other errors of the
        # form, such as a new password that is too short, are not failed attempts.
        given = current_app.extensions["security"]._password_util.normalize(field.data or "")
        if verify_password(given, current_user.password):
            login_throttle.record_success(attempt, "password.verify")


class ThrottledVerify(_OwnPagesOnly, _CurrentPasswordForm, VerifyForm):
    """The form that requires the password again before login settings change."""

    def validate(self, **kwargs: Any) -> bool:
        self.leave_out_other_hosts()
        return bool(super().validate(**kwargs))


class ThrottledChange(_CurrentPasswordForm, ChangePasswordForm):
    """The form for a new password."""


def offers_two_factor() -> bool:
    """Return whether TOTP_SECRET is set."""
    return bool(current_app.config.get("SECURITY_TWO_FACTOR"))
