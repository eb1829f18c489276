"""The state of a link: one function for the links page, record page, overview, command line and API."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from conductor.links.leases import is_held
from conductor.links.rules import Rule
from models.ledger import Link

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


def state_of(link: Any, system: Any, rule: Rule | None, now: datetime) -> LinkStatus:
    """Return the state of a link.

    `link` is None where the subscriber was never owed the record, `system` is the row of the subscriber's system or
    None, and `rule` is the unsubscription in force that stops what would be sent next (`covering_rule`).
    """
    if link is None:
        return LinkStatus("skipped" if rule else "unsent", rule=rule)
    is_owed = link.owed_change > link.synced_change
    if link.dead_at is not None:
        return LinkStatus("dead", is_owed, rule)
    if is_owed:
        return LinkStatus("skipped" if rule else _owed_state(link, system, now), is_owed, rule)
    return LinkStatus(_settled_state(link, rule), rule=rule)


def covering_rule(rules: Iterable[Rule], link: Any, record_id: str, *, exists: bool) -> Rule | None:
    """Return the unsubscription that stops what would be sent next for a record, if there is one."""
    is_linked = link is not None and link.external_id is not None and link.unlinked_at is None
    operation = ("update" if is_linked else "create") if exists else "delete"
    return next((rule for rule in rules if rule.covers(operation, record_id)), None)


def system_state(system: Any) -> Literal["paused", "down"] | None:
    """Return why a system is not called; None if it is."""
    if system is not None and system.paused_at is not None:
        return "paused"
    if system is not None and system.down_since is not None:
        return "down"
    return None


def _owed_state(link: Any, system: Any, now: datetime) -> State:
    if (held := system_state(system)) is not None:
        return held
    if link.blocked_by not in (None, link.id):
        return "blocked"
    if is_held(link, now):
        return "sending"
    return "retrying" if link.attempts and link.retry_at is not None else "pending"


def _settled_state(link: Any, rule: Rule | None) -> State:
    if link.open_conflicts:
        return "conflict"
    if link.unlinked_at is not None:
        return "unlinked"
    if link.unsubscription_id is not None:
        return "skipped"
    if link.synced_at is not None:
        return "synced"
    return "skipped" if rule else "unsent"
