"""A system that is down receives only probes."""

from __future__ import annotations

import sqlalchemy as sa

from conductor import Policy
from models.catalogues import Invoice
from models.ledger import DeadLetter, System
from models.session import Database
from subscribers.errors import Retry, SystemDown
from tests.support.fakes import FakeInvoice, FakeSubscriber, LowercasingSubscriber, TestHub
from tests.support.records import add, edit, link, rows


def test_a_system_that_is_down_uses_no_attempts_and_is_probed(hub: TestHub) -> None:
    ids = [add(hub, name=f"n{number}") for number in range(30)]
    crm = hub.systems["crm"]
    crm.fail(SystemDown("503", after=5), times=2)
    hub.run()
    assert len(crm.calls) == 1  # no other record was sent
    assert all(link(hub, "crm", one).attempts == 0 for one in ids)
    hub.clock.tick(1)
    hub.conductor.sweep()
    hub.run()
    hub.conductor.deliver("crm.customer", ids)  # another message for the same records
    assert len(crm.calls) == 1  # the next probe is not due yet
    hub.clock.tick(5)
    hub.conductor.sweep()
    hub.run()
    assert len(crm.calls) == 2  # one probe
    hub.clock.tick(60)
    for _ in range(3):
        hub.conductor.sweep()
        hub.run()
    assert len(hub.shown("crm")) == len(ids)
    assert all(link(hub, "crm", one).attempts == 0 for one in ids)
    assert rows(hub, DeadLetter) == []


def test_a_system_that_is_down_is_probed_with_one_call_and_every_third_time_with_one_record(database: Database) -> None:
    hub = TestHub(database, "crm", kinds=(LowercasingSubscriber,))
    ids = [add(hub) for _ in range(10)]

    def calls_until_it_is_back(failures: int) -> list[int]:
        hub.systems["crm"].calls.clear()
        for number in range(failures):
            hub.systems["crm"].fail(SystemDown("503"))
            hub.run() if number == 0 else hub.conductor.deliver("crm.customer", ids)
            hub.clock.tick(61)
        hub.conductor.deliver("crm.customer", ids)
        return [int(what) for kind, what in hub.systems["crm"].calls if kind == "bulk"]

    assert calls_until_it_is_back(1) == [10, 10]
    ids = [add(hub) for _ in range(10)]
    assert calls_until_it_is_back(3) == [10, 10, 10, 1, 9]


def test_an_endless_retry_after_is_cut_to_one_day(database: Database) -> None:
    hub = TestHub(database, "crm")
    add(hub)
    hub.systems["crm"].fail(SystemDown("429", after=1e14))
    hub.run()
    hub.clock.tick(86_401)
    hub.conductor.sweep()
    hub.run()
    assert len(hub.shown("crm")) == 1


def test_a_system_that_stays_down_is_probed_less_and_less(database: Database) -> None:
    hub = TestHub(database, "crm")
    one = add(hub)
    pauses: list[float] = []
    for _ in range(7):
        hub.systems["crm"].fail(SystemDown("503"))
        hub.run() if not pauses else hub.conductor.deliver("crm.customer", [one])
        (system,) = rows(hub, System, System.name == "crm")
        pauses.append((system.probe_at - hub.clock()).total_seconds())
        hub.clock.tick(pauses[-1])
    assert pauses == [2, 4, 8, 16, 32, 60, 60]
    hub.conductor.deliver("crm.customer", [one])
    (system,) = rows(hub, System, System.name == "crm")
    assert (system.down_since, system.failures) == (None, 0)


def test_the_probe_is_another_record_each_time(database: Database) -> None:
    hub = TestHub(database, "crm")
    bad = add(hub, name="Refused with a 403")
    for number in range(3):
        add(hub, name=f"n{number}")

    def refuse(kind: str, what: str) -> None:
        if what == bad:
            raise SystemDown("403")

    hub.systems["crm"].on_call = refuse
    for _ in range(20):
        hub.run()
        hub.clock.tick(61)
        hub.conductor.sweep()
    assert len(hub.shown("crm")) == 3


def test_a_probe_that_calls_nothing_leaves_the_probe_to_the_next(database: Database) -> None:
    hub = TestHub(database, "crm")
    ids = [add(hub, name=f"n{number}") for number in range(15)]
    hub.run()
    hub.systems["crm"].fail(SystemDown("503"))
    edit(hub, ids[-1], name="edited")
    hub.run()
    for one in ids[:-1]:
        edit(hub, one, currency="eur")  # owed, but nothing to send
    hub.conductor.relay()
    hub.publisher.published.clear()
    hub.clock.tick(61)
    hub.conductor.sweep()
    hub.run()
    assert rows(hub, System, System.name == "crm")[0].down_since is None


def test_a_blocked_record_does_not_keep_a_system_down(database: Database) -> None:
    hub = TestHub(database, "crm", kinds=(FakeSubscriber, FakeInvoice))
    hub.systems["crm"].fail(SystemDown("503"))
    one = add(hub)
    hub.run()
    with database.write() as connection:
        connection.execute(sa.insert(Invoice).values(number="R-1", customer_id=int(one), currency="eur"))
    hub.conductor.relay()
    # The system is up again. The invoice's message arrives first and causes no call, as the invoice is blocked.
    hub.clock.tick(61)
    hub.conductor.deliver("crm.invoice", ["1"])
    hub.conductor.deliver("crm.customer", [one])
    assert rows(hub, System, System.name == "crm")[0].down_since is None


def test_a_poll_that_makes_no_call_does_not_keep_a_system_down(database: Database) -> None:
    hub = TestHub(database, "crm")
    one = add(hub)
    hub.systems["crm"].fail(SystemDown("503"))
    hub.run()
    hub.clock.tick(61)
    hub.systems["crm"].defer_reason = lambda: "the day's calls are nearly used up"  # type: ignore[method-assign]
    hub.conductor.poll("crm.customer")
    hub.conductor.deliver("crm.customer", [one])
    assert rows(hub, System, System.name == "crm")[0].down_since is None


def test_a_call_without_an_answer_is_no_success(database: Database) -> None:
    hub = TestHub(database, "crm")
    add(hub)
    hub.systems["crm"].fail(SystemDown("503"))
    hub.run()
    hub.clock.tick(61)
    hub.systems["crm"].fail(Retry("no response in time", maybe_done=True, unanswered=True))
    hub.conductor.sweep()
    hub.run()
    assert rows(hub, System, System.name == "crm")[0].down_since is not None


def test_calls_that_failed_together_are_one_failure(database: Database) -> None:
    hub = TestHub(database, "crm")
    for _ in range(8):
        with database.write() as connection:
            hub.conductor.breaker.went_down(connection, "crm", SystemDown("503"))
    assert rows(hub, System, System.name == "crm")[0].failures == 1


def test_pauses_stay_within_their_limit() -> None:
    assert Policy(probe_max_seconds=60).probe(100_000) == 60
