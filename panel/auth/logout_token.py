"""Verify the token with which a login provider ends sessions (OpenID Connect Back-Channel Logout 1.0, 2.6)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry
from joserfc.jwt import JWTClaimsRegistry

_EVENT = "http://schemas.openid.net/event/backchannel-logout"

#: How far the provider's clock may differ, and how old a token may be, in seconds.
_LEEWAY = 120
_OLDEST = 300

#: Seconds between two readings of the provider's keys for a token with an unknown key: anyone may send such a token.
_READ_KEYS_SECONDS = 60.0


class Refused(Exception):
    """The token does not prove that the provider ends a session. The message says why, without the token."""


@dataclass(frozen=True)
class Claims:
    """Whose sessions end: those of the subject, those with this session id, or those with both."""

    iss: str
    sub: str | None
    sid: str | None


class _Keys:
    read_at = -_READ_KEYS_SECONDS


def verified(client: Any, token: str) -> Claims:
    """Return the claims of a logout token, with the keys of Authlib's client of the provider.

    Raises:
      Refused: the token is not the provider's, not for this client, or not a fresh logout token.
      OSError, AuthlibBaseError: the provider's keys cannot be read.
    """
    metadata = client.load_server_metadata()
    try:
        claims = _decoded(client, metadata, token)
        JWTClaimsRegistry(
            leeway=_LEEWAY,
            iss={"essential": True, "value": metadata["issuer"]},
            aud={"essential": True, "value": client.client_id},
            iat={"essential": True},
            jti={"essential": True},
        ).validate(claims)
    except (JoseError, ValueError, TypeError, KeyError) as error:
        raise Refused(f"the token cannot be verified: {type(error).__name__}") from None
    events, sub, sid = claims.get("events"), claims.get("sub"), claims.get("sid")
    if not (isinstance(events, dict) and isinstance(events.get(_EVENT), dict)) or "nonce" in claims:
        raise Refused("it is not a logout token")
    if claims["iat"] < time.time() - _OLDEST:
        raise Refused("the token is too old")
    if not all(name is None or isinstance(name, str) for name in (sub, sid)) or not (sub or sid):
        raise Refused("the token names neither a subject nor a session")
    return Claims(claims["iss"], sub or None, sid or None)


def _decoded(client: Any, metadata: dict[str, Any], token: str) -> dict[str, Any]:
    # A signature with the client's own secret (HS256), or none at all, would prove nothing here.
    named = metadata.get("id_token_signing_alg_values_supported") or ["RS256"]
    registry = JWSRegistry(
        algorithms=[name for name in named if not name.startswith(("HS", "none"))], strict_check_header=False
    )
    try:
        return _with_keys(client.fetch_jwk_set(), token, registry)
    except InvalidKeyIdError:
        if time.monotonic() < _Keys.read_at + _READ_KEYS_SECONDS:
            raise
        _Keys.read_at = time.monotonic()
        return _with_keys(client.fetch_jwk_set(force=True), token, registry)


def _with_keys(keys: Any, token: str, registry: JWSRegistry) -> dict[str, Any]:
    return jwt.decode(token, key=KeySet.import_key_set(keys), registry=registry).claims
