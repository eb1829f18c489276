"""Whether all writes to the tables of a catalogue are captured at this moment, and why not.

Nothing is changed: the triggers are compared with those that `capture.install` would create.
"""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa

from models import postgresql_triggers, sqlite_triggers
from models.capture_checks import exists, place_of, problems
from models.capture_sources import Source, sources_of
from models.catalogues import Catalogue

#: The remedy of most faults.
INSTALL = "Run ./syncflow capture install"

# Triggers with their function and state. Partitions have copies of their table's triggers, with a parent.
_TRIGGERS = sa.text("""
    SELECT t.tgrelid::regclass = to_regclass(:table) AS is_own, t.tgenabled::text AS enabled, p.prosrc AS body,
        p.prosecdef AS is_definer, format('%I.%I', n.nspname, c.relname) AS place
    FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_class c ON c.oid = t.tgrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE NOT t.tgisinternal AND t.tgname = :name AND p.pronamespace = quote_ident(current_schema())::regnamespace
""")

# Sessions that run as a replica fire no triggers ("session_replication_role" in the manual).
_REPLICAS = sa.text("""
    SELECT coalesce(r.rolname, '(all)') AS role FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole
    WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
        AND 'session_replication_role=replica' = ANY (s.setconfig)
""")


def faults(connection: sa.Connection, catalogue: Catalogue) -> list[str]:
    """Return why some writes to a catalogue's tables may not be captured, each with its remedy; empty if all are."""
    found = [fault for source in sources_of(catalogue) for fault in _faults(connection, source)]
    if connection.dialect.name == "postgresql":
        found += [
            f"the role {role} writes as a replica, which runs no triggers. "
            f"Run ALTER ROLE {role} RESET session_replication_role"
            for role in connection.execute(_REPLICAS).scalars()
        ]
    return found


def _faults(connection: sa.Connection, source: Source) -> Iterator[str]:
    if not exists(connection, source):
        yield f"the table {source.table.name} does not exist. Create it, or correct the declaration of the catalogue"
        return
    refused = list(problems(connection, source))
    if refused:
        yield from refused
    elif connection.dialect.name == "postgresql":
        yield from _postgresql(connection, source)
    else:
        yield from _sqlite(connection, source)


def _postgresql(connection: sa.Connection, source: Source) -> Iterator[str]:
    preparer, name = connection.dialect.identifier_preparer, source.table.name
    for needed in postgresql_triggers.triggers(source, place_of(connection, source), preparer):
        parameters = {"table": needed.tables[0], "name": needed.name.strip('"')}
        rows = connection.execute(_TRIGGERS, parameters).all()
        places = {row.place for row in rows}
        if not any(row.is_own for row in rows):
            elsewhere = f"; it is on {', '.join(sorted(places))}, the former table" if places else ""
            yield f"{name} has no trigger for {needed.event.upper()}{elsewhere}. {INSTALL}"
        elif missing := [table for table in needed.tables if table not in places]:
            yield f"{', '.join(missing)} has no trigger for {needed.event.upper()}. {INSTALL}"
        elif disabled := sorted(row.place for row in rows if row.enabled not in ("O", "A")):
            yield (
                f"the trigger {needed.name} of {', '.join(disabled)} is disabled. "
                f"Run ALTER TABLE {disabled[0]} ENABLE TRIGGER {needed.name}"
            )
        elif any(row.body != needed.body or not row.is_definer for row in rows):
            yield f"the trigger of {name} for {needed.event.upper()} is not the current one. {INSTALL}"


def _sqlite(connection: sa.Connection, source: Source) -> Iterator[str]:
    preparer = connection.dialect.identifier_preparer
    rows = connection.execute(sa.text("SELECT sql FROM sqlite_master WHERE type = 'trigger'"))
    present = {_spaces(sql) for sql in rows.scalars()}
    needed = sqlite_triggers.statements(source, sqlite_triggers.uniques_of(connection, source), preparer)
    if missing := sum(_spaces(statement) not in present for statement in needed):
        yield f"{source.table.name} lacks {missing} of its triggers, or has others. {INSTALL}"


def _spaces(statement: str) -> str:
    return " ".join(statement.split())
