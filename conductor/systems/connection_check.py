"""Check whether a system allows what its subscribers need: login, permissions, and every mapped field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

import sqlalchemy as sa

from conductor.context import Context
from conductor.mappings.store import MappingRefused, Mappings
from models.catalogues import is_generated
from models.ledger import OtherHub, System
from subscribers.base import Subscriber
from subscribers.calls import call_safely
from subscribers.errors import SyncError
from subscribers.mapping.column_values import python_type
from subscribers.mapping.fields import Field
from subscribers.mapping.paths import is_plain, parts
from subscribers.records import ExternalField, kind_of
from subscribers.registry import REGISTRY

#: Sample values by column type, to see their external values.
_SAMPLES: Mapping[type, Any] = {
    str: "text",
    int: 1,
    float: 1.5,
    bool: True,
    Decimal: Decimal("1.5"),
    date: date(2026, 11, 22),
    datetime: datetime(2026, 11, 22, tzinfo=UTC),
}


@dataclass(frozen=True)
class Finding:
    """One result of the check. `wrong` must be fixed by an operator; a `note` is only information."""

    state: Literal["ok", "wrong", "note"]
    message: str


class ConnectionCheck:
    """Checks a system through its subscribers. Changes nothing, neither in the database nor in the system."""

    def __init__(self, context: Context, mappings: Mappings) -> None:
        self.context = context
        self.mappings = mappings

    def check(self, system: str) -> dict[str, list[Finding]]:
        """Return the findings by subscriber. The system is called even while it is paused or considered down.

        Raises:
          ValueError: there is no such system.
        """
        return {name: self.subscriber(name) for name in self.subscribers(system)}

    def subscribers(self, system: str) -> list[str]:
        """Return the names of the subscribers through which a system is checked.

        Raises:
          ValueError: there is no such system.
        """
        names = sorted(one.name() for one in self.context.of_system(system))
        if not names and any(one.system == system for one in REGISTRY.values()):
            prefix = system.upper().replace("-", "_")
            raise ValueError(f"{system} is not configured: set {prefix}_... in the environment or .env")
        if not names:
            known = ", ".join(sorted(self.context.systems)) or "none"
            raise ValueError(f"unknown system {system!r}; known systems: {known}")
        return names

    def subscriber(self, name: str) -> list[Finding]:
        """Return the findings of one subscriber."""
        return list(self._subscriber(self.context.subscribers[name]))

    def _subscriber(self, subscriber: Subscriber) -> Iterator[Finding]:
        try:
            with self.context.database.read() as connection:
                mapper = self.mappings.current(connection, subscriber.name())[0]
        except MappingRefused as refused:
            yield from (Finding("wrong", problem) for problem in refused.problems)
            return
        subscriber.client.pace()
        fields = call_safely(subscriber.describe)
        if isinstance(fields, SyncError):
            what = "the login does not work" if fields.pauses_system else "records cannot be read"
            yield Finding("wrong", f"{what}: {fields}")
            return
        yield Finding("ok", "the login works, and records can be read")
        yield from self._account(subscriber)
        answer = call_safely(subscriber.missing_permissions)
        missing = [str(answer)] if isinstance(answer, SyncError) else answer
        for message in missing:
            yield Finding("wrong", message)
        yield from self._webhooks(subscriber)
        yield from self._other_hubs(subscriber)
        if offset := subscriber.client.clock_offset:
            where = "ahead of" if offset > 0 else "behind"
            message = f"the system's clock is {abs(offset):.0f} s {where} ours; times are compared with that difference"
            yield Finding("note", message)
        if fields is None:
            yield Finding(
                "note", "the fields cannot be checked: the system has no record yet and does not describe them"
            )
            return
        if (marked := fields.get(subscriber.mark_path)) is not None and marked.kind not in ("", "text"):
            words = f"{subscriber.mark_path} is of type {marked.kind}, and cannot hold a mark such as 1@3f9c2a1b"
            yield Finding("wrong", f"{words}: make it a text field, or in a REST system declare plain_mark")
        sample = mapper.outward(_sample(subscriber), strict=False)
        for column, entry in mapper.fields.items():
            yield from _entry(subscriber, column, entry, fields, sample.get(entry.path))
        outward = [one.path for one in mapper.fields.values() if one.direction != "in" and is_plain(one.path)]
        mapped = {part for path in outward for part in parts(path)}
        for path, field in fields.items():
            if field.required and field.writable and path not in mapped:
                yield Finding("wrong", f"the system requires {path}, but no column is mapped to it")

    def _account(self, subscriber: Subscriber) -> Iterator[Finding]:
        account = call_safely(subscriber.client.account)
        if isinstance(account, SyncError):
            yield Finding("note", f"the account cannot be read, so it is not compared: {account}")
        elif account is not None:
            with self.context.database.read() as connection:
                known = connection.execute(sa.select(System.account).where(System.name == subscriber.system)).scalar()
            if known in (None, account):
                yield Finding("ok", f"the login leads to the account {account}")
            else:
                yield Finding(
                    "wrong", f"the login leads to the account {account}, but the records are linked in {known}"
                )

    def _other_hubs(self, subscriber: Subscriber) -> Iterator[Finding]:
        seen = sa.select(OtherHub.hub_id, OtherHub.external_id).where(OtherHub.system == subscriber.system)
        with self.context.database.read() as connection:
            others = connection.execute(seen.order_by(OtherHub.seen_at)).all()
        for other in others:
            words = f"another hub, {other.hub_id}, works in this account: {other.external_id} has its mark"
            yield Finding("note", words)

    @staticmethod
    def _webhooks(subscriber: Subscriber) -> Iterator[Finding]:
        options = subscriber.client.options
        secret = getattr(options, "webhook_secret", None)
        if secret is not None and not secret:  # SecretStr, or plain text if the subscriber's author chose it.
            name = f"{subscriber.system}_webhook_secret".upper()
            polled = subscriber.poll_seconds
            consequence = f"only the poll finds changes, every {polled} s" if polled else "no changes are received"
            yield Finding("note", f"{name} is empty, so every webhook is refused: {consequence}")


def _entry(
    subscriber: Subscriber, column: str, entry: Field, fields: Mapping[str, ExternalField], sample: Any
) -> Iterator[Finding]:
    """Check one entry. `sample` is the external value of a sample record; None if there is none."""
    arrow = {"both": "<->", "out": "->", "in": "<-"}[entry.direction]
    if not is_plain(entry.path):
        yield Finding("note", f"{column} {arrow} {entry.path}: is an expression, which is not checked")
        return
    paths = parts(entry.path)
    samples = sample if len(paths) > 1 and isinstance(sample, list) else [sample] * len(paths)
    for path, value in zip(paths, samples, strict=False):
        yield _field(subscriber, column, f"{column} {arrow} {path}", entry, fields, path, value)


def _field(
    subscriber: Subscriber,
    column: str,
    pair: str,
    entry: Field,
    fields: Mapping[str, ExternalField],
    path: str,
    sample: Any,
) -> Finding:
    external = fields.get(path)
    if external is None and _is_below_nothing(path, fields):
        return Finding("note", f"{pair}: cannot be checked: the object around it is empty in the record that was read")
    if external is None:
        return Finding(
            "wrong", f"{pair}: the system has no such field; its fields are {', '.join(sorted(fields)[:30])}"
        )
    if entry.direction != "in" and not external.writable:
        return Finding("wrong", f"{pair}: this login may not write the field; if it is read-only, use direction in")
    if entry.rows is None and not entry.link and not _fits(sample, external.kind):
        message = f"{pair}: Syncflow sends {kind_of(sample) or 'a value'}, but the field is of type {external.kind}"
        return Finding("wrong", f"{message}; a transform may convert it")
    ours = subscriber.records.table.c.get(column)
    if ours is not None and entry.direction != "out" and is_generated(ours):
        words = f"{pair}: the database fills {column} itself, so a change there is not applied here"
        return Finding("note", f"{words}; map it with direction out to say so")
    length = getattr(ours.type, "length", None) if ours is not None else None
    if external.length and length and length > external.length and entry.direction != "in":
        limits = f"{external.length} characters in the system, {length} in the database"
        return Finding("note", f"{pair}: {limits}; the system refuses longer values")
    size = f", {external.length} characters" if external.length else ""
    return Finding("ok", f"{pair} ({external.kind or 'empty'}{size})")


def _is_below_nothing(path: str, fields: Mapping[str, ExternalField]) -> bool:
    """Return whether an object that would contain the field is empty in the record that was read."""
    parts = path.split(".")
    return any((one := fields.get(".".join(parts[:n]))) is not None and not one.kind for n in range(1, len(parts)))


def _sample(subscriber: Subscriber) -> dict[str, Any]:
    """Return a sample record, to see how its values are converted."""
    table = subscriber.records.table
    record = {column.name: _SAMPLES.get(python_type(column.type)) for column in table.c}
    return record | {name: "eur" for name in ("currency",) if name in record}


def _fits(sample: Any, kind: str) -> bool:
    if sample is None or not kind or kind_of(sample) == kind:
        return True
    if kind in ("date", "datetime"):
        return isinstance(sample, str) and sample[:4].isdecimal()
    if kind == "number" and isinstance(sample, str):
        try:
            return Decimal(sample).is_finite()
        except InvalidOperation:
            return False
    return False
