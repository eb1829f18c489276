"""Describe the events of a timeline: a sentence and a colour for each."""

from __future__ import annotations

from typing import Any

from conductor import TimelineEvent
from i18n import gettext, gettext_noop
from models.rows import ChangeRow, ConflictRow, DeadLetterRow

#: Outcome of an outward delivery -> its text and colour.
_OUT = {
    "delivered": (gettext_noop("Sent to {system}"), "good"),
    "unchanged": (gettext_noop("Nothing to send to {system}"), "quiet"),
    "skipped": (gettext_noop("Not sent to {system}"), "quiet"),
    "failed": (gettext_noop("Attempt to send to {system} failed"), "busy"),
    "dead": (gettext_noop("Delivery to {system} failed: dead letter"), "bad"),
    "waiting": (gettext_noop("Waiting for {system}"), "busy"),
}
_IN = {
    "applied": (gettext_noop("Received from {system}"), "good"),
    "kept": (gettext_noop("Received from {system}, internal value kept"), "good"),
    "echo": (gettext_noop("Echo from {system}"), "quiet"),
    "skipped": (gettext_noop("Skipped an event from {system}"), "quiet"),
    "dead": (gettext_noop("Could not apply an event from {system}"), "bad"),
}
_OPERATIONS = {
    ("out", "delivered", "match"): gettext_noop("Found in {system}, already up to date"),
    ("out", "delivered", "unlink"): gettext_noop("Unlinked from {system}"),
    ("out", "delivered", "delete"): gettext_noop("Deleted in {system}"),
    ("out", "delivered", "archive"): gettext_noop("Archived in {system}"),
    ("out", "delivered", "create"): gettext_noop("Created in {system}"),
    ("in", "applied", "create"): gettext_noop("Created in the database from {system}"),
    ("in", "applied", "delete"): gettext_noop("Deleted in {system}"),
    ("in", "applied", "merge"): gettext_noop("Merged with values from {system}"),
}
#: Operation of a change in the database -> the text, and the text if a system made it.
_CHANGES = {
    "created": (gettext_noop("Created in the database"), gettext_noop("Created in the database by {system}")),
    "updated": (gettext_noop("Updated in the database"), gettext_noop("Updated in the database by {system}")),
    "deleted": (gettext_noop("Deleted from the database"), gettext_noop("Deleted from the database by {system}")),
}
_SETTLED = {
    "ours": gettext_noop("Conflict resolved: {path}, internal value kept"),
    "theirs": gettext_noop("Conflict resolved: {path}, value from {system} taken"),
    "agreed": gettext_noop("Conflict resolved: {path}, both values are equal"),
    "gone": gettext_noop("Conflict closed: {path}, the record was deleted"),
}
_DECIDED = gettext_noop("Conflict resolved: {path}")


def describe_event(event: TimelineEvent) -> tuple[str, str]:
    """Return the text and the colour of an event."""
    row, kind = event.row, event.kind
    if isinstance(row, ChangeRow):
        one, by_system = _CHANGES.get(row.operation, (row.operation, row.operation))
        return (gettext(by_system, system=title(row.origin)) if row.origin else gettext(one)), "here"
    system = title(row.subscriber)
    if isinstance(row, ConflictRow):
        if kind == "conflict":
            return gettext("Conflict with {system}: {path}", system=system, path=row.path), "bad"
        whose = gettext(_SETTLED.get(row.choice or "", _DECIDED), path=row.path, system=system)
        return whose + (gettext(", by {who}", who=row.resolved_by) if row.resolved_by else ""), "good"
    if isinstance(row, DeadLetterRow):
        return gettext("Dead letter #{number} of {system} closed", number=row.id, system=system), "good"
    words, tone = (_OUT if kind == "out" else _IN).get(
        row.outcome, (f"{row.outcome.capitalize()}: {{system}}", "quiet")
    )
    return gettext(_OPERATIONS.get((kind, row.outcome, row.operation), words), system=system), tone


def title(name: str) -> str:
    """Return the system's display name: stripe.customer -> Stripe."""
    return name.partition(".")[0].capitalize()


def short(value: Any, longest: int = 48) -> str:
    """Format a value in one short line."""
    if value is None or value == "":
        return gettext("nothing")
    if isinstance(value, bool):
        return gettext("yes") if value else gettext("no")
    text = " ".join(str(value).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"
