"""Verify the sender of a webhook by the usual schemes, over the raw body."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import SecretStr
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from subscribers.errors import BadSignature
from subscribers.http.client import same_secret, secrets_of

#: `standard`: Standard Webhooks 1.0 (Svix); `hmac`: a digest of the body in a header; `bearer`: the
#: secret itself in `Authorization`; `none`: no verification, which must be chosen explicitly.
Scheme = Literal["hmac", "standard", "bearer", "none"]

_STANDARD_SECRET = re.compile(r"(whsec_)?[A-Za-z0-9+/]{2,}={0,2}")


@dataclass(frozen=True)
class Signature:
    """The scheme of one system. `secrets` may have several, separated by spaces; without one, nothing verifies."""

    scheme: Scheme
    secrets: SecretStr
    header: str = "x-signature"
    prefix: str = ""
    encoding: Literal["hex", "base64"] = "hex"
    digest: Literal["sha1", "sha256", "sha512"] = "sha256"

    def __post_init__(self) -> None:
        """Raises ValueError for a secret that this scheme cannot use."""
        if self.scheme == "standard":
            for secret in secrets_of(self.secrets):
                if not _STANDARD_SECRET.fullmatch(secret):  # the library would ignore invalid base64
                    raise ValueError("is not a Standard Webhooks secret: whsec_ followed by base64")

    def verify(self, body: bytes, headers: Mapping[str, str]) -> None:
        """Verify a webhook; header names are lower case. Raises `BadSignature`."""
        if self.scheme == "none":
            return
        # All secrets are tried, so that the response time does not reveal which one matches.
        if not any([self._fits(secret, body, headers) for secret in secrets_of(self.secrets)]):
            raise BadSignature("the signature is wrong")

    def _fits(self, secret: str, body: bytes, headers: Mapping[str, str]) -> bool:
        if self.scheme == "standard":
            try:
                Webhook(secret).verify(body, dict(headers), json_parse=False)
            except (WebhookVerificationError, ValueError):  # ValueError: invalid base64, UTF-8 or version
                return False
            return True
        if self.scheme == "bearer":
            kind, _, given = headers.get("authorization", "").partition(" ")
            return kind.lower() == "bearer" and same_secret(given.strip(), secret)
        given = headers.get(self.header.lower(), "").strip()
        if not given.startswith(self.prefix):
            return False
        expected = hmac.new(secret.encode(), body, getattr(hashlib, self.digest)).digest()
        if self.encoding == "hex":
            return same_secret(given.removeprefix(self.prefix).lower(), expected.hex())
        return same_secret(given.removeprefix(self.prefix), base64.b64encode(expected).decode())


__all__ = ["Scheme", "Signature"]
