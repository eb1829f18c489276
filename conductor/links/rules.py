"""The unsubscriptions in force, as rules: delivery asks before each call whether one covers the record."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from i18n import gettext
from models.ledger import Unsubscription, UnsubscriptionRecord
from models.rows import UnsubscriptionRow


@dataclass(frozen=True)
class Rule:
    """One unsubscription in force, and those records of the current batch that its list names."""

    id: int
    operation: str | None
    listed_only: bool
    records: frozenset[str]
    #: The sentence that explains why a record is not sent.
    reason: str

    def covers(self, operation: str, record_id: str) -> bool:
        """Return whether it stops this operation on this record. Archiving counts as deleting."""
        kind = "delete" if operation == "archive" else operation
        return self.operation in (None, kind) and (not self.listed_only or record_id in self.records)


def in_force(connection: sa.Connection, targets: Iterable[str], record_ids: Iterable[str], now: datetime) -> list[Rule]:
    """Return the rules in force for these targets (a system and its subscriber)."""
    found_rules = connection.execute(
        sa.select(Unsubscription.__table__)
        .where(Unsubscription.target.in_(list(targets)))
        .where(sa.or_(Unsubscription.until.is_(None), Unsubscription.until > now))
        .order_by(Unsubscription.id)
    )
    rows = [UnsubscriptionRow._make(row) for row in found_rules]
    listed = [row.id for row in rows if row.listed_only]
    covered: dict[int, set[str]] = {rule: set() for rule in listed}
    if listed:
        found = connection.execute(
            sa.select(UnsubscriptionRecord.unsubscription_id, UnsubscriptionRecord.record_id)
            .where(UnsubscriptionRecord.unsubscription_id.in_(listed))
            .where(UnsubscriptionRecord.record_id.in_(list(record_ids)))
        )
        for rule, record in found:
            covered[rule].add(record)
    return [
        Rule(row.id, row.operation, row.listed_only, frozenset(covered.get(row.id, ())), _reason(row)) for row in rows
    ]


def lock_rules(connection: sa.Connection, rules: Collection[int]) -> set[int]:
    """Return those of these rules that still exist, and lock them until the commit.

    Lifting one waits for that commit, so it sees every link that the rule covered.
    """
    if not rules:
        return set()
    stand = sa.select(Unsubscription.id).where(Unsubscription.id.in_(rules)).order_by(Unsubscription.id)
    return set(connection.execute(stand.with_for_update(read=True)).scalars())


def _reason(row: UnsubscriptionRow) -> str:
    until = gettext("until {time:%Y-%m-%d %H:%M} UTC", time=row.until) if row.until else ""
    inside = ", ".join(part for part in (row.reason, until) if part)
    if inside:
        return gettext("unsubscription #{number} ({inside}) holds it back", number=row.id, inside=inside)
    return gettext("unsubscription #{number} holds it back", number=row.id)


def unsubscribed_names(text: str | None) -> set[str]:
    """Return the names in a change's unsubscribe list, which are separated by commas."""
    return {part.strip() for part in (text or "").split(",") if part.strip()}
