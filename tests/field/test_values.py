"""Values that could not be read or sent in the field: docs/explanation/field-faults.md, rows A5 and A15."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from models.catalogues import Catalogue
from models.session import Database
from tests.support.fakes import FakeSubscriber, TestHub
from tests.support.own_tables import execute, owned, table

# A5: a row that cannot be read


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
