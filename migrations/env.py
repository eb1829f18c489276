"""Alembic's entry point: run the migrations on the given database, or on the configured one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from alembic import context

import models.ledger
import models.users  # noqa: F401 - its tables belong to the metadata
from models import capture, match_keys, search
from models.base import Base, UtcDateTime
from models.session import Database
from settings import get_settings


def render(kind: str, item: object, _context: object) -> str | Literal[False]:
    """Render our own types as plain SQLAlchemy ones, so that old migrations do not depend on the code."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


def install(connection: sa.Connection) -> None:
    """Create the capture triggers and the indexes for searches and matches on the tables as they are now."""
    if Base.metadata.tables["change"].name in sa.inspect(connection).get_table_names():
        capture.install(connection)
    search.install(connection)
    match_keys.install(connection)


def run() -> None:
    """Run the migrations in one transaction."""
    # SQLite's indexes over match keys are none of the migrations' business.
    warnings.filterwarnings("ignore", message="Skipped unsupported reflection of expression-based index match_of_")
    url = context.config.attributes.get("database_url") or get_settings().database_url
    database = Database(url)
    if database.is_sqlite:
        Path(str(database.url.database)).parent.mkdir(parents=True, exist_ok=True)
    try:
        with database.write() as connection:
            context.configure(
                connection=connection,
                target_metadata=Base.metadata,
                render_item=render,
                render_as_batch=True,
                include_name=lambda name, *_: not (name and search.is_index(name)),
            )
            # Triggers name the tables' columns, so they are removed before the columns change.
            capture.remove(connection)
            with context.begin_transaction():
                context.run_migrations()
            if not context.config.attributes.get("tables_only"):
                install(connection)
    finally:
        database.close()


run()
