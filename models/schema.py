"""Migrations from Python: bring a database's tables and triggers to what this code expects.

Alembic is loaded by whoever migrates: every process asks whether the schema is current, and 8 MB in each of them would
be much for that.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from models.session import Database

if TYPE_CHECKING:
    from alembic.config import Config

_FOLDER = Path(__file__).resolve().parent.parent / "migrations"


class UnknownRevision(Exception):
    """There is no such migration, or it is not an older one."""


def alembic_config(database_url: str) -> Config:
    """Alembic's configuration for a database."""
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.attributes["database_url"] = database_url
    return config


def migrate(database_url: str, revision: str = "head") -> None:
    """Upgrade (or, for an older revision, downgrade) the schema.

    Raises:
      UnknownRevision: there is none of this name to go to.
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


def is_current(database: Database) -> bool:
    """Whether the schema is the one this code expects. Raises OperationalError where the server does not answer."""
    # Migrations stand in files that begin with their revision, in the order in which they follow one another.
    newest = max(path.name for path in (_FOLDER / "versions").glob("[0-9]*_*.py")).partition("_")[0]
    try:
        with database.read() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return False
            return bool(connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() == newest)
    except sa.exc.OperationalError:
        if database.is_sqlite:
            return False  # no file yet
        raise  # the server does not answer, which says nothing of its tables
