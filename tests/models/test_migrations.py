"""Migrations work up, down and up again on both databases, and match the models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import models.ledger
import models.users  # noqa: F401 - its tables belong to the metadata
from models import capture, schema, search
from models.base import Base
from models.catalogues import CATALOGUES, Catalogue, Customer, declare
from models.ledger import Change
from models.schema import NothingToMigrate, alembic_config, is_current, make_migration, migrate
from models.session import Database

#: One trigger per catalogue table and event; PostgreSQL also has TRUNCATE.
EVENTS = {"sqlite": ("delete", "insert", "update"), "postgresql": ("delete", "insert", "truncate", "update")}
#: The triggers on SQLite that capture the rows which REPLACE displaces, which runs no DELETE triggers.
BY_REPLACE = ("insert_displaces", "insert_displaced", "update_displaces", "update_displaced")
#: Those of a child table: its record counts as updated as soon as a row is about to be displaced.
CHILD_BY_REPLACE = ("insert_displaces", "update_displaces")


#: Options for comparing models and database; word indexes are not created by migrations.
OPTIONS: dict[str, Any] = {
    "compare_type": True,
    "include_name": lambda name, *_: not (name and search.is_index(name)),
}


@pytest.fixture
def empty(database_url: str) -> Iterator[Database]:
    """Return a database without any migration."""
    database = Database(database_url)
    yield database
    database.close()


def revisions() -> list[str]:
    """Return all revisions, oldest first."""
    scripts = ScriptDirectory.from_config(alembic_config("sqlite://"))
    return [script.revision for script in scripts.walk_revisions()][::-1]


def test_migration_files_are_named_and_ordered_by_their_revision() -> None:
    """`is_current` relies on this order, so that processes find the newest revision without Alembic."""
    folder = Path(str(alembic_config("sqlite://").get_main_option("script_location"))) / "versions"
    names = sorted(path.name for path in folder.glob("*.py"))
    assert [name.partition("_")[0] for name in names] == revisions()


def tables(database: Database) -> set[str]:
    with database.read() as connection:
        found = set(sa.inspect(connection).get_table_names()) - {"alembic_version"}
        return {name for name in found if not search.is_index(name)}


def triggers(database: Database) -> list[str]:
    with database.read() as connection:
        return capture.installed(connection)


def functions(database: Database) -> list[str]:
    """Return all functions in PostgreSQL, including our trigger functions."""
    if database.is_sqlite:
        return []
    with database.read() as connection:
        statement = "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        return list(connection.execute(sa.text(statement)).scalars())


def expected_triggers(database: Database) -> list[str]:
    return sorted(
        f"syncflow_{catalogue.name}_{table.name}_{event}"
        for catalogue in CATALOGUES.values()
        for table in (catalogue.table, *(child.table for child in catalogue.children))
        for event in expected_events(table, is_child=table is not catalogue.table, sqlite=database.is_sqlite)
    )


def expected_events(table: sa.Table, *, is_child: bool, sqlite: bool) -> tuple[str, ...]:
    if not sqlite:
        return EVENTS["postgresql"]
    if is_child:  # a row of another record may be displaced by its key
        return EVENTS["sqlite"] + CHILD_BY_REPLACE
    unique = any(index.unique for index in table.indexes)
    unique |= any(isinstance(one, sa.UniqueConstraint) for one in table.constraints)
    return EVENTS["sqlite"] + BY_REPLACE if unique else EVENTS["sqlite"]


def add(database: Database, **values: Any) -> None:
    with database.write() as connection:
        connection.execute(sa.insert(Customer).values(**{"name": "Ada", **values}))


def changes(database: Database) -> int:
    with database.read() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(Change)).scalar_one())


def test_up_down_to_nothing_and_up_again(empty: Database, database_url: str) -> None:
    assert not is_current(empty)
    for _ in range(2):
        migrate(database_url)
        assert is_current(empty)
        assert tables(empty) == set(Base.metadata.tables)
        assert triggers(empty) == expected_triggers(empty)
        add(empty)
        assert changes(empty) == 1
        migrate(database_url, "base")
        assert not is_current(empty)
        assert tables(empty) == set() and triggers(empty) == [] and functions(empty) == []


def test_models_and_migrations_say_the_same(database: Database) -> None:
    with database.read() as connection:
        # SQLite stores the same default in two ways (true and 1), so only PostgreSQL compares defaults.
        options = OPTIONS | {"compare_server_default": not database.is_sqlite}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []


def test_a_model_without_its_migration_is_noticed(database: Database) -> None:
    """The comparison above detects a table, a column, a length and an index without a migration."""
    metadata = sa.MetaData(naming_convention=Base.metadata.naming_convention)
    for table in Base.metadata.tables.values():
        table.to_metadata(metadata)
    sa.Table("stray", metadata, sa.Column("id", sa.Integer, primary_key=True))
    customer = metadata.tables["customer"]
    customer.append_column(sa.Column("stray", sa.Integer))
    customer.c.phone.type = sa.String(41)
    sa.Index("ix_stray", customer.c.city)
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts=OPTIONS)
        found = compare_metadata(context, metadata)
    kinds = {entry[0] if isinstance(entry, tuple) else entry[0][0] for entry in found}
    assert kinds == {"add_table", "add_column", "modify_type", "add_index"}


def test_there_is_one_line_of_revisions() -> None:
    scripts = ScriptDirectory.from_config(alembic_config("sqlite://"))
    assert len(scripts.get_heads()) == len(scripts.get_bases()) == 1
    assert revisions() == sorted(revisions()), "revisions are numbered, so that they sort"


def test_data_survives_each_step_down_and_up(empty: Database, database_url: str) -> None:
    """A downgrade and upgrade keeps the data that both revisions can store."""
    steps = revisions()
    migrate(database_url)
    add(empty, email="ada@x.org", city="Rome")
    for older in reversed(steps[:-1]):
        migrate(database_url, older)
        assert not is_current(empty)
        with empty.read() as connection:
            assert connection.execute(sa.text("SELECT name, email FROM customer")).one() == ("Ada", "ada@x.org")
        migrate(database_url)
        assert is_current(empty) and triggers(empty) == expected_triggers(empty)
    # Migrating an up-to-date database changes nothing.
    migrate(database_url)
    with empty.read() as connection:
        assert connection.execute(sa.select(Customer.email, Customer.city)).one() == ("ada@x.org", "Rome")
    before = changes(empty)
    add(empty, name="Bob")
    assert changes(empty) == before + 1


def test_capture_is_installed_and_removed(database: Database) -> None:
    assert triggers(database) == expected_triggers(database)
    with database.write() as connection:
        assert capture.remove(connection) == expected_triggers(database)
    assert triggers(database) == [] and functions(database) == []
    add(database)
    assert changes(database) == 0
    for _ in range(2):  # installing again replaces the triggers
        with database.write() as connection:
            assert capture.install(connection) == expected_triggers(database)
    add(database, name="Bob")
    assert changes(database) == 1


def test_triggers_of_a_table_that_is_no_catalogue_any_more_are_removed(database: Database) -> None:
    metadata = sa.MetaData()
    table = sa.Table("parcel", metadata, sa.Column("id", sa.Integer, primary_key=True))
    metadata.create_all(database.engine)
    declare(Catalogue("parcel", table))
    try:
        with database.write() as connection:
            assert "syncflow_parcel_parcel_insert" in capture.install(connection)
    finally:
        del CATALOGUES["parcel"]
    with database.write() as connection:
        assert capture.install(connection) == expected_triggers(database)
        connection.execute(sa.insert(table).values(id=1))
    assert changes(database) == 0


def test_a_catalogue_without_its_table_does_not_stop_the_others(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    declare(Catalogue("ghost", sa.Table("ghost", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))))
    try:
        with database.write() as connection:
            names = capture.install(connection)
    finally:
        del CATALOGUES["ghost"]
    assert names == expected_triggers(database)
    assert "catalogue ghost is not captured: it has no table ghost" in caplog.text


BROKEN = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "9999", {newest!r}

def upgrade():
    op.create_table("half_done", sa.Column("id", sa.Integer, primary_key=True))
    op.execute("DELETE FROM customer")
    raise RuntimeError("the power is gone")
"""


def test_a_migration_that_fails_leaves_everything_as_it_was(empty: Database, database_url: str, tmp_path: Path) -> None:
    migrate(database_url)
    add(empty)
    (tmp_path / "9999_broken.py").write_text(BROKEN.format(newest=revisions()[-1]))
    config = alembic_config(database_url)
    ours = Path(str(config.get_main_option("script_location"))) / "versions"
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", f"{ours}\n{tmp_path}")
    with pytest.raises(RuntimeError, match="the power is gone"):
        command.upgrade(config, "head")
    assert is_current(empty) and "half_done" not in tables(empty)
    assert triggers(empty) == expected_triggers(empty)
    add(empty, name="Bob")
    assert changes(empty) == 2


# --- new migrations -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the migrations folder that a test can add to."""
    folder = shutil.copytree(schema._FOLDER, tmp_path / "migrations")
    monkeypatch.setattr(schema, "_FOLDER", folder)
    return folder


def test_a_new_table_gets_the_next_number(folder: Path, sqlite_url: str) -> None:
    newest = int(revisions()[-1])
    table = sa.Table("credit_note", Base.metadata, sa.Column("id", sa.Integer, primary_key=True))
    try:
        path = make_migration("Credit notes")
    finally:
        Base.metadata.remove(table)
    assert path == folder / "versions" / f"{newest + 1:04}_credit_notes.py"
    assert f'down_revision = "{newest:04}"' in path.read_text().replace("'", '"')
    migrate(sqlite_url)
    database = Database(sqlite_url)
    assert "credit_note" in tables(database) and is_current(database)
    database.close()


def test_tables_that_are_migrated_need_no_migration(folder: Path) -> None:
    before = set(folder.rglob("0*.py"))
    with pytest.raises(NothingToMigrate):
        make_migration("nothing")
    assert set(folder.rglob("0*.py")) == before
