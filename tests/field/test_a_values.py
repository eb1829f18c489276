"""Values that could not be read or sent in the field: docs/explanation/field-faults.md, rows A5 and A15."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from conductor import read_record
from models.base import UtcDateTime
from models.catalogues import Catalogue, ChildRows
from models.ledger import DeadLetter
from models.session import Database
from tests.support.fakes import FakeSubscriber, TestHub
from tests.support.own_tables import execute, owned, table
from tests.support.records import one_row
from tests.support.records import rows as rows_of

# A5: a row that cannot be read

#: Column with a value that cannot be read, as SQL.
UNREADABLE_ON_POSTGRESQL = {
    "updated_at": "'infinity'",
    "created_at": "'0044-03-15 BC'",
    "total": "'NaN'",
    "day": "'-infinity'",
}
UNREADABLE_ON_SQLITE = {
    "updated_at": "'soon'",
    "day": "'soon'",
    "facts": "'{broken'",
    "name": "x'ff'",
    "note": "CAST(x'ff' AS TEXT)",
    "total": "'many'",
}


class Facts(FakeSubscriber):
    """A subscriber of a table with a column of each type that may be unreadable."""

    catalogue = "fact"
    field_to_data = {"name": "name", "day": "day", "total": "total", "facts": "facts"}


def facts() -> Catalogue:
    """Return a catalogue whose columns may be unreadable."""
    stamps: list[sa.Column[Any]] = [sa.Column(name, UtcDateTime) for name in ("created_at", "updated_at")]
    values: list[sa.Column[Any]] = [
        sa.Column("day", sa.Date),
        sa.Column("total", sa.Numeric(10, 2)),
        sa.Column("facts", sa.JSON),
    ]
    return Catalogue(
        "fact", table("fact", None, sa.Column("name", sa.Text), sa.Column("note", sa.Text), *stamps, *values)
    )


@pytest.mark.filterwarnings("ignore:Dialect sqlite.* does not support Decimal")
@pytest.mark.parametrize("column", dict.fromkeys([*UNREADABLE_ON_POSTGRESQL, *UNREADABLE_ON_SQLITE]))
def test_a05_a_row_that_cannot_be_read_is_a_dead_letter_and_its_neighbours_go_through(
    database: Database, column: str
) -> None:
    bad = (UNREADABLE_ON_SQLITE if database.is_sqlite else UNREADABLE_ON_POSTGRESQL).get(column)
    if bad is None:
        return  # the other database refuses such a value
    with owned(database, facts()) as catalogue:
        hub = TestHub(database, "crm", kinds=[Facts])
        rows = ", ".join(f"({number}, 'n{number}')" for number in range(1, 61))
        execute(
            database, f"INSERT INTO fact (id, name) VALUES {rows}", f"UPDATE fact SET {column} = {bad} WHERE id = 30"
        )
        hub.run()
        assert len(hub.shown("crm")) == 59
        letter = one_row(hub, DeadLetter)
        assert (letter.record_id, letter.code) == ("30", "unreadable")
        assert column in letter.message and (
            column == "name" or bad.strip("'")[:4] in letter.message or "\ufffd" in letter.message
        )
        execute(database, "UPDATE fact SET name = 'later' WHERE id = 1")  # no cursor keeps a lock
        hub.run()
        hub.conductor.sweep()
        assert {"name": "later"}.items() <= hub.systems["crm"].store["crm_1"].items()
        good = "NULL" if column != "name" else "'good'"
        execute(database, f"UPDATE fact SET {column} = {good}, note = 'again' WHERE id = 30")
        hub.run()
        assert len(hub.shown("crm")) == 60 and not rows_of(hub, DeadLetter, DeadLetter.closed_at.is_(None))
        assert catalogue.name == "fact"


def test_a05_an_unreadable_row_holds_up_neither_backfill_nor_inward_reads_nor_pages(database: Database) -> None:
    bad = "'soon'" if database.is_sqlite else "'infinity'"
    with owned(database, facts()) as catalogue:
        hub = TestHub(database, "crm", kinds=[Facts])
        execute(database, "INSERT INTO fact (id, name) VALUES (1, 'a'), (2, 'b'), (3, 'c')")
        hub.run()
        execute(database, f"UPDATE fact SET updated_at = {bad} WHERE id = 2")
        hub.clock.tick()
        for number in (1, 2, 3):
            hub.systems["crm"].edit(f"crm_{number}", name=f"there {number}")
        hub.conductor.poll("crm.fact")
        hub.conductor.sweep()
        hub.run()
        with database.read() as connection:
            assert list(connection.exec_driver_sql("SELECT name FROM fact ORDER BY id").scalars()) == [
                "there 1",
                "b",
                "there 3",
            ]
            shown = read_record(connection, catalogue, "2")
            assert shown is not None and shown["updated_at"] == bad.strip("'")
            records, unreadable = catalogue.read_each(connection, ["1", "2", "3"])
            assert list(records) == ["1", "3"] and unreadable["2"].column == "updated_at"
        letter = one_row(hub, DeadLetter, DeadLetter.closed_at.is_(None))
        assert letter.code == "unreadable" and "updated_at" in letter.message
        preview = hub.conductor.previews.record("crm.fact", hub.conductor.subscribers["crm.fact"].mapper.rows(), "2")
        assert preview is not None and "updated_at" in str(preview.after)
        assert (
            hub.conductor.previews.effect("crm.fact", hub.conductor.subscribers["crm.fact"].mapper.rows()).examined == 2
        )
        reconcile = hub.conductor.tasks.start("reconcile", "ada", subscriber="crm.fact", repair=True)
        while hub.conductor.tasks.run_some():
            pass
        assert hub.conductor.tasks.get(reconcile).position["unread"] == 1


def test_a05_a_child_row_that_cannot_be_read_names_its_column(database: Database) -> None:
    bad = "'soon'" if database.is_sqlite else "'infinity'"
    child = table("note", None, sa.Column("fact", sa.Integer), sa.Column("day", sa.Date))
    child.create(database.engine)
    things = Catalogue("thing", table("thing"), (ChildRows("notes", child, "fact"),), label="id")
    things.table.create(database.engine)
    with owned(database, things, "INSERT INTO thing VALUES (1), (2)", f"INSERT INTO note VALUES (1, 1, {bad})"):
        with database.read() as connection:
            records, unreadable = things.read_each(connection, ["1", "2"])
        assert list(records) == ["2"] and (unreadable["1"].column, unreadable["1"].value) == ("day", bad.strip("'"))


# A15: column types without a JSON form


class Things(FakeSubscriber):
    """A subscriber of another application's table `thing`."""

    catalogue = "thing"
    field_to_data = {"name": "name", "total": "total"}


@pytest.mark.parametrize("declared", [True, False])
def test_a15_a_generated_column_edited_there_does_not_hold_up_the_other_fields(
    database: Database, declared: bool
) -> None:
    total = sa.Column("total", sa.Integer, *([sa.Computed("price * 2", persisted=True)] if declared else []))
    columns = (sa.Column("name", sa.Text), sa.Column("price", sa.Integer, server_default="1"), total)
    statement = (
        "CREATE TABLE thing (id INTEGER PRIMARY KEY, name TEXT, price INTEGER NOT NULL DEFAULT 1, "
        "total INTEGER GENERATED ALWAYS AS (price * 2) STORED)"
    )
    with owned(database, Catalogue("thing", table("thing", None, *columns)), statement):
        hub = TestHub(database, "crm", kinds=[Things], match_on=("name",))
        hub.conductor.prepare()
        execute(database, "INSERT INTO thing (id, name) VALUES (1, 'a')")
        hub.run()
        assert hub.shown("crm") == [{"name": "a", "total": 2}]
        hub.clock.tick()
        hub.systems["crm"].edit("crm_1", name="b", total=9)
        hub.conductor.poll("crm.thing")
        hub.run()
        with database.read() as connection:
            assert connection.exec_driver_sql("SELECT name, total FROM thing").one() == ("b", 2)
        assert hub.shown("crm") == [{"name": "b", "total": 2}]
        findings = [one.message for one in hub.conductor.connection_check.subscriber("crm.thing")]
        assert any("the database fills total itself" in words for words in findings)
