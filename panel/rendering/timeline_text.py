"""A timeline's lines in words: what happened, to whom, and in which colour."""

from __future__ import annotations

from typing import Any

from conductor.reports.timeline import Moment
from i18n import mark, say

#: (outcome) of an outward delivery -> its words and its colour; the system's name goes in.
_OUT = {
    "delivered": (mark("Sent to {system}"), "good"),
    "unchanged": (mark("Nothing to send to {system}"), "quiet"),
    "skipped": (mark("Not sent to {system}"), "quiet"),
    "failed": (mark("An attempt to send to {system} failed"), "busy"),
    "dead": (mark("Given up for {system}: a person has to look"), "bad"),
    "waiting": (mark("Waits for {system}"), "busy"),
}
_IN = {
    "applied": (mark("Received from {system}"), "good"),
    "kept": (mark("Received from {system}, ours kept"), "good"),
    "echo": (mark("Echo from {system}"), "quiet"),
    "skipped": (mark("Passed over from {system}"), "quiet"),
    "dead": (mark("Could not be applied from {system}"), "bad"),
}
_OPERATIONS = {
    ("out", "delivered", "match"): mark("Found in {system}, as it should be"),
    ("out", "delivered", "unlink"): mark("Detached from {system}"),
    ("out", "delivered", "delete"): mark("Deleted in {system}"),
    ("out", "delivered", "archive"): mark("Archived in {system}"),
    ("out", "delivered", "create"): mark("Created in {system}"),
    ("in", "applied", "create"): mark("Created here from {system}"),
    ("in", "applied", "delete"): mark("Deleted in {system}"),
}
#: operation of a change here -> by whoever it was, and by a system.
_CHANGES = {
    "created": (mark("Created here by a person or a program"), mark("Created here by {system}")),
    "updated": (mark("Updated here by a person or a program"), mark("Updated here by {system}")),
    "deleted": (mark("Deleted here by a person or a program"), mark("Deleted here by {system}")),
}
_SETTLED = {
    "ours": mark("Conflict settled: {path}, ours stays"),
    "theirs": mark("Conflict settled: {path}, {system}'s is taken"),
    "agreed": mark("Conflict settled: {path}, the sides agree"),
    "gone": mark("Conflict closed: {path}, the record was deleted"),
}
_DECIDED = mark("Conflict settled: {path}, decided")


def told(moment: Moment) -> tuple[str, str]:
    """(what happened, colour) of one line."""
    row, kind = moment.row, moment.kind
    if kind == "change":
        one, by_system = _CHANGES.get(row.operation, (row.operation, row.operation))
        return (say(by_system, system=title(row.origin)) if row.origin else say(one)), "here"
    system = title(row.subscriber)
    if kind == "conflict":
        return say("In conflict with {system}: {path}", system=system, path=row.path), "bad"
    if kind == "settled":
        whose = say(_SETTLED.get(row.choice, _DECIDED), path=row.path, system=system)
        return whose + (say(", by {who}", who=row.resolved_by) if row.resolved_by else ""), "good"
    if kind == "closed":
        return say("Dead letter #{number} of {system} closed", number=row.id, system=system), "good"
    words, tone = (_OUT if kind == "out" else _IN).get(
        row.outcome, (f"{row.outcome.capitalize()}: {{system}}", "quiet")
    )
    if kind == "in" and row.outcome == "applied" and "ours kept" in (row.reason or ""):
        words = mark("Merged with what came from {system}")
    return say(_OPERATIONS.get((kind, row.outcome, row.operation), words), system=system), tone


def title(name: str) -> str:
    """A system's or subscriber's name as the name of the system: stripe.customer -> Stripe."""
    return name.partition(".")[0].capitalize()


def short(value: Any, longest: int = 48) -> str:
    """A value in a few words."""
    if value is None or value == "":
        return say("nothing")
    if isinstance(value, bool):
        return say("yes") if value else say("no")
    text = " ".join(str(value).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"
