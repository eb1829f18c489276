"""Send every change to an address, as a trigger with a callout does in a real org.

The body is the callout that the hub accepts, `{"id", "sobject", "record": {"Id", "SystemModstamp"}, "deleted"}`, plus
`operation` (created, updated, deleted or undeleted) and `by` (the user). It reports that a record changed, not which
fields. X-Syncflow-Secret carries the shared secret; X-Signature is the body's HMAC-SHA256 with it, in hexadecimal.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence

from simulators.faults import Faults
from simulators.webhooks import Endpoint, WebhookSender

from .store import Change
from .wire import to_json


class Callouts:
    """Sends each change to one address and retries until it is accepted. A restart loses pending callouts."""

    def __init__(self, url: str, secret: str) -> None:
        #: Accepts webhook_drop, webhook_duplicate, webhook_reorder and webhook_delay.
        self.faults = Faults()
        endpoint = Endpoint(url, secret)
        self.sender = WebhookSender(self.faults, lambda _: endpoint, _sign)

    def changed(self, changes: Sequence[Change]) -> None:
        """Send the changes of a transaction. The store calls this after the commit."""
        for one in changes:
            event_id = secrets.token_hex(12)
            event = {
                "id": event_id,
                "sobject": one.object,
                "record": {"Id": one.id, "SystemModstamp": one.time},
                "deleted": one.operation == "deleted",
                "operation": one.operation,
                "by": one.by,
            }
            self.sender.send("hub", event_id, to_json(event))


def _sign(secret: str, body: bytes) -> dict[str, str]:
    return {"X-Syncflow-Secret": secret, "X-Signature": hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}
