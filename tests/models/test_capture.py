"""Change capture on both databases: whoever writes, however, is seen; and nothing else is."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from models import capture
from models.capture import sync_context
from models.catalogues import Catalogue, ChildRows, Customer, Invoice, InvoiceLine
from models.ledger import Change, SyncContext
from models.schema import migrate
from models.session import Database
from tests.support import services
from tests.support.own_tables import owned
from tests.support.private_postgresql import private_postgresql

CUSTOMER = Customer.__table__
INVOICE = Invoice.__table__
LINE = InvoiceLine.__table__

Seen = list[tuple[str, str, str]]


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Database]:
    migrate(postgres_url)
    database = Database(postgres_url)
    yield database
    database.close()


def changes(database: Database, *columns: str) -> list[tuple[Any, ...]]:
    """All captured changes, oldest first."""
    chosen = [getattr(Change, name) for name in columns or ("catalogue", "record_id", "operation")]
    with database.read() as connection:
        return [tuple(row) for row in connection.execute(sa.select(*chosen).order_by(Change.id))]


def forget(database: Database) -> None:
    """Start counting from here."""
    with database.write() as connection:
        connection.execute(sa.delete(Change))


def run(database: Database, statement: Any, **values: Any) -> Any:
    with database.write() as connection:
        return connection.execute(sa.text(statement) if isinstance(statement, str) else statement, values or None)


def add(database: Database, *names: str) -> None:
    """Customers numbered from 1."""
    with database.write() as connection:
        connection.execute(sa.insert(CUSTOMER), [{"name": name} for name in names])


# --- whoever writes ---------------------------------------------------------------------------------------


def test_an_orm_session_is_captured(database: Database) -> None:
    with Session(database.engine) as session:
        ada = Customer(name="Ada")
        session.add(ada)
        session.commit()
        ada.email = "ada@x.org"
        session.commit()
        session.delete(ada)
        session.commit()
    assert changes(database) == [("customer", "1", kind) for kind in ("created", "updated", "deleted")]


def test_a_bulk_update_is_captured_record_by_record(database: Database) -> None:
    add(database, "Ada", "Bob", "Eve")
    forget(database)
    run(database, sa.update(CUSTOMER).where(CUSTOMER.c.name != "Bob").values(city="Rome"))
    assert sorted(changes(database)) == [("customer", "1", "updated"), ("customer", "3", "updated")]


def outside(database: Database, statement: str) -> None:
    """Run SQL from another program: the database's own command line client, if there is one."""
    if database.is_sqlite:
        path = str(database.url.database)
        code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.executescript(sys.argv[2]); c.commit()"
        client = shutil.which("sqlite3")
        command = [client, path, statement] if client else [sys.executable, "-c", code, path, statement]
    else:
        client = shutil.which("psql") or services.missing("psql is not installed (it comes with PostgreSQL)")
        url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
        command = [client, "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--quiet", url, "--command", statement]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)


def test_another_program_is_captured(database: Database) -> None:
    outside(database, "INSERT INTO customer (name) VALUES ('Ada')")
    outside(database, "UPDATE customer SET city = 'Rome'")
    outside(database, "BEGIN; UPDATE customer SET city = 'Oslo'; ROLLBACK;")
    outside(database, "DELETE FROM customer")
    assert changes(database) == [("customer", "1", kind) for kind in ("created", "updated", "deleted")]


def test_changes_of_other_programs_have_a_readable_time(database: Database) -> None:
    outside(database, "INSERT INTO customer (name) VALUES ('Ada')")
    with database.read() as connection:
        captured = connection.execute(sa.select(Change.at)).scalar_one()
        created = connection.execute(sa.select(CUSTOMER.c.created_at)).scalar_one()
    assert abs(captured.timestamp() - time.time()) < 60 and captured.utcoffset() == timedelta(0)
    assert abs((captured - created).total_seconds()) < 2


def test_an_application_without_rights_on_the_ledger_is_captured(postgres: Database) -> None:
    """It may write its own table, and nothing of ours."""
    role = f"app_{uuid.uuid4().hex}"
    run(postgres, f"CREATE ROLE {role}")
    try:
        run(postgres, f"GRANT SELECT, INSERT, UPDATE ON customer TO {role}")
        run(postgres, f"GRANT USAGE ON customer_id_seq TO {role}")
        with postgres.write() as connection:
            connection.execute(sa.text(f"SET LOCAL ROLE {role}"))
            connection.execute(sa.insert(CUSTOMER).values(name="Ada"))
            connection.execute(sa.update(CUSTOMER).values(city="Rome"))
        assert [kind for _, _, kind in changes(postgres)] == ["created", "updated"]
    finally:
        run(postgres, f"DROP OWNED BY {role}")
        run(postgres, f"DROP ROLE {role}")


# --- whatever is written ----------------------------------------------------------------------------------


def test_insert_on_conflict(database: Database) -> None:
    statement = (
        "INSERT INTO product (sku, name) VALUES ('a', 'One'), ('b', 'Two') "
        "ON CONFLICT (sku) DO UPDATE SET name = excluded.name"
    )
    run(database, "INSERT INTO product (sku, name) VALUES ('a', 'Zero')")
    key = changes(database)[0][1]
    forget(database)
    run(database, statement)
    seen = changes(database)
    assert ("product", key, "updated") in seen and len(seen) == 2
    assert [kind for _, record, kind in seen if record != key] == ["created"]
    forget(database)
    run(database, statement)
    run(database, "INSERT INTO product (sku, name) VALUES ('a', 'x') ON CONFLICT DO NOTHING")
    assert changes(database) == []


def test_a_changed_key_is_one_record_gone_and_one_come(database: Database) -> None:
    add(database, "Ada", "Bob")
    forget(database)
    run(database, "UPDATE customer SET id = 7 WHERE id = 1")
    assert sorted(changes(database)) == [("customer", "1", "deleted"), ("customer", "7", "created")]


def test_an_update_that_changes_nothing_is_no_change(database: Database) -> None:
    add(database, "Ada", "Bob")
    forget(database)
    run(database, "UPDATE customer SET name = name, email = NULL")
    run(database, "UPDATE customer SET name = 'Ada' WHERE id = 1")
    run(database, "UPDATE customer SET updated_at = '2001-01-01', created_at = '2001-01-01'")
    run(database, "UPDATE customer SET name = 'nobody' WHERE id = 99")
    run(database, "DELETE FROM customer WHERE id = 99")
    assert changes(database) == []


def test_nothing_and_a_value_differ_both_ways(database: Database) -> None:
    add(database, "Ada")
    forget(database)
    for value in ("ada@x.org", None, "", None):
        run(database, "UPDATE customer SET email = :email", email=value)
    assert [kind for _, _, kind in changes(database)] == ["updated"] * 4


@pytest.mark.parametrize("column", [c.name for c in CUSTOMER.c if c.name not in ("id", "created_at", "updated_at")])
def test_every_synced_column_counts(sqlite_url: str, column: str) -> None:
    migrate(sqlite_url)
    database = Database(sqlite_url)
    add(database, "Ada")
    forget(database)
    run(database, f"UPDATE customer SET {column} = 0")
    assert len(changes(database)) == 1
    database.close()


def test_a_rollback_writes_nothing(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.write() as connection:
        connection.execute(sa.insert(CUSTOMER).values(name="Ada"))
        raise ZeroDivisionError
    with database.write() as connection:
        with pytest.raises(ZeroDivisionError), connection.begin_nested():
            connection.execute(sa.insert(CUSTOMER).values(name="Bob"))
            raise ZeroDivisionError
        connection.execute(sa.insert(CUSTOMER).values(name="Eve"))
    with database.read() as connection:
        eve = connection.execute(sa.select(CUSTOMER.c.id)).scalar_one()
    assert changes(database) == [("customer", str(eve), "created")]


def test_truncate(postgres: Database) -> None:
    add(postgres, "Ada", "Bob")
    run(postgres, "INSERT INTO invoice (customer_id, number) VALUES (1, 'R1')")
    run(postgres, "INSERT INTO invoice_line (invoice_id) VALUES (1), (1)")
    forget(postgres)
    run(postgres, "TRUNCATE customer CASCADE")
    assert sorted(set(changes(postgres))) == [
        ("customer", "1", "deleted"),
        ("customer", "2", "deleted"),
        ("invoice", "1", "deleted"),
        ("invoice", "1", "updated"),
    ]
    forget(postgres)
    run(postgres, "TRUNCATE customer CASCADE")
    assert changes(postgres) == []


def test_a_bulk_write_of_10000_rows_stays_cheap(postgres: Database) -> None:
    """Statement-level triggers: the capture of a bulk UPDATE is one INSERT ... SELECT, not 10,000 calls."""
    run(postgres, "INSERT INTO customer (name) SELECT 'n' || i FROM generate_series(1, 10000) i")
    run(postgres, "UPDATE customer SET city = 'Rome'")
    plan = run(postgres, "EXPLAIN (ANALYZE, FORMAT JSON) UPDATE customer SET city = 'Oslo'").scalar_one()
    (trigger,) = [t for t in plan[0]["Triggers"] if t["Trigger Name"] == "syncflow_customer_customer_update"]
    assert trigger["Calls"] == 1
    assert len(changes(postgres)) == 30_000


def test_a_bulk_write_stays_cheap_on_a_connection_that_began_with_one_row(postgres: Database) -> None:
    """PostgreSQL keeps the first plan of a trigger's statement: one made for one row must do for 5,000, too."""
    run(postgres, "INSERT INTO customer (name) SELECT 'n' || i FROM generate_series(1, 5000) i")

    def capturing(connection: sa.Connection, city: str) -> float:
        plan = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) UPDATE customer SET city = '{city}'")
        (trigger,) = [t for t in plan.scalar_one()[0]["Triggers"] if t["Trigger Name"].endswith("_update")]
        return float(trigger["Time"])

    with postgres.read() as fresh:
        usual = capturing(fresh, "Rome")
        fresh.invalidate()
    with postgres.read() as used:
        used.exec_driver_sql("UPDATE customer SET city = 'Oslo' WHERE id = 1")
        after_one_row = capturing(used, "Bonn")
    assert after_one_row < 20 * usual, "the rows are compared each with each"


# --- child rows -------------------------------------------------------------------------------------------


@pytest.fixture
def invoices(database: Database) -> Database:
    """Two invoices; the first has two lines, numbered 1 and 2."""
    add(database, "Ada")
    run(database, "INSERT INTO invoice (customer_id, number) VALUES (1, 'R1'), (1, 'R2')")
    run(database, "INSERT INTO invoice_line (invoice_id, description) VALUES (1, 'a'), (1, 'b')")
    forget(database)
    return database


@pytest.mark.parametrize(
    "statement,records",
    [
        ("INSERT INTO invoice_line (invoice_id) VALUES (2)", {"2"}),
        ("INSERT INTO invoice_line (invoice_id) VALUES (1), (1), (2)", {"1", "2"}),
        ("UPDATE invoice_line SET quantity = 5 WHERE id = 2", {"1"}),
        ("UPDATE invoice_line SET quantity = quantity", set()),
        ("UPDATE invoice_line SET invoice_id = 2 WHERE id = 1", {"1", "2"}),
        ("UPDATE invoice_line SET id = 9 WHERE id = 1", {"1"}),
        ("DELETE FROM invoice_line WHERE id = 1", {"1"}),
        ("DELETE FROM invoice_line", {"1"}),
    ],
)
def test_a_change_of_a_line_is_a_change_of_its_invoice(invoices: Database, statement: str, records: set[str]) -> None:
    run(invoices, statement)
    seen = changes(invoices)
    assert {record for _, record, _ in seen} == records
    kinds = {(catalogue, kind) for catalogue, _, kind in seen}
    # A line of a new key is, for its invoice, one gone and one come: whichever words, it has changed.
    assert kinds <= {("invoice", "updated"), ("invoice", "deleted"), ("invoice", "created")}
    if "id = 9" not in statement:
        assert kinds <= {("invoice", "updated")}


def test_a_cascade_is_captured(invoices: Database) -> None:
    """The lines go with their invoice by a foreign key's ON DELETE, not by a statement of anybody."""
    run(invoices, "DELETE FROM invoice WHERE id = 1")
    with invoices.read() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM invoice_line")).scalar() == 0
    assert ("invoice", "1", "deleted") in changes(invoices)
    assert {record for _, record, _ in changes(invoices)} == {"1"}


def test_child_rows_without_a_parent_are_written_without_a_change(database: Database) -> None:
    metadata = sa.MetaData()
    box = sa.Table("box", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text))
    thing = sa.Table(
        "thing",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("box_id", sa.ForeignKey("box.id", ondelete="SET NULL")),
    )
    with owned(database, Catalogue("box", box, children=(ChildRows("things", thing, "box_id"),))):
        run(database, sa.insert(box).values(id=1, name="b"))
        forget(database)
        run(database, sa.insert(thing).values(id=1))
        assert changes(database) == []
        run(database, sa.update(thing).values(box_id=1))
        run(database, sa.update(thing).values(box_id=None))
        assert changes(database) == [("box", "1", "updated")] * 2
        forget(database)
        run(database, sa.delete(thing))
        assert changes(database) == []
        run(database, sa.insert(thing).values(id=1, box_id=1))
        forget(database)
        run(database, sa.delete(box))
        assert set(changes(database)) == {("box", "1", "deleted"), ("box", "1", "updated")}


# --- who wrote --------------------------------------------------------------------------------------------


@contextmanager
def by_session(database: Database) -> Iterator[Session]:
    with Session(database.engine) as session, session.begin():
        yield session


ways: dict[str, Callable[[Database], Any]] = {"session": by_session, "connection": lambda database: database.write()}


@pytest.fixture(params=ways)
def writer(request: pytest.FixtureRequest) -> Callable[[Database], Any]:
    """A transaction, as an ORM session and as a Core connection."""
    return ways[request.param]


def insert(target: Any, name: str) -> None:
    if isinstance(target, Session):
        target.add(Customer(name=name))
    else:
        target.execute(sa.insert(CUSTOMER).values(name=name))


def origins(database: Database) -> list[tuple[Any, ...]]:
    return changes(database, "origin", "unsubscribe")


def test_the_writer_names_its_origin_and_its_list(database: Database, writer: Any) -> None:
    with writer(database) as target:
        with sync_context(target, origin="stripe", unsubscribe=["crm", "shop.customer"]):
            insert(target, "inside")
        insert(target, "past the block")
    assert origins(database) == [("stripe", "crm,shop.customer"), (None, None)]


def test_changes_before_the_block_do_not_get_its_origin(database: Database) -> None:
    with by_session(database) as session:
        insert(session, "before")
        with sync_context(session, origin="stripe"):
            insert(session, "inside")
    assert origins(database) == [(None, None), ("stripe", None)]


def test_one_may_be_named_without_the_other(database: Database, writer: Any) -> None:
    with writer(database) as target, sync_context(target, unsubscribe=["crm"]):
        insert(target, "Ada")
    with writer(database) as target, sync_context(target, origin="stripe"):
        insert(target, "Bob")
    with writer(database) as target, sync_context(target):
        insert(target, "Eve")
    assert origins(database) == [(None, "crm"), ("stripe", None), (None, None)]


def test_blocks_inside_each_other(database: Database, writer: Any) -> None:
    with writer(database) as target, sync_context(target, origin="stripe", unsubscribe=["crm"]):
        insert(target, "outer")
        with sync_context(target, origin="shop"):
            insert(target, "inner")
        insert(target, "outer again")
    assert origins(database) == [("stripe", "crm"), ("shop", None), ("stripe", "crm")]


def test_a_block_that_raises_leaves_nothing_behind(database: Database, writer: Any) -> None:
    with writer(database) as target:
        with pytest.raises(ZeroDivisionError), sync_context(target, origin="stripe"):
            insert(target, "inside")
            raise ZeroDivisionError
        if isinstance(target, Session):
            target.flush()
        insert(target, "after it was caught")
    assert origins(database)[-1] == (None, None)


def test_a_failed_statement_raises_and_leaves_no_origin(database: Database, writer: Any) -> None:
    with writer(database) as target:
        with pytest.raises(sa.exc.IntegrityError), target.begin_nested(), sync_context(target, origin="stripe"):
            target.execute(sa.text("INSERT INTO customer (name) VALUES (NULL)"))
        insert(target, "after it was caught")
    assert origins(database) == [(None, None)]


def test_the_next_transaction_of_the_same_connection_knows_nothing(database: Database) -> None:
    engine = sa.create_engine(database.url, pool_size=1, max_overflow=0)
    with engine.connect() as connection:
        for ending in ("commit", "rollback"):
            with sync_context(connection, origin="stripe", unsubscribe=["crm"]):
                connection.execute(sa.insert(CUSTOMER).values(name="inside"))
                getattr(connection, ending)()
            connection.execute(sa.insert(CUSTOMER).values(name="after"))
            connection.commit()
    with engine.begin() as connection:
        connection.execute(sa.insert(CUSTOMER).values(name="later"))
    engine.dispose()
    assert origins(database) == [("stripe", "crm"), (None, None), (None, None), (None, None)]


def test_a_writer_that_dies_in_its_block_leaves_nothing_behind(database: Database) -> None:
    with database.engine.connect() as connection:
        block = sync_context(connection, origin="stripe")
        block.__enter__()
        insert(connection, "lost")
        connection.invalidate()
    add(database, "Ada")
    assert origins(database) == [(None, None)]
    with database.read() as connection:
        assert connection.execute(sa.select(SyncContext.id)).all() == []


def test_other_writers_are_not_taken_for_the_origin(postgres: Database) -> None:
    with postgres.write() as one, sync_context(one, origin="stripe"):
        insert(one, "Ada")
        with postgres.write() as other:
            insert(other, "Bob")
    assert set(origins(postgres)) == {("stripe", None), (None, None)}


def test_plain_sql_names_its_origin(postgres: Database) -> None:
    outside(
        postgres,
        "BEGIN; SELECT set_config('syncflow.origin', 'stripe', true), set_config('syncflow.unsubscribe', 'crm', true);"
        "INSERT INTO customer (name) VALUES ('Ada'); COMMIT; INSERT INTO customer (name) VALUES ('Bob');",
    )
    assert origins(postgres) == [("stripe", "crm"), (None, None)]


def test_plain_sql_names_its_origin_on_sqlite(sqlite_url: str) -> None:
    migrate(sqlite_url)
    database = Database(sqlite_url)
    outside(
        database,
        "BEGIN; INSERT INTO sync_context (id, origin, unsubscribe) VALUES (1, 'stripe', 'crm');"
        "INSERT INTO customer (name) VALUES ('Ada'); DELETE FROM sync_context; COMMIT;"
        "INSERT INTO customer (name) VALUES ('Bob');",
    )
    assert origins(database) == [("stripe", "crm"), (None, None)]
    database.close()


# --- several at once --------------------------------------------------------------------------------------


def test_concurrent_writers_are_all_captured_and_none_waits(postgres: Database) -> None:
    add(postgres, "Ada", "Bob")
    forget(postgres)
    with postgres.write() as one:
        one.execute(sa.update(CUSTOMER).where(CUSTOMER.c.id == 1).values(city="Rome"))
        with postgres.write() as two:
            # The capture takes no lock another record's writer needs.
            two.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
            two.execute(sa.update(CUSTOMER).where(CUSTOMER.c.id == 2).values(city="Oslo"))
        assert changes(postgres) == [("customer", "2", "updated")]
    assert sorted(changes(postgres)) == [("customer", "1", "updated"), ("customer", "2", "updated")]


def test_many_writers_lose_nothing(database: Database) -> None:
    add(database, *"abcd")
    forget(database)
    failures: list[BaseException] = []

    def write(key: int) -> None:
        try:
            for number in range(10):
                database.run_in_transaction(
                    lambda c, n=number: c.execute(sa.update(CUSTOMER).where(CUSTOMER.c.id == key).values(notes=str(n)))  # type: ignore[misc]
                )
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(key,)) for key in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(changes(database)) == sorted(("customer", str(k), "updated") for k in (1, 2, 3, 4) for _ in range(10))


# --- waking up --------------------------------------------------------------------------------------------


@contextmanager
def listening(database: Database) -> Iterator[Any]:
    listener = database.listener()
    try:
        yield listener
    finally:
        listener.close()


def waited(listener: Any, timeout: float) -> float:
    began = time.monotonic()
    listener.wait(timeout)
    return time.monotonic() - began


def test_the_listener_wakes_after_a_commit(database: Database) -> None:
    with listening(database) as listener, database.engine.connect() as connection:
        insert(connection, "Ada")
        threading.Timer(0.1, connection.commit).start()
        assert waited(listener, 30) < 10
        while connection.in_transaction():
            time.sleep(0.001)


def test_the_listener_reports_commits_made_between_two_waits(database: Database) -> None:
    with listening(database) as listener:
        for name in ("Ada", "Bob", "Eve"):
            add(database, name)
        assert waited(listener, 30) < 10
        # A burst wakes it a time or two; then there is silence.
        assert sum(waited(listener, 0.2) < 0.2 for _ in range(4)) <= 2
        add(database, "Max")
        assert waited(listener, 30) < 10


def test_the_listener_hears_another_program(database: Database) -> None:
    with listening(database) as listener:
        outside(database, "INSERT INTO customer (name) VALUES ('Ada')")
        assert waited(listener, 30) < 10


def test_unchanged_and_rolled_back_rows_do_not_wake_the_listener(postgres: Database) -> None:
    add(postgres, "Ada")
    with listening(postgres) as listener:
        run(postgres, "UPDATE customer SET name = name")
        with postgres.read() as connection:
            insert(connection, "lost")
        assert waited(listener, 0.05) >= 0.05


def test_a_listener_with_a_cut_connection_raises_a_database_error(postgres: Database) -> None:
    listener = postgres.listener()
    ours = "query LIKE 'LISTEN%' AND datname = current_database()"
    run(postgres, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}")
    with pytest.raises(sa.exc.DBAPIError):
        for _ in range(3):  # the cut itself may wake it once
            listener.wait(30)
    listener.close()


# --- whatever happens -------------------------------------------------------------------------------------

_TEXT = st.one_of(st.none(), st.sampled_from(["", "a", "b"]))
_STEP = st.one_of(
    st.tuples(st.just("insert"), st.integers(1, 4), _TEXT),
    st.tuples(st.just("replace key"), st.integers(1, 4), st.integers(1, 6)),
    st.tuples(st.just("update"), st.integers(1, 4), _TEXT),
    st.tuples(st.just("update all"), st.just(0), _TEXT),
    st.tuples(st.just("touch"), st.integers(1, 4), _TEXT),
    st.tuples(st.just("delete"), st.integers(1, 4), st.none()),
    st.tuples(st.just("line"), st.integers(1, 4), _TEXT),
    st.tuples(st.just("move lines"), st.integers(1, 4), st.integers(1, 4)),
)
_SQL = {
    "insert": "INSERT INTO customer (id, name, email) VALUES (:k, 'n', :v) ON CONFLICT DO NOTHING",
    "replace key": "UPDATE OR IGNORE customer SET id = :v WHERE id = :k",
    "update": "UPDATE customer SET email = :v WHERE id = :k",
    "update all": "UPDATE customer SET email = :v WHERE :k = 0",
    "touch": "UPDATE customer SET updated_at = :v WHERE id = :k AND :v IS NOT NULL",
    "delete": "DELETE FROM customer WHERE id = :k",
    "line": "INSERT INTO line_of (customer_id, words) SELECT id, :v FROM customer WHERE id = :k",
    "move lines": (
        "UPDATE line_of SET customer_id = :v WHERE customer_id = :k AND EXISTS (SELECT 1 FROM customer WHERE id = :v)"
    ),
}


class _Ledgerless:
    """A database in memory with the triggers, so that an example costs microseconds."""

    def __init__(self) -> None:
        metadata = sa.MetaData()
        customer = CUSTOMER.to_metadata(metadata)
        lines = sa.Table(
            "line_of",
            metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("customer_id", sa.ForeignKey("customer.id", ondelete="CASCADE", onupdate="CASCADE")),
            sa.Column("words", sa.Text),
        )
        for table in (Change, SyncContext):
            table.__table__.to_metadata(metadata)
        engine = sa.create_engine("sqlite://")
        with engine.begin() as connection:
            metadata.create_all(connection)
            catalogue = Catalogue("customer", customer, children=(ChildRows("lines", lines, "customer_id"),))
            capture.install(connection, [catalogue])
            raw: Any = connection.connection.driver_connection
            self.raw = raw
            script = "\n".join(raw.iterdump())
        self.engine = engine
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.executescript(script)
        self.connection.execute("PRAGMA foreign_keys = ON")

    def records(self) -> dict[str, Any]:
        """Every record with its lines: what is synced of it."""
        rows = {str(row[0]): [row, []] for row in self.connection.execute("SELECT id, name, email FROM customer")}
        for owner, *line in self.connection.execute("SELECT customer_id, id, words FROM line_of ORDER BY id"):
            rows[str(owner)][1].append(line)
        return rows

    def close(self) -> None:
        self.connection.close()
        self.engine.dispose()


@pytest.fixture(scope="module")
def sandbox() -> Iterator[_Ledgerless]:
    sandbox = _Ledgerless()
    yield sandbox
    sandbox.close()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.lists(_STEP, min_size=1, max_size=4), max_size=6))
def test_captured_are_exactly_the_records_that_differ(sandbox: _Ledgerless, transactions: list[list[Any]]) -> None:
    """Every record that differs after a statement is in `change`, and no other is."""
    execute = sandbox.connection.execute
    for table in ("customer", "line_of", "change"):
        execute(f"DELETE FROM {table}")
    for steps in transactions:
        execute("BEGIN")
        touched: set[str] = set()
        start = sandbox.records()
        for kind, key, value in steps:
            before = sandbox.records()
            execute("DELETE FROM change")
            execute(_SQL[kind], {"k": key, "v": value})
            after = sandbox.records()
            seen = {record for (record,) in execute("SELECT record_id FROM change")}
            differ = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
            assert seen == differ
            touched |= seen
        end = sandbox.records()
        assert {k for k in start.keys() | end.keys() if start.get(k) != end.get(k)} <= touched
        execute("COMMIT")


def test_the_psycopg_driver_alone_is_captured_too(postgres: Database) -> None:
    url = postgres.url.set(drivername="postgresql").render_as_string(hide_password=False)
    copying = "COPY customer (name) FROM STDIN"
    with psycopg.connect(url) as connection, connection.cursor() as cursor, cursor.copy(copying) as copy:
        for name in ("Ada", "Bob"):
            copy.write_row([name])
    assert sorted(changes(postgres)) == [("customer", "1", "created"), ("customer", "2", "created")]


# --- waking the relay --------------------------------------------------------------------------------------


def test_a_relay_that_stays_awake_is_not_notified(postgres: Database) -> None:
    with listening(postgres) as listener, listening(postgres) as other:
        listener.stay_awake(True)
        add(postgres, "Ada")
        assert waited(other, 0.1) >= 0.1
        listener.stay_awake(False)
        add(postgres, "Bob")
        assert waited(other, 30) < 10


def test_a_relay_that_dies_awake_leaves_writers_notifying(postgres: Database) -> None:
    dead = postgres.listener()
    dead.stay_awake(True)
    dead.close()
    with listening(postgres) as listener:
        add(postgres, "Ada")
        assert waited(listener, 30) < 10


def test_two_relays_may_be_awake(postgres: Database) -> None:
    with listening(postgres) as first, listening(postgres) as second:
        for listener in (first, second, first):
            listener.stay_awake(True)
        second.stay_awake(False)
        add(postgres, "Ada")
        assert waited(second, 0.1) >= 0.1


def test_a_database_may_do_without_notifications(postgres_url: str) -> None:
    migrate(postgres_url)
    database = Database(postgres_url)
    run(database, f"ALTER DATABASE {database.url.database} SET syncflow.notify = 'off'")
    database.close()  # the setting is that of new connections
    with listening(database) as listener:
        assert not listener.is_notified
        add(database, "Ada")
        assert waited(listener, 0.1) >= 0.1
    database.close()


def test_two_phase_commits_of_a_writer_are_captured() -> None:
    with private_postgresql("two_phase", max_prepared_transactions=5) as port:
        server, name = f"postgres@127.0.0.1:{port}", f"two_phase_{uuid.uuid4().hex}"
        with psycopg.connect(f"postgresql://{server}/postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        migrate(f"postgresql+psycopg://{server}/{name}")
        database = Database(f"postgresql+psycopg://{server}/{name}")
        with psycopg.connect(f"postgresql://{server}/{name}", autocommit=True) as writer:
            writer.execute("BEGIN")
            writer.execute("INSERT INTO customer (name, active) VALUES ('Ada', true)")
            writer.execute(f"PREPARE TRANSACTION '{name}'")
            assert changes(database) == []
            writer.execute(f"COMMIT PREPARED '{name}'")
        with listening(database) as listener:
            assert not listener.is_notified
        assert len(changes(database)) == 1
        database.close()
