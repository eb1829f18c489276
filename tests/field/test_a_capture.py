"""Writes that were not captured in the field: docs/explanation/field-faults.md, rows A10 to A12."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from models import capture
from models.capture_checks import CaptureRefused
from models.catalogues import Catalogue, ChildRows
from models.ledger import DeadLetter
from models.record_ids import text_of
from models.schema import migrate
from models.session import Database
from tests.support.fakes import TestHub
from tests.support.own_tables import captured, execute, owned, table
from tests.support.records import add, one_row, record
from tests.support.records import rows as rows_of


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Database]:
    """Yield a migrated PostgreSQL database of its own, since these tests add extensions and settings to it."""
    migrate(postgres_url)
    database = Database(postgres_url)
    yield database
    database.close()


# A10: REPLACE INTO displaces another row

CODES = (
    "CREATE TABLE thing "
    "(id INTEGER PRIMARY KEY, code TEXT UNIQUE COLLATE NOCASE, place TEXT, no INT, UNIQUE (place, no))"
)


@pytest.mark.parametrize(
    "statement,changes",
    [
        ("REPLACE INTO thing VALUES (4, 'A', 'x', 9)", [("1", "deleted"), ("4", "created")]),
        (
            "INSERT OR REPLACE INTO thing VALUES (4, 'a', 'm', 2)",
            [("1", "deleted"), ("2", "deleted"), ("4", "created")],
        ),
        ("INSERT OR REPLACE INTO thing VALUES (2, 'z', 'm', 1)", [("1", "deleted"), ("2", "created")]),
        ("UPDATE OR REPLACE thing SET code = 'b' WHERE id = 1", [("1", "updated"), ("2", "deleted")]),
        ("UPDATE OR REPLACE thing SET id = 2 WHERE id = 1", [("1", "deleted"), ("2", "created")]),
        (
            "REPLACE INTO thing SELECT id + 10, code, place, no FROM thing WHERE id < 3",
            [
                ("1", "deleted"),
                ("11", "created"),
                ("12", "created"),
                ("2", "deleted"),
            ],
        ),
        ("INSERT OR IGNORE INTO thing VALUES (4, 'a', 'x', 9)", []),
        ("INSERT INTO thing VALUES (4, 'a', 'x', 9) ON CONFLICT DO NOTHING", []),
        ("INSERT INTO thing VALUES (4, 'a', 'x', 9) ON CONFLICT (code) DO UPDATE SET no = 9", [("1", "updated")]),
        ("UPDATE OR IGNORE thing SET code = 'b'", []),
        ("UPDATE OR REPLACE thing SET code = code", []),
    ],
)
def test_a10_a_row_that_replace_displaces_is_captured_as_deleted(
    sqlite_database: Database, statement: str, changes: list[tuple[str, str]]
) -> None:
    things = Catalogue(
        "thing", table("thing", None, sa.Column("code", sa.Text), sa.Column("no", sa.Integer)), label="id"
    )
    rows = "INSERT INTO thing VALUES (1, 'a', 'm', 1), (2, 'b', 'm', 2), (3, 'c', 'm', NULL)"
    with owned(sqlite_database, things, CODES, rows):
        execute(sqlite_database, "INSERT OR IGNORE INTO thing VALUES (9, 'c', 'x', 9)")  # it displaces nothing
        assert sorted(captured(sqlite_database, statement)) == changes


def test_a10_a_displaced_row_is_captured_where_the_unique_column_is_not_declared(sqlite_database: Database) -> None:
    with owned(sqlite_database, Catalogue("thing", table("thing"), label="id"), CODES) as things:
        execute(sqlite_database, "INSERT INTO thing (id, code) VALUES (1, 'a'), (2, 'b')")
        assert captured(sqlite_database, "UPDATE OR REPLACE thing SET code = 'b' WHERE id = 1") == [("2", "deleted")]
        with sqlite_database.read() as connection:
            assert things.ids(connection) == ["1"]


def test_a10_a_constraint_that_replaces_needs_no_word_in_the_statement(sqlite_database: Database) -> None:
    own = "CREATE TABLE thing (id TEXT COLLATE NOCASE PRIMARY KEY ON CONFLICT REPLACE) WITHOUT ROWID"
    with owned(sqlite_database, Catalogue("thing", table("thing", sa.Text()), label="id"), own):
        execute(sqlite_database, "INSERT INTO thing VALUES ('ada')")
        changes = captured(sqlite_database, "INSERT INTO thing VALUES ('ADA')")
        assert sorted(changes) == [("ADA", "created"), ("ada", "deleted")]


def test_a10_a_child_row_that_moves_by_replace_is_a_change_of_both_records(sqlite_database: Database) -> None:
    execute(
        sqlite_database,
        "INSERT INTO customer (id, name) VALUES (1, 'Ada')",
        "INSERT INTO invoice (id, customer_id, number) VALUES (1, 1, 'R1'), (2, 1, 'R2')",
        "INSERT INTO invoice_line (id, invoice_id) VALUES (1, 1)",
    )
    moved = captured(sqlite_database, "REPLACE INTO invoice_line (id, invoice_id) VALUES (1, 2)")
    assert sorted(set(moved)) == [("1", "updated"), ("2", "updated")]
    displaced = captured(sqlite_database, "REPLACE INTO invoice (id, customer_id, number) VALUES (3, 1, 'R2')")
    assert ("2", "deleted") in displaced and ("3", "created") in displaced


def test_a10_bulk_statements_of_postgresql_are_captured_record_by_record(postgres: Database) -> None:
    codes = "CREATE TABLE thing (id int PRIMARY KEY, code text UNIQUE)"
    parts = "CREATE TABLE part (id int PRIMARY KEY, thing int REFERENCES thing ON DELETE CASCADE ON UPDATE CASCADE)"
    part = table("part", None, sa.Column("thing", sa.Integer))
    things = Catalogue("thing", table("thing", None, sa.Column("code", sa.Text)), (ChildRows("parts", part, "thing"),))
    with owned(postgres, things, codes, parts, "INSERT INTO thing VALUES (1, 'a'), (2, 'b'), (3, 'c')"):
        merge = (
            "MERGE INTO thing USING (VALUES (1, 'x'), (2, NULL), (4, 'd')) AS new (id, code) ON thing.id = new.id "
            "WHEN MATCHED AND new.code IS NULL THEN DELETE WHEN MATCHED THEN UPDATE SET code = new.code "
            "WHEN NOT MATCHED THEN INSERT VALUES (new.id, new.code)"
        )
        assert sorted(captured(postgres, merge)) == [("1", "updated"), ("2", "deleted"), ("4", "created")]
        upsert = "INSERT INTO thing VALUES (9, 'c') ON CONFLICT (code) DO UPDATE SET id = 9"
        assert sorted(captured(postgres, upsert)) == [("3", "deleted"), ("9", "created")]
        execute(postgres, "INSERT INTO part VALUES (1, 1), (2, 1)")
        swap = "UPDATE thing SET id = CASE id WHEN 1 THEN 5 ELSE id END"
        assert set(captured(postgres, swap)) == {("1", "deleted"), ("5", "created"), ("1", "updated"), ("5", "updated")}
        gone = "WITH gone AS (DELETE FROM thing WHERE id = 5 RETURNING *) INSERT INTO thing SELECT 6, code FROM gone"
        assert set(captured(postgres, gone)) == {("5", "deleted"), ("6", "created"), ("5", "updated")}
        assert set(captured(postgres, "TRUNCATE thing CASCADE")) == {(n, "deleted") for n in "469"}


# A11: edits that only bytes tell apart, padded keys, partitions

#: Type of a column -> two values that its own equality does not tell apart, or that have no equality.
ALIKE_ON_POSTGRESQL = {
    "citext": ("'ada'", "'ADA'"),
    'text COLLATE "no_case"': ("'ada'", "'ADA'"),
    "numeric": ("1.0", "1.00"),
    "float8": ("'0'", "'-0'"),
    "bpchar": ("'a'", "'a '"),
    "interval": ("'1 day'", "'24 hours'"),
    "json": ("'{\"a\":1}'", "'{\"a\": 1}'"),
    "jsonb": ("'1.0'", "'1.00'"),
    "xml": ("'<a/>'", "'<a></a>'"),
    "point": ("'(0,0)'", "'(0,1)'"),
    "numeric[]": ("'{1.0}'", "'{1.00}'"),
    "numrange": ("'[1.0,2]'", "'[1.00,2]'"),
    "tsvector": ("'a'", "'b'"),
}
ALIKE_ON_SQLITE = {
    "TEXT COLLATE NOCASE": ("'ada'", "'ADA'"),
    "TEXT COLLATE RTRIM": ("'a'", "'a '"),
    "": ("1", "1.0"),
    "BLOB": ("'a'", "x'61'"),
    "NUMERIC": ("9007199254740993", "9007199254740992"),
}


@pytest.mark.parametrize("kind", ALIKE_ON_POSTGRESQL)
def test_a11_an_edit_that_only_bytes_tell_apart_is_captured_on_postgresql(postgres: Database, kind: str) -> None:
    before, after = ALIKE_ON_POSTGRESQL[kind]
    things = Catalogue("thing", table("thing", None, sa.Column("value", sa.Text)), label="value")
    statements = (
        "CREATE EXTENSION citext",
        "CREATE COLLATION no_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        f"CREATE TABLE thing (id int PRIMARY KEY, value {kind})",
        f"INSERT INTO thing VALUES (1, {before}), (2, {before})",
    )
    with owned(postgres, things, *statements):
        assert captured(postgres, f"UPDATE thing SET value = {after} WHERE id = 1") == [("1", "updated")]
        assert captured(postgres, "UPDATE thing SET value = value") == []
        assert captured(postgres, "UPDATE thing SET value = NULL WHERE id = 2") == [("2", "updated")]


@pytest.mark.parametrize("kind", ALIKE_ON_SQLITE)
def test_a11_an_edit_that_only_bytes_tell_apart_is_captured_on_sqlite(sqlite_database: Database, kind: str) -> None:
    before, after = ALIKE_ON_SQLITE[kind]
    things = Catalogue("thing", table("thing", None, sa.Column("value", sa.Text)), label="value")
    statements = (
        f"CREATE TABLE thing (id INTEGER PRIMARY KEY, value {kind})",
        f"INSERT INTO thing VALUES (1, {before})",
    )
    with owned(sqlite_database, things, *statements):
        assert captured(sqlite_database, f"UPDATE thing SET value = {after}") == [("1", "updated")]
        assert captured(sqlite_database, "UPDATE thing SET value = value") == []


def test_a11_a_key_edited_in_case_only_is_one_record_deleted_and_one_created(database: Database) -> None:
    kind = "TEXT COLLATE NOCASE" if database.is_sqlite else "citext"
    extension = [] if database.is_sqlite else ["CREATE EXTENSION citext"]
    statements = (*extension, f"CREATE TABLE thing (id {kind} PRIMARY KEY)", "INSERT INTO thing VALUES ('ada')")
    with owned(database, Catalogue("thing", table("thing", sa.Text()), label="id"), *statements) as things:
        changes = captured(database, "UPDATE thing SET id = 'ADA'")
        assert sorted(changes) == [("ADA", "created"), ("ada", "deleted")]
        with database.read() as connection:
            assert list(things.read(connection, ["ada", "ADA"])) == ["ADA"]


KEYS: dict[str, tuple[sa.types.TypeEngine[Any], Any, str]] = {
    "CHAR(n)": (sa.CHAR(8), "AB", "AB"),
    "uuid": (sa.Uuid(), uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    "uuid as text": (sa.Uuid(as_uuid=False), str(uuid.UUID(int=7)), "00000000-0000-0000-0000-000000000007"),
    "numeric": (sa.Numeric(10, 2), Decimal("5.50"), "5.5"),
    "whole numeric": (sa.Numeric(30, 10), Decimal(100), "100"),
    "small numeric": (sa.Numeric(12, 10), Decimal("0.0000001"), "0.0000001"),
    "date": (sa.Date(), date(2026, 11, 2), "2026-11-02"),
    "timestamp": (sa.DateTime(), datetime.fromisoformat("2026-11-02T03:04"), "2026-11-02T03:04:00.000000"),
    "bytes": (sa.LargeBinary(), b"\x00\xff", "00ff"),
    "bigint": (sa.BigInteger(), 2**63 - 1, "9223372036854775807"),
    "enum": (sa.Enum("red", "blue", name="colour"), "red", "red"),
}


@pytest.mark.filterwarnings("ignore:Dialect sqlite.* does not support Decimal")
@pytest.mark.parametrize("kind", KEYS)
def test_a11_a_key_has_one_text_in_trigger_read_and_write(database: Database, kind: str) -> None:
    column, value, record_id = KEYS[kind]
    parts = sa.Table(
        "part",
        sa.MetaData(),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("thing", column),
        sa.Column("name", sa.Text),
    )
    owner = table("thing", column, sa.Column("name", sa.Text))
    things = Catalogue("thing", owner, (ChildRows("parts", parts, "thing"),))
    owner.create(database.engine)
    parts.create(database.engine)
    with owned(database, things, "SELECT 1"):
        if not database.is_sqlite:  # what another program's session writes dates and times as
            execute(database, f"ALTER DATABASE \"{database.url.database}\" SET datestyle = 'SQL, DMY'")
            database.engine.dispose()
        with database.write() as connection:
            assert things.insert(connection, {"id": value, "name": "a", "parts": [{"name": "wheel"}]}) == record_id
        assert set(captured(database, "UPDATE thing SET name = 'b'")) == {(record_id, "updated")}
        assert set(captured(database, "UPDATE part SET name = 'door'")) == {(record_id, "updated")}
        with database.write() as connection:
            record = things.read(connection, [record_id], lock=True)[record_id]
            assert record["parts"] == [{"name": "door"}]
            assert text_of(column, record["id"]) == record_id
            things.update(connection, record_id, {"name": "c"})
            assert things.find(connection, {"name": "c"}) == things.keep(connection, [record_id], ()) == [record_id]
            things.delete(connection, record_id)

        with database.read() as connection:
            assert things.read(connection, [record_id]) == {}


def test_a11_an_instant_and_an_address_are_keys_of_one_text(postgres: Database) -> None:
    for column, value, record_id in (
        (sa.DateTime(timezone=True), datetime(2026, 11, 2, tzinfo=UTC), "2026-11-02T00:00:00.000000+00:00"),
        (postgresql.INET(), "10.0.0.1", "10.0.0.1"),
        (postgresql.CIDR(), "10.0.0.0/8", "10.0.0.0/8"),
    ):
        things = Catalogue("thing", table(f"thing_{column.__visit_name__.lower()}", column), label="id")
        with owned(postgres, things):
            insert = f"SET LOCAL datestyle = 'SQL, DMY'; INSERT INTO {things.table.name} VALUES ('{value}')"
            assert captured(postgres, insert) == [(record_id, "created")]
            with postgres.read() as connection:
                assert list(things.read(connection, [record_id])) == [record_id]


def test_a11_a_char_key_that_is_declared_as_text_is_found(postgres: Database) -> None:
    things = Catalogue("thing", table("thing", sa.String(8)), label="id")
    with owned(postgres, things, "CREATE TABLE thing (id char(8) PRIMARY KEY)"):
        assert captured(postgres, "INSERT INTO thing VALUES ('AB')") == [("AB", "created")]
        with postgres.read() as connection:
            assert list(things.read(connection, ["AB"])) == ["AB"]


PARTITIONED = (
    "CREATE TABLE thing (id int, place text, name text, PRIMARY KEY (id, place)) PARTITION BY LIST (place)",
    "CREATE TABLE thing_a PARTITION OF thing FOR VALUES IN ('a')",
)


def test_a11_writes_into_partitions_are_captured_also_into_those_attached_later(postgres: Database) -> None:
    things = Catalogue("thing", table("thing", None, sa.Column("place", sa.Text), sa.Column("name", sa.Text)))
    later = (
        "CREATE TABLE thing_b PARTITION OF thing FOR VALUES IN ('b') PARTITION BY LIST (place)",
        "CREATE TABLE thing_b_1 (LIKE thing)",
        "ALTER TABLE thing_b ATTACH PARTITION thing_b_1 FOR VALUES IN ('b')",
    )
    with owned(postgres, things, *PARTITIONED):
        execute(postgres, *later)
        assert captured(postgres, "INSERT INTO thing VALUES (1, 'a', 'x'), (2, 'b', 'x')") == [
            ("1", "created"),
            ("2", "created"),
        ]
        for name, record in (("thing_a", "1"), ("thing_b", "2"), ("thing_b_1", "2")):
            assert captured(postgres, f"UPDATE {name} SET name = '{name}'") == [(record, "updated")]
            assert captured(postgres, f"UPDATE {name} SET name = name") == []
        assert captured(postgres, "UPDATE thing SET name = 'y'") == [
            ("1", "updated"),
            ("2", "updated"),
        ]
        moved = captured(postgres, "UPDATE thing SET place = 'b' WHERE id = 1")
        assert {record for record, _ in moved} == {"1"} and moved[-1] != ("1", "deleted")
        assert captured(postgres, "DELETE FROM thing_b_1 WHERE id = 2") == [("2", "deleted")]
        assert captured(
            postgres, "MERGE INTO thing USING (VALUES (1)) AS v (n) ON n = id WHEN MATCHED THEN DELETE"
        ) == [("1", "deleted")]
        execute(postgres, "INSERT INTO thing VALUES (3, 'a', 'x')")
        assert captured(postgres, "TRUNCATE thing_a") == [("3", "deleted")]
        with postgres.write() as connection:  # no trigger is left behind, and none is made twice
            names = capture.installed(connection)
            assert capture.install(connection) and set(capture.installed(connection)) == set(names)
        execute(postgres, "INSERT INTO thing_b_1 VALUES (4, 'b', 'x')")
        assert captured(postgres, "TRUNCATE thing") == [("4", "deleted")]


def test_a11_a_partition_that_is_itself_a_catalogue_sees_writes_through_its_table(postgres: Database) -> None:
    with owned(postgres, Catalogue("thing", table("thing_a", None, sa.Column("name", sa.Text))), *PARTITIONED):
        assert captured(postgres, "INSERT INTO thing VALUES (1, 'a', 'x')") == [("1", "created")]
        assert captured(postgres, "TRUNCATE thing") == [("1", "deleted")]


REFUSED_ON_POSTGRESQL = {
    "is a view": ("CREATE TABLE base (id int PRIMARY KEY)", "CREATE VIEW thing AS SELECT * FROM base"),
    "inherit": ("CREATE TABLE thing (id int PRIMARY KEY)", "CREATE TABLE special () INHERITS (thing)"),
    "is declared as Integer": ("CREATE TABLE thing (id numeric PRIMARY KEY)",),
    "has no column id": ("CREATE TABLE thing (number int PRIMARY KEY)",),
}
REFUSED_ON_SQLITE = {
    "is a view": ("CREATE TABLE base (id INTEGER PRIMARY KEY)", "CREATE VIEW thing AS SELECT * FROM base"),
    "is a virtual table": ("CREATE VIRTUAL TABLE thing USING fts5(id)",),
    "over an expression": (
        "CREATE TABLE thing (id INTEGER PRIMARY KEY, name TEXT)",
        "CREATE UNIQUE INDEX name_of ON thing (lower(name))",
    ),
}


@pytest.mark.parametrize("reason", REFUSED_ON_POSTGRESQL)
def test_a11_a_table_that_cannot_be_captured_whole_is_refused_on_postgresql(postgres: Database, reason: str) -> None:
    _is_refused(postgres, table("thing"), reason, *REFUSED_ON_POSTGRESQL[reason])


@pytest.mark.parametrize("reason", REFUSED_ON_SQLITE)
def test_a11_a_table_that_cannot_be_captured_whole_is_refused_on_sqlite(sqlite_database: Database, reason: str) -> None:
    _is_refused(sqlite_database, table("thing"), reason, *REFUSED_ON_SQLITE[reason])


def test_a11_a_key_without_an_exact_text_is_refused(database: Database) -> None:
    _is_refused(database, table("thing", sa.Float()), "exact text", "CREATE TABLE thing (id real PRIMARY KEY)")


def _is_refused(database: Database, declared: sa.Table, reason: str, *statements: str) -> None:
    with database.read() as connection:
        before = capture.installed(connection)
    with (
        pytest.raises(CaptureRefused, match=reason),
        owned(database, Catalogue("thing", declared, label="id"), *statements),
    ):
        pass
    with database.read() as connection:
        assert capture.installed(connection) == before


def test_a11_a_writer_cannot_put_its_own_table_in_place_of_the_ledger(postgres: Database) -> None:
    with owned(postgres, Catalogue("thing", table("thing", None, sa.Column("name", sa.Text)))):
        own = "CREATE TEMP TABLE change (LIKE public.change)"
        assert captured(postgres, f"{own}; INSERT INTO thing VALUES (1, 'a'); DROP TABLE pg_temp.change") == [
            ("1", "created")
        ]


def test_a11_long_names_get_triggers_of_their_own(postgres: Database) -> None:
    name = "a_table_with_a_name_that_is_nearly_as_long_as_is_allowed"
    with owned(postgres, Catalogue("thing", table(name), label="id")):
        assert captured(postgres, f"INSERT INTO {name} VALUES (1)") == [("1", "created")]
        assert captured(postgres, f"UPDATE {name} SET id = 2") == [("1", "deleted"), ("2", "created")]
        assert captured(postgres, f"TRUNCATE {name}") == [("2", "deleted")]


# A12: a row that is absent without a captured deletion


@contextmanager
def hidden(database: Database, record_id: str) -> Iterator[None]:
    """Make a customer's row absent without a captured deletion, for the length of a block."""
    with database.write() as connection:
        capture.remove(connection)
        row = connection.exec_driver_sql(f"SELECT * FROM customer WHERE id = {record_id}").mappings().one()
        names = list(map(str, row))
        connection.exec_driver_sql(f"DELETE FROM customer WHERE id = {record_id}")
        capture.install(connection)
    yield
    with database.write() as connection:
        capture.remove(connection)
        connection.execute(
            sa.text(f"INSERT INTO customer ({', '.join(names)}) VALUES (:{', :'.join(names)})"), dict(row)
        )
        capture.install(connection)


def test_a12_a_record_that_is_not_shown_is_no_deleted_one(database: Database) -> None:
    hub = TestHub(database, "crm", on_gone="delete")
    add(hub, name="Ada")
    hub.run()
    with hidden(database, "1"):
        reconcile = hub.conductor.tasks.start("reconcile", "ada", subscriber="crm.customer", repair=True)
        while hub.conductor.tasks.run_some():
            pass
        assert "(not visible here)" in hub.conductor.tasks.get(reconcile).message
        hub.conductor.sweep()
        hub.run()
        letter = one_row(hub, DeadLetter)
        assert letter.code == "absent" and "no deletion of it was captured" in letter.message
        hub.clock.tick()
        hub.systems["crm"].edit("crm_1", name="Bea")
        hub.conductor.poll("crm.customer")
        hub.conductor.sweep()
        hub.run()
        assert [data["name"] for data in hub.shown("crm")] == ["Bea"]
        assert {one.code for one in rows_of(hub, DeadLetter, DeadLetter.closed_at.is_(None))} == {"absent"}
    for number in [one.id for one in rows_of(hub, DeadLetter, DeadLetter.closed_at.is_(None))]:
        hub.conductor.dead_letters.retry(number, "ada")
    hub.conductor.sweep()
    hub.run()
    assert record(hub).name == "Bea" and not rows_of(hub, DeadLetter, DeadLetter.closed_at.is_(None))


def test_a12_a_new_record_that_is_not_shown_is_a_dead_letter(database: Database) -> None:
    hub = TestHub(database, "crm")
    add(hub, name="Ada")
    with hidden(database, "1"):
        hub.run()
        assert one_row(hub, DeadLetter).code == "absent" and hub.shown("crm") == []


def test_a12_row_level_security_that_hides_a_row_deletes_nothing(postgres: Database) -> None:
    hub = TestHub(postgres, "crm")
    add(hub, name="Ada")
    hub.run()
    role = f"hub_{uuid.uuid4().hex}"
    execute(postgres, f"CREATE ROLE {role} LOGIN IN ROLE pg_read_all_data, pg_write_all_data")
    try:
        execute(
            postgres,
            "ALTER TABLE customer ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY own ON customer USING (name <> 'Ada')",
            f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}",
            "UPDATE customer SET city = 'Rome'",
        )
        limited = Database(postgres.url.set(username=role).render_as_string(hide_password=False))
        hub.conductor.context.database, own = limited, hub.conductor.context.database
        hub.run()
        assert one_row(hub, DeadLetter).code == "absent" and len(hub.shown("crm")) == 1
        hub.conductor.context.database = own
        limited.close()
    finally:
        execute(postgres, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_a12_a_captured_deletion_still_deletes_also_after_its_history_is_removed(database: Database) -> None:
    hub = TestHub(database, "crm")
    add(hub, name="Ada")
    hub.run()
    execute(database, "DELETE FROM customer")
    hub.conductor.relay()
    hub.clock.tick(400 * 24 * 3600)
    hub.conductor.schedule.retention.remove_old()
    hub.conductor.deliver("crm.customer", ["1"])
    assert hub.shown("crm") == [] and not rows_of(hub, DeadLetter)
