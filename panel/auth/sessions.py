"""Sessions, each a row of the database, so that one ends wherever its cookie is.

The cookie holds a random token, and the row its hash. A session is valid while its row exists, for SESSION_SECONDS
after the login (OIDC_SESSION_SECONDS if the provider logged the user in) and SESSION_IDLE_SECONDS after its last use.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from flask import Flask, current_app, request, session
from flask_login import user_logged_in, user_logged_out  # type: ignore[import-untyped]
from sqlalchemy.orm import Session

from models.base import utcnow
from models.session import Database, is_read_only
from models.users import PanelSession, User
from panel.rendering.filters import updating
from settings import Settings

#: The key of the token in the cookie.
_TOKEN = "session"

#: The time of the last use is written at most this often.
_PRECISION = timedelta(minutes=1)


@dataclass(frozen=True)
class Limits:
    """How long a session lasts after its login, by password or by the provider, and after its last use."""

    by_password: timedelta
    by_provider: timedelta
    idle: timedelta

    @classmethod
    def from_settings(cls, settings: Settings) -> Limits:
        return cls(
            timedelta(seconds=settings.session_seconds),
            timedelta(seconds=min(settings.session_seconds, settings.oidc_session_seconds)),
            timedelta(seconds=settings.session_idle_seconds),
        )

    def valid(self, now: datetime) -> sa.ColumnElement[bool]:
        """Return the condition that a row is within all limits."""
        by_provider = PanelSession.by_provider.is_(True)
        return sa.and_(
            PanelSession.created_at > now - self.by_password,
            sa.or_(sa.not_(by_provider), PanelSession.created_at > now - self.by_provider),
            PanelSession.last_seen_at > now - self.idle,
        )


def init(app: Flask, settings: Settings) -> None:
    """Begin a session with each login, accept no user without one, and end it with the logout."""
    limits = Limits.from_settings(settings)
    app.extensions["syncflow_session_limits"] = limits
    # The browser keeps the cookie for as long as any session may last; the row decides.
    app.config["PERMANENT_SESSION_LIFETIME"] = limits.by_password
    manager: Any = app.login_manager  # type: ignore[attr-defined]
    load = manager._user_callback

    def load_with_session(user_id: str) -> User | None:
        user: User | None = load(user_id)
        return user if user is not None and _is_valid(user) else None

    manager.user_loader(load_with_session)
    user_logged_in.connect(_begin, app)
    user_logged_out.connect(_end_this, app)


def limits() -> Limits:
    """Return the limits of this app."""
    found: Limits = current_app.extensions["syncflow_session_limits"]
    return found


def of_user(user: User) -> Sequence[PanelSession]:
    """Return the user's sessions, the last used first."""
    mine = sa.select(PanelSession).where(PanelSession.user_id == user.id, limits().valid(utcnow()))
    return _database_session().scalars(mine.order_by(PanelSession.last_seen_at.desc())).all()


def is_this(row: PanelSession) -> bool:
    """Return whether a row is the session of this request."""
    return row.token_hash == _this_hash()


def end(user: User, number: int) -> bool:
    """End one session of a user; return whether there was one. The caller commits."""
    which = sa.delete(PanelSession).where(PanelSession.user_id == user.id, PanelSession.id == number)
    return bool(_database_session().execute(which.returning(PanelSession.id)).all())


def end_all(user: User) -> None:
    """End all sessions of a user. The caller commits."""
    _database_session().execute(sa.delete(PanelSession).where(PanelSession.user_id == user.id))


def end_others(user: User) -> None:
    """End all sessions of a user except that of this request. The caller commits."""
    others = PanelSession.token_hash != _this_hash()
    _database_session().execute(sa.delete(PanelSession).where(PanelSession.user_id == user.id, others))


def mark_by_provider(sid: object) -> None:
    """Note that the provider began this session, under the name `sid` if it has one. The caller commits."""
    this = PanelSession.token_hash == _this_hash()
    values = {"by_provider": True, "provider_sid": _provider_sid(sid)}
    _database_session().execute(sa.update(PanelSession).where(this).values(values))


def end_by_provider(user: User | None, sid: object) -> list[int]:
    """End the sessions that the provider began: of a user, or under a name, or both. Return their users' ids.

    A session without a name belongs to every name of its user. The caller commits.
    """
    named, unnamed = PanelSession.provider_sid == _provider_sid(sid), PanelSession.provider_sid.is_(None)
    of_sid = sa.true() if sid is None else named if user is None else sa.or_(named, unnamed)
    of_user = sa.true() if user is None else PanelSession.user_id == user.id
    which = sa.delete(PanelSession).where(PanelSession.by_provider.is_(True), of_sid, of_user)
    return list(_database_session().scalars(which.returning(PanelSession.user_id)))


def _provider_sid(sid: object) -> str | None:
    return str(sid)[:255] if sid is not None else None


def _begin(_app: Any, user: User) -> None:
    """Begin a session. The login commits it."""
    database_session = _database_session()
    replaced = PanelSession.token_hash == _this_hash()
    database_session.execute(sa.delete(PanelSession).where(sa.or_(replaced, sa.not_(limits().valid(utcnow())))))
    token = secrets.token_urlsafe(32)
    database_session.add(
        PanelSession(
            token_hash=_hash(token),
            user_id=user.id,
            address=request.remote_addr,
            user_agent=request.user_agent.string[:255],
        )
    )
    session[_TOKEN] = token
    session.permanent = True


def _end_this(_app: Any, **_rest: Any) -> None:
    _database_session().execute(sa.delete(PanelSession).where(PanelSession.token_hash == _this_hash()))
    _database_session().commit()
    session.pop(_TOKEN, None)


def _is_valid(user: User) -> bool:
    """Return whether the session of this request is the user's and within its limits; note that it is used."""
    now, this = utcnow(), PanelSession.token_hash == _this_hash()
    valid = sa.select(PanelSession.last_seen_at).where(this, PanelSession.user_id == user.id, limits().valid(now))
    database: Database = current_app.extensions["syncflow_database"]
    with database.read_autocommit() as connection:
        last_seen = connection.execute(valid).scalar()
    if last_seen is None:
        return False
    # The updates of a live page are no use: a page that is left open does not prolong its session.
    if last_seen < now - _PRECISION and not updating():
        try:
            with database.write() as connection:
                connection.execute(sa.update(PanelSession).where(this).values(last_seen_at=now))
        except sa.exc.DBAPIError as error:
            if not is_read_only(error):  # pages can be read during a failover
                raise
    return True


def _this_hash() -> str:
    """Return the hash of this request's token; that of an empty text belongs to no session."""
    return _hash(str(session.get(_TOKEN, "")))


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _database_session() -> Session:
    found: Session = current_app.extensions["security"].datastore.db.session
    return found
