"""Writes in doubt: what was about to be sent when nobody learned whether it arrived (`Link.unconfirmed_write`).

It is on disk before the call and goes when the outcome is known. An edit of theirs made over what
arrived must show as theirs, or sending ours again would undo it.
"""

from __future__ import annotations

from subscribers.mapping.values import Flat, is_empty, same


def created(sent: Flat | None, theirs: Flat) -> Flat:
    """The base of a record that a creation of ours had made, whose answer was lost.

    A system whose creations take several calls does not mention what it had not come to; that is owed.
    """
    if not (sent and theirs):
        return dict(sent or theirs)
    return {path: value for path, value in sent.items() if path in theirs or is_empty(value)}


def rebase_unconfirmed(sent: Flat | None, theirs: Flat, base: Flat, remote_values: Flat) -> tuple[Flat, Flat]:
    """The base (agreed, held) once it is seen what they hold: what arrived is agreed."""
    base, remote_values = dict(base), dict(remote_values)
    for path, value in (sent or {}).items():
        if path not in theirs:
            continue
        # Of a field that was never agreed nobody knows what they held before: nothing but ours itself tells.
        was = remote_values.get(path, base.get(path))
        arrived = not same(theirs[path], was) if path in base else same(theirs[path], value)
        if arrived:
            base[path] = value  # what differs from it now is an edit of theirs
            remote_values.pop(path, None)
    return base, remote_values
