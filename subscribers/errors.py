"""Failures named by what to do next. Whoever talks to an external system raises one of these.

| class        | what it means                               | what happens                                    |
|--------------|---------------------------------------------|-------------------------------------------------|
| `Retry`      | this record, later                          | backoff, dead letter after the limit            |
| `Reject`     | the data is wrong                           | dead letter at once, with the words per field   |
| `SystemDown` | the system, not the record                  | system paused and probed, no attempt used up    |
| `Gone`       | the linked external record no longer exists | unlinked; the subscriber's policy decides       |
| `Skip`       | nothing to do                               | recorded with the reason                        |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

#: Seconds a system may ask to be left alone; what asks for more is asked again after that.
_LONGEST_PAUSE = 86_400.0

_LONGEST_MESSAGE = 4000

#: Characters of a failure's answer that are kept for the history.
LONGEST_REPLY = 2000


def clean(text: object) -> str:
    """Text as every database takes it: without NUL and halves of characters, which systems do send."""
    said = str(text)
    if said.isascii() and "\x00" not in said:
        return said
    return said.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _within_reason(after: float | None) -> float | None:
    return None if after is None else min(max(after, 0.0), _LONGEST_PAUSE)


class SyncError(Exception):
    """Base of all of them.

    `maybe_done` says that the call may have taken effect although no proper answer came (a
    timeout, a cut connection): before a create is tried again the record is looked up.
    `request_id` is the system's own name of the call. `reply` is its answer as it came, where there
    was one, for the history.
    """

    reply: str | None = None

    def __init__(self, message: str = "", *, maybe_done: bool = False, request_id: str | None = None) -> None:
        super().__init__(clean(message)[:_LONGEST_MESSAGE] or type(self).__name__)
        self.maybe_done = maybe_done
        self.request_id = clean(request_id)[:128] if request_id else None

    def with_reply(self, reply: str | None) -> Self:
        """This error, with the beginning of the answer it was read from; one that has its answer keeps it."""
        if reply and self.reply is None:
            self.reply = clean(reply)[:LONGEST_REPLY]
        return self


class Retry(SyncError):
    """This record, later: a timeout, a 5xx on one record, a lock held there. `after` is in seconds.

    `unanswered`: the system said nothing at all. That may be the network's fault as well as the
    record's, so it ends in a dead letter only if the system answers others meanwhile.
    """

    def __init__(
        self,
        message: str = "",
        *,
        after: float | None = None,
        maybe_done: bool = False,
        unanswered: bool = False,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, maybe_done=maybe_done, request_id=request_id)
        self.after = _within_reason(after)
        self.unanswered = unanswered


class Reject(SyncError):
    """The data is wrong and stays wrong until somebody changes it. `fields`: the words per field."""

    def __init__(
        self, message: str = "", *, fields: Mapping[str, str] | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.fields = {clean(name): clean(text) for name, text in (fields or {}).items()}


class SystemDown(SyncError):
    """The system, not the record: refused connections, 429, 503, a login that fails. `after` is in seconds."""

    def __init__(
        self,
        message: str = "",
        *,
        after: float | None = None,
        maybe_done: bool = False,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, maybe_done=maybe_done, request_id=request_id)
        self.after = _within_reason(after)


class Gone(SyncError):
    """The linked external record no longer exists there. `merged_into`: the id of the one that it lives on in."""

    def __init__(
        self,
        message: str = "",
        *,
        merged_into: str | None = None,
        request_id: str | None = None,
        maybe_done: bool = False,
    ) -> None:
        super().__init__(message, maybe_done=maybe_done, request_id=request_id)
        self.merged_into = merged_into


class Skip(SyncError):
    """Nothing to do; the message is the reason and is recorded."""


class BadSignature(Exception):
    """A webhook is not from who it says; only a trace of it is kept."""


class BadWebhook(Exception):
    """A webhook that is properly signed but cannot be read; its sender is told what is wrong."""
