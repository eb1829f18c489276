"""The connection check as a task: it has a timeout, can be stopped, and survives a process restart."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from models.session import Database
from subscribers.errors import SystemDown
from tests.support.fakes import TestHub


class Silence:
    """A system that does not answer until the test releases it."""

    def __init__(self) -> None:
        self.asked, self.over = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.asked.set()
        self.over.wait()


@pytest.fixture
def silence() -> Iterator[Silence]:
    silence = Silence()
    yield silence
    silence.over.set()


def run(hub: TestHub) -> None:
    while hub.conductor.tasks.run_some():
        pass


def test_what_was_found_is_kept(database: Database) -> None:
    hub = TestHub(database, "crm", "shop")
    one = hub.conductor.tasks.start("check", "ann", system="crm")
    run(hub)
    task = hub.conductor.tasks.get(one)
    assert (task.state, task.done, task.total, task.succeeded, task.failed) == ("done", 1, 1, 1, 0)
    assert task.message == "everything works" and task.position["took"] >= 0
    assert task.position["found"]["crm.customer"][0] == ["ok", "the login works, and records can be read"]
    two = hub.conductor.tasks.start("check", "ann", system="crm")
    run(hub)
    assert {name: row.id for name, row in hub.conductor.tasks.newest_by("check", "system").items()} == {"crm": two}


def test_what_is_wrong_is_counted(database: Database) -> None:
    def describe(_self: Any) -> None:
        raise SystemDown("401")

    hub = TestHub(database, "crm", describe=describe)
    one = hub.conductor.tasks.start("check", "ann", system="crm")
    run(hub)
    task = hub.conductor.tasks.get(one)
    assert (task.state, task.failed, task.message) == ("done", 1, "1 thing needs fixing")


def test_a_system_that_hangs_is_given_up_and_holds_up_no_other_task(database: Database, silence: Silence) -> None:
    hub = TestHub(database, "crm", describe=silence)
    tasks = hub.conductor.tasks
    one = hub.conductor.tasks.start("check", "ann", system="crm")
    assert hub.conductor.tasks.start("check", "bob", system="crm") == one  # a running check is not started again
    tasks.run_some()
    assert silence.asked.is_set() and tasks.get(one).message == "calling crm.customer"
    assert not tasks.run_some()  # no further step yet, so other tasks can run
    hub.clock.tick(10)
    tasks.run_some()
    assert tasks.get(one).message == "calling crm.customer, no response after 10 s"
    hub.clock.tick(50)
    tasks.run_some()
    task = tasks.get(one)
    assert (task.state, task.failed, task.position["took"]) == ("done", 1, 60)
    assert task.position["found"] == {"crm.customer": [["wrong", "no response within 60 s"]]}


def test_it_can_be_stopped_and_another_process_asks_again(database: Database, silence: Silence) -> None:
    hub = TestHub(database, "crm", describe=silence)
    one = hub.conductor.tasks.start("check", "ann", system="crm")
    hub.conductor.tasks.run_some()
    hub.conductor.tasks.stop(one, "ann")
    assert hub.conductor.tasks.get(one).state == "stopped"
    hub.conductor.tasks.resume(one, "ann")
    other = TestHub(database, "crm")  # this system answers
    run(other)
    assert other.conductor.tasks.get(one).message == "everything works"


def test_an_unknown_system_is_refused(database: Database) -> None:
    with pytest.raises(ValueError, match="unknown system 'crn'; known systems: crm"):
        TestHub(database, "crm").conductor.tasks.start("check", "ann", system="crn")
