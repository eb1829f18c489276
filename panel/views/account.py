"""Account: the current user's profile, language, login settings and permissions."""

from __future__ import annotations

from flask import abort, current_app, url_for
from flask_security import current_user
from werkzeug import Response

from i18n import current_locale, gettext, gettext_noop
from panel.auth import accounts, forms, permissions, sessions
from panel.rendering import locale
from panel.views.base import PanelView, action, form_field, page, redirect_error, redirect_success


class Account(PanelView):
    title, path = gettext_noop("Your account"), "/account"
    in_menu = False

    @page("/")
    def index(self) -> str:
        return self.render(
            "panel/account.html",
            permissions=permissions.PERMISSIONS,
            mine=permissions.permissions_of(current_user),
            two_factor=forms.offers_two_factor(),
            languages=locale.all_languages(),
            sessions=sessions.of_user(current_user),
            is_this=sessions.is_this,
            limits=sessions.limits(),
        )

    @action("/language", needs="view")
    def speak(self) -> Response:
        """Set the user's language; empty: the browser's."""
        tag = form_field("language")
        if tag and tag not in locale.all_languages():
            abort(400, gettext("This language is not available."))
        people: accounts.Datastore = current_app.extensions["security"].datastore
        user = people.find_user(id=current_user.id)
        assert user is not None
        user.language = tag or None
        accounts.add_audit(user.email, "user.language", user.email, language=tag or None)
        people.db.session.commit()
        locale.set_locale_of(user)
        return redirect_success(
            gettext("The panel language is now {language}.", language=current_locale().name), url_for(".index")
        )

    @action("/sessions", needs="view")
    def end_sessions(self) -> Response:
        """End all sessions of the user except the current one."""
        sessions.end_others(current_user)
        self._keep("sessions.end")
        return redirect_success(gettext("All your other sessions have ended."), url_for(".index"))

    @action("/sessions/<small:number>", needs="view")
    def end_session(self, number: int) -> Response:
        """End one session of the user; it may be the current one."""
        if not sessions.end(current_user, number):
            return redirect_error(gettext("This session has already ended."), url_for(".index"))
        self._keep("session.end")
        return redirect_success(gettext("The session has ended."), url_for(".index"))

    def _keep(self, action: str) -> None:
        accounts.add_audit(self.current_email, action, self.current_email)
        current_app.extensions["security"].datastore.db.session.commit()
