"""Call subscribers so that one failure stays one record's failure: every outcome is a value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from subscribers.errors import Retry, SyncError, SystemDown

#: Different records that must fail in a row, without a response, before this counts as an outage of the system.
OUTAGE_CALLS = 3


def one_by_one(call: Callable[[Any], Any], items: Sequence[Any], pace: Callable[[], None] = lambda: None) -> list[Any]:
    """Return the outcome of `call` for each item; during an outage the remaining items are not tried."""
    outcomes: list[Any] = []
    unanswered = 0
    for item in items:
        pace()
        outcome = call_safely(call, item)
        outcomes.append(outcome)
        unanswered = unanswered + 1 if isinstance(outcome, SyncError) and outcome.may_be_outage else 0
        if isinstance(outcome, SyncError) and (outcome.pauses_system or unanswered == OUTAGE_CALLS):
            untried = SystemDown(str(outcome), after=outcome.after)
            outcomes += [untried] * (len(items) - len(outcomes))
            break
    return outcomes


def call_safely(call: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of `call`, or the SyncError it raised; any other error becomes a `Retry` with its traceback."""
    try:
        return call(*arguments)
    except SyncError as error:
        return error
    except Exception as error:  # a bug in a subscriber must not fail the other records of the batch
        wrapped = Retry(f"{type(error).__name__}: {error}", maybe_done=True, code="bug")
        wrapped.__cause__ = error
        return wrapped


#: Seconds that one call to a system may take in total, from connecting to the last byte of its response.
CALL_SECONDS = 50.0

_renew: ContextVar[Callable[[], object]] = ContextVar("renew", default=lambda: None)
_left: ContextVar[Callable[[], float]] = ContextVar("left", default=lambda: CALL_SECONDS)


def still_working() -> None:
    """Renew the leases on the records of a long `bulk_*` call; such a call must call this regularly."""
    _renew.get()()


def seconds_for_call() -> float:
    """Return the seconds that a call may take from now on: no call may outlive the lease of its records.

    Raises:
      SyncError: the call may not begin.
    """
    return min(CALL_SECONDS, _left.get()())


@contextmanager
def renewed_by(renew: Callable[[], object], left: Callable[[], float] = lambda: CALL_SECONDS) -> Iterator[None]:
    """Let `still_working` call `renew` inside the block, and limit each call to the seconds that `left` returns."""
    renew_token, left_token = _renew.set(renew), _left.set(left)
    try:
        yield
    finally:
        _renew.reset(renew_token)
        _left.reset(left_token)
