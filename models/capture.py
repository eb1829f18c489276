"""Change capture: triggers that write a `change` row in the writer's own transaction.

Every write to the table of a catalogue is captured: by ORM, raw SQL, `psql` or another application.
An UPDATE that changes no synced column writes no change.

Values are compared byte by byte. `postgresql_triggers` and `sqlite_triggers` write the triggers, and
`capture_checks` refuses a table whose writes could not all be captured.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models import postgresql_triggers, sqlite_triggers
from models.capture_checks import CaptureRefused, exists, place_of, problems
from models.capture_sources import PREFIX, Source, sources_of
from models.catalogues import CATALOGUES, Catalogue
from models.ledger import SyncContext
from models.postgresql_triggers import ORIGIN_SETTING, UNSUBSCRIBE_SETTING

logger = logging.getLogger(__name__)


@contextmanager
def sync_context(
    connection: sa.Connection | Session, *, origin: str | None = None, unsubscribe: Iterable[str] = ()
) -> Iterator[None]:
    """Name the origin and the unsubscribe list of the writes made inside, in one transaction.

    `unsubscribe` holds systems (`stripe`) or subscribers (`stripe.customer`) that do not get these
    changes. ORM sessions are flushed at both ends, so that exactly the writes inside the block are
    covered. A block inside another one replaces its context until the inner block ends.
    """
    if isinstance(connection, Session):
        connection.flush()
    before = _get_context(connection)
    _set_context(connection, origin, ",".join(unsubscribe) or None)
    try:
        yield
        if isinstance(connection, Session):
            connection.flush()
    except BaseException:
        try:
            _set_context(connection, *before)
        except sa.exc.SQLAlchemyError as error:
            # The transaction, or its savepoint, has failed: the context goes with it.
            logger.debug("the sync context ended with its transaction: %s", error)
        raise
    _set_context(connection, *before)


def _is_postgresql(connection: sa.Connection | Session) -> bool:
    bind = connection.get_bind() if isinstance(connection, Session) else connection
    return bind.dialect.name == "postgresql"


def _get_context(connection: sa.Connection | Session) -> tuple[str | None, str | None]:
    if _is_postgresql(connection):
        names = sa.text(
            f"SELECT current_setting('{ORIGIN_SETTING}', true), current_setting('{UNSUBSCRIBE_SETTING}', true)"
        )
    else:
        names = sa.text("SELECT origin, unsubscribe FROM sync_context")
    row = connection.execute(names).one_or_none()
    return (row[0] or None, row[1] or None) if row is not None else (None, None)


def _set_context(connection: sa.Connection | Session, origin: str | None, unsubscribe: str | None) -> None:
    if _is_postgresql(connection):
        statement = sa.text(
            f"SELECT set_config('{ORIGIN_SETTING}', :origin, true),"
            f" set_config('{UNSUBSCRIBE_SETTING}', :unsubscribe, true)"
        )
        connection.execute(statement, {"origin": origin or "", "unsubscribe": unsubscribe or ""})
        return
    # SQLite: the row exists only until the commit, so no other connection sees it.
    connection.execute(sa.delete(SyncContext))
    if origin or unsubscribe:
        connection.execute(sa.insert(SyncContext).values(id=1, origin=origin, unsubscribe=unsubscribe))


def install(connection: sa.Connection, catalogues: Iterable[Catalogue] | None = None) -> list[str]:
    """Create or replace the capture triggers of these catalogues, by default all; return the names of all triggers.

    Raises:
      CaptureRefused: some writes could not be captured; nothing was changed.
    """
    sources = list(_present(connection, CATALOGUES.values() if catalogues is None else catalogues))
    if reasons := [reason for source in sources for reason in problems(connection, source)]:
        raise CaptureRefused(reasons)
    remove(connection)
    preparer = connection.dialect.identifier_preparer
    for source in sources:
        if connection.dialect.name == "postgresql":
            statements = postgresql_triggers.statements(source, place_of(connection, source), preparer)
        else:
            statements = sqlite_triggers.statements(source, sqlite_triggers.uniques_of(connection, source), preparer)
        for statement in statements:
            connection.exec_driver_sql(statement)
    return installed(connection)


def _present(connection: sa.Connection, catalogues: Iterable[Catalogue]) -> Iterator[Source]:
    """Yield the sources of those catalogues whose tables all exist."""
    for catalogue in catalogues:
        sources = list(sources_of(catalogue))
        if missing := sorted(source.table.name for source in sources if not exists(connection, source)):
            logger.warning("catalogue %s is not captured: it has no table %s", catalogue.name, ", ".join(missing))
            continue
        yield from sources


def remove(connection: sa.Connection) -> list[str]:
    """Drop all capture triggers, also those of former catalogues, and return their names."""
    quote = connection.dialect.identifier_preparer.quote
    names = installed(connection)
    if connection.dialect.name == "postgresql":
        for name, table in connection.execute(sa.text(_PG_TRIGGERS)).all():
            connection.exec_driver_sql(f"DROP TRIGGER {quote(name)} ON {table}")
        for (signature,) in connection.execute(sa.text(_PG_FUNCTIONS)).all():
            connection.exec_driver_sql(f"DROP FUNCTION {signature}")
    else:
        for name in names:
            connection.exec_driver_sql(f"DROP TRIGGER {quote(name)}")
    return names


def installed(connection: sa.Connection) -> list[str]:
    """Return the names of the capture triggers in the database."""
    if connection.dialect.name == "postgresql":
        return [row[0] for row in connection.execute(sa.text(_PG_TRIGGERS))]
    statement = f"SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE '{PREFIX}%' ORDER BY name"
    return [row[0] for row in connection.exec_driver_sql(statement)]


# Those of this ledger: another hub may have its own in another schema. Partitions inherit triggers of their table.
_PG_TRIGGERS = f"""
    SELECT tgname, tgrelid::regclass::text FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid
    WHERE NOT tgisinternal AND tgparentid = 0 AND starts_with(tgname, '{PREFIX}')
        AND pronamespace = quote_ident(current_schema())::regnamespace ORDER BY tgname, 2
"""
_PG_FUNCTIONS = f"""
    SELECT oid::regprocedure::text FROM pg_proc
    WHERE starts_with(proname, '{PREFIX}') AND pronamespace = quote_ident(current_schema())::regnamespace ORDER BY 1
"""
