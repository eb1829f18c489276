"""Account: the current user's profile, language, login settings and permissions."""

from __future__ import annotations

from flask import abort, current_app, flash, redirect, url_for
from flask_security import current_user
from flask_security.utils import login_user
from werkzeug import Response

from i18n import current_locale, gettext, gettext_noop
from panel.auth import accounts, forms, permissions
from panel.rendering import locale
from panel.views.base import PanelView, action, form_field, page, redirect_success


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
        people: accounts.Datastore = current_app.extensions["security"].datastore
        user = people.find_user(id=current_user.id)
        assert user is not None
        accounts.end_sessions(user)
        accounts.add_audit(user.email, "sessions.end", user.email)
        people.db.session.commit()
        login_user(user, remember=False)
        people.db.session.commit()
        flash(gettext("All your other sessions have ended."), "success")
        return redirect(url_for(".index"), code=303)
