"""Who may use the panel, and with which role.

Only the panel and the migrations import this module: workers need no Flask.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from flask_security.core import RoleMixin, UserMixin
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, Json, utcnow

roles_users = sa.Table(
    "roles_users",
    Base.metadata,
    sa.Column("user_id", sa.ForeignKey("user.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("role_id", sa.ForeignKey("role.id", ondelete="CASCADE"), primary_key=True),
)


class Role(RoleMixin, Base):
    """viewer, operator or admin, with the named permissions the panel checks."""

    __tablename__ = "role"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(80), unique=True)
    description: Mapped[str | None] = mapped_column(sa.String(255))
    permissions: Mapped[list[str] | None] = mapped_column(Json)


class User(UserMixin, Base):
    """A user of the panel."""

    __tablename__ = "user"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(sa.String(255), unique=True)
    password: Mapped[str | None] = mapped_column(sa.String(255))
    active: Mapped[bool] = mapped_column(default=True)
    #: A new value ends all sessions of the user.
    fs_uniquifier: Mapped[str] = mapped_column(sa.String(64), unique=True)
    confirmed_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    last_login_at: Mapped[datetime | None]  # type: ignore[assignment]
    current_login_at: Mapped[datetime | None]  # type: ignore[assignment]
    last_login_ip: Mapped[str | None] = mapped_column(sa.String(64))
    current_login_ip: Mapped[str | None] = mapped_column(sa.String(64))
    login_count: Mapped[int] = mapped_column(default=0, server_default="0")
    tf_primary_method: Mapped[str | None] = mapped_column(sa.String(64))
    tf_totp_secret: Mapped[str | None] = mapped_column(sa.String(255))
    mf_recovery_codes: Mapped[list[str] | None] = mapped_column(Json)
    #: The last accepted code, which is not accepted again (RFC 6238, 5.2).
    tf_last_counter: Mapped[int | None] = mapped_column(sa.BigInteger)
    #: An admin set the password; the user must change it at the next login.
    must_change_password: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    #: Issuer and subject of the user at the OpenID Connect provider; none: password login only.
    oidc_subject: Mapped[str | None] = mapped_column(sa.String(512), unique=True)
    #: The language of the panel for this user, such as de; none: the browser's.
    language: Mapped[str | None] = mapped_column(sa.String(16))
    roles: Mapped[list[Role]] = relationship(secondary=roles_users, lazy="selectin")  # type: ignore[assignment]


class PanelSession(Base):
    """A login that has not ended. Its cookie holds a random token, the row only the token's hash."""

    __tablename__ = "panel_session"

    id: Mapped[int] = mapped_column(primary_key=True)
    token_hash: Mapped[str] = mapped_column(sa.String(64), unique=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("user.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    last_seen_at: Mapped[datetime] = mapped_column(default=utcnow)
    address: Mapped[str | None] = mapped_column(sa.String(64))
    user_agent: Mapped[str | None] = mapped_column(sa.String(255))
    #: The OpenID Connect provider logged the user in, and may end the session.
    by_provider: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    #: The provider's name for its own session (the claim `sid`), if it has one.
    provider_sid: Mapped[str | None] = mapped_column(sa.String(255))
