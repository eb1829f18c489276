"""Awaited records: related records that an incoming one refers to, and that are not linked yet.

An optional reference is left out, and set when the related record is linked. A record with a required reference waits.
In both cases its inbox row names what it waits for, and the related record is *pulled*: a row in the inbox has it read
from the system, once. The end of a pull, and every new link, wake the rows that wait for it. So a record waits no
longer than until the system has told whether the related one exists.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.links.relations import Reference, Unlinked
from models.ledger import Inbox
from subscribers.errors import Reject

#: `kind` of an inbox row that holds a record which was polled, or is pulled.
INBOX_KIND_POLL = "poll"

_PULL = "pull:"

#: After this time a row that waits looks for itself.
RECHECK_SECONDS = 3600.0


def pulled_by(event_id: str) -> str | None:
    """Return the key of the record that an inbox row pulls; None if it is another row."""
    return event_id.removeprefix(_PULL) if event_id.startswith(_PULL) else None


def pull(context: Context, connection: sa.Connection, related: Reference) -> None:
    """Have a record read from its system. It may be about to arrive by itself, so this waits a moment."""
    soon = context.later(context.policy.retry_min_seconds)
    fresh = {"state": "waiting", "attempts": 0, "retry_at": soon, "finished_at": None, "waits_for": None}
    _store(context, connection, related, fresh, Inbox.state == "done")


def complete_later(context: Context, connection: sa.Connection, own: Reference, related: Reference) -> None:
    """Have a record read again when the related one is linked."""
    waits = {
        "state": "waiting",
        "attempts": 0,
        "retry_at": context.later(RECHECK_SECONDS),
        "finished_at": None,
        "waits_for": related.key,
    }
    _store(context, connection, own, waits, None)


def _store(
    context: Context, connection: sa.Connection, record: Reference, values: dict[str, Any], where: Any | None
) -> None:
    identity = {
        "system": record.subscriber.partition(".")[0],
        "subscriber": record.subscriber,
        "event_id": _PULL + record.key,
        "kind": INBOX_KIND_POLL,
        "body": json.dumps({"id": record.external_id, "at": None}),
        "received_at": context.clock(),
    }
    insert = context.database.insert(Inbox).values(**identity, **values)
    same_event = ["system", "event_id"]
    connection.execute(insert.on_conflict_do_update(index_elements=same_event, set_=values, where=where))


def wake(context: Context, connection: sa.Connection, key: str, *, linked: bool) -> list[int]:
    """Have the rows that wait for a record applied again, for the caller to publish; return their ids.

    Without `linked`, when its pull has ended, only those with a required reference.
    """
    rows = [Inbox.waits_for == key, *([] if linked else [Inbox.state == "waiting"])]
    again = {"state": "waiting", "attempts": 0, "retry_at": context.clock(), "finished_at": None}
    return list(connection.execute(sa.update(Inbox).where(*rows).values(**again).returning(Inbox.id)).scalars())


def why_never(connection: sa.Connection, wait: Unlinked, own: Reference, waited_for: str | None) -> Reject | None:
    """Return why a record can never be applied whose required reference is not linked; None if it has to wait.

    `waited_for`: what its row has waited for so far.
    """
    related = wait.related
    if related == own:
        return Reject("it refers to itself, and the reference is required", code="relation_cycle")
    parent = _pull_of(connection, related.key)
    if parent is None:
        return None
    if parent.state == "dead":
        return Reject(f"{related} cannot be applied here: {parent.result}", code="relation_dead")
    if parent.state == "done":
        is_told = waited_for == related.key
        return Reject(f"{related} is not here: {parent.result}", code="relation_missing") if is_told else None
    if own.key in _chain(connection, parent.waits_for):
        message = f"it and {related} wait for one another, and every one of these references is required"
        return Reject(message, code="relation_cycle")
    return None


def _chain(connection: sa.Connection, key: str | None) -> Iterable[str]:
    """Return the keys of the records that are waited for, each by the pull of the one before."""
    found: dict[str, None] = {}
    while key is not None and key not in found:
        found[key] = None
        row = _pull_of(connection, key)
        key = row.waits_for if row is not None and row.state == "waiting" else None
    return found


def _pull_of(connection: sa.Connection, key: str) -> Any:
    columns = (Inbox.state, Inbox.result, Inbox.waits_for)
    pulls = (Inbox.system == key.partition(".")[0], Inbox.event_id == _PULL + key)
    return connection.execute(sa.select(*columns).where(*pulls)).one_or_none()
