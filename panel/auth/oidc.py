"""Log in with OpenID Connect, if OIDC_ISSUER, OIDC_CLIENT_ID and OIDC_CLIENT_SECRET are set.

The authorization code flow with state, nonce and PKCE (OpenID Connect Core 1.0, 3.1; RFC 7636), by
Authlib; the provider's addresses and keys come from its discovery document.
"""

from __future__ import annotations

import logging
from typing import Any

from authlib.common.errors import AuthlibBaseError  # type: ignore[import-untyped]
from authlib.integrations.flask_client import FlaskOAuth2App, OAuth  # type: ignore[import-untyped]
from authlib.integrations.requests_client import OAuth2Session  # type: ignore[import-untyped]
from flask import Blueprint, Flask, abort, current_app, flash, jsonify, redirect, request, session, url_for
from flask_security.utils import login_user
from flask_wtf.csrf import CSRFProtect  # type: ignore[import-untyped]
from joserfc.errors import JoseError
from werkzeug import Response

from i18n import gettext, gettext_noop
from models.base import utcnow
from models.users import User
from panel.auth import accounts, logout_token, permissions, sessions
from settings import Settings
from subscribers.http.transport import MAX_LOGIN_BYTES, LimitedSession, limit_session

logger = logging.getLogger(__name__)

blueprint = Blueprint("oidc", __name__, url_prefix="/login/oidc")

_NAME = "oidc"
#: The value of OIDC_DEFAULT_ROLE that refuses users without a role.
_NO_ROLE = "none"

_AWAY = gettext_noop("The login provider does not answer. Try again, or log in with your password.")

_WITHOUT_ROLE = gettext_noop(
    "You have no role in Syncflow. Ask an admin to give you one, or to create an account for you, then log in again."
)


class _Session(LimitedSession, OAuth2Session):  # type: ignore[misc]
    """A session with the provider, of which each call is limited in time and size."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        limit_session(self, most=MAX_LOGIN_BYTES)


class _Client(FlaskOAuth2App):  # type: ignore[misc]
    client_cls = _Session


class Refused(Exception):
    """The provider's user may not log in; the message gives the user the reason."""


def init(app: Flask, settings: Settings, csrf: CSRFProtect) -> None:
    """Offer the login if it is configured."""
    app.config["OIDC"] = bool(settings.oidc_issuer)
    csrf.exempt(end)  # the provider has no session, and signs its request
    app.register_blueprint(blueprint)
    if settings.oidc_client_secret is None:
        return
    app.config["OIDC_SETTINGS"] = settings
    OAuth(app).register(
        _NAME,
        client_cls=_Client,
        client_id=settings.oidc_client_id,
        client_secret=settings.oidc_client_secret.get_secret_value(),
        server_metadata_url=f"{settings.oidc_issuer}/.well-known/openid-configuration",
        client_kwargs={"scope": "openid email profile", "code_challenge_method": "S256", "timeout": 10},
    )


@blueprint.get("/")
def begin() -> Response:
    """Redirect the user to the provider."""
    client = _client()
    session["oidc_next"] = request.args.get("next", "")
    try:
        answer: Response = client.authorize_redirect(url_for("oidc.back", _external=True))
    except (AuthlibBaseError, OSError, ValueError) as error:
        return _failed(error, gettext(_AWAY))
    return answer


@blueprint.get("/return")
def back() -> Response:
    """Handle the provider's redirect: verify the token, find or create the account, log in."""
    client = _client()
    if "error" in request.args:
        return _failed(
            None, gettext("The login provider rejected the login: {error}.", error=request.args["error"][:80])
        )
    try:
        token = client.authorize_access_token()
    except (AuthlibBaseError, JoseError, OSError, ValueError, KeyError) as error:
        return _failed(error, gettext("The login could not be verified. Try again."))
    if not token.get("userinfo"):
        return _failed(None, gettext("The login provider sent no ID token. It may not support OpenID Connect."))
    try:
        user = _person(token["userinfo"], current_app.config["OIDC_SETTINGS"])
    except Refused as refusal:
        _people().db.session.commit()  # keeps the roles that the refused user has lost
        return _failed(None, str(refusal))
    login_user(user, remember=False, authn_via=["oidc"])
    sessions.mark_by_provider(token["userinfo"].get("sid"))
    session["oidc_user"] = user.fs_uniquifier
    accounts.add_audit(user.email, "login", request.remote_addr or "", by="OpenID Connect")
    _people().db.session.commit()
    return redirect(_next(session.pop("oidc_next", "")), code=303)


@blueprint.post("/backchannel-logout")
def end() -> tuple[Response, int]:
    """End the sessions that the provider's logout token names (OpenID Connect Back-Channel Logout 1.0)."""
    client = _client()
    try:
        claims = logout_token.verified(client, request.form.get("logout_token", ""))
    except logout_token.Refused as error:
        logger.warning("logout by the login provider refused: %s", error)
        return jsonify(error="invalid_request", error_description=str(error)), 400
    except (AuthlibBaseError, OSError) as error:
        logger.warning("logout by the login provider failed, its keys cannot be read: %s", type(error).__name__)
        return jsonify(error="temporarily_unavailable"), 503
    user = None
    if claims.sub is not None:
        user = _people().find_user(oidc_subject=_subject(claims.iss, claims.sub))
    if user is not None or claims.sub is None:
        ended = sessions.end_by_provider(user, claims.sid)
        for number in sorted(set(ended)):
            person = _people().find_user(id=number)
            accounts.add_audit("OpenID Connect", "sessions.end", person.email if person else str(number))
        _people().db.session.commit()
    return jsonify(), 200


def _subject(issuer: object, sub: object) -> str:
    """Return how an account names its user at the provider."""
    return f"{issuer} {sub}"[:512]


def _client() -> Any:
    if not current_app.config["OIDC"]:
        abort(404)
    return current_app.extensions["authlib.integrations.flask_client"].create_client(_NAME)


def _people() -> accounts.Datastore:
    people: accounts.Datastore = current_app.extensions["security"].datastore
    return people


def _failed(error: Exception | None, words: str) -> Response:
    if error is not None:
        # Log only the class: the message may quote secrets of the exchange.
        logger.warning("login with OpenID Connect failed: %s", type(error).__name__)
    flash(words, "error")
    return redirect(url_for("security.login"), code=303)


def _next(path: str) -> str:
    # Redirect only within the panel, as after a login with a password.
    ours = path.isprintable() and path.startswith("/") and not path.startswith(("//", "/\\"))
    return path if ours else "/"


def _person(claims: dict[str, Any], settings: Settings) -> User:
    """Return the account for the provider's claims; create it at the first login.

    With OIDC_ROLE_CLAIM its role is the claim's, whatever it was before.

    Raises:
      Refused: the user may not log in.
    """
    people = _people()
    subject = _subject(claims["iss"], claims["sub"])
    role = _role(claims, settings)
    user = people.find_user(oidc_subject=subject)
    if user is None:
        user = _newcomer(claims, subject, role, settings.oidc_default_role)
    if not user.active:
        raise Refused(gettext("This account is disabled. An admin can enable it under Users."))
    if role is not None:
        _follow(user, role)
    return user


def _follow(user: User, role: str) -> None:
    """Give the user exactly the role of the claim.

    Raises:
      Refused: it is `none`. The user's sessions have ended.
    """
    before, after = [old.name for old in user.roles], [] if role == _NO_ROLE else [role]
    if before != after:
        user.roles = [accounts.find_role(_people(), name) for name in after]
        accounts.end_sessions(user)
        accounts.add_audit("OpenID Connect", "user.role", user.email, before=before, after=role)
    if not after:
        raise Refused(gettext(_WITHOUT_ROLE))


def _newcomer(claims: dict[str, Any], subject: str, role: str | None, default: str) -> User:
    people = _people()
    # An address that the provider has not verified may belong to another user.
    if not claims.get("email") or claims.get("email_verified") is not True:
        raise Refused(gettext("The login provider has not verified your email address."))
    try:
        email = accounts.check_email(str(claims["email"]))
    except ValueError:
        raise Refused(gettext("The login provider sent no valid email address.")) from None
    known = people.find_user(email=email, case_insensitive=True)
    if role == _NO_ROLE or (known is None and default == _NO_ROLE and role is None):
        raise Refused(gettext(_WITHOUT_ROLE))
    if known is not None:
        if known.oidc_subject is not None:
            raise Refused(
                gettext("This email address belongs to another account of the login provider. Ask an admin for help.")
            )
        known.oidc_subject = subject
        accounts.add_audit("OpenID Connect", "user.connect", email)
        return known
    user: Any = people.create_user(
        email=email,
        password=None,
        roles=[accounts.find_role(people, role or default)],
        confirmed_at=utcnow(),
        oidc_subject=subject,
    )
    accounts.add_audit("OpenID Connect", "user.create", email, role=role or default)
    found: User = user
    return found


def _role(claims: dict[str, Any], settings: Settings) -> str | None:
    """Return the highest role that the claim contains, else OIDC_DEFAULT_ROLE; None if no claim gives roles."""
    if not settings.oidc_role_claim:
        return None
    named = claims.get(settings.oidc_role_claim)
    names = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    return next((role for role in reversed(permissions.ROLES) if role in names), settings.oidc_default_role)
