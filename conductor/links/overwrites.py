"""Write windows (`Link.write_windows`): nested objects travel whole, so our writes may undo edits made in the system.

An edit made there between our reading such an object and our writing it is undone by the write, and only the event of
that edit reveals it. So each write leaves a window: when the object was read, when it was written (both by the system's
clock), and the values that were read.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from subscribers.mapping.values import Flat

WriteWindows = list[dict[str, Any]]

#: Windows kept of a link. After an outage an event may arrive when the record has been written several times since.
KEPT = 16


def begun(windows: WriteWindows | None, since: datetime, wrote: datetime | None, fields: Flat) -> WriteWindows:
    """Add the window of an object that was read at `since`; our last write before that was at `wrote`."""
    before = dropped(windows) or []
    new = {"since": since.isoformat(), "fields": fields}
    if wrote is not None:
        new["after"] = min(wrote, since).isoformat()
    return [*before[1 - KEPT :], new]


def ended(windows: WriteWindows | None, at: datetime | None) -> WriteWindows | None:
    """Close the newest window, at `at` at the latest; without a time it cannot be kept.

    A window that is closed already stays as it is: the write undid no edit that was made after it.
    """
    if not windows or "until" in windows[-1]:
        return windows
    last = [] if at is None else [{**windows[-1], "until": at.isoformat()}]
    return [*windows[:-1], *last] or None


def dropped(windows: WriteWindows | None) -> WriteWindows | None:
    """Remove the newest window if it is open: its write did nothing, so it undid nothing."""
    return [window for window in windows or [] if "until" in window] or None


def around(windows: WriteWindows | None, at: datetime | None) -> WriteWindows:
    """Return the windows in which an edit of this time may have been undone."""
    return [] if at is None else [window for window in windows or [] if _may_hold(window, at)]


def without(windows: WriteWindows | None, done: WriteWindows) -> WriteWindows | None:
    """Return the windows without those in `done`."""
    return [window for window in windows or [] if window not in done] or None


def _may_hold(window: dict[str, Any], at: datetime) -> bool:
    if "until" not in window or not _time(window["since"]) <= at <= _time(window["until"]):
        return False
    # Clocks tick in seconds: an event of the same second as the write before was probably known when the object was
    # read, and holds values that this write has replaced since.
    return "after" not in window or at > _time(window["after"])


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
