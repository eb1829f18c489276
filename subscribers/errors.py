"""Failures named by what to do next. Code that calls an external system raises one of these.

| class        | what it means                               | what happens                                        |
|--------------|---------------------------------------------|-----------------------------------------------------|
| `Retry`      | this record, later                          | retried with backoff, a dead letter after the limit |
| `Reject`     | the data is wrong                           | a dead letter immediately                           |
| `SystemDown` | the system failed, not the record           | the system is paused and probed                     |
| `Gone`       | the linked external record no longer exists | unlinked; the subscriber's policy decides           |
| `Skip`       | there is nothing to do                      | recorded with the reason                            |

Each class carries its policy as attributes, and a new class inherits it from the one that it refines:
`class RowLocked(Retry): code = "row_locked"` is all that the engine needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Self

from redaction import LONGEST_RESPONSE, clean, hide

#: The longest pause that a system can ask for; after it the system is called again.
_LONGEST_PAUSE_SECONDS = 86_400.0

_LONGEST_MESSAGE = 4000
_LONGEST_REQUEST_ID = 128


class SyncError(Exception):
    """Base of all of them.

    `after`: seconds until the next call makes sense. `maybe_done`: the call may have taken effect although no proper
    answer arrived (a timeout, a cut connection), so the record is looked up before a create is tried again.
    `request_id`: the system's own name of the call. `response`: the beginning of its response, kept for the history.
    Known secrets are masked in all texts.
    """

    #: The delivery uses up one of the record's attempts.
    counts_attempt: ClassVar[bool] = True
    #: No later attempt can succeed unless the record, the mapping or the system changes.
    is_terminal: ClassVar[bool] = False
    #: Every record of the system would fail: call it no more until a probe succeeds.
    pauses_system: ClassVar[bool] = False
    #: The link ends here: its external record no longer exists.
    unlinks: ClassVar[bool] = False
    #: Fewer records in one call may succeed.
    splits_batch: ClassVar[bool] = False
    #: There is nothing to send, which is not a failure.
    skips: ClassVar[bool] = False
    #: The cause, for the remedy of a dead letter; an instance may name a more exact one.
    code: str = "failed"

    #: Defaults of what only some classes set.
    fields: Mapping[str, str] = MappingProxyType({})
    merged_into: str | None = None
    #: The id of the record that the system has instead of the one it refused.
    existing_id: str | None = None
    response: str | None = None
    unanswered: bool = False
    server_failed: bool = False

    def __init__(
        self,
        message: str = "",
        *,
        after: float | None = None,
        maybe_done: bool = False,
        request_id: str | None = None,
        code: str | None = None,
    ) -> None:
        # Hidden before it is cut: a cut would leave the beginning of a secret.
        super().__init__(hide(clean(message))[:_LONGEST_MESSAGE] or type(self).__name__)
        self.after = None if after is None else min(max(after, 0.0), _LONGEST_PAUSE_SECONDS)
        self.maybe_done = maybe_done
        self.request_id = hide(clean(request_id))[:_LONGEST_REQUEST_ID] if request_id else None
        if code is not None:
            self.code = code

    @property
    def may_be_outage(self) -> bool:
        """Whether the call failed in a way that says nothing about the record."""
        return self.unanswered or self.server_failed

    def with_response(self, response: str | None) -> Self:
        """Return this error with the beginning of the system's response; a response it already has stays."""
        if response and self.response is None:
            self.response = hide(clean(response))[:LONGEST_RESPONSE]
        return self


class Retry(SyncError):
    """This record, later: a timeout, a 5xx on one record, a lock held in the system.

    `unanswered`: the system did not answer at all. `server_failed`: it answered 500, 502 or 504, or something else
    than its API does. Neither says anything about the record: if calls for others fail as well, the system is down.
    """

    code = "attempts_exhausted"

    def __init__(
        self,
        message: str = "",
        *,
        after: float | None = None,
        maybe_done: bool = False,
        unanswered: bool = False,
        server_failed: bool = False,
        request_id: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, after=after, maybe_done=maybe_done, request_id=request_id, code=code)
        self.unanswered = unanswered
        self.server_failed = server_failed


class Outdated(Retry):
    """The system refused a conditional write: the record was edited there since the version that the write names.

    It is read and merged, and then sent with the new version; the first time without a pause.
    """

    code = "outdated"


class BatchTooLarge(Retry):
    """The call had too many records, as for the limits of one transaction: the conductor sends fewer in one call.

    For a call with one record this is a `Retry`.
    """

    splits_batch = True
    code = "batch_too_large"


class ResponseTooLarge(Retry):
    """The response has more than `most` bytes, and was not read. To repeat the call would only repeat that."""

    is_terminal = True
    code = "response_too_large"

    def __init__(self, most: int, *, maybe_done: bool = False) -> None:
        super().__init__(
            f"the response has more than {most:,} bytes: read smaller pages, or raise the system's setting "
            "MAX_RESPONSE_BYTES if it is right",
            maybe_done=maybe_done,
        )


class Reject(SyncError):
    """The data is wrong: no retry succeeds until it is changed. `fields`: the reason per field."""

    is_terminal = True
    code = "rejected"

    def __init__(
        self,
        message: str = "",
        *,
        fields: Mapping[str, str] | None = None,
        request_id: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, request_id=request_id, code=code)
        self.fields = {hide(clean(name)): hide(clean(text)) for name, text in (fields or {}).items()}


#: The code of a create that was done, while nothing says which record it made.
CREATED_WITHOUT_ID = "created_without_id"


class Unidentified(Retry):
    """The system created the record, but its response has no id: it is searched for, and never created again."""

    code = CREATED_WITHOUT_ID

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message, maybe_done=True, request_id=request_id)


class Unidentifiable(Unidentified):
    """The system created the record, and there is nothing to find it by: no mark of ours and no match fields."""

    is_terminal = True


class SystemDown(SyncError):
    """The system, not the record: a refused connection, 429, 503, a login that fails."""

    counts_attempt = False
    pauses_system = True
    code = "system_down"


class Gone(SyncError):
    """The linked external record no longer exists. `merged_into`: the id of the record that replaces it."""

    is_terminal = True
    unlinks = True
    code = "gone"

    def __init__(
        self,
        message: str = "",
        *,
        merged_into: str | None = None,
        request_id: str | None = None,
        maybe_done: bool = False,
        code: str | None = None,
    ) -> None:
        super().__init__(message, maybe_done=maybe_done, request_id=request_id, code=code)
        self.merged_into = merged_into


class Skip(SyncError):
    """There is nothing to do; the message is the reason and is recorded."""

    counts_attempt = False
    is_terminal = True
    skips = True
    code = "skipped"


class BadSignature(Exception):
    """A webhook whose signature does not match its sender; only a trace of it is kept."""


class BadWebhook(Exception):
    """A webhook with a good signature that cannot be read; the response names the error."""
