"""Change capture: triggers that write a `change` row in the writer's own transaction.

Every write to the table of a catalogue is captured: by ORM, raw SQL, `psql` or another application.
An UPDATE that changes no synced column writes no change.

PostgreSQL uses statement-level triggers with transition tables, so that a bulk UPDATE costs one
set-based INSERT; SQLite has row-level triggers only. See "CREATE TRIGGER" in both manuals.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models.catalogues import CATALOGUES, Catalogue, Children
from models.ledger import SyncContext
from models.session import CHANNEL

logger = logging.getLogger(__name__)

_PREFIX = "syncflow_"

#: Names of the settings a PostgreSQL writer sets for its transaction, e.g.
#: `SELECT set_config('syncflow.origin', 'stripe', true)`.
ORIGIN_SETTING = "syncflow.origin"
UNSUBSCRIBE_SETTING = "syncflow.unsubscribe"


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
    """Create or replace the capture triggers of these catalogues, by default all; return the names of all triggers."""
    remove(connection)
    make = _postgresql if connection.dialect.name == "postgresql" else _sqlite
    tables = set(sa.inspect(connection).get_table_names())
    for catalogue in CATALOGUES.values() if catalogues is None else catalogues:
        missing = {table.name for table, *_ in _sources(catalogue)} - tables
        if missing:
            logger.warning(
                "catalogue %s is not captured: it has no table %s", catalogue.name, ", ".join(sorted(missing))
            )
            continue
        for statement in make(catalogue, connection.dialect.identifier_preparer.quote):
            connection.exec_driver_sql(statement)
    return installed(connection)


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
    statement = f"SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE '{_PREFIX}%' ORDER BY name"
    return [row[0] for row in connection.exec_driver_sql(statement)]


_PG_TRIGGERS = f"""
    SELECT tgname, tgrelid::regclass::text FROM pg_trigger
    WHERE NOT tgisinternal AND tgname LIKE '{_PREFIX}%' ORDER BY tgname
"""
_PG_FUNCTIONS = f"""
    SELECT oid::regprocedure::text FROM pg_proc
    WHERE proname LIKE '{_PREFIX}%' AND pronamespace = current_schema()::regnamespace ORDER BY 1
"""


def _synced(table: sa.Table, ignore: Iterable[str]) -> list[str]:
    ignored = set(ignore)
    return [column.name for column in table.c if column.name not in ignored]


def _sources(catalogue: Catalogue) -> list[tuple[sa.Table, str, bool, list[str]]]:
    """Return (table, column with the record's id, whether it has child rows, compared columns) for each table."""
    own = (catalogue.table, catalogue.key.name, False, _synced(catalogue.table, catalogue.ignore))
    return [
        own,
        *((child.table, child.parent_key, True, _child_columns(child)) for child in catalogue.children),
    ]


def _child_columns(child: Children) -> list[str]:
    return [column.name for column in child.table.c]


# --- SQLite ---------------------------------------------------------------------------------------

_SQLITE_VALUES = """
    INSERT INTO change (catalogue, record_id, operation, origin, unsubscribe, at)
    SELECT '{catalogue}', {record}, '{operation}',
        (SELECT origin FROM sync_context), (SELECT unsubscribe FROM sync_context),
        strftime('%Y-%m-%d %H:%M:%f000', 'now'){where};
"""

#: SQLAlchemy stores a UUID as 32 digits in SQLite; the id of a record has the dashes.
_UUID = (
    "printf('%s-%s-%s-%s-%s', "
    + ", ".join(f"substr({{0}}, {start}, {length})" for start, length in ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12)))
    + ")"
)


def _sqlite(catalogue: Catalogue, quote: Any) -> Iterator[str]:
    for table, key, is_child, columns in _sources(catalogue):
        name = quote(table.name)
        column = quote(key)

        def body(
            row: str,
            operation: str,
            where: str = "",
            column: str = column,
            child: bool = is_child,
            is_uuid: bool = isinstance(table.c[key].type, sa.Uuid),
        ) -> str:
            word = "updated" if child else operation
            record = f"{row}.{column}"
            written = _UUID.format(record) if is_uuid else record
            if child:  # a row without a record changes none
                where = f"{where} AND {record} IS NOT NULL" if where else f" WHERE {record} IS NOT NULL"
            return _SQLITE_VALUES.format(catalogue=catalogue.name, record=written, operation=word, where=where)

        differs = " OR ".join(f"OLD.{quote(c)} IS NOT NEW.{quote(c)}" for c in columns)
        moved = f" WHERE OLD.{column} IS NOT NEW.{column}"
        stayed = f" WHERE OLD.{column} IS NEW.{column}"
        # A changed key is one record deleted and another one created.
        update = body("OLD", "deleted", moved) + body("NEW", "created", moved) + body("NEW", "updated", stayed)
        for event, when, statements in (
            ("INSERT", "", body("NEW", "created")),
            ("UPDATE", f" WHEN {differs}", update),
            ("DELETE", "", body("OLD", "deleted")),
        ):
            trigger = quote(f"{_PREFIX}{catalogue.name}_{table.name}_{event.lower()}")
            yield f"CREATE TRIGGER {trigger} AFTER {event} ON {name} FOR EACH ROW{when} BEGIN {statements} END"


# --- PostgreSQL -----------------------------------------------------------------------------------

# SECURITY DEFINER: an application that writes its own table needs no access to the ledger.
# jit = off: the planner overestimates the cost of the join, and compiling takes longer than running it.
_PG_FUNCTION = """
CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET jit = off AS $$
BEGIN
    INSERT INTO change (catalogue, record_id, operation, origin, unsubscribe, at)
    SELECT '{catalogue}', captured.record, captured.operation,
        nullif(current_setting('{origin}', true), ''), nullif(current_setting('{unsubscribe}', true), ''),
        clock_timestamp()
    FROM ({select}) AS captured (record, operation)
    WHERE captured.record IS NOT NULL;
    IF FOUND THEN
        PERFORM pg_notify('{channel}', '');
    END IF;
    RETURN NULL;
END $$
"""


def _postgresql(catalogue: Catalogue, quote: Any) -> Iterator[str]:
    for table, key, is_child, columns in _sources(catalogue):
        record, primary = quote(key), quote(next(iter(table.primary_key)).name)
        created, updated, deleted = ("updated",) * 3 if is_child else ("created", "updated", "deleted")
        differs = " OR ".join(_differs(table.c[c], quote) for c in columns)
        # A row without a counterpart had its key changed: one record deleted, another created. PostgreSQL never uses
        # a nested loop for a FULL JOIN. It keeps a session's first plan, which may be for a single row, and a nested
        # loop would take half a minute for 10,000 rows.
        pairs = f"old_rows o FULL JOIN new_rows n USING ({primary})"
        if is_child:  # a row that moves changes both parents
            update = f"""
                SELECT DISTINCT of_either.parent::text, '{updated}'
                FROM {pairs} CROSS JOIN LATERAL (VALUES (o.{record}), (n.{record})) AS of_either (parent)
                WHERE {differs}
            """
        else:
            update = f"""
                SELECT coalesce(n.{record}, o.{record})::text,
                    CASE WHEN o.{primary} IS NULL THEN '{created}' WHEN n.{primary} IS NULL THEN '{deleted}'
                    ELSE '{updated}' END
                FROM {pairs} WHERE {differs}
            """
        distinct = "DISTINCT " if is_child else ""
        insert = f"SELECT {distinct}{record}::text, '{created}' FROM new_rows"
        delete = f"SELECT {distinct}{record}::text, '{deleted}' FROM old_rows"
        truncate = f"SELECT {distinct}{record}::text, '{deleted}' FROM {quote(table.name)}"
        for event, timing, referencing, select in (
            ("INSERT", "AFTER", "REFERENCING NEW TABLE AS new_rows", insert),
            ("UPDATE", "AFTER", "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows", update),
            ("DELETE", "AFTER", "REFERENCING OLD TABLE AS old_rows", delete),
            ("TRUNCATE", "BEFORE", "", truncate),
        ):
            name = quote(f"{_PREFIX}{catalogue.name}_{table.name}_{event.lower()}")
            yield _PG_FUNCTION.format(
                function=name,
                catalogue=catalogue.name,
                origin=ORIGIN_SETTING,
                unsubscribe=UNSUBSCRIBE_SETTING,
                channel=CHANNEL,
                select=select,
            )
            yield (
                f"CREATE TRIGGER {name} {timing} {event} ON {quote(table.name)} {referencing}"
                f" FOR EACH STATEMENT EXECUTE FUNCTION {name}()"
            )


def _differs(column: sa.Column[Any], quote: Any) -> str:
    # The json type has no equality operator, so its text is compared.
    cast = "::text" if isinstance(column.type, sa.JSON) else ""
    name = quote(column.name)
    return f"n.{name}{cast} IS DISTINCT FROM o.{name}{cast}"
