"""Writes in doubt: what was about to be sent, where it is unknown whether it arrived (`Link.unconfirmed_write`).

It is stored before the call and deleted when the outcome is known. An edit that was made in the system after our write
arrived must count as the system's edit; otherwise sending our values again would undo it.
"""

from __future__ import annotations

from conductor.links.stored_forms import may_be_form
from subscribers.mapping.values import Flat, is_empty, same


def created(sent: Flat | None, theirs: Flat) -> Flat:
    """Return the base of a record that a create of ours has made, whose response was lost.

    Where a create takes several calls, the system does not return the fields that it did not reach; these stay owed.
    """
    if not (sent and theirs):
        return dict(sent or theirs)
    return {path: value for path, value in sent.items() if path in theirs or is_empty(value)}


def is_as_sent(sent: Flat | None, theirs: Flat) -> bool:
    """Whether a record has all values that a create of ours sent."""
    return bool(sent) and all(same(value, theirs.get(path)) for path, value in (sent or {}).items())


def may_be_sent(sent: Flat | None, theirs: Flat) -> bool:
    """Whether a record may be what a create of ours sent, as the system stored it; fields may be missing."""
    return bool(sent) and all(
        path not in theirs or same(value, theirs[path]) or may_be_form(value, theirs[path])
        for path, value in (sent or {}).items()
    )


def rebase_unconfirmed(sent: Flat | None, theirs: Flat, base: Flat, remote_values: Flat) -> tuple[Flat, Flat]:
    """Return base and remote values after the system was inspected: what arrived belongs to the base."""
    base, remote_values = dict(base), dict(remote_values)
    for path, value in (sent or {}).items():
        if path not in theirs:
            continue
        # Of a field without a base the former value is unknown: only our own value proves that the write arrived.
        was = remote_values.get(path, base.get(path))
        arrived = not same(theirs[path], was) if path in base else same(theirs[path], value)
        if arrived:
            base[path] = value  # a different value there is an edit made since
            remote_values.pop(path, None)
    return base, remote_values
