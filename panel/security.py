"""Who may enter and do what: login with Flask-Security-Too, three roles, one table of permissions."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any

from flask import Flask, current_app
from flask_security import current_user
from flask_security.core import Security
from flask_security.datastore import SQLAlchemySessionUserDatastore
from flask_security.forms import ChangePasswordForm, LoginForm, VerifyForm
from flask_security.signals import password_changed
from flask_security.utils import hash_password, verify_password
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from wtforms.validators import StopValidation

from i18n import mark, say
from models.base import utcnow
from models.ledger import AuditEntry
from models.people import Role, User
from models.session import Database
from panel import brake, twofactor
from settings import Settings

#: Every permission, in words.
PERMISSIONS = {
    "view": mark("see all pages but users and audit"),
    "retry": mark("send dead letters again"),
    "discard": mark("close dead letters unsent"),
    "edit": mark("edit records"),
    "replay": mark("apply received webhooks again"),
    "export": mark("download lists"),
    "settle": mark("settle conflicts"),
    "pause": mark("pause and resume systems"),
    "poll": mark("have a system polled now, test its connection"),
    "schedules": mark("run, pause and resume schedules"),
    "tasks": mark("begin, stop and resume long work"),
    "unsubscribe": mark("create and lift unsubscriptions"),
    "mappings": mark("change mappings"),
    "users": mark("manage users"),
    "audit": mark("read the audit trail"),
}

_OPERATOR = frozenset(PERMISSIONS) - {"mappings", "users", "audit"}

#: The one table that answers "who may do what".
ROLES: dict[str, frozenset[str]] = {
    "viewer": frozenset({"view"}),
    "operator": _OPERATOR,
    "admin": frozenset(PERMISSIONS),
}

PASSWORD_LENGTH = 12

#: A person who has not used the panel for this long logs in again.
SESSION_LIFETIME = timedelta(hours=12)

#: Changing how one logs in asks for the password again when it was given longer ago than this.
FRESH = timedelta(minutes=30)


def allowed(permission: str) -> bool:
    """Whether the person of this request may do that."""
    return permission in permissions_of(current_user)


def permissions_of(user: Any) -> frozenset[str]:
    """What a person's roles add up to; nothing for a stranger."""
    if not user.is_authenticated:
        return frozenset()
    return frozenset().union(*(ROLES.get(role.name, frozenset()) for role in user.roles))


class Datastore(SQLAlchemySessionUserDatastore):
    """Ends the read transaction after each look-up.

    Otherwise the person's row, read at the start of a request, would pin an old snapshot while the
    conductor writes on a connection of its own, and SQLite would refuse a later write of ours.
    """

    def find_user(self, case_insensitive: bool = False, **kwargs: Any) -> User | None:
        found: Any = super().find_user(case_insensitive=case_insensitive, **kwargs)
        self._end_reading()
        user: User | None = found
        return user

    def find_role(self, role: str) -> Role | None:
        found: Any = super().find_role(role)
        self._end_reading()
        row: Role | None = found
        return row

    def mf_set_recovery_codes(self, user: Any, rcs: list[str] | None) -> None:
        super().mf_set_recovery_codes(user, rcs)
        if rcs is not None:  # Flask-Security sends no signal of new ones; None is a part of a reset.
            add_audit(user.email, "two_factor.recovery_codes", user.email)

    def mf_delete_recovery_code(self, user: Any, idx: int) -> bool:
        # The original takes it out of the list in place, which nobody notices: the code would work again.
        user.mf_recovery_codes = [code for place, code in enumerate(user.mf_recovery_codes or []) if place != idx]
        self.db.session.add(user)
        return True

    def _end_reading(self) -> None:
        session = self.db.session
        if not (session.new or session.dirty or session.deleted):
            session.commit()


class Throttled(LoginForm):
    """The login form, refusing to look at a password after too many wrong ones."""

    remember = None  # type: ignore[assignment]

    def validate(self, **kwargs: Any) -> bool:
        attempt = brake.PASSWORDS.begin(self.email.data or "")
        if attempt is None:
            self.form_errors.append(say(brake.TOO_MANY))
            return False
        if not super().validate(**kwargs):
            return False
        second = offers_two_factor() and self.user is not None and self.user.tf_primary_method
        brake.succeeded(attempt, "login.password" if second else "login")
        return True


class _PresentPassword:
    """A form that asks for the present password: in an open session too, guessing it is slowed as at the login."""

    def validate_password(self, field: Any) -> None:
        attempt = brake.PASSWORDS.begin(current_user.email)
        if attempt is None:
            raise StopValidation(say(brake.TOO_MANY))
        # The form refuses a wrong one by itself. It is looked at here as well, since what else may be
        # wrong with the form, such as a new password that is too short, is no failed guess.
        given = current_app.extensions["security"]._password_util.normalize(field.data or "")
        if verify_password(given, current_user.password):
            brake.succeeded(attempt, "password.verify")


class ThrottledVerify(_PresentPassword, VerifyForm):
    """The form that asks for the password again before a change of how one logs in."""


class ThrottledChange(_PresentPassword, ChangePasswordForm):
    """The form for a new password."""


def offers_two_factor() -> bool:
    """Whether TOTP_SECRET is set."""
    return bool(current_app.config.get("SECURITY_TWO_FACTOR"))


def init(app: Flask, database: Database, settings: Settings) -> scoped_session[Session]:
    """Set up login, sessions and roles on an app; returns the session people are read with."""
    app.extensions["syncflow_database"] = database
    app.config.update(_flask_security_settings(settings.secret(), settings.behind_proxy))
    if settings.totp_secret is not None:
        app.config.update(twofactor.settings(settings.totp_secret.get_secret_value()))
    session = scoped_session(sessionmaker(database.engine, expire_on_commit=False))
    security = Security(
        app,
        Datastore(session, User, Role),
        login_form=Throttled,
        verify_form=ThrottledVerify,
        change_password_form=ThrottledChange,
        two_factor_verify_code_form=twofactor.BrakedCode,
        mf_recovery_form=twofactor.BrakedRecovery,
        totp_cls=twofactor.OnceTotp,
    )
    security.want_json(lambda _request: False)
    # Only sessions log in. The loader for tokens would read every request's body before its own route does.
    security.login_manager.request_loader(None)
    password_changed.connect(_password_changed, app)
    twofactor.init(app, add_audit)
    app.teardown_appcontext(lambda _error: session.remove())
    return session


def _password_changed(_app: Any, user: User, **_rest: Any) -> None:
    user.must_change_password = False
    add_audit(user.email, "password.change", user.email)


def add_audit(who: str, action: str, target: str, **details: Any) -> None:
    """Put an audit row into the transaction in which people are being changed."""
    session = current_app.extensions["security"].datastore.db.session
    session.add(AuditEntry(who=who, action=action, target=target, details=details or None))


def _flask_security_settings(secret: str, https: bool) -> dict[str, Any]:
    return {
        "SECRET_KEY": secret,
        # Without a pepper, so that the secret key may be changed and a command needs none: argon2
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
        "SECURITY_MSG_UNAUTHENTICATED": (mark("Log in to see this page."), "info"),
        "SECURITY_MSG_GENERIC_AUTHN_FAILED": (mark("Email or password is wrong."), "error"),
        "SECURITY_FRESHNESS": FRESH,
        "SECURITY_FRESHNESS_GRACE_PERIOD": timedelta(minutes=10),
        "SECURITY_MSG_REAUTHENTICATION_REQUIRED": (
            mark("Your password once more, since this changes how you log in."),
            "info",
        ),
        "SECURITY_MSG_REAUTHENTICATION_SUCCESSFUL": (mark("Thank you. Go on."), "success"),
        "SECURITY_MSG_PASSWORD_CHANGE": (mark("Your password is changed; all other sessions have ended."), "success"),
        "SESSION_COOKIE_NAME": "syncflow",
        "SESSION_COOKIE_HTTPONLY": True,
        "SESSION_COOKIE_SAMESITE": "Lax",
        "SESSION_COOKIE_SECURE": https,
        "PERMANENT_SESSION_LIFETIME": SESSION_LIFETIME,
        # A token lives as long as the session: a page left open over lunch still works.
        "WTF_CSRF_TIME_LIMIT": None,
    }


# --- people: used by the panel's users page and by ./syncflow create-admin ---------------------------


def create_user(database: Database, email: str, password: str, role: str, by: str = "command line") -> None:
    """Create a person. Needs no request and no running web process.

    Raises:
      ValueError: with words: no email address, a short password, an unknown role, or taken.
    """
    app = Flask("syncflow-people")
    app.extensions["syncflow_database"] = database
    # Nothing is signed here, so any key will do.
    app.config.update(_flask_security_settings(secrets.token_hex(32), https=False))
    session = scoped_session(sessionmaker(database.engine, expire_on_commit=False))
    Security(app, Datastore(session, User, Role), register_blueprint=False)
    with app.app_context():
        try:
            add_user(app.extensions["security"].datastore, email, password, role, by)
        finally:
            session.remove()


def add_user(people: Datastore, email: str, password: str, role: str, by: str, *, once: bool = False) -> None:
    """Create a person, inside an app context. `once`: the password must be changed at the first login.

    Raises:
      ValueError: with words.
    """
    address = check_email(email)
    hashed = checked_hash(password)
    if people.find_user(email=address, case_insensitive=True) is not None:
        raise ValueError(say("{address} has an account already", address=address))
    people.create_user(
        email=address,
        password=hashed,
        roles=[find_role(people, role)],
        confirmed_at=utcnow(),
        must_change_password=once,
    )
    add_audit(by, "user.create", address, role=role)
    people.db.session.commit()


def find_role(people: Datastore, name: str) -> Role:
    """The role's row, made at its first use.

    Raises:
      ValueError: there is no such role.
    """
    if name not in ROLES:
        raise ValueError(say("there is no role {name!r}; there are {roles}", name=name, roles=", ".join(ROLES)))
    role: Any = people.find_role(name) or people.create_role(name=name)
    role.permissions = sorted(ROLES[name])
    found: Role = role
    return found


def check_email(email: str) -> str:
    """The address in its normal form.

    Raises:
      ValueError: it is none.
    """
    try:
        address: str = current_app.extensions["security"]._mail_util.validate(email.strip())
    except ValueError as error:
        raise ValueError(say("{email!r} is no email address: {error}", email=email, error=error)) from None
    return address.lower()


def checked_hash(password: str) -> str:
    """The hash of an acceptable password.

    Raises:
      ValueError: it is too short.
    """
    problems, normal = current_app.extensions["security"]._password_util.validate(password, True)
    if problems:
        raise ValueError(say("the password is too short: at least {length} characters", length=PASSWORD_LENGTH))
    hashed: str = hash_password(normal)
    return hashed


def one_time_password() -> str:
    """A password to tell somebody once: 16 letters and digits in groups, about 79 bits."""
    letters = "abcdefghjkmnpqrstuvwxyz23456789"  # none that look alike
    return "-".join("".join(secrets.choice(letters) for _ in range(4)) for _ in range(4))


def end_sessions(user: User) -> None:
    """Log a person out everywhere."""
    user.fs_uniquifier = secrets.token_hex(32)
