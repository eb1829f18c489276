"""What a hostile or broken system tries: docs/explanation/field-faults.md, group S."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from conductor import Policy, remedy
from models.ledger import Cursor, DeadLetter, Link
from models.session import Database
from subscribers.calls import CALL_SECONDS, seconds_for_call
from subscribers.errors import ResponseTooLarge, Retry, SyncError
from tests.support.fakes import TestHub
from tests.support.records import add, link, rows


@pytest.fixture
def hub(database: Database) -> TestHub:
    return TestHub(database, "crm", policy=Policy(lease_seconds=60, stale_seconds=30, max_attempts=3))


# --- S4: an answer that is too large --------------------------------------------------------------------


def test_s04_a_write_with_a_large_answer_is_a_dead_letter_at_once_and_is_looked_up(hub: TestHub) -> None:
    one = add(hub)
    hub.systems["crm"].fail(ResponseTooLarge(1000, maybe_done=True), after=True)
    hub.run()
    (letter,) = rows(hub, DeadLetter)
    assert letter.code == "response_too_large" and "1,000 bytes" in letter.message
    assert "MAX_RESPONSE_BYTES" in remedy(letter.code).text
    with hub.conductor.database.write() as connection:
        hub.conductor.letters.retry(connection, [letter])
    hub.conductor.sweep()
    hub.run()
    assert [kind for kind, _ in hub.systems["crm"].calls][:2] == ["create", "find"]
    assert len(hub.shown("crm")) == 1 and link(hub, "crm", one).external_id == "crm_1"


def test_s04_a_poll_with_a_large_answer_says_so(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed_since(_self: object, _position: object) -> None:
        raise ResponseTooLarge(1000)

    monkeypatch.setattr(type(hub.conductor.subscribers["crm.customer"]), "changed_since", changed_since)
    with pytest.raises(SyncError):
        hub.conductor.poll("crm.customer")
    (cursor,) = rows(hub, Cursor)
    assert "1,000 bytes" in cursor.result and "MAX_RESPONSE_BYTES" in cursor.result


# --- S5: a call that takes too long ---------------------------------------------------------------------


def test_s05_a_call_may_take_less_than_what_is_left_of_its_lease(hub: TestHub) -> None:
    found: list[float] = []

    def look(_kind: str, _what: str) -> None:
        found.append(seconds_for_call())
        hub.clock.tick(15)
        found.append(seconds_for_call())
        hub.clock.tick(10)
        found.append(seconds_for_call())  # the lease is renewed

    hub.systems["crm"].on_call = look
    add(hub)
    hub.run()
    assert found == [CALL_SECONDS, pytest.approx(45 * 0.9), CALL_SECONDS]


def test_s05_no_call_begins_once_another_worker_has_the_record(hub: TestHub) -> None:
    refused: list[SyncError] = []

    def lose(_kind: str, _what: str) -> None:
        hub.clock.tick(61)
        with hub.conductor.database.write() as connection:
            connection.execute(sa.update(Link).values(lease_owner="another worker"))
        with pytest.raises(Retry) as caught:
            seconds_for_call()
        refused.append(caught.value)
        hub.systems["crm"].on_call = lambda kind, what: None
        raise caught.value

    hub.systems["crm"].on_call = lose
    add(hub)
    hub.run()
    assert [error.maybe_done for error in refused] == [True]
    assert not hub.shown("crm")
