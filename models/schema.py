"""Migrations from Python: bring a database's tables and triggers to what this code expects."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from models.session import Database

_FOLDER = Path(__file__).resolve().parent.parent / "migrations"


class UnknownRevision(Exception):
    """There is no such migration, or it is not an older one."""


def alembic_config(database_url: str) -> Config:
    """Alembic's configuration for a database."""
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.attributes["database_url"] = database_url
    return config


def migrate(database_url: str, revision: str = "head") -> None:
    """Upgrade (or, for an older revision, downgrade) the schema.

    Raises:
      UnknownRevision: there is none of this name to go to.
    """
    config = alembic_config(database_url)
    try:
        if revision in ("head", "heads"):
            command.upgrade(config, revision)
        else:
            command.downgrade(config, revision)
    except CommandError as error:
        raise UnknownRevision(str(error)) from None


def is_current(database: Database) -> bool:
    """Whether the schema is the one this code expects. Raises OperationalError where the server does not answer."""
    head = ScriptDirectory.from_config(alembic_config(str(database.url))).get_current_head()
    try:
        with database.read() as connection:
            return MigrationContext.configure(connection).get_current_revision() == head
    except sa.exc.OperationalError:
        if database.is_sqlite:
            return False  # no file yet
        raise  # the server does not answer, which says nothing of its tables
