"""Histories that the model test found failing, each made small; what was wrong is in the test's name."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from models.catalogues import CATALOGUES
from models.session import Database
from subscribers.errors import Reject, Retry
from subscribers.mapping.fields import Field
from subscribers.records import External
from tests.conductor.test_conductor import CUSTOMER, Delivery, add, edit, link, record, rows, webhook
from tests.model import model
from tests.model.model_systems import Profile
from tests.support.fakes import World


@pytest.mark.parametrize("catalogue", sorted(CATALOGUES))
def test_the_id_of_a_deleted_record_is_not_given_to_another(database: Database, catalogue: str) -> None:
    # On SQLite the next record had the id of the last one deleted, and with it that one's links.
    if catalogue != "customer":
        assert CATALOGUES[catalogue].table.dialect_kwargs.get("sqlite_autoincrement")
        return
    with database.write() as c:
        first = c.execute(sa.insert(CUSTOMER).values(name="Ada").returning(CUSTOMER.c.id)).scalar_one()
        c.execute(sa.delete(CUSTOMER))
        assert c.execute(sa.insert(CUSTOMER).values(name="Bob").returning(CUSTOMER.c.id)).scalar_one() > first


def test_a_record_that_comes_back_from_there_is_not_taken_for_gone(database: Database) -> None:
    # The new link kept `unlinked_at` of the one before it: nothing was ever sent or taken again.
    world = World(database, "crm", on_gone="delete")
    one = add(world)
    world.run()
    world.systems["crm"].remove("crm_1")
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    assert record(world, one) is None
    subscriber = world.conductor.subscribers["crm.customer"]
    with database.write() as c:
        c.execute(sa.insert(CUSTOMER).values(id=int(one), name="Ada again"))
        mapper = world.conductor.mappings.current(c, "crm.customer")[0]
        incoming = type("Incoming", (), {"subscriber": subscriber, "mapper": mapper})()
        incoming.external = External("crm_2", {"name": "Ada again"})
        world.conductor.inward.applying._new_link(c, incoming, one)
    assert link(world, "crm", one).unlinked_at is None and not link(world, "crm", one).deleted_remotely


def test_a_field_that_only_goes_out_is_put_right_in_a_record_created_there(database: Database) -> None:
    # It was noted as held by the system, and so never sent.
    world = World(database, "crm", field_to_data={"name": "name", "notes": Field("notes", direction="out")})
    world.systems["crm"].add(name="Bob", notes="theirs")
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    assert record(world).notes is None
    assert world.shown("crm") == [{"name": "Bob", "notes": None}]


def test_what_they_do_not_mention_is_sent_to_a_record_that_is_adopted(database: Database) -> None:
    world = World(database, "crm", match_on=("email",))
    world.conductor.pause("crm", "ann", "")
    one = add(world, email="a@x.org", phone="1")
    world.conductor.relay()
    world.ears.heard.clear()
    with database.write() as c:
        c.execute(sa.text("UPDATE link SET synced_change = owed_change, owed_since = NULL"))
    world.conductor.resume("crm", "ann")
    world.systems["crm"].add(name="Ada", email="a@x.org")
    webhook(world, "crm", "e1", "crm_1")
    world.run()
    assert link(world, "crm", one).external_id == "crm_1" and world.shown("crm")[0]["phone"] == "1"


def test_a_deletion_that_is_polled_again_is_not_written_down_again(database: Database) -> None:
    # Each poll wrote a row of history and announced the record, for ever, while it had a dead letter.
    world = World(database, "crm")
    one = add(world)
    world.run()
    with database.write() as c:
        c.execute(sa.delete(CUSTOMER))
    world.run()
    world.systems["crm"].fail(Reject("no"))
    with database.write() as c:
        c.execute(sa.insert(CUSTOMER).values(id=int(one), name="Ada"))
    world.run()
    assert link(world, "crm", one).dead_at is not None
    world.conductor.poll("crm.customer")
    world.ears.heard.clear()
    before = len(rows(world, Delivery))
    world.conductor.poll("crm.customer")
    assert len(rows(world, Delivery)) == before and world.ears.heard == []


def test_an_edit_made_after_a_create_whose_answer_was_lost_survives_its_webhook(database: Database) -> None:
    # The webhook of our own create was taken for a person's version, and beat the edit.
    mapping = {"name": Field("name", conflict="external"), "email": Field("email", conflict="external")}
    world = World(database, "crm", field_to_data=mapping)
    one = add(world, email="first@x.org")
    world.systems["crm"].fail(Retry("no answer in time", maybe_done=True), after=True)
    world.run()
    edit(world, one, email="second@x.org")
    webhook(world, "crm", "e1", "crm_1")
    world.conductor.receive(1)
    assert record(world, one).email == "second@x.org"
    world.run()
    assert world.shown("crm")[0]["email"] == "second@x.org"


HISTORIES = [
    model.History(
        {"shop": Profile(on_gone="delete")},
        (("insert", 0, 0, 0), ("run", 0), ("x_delete", 0, 0), ("x_add", 0, 1, 0)),
    ),
    model.History(
        {"crm": Profile(), "shop": Profile(on_delete="unlink")},
        (("insert", 0, 0, 0), ("run", 0), ("x_add", 0, 1, 0), ("delete", 0, 0)),
    ),
    model.History({"shop": Profile(direction="out")}, (("x_add", 0, 1, 0), ("x_edit", 0, 0, 3, 0))),
    # Deleted here with its external record, it came back and was taken to be unlinked for ever.
    model.History(
        {"crm": Profile(on_gone="delete")},
        (("insert", 0, 0, 0), ("run", 0), ("x_delete", 0, 0), ("poll", 0), ("recreate", 0, 0, 0)),
    ),
    # Nobody came back for the lease under which something was fetched.
    model.History(
        {"crm": Profile()},
        (
            *(("insert", 0, 0, 0), ("run", 0), ("edit", 0, 0, 1, 0), ("run", 0)),
            *(("hook", 0, 0, 0), ("crash", 1, 1), ("hook", 0, 0, 0), ("run", 0)),
        ),
    ),
    model.History(
        {"shop": Profile(thin=True)},
        (
            *(("insert", 0, 0, 0), ("run", 0), ("x_delete", 0, 0), ("hook", 0, 0, 0)),
            *(("crash", 0, 8), ("work", 0, 0)),
        ),
    ),
    # A record whose creation was in doubt when it was deleted here, and that looks like another one.
    model.History(
        {"crm": Profile(match_on=("email",))},
        (
            ("meanwhile", 0, 9, ("work", 0, 0)),
            ("crash", 1, 2),
            ("insert", 0, 0, 0),
            ("insert", 0, 1, 0),
            ("run", 0),
            ("delete", 0, 6),
            ("poll", 0),
        ),
    ),
    # Fetched again and again: nothing that comes in of a record that is deleted here needs that.
    model.History({"crm": Profile(on_delete="archive")}, (("insert", 0, 0, 0), ("run", 0), ("delete", 0, 0))),
    # A create nobody knew the end of was found to be done, and became an update, which is unsubscribed.
    model.History(
        {"crm": Profile()},
        (("insert", 0, 0, 0), ("crash", 0, 11), ("unsubscribe", 0, 3, 0, 0), ("run", 0), ("edit", 0, 0, 1, 0)),
    ),
]

#: Each fails when one mechanism is taken out; random histories get there too, but not every time.
GUARDS = {
    "a lease keeps other workers out": model.History(
        {"crm": Profile()},
        (("insert", 0, 0, 0), ("relay",), ("meanwhile", True, 1, ("deliver", 3)), ("run", 0)),
    ),
    "a system's own form of a value is no edit": model.History(
        {"crm": Profile(normalises=True)},
        (("insert", 7, 0, 0), ("run", 0), ("tick", 3.0), ("x_edit", 0, 0, 2, 3)),
    ),
    "what comes in waits for the delivery under way": model.History(
        {"crm": Profile()},
        (
            *(("insert", 0, 0, 0), ("run", 0), ("edit", 0, 1, 3, 0), ("relay",), ("tick", 3.0)),
            ("meanwhile", True, 1, ("then", ("x_edit", 0, 0, 1, 4), ("tick", 1.0), ("hook_now", 0))),
            ("run", 0),
        ),
    ),
    "an edit during the call stays owed": model.History(
        {"crm": Profile()},
        (
            *(("insert", 0, 0, 0), ("run", 0), ("edit", 0, 1, 3, 0), ("relay",)),
            ("meanwhile", True, 1, ("then", ("edit", 0, 1, 4, 0), ("relay",))),
            ("run", 0),
        ),
    ),
    "what was fetched is old news once somebody else applied something newer": model.History(
        {"crm": Profile()},
        (
            *(("x_add", 0, 1, 0), ("tick", 3.0)),
            (
                *("meanwhile", True, 2),
                ("then", ("x_edit", 0, 0, 1, 4), ("hook_now", 0), ("tick", 3.0), ("x_add", 0, 2, 1), ("poll", 0)),
            ),
            *(("hook", 0, 0, 0), ("run", 7)),
        ),
    ),
    "same-second events are fetched": model.History(
        {"crm": Profile(seconds=True)},
        (
            ("insert", 0, 0, 0),
            ("run", 0),
            ("x_edit", 0, 0, 1, 1),
            ("x_edit", 0, 0, 1, 2),
            ("hook", 0, 1, 0),
            ("run", 7),
        ),
    ),
}


@pytest.mark.parametrize("history", HISTORIES, ids=lambda history: history.steps[-1][0])
def test_a_history_that_failed_once_holds(history: model.History) -> None:
    assert model.fails(history) is None, model.explain(history)


@pytest.mark.parametrize("what", GUARDS)
def test_a_mechanism_holds(what: str) -> None:
    assert model.fails(GUARDS[what]) is None, model.explain(GUARDS[what])
