"""Users: who may log in and with which role."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from flask import abort, current_app, request, url_for
from flask_security import current_user
from sqlalchemy.orm import Session
from werkzeug import Response

from i18n import gettext, gettext_noop
from models.users import User
from panel.auth import accounts, permissions
from panel.views.base import PanelView, action, form_field, page, redirect_error, redirect_success


class Users(PanelView):
    title, path, icon, group, needs = gettext_noop("Users"), "/users", "users", gettext_noop("Administration"), "users"

    @page("/", needs="users")
    def index(self) -> str:
        return self._page()

    @action("/", needs="users")
    def create(self) -> str | tuple[str, int]:
        password = accounts.one_time_password()
        try:
            accounts.add_user(
                self._people, form_field("email"), password, form_field("role"), self.current_email, once=True
            )
        except ValueError as error:
            return self._page(str(error)), 422
        return self._page(one_time=(form_field("email").lower(), password))

    @action("/<small:number>/role", needs="users")
    def role(self, number: int) -> Response:
        user = self._other(number)
        try:
            role = accounts.find_role(self._people, form_field("role"))
        except ValueError as error:
            return redirect_error(str(error), url_for(".index"))
        before = [old.name for old in user.roles]
        user.roles = [role]
        self._keep(user, "user.role", before=before, after=role.name)
        return redirect_success(
            gettext("{email} now has the role {role}.", email=user.email, role=role.name), url_for(".index")
        )

    @action("/<small:number>/active", needs="users")
    def active(self, number: int) -> Response:
        user = self._other(number)
        user.active = form_field("active") == "yes"
        self._keep(user, "user.enable" if user.active else "user.disable")
        words = (
            gettext("{email} can log in again.", email=user.email)
            if user.active
            else gettext("{email} was logged out and can no longer log in.", email=user.email)
        )
        return redirect_success(words, url_for(".index"))

    @action("/<small:number>/password", needs="users")
    def password(self, number: int) -> str | Response:
        user = self._other(number)
        if user.password is None:
            return redirect_error(
                gettext("{email} logs in through the login provider and has no password.", email=user.email),
                url_for(".index"),
            )
        password = accounts.one_time_password()
        user.password = accounts.checked_hash(password, user.email)
        user.must_change_password = True
        self._keep(user, "user.password")
        return self._page(one_time=(user.email, password))

    @action("/<small:number>/two-factor", needs="users")
    def two_factor(self, number: int) -> Response:
        user = self._other(number)
        self._people.tf_reset(user)
        user.mf_recovery_codes = None
        self._keep(user, "user.two_factor_off")
        words = gettext("Two-factor login of {email} is off. The user can set it up again.", email=user.email)
        return redirect_success(words, url_for(".index"))

    @property
    def _people(self) -> accounts.Datastore:
        people: accounts.Datastore = current_app.extensions["security"].datastore
        return people

    @property
    def _session(self) -> Session:
        session: Session = self._people.db.session
        return session

    def _other(self, number: int) -> User:
        """Return another user. Admins cannot change themselves, so that the last admin cannot be removed by mistake."""
        user = self._people.find_user(id=number)
        if user is None:
            abort(404)
        if user.id == current_user.id:
            abort(
                409,
                gettext(
                    "You cannot change your own user. Ask another admin, or change your password under Your account."
                ),
            )
        return user

    def _keep(self, user: User, action: str, **details: Any) -> None:
        accounts.end_sessions(user)
        accounts.add_audit(self.current_email, action, user.email, **details)
        self._session.commit()

    def _page(self, problem: str = "", one_time: tuple[str, str] | None = None) -> str:
        people = self._session.scalars(sa.select(User).order_by(User.email)).all()
        return self.render(
            "panel/users.html",
            people=people,
            roles=permissions.ROLES,
            permissions=permissions.PERMISSIONS,
            problem=problem,
            one_time=one_time,
            form=request.form if one_time is None else {},
        )
