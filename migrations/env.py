"""Alembic's entry: run the migrations over the database Syncflow is configured for."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import context

import models.ledger
import models.users  # noqa: F401 - its tables belong to the metadata
from models import capture, search
from models.base import Base, UtcDateTime
from models.session import Database
from settings import get_settings


def render(kind: str, item: object, autogen_context: object) -> str | bool:
    """Write our own types into migrations as plain SQLAlchemy ones, so that old migrations stand alone."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


def run() -> None:
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
                include_name=lambda name, *_: not (name and search.belongs(name)),
            )
            # Triggers name the tables' columns: off while these change, and made anew for what stands then.
            capture.remove(connection)
            with context.begin_transaction():
                context.run_migrations()
            if Base.metadata.tables["change"].name in sa.inspect(connection).get_table_names():
                capture.install(connection)
            search.install(connection)
    finally:
        database.close()


run()
