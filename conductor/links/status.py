"""The state of a link: one function for the links page, record page, overview, command line and API."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from conductor.links.leases import is_held
from conductor.links.row import LinkRow
from conductor.links.rules import Rule
from models.ledger import Link
from models.rows import SystemRow

#: The condition for links with a pending change that are not dead letters.
PENDING_LINKS = (Link.owed_change > Link.synced_change, Link.dead_at.is_(None))


State = Literal[
    "dead", "skipped", "paused", "down", "blocked", "sending", "retrying", "pending",
    "conflict", "unlinked", "synced", "unsent",
]  # fmt: skip

#: State -> the word that the panel, the command line and the API show for it.
WORDS: dict[State, str] = {
    "dead": "dead letter",
    "skipped": "skipped",
    "paused": "waiting",
    "down": "waiting",
    "blocked": "waiting",
    "sending": "sending",
    "retrying": "retrying",
    "pending": "pending",
    "conflict": "conflict",
    "unlinked": "unlinked",
    "synced": "up to date",
    "unsent": "never sent",
}


@dataclass(frozen=True)
class LinkStatus:
    """The state of one record with one subscriber."""

    state: State
    #: Whether the subscriber is owed a change, whatever holds it back.
    is_owed: bool = False
    #: The unsubscription in force that stops what would be sent next.
    rule: Rule | None = None

    @property
    def word(self) -> str:
        """The word to show."""
        return WORDS[self.state]


def state_of(link: LinkRow | None, system: SystemRow | None, rule: Rule | None, now: datetime) -> LinkStatus:
    """Return the state of a link.

    `link` is None where the subscriber was never owed the record, `system` is the row of the subscriber's system or
    None, and `rule` is the unsubscription in force that stops what would be sent next (`covering_rule`).
    """
    if link is None:
        return LinkStatus("skipped" if rule else "unsent", rule=rule)
    if link.dead_at is not None:
        return LinkStatus("dead", link.is_owed, rule)
    # What a rule covers is pending until a worker has skipped it, so pages and counts of what is pending agree.
    state = _owed_state(link, system, now) if link.is_owed else _settled_state(link, rule)
    return LinkStatus(state, link.is_owed, rule)


def covering_rule(rules: Iterable[Rule], link: LinkRow | None, record_id: str, *, exists: bool) -> Rule | None:
    """Return the unsubscription that stops what would be sent next for a record, if there is one."""
    operation = ("update" if link is not None and link.is_linked else "create") if exists else "delete"
    return next((rule for rule in rules if rule.covers(operation, record_id)), None)


def system_state(system: SystemRow | None) -> Literal["paused", "down"] | None:
    """Return why a system is not called; None if it is."""
    if system is not None and system.paused_at is not None:
        return "paused"
    if system is not None and system.down_since is not None:
        return "down"
    return None


def _owed_state(link: LinkRow, system: SystemRow | None, now: datetime) -> State:
    if (held := system_state(system)) is not None:
        return held
    if link.blocked_by is not None and not link.goes_first:
        return "blocked"
    if link.attempts:
        return "retrying"
    return "sending" if is_held(link, now) else "pending"


def _settled_state(link: LinkRow, rule: Rule | None) -> State:
    if link.open_conflicts:
        return "conflict"
    if link.unlinked_at is not None:
        return "unlinked"
    if link.unsubscription_id is not None:
        return "skipped"
    if link.synced_at is not None:
        return "synced"
    return "skipped" if rule else "unsent"
