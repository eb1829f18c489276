"""Migrations from Python: upgrade a database, write the next migration, check that a schema is current.

Alembic is imported inside the functions that need it. Every process checks the schema, and Alembic would cost each of
them 8 MB.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import sqlalchemy as sa

from models.session import Database

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.operations import MigrationScript

_FOLDER = Path(__file__).resolve().parent.parent / "migrations"


class UnknownRevision(Exception):
    """No migration has this revision, or it is newer than the database."""


class NothingToMigrate(Exception):
    """The migrations already create every declared table and column."""


def alembic_config(database_url: str, *, tables_only: bool = False) -> Config:
    """Return Alembic's configuration for a database; `tables_only` leaves out triggers and word indexes."""
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.attributes["database_url"] = database_url
    config.attributes["tables_only"] = tables_only
    return config


def migrate(database_url: str, revision: str = "head") -> None:
    """Upgrade the schema, or downgrade it to an older revision.

    Raises:
      UnknownRevision: there is no such revision to go to.
    """
    from alembic import command  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = alembic_config(database_url)
    try:
        if revision in ("head", "heads"):
            command.upgrade(config, revision)
        else:
            command.downgrade(config, revision)
    except CommandError as error:
        raise UnknownRevision(str(error)) from None


def make_migration(message: str) -> Path:
    """Write the migration that brings the newest revision to the declared tables; return its file.

    The tables are compared with an empty database that all migrations were applied to, so neither the configured
    database nor tables of other applications matter.

    Raises:
      NothingToMigrate: the declared tables are those the migrations create.
    """
    from alembic import command  # noqa: PLC0415

    with TemporaryDirectory() as folder:
        config = alembic_config(f"sqlite:///{folder}/empty.sqlite3", tables_only=True)
        command.upgrade(config, "head")
        number = f"{int(_newest_revision()) + 1:04}"
        written = command.revision(
            config, message, autogenerate=True, rev_id=number, process_revision_directives=_refuse_empty
        )
    return Path(written.path)  # type: ignore[union-attr]  # a list only where the hook makes it several


def _refuse_empty(_context: object, _revision: object, directives: list[MigrationScript]) -> None:
    operations = directives[0].upgrade_ops
    if operations is not None and operations.is_empty():
        raise NothingToMigrate("the migrations already create every declared table and column")


def _newest_revision() -> str:
    # A migration's file name begins with its revision number; the numbers are in the order of the revisions.
    return max(path.name for path in (_FOLDER / "versions").glob("[0-9]*_*.py")).partition("_")[0]


def is_current(database: Database) -> bool:
    """Return whether the schema is the one this code expects.

    Raises:
      sqlalchemy.exc.OperationalError: the server does not answer.
    """
    try:
        with database.read() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return False
            revision = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
            return bool(revision == _newest_revision())
    except sa.exc.OperationalError:
        if database.is_sqlite:
            return False  # the file does not exist yet
        raise
