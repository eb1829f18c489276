"""What the chaos run found, each as a small story that tells it again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from conductor import Policy
from conductor.links.leases import LinkLeased
from models.catalogues import Customer
from models.ledger import Inbox, Link, System
from models.schema import is_current
from models.session import Database
from simulators.salesforce import SalesforceSimulator
from subscribers.errors import Reject, Retry, Skip, SyncError, SystemDown
from subscribers.records import External, Page
from subscribers.salesforce import Salesforce, SalesforceAccount, SalesforceOptions
from tests.chaos.event_log import HUB, Journal
from tests.support.fakes import World

CUSTOMER = Customer.__table__


@pytest.fixture
def world(database: Database) -> Iterator[World]:
    nested = {"name": "name", "email": "email", "city": "address.city", "street": "address.line1"}
    policy = Policy(lease=60, stale=30, max_attempts=3, retry_min=2, probe_min=2)
    yield World(database, "crm", "shop", policy=policy, field_to_data=nested)


def add(world: World, **values: Any) -> str:
    with world.conductor.database.write() as c:
        return str(c.execute(sa.insert(CUSTOMER).values(**{"name": "Ada", **values})).inserted_primary_key[0])


def edit(world: World, record_id: str, **values: Any) -> None:
    with world.conductor.database.write() as c:
        c.execute(sa.update(CUSTOMER).where(CUSTOMER.c.id == int(record_id)).values(**values))


def one_row(world: World, table: Any, *conditions: Any) -> Any:
    with world.conductor.database.read() as c:
        return c.execute(sa.select(table.__table__).where(*conditions)).one()


def record(world: World, record_id: str) -> Any:
    return one_row(world, Customer, CUSTOMER.c.id == int(record_id))


def webhook(world: World, event: str, external_id: str) -> None:
    assert world.conductor.store_webhook("crm", f"{event} {external_id}".encode(), {"x-fake": "signed"})


# --- a system that is down --------------------------------------------------------------------------


def test_webhooks_that_wait_for_a_system_do_not_keep_it_down(world: World) -> None:
    one = add(world)
    world.run()
    crm = world.systems["crm"]
    crm.edit("crm_1", name="Bea")
    webhook(world, "e1", "crm_1")
    with world.conductor.database.write() as connection:
        world.conductor.breaker.went_down(connection, "crm", SystemDown("503"))
    before = one_row(world, System, System.name == "crm")
    inbox_id = one_row(world, Inbox).id
    for _ in range(3):
        world.conductor.receive(inbox_id)
    after = one_row(world, System, System.name == "crm")
    assert (after.failures, after.probe_at, after.down_reason) == (1, before.probe_at, "503")
    assert one_row(world, Inbox).state == "waiting"
    world.clock.tick(3)
    world.conductor.sweep()
    world.run()
    assert one_row(world, System, System.name == "crm").down_since is None
    assert record(world, one).name == "Bea"


def test_a_pause_stays_in_its_limit_however_long_the_trouble_lasts() -> None:
    policy = Policy(probe_max=60, retry_max=3600)
    assert policy.probe(100_000) == 60
    assert policy.backoff(100_000) <= 3600 * 1.25


@pytest.mark.parametrize("status", [200, 403])
def test_a_login_cut_in_its_headers_is_no_refused_login(tmp_path: Path, status: int) -> None:
    with SalesforceSimulator(certs=tmp_path) as org:
        accounts = SalesforceAccount(Salesforce("salesforce", options_of(org)))
        if status != 200:
            org.fail(status=status, path="oauth2/token")
        org.drop(when="inside", path="oauth2/token")
        with pytest.raises(SystemDown) as trouble:
            accounts.fetch("001000000000001AAA")
        assert trouble.value.after is None


def options_of(org: SalesforceSimulator) -> SalesforceOptions:
    login = {"consumer_key": "demo-client-id", "consumer_secret": "demo-client-secret"}
    return SalesforceOptions(instance_url=org.url, ca_bundle=org.ca_file, **login)  # type: ignore[arg-type]


@pytest.mark.parametrize("more", [{}, {"html": True}, {"status": 500, "code": "UNKNOWN_EXCEPTION"}, {"status": 429}])
def test_a_login_page_in_trouble_is_no_refused_login(tmp_path: Path, more: dict[str, Any]) -> None:
    with SalesforceSimulator(certs=tmp_path) as org:
        accounts = SalesforceAccount(Salesforce("salesforce", options_of(org)))
        org.fail(**{"path": "oauth2/token", "retry_after": "7", **more})
        with pytest.raises(SystemDown) as trouble:
            accounts.fetch("001000000000001AAA")
        assert trouble.value.after == 7


# --- what comes in --------------------------------------------------------------------------------------


def test_an_event_without_a_mapped_field_is_no_echo_but_fetched(world: World) -> None:
    one = add(world)
    world.run()
    world.clock.tick()
    edited = world.systems["crm"].edit("crm_1", name="Bea")
    thin = External("crm_1", {"Id": "crm_1"}, at=edited.at)
    world.conductor.inward.take(world.conductor.subscribers["crm.customer"], thin)
    assert record(world, one).name == "Bea"


def test_what_was_fetched_before_the_record_was_linked_is_not_taken_for_the_newest(world: World) -> None:
    crm, subscriber = world.systems["crm"], world.conductor.subscribers["crm.customer"]
    crm.add(name="Bob", email="bob@x.org")
    webhook(world, "e1", "crm_1")
    world.ears.heard.clear()
    fetch = subscriber.fetch

    def slow(external_id: str) -> External:
        found = fetch(external_id)
        subscriber.fetch = fetch  # type: ignore[method-assign]
        world.clock.tick()
        world.conductor.poll("crm.customer")
        edit(world, "1", name="Bobby")
        world.run()
        return found

    subscriber.fetch = slow  # type: ignore[method-assign]
    world.conductor.receive(one_row(world, Inbox).id)
    assert record(world, "1").name == "Bobby"
    world.clock.tick(5)
    world.conductor.sweep()
    world.run()
    assert one_row(world, Inbox).state == "done"
    assert record(world, "1").name == "Bobby" == world.shown("crm")[0]["name"]


def test_a_record_deleted_here_while_its_creation_was_in_doubt_does_not_come_back(world: World) -> None:
    one = add(world, email="a@x.org")
    crm = world.systems["crm"]
    crm.fail(Retry("no answer in time", maybe_done=True), after=True)
    world.run()
    assert [record["hub_id"] for record in crm.store.values()] == [one]
    with world.conductor.database.write() as c:
        c.execute(sa.delete(CUSTOMER))
    webhook(world, "e1", "crm_1")  # overtakes the relay and the worker
    world.conductor.receive(one_row(world, Inbox).id)
    world.run()
    world.clock.tick(30)
    world.conductor.sweep()
    world.run()
    with world.conductor.database.read() as c:
        assert c.execute(sa.select(CUSTOMER)).all() == []
    assert world.shown("crm") == world.shown("shop") == []


# --- nested objects -------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", ["before", "after", "never"])
def test_an_edit_there_beside_ours_in_a_nested_object_is_not_overwritten(world: World, told: str) -> None:
    one = add(world, city="Rome", street="Way 1")
    world.run()
    world.clock.tick()
    address = {"city": "Rome", "line1": "Way 2"}
    world.systems["crm"].edit("crm_1", address=address)
    edit(world, one, city="Oslo")
    if told == "before":
        webhook(world, "e1", "crm_1")
        world.run()
    world.run()
    assert world.shown("crm")[0]["address"] == {"city": "Oslo", "line1": "Way 2"}
    world.clock.tick()
    if told == "after":
        webhook(world, "e1", "crm_1")
    world.conductor.poll("crm.customer")
    world.conductor.sweep()  # of the same second as our write: set aside, to be fetched
    world.run()
    assert (record(world, one).city, record(world, one).street) == ("Oslo", "Way 2")
    for name in ("crm", "shop"):
        assert world.shown(name)[0]["address"] == {"city": "Oslo", "line1": "Way 2"}
    link = one_row(world, Link, Link.subscriber == "crm.customer")
    assert link.owed_change == link.synced_change


@pytest.mark.parametrize("writes_since", [0, 1, 3])
def test_an_edit_that_our_write_undid_is_mended_however_late_it_is_told_of(world: World, writes_since: int) -> None:
    one = add(world, city="Rome", street="Way 1")
    world.run()
    crm, told = world.systems["crm"], []

    def somebody_was_quicker(kind: str, what: str) -> None:
        if kind == "update":
            crm.on_call = lambda kind, what: None
            told.append(crm.edit("crm_1", address={"city": "Oslo", "line1": "Way 1"}))

    world.clock.tick()
    crm.on_call = somebody_was_quicker
    edit(world, one, street="Way 2")  # the city goes along
    world.run()
    assert crm.store["crm_1"]["address"] == {"city": "Rome", "line1": "Way 2"}
    for number in range(writes_since):
        world.clock.tick(60)
        edit(world, one, street=f"Way {number + 3}")
        world.run()
    world.clock.tick(60)
    for _ in range(2):  # by a webhook, and by a poll
        world.conductor.inward.take(world.conductor.subscribers["crm.customer"], told[0])
        world.run()
    assert record(world, one).city == "Oslo"
    expected = {"city": "Oslo", "line1": f"Way {writes_since + 2}"}
    assert world.shown("crm")[0]["address"] == world.shown("shop")[0]["address"] == expected
    edit(world, one, city="Rome")  # somebody here thinks otherwise
    world.clock.tick(60)
    world.run()
    world.conductor.inward.take(world.conductor.subscribers["crm.customer"], told[0])
    world.run()
    assert record(world, one).city == "Rome"


def refuse_an_update(world: World, error: SyncError) -> None:
    """The next update certainly does nothing there; what is read before it still is."""
    crm = world.systems["crm"]

    def refuse(kind: str, what: str) -> None:
        if kind == "update":
            crm.on_call = lambda kind, what: None
            crm.fail(error)

    crm.on_call = refuse


def to_oslo_and_back(world: World) -> list[External]:
    """Somebody there edits the city twice; the events of it."""
    events = []
    for city in ("Oslo", "Rome"):
        world.clock.tick(60)
        events.append(world.systems["crm"].edit("crm_1", address={"city": city, "line1": "Way 1"}))
    world.clock.tick(60)
    return events


def stays_in_rome(world: World, record_id: str, events: list[External]) -> None:
    for event in events:
        world.conductor.inward.take(world.conductor.subscribers["crm.customer"], event)
        world.run()
    assert record(world, record_id).city == world.systems["crm"].store["crm_1"]["address"]["city"] == "Rome"


@pytest.mark.parametrize("refused", [Reject("no such street"), SystemDown("503"), Skip("not now")])
def test_a_write_that_did_nothing_undid_nothing(world: World, refused: SyncError) -> None:
    one = add(world, city="Rome", street="Way 1")
    world.run()
    world.clock.tick(60)
    refuse_an_update(world, refused)
    edit(world, one, street="Way 2")
    world.run()
    world.clock.tick(60)
    edit(world, one, street="Way 1")  # taken back, so nothing is sent
    world.conductor.sweep()
    world.run()
    world.clock.tick(86_400)
    stays_in_rome(world, one, to_oslo_and_back(world))


def test_a_write_that_did_nothing_undid_nothing_before_the_next_one_either(world: World) -> None:
    one = add(world, city="Rome", street="Way 1")
    world.run()
    world.clock.tick(60)
    refuse_an_update(world, Reject("no such street"))
    edit(world, one, street="Way 2")
    world.run()
    events = to_oslo_and_back(world)
    edit(world, one, street="Way 1", name="Ada K")  # the name alone is written
    world.run()
    world.clock.tick(60)
    stays_in_rome(world, one, events)


def test_what_a_write_undid_is_forgotten_with_the_record_it_was_written_to(world: World) -> None:
    type(world.conductor.subscribers["crm.customer"]).on_gone = "recreate"
    one = add(world, city="Rome", street="Way 1")
    world.run()
    crm = world.systems["crm"]
    world.clock.tick()
    edit(world, one, street="Way 2")
    world.run()
    crm.remove("crm_1")
    edit(world, one, street="Way 3")  # in the same second
    world.run()
    world.conductor.sweep()
    world.run()
    told = crm.edit("crm_2", address={"city": "Oslo", "line1": "Way 3"})
    crm.edit("crm_2", address={"city": "Rome", "line1": "Way 3"})
    world.conductor.inward.take(world.conductor.subscribers["crm.customer"], told)
    world.run()
    assert record(world, one).city == "Rome"
    assert crm.store["crm_2"]["address"] == {"city": "Rome", "line1": "Way 3"}


def test_what_is_told_of_a_second_in_which_we_wrote_twice_undoes_nothing(world: World) -> None:
    one = add(world, city="Rome", street="Way 1")
    world.run()
    crm = world.systems["crm"]
    created = crm.external("crm_1")
    edit(world, one, street="Way 2")
    world.run()
    edit(world, one, city="Oslo")
    world.run()
    world.conductor.inward.take(world.conductor.subscribers["crm.customer"], created)
    world.run()
    assert (record(world, one).city, record(world, one).street) == ("Oslo", "Way 2")
    assert crm.store["crm_1"]["address"] == {"city": "Oslo", "line1": "Way 2"}


# --- processes --------------------------------------------------------------------------------------------


def test_a_database_that_does_not_answer_is_not_one_with_old_tables() -> None:
    database = Database("postgresql+psycopg://postgres@127.0.0.1:1/nowhere?connect_timeout=2")
    with pytest.raises(sa.exc.OperationalError):
        is_current(database)
    database.close()


# --- the run's own journal --------------------------------------------------------------------------------


def test_who_saw_a_value_and_replaced_it_has_replaced_it() -> None:
    journal = Journal()
    journal.created(HUB, "a@x", {"city": "Rome"})
    journal.edited("stripe", "a@x", {"city": "Oslo"}, {"city": "Rome"})
    assert journal.stories["a@x"].possible("city") == {"Oslo"}
    journal.edited("salesforce", "a@x", {"city": "Bonn"}, {"city": "Rome"})
    assert journal.stories["a@x"].possible("city") == {"Oslo", "Bonn"}
    journal.edited(HUB, "a@x", {"city": "Cork"}, {"city": "Bonn"})
    assert journal.stories["a@x"].possible("city") == {"Oslo", "Cork"}
    journal.deleted("stripe", "a@x")
    assert journal.stories["a@x"].possible("city") == {"Oslo", "Cork"}


def test_an_edit_that_its_author_deleted_with_the_record_may_be_gone() -> None:
    journal = Journal()
    journal.created("stripe", "a@x", {"city": "Rome"})
    journal.edited("salesforce", "a@x", {"city": "Oslo"}, {"city": "Rome"})
    assert journal.stories["a@x"].possible("city") == {"Oslo"}
    journal.deleted("salesforce", "a@x")
    assert journal.stories["a@x"].possible("city") == {"Oslo", "Rome"}
    journal.edited(HUB, "a@x", {"city": "Cork"}, {"city": "Oslo"})
    assert journal.stories["a@x"].possible("city") == {"Cork"}


def held_up(world: World) -> list[Page]:
    """What a poll reads now, and applies when it is polled the next time: the database was away meanwhile."""
    subscriber = world.conductor.subscribers["crm.customer"]
    read, pages = subscriber.changed_since, list(subscriber.changed_since(None))

    def late(position: dict[str, Any] | None) -> Iterator[Page]:
        subscriber.changed_since = read  # type: ignore[method-assign]
        yield from pages

    subscriber.changed_since = late  # type: ignore[method-assign]
    return pages


def settle(world: World) -> None:
    for _ in range(4):
        world.clock.tick(5)
        world.conductor.sweep()
        world.run()


def test_a_page_read_before_a_write_whose_answer_was_lost_does_not_undo_it(world: World) -> None:
    one = add(world, email="old@x.org")
    world.run()
    crm = world.systems["crm"]
    world.clock.tick()
    crm.edit("crm_1", name="Bea")
    held_up(world)
    world.clock.tick()
    edit(world, one, email="new@x.org")
    crm.fail(Retry("no answer in time", maybe_done=True), after=True)
    world.run()
    settle(world)
    assert crm.store["crm_1"]["email"] == "new@x.org"
    world.conductor.poll("crm.customer")
    assert record(world, one).email == "new@x.org"
    settle(world)
    assert (record(world, one).name, record(world, one).email) == ("Bea", "new@x.org")
    assert crm.writes() == [("create", one), ("update", "crm_1")]


def test_what_was_fetched_under_a_lease_that_ran_out_since_is_not_taken_for_the_newest(world: World) -> None:
    one = add(world)
    world.run()
    crm, subscriber = world.systems["crm"], world.conductor.subscribers["crm.customer"]
    world.clock.tick()
    crm.edit("crm_1", name="Bea")
    fetch = subscriber.fetch

    def slow(external_id: str) -> External:
        found = fetch(external_id)
        subscriber.fetch = fetch  # type: ignore[method-assign]
        world.clock.tick(61)
        crm.edit("crm_1", name="Bella")
        world.conductor.poll("crm.customer")
        world.run()
        return found

    subscriber.fetch = slow  # type: ignore[method-assign]
    with pytest.raises(LinkLeased):
        world.conductor.inward.look_again(subscriber, "crm_1")
    assert record(world, one).name == "Bella" == world.shown("shop")[0]["name"]


def test_a_deletion_there_outlives_a_call_whose_lease_ran_out(world: World) -> None:
    one = add(world)
    world.run()
    crm = world.systems["crm"]
    edit(world, one, name="Bea")
    gone = crm.external("crm_1")

    def slow(kind: str, what: str) -> None:
        crm.on_call = lambda kind, what: None
        world.clock.tick(61)
        world.conductor.inward.take(world.conductor.subscribers["crm.customer"], replace(gone, deleted=True))

    crm.on_call = slow
    world.run()
    settle(world)
    assert one_row(world, Link, Link.subscriber == "crm.customer").unlinked_at is not None
