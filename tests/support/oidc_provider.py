"""A small OpenID Connect provider on loopback: discovery, authorize, token and keys, checking what a client must send.

It logs in whoever `person` says, without asking, and refuses a token for a wrong secret, redirect
address or PKCE verifier (OpenID Connect Core 1.0, 3.1; RFC 7636).
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

from joserfc import jwt
from joserfc.jwk import RSAKey
from werkzeug import Request, Response
from werkzeug.serving import WSGIRequestHandler, make_server

CLIENT_ID = "syncflow-panel"
CLIENT_SECRET = "client-secret-nobody-may-see"


class Provider:
    def __init__(self) -> None:
        self.issuer = ""
        self.person: dict[str, Any] = {}
        #: Put into the ID token over what is right, to be a provider that lies.
        self.lies: dict[str, Any] = {}
        self.key = self._published = RSAKey.generate_key(2048, {"kid": "one"})
        self.asked: dict[str, dict[str, str]] = {}

    def sign_with_another_key(self) -> None:
        self.key = RSAKey.generate_key(2048, {"kid": "one"})

    def logout_token(self, **claims: Any) -> str:
        """Return a signed logout token; a claim that is None is left out."""
        now = int(time.time())
        event: dict[str, Any] = {"http://schemas.openid.net/event/backchannel-logout": {}}
        right = {"iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 120, "jti": "j", "events": event}
        kept = {name: value for name, value in {**right, **claims}.items() if value is not None}
        header = {"alg": "RS256", "kid": self.key.kid, "typ": "logout+jwt"}
        return jwt.encode(header, kept, self.key)

    def __call__(self, environ: Any, start: Any) -> Any:
        request = Request(environ)
        answer = {
            "/.well-known/openid-configuration": self._discovery,
            "/authorize": self._authorize,
            "/token": self._token,
            "/keys": self._keys,
        }[request.path](request)
        return answer(environ, start)

    def _discovery(self, _request: Request) -> Response:
        places = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
        return _json(
            {name: f"{self.issuer}/{path}" for name, path in places.items()}
            | {"issuer": self.issuer, "id_token_signing_alg_values_supported": ["RS256"]}
        )

    def _keys(self, _request: Request) -> Response:
        return _json({"keys": [self._published.as_dict(private=False)]})

    def _authorize(self, request: Request) -> Response:
        asked = dict(request.args)
        assert asked["client_id"] == CLIENT_ID and asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256" and "openid" in asked["scope"].split()
        code = secrets.token_hex(8)
        self.asked[code] = asked
        query = urlencode({"code": code, "state": asked["state"]})
        return Response(status=302, headers={"Location": f"{asked['redirect_uri']}?{query}"})

    def _token(self, request: Request) -> Response:
        form, login = request.form, request.authorization
        asked = self.asked.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        right = (
            asked is not None
            and asked["code_challenge"] == challenge
            and asked["redirect_uri"] == form.get("redirect_uri")
            and login is not None
            and (login.username, login.password) == (CLIENT_ID, CLIENT_SECRET)
        )
        if not right or asked is None:
            return _json({"error": "invalid_grant"}, 400)
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 60, "nonce": asked["nonce"]}
        token = jwt.encode({"alg": "RS256", "kid": "one"}, {**claims, **self.person, **self.lies}, self.key)
        return _json({"access_token": "a", "token_type": "Bearer", "id_token": token})


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value), status=status, content_type="application/json")


class _Silent(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None: ...


@contextmanager
def provider() -> Iterator[Provider]:
    made = Provider()
    server = make_server("127.0.0.1", 0, made, threaded=True, request_handler=_Silent)
    made.issuer = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
