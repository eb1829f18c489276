"""A timeline's lines in words: what happened, to whom, and in which colour."""

from __future__ import annotations

from typing import Any

from conductor.story import Moment

#: (outcome) of an outward delivery -> its words and its colour; the system's name goes in.
_OUT = {
    "delivered": ("Sent to {}", "good"),
    "unchanged": ("Nothing to send to {}", "quiet"),
    "skipped": ("Not sent to {}", "quiet"),
    "failed": ("An attempt to send to {} failed", "busy"),
    "dead": ("Given up for {}: a person has to look", "bad"),
    "waiting": ("Waits for {}", "busy"),
}
_IN = {
    "applied": ("Received from {}", "good"),
    "kept": ("Received from {}, ours kept", "good"),
    "echo": ("Echo from {}", "quiet"),
    "skipped": ("Passed over from {}", "quiet"),
    "dead": ("Could not be applied from {}", "bad"),
}
_OPERATIONS = {
    ("out", "delivered", "match"): "Found in {}, as it should be",
    ("out", "delivered", "unlink"): "Detached from {}",
    ("out", "delivered", "delete"): "Deleted in {}",
    ("out", "delivered", "archive"): "Archived in {}",
    ("out", "delivered", "create"): "Created in {}",
    ("in", "applied", "create"): "Created here from {}",
    ("in", "applied", "delete"): "Deleted in {}",
}


def told(moment: Moment) -> tuple[str, str]:
    """(what happened, colour) of one line."""
    row, kind = moment.row, moment.kind
    if kind == "change":
        by = f"by {title(row.origin)}" if row.origin else "by a person or a program"
        return f"{row.operation.capitalize()} here {by}", "here"
    system = title(row.subscriber)
    if kind == "conflict":
        return f"In conflict with {system}: {row.path}", "bad"
    if kind == "settled":
        whose = {"ours": "ours stays", "theirs": f"{system}'s is taken", "agreed": "the sides agree"}
        who = f", by {row.settled_by}" if row.settled_by else ""
        return f"Conflict settled: {row.path}, {whose.get(row.choice, 'decided')}{who}", "good"
    if kind == "closed":
        return f"Dead letter #{row.id} of {system} closed", "good"
    words, tone = (_OUT if kind == "out" else _IN).get(row.outcome, (f"{row.outcome.capitalize()}: {{}}", "quiet"))
    if kind == "in" and row.outcome == "applied" and "ours kept" in (row.reason or ""):
        words = "Merged with what came from {}"
    return _OPERATIONS.get((kind, row.outcome, row.operation), words).format(system), tone


def title(name: str) -> str:
    """A system's or subscriber's name as the name of the system: stripe.customer -> Stripe."""
    return name.partition(".")[0].capitalize()


def short(value: Any, longest: int = 48) -> str:
    """A value in a few words."""
    if value is None or value == "":
        return "nothing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = " ".join(str(value).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"
