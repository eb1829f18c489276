"""Each way of signing a webhook, checked against an independent implementation where there is one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from standardwebhooks.webhooks import Webhook

from subscribers.errors import BadSignature, BadWebhook
from subscribers.http.signatures import Signature
from subscribers.rest import RestOptions, RestSubscriber, RestSystem

BODY = b'{"type": "contact.deleted", "data": {"id": 9}}'
OLD = "whsec_" + base64.b64encode(b"o" * 24).decode()
NEW = base64.b64encode(b"n" * 24).decode()


def standard(secret: str = NEW, at: datetime | None = None, **changes: str) -> dict[str, str]:
    """Headers as the reference library signs them."""
    at = at or datetime.now(UTC)
    signed = Webhook(secret).sign("evt_1", at, BODY.decode())
    headers = {"webhook-id": "evt_1", "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": signed}
    return headers | {name.replace("_", "-"): value for name, value in changes.items()}


def fits(signature: Signature, headers: dict[str, str], body: bytes = BODY) -> bool:
    try:
        signature.verify(body, headers)
    except BadSignature:
        return False
    return True


def digest(name: str = "sha256", secret: str = "new") -> bytes:
    return hmac.new(secret.encode(), BODY, getattr(hashlib, name)).digest()


STANDARD = Signature("standard", SecretStr(f"{OLD} {NEW}"))


#: Signed when the test runs, not when it is collected: a signature is good for 5 minutes.
STANDARD_CASES: dict[str, tuple[Callable[[], dict[str, str]], bool]] = {
    "new": (standard, True),
    "old, still taken": (lambda: standard(OLD), True),
    "among others": (lambda: standard(webhook_signature="v1,AAAA v1a,xx " + standard()["webhook-signature"]), True),
    "another secret": (lambda: standard(base64.b64encode(b"x" * 24).decode()), False),
    "too old": (lambda: standard(at=datetime.now(UTC) - timedelta(minutes=6)), False),
    "too new": (lambda: standard(at=datetime.now(UTC) + timedelta(minutes=6)), False),
    "another id": (lambda: standard(webhook_id="evt_2"), False),
    "no time": (lambda: standard(webhook_timestamp="soon"), False),
    "no signature": (lambda: standard(webhook_signature="v1"), False),
    "no base64": (lambda: standard(webhook_signature="v1,\xe4"), False),
    "empty": (lambda: standard(webhook_signature=""), False),
    "nothing": (dict, False),
}


@pytest.mark.parametrize("case", STANDARD_CASES)
def test_standard_webhooks(case: str) -> None:
    headers, taken = STANDARD_CASES[case]
    assert fits(STANDARD, headers()) is taken


@given(st.binary(), st.dictionaries(st.sampled_from(sorted(standard())), st.text()))
def test_a_stranger_gets_nothing_but_a_refusal(body: bytes, headers: dict[str, str]) -> None:
    for scheme in ("standard", "hmac", "bearer"):
        secret = SecretStr(NEW)
        assert not fits(Signature(scheme, secret), {**headers, "x-signature": "", "authorization": "x"}, body)


@pytest.mark.parametrize(
    ("chosen", "given"),
    [
        ({}, digest().hex()),
        ({}, digest(secret="old").hex().upper()),
        ({"prefix": "sha256="}, f"sha256={digest().hex()}"),
        ({"encoding": "base64"}, base64.b64encode(digest()).decode()),
        (
            {"prefix": "v1=", "encoding": "base64", "digest": "sha512"},
            f"v1={base64.b64encode(digest('sha512')).decode()}",
        ),
        ({"digest": "sha1"}, digest("sha1").hex()),
    ],
)
def test_a_digest_in_a_header(chosen: dict[str, Any], given: str) -> None:
    signature = Signature("hmac", SecretStr("old new"), "X-Hub-Signature", **chosen)
    assert fits(signature, {"x-hub-signature": given})
    assert not fits(signature, {"x-hub-signature": given}, BODY + b" ")
    assert not fits(signature, {"x-hub-signature": f"x{given}"}) and not fits(signature, {"x-other": given})
    if chosen.get("prefix"):
        assert not fits(signature, {"x-hub-signature": given.removeprefix(chosen["prefix"])})


def test_a_bearer_and_none_on_purpose() -> None:
    bearer = Signature("bearer", SecretStr("old new"))
    assert fits(bearer, {"authorization": "Bearer new"}) and fits(bearer, {"authorization": "bearer old"})
    assert not fits(bearer, {"authorization": "new"}) and not fits(bearer, {"authorization": "Bearer old new"})
    assert not fits(Signature("bearer", SecretStr("")), {"authorization": "Bearer "})
    assert fits(Signature("none", SecretStr("")), {})


class Signed(RestSystem):
    auth = "none"
    signature = "standard"
    event_time_field = "timestamp"


class Contact(RestSubscriber):
    system, catalogue, path = "shop", "customer", "/contact"


def test_a_standard_webhook_carries_its_id_in_its_header() -> None:
    system = Signed("shop", RestOptions(url="https://shop.example", webhook_secret=SecretStr(NEW)))
    Contact(system)
    assert system.verify(BODY, standard()) == "evt_1"
    (event,) = system.events(BODY)
    assert event.external.deleted and event.external.id == "9"


def test_an_event_id_in_a_header_of_ones_own() -> None:
    kind = type("Hooked", (RestSystem,), {"auth": "none", "signature": "none", "event_id_header": "X-Delivery"})
    system = kind("shop", RestOptions(url="https://shop.example"))
    assert system.verify(BODY, {"x-delivery": "d1"}) == "d1"
    with pytest.raises(BadWebhook, match="x-delivery"):
        system.verify(json.dumps({"id": "in the body"}).encode(), {})
