"""Create and change user accounts: used by the users page, OpenID Connect and `./syncflow create-admin`."""

from __future__ import annotations

import secrets
from typing import Any

from flask import Flask, current_app
from flask_security.core import Security
from flask_security.datastore import SQLAlchemySessionUserDatastore
from flask_security.utils import hash_password
from sqlalchemy.orm import scoped_session, sessionmaker

from i18n import gettext
from models.base import utcnow
from models.ledger import AuditEntry
from models.session import Database
from models.users import Role, User
from panel.auth import sessions
from panel.auth.password_rules import Rules
from panel.auth.permissions import ROLES
from panel.auth.settings import flask_security_settings


class Datastore(SQLAlchemySessionUserDatastore):
    """Ends the read transaction after each query.

    Otherwise the user's row, read at the start of a request, would pin an old snapshot while the
    conductor writes on its own connection, and SQLite would refuse a later write of the request.
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
        if rcs is not None:  # Flask-Security sends no signal for new codes; None is part of a reset.
            add_audit(user.email, "two_factor.recovery_codes", user.email)

    def mf_delete_recovery_code(self, user: Any, idx: int) -> bool:
        # The original changes the list in place. SQLAlchemy does not notice that, so the code would stay valid.
        user.mf_recovery_codes = [code for place, code in enumerate(user.mf_recovery_codes or []) if place != idx]
        self.db.session.add(user)
        return True

    def _end_reading(self) -> None:
        session = self.db.session
        if not (session.new or session.dirty or session.deleted):
            session.commit()


def add_audit(who: str, action: str, target: str, **details: Any) -> None:
    """Add an audit row to the transaction that changes users."""
    session = current_app.extensions["security"].datastore.db.session
    session.add(AuditEntry(who=who, action=action, target=target, details=details or None))


def create_user(database: Database, email: str, password: str, role: str, by: str = "command line") -> None:
    """Create a user without a request or a running web process.

    Raises:
      ValueError: the email address is invalid or taken, the password cannot be used, or the role unknown.
    """
    app = Flask("syncflow-people")
    app.extensions["syncflow_database"] = database
    # Nothing is signed with this key.
    app.config.update(flask_security_settings(secrets.token_hex(32), https=False))
    session = scoped_session(sessionmaker(database.engine, expire_on_commit=False))
    Security(app, Datastore(session, User, Role), register_blueprint=False, password_util_cls=Rules)
    with app.app_context():
        try:
            add_user(app.extensions["security"].datastore, email, password, role, by)
        finally:
            session.remove()


def add_user(people: Datastore, email: str, password: str, role: str, by: str, *, once: bool = False) -> None:
    """Create a user, inside an app context. `once`: the user must change the password at the first login.

    Raises:
      ValueError: as in `create_user`.
    """
    address = check_email(email)
    hashed = checked_hash(password, address)
    if people.find_user(email=address, case_insensitive=True) is not None:
        raise ValueError(gettext("{address} already has an account", address=address))
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
    """Return the role's row; create it on its first use.

    Raises:
      ValueError: the role is unknown.
    """
    if name not in ROLES:
        raise ValueError(
            gettext("role {name!r} does not exist; available roles: {roles}", name=name, roles=", ".join(ROLES))
        )
    role: Any = people.find_role(name) or people.create_role(name=name)
    role.permissions = sorted(ROLES[name])
    found: Role = role
    return found


def check_email(email: str) -> str:
    """Return the normalized address.

    Raises:
      ValueError: it is not an email address.
    """
    try:
        address: str = current_app.extensions["security"]._mail_util.validate(email.strip())
    except ValueError as error:
        raise ValueError(gettext("{email!r} is not a valid email address: {error}", email=email, error=error)) from None
    return address.lower()


def checked_hash(password: str, email: str) -> str:
    """Return the hash of a new password.

    Raises:
      ValueError: it is too short, too long or too easy to guess.
    """
    problems, normal = current_app.extensions["security"]._password_util.validate(password, True, email=email)
    if problems:
        raise ValueError(" ".join(problems))
    hashed: str = hash_password(normal)
    return hashed


def one_time_password() -> str:
    """Return a random password of 16 letters and digits in groups, about 79 bits."""
    letters = "abcdefghjkmnpqrstuvwxyz23456789"  # without characters that look alike
    return "-".join("".join(secrets.choice(letters) for _ in range(4)) for _ in range(4))


def end_sessions(user: User) -> None:
    """End all sessions of a user, and logins that wait for their second factor. The caller commits."""
    user.fs_uniquifier = secrets.token_hex(32)
    sessions.end_all(user)
