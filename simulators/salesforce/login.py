"""Login: the SOAP login, and the OAuth flows password, client_credentials and JWT bearer.

SOAP guide: `login()`; help pages "OAuth 2.0 Username-Password Flow", "OAuth 2.0 Client Credentials Flow" and
"OAuth 2.0 JWT Bearer Flow".
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable
from hmac import compare_digest
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import jwt

from .org import Credentials, Org
from .store import API_USER
from .wire import Request, Response, reply

_SOAP = "http://schemas.xmlsoap.org/soap/envelope/"
_BAD_LOGIN = "Invalid username, password, security token; or user locked out."


def soap_login(org: Org, request: Request, version: str) -> Response:
    """Answer `login`: 200 with a sessionId, or 500 with a SOAP fault that names the reason."""
    try:
        given = _soap_arguments(request.body)
    except ElementTree.ParseError as error:
        return _soap_fault("UNKNOWN_EXCEPTION", f"the envelope is not XML: {error}")
    wanted = org.credentials
    # The token is appended to the password, unless the client's address is trusted.
    passwords = (wanted.password + wanted.security_token, wanted.password)
    known = _same(given.get("username", ""), wanted.username)
    fits = any([_same(given.get("password", ""), password) for password in passwords])
    if not (known and fits) or org.faults.take("reject_login", request):
        return _soap_fault("INVALID_LOGIN", _BAD_LOGIN)
    return _soap_session(org, version)


def token(org: Org, request: Request) -> Response:
    """Answer the token endpoint: 200 with an access_token, or 400 with `error` and `error_description`."""
    form = request.form()
    flow = _FLOWS.get(form.get("grant_type", ""))
    if flow is None:
        return _refuse("unsupported_grant_type", "grant type not supported")
    if org.faults.take("reject_login", request):
        return _refuse("invalid_grant", "authentication failure")
    return flow(org, request, form) or _grant(org)


def revoke(org: Org, request: Request) -> Response:
    """Answer the OAuth revoke endpoint."""
    known = org.end_session(request.form().get("token", "") or request.parameter("token"))
    return Response(200) if known else _refuse("unsupported_token_type", "this token type is not supported")


def _password_flow(org: Org, request: Request, form: dict[str, str]) -> Response | None:
    wanted = org.credentials
    if not _client_fits(wanted, form.get("client_id", ""), form.get("client_secret", "")):
        return _refuse("invalid_client_id", "client identifier invalid")
    passwords = (wanted.password + wanted.security_token, wanted.password)
    fits = any([_same(form.get("password", ""), password) for password in passwords])
    if not (fits and _same(form.get("username", ""), wanted.username)):
        return _refuse("invalid_grant", "authentication failure")
    return None


def _client_credentials_flow(org: Org, request: Request, form: dict[str, str]) -> Response | None:
    client_id, secret = _basic(request.headers.get("authorization", ""))
    if not _client_fits(
        org.credentials, client_id or form.get("client_id", ""), secret or form.get("client_secret", "")
    ):
        return _refuse("invalid_client", "invalid client credentials")
    return None


def _jwt_flow(org: Org, request: Request, form: dict[str, str]) -> Response | None:
    wanted = org.credentials
    if not wanted.jwt_public_key:
        return _refuse("invalid_grant", "invalid assertion: no certificate is installed in the connected app")
    try:
        # The audience is the login host of the real system, never the simulator's own address.
        claims = jwt.decode(
            form.get("assertion", ""),
            wanted.jwt_public_key,
            algorithms=["RS256"],
            options={"verify_aud": False},
        )
    except jwt.ExpiredSignatureError:
        return _refuse("invalid_grant", "expired authorization code")
    except jwt.InvalidTokenError:
        return _refuse("invalid_grant", "invalid assertion")
    if claims.get("iss") != wanted.client_id:
        return _refuse("invalid_client_id", "client identifier invalid")
    if claims.get("sub") != wanted.username:
        return _refuse("invalid_grant", "user hasn't approved this consumer")
    return None


_FLOWS: dict[str, Callable[[Org, Request, dict[str, str]], Response | None]] = {
    "password": _password_flow,
    "client_credentials": _client_credentials_flow,
    "urn:ietf:params:oauth:grant-type:jwt-bearer": _jwt_flow,
}


def _grant(org: Org) -> Response:
    return reply(
        {
            "access_token": org.new_session(),
            "instance_url": org.url,
            "id": f"{org.url}/id/{org.organization_id}/{API_USER}",
            "token_type": "Bearer",
            "issued_at": str(int(time.time() * 1000)),
            "scope": "api",
        }
    )


def _refuse(error: str, description: str) -> Response:
    return reply({"error": error, "error_description": description}, 400)


def _client_fits(wanted: Credentials, client_id: str, secret: str) -> bool:
    return _same(client_id, wanted.client_id) and _same(secret, wanted.client_secret)


def _same(given: str, wanted: str) -> bool:
    return compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def _basic(header: str) -> tuple[str, str]:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        client_id, _, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return client_id, secret


def _soap_arguments(body: bytes) -> dict[str, str]:
    """Return the text of every element inside `login`, by its name without namespace."""
    login = ElementTree.fromstring(body).find(f"{{{_SOAP}}}Body/*")
    return {} if login is None else {one.tag.rpartition("}")[2]: one.text or "" for one in login}


def _soap_session(org: Org, version: str) -> Response:
    server_url = f"{org.url}/services/Soap/u/{version}/{org.organization_id[:15]}"
    body = (
        f"<loginResponse><result><metadataServerUrl>{org.url}/services/Soap/m/{version}</metadataServerUrl>"
        f"<passwordExpired>false</passwordExpired><sandbox>true</sandbox><serverUrl>{server_url}</serverUrl>"
        f"<sessionId>{org.new_session()}</sessionId><userId>{API_USER}</userId>"
        f"<userInfo><organizationId>{org.organization_id}</organizationId><userId>{API_USER}</userId></userInfo></result></loginResponse>"
    )
    return _envelope(200, body)


def _soap_fault(code: str, message: str) -> Response:
    text = escape(message)
    body = (
        f"<soapenv:Fault><faultcode>sf:{code}</faultcode><faultstring>{code}: {text}</faultstring><detail>"
        f'<sf:LoginFault xsi:type="sf:LoginFault"><sf:exceptionCode>{code}</sf:exceptionCode>'
        f"<sf:exceptionMessage>{text}</sf:exceptionMessage></sf:LoginFault></detail></soapenv:Fault>"
    )
    return _envelope(500, body)


def _envelope(status: int, body: str) -> Response:
    text = (
        f'<?xml version="1.0" encoding="UTF-8"?><soapenv:Envelope xmlns:soapenv="{_SOAP}" '
        'xmlns="urn:partner.soap.sforce.com" xmlns:sf="urn:fault.partner.soap.sforce.com" '
        f'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>{body}</soapenv:Body></soapenv:Envelope>'
    )
    return Response(status, text.encode(), "text/xml;charset=UTF-8")
