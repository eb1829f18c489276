"""Who sent a webhook: the usual ways of proving it, over the raw body."""

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
#: secret itself in `Authorization`; `none`: nothing, which has to be written down to be meant.
Scheme = Literal["hmac", "standard", "bearer", "none"]

_STANDARD_SECRET = re.compile(r"(whsec_)?[A-Za-z0-9+/]{2,}={0,2}")


@dataclass(frozen=True)
class Signature:
    """One system's way. `secrets` may hold several, separated by blanks; without one nothing fits."""

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
                if not _STANDARD_SECRET.fullmatch(secret):  # the library would drop what is no base64
                    raise ValueError("is no secret of Standard Webhooks: whsec_ and base64")

    def verify(self, body: bytes, headers: Mapping[str, str]) -> None:
        """Header names are lower case. Raises `BadSignature`."""
        if self.scheme == "none":
            return
        # All of them are tried, so that the time taken does not tell which one is in use.
        if not any([self._fits(secret, body, headers) for secret in secrets_of(self.secrets)]):
            raise BadSignature("the signature does not fit")

    def _fits(self, secret: str, body: bytes, headers: Mapping[str, str]) -> bool:
        if self.scheme == "standard":
            try:
                Webhook(secret).verify(body, dict(headers), json_parse=False)
            except (WebhookVerificationError, ValueError):  # the latter: no base64, no UTF-8, no version
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
