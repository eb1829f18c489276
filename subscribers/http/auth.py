"""Authentication of calls, as `requests` auth objects."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import requests
from pydantic import SecretStr
from requests.auth import AuthBase

from redaction import remember
from subscribers.errors import SystemDown
from subscribers.http.failures import describe_error, network_error, retry_after
from subscribers.http.transport import MAX_LOGIN_BYTES, new_session

#: A token is renewed this long before it expires, or a tenth of its lifetime if that is less.
_RENEW_MARGIN_SECONDS = 60.0


class HeaderAuth(AuthBase):
    """A constant header; without a name no header is sent, nor the login of a ~/.netrc."""

    def __init__(self, name: str = "", value: str = "") -> None:
        self.name, self.value = name, value
        remember(f"header {name}", value.rpartition(" ")[2])

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.name:
            request.headers[self.name] = self.value
        return request


class ClientCredentials(AuthBase):
    """OAuth 2.0 client credentials (RFC 6749, section 4.4).

    A process has one token. It is fetched with the first call, renewed before it expires, and renewed
    when a call is answered 401. That call is repeated, since a 401 means that it had no effect.
    """

    def __init__(
        self,
        token_url: str,
        client_id: str,
        client_secret: SecretStr,
        *,
        parameters: Mapping[str, str] | None = None,
        in_body: bool = False,
        ca_bundle: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`parameters` are sent too (`scope`, `audience`). `in_body`: send id and secret in the body, not as Basic."""
        self._url = token_url
        self._login = (client_id, client_secret)
        remember(f"login of {token_url}", client_secret.get_secret_value(), users=(client_id,))
        self._parameters = {"grant_type": "client_credentials", **(parameters or {})}
        self._in_body = in_body
        self._ca_bundle = ca_bundle
        self._clock = clock
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = 0.0

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._header()
        request.hooks["response"].append(self._answered)
        return request

    def _answered(self, response: requests.Response, **options: Any) -> requests.Response:
        refused = response.request.headers.get("Authorization")
        if response.status_code != 401 or refused is None:  # None after a redirect to another host
            return response
        _ = response.content  # read the body, so that the connection can be reused
        request = response.request.copy()
        request.headers["Authorization"] = self._header(instead_of=refused)
        again: requests.Response = response.connection.send(request, **options)
        again.history.append(response)
        return again

    def _header(self, instead_of: str | None = None) -> str:
        with self._lock:
            if not self._token or self._clock() >= self._renew_at or f"Bearer {self._token}" == instead_of:
                self._fetch()
            return f"Bearer {self._token}"

    def _fetch(self) -> None:
        name, secret = self._login[0], self._login[1].get_secret_value()
        body, login = dict(self._parameters), None
        if self._in_body:
            body |= {"client_id": name, "client_secret": secret}
        else:
            login = (name, secret)
        self._token = ""
        requested_at = self._clock()
        try:
            with new_session(self._ca_bundle, max_response_bytes=MAX_LOGIN_BYTES) as session:
                response = session.post(self._url, data=body, auth=login, allow_redirects=False)
        except requests.RequestException as error:
            raise SystemDown(f"no token: {network_error(error, writes=False)}") from None
        if response.status_code != 200:
            words = describe_error(response)[0]
            raise SystemDown(f"no token ({response.status_code}: {words})", after=retry_after(response))
        self._token, lifetime = _token_in(response)
        remember(f"token of {self._url}", self._token)
        self._renew_at = requested_at + lifetime - min(_RENEW_MARGIN_SECONDS, lifetime / 10)


def _token_in(response: requests.Response) -> tuple[str, float]:
    """Return the token and its lifetime in seconds; without `expires_in` it is used until it is refused."""
    try:
        body = response.json()
        token, lifetime = body["access_token"], float(body.get("expires_in") or "inf")
    except (ValueError, TypeError, KeyError, AttributeError):
        raise SystemDown("no token: the response has no access_token") from None
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
        raise SystemDown("no token: the access_token has characters that an HTTP header cannot carry")
    return token, lifetime


__all__ = ["ClientCredentials", "HeaderAuth"]
