"""Loading: the links of a batch that are owed a change and free, and all that is needed to plan for them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from conductor.context import Context, new_token
from conductor.internal.absence import last_captured
from conductor.links import leases, marks
from conductor.links.relations import Relations
from conductor.links.row import link_row
from conductor.links.rules import in_force
from conductor.mappings.store import Mappings
from conductor.outward.planning import Claim, DeliveryBatch, make_claim
from conductor.systems.circuit_breaker import BREAKER_COLUMNS, BreakerState, CircuitBreaker, Permit
from models.base import UtcDateTime
from models.bulk import as_list, in_param, version_of
from models.ledger import Conflict, Hub, Link, Mapping, System, Unsubscription
from subscribers.base import Subscriber
from subscribers.calls import call_safely
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.values import Flat

_LINK: Any = Link.__table__


class BatchLoader:
    """Reads what a batch needs, with a handful of statements however many records it has."""

    def __init__(self, context: Context, breaker: CircuitBreaker, mappings: Mappings, relations: Relations) -> None:
        self.context = context
        self.breaker = breaker
        self.mappings = mappings
        self.relations = relations

    def load(self, subscriber: Subscriber, record_ids: Sequence[str], *, probe: bool = True) -> DeliveryBatch:
        """Return the batch of these records; without `probe` it may not call a system that is down."""
        with self.context.database.read_autocommit() as connection:
            batch = self._read(connection, subscriber, record_ids, probe)
        if batch.claims:
            batch.permit = self.breaker.in_account(subscriber.system, batch.permit)
        return batch

    def _read(
        self, connection: sa.Connection, subscriber: Subscriber, record_ids: Sequence[str], probe: bool
    ) -> DeliveryBatch:
        name, now, dialect = subscriber.name(), self.context.clock(), connection.dialect.name
        chosen = {"name": name, "system": subscriber.system, "ids": as_list(dialect, record_ids), "now": now}
        rows = connection.execute(_free_links(dialect), chosen).all()
        batch = DeliveryBatch(new_token(), Permit(allowed=True))
        if not rows:
            return batch
        batch.permit = self.breaker.permit_for(subscriber.system, BreakerState.of(rows[0]), probe=probe)
        if not batch.permit.allowed:
            return batch
        ids = [row.record_id for row in rows]
        # Read after the links, so that it includes whatever was committed before its change was routed.
        records, unreadable = subscriber.records.read_each(connection, ids)
        absent = [record_id for record_id in ids if record_id not in records and record_id not in unreadable]
        captured = last_captured(connection, subscriber.records, absent)
        if rows[0].unsubscribed:
            batch.rules = in_force(connection, (subscriber.system, name), ids, now)
        conflicts = _open_conflicts(connection, [row.id for row in rows if row.open_conflicts])
        batch.claims = [
            make_claim(
                link_row(row), row.row_version, records.get(row.record_id), batch.token, conflicts.get(row.id, {})
            )
            for row in rows
        ]
        for claim in batch.claims:
            claim.is_deleted = _is_deleted(claim, captured)
            claim.unreadable = unreadable.get(claim.record_id)
        batch.hub = rows[0].hub or self.context.database.run_in_transaction(marks.hub_id)
        mapper = call_safely(lambda: self.mappings.current(connection, name, rows[0].mapping_version)[0])
        if isinstance(mapper, Mapper):
            batch.mapper = mapper
            batch.related = self.relations.load(connection, subscriber, mapper, records.values())
        return batch


def _is_deleted(claim: Claim, captured: dict[str, str]) -> bool:
    """Return whether an absent record was deleted; of one that is unlinked the history may be removed by now."""
    last = captured.get(claim.record_id)
    return last == "deleted" or (last is None and claim.link.unlinked_at is not None)


@lru_cache
def _free_links(dialect: str) -> sa.Select[Any]:
    """Select those of the records `ids` that are owed a change and free, each with what is common to all of them.

    That is whether the `system` may be called, the version of the mapping, the id of this hub, and whether an
    unsubscription is in force, as of the same moment as the links. The statement is built once, since building it costs
    more than running it.
    """
    name, system = sa.bindparam("name", type_=sa.Text), sa.bindparam("system", type_=sa.Text)
    now = sa.bindparam("now", type_=UtcDateTime)
    version = sa.select(sa.func.coalesce(sa.func.max(Mapping.version), 0)).where(Mapping.subscriber == name)
    in_force = sa.or_(Unsubscription.until.is_(None), Unsubscription.until > now)
    unsubscribed = sa.exists().where(sa.or_(Unsubscription.target == system, Unsubscription.target == name), in_force)
    return (
        sa.select(
            _LINK,
            *version_of(dialect, _LINK),
            *BREAKER_COLUMNS,
            version.scalar_subquery().label("mapping_version"),
            sa.select(Hub.hub_id).scalar_subquery().label("hub"),
            unsubscribed.label("unsubscribed"),
        )
        .select_from(sa.outerjoin(_LINK, System, System.name == system))
        # By the record: while there are few links PostgreSQL would take any index that holds the subscriber as well.
        .where(Link.subscriber.concat(sa.literal_column("''")) == name, in_param(dialect, Link.record_id, "ids"))
        # Written as a difference: PostgreSQL would search a whole backlog by the index over all that is owed.
        .where(Link.owed_change - Link.synced_change > 0, Link.dead_at.is_(None))
        .where(sa.or_(Link.retry_at.is_(None), Link.retry_at <= now))
        .where(leases.is_free(now))
        .order_by(Link.record_id)
    )


def _open_conflicts(connection: sa.Connection, link_ids: list[int]) -> dict[int, Flat]:
    """Return open conflicts: link -> field -> the system's value."""
    found: dict[int, Flat] = {}
    if link_ids:
        statement = sa.select(Conflict.link_id, Conflict.path, Conflict.theirs)
        rows = connection.execute(statement.where(Conflict.link_id.in_(link_ids), Conflict.resolved_at.is_(None)))
        for row in rows:
            found.setdefault(row.link_id, {})[row.path] = row.theirs
    return found
