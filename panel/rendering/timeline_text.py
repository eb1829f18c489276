"""A timeline's lines in words: what happened, to whom, and in which colour."""

from __future__ import annotations

from typing import Any

from conductor import TimelineEvent
from i18n import gettext, gettext_noop

#: (outcome) of an outward delivery -> its words and its colour; the system's name goes in.
_OUT = {
    "delivered": (gettext_noop("Sent to {system}"), "good"),
    "unchanged": (gettext_noop("Nothing to send to {system}"), "quiet"),
    "skipped": (gettext_noop("Not sent to {system}"), "quiet"),
    "failed": (gettext_noop("An attempt to send to {system} failed"), "busy"),
    "dead": (gettext_noop("Given up for {system}: a person has to look"), "bad"),
    "waiting": (gettext_noop("Waits for {system}"), "busy"),
}
_IN = {
    "applied": (gettext_noop("Received from {system}"), "good"),
    "kept": (gettext_noop("Received from {system}, ours kept"), "good"),
    "echo": (gettext_noop("Echo from {system}"), "quiet"),
    "skipped": (gettext_noop("Passed over from {system}"), "quiet"),
    "dead": (gettext_noop("Could not be applied from {system}"), "bad"),
}
_OPERATIONS = {
    ("out", "delivered", "match"): gettext_noop("Found in {system}, as it should be"),
    ("out", "delivered", "unlink"): gettext_noop("Detached from {system}"),
    ("out", "delivered", "delete"): gettext_noop("Deleted in {system}"),
    ("out", "delivered", "archive"): gettext_noop("Archived in {system}"),
    ("out", "delivered", "create"): gettext_noop("Created in {system}"),
    ("in", "applied", "create"): gettext_noop("Created here from {system}"),
    ("in", "applied", "delete"): gettext_noop("Deleted in {system}"),
}
#: operation of a change here -> by whoever it was, and by a system.
_CHANGES = {
    "created": (gettext_noop("Created here by a person or a program"), gettext_noop("Created here by {system}")),
    "updated": (gettext_noop("Updated here by a person or a program"), gettext_noop("Updated here by {system}")),
    "deleted": (gettext_noop("Deleted here by a person or a program"), gettext_noop("Deleted here by {system}")),
}
_SETTLED = {
    "ours": gettext_noop("Conflict settled: {path}, ours stays"),
    "theirs": gettext_noop("Conflict settled: {path}, {system}'s is taken"),
    "agreed": gettext_noop("Conflict settled: {path}, the sides agree"),
    "gone": gettext_noop("Conflict closed: {path}, the record was deleted"),
}
_DECIDED = gettext_noop("Conflict settled: {path}, decided")


def describe_event(event: TimelineEvent) -> tuple[str, str]:
    """(what happened, colour) of one line."""
    row, kind = event.row, event.kind
    if kind == "change":
        one, by_system = _CHANGES.get(row.operation, (row.operation, row.operation))
        return (gettext(by_system, system=title(row.origin)) if row.origin else gettext(one)), "here"
    system = title(row.subscriber)
    if kind == "conflict":
        return gettext("In conflict with {system}: {path}", system=system, path=row.path), "bad"
    if kind == "settled":
        whose = gettext(_SETTLED.get(row.choice, _DECIDED), path=row.path, system=system)
        return whose + (gettext(", by {who}", who=row.resolved_by) if row.resolved_by else ""), "good"
    if kind == "closed":
        return gettext("Dead letter #{number} of {system} closed", number=row.id, system=system), "good"
    words, tone = (_OUT if kind == "out" else _IN).get(
        row.outcome, (f"{row.outcome.capitalize()}: {{system}}", "quiet")
    )
    if kind == "in" and row.outcome == "applied" and "ours kept" in (row.reason or ""):
        words = gettext_noop("Merged with what came from {system}")
    return gettext(_OPERATIONS.get((kind, row.outcome, row.operation), words), system=system), tone


def title(name: str) -> str:
    """A system's or subscriber's name as the name of the system: stripe.customer -> Stripe."""
    return name.partition(".")[0].capitalize()


def short(value: Any, longest: int = 48) -> str:
    """A value in a few words."""
    if value is None or value == "":
        return gettext("nothing")
    if isinstance(value, bool):
        return gettext("yes") if value else gettext("no")
    text = " ".join(str(value).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"
