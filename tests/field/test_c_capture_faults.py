"""Tables that change under the triggers: docs/explanation/field-faults.md, row C37."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from models import capture, capture_watch
from models.catalogues import Catalogue, ChildRows, Customer
from models.ledger import CaptureFault, DeadLetter
from models.schema import migrate
from models.session import Database
from tests.support.fakes import TestHub
from tests.support.own_tables import captured, execute, owned, table
from tests.support.records import add
from tests.support.records import rows as rows_of


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Database]:
    """Yield a migrated PostgreSQL database of its own, since these tests change roles and settings of it."""
    migrate(postgres_url)
    database = Database(postgres_url)
    yield database
    database.close()


THING = "CREATE TABLE thing (id int PRIMARY KEY, name text, note text, other text) {}"
ROWS = "INSERT INTO thing VALUES (1, 'a', 'b', 'c'), (2, 'a', 'b', 'c')"


def things() -> Catalogue:
    return Catalogue(
        "thing", table("thing", None, sa.Column("name", sa.Text), sa.Column("note", sa.Text)), label="name"
    )


def faults(database: Database) -> list[tuple[str, bool]]:
    with database.read() as connection:
        rows = connection.execute(sa.select(CaptureFault.event, CaptureFault.is_lost).order_by(CaptureFault.id)).all()
    return [(row.event, row.is_lost) for row in rows]


@contextmanager
def connected(database: Database) -> Iterator[psycopg.Connection]:
    """Yield a connection of another program."""
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


#: What happens to the table -> the changes that an update of record 1, an insert of 3 and a deletion of 2 then write.
ALL = [("1", "updated"), ("3", "created"), ("2", "deleted")]
ALTERED = {
    "a mapped column is dropped": "ALTER TABLE thing DROP COLUMN note",
    "a mapped column is renamed": "ALTER TABLE thing RENAME COLUMN note TO remark",
    "a column gets another type": "ALTER TABLE thing ALTER note TYPE xml USING note::xml",
    "a column gets a type without equality": "ALTER TABLE thing ALTER note TYPE json USING to_json(note)",
    "another column is dropped": "ALTER TABLE thing DROP COLUMN other",
    "a column is added": "ALTER TABLE thing ADD COLUMN more int DEFAULT 5",
    "the key becomes larger": "ALTER TABLE thing ALTER id TYPE bigint",
    "the key becomes a text": "ALTER TABLE thing ALTER id TYPE text",
    "the table is renamed": "ALTER TABLE thing RENAME TO thing_old; CREATE VIEW thing AS SELECT * FROM thing_old",
    "the table moves to another schema": "CREATE SCHEMA app; ALTER TABLE thing SET SCHEMA app; SET search_path TO app",
}


@pytest.mark.parametrize("kind", ["plain", "partitioned"])
@pytest.mark.parametrize("change", ALTERED)
def test_c37_a_write_to_an_altered_table_succeeds_and_its_record_is_captured(
    postgres: Database, change: str, kind: str
) -> None:
    if kind == "partitioned" and ("key" in change or "another schema" in change):
        pytest.skip("the key of a partition cannot get another type; partitions would stay in their schema")
    partitioned = ("PARTITION BY RANGE (id)", "CREATE TABLE thing_1 PARTITION OF thing FOR VALUES FROM (0) TO (10)")
    statements = (THING.format(partitioned[0]), partitioned[1]) if kind == "partitioned" else (THING.format(""),)
    with owned(postgres, things(), *statements):
        execute(postgres, ROWS)
        # On one connection, whose plans were made before.
        with connected(postgres) as own:
            own.execute("UPDATE thing SET name = 'x'")
            own.execute(ALTERED[change])
            with postgres.write() as connection:
                connection.exec_driver_sql("DELETE FROM change")
            own.execute("UPDATE thing SET name = 'y' WHERE id::text = '1'")
            own.execute("INSERT INTO thing (id, name) VALUES (3, 'z')")
            own.execute("DELETE FROM thing WHERE id::text = '2'")
        with postgres.read() as connection:
            changes = connection.execute(sa.text("SELECT record_id, operation FROM change ORDER BY id")).all()
        assert [tuple(row) for row in changes] == ALL
        assert not any(is_lost for _, is_lost in faults(postgres))
        drop = "DROP TABLE IF EXISTS thing_old CASCADE" if "renamed" in change else "DROP SCHEMA IF EXISTS app CASCADE"
        execute(postgres, drop)


#: What makes it impossible to write a change, and to write a line about that.
BROKEN = {
    "the key is renamed": ("ALTER TABLE thing RENAME id TO number", True),
    "the table of changes is renamed": ("ALTER TABLE change RENAME TO gone", True),
    "the table of changes is dropped": ("DROP TABLE change", True),
    "a column of the changes is dropped": ("ALTER TABLE change DROP COLUMN at", True),
    "no change is accepted": ("ALTER TABLE change ADD CHECK (false) NOT VALID", True),
    "the name of the catalogue does not fit": ("ALTER TABLE change ALTER catalogue TYPE varchar(1) USING ''", True),
    "the ledger's tables are all gone": ("DROP TABLE change, capture_fault", False),
    "a trigger on the changes raises an error": (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE disk_full; END$$; "
        "CREATE TRIGGER refuse BEFORE INSERT ON change EXECUTE FUNCTION refuse()",
        True,
    ),
}


@pytest.mark.parametrize("kind", ["plain", "partitioned"])
@pytest.mark.parametrize("cause", BROKEN)
def test_c37_a_write_succeeds_where_it_cannot_be_captured(postgres: Database, cause: str, kind: str) -> None:
    statement, is_noted = BROKEN[cause]
    partitioned = ("PARTITION BY RANGE (id)", "CREATE TABLE thing_1 PARTITION OF thing FOR VALUES FROM (0) TO (10)")
    statements = (THING.format(partitioned[0]), partitioned[1]) if kind == "partitioned" else (THING.format(""),)
    with owned(postgres, things(), *statements):
        execute(postgres, ROWS)
        with connected(postgres) as own:
            warnings: list[str] = []
            own.add_notice_handler(lambda notice: warnings.append(f"{notice.severity}: {notice.message_primary}"))
            own.execute(statement)
            key = "number" if "renamed" in cause and "key" in cause else "id"
            assert own.execute(f"UPDATE thing SET note = 'y' WHERE {key} = 1").rowcount == 1
            assert own.execute(f"INSERT INTO thing ({key}, name) VALUES (9, 'z')").rowcount == 1
            assert own.execute(f"DELETE FROM thing WHERE {key} = 2").rowcount == 1
            own.execute("TRUNCATE thing")
        if is_noted:
            lost = {event for event, is_lost in faults(postgres) if is_lost}
            assert lost >= {"update", "insert", "delete"}
        else:
            assert [one for one in warnings if "did not capture a write to public.thing" in one]


def test_c37_many_writes_that_cannot_be_captured_leave_one_line_for_each_kind(postgres: Database) -> None:
    with owned(postgres, things(), THING.format("")):
        execute(postgres, ROWS, "ALTER TABLE thing RENAME id TO number")
        for _ in range(5):
            execute(postgres, "UPDATE thing SET name = name || 'x'", "INSERT INTO thing SELECT 5", "DELETE FROM thing")
        assert sorted(faults(postgres)) == [("delete", True), ("insert", True), ("update", True)]


def test_c37_a_child_row_of_an_altered_table_is_a_change_of_its_record(postgres: Database) -> None:
    part = table("part", None, sa.Column("thing", sa.Integer), sa.Column("note", sa.Text))
    catalogue = Catalogue("thing", table("thing"), (ChildRows("parts", part, "thing"),), label="id")
    parts = "CREATE TABLE part (id int PRIMARY KEY, thing int, note text)"
    with owned(postgres, catalogue, "CREATE TABLE thing (id int PRIMARY KEY)", parts):
        execute(postgres, "INSERT INTO thing VALUES (1), (2)", "INSERT INTO part VALUES (1, 1, 'a')")
        execute(postgres, "ALTER TABLE part DROP COLUMN note")
        assert sorted(captured(postgres, "UPDATE part SET thing = 2")) == [("1", "updated"), ("2", "updated")]
        execute(postgres, "ALTER TABLE part RENAME thing TO owner")
        assert captured(postgres, "UPDATE part SET owner = 1") == []
        assert faults(postgres) == [("update", False), ("update", True)]


def test_c37_an_error_of_the_writer_stays_its_own(postgres: Database) -> None:
    with owned(postgres, things(), THING.format("")):
        with pytest.raises(sa.exc.IntegrityError):
            execute(postgres, ROWS, ROWS)
        with connected(postgres) as own, pytest.raises(psycopg.errors.QueryCanceled):
            own.execute("SET statement_timeout = 50")
            own.execute("WITH x AS (INSERT INTO thing VALUES (7) RETURNING 1) SELECT pg_sleep(30) FROM x")
        assert faults(postgres) == []


def test_c37_writers_that_conflict_are_told_so(postgres: Database) -> None:
    with owned(postgres, things(), THING.format("")):
        execute(postgres, ROWS)
        with connected(postgres) as first, connected(postgres) as second:
            for one in (first, second):
                one.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
                one.execute("SELECT count(*) FROM thing")
            first.execute("INSERT INTO thing (id) VALUES (3)")
            second.execute("INSERT INTO thing (id) VALUES (4)")
            first.execute("COMMIT")
            with pytest.raises(psycopg.errors.SerializationFailure):
                second.execute("COMMIT")
        assert faults(postgres) == []


def test_c37_truncating_a_table_whose_rows_are_hidden_from_the_hub_is_noted(postgres: Database) -> None:
    with owned(postgres, things(), THING.format("")), connected(postgres) as own:
        execute(
            postgres, ROWS, "ALTER TABLE thing ENABLE ROW LEVEL SECURITY", "ALTER TABLE thing FORCE ROW LEVEL SECURITY"
        )
        own.execute("DROP ROLE IF EXISTS capture_owner")
        own.execute("CREATE ROLE capture_owner")
        own.execute("GRANT SELECT ON thing TO capture_owner")
        own.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO capture_owner")
        own.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO capture_owner")
        functions = own.execute(
            "SELECT oid::regprocedure::text FROM pg_proc WHERE proname LIKE 'syncflow_thing%'"
        ).fetchall()
        try:
            for (function,) in functions:
                own.execute(f"ALTER FUNCTION {function} OWNER TO capture_owner")
            own.execute("TRUNCATE thing")
            assert faults(postgres) == [("truncate", True)]
        finally:
            for (function,) in functions:
                own.execute(f"ALTER FUNCTION {function} OWNER TO CURRENT_USER")
            own.execute("DROP OWNED BY capture_owner")
            own.execute("DROP ROLE capture_owner")


def test_c37_tables_of_the_writer_do_not_take_the_place_of_the_ledgers(postgres: Database) -> None:
    with owned(postgres, things(), THING.format("")), connected(postgres) as own:
        own.execute("CREATE TEMP TABLE change (id int, catalogue text, record_id text, operation text)")
        own.execute("CREATE TEMP TABLE capture_fault (catalogue text)")
        own.execute("CREATE FUNCTION pg_temp.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT NULL::timestamptz'")
        own.execute("SET search_path = pg_temp, public, pg_catalog")
        own.execute("INSERT INTO public.thing VALUES (1, 'a')")
        assert own.execute("SELECT record_id FROM public.change").fetchall() == [("1",)]
        assert own.execute("SELECT count(*) FROM pg_temp.change").fetchall() == [(0,)]


# The watch

#: Name -> the statements that break the capture of customers, those that repair what `capture install` cannot, and a
#: part of the reason that is given.
BROKEN_ON_BOTH = {
    "a trigger is gone": (("DROP TRIGGER syncflow_customer_customer_update{on}",), (), "trigger"),
    "all triggers are gone": (
        tuple(f"DROP TRIGGER syncflow_customer_customer_{event}{{on}}" for event in ("insert", "update", "delete")),
        (),
        "trigger",
    ),
    "a column is renamed": (
        ("ALTER TABLE customer RENAME COLUMN phone TO telephone",),
        ("ALTER TABLE customer RENAME COLUMN telephone TO phone",),
        "has no column phone",
    ),
    "the table is gone": (
        ("ALTER TABLE customer RENAME TO clients",),
        ("ALTER TABLE clients RENAME TO customer",),
        "does not exist",
    ),
}
BROKEN_ON_POSTGRESQL = {
    "a trigger is disabled": (
        ("ALTER TABLE customer DISABLE TRIGGER syncflow_customer_customer_update",),
        (),
        "ALTER TABLE public.customer ENABLE TRIGGER syncflow_customer_customer_update",
    ),
    "all triggers are disabled": (("ALTER TABLE customer DISABLE TRIGGER USER",), (), "is disabled"),
    "a function is another one": (
        (
            "CREATE OR REPLACE FUNCTION syncflow_customer_customer_update() RETURNS trigger LANGUAGE plpgsql "
            "SECURITY DEFINER AS $$BEGIN RETURN NULL; END$$",
        ),
        (),
        "is not the current one",
    ),
    "the table is swapped": (
        (
            "CREATE TABLE customer_new (LIKE customer INCLUDING ALL)",
            "INSERT INTO customer_new SELECT * FROM customer",
            "ALTER TABLE customer RENAME TO customer_old",
            "ALTER TABLE customer_new RENAME TO customer",
        ),
        (),
        "it is on public.customer_old, the former table",
    ),
    "a role writes as a replica": (
        ("CREATE ROLE {database}", "ALTER ROLE {database} SET session_replication_role = replica"),
        ("DROP ROLE {database}",),
        "RESET session_replication_role",
    ),
}
BROKEN_ON_SQLITE = {
    "the table is rebuilt": (
        (
            "CREATE TABLE new (id INTEGER PRIMARY KEY, {columns})",
            "INSERT INTO new SELECT * FROM customer",
            "DROP TABLE customer",
            "ALTER TABLE new RENAME TO customer",
        ),
        (),
        "lacks",
    ),
    "a trigger is another one": (
        (
            "DROP TRIGGER syncflow_customer_customer_update",
            "CREATE TRIGGER syncflow_customer_customer_update AFTER UPDATE ON customer BEGIN SELECT 1; END",
        ),
        (),
        "has others",
    ),
}


def every_cause() -> list[Any]:
    return [
        pytest.param(kind, cause, id=f"{kind}-{cause}")
        for kind, causes in (
            ("sqlite", BROKEN_ON_BOTH | BROKEN_ON_SQLITE),
            ("postgresql", BROKEN_ON_BOTH | BROKEN_ON_POSTGRESQL),
        )
        for cause in causes
    ]


def finish_tasks(hub: TestHub) -> None:
    while hub.conductor.tasks.run_some():
        hub.conductor.sweep()
        hub.run()


@pytest.mark.parametrize(("kind", "cause"), every_cause())
def test_c37_broken_capture_is_noticed_and_its_catalogue_compared_after_the_repair(
    request: pytest.FixtureRequest, kind: str, cause: str
) -> None:
    database: Database = request.getfixturevalue("postgres" if kind == "postgresql" else "sqlite_database")
    breaking, repairing, part = (BROKEN_ON_BOTH | BROKEN_ON_POSTGRESQL | BROKEN_ON_SQLITE)[cause]
    columns = ", ".join(column.name for column in Customer.__table__.c if column.name != "id")
    words = {
        "on": " ON customer" if kind == "postgresql" else "",
        "columns": columns,
        "database": database.url.database,
    }
    hub = TestHub(database, "crm", "erp")
    add(hub, name="Ada")
    hub.run()
    assert hub.conductor.capture.look() == []
    intact_at = hub.clock()
    hub.clock.tick(60)
    with database.write() as connection:  # one connection: another one of SQLite may still know the former schema
        for statement in breaking:
            connection.exec_driver_sql(statement.format(**words))
    [broken] = hub.conductor.capture.look()
    assert (broken.catalogue, broken.since) == ("customer", intact_at) and part in broken.reason
    overview = hub.conductor.reports.overview()
    assert "writes to customer are not captured" in overview.headline and not overview.in_sync
    assert {system.state for system in overview.systems} == {"failing"} and "capture" in {
        one.kind for one in overview.troubles
    }
    with database.read() as connection:
        assert list(hub.conductor.capture.faults(connection)) == ["customer"]
    writes = "the table is gone" not in cause and "renamed" not in cause
    if writes:
        execute(
            database,
            "UPDATE customer SET name = 'Bea'",
            "INSERT INTO customer (id, name, active) VALUES (9, 'Eve', true)",
        )
    hub.clock.tick(60)
    execute(database, *(statement.format(**words) for statement in repairing))
    with database.write() as connection:
        capture.install(connection)
    assert hub.conductor.capture.look() == []
    assert "changes to crm.customer and erp.customer may be missing" in hub.conductor.reports.overview().headline
    finish_tasks(hub)
    hub.clock.tick(3700)
    finish_tasks(hub)
    assert sorted(one["name"] for one in hub.shown("crm")) == (["Bea", "Eve"] if writes else ["Ada"])
    assert hub.shown("crm") == hub.shown("erp")
    assert hub.conductor.reports.overview().in_sync
    assert hub.conductor.capture.look() == [] and not hub.conductor.tasks.run_some()


def test_c37_a_write_that_a_trigger_lost_is_found_by_comparing(postgres: Database) -> None:
    hub = TestHub(postgres, "crm")
    add(hub, name="Ada")
    hub.run()
    assert hub.conductor.capture.look() == []
    execute(postgres, "ALTER TABLE change ADD CONSTRAINT none CHECK (false) NOT VALID")
    execute(postgres, "UPDATE customer SET name = 'Bea'", "ALTER TABLE change DROP CONSTRAINT none")
    assert hub.conductor.capture.look() == []
    assert not hub.conductor.reports.overview().in_sync
    finish_tasks(hub)
    assert [one["name"] for one in hub.shown("crm")] == ["Bea"]
    assert hub.conductor.capture.look() == [] and rows_of(hub, CaptureFault) == []


def test_c37_a_comparison_that_cannot_be_begun_is_begun_by_the_next_look(database: Database) -> None:
    hub = TestHub(database, "crm")
    add(hub, name="Ada")
    hub.run()
    assert hub.conductor.capture.look() == []
    with database.write() as connection:
        capture.remove(connection)
    assert len(hub.conductor.capture.look()) == 1
    execute(database, "UPDATE customer SET name = 'Bea'")
    with database.write() as connection:
        capture.install(connection)
    hub.clock.tick(60)
    execute(database, "ALTER TABLE task RENAME TO task_away")
    with pytest.raises(sa.exc.DBAPIError):
        hub.conductor.capture.look()
    execute(database, "ALTER TABLE task_away RENAME TO task")
    hub.clock.tick(60)
    assert hub.conductor.capture.look() == []
    finish_tasks(hub)
    assert [one["name"] for one in hub.shown("crm")] == ["Bea"]
    assert hub.conductor.reports.overview().in_sync
    assert hub.conductor.capture.look() == [] and not hub.conductor.tasks.run_some()


def test_c37_the_triggers_are_found_in_a_schema_whose_name_needs_quotes(postgres: Database) -> None:
    catalogue = Catalogue("thing", table("thing", None, sa.Column("name", sa.Text)), label="name")
    with postgres.write() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "My-Hub"')
        connection.exec_driver_sql('SET LOCAL search_path TO "My-Hub"')
        connection.exec_driver_sql("CREATE TABLE thing (id int PRIMARY KEY, name text)")
        assert "has no trigger" in " ".join(capture_watch.faults(connection, catalogue))
        capture.install(connection, [catalogue])
        assert capture_watch.faults(connection, catalogue) == []


def test_c37_a_lost_write_that_is_committed_after_a_look_is_found_by_the_next_one(postgres: Database) -> None:
    hub = TestHub(postgres, "crm")
    add(hub, name="Ada"), add(hub, name="Eve")
    hub.run()
    execute(postgres, "ALTER TABLE change ADD CONSTRAINT none CHECK (false) NOT VALID")
    execute(postgres, "UPDATE customer SET name = 'Bea' WHERE id = 1")
    with connected(postgres) as own:
        own.execute("BEGIN")
        own.execute("UPDATE customer SET name = 'Cem' WHERE id = 2")
        assert hub.conductor.capture.look() == []
        finish_tasks(hub)
        own.execute("COMMIT")
    execute(postgres, "ALTER TABLE change DROP CONSTRAINT none")
    hub.clock.tick(60)
    hub.conductor.capture.look()
    finish_tasks(hub)
    assert sorted(one["name"] for one in hub.shown("crm")) == ["Bea", "Cem"]
    assert rows_of(hub, CaptureFault) == []


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_c37_a_comparison_that_is_half_done_begins_again(database: Database, state: str) -> None:
    hub = TestHub(database, "crm")
    add(hub, name="Ada")
    hub.run()
    tasks = hub.conductor.tasks
    number = tasks.start("reconcile", "ann", subscriber="crm.customer", repair=True)
    tasks.run_some()
    assert tasks.get(number).done == 1 and tasks.get(number).state == "running"
    if state == "stopped":
        tasks.stop(number, "ann")
    assert hub.conductor.capture.look() == []
    with database.write() as connection:
        capture.remove(connection)
    assert len(hub.conductor.capture.look()) == 1
    execute(database, "UPDATE customer SET name = 'Bea'")
    with database.write() as connection:
        capture.install(connection)
    hub.clock.tick(60)
    assert hub.conductor.capture.look() == []
    finish_tasks(hub)
    assert [one["name"] for one in hub.shown("crm")] == ["Bea"]
    assert tasks.get(number).state == "done" and tasks.get(number).done == 1
    assert hub.conductor.reports.overview().in_sync


def test_c37_nothing_is_delivered_or_dead_while_a_column_is_missing(database: Database) -> None:
    hub = TestHub(database, "crm")
    add(hub, name="Ada")
    execute(database, "ALTER TABLE customer RENAME COLUMN phone TO telephone")
    with pytest.raises(sa.exc.DBAPIError):
        hub.run()
    assert rows_of(hub, DeadLetter) == [] and hub.shown("crm") == []
    execute(database, "ALTER TABLE customer RENAME COLUMN telephone TO phone")
    hub.clock.tick(600)
    hub.conductor.sweep()
    hub.run()
    assert [one["name"] for one in hub.shown("crm")] == ["Ada"]


def test_c37_partitions_without_a_trigger_of_truncate_are_noticed(postgres: Database) -> None:
    partitioned = (
        THING.format("PARTITION BY RANGE (id)"),
        "CREATE TABLE thing_1 PARTITION OF thing FOR VALUES FROM (0) TO (9)",
    )
    with owned(postgres, things(), *partitioned) as catalogue:
        with postgres.read() as connection:
            assert capture_watch.faults(connection, catalogue) == []
        execute(postgres, "CREATE TABLE thing_2 PARTITION OF thing FOR VALUES FROM (9) TO (99)")
        with postgres.read() as connection:
            [fault] = capture_watch.faults(connection, catalogue)
        assert fault == "public.thing_2 has no trigger for TRUNCATE. Run ./syncflow capture install"
        execute(postgres, "ALTER TABLE thing_1 DISABLE TRIGGER USER")
        with postgres.read() as connection:
            assert "public.thing_1 is disabled" in " ".join(capture_watch.faults(connection, catalogue))
