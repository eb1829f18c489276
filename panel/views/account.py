"""Your account: who you are here, what you may do, and how you log in."""

from __future__ import annotations

from flask import current_app, flash, redirect, url_for
from flask_security import current_user
from flask_security.utils import login_user
from werkzeug import Response

from panel import security
from panel.views.base import PanelView, action, page


class Account(PanelView):
    title, path = "Your account", "/account"
    in_menu = False

    @page("/")
    def index(self) -> str:
        return self.render(
            "panel/account.html",
            permissions=security.PERMISSIONS,
            mine=security.permissions_of(current_user),
            two_factor=security.offers_two_factor(),
        )

    @action("/sessions", needs="view")
    def end_sessions(self) -> Response:
        """End all sessions of this person but the one at hand."""
        people: security.Datastore = current_app.extensions["security"].datastore
        user = people.find_user(id=current_user.id)
        assert user is not None
        security.end_sessions(user)
        security.add_audit(user.email, "sessions.end", user.email)
        people.db.session.commit()
        login_user(user, remember=False)
        people.db.session.commit()
        flash("All your other sessions have ended.", "success")
        return redirect(url_for(".index"), code=303)
