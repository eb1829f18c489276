"""The three ways to log in: user name and password (SOAP), client credentials and JWT bearer (OAuth 2.0)."""

from __future__ import annotations

import re
import time
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.parsers.expat import ExpatError

import jwt
import requests
from simple_salesforce.exceptions import SalesforceAuthenticationFailed
from simple_salesforce.login import SalesforceLogin, token_login

from redaction import hide, remember
from subscribers.errors import SystemDown
from subscribers.http.failures import network_error, retry_after
from subscribers.http.transport import MAX_LOGIN_BYTES, new_session
from subscribers.salesforce.identifiers import full_id
from subscribers.salesforce.options import SalesforceOptions

#: The organisation in the response to a login: in SOAP an element, in OAuth a part of the address of the user.
_ORGANIZATION = re.compile(r"<organizationId>(\w+)</organizationId>|/id/(00D\w+)/")

#: Pause in seconds after a refused login: repeated attempts lock the user.
LOGIN_PAUSE_SECONDS = 300.0


@dataclass(frozen=True)
class Login:
    """A new session, and the organisation that it belongs to; None if the response does not tell."""

    session_id: str
    host: str
    organization_id: str | None


def log_in(options: SalesforceOptions) -> Login:
    """Return a new session.

    Raises:
      SystemDown: the login failed.
    """
    answers: list[requests.Response] = []
    try:
        with new_session(options.ca_bundle or None, max_response_bytes=MAX_LOGIN_BYTES) as session:
            session.hooks["response"].append(lambda response, **_: answers.append(response))
            token, host = LOGIN_CALLS[options.login_kind()](options, session)
    except SalesforceAuthenticationFailed as error:
        _raise_trouble(answers, in_words=isinstance(error.code, str))
        text = " ".join(hide(f"{error.code}: {error.auth_message}").split())[:300]
        raise SystemDown(f"the login is refused ({text})", after=LOGIN_PAUSE_SECONDS) from None
    except requests.RequestException as error:
        raise SystemDown(f"cannot log in: {network_error(error, writes=False)}") from None
    except (AttributeError, ValueError, ExpatError, OSError) as error:
        # The library does not validate the response: a proxy's page causes any of these.
        _raise_trouble(answers, in_words=False)
        raise SystemDown(f"cannot log in: {type(error).__name__}", after=LOGIN_PAUSE_SECONDS) from None
    remember("salesforce session", token)
    return Login(token, host.rstrip("/"), _organization_id(answers))


def _organization_id(answers: Sequence[requests.Response]) -> str | None:
    found = _ORGANIZATION.search(answers[-1].text) if answers else None
    return full_id(found[1] or found[2]) if found else None


def _raise_trouble(answers: Sequence[requests.Response], *, in_words: bool) -> None:
    """Raise `SystemDown` with a short pause if a temporary problem, not a refusal, ended the login.

    A refusal has a message from Salesforce. The status is not reliable: SOAP reports a wrong password with a 500,
    and a response that ends in its headers has a status and no body.
    """
    status = answers[-1].status_code if answers else 0
    if answers and (not in_words or status == 429 or status > 500):
        raise SystemDown(f"cannot log in: {status} without a login", after=retry_after(answers[-1])) from None


def _password_login(options: SalesforceOptions, session: requests.Session) -> tuple[str, str]:
    return SalesforceLogin(
        username=options.username,
        password=options.password.get_secret_value(),
        security_token=options.security_token.get_secret_value(),
        domain=options.domain,
        scratch_url=options.instance_url,
        sf_version=options.api_version,
        session=session,
    )


def _client_credentials_login(options: SalesforceOptions, session: requests.Session) -> tuple[str, str]:
    pair = f"{options.consumer_key}:{options.consumer_secret.get_secret_value()}"
    headers = {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}
    return _token(options, {"grant_type": "client_credentials"}, headers, session)


def _jwt_login(options: SalesforceOptions, session: requests.Session) -> tuple[str, str]:
    claims = {
        "iss": options.consumer_key,
        "sub": options.username,
        "aud": audience(options),
        "exp": int(time.time()) + 180,
    }
    assertion = jwt.encode(claims, Path(options.privatekey_file).read_bytes(), algorithm="RS256")
    remember("salesforce login", assertion)
    grant = "urn:ietf:params:oauth:grant-type:jwt-bearer"
    return _token(options, {"grant_type": grant, "assertion": assertion}, None, session)


def audience(options: SalesforceOptions) -> str:
    """Return the audience of a JWT: one address for all sandboxes, one for all other orgs."""
    is_sandbox = options.domain == "test" or ".sandbox." in f"{options.domain}. {options.instance_url}"
    return f"https://{'test' if is_sandbox else 'login'}.salesforce.com"


def _token(
    options: SalesforceOptions, data: dict[str, str], headers: dict[str, str] | None, session: requests.Session
) -> tuple[str, str]:
    host = options.instance_url or f"https://{options.domain}.salesforce.com"
    url = f"{host}/services/oauth2/token"
    return token_login(url, data, options.domain, options.consumer_key, headers, None, session)


LOGIN_CALLS: Mapping[str, Callable[[SalesforceOptions, requests.Session], tuple[str, str]]] = {
    "password": _password_login,
    "client_credentials": _client_credentials_login,
    "jwt": _jwt_login,
}
