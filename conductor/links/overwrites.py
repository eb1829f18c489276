"""What our writes put back beside their own fields (`Link.write_windows`): nested objects travel whole.

What somebody edits there between our reading such an object and our writing it is undone by the write, and only
the event of that edit tells of it. So each write leaves a window: when it was read, when it was written (both by
the system's clock), and what stood there.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from subscribers.mapping.values import Flat

Windows = list[dict[str, Any]]

#: Windows kept of a link. An event may come when the record has been written again since: after an outage, or late.
KEPT = 16


def begun(windows: Windows | None, since: datetime, wrote: datetime | None, fields: Flat) -> Windows:
    """One more, of what was read at `since`; our last write before that was at `wrote`."""
    before = dropped(windows) or []
    new = {"since": since.isoformat(), "fields": fields}
    if wrote is not None:
        new["after"] = min(wrote, since).isoformat()
    return [*before[1 - KEPT :], new]


def ended(windows: Windows | None, at: datetime | None) -> Windows | None:
    """The newest write is known to be over, at `at` at the latest; without a time its window cannot be kept.

    A write that had ended before stays as it is: an edit made after it was not undone by it, however often it is
    told of.
    """
    if not windows or "until" in windows[-1]:
        return windows
    last = [] if at is None else [{**windows[-1], "until": at.isoformat()}]
    return [*windows[:-1], *last] or None


def dropped(windows: Windows | None) -> Windows | None:
    """The newest write certainly did nothing: it undid nothing either."""
    return [window for window in windows or [] if "until" in window] or None


def around(windows: Windows | None, at: datetime | None) -> Windows:
    """Those in which an edit of this time may have been undone."""
    return [] if at is None else [window for window in windows or [] if _may_hold(window, at)]


def without(windows: Windows | None, done: Windows) -> Windows | None:
    """Those that are left."""
    return [window for window in windows or [] if window not in done] or None


def _may_hold(window: dict[str, Any], at: datetime) -> bool:
    if "until" not in window or not _time(window["since"]) <= at <= _time(window["until"]):
        return False
    # Clocks tick in seconds: what is told of the second of the write before was probably seen when it was read, and
    # holds what that write has replaced since.
    return "after" not in window or at > _time(window["after"])


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
