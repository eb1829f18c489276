"""The messages: what is published, how it is encoded, and how a consumer addresses it to its own actor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dramatiq
import orjson
from dramatiq.encoder import Encoder
from dramatiq.middleware import Middleware, Retries, ShutdownNotifications
from periodiq import PeriodiqMiddleware

#: The exchange for all changes. Any AMQP consumer may bind a queue of its own to it.
EXCHANGE = "syncflow.changes"

#: The actor in a published change; each consumer replaces it by its own.
FANOUT_ACTOR = "deliver"

#: A periodic tick older than this is dropped: the next tick starts all jobs that are due.
_MAX_TICK_AGE_SECONDS = 50


class OrjsonEncoder(Encoder):
    """Encode Dramatiq's messages as JSON with orjson."""

    def encode(self, data: dict[str, Any]) -> bytes:
        """Return the fields of a message as JSON."""
        # Copied: the result of orjson keeps its whole buffer of 32 kB, and messages may wait in memory.
        return bytes(memoryview(orjson.dumps(data)))

    def decode(self, data: bytes) -> dict[str, Any]:
        """Return the fields of a message from JSON."""
        fields: dict[str, Any] = orjson.loads(data)
        return fields


def middleware() -> list[Middleware]:
    """Return Dramatiq's middleware of every broker."""
    return [Retries(), ShutdownNotifications(), PeriodiqMiddleware(skip_delay=_MAX_TICK_AGE_SECONDS)]


def fanout_message(catalogue: str, record_ids: Sequence[str]) -> dramatiq.Message[Any]:
    """Return the message that publishes a change: ids, never data."""
    return dramatiq.Message(
        queue_name=EXCHANGE,
        actor_name=FANOUT_ACTOR,
        args=(),
        kwargs={"catalogue": catalogue, "record_ids": list(record_ids)},
        options={},
    )


def addressed_to(message: dramatiq.Message[Any], queue_name: str) -> dramatiq.Message[Any]:
    """Return the message for the actor of this queue."""
    actor = queue_name if message.actor_name == FANOUT_ACTOR else message.actor_name
    return replace(message, queue_name=queue_name, actor_name=actor)
