"""How long a retry waits."""

from __future__ import annotations

from datetime import timedelta

import pytest

from conductor import Policy
from models.ledger import Inbox, Link
from subscribers.errors import Retry
from tests.support.fakes import TestHub
from tests.support.records import add, one_row, webhook

POLICY = Policy(retry_min_seconds=2, retry_max_seconds=3600)


@pytest.mark.parametrize("attempt", [1, 2, 5, 12, 100_000])
def test_pauses_stay_within_their_limits_and_differ(attempt: int) -> None:
    pauses = [POLICY.backoff(attempt) for _ in range(50)]
    assert all(2 <= pause <= 3600 for pause in pauses)
    assert len(set(pauses)) > 1, "records that failed together must not be retried together"


def test_a_pause_is_never_shorter_than_the_system_asks() -> None:
    assert POLICY.backoff(1, 120) == 120
    assert 2 <= POLICY.backoff(1, 0.1) <= 2.5


@pytest.mark.parametrize("direction", ["outward", "inward"])
@pytest.mark.parametrize("asked, shortest, longest", [(120.0, 120.0, 120.0), (0.1, 2.0, 2.5)])
def test_both_directions_wait_equally_long(
    hub: TestHub, direction: str, asked: float, shortest: float, longest: float
) -> None:
    add(hub)
    if direction == "inward":
        hub.run()
        # An event of the same second as our write does not prove the newest state, so the record is fetched.
        hub.systems["crm"].edit("crm_1", name="Bea")
        webhook(hub, "crm", "e1", "crm_1")
    hub.systems["crm"].fail(Retry("locked", after=asked))
    hub.run()
    waits = one_row(hub, Inbox) if direction == "inward" else one_row(hub, Link, Link.subscriber == "crm.customer")
    assert waits.attempts == 1
    assert timedelta(seconds=shortest) <= waits.retry_at - hub.clock() <= timedelta(seconds=longest)
