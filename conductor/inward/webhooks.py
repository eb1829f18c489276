"""Webhooks: verify the sender, store the events, acknowledge them. Of a refused webhook a trace is kept."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping

import sqlalchemy as sa

from conductor.context import Context
from conductor.inward.inbox import store_event
from models.ledger import RefusedWebhook, System
from redaction import LONGEST_REFUSED_BODY, clean, hide, hide_in_body, response_text, safe_headers
from subscribers.errors import BadSignature, BadWebhook
from subscribers.system import System as Client

logger = logging.getLogger(__name__)

#: Refused webhooks kept for each system.
KEPT_REFUSED = 100

#: Characters of an event id. A longer one is replaced by its digest.
_EVENT_ID_CHARACTERS = 255

#: Of a refused body larger than this only the beginning is decoded.
_LARGEST_DECODED_BYTES = 64 * 1024


class UnknownSystem(Exception):
    """No connected system has this name."""


class Webhooks:
    """Takes webhooks from external systems."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def store(self, system: str, body: bytes, headers: Mapping[str, str]) -> bool:
        """Verify a webhook and store its events. Return whether any of them is new.

        The events are committed when this returns.

        Raises:
          UnknownSystem, BadSignature, BadWebhook: nothing was stored.
        """
        client = self.context.systems.get(system)
        if client is None:
            raise UnknownSystem(system)
        lowered = {name.lower(): value for name, value in headers.items()}
        try:
            events = _unpacked(client, body, lowered)
        except (BadSignature, BadWebhook) as error:
            self._keep_refused(client, body, lowered, error)
            raise
        shared = {
            "system": system,
            "kind": "webhook",
            "headers": safe_headers(lowered),
            "received_at": self.context.clock(),
            "retry_at": self.context.later(self.context.policy.stale_seconds),
        }
        with self.context.database.write() as connection:
            stored = [store_event(self.context, connection, {**shared, **_event_values(*event)}) for event in events]
        new = [inbox_id for inbox_id in stored if inbox_id is not None]
        if new:
            self.context.publisher.inbox_soon(system, new)  # not in this request: its sender waits
        return bool(new)

    def acknowledgement(self, system: str, body: bytes) -> tuple[str, str] | None:
        """Return the (body, content type) that answers a stored webhook; None where a 2xx is enough."""
        return self.context.systems[system].acknowledgement(body)

    def _keep_refused(self, client: Client, body: bytes, headers: Mapping[str, str], error: Exception) -> None:
        """Count a refused webhook and keep a trace of it.

        The trace shows an operator whether a stranger sent it or the signing secret does not match.
        """
        now = self.context.clock()
        start = body[:_LARGEST_DECODED_BYTES]
        trace = {
            "at": now,
            "reason": clean(error),
            "headers": safe_headers(headers),
            "body": response_text(start.decode("utf-8", "replace"), LONGEST_REFUSED_BODY),
            "size": len(body),
        }
        counted = (
            sa.update(System)
            .where(System.name == client.name)
            .values(webhooks_rejected=System.webhooks_rejected + 1, webhook_rejected_at=now)
            .returning(System.webhooks_rejected)
        )
        with self.context.database.write() as connection:
            number = connection.execute(counted).scalar() or 0
            insert = self.context.database.insert(RefusedWebhook).values(
                system=client.name, slot=number % KEPT_REFUSED, **trace
            )
            connection.execute(insert.on_conflict_do_update(index_elements=["system", "slot"], set_=trace))


def _unpacked(client: Client, body: bytes, headers: Mapping[str, str]) -> list[tuple[str, bytes]]:
    """Verify a webhook and return the id and body of each event.

    Raises:
      BadSignature: the system did not send it.
      BadWebhook: it cannot be read, or not every database could store it.
    """
    try:
        events = list(client.unpack(body, headers))
    except NotImplementedError as error:
        raise BadSignature(str(error)) from None  # the system sends no webhooks, so a stranger did
    except RecursionError:
        raise BadWebhook("its data is nested too deeply") from None
    except UnicodeError:
        raise BadWebhook("it is not UTF-8 text") from None
    if any(clean(event_id) != event_id for event_id, _body in events):
        raise BadWebhook("the event's id contains NUL or a lone surrogate")
    if any(b"\0" in part for _id, part in events):
        raise BadWebhook("the event contains a NUL byte")
    return events


def _event_values(event_id: str, body: bytes) -> dict[str, str]:
    if len(event_id) > _EVENT_ID_CHARACTERS:
        event_id = hashlib.sha256(event_id.encode("utf-8", "replace")).hexdigest()
    return {"event_id": hide(event_id), "body": hide_in_body(body.decode("utf-8", "replace"))}
